"""What the user's code uses, every few seconds: processor, memory, files, and GPUs where nvidia-smi knows of some.

    with samples.taken(child, wire):
        code = child.wait()

The child counts, and whatever it started, also where that has lost its parent and came to us. A code that ends at once
has one sample.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat

import psutil

from taxiway import errors
from taxiway.handles import Sample
from taxiway.replica.wire import Wire

log = logging.getLogger(__name__)

EVERY_S = 5.0
FIRST_S = (0.3, 0.7, 1.0, 3.0)  # before that: a short job has some too
BATCH = 6  # samples in one report
HELD = 2000  # that wait for a server which is away: almost three hours
LAST_S = 5.0  # how long the end of an attempt waits for its last samples to be taken in
GPUS = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
MIB = 1024 * 1024


@contextmanager
def taken(process: subprocess.Popen[bytes], wire: Wire) -> Iterator[None]:
    """Take samples meanwhile, and report them in batches. Nothing that goes wrong with them is anybody's trouble."""
    sampler = _Sampler(Meter(process.pid), wire)
    sampler.start()
    try:
        yield
    finally:
        sampler.stop()


class _Sampler:
    """One thread takes, another reports: a server that is away is waited for, and the taking goes on."""

    def __init__(self, meter: Meter, wire: Wire) -> None:
        self.meter, self.wire = meter, wire
        self._waiting: deque[Sample] = deque(maxlen=HELD)
        self._ended = threading.Event()
        self._due = threading.Event()
        self._threads = [
            threading.Thread(target=_quietly, args=(work,), name=work.__name__, daemon=True)
            for work in (self._take, self._report)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(LAST_S)

    def _take(self) -> None:
        try:
            for pause in chain(FIRST_S, repeat(EVERY_S)):
                ended = self._ended.wait(pause)
                self._waiting.append(self.meter.read(last=ended))
                if ended:
                    return
                if len(self._waiting) >= BATCH:
                    self._due.set()
        finally:
            self._ended.set()
            self._due.set()

    def _report(self) -> None:
        ended = False
        while not ended:
            self._due.wait()
            self._due.clear()
            ended = self._ended.is_set()
            if batch := [self._waiting.popleft() for _ in range(len(self._waiting))]:
                self.wire.sample(batch)


class Meter:
    """Reads what was used since the last reading."""

    def __init__(self, pid: int) -> None:
        self._others = {each.pid for each in _below(os.getpid())} - {pid, *(each.pid for each in _below(pid))}
        self._gpus = shutil.which(GPUS[0]) is not None
        self._at = time.monotonic()
        self._reaped = _reaped()  # what builds before us used
        self._largest = max(_largest(), _largest(resource.RUSAGE_SELF))  # Linux takes a child for no smaller than us
        self._before = (0.0, 0, 0)
        self._seen: tuple[float | None, int | None] = (None, None)

    def read(self, *, last: bool = False) -> Sample:
        """What the family used since then; the `last` one takes no time for the GPUs, which may be a second.

        Of what has ended meanwhile the processor's time is known whole, its memory if it had more than all that ended
        before, and of its files what was seen before.
        """
        now = time.monotonic()
        below = [each for each in _below(os.getpid()) if each.pid not in self._others]
        family = [found for found in map(_used, below) if found is not None]
        cpu = _reaped() - self._reaped + sum(each.cpu for each in family)
        memory = sum(each.own for each in family) + max((each.shared for each in family), default=0)
        largest = _largest()
        if largest > self._largest:
            memory, self._largest = max(memory, largest), largest
        read, written = sum(each.read for each in family), sum(each.written for each in family)
        before, self._before = self._before, (cpu, read, written)
        span, self._at = now - self._at, now
        if self._gpus and not last:
            self._seen = _gpus()
        busy, held = self._seen
        return Sample(
            time=time.time(),
            span=span,
            cpu=max(0.0, cpu - before[0]),
            memory=memory,
            processes=len(family),
            read=max(0, read - before[1]),
            written=max(0, written - before[2]),
            gpu=busy,
            gpu_memory=held,
        )


class _Use:
    """What one process used since it began, with its children that have ended."""

    __slots__ = ("cpu", "own", "read", "shared", "written")

    def __init__(self, process: psutil.Process) -> None:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            self.cpu = sum(times[:4])  # user, system, and those of children that were waited for
            self.shared = getattr(memory, "shared", 0)  # libraries and the like: there once for a whole family
            self.own = memory.rss - self.shared
            self.read = self.written = 0
            with suppress(psutil.AccessDenied, AttributeError):
                files = process.io_counters()
                self.read = getattr(files, "read_chars", files.read_bytes)  # whether or not the disk was asked
                self.written = getattr(files, "write_chars", files.write_bytes)


def _used(process: psutil.Process) -> _Use | None:
    """None for one that has gone."""
    with suppress(psutil.Error):
        return _Use(process)
    return None


def _below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _reaped() -> float:
    """Seconds of processor that our ended children used."""
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime


def _largest(whose: int = resource.RUSAGE_CHILDREN) -> int:
    """Bytes of the largest child that has ended; or of this process, at its peak."""
    return resource.getrusage(whose).ru_maxrss * 1024


def _gpus() -> tuple[float | None, int | None]:
    """How busy all GPUs are (0 to 1 each), and the bytes that are in use there; of this host, whoever uses them."""
    try:
        told = subprocess.run(GPUS, capture_output=True, text=True, timeout=3, check=True).stdout.splitlines()
        rows = [[float(word) for word in line.split(",")] for line in told if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None
    return sum(busy for busy, _ in rows) / 100, int(sum(held for _, held in rows) * MIB)


def _quietly(work: object) -> None:
    try:
        work()  # type: ignore[operator]
    except errors.Error as error:
        log.warning("the server takes no more samples: %s", error)
    except Exception:  # noqa: BLE001 - the edge of a thread: no job fails for want of samples
        log.error("samples could not be taken\n%s", traceback.format_exc())
