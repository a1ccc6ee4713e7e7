"""One Database: many readers, one writer thread that commits whatever is waiting as one transaction."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import QueuePool

from taxiway import errors

T = TypeVar("T")
Item = TypeVar("Item")
Work = Callable[[sa.Connection], T]
# Answers what to tell the caller of each item, in their order: a value, or an error to raise there.
Works = Callable[[sa.Connection, Sequence[Item]], Sequence[T | BaseException]]

log = logging.getLogger("taxiway.db")

TOLD = "taxiway.told"
TOGETHER = 90  # rows in one statement: an old SQLite allows 999 values
GROUP = 256  # how many waiting writes one commit may carry
READERS = 16
CHECKPOINT = 4000  # pages of 4 KiB in the write-ahead log before they move into the file: a checkpoint is two fsyncs
FULL = ("disk is full", "readonly", "disk I/O", "unable to open")  # what SQLite says of a disk that takes no more


class Prepared:
    """A Core statement as SQLite's text, compiled once: a look-up by `Database.rows` costs a tenth of `read`'s.

    Rows are plain tuples as SQLite has them: JSON is text.
    """

    def __init__(self, statement: sa.Select[Any]) -> None:
        compiled = statement.compile(dialect=sqlite.dialect(paramstyle="named"))
        self.sql = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def rows(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return self.each(connection, values).fetchall()

    def each(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> sqlite3.Cursor:
        return connection.execute(self.sql, {**self._constants, **values})


Topic = tuple[str, ...]
Look = Callable[[Prepared, Mapping[str, Any]], list[tuple[Any, ...]]]


@dataclass(slots=True, eq=False)
class Job:
    """A piece of work on its way to the writer, and where its caller waits: in a thread, or on an event loop."""

    work: Callable[..., Any]
    done: Future[Any] | asyncio.Future[Any]
    item: Any = None
    bundled: bool = False  # whether `work` is Works, and takes `item` beside others
    value: Any = None
    error: BaseException | None = None


class Database:
    """Rows in one SQLite file (WAL, synchronous=FULL): what `write` returned from survives a kill of anything.

    Readers see the last commit and never wait for the writer. Writers never meet SQLITE_BUSY: one thread holds the
    only writing connection and commits in groups, so a hundred callers pay for one fsync.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self._writing = _engine(self.url, size=1)
        self._reading = _engine(self.url, size=READERS, query_only=True)
        self._looking: deque[sqlite3.Connection] = deque()  # idle connections of `rows`, the last used first
        self._waiting: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self._gathered: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        self._listeners: list[Callable[[set[Topic]], None]] = []
        self._closed = False
        self._closing = threading.Lock()  # nothing may join the queue behind its end
        self._thread = threading.Thread(target=self._commit_forever, name="taxiway-db-writer", daemon=True)
        self._thread.start()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one consistent state of the rows; writing through it is refused by SQLite."""
        with self._reading.begin() as connection:
            yield connection

    def rows(self, statement: Prepared, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """One look at the last commit, cheap enough for the event loop: a row by its key takes some 20 us."""
        with self._look() as connection:
            return statement.rows(connection, values)

    @contextmanager
    def each(self, statement: Prepared, values: Mapping[str, Any]) -> Iterator[Iterator[tuple[Any, ...]]]:
        """`rows` one after the other, for who may have enough before the last."""
        with self._look() as connection, closing(statement.each(connection, values)) as found:
            yield found

    @contextmanager
    def snapshot(self) -> Iterator[Look]:
        """`rows` that all see one consistent state."""
        with self._look() as connection:
            connection.execute("BEGIN")
            try:
                yield lambda statement, values: statement.rows(connection, values)
            finally:
                connection.execute("COMMIT")

    def write(self, work: Work[T]) -> T:
        """Run `work(connection)` in a transaction and return its value once it is on the disk.

        What `work` raises is raised here, and undoes its own rows only. `work` must be quick and pure of other I/O:
        everybody's writes pass through the same thread.
        """
        done: Future[T] = self._submit(work)
        return done.result()

    async def commit(self, work: Work[T]) -> T:
        """`write` for a caller on the event loop."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gather(Job(work, done))
        return await done

    async def commit_together(self, works: Works[Item, T], item: Item) -> T:
        """`commit` for many small works of one kind: one call of `works` writes the items that wait at the same time.

        If it raises, nothing of its rows stays, and it is asked again for each item alone.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._gather(Job(works, done, item, bundled=True))
        return await done

    def listen(self, listener: Callable[[set[Topic]], None]) -> None:
        """Call it with what each commit was told of (see `tell`), in the writer's own thread: it must be quick."""
        self._listeners.append(listener)

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
        while self._looking:
            self._looking.pop().close()

    @contextmanager
    def _look(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else has meanwhile."""
        try:
            connection = self._looking.pop()
        except IndexError:
            connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            _configure(connection, query_only=True)
        try:
            yield connection
        finally:
            if self._closed:
                connection.close()
            else:
                self._looking.append(connection)

    def _submit(self, work: Work[T]) -> Future[T]:
        done: Future[T] = Future()
        self._enqueue([Job(work, done)])
        return done

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        with self._closing:
            if self._closed:
                raise errors.Unavailable("The server is shutting down; try again in a moment.")
            self._waiting.put(jobs)

    def _gather(self, job: Job) -> None:
        """What one round of the event loop wants to write goes to the writer at once: a commit carries all of it."""
        loop = asyncio.get_running_loop()
        gathered = self._gathered.get(loop)
        if gathered is None:
            gathered = self._gathered[loop] = []
            loop.call_soon(self._hand_over, loop)
        gathered.append(job)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs = self._gathered.pop(loop)
        try:
            self._enqueue(jobs)
        except errors.Unavailable as error:
            for job in jobs:
                job.error = error
            _settle(jobs)

    def _commit_forever(self) -> None:
        ended = False
        while not ended and (first := self._waiting.get()) is not None:
            group = list(first)
            while len(group) < GROUP and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    ended = True
                    break
                group.extend(following)
            group = [job for job in group if _still_wanted(job)]
            for start in range(0, len(group), GROUP):
                self._commit(group[start : start + GROUP])
                _tell(group[start : start + GROUP])

    def _commit(self, group: list[Job]) -> None:
        """One transaction for the whole group; each work in a savepoint of its own when there are several."""
        turns = _turns(group)
        topics: set[Topic] | None = None
        try:
            with self._writing.connect() as connection:
                with _transaction(connection):
                    if len(turns) == 1:
                        _run(connection, turns[0])
                    else:
                        for turn in turns:
                            _run_beside_others(connection, turn)
                topics = connection.info.pop(TOLD, None)
        except BaseException as error:  # noqa: BLE001 - the edge: whatever broke the commit is everybody's answer
            full = storage_full(error)
            if len(turns) == 1 and len(group) > 1 and full is None:
                for job in group:
                    self._commit([job])
                return
            for job in group:
                job.error = full or error
        if topics:
            self._announce(topics)

    def _announce(self, topics: set[Topic]) -> None:
        """What is on the disk is there, whatever becomes of those who listen."""
        try:
            for listener in self._listeners:
                listener(topics)
        except Exception:  # the edge between the writer and whoever listens
            log.exception("who listens to the database stumbled")


def insert(
    tx: sa.Connection, table: str, columns: tuple[str, ...], rows: Sequence[Sequence[object]], *, known: str = "ABORT"
) -> int:
    """Many rows by few statements, said to the driver itself; how many went in. `known`: what if one is there already.

    Through SQLAlchemy a row would cost several times as much, and between two statements the writer waits for the
    interpreter, and everybody's writes with it.
    """
    went = 0
    for start in range(0, len(rows), TOGETHER):
        some = rows[start : start + TOGETHER]
        statement = _insertion(table, columns, len(some), known)
        went += tx.exec_driver_sql(statement, tuple(itertools.chain.from_iterable(some))).rowcount
    return went


@functools.cache
def _insertion(table: str, columns: tuple[str, ...], count: int, known: str) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT OR {known} INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"


def tell(tx: sa.Connection, topic: Topic) -> None:
    """Once this transaction is on the disk, whoever listens is told of a topic; if it fails, perhaps as well."""
    tx.info.setdefault(TOLD, set()).add(topic)


@contextmanager
def _transaction(connection: sa.Connection) -> Iterator[None]:
    """Said to the driver itself: through SQLAlchemy it would cost as much as the work of a small group."""
    driver = _driver(connection)
    driver.execute("BEGIN IMMEDIATE")
    try:
        yield
        driver.execute("COMMIT")
    except BaseException:
        if driver.in_transaction:  # SQLite ends it by itself when the disk is full
            driver.execute("ROLLBACK")
        raise


@contextmanager
def _savepoint(connection: sa.Connection) -> Iterator[None]:
    driver = _driver(connection)
    driver.execute("SAVEPOINT work")
    try:
        yield
    except BaseException:
        if driver.in_transaction:
            driver.execute("ROLLBACK TO work")
            driver.execute("RELEASE work")
        raise
    driver.execute("RELEASE work")


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _still_wanted(job: Job) -> bool:
    """Whether its caller still waits; from here on it is too late to leave."""
    if isinstance(job.done, Future):
        return job.done.set_running_or_notify_cancel()
    return not job.done.cancelled()


def _turns(group: list[Job]) -> list[list[Job]]:
    """Items of one kind of work stand together; nobody was told anything yet, so nobody can tell the order."""
    turns: list[list[Job]] = []
    bundles: dict[Callable[..., Any], list[Job]] = {}
    for job in group:
        if job.bundled and job.work in bundles:
            bundles[job.work].append(job)
            continue
        turns.append([job])
        if job.bundled:
            bundles[job.work] = turns[-1]
    return turns


def _run(connection: sa.Connection, turn: list[Job]) -> None:
    """Run one work, or one kind of works, and note the answers. Raises what the work raises."""
    if not turn[0].bundled:
        turn[0].value = turn[0].work(connection)
        return
    answers = turn[0].work(connection, [job.item for job in turn])
    for job, answer in zip(turn, answers, strict=True):
        failed = isinstance(answer, BaseException)
        job.value, job.error = (None, answer) if failed else (answer, None)


def _run_beside_others(connection: sa.Connection, turn: list[Job]) -> None:
    """`_run` in a savepoint. Raises only what ends the whole group."""
    try:
        with _savepoint(connection):
            _run(connection, turn)
    except BaseException as error:  # an edge: the caller's own exception travels back to the caller
        if storage_full(error):
            raise  # SQLite has rolled back everybody's rows
        if len(turn) == 1:
            turn[0].error = error
            return
        for job in turn:
            _run_beside_others(connection, [job])


def _tell(group: list[Job]) -> None:
    """Wake the callers, all of an event loop by one call."""
    loops: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in group:
        if not isinstance(job.done, Future):
            loops.setdefault(job.done.get_loop(), []).append(job)
        elif job.error is not None:
            job.done.set_exception(job.error)
        else:
            job.done.set_result(job.value)
    for loop, jobs in loops.items():
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(_settle, jobs)


def _settle(jobs: list[Job]) -> None:
    for job in jobs:
        if job.done.done():
            continue  # its caller has left
        if job.error is not None:
            job.done.set_exception(job.error)
        else:
            job.done.set_result(job.value)


def storage_full(error: BaseException) -> errors.StorageFull | None:
    """A full or read-only disk, said in our words."""
    found = error.orig if isinstance(error, sa.exc.OperationalError) else error
    if isinstance(found, sqlite3.OperationalError):
        text = str(found)
        if any(word in text for word in FULL):
            return errors.StorageFull(f"The home's disk takes no more writes ({text}); free some space and try again.")
    return None


def _engine(url: str, *, size: int, query_only: bool = False) -> sa.Engine:
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
        _configure(connection, query_only=query_only)

    if query_only:  # the writer's are said by `_transaction`

        @sa.event.listens_for(engine, "begin")
        def start(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

    return engine


def _configure(connection: sqlite3.Connection, *, query_only: bool) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN, not the driver's implicit one
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA mmap_size=268435456")
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT}")
    if query_only:
        connection.execute("PRAGMA query_only=ON")
