"""The disk of this host, and that the user's code does not take it whole.

    with disk.watched(folders, said, most, end) as watch:
        code = child.wait()
    watch.told      # why the code was ended for what it wrote; "" if it was not

A thread of its own looks, as the heartbeat waits for a server that is away. What a job has is what lies in its folders,
what it holds open without a name, and the lines of its log, which the server keeps.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from taxiway import trees
from taxiway.trees import Held

log = logging.getLogger(__name__)

MIB = 1024 * 1024
LOOK_S = 0.1  # between two looks at the disk, which cost nothing
COUNT_S = (1.0, 5.0)  # between two counts of what a code has: while the disk fills, and while it does not
SHARE = (4, 20)  # but this many times as long as a count took: when the disk is used up, and before
NEWS = MIB  # the disk fills: by so much since the last count
RESERVE = 512 * MIB  # or this part of the disk, whichever is more: what no job may use
PART = 50
SMALL_PART = 8  # of a small disk no more than this part
SLACK = 16 * MIB  # what a job may write all the same once others, or the server, have used the disk up to there
SLACK_FILES = 1000
GOOD_PART = 4  # of what the disk lost, a part that makes a job the one to end
PATIENCE_S = 2.0  # for the one to be ended, and its room to be free
ENDLESS = 1 << 62


@contextmanager
def watched(folders: Sequence[Path], said: Callable[[], int], most: int, end: Callable[[], None]) -> Iterator[Watch]:
    """Watch what a code has from now on: in `folders`, and what it said. `most` bytes; 0: no limit of its own.

    `end` is called, by another thread, if that is too much.
    """
    watch = Watch(folders, said, most, end)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


@dataclass(frozen=True, slots=True)
class Room:
    """What a disk has left for jobs: below 0, the reserve is being used."""

    bytes: int
    files: int

    @property
    def short(self) -> bool:
        return self.bytes < 0 or self.files < 0


class Watch:
    """Looks whether a code has more than it may; then ends it, and gives the disk back."""

    def __init__(self, folders: Sequence[Path], said: Callable[[], int], most: int, end: Callable[[], None]) -> None:
        self.folders = folders
        self.told = ""
        self._said = said
        self._most = most
        self._end = end
        self._first = self._count()  # a version's server has its model there, which is not its own doing
        self._before = (self._first, left(folders[0]))  # when there was room last
        self._short: tuple[Held, float] | None = None  # when there was none first, and since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:  # noqa: BLE001 - the edge of a thread: the code goes on, and our log says that nobody watches
            log.error("the disk is not watched\n%s", traceback.format_exc())

    def _watch(self) -> None:
        counted, took, had = time.monotonic(), 0.0, self._before[1]
        while not self._over.wait(LOOK_S):
            room = left(self.folders[0])
            filling = had.bytes - room.bytes > NEWS or had.files - room.files > SLACK_FILES
            pause = SHARE[0] * took if room.short else max(COUNT_S[0 if filling else 1], SHARE[1] * took)
            if time.monotonic() < counted + pause:
                continue
            begun = time.monotonic()
            has = self._count()
            counted, had = time.monotonic(), room
            took = counted - begun
            if not room.short:
                self._before, self._short = (has, room), None
            elif self._short is None:
                self._short = (has, begun)
            self.told = self._too_much(has, room)
            if self.told:
                self._end()
                for each in self.folders:  # nobody else gets to it, and others need the room
                    trees.empty(each)
                return

    def _count(self) -> Held:
        found = [*map(trees.held, self.folders), nameless(self.folders[0].stat().st_dev)]
        return Held(sum(each.bytes for each in found) + self._said(), sum(each.files for each in found))

    def _too_much(self, has: Held, room: Room) -> str:
        """Why a code that has so much is ended, in a sentence; "": it is not."""
        own, files = has.bytes - self._first.bytes, has.files - self._first.files
        if self._most and own > self._most:
            return (
                f"It wrote {own / MIB:.0f} MiB to its disk and its log, and a job may have {self._most // MIB} MiB: "
                "write to gs:// what is to stay, remove what is not needed any more, or raise TAXIWAY_JOB_DISK_MIB."
            )
        if room.bytes < 0 and self._is_culprit(has, room):
            return (
                "It wrote on when this host's disk was used up but for what is kept for the server, and it had "
                f"{own / MIB:.0f} MiB on the disk and in its log: write to gs:// what is to stay, remove what is not "
                "needed any more, or make room on the disk of the server's home. TAXIWAY_JOB_DISK_MIB limits each job."
            )
        if room.files < 0 and has.files - self._before[0].files > SLACK_FILES:
            return (
                f"It made more files when this host's disk could hold few more, and it had {files}: put many small "
                "ones into few large ones, such as TFRecord."
            )
        return ""

    def _is_culprit(self, has: Held, room: Room) -> bool:
        """Whether it is this code that uses the reserve: a job that wrote its checkpoint meanwhile is not to pay.

        It is who writes on; who took a good part of what went since there was room; and, if the disk stays full, as
        nobody took so much, everybody who wrote.
        """
        before, there_was = self._before
        kept = reserve(self.folders[0])
        slack = min(SLACK, kept // 8)
        grown = has.bytes - before.bytes
        if self._short is None or grown <= slack:
            return False
        then, since = self._short
        full = room.bytes < -kept // 2 and time.monotonic() > since + PATIENCE_S
        return has.bytes - then.bytes > slack or grown * GOOD_PART > there_was.bytes - room.bytes or full


def left(folder: Path) -> Room:
    """What the disk that a folder lies on has for jobs."""
    disk = os.statvfs(folder)
    files = disk.f_favail - disk.f_files // PART if disk.f_files else ENDLESS
    return Room(disk.f_bavail * disk.f_frsize - reserve(folder), files)


def reserve(folder: Path) -> int:
    """The bytes of a disk that no job may use: the server is to keep its rows, and to tell how a job ended."""
    disk = os.statvfs(folder)
    whole = disk.f_blocks * disk.f_frsize
    return min(max(RESERVE, whole // PART), whole // SMALL_PART)


def nameless(device: int) -> Held:
    """What the processes below this one hold open on a disk though it has no name any more: no folder shows it."""
    found: dict[int, int] = {}
    for each in psutil.Process().children(recursive=True):
        with suppress(OSError), os.scandir(f"/proc/{each.pid}/fd") as opened:
            for entry in opened:
                with suppress(OSError):
                    file = entry.stat()
                    if file.st_dev == device and not file.st_nlink and stat.S_ISREG(file.st_mode):
                        found[file.st_ino] = file.st_blocks * trees.BLOCK
    return Held(sum(found.values()), len(found))
