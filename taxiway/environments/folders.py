"""A folder of the cache that is built once, whoever else wants it: whole when its mark is there, else built anew.

Builders of one folder take turns by an flock that their children inherit: it is free only when the last process that
could still write there has ended. In the locked file stands how far the builder is, for those who wait. Whoever uses a
folder holds another lock on it, shared, until it ends: `remove` takes only what nobody holds.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taxiway import errors, files
from taxiway.environments.progress import Progress, Say, tell

COMPLETE = "complete.json"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}

LOOK_S = 0.1  # between two looks of one who waits for a builder
NOTE_S = 0.5  # between two notes of a builder on one stage

_held: dict[Path, int] = {}  # folder -> the descriptor of our lock on it, for as long as this process lives


def cache() -> Path:
    """TAXIWAY_CACHE, or ~/.cache/taxiway."""
    return Path(os.environ.get("TAXIWAY_CACHE") or Path.home() / ".cache/taxiway").expanduser().absolute()


def once(folder: Path, build: Callable[[int, Say], dict[str, Any]], say: Say | None) -> None:
    """See that the folder is complete: by `build`, unless it is or another process completes it while we wait.

    `say` hears how far the build is, whoever builds. The folder is ours from then on, until this process ends.
    """
    hold(folder)
    if record(folder):
        return
    with writing(), turn(folder, say) as ours:
        if record(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            about = build(ours, _noting(ours, say))
            files.replace(folder / COMPLETE, json.dumps(about).encode())  # only now it is whole
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def hold(folder: Path) -> None:
    """Nobody removes the folder before this process has ended; and it was used now."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is not pruned either
        if folder not in _held:
            folder.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(_beside(folder, "used"), os.O_RDONLY | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _held[folder] = descriptor
        os.utime(_held[folder])


def held() -> list[int]:
    """The descriptors of our locks, for a child that uses the folders longer than we do."""
    return list(_held.values())


def last_used(folder: Path) -> float:
    """When somebody last began to use it; when it was built, if nobody has noted that. Raises FileNotFoundError."""
    for file in (_beside(folder, "used"), folder / COMPLETE, folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return file.stat().st_mtime
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def in_use(folder: Path) -> bool:
    """Whether a process uses or builds it now."""
    with contextlib.ExitStack() as until:
        return not _alone(folder, until, 0)


def remove(folder: Path) -> bool:
    """Remove it, whole or half built; False, and it stays as it is, if a process uses or builds it.

    Raises StorageFull for a cache that cannot be written.
    """
    with writing(), contextlib.ExitStack() as until:
        if not _alone(folder, until, os.O_CREAT):
            return False
        (folder / COMPLETE).unlink(missing_ok=True)  # if we are killed, what we leave is not taken for whole
        shutil.rmtree(folder)
        return True


def size(*folders: Path) -> int:
    """What they take of the disk, in bytes; what is linked from several places counts once."""
    seen: dict[tuple[int, int], int] = {}
    waiting = [str(folder) for folder in folders]
    while waiting:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                seen[about.st_dev, about.st_ino] = about.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return sum(seen.values())


def _alone(folder: Path, until: contextlib.ExitStack, create: int) -> bool:
    """Whether nobody uses or builds the folder; if so, and with O_CREAT, nobody begins to before `until` is left."""
    for kind in ("used", "lock"):
        try:
            descriptor = os.open(_beside(folder, kind), os.O_RDONLY | create, 0o644)
        except FileNotFoundError:
            continue
        until.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _beside(folder: Path, kind: str) -> Path:
    return folder.parent / f".{folder.name}.{kind}"


@contextlib.contextmanager
def turn(folder: Path, say: Say | None) -> Iterator[int]:
    """Our turn to write a folder, as the descriptor of its lock, for our children to inherit.

    Until then `say` hears that we wait, and how far the one is whom we wait for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _beside(folder, "lock").open("ab") as lock:
        heard: Progress | None = None
        while not _locked(lock.fileno()):
            if heard is None:
                heard = Progress("wait", f"Waiting for another process that is building {folder.name}")
                tell(say, heard)
            elif (news := _noted(folder)) not in (None, heard):
                heard = news
                tell(say, heard)
            time.sleep(LOOK_S)
        lock.truncate(0)  # what one who died had noted
        yield lock.fileno()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _noting(lock: int, say: Say | None) -> Say:
    """`say`, and a note in the lock's file for those who wait: each stage, and of its many steps two a second."""
    stage, due = "", 0.0

    def both(news: Progress) -> None:
        nonlocal stage, due
        if news.stage != stage or time.monotonic() >= due:
            stage, due = news.stage, time.monotonic() + NOTE_S
            os.ftruncate(lock, 0)
            os.write(lock, json.dumps([news.text, news.fraction]).encode())
        tell(say, news)

    return both


def _noted(folder: Path) -> Progress | None:
    """What the builder of a folder said last; None if nobody knows."""
    try:
        text, fraction = json.loads(_beside(folder, "lock").read_bytes())
    except (OSError, ValueError):  # also for a note that is being written
        return None
    return Progress("wait", str(text), fraction)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raises StorageFull where the cache cannot be written."""
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
        if file.is_file() and not file.is_symlink():
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


def named(packages: Path) -> dict[str, str]:
    """The same by the names of its folders alone, where a stranger's code has written: nothing in it is opened."""
    with contextlib.suppress(FileNotFoundError):
        infos = [each.name.removesuffix(".dist-info") for each in packages.iterdir() if each.suffix == ".dist-info"]
        return {normal(name): version for name, _, version in (info.rpartition("-") for info in infos) if name}
    return {}


def normal(requirement: str) -> str:
    """The name that a requirement begins with, as PEP 503 spells it."""
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""
