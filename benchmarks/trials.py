"""Jobs that tune: what a trial costs, two hundred of them, and what tuning finds on the lab's rides.

    .venv/bin/python benchmarks/trials.py [--part trivial taxi] [--trials 200] [--budget 16] [--steps 2000]

`trivial` runs the bare command by hand and as trials of one job, four at a time. `taxi` tunes the example trainer on
engineered features, by each way of choosing and by plain Optuna that calls the same program, all with the same budget
and the same number of steps; the trainer as it comes is the row to beat. A picture of it goes to --picture. Each part
starts a server on a fresh home.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
import optuna
import service
import training
from rich.table import Table
from training import say

PARTS = ["trivial", "taxi"]
AT_ONCE = 4
BY_HAND = 5  # runs of the bare command; the median counts
TAG = "eval_rmse"
REPORTS = """
import json, os, sys
rate = float(sys.argv[sys.argv.index("--rate") + 1])
if "CLOUD_ML_HP_METRIC_FILE" in os.environ:
    os.makedirs(os.path.dirname(os.environ["CLOUD_ML_HP_METRIC_FILE"]), exist_ok=True)
    with open(os.environ["CLOUD_ML_HP_METRIC_FILE"], "w") as file:
        json.dump({"trial": os.environ["CLOUD_ML_TRIAL_ID"], "global_step": "1", "eval_rmse": str(rate)}, file)
"""
TRIVIAL = {"parameterName": "rate", "type": "DOUBLE", "minValue": 0.0, "maxValue": 1.0}
RATE = {"parameterName": "learning_rate", "type": "DOUBLE", "minValue": 1e-4, "maxValue": 3e-2}
SEARCHED = [
    {**RATE, "scaleType": "UNIT_LOG_SCALE"},
    {"parameterName": "train_batch_size", "type": "DISCRETE", "discreteValues": [64, 128, 256, 512, 1024]},
    {"parameterName": "hidden_units", "type": "CATEGORICAL", "categoricalValues": ["32 4", "128 32 4", "256 64 16"]},
]
GRIDDED = [
    {"parameterName": "learning_rate", "type": "DISCRETE", "discreteValues": [3e-4, 1e-3, 3e-3, 1e-2]},
    *SEARCHED[1:],
]
WAYS = {"Bayesian": None, "random": "RANDOM_SEARCH", "grid": "GRID_SEARCH"}


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    given.add_argument("--trials", type=int, default=200, help="trivial ones")
    given.add_argument("--budget", type=int, default=16, help="trials of each way")
    given.add_argument("--steps", type=int, default=2000, help="of each trial")
    given.add_argument("--data", type=Path, default=training.REAL_RIDES)
    given.add_argument("--picture", type=Path, help="an SVG file")
    options = given.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    for part in options.part:
        with tempfile.TemporaryDirectory(prefix="trials-benchmark-") as folder:
            (trivial if part == "trivial" else taxi)(Path(folder), options)


def trivial(folder: Path, options: argparse.Namespace) -> None:
    with service.running(folder) as on:
        program = service.program(on, folder, "reports", REPORTS)
        by_hand = statistics.median(
            jobs.timed(lambda: subprocess.run([*program.command, "--rate", "0.5"], cwd=folder, check=True))
            for _ in range(BY_HAND)
        )
        tune(on, program, 2, [TRIVIAL], None, [])  # everybody is warm
        say(f"{options.trials} trials, {AT_ONCE} at a time")
        before, resident = on.process.cpu_times(), on.process.memory_info().rss
        began = time.time()
        job = tune(on, program, options.trials, [TRIVIAL], "RANDOM_SEARCH", [])
        wall, after = time.time() - began, on.process.cpu_times()
        found = job["trainingOutput"]["trials"]
        took = [service.moment(each["endTime"]) - service.moment(each["startTime"]) for each in found]
        one = began_one(on, program)
        rows = {
            "trials that SUCCEEDED": f"{sum(each['state'] == 'SUCCEEDED' for each in found)} of {options.trials}",
            "seconds, all": f"{wall:.0f}",
            "trials a minute": f"{60 * options.trials / wall:.0f}",
            "ms of a trial, from its choice to its figure, median": f"{1000 * statistics.median(took):.0f}",
            "ms of a trial that is alone": f"{1000 * one:.0f}",
            "ms of the bare command, median": f"{1000 * by_hand:.0f}",
            "CPU seconds of the server": f"{jobs.spent(after) - jobs.spent(before):.1f}",
            "growth of the server, MiB": f"{(on.process.memory_info().rss - resident) / training.MIB:.0f}",
        }
    table = Table("", "", title=f"{options.trials} trivial trials, {AT_ONCE} at a time")
    for what, value in rows.items():
        table.add_row(what, value)
    jobs.show(table)


def began_one(on: service.Service, program: service.Program) -> float:
    (trial,) = tune(on, program, 1, [TRIVIAL], "RANDOM_SEARCH", [])["trainingOutput"]["trials"]
    return service.moment(trial["endTime"]) - service.moment(trial["startTime"])


def tune(
    on: service.Service,
    program: service.Program,
    trials: int,
    params: Sequence[dict[str, Any]],
    algorithm: str | None,
    args: list[str],
    *,
    at_once: int = AT_ONCE,
    **more: Any,
) -> dict[str, Any]:
    """A job that tunes, once it has ended."""
    spec = {"goal": "MINIMIZE", "hyperparameterMetricTag": TAG, "params": list(params), "maxTrials": trials}
    spec |= {"maxParallelTrials": at_once, **({"algorithm": algorithm} if algorithm else {})}
    name = service.new_id()
    on.submit(name, program.uri, args, hyperparameters=spec, **more)
    on.follow(name)
    return dict(on.call("GET", f"{on.jobs}/{name}").json())


# ---- the lab's rides ------------------------------------------------------------------------------------------------


def taxi(folder: Path, options: argparse.Namespace) -> None:
    if not (options.data / "taxi-train.csv").is_file():
        print(f"The lab's rides are left out: there is no {options.data / 'taxi-train.csv'}. Name a folder by --data.")
        return
    found: dict[str, list[float]] = {}
    with service.running(folder) as on:
        program = service.program(on, folder, "the lab's", jobs.EXAMPLE)
        uris = [on.put(f"{kind}.csv", options.data / f"taxi-{kind}.csv") for kind in ("train", "valid")]
        fixed = [f"--train_data_paths={uris[0]}", f"--eval_data_paths={uris[1]}", f"--train_steps={options.steps}"]
        fixed += ["--features=engineered"]
        for name, algorithm in WAYS.items():
            say(f"{name}: {options.budget} trials of {options.steps:,} steps")
            params = GRIDDED if algorithm == "GRID_SEARCH" else SEARCHED
            where = f"gs://{service.BUCKET}/{service.new_id()}"
            job = tune(on, program, options.budget, params, algorithm, [*fixed, f"--output_dir={where}"], at_once=2)
            found[name] = in_order(job)
        local = [
            f"--train_data_paths={options.data}/taxi-train.csv",
            f"--eval_data_paths={options.data}/taxi-valid.csv",
        ]
        local += fixed[2:]
        say("plain Optuna, which calls the same program")
        found["plain Optuna"] = plain(program, local, options.budget, folder)
        usual = by_hand(program, local, folder)
        raw = by_hand(program, [*local[:3], "--features=raw"], folder)
    marks = sorted({mark for mark in (1, 2, 4, 8, 16, 32) if mark < options.budget} | {options.budget})
    table = Table("best RMSE in dollars", *(f"after {mark}" for mark in marks))
    table.title = f"The example trainer on {options.steps:,} steps, tuned: rate, batch, layers"
    for name, values in found.items():
        table.add_row(name, *(f"{min(values[:mark]):.3f}" for mark in marks))
    table.add_row("engineered, as it comes", f"{usual:.3f}")
    table.add_row("raw, as it comes", f"{raw:.3f}")
    jobs.show(table)
    if options.picture:
        options.picture.write_text(picture(found, usual), encoding="utf-8")
        print(f"The best so far, as a picture: {options.picture}")


def in_order(job: dict[str, Any]) -> list[float]:
    """The figures of a job's trials in the order of their numbers; one that failed is as bad as can be."""
    trials = sorted(job["trainingOutput"]["trials"], key=lambda each: int(each["trialId"]))
    return [float(each.get("finalMetric", {}).get("objectiveValue", "inf")) for each in trials]


def by_hand(program: service.Program, args: list[str], folder: Path) -> float:
    """The figure of one run of the trainer beside no server, as it would report it."""
    place = Path(tempfile.mkdtemp(dir=folder))
    file = place / "metrics/output.metrics"
    environ = {**jobs.plain(), "CLOUD_ML_HP_METRIC_FILE": str(file), "CLOUD_ML_HP_METRIC_TAG": TAG}
    jobs.run([*program.command, *args, f"--output_dir={place / 'out'}"], environ)
    told = json.loads(file.read_text().splitlines()[-1])
    shutil.rmtree(place)
    return float(told[TAG])


def plain(program: service.Program, fixed: list[str], budget: int, folder: Path) -> list[float]:
    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True)
        batch = trial.suggest_categorical("train_batch_size", [64, 128, 256, 512, 1024])
        hidden = trial.suggest_categorical("hidden_units", ["32 4", "128 32 4", "256 64 16"])
        varied = [f"--learning_rate={rate}", f"--train_batch_size={batch}", f"--hidden_units={hidden}"]
        return by_hand(program, [*fixed, *varied], folder)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    study.optimize(objective, n_trials=budget)
    return [float(trial.value or 0.0) for trial in study.trials]


def picture(found: dict[str, list[float]], usual: float) -> str:
    """Lines of the best so far over the number of trials, and a dashed one for the trainer as it comes."""
    wide, high, edge = 640, 360, 48
    best = {name: [min(values[: at + 1]) for at in range(len(values))] for name, values in found.items()}
    least, most = min(min(each) for each in best.values()), max(usual, *(each[0] for each in best.values()))
    most = min(most, least * 1.6)
    longest = max(len(each) for each in best.values())

    def x(at: int) -> float:
        return edge + (wide - 2 * edge) * at / max(1, longest - 1)

    def y(value: float) -> float:
        return high - edge - (high - 2 * edge) * (min(value, most) - least) / max(1e-9, most - least)

    level = f'y1="{y(usual):.1f}" y2="{y(usual):.1f}"'
    parts = [f'<line x1="{edge}" x2="{wide - edge}" {level} stroke="#999" stroke-dasharray="4"/>']
    for (name, values), color in zip(best.items(), ("#1a73e8", "#e8710a", "#188038", "#9334e6"), strict=False):
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        row = edge + 16 * list(best).index(name)
        parts.append(f'<text x="{wide - edge - 110}" y="{row}" fill="{color}">{name}</text>')
    parts += [f'<text x="4" y="{y(value):.1f}">{value:.2f}</text>' for value in (least, most)]
    parts.append(f'<text x="{edge}" y="{high - 12}">trials: 1 to {longest}; dashed: as it comes</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">'
    )
    return f"{head}{''.join(parts)}</svg>\n"


if __name__ == "__main__":
    main()
