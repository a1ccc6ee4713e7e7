"""How long logs are kept, and samples: until they are too old, or all logs together take too much room.

The oldest lines of what has ended go first, some at a time. Those of a running job stay, unless its log alone has more
than all may have; then it loses its own oldest ones, and says so once. How much there is is known by `logbooks`: where
there is nothing to do, that is one small query.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Set
from typing import NamedTuple

import sqlalchemy as sa

from taxiway import errors
from taxiway.compute import attempts, logs, samples
from taxiway.db.database import Database
from taxiway.db.tables import logbooks
from taxiway.db.tables import logs as lines
from taxiway.settings import MIB

log = logging.getLogger("taxiway.logs")

EVERY_S = 20.0
TOGETHER = 1000  # lines in one transaction: everybody's writes pass through the same thread
DAY_S = 24 * 3600.0

Book = tuple[str, str]  # project, subject
Going = Callable[[sa.Connection], Set[Book]]


class Limits(NamedTuple):
    """Lines with an earlier stamp go, and so many that not more than `most` bytes are left."""

    before: str
    most: int


class Retention:
    """Looks every twenty seconds, in a thread of its own."""

    def __init__(self, db: Database, *, days: int, mib: int, going: Going) -> None:
        """`going` answers whose log may still grow, beside those with a living attempt."""
        self.db, self.days, self.mib, self.going = db, days, mib, going
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taxiway-retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self, now: float) -> int:
        """Remove all that is to go now; how many lines that were."""
        limits = Limits(logs.stamp(round((now - self.days * DAY_S) * logs.SECOND)), self.mib * MIB)
        gone = 0
        while not self._ending.is_set() and (some := self._some(limits, now)):
            gone += some
        while not self._ending.is_set() and samples.sweep(self.db, now - self.days * DAY_S):
            pass
        if gone:
            log.info("%d old lines of logs were removed", gone)
        return gone

    def _some(self, limits: Limits, now: float) -> int:
        with self.db.read() as rows:
            found = _due(rows, limits, self.going)
        return self.db.write(lambda tx: _cut(tx, *found, limits, now=now)) if found else 0

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self.sweep(time.time())
            except errors.Error as error:
                log.warning("old lines of logs are kept for now: %s", error)
            except Exception:  # the edge: one bad turn is told, and the next one comes
                log.exception("the care for old logs stumbled")
            self._ending.wait(EVERY_S)


def _due(rows: sa.Connection, limits: Limits, going: Going) -> tuple[Book, int, bool] | None:
    """Which log has lines that are to go, how many bytes are too much, and whether it may still grow."""
    sums = sa.select(sa.func.sum(logbooks.c.bytes), sa.func.min(logbooks.c.oldest))
    total, oldest = rows.execute(sums).one()
    if total is None or (total <= limits.most and oldest >= limits.before):
        return None
    excess = max(0, total - limits.most)
    running = going(rows) | attempts.growing(rows)
    books = sa.select(logbooks.c.project, logbooks.c.subject, logbooks.c.bytes, logbooks.c.oldest)
    alone: tuple[Book, int, bool] | None = None
    for project, subject, size, first in rows.execute(books.order_by(logbooks.c.oldest)):
        if (project, subject) in running:
            if size > limits.most and alone is None:
                alone = (project, subject), size - limits.most, True
        elif excess or first < limits.before:
            return (project, subject), excess, False
    return alone


def _cut(tx: sa.Connection, book: Book, excess: int, grows: bool, limits: Limits, *, now: float) -> int:
    """Remove up to a thousand of a log's oldest lines: those that are too old, and those that are too much."""
    mine = (lines.c.project == book[0]) & (lines.c.subject == book[1])
    oldest = sa.select(lines.c.timestamp, sa.func.length(lines.c.message)).where(mine).order_by(lines.c.timestamp)
    count = size = 0
    last = ""
    for stamp, length in tx.execute(oldest.limit(TOGETHER)):
        if size >= excess and (grows or stamp >= limits.before):
            break
        count, size, last = count + 1, size + length + logs.OVERHEAD, stamp
    tx.execute(lines.delete().where(mine, lines.c.timestamp <= last))
    kept = (logbooks.c.project == book[0]) & (logbooks.c.subject == book[1])
    first = tx.execute(sa.select(sa.func.min(lines.c.timestamp)).where(mine)).scalar()
    if first is None and not grows:
        tx.execute(logbooks.delete().where(kept))
        return count
    if grows and not tx.execute(sa.select(logbooks.c.cut).where(kept)).scalar():
        told = f"This log alone has more than TAXIWAY_LOG_MIB={limits.most // MIB}: its oldest lines are removed."
        logs.say(tx, *book, told, severity="WARNING", now=now)
    left = {"lines": logbooks.c.lines - count, "bytes": logbooks.c.bytes - size, "cut": grows}
    tx.execute(logbooks.update().where(kept).values(**left, oldest=first or logbooks.c.newest))
    return count
