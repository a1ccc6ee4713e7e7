"""The Pythons of this machine: found, asked which release they are, never downloaded."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Variables of a shell that would change which Python runs, or what it finds.
MISLEADING = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "UV_PYTHON",
    "UV_CONSTRAINT",
)
PLAIN = {"NO_COLOR": "1", "TERM": "xterm"}


def find(version: str) -> Path | None:
    """An interpreter of "3.11" that runs, or None. None is ever downloaded.

    Looked for in TAXIWAY_PYTHONS (folders or interpreters, colon separated), behind the running interpreter, among
    pyenv's and uv's versions by their real paths, then on PATH, where a pyenv shim may exist and yet not run.
    """
    for candidate in _candidates(version):
        with contextlib.suppress(OSError):
            if release(candidate).rpartition(".")[0] == version:
                return candidate.resolve()  # one Python, one runtime, by whichever link it was found
    return None


def behind(interpreter: Path) -> list[Path]:
    """The folders that an interpreter runs from: its environment's, and that of every link it leads through."""
    found = [interpreter.parent.parent]
    while interpreter.is_symlink():
        interpreter = interpreter.parent / interpreter.readlink()
        found.append(interpreter.parent.parent.resolve() if ".." in interpreter.parts else interpreter.parent.parent)
        found.append(found[-1].resolve())
    return list(dict.fromkeys(found))


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for entry in filter(None, os.environ.get("TAXIWAY_PYTHONS", "").split(":")):
        given = Path(entry).expanduser().absolute()
        yield from [given] if given.is_file() else [given / name, given / "bin" / name, *_versions(given, name)]
    yield Path(sys.base_prefix) / "bin" / name
    for folder in _version_folders():
        yield from _versions(folder, name)
    for entry in os.get_exec_path():
        yield Path(entry).absolute() / name


def _version_folders() -> list[Path]:
    """Where version managers keep their Pythons. HOME may be a fresh one while the running interpreter is pyenv's."""
    beside = Path(sys.base_prefix).parent
    folders = [beside] if beside.name == "versions" else []
    if root := os.environ.get("PYENV_ROOT"):
        folders.append(Path(root) / "versions")
    return [*folders, Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]


def _versions(folder: Path, name: str) -> list[Path]:
    """folder/*/bin/name, the newest release first."""

    def numbers(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", path.parent.parent.name)]

    return sorted(folder.glob(f"*/bin/{name}"), key=numbers, reverse=True)


def release(interpreter: Path) -> str:
    """The release "3.11.7" that an interpreter says it is, or "" if it does not run. Raises OSError without a file."""
    changed = interpreter.stat().st_mtime_ns
    if interpreter.resolve() == Path(sys.executable).resolve():  # each job would wait for an answer that is known
        return ".".join(map(str, sys.version_info[:3]))
    return _release(interpreter, changed)


@functools.lru_cache(maxsize=256)
def _release(interpreter: Path, changed: int) -> str:
    """Asked once, until the interpreter changes."""
    ask = [str(interpreter), "-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, env=environ(), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def environ() -> dict[str, str]:
    """What a Python that we start, for a question or a build, has in its environment.

    Nothing of ours is in it: the setup.py of a stranger's package reads it too.
    """
    kept = {k: v for k, v in os.environ.items() if k not in MISLEADING and not k.startswith("TAXIWAY_")}
    return {**kept, **PLAIN}
