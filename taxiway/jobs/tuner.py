"""A tuning job: its trials are those of a study of its own, and each is run as a job's replicas are.

What is done next is read from the rows each time, so a server that was killed goes on where they stand: a trial is a
row before anything of it is started, and is completed once. The study is in no location that the wire can name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import sqlalchemy as sa

from taxiway import errors, names, plan, summaries
from taxiway.compute import attempts
from taxiway.compute.attempts import FIRST, Attempt, Turn
from taxiway.db.database import Database
from taxiway.jobs import gangs, queue, restarts, space, studies, tuning
from taxiway.jobs.queue import Job
from taxiway.jobs.searcher import Searcher
from taxiway.jobs.space import Past, Question
from taxiway.jobs.states import State
from taxiway.jobs.stopping import Measured
from taxiway.jobs.studies import ACTIVE, COMPLETED, STOPPING, Place, Study, Trial
from taxiway.schemas import HyperparameterMetric, HyperparameterOutput, HyperparameterSpec, TrainingOutput
from taxiway.storage import listings, objects
from taxiway.storage.blobs import Blobs

log = logging.getLogger("taxiway.jobs")

KIND = "job"
LOCATION = "jobs"  # of the studies that jobs are; no region is called so
EVENTS = "tfevents"
LARGEST = 64 * 1024 * 1024  # bytes of an event file that is read
FAILED_AT_FIRST = 3  # trials that fail before any is completed, where the job leaves it to us: then it is the trainer
LOOK_S = 5.0  # between two looks into event files of trials that may be stopped early
MEASURED = 2000  # measurements of a trial; from there on the last of each report
SILENT = "It reported no"


class Crew(Protocol):
    """Who starts and ends replicas."""

    def begin(self, job: Job, turn: Turn, *why: str, severity: str = "INFO", trial: plan.Trial | None = None) -> None:
        """Commit and start all replicas of a job, or of a trial."""

    def follow(self, job: Job, tries: Sequence[Attempt], then: gangs.Again, *, trial: plan.Trial | None = None) -> None:
        """Start what follows an attempt that was lost, of those replicas."""

    def disband(self, tries: Sequence[Attempt], reason: str) -> None:
        """End all that still lives of them."""

    def end(self, job: Job, to: State, error: str = "") -> None:
        """The job is over."""

    def say(self, job: Job, *lines: str, severity: str = "INFO") -> None:
        """In the job's log."""


class Tuner:
    """Brings tuning jobs on. Any thread may call; one at a time for each job."""

    def __init__(self, db: Database, blobs: Blobs, searcher: Searcher, crew: Crew, *, pause_s: float) -> None:
        self.db, self.blobs, self.searcher, self.crew = db, blobs, searcher, crew
        self._pause_s = pause_s
        self._looked: dict[tuple[str, str], float] = {}  # job -> when its trials' event files were read, steadily

    def step(self, job: Job, tries: Sequence[Attempt]) -> None:
        """Settle each trial, start those that are due, and end the job behind the last. What has ended of `tries`, the
        newest attempts of all trials, must have been seen to."""
        spec = job.training.hyperparameters or HyperparameterSpec()
        study = self._study(job, spec)
        trials = studies.list_trials(self.db, place_of(job))
        self._stop_hopeless(job, spec, [each for each in trials if each.state == ACTIVE])
        for trial in trials:
            if trial.state != COMPLETED:
                self._settle(job, spec, trial, [each for each in tries if each.trial == str(trial.number)])
        trials = studies.list_trials(self.db, place_of(job))
        failed = [each for each in trials if each.infeasible]
        going = [each for each in trials if each.state != COMPLETED]
        most = spec.max_failed_trials or 0
        if len(failed) >= most if most else len(failed) >= FAILED_AT_FIRST and len(failed) == len(trials) - len(going):
            self._give_up(job, tries, failed)
            return
        wanted = min(spec.max_trials or 1, studies.MOST_TRIALS)
        room = min((spec.max_parallel_trials or 1) - len(going), wanted - len(trials))
        if room > 0 and study.state == ACTIVE:
            self._begin(job, spec, room)
            return
        if not going:
            self._finish(job, spec, trials)

    def _study(self, job: Job, spec: HyperparameterSpec) -> Study:
        try:
            return studies.get(self.db, place_of(job))
        except errors.NotFound:
            digest = hashlib.sha256(f"{job.project}/{job.id}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big")
            return studies.create(self.db, place_of(job), tuning.study(spec), seed=seed, now=time.time())

    def _begin(self, job: Job, spec: HyperparameterSpec, count: int) -> None:
        """Choose points and make trials of them, then start these."""
        place = place_of(job)
        with self.db.read() as rows:
            study = studies.read(rows, place)
            past = (*earlier(rows, job, spec), *studies.past(rows, study))
        question = Question(config=study.config, seed=study.seed, first=study.made + 1, count=count, past=past)
        try:
            answer = self.searcher.ask(question)
        except (errors.FailedPrecondition, errors.DeadlineExceeded) as error:  # there is nobody to choose, or too slow
            if not any(each.state != COMPLETED for each in studies.list_trials(self.db, place)):
                self._end(job, State.FAILED, f"No more trials could be chosen: {error}")
            return

        def save(tx: sa.Connection) -> list[int]:
            made = studies.add(tx, studies.read(tx, place), answer.points, state=ACTIVE, now=time.time())
            if answer.used_up:
                studies.use_up(tx, place)
            return made

        for number in self.db.write(save):
            trial = studies.get_trial(self.db, place, number)
            self._settle(job, spec, trial, [])

    def _settle(self, job: Job, spec: HyperparameterSpec, trial: Trial, tries: Sequence[Attempt]) -> None:
        """Bring one trial on that is not completed."""
        told = tuning.arguments(trial.parameters)
        work = plan.Trial(trial.number, told, tuning.tag(spec))
        if not tries:
            self.crew.begin(job, FIRST, f"Trial {trial.number} begins with {' '.join(told)}.", trial=work)
            return
        if trial.state == STOPPING:
            self.crew.disband(tries, restarts.STOPPED)
            self._complete(job, spec, trial, tries, early=True)
            return
        then = gangs.following(tries, pause_s=self._pause_s, now=time.time())
        if isinstance(then, gangs.Again):
            self.crew.follow(job, tries, then, trial=work)
        elif then is not None:
            self.crew.disband(tries, restarts.STOPPED)
            self._complete(job, spec, trial, tries, failed=None if then.well else then.attempt)

    def _complete(
        self,
        job: Job,
        spec: HyperparameterSpec,
        trial: Trial,
        tries: Sequence[Attempt],
        *,
        failed: Attempt | None = None,
        early: bool = False,
    ) -> None:
        """The trial is over: with the last that it reported, or as one that failed."""
        place, tag = place_of(job), tuning.tag(spec)
        if failed is not None:
            why = restarts.last_words(failed)
            studies.complete(self.db, place, trial.number, infeasible=True, reason=why, now=time.time())
            self.crew.say(job, f"Trial {trial.number} failed: {why}", severity="ERROR")
            return
        self._read_events(job, spec, trial)
        trial = studies.get_trial(self.db, place, trial.number)
        last = max(reversed(trial.measured), key=lambda each: each.place, default=None)  # of equals the later one
        if last is None:
            why = f"{SILENT} {tag!r}: report it by hypertune.HyperTune or a scalar summary of that name."
            studies.complete(self.db, place, trial.number, infeasible=True, reason=why, now=time.time())
            self.crew.say(job, f"Trial {trial.number} ended without a metric. {why}", severity="WARNING")
            return
        value = last.values[tag]
        studies.complete(self.db, place, trial.number, final=studies.told(last), now=time.time())
        ended = "was stopped early" if early else "ended"
        self.crew.say(
            job, f"Trial {trial.number} {ended}: {tag} = {value:g}" + (f" at step {last.step}." if last.step else ".")
        )

    def _stop_hopeless(self, job: Job, spec: HyperparameterSpec, active: Sequence[Trial]) -> None:
        key = (job.project, job.id)
        if not spec.enable_trial_early_stopping or time.monotonic() - self._looked.get(key, 0.0) < LOOK_S:
            return
        for trial in active:
            self._read_events(job, spec, trial)
            if studies.hopeless(self.db, place_of(job), trial.number):
                studies.stop(self.db, place_of(job), trial.number)
                self.crew.say(job, f"Trial {trial.number} is worse than half of the others were: it is stopped early.")
        self._looked[key] = time.monotonic()

    def _read_events(self, job: Job, spec: HyperparameterSpec, trial: Trial) -> None:
        """What a trial wrote of its metric into event files below its folder on gs://."""
        if not job.training.job_dir:
            return
        bucket, folder = names.gs(f"{job.training.job_dir.rstrip('/')}/{trial.number}", "trainingInput.jobDir")
        found: list[tuple[int, float]] = []
        try:
            for page in listings.pages(self.db, bucket, prefix=f"{folder}/"):
                for item in page.items:
                    if EVENTS in item.name.rpartition("/")[2] and item.size <= LARGEST:
                        found += summaries.scalars(self._bytes(item), tuning.tag(spec))
        except (errors.NotFound, OSError) as error:  # it was removed meanwhile
            log.info("job %s, trial %s: %s", job.id, trial.number, error)
        self.db.write(lambda tx: measure(tx, place_of(job), trial.number, tuning.tag(spec), found, now=time.time()))

    def _bytes(self, item: objects.Object) -> bytes:
        found, data = objects.get_with_data(self.db, item.bucket, item.name)
        if data is not None:
            return data
        with os.fdopen(self.blobs.open(found.blob), "rb") as file:
            return file.read()

    def _give_up(self, job: Job, tries: Sequence[Attempt], failed: Sequence[Trial]) -> None:
        self.crew.disband(tries, restarts.STOPPED)
        for trial in studies.list_trials(self.db, place_of(job)):
            if trial.state != COMPLETED:
                why = "The job was over: too many trials had failed."
                studies.complete(self.db, place_of(job), trial.number, infeasible=True, reason=why, now=time.time())
        last = max(failed, key=lambda each: each.ended or 0.0)
        count = f"{len(failed)} {'trial' if len(failed) == 1 else 'trials'} failed"
        why = f"{count}, which ends the job. The last was trial {last.number}: {last.infeasible_reason}"
        self._end(job, State.FAILED, why)

    def _finish(self, job: Job, spec: HyperparameterSpec, trials: Sequence[Trial]) -> None:
        if not any(each.final for each in trials):
            self._end(job, State.FAILED, f"None of {len(trials)} trials reported {tuning.tag(spec)!r}.")
            return
        best = ordered(trials, spec)[0]
        values = ", ".join(f"{name} = {value}" for name, value in tuning.values(best.parameters).items())
        found = f"trial {best.number}: {tuning.tag(spec)} = {_last(best):g} with {values}"
        self.crew.say(job, f"The best of {len(trials)} trials is {found}.")
        self._end(job, State.SUCCEEDED)

    def _end(self, job: Job, to: State, error: str = "") -> None:
        self._looked.pop((job.project, job.id), None)
        self.crew.end(job, to, error)


def place_of(job: Job) -> Place:
    return Place(job.project, LOCATION, job.id)


def measure(
    tx: sa.Connection, place: Place, trial: int, tag: str, found: Sequence[tuple[int, float]], *, now: float
) -> None:
    """Keep what a trial that is not completed reported, (step, value), each once; of very many those evenly spaced."""
    held = studies.read_trial(tx, place, trial)
    if held.state == COMPLETED:
        return
    known = {(each.step, each.values.get(tag)) for each in held.measured}
    new = [each for each in dict.fromkeys(found) if each not in known]
    for step, value in summaries.thinned(new, max(1, MEASURED - len(known))):
        studies.measure(tx, place, trial, Measured(step, max(0.0, now - held.created), {tag: value}))


def earlier(rows: sa.Connection, job: Job, spec: HyperparameterSpec) -> Iterator[Past]:
    """What the trials of the job that this one resumes found, where they are points of this one's space."""
    if not spec.resume_previous_job_id:
        return
    try:
        study = studies.read(rows, Place(job.project, LOCATION, spec.resume_previous_job_id))
    except errors.NotFound:
        return
    mine = space.read(tuning.study(spec))
    for each in studies.past(rows, study):
        if mine.holds(each.point) and (each.values or each.infeasible):
            yield each


def unresumable(rows: sa.Connection, project: str, spec: HyperparameterSpec) -> str:
    """Why the job that is to be resumed cannot be, in a sentence; "" if it can."""
    name = spec.resume_previous_job_id
    try:
        previous = queue.read(rows, project, name)
    except errors.NotFound:
        return f"there is no job {name!r} in projects/{project}."
    if previous.training.hyperparameters is None:
        return f"the job {name!r} tuned no hyperparameters."
    theirs, ours = ({each.parameter_name for each in it.params} for it in (previous.training.hyperparameters, spec))
    if theirs != ours:
        return f"the job {name!r} varied {', '.join(sorted(theirs))}; a job that resumes it must vary the same."
    return ""


def ordered(trials: Sequence[Trial], spec: HyperparameterSpec) -> list[Trial]:
    """The best first, as the service lists them; those without a metric last, by their numbers."""
    sign = 1.0 if spec.goal == space.MINIMIZE else -1.0
    return sorted(trials, key=lambda each: (each.final is None, sign * _last(each) if each.final else 0.0, each.number))


def output(db: Database, job: Job, *, consumed: float | None) -> TrainingOutput:
    """What a tuning job has brought so far: its trials, the best first."""
    spec = job.training.hyperparameters or HyperparameterSpec()
    try:
        trials = studies.list_trials(db, place_of(job))
    except errors.NotFound:  # it is queued
        trials = []
    with db.read() as rows:
        tries = attempts.latest(rows, job.project, KIND, job.id) if trials else []
    return TrainingOutput(
        completed_trial_count=sum(each.final is not None for each in trials),
        consumed_ml_units=consumed,
        hyperparameter_metric_tag=tuning.tag(spec),
        is_hyperparameter_tuning_job=True,
        trials=tuple(
            _told(job, trial, [each for each in tries if each.trial == str(trial.number)])
            for trial in ordered(trials, spec)
        ),
    )


def _told(job: Job, trial: Trial, tries: Sequence[Attempt]) -> HyperparameterOutput:
    first = gangs.primary(tries) if tries else None
    last = trial.final
    return HyperparameterOutput(
        trial_id=str(trial.number),
        hyperparameters=tuning.values(trial.parameters),
        final_metric=HyperparameterMetric(objective_value=last.metrics[0].value, training_step=last.step_count or 0)
        if last
        else None,
        is_trial_stopped_early=last is not None and first is not None and first.reason == restarts.STOPPED,
        state=_state(job, trial, first).value,
        start_time=trial.started,
        end_time=trial.ended or (job.ended if trial.state != COMPLETED else None),
    )


def _state(job: Job, trial: Trial, first: Attempt | None) -> State:
    """Where a trial is, in the words of a job."""
    if trial.state == COMPLETED:
        return State.FAILED if trial.infeasible else State.SUCCEEDED
    if job.ended:
        return State.CANCELLED
    if trial.state == STOPPING or job.state is State.CANCELLING:
        return State.CANCELLING
    return State.RUNNING if first is not None and first.state == "RUNNING" else State.PREPARING


def _last(trial: Trial) -> float:
    return (trial.final.metrics[0].value or 0.0) if trial.final else 0.0
