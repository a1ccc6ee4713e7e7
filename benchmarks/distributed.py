"""Jobs of several replicas: how long a gang of four takes to start, what a second worker brings and what it costs.

    .venv/bin/python benchmarks/distributed.py [--part start speed] [--rounds 5]

`start` submits trivial jobs of one replica and of four in turns, each to the moment in which all of its replicas run.
`speed` trains one network by one replica and by two (MultiWorkerMirroredStrategy, one core each), with the same rows a
step for each replica, and once more without the mean over all, so that the share of communication is known. Prints
tables, and says on stderr what is running now.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import service
from rich.console import Console
from rich.table import Table
from training import say

from taxiway.environments import runtimes

PARTS = ["start", "speed"]
WAITS = """
import time
time.sleep(2)
"""
TRAINS = """
import json
import os
import sys
import time

import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(2)
several = "worker" in json.loads(os.environ["TF_CONFIG"])["cluster"]
strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
ROWS, WIDTH, STEPS = 512, 512, 200
with strategy.scope():
    weights = [tf.Variable(tf.random.stateless_normal([WIDTH, WIDTH], [1, layer]) / 30) for layer in range(3)]
seen = [tf.Variable(tf.zeros([WIDTH, WIDTH])) for _ in range(3)]  # each replica's own
rows = tf.random.stateless_normal([ROWS, WIDTH], [2, 2])


def step(together):
    with tf.GradientTape() as tape:
        found = rows
        for weight in weights:
            found = tf.nn.relu(found @ weight)
        loss = tf.reduce_mean((found - 1.0) ** 2)
    gradients = tape.gradient(loss, weights)
    if together:
        gradients = tf.distribute.get_replica_context().all_reduce("MEAN", gradients)
    return gradients


@tf.function
def train(together):
    def one():
        for weight, gradient in zip(weights if together else seen, step(together)):
            weight.assign_sub(0.01 * gradient)

    strategy.run(one)


def seconds(together):
    for _ in range(20):
        train(together)
    begun = time.perf_counter()
    for _ in range(STEPS):
        train(together)
    return (time.perf_counter() - begun) / STEPS


alone = seconds(False)
both = seconds(True)
replicas = strategy.num_replicas_in_sync
told = {"replicas": replicas, "rows": ROWS * replicas / both, "step": both, "compute": alone}
print(json.dumps(told), flush=True)
"""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    given.add_argument("--rounds", type=int, default=5, help="of each (%(default)s)")
    options = given.parse_args()
    say(f"building runtime {service.RUNTIME}, if it is not there")
    runtimes.build(runtimes.resolve(service.RUNTIME, None))
    for part in options.part:
        with tempfile.TemporaryDirectory(prefix="distributed-benchmark-") as name, service.running(Path(name)) as on:
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
            {"start": start, "speed": speed}[part](on, Path(name), options.rounds)


def start(on: service.Service, folder: Path, rounds: int) -> None:
    waits = service.program(on, folder, "no imports", WAITS)
    taken: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(rounds):
        for count, times in taken.items():
            say(f"a gang of {count} starts")
            job, began = service.new_id(), time.perf_counter()
            on.submit(job, waits.uri, [], "CUSTOM", **machines(count - 1))
            while on.call("GET", f"{on.jobs}/{job}").json()["state"] != "RUNNING":
                time.sleep(0.005)
            times.append(time.perf_counter() - began)
            on.follow(job)
    table = Table("replicas", "median, s", "least", "most", title="From submission until all replicas run")
    for count, times in taken.items():
        figures = (statistics.median(times), min(times), max(times))
        table.add_row(str(count), *(f"{each:.2f}" for each in figures))
    Console(width=110).print(table)


def speed(on: service.Service, folder: Path, rounds: int) -> None:
    trains = service.program(on, folder, "a network", TRAINS)
    told: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, found in told.items():
            say(f"{count} of them train")
            job = service.new_id()
            on.submit(job, trains.uri, [], "CUSTOM", **machines(count - 1))
            lines, _ = on.follow(job)
            found.append(json.loads(service.printed(lines)[-1]["message"]))
    table = Table("replicas", "rows/s", "ratio", "ms a step", "of it arithmetic", "share of communication")
    table.title = f"Data-parallel training, 786,432 weights, medians of {rounds}"
    first = statistics.median(each["rows"] for each in told[1])
    for count, found in told.items():
        rows, step, compute = (statistics.median(each[name] for each in found) for name in ("rows", "step", "compute"))
        share = f"{100 * max(0.0, 1 - compute / step):.0f} %"
        table.add_row(
            str(count), f"{rows:,.0f}", f"{rows / first:.2f}", f"{1000 * step:.1f}", f"{1000 * compute:.1f}", share
        )
    Console(width=110).print(table)


def machines(workers: int) -> dict[str, str]:
    """Of one core each."""
    master = {"masterType": "n1-standard-1"}
    return {**master, "workerType": "n1-standard-1", "workerCount": str(workers)} if workers else master


if __name__ == "__main__":
    main()
