"""Objects: one row each, pointing to a blob. Generations, preconditions, listings, copies.

Rules from https://cloud.google.com/storage/docs/json_api/v1/objects, /docs/request-preconditions and
/docs/json_api/v1/objects/list. Every check and its change are one transaction, so two callers cannot both win.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.db.tables import blobs as blobs_table
from taxiway.db.tables import buckets
from taxiway.db.tables import objects as table
from taxiway.storage.blobs import Blobs, Content

DEFAULT_TYPE = "application/octet-stream"
PAGE = 1000  # items and prefixes together: Cloud Storage's largest page
PARTS = 32  # sources of one compose: Cloud Storage's limit
LAST = "\U0010ffff"


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


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer may say about an object."""

    content_type: str = DEFAULT_TYPE
    content_encoding: str | None = None
    content_disposition: str | None = None
    content_language: str | None = None
    cache_control: str | None = None
    custom: dict[str, str] = {}
    storage_class: str = "STANDARD"


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
    with db.read() as rows:
        found = _found(rows, bucket, name, generation)
    conditions.check(name, found, reading=True)
    return found


def get_with_data(
    db: Database, bucket: str, name: str, *, generation: int | None = None, conditions: Conditions = ALWAYS
) -> tuple[Object, bytes | None]:
    """An object and its bytes, if they live in the row; None: they are in the blob's file. Raises as `get`."""
    with db.read() as rows:
        row = rows.execute(_SELECT_WITH_DATA, {"bucket": bucket, "name": name}).first()
    if row is None or generation not in (None, row[2]):
        raise missing(bucket, name, generation)
    found = Object(*row[:-1])
    conditions.check(name, found, reading=True)
    return found, row[-1]


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
    with db.read() as rows:
        _need_bucket(rows, bucket)
        while True:
            fetch = min(fetch, limit + 1)
            found = _from(rows, bucket, start, end, fetch)
            group = ""
            for row in found:
                if len(items) + len(prefixes) >= limit:
                    return Page(items, prefixes, row[1])
                cut = row[1].find(delimiter, len(prefix)) if delimiter else -1
                if cut < 0:
                    items.append(Object(*row))
                    continue
                group = row[1][: cut + len(delimiter)]
                prefixes.append(group)
                if trailing and row[1] == group:
                    items.append(Object(*row))
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

    def work(rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]:
        made, gone = _put(rows, blobs, wanted, conditions, may_replace=may_replace)
        if also is not None:
            also(rows, made)
        return made, gone

    try:
        try:
            # Asked before the write too: a failed transaction costs as much as one that holds.
            if _is_there(db, bucket, name):
                raise Replaces
            made, gone = await db.commit(functools.partial(work, may_replace=False))
        except Replaces:
            await asyncio.to_thread(replacing)
            made, gone = await db.commit(functools.partial(work, may_replace=True))
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
_SELECT_NAME = _SELECT.with_only_columns(table.c.name)
_SELECT_WITH_DATA = (
    sa.select(table, blobs_table.c.data)
    .join(blobs_table, blobs_table.c.id == table.c.blob)
    .where(table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name"))
)
_FROM = sa.select(table).where(table.c.bucket == sa.bindparam("bucket"), table.c.name >= sa.bindparam("start"))
_FROM = _FROM.order_by(table.c.name).limit(sa.bindparam("most"))
_BETWEEN = _FROM.where(table.c.name < sa.bindparam("end"))
_INSERT_BLOB = sa.insert(blobs_table)
_INSERT = sa.insert(table)
_UNUSED = (
    sa.delete(blobs_table)
    .where(blobs_table.c.id == sa.bindparam("blob"), ~sa.exists().where(table.c.blob == sa.bindparam("blob")))
    .returning(sa.func.length(blobs_table.c.data))  # SQLite answers `data IS NULL` wrongly here
)


def _is_there(db: Database, bucket: str, name: str) -> bool:
    with db.read() as rows:
        return rows.execute(_SELECT_NAME, {"bucket": bucket, "name": name}).first() is not None


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
    values = {
        "bucket": bucket,
        "name": name,
        "generation": generation if current is None else max(generation, current.generation + 1),
        "metageneration": 1,
        "size": content.size,
        "crc32c": content.crc32c,
        "md5": content.md5,
        "components": wanted.components,
        "owner": wanted.owner,
        "blob": content.blob,
        "created": wanted.now,
        "updated": wanted.now,
        **msgspec.structs.asdict(wanted.metadata),
    }
    if wanted.fresh:
        rows.execute(_INSERT_BLOB, {"id": content.blob, "size": content.size, "data": content.data})
    if current is None:
        try:
            rows.execute(_INSERT, values)
        except sa.exc.IntegrityError as error:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist any more.") from error
        return Object(**values), []
    rows.execute(sa.update(table).where(table.c.bucket == bucket, table.c.name == name).values(values))
    return Object(**values), _unused(rows, current.blob)


def _remove(rows: sa.Connection, gone: Object) -> list[str]:
    rows.execute(sa.delete(table).where(table.c.bucket == gone.bucket, table.c.name == gone.name))
    return _unused(rows, gone.blob)


def _unused(rows: sa.Connection, blob: str) -> list[str]:
    """Remove a blob's row if no object points to it; what is answered are the files to remove after the commit."""
    gone = rows.execute(_UNUSED, {"blob": blob}).first()
    return [blob] if gone is not None and gone[0] is None else []


def _need_bucket(rows: sa.Connection, bucket: str) -> None:
    if rows.execute(sa.select(buckets.c.name).where(buckets.c.name == bucket)).first() is None:
        raise errors.NotFound(f"The bucket gs://{bucket} does not exist. Make it: taxiway storage mb gs://{bucket}")


def _has(name: str, word: str, found: int | None) -> str:
    if not found:
        return f"{name} does not exist"
    return f"{name} has {'metageneration' if 'Meta' in word else 'generation'} {found}"


def _from(rows: sa.Connection, bucket: str, start: str, end: str, most: int) -> Sequence[Any]:
    values = {"bucket": bucket, "start": start, "most": most}
    if end:
        return rows.execute(_BETWEEN, {**values, "end": end}).all()
    return rows.execute(_FROM, values).all()
