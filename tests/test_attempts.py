"""Attempts: one replica has one word at a time."""

from __future__ import annotations

import time

import pytest

from taxiway import errors, plan
from taxiway.compute import attempts
from taxiway.handles import Exit
from taxiway.iam import keys, projects
from taxiway.schemas import TrainingInput

PROJECT = "rides-1"
ACCOUNT = projects.account_email(PROJECT, "sa")


@pytest.fixture
def db(db):
    db.write(lambda tx: projects.create(tx, PROJECT, owners=["user:o@x.org"], now=0))
    db.write(lambda tx: projects.create_account(tx, PROJECT, ACCOUNT, "A job's", now=0))
    return db


def create(db, name, subject="job_1", kind="job", now=1.0):
    told = TrainingInput(python_module="trainer.task", region="us-central1")
    (work,) = plan.training(PROJECT, 7, subject, told, runtime="2.21", python="3.11")
    return db.write(lambda tx: attempts.create(tx, name, kind, work, identity=ACCOUNT, now=now))


def hear(db, name, state, now=2.0):
    return db.write(lambda tx: attempts.hear(tx, name, state, now=now))


def test_a_successor_fences_every_earlier_attempt_of_its_replica_and_no_other(db):
    create(db, "a1")
    create(db, "b1", subject="job_2")
    create(db, "c1", kind="version")
    second = create(db, "a2", now=5)
    assert (second.number, second.state) == (2, "STARTED")
    assert [attempts.get(db, name).state for name in ("a1", "b1", "c1")] == ["FENCED", "STARTED", "STARTED"]
    with db.read() as rows:
        assert attempts.last(rows, PROJECT, "job", "job_1").id == "a2"
        assert attempts.known(rows, ["a1", "zz", "a2"]) == {"a1", "a2"}
        assert attempts.growing(rows) == {(PROJECT, "job_1"), (PROJECT, "job_2")}


def test_states_only_go_forward_and_a_move_is_told_once(db):
    create(db, "a1")
    assert hear(db, "a1", "PREPARING").state == "PREPARING"
    assert hear(db, "a1", "RUNNING").state == "RUNNING"
    assert hear(db, "a1", "RUNNING") is None
    assert hear(db, "a1", "PREPARING", now=9) is None
    assert (attempts.get(db, "a1").state, attempts.get(db, "a1").heard) == ("RUNNING", 9)


def test_a_state_that_no_living_replica_has_is_refused_by_its_field(db):
    create(db, "a1")
    for state in ("ENDED", "FENCED", "", "running"):
        with pytest.raises(errors.InvalidArgument, match="Field: state"):
            hear(db, "a1", state)


def test_a_report_that_is_sent_twice_is_heard_once(db):
    create(db, "a1")
    attempts.finish(db, "a1", Exit(3, "it broke"), now=4)
    attempts.finish(db, "a1", Exit(3, "it broke"), now=5)
    ended = attempts.get(db, "a1")
    assert (ended.state, ended.exit_code, ended.error, ended.ended) == ("ENDED", 3, "it broke", 4)


def test_nothing_that_a_superseded_attempt_says_counts(db):
    create(db, "a1")
    create(db, "a2")
    for act in (
        lambda: hear(db, "a1", "RUNNING"),
        lambda: attempts.finish(db, "a1", Exit(0, ""), now=4),
        lambda: db.write(lambda tx: attempts.must_live(tx, "a1")),
    ):
        with pytest.raises(errors.FailedPrecondition, match="superseded"):
            act()
    assert attempts.get(db, "a1").exit_code is None
    assert attempts.get(db, "a2").state == "STARTED"


@pytest.mark.parametrize("end", ["superseded", "fenced", "ended"])
def test_the_tokens_of_an_attempt_die_with_it(db, end):
    signer, now = keys.Keys(b"s" * 32), time.time()
    create(db, "a1")
    own = signer.replica_token("a1", now=now)
    identity = signer.access_token(f"serviceAccount:{ACCOUNT}", now=now, attempt="a1")
    assert signer.caller(db, own, now=now).attempt == "a1"
    assert signer.caller(db, identity, now=now).email == ACCOUNT
    if end == "superseded":
        create(db, "a2")
    elif end == "fenced":
        db.write(lambda tx: attempts.fence(tx, "a1", now=2))
    else:
        attempts.finish(db, "a1", Exit(0, ""), now=2)
    for token in (own, identity):
        with pytest.raises(errors.Unauthenticated, match="attempt a1, which has ended or was superseded"):
            signer.caller(db, token, now=now)


def test_an_attempt_that_was_never_made_is_not_found(db):
    with pytest.raises(errors.NotFound, match="There is no attempt 'x'"):
        attempts.get(db, "x")


def gang(db, name, *, trial=None, count=3, now=1.0):
    told = TrainingInput(python_module="trainer.task", region="us-central1")
    seats = [plan.Seat(), *[plan.Seat("worker")] * (count - 1)]
    ports = range(5000, 5000 + count)
    works = plan.training(
        PROJECT, 7, "job_1", told, runtime="2.21", python="3.11", seats=seats, ports=ports, gang=name, trial=trial
    )
    return db.write(
        lambda tx: [
            attempts.create(tx, f"{name}-{each.place}", "job", each, identity=ACCOUNT, now=now) for each in works
        ]
    )


def up(db, name):
    with db.read() as rows:
        return attempts.all_up(rows, attempts.read(rows, name))


def test_a_gang_is_up_when_the_code_of_each_of_its_replicas_runs_or_has_run(db):
    gang(db, "g")
    hear(db, "g-0", "RUNNING")
    hear(db, "g-1", "RUNNING")
    assert not up(db, "g-0")
    hear(db, "g-2", "RUNNING")
    assert up(db, "g-0")
    attempts.finish(db, "g-1", Exit(0, ""), now=4)
    assert up(db, "g-0")
    with db.read() as rows:
        assert attempts.known(rows, ["g", "g-1", "elsewhere"]) == {"g", "g-1"}
        assert [each.id for each in attempts.latest(rows, PROJECT, "job", "job_1")] == ["g-0", "g-1", "g-2"]


def test_trials_have_replicas_of_their_own_and_numbers_that_none_shares(db):
    """So that a line of one trial is never taken for that of another."""
    one, two = (gang(db, f"t{number}", trial=plan.Trial(number, ["--x", "1"], "loss"), count=2) for number in (1, 2))
    assert [(each.trial, each.task, each.number) for each in (*one, *two)] == [
        ("1", "master-replica-0", 1),
        ("1", "worker-replica-0", 1),
        ("2", "master-replica-0", 2),
        ("2", "worker-replica-0", 2),
    ]
    assert {attempts.get(db, each.id).state for each in (*one, *two)} == {"STARTED"}
    hear(db, "t1-0", "RUNNING")
    hear(db, "t1-1", "RUNNING")
    assert up(db, "t1-0")  # whatever the other trial does
    assert not up(db, "t2-0")
