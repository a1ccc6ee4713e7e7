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
    index: int
    model: str  # "Tesla T4", "NVIDIA A100-SXM4-40GB"


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
    return f"{cpus:g} {'CPU' if cpus == 1 else 'CPUs'} and {memory / GIB:.4g} GiB"


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
        ask = [program, "--query-gpu=index,name", "--format=csv,noheader"]
        try:
            told = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            told = ""  # the program without a driver says so by its exit code
        found = re.findall(r"^(\d+), *(.+?) *$", told, re.MULTILINE)
        if found:
            return tuple(Gpu(int(index), model) for index, model in found)
    told_by_driver = sorted(driver.glob("*/information"))
    models = [re.search(r"^Model:\s*(.+?)\s*$", _text(path), re.MULTILINE) for path in told_by_driver]
    return tuple(Gpu(index, match[1]) for index, match in enumerate(models) if match)


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
