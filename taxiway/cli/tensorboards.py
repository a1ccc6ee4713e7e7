"""taxiway tensorboard: TensorBoards that outlive the shell, on a local folder or on gs://, each with a URL and a pid.

One is a process in a session of its own, with a record and a log in `<home>/tensorboards`. Where it listens is asked of
the process itself, so that no port is promised before it is held.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import psutil
import typer
from rich.console import Console
from rich.text import Text

from taxiway import errors, handles, names
from taxiway.address import Address
from taxiway.cli import client, host, objects, options, printing
from taxiway.cli.printing import say
from taxiway.environments import folders, runtimes
from taxiway.handles import Handle

Logdir = Annotated[str, typer.Argument(help="Where the event files are, at any depth: DIR or gs://BUCKET[/PATH]")]
Pids = Annotated[list[int] | None, typer.Argument(metavar="PID", help="As `taxiway tensorboard list` shows them.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Its port (default: 6006, or the next free one).")]
Version = Annotated[str | None, typer.Option(help="The runtime whose TensorBoard it is (default: the default one).")]

HERE = "127.0.0.1"
START_S = 120.0  # TensorFlow is loaded in three seconds from a warm disk; a cold one takes its time
LOOK_S = 0.1
GRACE_S = 5.0
TOLD = 20  # lines of last words
# What TensorFlow says of itself at every start.
CHATTER = re.compile(r"WARNING: All log messages before absl|I\d{4} |To enable the following instructions:")

app = options.group("TensorBoards, which show in a browser what a training writes.")


class Board(msgspec.Struct, frozen=True):
    """A TensorBoard that was started: `<home>/tensorboards/<id>.json`, beside its log."""

    id: str
    handle: Handle
    logdir: str
    proxy_port: int  # by which it reads gs://; 0 for a local folder
    started: str  # RFC 3339

    @property
    def pid(self) -> int:
        return self.handle.pid

    @property
    def record(self) -> Path:
        return Path(self.handle.folder, f"{self.id}.json")

    @property
    def log(self) -> Path:
        return self.record.with_suffix(".log")

    @property
    def url(self) -> str:
        """Where it listens; "" if it does not yet, or has ended."""
        process = self.handle.process
        with suppress(psutil.Error):
            for each in process.net_connections("tcp4") if process else ():
                if each.status == psutil.CONN_LISTEN and each.laddr.ip == HERE:
                    return f"http://{HERE}:{each.laddr.port}/"
        return ""


@app.command(
    epilog=options.example("taxiway tensorboard start tried", "taxiway tensorboard start gs://my-rides/taxifare_1")
)
def start(logdir: Logdir, port: Port = None, home: host.Home = None, runtime_version: Version = None) -> None:
    """Start a TensorBoard and print its URL; it runs until it is stopped, whatever becomes of this shell.

    It reads gs:// with the owner's rights, and asks nobody who they are: whoever has an account on this machine may
    look at it on 127.0.0.1. Started again for the same LOGDIR, the one that runs is shown.
    """
    place = host.home_of(home)
    choice = runtimes.resolve(runtime_version, None)
    host.say_instead(choice)
    here = host.running(place) if objects.is_remote(logdir) else None
    logdir = _remote(logdir, here) if here else _local(logdir)
    environ = {**os.environ, **(host.variables(here, place) | host.interception(here) if here else {})}
    # Isolated: neither the shell's PYTHONPATH nor the folder it stands in has a say in what TensorBoard imports.
    command = [str(host.interpreter_of(choice)), "-I", "-m", "tensorboard.main", "--logdir", logdir, "--host", HERE]
    # The fast loader reads no gs://. Without a port it tries 6006 and those after it.
    command += ["--load_fast=false", *(["--port", str(port)] if port else [])]
    folder, proxy_port = _folder(place), here.proxy_port if here else 0
    with _turn(folder):
        shown = _shown(folder, logdir, proxy_port)
        board = shown or _begin(folder, command, environ, logdir, proxy_port)
    url = _answering(board, begun=shown is None)
    if port and url != f"http://{HERE}:{port}/":
        raise errors.FailedPrecondition(
            f"{logdir} is shown at {url} already. To move it, stop that one first: {_spoken(place, 'stop', board.pid)}"
        )
    say(f"TensorBoard {board.pid} shows {logdir}{f' since {printing.date(shown.started)}' if shown else ''}.")
    typer.echo(url)
    say(f"To stop it: {_spoken(place, 'stop', board.pid)}")


@app.command("list", epilog=options.example("taxiway tensorboard list", "taxiway tensorboard list --format json"))
def list_boards(home: host.Home = None, format: options.Format = None) -> None:
    """The TensorBoards of this home that run."""
    rows = [
        {"pid": board.pid, "logdir": board.logdir, "url": board.url, "started": board.started}
        for board in _running(_folder(host.home_of(home)))
    ]
    columns: list[printing.Column] = [
        ("PID", lambda row: row["pid"]),
        ("LOGDIR", lambda row: row["logdir"]),
        ("URL", lambda row: row["url"]),
        ("STARTED", lambda row: printing.date(row["started"])),
    ]
    printing.show_list(rows, columns, format)


@app.command(epilog=options.example("taxiway tensorboard stop 4711", "taxiway tensorboard stop --all"))
def stop(
    pids: Pids = None,
    every: Annotated[bool, typer.Option("--all", help="All that `taxiway tensorboard list` shows.")] = False,
    home: host.Home = None,
) -> None:
    """Stop TensorBoards of this home, and nothing else."""
    if bool(pids) == every:
        raise typer.BadParameter("give the PIDs, or --all")
    place = host.home_of(home)
    running = {board.pid: board for board in _running(_folder(place))}
    if strangers := [str(pid) for pid in pids or () if pid not in running]:
        raise errors.NotFound(
            f"No TensorBoard of {place} has the pid {', '.join(strangers)}; nothing was stopped. "
            f"See which there are: {_spoken(place, 'list')}"
        )
    if not pids and not running:
        say("No TensorBoard runs.")
    for pid in dict.fromkeys(pids or running):
        _end(running[pid])
        say(f"Stopped TensorBoard {pid} ({running[pid].logdir}).")


def _local(logdir: str) -> str:
    path = Path(logdir).expanduser()
    path = path.resolve() if ".." in path.parts else path.absolute()
    if not path.exists():
        say(f"{path} does not exist yet. It is shown as soon as something is written there.")
    elif not path.is_dir():
        raise errors.InvalidArgument(f"{path} is not a folder. Give the folder that holds the event files.")
    return str(path)


def _remote(logdir: str, here: Address) -> str:
    """Raises Refused, which names the bucket, if there is none or the owner may not list it."""
    bucket, path = names.gs(logdir.rstrip("/"), "LOGDIR")
    below = f"{path}/" if path else ""
    server = client.Client(here.url, Path(here.access_token), here.project, "")
    if not server.get(f"{objects.path_of(bucket)}/o", prefix=below, maxResults=1).get("items"):
        say(f"{names.join_gs(bucket, below)} holds nothing yet. It is shown as soon as something is written there.")
    return names.join_gs(bucket, path)


def _folder(home: Path) -> Path:
    return home / "tensorboards"


def _spoken(home: Path, *words: object) -> str:
    """A command of this group as this person would type it."""
    elsewhere = () if home == host.home_of(None) else ("--home", home)
    return shlex.join(map(str, ("taxiway", "tensorboard", *words, *elsewhere)))


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One start of a home at a time looks for what runs and adds to it."""
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(folder: Path) -> list[Board]:
    """Those that still run, in the order of their start; what the others left is removed."""
    running = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError, msgspec.DecodeError):
            board = msgspec.json.decode(path.read_bytes(), type=Board)
            if board.handle.process:
                running.append(board)
            else:
                say(f"TensorBoard {board.pid} ({board.logdir}) runs no more.")
                _forget(board)
    return sorted(running, key=lambda board: board.started)


def _shown(folder: Path, logdir: str, proxy_port: int) -> Board | None:
    """The one that shows a logdir already, if it can still read it."""
    for board in _running(folder):
        if board.logdir == logdir:
            if board.proxy_port == proxy_port:
                return board
            say(f"TensorBoard {board.pid} reads {logdir} by a port that the server has left; another one replaces it.")
            _end(board)
    return None


def _begin(folder: Path, command: list[str], environ: dict[str, str], logdir: str, proxy_port: int) -> Board:
    new = secrets.token_hex(4)
    log = os.open(folder / f"{new}.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",  # it holds no folder that somebody may want to remove or unmount
            env=environ,
            start_new_session=True,
            pass_fds=folders.held(),
        )
    finally:
        os.close(log)
    try:
        handle = Handle(child.pid, handles.start_time(child.pid), handles.boot_id(), str(folder))
        started = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        board = Board(new, handle, logdir, proxy_port, started)
        handles.save(board.record, board)
    except BaseException:
        child.kill()
        child.wait()
        raise
    return board


def _answering(board: Board, begun: bool) -> str:
    """Its URL, once it answers there. One that was begun here and is not waited for to the end does not stay."""
    try:
        if _answers(url := board.url):
            return url
        with _patience(f"Waiting for TensorBoard {board.pid} to answer ..."):
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline:
                time.sleep(LOOK_S)
                if _answers(url := board.url):
                    return url
                if not board.handle.process:
                    raise errors.Unavailable(f"TensorBoard ended before it answered.{_last_words(board)}")
        raise errors.DeadlineExceeded(f"TensorBoard did not answer within {START_S:.0f} s.{_last_words(board)}")
    except BaseException:
        if begun:
            _end(board)
        raise


def _answers(url: str) -> bool:
    if not url:
        return False
    try:
        return httpx.get(f"{url}data/environment", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def _patience(text: str) -> Iterator[None]:
    """Shows that something is waited for: a line that moves on a terminal, else one line."""
    if printing.on_terminal():
        with Console(stderr=True).status(Text(text)):
            yield
    else:
        say(text)
        yield


def _last_words(board: Board) -> str:
    """The end of its log, without what TensorFlow says at every start; "" if there is none."""
    with suppress(FileNotFoundError):
        lines = board.log.read_text(errors="replace").splitlines()
        said = [line for line in lines if not CHATTER.match(line)] or lines
        if said:
            return "\n".join([" Its last words:", *said[-TOLD:]])
    return ""


def _end(board: Board) -> None:
    """End it and all that runs in its session. Raises Internal if something cannot be ended."""
    everybody = psutil.process_iter() if board.handle.process else ()
    family = [each for each in everybody if _session(each.pid) == board.pid]
    for each in family:
        with suppress(psutil.Error):
            each.terminate()
    _, left = psutil.wait_procs(family, GRACE_S)
    for each in left:
        with suppress(psutil.Error):
            each.kill()
    _, left = psutil.wait_procs(left, GRACE_S)
    if left:
        pids = ", ".join(str(each.pid) for each in left)
        raise errors.Internal(f"TensorBoard {board.pid} could not be ended: {pids} still runs.")
    _forget(board)


def _session(pid: int) -> int:
    with suppress(OSError):
        return os.getsid(pid)
    return 0


def _forget(board: Board) -> None:
    board.record.unlink(missing_ok=True)
    board.log.unlink(missing_ok=True)
