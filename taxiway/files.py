"""Files that a reader, also one after a crash, finds whole: the old content or the new, never half of it. And files
that a stranger's code left, read without being led elsewhere.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put `content` at `path` in one step, on the disk before it has its name, with `mode` whatever the umask.

    Any number of threads and processes may do so at once: the last one wins. Raises OSError, and leaves what was there.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        fresh.unlink(missing_ok=True)  # of somebody who died and had our numbers
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """See the names in a folder on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def strangers(path: Path, most: int) -> bytes:
    """What a stranger's code wrote into a file: at most so many bytes, of a plain file that is no link to another.

    Raises OSError for whatever else is there. The folder must be no link either, which is for the caller to know.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer too
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise OSError(f"{path} is no plain file of at most {most:,} bytes")
        return file.read(most)
