"""The worker: claims a job, starts its replica, listens to its reports, and moves it to its end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable

import sqlalchemy as sa

from taxiway import errors, handles, plan
from taxiway.compute import attempts, logs
from taxiway.compute.attempts import Attempt
from taxiway.compute.local import Local
from taxiway.db.database import Database
from taxiway.iam import projects
from taxiway.iam.keys import Keys
from taxiway.jobs import queue
from taxiway.jobs.queue import Job
from taxiway.jobs.states import State
from taxiway.settings import Settings

log = logging.getLogger("taxiway.jobs")

LEASE_S = 60.0
TICK_S = 0.5  # at the latest; a report or a new job wakes the worker at once
TRIES = 3  # attempts of a job whose replica goes without a word
KIND = "job"


class Worker:
    """One thread; `wake` tells it that something happened."""

    def __init__(self, db: Database, keys: Keys, engine: Local, settings: Settings) -> None:
        self.db, self.keys, self.engine = db, keys, engine
        self.most = settings.jobs or max(2, (os.cpu_count() or 2) // 2)
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._renewed = 0.0
        self._thread = threading.Thread(target=self._run, name="taxiway-jobs", daemon=True)

    def start(self) -> None:
        queue.release_all(self.db)  # this server holds the home's lock: whoever held them is gone
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        """Let go of the jobs; their replicas go on, and the next server adopts them."""
        self._ending.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._tick(time.time())
            except Exception:  # noqa: BLE001 - the worker's edge: one bad turn is told, and the next one comes
                log.error("the worker stumbled\n%s", traceback.format_exc())
                self._ending.wait(TICK_S)
            self._woken.wait(TICK_S)
            self._woken.clear()

    def _tick(self, now: float) -> None:
        if now - self._renewed > LEASE_S / 4:
            queue.renew(self.db, worker=self.name, until=now + LEASE_S)
            self._renewed = now
        held = queue.held_by(self.db, self.name)
        for job in held:
            self._guarded(lambda job=job: self._step(job), job)  # type: ignore[misc]
        room = self.most - len(held)
        while not self._ending.is_set() and (room > 0 or self._abandoned()):
            job = self.db.write(lambda tx: queue.claim(tx, worker=self.name, now=time.time(), lease=LEASE_S))
            if job is None:
                return
            room -= 1
            self._guarded(lambda job=job: self._step(job), job)  # type: ignore[misc]

    def _abandoned(self) -> bool:
        with self.db.read() as rows:
            return queue.abandoned(rows, now=time.time())

    def _guarded(self, work: Callable[[], None], job: Job) -> None:
        """One job's trouble is that job's: our own failure ends it as INTERNAL, with the traceback in our log."""
        try:
            work()
        except errors.FailedPrecondition as error:
            log.info("job %s: %s", job.id, error)  # somebody else moved it first
        except Exception:  # noqa: BLE001 - the edge between the worker and one job
            log.error("job %s/%s failed inside the service\n%s", job.project, job.id, traceback.format_exc())
            self._end(job, State.FAILED, "INTERNAL: the service failed on this job; its log has the traceback.")

    def _step(self, job: Job) -> None:
        """Bring one held job as far as it can go now."""
        with self.db.read() as rows:
            attempt = attempts.last(rows, job.project, KIND, job.id)
        if job.state is State.CANCELLING:
            self._cancel(job, attempt)
        elif attempt is None:
            self._start(job, "Waiting for job to be provisioned.")
        elif attempt.state == "ENDED":
            self._settle(job, attempt)
        elif not attempt.live:
            self._start(job, f"Attempt {attempt.number} is over; starting another one.")
        elif not attempt.handle:
            self._launch(attempt)  # committed, and perhaps started: the engine knows
        else:
            self._watch(job, attempt)

    def _start(self, job: Job, why: str) -> None:
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
            logs.say(tx, job.project, job.id, why, now=now)
            identity = projects.service_agent(project.number)
            return attempts.create(tx, uuid.uuid4().hex, KIND, work, identity=identity, now=now)

        self._launch(self.db.write(save))

    def _launch(self, attempt: Attempt) -> None:
        handle = self.engine.start(attempt, self.keys.replica_token(attempt.id, now=time.time()))
        attempts.hold(self.db, attempt.id, handle)

    def _watch(self, job: Job, attempt: Attempt) -> None:
        if attempt.state == "RUNNING" and job.state is State.PREPARING:
            started = job.started or time.time()
            self._move(job, State.RUNNING, "Waiting for training program to start.", started=started)
        ended = self.engine.poll(attempt.handle)
        if ended is None:
            return
        attempt = attempts.get(self.db, attempt.id)  # its report may have come in between
        if attempt.state == "ENDED":
            self._settle(job, attempt)
            return
        self._keep_words(attempt)
        if ended.code != handles.LOST:
            attempts.finish(self.db, attempt.id, ended.code, ended.error, now=time.time())
            self._settle(job, attempts.get(self.db, attempt.id))
            return
        self.engine.stop(attempt.id, attempt.handle)  # what it left must be gone before its successor starts
        self.engine.clear(attempt.id)
        if job.attempts < TRIES:
            self._start(job, f"Replica {attempt.task} was lost; starting attempt {attempt.number + 1} of {TRIES}.")
            return
        self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
        self._end(job, State.FAILED, f"The replica {attempt.task} was lost {TRIES} times (killed from outside).")

    def _settle(self, job: Job, attempt: Attempt) -> None:
        """The replica has reported its end: make sure that nothing of it is left, then end the job."""
        if job.started is None and attempt.exit_code == 0:
            job = self._move(job, State.RUNNING, started=attempt.heard)
        self.engine.stop(attempt.id, attempt.handle)
        if attempt.exit_code == 0:
            self._end(job, State.SUCCEEDED)
        else:
            self._end(job, State.FAILED, attempt.error or f"The replica exited with status {attempt.exit_code}.")
        self.engine.clear(attempt.id)

    def _cancel(self, job: Job, attempt: Attempt | None) -> None:
        if attempt is not None:
            self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
            self.engine.stop(attempt.id, attempt.handle)
            self._keep_words(attempt)
            self.engine.clear(attempt.id)
        self._end(job, State.CANCELLED)

    def _keep_words(self, attempt: Attempt) -> None:
        """Take in what the replica kept on its disk and could not ship."""
        lines = [logs.line(attempt.number, attempt.task, said) for said in self.engine.said(attempt.id)]
        logs.append(self.db, attempt.project, attempt.subject, lines, now=time.time())

    def _end(self, job: Job, to: State, error: str = "") -> None:
        if to is State.SUCCEEDED:
            self._move(job, to, "Finished tearing down training program.", "Job completed successfully.", ended=True)
        elif to is State.FAILED:
            self._move(job, to, error, severity="ERROR", ended=True, error=error)
        else:
            self._move(job, to, "Job cancelled.", ended=True)
        log.info("job %s/%s: %s", job.project, job.id, to.value)

    def _move(self, job: Job, to: State, *words: str, severity: str = "INFO", **changes: object) -> Job:
        """Move the row and say so in the job's log, both or neither."""
        now = time.time()
        if changes.get("ended"):
            changes["ended"] = now

        def save(tx: sa.Connection) -> Job:
            moved = queue.move(tx, job.project, job.id, to, worker=self.name, **changes)
            if words:
                logs.say(tx, job.project, job.id, *words, severity=severity, now=now)
            return moved

        return self.db.write(save)

