"""The process that chooses points (`search`), kept while anybody asks: the server itself never loads Optuna."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading

import msgspec

from taxiway import errors
from taxiway.jobs.space import GAUSSIAN_NEEDS, Answer, Question

log = logging.getLogger("taxiway.jobs")

ANSWER_S = 300.0  # for one question; a Gaussian process with hundreds of trials takes its time
TRIES = 2  # at a question whose process ended, by whatever hand
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # the jobs want the other cores


def gaussian() -> bool:
    """Whether there is what a Gaussian process needs."""
    return all(importlib.util.find_spec(each) for each in GAUSSIAN_NEEDS)


class Searcher:
    """Asks one question after the other. Started by the first, and again after `rest`; safe to use from any thread.

    The process ends when its input does, and so with this one, however that ends.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ask(self, question: Question) -> Answer:
        """Raises FailedPrecondition without Optuna, DeadlineExceeded, Internal, Unavailable after `end`."""
        with self._turn:
            for _ in range(TRIES):
                raw = self._asked(msgspec.json.encode(question) + b"\n")
                if raw:
                    break
                log.warning("the process that chooses trials ended; a new one is asked")
            else:
                raise errors.Internal("The search for trials broke off; the server's log may say why. Try again.")
        answer = msgspec.json.decode(raw, type=Answer)
        if answer.failure:
            log.error("the search for trials failed\n%s", answer.failure)
            raise errors.Internal("The search for trials failed; the server's log has the traceback.")
        return answer

    def rest(self) -> None:
        """Let the process go until somebody asks again."""
        with self._turn:
            self._let_go()

    def end(self) -> None:
        """Whoever asks is told that the server ends."""
        self._ended = True
        process = self._process
        if process is not None:
            process.kill()
        self.rest()

    def _asked(self, line: bytes) -> bytes:
        """The answer's line; empty if the process ended before it."""
        if self._ended:
            raise errors.Unavailable("The server is shutting down; try again in a moment.")
        process = self._process or self._started()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(ANSWER_S, give_up)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            raw = process.stdout.readline()
        except OSError:  # it has ended
            raw = b""
        finally:
            timer.cancel()
        if not raw.endswith(b"\n"):
            self._let_go()
            raw = b""
        if late.is_set():
            raise errors.DeadlineExceeded(f"The search took over {ANSWER_S:.0f} s; use RANDOM_SEARCH, or fewer trials.")
        return raw

    def _started(self) -> subprocess.Popen[bytes]:
        if importlib.util.find_spec("optuna") is None:
            told = "Studies need Optuna, which is not installed here. Install it: pip install 'taxiway[tuning]'"
            raise errors.FailedPrecondition(told)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "taxiway.jobs.search"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )
        return self._process

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
