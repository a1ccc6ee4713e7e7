"""Where the user's code runs: in a jail, or beside us where there can be none; within limits that the host gives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from taxiway import cgroups, handles, plan
from taxiway.cgroups import Group
from taxiway.plan import Work
from taxiway.replica import family, jail, relay
from taxiway.replica.jail import Jail, Seen
from taxiway.replica.wire import Wire

MIB = 1024 * 1024
PROCESSES = min(8192, 1024 * (os.cpu_count() or 1))  # and threads: what no trainer needs, and a machine survives
ASIDE = 512 * MIB  # of the machine's memory, which is not for a job
FOLDERS = {handles.WORK: jail.WORK, "home": jail.HOME, "tmp": "/tmp"}  # below the attempt's own -> place in the jail
FOREIGN_SIGNALS = range(129, 129 + 64)  # how bubblewrap ends when the code was killed: 128 + the signal

Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Ground:
    """What a replica's code stands on. `jail` is None beside us."""

    folder: Path
    variables: Mapping[str, str]
    group: Group
    memory: int  # bytes it may have
    jail: Jail | None
    read: Sequence[Path]
    bundle: Path
    devices: Sequence[str]

    def start(self, command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start it in its own folder, with its words in two pipes."""
        passed: Sequence[int] = ()
        if self.jail is None and self.group.procs:
            command = ["sh", "-c", jail.JOIN, "sh", " ".join(self.group.procs), "", *command]
        if self.jail is not None:
            own = {place: self.folder / name for name, place in FOLDERS.items()}
            seen = Seen(self.read, own, self.bundle, self.devices)
            data = 0 if "memory" in self.group.folders else self.memory
            command = self.jail.enter(command, seen, self.folder / "etc", self.group.procs, data)
            passed = self.jail.passed
        if "pids" not in self.group.folders and shutil.which("prlimit"):
            # It counts all of this user where there is no jail, or the kernel is older than 5.14. Root it stops not.
            command = ["prlimit", f"--nproc={PROCESSES + _running()}", *command]
        return subprocess.Popen(
            command,
            cwd=self.folder / handles.WORK,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=passed,
        )

    def end(self) -> None:
        """Kill the code, and whatever it started."""
        self.group.seal()
        family.end()

    def terminate(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM to the code itself, which has a session of its own in a jail."""
        leader = process.pid
        if self.jail is not None:
            with suppress(psutil.Error):
                leader = next((each.pid for each in psutil.Process(leader).children()), leader)
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGTERM)

    def returned(self, code: int) -> int:
        """How the code itself ended, as Popen says it: below 0 by a signal."""
        return 128 - code if self.jail is not None and code in FOREIGN_SIGNALS else code

    @property
    def starved(self) -> str:
        """What to tell of a code that the kernel killed for its memory; "" for any other."""
        if not self.group.killed():
            return ""
        return f" It used more memory than the {self.memory // MIB} MiB that it may have: take a larger machine type."


@contextmanager
def laid(work: Work, identity: str, wire: Wire, *, read: Sequence[Path], python: Path, say: Say) -> Iterator[Ground]:
    """Everything that the code stands on, until it has ended. `read` are the folders of its environment.

    Raises FailedPrecondition where jobs must run in a jail and there can be none.
    """
    folder = wire.folder
    for name in FOLDERS:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    memory = memory_of(work)
    common = {
        "PATH": f"{python.parent}:{family.SYSTEM}",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        handles.MARK: wire.order.attempt,
    }
    with ExitStack() as stack:
        gang = folder.parent / work.gang if work.gang else None
        held = stack.enter_context(
            jail.wanted(wire.order.jail, lambda why: say(why, "WARNING"), gang=gang, place=work.place)
        )
        if held is None:
            variables = stack.enter_context(relay.beside(work, identity, wire))
            own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        else:
            variables = stack.enter_context(relay.inside(held, work, identity, wire))
            own = {"HOME": jail.HOME, "TMPDIR": "/tmp", "USER": jail.NAME}
        if work.trial:
            own["CLOUD_ML_HP_METRIC_FILE"] = f"{folder if held is None else ''}{plan.METRIC_FILE}"
        name = f"{cgroups.PREFIX}{wire.order.attempt}"
        group = cgroups.make(name, memory=memory, cpus=work.cpus, processes=PROCESSES)
        stack.callback(group.remove)
        handles.save(folder / "group.json", group)  # for whoever comes after us, if we are killed
        yield Ground(
            folder,
            {**common, **own, **variables},
            group,
            memory,
            held,
            [*read, family.RUNNERS_FOLDER],
            _trusted(wire.order),
            work.devices,
        )


def memory_of(work: Work) -> int:
    """Bytes that a work's code may have."""
    return work.memory or max(psutil.virtual_memory().total - ASIDE, ASIDE)


def _running() -> int:
    """The processes and threads of this machine, as far as the kernel tells (proc_loadavg(5))."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return 0


def _trusted(order: handles.Order) -> Path:
    """Whom the code in a jail is to trust: only this server, unless it may reach others.

    TensorFlow reads them all anew for each of its requests, which takes longer than the request.
    """
    return Path(order.authority if order.authority and not order.jail_hosts else order.bundle)
