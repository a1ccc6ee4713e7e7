"""The choice of points: inside the space, different, the same for the same question, and better than chance."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from statistics import median

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_space import LOSS, MOMENTUM, OPTIMIZER, RATE, SIZE, STEPS, config, numbers

from taxiway import errors
from taxiway.jobs import search, searcher, space
from taxiway.jobs.space import Past, Question

ALGORITHMS = [None, "ALGORITHM_UNSPECIFIED", "RANDOM_SEARCH", "GAUSSIAN_PROCESS_BANDIT"]
PYTORCH = searcher.gaussian()  # then the Gaussian process itself is tried, which takes seconds


def asked(held, *, seed=7, first=1, count=1, past=()):
    answer = search.suggest(Question(config=held, seed=seed, first=first, count=count, past=tuple(past)))
    return list(answer.points)


def searched(held, figure, trials, *, seed=7):
    """What a study of so many trials came to, one after the other."""
    past = []
    for number in range(1, trials + 1):
        (point,) = asked(held, seed=seed, first=number, past=past)
        past.append(Past(point=point, values=(figure(point),)))
    return past


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([None, "RANDOM_SEARCH"]),
    st.sampled_from(["SCALE_TYPE_UNSPECIFIED", "UNIT_LINEAR_SCALE", "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"]),
    st.floats(1e-6, 1e6),
    st.floats(0, 1e6),
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 2**32 - 1),
)
def test_every_suggestion_is_a_point_of_the_space(algorithm, scale, low, wide, least, more, seed):
    held = config(
        {**numbers("DOUBLE", low, low + wide, scaleType=scale), "parameter": "x"},
        {**numbers("INTEGER", least, least + more, scaleType=scale), "parameter": "n"},
        {**SIZE, "scaleType": scale},
        OPTIMIZER,
        algorithm=algorithm,
    )
    checked = space.checked(held)
    past = [Past(point=point, values=(point["x"],)) for point in asked(held, seed=seed, count=11)]
    for point in [each.point for each in past] + asked(held, seed=seed, first=12, count=2, past=past):
        told = space.told(checked, point)
        assert space.point(checked, told, "p") == point
        assert ("momentum" in point) == (point["optimizer"] == "sgd")


@pytest.mark.parametrize("algorithm", ALGORITHMS[:3])
def test_the_same_question_has_the_same_answer_however_many_are_asked_for_at_once(algorithm):
    held = config(RATE, OPTIMIZER, STEPS, algorithm=algorithm)
    past = searched(held, lambda point: point["rate"], 15)
    together = asked(held, first=16, count=3, past=past)
    alone = []
    for number in (16, 17, 18):
        alone += asked(held, first=number, past=[*past, *(Past(point=each) for each in alone)])
    assert together == alone
    assert asked(held, seed=8, first=16, past=past) != together[:1]


def test_it_is_the_same_in_another_process():
    held = config(RATE, OPTIMIZER, STEPS)
    question = Question(config=held, seed=3, first=5, count=4, past=())
    process = searcher.Searcher()
    assert process.pid is None, "nobody pays for what nobody asks"
    try:
        assert list(process.ask(question).points) == list(search.suggest(question).points)
        first = process.pid
        psutil.Process(first).kill()
        assert list(process.ask(question).points) == list(search.suggest(question).points)
        assert process.pid not in (None, first)
        process.rest()
        assert process.pid is None
        assert not psutil.pid_exists(first)
    finally:
        process.end()
    with pytest.raises(errors.Unavailable, match="shutting down"):
        process.ask(question)


def test_a_question_that_cannot_be_answered_is_our_own_failure_and_the_next_one_is_answered():
    process = searcher.Searcher()
    try:
        with pytest.raises(errors.Internal, match="the server's log has the traceback"):
            process.ask(Question(config=config(RATE), seed=1, first=1, count=1, past=(Past(point={"rate": "word"}),)))
        assert process.ask(Question(config=config(RATE), seed=1, first=1, count=1, past=())).points
    finally:
        process.end()


def test_the_process_ends_with_whoever_asks_also_by_kill_9():
    asks = "import sys, msgspec; from taxiway.jobs import searcher, space; from taxiway import schemas\n"
    asks += "it = searcher.Searcher(); it.ask(msgspec.json.decode(sys.argv[1], type=space.Question))\n"
    asks += "print(it.pid, flush=True); sys.stdin.read()"
    question = msgspec.json.encode(Question(config=config(RATE), seed=1, first=1, count=1, past=()))
    started = subprocess.Popen(
        [sys.executable, "-c", asks, question], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    pid = int(started.stdout.readline())
    process = psutil.Process(pid)
    started.kill()
    started.communicate()
    deadline = time.monotonic() + 20
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("algorithm", ALGORITHMS if PYTORCH else ALGORITHMS[:3])
def test_suggestions_that_run_side_by_side_differ(algorithm):
    held = config(RATE, STEPS, algorithm=algorithm)
    past = searched(held, lambda point: (point["rate"] - 0.3) ** 2 + point["steps"], 11)
    found = asked(held, first=12, count=4, past=past)
    assert len({frozenset(each.items()) for each in found}) == 4
    rates = sorted(each["rate"] for each in found)
    assert min(b - a for a, b in itertools.pairwise(rates)) > 0


def test_what_is_infeasible_is_not_tried_again_until_nothing_is_left():
    held = config(STEPS, SIZE)
    every = list(space.read(held).points())
    past = [Past(point=each, infeasible=True) for each in every[:4]]
    for number in (5, 6):
        (point,) = asked(held, first=number, past=past)
        assert point in every[4:]
        past.append(Past(point=point, values=(1.0,)))
    (again,) = asked(held, first=7, past=past)
    assert again in every[4:], "all others are infeasible"
    assert search.suggest(
        Question(config=held, seed=1, first=7, count=1, past=tuple(Past(point=each, infeasible=True) for each in every))
    ) == space.Answer(used_up=True)


def test_a_grid_is_walked_in_its_order_and_says_when_it_is_used_up():
    held = config(STEPS, SIZE, algorithm="GRID_SEARCH")
    every = list(space.checked(held).points())
    first = search.suggest(Question(config=held, seed=1, first=1, count=4, past=()))
    assert (list(first.points), first.used_up) == (every[:4], False)
    past = tuple(Past(point=each) for each in every[:4])
    last = search.suggest(Question(config=held, seed=1, first=5, count=2, past=past))
    assert (list(last.points), last.used_up) == (every[4:], True)
    over = search.suggest(Question(config=held, seed=1, first=5, count=9, past=past))
    assert (list(over.points), over.used_up) == (every[4:], True)


def test_the_bayesian_search_finds_better_points_than_chance():
    """The median of five seeds, on a bowl in a logarithmic scale with a condition."""
    rate = {**numbers("DOUBLE", 1e-5, 1, scaleType="UNIT_LOG_SCALE"), "parameter": "rate"}
    optimizer = {**OPTIMIZER, "childParameterSpecs": [MOMENTUM]}

    def figure(point):
        return (math.log10(point["rate"]) + 2) ** 2 + abs(point.get("momentum", 1.5) - 0.9)

    def best(algorithm):
        held = config(rate, optimizer, algorithm=algorithm)
        return median(min(each.values[0] for each in searched(held, figure, 40, seed=seed)) for seed in range(5))

    assert best(None) < best("RANDOM_SEARCH") / 2


def test_several_metrics_are_searched_for_their_front():
    metrics = [LOSS, {"metric": "gain", "goal": "MAXIMIZE"}]
    held = config({**RATE, "doubleValueSpec": {"minValue": -2, "maxValue": 2}}, metrics=metrics)
    past = []
    for number in range(1, 31):
        (point,) = asked(held, first=number, past=past)
        past.append(Past(point=point, values=(point["rate"] ** 2, -((point["rate"] - 1) ** 2))))
    later = [0 <= each.point["rate"] <= 1 for each in past[15:]]
    assert sum(later) > 6, "the front is a quarter of the range, and gets more than its share"


@pytest.mark.skipif(not PYTORCH, reason="needs PyTorch and SciPy")
def test_the_gaussian_process_is_asked_where_it_can_be():
    held = config({**RATE, "doubleValueSpec": {"minValue": -5, "maxValue": 5}}, algorithm="GAUSSIAN_PROCESS_BANDIT")
    found = searched(held, lambda point: (point["rate"] - 2) ** 2, 16)
    assert min(each.values[0] for each in found) < 0.01
