"""One attempt from its order to its last report."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from taxiway import errors, handles, names, receipts, trees
from taxiway.environments import layers, pythons, runtimes
from taxiway.environments.progress import Lines, Progress
from taxiway.handles import Exit
from taxiway.plan import Work
from taxiway.replica import addresses, disk, family, ground, metrics, programs, samples
from taxiway.replica.fence import Fence
from taxiway.replica.ground import Ground
from taxiway.replica.wire import Wire
from taxiway.replica.words import Words

log = logging.getLogger(__name__)

BEAT_S = 2.0
DRAIN_S = 60.0  # for the last lines in a pipe whose writers are all dead


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
        self.ground: Ground | None = None
        self.build = Lines(lambda line: self.words.say(f"{line}."))

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._terminate)
        family.adopt_orphans()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            ended = self._work()
        except errors.Error as error:
            ended = Exit(1, str(error))
            self.words.say(str(error), "ERROR")
        except Exception:  # noqa: BLE001 - the edge: our own failure ends the attempt, and its log says so
            log.error("the replica failed\n%s", traceback.format_exc())
            ended = Exit(1, f"INTERNAL: the replica failed.\n{traceback.format_exc()[-family.TOLD :]}")
        family.end()
        if self.stopped.is_set():
            return 1  # superseded or cancelled: nobody waits for a report
        self._keep(ended)
        self.words.close()
        with suppress(errors.Error):
            if self.heard != self.state:
                self.wire.heartbeat(self.state)
            self.over = True
            self.wire.finish(ended)
        return 0

    def _work(self) -> Exit:
        told = self.wire.work()
        work = msgspec.convert(told["work"], Work)
        for place, source in work.fetch.items():
            self._fetch_folder(source, self.folder / handles.WORK / place)
        packages = [self._fetch_package(index, uri) for index, uri in enumerate(work.packages)]
        choice = runtimes.resolve(work.runtime, work.python)
        if instead := choice.instead(trains=not serving(work)):
            self.words.say(instead, "WARNING")
        module = "" if serving(work) else work.command[work.command.index("-m") + 1]
        fence = Fence(self.wire.order, self.folder, work)
        python = layers.ensure(choice, packages, self._say_progress, module=module, fence=fence)
        command, variables = family.filled(work, python)
        if not serving(work):
            self.words.say(receipts.line(receipts.of(work, choice, packages, python)))
        besides = programs.found(work, packages, python, self._say_progress, self.words.say)
        read = [*pythons.behind(python), runtimes.path(choice), *besides.read]
        with ground.laid(
            work, told["identity"], self.wire, read=read, python=python, say=self.words.say
        ) as self.ground:
            return self._run(work, command, {**variables, **besides.variables}, self.ground)

    def _run(self, work: Work, command: list[str], variables: dict[str, str], on: Ground) -> Exit:
        """The user's code, to its end. Its lines are followed until the pipes are closed and its family is gone."""
        if self.stopped.is_set():
            return Exit(1, "stopped before it ran")
        if on.jail is None and (taken := addresses.taken(work)):
            return Exit(1, taken, handles.ADDRESS)
        if not serving(work):
            self.words.say(f"Running command: {shlex.join(['python3', *command[2:]])}")
        own = [self.folder / name for name in ground.FOLDERS]
        with disk.watched(own, lambda: self.words.said, self.wire.order.disk, on.end) as watch:
            self.child = on.start(command, variables)
            self.state = "RUNNING"
            self.moved.set()
            followers = [self._follow(self.child.stdout, False), self._follow(self.child.stderr, True)]
            with samples.taken(self.child, self.wire), metrics.reported(self.folder, work, self.wire):
                code = on.returned(self.child.wait())
        on.end()  # a stray that holds the pipe open would keep us here
        for follower in followers:
            follower.join(DRAIN_S)
        if code == 0:
            self.words.say("Module completed; cleaning up.")
            self.words.say("Clean up finished.")
            return Exit(0, "")
        said = list(self.words.stderr)
        starved = on.starved
        reason = handles.DISK if watch.told else handles.OOM if starved else ""
        told = family.last_words(work.task, code, said, why=f" {watch.told}" if watch.told else starved)
        return Exit(family.exit_code(code), told, reason)

    def _keep(self, ended: Exit) -> None:
        """The end is on the disk before it is reported. One that is full has room once the code's own folders go."""
        for name in ("", "tmp", "home", handles.WORK):
            if name:
                trees.empty(self.folder / name)
            try:
                handles.save(self.folder / "exit.json", ended)
            except OSError as error:
                log.warning("the end could not be kept: %s", error)
            else:
                return

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
        if self.child is not None and self.ground is not None:
            self.ground.terminate(self.child)
        last = threading.Timer(family.GRACE_S if self.child else 0.0, self.ground.end if self.ground else family.end)
        last.daemon = True
        last.start()


def serving(work: Work) -> bool:
    """Whether it is a version's server, which works beside its model, and not a trainer."""
    return bool(work.fetch)
