"""The runtimes on offer, and each as a virtual environment that holds its lock, exactly."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taxiway import errors
from taxiway.environments import folders, pythons, requirements, uv
from taxiway.environments.progress import Say

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

RECIPE = 1  # counts the ways in which an environment was ever built; a new one makes every folder of the old one stale


@dataclass(frozen=True)
class Runtime:
    """A row of runtimes.toml: what a runtimeVersion means."""

    version: str
    pythons: tuple[str, ...]  # "3.11", the preferred first
    lock: Path
    summary: str = ""
    mib: int = 0  # about what it takes of the disk
    frameworks: tuple[str, ...] = ()
    provides: Mapping[str, str] = field(default_factory=dict, hash=False)  # asked for -> what stands in for it
    stands_in: tuple[tuple[str, str], ...] = ()  # first and last of the versions that it runs in place of
    old_pythons: tuple[str, ...] = ()  # what the service had with it; asked for, they get the first of `pythons`
    machines: tuple[str, ...] = ()  # the processors that its packages were made for; none named: for every one
    opt_in: bool = False  # it is large, and built by `taxiway runtimes build` alone, not for a job that names it

    def covers(self, version: str) -> bool:
        """Whether it runs in place of that version."""
        numbers = _numbers(version)
        return numbers is not None and any(_known(a) <= numbers <= _known(b) for a, b in self.stands_in)

    @property
    def misplaced(self) -> str:
        """Why it cannot run on a machine of this kind, as what follows its name in a sentence; "" if it can."""
        if not self.machines or platform.machine() in self.machines:
            return ""
        return f"was made for {' or '.join(self.machines)} alone, and this machine is {platform.machine()}"

    @property
    def lacks(self) -> str:
        """Why it cannot run here, as above, for want of a Python too."""
        if self.misplaced:
            return self.misplaced
        if not any(map(pythons.find, self.pythons)):
            names = " or ".join(self.pythons)
            return f"needs Python {names}, which was not found on this machine (TAXIWAY_PYTHONS may name its folder)"
        return ""

    @property
    def served(self) -> str:
        """The frameworks that a model version may name with it, for a person."""
        return ", ".join(self.frameworks) or "none: it trains only"

    @property
    def covered(self) -> str:
        """The versions that it runs in place of, for a person."""
        return ", ".join(f"{first} to {last}" for first, last in self.stands_in)


@dataclass(frozen=True)
class Choice:
    """A runtime together with one Python of this machine, for what was asked."""

    runtime: Runtime
    python: str  # "3.11"
    release: str  # "3.11.7"
    base: Path  # the interpreter that environments are made from
    asked: str = ""  # a runtimeVersion that this runtime stands in for; it may have a table of its own and not run here
    asked_python: str = ""  # a pythonVersion that it cannot have

    @property
    def version(self) -> str:
        """The runtimeVersion as a job or a version shows it: what was asked; it resolves to the same choice again."""
        return self.asked or self.runtime.version

    @property
    def python_version(self) -> str:
        """The pythonVersion, likewise."""
        return self.asked_python or self.python

    @property
    def as_one(self) -> bool:
        """Whether a trainer that was written for TensorFlow 1 gets a TensorFlow 2, and so needs its compat.v1."""
        return self.asked.startswith("1.") and not self.runtime.version.startswith("1.")

    def instead(self, *, trains: bool = False) -> str:
        """What runs in place of what was asked, and why, for a log; "" if it is what was asked.

        `trains`: it is a trainer that will run, which gets tensorflow.compat.v1 where it asked for a TensorFlow 1.
        """
        told = []
        if self.asked:
            nearest = f"{self.runtime.version} is the nearest that is, and runs in its place."
            told = [f"Runtime version {self.asked} is not offered here; {nearest}"]
        if own := table().get(self.asked):
            lacks = own.lacks or f"is offered with Python {' or '.join(own.pythons)}, not with {self.python}"
            told = [f"Runtime version {own.version} {lacks}; {self.runtime.version} runs in its place."]
        if self.asked_python:
            told.append(f"Python {self.asked_python} was asked for and {self.python} runs.")
        if self.asked_python.startswith("2."):
            told.append("Code that only a Python 2 can read, such as `print x`, will fail.")
        if trains and self.as_one:
            told.append(
                "`import tensorflow` gives tensorflow.compat.v1, for code of TensorFlow 1. There is no tf.contrib."
            )
        elif trains and told and self.runtime.version.startswith("1."):
            told.append(f"`import tensorflow` gives TensorFlow {self.runtime.version} itself.")
        return " ".join(told)

    @functools.cached_property
    def key(self) -> str:
        """The name of the runtime's folder; it changes with the lock, the Python's release and our way of building."""
        digest = hashlib.sha256(f"{RECIPE} {self.release} {self.base}\n".encode() + self.runtime.lock.read_bytes())
        return f"{self.runtime.version}-py{self.python}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Built:
    """A runtime that stands in the cache."""

    version: str
    python: str
    release: str
    interpreter: Path


@functools.cache
def _file() -> dict[str, Any]:
    return dict(tomllib.loads(Path(__file__).with_name("runtimes.toml").read_text(encoding="utf-8")))


@functools.cache
def table() -> dict[str, Runtime]:
    """Every runtime on offer, by its version."""
    return _rows("runtimes")


@functools.cache
def tools() -> dict[str, Runtime]:
    """Programs that jobs find beside their runtime, by name: each has an environment of its own, built and kept as that
    of a runtime is. None is a runtimeVersion."""
    return _rows("tools")


def _rows(kind: str) -> dict[str, Runtime]:
    folder = Path(__file__).with_name("locks")
    return {
        version: Runtime(
            version=version,
            pythons=tuple(row["pythons"]),
            lock=folder / row["lock"],
            summary=row["summary"],
            mib=row["mib"],
            frameworks=tuple(row.get("frameworks", ())),
            provides=row.get("provides", {}),
            stands_in=tuple((first, last) for first, last in row.get("stands_in", ())),
            old_pythons=tuple(row.get("old_pythons", ())),
            machines=tuple(row.get("machines", ())),
            opt_in=row.get("opt_in", False),
        )
        for version, row in _file()[kind].items()
    }


def default() -> str:
    """The runtimeVersion of one who names none."""
    return str(_file()["default"])


def resolve(version: str | None, python_version: str | None) -> Choice:
    """The runtime and the Python that a runtimeVersion and a pythonVersion mean here; None or "" leaves one to us.

    A version that has no table, or whose Python this machine lacks, runs on the nearest runtime that can, which is the
    oldest that stands in for it. An old Python gets that runtime's own; one that only a farther runtime has chooses
    that one. The choice tells of both. Raises InvalidArgument with the field's name and what is offered.
    """
    version = version or default()
    ladder = _ladder(version)
    if not ladder:
        others = "; ".join(f"{each.covered} run on {each.version}" for each in table().values() if each.stands_in)
        fault = f"Runtime version {version!r} is not offered. Choose one of: {', '.join(table())}. Others: {others}."
        raise errors.InvalidArgument(faults=[("runtimeVersion", fault)])
    refused = None
    for runtime in ladder:
        asked = "" if runtime.version == version else version
        olds = _file()["old_pythons"] if asked else runtime.old_pythons
        old = python_version if python_version in olds and python_version not in runtime.pythons else None
        try:
            choice = choose(runtime, None if old else python_version)
            return dataclasses.replace(choice, asked=asked, asked_python=old or "")
        except errors.InvalidArgument as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _ladder(version: str) -> list[Runtime]:
    """What may run for a version, the nearest first: its own runtime, then what stands in for it, the oldest first."""
    own = table().get(version)
    others = sorted((each for each in table().values() if each.covers(version)), key=lambda each: _known(each.version))
    return [own, *others] if own else others


def choose(runtime: Runtime, python_version: str | None) -> Choice:
    """As `resolve`, for a runtime in hand: the first of its Pythons that this machine has, unless one is named."""
    if python_version and python_version not in runtime.pythons:
        offered = ", ".join(runtime.pythons)
        fault = f"Python {python_version!r} is not offered with runtime version {runtime.version}. Choose: {offered}."
        raise errors.InvalidArgument(faults=[("pythonVersion", fault)])
    wanted = [python_version] if python_version else runtime.pythons
    if runtime.misplaced:
        fault = f"Runtime version {runtime.version} {runtime.misplaced}."
        raise errors.InvalidArgument(faults=[("runtimeVersion", fault)])
    for python in wanted:
        if base := pythons.find(python):
            return Choice(runtime, python, pythons.release(base), base)
    names = " or ".join(wanted)
    fault = f"Python {names} was not found on this machine. Install it, or name its folder in TAXIWAY_PYTHONS."
    raise errors.InvalidArgument(faults=[("pythonVersion", fault)])


def path(choice: Choice) -> Path:
    """Where the runtime's environment stands, or would."""
    return folders.cache() / "runtimes" / choice.key


def ready(choice: Choice) -> Path | None:
    """The runtime's interpreter, or None if it is yet to be built."""
    return folders.interpreter(path(choice)) if folders.record(path(choice)) else None


def unasked(choice: Choice) -> str:
    """Why a job may not have the runtime yet, with the command that builds it; "" if it may.

    Whoever may submit a job should not fill this machine's disk: what is opt-in, its keeper asks for.
    """
    if not choice.runtime.opt_in or ready(choice):
        return ""
    asked = f" --python-version {choice.python}" if choice.python != choice.runtime.pythons[0] else ""
    return (
        f"Runtime version {choice.version} for Python {choice.python} takes about {choice.runtime.mib / 1024:.1f} GiB "
        f"of the server's disk and is built there only by: taxiway runtimes build {choice.version}{asked}"
    )


def built() -> list[Built]:
    """Every runtime that stands in the cache, by name."""
    found = sorted((folders.cache() / "runtimes").glob("*/"))
    records = ((folder, folders.record(folder)) for folder in found)
    return [Built(r["version"], r["python"], r["release"], folders.interpreter(folder)) for folder, r in records if r]


def build(choice: Choice, say: Say | None = None) -> Path:
    """The runtime's interpreter, after building the runtime if nobody has yet. Others who want it wait for one builder.

    Raises Unavailable with uv's last words if it cannot be built, StorageFull if the cache cannot be written.
    """
    folder = path(choice)

    def install(turn: int, say: Say) -> dict[str, Any]:
        try:
            uv.venv(folder, choice.base, choice.key, turn)
            lock = str(choice.runtime.lock)
            # What has no wheel is built with the setuptools of the lock, by hash, not with the newest there is.
            sync = ["sync", "--require-hashes", "--build-constraints", lock, lock]
            uv.install(folders.interpreter(folder), sync, turn, say)
        except uv.Failed as failure:
            raise errors.Unavailable(
                f"Runtime {choice.runtime.version} for Python {choice.release} could not be built in {folder}. "
                f"Check the network (or TAXIWAY_WHEELHOUSE, a folder of wheels), then try again.\n{failure}"
            ) from None
        if missing := requirements.unmet(folders.interpreter(folder), pins(choice.runtime.lock), {}):
            raise errors.Unavailable(
                f"Runtime {choice.runtime.version} for Python {choice.release} was not installed whole: "
                f"{', '.join(missing[:5])} is missing in {folder}. Try again."
            )
        os.sync()  # `complete` must not reach the disk before what it speaks of
        about = {"version": choice.runtime.version, "python": choice.python, "release": choice.release}
        return {**about, "packages": folders.installed(folders.site(folder, choice.python))}

    folders.once(folder, install, say)
    return folders.interpreter(folder)


def pins(lock: Path) -> list[str]:
    """What a lock pins, as requirements with their markers and without their hashes."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line[:1].strip() and not line.startswith(("#", "-"))]
    return [pin.partition(" --hash")[0].rstrip(" \\") for pin in pins]


def _known(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _numbers(version: str) -> tuple[int, ...] | None:
    """1.15 -> (1, 15); None for what is no version of a runtime."""
    return _known(version) if re.fullmatch(r"[0-9]\.(0|[1-9][0-9]?)", version, re.ASCII) else None
