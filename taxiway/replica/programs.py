"""The programs of Google's that a job finds on its PATH although its environment does not hold them: gsutil.

    found = programs.found(work, archives, python, say_progress, say)
    found.variables      # PATH, for the code
    found.read           # what a jail must show for it

It is PyPI's, pinned, in an environment of its own that is built once, and only for a job that names it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taxiway import errors, files
from taxiway.environments import folders, pythons, runtimes
from taxiway.environments.progress import Progress, Say
from taxiway.environments.runtimes import Choice
from taxiway.plan import Work
from taxiway.replica import family

GSUTIL = "gsutil"
SEARCHED = 64 * 1024 * 1024  # bytes of a package, unpacked; what lies behind them is data
PIECE = 1024 * 1024
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
# The environment's Python must not find what was meant for the job's own.
SCRIPT = """#!/bin/sh
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP
exec {program} "$@"
"""


@dataclass(frozen=True)
class Found:
    """What the code finds besides."""

    variables: dict[str, str] = field(default_factory=dict)
    read: Sequence[Path] = ()


def found(work: Work, archives: Sequence[Path], python: Path, progress: Say, say: Callable[[str, str], None]) -> Found:
    """gsutil, if the job's packages or arguments name it.

    It goes before the machine's own, which may be any release, or a part of the Cloud SDK, which asks for the
    credentials of a person; and behind one that a package itself requires. Where it cannot be built the log says so and
    the job runs all the same.
    """
    if (python.parent / GSUTIL).exists() or not _named(GSUTIL, work.command, archives):
        return Found()
    try:
        choice = runtimes.choose(runtimes.tools()[GSUTIL], None)
        if not runtimes.ready(choice):
            progress(Progress("build", "Building gsutil, which the job's package or arguments name"))
        interpreter = runtimes.build(choice, progress)
        place = _alone(choice, interpreter)
    except errors.Error as error:
        own = shutil.which(GSUTIL, path=family.SYSTEM)
        instead = f"{own} of this machine is there instead" if own else "the job runs without it"
        say(f"The job names gsutil, which could not be built; {instead}. {error}", "WARNING")
        return Found()
    path = f"{python.parent}:{place}:{family.SYSTEM}"
    return Found({"PATH": path}, (runtimes.path(choice), *pythons.behind(interpreter)))


def _alone(choice: Choice, interpreter: Path) -> Path:
    """A folder with nothing in it but the program: its environment's bin/ has a Python, too. Raises StorageFull."""
    place = runtimes.path(choice) / "programs"
    if not (place / GSUTIL).exists():
        text = SCRIPT.format(program=shlex.quote(str(interpreter.parent / GSUTIL)))
        with folders.writing():
            place.mkdir(exist_ok=True)
            files.replace(place / GSUTIL, text.encode(), mode=0o755)
    return place


def _named(word: str, command: Sequence[str], archives: Sequence[Path]) -> bool:
    return any(word in each for each in command) or any(holds(each, word.encode()) for each in archives)


def holds(archive: Path, word: bytes) -> bool:
    """Whether a package has a word in its files or their names, as far as it is searched."""
    rest, left = b"", SEARCHED
    try:
        for piece in _pieces(archive):
            if word in (seen := rest + piece):
                return True
            rest, left = seen[-len(word) :], left - len(piece)
            if left <= 0:
                break
    except UNREADABLE:  # uv could read it, so there is nothing to say
        pass
    return False


def _pieces(archive: Path) -> Iterator[bytes]:
    """What is in a package, unpacked, piece by piece."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                yield name.encode()
                with opened.open(name) as member:
                    while piece := member.read(PIECE):
                        yield piece
        return
    with _unzipped(archive) as file:
        while piece := file.read(PIECE):
            yield piece


def _unzipped(archive: Path) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if archive.suffix == ".bz2":
        return bz2.open(archive, "rb")
    if archive.suffix == ".xz":
        return lzma.open(archive, "rb")
    return gzip.open(archive, "rb")
