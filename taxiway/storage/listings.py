"""Listings: a bucket's objects by name, page by page, with prefixes, patterns and versions.

Rules from https://cloud.google.com/storage/docs/json_api/v1/objects/list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database, Look, Prepared
from taxiway.db.tables import buckets, noncurrent
from taxiway.db.tables import objects as live
from taxiway.storage import objects
from taxiway.storage.globs import Glob
from taxiway.storage.objects import Object

PAGE = 1000  # items and prefixes together: Cloud Storage's largest page
LOOKED = 10_000  # rows that one page may cost where few of them are shown; it is short then, or empty
LAST = "\U0010ffff"

Row = tuple[Any, ...]


class Of(Enum):
    """Which generations a listing is of."""

    LIVE = "live"
    VERSIONS = "live and noncurrent"
    SOFT_DELETED = "soft-deleted"


class Page(msgspec.Struct, frozen=True):
    """Part of a listing. `following` and `generation` are where the next page starts; "" at the end."""

    items: list[Object]
    prefixes: list[str]
    following: str
    generation: int = 0


def page(
    db: Database,
    bucket: str,
    *,
    of: Of = Of.LIVE,
    prefix: str = "",
    delimiter: str = "",
    start: str = "",
    generation: int = 0,
    end: str = "",
    trailing: bool = False,
    glob: Glob | None = None,
    limit: int = PAGE,
) -> Page:
    """Objects by name, then generation, from `start` and its `generation` on (and before `end`, if given).

    Names are in UTF-8 order. With a delimiter, those that contain it after the prefix are told once, by what they
    share, as `prefixes`; an object named exactly as a prefix is among the items too if `trailing`, in each of its
    generations. A glob chooses among the items and the prefixes, after they were made. The index is sought past each
    prefix, so a listing costs what it shows, whatever it skips; where a glob or a kind shows few of many rows, a page
    ends early, between two names. Raises NotFound for a bucket that does not exist.
    """
    begin = max(prefix, glob.literal if glob else "")
    start, generation = (start, generation) if start >= begin else (begin, 0)
    bounds = (after_all(prefix), after_all(glob.literal) if glob else "", end)
    end = min(filter(None, bounds), default="")
    items: list[Object] = []
    prefixes: list[str] = []
    looked, fetch = 0, limit + 1 if not delimiter and glob is None else 16
    # Names, and a prefix; a page may start within a name whose earlier generations were shown, and so told as a prefix.
    seen = shown = told = start if generation else ""
    with db.snapshot() as look:
        if not look(_BUCKET, {"bucket": bucket}):
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist. Make it: taxiway storage mb gs://{bucket}")
        while True:
            fetch = min(fetch, limit + 1)
            found = _rows(look, of, bucket, start, generation, end, fetch)
            past = ""
            for row in found:
                name = row[_NAME]
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                group = name[: cut + len(delimiter)] if cut >= 0 else ""
                itself = trailing and name == group
                if group and group == told and not itself:
                    past = group
                    break
                if len(items) + len(prefixes) >= limit or (looked >= LOOKED and name != seen):
                    return Page(items, prefixes, name, row[_GENERATION] if name == shown else 0)
                looked, seen = looked + 1, name
                if not _IS[of](row):
                    continue
                shown = name
                if group and group != told and (glob is None or glob.matches(group)):
                    prefixes.append(group)
                told = group
                if (not group or itself) and (glob is None or glob.matches(name)):
                    items.append(objects.of_row(row))
                if group and not itself:
                    past = group
                    break
            if not past and len(found) < fetch:
                return Page(items, prefixes, "")
            if past:
                start, generation = after_all(past), 0
            else:
                start, generation = found[-1][_NAME], found[-1][_GENERATION] + 1
            if not start or (end and start >= end):
                return Page(items, prefixes, "")
            fetch = 4 if past else fetch * 4  # groups often follow one another, and so do plain names


def pages(db: Database, bucket: str, *, of: Of = Of.LIVE, prefix: str = "", limit: int = PAGE) -> Iterator[Page]:
    """One page after another. Raises NotFound for a bucket that does not exist."""
    found = page(db, bucket, of=of, prefix=prefix, limit=limit)
    yield found
    while found.following:
        found = page(db, bucket, of=of, prefix=prefix, start=found.following, generation=found.generation, limit=limit)
        yield found


def after_all(prefix: str) -> str:
    """The smallest text that is greater than everything that starts with the prefix; "" if there is none."""
    stem = prefix.rstrip(LAST)
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


def _page_of(table: sa.Table) -> tuple[Prepared, Prepared]:
    """The statement without an end, and the one with it."""
    key = sa.tuple_(table.c.name, table.c.generation) >= sa.tuple_(sa.bindparam("start"), sa.bindparam("generation"))
    chosen = sa.select(table).where(table.c.bucket == sa.bindparam("bucket"), key)
    chosen = chosen.order_by(table.c.name, table.c.generation).limit(sa.bindparam("most"))
    return Prepared(chosen), Prepared(chosen.where(table.c.name < sa.bindparam("end")))


_NAME, _GENERATION = (Object.__struct_fields__.index(field) for field in ("name", "generation"))
_KEPT_UNTIL = [column.name for column in noncurrent.columns].index("kept_until")
_BUCKET = Prepared(sa.select(buckets.c.name).where(buckets.c.name == sa.bindparam("bucket")))
_LIVE = _page_of(live)
_NONCURRENT = _page_of(noncurrent)
_IS: dict[Of, Callable[[Row], bool]] = {
    Of.LIVE: lambda row: True,
    Of.VERSIONS: lambda row: len(row) <= _KEPT_UNTIL or row[_KEPT_UNTIL] is None,
    Of.SOFT_DELETED: lambda row: row[_KEPT_UNTIL] is not None,
}


def _rows(look: Look, of: Of, bucket: str, start: str, generation: int, end: str, most: int) -> list[Row]:
    """The next rows in order, at most so many, of whatever kind its table holds."""
    values = {"bucket": bucket, "start": start, "generation": generation, "end": end, "most": most}
    if of is Of.LIVE:
        return look(_LIVE[bool(end)], values)
    if of is Of.SOFT_DELETED:
        return look(_NONCURRENT[bool(end)], values)
    both = look(_LIVE[bool(end)], values) + look(_NONCURRENT[bool(end)], values)
    return sorted(both, key=lambda row: (row[_NAME], row[_GENERATION]))[:most]
