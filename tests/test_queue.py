"""Jobs as rows: who may move one, who holds it, and what is left for whom."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway import errors
from taxiway.compute import filters, logs
from taxiway.iam import projects
from taxiway.jobs import line, queue, states
from taxiway.jobs.states import FINAL, MOVES, State
from taxiway.schemas import TrainingInput

PROJECT = "rides-1"


@pytest.fixture
def db(db):
    db.write(lambda tx: projects.create(tx, PROJECT, owners=["user:o@x.org"], now=0))
    return db


def create(db, job, now=1.0):
    return queue.create(db, PROJECT, job, TrainingInput(python_module="trainer.task"), {}, creator="user:o", now=now)


def claim(db, worker="w1", now=10.0, lease=60.0, **rest):
    return db.write(lambda tx: queue.claim(tx, worker=worker, now=now, lease=lease, **rest))


def move(db, job, to, **rest):
    return db.write(lambda tx: queue.move(tx, PROJECT, job, to, **rest))


def said(db, job):
    return [
        entry.message for entry in logs.page(db, [PROJECT], filters.sql(f'resource.labels.job_id="{job}"'), limit=99)
    ]


def test_a_job_is_queued_with_what_the_service_says_of_it(db):
    job = create(db, "a", now=5)
    assert (job.state, job.created, job.attempts, job.worker) == (State.QUEUED, 5, 0, None)
    assert queue.get(db, PROJECT, "a") == job
    assert said(db, "a") == [
        "Validating job requirements...",
        "Job creation request has been successfully validated.",
        "Job a is queued.",
    ]


def test_an_id_is_never_used_twice_even_when_its_job_has_ended(db):
    create(db, "a")
    queue.cancel(db, PROJECT, "a", now=2)
    with pytest.raises(errors.AlreadyExists, match=r"Field: job.job_id .*'a' exists already in projects/rides-1"):
        create(db, "a")
    assert queue.get(db, PROJECT, "a").state is State.CANCELLED


def test_ids_differ_by_case(db):
    create(db, "a")
    create(db, "A")
    assert [job.id for job in queue.newest(db, PROJECT, limit=9)] == ["A", "a"]


def test_the_oldest_is_claimed_first_and_once(db):
    for name in ("a", "b"):
        create(db, name)
    assert line.Line(db).now().places == {1: 0, 2: 1}
    claimed = [claim(db, worker) for worker in ("w1", "w2", "w3")]
    assert [job and (job.id, job.worker, job.state) for job in claimed] == [
        ("a", "w1", State.PREPARING),
        ("b", "w2", State.PREPARING),
        None,
    ]


def test_of_many_workers_at_once_one_gets_each_job(db):
    for number in range(20):
        create(db, f"j{number}")
    got = []
    workers = [
        threading.Thread(target=lambda name=name: [got.append(job.id) for _ in range(10) if (job := claim(db, name))])
        for name in ("w1", "w2", "w3", "w4")
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert sorted(got) == sorted(f"j{number}" for number in range(20))


def test_a_silent_worker_loses_its_job_and_its_word(db):
    create(db, "a")
    claim(db, "w1", now=1, lease=60)
    assert claim(db, "w2", now=60) is None
    with db.read() as rows:
        assert not queue.waiting(rows, worker="w2", now=60)
        assert queue.waiting(rows, worker="w2", now=62)
        assert not queue.waiting(rows, worker="w1", now=10**9)  # its own job is its own, whatever the clock says
    assert claim(db, "w2", now=62).worker == "w2"
    with pytest.raises(errors.FailedPrecondition, match="by the word of w1"):
        move(db, "a", State.RUNNING, worker="w1")
    assert move(db, "a", State.RUNNING, worker="w2").state is State.RUNNING


def test_a_lease_that_is_renewed_holds(db):
    create(db, "a")
    claim(db, "w1", now=1, lease=60)
    queue.renew(db, worker="w1", until=200)
    assert claim(db, "w2", now=100) is None
    assert [job.id for job in queue.held_by(db, "w1")] == ["a"]


def test_an_abandoned_job_goes_before_a_queued_one_and_needs_no_room(db):
    for name in ("a", "b"):
        create(db, name)
    claim(db, "w1")
    queue.release_all(db)
    assert claim(db, "w2", queued=False).id == "a"
    assert claim(db, "w2", queued=False) is None
    assert claim(db, "w2").id == "b"


def test_who_ends_a_job_holds_it_no_more(db):
    create(db, "a")
    claim(db, "w1")
    move(db, "a", State.RUNNING, worker="w1", started=11.0)
    job = move(db, "a", State.SUCCEEDED, worker="w1", ended=12.0)
    assert (job.state, job.worker, job.lease, job.started, job.ended) == (State.SUCCEEDED, None, None, 11, 12)
    assert queue.held_by(db, "w1") == []


def test_a_job_runs_when_its_replica_says_so_and_the_first_time_counts(db):
    create(db, "a")
    claim(db, "w1")
    for now in (20.0, 30.0):
        db.write(lambda tx, now=now: queue.runs(tx, PROJECT, "a", now=now))
        assert (queue.get(db, PROJECT, "a").state, queue.get(db, PROJECT, "a").started) == (State.RUNNING, 20)
        move(db, "a", State.PREPARING, worker="w1")
    queue.cancel(db, PROJECT, "a", now=40)
    db.write(lambda tx: queue.runs(tx, PROJECT, "a", now=50))
    assert queue.get(db, PROJECT, "a").state is State.CANCELLING


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_by_its_worker(db):
    create(db, "a")
    assert queue.cancel(db, PROJECT, "a", now=3).state is State.CANCELLED
    assert queue.get(db, PROJECT, "a").ended == 3
    create(db, "b")
    claim(db, "w1")
    assert queue.cancel(db, PROJECT, "b", now=4).state is State.CANCELLING
    assert queue.cancel(db, PROJECT, "b", now=5).state is State.CANCELLING  # once more is no fault
    assert said(db, "b").count("Job cancel requested; stopping its replicas.") == 1


@pytest.mark.parametrize("end", FINAL)
def test_what_has_ended_is_not_cancelled(db, end):
    create(db, "a")
    claim(db, "w1")
    move(db, "a", State.CANCELLING if end is State.CANCELLED else State.RUNNING)
    move(db, "a", end)
    with pytest.raises(errors.FailedPrecondition, match=rf"has ended \({end.value}\)"):
        queue.cancel(db, PROJECT, "a", now=9)


def test_what_does_not_exist_is_not_found(db):
    for act in (lambda: queue.get(db, PROJECT, "x"), lambda: queue.cancel(db, PROJECT, "x", now=1)):
        with pytest.raises(errors.NotFound, match="projects/rides-1/jobs/x does not exist"):
            act()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(State), min_size=1, max_size=8))
def test_a_row_goes_where_the_table_leads_and_nowhere_else(db, wanted):
    job = create(db, f"j{len(queue.newest(db, PROJECT, limit=1000))}")
    for to in wanted:
        before = queue.get(db, PROJECT, job.id)
        if to in MOVES.get(before.state, ()):
            assert move(db, job.id, to).etag == before.etag + 1
        else:
            with pytest.raises(errors.FailedPrecondition):
                move(db, job.id, to)
            assert queue.get(db, PROJECT, job.id) == before
    assert queue.get(db, PROJECT, job.id).state in states.State
