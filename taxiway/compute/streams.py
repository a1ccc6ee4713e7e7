"""Logs as they grow: one wake-up for all who follow a log, and one reading of its new lines for all of them.

Nobody asks the database whether there is something new: its writer tells whose log has grown, and an idle follower
costs the event it waits for. A place in a log is the stamp of its last line that was seen: stamps grow within a log
(see `logs.write`), so what follows a place is the same after any cut, and after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa

from taxiway.db.database import Database, Prepared, Topic
from taxiway.db.tables import logs

LINES = 1000  # in one page
ENOUGH = 1024 * 1024  # characters of them
_NEXT = Prepared(
    sa.select(logs.c.timestamp, logs.c.severity, logs.c.task, logs.c.trial, logs.c.message)
    .where(
        logs.c.project == sa.bindparam("project"),
        logs.c.subject == sa.bindparam("subject"),
        logs.c.timestamp > sa.bindparam("after"),
    )
    .order_by(logs.c.timestamp)
    .limit(LINES)
)


class Line(NamedTuple):
    """A kept line, as much of it as a person sees."""

    timestamp: str
    severity: str
    task: str
    trial: str
    message: str


class Page(NamedTuple):
    """What follows a place: lines as `show` made them (empty if none is to be seen), and the place behind them."""

    shown: bytes
    place: str
    more: bool  # there may be more behind it already
    ended: bool  # nothing will ever follow


Show = Callable[[Sequence[Line], str], bytes]  # lines, and the place behind them


@dataclass(slots=True, eq=False)
class _Log:
    """One log that somebody follows."""

    followers: set[asyncio.Event] = field(default_factory=set)
    pages: dict[tuple[str, str], asyncio.Future[Page]] = field(default_factory=dict)  # since it last grew


class Streams:
    """The followers of all logs. All methods are for the event loop."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.closed = False
        self._logs: dict[Topic, _Log] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        db.listen(self._committed)

    @contextmanager
    def following(self, project: str, subject: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the log has grown, and when all streams are to end (`closed`)."""
        self._loop = asyncio.get_running_loop()
        topic, woken = ("logs", project, subject), asyncio.Event()
        followed = self._logs.setdefault(topic, _Log())
        followed.followers.add(woken)
        try:
            yield woken
        finally:
            followed.followers.discard(woken)
            if not followed.followers and self._logs.get(topic) is followed:
                del self._logs[topic]

    async def page(
        self, project: str, subject: str, after: str, *, task: str, show: Show, ended: Callable[[], bool]
    ) -> Page:
        """What follows a place now; of one task only, if it is named. For who is `following`.

        Those who stand at one place share one reading. `ended` is asked first, and in a thread: the lines of what had
        ended by then are all there.
        """
        held = self._logs[("logs", project, subject)].pages
        reading = held.get((after, task))
        if reading is None:
            work = asyncio.to_thread(self._read, project, subject, after, task, show, ended)
            reading = held[after, task] = asyncio.ensure_future(work)
            # What lies far behind is read by few, and not once more: only the head of a log is worth its memory.
            reading.add_done_callback(lambda done: _unless_head(held, (after, task), done))
        return await asyncio.shield(reading)

    def close(self) -> None:
        """End every stream: the server stops."""
        self.closed = True
        self._wake(list(self._logs))

    def _read(self, project: str, subject: str, after: str, task: str, show: Show, ended: Callable[[], bool]) -> Page:
        over = ended()
        place, more, size, lines = after, False, 0, []
        with self.db.each(_NEXT, {"project": project, "subject": subject, "after": after}) as rows:
            for count, line in enumerate(map(Line._make, rows), 1):
                place = line.timestamp
                if not task or line.task == task:
                    lines.append(line)
                    size += len(line.message)
                more = count == LINES or size > ENOUGH
                if more:
                    break
        return Page(show(lines, place) if lines else b"", place, more, over and not more)

    def _committed(self, topics: set[Topic]) -> None:
        """In the writer's thread: wake the loop, if somebody follows one of these."""
        grown = [topic for topic in topics if topic in self._logs]
        if grown and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, grown)

    def _wake(self, topics: Sequence[Topic]) -> None:
        for topic in topics:
            followed = self._logs.get(topic)
            if followed is not None:
                followed.pages = {}
                for woken in followed.followers:
                    woken.set()


def _unless_head(
    held: dict[tuple[str, str], asyncio.Future[Page]], key: tuple[str, str], done: asyncio.Future[Page]
) -> None:
    if (done.cancelled() or done.exception() is not None or done.result().more) and held.get(key) is done:
        del held[key]
