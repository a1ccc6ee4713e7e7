"""Which measurement counts, which trial is hopeless, which no other beats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import schemas
from taxiway.jobs import stopping
from taxiway.jobs.stopping import Measured

MEDIAN = schemas.AutomatedStoppingConfig(median_automated_stopping_config=schemas.MedianAutomatedStoppingConfig())
DECAY = schemas.AutomatedStoppingConfig(decay_curve_stopping_config=schemas.DecayCurveAutomatedStoppingConfig())
TIMED = schemas.AutomatedStoppingConfig(
    median_automated_stopping_config=schemas.MedianAutomatedStoppingConfig(use_elapsed_time=True)
)
LOSS = {"loss": "MINIMIZE"}


def curve(*values, metric="loss", every=10, seconds=1.0):
    return [Measured(every * (at + 1), seconds * (at + 1), {metric: value}) for at, value in enumerate(values)]


def falling(end, start=10.0, count=10):
    """A loss that goes from near `start` towards `end`."""
    return curve(*(end + (start - end) / (at + 1) for at in range(count)))


def test_what_counts_of_one_metric_is_the_best_and_of_several_the_last_that_has_them_all():
    assert stopping.final(curve(3, 1, 2), LOSS).values == {"loss": 1}
    assert stopping.final(curve(3, 1, 2), {"loss": "MAXIMIZE"}).values == {"loss": 3}
    both = [Measured(step, 0.0, {"loss": step, "time": 1}) for step in (2, 1)] + [Measured(9, 0.0, {"loss": 0.0})]
    assert stopping.final(both, {"loss": "MINIMIZE", "time": "MINIMIZE"}).step == 2
    assert stopping.final(curve(1, metric="other"), LOSS) is None
    assert stopping.final([], LOSS) is None


def test_a_trial_whose_best_is_below_the_median_of_the_means_so_far_is_hopeless():
    others = [curve(*values) for values in ((5, 3, 1), (6, 4, 1), (7, 5, 1), (8, 6, 1), (9, 7, 1))]
    # The means up to the second measurement are 4, 5, 6, 7 and 8.
    assert stopping.hopeless(MEDIAN, curve(9, 6.1), others, LOSS)
    assert not stopping.hopeless(MEDIAN, curve(9, 6.0), others, LOSS)
    assert not stopping.hopeless(MEDIAN, curve(9, 6.1), others, {"loss": "MAXIMIZE"})
    assert not stopping.hopeless(MEDIAN, curve(9, 6.1), others[1:], LOSS), "four are too few"
    assert not stopping.hopeless(MEDIAN, [], others, LOSS)
    assert not stopping.hopeless(None, curve(9, 6.1), others, LOSS)


def test_the_median_rule_looks_at_steps_or_at_the_time():
    others = [curve(9, 8, 1, 1, seconds=0.25) for _ in range(5)]
    slow = curve(7, 7, seconds=1.0)  # as good as the others at its steps, and worse than they were by its time
    assert not stopping.hopeless(MEDIAN, slow, others, LOSS)
    assert stopping.hopeless(TIMED, slow, others, LOSS)


def test_a_curve_that_cannot_reach_the_best_is_hopeless_and_one_that_may_is_not():
    others = [falling(1.0 + each / 10) for each in range(5)]
    assert stopping.hopeless(DECAY, falling(5.0)[:5], others, LOSS)
    assert not stopping.hopeless(DECAY, falling(0.5)[:5], others, LOSS)
    assert not stopping.hopeless(DECAY, falling(5.0)[:3], others, LOSS), "three measurements are no curve"
    assert not stopping.hopeless(DECAY, falling(5.0)[:5], others[1:], LOSS), "four are too few"
    rising = [[Measured(each.step, each.elapsed, {"loss": -each.values["loss"]}) for each in one] for one in others]
    low = [Measured(each.step, each.elapsed, {"loss": -each.values["loss"]}) for each in falling(5.0)[:5]]
    assert stopping.hopeless(DECAY, low, rising, {"loss": "MAXIMIZE"})


@pytest.mark.parametrize("rule", [MEDIAN, DECAY])
def test_a_trial_that_stands_still_and_equal_values_break_no_rule(rule):
    flat = [curve(1, 1, 1, 1, 1) for _ in range(6)]
    assert not stopping.hopeless(rule, curve(1, 1, 1, 1), flat, LOSS)
    assert stopping.hopeless(rule, curve(2, 2, 2, 2), flat, LOSS)


def test_of_one_metric_the_best_are_optimal():
    assert stopping.optimal({1: [3.0], 2: [1.0], 3: [1.0]}, ["MINIMIZE"]) == [2, 3]
    assert stopping.optimal({1: [3.0], 2: [1.0]}, ["MAXIMIZE"]) == [1]
    assert stopping.optimal({}, ["MAXIMIZE"]) == []


figures = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=25)


@given(figures, st.lists(st.sampled_from(["MINIMIZE", "MAXIMIZE"]), min_size=3, max_size=3))
def test_the_front_is_all_that_nothing_dominates(found, goals):
    def dominates(one, other):
        signed = [(a, b) if goal == "MAXIMIZE" else (-a, -b) for a, b, goal in zip(one, other, goals, strict=True)]
        return all(a >= b for a, b in signed) and any(a > b for a, b in signed)

    wanted = [number for number, each in enumerate(found) if not any(dominates(other, each) for other in found)]
    assert stopping.optimal(dict(enumerate(found)), goals) == wanted
