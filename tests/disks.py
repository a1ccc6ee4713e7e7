"""Small disks that a test may fill or lock: chmod does not stop root, who runs many test suites."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """A file system of its own, mounted on `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    if os.getuid() != 0 or _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        pytest.skip("a small disk can only be mounted by root")
    try:
        yield folder
    finally:
        _run("umount", "-l", folder)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full; removing it frees the space again."""
    path = folder / "fill"
    assert _run("dd", "if=/dev/zero", f"of={path}", "bs=4096") != 0
    return path


def remount(folder: Path, how: str) -> None:
    """`how`: ro or rw."""
    assert _run("mount", "-o", f"remount,{how}", folder) == 0


def _run(*command: str | Path) -> int:
    return subprocess.run(command, capture_output=True).returncode
