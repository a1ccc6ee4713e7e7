"""The rows of jobs: every change is one guarded UPDATE, and the row is the judge."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.compute import logs
from taxiway.db.database import Database
from taxiway.db.tables import jobs
from taxiway.iam import policies
from taxiway.jobs import gpus, line, scheduling, states
from taxiway.jobs.states import State
from taxiway.schemas import TrainingInput

ACCEPTED = (
    "Validating job requirements...",
    "Job creation request has been successfully validated.",
    "Job {id} is queued.",
)


@dataclass(frozen=True, slots=True)
class Job:
    project: str
    id: str
    position: int
    priority: int
    wait_until: float | None
    state: State
    error: str | None
    training: TrainingInput
    labels: dict[str, str]
    etag: int
    creator: str
    attempts: int
    worker: str | None
    lease: float | None
    accelerator: str  # see machines.Machines.accelerators
    accelerators: int
    gpus: list[int] | None  # those of the host's that were given to it
    created: float
    queued: float | None
    started: float | None
    ended: float | None
    policy: dict[str, Any]  # {"bindings": [{"role", "members"}]}
    policy_version: int


def create(
    db: Database,
    project: str,
    job: str,
    told: TrainingInput,
    labels: dict[str, str],
    *,
    notes: Sequence[tuple[str, str]] = (),
    accelerators: tuple[str, int] = ("", 0),
    creator: str,
    now: float,
    checked: float | None = None,
) -> Job:
    """Queue a job that was checked; its creator owns it. `accelerators`: of which kind it wants some, and how many.

    `notes` are what the checks found, (severity, sentence): its log is told. `now` is when it was asked for, `checked`
    when its validation was over: the queue begins there. Raises AlreadyExists for an id that this project ever used.
    """

    def save(tx: sa.Connection) -> Job:
        must_be_new(tx, project, job)
        last = tx.execute(sa.select(sa.func.max(jobs.c.position))).scalar() or 0
        tx.execute(
            jobs.insert().values(
                project=project,
                id=job,
                position=last + 1,
                priority=scheduling.priority(told),
                wait_until=scheduling.wait_until(told, created=now),
                state=State.QUEUED.value,
                training=msgspec.to_builtins(told),
                labels=labels,
                etag=1,
                creator=creator,
                attempts=0,
                accelerator=accelerators[0],
                accelerators=accelerators[1],
                created=now,
                queued=now if checked is None else checked,
                policy=policies.owned_by(creator, "roles/ml.jobOwner"),
            )
        )
        line.changed(tx)
        first, *rest = (words.format(id=job) for words in ACCEPTED)
        said = [("INFO", first), *notes, *(("INFO", words) for words in rest)]
        for severity, lines in itertools.groupby(said, lambda each: each[0]):
            logs.say(tx, project, job, *(words for _, words in lines), severity=severity, now=now)
        return read(tx, project, job)

    return db.write(save)


def must_be_new(rows: sa.Connection, project: str, job: str) -> None:
    """Raise AlreadyExists for an id that this project ever used."""
    if rows.execute(sa.select(jobs.c.id).where(_is(project, job))).first():
        raise errors.AlreadyExists(
            f"Field: job.job_id Error: A job with the id {job!r} exists already in projects/{project}; "
            "job ids are never used twice. Choose another one."
        )


def read(rows: sa.Connection, project: str, job: str) -> Job:
    """Raises NotFound."""
    row = rows.execute(sa.select(jobs).where(_is(project, job))).first()
    if row is None:
        raise errors.NotFound(f"The job projects/{project}/jobs/{job} does not exist. List them: taxiway jobs list")
    return _job(row)


def get(db: Database, project: str, job: str) -> Job:
    with db.read() as rows:
        return read(rows, project, job)


def set_policy(db: Database, project: str, job: str, bindings: list[dict[str, Any]], *, version: int | None) -> Job:
    """Replace the bindings of a job. Raises Aborted unless `version` is None or the present policy's, NotFound."""

    def save(tx: sa.Connection) -> Job:
        held = read(tx, project, job)
        policies.must_be(held.policy_version, version, names.job_name(project, job))
        change = {"policy": {"bindings": bindings}, "policy_version": held.policy_version + 1}
        tx.execute(jobs.update().where(_is(project, job)).values(**change))
        return read(tx, project, job)

    return db.write(save)


def set_labels(db: Database, project: str, job: str, labels: dict[str, str], *, etag: int | None) -> Job:
    """Replace the labels of a job. Raises Aborted unless `etag` is None or the job's present one, NotFound."""

    def save(tx: sa.Connection) -> Job:
        must_be(read(tx, project, job), etag)
        tx.execute(jobs.update().where(_is(project, job)).values(labels=labels, etag=jobs.c.etag + 1))
        return read(tx, project, job)

    return db.write(save)


def must_be(job: Job, etag: int | None) -> None:
    """Raise Aborted if a job has changed since somebody read it; `etag` None: nobody asks."""
    if etag is not None and etag != job.etag:
        raise errors.Aborted(
            f"The etag does not match: {names.job_name(job.project, job.id)} has changed since it was read "
            f"(it is {job.state.value} now). Read it again, or leave the etag out."
        )


def newest(
    db: Database, project: str, *, limit: int, before: int | None = None, having: sa.ColumnElement[bool] | None = None
) -> list[Job]:
    """Up to `limit` jobs of a project, newest first; of those only that arrived before a position, and are `having`."""
    asked = sa.select(jobs).where(jobs.c.project == project).order_by(jobs.c.position.desc()).limit(limit)
    if having is not None:
        asked = asked.where(having)
    if before is not None:
        asked = asked.where(jobs.c.position < before)
    with db.read() as rows:
        return [_job(row) for row in rows.execute(asked)]


def waiting(rows: sa.Connection, *, worker: str, now: float, queued: bool = True) -> bool:
    """Whether there is something to claim."""
    claimable = _abandoned(worker, now) | line.QUEUED if queued else _abandoned(worker, now)
    return rows.execute(sa.select(jobs.c.id).where(claimable).limit(1)).first() is not None


def claim(
    tx: sa.Connection,
    *,
    worker: str,
    now: float,
    lease: float,
    queued: bool = True,
    fitting: gpus.Fitting = gpus.none,
) -> Job | None:
    """Take a job whose worker fell silent, else (if `queued`) the first in the line that may start; None without any.

    The GPUs that it is given, of those of the host that are `fitting`, are its own from then on.
    """
    turn = (jobs.c.priority.desc(), jobs.c.position)
    row = tx.execute(sa.select(jobs).where(_abandoned(worker, now)).order_by(*turn).limit(1)).first()
    held: dict[str, Any] = {"worker": worker, "lease": now + lease}
    if row is None and queued and (found := line.start(tx, fitting)):  # the abandoned go first: they were promised
        row, held["gpus"] = found
    if row is None:
        return None
    tx.execute(jobs.update().where(_is(row.project, row.id)).values(**held))
    if row.state == State.QUEUED.value:
        return move(tx, row.project, row.id, State.PREPARING, worker=worker)
    return read(tx, row.project, row.id)


def release_all(db: Database) -> None:
    """Every lease ends now. Only for one who knows that no other worker lives: the holder of the home's lock."""
    db.write(lambda tx: tx.execute(jobs.update().where(line.HELD, jobs.c.lease.is_not(None)).values(lease=0.0)))


def renew(db: Database, *, worker: str, until: float) -> None:
    mine = line.HELD & (jobs.c.worker == worker)  # by the index of what is held: not past all that have ended
    db.write(lambda tx: tx.execute(jobs.update().where(mine).values(lease=until)))


def held_by(db: Database, worker: str) -> list[Job]:
    held = jobs.c.state.in_([state.value for state in states.HELD])
    with db.read() as rows:
        return [_job(row) for row in rows.execute(sa.select(jobs).where(held & (jobs.c.worker == worker)))]


def going(rows: sa.Connection) -> set[tuple[str, str]]:
    """(project, id) of every job that has not ended."""
    found = rows.execute(
        sa.select(jobs.c.project, jobs.c.id).where(jobs.c.state.in_([each.value for each in states.MOVES]))
    )
    return {(row.project, row.id) for row in found}


def move(tx: sa.Connection, project: str, job: str, to: State, *, worker: str | None = None, **changes: Any) -> Job:
    """Compare-and-set: the row decides, so two callers cannot both win.

    A worker passes its name; once its lease was taken, so is its word. Raises FailedPrecondition if the job is not in
    a state that leads to `to`, NotFound if there is no such job.
    """
    guard = _is(project, job) & jobs.c.state.in_([state.value for state in states.before(to)])
    if worker is not None:
        guard &= jobs.c.worker == worker
    if to in states.FINAL:
        changes |= {"worker": None, "lease": None}
    moved = tx.execute(jobs.update().where(guard).values(state=to.value, etag=jobs.c.etag + 1, **changes)).rowcount
    line.changed(tx)
    found = read(tx, project, job)
    if not moved:
        raise errors.FailedPrecondition(
            f"The job {job} is {found.state.value} and cannot become {to.value}"
            + (f" by the word of {worker}." if worker else ".")
        )
    return found


def more(attempts: int) -> sa.ColumnElement[int]:
    """For a change of a job's row: so many attempts more."""
    return jobs.c.attempts + attempts


def touch(tx: sa.Connection, project: str, job: str, *, worker: str, **changes: Any) -> None:
    """Change the row of a job that prepares or runs, by the word of its worker. Raises FailedPrecondition."""
    held = _is(project, job) & (jobs.c.worker == worker)
    held &= jobs.c.state.in_([State.PREPARING.value, State.RUNNING.value])
    if not tx.execute(jobs.update().where(held).values(etag=jobs.c.etag + 1, **changes)).rowcount:
        raise errors.FailedPrecondition(f"The job {job} is not {worker}'s any more, or is over.")


def runs(tx: sa.Connection, project: str, job: str, *, now: float) -> None:
    """The job's replica runs its code: PREPARING -> RUNNING. A job that is not PREPARING stays what it is."""
    preparing = _is(project, job) & (jobs.c.state == State.PREPARING.value)
    started = sa.func.coalesce(jobs.c.started, now)  # the first time counts
    tx.execute(jobs.update().where(preparing).values(state=State.RUNNING.value, etag=jobs.c.etag + 1, started=started))
    line.changed(tx)


def cancel(db: Database, project: str, job: str, *, now: float) -> Job:
    """A queued job is cancelled at once, a running one by its worker. Raises FailedPrecondition if it has ended."""

    def save(tx: sa.Connection) -> Job:
        found = read(tx, project, job)
        if found.state in states.FINAL:
            raise errors.FailedPrecondition(f"The job {job} has ended ({found.state.value}); nothing can be cancelled.")
        if found.state is State.CANCELLING:
            return found
        if found.state is State.QUEUED:
            logs.say(tx, project, job, "Job cancelled.", now=now)
            return move(tx, project, job, State.CANCELLED, ended=now)
        logs.say(tx, project, job, "Job cancel requested; stopping its replicas.", now=now)
        return move(tx, project, job, State.CANCELLING)

    return db.write(save)


def waited_out(db: Database, *, now: float) -> list[Job]:
    """The queued jobs whose maxWaitTime is over."""
    late = (jobs.c.state == State.QUEUED.value) & (jobs.c.wait_until < now)
    with db.read() as rows:
        return [_job(row) for row in rows.execute(sa.select(jobs).where(late))]


def cancel_if_over(db: Database, project: str, job: str, *, now: float) -> bool:
    """Cancel a job that has waited or run longer than it may, and say so; False for one that may go on, or has ended.

    The row is judged as it is now: one that began to run meanwhile waits no more.
    """

    def save(tx: sa.Connection) -> bool:
        found = read(tx, project, job)
        why = scheduling.over(found.training, created=found.created, started=found.started, now=now)
        if not why or found.state is State.CANCELLING or found.state in states.FINAL:
            return False
        logs.say(tx, project, job, why, severity="ERROR", now=now)
        if found.state is State.QUEUED:
            logs.say(tx, project, job, "Job cancelled.", now=now)
            move(tx, project, job, State.CANCELLED, error=why, ended=now)
        else:
            move(tx, project, job, State.CANCELLING, error=why)
        return True

    return db.write(save)


def _abandoned(worker: str, now: float) -> sa.ColumnElement[bool]:
    """Held by another worker, whose lease is over. A worker's own jobs are its own, whatever the clock says."""
    return line.HELD & (jobs.c.lease < now) & (jobs.c.worker != worker)


def _is(project: str, job: str) -> sa.ColumnElement[bool]:
    return (jobs.c.project == project) & (jobs.c.id == job)


def _job(row: sa.Row[Any]) -> Job:
    told = dict(row._mapping)
    told["state"] = State(told["state"])
    told["training"] = msgspec.convert(told["training"], TrainingInput)
    return Job(**told)
