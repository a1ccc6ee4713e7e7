"""The worker: claims a job, starts its replicas, listens to their reports, and moves it to its end."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors, handles, plan
from taxiway.compute import attempts, logs
from taxiway.compute.attempts import FIRST, Attempt, Turn
from taxiway.compute.local import Local
from taxiway.db.database import Database
from taxiway.iam import projects
from taxiway.iam.keys import Keys
from taxiway.jobs import gangs, line, queue, restarts, scheduling
from taxiway.jobs.clock import Clock
from taxiway.jobs.line import Line
from taxiway.jobs.machines import Machines
from taxiway.jobs.queue import Job
from taxiway.jobs.searcher import Searcher
from taxiway.jobs.states import State
from taxiway.jobs.tuner import KIND, Tuner
from taxiway.settings import Settings
from taxiway.storage.blobs import Blobs

log = logging.getLogger("taxiway.jobs")

LEASE_S = 60.0
TICK_S = 0.5  # at the latest; a report or a new job wakes the worker at once
LOOK_S = 0.02  # between two turns at least, while something is due
HANDS = 8
WORDS = 1000  # lines in one commit
ADOPT_S = 5.0  # a server that has just started hears first what its jobs' replicas did meanwhile


class Worker:
    """One thread that looks for work, and a few that do it: no job waits for another's start or end.

    `wake` tells it that something happened.
    """

    def __init__(
        self,
        db: Database,
        keys: Keys,
        engine: Local,
        settings: Settings,
        machines: Machines,
        waiting: Line,
        blobs: Blobs,
        searcher: Searcher,
    ) -> None:
        self.db, self.keys, self.engine, self.machines, self.line = db, keys, engine, machines, waiting
        self.most = settings.jobs or max(2, (os.cpu_count() or 2) // 2)
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._pause_s = settings.restart_ms / 1000
        self._tuner = Tuner(db, blobs, searcher, self, pause_s=self._pause_s)
        self._due: dict[str, float] = {}  # attempts that pause before their start -> until when, on the steady clock
        self._clock = Clock()
        self._renewed: float | None = None  # on the steady clock, as is the next
        self._listens = 0.0  # from when on jobs are held to their times
        self._explained = 0  # the position up to which queued jobs were told why they wait
        self._busy: set[tuple[str, str]] = set()  # jobs that a thread is at
        self._hands = ThreadPoolExecutor(max_workers=HANDS, thread_name_prefix="taxiway-job")
        self._thread = threading.Thread(target=self._run, name="taxiway-jobs", daemon=True)

    def start(self) -> None:
        queue.release_all(self.db)  # this server holds the home's lock: whoever held them is gone
        self._sweep()
        self._listens = time.monotonic() + ADOPT_S
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
                self._tick(self._clock.look())
            except Exception:  # noqa: BLE001 - the worker's edge: one bad turn is told, and the next one comes
                log.error("the worker stumbled\n%s", traceback.format_exc())
            self._woken.wait(self._rest())
            self._woken.clear()

    def _rest(self) -> float:
        """How long nothing is to be done, unless something happens."""
        now = time.monotonic()
        return max(LOOK_S, min([TICK_S, *(due - now for due in self._due.copy().values() if due > now)]))

    def _tick(self, now: float) -> None:
        if self._renewed is None or time.monotonic() - self._renewed > LEASE_S / 4:
            queue.renew(self.db, worker=self.name, until=now + LEASE_S)
            self._renewed = time.monotonic()
        for late in queue.waited_out(self.db, now=self._clock.latest()):
            queue.cancel_if_over(self.db, late.project, late.id, now=self._clock.since(late.created))
        held = queue.held_by(self.db, self.name)
        for job in held:
            self._hand_out(job)
        room = self.most - len(held)
        while claimed := self._claim(now, queued=room > 0):
            room -= 1
            self._hand_out(claimed)
        if room <= 0 or self.machines.host.gpus:  # which may be what is waited for
            self._explain(now)

    def _claim(self, now: float, *, queued: bool) -> Job | None:
        """The next job: one that was abandoned, else a queued one if there is room."""
        with self.db.read() as rows:
            if self._ending.is_set() or not queue.waiting(rows, worker=self.name, now=now, queued=queued):
                return None
        mine: dict[str, Any] = {"worker": self.name, "now": now, "lease": LEASE_S, "fitting": self.machines.fitting}
        return self.db.write(lambda tx: queue.claim(tx, queued=queued, **mine))

    def _explain(self, now: float) -> None:
        """Whoever has come since is told why it waits."""
        with self.db.read() as rows:
            last = line.last_queued(rows)
        if last > self._explained:
            self._explained = self.line.explain(most=self.most, after=self._explained, now=now)

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
        except errors.Unavailable as error:
            log.info("job %s: %s", key[1], error)  # the server ends; the next one goes on
        except Exception:  # noqa: BLE001 - the edge between the worker and one job
            log.error("job %s/%s failed inside the service\n%s", *key, traceback.format_exc())
            self._give_up(key)
        finally:
            self._busy.discard(key)

    def _give_up(self, key: tuple[str, str]) -> None:
        try:
            job, tries = queue.get(self.db, *key), self._tries(*key)
            self.disband(tries, restarts.ERROR, "INTERNAL")
            self.end(job, State.FAILED, "INTERNAL: the service failed on this job; its log has the traceback.")
        except Exception:  # noqa: BLE001 - the same edge; the next turn tries again
            log.error("job %s/%s could not be ended\n%s", *key, traceback.format_exc())

    def _tries(self, project: str, job: str) -> list[Attempt]:
        """The newest attempt of each of its replicas."""
        with self.db.read() as rows:
            return attempts.latest(rows, project, KIND, job)

    def _step(self, job: Job) -> None:
        """Bring one held job as far as it can go now."""
        tries = self._tries(job.project, job.id)
        if job.state is State.CANCELLING:
            self.disband(tries, "Cancelled")
            self.end(job, State.CANCELLED)
        elif self._over(job, tries):
            self.wake()  # it is CANCELLING now
        elif not tries:
            first = ("Waiting for job to be provisioned.", "Waiting for training program to start.")
            if job.training.hyperparameters is None:
                self.begin(job, FIRST, *first)
            else:
                self.say(job, *first)
                self._tuner.step(job, tries)
        else:
            going = [each for each in tries if each.live and each.handle]
            for each in going:
                self._look(each)
            self._together(self._look, [each for each in tries if each not in going and not each.over])
            self._settle(job, self._tries(job.project, job.id))

    def _look(self, attempt: Attempt) -> None:
        """Bring one attempt as far as it can go now, to its end if that has come."""
        if attempt.live and not attempt.handle:
            self._launch(attempt)  # committed, and perhaps started: the engine knows
        elif attempt.live:
            self._watch(attempt)
        elif not attempt.over:
            self._bury(attempt)

    @staticmethod
    def _together(do: Callable[[Attempt], None], tries: Sequence[Attempt]) -> None:
        """With each at the same time: to start a replica takes a moment, as to end one may."""
        if len(tries) == 1:
            do(tries[0])
        elif tries:
            with ThreadPoolExecutor(len(tries), thread_name_prefix="taxiway-replica") as hands:
                list(hands.map(do, tries))

    def _over(self, job: Job, tries: Sequence[Attempt]) -> bool:
        """Whether the job was cancelled now, for its time; one whose primary has ended by itself is not."""
        now = self._now(job)
        if time.monotonic() < self._listens or not scheduling.over(
            job.training, created=job.created, started=job.started, now=now
        ):
            return False
        attempt = gangs.primary(tries) if tries and job.training.hyperparameters is None else None
        ended = self.engine.poll(attempt.handle) if attempt is not None and attempt.handle else None
        if (attempt is not None and attempt.state == "ENDED") or (ended is not None and ended.code != handles.LOST):
            return False
        return queue.cancel_if_over(self.db, job.project, job.id, now=now)

    def _now(self, job: Job) -> float:
        """The time by which a job is held to its limits."""
        return self._clock.since(job.created if job.started is None else job.started)

    def begin(self, job: Job, turn: Turn, *why: str, severity: str = "INFO", trial: plan.Trial | None = None) -> None:
        """Commit an attempt of each replica of a job, or of a trial, then start them, at once or after their pause."""
        project = projects.get(self.db, job.project)
        gpus = [each for each in self.machines.host.gpus if each.index in (job.gpus or ())]
        if gpus:
            numbers = ", ".join(f"{each.index} ({each.model})" for each in gpus)
            why = (*why, f"It has {'GPU' if len(gpus) == 1 else 'GPUs'} {numbers} of this host to itself.")
        seats = self.machines.seats(job.training, gpus)
        works = plan.training(
            job.project,
            project.number,
            job.id,
            job.training,
            runtime=job.training.runtime_version,
            python=job.training.python_version,
            seats=seats,
            ports=self.engine.ports(len(seats)) if len(seats) > 1 else (),
            gang=f"{handles.GANG}{uuid.uuid4().hex}",
            trial=trial,
        )
        identity = job.training.service_account or projects.service_agent(project.number)
        self._commit(job, works, identity, turn, *why, severity=severity, anew=trial is None)

    def follow(self, job: Job, tries: Sequence[Attempt], then: gangs.Again, *, trial: plan.Trial | None = None) -> None:
        """Commit what follows an attempt that was lost: another of its replica beside the others, at its place and with
        its work; or one of each."""
        why = restarts.announcement(then.attempt, then.turn, all_of=len(tries) if then.all else 1)
        if then.all:
            self.disband(tries, restarts.STOPPED)
            self.begin(job, then.turn, why, severity="WARNING", trial=trial)
            return
        work = msgspec.convert(then.attempt.work, plan.Work)
        self._commit(job, [work], then.attempt.identity, then.turn, why, severity="WARNING", anew=False)

    def say(self, job: Job, *lines: str, severity: str = "INFO") -> None:
        """In the job's log."""
        self.db.write(lambda tx: logs.say(tx, job.project, job.id, *lines, severity=severity, now=time.time()))

    def _commit(
        self,
        job: Job,
        works: Sequence[plan.Work],
        identity: str,
        turn: Turn,
        *why: str,
        severity: str,
        anew: bool,
    ) -> None:
        now = time.time()

        def save(tx: sa.Connection) -> list[Attempt]:
            change = {"attempts": queue.more(len(works))}
            if anew:
                queue.move(tx, job.project, job.id, State.PREPARING, worker=self.name, **change)
            else:
                queue.touch(tx, job.project, job.id, worker=self.name, **change)
            logs.say(tx, job.project, job.id, *why, severity=severity, now=now)
            return [
                attempts.create(tx, uuid.uuid4().hex, KIND, work, identity=identity, now=now, turn=turn)
                for work in works
            ]

        self._together(self._launch, self.db.write(save))

    def _launch(self, attempt: Attempt) -> None:
        if self._pauses(attempt):
            return
        try:
            handle = self.engine.start(attempt, self.keys.replica_token(attempt.id, now=time.time()))
        except errors.Unavailable as error:  # killed before it could say that it lives, or the host is out of breath
            self._fence(attempt, restarts.LOST, str(error))
            self.wake()
            return
        attempts.hold(self.db, attempt.id, handle)

    def _pauses(self, attempt: Attempt) -> bool:
        """Whether it is too early to start an attempt. A server that has just come up begins its pause anew.

        No thread waits for it: the turns of the worker come back here, the first of them when the pause is over.
        """
        if not attempt.pause:
            return False
        if time.monotonic() < self._due.setdefault(attempt.id, time.monotonic() + attempt.pause):
            return True
        self._due.pop(attempt.id, None)
        return False

    def _watch(self, attempt: Attempt) -> None:
        ended = self.engine.poll(attempt.handle)
        if ended is None:
            return
        attempt = attempts.get(self.db, attempt.id)  # its report may have come in between
        if attempt.live and ended.code != handles.LOST:
            attempts.finish(self.db, attempt.id, ended, now=time.time())
        elif attempt.live:
            self._fence(attempt, restarts.LOST)
        self._bury(attempts.get(self.db, attempt.id))

    def _settle(self, job: Job, tries: Sequence[Attempt]) -> None:
        """What is over was seen to: start what follows, or end the job."""
        if any(not each.live and not each.over for each in tries):
            self.wake()  # it ended in this moment
            return
        if job.training.hyperparameters is not None:
            self._tuner.step(job, tries)
            return
        then = gangs.following(tries, pause_s=self._pause_s, now=time.time())
        if isinstance(then, gangs.Over) and then.well:
            self.disband(tries, restarts.STOPPED)
            if job.state is State.PREPARING:  # it ended while this server was away
                started = then.attempt.created if job.started is None else job.started  # the first time counts
                job = self._move(job, State.RUNNING, started=started)
            self.end(job, State.SUCCEEDED)
        elif isinstance(then, gangs.Over):
            self.disband(tries, restarts.STOPPED)
            self.end(job, State.FAILED, restarts.last_words(then.attempt))
        elif then is None:
            return
        elif queue.cancel_if_over(self.db, job.project, job.id, now=self._now(job)):
            self.wake()  # it is CANCELLING now
        else:
            self.follow(job, tries, then)

    def disband(self, tries: Sequence[Attempt], reason: str, error: str = "") -> None:
        """End all that still lives of a gang, and its network."""
        for each in tries:
            if each.live:
                self._fence(each, reason, error)
        self._together(self._bury, [attempts.get(self.db, each.id) for each in tries if not each.over])
        for gang in {each.gang for each in tries if each.gang}:
            self.engine.stop(gang, "")
            self.engine.clear(gang)
            if any((left := self.engine.remains(gang)).values()):
                log.error("job %s/%s: left of its network: %s", tries[0].project, tries[0].subject, left)

    def _fence(self, attempt: Attempt, reason: str, error: str = "") -> None:
        now = time.time()
        self.db.write(lambda tx: attempts.fence(tx, attempt.id, reason=reason, error=error, now=now))
        self._due.pop(attempt.id, None)

    def _bury(self, attempt: Attempt) -> None:
        """End whatever an attempt left running, take in what it said and could not ship, clear its folder.

        Then look whether that is so, and keep what was found. The attempt must be over: then its tokens are dead.
        """
        self.engine.stop(attempt.id, attempt.handle)
        said = self.engine.said(attempt.id)
        while batch := list(itertools.islice(said, WORDS)):
            lines = [logs.line(attempt.number, attempt.task, each, attempt.trial) for each in batch]
            logs.append(self.db, attempt.project, attempt.subject, lines, now=time.time())
        self.engine.clear(attempt.id)
        found, now = self.engine.remains(attempt.id), time.time()

        def save(tx: sa.Connection) -> dict[str, int]:
            attempts.listen(tx, attempt.id)
            return attempts.looked(tx, attempt.id, found, now=now)

        remains = self.db.write(save)
        if any(remains.values()):
            log.error("job %s/%s: left of attempt %s: %s", attempt.project, attempt.subject, attempt.id, remains)

    def end(self, job: Job, to: State, error: str = "") -> None:
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
