"""What jobs and versions say, line by line, in the order that Logging's clients page through."""

from __future__ import annotations

import calendar
import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from taxiway.db import database
from taxiway.db.database import Database
from taxiway.db.tables import logbooks, logs
from taxiway.handles import Said

SERVICE = "service"
LATE_S = 3.0  # gcloud asks for lines older than five seconds and never looks back: a later one is stamped anew
SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
SECOND = 10**9  # nanoseconds
OVERHEAD = 400  # bytes that a line takes on the disk beside its message: other columns, places in the indexes
COLUMNS = ("project", "subject", "insert_id", "timestamp", "severity", "task", "message", "created", "trial")


@dataclass(frozen=True, slots=True)
class Line:
    """`created` is when it was written (seconds since 1970); `insert_id` sorts and is unique within its subject."""

    insert_id: str
    severity: str
    task: str
    message: str
    created: float
    trial: str = ""


def stamp(nanos: int) -> str:
    """Nanoseconds since 1970 as RFC 3339, UTC, always nine digits: clients compare stamps as text.

    >>> stamp(500_000_000)
    '1970-01-01T00:00:00.500000000Z'
    """
    whole, rest = divmod(nanos, SECOND)
    return f"{_second(whole)}.{rest:09d}Z"


def nanos(stamp: str) -> int:
    """What `stamp` was made of.

    >>> nanos("1970-01-01T00:00:00.500000000Z")
    500000000
    """
    return calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) * SECOND + int(stamp[20:29])


def line(number: int, task: str, said: Said, trial: str = "") -> Line:
    """A replica's line. Its id is the same however often it is shipped, and later lines sort later."""
    return Line(f"{number:04d}.{task}.{said.seq:012d}", said.severity, task, said.message, said.time, trial)


def append(db: Database, project: str, subject: str, lines: Sequence[Line], *, now: float) -> None:
    """Keep the lines; one that is already kept (same insert_id) is not kept twice."""
    if lines:
        db.write(lambda tx: write(tx, project, subject, lines, now=now))


def write(tx: sa.Connection, project: str, subject: str, lines: Iterable[Line], *, now: float) -> None:
    """As `append`, in a transaction.

    A line's stamp is when it was written, and always later than every stamp that its subject had: whoever follows the
    log with a cursor (the last stamp seen) never misses a line, and each replica's lines stay in their order. One that
    arrives late, after the server was away, bears its arrival; when it was written stays in `created`.

    Whoever listens to the database is told of ("logs", project, subject).
    """
    book = (logbooks.c.project == project) & (logbooks.c.subject == subject)
    newest = tx.execute(sa.select(logbooks.c.newest).where(book)).scalar()
    floor = nanos(newest) if newest else 0
    rows = []
    for line in lines:
        moment = now if now - line.created > LATE_S else min(line.created, now)
        floor = max(round(moment * 1e6) * 1000, floor + 1)
        told = (line.severity, line.task, line.message, line.created, line.trial)
        rows.append((project, subject, line.insert_id, stamp(floor), *told))
    if not rows:
        return
    kept = database.insert(tx, "logs", COLUMNS, rows, known="IGNORE")
    if not kept:
        return  # all of it had arrived before
    grown = sum(len(row[6]) + OVERHEAD for row in rows) * kept // len(rows)
    first, last = rows[0][3], rows[-1][3]
    fresh = {"project": project, "subject": subject, "lines": kept, "bytes": grown, "oldest": first, "newest": last}
    more = {"lines": logbooks.c.lines + kept, "bytes": logbooks.c.bytes + grown, "newest": last}
    tx.execute(insert(logbooks).values(**fresh).on_conflict_do_update(["project", "subject"], set_=more))
    database.tell(tx, ("logs", project, subject))


def say(tx: sa.Connection, project: str, subject: str, *messages: str, severity: str = "INFO", now: float) -> None:
    """Lines of the service itself, in the transaction that makes them true."""
    first = time.time_ns()  # only to be unique
    lines = [
        Line(f"0000.{SERVICE}.{first + index:020d}", severity, SERVICE, message, now)
        for index, message in enumerate(messages)
    ]
    write(tx, project, subject, lines, now=now)


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept line. `timestamp` has nine digits; (timestamp, insert_id) is its place in the log."""

    project: str
    subject: str
    insert_id: str
    timestamp: str
    severity: str
    task: str
    message: str
    created: float
    trial: str


def page(
    db: Database,
    projects: Sequence[str],
    condition: sa.ColumnElement[bool],
    *,
    newest_first: bool = False,
    after: tuple[str, str] | None = None,
    limit: int,
) -> list[Entry]:
    """Up to `limit` lines that fulfil a condition (see `filters`), in time's order, behind a place in the log."""
    place = sa.tuple_(logs.c.timestamp, logs.c.insert_id)
    asked = sa.select(*(logs.c[name] for name in Entry.__dataclass_fields__))
    asked = asked.where(logs.c.project.in_(projects), condition)
    if after is not None:
        asked = asked.where(place < after if newest_first else place > after)
    order = (logs.c.timestamp, logs.c.insert_id)
    asked = asked.order_by(*((each.desc() for each in order) if newest_first else order)).limit(limit)
    with db.read() as rows:
        return [Entry(*row) for row in rows.execute(asked)]


@functools.lru_cache(maxsize=1024)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
