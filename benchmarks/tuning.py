"""The search for parameters: the best that was found against the number of trials, beside plain Optuna.

    .venv/bin/python benchmarks/tuning.py [--trials 80] [--seeds 30]

No server and no training: two cheap functions with known minima, searched by the very code that studies use. Every row
is the mean over the seeds of how far the best trial so far is from the minimum. Takes about a minute.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from rich.console import Console
from rich.table import Table

from taxiway.jobs import search
from taxiway.jobs.space import Past, Point, Question
from taxiway.schemas import (
    CategoricalValueSpec,
    DiscreteValueSpec,
    DoubleValueSpec,
    MatchingParentCategoricalValueSpec,
    StudyConfig,
    StudyMetricSpec,
    StudyParameterSpec,
)

MARKS = (10, 20, 40, 80)  # after so many trials
SIDE = 9  # values of each parameter in a grid


@dataclass(frozen=True)
class Landscape:
    """A function with its minimum, and its parameters, for us and for Optuna."""

    name: str
    figure: Callable[[Point], float]
    least: float
    parameters: tuple[StudyParameterSpec, ...]
    ask: Callable[[optuna.Trial], Point]
    grid: tuple[StudyParameterSpec, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=MARKS[-1])
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; Optuna {optuna.__version__}")
    marks = sorted({mark for mark in (*MARKS, options.trials) if mark <= options.trials})
    for landscape in (BRANIN, OPTIMIZERS):
        table = Table("search", *(f"after {mark}" for mark in marks), "ms a trial", title=landscape.name)
        for name, run in ROWS.items():
            began = time.perf_counter()
            found = [run(landscape, options.trials, seed) for seed in range(options.seeds)]
            each_ms = (time.perf_counter() - began) * 1000 / options.seeds / options.trials
            best = [statistics.fmean(min(values[:mark]) for values in found) - landscape.least for mark in marks]
            table.add_row(name, *(f"{gap:.3g}" for gap in best), f"{each_ms:.1f}")
        Console(width=120).print(table)


# ---- how it is searched ---------------------------------------------------------------------------------------------


def studied(landscape: Landscape, trials: int, seed: int, *, algorithm: str | None, at_once: int = 1) -> list[float]:
    """The figures of a study's trials in their order; `at_once` of them are chosen before any is told."""
    grid = algorithm == "GRID_SEARCH"
    config = StudyConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        metrics=(StudyMetricSpec(metric="figure", goal="MINIMIZE"),),
        parameters=landscape.grid if grid else landscape.parameters,
    )
    past: list[Past] = []
    while len(past) < trials:
        question = Question(config=config, seed=seed, first=len(past) + 1, count=at_once, past=tuple(past))
        answer = search.suggest(question)
        past += [Past(point=point, values=(landscape.figure(point),)) for point in answer.points]
        if answer.used_up:
            break
    return [each.values[0] for each in past][:trials]


def plain(landscape: Landscape, trials: int, seed: int) -> list[float]:
    """Optuna as it comes, in one study that is kept in memory."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(lambda trial: landscape.figure(landscape.ask(trial)), n_trials=trials)
    return [trial.value for trial in study.trials if trial.value is not None]


ROWS: dict[str, Callable[[Landscape, int, int], list[float]]] = {
    "Bayesian": lambda landscape, trials, seed: studied(landscape, trials, seed, algorithm=None),
    "Bayesian, 4 at once": lambda landscape, trials, seed: studied(landscape, trials, seed, algorithm=None, at_once=4),
    "plain Optuna": plain,
    "random": lambda landscape, trials, seed: studied(landscape, trials, seed, algorithm="RANDOM_SEARCH"),
    "grid": lambda landscape, trials, seed: studied(landscape, trials, seed, algorithm="GRID_SEARCH"),
}


# ---- what is searched -----------------------------------------------------------------------------------------------


def _double(
    name: str, low: float, high: float, *, log: bool = False, under: tuple[str, ...] = ()
) -> StudyParameterSpec:
    return StudyParameterSpec(
        parameter=name,
        type="DOUBLE",
        double_value_spec=DoubleValueSpec(min_value=low, max_value=high),
        scale_type="UNIT_LOG_SCALE" if log else None,
        parent_categorical_values=MatchingParentCategoricalValueSpec(values=under) if under else None,
    )


def _steps(name: str, low: float, high: float, *, log: bool = False, under: tuple[str, ...] = ()) -> StudyParameterSpec:
    """The same range as a few values, for a grid."""
    shares = [at / (SIDE - 1) for at in range(SIDE)]
    values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    return StudyParameterSpec(
        parameter=name,
        type="DISCRETE",
        discrete_value_spec=DiscreteValueSpec(values=tuple(values)),
        parent_categorical_values=MatchingParentCategoricalValueSpec(values=under) if under else None,
    )


def _words(name: str, values: tuple[str, ...], *children: StudyParameterSpec) -> StudyParameterSpec:
    spec = CategoricalValueSpec(values=values)
    return StudyParameterSpec(
        parameter=name, type="CATEGORICAL", categorical_value_spec=spec, child_parameter_specs=children
    )


def _branin(point: Point) -> float:
    x, y = float(point["x"]), float(point["y"])
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def _optimizers(point: Point) -> float:
    """As a loss over a rate in a logarithmic scale: each optimizer has a best one, and one of them a momentum."""
    off = (math.log10(float(point["rate"])) + (2 if point["optimizer"] == "sgd" else 3)) ** 2
    return off + (2 * abs(float(point["momentum"]) - 0.9) if point["optimizer"] == "sgd" else 0.3)


def _ask_optimizers(trial: optuna.Trial) -> Point:
    point: Point = {
        "rate": trial.suggest_float("rate", 1e-6, 1, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["adam", "sgd"]),
    }
    return {**point, "momentum": trial.suggest_float("momentum", 0, 1)} if point["optimizer"] == "sgd" else point


BRANIN = Landscape(
    "Branin: two parameters",
    _branin,
    0.397887,
    (_double("x", -5, 10), _double("y", 0, 15)),
    lambda trial: {"x": trial.suggest_float("x", -5, 10), "y": trial.suggest_float("y", 0, 15)},
    (_steps("x", -5, 10), _steps("y", 0, 15)),
)
OPTIMIZERS = Landscape(
    "A rate, an optimizer, a momentum under one of them",
    _optimizers,
    0.0,
    (
        _double("rate", 1e-6, 1, log=True),
        _words("optimizer", ("adam", "sgd"), _double("momentum", 0, 1, under=("sgd",))),
    ),
    _ask_optimizers,
    (_steps("rate", 1e-6, 1, log=True), _words("optimizer", ("adam", "sgd"), _steps("momentum", 0, 1, under=("sgd",)))),
)

if __name__ == "__main__":
    main()
