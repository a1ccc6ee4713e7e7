"""A folder of the cache that is built once, whoever else wants it: whole when its mark is there, else built anew.

Builders of one folder take turns by an flock that their children inherit: it is free only when the last process that
could still write there has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taxiway import errors, files
from taxiway.environments.progress import Progress, Say, tell

COMPLETE = "complete.json"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


def cache() -> Path:
    """TAXIWAY_CACHE, or ~/.cache/taxiway."""
    return Path(os.environ.get("TAXIWAY_CACHE") or Path.home() / ".cache/taxiway").expanduser().absolute()


def once(folder: Path, build: Callable[[int], dict[str, Any]], say: Say | None) -> None:
    """See that the folder is complete: by `build`, unless it is or another process completes it while we wait."""
    if record(folder):
        return
    with _cannot_write(), _turn(folder, say) as turn:
        if record(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            about = build(turn)
            files.replace(folder / COMPLETE, json.dumps(about).encode())  # only now it is whole
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _turn(folder: Path, say: Say | None) -> Iterator[int]:
    """Our turn to write a folder, as the descriptor of its lock, for our children to inherit."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(say, Progress("wait", f"Waiting for another process that is building {folder.name}"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@contextlib.contextmanager
def _cannot_write() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise full(str(error)) from error


def full(reason: str) -> errors.StorageFull:
    advice = "Free some space, or set TAXIWAY_CACHE to another folder."
    return errors.StorageFull(f"The cache {cache()} cannot be written: {reason}. {advice}")


def settle(folder: Path) -> None:
    """See every file of a layer on the disk before its mark; for a runtime's thousands os.sync() is quicker."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def record(folder: Path) -> dict[str, Any] | None:
    """What its builder wrote of it; None if it is not whole, or if the Python that the folder was made from is gone."""
    try:
        return _read(folder) if interpreter(folder).exists() else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / COMPLETE).read_text(encoding="utf-8")))


def interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def site(folder: Path, python: str) -> Path:
    return folder / "lib" / f"python{python}" / "site-packages"


def installed(packages: Path) -> dict[str, str]:
    """The distributions of a site-packages folder: normal name -> version."""
    found = importlib.metadata.distributions(path=[str(packages)])
    return {normal(one.metadata["Name"]): one.version for one in found}


def normal(requirement: str) -> str:
    """The name that a requirement begins with, as PEP 503 spells it."""
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""
