"""Chooses the points that a study tries next. The only file that knows Optuna; it only asks and tells.

Runs by itself, `python -m taxiway.jobs.search`: a space.Question a line as JSON in, a space.Answer a line out, until
its input ends. For Optuna takes half a second and 50 MiB to load, and a choice takes some milliseconds of a whole core,
which the server should not spend between two requests; nor should an end of this process be its own.

The same question has the same answer, in any process, and however many points are asked for at once: each trial's
chance comes from the study's seed and the trial's number alone.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import random
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from taxiway.jobs import space as spaces
from taxiway.jobs.space import Answer, Parameter, Past, Point, Question, Space, Value

TRIES = 8  # at a point that no trial has
NEAR = 1000  # unused points to choose from, where these tries came to nothing


def suggest(question: Question) -> Answer:
    """The next points, all different from each other and from what was tried, while there are such points."""
    space = spaces.read(question.config)
    if question.config.algorithm == spaces.GRID:
        found = spaces.unused(space, [each.point for each in question.past], question.count + 1)
        return Answer(points=tuple(found[: question.count]), used_up=len(found) <= question.count)
    past = list(question.past)
    trials = [_frozen(space, each) for each in past]
    points: list[Point] = []
    for number in range(question.first, question.first + question.count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of groups; our tests hold what we use of them
            point = _next(question, space, past, trials, number)
        if point is None:
            return Answer(points=tuple(points), used_up=True)
        points.append(point)
        past.append(Past(point=point))
        trials.append(_frozen(space, past[-1]))
    return Answer(points=tuple(points))


def _next(
    question: Question, space: Space, past: Sequence[Past], trials: Sequence[FrozenTrial], number: int
) -> Point | None:
    """One more point; None if no point is left that is feasible. A known one only if there are no others."""
    known = {frozenset(each.point.items()) for each in past}
    point: Point = {}
    for attempt in range(TRIES):
        chance = random.Random(f"{question.seed}/{number}/{attempt}")
        point = _asked(question, space, trials, chance.getrandbits(32))
        if frozenset(point.items()) not in known:
            return point
    if 0 < space.size() <= spaces.MOST_POINTS:
        if left := spaces.unused(space, [each.point for each in past], NEAR):
            return chance.choice(left)
        barred = [each.point for each in past if each.infeasible]
        if any(spaces.same(point, each) for each in barred):
            return next(iter(spaces.unused(space, barred, 1)), None)
    return point


def _asked(question: Question, space: Space, trials: Sequence[FrozenTrial], seed: int) -> Point:
    less, more = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    goals = [less if goal == spaces.MINIMIZE else more for goal in spaces.metrics(question.config).values()]
    study = optuna.create_study(directions=goals, sampler=_sampler(question.config.algorithm, space, seed))
    study.add_trials(trials)
    trial = study.ask()
    point: Point = {}
    left = list(space.parameters)
    while left:
        parameter = left.pop(0)
        point[parameter.name] = _suggested(trial, parameter)
        left += parameter.active(point[parameter.name])
    return point


def _sampler(algorithm: str | None, space: Space, seed: int) -> BaseSampler:
    """Bayesian search is by tree-structured Parzen estimators: they take words, conditions and several metrics as they
    are, and need no PyTorch, as the Gaussian process does; where there is none, they stand in for it.

    Trials that still run count as bad ones (the constant liar), so that the next one goes elsewhere.
    """
    if algorithm == spaces.RANDOM:
        return RandomSampler(seed=seed)
    if algorithm == spaces.GAUSSIAN and all(importlib.util.find_spec(each) for each in spaces.GAUSSIAN_NEEDS):
        return GPSampler(seed=seed, warn_independent_sampling=False)
    if space.conditional:  # what exists together is chosen together
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    return TPESampler(seed=seed, constant_liar=True)


def _frozen(space: Space, past: Past) -> FrozenTrial:
    """A trial that was: completed, still running, or (infeasible) worse than all others."""
    held = {parameter.key: (parameter, value) for parameter, value in space.path(past.point)}
    state = TrialState.PRUNED if past.infeasible else TrialState.COMPLETE if past.values else TrialState.RUNNING
    return create_trial(
        state=state,
        values=list(past.values) if state is TrialState.COMPLETE else None,
        params={key: _inside(parameter, value) for key, (parameter, value) in held.items()},
        distributions={key: _distribution(parameter) for key, (parameter, _) in held.items()},
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    log = parameter.scale in (spaces.LOG, spaces.REVERSE_LOG)
    if parameter.type == spaces.CATEGORICAL:
        return CategoricalDistribution([str(value) for value in parameter.values])
    if parameter.type == spaces.DISCRETE:  # by its place: each value is as likely as another, and neighbours are alike
        return IntDistribution(0, len(parameter.values) - 1)
    if parameter.type == spaces.INTEGER:
        return IntDistribution(int(parameter.low), int(parameter.high), log=log)
    return FloatDistribution(parameter.low, parameter.high, log=log)


def _suggested(trial: Trial, parameter: Parameter) -> Value:
    log = parameter.scale in (spaces.LOG, spaces.REVERSE_LOG)
    if parameter.type == spaces.CATEGORICAL:
        return trial.suggest_categorical(parameter.key, [str(value) for value in parameter.values])
    if parameter.type == spaces.DISCRETE:
        return parameter.values[trial.suggest_int(parameter.key, 0, len(parameter.values) - 1)]
    if parameter.type == spaces.INTEGER:
        found = trial.suggest_int(parameter.key, int(parameter.low), int(parameter.high), log=log)
        return int(_mirrored(parameter, found))
    return _mirrored(parameter, trial.suggest_float(parameter.key, parameter.low, parameter.high, log=log))


def _inside(parameter: Parameter, value: Value) -> Value:
    """A value as Optuna is told it."""
    if parameter.type == spaces.DISCRETE:
        return parameter.values.index(value)
    return value if isinstance(value, str) else _mirrored(parameter, value)


def _mirrored(parameter: Parameter, value: float | int) -> float | int:
    """A reverse logarithmic scale is a logarithmic one seen from the other end."""
    if parameter.scale != spaces.REVERSE_LOG:
        return value
    return min(max(parameter.low + parameter.high - value, parameter.low), parameter.high)


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        try:
            answer = suggest(msgspec.json.decode(lines.get(), type=Question))
        except Exception:  # noqa: BLE001 - the edge: whoever asked is told
            answer = Answer(failure=traceback.format_exc())
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    """Whoever asked is gone with the end of the input: so is this process, also in the middle of a choice."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):  # whoever asked was killed
        main()
