"""Objects: one row each, pointing to a blob. Generations, live and noncurrent, and copies.

Rules from https://cloud.google.com/storage/docs/json_api/v1/objects, /docs/object-versioning and /docs/soft-delete.
Every check and its change are one transaction, so two callers cannot both win.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from taxiway import errors, names
from taxiway.db.database import Database, Prepared
from taxiway.db.tables import blobs as blobs_table
from taxiway.db.tables import buckets, noncurrent
from taxiway.db.tables import objects as table
from taxiway.storage.blobs import Blobs, Content
from taxiway.storage.conditions import ALWAYS, Conditions, Versioned, Versions

DEFAULT_TYPE = "application/octet-stream"
TOGETHER = 32  # objects that one statement inserts
PARTS = 32  # sources of one compose: Cloud Storage's limit

Thing = TypeVar("Thing")
Acl = list[tuple[str, str]] | None  # (entity, role) beside the owner; None: projectPrivate


class Object(msgspec.Struct, frozen=True):
    """An object as it is now. The fields are the columns of its row, in their order; a noncurrent one has two more."""

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
    acl: Acl = None
    deleted: float | None = None  # since when it is noncurrent, or soft-deleted; None: it is the live one
    kept_until: float | None = None  # for how long a soft-deleted one can be restored


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer may say about an object."""

    content_type: str = DEFAULT_TYPE
    content_encoding: str | None = None
    content_disposition: str | None = None
    content_language: str | None = None
    cache_control: str | None = None
    custom: dict[str, str] = {}
    storage_class: str = "STANDARD"
    acl: Acl | UnsetType = UNSET  # UNSET: what the bucket says for new objects


class NoSuchObject(errors.NotFound):
    """The bucket is there; the object, or its generation, is not."""


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


def get(
    db: Database, bucket: str, name: str, *, generation: int | None = None, conditions: Conditions = ALWAYS
) -> Object:
    """The live object, or the generation that was asked for. Raises NotFound, ConditionNotMet, NotModified."""
    rows = db.rows(_LOOK, {"bucket": bucket, "name": name})
    if not rows or generation not in (None, rows[0][2]):
        rows = _look_back(db, _BACK, bucket, name, generation)
    found = of_row(rows[0])
    conditions.check(name, found, reading=True)
    return found


def get_with_data(
    db: Database, bucket: str, name: str, *, generation: int | None = None, conditions: Conditions = ALWAYS
) -> tuple[Object, bytes | None]:
    """An object and its bytes, if they live in the row; None: they are in the blob's file. Raises as `get`."""
    rows = db.rows(_LOOK_WITH_DATA, {"bucket": bucket, "name": name})
    if not rows or generation not in (None, rows[0][2]):
        rows = _look_back(db, _BACK_WITH_DATA, bucket, name, generation)
    found = of_row(rows[0][:-1])
    conditions.check(name, found, reading=True)
    return found, rows[0][-1]


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
        made, gone = put(rows, blobs, wanted, conditions, may_replace=True)
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
        current = find(rows, bucket, name, generation)
        conditions.check(name, current)
        values = dict(changes)
        if "custom" in values:
            merged = {**current.custom, **values["custom"]} if values["custom"] is not None else {}
            values["custom"] = {key: value for key, value in merged.items() if value is not None}
        if values.get("content_type", "") is None:
            values["content_type"] = DEFAULT_TYPE
        return change(rows, current, values, now=now)

    return db.write(work)


def change(rows: sa.Connection, current: Object, values: Mapping[str, Any], *, now: float) -> Object:
    """Set fields of an object that was found in the same transaction."""
    changed = {**values, "metageneration": current.metageneration + 1, "updated": now}
    its = table if current.deleted is None else noncurrent
    rows.execute(sa.update(its).where(*_is(its, current)).values(changed))
    return msgspec.structs.replace(current, **changed)


def change_acl(
    db: Database,
    bucket: str,
    name: str,
    made_of: Callable[[Object], Acl],
    *,
    now: float,
    generation: int | None = None,
    conditions: Conditions = ALWAYS,
) -> Object:
    """Set the access control list to what `made_of` makes of the object as it is, which must be pure.

    Raises NotFound, ConditionNotMet, and what `made_of` raises.
    """

    def work(rows: sa.Connection) -> Object:
        current = find(rows, bucket, name, generation)
        conditions.check(name, current)
        return change(rows, current, {"acl": made_of(current)}, now=now)

    return db.write(work)


def delete(
    db: Database,
    blobs: Blobs,
    bucket: str,
    name: str,
    *,
    now: float,
    generation: int | None = None,
    conditions: Conditions = ALWAYS,
) -> None:
    """Delete the live object; the bucket may keep it as a noncurrent one. With a generation, that one goes for good.

    A bucket with a soft delete policy still lets it be restored. Raises NotFound, ConditionNotMet.
    """

    def work(rows: sa.Connection) -> list[str]:
        current = find(rows, bucket, name, generation)
        conditions.check(name, current)
        return retire(rows, current, now=now, for_good=generation is not None)

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
        found = find(rows, *source, source_generation)
        source_conditions.check(source[1], found)
        content = Content(found.blob, found.size, found.crc32c, found.md5, None)
        kept: dict[str, Any] = {} if move else {"acl": UNSET}  # a copy is a new object, and a move is not
        said = msgspec.structs.replace(metadata_of(found), **{**kept, **(changes or {})})
        wanted = New(*target, content, said, owner, now, found.components, fresh=False)
        made, gone = put(rows, blobs, wanted, conditions, may_replace=may_replace)
        if move and source != target:
            gone += retire(rows, found, now=now)
        return made, gone

    made, gone = written(db, work, replacing)
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
    acl: Acl | UnsetType = UNSET,
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
    said = msgspec.structs.replace(metadata or Metadata(content_type=parts[0][0].content_type), acl=acl)
    wanted = New(bucket, name, content, said, owner, now, sum(max(found.components, 1) for found, _ in parts))

    def work(rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]:
        return put(rows, blobs, wanted, conditions, may_replace=may_replace)

    try:
        made, gone = written(db, work, replacing)
    except Exception:
        blobs.remove([content.blob])
        raise
    blobs.remove(gone)
    return made


def find(rows: sa.Connection, bucket: str, name: str, generation: int | None) -> Object:
    """As `get`, in a transaction that goes on to change it. Raises NotFound."""
    found = _live(rows, bucket, name)
    if generation is not None and (found is None or found.generation != generation):
        row = rows.execute(_SELECT_BACK, {"bucket": bucket, "name": name, "generation": generation}).first()
        found = None if row is None else Object(*row)
    if found is None:
        raise missing(bucket, name, generation)
    return found


def retire(rows: sa.Connection, gone: Object, *, now: float, for_good: bool = False) -> list[str]:
    """Take away an object that was found in the same transaction; answers the files to remove after the commit.

    The live one becomes noncurrent where the bucket has versions, unless it is to go for good. What goes for good is
    soft-deleted where the bucket has a policy for that.
    """
    if gone.deleted is None:
        kept = _keep(rows, gone, now=now, for_good=for_good)
        rows.execute(sa.delete(table).where(*_is(table, gone)))
        return [] if kept else unused(rows, gone.blob)
    soft_delete = rows.execute(_KEEPS, {"bucket": gone.bucket}).one().soft_delete
    if soft_delete and gone.kept_until is None:
        soft = {"deleted": now, "kept_until": now + soft_delete}
        rows.execute(sa.update(noncurrent).where(*_is(noncurrent, gone)).values(soft))
        return []
    rows.execute(sa.delete(noncurrent).where(*_is(noncurrent, gone)))
    return unused(rows, gone.blob)


def unused(rows: sa.Connection, blob: str) -> list[str]:
    """Remove a blob's row if no object points to it; what is answered are the files to remove after the commit."""
    gone = rows.execute(_UNUSED, {"blob": blob}).first()
    return [blob] if gone is not None and gone[0] is None else []


def written(db: Database, work: Put, replacing: Replacing) -> tuple[Object, list[str]]:
    """Write; if there is something to replace, ask whether that may be, and write again."""
    try:
        return db.write(functools.partial(work, may_replace=False))
    except Replaces:
        replacing()
    return db.write(functools.partial(work, may_replace=True))


def put(
    rows: sa.Connection, blobs: Blobs, wanted: New, conditions: Conditions, *, may_replace: bool
) -> tuple[Object, list[str]]:
    """The row of an object, new or replaced, and the files that nothing needs any more."""
    bucket, name, content = wanted.bucket, wanted.name, wanted.content
    current = _live(rows, bucket, name)
    conditions.check(name, current)
    if current is not None and not may_replace:
        raise Replaces(f"gs://{bucket}/{name} exists, and replacing it takes storage.objects.delete.")
    generation = blobs.generation(wanted.now)
    default = None
    if wanted.metadata.acl is UNSET:
        default = rows.execute(sa.select(buckets.c.default_acl).where(buckets.c.name == bucket)).scalar()
    made = _made(wanted, generation if current is None else max(generation, current.generation + 1), default)
    values = dict(zip(_COLUMNS, msgspec.structs.astuple(made), strict=False))
    if wanted.fresh:
        rows.execute(_INSERT_BLOB, {"id": content.blob, "size": content.size, "data": content.data})
    if current is None:
        try:
            rows.execute(_INSERT, values)
        except sa.exc.IntegrityError as error:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist any more.") from error
        return made, []
    kept = _keep(rows, current, now=wanted.now)
    rows.execute(sa.update(table).where(table.c.bucket == bucket, table.c.name == name).values(values))
    return made, [] if kept else unused(rows, current.blob)


def metadata_of(found: Object) -> Metadata:
    return Metadata(**{field: getattr(found, field) for field in Metadata.__struct_fields__})


def missing(bucket: str, name: str, generation: int | None = None) -> NoSuchObject:
    version = "" if generation is None else f" of generation {generation}"
    return NoSuchObject(
        f"No such object: gs://{bucket}/{name}{version}. See what is there: taxiway storage ls gs://{bucket}"
    )


_SELECT = sa.select(table).where(table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name"))
_LOOK = Prepared(_SELECT)
_LOOK_WITH_DATA = Prepared(
    sa.select(table, blobs_table.c.data)
    .join(blobs_table, blobs_table.c.id == table.c.blob)
    .where(table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name"))
)
_COLUMNS = [column.name for column in table.columns]
_CUSTOM = Object.__struct_fields__.index("custom")
_ACL = Object.__struct_fields__.index("acl")
_KEY = [column == sa.bindparam(column.name) for column in noncurrent.primary_key]
_SELECT_BACK = sa.select(noncurrent).where(*_KEY, noncurrent.c.kept_until.is_(None))
_BACK = Prepared(_SELECT_BACK)
_BACK_WITH_DATA = Prepared(
    sa.select(noncurrent, blobs_table.c.data)
    .join(blobs_table, blobs_table.c.id == noncurrent.c.blob)
    .where(*_KEY, noncurrent.c.kept_until.is_(None))
)
_KEEPS = sa.select(buckets.c.versioning, buckets.c.soft_delete).where(buckets.c.name == sa.bindparam("bucket"))
_KEEP = sa.insert(noncurrent).from_select(
    [column.name for column in noncurrent.columns],
    sa.select(table, sa.bindparam("deleted", type_=sa.Float), sa.bindparam("kept_until", type_=sa.Float)).where(
        table.c.bucket == sa.bindparam("bucket"), table.c.name == sa.bindparam("name")
    ),
)
_INSERT_BLOB = sa.insert(blobs_table)
_INSERT = sa.insert(table)
_UNUSED = (
    sa.delete(blobs_table)
    .where(
        blobs_table.c.id == sa.bindparam("blob"),
        ~sa.exists().where(table.c.blob == sa.bindparam("blob")),
        ~sa.exists().where(noncurrent.c.blob == sa.bindparam("blob")),
    )
    .returning(sa.func.length(blobs_table.c.data))  # SQLite answers `data IS NULL` wrongly here
)


def of_row(row: tuple[Any, ...]) -> Object:
    """An object of a row as SQLite has it: JSON is text."""
    fields = list(row)
    fields[_CUSTOM] = {} if row[_CUSTOM] == "{}" else msgspec.json.decode(row[_CUSTOM])
    if row[_ACL] is not None:
        fields[_ACL] = [tuple(each) for each in msgspec.json.decode(row[_ACL])]
    return Object(*fields)


def _live(rows: sa.Connection, bucket: str, name: str) -> Object | None:
    row = rows.execute(_SELECT, {"bucket": bucket, "name": name}).first()
    return None if row is None else Object(*row)


def _look_back(
    db: Database, statement: Prepared, bucket: str, name: str, generation: int | None
) -> list[tuple[Any, ...]]:
    """The row of a noncurrent generation. Raises NotFound."""
    asked = {"bucket": bucket, "name": name, "generation": generation}
    rows = db.rows(statement, asked) if generation is not None else []
    if not rows:
        raise missing(bucket, name, generation)
    return rows


def _is(its: sa.Table, found: Object) -> list[sa.ColumnElement[bool]]:
    return [its.c.bucket == found.bucket, its.c.name == found.name, its.c.generation == found.generation]


def _put_new(rows: sa.Connection, newcomers: Sequence[Newcomer]) -> list[Object | errors.Error]:
    """The rows of several objects at once; Replaces for one whose name is taken, or what its conditions say of that.

    The writer shares the interpreter with the event loop, and waits for it after every statement: so there are three
    for all of them, and in SQLite's own words, which cost a fifth of SQLAlchemy's.
    """
    driver = rows.connection.driver_connection
    assert driver is not None
    there: dict[tuple[str, str], Versioned] = {}
    defaults: dict[str, Acl] = {}
    for some in _in_pieces(newcomers):
        keys = [part for each in some for part in (each.wanted.bucket, each.wanted.name)]
        for bucket, name, default, *versions in driver.execute(_select_versions(len(some)), keys):
            if default is not None and bucket not in defaults:
                defaults[bucket] = msgspec.json.decode(default, type=list[tuple[str, str]])
            if versions[0] is not None:
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
        new = _made(wanted, each.blobs.generation(wanted.now), defaults.get(wanted.bucket))
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


def _made(wanted: New, generation: int, default_acl: Acl) -> Object:
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
        default_acl if isinstance(said.acl, UnsetType) else said.acl,
    )


def _as_row(made: Object) -> list[Any]:
    row = list(msgspec.structs.astuple(made)[: len(_COLUMNS)])
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
        f"WITH wanted (b, n) AS (VALUES {keys}) SELECT b, n, default_acl, generation, objects.metageneration "
        "FROM wanted CROSS JOIN buckets ON buckets.name = b LEFT JOIN objects ON bucket = b AND objects.name = n"
    )


def _keep(rows: sa.Connection, gone: Object, *, now: float, for_good: bool = False) -> bool:
    """Write the live object down as a noncurrent or soft-deleted one, if its bucket keeps such; whether it does."""
    versioning, soft_delete = rows.execute(_KEEPS, {"bucket": gone.bucket}).one()
    version = versioning and not for_good
    if not version and not soft_delete:
        return False
    key = {"bucket": gone.bucket, "name": gone.name}
    rows.execute(_KEEP, {**key, "deleted": now, "kept_until": None if version else now + soft_delete})
    return True
