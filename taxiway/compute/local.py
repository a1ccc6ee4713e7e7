"""The engine of one machine: a replica is a child process in a session of its own, which outlives this server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from taxiway import cgroups, errors, handles, trees
from taxiway.address import Address
from taxiway.cgroups import Group
from taxiway.compute import attempts
from taxiway.compute.attempts import Attempt
from taxiway.db.database import Database
from taxiway.handles import Exit, Handle, Order

START_S = 30.0  # how long a new replica may take to say that it runs
LOOK_S = 0.005
GRACE_S = 5.0  # between SIGTERM and SIGKILL, and for what was killed to be gone
# What a replica needs of the server's environment, for uv and for finding Pythons; its user's code sees none of it.
PASSED_ON = (
    *("HOME", "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("TAXIWAY_CACHE", "TAXIWAY_PYTHONS", "TAXIWAY_WHEELHOUSE", "PYENV_ROOT"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"),
)
PASSED_ON_PREFIXES = ("UV_", "PIP_")


@dataclass(frozen=True)
class Local:
    """start, poll and stop replicas below `folder`, one folder an attempt."""

    folder: Path
    address: Address
    jail: str = "auto"  # as in Settings
    jail_hosts: str = ""
    disk: int = 0  # bytes that one job may have on the disk; 0: no limit of its own
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)  # started here, and to be reaped here

    def start(self, attempt: Attempt, token: str) -> str:
        """Start the replica of an attempt, or adopt the one that runs already; answers its handle.

        Idempotent by the attempt's id: the replica holds a lock on its folder, so a second one ends at once.
        Raises Unavailable if it does not come up.
        """
        folder = self.folder / attempt.id
        written = folder / "handle.json"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not written.exists():
            at = self.address
            order = Order(
                attempt.id,
                token,
                at.url,
                at.tls_port,
                at.bundle,
                self.jail,
                self.jail_hosts,
                authority=at.authority,
                disk=self.disk,
            )
            handles.save(folder / "order.json", order)
            child = _spawn(folder, attempt.id)
            self.children[child.pid] = child
            self._await(written, child, attempt.id)
        return written.read_text()

    def _await(self, handle: Path, child: subprocess.Popen[bytes], attempt: str) -> None:
        deadline = time.monotonic() + START_S
        while not handle.exists():
            # TAKEN: another one holds the folder, started by a server that died, and is about to write its handle.
            if child.poll() not in (None, handles.TAKEN) or time.monotonic() > deadline:
                self.stop(attempt, "")
                tail = (handle.parent / "agent.log").read_text(errors="replace")[-2000:]
                raise errors.Unavailable(f"The replica of attempt {attempt} did not come up: {tail}")
            time.sleep(LOOK_S)

    def poll(self, handle: str) -> Exit | None:
        """How it ended, once the replica is gone; None while it runs. Code LOST: it left no word."""
        self._reap()
        held = msgspec.json.decode(handle, type=Handle)
        if held.process is not None:
            return None
        return Exit.read(Path(held.folder)) or Exit(handles.LOST, "")

    def stop(self, attempt: str, handle: str) -> None:
        """End the whole family: SIGTERM to the replica, then SIGKILL to whatever bears the attempt's mark.

        Nothing of it runs when this returns. Raises Internal if something cannot be ended.
        """
        held = msgspec.json.decode(handle, type=Handle) if handle else None
        process = held.process if held else None
        if process is None:
            self._group(attempt).seal()
        if process is not None:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
                process.wait(GRACE_S)
        deadline = time.monotonic() + GRACE_S
        while left := strays(attempt):
            if time.monotonic() > deadline:
                pids = ", ".join(str(each.pid) for each in left)
                raise errors.Internal(f"Processes of attempt {attempt} could not be ended: {pids}.")
            for each in left:
                with suppress(psutil.Error):
                    each.kill()
            psutil.wait_procs(left, timeout=GRACE_S / 10)  # then look again: one may have forked meanwhile
        self._reap()

    @staticmethod
    def ports(count: int) -> list[int]:
        """Ports of this host that nobody listens on now, and so neither in a network of a job's own."""
        with ExitStack() as until:
            taken = [until.enter_context(socket.socket()) for _ in range(count)]
            for each in taken:
                each.bind(("127.0.0.1", 0))
            return [int(each.getsockname()[1]) for each in taken]

    def said(self, attempt: str) -> Iterator[handles.Said]:
        """Every line that the replica kept on its disk and that the server may not have."""
        return handles.said(self.folder / attempt)

    def clear(self, attempt: str) -> None:
        """Remove what an ended attempt left on the disk."""
        folder = self.folder / attempt
        self._group(attempt).remove()
        trees.remove(folder)

    def remains(self, attempt: str) -> dict[str, int]:
        """How much of an attempt is still here, by what was looked for: after `stop` and `clear` it is 0 of each.

        A look of its own: at every process of this machine, at its control groups, and at the disk. A namespace lasts
        as long as its processes.
        """
        return {
            "processes": len(strays(attempt)),
            "groups": len(cgroups.left(attempt)),
            "folders": int((self.folder / attempt).exists()),
        }

    def left(self) -> list[str]:
        """The attempts that have a folder here."""
        return [each for each in self._names() if not each.startswith(handles.GANG)]

    def gangs(self) -> list[str]:
        """The gangs that have one."""
        return [each for each in self._names() if each.startswith(handles.GANG)]

    def _names(self) -> list[str]:
        return sorted(each.name for each in self.folder.iterdir()) if self.folder.is_dir() else []

    def readdress(self, attempt: str) -> None:
        """Tell a replica that an earlier server started where this one listens."""
        folder = self.folder / attempt
        with suppress(FileNotFoundError, msgspec.DecodeError):
            order = Order.read(folder)
            at = self.address
            here = msgspec.structs.replace(order, url=at.url, tls_port=at.tls_port, bundle=at.bundle)
            if here != order:
                handles.save(folder / "order.json", here)

    def _group(self, attempt: str) -> Group:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.folder / attempt / "group.json").read_bytes(), type=Group)
        return Group({})

    def _reap(self) -> None:
        for pid, child in list(self.children.items()):
            if child.poll() is not None:
                self.children.pop(pid, None)


def lacking() -> str:
    """Why no replica can have a jail on this machine; "" where it can. Tried as a replica would, in a process apart."""
    command = [sys.executable, "-m", "taxiway.replica.jail"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False, env=_environ())
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (asked.stdout or asked.stderr).strip() if asked.returncode else ""


def sweep(db: Database, engine: Local) -> None:
    """At the start of a server: end what no row knows of, and tell the rest where the server is now.

    The ends of attempts that are known are for those who made them: a job's last words may lie in the folder.
    """
    with db.read() as rows:
        known = attempts.known(rows, [*engine.left(), *engine.gangs()])
    for name in (*engine.left(), *engine.gangs()):
        if name in known:
            engine.readdress(name)
        else:
            engine.stop(name, "")
            engine.clear(name)


def strays(attempt: str) -> list[psutil.Process]:
    """Every process in the attempt's groups, with its mark, or at work below its folder, and every one below these; but
    not who holds the network of its gang, whichever of that began it.

    Where there are no groups, who did away with its environment, its parents and its folder, and whose replica was
    killed, is not found. The mark of who is in another's group is not asked for: the answer waits for that process to
    have a turn, and of a thousand that fork without end each has one a minute.
    """
    running: dict[int, list[psutil.Process]] = {}  # by their parents
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["ppid", "cwd", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            running.setdefault(process.info["ppid"], []).append(process)
            held = cgroups.attempt_of(process.pid)
            if (held or _mark(process)) == attempt or attempt in Path(process.info["cwd"] or "").parts:
                found.append(process)
    for process in found:  # grows as it goes
        below = [each for each in running.get(process.pid, ()) if each not in found]
        found += [
            each for each in below if attempt.startswith(handles.GANG) or not _mark(each).startswith(handles.GANG)
        ]
    return found


def _mark(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.environ().get(handles.MARK, "")
    return ""


def _spawn(folder: Path, attempt: str) -> subprocess.Popen[bytes]:
    with (folder / "agent.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "taxiway.replica", str(folder)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # In its own folder nothing lies that could be imported in place of ours, as in the one of the server.
            env={**_environ(), handles.MARK: attempt},
        )


def _environ() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith(PASSED_ON_PREFIXES)}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path}
