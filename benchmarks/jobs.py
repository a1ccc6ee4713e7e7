"""What a job costs beside the same trainer run by hand, and what a thousand of them cost the server.

    .venv/bin/python benchmarks/jobs.py [--part overhead many] [--rounds 5] [--jobs 200]

Starts a server on a fresh home. `overhead`: from the submission to the job's end, for a trainer that does nothing and
for one that trains ten steps of a small Keras model, in turn with `python -m trainer.task` by the same interpreter
(the runtime's, with the package on its path); and what the difference is made of, by the job's own start-up timeline.
`many`: trivial jobs submitted at once, until the last has ended; then what a claim's look at the queue and the first
page of jobs.list take with 100 and with 10,000 jobs that have ended. Prints tables.
"""

from __future__ import annotations

import argparse
import io
import os
import sqlite3
import statistics
import subprocess
import tarfile
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import peers
import psutil
from peers import MIB
from rich.console import Console
from rich.progress import track
from rich.table import Table

from taxiway import address
from taxiway.environments import runtimes

BUCKET = "jobs"
TRAINERS = {
    "nothing": "pass",
    "ten steps": """
import numpy, keras
model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(numpy.ones((320, 5), "float32"), numpy.ones((320, 1), "float32"), batch_size=32, epochs=1, verbose=0)
""",
}
FILES = {
    "setup.py": "from setuptools import setup\nsetup(name='trainer', version='0.1', packages=['trainer'])\n",
    "trainer/__init__.py": "",
    "trainer/task.py": "import sys\nexec(compile(sys.argv[1], 'code.py', 'exec'))\n",
}
LISTED = (100, 10_000)
ASKED = 50  # times that a page is asked for


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--part", nargs="+", choices=["overhead", "many"], default=["overhead", "many"])
    given.add_argument("--rounds", type=int, default=5, help="of which the median is told (%(default)s)")
    given.add_argument("--jobs", type=int, default=1000, help="submitted at once (%(default)s)")
    told = given.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    for part in told.part:  # each on a fresh server
        with tempfile.TemporaryDirectory(prefix="jobs-benchmark-") as name, peers.taxiway(Path(name)) as server:
            bench = Bench(Path(name), server.pid)
            bench.open()
            bench.ended(bench.submit("pass"))  # its environment is built, everybody is warm
            Console().print(overhead(bench, told.rounds) if part == "overhead" else many(bench, told.jobs))


class Bench:
    """A running server, and jobs on it."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self.process = folder, psutil.Process(pid)
        self.at = address.read(folder / "home")
        token = Path(self.at.access_token).read_text()
        self.http = httpx.Client(
            base_url=self.at.url, headers={"Authorization": f"Bearer {token}"}, timeout=600, trust_env=False
        )
        self.jobs = f"/v1/projects/{self.at.project}/jobs"
        self.count = 0

    def open(self) -> None:
        """A bucket with the trainer's package in it, which the service agent may read."""
        self.call("POST", "/storage/v1/b", params={"project": self.at.project}, json={"name": BUCKET})
        policy = self.call("GET", f"/storage/v1/b/{BUCKET}/iam").json()
        reader = {"role": "roles/storage.objectViewer", "members": [f"serviceAccount:{self.at.service_agent}"]}
        self.call("PUT", f"/storage/v1/b/{BUCKET}/iam", json={**policy, "bindings": [*policy["bindings"], reader]})
        named = {"uploadType": "media", "name": "trainer-0.1.tar.gz"}
        self.call("POST", f"/upload/storage/v1/b/{BUCKET}/o", params=named, content=package())

    def submit(self, code: str) -> str:
        self.count += 1
        told = {
            "scaleTier": "BASIC",
            "region": "us-central1",
            "runtimeVersion": "2.21",
            "pythonModule": "trainer.task",
            "packageUris": [f"gs://{BUCKET}/trainer-0.1.tar.gz"],
            "args": [code],
        }
        body = {"jobId": f"job_{self.count}", "trainingInput": told}
        return str(self.call("POST", self.jobs, json=body).json()["jobId"])

    def ended(self, job: str) -> dict[str, Any]:
        """The job, as soon as its log has ended."""
        with self.http.stream("GET", f"{self.jobs}/{job}:streamLogs") as answer:
            for _ in answer.iter_raw():
                pass
        found = dict(self.call("GET", f"{self.jobs}/{job}").json())
        if found["state"] != "SUCCEEDED":
            raise SystemExit(f"{job} is {found['state']}: {found.get('errorMessage')}")
        return found

    def call(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self.http.request(method, path, **rest).raise_for_status()


def package() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in FILES.items():
            entry = tarfile.TarInfo(f"trainer-0.1/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return made.getvalue()


# --- one job ---


def overhead(bench: Bench, rounds: int) -> Table:
    """Each trainer by hand and as a job, in turn."""
    python = runtimes.build(runtimes.resolve("2.21", None))
    source = bench.folder / "source"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    table = Table(title=f"one job, seconds, medians of {rounds}")
    for column in ("trainer", "python -m", "submit to end", "more", "ratio", "of which, by the job's own timeline"):
        table.add_column(column)
    for name, code in TRAINERS.items():
        bare, whole, stages = [], [], []
        for _ in track(range(rounds), f"{name} ...", transient=True):
            began = time.perf_counter()
            subprocess.run([python, "-m", "trainer.task", code], cwd=source, check=True, capture_output=True)
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            found = bench.ended(bench.submit(code))
            whole.append(time.perf_counter() - began)
            stages.append({each["stage"]: each for each in found["taxiway"]["startup"]})
        by_hand, as_job = statistics.median(bare), statistics.median(whole)
        parts = ", ".join(f"{stage} {_median(stages, stage):.2f}" for stage in ("VALIDATE", "QUEUE", "ENVIRONMENT"))
        row = (by_hand, as_job, as_job - by_hand, as_job / by_hand)
        table.add_row(name, *(f"{each:.2f}" for each in row), parts.lower())
    return table


def _median(stages: list[dict[str, Any]], stage: str) -> float:
    found = [each[key]["duration"] for each in stages for key in each if key.upper() == stage]
    return statistics.median(float(str(each).rstrip("s")) for each in found) if found else 0.0


# --- many ---


def many(bench: Bench, count: int) -> Table:
    """So many jobs at once; then what a longer history costs."""
    before, rss = sum(bench.process.cpu_times()[:2]), bench.process.memory_info().rss
    began = time.perf_counter()
    jobs = [bench.submit("pass") for _ in track(range(count), "submitting ...", transient=True)]
    submitted = time.perf_counter() - began
    most = rss
    for job in track(jobs, "running ...", transient=True):
        bench.ended(job)
        most = max(most, bench.process.memory_info().rss)
    took, used = time.perf_counter() - began, sum(bench.process.cpu_times()[:2]) - before
    table = Table(title=f"{count} trivial jobs, submitted at once")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("submitted, jobs/s", f"{count / submitted:.0f}")
    table.add_row("all SUCCEEDED after, s", f"{took:.0f}")
    table.add_row("jobs/s", f"{count / took:.2f}")
    table.add_row("processor time of the server, ms a job", f"{used / count * 1000:.0f}")
    table.add_row("memory of the server, growth, MiB", f"{(most - rss) / MIB:.0f}")
    for wanted in LISTED:
        known = history(bench.folder / "home" / "taxiway.db", wanted)
        table.add_row(f"first page of jobs.list with {known:,} ended jobs, ms", f"{_page(bench) * 1000:.1f}")
        began = time.perf_counter()
        for _ in range(5):
            bench.ended(bench.submit("pass"))
        table.add_row(f"one more job with {known:,} ended jobs, s", f"{(time.perf_counter() - began) / 5:.2f}")
    return table


def history(database: Path, count: int) -> int:
    """At least as many ended jobs as that, by copies of one in the rows themselves; how many there are then."""
    with closing(sqlite3.connect(database, timeout=30)) as rows, rows:
        names = [row[1] for row in rows.execute("PRAGMA table_info(jobs)")]
        others = ", ".join(name for name in names if name not in ("id", "position"))
        have, last = rows.execute("SELECT count(*), max(position) FROM jobs WHERE ended IS NOT NULL").fetchone()
        rows.execute(
            f"WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO jobs (id, position, {others}) SELECT printf('copy_%06d', ? + i), ? + i, {others} "
            "FROM jobs, n WHERE id = 'job_1' AND ? > 0",
            (max(1, count - have), last, last, count - have),
        )
    return max(count, int(have))


def _page(bench: Bench) -> float:
    """The median time of a page of twenty."""
    times = []
    for _ in range(ASKED):
        began = time.perf_counter()
        bench.call("GET", bench.jobs, params={"pageSize": 20})
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
