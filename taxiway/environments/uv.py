"""Running uv: with nothing of ours in its environment, behind a fence where it runs a stranger's code; its last words
are kept."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from uv import find_uv_bin

from taxiway import errors
from taxiway.environments import folders, progress, pythons
from taxiway.environments.fences import Entered, Within
from taxiway.environments.progress import Progress, Say

# What uv says when it heard nothing, or nothing whole, from an index; a package that is not there is another matter.
UNHEARD = re.compile(
    r"Failed to (fetch|download).*(error sending request|error decoding response|body error|HTTP status server error)",
    re.DOTALL,
)
STAGE = re.compile(r"(?=Installed )")
OURS = {"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}
OWN = re.compile(r"^error: ", re.MULTILINE)  # what was said before may be the words of a package's setup.py
FULL = re.compile(r"(No space left on device|Disk quota exceeded|Read-only file system)")


class Failed(Exception):
    """uv did not do it; the message is what it said last."""


class Unreachable(Failed):
    """It did not because of the network."""


def venv(folder: Path, base: Path, prompt: str, turn: int) -> None:
    run(["venv", "--allow-existing", "--prompt", prompt, "--python", str(base), str(folder)], turn, None)


def install(interpreter: Path, arguments: list[str], turn: int, say: Say | None) -> None:
    """`uv pip ARGUMENTS` into an environment, whose modules are compiled then. Raises Failed."""
    # uv's own compiler asks of a Python what 3.7 was the first to have.
    alone = any((interpreter.parent.parent / "lib").glob("python3.6"))
    how = [] if alone else ["--compile-bytecode"]
    run(["pip", *arguments, *how, "--python", str(interpreter)], turn, say)
    if alone:
        compiled(interpreter, interpreter.parent.parent / "lib/python3.6/site-packages", turn)


def compiled(interpreter: Path, site: Path, turn: int) -> None:
    """Compile what a site-packages folder holds, without running any of it: not its .pth files either (-S)."""
    command = [str(interpreter), "-I", "-S", "-m", "compileall", "-q", "-j", "0", str(site)]
    silent = subprocess.DEVNULL  # a module that it cannot read is told by whoever imports it
    subprocess.run(command, stdout=silent, stderr=silent, env=_environ(), pass_fds=[turn], check=False)


def run(
    arguments: list[str],
    turn: int,
    say: Say | None,
    read: Callable[[str], Progress | None] | None = None,
    *,
    seconds: float | None = None,
    within: Within | None = None,
) -> None:
    """Run uv on a terminal of its own: only there does it tell how far its downloads are. Raises Failed.

    After `seconds` it is ended with all that it started, and has failed. `read` finds the news in a piece of its
    output, where uv runs a program that draws otherwise than uv.
    """
    house = _wheelhouse() if arguments[0] in ("pip", "build") else []
    if house and not Path(house[-1]).is_dir():
        raise errors.FailedPrecondition(f"TAXIWAY_WHEELHOUSE names {house[-1]}, which is not a folder here.")
    arguments = [*arguments, *house]
    with _entered([find_uv_bin(), *arguments], within) as entered:
        text, code = _run(entered, turn, say, read, seconds)
    if code is None:
        raise Failed(f"It did not end within {seconds:g} seconds.\n{_last_words(text)}".rstrip())
    if code:
        words = _last_words(text)
        own = OWN.split(words)[-1].partition("[std")[0]  # nor what follows [stdout] or [stderr]
        if full := FULL.search(own):
            raise folders.full(full.group())
        raise (Unreachable if UNHEARD.search(own) else Failed)(words)


def _wheelhouse() -> list[str]:
    """The words that make TAXIWAY_WHEELHOUSE the one place where packages come from, if it is set."""
    wheelhouse = os.environ.get("TAXIWAY_WHEELHOUSE")
    return ["--no-index", "--find-links", str(Path(wheelhouse).expanduser().absolute())] if wheelhouse else []


def config() -> Path | None:
    """The file of settings that uv reads on this machine, if there is one."""
    folders_of_it = [Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"), Path("/etc")]
    told = [os.environ.get("UV_CONFIG_FILE"), *(folder / "uv/uv.toml" for folder in folders_of_it)]
    return next((Path(each) for each in told if each and Path(each).is_file()), None)


def _entered(command: list[str], within: Within | None) -> AbstractContextManager[Entered]:
    if within is None:
        return nullcontext(Entered(command, _environ()))
    read = [Path(command[0]), *within.read, *map(Path, _wheelhouse()[2:])]
    # A cache of its own: what a stranger's code writes there is installed for nobody else.
    variables = {**OURS, **pythons.PLAIN, "UV_CACHE_DIR": str(within.write / "uv")}
    if within.hosts and (settings := config()):
        read.append(settings)
        variables["UV_CONFIG_FILE"] = str(settings)
    if within.hosts:
        variables = {**{name: value for name, value in os.environ.items() if name.startswith("UV_")}, **variables}
    return within.fence.enter(command, variables, read=read, write=within.write, hosts=within.hosts)


def _run(
    entered: Entered,
    turn: int,
    say: Say | None,
    read: Callable[[str], Progress | None] | None,
    seconds: float | None,
) -> tuple[str, int | None]:
    """What it said on its terminal, and its exit code; None: it did not end in time."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 400, 0, 0))
    with io.FileIO(screen, "rb") as output:
        try:
            process = subprocess.Popen(
                list(entered.command),
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                cwd=folders.cache(),  # not the caller's folder: its pyproject.toml could tell uv things
                env=dict(entered.variables),
                pass_fds=[turn, *entered.passed],
                start_new_session=True,
            )
        finally:
            os.close(terminal)
        late = threading.Event()
        limit = threading.Timer(seconds or threading.TIMEOUT_MAX, _end, [process, late])
        limit.daemon = True
        limit.start()
        try:
            sizes: dict[str, tuple[float, float]] = {}
            text = "".join(_watch(output, say, read or (lambda piece: progress.read(piece, sizes))))
            code = process.wait()
        except BaseException:
            _end(process)
            process.wait()
            raise
        finally:
            limit.cancel()
    return text, None if late.is_set() else code


def _end(process: subprocess.Popen[bytes], late: threading.Event | None = None) -> None:
    """End uv and what it started: a package's own code may run on, and would keep the terminal."""
    if late is not None:
        late.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ask(arguments: list[str], text: str, *, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """uv's answer to a question of `uv pip`, with text on its input; None if it did not come in time."""
    command = [find_uv_bin(), *arguments, *_wheelhouse(), "--color", "never"]
    folders.cache().mkdir(parents=True, exist_ok=True)
    if seconds <= 0:
        return None
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=folders.cache(),
            env={**_environ(), "UV_HTTP_RETRIES": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _watch(output: io.FileIO, say: Say | None, read: Callable[[str], Progress | None]) -> Iterator[str]:
    """What the terminal shows, piece by piece, while `say` hears of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            piece = output.read(65536)
        except OSError:  # EIO: the last process that held the terminal has ended
            return
        if not piece:
            return
        text = decoder.decode(piece)
        for part in STAGE.split(text):  # a slow reader gets the news of two stages at once
            if say and (news := read(part)):
                say(news)
        yield text


def _last_words(text: str, lines: int = 30) -> str:
    """The end of what a terminal shows after all that was drawn and drawn over, without its control codes."""
    shown = (re.split(r"\x1b\[2K|\r", line.rstrip("\r"))[-1] for line in text.split("\n"))
    plain = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).rstrip() for line in shown]
    said = [line for line in plain if line and not line.startswith("Using Python ")]
    return "\n".join(said[-lines:])


def _environ() -> dict[str, str]:
    return {**pythons.environ(), **OURS, "UV_CACHE_DIR": str(folders.cache() / "uv")}


def without(failure: Failed, folder: Path) -> str:
    """uv's words, with the names of files in place of where we keep them."""
    mine = rf"(file://)?{re.escape(str(folder))}/(packages/\d+/)?"
    return re.sub(rf"{mine}|[^\s\"]*/site-packages/", "", str(failure))
