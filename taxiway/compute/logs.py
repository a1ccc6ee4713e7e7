"""What jobs and versions say, line by line, in the order that Logging's clients page through."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from taxiway.db.database import Database
from taxiway.db.tables import logs
from taxiway.handles import Said

SERVICE = "service"
LATE_S = 3.0  # gcloud asks for lines older than five seconds and never looks back: a later one is stamped anew
SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")


@dataclass(frozen=True, slots=True)
class Line:
    """`created` is when it was written (seconds since 1970); `insert_id` sorts and is unique within its subject."""

    insert_id: str
    severity: str
    task: str
    message: str
    created: float


def stamp(seconds: float) -> str:
    """RFC 3339, UTC, always nine digits: clients compare stamps as text.

    >>> stamp(0.5)
    '1970-01-01T00:00:00.500000000Z'
    """
    nanos = round(seconds * 1e6) * 1000
    whole, rest = divmod(nanos, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:09d}Z"


def line(number: int, task: str, said: Said) -> Line:
    """A replica's line. Its id is the same however often it is shipped, and later lines sort later."""
    return Line(f"{number:04d}.{task}.{said.seq:012d}", said.severity, task, said.message, said.time)


def append(db: Database, project: str, subject: str, lines: Sequence[Line], *, now: float) -> None:
    """Keep the lines; one that is already kept (same insert_id) is not kept twice.

    A line that arrives late, after the server was away, is stamped with its arrival, so that a client that follows the
    log never misses it; when it was written stays in `created`.
    """
    if lines:
        db.write(lambda tx: write(tx, project, subject, lines, now=now))


def write(tx: sa.Connection, project: str, subject: str, lines: Iterable[Line], *, now: float) -> None:
    tx.execute(
        insert(logs).on_conflict_do_nothing(),
        [
            {
                "project": project,
                "subject": subject,
                "insert_id": line.insert_id,
                "timestamp": stamp(now if now - line.created > LATE_S else min(line.created, now)),
                "severity": line.severity,
                "task": line.task,
                "message": line.message,
                "created": line.created,
            }
            for line in lines
        ],
    )


def say(tx: sa.Connection, project: str, subject: str, *messages: str, severity: str = "INFO", now: float) -> None:
    """Lines of the service itself, in the transaction that makes them true."""
    first = time.time_ns()
    write(
        tx,
        project,
        subject,
        [
            Line(f"0000.{SERVICE}.{first + index:020d}", severity, SERVICE, message, now)
            for index, message in enumerate(messages)
        ],
        now=now,
    )


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


def page(
    db: Database,
    projects: Sequence[str],
    condition: sa.ColumnElement[bool],
    *,
    newest_first: bool,
    after: tuple[str, str] | None,
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
