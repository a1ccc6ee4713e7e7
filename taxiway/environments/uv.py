"""Running uv: with nothing of ours in its environment; its last words are kept."""

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
from pathlib import Path

from uv import find_uv_bin

from taxiway import errors
from taxiway.environments import folders, progress, pythons
from taxiway.environments.progress import Progress, Say

# What uv says when it heard nothing, or nothing whole, from an index; a package that is not there is another matter.
UNHEARD = re.compile(
    r"Failed to (fetch|download).*(error sending request|error decoding response|body error|HTTP status server error)",
    re.DOTALL,
)
FULL = re.compile(r"(No space left on device|Disk quota exceeded|Read-only file system)")


class Failed(Exception):
    """uv did not do it; the message is what it said last."""


class Unreachable(Failed):
    """It did not because of the network."""


def venv(folder: Path, base: Path, prompt: str, turn: int) -> None:
    run(["venv", "--allow-existing", "--prompt", prompt, "--python", str(base), str(folder)], turn, None)


def install(
    interpreter: Path, arguments: list[str], turn: int, say: Say | None, *, seconds: float | None = None
) -> None:
    """`uv pip ARGUMENTS` into an environment whose modules are compiled then. Raises Failed, also after `seconds`."""
    # uv's own compiler asks of a Python what 3.7 was the first to have.
    alone = any((interpreter.parent.parent / "lib").glob("python3.6"))
    how = [] if alone else ["--compile-bytecode"]
    run(["pip", *arguments, *how, "--python", str(interpreter)], turn, say, seconds=seconds)
    if alone:
        compile_all = [str(interpreter), "-I", "-m", "compileall", "-q", "-j", "0"]
        site = str(interpreter.parent.parent / "lib/python3.6/site-packages")
        silent = subprocess.DEVNULL  # a module that it cannot read is told by whoever imports it
        subprocess.run([*compile_all, site], stdout=silent, stderr=silent, env=_environ(), pass_fds=[turn], check=False)


def run(
    arguments: list[str],
    turn: int,
    say: Say | None,
    read: Callable[[str], Progress | None] | None = None,
    *,
    seconds: float | None = None,
) -> None:
    """Run uv on a terminal of its own: only there does it tell how far its downloads are. Raises Failed.

    After `seconds` it is ended with all that it started, and has failed. `read` finds the news in a piece of its
    output, where uv runs a program that draws otherwise than uv.
    """
    wheelhouse = os.environ.get("TAXIWAY_WHEELHOUSE")
    if wheelhouse and not Path(wheelhouse).expanduser().is_dir():
        raise errors.FailedPrecondition(f"TAXIWAY_WHEELHOUSE names {wheelhouse}, which is not a folder here.")
    if wheelhouse and arguments[0] == "pip":
        arguments = [*arguments, "--no-index", "--find-links", str(Path(wheelhouse).expanduser().absolute())]
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 400, 0, 0))
    with io.FileIO(screen, "rb") as output:
        try:
            process = subprocess.Popen(
                [find_uv_bin(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                cwd=folders.cache(),  # not the caller's folder: its pyproject.toml could tell uv things
                env=_environ(),
                pass_fds=[turn],
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
    if late.is_set():
        raise Failed(f"It did not end within {seconds:g} seconds.\n{_last_words(text)}".rstrip())
    if code and (full := FULL.search(text)):
        raise folders.full(full.group())
    if code:
        words = _last_words(text)
        own = words.partition("[std")[0]  # what follows [stdout] or [stderr] was said by the package's own setup.py
        raise (Unreachable if UNHEARD.search(own) else Failed)(words)


def _end(process: subprocess.Popen[bytes], late: threading.Event | None = None) -> None:
    """End uv and what it started: a package's own code may run on, and would keep the terminal."""
    if late is not None:
        late.set()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ask(arguments: list[str], text: str, *, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """uv's answer to a question of `uv pip`, with text on its input; None if it did not come in time."""
    if wheelhouse := os.environ.get("TAXIWAY_WHEELHOUSE"):
        arguments = [*arguments, "--no-index", "--find-links", str(Path(wheelhouse).expanduser().absolute())]
    command = [find_uv_bin(), *arguments, "--color", "never"]
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
        if say and (news := read(text)):
            say(news)
        yield text


def _last_words(text: str, lines: int = 30) -> str:
    """The end of what a terminal shows after all that was drawn and drawn over, without its control codes."""
    shown = (re.split(r"\x1b\[2K|\r", line.rstrip("\r"))[-1] for line in text.split("\n"))
    plain = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).rstrip() for line in shown]
    said = [line for line in plain if line and not line.startswith("Using Python ")]
    return "\n".join(said[-lines:])


def _environ() -> dict[str, str]:
    ours = {"UV_CACHE_DIR": str(folders.cache() / "uv"), "UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}
    return {**pythons.environ(), **ours}


def without(failure: Failed, folder: Path) -> str:
    """uv's words, with the names of files in place of where we keep them."""
    mine = rf"(file://)?{re.escape(str(folder))}/(packages/\d+/)?"
    return re.sub(rf"{mine}|[^\s\"]*/site-packages/", "", str(failure))
