"""Soft-deleted objects: found, brought back, and gone once their time is over.

Rules from https://cloud.google.com/storage/docs/soft-delete and /docs/json_api/v1/objects/restore. Noncurrent objects
that a bucket's versioning keeps are found and changed as live ones are, by their generation: see objects.py.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET

from taxiway.db.database import Database, Prepared
from taxiway.db.tables import noncurrent as table
from taxiway.storage import objects
from taxiway.storage.blobs import Blobs, Content
from taxiway.storage.conditions import ALWAYS, Conditions
from taxiway.storage.objects import New, Object, Replacing

TOGETHER = 100  # rows that one transaction removes: some ten milliseconds of everybody's writer


def get(db: Database, bucket: str, name: str, generation: int, *, conditions: Conditions = ALWAYS) -> Object:
    """A soft-deleted object. Raises NotFound, ConditionNotMet, NotModified."""
    rows = db.rows(_LOOK, {"bucket": bucket, "name": name, "generation": generation})
    if not rows:
        raise objects.missing(bucket, name, generation)
    found = objects.of_row(rows[0])
    conditions.check(name, found, reading=True)
    return found


def restore(
    db: Database,
    blobs: Blobs,
    bucket: str,
    name: str,
    generation: int,
    *,
    now: float,
    same_acl: bool = False,
    conditions: Conditions = ALWAYS,
    replacing: Replacing,
) -> Object:
    """A new live object with the bytes and the metadata of a soft-deleted one, which stays until its time is over.

    It belongs to whom it belonged to; others may what the bucket says for new objects, or what they might before if
    `same_acl`. Raises NotFound, ConditionNotMet, and what `replacing` raises.
    """

    def work(rows: sa.Connection, *, may_replace: bool) -> tuple[Object, list[str]]:
        row = rows.execute(_SELECT, {"bucket": bucket, "name": name, "generation": generation}).first()
        if row is None:
            raise objects.missing(bucket, name, generation)
        found = Object(*row)
        said = objects.metadata_of(found)
        if not same_acl:
            said = msgspec.structs.replace(said, acl=UNSET)
        content = Content(found.blob, found.size, found.crc32c, found.md5, None)
        wanted = New(bucket, name, content, said, found.owner, now, found.components, fresh=False)
        return objects.put(rows, blobs, wanted, conditions, may_replace=may_replace)

    made, gone = objects.written(db, work, replacing)
    blobs.remove(gone)
    return made


def expire(db: Database, blobs: Blobs, *, now: float) -> int:
    """Remove soft-deleted objects whose time is over, some in one transaction; answers how many. 0: there were none."""
    chosen = _KEYS.where(table.c.kept_until <= now).order_by(table.c.kept_until).limit(TOGETHER)
    return _removed(db, blobs, chosen)


def discard(db: Database, blobs: Blobs, bucket: str) -> int:
    """Remove soft-deleted objects of a bucket that is going, some in one transaction; answers how many."""
    chosen = _KEYS.where(table.c.bucket == bucket, table.c.kept_until.is_not(None)).limit(TOGETHER)
    return _removed(db, blobs, chosen)


_KEY = [column == sa.bindparam(column.name) for column in table.primary_key]
_SELECT = sa.select(table).where(*_KEY, table.c.kept_until.is_not(None))
_LOOK = Prepared(_SELECT)
_KEYS = sa.select(*table.primary_key, table.c.blob)


def _removed(db: Database, blobs: Blobs, chosen: sa.Select[Any]) -> int:
    with db.read() as rows:
        if rows.execute(chosen.limit(1)).first() is None:
            return 0
    count, gone = db.write(functools.partial(_remove, chosen))
    blobs.remove(gone)
    return count


def _remove(chosen: sa.Select[Any], rows: sa.Connection) -> tuple[int, list[str]]:
    found = rows.execute(chosen).all()
    gone: list[str] = []
    for bucket, name, generation, blob in found:
        its = (table.c.bucket == bucket, table.c.name == name, table.c.generation == generation)
        rows.execute(sa.delete(table).where(*its))
        gone += objects.unused(rows, blob)
    return len(found), gone
