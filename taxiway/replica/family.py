"""The processes of the user's code: what they are started with, how they ended, and that none of them stays behind."""

from __future__ import annotations

import ctypes
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil

from taxiway.plan import PORT, PYTHON, RUNNERS, Work
from taxiway.replica import words

LOOK_S = 0.005
GRACE_S = 3.0  # between SIGTERM and SIGKILL for the user's code
TOLD = 4000  # characters of what the code said last in an errorMessage
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # PATH, behind the environment's own
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
PARENT_DEATH = 1  # PR_SET_PDEATHSIG
SPARED: set[int] = set()  # children that are not ours alone: they stay when we end
RUNNERS_FOLDER = Path(__file__).parent.parent / "runners"


def adopt_orphans() -> None:
    """From now on grandchildren that lose their parent come to us."""
    _prctl(SUBREAPER, 1)


def die_with_parent() -> None:
    """In a new child, before it becomes the user's code: whatever ends its parent ends it."""
    _prctl(PARENT_DEATH, signal.SIGKILL)


def filled(work: Work, python: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the variables with what only this host knows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def fill(word: str) -> str:
        return word.replace(PYTHON, str(python)).replace(RUNNERS, str(RUNNERS_FOLDER))

    command = [fill(word) for word in work.command[:3]] + work.command[3:]  # what follows is the user's
    variables = dict(work.variables)
    if "PYTHONPATH" in variables:
        variables["PYTHONPATH"] = fill(variables["PYTHONPATH"])
    if "TF_CONFIG" in variables:
        task = msgspec.json.decode(variables["TF_CONFIG"])
        cluster = {role: [each.replace(PORT, port) for each in places] for role, places in task["cluster"].items()}
        variables["TF_CONFIG"] = msgspec.json.encode({**task, "cluster": cluster}).decode()
    return command, variables


def end() -> None:
    """Kill every process below this one; as their reaper we see them all.

    None is waited for (waitpid): how a child ended is for its own Popen to learn, which takes a status that somebody
    else took for success, and would so believe that a build that was killed is done.
    """
    deadline = time.monotonic() + GRACE_S
    while (left := [each for each in _below() if _runs(each)]) and time.monotonic() < deadline:
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        time.sleep(LOOK_S)  # then look again: one may have forked meanwhile


def _below() -> list[psutil.Process]:
    others = {each.pid for pid in SPARED for each in _with_children(pid)}
    return [each for each in psutil.Process().children(recursive=True) if each.pid not in others]


def _with_children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def exit_code(code: int) -> int:
    """A Popen's returncode as a shell shows it: 128 + the signal for a process that was killed."""
    return code if code >= 0 else 128 - code


def last_words(task: str, code: int, stderr: list[str], why: str = "") -> str:
    """A job's errorMessage: how the replica ended, then its last traceback, or the end of what it said.

    `why` is what is known of its end beyond the code; of a SIGKILL there is a guess otherwise.
    """
    role, _, index = task.partition("-replica-")
    if code < 0:
        name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
        how = f"was killed by {name} (status {exit_code(code)})"
        hint = why or (" It may have run out of memory." if name == "SIGKILL" else "")
    else:
        how, hint = f"exited with a non-zero status of {code}", why
    said = "\n".join(words.last_of(stderr))
    reason = f" Termination reason: Error.\n{said[-TOLD:]}" if said else ""
    return f"The replica {role} {index} {how}.{hint}{reason}"


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
