"""A job that prints a million lines: how fast they go, whether all arrive, how far behind who follows them is.

    .venv/bin/python benchmarks/logs.py [--lines 1000000] [--rates 100 10000] [--seconds 15]

Starts a server on a fresh home and submits real jobs to it. Each line holds its number and the time of its print, so
that the follower of the stream, a process beside the server on the same machine, sees what is missing and how late each
is. First lines are printed at a steady rate, then --lines of them as fast as the trainer can: that is faster than they
are kept, and the delay is how far the trainer is ahead. The same trainer into /dev/null is what nothing but Python
costs. Memory is the largest growth while the job runs. Prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import service
from peers import MIB
from rich.console import Console
from rich.table import Table
from service import Service

from taxiway import handles
from taxiway.cli import tail

TRAINER = """\
import sys, time
count, rate = int(sys.argv[1]), float(sys.argv[2])
began = time.time()
for number in range(count):
    if rate:
        while (left := began + number / rate - time.time()) > 0:
            time.sleep(left)
    print("line", number, time.time(), "loss = 0.123456, global_step/sec = 1234.5")
"""


class Found(msgspec.Struct):
    """What the wire says of a line, as far as it is looked at here."""

    message: str


class Lines(msgspec.Struct):
    lines: list[Found]


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--lines", type=int, default=1_000_000, help="of the large job (%(default)s)")
    given.add_argument("--rates", type=int, nargs="*", default=[100, 10_000], help="lines a second before that")
    given.add_argument("--seconds", type=int, default=15, help="how long each rate is kept up (%(default)s)")
    told = given.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory(prefix="logs-benchmark-") as name, service.running(Path(name)) as on:
        bench = Bench(on, service.program(on, Path(name), "lines", TRAINER).uri)
        bench.follow(10, 0)  # everybody is warm
        runs = [bench.follow(rate * told.seconds, rate) for rate in told.rates]
        runs.append(bench.follow(told.lines, 0))
        show(runs, bare(told.lines), on.home)


@dataclass
class Run:
    """A job whose lines were followed."""

    rate: int
    count: int
    lost: int = 0
    doubled: int = 0
    printing: float = 0.0  # seconds from the first print to the last
    all: float = 0.0  # from the first print to the last line's arrival
    delays: list[float] = field(default_factory=list)  # of each line from its print to the follower, seconds
    growth: dict[str, int] = field(default_factory=dict)  # bytes, by process


class Bench:
    """Jobs of one trainer, each with its follower."""

    def __init__(self, on: Service, uri: str) -> None:
        self.on, self.uri = on, uri

    def follow(self, count: int, rate: int) -> Run:
        """Run a job that prints so many lines, so many a second (0: all it can), and follow it to its end."""
        run, job = Run(rate, count), f"lines_{count}_{rate}"
        self.on.submit(job, self.uri, [str(count), str(rate)])
        with self._watched(run), self.on.http.stream("GET", f"{self.on.jobs}/{job}:streamLogs") as answer:
            self._read(answer.iter_raw(), run)
        return run

    def _read(self, chunks: Iterator[bytes], run: Run) -> None:
        seen = bytearray(run.count)
        first = last = arrived = 0.0
        decoder, held = msgspec.json.Decoder(Lines), b""
        for chunk in chunks:
            *blocks, held = (held + chunk).split(b"\n\n")
            arrived = time.time()
            for block in blocks:
                if block.startswith(b"event: end"):
                    (event,) = tail.events([block + b"\n\n"])
                    assert event.data["state"] == "SUCCEEDED", event.data
                elif b"\ndata: " in block:
                    for line in decoder.decode(block.partition(b"\ndata: ")[2]).lines:
                        if line.message.startswith("line "):
                            _, number, printed, *_ = line.message.split(" ", 3)
                            run.doubled += seen[int(number)]
                            seen[int(number)] = 1
                            last, run.all = float(printed), arrived
                            first = first or last
                            run.delays.append(arrived - last)
        run.lost = run.count - sum(seen)
        run.printing, run.all = last - first, run.all - first

    @contextlib.contextmanager
    def _watched(self, run: Run) -> Iterator[None]:
        """Note the growth of the server and of the replica's agent meanwhile."""
        over = threading.Event()
        server = self.on.process
        first: dict[str, int] = {"server": server.memory_info().rss}

        def look() -> None:
            agent: psutil.Process | None = None
            while not over.wait(0.1):
                with contextlib.suppress(psutil.Error):
                    note("server", server)
                    agent = agent if agent is not None and agent.is_running() else self._agent()
                    if agent is not None:
                        note("agent", agent)

        def note(name: str, process: psutil.Process) -> None:
            size = process.memory_info().rss
            run.growth[name] = max(run.growth.get(name, 0), size - first.setdefault(name, size))

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()

    def _agent(self) -> psutil.Process | None:
        """The replica's agent, once the trainer runs: what it takes to begin is no growth."""
        for each in self.on.process.children():
            if each.children() and handles.MARK in each.environ():
                return each
        return None


def bare(count: int) -> float:
    """Lines a second of the same trainer with nobody who reads them."""
    began = time.monotonic()
    command = [sys.executable, "-u", "-c", TRAINER, str(count), "0", "--job-dir", ""]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return count / (time.monotonic() - began)


def show(runs: list[Run], alone: float, home: Path) -> None:
    table = Table(
        "lines", "printed /s", "through /s", "lost", "twice", "median ms", "p99 ms", "server MiB", "agent MiB"
    )
    for run in runs:
        delays = sorted(run.delays)
        late = [f"{1000 * each:.0f}" for each in (statistics.median(delays), delays[int(len(delays) * 0.99)])]
        speed = [f"{run.count / seconds:,.0f}" for seconds in (run.printing, run.all)]
        grown = [f"{run.growth.get(name, 0) / MIB:.0f}" for name in ("server", "agent")]
        table.add_row(f"{run.count:,}", *speed, str(run.lost), str(run.doubled), *late, *grown)
    Console(width=120).print(table)
    print(f"the same trainer into /dev/null: {alone:,.0f} lines/s; load {os.getloadavg()[0]:.1f} after")
    kept = sum(run.count for run in runs)
    size = sum((home / name).stat().st_size for name in ("taxiway.db", "taxiway.db-wal"))
    print(f"on the disk: {size / kept:.0f} bytes a line")


if __name__ == "__main__":
    main()
