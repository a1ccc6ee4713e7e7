"""`python -m taxiway.replica.local FOLDER`: a run on this machine, with the terminal in the place of the server.

FOLDER holds run.json (a plan.Run) and is cleared away once that is read. The exit code is the primary's, 128 + the
signal if it was killed; whatever way the run ends, no process of it stays behind.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

import msgspec

from taxiway.environments import pythons
from taxiway.plan import Run, Work
from taxiway.replica import family, words

DRAIN_S = 10.0  # for the last lines in the pipes of processes that are dead
COLOURS = (36, 32, 33, 35, 34)  # of the tasks' names on a terminal, in turn
OUR_OWN = ("TF_CONFIG", "CLUSTER_SPEC", "CLOUD_ML_")  # what a run around this one may have left in the environment


def main() -> int:
    folder = Path(sys.argv[1])
    run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    shutil.rmtree(folder, ignore_errors=True)
    family.adopt_orphans()
    return Local(run).to_its_end()


class Local:
    """One run: a lone replica has the terminal to itself; the lines of several bear their tasks' names."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.children: dict[str, subprocess.Popen[bytes]] = {}  # by task
        self.told = 0  # the signal that came first
        self.over = False  # the primary has ended: how the others do is no news
        self._printing = threading.Lock()

    def to_its_end(self) -> int:
        # An interrupt comes from the terminal, which gives it to the user's code as well: that may have work to save.
        handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._pass_on, signal.SIGHUP: self._pass_on}
        for each, handler in handlers.items():
            if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
                signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
        if self.told:
            return 128 + self.told
        try:
            return self._alone(self.run.works[0]) if len(self.run.works) == 1 else self._together()
        finally:
            family.end()

    def _alone(self, work: Work) -> int:
        return family.exit_code(self._start(work).wait())

    def _together(self) -> int:
        """The primary starts last, when those it will look for are there."""
        primary, *others = self.run.works
        for work in [*others, primary]:
            self._start(work, followed=True)
        followers = [each for number, task in enumerate(self.children) for each in self._follow(task, number)]
        watchers = [self._watch(work.task) for work in others]
        code = self.children[primary.task].wait()
        self.over = True
        for task in (work.task for work in others):
            self.children[task].terminate()
        deadline = time.monotonic() + family.GRACE_S
        for watcher in watchers:
            watcher.join(max(0.0, deadline - time.monotonic()))
        family.end()  # a stray that holds a pipe open would keep us here
        for follower in followers:
            follower.join(DRAIN_S)
        return family.exit_code(code)

    def _start(self, work: Work, *, followed: bool = False) -> subprocess.Popen[bytes]:
        python = Path(self.run.python)
        command, variables = family.filled(work, python)
        environ = {**surroundings(os.environ, python), **self.run.variables, **variables}
        child = subprocess.Popen(
            command,
            cwd=self.run.folder,
            env=environ,
            stdin=subprocess.DEVNULL if followed else None,
            stdout=subprocess.PIPE if followed else None,
            stderr=subprocess.PIPE if followed else None,
            preexec_fn=family.die_with_parent,
        )
        self.children[work.task] = child
        return child

    def _follow(self, task: str, number: int) -> list[threading.Thread]:
        """Print a replica's lines as they come, its errors to ours."""
        width = max(map(len, self.children))
        child = self.children[task]
        threads = []
        for pipe, to in ((child.stdout, 1), (child.stderr, 2)):
            name = f"{task:<{width}} |"
            if os.isatty(to) and not os.environ.get("NO_COLOR"):
                name = f"\x1b[{COLOURS[number % len(COLOURS)]}m{name}\x1b[0m"
            threads.append(threading.Thread(target=self._print, args=(pipe, to, name), daemon=True))
            threads[-1].start()
        return threads

    def _print(self, pipe: IO[bytes], to: int, name: str) -> None:
        try:
            for line in words.lines(pipe):
                self._say(f"{name} {line}", to)
        except OSError:  # nobody reads us any more, as behind `| head`
            os.kill(os.getpid(), signal.SIGTERM)

    def _watch(self, task: str) -> threading.Thread:
        """Say it at once if a replica fails while the primary still runs."""

        def wait() -> None:
            code = self.children[task].wait()
            if code and not self.over and not self.told:
                self._say(f"{family.last_words(task, code, [])} The run goes on until its primary ends.", 2)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def _say(self, line: str, to: int) -> None:
        left = f"{line}\n".encode("utf-8", "replace")
        with self._printing:
            while left:
                select.select([], [to], [])  # who shares the terminal with us may have made it one that does not wait
                left = left[os.write(to, left) :]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.told = self.told or number

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """What was sent to us alone; who does not heed it is killed after a while."""
        self.told = self.told or number
        for child in self.children.values():
            with suppress(ProcessLookupError):
                child.send_signal(number)
        last = threading.Timer(family.GRACE_S, family.end)
        last.daemon = True
        last.start()


def surroundings(environ: Mapping[str, str], python: Path) -> dict[str, str]:
    """The caller's own variables, without those that would change what runs; the environment's programs come first."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in pythons.MISLEADING and not name.startswith(OUR_OWN)
    }
    path = f"{python.parent}:{environ.get('PATH') or family.SYSTEM}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main())
