"""A wall clock that jumps, beside one that does not: neither is waited for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway.iam import projects
from taxiway.jobs import queue
from taxiway.jobs.clock import JUMP_S, Clock
from taxiway.jobs.states import State
from taxiway.schemas import Scheduling, TrainingInput

PROJECT = "rides-1"


class Hands:
    """Both clocks of a machine: time passes on both, and the wall clock can be set."""

    def __init__(self):
        self.wall, self.steady = 1000.0, 7.0
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds):
        self.wall += seconds
        self.steady += seconds
        return self.clock.look()

    def is_set(self, seconds):
        self.wall += seconds
        return self.clock.look()


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(-5000, 5000))))
def test_a_limit_is_never_over_too_early_however_the_clock_is_set(walk):
    hands = Hands()
    moments = {hands.wall: hands.steady}  # two that bear one time are one: nobody can tell them apart
    for seconds, jump in walk:
        hands.passes(seconds)
        moments.setdefault(hands.wall, hands.steady)
        hands.is_set(jump)
        moments.setdefault(hands.wall, hands.steady)
        for moment, steady in moments.items():
            passed = hands.steady - steady
            assert 0 <= hands.clock.since(moment) - moment <= passed + JUMP_S * (2 * len(walk) + 1)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 10**9])
def test_what_passed_counts_and_not_by_how_much_the_clock_was_set(jump):
    hands = Hands()
    begun = hands.wall
    hands.passes(30)
    hands.clock.since(begun)  # as the worker asks in every turn
    hands.is_set(jump)
    hands.passes(12)
    assert hands.clock.since(begun) - begun == pytest.approx(42)


def test_who_first_asks_after_a_jump_is_never_told_too_much():
    ahead, back = Hands(), Hands()
    for hands, jump in ((ahead, 3600), (back, -3600)):
        hands.passes(30)
        hands.is_set(jump)
        hands.passes(12)
    assert ahead.clock.since(1000.0) == pytest.approx(1042)
    assert back.clock.since(1000.0) == 1000.0  # it may have been after the jump as well
    assert back.clock.since(-5000.0) == pytest.approx(1042)
    assert back.clock.latest() == pytest.approx(1042 + JUMP_S)


def test_small_corrections_are_not_jumps():
    hands = Hands()
    begun = hands.wall
    for _ in range(10):
        hands.passes(1)
        hands.is_set(0.01)
    assert hands.clock.since(begun) == hands.wall


def test_a_clock_that_jumps_neither_ends_a_job_nor_takes_it_from_its_worker(db):
    db.write(lambda tx: projects.create(tx, PROJECT, owners=["user:o@x.org"], now=0))
    hands = Hands()
    told = TrainingInput(python_module="t", scheduling=Scheduling(max_running_time=60.0, max_wait_time=1800.0))
    for job in ("a", "b"):
        queue.create(db, PROJECT, job, told, {}, creator="user:o", now=hands.wall)

    def claim():
        return db.write(lambda tx: queue.claim(tx, worker="w1", now=hands.wall, lease=60.0, queued=False))

    started = hands.wall
    db.write(lambda tx: queue.claim(tx, worker="w1", now=started, lease=60.0))
    db.write(lambda tx: queue.runs(tx, PROJECT, "a", now=started))
    hands.passes(10)
    hands.is_set(100_000)
    assert claim() is None  # its lease is over by the wall; it is this worker's own
    assert [job.id for job in queue.waited_out(db, now=hands.clock.latest())] == ["b"]
    for job, since in (("a", started), ("b", 1000.0)):
        assert not queue.cancel_if_over(db, PROJECT, job, now=hands.clock.since(since))
    hands.passes(51)
    assert queue.cancel_if_over(db, PROJECT, "a", now=hands.clock.since(started))
    assert queue.get(db, PROJECT, "b").state is State.QUEUED
