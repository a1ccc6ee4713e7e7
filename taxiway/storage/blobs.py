"""Where bytes rest: immutable blobs. A small one lives in its row, a larger one in a file of the blobs folder."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import itertools
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import blobs as table
from taxiway.db.tables import noncurrent, objects, uploads

KIB = 1024
MIB = 1024 * KIB
SMALL = 64 * KIB  # up to here the bytes live in the row: no file, and one commit shared with other writers
BATCH = 2 * MIB  # what a thread gets at once: its start costs about 50 us
BRIEF = 16 * KIB  # up to here a hash takes less time than to hand the interpreter to another thread and back,
PIECE = 2047  # which hashlib does for more than this
VECTORS = 512  # pieces in one writev; the kernel takes 1,024
DEEP = 4  # batches of an upload that may wait for its hash or for the disk: neither waits for the other, or the network
FLUSH = 64 * MIB  # a large upload starts to reach the disk while it still arrives
READ = 512 * KIB
SESSION_DAYS = 7  # Cloud Storage: a resumable session ends after a week
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Content:
    """A finished blob: flushed, hashed, not yet in any row."""

    blob: str
    size: int
    crc32c: str  # base64 of four bytes, big-endian, as on the wire
    md5: str | None  # base64; None for a composed one
    data: bytes | None  # the bytes themselves, if they are to live in the row


class Blobs:
    """The folder of files, the threads that hash and write, and the clock that numbers generations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with disk():
            folder.mkdir(parents=True, exist_ok=True)
        self.threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="taxiway-bytes")
        self.open_uploads: dict[str, Writer] = {}  # resumable sessions that this process has hashed so far, by id
        self._prefix = new_id()[:24]
        self._numbers = itertools.count()
        self._last = 0
        self._lock = threading.Lock()

    def path(self, blob: str) -> Path:
        return self.folder / blob

    def writer(self, *, size: int | None = None, blob: str = "") -> Writer:
        """A place for bytes to arrive; `size` is what the sender announced, if it did."""
        return Writer(self, blob or self.fresh_id(), expected=size)

    def fresh_id(self) -> str:
        """A blob's name, never used twice; no secret, and so without a call to the kernel for each."""
        return f"{self._prefix}{next(self._numbers):08x}"

    def generation(self, now: float) -> int:
        """Microseconds since 1970, as Cloud Storage numbers generations; grows even if the clock goes back."""
        with self._lock:
            self._last = max(self._last + 1, int(now * 1_000_000))
            return self._last

    def open(self, blob: str) -> int:
        """A file descriptor that goes on reading the blob even if it is deleted meanwhile.

        Raises FileNotFoundError if it is gone already: the object was deleted or replaced, look again.
        """
        return os.open(self.path(blob), os.O_RDONLY | os.O_CLOEXEC)

    def join(self, parts: Sequence[tuple[str, bytes | None]], *, blob: str = "") -> Content:
        """One blob of several (id, data or None), read and written piece by piece; the MD5 is left out, as on the wire.

        Raises FileNotFoundError if a part is gone.
        """
        blob, crc, size = blob or self.fresh_id(), 0, 0
        kept: list[bytes] | None = []
        file = -1
        try:
            for piece in self._pieces(parts):
                crc = google_crc32c.extend(crc, piece)
                size += len(piece)
                if kept is not None:
                    kept.append(piece)
                    if size <= SMALL:
                        continue
                    file = _create(self.path(blob))
                    piece, kept = b"".join(kept), None
                with disk():
                    _write_all(file, [piece], size - len(piece))
            if kept is not None:
                return Content(blob, size, _crc_text(crc), None, b"".join(kept))
            with disk():
                os.fsync(file)
                _sync_folder(self.folder)
            return Content(blob, size, _crc_text(crc), None, None)
        except BaseException:
            self.remove([blob])
            raise
        finally:
            if file >= 0:
                os.close(file)

    def remove(self, gone: Iterable[str]) -> None:
        """Forget files whose rows are gone; what a crash leaves, `sweep` finds."""
        for blob in gone:
            with suppress(OSError):
                self.path(blob).unlink(missing_ok=True)

    def cut(self, blob: str, size: int) -> None:
        """Keep only the first `size` bytes of a file that nobody writes to; none: no file."""
        if size == 0:
            self.remove([blob])
            return
        with suppress(OSError):
            os.truncate(self.path(blob), size)

    def sweep(self, db: Database, now: float | None = None) -> int:
        """At start-up, before anybody writes: remove sessions past their week and files without a row.

        Returns how many files were removed.
        """
        now = time.time() if now is None else now

        def expire(rows: sa.Connection) -> None:
            rows.execute(sa.delete(uploads).where(uploads.c.created < now - SESSION_DAYS * 86_400))

        db.write(expire)
        with db.read() as rows:
            known = set(rows.execute(sa.select(table.c.id).where(table.c.data.is_(None))).scalars())
            known |= set(rows.execute(sa.select(uploads.c.id).where(uploads.c.result.is_(None))).scalars())
            newest = [rows.execute(sa.select(sa.func.max(its.c.generation))).scalar() for its in (objects, noncurrent)]
            self._last = max(each or 0 for each in newest)
        strays = [entry.name for entry in os.scandir(self.folder) if entry.name not in known]
        self.remove(strays)
        return len(strays)

    def close(self) -> None:
        self.threads.shutdown()

    def _pieces(self, parts: Sequence[tuple[str, bytes | None]]) -> Iterator[bytes]:
        for part, data in parts:
            if data is not None:
                yield data
                continue
            with self.path(part).open("rb", buffering=0) as file:
                while piece := file.read(BATCH):
                    yield piece


class Lane:
    """Calls, one after another, in whatever threads of a pool are free."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._waiting: deque[tuple[Future[None], Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock = threading.Lock()
        self._busy = False

    def submit(self, call: Callable[..., None], *arguments: Any) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            self._waiting.append((done, call, arguments))
            idle, self._busy = not self._busy, True
        if idle:
            self._threads.submit(self._run)
        return done

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                done, call, arguments = self._waiting.popleft()
            try:
                call(*arguments)
            except BaseException as error:  # noqa: BLE001 - an edge: it travels to whoever waits for the call
                done.set_exception(error)
            else:
                done.set_result(None)


class Writer:
    """Bytes on their way to rest. One coroutine writes; hashing and the disk run in two threads beside it.

    Memory holds a few batches at most. Until more than 64 KiB came there is no file. Whoever makes a writer ends it
    with `finish` or `abandon`; `rest` makes everything so far durable and lets a later request go on.
    """

    def __init__(self, blobs: Blobs, blob: str, *, expected: int | None) -> None:
        self.blobs = blobs
        self.blob = blob
        self.expected = expected
        self.size = 0  # bytes received
        self._written = 0  # bytes handed to the file
        self._flushed = 0
        self._crc = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._file = -1
        self._running: deque[Future[None]] = deque()  # what was handed over and is not known to be done, oldest first
        self._lanes: tuple[Lane, Lane] | None = None  # of the disk, and of the hashes
        self.turn = asyncio.Lock()  # of a resumable session: one request at a time
        self.reading: asyncio.Task[int] | None = None  # the request whose body is arriving now
        self._flushing: Future[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Raises StorageFull once the disk takes no more."""
        self._buffer.append(chunk)
        self._buffered += len(chunk)
        self.size += len(chunk)
        if self._buffered >= BATCH or len(self._buffer) >= VECTORS:
            await self._hand_over()

    async def finish(self) -> Content:
        """Flush, and say what came."""
        if self._written == 0 and self.size <= SMALL:
            data = b"".join(self._buffer)
            self._hash([data] if len(data) > BRIEF else [data[at : at + PIECE] for at in range(0, len(data), PIECE)])
            self._buffer, self._buffered = [], 0
            return Content(self.blob, len(data), _crc_text(self._crc), self._md5_text(), data)
        await self.rest()
        return Content(self.blob, self.size, _crc_text(self._crc), self._md5_text(), None)

    async def rest(self) -> int:
        """Make every byte so far durable, close the file until more comes, and return how many they are."""
        await self._hand_over()
        await self._settle()
        self._running.append(self.blobs.threads.submit(self._come_to_rest))
        await self._settle()
        return self.size

    async def abandon(self) -> None:
        """Leave nothing. The disk's part is done even if the caller is cancelled meanwhile."""
        # Not in the threads of the bytes: this waits for them, and they must never wait for one another.
        await asyncio.shield(asyncio.to_thread(self._discard, list(self._running)))

    async def let_go(self) -> None:
        """Close the file and leave it as it is: after a failure, a later request reads it again (`reread`)."""
        await asyncio.shield(asyncio.to_thread(self._close, list(self._running)))

    def reread(self, size: int) -> None:
        """Take up a session that an earlier process began: its first `size` bytes are durable, what follows is not.

        Blocks; meant for a thread. Raises FileNotFoundError.
        """
        if size == 0:
            self.blobs.remove([self.blob])
            return
        with self.blobs.path(self.blob).open("rb+", buffering=0) as file:
            file.truncate(size)
            while piece := file.read(BATCH):
                self._hash([piece])
                self.size += len(piece)
        self._written = self._flushed = self.size

    async def _hand_over(self) -> None:
        """Give what is buffered to the two threads, once they have few batches left."""
        if not self._buffered:
            return
        await self._settle(2 * DEEP - 2)  # whoever is cancelled here still has everything in the buffer
        if self._lanes is None:
            self._lanes = Lane(self.blobs.threads), Lane(self.blobs.threads)
        disk_lane, hash_lane = self._lanes
        batch, offset = self._buffer, self._written
        self._buffer, self._buffered, self._written = [], 0, self.size
        self._running += [disk_lane.submit(self._put, batch, offset), hash_lane.submit(self._hash, batch)]

    async def _settle(self, most: int = 0) -> None:
        """Wait until at most so many calls are under way. Raises what one of them raised."""
        while len(self._running) > most:
            oldest = self._running[0]
            if not oldest.done():
                await asyncio.shield(asyncio.wrap_future(oldest))  # a cancelled caller must not cancel a queued batch
            oldest.result()
            self._running.popleft()

    def _put(self, batch: list[bytes], offset: int) -> None:
        with disk():
            if self._file < 0:
                self._open(offset)
            _write_all(self._file, batch, offset)
            end = offset + sum(map(len, batch))
            if end - self._flushed >= FLUSH and (self._flushing is None or self._flushing.done()):
                self._flushed = end
                self._flushing = self.blobs.threads.submit(os.fdatasync, self._file)

    def _open(self, offset: int) -> None:
        self._file = _create(self.blobs.path(self.blob), fresh=offset == 0)
        if self.expected and self.expected > offset:
            # Blocks in one piece, and a disk that is too small says so before the bytes were sent.
            with suppress_unsupported():
                os.posix_fallocate(self._file, 0, self.expected)

    def _hash(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._crc = google_crc32c.extend(self._crc, chunk)
            self._md5.update(chunk)

    def _come_to_rest(self) -> None:
        if self._file < 0:
            return
        with disk():
            if self._flushing is not None:
                self._flushing.result()
                self._flushing = None
            os.ftruncate(self._file, self.size)  # posix_fallocate may have taken more than came
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            _sync_folder(self.blobs.folder)

    def _discard(self, running: list[Future[None]]) -> None:
        self._close(running)
        self.blobs.remove([self.blob])

    def _close(self, running: list[Future[None]]) -> None:
        wait(running)
        if self._flushing is not None:
            wait([self._flushing])
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _md5_text(self) -> str:
        return base64.b64encode(self._md5.digest()).decode()


def new_id() -> str:
    """Unguessable, and never used twice: the id of a resumable session is the right to go on with it."""
    return secrets.token_hex(16)


@contextmanager
def disk() -> Iterator[None]:
    """Say a full or read-only disk in our words. Raises StorageFull."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise errors.StorageFull(
            f"The home's disk takes no more bytes ({error.strerror}); nothing was stored. Free some space, try again."
        ) from error


@contextmanager
def suppress_unsupported() -> Iterator[None]:
    """Some file systems cannot reserve space; then the file grows as it is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _create(path: Path, *, fresh: bool = True) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
    return os.open(path, flags, 0o600)


def _write_all(file: int, batch: list[bytes], offset: int) -> None:
    """pwritev until all is written: the kernel may take less than it was offered."""
    left = [chunk for chunk in batch if chunk]
    while left:
        taken = os.pwritev(file, left[:VECTORS], offset)
        offset += taken
        while left and taken >= len(left[0]):
            taken -= len(left.pop(0))
        if taken:
            left[0] = left[0][taken:]


def _sync_folder(folder: Path) -> None:
    """A new file's name is durable only once its folder is."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _crc_text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()
