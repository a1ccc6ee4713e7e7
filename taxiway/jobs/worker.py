"""The worker: claims a job, starts its replica, listens to its reports, and moves it to its end."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from taxiway import errors, handles, plan
from taxiway.compute import attempts, logs
from taxiway.compute.attempts import Attempt
from taxiway.compute.local import Local
from taxiway.db.database import Database
from taxiway.iam import projects
from taxiway.iam.keys import Keys
from taxiway.jobs import queue, scheduling
from taxiway.jobs.queue import Job
from taxiway.jobs.states import State
from taxiway.settings import Settings

log = logging.getLogger("taxiway.jobs")

LEASE_S = 60.0
TICK_S = 0.5  # at the latest; a report or a new job wakes the worker at once
TRIES = 3  # attempts of a job whose replica goes without a word
HANDS = 8
WORDS = 1000  # lines in one commit
ADOPT_S = 5.0  # a server that has just started hears first what its jobs' replicas did meanwhile
KIND = "job"


class Worker:
    """One thread that looks for work, and a few that do it: no job waits for another's start or end.

    `wake` tells it that something happened.
    """

    def __init__(self, db: Database, keys: Keys, engine: Local, settings: Settings) -> None:
        self.db, self.keys, self.engine = db, keys, engine
        self.most = settings.jobs or max(2, (os.cpu_count() or 2) // 2)
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._renewed = 0.0
        self._listens = 0.0  # from when on jobs are held to their times
        self._explained = 0  # the position up to which queued jobs were told why they wait
        self._busy: set[tuple[str, str]] = set()  # jobs that a thread is at
        self._hands = ThreadPoolExecutor(max_workers=HANDS, thread_name_prefix="taxiway-job")
        self._thread = threading.Thread(target=self._run, name="taxiway-jobs", daemon=True)

    def start(self) -> None:
        queue.release_all(self.db)  # this server holds the home's lock: whoever held them is gone
        self._sweep()
        self._listens = time.time() + ADOPT_S
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        """Let go of the jobs; their replicas go on, and the next server adopts them."""
        self._ending.set()
        self._woken.set()
        self._thread.join()
        self._hands.shutdown()

    def _sweep(self) -> None:
        """End what an earlier server could not: of attempts that are over neither process nor folder stays."""
        for name in self.engine.left():
            attempt = attempts.get(self.db, name)
            if attempt.kind == KIND and not attempt.live:
                self._bury(attempt)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._tick(time.time())
            except Exception:  # noqa: BLE001 - the worker's edge: one bad turn is told, and the next one comes
                log.error("the worker stumbled\n%s", traceback.format_exc())
            self._woken.wait(TICK_S)
            self._woken.clear()

    def _tick(self, now: float) -> None:
        if now - self._renewed > LEASE_S / 4:
            queue.renew(self.db, worker=self.name, until=now + LEASE_S)
            self._renewed = now
        for late in queue.waited_out(self.db, now=now):
            queue.cancel_if_over(self.db, late.project, late.id, now=now)
        held = queue.held_by(self.db, self.name)
        for job in held:
            self._hand_out(job)
        room = self.most - len(held)
        while claimed := self._claim(now, queued=room > 0):
            room -= 1
            self._hand_out(claimed)
        if room <= 0:
            self._explain(now)

    def _claim(self, now: float, *, queued: bool) -> Job | None:
        """The next job: one that was abandoned, else a queued one if there is room."""
        with self.db.read() as rows:
            if self._ending.is_set() or not queue.waiting(rows, now=now, queued=queued):
                return None
        return self.db.write(lambda tx: queue.claim(tx, worker=self.name, now=now, lease=LEASE_S, queued=queued))

    def _explain(self, now: float) -> None:
        """Whoever has come since is told why it waits."""
        if queue.last_queued(self.db) > self._explained:
            after = self._explained
            self._explained = self.db.write(lambda tx: queue.explain(tx, most=self.most, after=after, now=now))

    def _hand_out(self, job: Job) -> None:
        key = (job.project, job.id)
        if key not in self._busy:
            self._busy.add(key)
            self._hands.submit(self._handle, key)

    def _handle(self, key: tuple[str, str]) -> None:
        """One job's trouble is that job's: our own failure ends it as INTERNAL, with the traceback in our log."""
        try:
            job = queue.get(self.db, *key)  # as it is now, not as it was when it was handed out
            if job.worker == self.name:
                self._step(job)
        except errors.FailedPrecondition as error:
            log.info("job %s: %s", key[1], error)  # somebody else moved it first
        except Exception:  # noqa: BLE001 - the edge between the worker and one job
            log.error("job %s/%s failed inside the service\n%s", *key, traceback.format_exc())
            self._give_up(key)
        finally:
            self._busy.discard(key)

    def _give_up(self, key: tuple[str, str]) -> None:
        try:
            job, attempt = queue.get(self.db, *key), self._last_attempt(*key)
            if attempt is not None:
                self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
                self._bury(attempt)
            self._end(job, State.FAILED, "INTERNAL: the service failed on this job; its log has the traceback.")
        except Exception:  # noqa: BLE001 - the same edge; the next turn tries again
            log.error("job %s/%s could not be ended\n%s", *key, traceback.format_exc())

    def _last_attempt(self, project: str, job: str) -> Attempt | None:
        with self.db.read() as rows:
            return attempts.last(rows, project, KIND, job)

    def _step(self, job: Job) -> None:
        """Bring one held job as far as it can go now."""
        attempt = self._last_attempt(job.project, job.id)
        if job.state is State.CANCELLING:
            self._cancel(job, attempt)
        elif self._over(job, attempt):
            self.wake()  # it is CANCELLING now
        elif attempt is None:
            self._start(job, "Waiting for job to be provisioned.", "Waiting for training program to start.")
        elif attempt.state == "ENDED":
            self._settle(job, attempt)
        elif not attempt.live:
            self._bury(attempt)
            self._start(job, f"Attempt {attempt.number} is over; starting another one.")
        elif not attempt.handle:
            self._launch(attempt)  # committed, and perhaps started: the engine knows
        else:
            self._watch(job, attempt)

    def _over(self, job: Job, attempt: Attempt | None) -> bool:
        """Whether the job was cancelled now, for its time; one whose replica has ended by itself is not."""
        now = time.time()
        if now < self._listens or not scheduling.over(job.training, created=job.created, started=job.started, now=now):
            return False
        ended = self.engine.poll(attempt.handle) if attempt is not None and attempt.handle else None
        if (attempt is not None and attempt.state == "ENDED") or (ended is not None and ended.code != handles.LOST):
            return False
        return queue.cancel_if_over(self.db, job.project, job.id, now=now)

    def _start(self, job: Job, *why: str) -> None:
        """Commit an attempt, then start it."""
        project = projects.get(self.db, job.project)
        work = plan.training(
            job.project,
            project.number,
            job.id,
            job.training,
            runtime=job.training.runtime_version,
            python=job.training.python_version,
        )
        now = time.time()

        def save(tx: sa.Connection) -> Attempt:
            queue.move(tx, job.project, job.id, State.PREPARING, worker=self.name, attempts=job.attempts + 1)
            logs.say(tx, job.project, job.id, *why, now=now)
            identity = projects.service_agent(project.number)
            return attempts.create(tx, uuid.uuid4().hex, KIND, work, identity=identity, now=now)

        self._launch(self.db.write(save))

    def _launch(self, attempt: Attempt) -> None:
        handle = self.engine.start(attempt, self.keys.replica_token(attempt.id, now=time.time()))
        attempts.hold(self.db, attempt.id, handle)

    def _watch(self, job: Job, attempt: Attempt) -> None:
        ended = self.engine.poll(attempt.handle)
        if ended is None:
            return
        attempt = attempts.get(self.db, attempt.id)  # its report may have come in between
        if attempt.live and ended.code != handles.LOST:
            attempts.finish(self.db, attempt.id, ended.code, ended.error, now=time.time())
            attempt = attempts.get(self.db, attempt.id)
        if attempt.state == "ENDED":
            self._settle(job, attempt)
            return
        self._bury(attempt)  # what it left must be gone before its successor starts
        if job.attempts < TRIES:
            self._start(job, f"Replica {attempt.task} was lost; starting attempt {attempt.number + 1} of {TRIES}.")
            return
        self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
        self._end(job, State.FAILED, f"The replica {attempt.task} was lost {TRIES} times (killed from outside).")

    def _settle(self, job: Job, attempt: Attempt) -> None:
        """The replica has ended: make sure that nothing of it is left, then end the job."""
        self._bury(attempt)
        if attempt.exit_code != 0:
            self._end(job, State.FAILED, attempt.error or f"The replica exited with status {attempt.exit_code}.")
            return
        if job.state is State.PREPARING:  # it ended while this server was away
            job = self._move(job, State.RUNNING, started=attempt.created)
        self._end(job, State.SUCCEEDED)

    def _cancel(self, job: Job, attempt: Attempt | None) -> None:
        if attempt is not None:
            self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
            self._bury(attempt)
        self._end(job, State.CANCELLED)

    def _bury(self, attempt: Attempt) -> None:
        """End whatever an attempt left running, take in what it said and could not ship, clear its folder."""
        self.engine.stop(attempt.id, attempt.handle)
        said = self.engine.said(attempt.id)
        while batch := list(itertools.islice(said, WORDS)):
            lines = [logs.line(attempt.number, attempt.task, each, attempt.trial) for each in batch]
            logs.append(self.db, attempt.project, attempt.subject, lines, now=time.time())
        self.engine.clear(attempt.id)

    def _end(self, job: Job, to: State, error: str = "") -> None:
        if to is State.SUCCEEDED:
            self._move(job, to, "Finished tearing down training program.", "Job completed successfully.", ended=True)
        elif to is State.FAILED:
            last = ("Finished tearing down training program.", "Job failed.")
            self._move(job, to, error, *last, severity="ERROR", ended=True, error=error)
        else:
            self._move(job, to, "Job cancelled.", ended=True)
        log.info("job %s/%s: %s", job.project, job.id, to.value)
        self.wake()  # there is room for another

    def _move(self, job: Job, to: State, *words: str, severity: str = "INFO", **changes: object) -> Job:
        """Move the row and say so in the job's log, both or neither; `severity` is that of the first words."""
        now = time.time()
        if changes.get("ended"):
            changes["ended"] = now

        def save(tx: sa.Connection) -> Job:
            moved = queue.move(tx, job.project, job.id, to, worker=self.name, **changes)
            if words:
                logs.say(tx, job.project, job.id, *words[:1], severity=severity, now=now)
                logs.say(tx, job.project, job.id, *words[1:], now=now)
            return moved

        return self.db.write(save)
