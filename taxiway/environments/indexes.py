"""Package indexes: where they are, and what they have of what a person's package requires, asked within seconds."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from taxiway.environments import uv
from taxiway.environments.folders import normal
from taxiway.environments.runtimes import Choice

SECONDS = 3.0  # for all questions together
MOST = 8  # requirements that are asked for one by one, to name the one that cannot be had
# No line that names a file or a URL: whoever may submit a job may not have this server fetch what he likes.
NAMED = re.compile(r"[A-Za-z0-9][\w.\s<>=!~*+,;'\"()\[\]-]*", re.ASCII)
PYPI = ("pypi.org", "files.pythonhosted.org")
HOST = re.compile(r"https://(?:[^/@\s\"']*@)?([A-Za-z0-9.-]+)")


def hosts() -> list[str]:
    """The hosts from which uv would fetch packages on this machine, by its variables and its file of settings; an index
    that lists files of other hosts is followed to PyPI's alone. None where a wheelhouse stands in for them all."""
    if os.environ.get("TAXIWAY_WHEELHOUSE"):
        return []
    told = [value for name, value in os.environ.items() if name.startswith("UV_")]
    settings = uv.config()
    told += [settings.read_text(encoding="utf-8")] if settings else []
    return sorted({*PYPI, *(host for text in told for host in HOST.findall(text))})


def beyond(choice: Choice, lines: Sequence[str]) -> list[str]:
    """Those of the requirements that the runtime does not hold by their names, and that an index can be asked for."""
    held = _pinned(choice.runtime.lock) | {normal(name) for name in choice.runtime.provides}
    return sorted(line for line in set(lines) if NAMED.fullmatch(line) and normal(line) not in held)


@functools.cache
def _pinned(lock: Path) -> frozenset[str]:
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(normal(name) for name in pins)


def unavailable(choice: Choice, lines: Sequence[str]) -> list[str] | None:
    """Those of the requirements of which no index has such a version; None if that could not be told in time.

    What an index has only as source counts as neither: to look into it would be to run its setup.py.
    """
    until = time.monotonic() + SECONDS
    whole = _there(choice, lines, until)
    if whole is not False:
        return [] if whole else None
    answers = {line: _there(choice, [line], until) for line in lines[:MOST]}
    return [line for line, there in answers.items() if there is False]


def _there(choice: Choice, lines: Sequence[str], until: float) -> bool | None:
    """Whether all of them can be had; None if nobody can say."""
    compile_ = ["pip", "compile", "-", "--no-header", "--no-annotate", "--no-deps", "--no-build"]
    answer = uv.ask([*compile_, "--python", str(choice.base)], "\n".join(lines), seconds=until - time.monotonic())
    if answer is None or not answer.returncode:
        return None if answer is None else True
    refused = "No solution found" in answer.stderr and "no usable wheels" not in answer.stderr
    return False if refused else None
