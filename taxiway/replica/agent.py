"""One attempt from its order to its last report."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from taxiway import errors, handles, names
from taxiway.environments import layers, runtimes
from taxiway.environments.progress import Lines, Progress
from taxiway.handles import Exit
from taxiway.plan import PORT, PYTHON, RUNNERS, Work
from taxiway.replica import words
from taxiway.replica.relay import relay
from taxiway.replica.wire import Wire
from taxiway.replica.words import Words

log = logging.getLogger(__name__)

BEAT_S = 2.0
LOOK_S = 0.005
GRACE_S = 3.0  # between SIGTERM and SIGKILL for the user's code
DRAIN_S = 60.0  # for the last lines in a pipe whose writers are all dead
TOLD = 4000  # characters of what the code said last in an errorMessage
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
RUNNERS_FOLDER = Path(__file__).parent.parent / "runners"


class Agent:
    """fetch -> environment -> run -> report; it can be stopped between any two of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wire = Wire(folder)
        self.words = Words(folder, self.wire)
        self.state = "PREPARING"
        self.heard = ""  # the state that the server knows
        self.moved = threading.Event()  # there is news for the next heartbeat
        self.stopped = threading.Event()
        self.over = False  # the end is being reported: a heartbeat that comes too late is no reason to stop
        self.child: subprocess.Popen[bytes] | None = None
        self.build = Lines(lambda line: self.words.say(f"{line}."))

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
            ended = Exit(1, f"INTERNAL: the replica failed.\n{traceback.format_exc()[-TOLD:]}")
        end_family()
        if self.stopped.is_set():
            return 1  # superseded or cancelled: nobody waits for a report
        handles.save(self.folder / "exit.json", ended)
        self.words.close()
        with suppress(errors.Error):
            if self.heard != self.state:
                self.wire.heartbeat(self.state)
            self.over = True
            self.wire.finish(ended.code, ended.error)
        return 0

    def _work(self) -> Exit:
        told = self.wire.work()
        work = msgspec.convert(told["work"], Work)
        for place, source in work.fetch.items():
            self._fetch_folder(source, self.folder / place)
        packages = [self._fetch_package(index, uri) for index, uri in enumerate(work.packages)]
        choice = runtimes.resolve(work.runtime, work.python)
        python = layers.ensure(choice, packages, self._say_progress)
        command, variables = self._filled(work, python)
        with relay(work, told["identity"], self.wire) as google:
            return self._run(work, command, {**self._surroundings(python), **google, **variables})

    def _run(self, work: Work, command: list[str], variables: dict[str, str]) -> Exit:
        """The user's code, to its end. Its lines are followed until the pipes are closed and its family is gone."""
        serving = bool(work.fetch)  # a version's server works beside its model
        place = self.folder if serving else self.folder / "work"
        place.mkdir(exist_ok=True)
        if self.stopped.is_set():
            return Exit(1, "stopped before it ran")
        if not serving:
            self.words.say(f"Running command: {shlex.join(['python3', *command[2:]])}")
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
        self.moved.set()
        followers = [self._follow(self.child.stdout, False), self._follow(self.child.stderr, True)]
        code = self.child.wait()
        end_family()  # a stray that holds the pipe open would keep us here
        for follower in followers:
            follower.join(DRAIN_S)
        if code == 0:
            self.words.say("Module completed; cleaning up.")
            self.words.say("Clean up finished.")
            return Exit(0, "")
        return Exit(code if code > 0 else 128 - code, last_words(work.task, code, list(self.words.stderr)))

    def _follow(self, pipe: object, errors_stream: bool) -> threading.Thread:
        thread = threading.Thread(
            target=self.words.follow, args=(pipe,), kwargs={"errors_stream": errors_stream}, daemon=True
        )
        thread.start()
        return thread

    def _fetch_package(self, index: int, uri: str) -> Path:
        """Each into a folder of its own: two packages may have one name."""
        bucket, name = names.gs(uri, "trainingInput.packageUris")
        to = self.folder / "packages" / str(index) / Path(name).name
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

        def fill(word: str) -> str:
            return word.replace(PYTHON, str(python)).replace(RUNNERS, str(RUNNERS_FOLDER))

        command = [fill(word) for word in work.command[:3]] + work.command[3:]  # what follows is the user's
        variables = dict(work.variables)
        if "TF_CONFIG" in variables:
            task = msgspec.json.decode(variables["TF_CONFIG"])
            cluster = {role: [each.replace(PORT, port) for each in places] for role, places in task["cluster"].items()}
            variables["TF_CONFIG"] = msgspec.json.encode({**task, "cluster": cluster}).decode()
        return command, variables

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
            handles.MARK: self.wire.order.attempt,
        }

    def _say_progress(self, progress: Progress) -> None:
        """A build's stages as sentences, without the last moments of what was announced already."""
        if progress.stage not in ("install", "compile"):
            self.build(progress)

    def _beat(self) -> None:
        """Tell the server that we live: every other second, and at once when the user's code begins to run."""
        while not self.stopped.is_set():
            state = self.state
            try:
                self.wire.heartbeat(state)
                self.heard = state
            except errors.Unavailable:
                continue
            except errors.Error as error:
                if self.over:
                    return
                log.warning("told to stop: %s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._reap()
            self.moved.wait(BEAT_S)
            self.moved.clear()

    def _reap(self) -> None:
        """Orphans come to us when they end; one that nobody waits for would stay in the table of processes."""
        if self.child is not None:
            for each in psutil.Process().children():
                with suppress(psutil.Error, ChildProcessError):
                    if each.pid != self.child.pid and each.status() == psutil.STATUS_ZOMBIE:
                        os.waitpid(each.pid, os.WNOHANG)

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopped.set()
        self.moved.set()
        self.wire.given_up.set()
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGTERM)
        last = threading.Timer(GRACE_S if self.child else 0.0, end_family)
        last.daemon = True
        last.start()


def end_family() -> None:
    """Kill every process below this one; as their reaper we see them all.

    None is waited for (waitpid): how a child ended is for its own Popen to learn, which takes a status that somebody
    else took for success, and would so believe that a build that was killed is done.
    """
    deadline = time.monotonic() + GRACE_S
    while (family := [each for each in psutil.Process().children(recursive=True) if _runs(each)]) and (
        time.monotonic() < deadline
    ):
        for each in family:
            with suppress(psutil.Error):
                each.kill()
        time.sleep(LOOK_S)  # then look again: one may have forked meanwhile


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def last_words(task: str, code: int, stderr: list[str]) -> str:
    """A job's errorMessage: how the replica ended, then its last traceback, or the end of what it said."""
    role, _, index = task.partition("-replica-")
    if code < 0:
        name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else f"signal {-code}"
        how = f"was killed by {name} (status {128 - code})"
        hint = " It may have run out of memory." if name == "SIGKILL" else ""
    else:
        how, hint = f"exited with a non-zero status of {code}", ""
    said = "\n".join(words.last_of(stderr))
    reason = f" Termination reason: Error.\n{said[-TOLD:]}" if said else ""
    return f"The replica {role} {index} {how}.{hint}{reason}"
