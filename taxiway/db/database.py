"""One Database: many readers, one writer thread that commits whatever is waiting as one transaction."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from taxiway import errors

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

GROUP = 256  # how many waiting writes one commit may carry
READERS = 16
FULL = ("disk is full", "readonly", "disk I/O", "unable to open")  # what SQLite says of a disk that takes no more


@dataclass(slots=True)
class Job:
    """A piece of work on its way to the writer, and where its caller waits."""

    work: Work[Any]
    done: Future[Any]


class Database:
    """Rows in one SQLite file (WAL, synchronous=FULL): what `write` returned from survives a kill of anything.

    Readers see the last commit and never wait for the writer. Writers never meet SQLITE_BUSY: one thread holds the
    only writing connection and commits in groups, so a hundred callers pay for one fsync.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._writing = _engine(self.url, begin="BEGIN IMMEDIATE", size=1)
        self._reading = _engine(self.url, begin="BEGIN", size=READERS, query_only=True)
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()  # nothing may join the queue behind its end
        self._thread = threading.Thread(target=self._commit_forever, name="taxiway-db-writer", daemon=True)
        self._thread.start()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one consistent state of the rows; writing through it is refused by SQLite."""
        with self._reading.begin() as connection:
            yield connection

    def write(self, work: Work[T]) -> T:
        """Run `work(connection)` in a transaction and return its value once it is on the disk.

        What `work` raises is raised here, and undoes its own rows only. `work` must be quick and pure of other I/O:
        everybody's writes pass through the same thread.
        """
        done: Future[T] = self._submit(work)
        return done.result()

    async def commit(self, work: Work[T]) -> T:
        """`write` for a caller on the event loop."""
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        """Finish what waits, then let go of the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._thread.join()
        self._writing.dispose()
        self._reading.dispose()

    def _submit(self, work: Work[T]) -> Future[T]:
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise errors.Unavailable("The server is shutting down; try again in a moment.")
            self._waiting.put(Job(work, done))
        return done

    def _commit_forever(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            ended = False
            while len(group) < GROUP and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    ended = True
                    break
                group.append(following)
            self._commit([job for job in group if job.done.set_running_or_notify_cancel()])  # its caller may have left
            if ended:
                return

    def _commit(self, group: list[Job]) -> None:
        """One transaction for the whole group; each work in a savepoint of its own when there are several."""
        try:
            with self._writing.begin() as connection:
                settled = [_run(connection, job, alone=len(group) == 1) for job in group]
        except BaseException as error:  # noqa: BLE001 - the edge: whatever broke the commit is everybody's answer
            for job in group:
                job.done.set_exception(storage_full(error) or error)
            return
        for settle in settled:
            settle()


def _run(connection: sa.Connection, job: Job, *, alone: bool) -> Callable[[], None]:
    """Run one work; answer what to tell its caller once the group is committed. Raises what ends the whole group."""
    if alone:
        value = job.work(connection)
        return lambda: job.done.set_result(value)
    try:
        with connection.begin_nested():
            value = job.work(connection)
    except BaseException as error:  # an edge: the caller's own exception travels back to the caller
        if storage_full(error):
            raise  # SQLite has rolled back everybody's rows
        told = error
        return lambda: job.done.set_exception(told)
    return lambda: job.done.set_result(value)


def storage_full(error: BaseException) -> errors.StorageFull | None:
    """A full or read-only disk, said in our words."""
    if isinstance(error, sa.exc.OperationalError) and isinstance(error.orig, sqlite3.OperationalError):
        text = str(error.orig)
        if any(word in text for word in FULL):
            return errors.StorageFull(f"The home's disk takes no more writes ({text}); free some space and try again.")
    return None


def _engine(url: str, *, begin: str, size: int, query_only: bool = False) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=60,
        connect_args={"timeout": 60, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's own BEGIN below, not the driver's implicit one
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA mmap_size=268435456")
        if query_only:
            connection.execute("PRAGMA query_only=ON")

    @sa.event.listens_for(engine, "begin")
    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
