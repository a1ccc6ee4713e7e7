"""The host that jobs run on: its CPUs, its memory, its GPUs."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
DRIVER = Path("/proc/driver/nvidia/gpus")
ASK_S = 10.0
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Gpu:
    """`index` is nvidia-smi's, by the bus; the kernel's own number, that of the device file, may be another."""

    index: int
    model: str  # "Tesla T4", "NVIDIA A100-SXM4-40GB"
    uuid: str = ""
    minor: int | None = None

    @property
    def word(self) -> str:
        """For CUDA_VISIBLE_DEVICES: CUDA counts anew where it does not see all of a host's, and knows a UUID always."""
        return self.uuid or str(self.index)

    @property
    def device(self) -> str:
        """The file below /dev."""
        return f"nvidia{self.index if self.minor is None else self.minor}"


@dataclass(frozen=True, slots=True)
class Host:
    """What there is for jobs; `memory` is bytes."""

    cpus: float
    memory: int
    gpus: tuple[Gpu, ...] = ()

    def __str__(self) -> str:
        return size(self.cpus, self.memory)


def size(cpus: float, memory: int) -> str:
    """For a person: 2 CPUs and 7.8 GiB."""
    return f"{cpus:g} {'CPU' if cpus == 1 else 'CPUs'} and {gib(memory)}"


def gib(memory: float) -> str:
    """For a person: 7.8 GiB."""
    return f"{memory / GIB:.4g} GiB"


def this() -> Host:
    """This machine, or the part of it that the container of this process may use."""
    quota, limit = limits(CGROUP)
    cpus = min(float(len(os.sched_getaffinity(0))), quota)
    return Host(cpus, int(min(psutil.virtual_memory().total, limit)), gpus())


def limits(cgroup: Path) -> tuple[float, float]:
    """CPUs and bytes of memory that a cgroup (of version 2, else 1) leaves to us; infinite if it says nothing."""
    quota, period = [*_words(cgroup / "cpu.max"), "", ""][:2]
    if not quota:
        quota, period = ("".join(_words(cgroup / "cpu" / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    memory = _words(cgroup / "memory.max") or _words(cgroup / "memory" / "memory.limit_in_bytes")
    cpus = int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf
    return cpus, float(memory[0]) if memory and memory[0].isdigit() else math.inf


def gpus(driver: Path = DRIVER) -> tuple[Gpu, ...]:
    """NVIDIA's GPUs as nvidia-smi counts them, else as their driver tells; none without either."""
    if program := shutil.which("nvidia-smi"):
        ask = [program, "--query-gpu=index,name,uuid,pci.bus_id", "--format=csv,noheader"]
        try:
            told = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            told = ""  # the program without a driver says so by its exit code
        found = re.findall(r"^(\d+), *(.+?), *(GPU-\S+), *(\S+) *$", told, re.MULTILINE)
        if found:
            minors = {path.parent.name.lower(): _minor(_text(path)) for path in driver.glob("*/information")}
            return tuple(
                # nvidia-smi writes a bus as 00000000:01:00.0, and the driver as 0000:01:00.0
                Gpu(int(index), model, uuid, minors.get(bus[-len("0000:01:00.0") :].lower()))
                for index, model, uuid, bus in found
            )
    told_by_driver = [_text(path) for path in sorted(driver.glob("*/information"))]
    models = [_told("Model", text) for text in told_by_driver]
    return tuple(
        Gpu(index, model, _uuid(text), _minor(text))
        for index, (model, text) in enumerate(zip(models, told_by_driver, strict=True))
        if model
    )


def _minor(information: str) -> int | None:
    told = _told("Device Minor", information)
    return int(told) if told.isdigit() else None


def _uuid(information: str) -> str:
    """Of a GPU that nobody has used yet the driver may know question marks alone."""
    told = _told("GPU UUID", information)
    return told if re.fullmatch("GPU-[0-9a-f-]+", told) else ""


def _told(name: str, information: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*?)[ \t]*$", information, re.MULTILINE)
    return match[1] if match else ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
