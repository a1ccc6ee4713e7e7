"""Folders that a stranger's code makes and may be at work in: how much they hold, and away with them.

Whatever it made of them: folders that nobody may read, many thousands within each other, links to elsewhere, names
that are something else a moment later. Nothing outside is touched or counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512  # bytes, of st_blocks
LOOK, CHANGE = 0o500, 0o700  # the rights to a folder that are needed to
ANY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
UNREAD = getattr(os, "O_PATH", 0)  # Linux: to hold a folder takes no right to it

See = Callable[[int, "os.DirEntry[str]"], None]
Leave = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Held:
    """What is on the disk: allocated bytes, and files and folders, each counted once."""

    bytes: int
    files: int


def held(folder: Path, *, seconds: float = 20.0) -> Held:
    """All that lies below a folder; 0 if it is none. After `seconds` it is what was found by then.

    A look at what changes meanwhile is no more than that.
    """
    taken, files = 0, 0
    several: set[int] = set()  # files of several names that were seen
    deadline = time.monotonic() + seconds

    def see(_within: int, entry: os.DirEntry[str]) -> None:
        nonlocal taken, files
        found = entry.stat(follow_symlinks=False)
        if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
            if found.st_ino in several:
                return
            several.add(found.st_ino)
        taken += found.st_blocks * BLOCK
        files += 1
        if time.monotonic() > deadline:
            raise TimeoutError

    with suppress(TimeoutError):
        _walk(folder, see, lambda _within, _name: None, LOOK)
    return Held(taken, files)


def empty(folder: Path) -> None:
    """Remove all that lies below a folder, as far as the disk allows it. Nobody may be at work in it any more."""

    def see(within: int, entry: os.DirEntry[str]) -> None:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=within)

    def leave(within: int, name: str) -> None:
        with suppress(OSError):
            os.rmdir(name, dir_fd=within)

    _walk(folder, see, leave, CHANGE)


def remove(folder: Path) -> None:
    """`empty`, and the folder itself."""
    empty(folder)
    with suppress(OSError):
        folder.rmdir()


def _walk(folder: Path, see: See, leave: Leave, rights: int) -> None:
    """`see` all that is in a folder, then in each of its folders, and `leave` that.

    It takes one descriptor however deep it goes: the way up is a folder's own, and must lead to where we came from.
    """
    try:
        here = _open(str(folder), None, rights)
    except OSError:
        return
    try:
        way = [("", _number(here), _seen(here, see))]  # each folder's name, its number, the folders in it
        while way:
            if below := way[-1][2]:
                name = below.pop()
                try:
                    inner = _open(name, here, rights)
                except OSError:  # it has gone, or is something else by now
                    continue
                os.close(here)
                here = inner
                way.append((name, _number(here), _seen(here, see)))
                continue
            name = way.pop()[0]
            if way:
                above = os.open("..", os.O_RDONLY | ANY, dir_fd=here)
                os.close(here)
                here = above
                if _number(here) != way[-1][1]:  # somebody moved it
                    return
                leave(here, name)
    except (FileNotFoundError, PermissionError):  # or did away with it
        return
    finally:
        os.close(here)


def _seen(here: int, see: See) -> list[str]:
    """See everything in a folder; answers the names of the folders in it."""
    folders = []
    with suppress(FileNotFoundError), os.scandir(here) as entries:
        for entry in entries:
            with suppress(FileNotFoundError, PermissionError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                see(here, entry)
    return folders


def _open(name: str, within: int | None, rights: int) -> int:
    """A folder's descriptor; what its owner locked is unlocked. Raises OSError if it is no folder of ours."""
    if UNREAD and os.geteuid() != 0:
        held = os.open(name, UNREAD | ANY, dir_fd=within)
        try:
            mode = os.fstat(held).st_mode
            if mode & rights != rights:
                Path(f"/proc/self/fd/{held}").chmod(mode & 0o7777 | rights)
        finally:
            os.close(held)
    return os.open(name, os.O_RDONLY | ANY, dir_fd=within)


def _number(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
