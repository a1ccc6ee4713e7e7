"""Who goes first, how long a job may wait and run, why it waits, and what it consumed: the clock is an argument."""

from __future__ import annotations

import pytest

from taxiway import errors
from taxiway.compute import filters, logs
from taxiway.iam import projects
from taxiway.jobs import line, queue, scheduling, units
from taxiway.jobs.states import State
from taxiway.schemas import Scheduling, TrainingInput

PROJECT = "rides-1"
OTHER = "trees-1"


@pytest.fixture
def db(db):
    for project in (PROJECT, OTHER):
        db.write(lambda tx, project=project: projects.create(tx, project, owners=["user:o@x.org"], now=0))
    return db


def create(db, job, now=0.0, project=PROJECT, **rules):
    told = TrainingInput(python_module="trainer.task", scheduling=Scheduling(**rules) if rules else None)
    return queue.create(db, project, job, told, {}, creator="user:o", now=now)


def claim(db, now=10.0, worker="w1"):
    return db.write(lambda tx: queue.claim(tx, worker=worker, now=now, lease=60.0))


def move(db, job, to, **changes):
    return db.write(lambda tx: queue.move(tx, PROJECT, job, to, **changes))


def over(db, job, now):
    return queue.cancel_if_over(db, PROJECT, job, now=now)


def last_queued(db):
    with db.read() as rows:
        return line.last_queued(rows)


def said(db, job, project=PROJECT):
    return [
        entry.message for entry in logs.page(db, [project], filters.sql(f'resource.labels.job_id="{job}"'), limit=99)
    ]


# --- priority ---


def test_the_higher_priority_is_claimed_first_and_then_the_one_that_came_first(db):
    for job, rules in {"a": {}, "b": {"priority": 5}, "c": {"priority": 1000}, "d": {"priority": 5}}.items():
        create(db, job, **rules)
    assert line.Line(db).now().places == {1: 3, 2: 1, 3: 0, 4: 2}
    assert [claim(db).id for _ in range(4)] == ["c", "b", "d", "a"]


def test_a_job_that_a_worker_abandoned_goes_before_every_priority(db):
    create(db, "a")
    claim(db)
    create(db, "b", priority=1000)
    queue.release_all(db)
    assert [claim(db, worker="w2").id for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize(
    ("rules", "field", "words"),
    [
        ({"priority": -1}, "priority", "from 0 to 1000"),
        ({"priority": 1001}, "priority", "it is 1001"),
        ({"max_wait_time": 1799.5}, "maxWaitTime", "must be 1800s or more; it is 1799.5s"),
        ({"max_running_time": 0.0}, "maxRunningTime", "must be more than 0s"),
        ({"max_running_time": -5.0}, "maxRunningTime", "it is -5s"),
    ],
)
def test_what_cannot_be_promised_is_a_fault_of_its_field(rules, field, words):
    ((name, sentence),) = scheduling.faults(Scheduling(**rules))
    assert name == f"trainingInput.scheduling.{field}"
    assert words in sentence


def test_the_limits_themselves_are_no_faults():
    assert not list(scheduling.faults(Scheduling(priority=0, max_wait_time=1800.0, max_running_time=0.5)))
    assert not list(scheduling.faults(Scheduling(priority=1000)))
    assert not list(scheduling.faults(Scheduling()))


# --- waiting ---


def test_a_queued_job_that_waited_too_long_is_cancelled_and_says_why(db):
    create(db, "a", now=100, max_wait_time=1800.0)
    create(db, "b", now=100)  # waits for ever
    assert queue.waited_out(db, now=1900) == []
    assert not over(db, "a", now=1900)
    assert [job.id for job in queue.waited_out(db, now=1901)] == ["a"]
    assert over(db, "a", now=1901)
    job = queue.get(db, PROJECT, "a")
    why = "The job waited longer than its maxWaitTime of 1800s and was cancelled."
    assert (job.state, job.error, job.ended) == (State.CANCELLED, why, 1901)
    assert said(db, "a")[-2:] == [why, "Job cancelled."]
    assert queue.waited_out(db, now=10**9) == []
    assert not over(db, "a", now=10**9)
    assert not over(db, "b", now=10**9)


def test_preparing_is_waiting_and_running_is_not(db):
    create(db, "a", max_wait_time=1800.0)
    claim(db)
    create(db, "b", max_wait_time=1800.0)
    claim(db)
    db.write(lambda tx: queue.runs(tx, PROJECT, "b", now=1700))
    assert over(db, "a", now=1801)
    assert not over(db, "b", now=1801)
    assert (queue.get(db, PROJECT, "a").state, queue.get(db, PROJECT, "b").state) == (State.CANCELLING, State.RUNNING)
    move(db, "b", State.PREPARING)  # its replica was lost; it has run, and waits no more
    assert not over(db, "b", now=1900)


# --- running ---


def test_a_job_that_ran_too_long_is_being_cancelled_and_keeps_the_reason(db):
    create(db, "a", max_running_time=60.0)
    claim(db)
    move(db, "a", State.RUNNING, started=1000.0)
    assert not over(db, "a", now=1060)
    assert over(db, "a", now=1061)
    assert not over(db, "a", now=1062)  # once is enough
    assert queue.get(db, PROJECT, "a").state is State.CANCELLING
    ended = move(db, "a", State.CANCELLED, ended=1063.0)
    assert ended.error == "The job ran longer than its maxRunningTime of 60s and was cancelled."
    assert said(db, "a").count(ended.error) == 1


def test_seven_days_are_the_limit_of_a_job_that_names_none(db):
    create(db, "a")
    claim(db)
    move(db, "a", State.RUNNING, started=1000.0)
    assert not over(db, "a", now=1000 + 604_800)
    assert over(db, "a", now=1001 + 604_800)
    assert "maxRunningTime of 604800s" in queue.get(db, PROJECT, "a").error


# --- why a job waits ---


def test_each_waiting_job_is_told_once_whom_it_waits_for(db):
    for job in ("a", "b"):
        create(db, job)
        claim(db)
    create(db, "elsewhere", project=OTHER)
    claim(db)
    for job, rules in {"c": {}, "d": {"priority": 9}}.items():
        create(db, job, **rules)

    def explain(after):
        return line.Line(db).explain(most=3, after=after, now=20.0)

    last = explain(0)
    assert last == last_queued(db) == queue.get(db, PROJECT, "d").position
    running = "3 run (a, b, 1 of other projects), 3 may at once"
    assert said(db, "c")[-1] == f"Waiting for another job to end: {running}, and 1 queued job starts before this one."
    assert said(db, "d")[-1] == f"Waiting for another job to end: {running}, and no queued job starts before this one."
    create(db, "e", project=OTHER)
    assert explain(last) > last
    assert said(db, "e", OTHER)[-1].endswith(
        "3 run (elsewhere, 2 of other projects), 3 may at once, and 1 queued job starts before this one."
    )
    assert [sum(told.startswith("Waiting for another") for told in said(db, job)) for job in ("c", "d")] == [1, 1]


def test_a_long_queue_is_told_piece_by_piece(db):
    create(db, "held")
    claim(db)
    for number in range(line.AT_ONCE + 1):
        create(db, f"j{number}", priority=number)
    after = 0
    for number in (line.AT_ONCE - 1, line.AT_ONCE):
        after = line.Line(db).explain(most=1, after=after, now=20.0)
        assert after == queue.get(db, PROJECT, f"j{number}").position
    told = [told for number in range(line.AT_ONCE + 1) for told in said(db, f"j{number}") if "1 run (held)" in told]
    assert len(told) == line.AT_ONCE + 1
    assert after == last_queued(db)


# --- labels ---


def test_labels_are_replaced_only_by_who_read_the_job_as_it_is(db):
    job = create(db, "a")
    changed = queue.set_labels(db, PROJECT, "a", {"owner": "ann"}, etag=job.etag)
    assert (changed.labels, changed.etag) == ({"owner": "ann"}, job.etag + 1)
    with pytest.raises(errors.Aborted, match=r"projects/rides-1/jobs/a has changed since it was read \(it is QUEUED"):
        queue.set_labels(db, PROJECT, "a", {}, etag=job.etag)
    queue.cancel(db, PROJECT, "a", now=1)
    assert queue.set_labels(db, PROJECT, "a", {}, etag=None).labels == {}  # in whatever state
    with pytest.raises(errors.NotFound):
        queue.set_labels(db, PROJECT, "x", {}, etag=None)


# --- ML units ---


def test_units_are_the_hours_that_a_job_ran_times_those_of_its_machines():
    assert units.consumed(0.3878, started=100.0, ended=100.0 + 3600) == 0.39
    assert units.consumed(4.0571, started=0.0, ended=1800.0) == 2.03
    assert units.consumed(0.3878, started=None, ended=50.0) is None  # cancelled in the queue
    assert units.consumed(0.3878, started=60.0, ended=50.0) == 0  # the clock was set back
