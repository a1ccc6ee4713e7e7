"""What an engine and a replica leave for each other on one host: the order, the handle, the words, the exit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from taxiway import files

# In the environment of everything that a replica starts: how its strays are found. Not a name of ours (TAXIWAY_...),
# because those are kept from the setup.py of a stranger's package, which must be found as well.
MARK = "CLOUD_ML_ATTEMPT_ID"
GANG = "gang-"  # so begins the name of a folder that replicas of one job share, beside those of their attempts
WORK = "work"  # below an attempt's folder: where its code works, and may write
LOST = -1  # the exit code of a replica that went without a word; a real one is 0 to 255
OOM = "OOM"  # an Exit's reason: the limit of memory ended it
DISK = "Disk"  # the same: it was ended for what it wrote
ADDRESS = "Address"  # the same: it never began, because another program listens where it was to
TAKEN = 75  # the exit code of a second replica of one folder: it never was


class Order(msgspec.Struct, frozen=True):
    """What a replica is started with: `<folder>/order.json`, readable by its owner only.

    A server that comes back on other ports writes it anew; the replica reads it again when nobody answers.
    """

    attempt: str
    token: str
    url: str  # the server's plain port
    tls_port: int
    bundle: str  # the file of CAs that the user's code is to trust
    jail: str = "auto"  # auto: where there can be one; require; off
    jail_hosts: str = ""  # where a jail's code may go beside this server, separated by commas
    authority: str = ""  # the file of this server's own CA, for code that can reach nobody else
    disk: int = 0  # bytes that its code may have on the disk; 0: what there is, but for the reserve

    @property
    def allowed(self) -> list[str]:
        """`jail_hosts`, one by one."""
        return [each.strip().lower() for each in self.jail_hosts.split(",") if each.strip()]

    @classmethod
    def read(cls, folder: Path) -> Order:
        return msgspec.json.decode((folder / "order.json").read_bytes(), type=cls)


class Handle(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one with its number, and the folder it works in."""

    pid: int
    started: float  # in the kernel's own clock, which no correction of the time moves
    boot: str
    folder: str

    @classmethod
    def mine(cls, folder: Path) -> Handle:
        return cls(os.getpid(), start_time(os.getpid()), boot_id(), str(folder))

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        if self.boot != boot_id():
            return None
        try:
            process = psutil.Process(self.pid)
            if start_time(self.pid) != self.started or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except (psutil.NoSuchProcess, OSError):
            return None
        return process


class Exit(msgspec.Struct, frozen=True):
    """How the user's code ended: `<folder>/exit.json`, on the disk before it is reported.

    `code` is what a shell would show: 128 + the signal for a process that was killed. `reason` is a word for what the
    code does not tell, such as OOM; "": the code tells all.
    """

    code: int
    error: str
    reason: str = ""

    @classmethod
    def read(cls, folder: Path) -> Exit | None:
        try:
            return msgspec.json.decode((folder / "exit.json").read_bytes(), type=cls)
        except (FileNotFoundError, msgspec.DecodeError):
            return None


class Said(msgspec.Struct, frozen=True):
    """One line of output: `<folder>/said.jsonl` keeps them until the server has them."""

    seq: int
    time: float  # seconds since 1970
    severity: str
    message: str


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica's family of processes used within a span of time."""

    time: float  # its end, seconds since 1970
    span: float  # seconds
    cpu: float  # seconds, of all cores together
    memory: int  # bytes: resident, what several share counted once
    processes: int
    read: int  # bytes, of whatever they read
    written: int
    gpu: float | None = None  # how many were busy in the mean, of all GPUs of the host; null: it has none
    gpu_memory: int | None = None  # bytes


def said(folder: Path) -> Iterator[Said]:
    """The lines that a replica left on the disk; a half-written last one is left out."""
    try:
        file = (folder / "said.jsonl").open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file, suppress(msgspec.DecodeError):
        for line in file:
            yield msgspec.json.decode(line, type=Said)


def save(path: Path, value: msgspec.Struct) -> None:
    """Write a file that only its owner may read, whole and on the disk before it has its name."""
    files.replace(path, msgspec.json.encode(value))


def start_time(pid: int) -> float:
    """When a process started. Linux: clock ticks since boot, from /proc (proc_pid_stat(5), field 22).

    Raises psutil.NoSuchProcess or OSError if there is none.
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except FileNotFoundError:
        return float(psutil.Process(pid).create_time())


def boot_id() -> str:
    """A word that changes with every boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))
