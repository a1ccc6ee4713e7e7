"""Objects: one row each, pointing to a blob. Generations, preconditions, listings, copies.

Rules from https://cloud.google.com/storage/docs/json_api/v1/objects, /docs/request-preconditions and
/docs/json_api/v1/objects/list. Every check and its change are one transaction, so two callers cannot both win.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.db.database import Database, Prepared
from taxiway.db.tables import blobs as blobs_table
from taxiway.db.tables import buckets
from taxiway.db.tables import objects as table
from taxiway.storage.blobs import Blobs, Content

DEFAULT_TYPE = "application/octet-stream"
PAGE = 1000  # items and prefixes together: Cloud Storage's largest page
TOGETHER = 32  # objects that one statement inserts
PARTS = 32  # sources of one compose: Cloud Storage's limit
LAST = "\U0010ffff"

Thing = TypeVar("Thing")


class Object(msgspec.Struct, frozen=True):
    """An object as it is now. The fields are the columns of its row, in their order."""

    bucket: str
    name: str
    generation: int
    metageneration: int
    size: int
    crc32c: str
    md5: str | None
    components: int
    content_type: str
    content_encoding: str | None
    content_disposition: str | None
    content_language: str | None
    cache_control: str | None
    custom: dict[str, str]
    storage_class: str
    owner: str
    blob: str
    created: float
    updated: float
    acl: list[tuple[str, str]] | None = None  # (entity, role) beside the owner; None: projectPrivate


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer may say about an object."""

    content_type: str = DEFAULT_TYPE
    content_encoding: str | None = None
    content_disposition: str | None = None
    content_language: str | None = None
    cache_control: str | None = None
    custom: dict[str, str] = {}
    storage_class: str = "STANDARD"
    acl: list[tuple[str, str]] | None = None


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Cloud Storage's preconditions; generation 0 stands for "no such object"."""

    generation: int | None = None
    generation_not: int | None = None
    metageneration: int | None = None
    metageneration_not: int | None = None

    def check(self, name: str, current: Versioned | None, *, reading: bool = False) -> None:
        """Raises ConditionNotMet, or NotModified where a read asked for something new."""
        generation = current.generation if current else 0
        metageneration = current.metageneration if current else None
        for word, wanted, found in (
            ("ifGenerationMatch", self.generation, generation),
            ("ifMetagenerationMatch", self.metageneration, metageneration),
        ):
            if wanted is not None and wanted != found:
                raise errors.ConditionNotMet(
                    f"At least one of the pre-conditions you specified did not hold: {word}={wanted}, but "
                    f"{_has(name, word, found)}. Read it again and retry with what it has now."
                )
        for word, unwanted, found in (
            ("ifGenerationNotMatch", self.generation_not, generation),
            ("ifMetagenerationNotMatch", self.metageneration_not, metageneration),
        ):
            if unwanted is not None and unwanted == found:
                kind = errors.NotModified if reading else errors.ConditionNotMet
                raise kind(
                    f"At least one of the pre-conditions you specified did not hold: {word}={unwanted}, and "
                    f"{_has(name, word, found)}."
                )


class Versioned(Protocol):
    """Anything that carries Cloud Storage's two counters."""

    @property
    def generation(self) -> int: ...
    @property
    def metageneration(self) -> int: ...


class Versions(NamedTuple):
    """Only the counters of an object."""

    generation: int
    metageneration: int


ALWAYS = Conditions()


class Replaces(errors.PermissionDenied):
    """The write would replace an object, and the caller did not say that it may."""


class New(msgspec.Struct, frozen=True):
    """An object that is about to be; `fresh`: its blob has no row yet."""

    bucket: str
    name: str
    content: Content
    metadata: Metadata
    owner: str
    now: float
    components: int = 0
    fresh: bool = True


class Newcomer(NamedTuple):
    """An object that may be put if no other has its name."""

    blobs: Blobs
    wanted: New
    conditions: Conditions
    also: Also | None


class Put(Protocol):
    def __call__(self, rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]: ...


Replacing = Callable[[], object]  # raises if the writer may not replace an object that is there
Also = Callable[[sa.Connection, Object], None]


class Page(msgspec.Struct, frozen=True):
    """Part of a listing. `following` is where the next page starts (see `page`), empty at the end."""

    items: list[Object]
    prefixes: list[str]
    following: str


def get(
    db: Database, bucket: str, name: str, *, generation: int | None = None, conditions: Conditions = ALWAYS
) -> Object:
    """Raises NotFound, ConditionNotMet, NotModified."""
    rows = db.rows(_LOOK, {"bucket": bucket, "name": name})
    if not rows or generation not in (None, rows[0][2]):
        raise missing(bucket, name, generation)
    found = _of_row(rows[0])
    conditions.check(name, found, reading=True)
    return found


def get_with_data(
    db: Database, bucket: str, name: str, *, generation: int | None = None, conditions: Conditions = ALWAYS
) -> tuple[Object, bytes | None]:
    """An object and its bytes, if they live in the row; None: they are in the blob's file. Raises as `get`."""
    rows = db.rows(_LOOK_WITH_DATA, {"bucket": bucket, "name": name})
    if not rows or generation not in (None, rows[0][2]):
        raise missing(bucket, name, generation)
    found = _of_row(rows[0][:-1])
    conditions.check(name, found, reading=True)
    return found, rows[0][-1]


def page(
    db: Database,
    bucket: str,
    *,
    prefix: str = "",
    delimiter: str = "",
    start: str = "",
    end: str = "",
    trailing: bool = False,
    limit: int = PAGE,
) -> Page:
    """Objects by name from `start` on (and before `end`, if given), in UTF-8 order.

    With a delimiter, names that contain it after the prefix are told once, by what they share, as `prefixes`; an
    object named exactly as a prefix is among the items too if `trailing`. The index is sought past each such group, so
    a listing costs what it shows, whatever it skips. Raises NotFound for a bucket that does not exist.
    """
    items: list[Object] = []
    prefixes: list[str] = []
    start, end = max(start, prefix), min(filter(None, (after_all(prefix), end)), default="")
    fetch = limit + 1 if not delimiter else 16
    with db.snapshot() as look:
        if not look(_BUCKET, {"bucket": bucket}):
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist. Make it: taxiway storage mb gs://{bucket}")
        while True:
            fetch = min(fetch, limit + 1)
            found = look(_BETWEEN if end else _FROM, {"bucket": bucket, "start": start, "end": end, "most": fetch})
            group = ""
            for row in found:
                if len(items) + len(prefixes) >= limit:
                    return Page(items, prefixes, row[1])
                cut = row[1].find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    items.append(_of_row(row))
                    continue
                group = row[1][: cut + len(delimiter)]
                prefixes.append(group)
                if trailing and row[1] == group:
                    items.append(_of_row(row))
                break
            if not group and len(found) < fetch:
                return Page(items, prefixes, "")
            start = after_all(group) if group else found[-1][1] + "\0"
            if not start or (end and start >= end):
                return Page(items, prefixes, "")
            fetch = 4 if group else fetch * 4  # groups often follow one another, and so do plain names


def after_all(prefix: str) -> str:
    """The smallest text that is greater than everything that starts with the prefix; "" if there is none."""
    stem = prefix.rstrip(LAST)
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


async def insert(
    db: Database,
    blobs: Blobs,
    bucket: str,
    name: str,
    content: Content,
    metadata: Metadata,
    *,
    owner: str,
    now: float,
    conditions: Conditions = ALWAYS,
    replacing: Replacing,
    also: Also | None = None,
) -> Object:
    """Make a finished blob visible as an object; it is durable when this returns, and the blob is gone if it raises.

    `replacing` is asked only if there is an object to replace. `also` writes more rows in the same transaction.
    Raises ConditionNotMet, NotFound (the bucket), and what `replacing` raises.
    """
    names.object_name(name, "name")
    wanted = New(bucket, name, content, metadata, owner, now)

    def work(rows: sa.Connection) -> tuple[Object, list[str]]:
        made, gone = _put(rows, blobs, wanted, conditions, may_replace=True)
        if also is not None:
            also(rows, made)
        return made, gone

    gone: list[str] = []
    try:
        try:
            made = await db.commit_together(_put_new, Newcomer(blobs, wanted, conditions, also))
        except Replaces:
            await asyncio.to_thread(replacing)
            made, gone = await db.commit(work)
    except Exception:
        if content.data is None:
            blobs.remove([content.blob])
        raise
    if gone:
        await asyncio.to_thread(blobs.remove, gone)
    return made


def patch(
    db: Database,
    bucket: str,
    name: str,
    changes: Mapping[str, Any],
    *,
    now: float,
    generation: int | None = None,
    conditions: Conditions = ALWAYS,
) -> Object:
    """Change metadata; `changes` has names of Metadata's fields, and None sets one back to its default.

    In `custom`, None removes a key and the other keys stay. Raises NotFound, ConditionNotMet.
    """

    def work(rows: sa.Connection) -> Object:
        current = _found(rows, bucket, name, generation)
        conditions.check(name, current)
        values = dict(changes)
        if "custom" in values:
            merged = {**current.custom, **values["custom"]} if values["custom"] is not None else {}
            values["custom"] = {key: value for key, value in merged.items() if value is not None}
        if values.get("content_type", "") is None:
            values["content_type"] = DEFAULT_TYPE
        values.update(metageneration=current.metageneration + 1, updated=now)
        rows.execute(sa.update(table).where(table.c.bucket == bucket, table.c.name == name).values(values))
        return msgspec.structs.replace(current, **values)

    return db.write(work)


def delete(
    db: Database,
    blobs: Blobs,
    bucket: str,
    name: str,
    *,
    generation: int | None = None,
    conditions: Conditions = ALWAYS,
) -> None:
    """Raises NotFound, ConditionNotMet."""

    def work(rows: sa.Connection) -> list[str]:
        current = _found(rows, bucket, name, generation)
        conditions.check(name, current)
        return _remove(rows, current)

    blobs.remove(db.write(work))


def copy(
    db: Database,
    blobs: Blobs,
    source: tuple[str, str],
    target: tuple[str, str],
    *,
    owner: str,
    now: float,
    changes: Mapping[str, Any] | None = None,
    source_generation: int | None = None,
    source_conditions: Conditions = ALWAYS,
    conditions: Conditions = ALWAYS,
    replacing: Replacing,
    move: bool = False,
) -> Object:
    """A second row for the same blob, whatever its size; `move` removes the first in the same transaction.

    `changes` has names of Metadata's fields; the others are the source's. Raises NotFound, ConditionNotMet, and what
    `replacing` raises.
    """
    names.object_name(target[1], "destinationObject")

    def work(rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]:
        found = _found(rows, *source, source_generation)
        source_conditions.check(source[1], found)
        content = Content(found.blob, found.size, found.crc32c, found.md5, None)
        said = msgspec.structs.replace(metadata_of(found), **(changes or {}))
        wanted = New(*target, content, said, owner, now, found.components, fresh=False)
        made, gone = _put(rows, blobs, wanted, conditions, may_replace=may_replace)
        if move and source != target:
            gone += _remove(rows, found)
        return made, gone

    made, gone = _written(db, work, replacing)
    blobs.remove(gone)
    return made


def compose(
    db: Database,
    blobs: Blobs,
    bucket: str,
    sources: Sequence[tuple[str, int | None, Conditions]],
    name: str,
    *,
    owner: str,
    now: float,
    metadata: Metadata | None = None,
    conditions: Conditions = ALWAYS,
    replacing: Replacing,
) -> Object:
    """One object of up to 32 others of the same bucket, end to end; without metadata it takes the first one's type.

    Raises InvalidArgument for none or too many, NotFound, ConditionNotMet, and what `replacing` raises.
    """
    names.object_name(name, "destinationObject")
    if not 1 <= len(sources) <= PARTS:
        raise errors.InvalidArgument(
            faults=[("sourceObjects", f"Compose takes 1 to {PARTS} source objects; these are {len(sources)}.")]
        )
    parts: list[tuple[Object, bytes | None]] = []
    for source, generation, source_conditions in sources:
        found, data = get_with_data(db, bucket, source, generation=generation)
        source_conditions.check(source, found)
        parts.append((found, data))
    try:
        content = blobs.join([(found.blob, data) for found, data in parts])
    except FileNotFoundError as error:
        raise errors.Aborted(f"A source of gs://{bucket}/{name} was replaced meanwhile; try again.") from error
    said = metadata or Metadata(content_type=parts[0][0].content_type)
    wanted = New(bucket, name, content, said, owner, now, sum(max(found.components, 1) for found, _ in parts))

    def work(rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]:
        return _put(rows, blobs, wanted, conditions, may_replace=may_replace)

    try:
        made, gone = _written(db, work, replacing)
    except Exception:
        blobs.remove([content.blob])
        raise
    blobs.remove(gone)
    return made


def metadata_of(found: Object) -> Metadata:
    return Metadata(**{field: getattr(found, field) for field in Metadata.__struct_fields__})


def missing(bucket: str, name: str, generation: int | None = None) -> errors.NotFound:
    version = "" if generation is None else f" of generation {generation}"
    return errors.NotFound(
        f"No such object: gs://{bucket}/{name}{version}. See what is there: taxiway storage ls gs://{bucket}"
    )


_SELECT = sa.select(table).where(table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name"))
_LOOK = Prepared(_SELECT)
_LOOK_WITH_DATA = Prepared(
    sa.select(table, blobs_table.c.data)
    .join(blobs_table, blobs_table.c.id == table.c.blob)
    .where(table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name"))
)
_CUSTOM = Object.__struct_fields__.index("custom")
_ACL = Object.__struct_fields__.index("acl")
_BUCKET = Prepared(sa.select(buckets.c.name).where(buckets.c.name == sa.bindparam("bucket")))
_PAGE = sa.select(table).where(table.c.bucket == sa.bindparam("bucket"), table.c.name >= sa.bindparam("start"))
_PAGE = _PAGE.order_by(table.c.name).limit(sa.bindparam("most"))
_FROM = Prepared(_PAGE)
_BETWEEN = Prepared(_PAGE.where(table.c.name < sa.bindparam("end")))
_INSERT_BLOB = sa.insert(blobs_table)
_INSERT = sa.insert(table)
_UNUSED = (
    sa.delete(blobs_table)
    .where(blobs_table.c.id == sa.bindparam("blob"), ~sa.exists().where(table.c.blob == sa.bindparam("blob")))
    .returning(sa.func.length(blobs_table.c.data))  # SQLite answers `data IS NULL` wrongly here
)


def _of_row(row: tuple[Any, ...]) -> Object:
    """An object of a row as SQLite has it: JSON is text."""
    fields = list(row)
    fields[_CUSTOM] = {} if row[_CUSTOM] == "{}" else msgspec.json.decode(row[_CUSTOM])
    if row[_ACL] is not None:
        fields[_ACL] = [tuple(each) for each in msgspec.json.decode(row[_ACL])]
    return Object(*fields)


def _find(rows: sa.Connection, bucket: str, name: str) -> Object | None:
    row = rows.execute(_SELECT, {"bucket": bucket, "name": name}).first()
    return None if row is None else Object(*row)


def _found(rows: sa.Connection, bucket: str, name: str, generation: int | None) -> Object:
    found = _find(rows, bucket, name)
    if found is None or generation not in (None, found.generation):
        raise missing(bucket, name, generation)
    return found


def _written(db: Database, work: Put, replacing: Replacing) -> tuple[Object, list[str]]:
    """Write; if there is something to replace, ask whether that may be, and write again."""
    try:
        return db.write(functools.partial(work, may_replace=False))
    except Replaces:
        replacing()
    return db.write(functools.partial(work, may_replace=True))


def _put(
    rows: sa.Connection, blobs: Blobs, wanted: New, conditions: Conditions, *, may_replace: bool
) -> tuple[Object, list[str]]:
    """The row of an object, new or replaced, and the files that nothing needs any more."""
    bucket, name, content = wanted.bucket, wanted.name, wanted.content
    current = _find(rows, bucket, name)
    conditions.check(name, current)
    if current is not None and not may_replace:
        raise Replaces(f"gs://{bucket}/{name} exists, and replacing it takes storage.objects.delete.")
    generation = blobs.generation(wanted.now)
    made = _made(wanted, generation if current is None else max(generation, current.generation + 1))
    values = msgspec.structs.asdict(made)
    if wanted.fresh:
        rows.execute(_INSERT_BLOB, {"id": content.blob, "size": content.size, "data": content.data})
    if current is None:
        try:
            rows.execute(_INSERT, values)
        except sa.exc.IntegrityError as error:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist any more.") from error
        return made, []
    rows.execute(sa.update(table).where(table.c.bucket == bucket, table.c.name == name).values(values))
    return made, _unused(rows, current.blob)


def _put_new(rows: sa.Connection, newcomers: Sequence[Newcomer]) -> list[Object | errors.Error]:
    """The rows of several objects at once; Replaces for one whose name is taken, or what its conditions say of that.

    The writer shares the interpreter with the event loop, and waits for it after every statement: so there are three
    for all of them, and in SQLite's own words, which cost a fifth of SQLAlchemy's.
    """
    driver = rows.connection.driver_connection
    assert driver is not None
    there: dict[tuple[str, str], Versioned] = {}
    for some in _in_pieces(newcomers):
        keys = [part for each in some for part in (each.wanted.bucket, each.wanted.name)]
        for bucket, name, *versions in driver.execute(_select_versions(len(some)), keys):
            there[bucket, name] = Versions(*versions)
    answers: list[Object | errors.Error] = []
    made: list[tuple[Object, Newcomer]] = []
    for each in newcomers:
        wanted, key = each.wanted, (each.wanted.bucket, each.wanted.name)
        try:
            each.conditions.check(wanted.name, there.get(key))
        except errors.Error as error:
            answers.append(error)
            continue
        if key in there:
            answers.append(Replaces(f"gs://{'/'.join(key)} exists, and replacing it takes storage.objects.delete."))
            continue
        new = _made(wanted, each.blobs.generation(wanted.now))
        there[key] = new
        made.append((new, each))
        answers.append(new)
    try:
        for piece in _in_pieces(made):
            contents = [each.wanted.content for _, each in piece]
            driver.execute(
                _insert_rows(blobs_table, len(piece)),
                [value for content in contents for value in (content.blob, content.size, content.data)],
            )
            driver.execute(_insert_rows(table, len(piece)), [value for new, _ in piece for value in _as_row(new)])
    except sqlite3.IntegrityError as error:
        raise errors.NotFound(f"The bucket gs://{newcomers[0].wanted.bucket} does not exist any more.") from error
    for new, each in made:
        if each.also is not None:
            each.also(rows, new)
    return answers


def _made(wanted: New, generation: int) -> Object:
    content, said = wanted.content, wanted.metadata
    return Object(
        wanted.bucket,
        wanted.name,
        generation,
        1,
        content.size,
        content.crc32c,
        content.md5,
        wanted.components,
        said.content_type,
        said.content_encoding,
        said.content_disposition,
        said.content_language,
        said.cache_control,
        said.custom,
        said.storage_class,
        wanted.owner,
        content.blob,
        wanted.now,
        wanted.now,
        said.acl,
    )


def _as_row(made: Object) -> list[Any]:
    row = list(msgspec.structs.astuple(made))
    row[_CUSTOM] = msgspec.json.encode(made.custom).decode() if made.custom else "{}"
    if made.acl is not None:
        row[_ACL] = msgspec.json.encode(made.acl).decode()
    return row


def _in_pieces(things: Sequence[Thing]) -> Iterator[Sequence[Thing]]:
    """As many as one statement takes: an old SQLite allows 999 values."""
    for start in range(0, len(things), TOGETHER):
        yield things[start : start + TOGETHER]


@functools.cache
def _insert_rows(into: sa.Table, count: int) -> str:
    columns = [column.name for column in into.columns]
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {into.name} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"


@functools.cache
def _select_versions(count: int) -> str:
    keys = ", ".join(["(?, ?)"] * count)
    return (  # CROSS JOIN: each key is sought in the index, whatever SQLite thinks of the tables' sizes
        f"WITH wanted (b, n) AS (VALUES {keys}) SELECT bucket, name, generation, metageneration "
        "FROM wanted CROSS JOIN objects ON bucket = b AND name = n"
    )


def _remove(rows: sa.Connection, gone: Object) -> list[str]:
    rows.execute(sa.delete(table).where(table.c.bucket == gone.bucket, table.c.name == gone.name))
    return _unused(rows, gone.blob)


def _unused(rows: sa.Connection, blob: str) -> list[str]:
    """Remove a blob's row if no object points to it; what is answered are the files to remove after the commit."""
    gone = rows.execute(_UNUSED, {"blob": blob}).first()
    return [blob] if gone is not None and gone[0] is None else []


def _has(name: str, word: str, found: int | None) -> str:
    if not found:
        return f"{name} does not exist"
    return f"{name} has {'metageneration' if 'Meta' in word else 'generation'} {found}"
