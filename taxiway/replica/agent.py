"""One attempt from its order to its last report."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from taxiway import environments, errors, handles, names
from taxiway.handles import Exit, Order
from taxiway.plan import PORT, PYTHON, RUNNERS, Work
from taxiway.replica.relay import relay
from taxiway.replica.wire import Wire
from taxiway.replica.words import Words

log = logging.getLogger(__name__)

BEAT_S = 2.0
GRACE_S = 3.0  # between SIGTERM and SIGKILL for the user's code
TOLD = 4000  # characters of a traceback in an errorMessage
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
RUNNERS_FOLDER = Path(__file__).parent.parent / "runners"


class Agent:
    """fetch -> environment -> run -> report; it can be stopped between any two of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = Order.read(folder)
        self.wire = Wire(self.order)
        self.words = Words(folder, self.wire)
        self.state = "PREPARING"
        self.stopped = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._terminate)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # grandchildren that lose their parent come to us
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            ended = self._work()
        except errors.Error as error:
            ended = Exit(1, str(error))
            self.words.say(str(error), "ERROR")
        except Exception:  # noqa: BLE001 - the edge: our own failure ends the attempt, and its log says so
            log.error("the replica failed\n%s", traceback.format_exc())
            ended = Exit(1, "INTERNAL: the replica failed; its agent.log has the traceback.")
        end_family()
        if self.stopped.is_set():
            return 1  # superseded or cancelled: nobody waits for a report
        handles.save(self.folder / "exit.json", ended)
        self.words.close()
        with suppress(errors.Error):
            self.wire.finish(ended.code, ended.error)
        return 0

    def _work(self) -> Exit:
        told = self.wire.work()
        work = msgspec.convert(told["work"], Work)
        for place, source in work.fetch.items():
            self._fetch_folder(source, self.folder / place)
        packages = [self._fetch_package(uri) for uri in work.packages]
        choice = environments.resolve(work.runtime, work.python)
        python = environments.ensure(choice, packages, self._say_progress)
        command, variables = self._filled(work, python)
        with relay(self.order, work, told["identity"], self.wire) as google:
            return self._run(work, command, {**self._surroundings(python), **google, **variables})

    def _run(self, work: Work, command: list[str], variables: dict[str, str]) -> Exit:
        """The user's code, to its end. Its lines are followed until the pipes are closed and its family is gone."""
        serving = bool(work.fetch)
        place = self.folder if serving else self.folder / "work"
        place.mkdir(exist_ok=True)
        if self.stopped.is_set():
            return Exit(1, "stopped before it ran")
        if not serving:
            self.words.say(f"Running command: {' '.join(['python3', *command[1:]])}")
        self.child = subprocess.Popen(
            command,
            cwd=place,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.state = "RUNNING"
        with suppress(errors.Error):
            self.wire.heartbeat(self.state)
        assert self.child.stdout and self.child.stderr
        followers = [
            threading.Thread(target=self.words.follow, args=(self.child.stdout,), kwargs={"errors_stream": False}),
            threading.Thread(target=self.words.follow, args=(self.child.stderr,), kwargs={"errors_stream": True}),
        ]
        for follower in followers:
            follower.start()
        code = self.child.wait()
        end_family()  # a stray that holds the pipe open would keep us here
        for follower in followers:
            follower.join()
        if code == 0:
            self.words.say("Module completed; cleaning up.")
            return Exit(0, "")
        return Exit(code, last_words(work.task, code, self.words))

    def _fetch_package(self, uri: str) -> Path:
        bucket, name = names.gs(uri, "trainingInput.packageUris")
        to = self.folder / "packages" / Path(name).name
        self.wire.download(bucket, name, to)
        return to

    def _fetch_folder(self, source: str, to: Path) -> None:
        bucket, prefix = names.gs(source, "deploymentUri")
        for name in self.wire.list(bucket, prefix):
            rest = name.removeprefix(prefix).lstrip("/")
            if rest and not rest.endswith("/"):
                place = (to / rest).resolve()
                if to.resolve() not in place.parents:
                    raise errors.FailedPrecondition(f"The object gs://{bucket}/{name} would lie outside of its folder.")
                self.wire.download(bucket, name, place)

    def _filled(self, work: Work, python: Path) -> tuple[list[str], dict[str, str]]:
        """The command and the variables with what only this host knows."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        values = {PYTHON: str(python), RUNNERS: str(RUNNERS_FOLDER), PORT: port}

        def fill(text: str) -> str:
            for word, value in values.items():
                text = text.replace(word, value)
            return text

        command = [fill(word) for word in work.command[:3]] + work.command[3:]
        return command, {name: fill(value) if name == "TF_CONFIG" else value for name, value in work.variables.items()}

    def _surroundings(self, python: Path) -> dict[str, str]:
        """What the user's code sees of this machine: nothing of the server's own environment."""
        for name in ("home", "tmp"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": f"{python.parent}:{system}",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            handles.MARK: self.order.attempt,
        }

    def _say_progress(self, progress: environments.Progress) -> None:
        if progress.text:
            self.words.say(progress.text)

    def _beat(self) -> None:
        while not self.stopped.wait(BEAT_S):
            try:
                self.wire.heartbeat(self.state)
            except errors.Unavailable:
                continue
            except errors.Error as error:
                log.warning("told to stop: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopped.set()
        self.wire.given_up.set()
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGTERM)
            threading.Timer(GRACE_S, end_family).start()


def end_family() -> None:
    """Kill every process below this one; as their reaper we see them all."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process().children(recursive=True)
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=GRACE_S)


def last_words(task: str, code: int, words: Words) -> str:
    """A job's errorMessage: how the replica ended, then its last traceback, or the end of what it said."""
    role, _, index = task.partition("-replica-")
    if code < 0:
        name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
        how = f"was killed by {name} (status {128 - code})"
        hint = " It may have run out of memory." if name == "SIGKILL" else ""
    else:
        how, hint = f"exited with a non-zero status of {code}", ""
    said = "\n".join(words.last_traceback or list(words.tail))
    reason = f" Termination reason: Error.\n{said[-TOLD:]}" if said else ""
    return f"The replica {role} {index} {how}.{hint}{reason}"
