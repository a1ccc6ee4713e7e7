"""The life of a job as a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway.jobs import states
from taxiway.jobs.states import FINAL, HELD, MOVES, State


def test_the_final_states_are_those_that_google_calls_so():
    assert set(FINAL) == {State.SUCCEEDED, State.FAILED, State.CANCELLED}


@pytest.mark.parametrize("state", State)
def test_every_state_is_final_or_held_or_queued(state):
    assert (state in FINAL) + (state in HELD) + (state is State.QUEUED) == 1


@pytest.mark.parametrize("state", [state for state in State if state not in FINAL])
def test_every_job_can_come_to_an_end_and_be_cancelled(state):
    reached, frontier = set(), {state}
    while frontier:
        reached |= frontier
        frontier = {after for each in frontier for after in MOVES.get(each, ())} - reached
    assert State.CANCELLED in reached
    assert reached & set(FINAL)


def test_a_job_that_is_being_cancelled_never_succeeds_or_runs_again():
    assert not MOVES[State.CANCELLING] & {State.SUCCEEDED, State.RUNNING, State.PREPARING, State.QUEUED}


def test_nothing_leads_back_to_the_queue():
    assert states.before(State.QUEUED) == []


@given(st.sampled_from(State), st.sampled_from(State))
def test_before_is_the_table_read_backwards(earlier, later):
    assert (earlier in states.before(later)) == (later in MOVES.get(earlier, ()))
