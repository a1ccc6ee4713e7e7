"""What a job costs: over the bare program and beside Ray, a thousand at once, the lab's hour on STANDARD_1.

    .venv/bin/python benchmarks/jobs.py [--part overhead many queued lab] [--rounds 5] [--jobs 1000] [--data FOLDER]

Each part starts a server on a fresh home. `overhead` runs short trainers by hand and as jobs in turns, then by hand and
by Ray, always by the interpreter in which their package is installed for the job. `many` submits trivial jobs at once,
then copies a finished one in the database until there are 100 and 10,000. `queued` asks for the last of as many as wait
behind jobs that sleep. `lab` runs the lab's job of 100,000 steps on gs:// with real rides (it is left out without
them), and the Estimator recipe beside it. Prints tables, and says on stderr what is running now.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import peers
import service
import sqlalchemy as sa
import training
from peers import BUCKET, MIB
from rich.console import Console
from rich.table import Table
from training import say

from taxiway.db import tables
from taxiway.db.database import Database
from taxiway.environments import runtimes
from taxiway.jobs import queue

PARTS = ["overhead", "many", "queued", "lab"]
EXAMPLE = training.EXAMPLE / "trainer"
TAXIWAY = [sys.executable, "-m", "taxiway"]
AT_ONCE = 8  # threads that submit
LONGEST_S = 5.0  # that a trivial job may take, of many
PAGE = 100  # the largest
FINISHED = (100, 10_000)  # jobs in the database
LOOKS = 200  # at the first page, and claims: the median counts
WAITING = (1, 100, 1000)  # jobs in the line
STEPS, ROWS = training.STEPS, training.ROWS  # of the lab's job

NO_IMPORTS = """
for step in range(1, 11):
    print("step", step, flush=True)
"""
TENSORFLOW = """
import keras
import numpy as np
import tensorflow

chance = np.random.default_rng(1)
rides, fares = chance.normal(size=(5120, 5)), chance.normal(size=5120)
model = keras.Sequential([*(keras.layers.Dense(units, "relu") for units in (128, 32, 4)), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(rides, fares, batch_size=512, verbose=2)
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    given.add_argument("--rounds", type=int, default=5, help="of the overhead (%(default)s)")
    given.add_argument("--jobs", type=int, default=1000, help="submitted at once (%(default)s)")
    given.add_argument("--data", type=Path, help="a folder with taxi-train.csv and taxi-valid.csv")
    given.add_argument("--estimator-steps", type=int, default=3000, help="steps of the Estimator recipe (%(default)s)")
    given.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)  # smaller, to try the benchmark out
    given.add_argument("--rows", type=int, default=ROWS, help=argparse.SUPPRESS)
    options = given.parse_args()
    say(f"building runtime {service.RUNTIME}, if it is not there")
    runtimes.build(runtimes.resolve(service.RUNTIME, None))
    for part in options.part:
        with tempfile.TemporaryDirectory(prefix="jobs-benchmark-") as name:
            folder = Path(name)
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
            if part == "overhead":
                overhead(folder, options.rounds)
            elif part == "many":
                many(folder, options.jobs)
            elif part == "queued":
                queued(folder)
            else:
                lab(folder, options)


# ---- overhead -------------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """Seconds of one program, a figure for each round."""

    name: str
    by_hand: list[float] = field(default_factory=list)
    by_api: list[float] = field(default_factory=list)
    by_command: list[float] = field(default_factory=list)
    hand: list[tuple[float, float, float]] = field(default_factory=list)  # to the first line, to the last, to the end
    job: dict[str, list[float]] = field(default_factory=dict)  # the parts of by_api

    def cells(self) -> list[str]:
        bare, *others = (statistics.median(each) for each in (self.by_hand, self.by_api, self.by_command))
        return [f"{bare:.2f}", *(cell for each in others for cell in (f"{each:.2f}", f"{each / bare:.2f}"))]


def overhead(folder: Path, rounds: int) -> None:
    """One server after another: what runs beside a program, if only idly, costs it something."""
    table = Table(title=f"Submit to end of ten steps, median seconds of {rounds}; ratios over the program by hand")
    for number, head in enumerate(("", "by hand", "by API", "ratio", "by command", "ratio")):
        table.add_column(head, justify="right" if number else "left")
    with service.running(folder) as on:
        programs = short_programs(on, folder)
        jobs = rounds_of(programs, rounds, lambda each, times: as_job(on, each, times, folder))
        elsewhere = [by_hand(programs[-1], programs[-1].of_job, folder, through(on))[2] for _ in range(rounds)]
    for each, times in zip(programs, jobs, strict=True):
        where = ", files on gs://" if each.of_job else ""
        table.add_row(f"Taxiway: {each.name}{where}", *times.cells())
    reason = peers.missing_ray()
    if not reason:
        say("starting Ray")
        with tempfile.TemporaryDirectory(prefix="ray-") as place, peers.ray(Path(place)) as ray:
            for times in rounds_of(programs, rounds, lambda each, times: by_ray(ray, each, times, folder)):
                table.add_row(f"Ray: {times.name}", *times.cells())
    show(table)
    show_parts(jobs)
    median = statistics.median(elsewhere)
    print(f"By hand with its files on gs:// too, through `taxiway run`, the lab's takes {median:.2f} s.")
    print("To be reached: at most 1.1 by API for a trainer that imports TensorFlow and takes ten steps.")
    if reason:
        print(f"Left out: {reason}.")


def rounds_of(
    programs: list[service.Program], rounds: int, submit: Callable[[service.Program, Taken], None]
) -> list[Taken]:
    taken = [Taken(each.name) for each in programs]
    for number in range(rounds + 1):
        for each, times in zip(programs, taken, strict=True):
            say(f"round {number} of {rounds}: {each.name}" if number else f"warming up: {each.name}")
            # the first round counts for nothing: it reads what no memory has yet
            submit(each, times if number else Taken(each.name))
    return taken


def short_programs(on: service.Service, folder: Path) -> list[service.Program]:
    """Three that take ten steps: without imports, with TensorFlow, and the lab's own, which reads and writes files."""
    rides = folder / "rides"
    training.run(Path(sys.executable), "-m", "taxifare_data", "make", "--output", str(rides), "--rows", "10000")
    uris = [on.put(f"rides/{name}", rides / name) for name in ("taxi-train.csv", "taxi-valid.csv")]
    here = taxifare(str(rides / "taxi-train.csv"), str(rides / "taxi-valid.csv"), f"{folder}/FRESH", 10)
    of_job = taxifare(*uris, f"gs://{BUCKET}/FRESH", 10)
    return [
        service.program(on, folder, "no imports", NO_IMPORTS),
        service.program(on, folder, "TensorFlow and Keras", TENSORFLOW),
        service.program(on, folder, "the lab's", EXAMPLE, args=here, of_job=of_job),
    ]


def taxifare(train: str, valid: str, output: str, steps: int) -> list[str]:
    paths = ["--train_data_paths", train, "--eval_data_paths", valid]
    return [*paths, "--output_dir", output, "--train_steps", str(steps)]


def fresh(args: list[str]) -> list[str]:
    return [word.replace("FRESH", service.new_id()) for word in args]


def by_hand(
    each: service.Program, args: list[str], folder: Path, environ: dict[str, str]
) -> tuple[float, float, float]:
    """Seconds until its first line, its last one, and its end."""
    began = time.time()
    process = subprocess.Popen(
        [*each.command, *fresh(args)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
    )
    assert process.stdout
    said = [(time.time() - began, line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"{b''.join(line for _, line in said[-20:]).decode()}\n{each.name} failed")
    return said[0][0], said[-1][0], time.time() - began


def plain() -> dict[str, str]:
    """An environment of little, as a job has it."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def through(on: service.Service) -> dict[str, str]:
    """The same with gs://, as `taxiway run` gives it."""
    environ = {**plain(), "TAXIWAY_HOME": str(on.home)}
    told = subprocess.run([*TAXIWAY, "run", "--", "env", "-0"], env=environ, capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in told.stdout.split("\0") if word)


def as_job(on: service.Service, each: service.Program, times: Taken, folder: Path) -> None:
    times.hand.append(by_hand(each, each.args, folder, plain()))
    times.by_hand.append(times.hand[-1][-1])
    began, name = time.time(), service.new_id()
    on.submit(name, each.uri, fresh(each.of_job))
    lines, job = on.follow(name)
    ended = time.time()
    times.by_api.append(ended - began)
    stages = {stage["stage"]: stage for stage in job["taxiway"]["startup"]}
    own = [service.moment(line["timestamp"]) for line in service.printed(lines)]
    parts = {
        "the request arrives": service.moment(job["createTime"]) - began,
        **{stage: seconds(stages[stage]["duration"]) for stage in ("validate", "queue", "environment")},
        "its code until the first line": own[0] - service.moment(stages["import"]["startTime"]),
        "first line to last": own[-1] - own[0],
        "last line to endTime": service.moment(job["endTime"]) - own[-1],
        "the client is told": ended - service.moment(job["endTime"]),
    }
    for part, took in parts.items():
        times.job.setdefault(part, []).append(took)
    words = ["jobs", "submit", "training", service.new_id(), "--module-name", "trainer.task", "--packages", each.uri]
    environ = {**os.environ, "TAXIWAY_HOME": str(on.home)}
    command = [*TAXIWAY, *words, "--stream-logs", "--", *fresh(each.of_job)]
    times.by_command.append(timed(lambda: run(command, environ)))


def by_ray(ray: peers.Ray, each: service.Program, times: Taken, folder: Path) -> None:
    """By its REST API: from the request to the answer that it has ended, asked for every 20 ms. And by its command."""
    times.by_hand.append(by_hand(each, each.args, folder, plain())[-1])
    with httpx.Client(base_url=ray.url, headers=ray.headers, timeout=60, trust_env=False) as http:
        began = time.time()
        told = {"entrypoint": shlex.join([*each.command, *fresh(each.args)])}
        name = http.post("/api/jobs/", json=told).raise_for_status().json()["submission_id"]
        while (job := http.get(f"/api/jobs/{name}").raise_for_status().json())["status"] in ("PENDING", "RUNNING"):
            time.sleep(0.02)
        if job["status"] != "SUCCEEDED":
            raise SystemExit(f"Ray's job ended as {job['status']}: {job['message']}")
        times.by_api.append(time.time() - began)
    command = [str(ray.program), "job", "submit", "--address", ray.url, "--", *each.command, *fresh(each.args)]
    times.by_command.append(timed(lambda: run(command, ray.environ)))


def show_parts(jobs: list[Taken]) -> None:
    table = Table(
        title="What a job's seconds are made of, median ms; in brackets what it takes by hand", show_footer=True
    )
    table.add_column("", "over the program by hand")
    for times in jobs:
        over = statistics.median(times.by_api) - statistics.median(times.by_hand)
        table.add_column(times.name, f"{1000 * over:,.0f}", justify="right")
    hand = [[statistics.median(each) for each in zip(*times.hand, strict=True)] for times in jobs]
    alone = {
        "its code until the first line": [first for first, _, _ in hand],
        "first line to last": [last - first for first, last, _ in hand],
        "last line to endTime": [end - last for _, last, end in hand],
    }
    for part in jobs[0].job:
        cells = [f"{1000 * statistics.median(times.job[part]):,.0f}" for times in jobs]
        if part in alone:
            cells = [f"{cell} ({1000 * by_hand:,.0f})" for cell, by_hand in zip(cells, alone[part], strict=True)]
        table.add_row(part, *cells)
    show(table)


# ---- many -----------------------------------------------------------------------------------------------------------


def many(folder: Path, count: int) -> None:
    with service.running(folder) as on:
        trivial = service.program(on, folder, "no imports", NO_IMPORTS)
        for _ in range(2):
            on.submit(name := service.new_id(), trivial.uri, [])  # everybody is warm
            on.follow(name)
        say(f"{count:,} jobs at once")
        before, resident = on.process.cpu_times(), on.process.memory_info().rss
        names = [service.new_id() for _ in range(count)]
        began = time.time()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            posts = list(threads.map(lambda name: timed(lambda: on.submit(name, trivial.uri, [])), names))
        submitted = time.time() - began
        states, last, peak = watched(on, names, began)
        after = on.process.cpu_times()
        rows = {
            "jobs that SUCCEEDED": f"{states.get('SUCCEEDED', 0):,} of {count:,}",
            "jobs a minute": f"{60 * count / last:,.0f}",
            "seconds, all": f"{last:,.0f}",
            "seconds until all were submitted": f"{submitted:.1f}",
            "ms of a submission, median": f"{1000 * statistics.median(posts):.0f}",
            "CPU seconds of the server": f"{spent(after) - spent(before):.1f}",
            "  of it a job, ms": f"{1000 * (spent(after) - spent(before)) / count:.0f}",
            "CPU seconds of agents and trainers": f"{below(after) - below(before):.1f}",
            "growth of the server at its peak, MiB": f"{(peak - resident) / MIB:.0f}",
            "  at the end, MiB": f"{(on.process.memory_info().rss - resident) / MIB:.0f}",
        }
    table = Table("", "", title=f"{count:,} trivial jobs, submitted at once")
    for what, value in rows.items():
        table.add_row(what, value)
    show(table)
    finished(folder / "few")


def watched(on: service.Service, names: list[str], began: float) -> tuple[Counter[str], float, int]:
    """By a reader of the database, which costs the server nothing, until all have ended: their states, the seconds
    until the last one's end, and the server's largest memory."""
    rows, peak = sqlite3.connect(f"file:{on.home / 'taxiway.db'}?mode=ro", uri=True), 0
    here = f"created >= {began}"
    deadline = time.monotonic() + 60 + LONGEST_S * len(names)
    while True:
        peak = max(peak, on.process.memory_info().rss)
        (ended,) = rows.execute(f"SELECT count(*) FROM jobs WHERE {here} AND ended IS NOT NULL").fetchone()
        if ended == len(names):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"Only {ended:,} of {len(names):,} jobs have ended")
        time.sleep(0.25)
    states = Counter(state for (state,) in rows.execute(f"SELECT state FROM jobs WHERE {here}"))
    (last,) = rows.execute(f"SELECT max(ended) FROM jobs WHERE {here}").fetchone()
    rows.close()
    return states, last - began, peak


def spent(times: Any) -> float:
    return float(times.user + times.system)


def below(times: Any) -> float:
    """Of children that have ended, and theirs."""
    return float(times.children_user + times.children_system)


def finished(folder: Path) -> None:
    """What the first page of the list and a claim take with few finished jobs and with many, in one database."""
    folder.mkdir()
    with service.running(folder) as on:
        trivial = service.program(on, folder, "no imports", NO_IMPORTS)
        on.submit("one", trivial.uri, [])
        on.follow("one")
    pages, claims, database = [], [], folder / "home" / "taxiway.db"
    for number, count in enumerate(FINISHED):
        say(f"{count:,} finished jobs")
        copy_jobs(database, FINISHED[number - 1] if number else 0, count)
        claims.append(statistics.median(claimed(database)))
        with service.running(folder) as on:
            page = partial(on.call, "GET", on.jobs, params={"pageSize": PAGE})
            assert len(page().json()["jobs"]) == PAGE
            pages.append(statistics.median(timed(page) for _ in range(LOOKS)))
    table = Table("median ms", *[f"{count:,} finished jobs" for count in FINISHED], "ratio", "to be reached")
    for what, (few, lots) in (("first page of jobs.list", pages), ("claim, on the disk", claims)):
        table.add_row(what, f"{1000 * few:.2f}", f"{1000 * lots:.2f}", f"{lots / few:.2f}", "<= 1.2")
    show(table)


# ---- queued ---------------------------------------------------------------------------------------------------------


def queued(folder: Path) -> None:
    """What it takes to be told of a job at the end of the line, for one who asks and for eight at once."""
    with service.running(folder) as on:
        sleeper = service.program(on, folder, "asleep", "import time\nprint('asleep', flush=True)\ntime.sleep(600)\n")
        names = [f"asleep_{number}" for number in range(max(2, (os.cpu_count() or 2) // 2))]
        for name in [*names, "one"]:
            on.submit(name, sleeper.uri, [])
        while any(on.call("GET", f"{on.jobs}/{name}").json()["state"] != "RUNNING" for name in names):
            time.sleep(0.1)
        table = Table("ms of a jobs.get, median", *["one asks", "eight ask", "while the line changes"])
        table.title = "The last of the waiting jobs"
        waiting = ["one"]
        for number, count in enumerate(WAITING):
            say(f"{count:,} waiting jobs")
            if number:
                copy_jobs(on.home / "taxiway.db", WAITING[number - 1], count)
                waiting += [f"copy_{each}" for each in range(WAITING[number - 1] + 1, count + 1)]
                change(on, sleeper.uri, 1)  # the line is told of what was done behind its back
            ask = partial(on.call, "GET", f"{on.jobs}/{waiting[-1]}")
            assert ask().json()["taxiway"]["waiting"]["ahead"] == count - 1
            taken = [[timed(ask) for _ in range(LOOKS)]]
            with ThreadPoolExecutor(AT_ONCE + 1) as threads:
                taken.append(by_eight(threads, ask))
                changed = threads.submit(change, on, sleeper.uri, LOOKS // 4)
                taken.append(by_eight(threads, ask))
                changed.result()
            table.add_row(f"{count:,} wait", *(f"{1000 * statistics.median(each):.1f}" for each in taken))
        for name in [*reversed(waiting), *names]:  # so nobody starts when there is room again
            on.call("POST", f"{on.jobs}/{name}:cancel", json={})
        while any("endTime" not in on.call("GET", f"{on.jobs}/{name}").json() for name in names):
            time.sleep(0.1)
    show(table)


def by_eight(threads: ThreadPoolExecutor, ask: Callable[[], object]) -> list[float]:
    askers = [threads.submit(lambda: [timed(ask) for _ in range(LOOKS)]) for _ in range(AT_ONCE)]
    return [each for asker in askers for each in asker.result()]


def change(on: service.Service, uri: str, times: int) -> None:
    """Jobs come and are cancelled again."""
    for _ in range(times):
        on.submit(name := service.new_id(), uri, [])
        on.call("POST", f"{on.jobs}/{name}:cancel", json={})


def copy_jobs(database: Path, after: int, until: int) -> None:
    """The job `one`, which has come to a state, with its attempt and its log, so often."""
    changes = {
        "jobs": {"id": "'copy_' || value", "position": "10 + value"},
        "attempts": {"id": "'copy_' || value", "subject": "'copy_' || value"},
        "logs": {"row": "NULL", "subject": "'copy_' || value"},
        "logbooks": {"subject": "'copy_' || value"},
        "samples": {"row": "NULL", "subject": "'copy_' || value"},
    }
    rows = sqlite3.connect(database, timeout=60)
    with rows:
        for table, changed in changes.items():
            columns = [column[1] for column in rows.execute(f"PRAGMA table_info({table})")]
            made = ", ".join(changed.get(column, column) for column in columns)
            which = "id = 'one'" if table == "jobs" else "subject = 'one'"
            rows.execute(
                "WITH RECURSIVE numbers(value) AS (SELECT ? UNION ALL SELECT value + 1 FROM numbers WHERE value < ?) "
                f"INSERT INTO {table} SELECT {made} FROM numbers, (SELECT * FROM {table} WHERE {which})",
                (after + 1, until),
            )
    rows.close()


def claimed(database: Path) -> Iterator[float]:
    """Seconds of each claim as a worker makes it: a look whether something waits, then a write that is on the disk."""
    db, jobs, worker = Database(database), tables.jobs, "benchmark"
    one = jobs.c.id == "one"
    waits = {"state": "QUEUED", "worker": None, "lease": None, "ended": None}
    as_it_was = {"state": "SUCCEEDED", "worker": None, "lease": None, "ended": time.time()}

    def look() -> None:
        with db.read() as rows:
            assert queue.waiting(rows, worker=worker, now=time.time())
        assert db.write(lambda tx: queue.claim(tx, worker=worker, now=time.time(), lease=60))

    for _ in range(LOOKS):
        db.write(lambda tx: tx.execute(sa.update(jobs).where(one).values(**waits)))
        yield timed(look)
    db.write(lambda tx: tx.execute(sa.update(jobs).where(one).values(**as_it_was)))
    db.close()


# ---- lab ------------------------------------------------------------------------------------------------------------


def lab(folder: Path, options: argparse.Namespace) -> None:
    """The long job, and the Estimator recipe on the same files (as benchmarks/training.py runs it)."""
    data = options.data or training.REAL_RIDES
    if not (data / "taxi-train.csv").is_file():
        print(f"The lab's job is left out: there is no {data / 'taxi-train.csv'}. Name a folder by --data.")
        return
    python = runtimes.build(runtimes.resolve(service.RUNTIME, None))
    bench = training.Bench(python, folder, data.resolve(), options.rows)
    with service.running(folder) as on:
        each = service.program(on, folder, "the lab's", EXAMPLE)
        uris = [on.put("train.csv", bench.million), on.put("valid.csv", bench.valid)]
        say(f"the job: {options.steps:,} steps over {options.rows:,} rides")
        began, name = time.time(), service.new_id()
        on.submit(name, each.uri, taxifare(*uris, f"gs://{BUCKET}/{name}", options.steps), "STANDARD_1")
        lines, job = on.follow(name)
        wall = time.time() - began
        text = "\n".join(line["message"] for line in service.printed(lines))
        on.fetch(f"{name}/export/exporter/", folder / "exported")
    [ours] = training.recomputed(bench, *(folder / "exported").iterdir())
    theirs = training.estimator(bench, options.estimator_steps)
    table = Table("what", "the job", "Estimator, 2.15", "ratio", "required")
    table.title = f"{options.steps:,} steps of batch {training.BATCH} over {options.rows:,} rides, a job on STANDARD_1"
    in_all = theirs.figures(options.steps)[3] if theirs else None
    training.compare(table, "seconds, from submit to end", wall, in_all, False, "< 45")
    began_at = service.moment(job["startTime"])
    training.compare(table, "  of them before its code ran", began_at - began, None, None, "")
    training.compare(table, "RMSE of the export", ours, theirs.rmse if theirs else None, None, "<= 5.00")
    show(table)
    print(f"The job said: {training.found(r'^(RMSE: .+)$', text)[0]}")
    if theirs:
        print(
            f"The Estimator was not run to the end, nor as a job: its seconds are extrapolated from {theirs.steps:,} "
            f"steps, which took {theirs.ran.seconds:.0f} s on a local disk."
        )


# ---- for all of them -------------------------------------------------------------------------------------------------


def run(words: list[str], environ: dict[str, str]) -> None:
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{ended.stdout[-2000:]}{ended.stderr[-2000:]}\n{' '.join(words[:6])} ... failed")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def show(table: Table) -> None:
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
