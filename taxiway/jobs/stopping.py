"""What trials' measurements come to: the one that counts, whether a trial is hopeless, which trials no other beats.

Pure. The median rule is the one that Google's discovery document of ML v1 describes; of its decay curve the document
says no more than the name, and what is here is ours: a power law through a trial's values, drawn on to where others
ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from taxiway.jobs.space import MINIMIZE
from taxiway.schemas import AutomatedStoppingConfig

FEWEST = 5  # completed trials before any other is judged
BEND = 4  # measurements before a curve is drawn
POWERS = tuple(step / 10 for step in range(1, 31))  # of the decay that are tried
DOUBT = 2.0  # standard deviations around the curve that a trial is given


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a trial at one moment: after so many steps, if they were told, and seconds."""

    step: int | None
    elapsed: float
    values: Mapping[str, float]

    @property
    def place(self) -> tuple[int, float]:
        return self.step or 0, self.elapsed


Curve = Sequence[tuple[float, float]]  # (step or seconds, value), in their order


def final(measured: Sequence[Measured], goals: Mapping[str, str]) -> Measured | None:
    """What counts if nobody says: the best, of a single metric; of several the last that has them all."""
    whole = [each for each in measured if goals.keys() <= each.values.keys()]
    if not whole:
        return None
    if len(goals) > 1:
        return max(whole, key=lambda each: each.place)
    ((metric, goal),) = goals.items()
    return max(whole, key=lambda each: _better(each.values[metric], goal))


def optimal(finals: Mapping[int, Sequence[float]], goals: Sequence[str]) -> list[int]:
    """The trials that no other beats: none is as good in every metric and better in one (the Pareto front)."""
    losses = {
        number: tuple(-_better(*each) for each in zip(held, goals, strict=True)) for number, held in finals.items()
    }
    front: list[int] = []
    for number in sorted(losses, key=lambda number: losses[number]):  # nobody is beaten by one that comes after it
        if not any(_beats(losses[other], losses[number]) for other in front):
            front.append(number)
    return sorted(front)


def hopeless(
    rule: AutomatedStoppingConfig | None,
    trial: Sequence[Measured],
    completed: Sequence[Sequence[Measured]],
    goals: Mapping[str, str],
) -> bool:
    """Whether a trial should end early, seen beside the completed ones. Never by less than FEWEST of these."""
    if rule is None or len(goals) != 1:
        return False
    ((metric, goal),) = goals.items()
    if rule.median_automated_stopping_config is not None:
        timed = rule.median_automated_stopping_config.use_elapsed_time
        return _below_median(*_curves(trial, completed, metric, goal, timed=timed))
    if rule.decay_curve_stopping_config is not None:
        timed = rule.decay_curve_stopping_config.use_elapsed_time
        return _out_of_reach(*_curves(trial, completed, metric, goal, timed=timed))
    return False


def _curves(
    trial: Sequence[Measured], completed: Sequence[Sequence[Measured]], metric: str, goal: str, *, timed: bool
) -> tuple[Curve, list[Curve]]:
    """Every trial's curve, with the sign that makes more better; completed ones without a measurement have none."""

    def curve(measured: Sequence[Measured]) -> Curve:
        held = [each for each in measured if metric in each.values and (timed or each.step is not None)]
        return sorted((each.elapsed if timed else each.step or 0, _better(each.values[metric], goal)) for each in held)

    return curve(trial), [found for each in completed if (found := curve(each))]


def _below_median(trial: Curve, completed: Sequence[Curve]) -> bool:
    """Its best value is below the median of what the others' values came to, in the mean, up to the same place."""
    if not trial:
        return False
    place = trial[-1][0]
    until = [[value for at, value in curve if at <= place] for curve in completed]
    means = [math.fsum(values) / len(values) for values in until if values]
    return len(means) >= FEWEST and max(value for _, value in trial) < median(means)


def _out_of_reach(trial: Curve, completed: Sequence[Curve]) -> bool:
    """Its curve, drawn on to where half of the others had ended, stays below the best that was reached."""
    if len(completed) < FEWEST or len(trial) < BEND:
        return False
    horizon = median(curve[-1][0] for curve in completed)
    best = max(value for curve in completed for _, value in curve)
    reached = max(value for _, value in trial)
    if trial[-1][0] >= horizon:
        return reached < best
    drawn, doubt = _drawn(trial, max(horizon, 1e-9))
    return max(reached, drawn + DOUBT * doubt) < best


def _drawn(curve: Curve, horizon: float) -> tuple[float, float]:
    """The value of the best power law a - b * x^-c at the horizon, and how far the curve's values lie from it."""
    fits = [_fit(curve, power) for power in POWERS]
    off, level, slope, power = min(fits)
    return level + slope * (horizon + 1) ** -power, math.sqrt(off / max(1, len(curve) - 3))


def _fit(curve: Curve, power: float) -> tuple[float, float, float, float]:
    """Least squares of value = level + slope * (x + 1)^-power: what is left of the squares, level, slope, power."""
    bent = [((place + 1) ** -power, value) for place, value in curve]
    across = math.fsum(x for x, _ in bent) / len(bent)
    up = math.fsum(y for _, y in bent) / len(bent)
    spread = math.fsum((x - across) ** 2 for x, _ in bent)
    slope = math.fsum((x - across) * (y - up) for x, y in bent) / spread if spread else 0.0
    level = up - slope * across
    return math.fsum((level + slope * x - y) ** 2 for x, y in bent), level, slope, power


def _better(value: float, goal: str) -> float:
    """The value with the sign that makes more better."""
    return -value if goal == MINIMIZE else value


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` loses nowhere more, and somewhere less."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
