"""A group of processes that the kernel counts together and keeps within limits: cgroups, version 1 or 2.

https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html. Groups are made below the one that
this process is in, or beside it, where that is allowed: root may, and so may who was given a part of the tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

PREFIX = "taxiway-"  # of the names of an attempt's groups
PERIOD_US = 100_000  # in which a share of the processors is counted
OWN = Path("/proc/self/cgroup")
CONTROLLERS = ("pids", "memory", "cpu")
MOUNTS = Path("/proc/self/mounts")


class Group(msgspec.Struct, frozen=True):
    """One group, which with version 1 is a folder for each controller. Empty: the kernel gives us none."""

    folders: dict[str, str]  # controller -> folder; with version 2 all have the same one

    @property
    def procs(self) -> list[str]:
        """The files that take the number of a process which is to join."""
        return [f"{folder}/cgroup.procs" for folder in dict.fromkeys(self.folders.values())]

    def killed(self) -> int:
        """How many processes the kernel killed here because the memory was used up."""
        folder = Path(self.folders.get("memory", "/nowhere"))
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError):
                counts = dict(line.split() for line in (folder / name).read_text().splitlines())
                return int(counts["oom_kill"])
        return 0

    def seal(self) -> None:
        """Nothing is started here any more: who forks without end can then be killed one by one."""
        if "pids" in self.folders:
            _set(Path(self.folders["pids"]), [("pids.max", "0")])

    def remove(self) -> None:
        """It must be empty by now; one that is gone already is as good."""
        for folder in dict.fromkeys(self.folders.values()):
            with suppress(OSError):
                Path(folder).rmdir()


def make(name: str, *, memory: int, cpus: float, processes: int) -> Group:
    """A group with limits in bytes, processors and processes, 0 for none; without those that the kernel refuses us."""
    limits: dict[str, list[tuple[str, str]]] = {"pids": [("pids.max", str(processes))]} if processes else {}
    if memory:
        # With version 2 the whole group ends at once, as with the service: half a trainer is of no use.
        limits["memory"] = [("memory.max", str(memory)), ("memory.swap.max", "0"), ("memory.oom.group", "1")]
        limits["memory"] += [("memory.limit_in_bytes", str(memory)), ("memory.memsw.limit_in_bytes", str(memory))]
    if cpus:
        quota = str(int(cpus * PERIOD_US))
        limits["cpu"] = [("cpu.max", f"{quota} {PERIOD_US}"), ("cpu.cfs_period_us", str(PERIOD_US))]
        limits["cpu"] += [("cpu.cfs_quota_us", quota)]
    made = {}
    for controller, settings in limits.items():
        for place in _places(controller):
            folder = place / name
            with suppress(OSError):
                folder.mkdir(exist_ok=True)
                if _set(folder, settings):
                    made[controller] = str(folder)
                    break
                folder.rmdir()
    return Group(made)


def attempt_of(pid: int) -> str:
    """The attempt whose group a process is in, which it cannot leave; "" if it is in none, or has gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            for name in line.split("/"):
                if name.startswith(PREFIX):
                    return name.removeprefix(PREFIX)
    return ""


def left(word: str) -> list[Path]:
    """The groups, wherever one may be made, whose names end in a word."""
    every = {place for controller in CONTROLLERS for place in _places(controller)}
    return [found for place in every for found in place.glob(f"*{word}")]


def _set(folder: Path, settings: Sequence[tuple[str, str]]) -> bool:
    """Whether the first of them that this version knows could be set; the others are as it likes."""
    done = False
    for file, value in settings:
        with suppress(OSError):
            descriptor = os.open(folder / file, os.O_WRONLY)  # never made: a file that is missing is another version's
            try:
                os.write(descriptor, value.encode())
                done = True
            finally:
                os.close(descriptor)
    return done


def _places(controller: str) -> Iterator[Path]:
    """Where a group with this controller may be made: below ours, then beside it."""
    own = dict(_own())
    for line in MOUNTS.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(",") and controller in own:
            yield Path(place + own[controller])
            yield Path(place)
        if kind == "cgroup2" and "" in own:
            here = Path(place + own[""])
            yield from (each for each in (here, here.parent) if _offers(each, controller))


def _offers(folder: Path, controller: str) -> bool:
    """Whether a group below this one would have the controller (version 2)."""
    with suppress(OSError):
        return controller in (folder / "cgroup.subtree_control").read_text().split()
    return False


def _own() -> Iterator[tuple[str, str]]:
    """(controller, path) of the groups that we are in; "" stands for version 2."""
    with suppress(OSError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            yield from ((each, "" if path == "/" else path) for each in controllers.split(","))
