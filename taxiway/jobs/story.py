"""What is told of a job beyond Google's fields, under `taxiway` in the answer of jobs.get: why it waits and until when,
how long each stage of its start took, each of its attempts, and that nothing of them is left.

Google's clients read past a field that they do not know; gcloud prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from taxiway import plan
from taxiway.compute import attempts
from taxiway.compute.attempts import Attempt
from taxiway.db.database import Database
from taxiway.jobs import line, restarts
from taxiway.jobs.line import Line
from taxiway.jobs.queue import Job
from taxiway.jobs.states import State
from taxiway.jobs.tuner import KIND
from taxiway.schemas import Duration, Int32, Message, Timestamp, output


class Waiting(Message, frozen=True, kw_only=True):
    """A queued job's place in the line."""

    reason: Annotated[str, output("Why it waits, in a sentence.")]
    ahead: Annotated[Int32, output("How many queued jobs start before it.")]
    behind: Annotated[tuple[str, ...], output("The first five of its own project among them.")] = ()
    estimated_start_time: Annotated[
        Timestamp | None,
        output("A guess from the limits of jobs and what the last ones took; absent if too little is known."),
    ] = None


class Stage(Message, frozen=True, kw_only=True):
    """A part of a job's start. One that is not over has no duration."""

    stage: Annotated[str, output("validate, queue, environment, import (until the first line), first line.")]
    start_time: Annotated[Timestamp, output("When it began.")]
    duration: Annotated[Duration | None, output("How long it took.")] = None


class Try(Message, frozen=True, kw_only=True):
    """One start of a job's replica."""

    attempt: Annotated[Int32, output("1, 2, ...")]
    task: Annotated[str, output("The replica, such as master-replica-0.")]
    trial: Annotated[str, output("The trial that it works on, of a job that tunes.")] = ""
    restart: Annotated[Int32, output("How often the replica was started again before, within this try of the job.")]
    retry: Annotated[Int32, output("How often the whole job was tried again before.")]
    start_time: Annotated[Timestamp, output("When it was committed.")]
    end_time: Annotated[Timestamp | None, output("When it ended, or was superseded.")] = None
    reason: Annotated[
        str, output("Why it ended: Completed, Error, Signal, OOM, Disk, Lost, Cancelled; empty while it lives.")
    ] = ""
    exit_code: Annotated[Int32 | None, output("Its program's exit code; 128 + the signal that ended it.")] = None
    check_time: Annotated[
        Timestamp | None, output("When its processes, control groups, folders and tokens were looked for.")
    ] = None
    left: Annotated[dict[str, Int32] | None, output("How many of each were found then: 0 is as it must be.")] = None


class Story(Message, frozen=True, kw_only=True):
    """What we know of a job that Google's messages have no field for."""

    waiting: Annotated[Waiting | None, output("Why it waits; of a queued job alone.")] = None
    startup: Annotated[tuple[Stage, ...], output("Its start, stage by stage.")] = ()
    attempts: Annotated[tuple[Try, ...], output("Each start of its replica, the first one first.")] = ()


def tell(db: Database, waiting: Line, job: Job, *, most: int, now: float) -> Story:
    """`most` jobs may run at once."""
    with db.read() as rows:
        tries = attempts.of(rows, job.project, KIND, job.id)
    wait = waiting.now().wait(job.position, most=most, now=now) if job.state is State.QUEUED else None
    return Story(
        waiting=_waiting(wait) if wait else None, startup=tuple(_stages(job, tries)), attempts=tuple(map(_told, tries))
    )


def _waiting(wait: line.Wait) -> Waiting:
    return Waiting(reason=wait.reason, ahead=wait.ahead, behind=tuple(wait.behind), estimated_start_time=wait.starts)


def _stages(job: Job, tries: Sequence[Attempt]) -> Iterator[Stage]:
    """The queue ends with the first attempt; the other stages are the primary's last one's."""
    queued = job.created if job.queued is None else job.queued
    tries = [each for each in tries if each.task == plan.MASTER]
    yield _stage("validate", job.created, queued)
    yield _stage("queue", queued, tries[0].created if tries else job.ended)
    if not tries:
        return
    last = tries[-1]
    yield _stage("environment", last.created, last.ran or last.ended)
    if last.ran is not None:
        yield _stage("import", last.ran, last.spoke or last.ended)
    if last.spoke is not None:
        yield _stage("first line", last.spoke, None)


def _stage(name: str, begun: float, over: float | None) -> Stage:
    """A clock that was set back in between makes no negative time."""
    return Stage(stage=name, start_time=begun, duration=None if over is None else max(0.0, over - begun))


def _told(attempt: Attempt) -> Try:
    remains = attempt.remains or {}
    return Try(
        attempt=attempt.number,
        task=attempt.task,
        trial=attempt.trial,
        restart=attempt.restart,
        retry=attempt.retry,
        start_time=attempt.created,
        end_time=attempt.ended,
        reason="" if attempt.live else attempt.reason or restarts.reason(attempt),
        exit_code=attempt.exit_code,
        check_time=remains.get("time"),
        left=remains.get("found"),
    )
