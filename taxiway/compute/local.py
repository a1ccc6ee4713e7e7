"""The engine of one machine: a replica is a child process in a session of its own, which outlives this server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from taxiway import errors, handles
from taxiway.address import Address
from taxiway.compute import attempts
from taxiway.compute.attempts import Attempt
from taxiway.db.database import Database
from taxiway.handles import Exit, Handle, Order

START_S = 30.0  # how long a new replica may take to say that it runs
GRACE_S = 5.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Local:
    """start, poll and stop replicas below `folder`, one folder an attempt."""

    folder: Path
    address: Address

    def start(self, attempt: Attempt, token: str) -> str:
        """Start the replica of an attempt, or adopt the one that runs already; answers its handle.

        Idempotent by the attempt's id: the replica holds a lock on its folder, so a second one ends at once.
        Raises Unavailable if it does not come up.
        """
        folder = self.folder / attempt.id
        handle = folder / "handle.json"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not handle.exists():
            at = self.address
            handles.save(folder / "order.json", Order(attempt.id, token, at.url, at.tls_port, at.bundle))
            child = _spawn(folder, attempt.id)
            deadline = time.monotonic() + START_S
            while not handle.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    tail = (folder / "agent.log").read_text(errors="replace")[-2000:]
                    raise errors.Unavailable(f"The replica of attempt {attempt.id} did not come up: {tail}")
                time.sleep(0.01)
        return handle.read_text()

    def poll(self, handle: str) -> Exit | None:
        """How it ended, once the replica is gone; None while it runs. Code LOST: it left no word."""
        held = msgspec.json.decode(handle, type=Handle)
        with suppress(ChildProcessError):
            os.waitpid(held.pid, os.WNOHANG)  # ours, if this server started it: do not leave a zombie
        if held.process is not None:
            return None
        return Exit.read(Path(held.folder)) or Exit(handles.LOST, "")

    def stop(self, attempt: str, handle: str) -> None:
        """End the whole family: SIGTERM to the replica, then SIGKILL to whatever bears the attempt's mark."""
        held = msgspec.json.decode(handle, type=Handle) if handle else None
        process = held.process if held else None
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
                process.wait(GRACE_S)
        for stray in strays(attempt):
            with suppress(psutil.Error):
                stray.kill()
                stray.wait(GRACE_S)
        if handle:
            self.poll(handle)

    def said(self, attempt: str) -> list[handles.Said]:
        """Every line that the replica kept on its disk, shipped or not."""
        return handles.said(self.folder / attempt)

    def clear(self, attempt: str) -> None:
        """Remove what an ended attempt left on the disk."""
        shutil.rmtree(self.folder / attempt, ignore_errors=True)

    def left(self) -> list[str]:
        """The attempts that have a folder here."""
        return sorted(each.name for each in self.folder.iterdir()) if self.folder.is_dir() else []


def sweep(db: Database, engine: Local) -> None:
    """End what is left of attempts that are over: a server that died could not."""
    for attempt in engine.left():
        try:
            held = attempts.get(db, attempt)
        except errors.NotFound:
            held = None
        if held is None or held.state == "FENCED":
            engine.stop(attempt, held.handle if held else "")
            engine.clear(attempt)


def strays(attempt: str) -> list[psutil.Process]:
    """Every process that bears the attempt's mark, whatever it did to get away."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(handles.MARK) == attempt:
                found.append(process)
    return found


def _spawn(folder: Path, attempt: str) -> subprocess.Popen[bytes]:
    with (folder / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "taxiway.replica", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, handles.MARK: attempt},
        )
