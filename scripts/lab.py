"""The whole path on this machine, checked step by step: package, bucket, grant, job, logs, model, version, prediction.

    make lab                   # a seeded set of synthetic rides
    make lab DATA=folder       # your own taxi-train.csv and taxi-valid.csv

Everything goes through the public commands (and, at the end, a plain google-api-python-client program) against a
server on a fresh home. Exit 0 only if every check held; nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "taxifare"
PROJECT = "taxiway"
MODEL, VERSION, JOB = "taxifare", "v1", "taxifare_1"
STEPS = 3000
SYNTHETIC_ROWS = 12_000
PROGRESS = re.compile(r"step (\d+)/(\d+) .*?eval RMSE ([\d.]+)")
BEST = re.compile(r"RMSE: ([\d.]+) \(best")
FARES = (5.0, 100.0)  # dollars: whatever the rides, La Guardia to the East Village costs something between


class Unheld(Exception):
    """A check that did not hold."""


@dataclass
class Step:
    name: str
    detail: str = ""
    began: float = 0.0
    took: float | None = None
    failed: bool = False
    share: float | None = None  # of its work, where it is known


@dataclass
class Show:
    """What a person sees: each step with its time; on a terminal the running one moves."""

    console: Console
    steps: list[Step] = field(default_factory=list)
    live: Live | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        step = Step(name, began=time.monotonic())
        self.steps.append(step)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            step.took = time.monotonic() - step.began
            if self.live is None:
                mark = "FAILED" if step.failed else "ok"
                self.console.print(
                    f"{step.took:6.1f} s  {mark:6} {step.name}  {step.detail}", highlight=False, soft_wrap=True
                )

    def __rich__(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=2)
        grid.add_column(justify="right", width=7)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for step in self.steps:
            done = step.took is not None
            mark: Text | Spinner = Text("✓", "green") if done else Spinner("dots", style="cyan")
            if step.failed:
                mark = Text("✗", "bold red")
            seconds = step.took if step.took is not None else time.monotonic() - step.began
            detail = Table.grid(padding=(0, 1))
            bar = [ProgressBar(total=1, completed=step.share, width=24)] if step.share is not None and not done else []
            detail.add_row(*bar, Text(step.detail, "dim" if done else ""))
            grid.add_row(mark, f"{seconds:.1f} s", Text(step.name, "" if done else "bold"), detail)
        return grid


class Lab:
    """One run of the lab, in a folder of its own."""

    def __init__(self, folder: Path, data: Path | None, show: Show) -> None:
        self.folder, self.given, self.show = folder, data, show
        self.home = folder / "home"
        self.bucket = f"gs://{PROJECT}-lab-{os.getpid()}"
        self.output = f"{self.bucket}/{JOB}"
        self.server: subprocess.Popen[bytes] | None = None
        self.environ = {**os.environ, "TAXIWAY_HOME": str(self.home)}
        self.rmse = self.fare = 0.0

    def run(self) -> None:
        with self.show.step("Start a server on a fresh home") as step:
            step.detail = self.start_server()
        with self.show.step("Rides to learn from") as step:
            train, valid = self.rides()
            step.detail = f"{count(train):,} to train on, {count(valid):,} to evaluate on"
        with self.show.step("Make a bucket") as step:
            self.taxiway("storage", "mb", self.bucket, "--location", "us-central1")
            step.detail = self.bucket
        with self.show.step("Copy the rides into it") as step:
            self.taxiway("storage", "cp", str(train), str(valid), f"{self.bucket}/data/")
            listed = self.taxiway("storage", "ls", f"{self.bucket}/data/").split()
            check(len(listed) == 2, f"expected two files in {self.bucket}/data/, and found {listed}")
            step.detail = "  ".join(listed)
        with self.show.step("Without the grant, a job is refused") as step:
            step.detail = self.refused_without_grant()
        with self.show.step("Grant the bucket to the ML service agent") as step:
            step.detail = self.grant()
        with self.show.step("Submit the trainer, follow its logs") as step:
            self.submit(step)
        with self.show.step("The exported model") as step:
            exported = self.taxiway("storage", "ls", f"{self.output}/export/exporter/").split()
            check(bool(exported), f"nothing was exported below {self.output}/export/exporter/")
            origin = step.detail = exported[-1]
        with self.show.step("Make a model and deploy its version") as step:
            self.taxiway("models", "create", MODEL, "--regions", "us-central1")
            told = ["--runtime-version", "2.21", "--framework", "tensorflow"]
            self.taxiway("versions", "create", VERSION, "--model", MODEL, "--origin", origin, *told)
            state = self.taxiway("versions", "describe", VERSION, "--model", MODEL)
            check("state: READY" in state, f"the version is not READY:\n{state}")
            step.detail = f"{MODEL}/{VERSION} is READY"
        with self.show.step("Predict from the command line") as step:
            step.detail = self.predict()
        with self.show.step("Predict with google-api-python-client") as step:
            step.detail = self.ask()
        with self.show.step("Stop the server") as step:
            step.detail = self.stop_server()

    def start_server(self) -> str:
        log = (self.folder / "server.log").open("wb")
        command = [*taxiway(), "up", "--home", str(self.home), "--port", "0"]
        self.server = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        while not (self.home / "server.json").exists():
            check(self.server.poll() is None, f"the server did not start:\n{(self.folder / 'server.log').read_text()}")
            time.sleep(0.05)
        for line in self.taxiway("env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environ[name] = value.strip("'\"")
        return str(json.loads((self.home / "server.json").read_bytes())["url"])

    def rides(self) -> tuple[Path, Path]:
        folder = self.given or self.folder / "data"
        if self.given is None:
            maker = [sys.executable, str(EXAMPLE / "taxifare_data.py")]
            self.command([*maker, "--rows", str(SYNTHETIC_ROWS), "--seed", "2018", "--output", str(folder)])
        found = folder / "taxi-train.csv", folder / "taxi-valid.csv"
        for path in found:
            check(path.is_file(), f"there is no {path}; DATA must name a folder with taxi-train.csv and taxi-valid.csv")
        return found

    def refused_without_grant(self) -> str:
        refused = self.submission("--async")
        ended = subprocess.run(refused, env=self.environ, capture_output=True, text=True)
        held = ended.returncode != 0 and "add-iam-policy-binding" in ended.stderr
        check(held, f"the job was not refused with the grant that mends it:\n{ended.stderr}")
        return "403, and it names the command that grants it"

    def grant(self) -> str:
        config = self.taxiway("projects", "get-config")
        agent = re.search(r"service-\d+@[\w.-]+", config)
        check(agent is not None, f"getConfig named no service agent:\n{config}")
        assert agent
        for role in ("roles/storage.objectAdmin", "roles/storage.legacyBucketReader"):
            member = f"--member=serviceAccount:{agent[0]}"
            self.taxiway("storage", "buckets", "add-iam-policy-binding", self.bucket, member, f"--role={role}")
        return agent[0]

    def submission(self, *flags: str) -> list[str]:
        return [
            *[*taxiway(), "jobs", "submit", "training", JOB, "--module-name", "trainer.task"],
            *["--package-path", str(EXAMPLE / "trainer"), "--staging-bucket", self.bucket, "--job-dir", self.output],
            *["--region", "us-central1", "--scale-tier", "BASIC", "--runtime-version", "2.21", *flags, "--"],
            *["--train_data_paths", f"{self.bucket}/data/taxi-train.csv"],
            *["--eval_data_paths", f"{self.bucket}/data/taxi-valid.csv"],
            *["--output_dir", self.output, "--train_steps", str(STEPS), "--seed", "1"],
        ]

    def submit(self, step: Step) -> None:
        """Submit with --stream-logs; its lines move the display. The log must be whole and the job must succeed."""
        following = subprocess.Popen(
            self.submission("--stream-logs"),
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert following.stdout
        said = []
        for line in following.stdout:
            said.append(line.rstrip("\n"))
            moved = PROGRESS.search(line)
            if moved:
                step.share = int(moved[1]) / int(moved[2])
                step.detail = f"step {int(moved[1]):,} of {int(moved[2]):,}, RMSE {moved[3]}"
            elif step.share is None:
                step.detail = line.rstrip("\n").rpartition("\t")[2][:90]
        text = "\n".join(said)
        check(following.wait() == 0, f"the job did not succeed:\n{text}")
        best = BEST.search(text)
        check(best is not None, f"the log has no final RMSE:\n{text}")
        assert best
        self.rmse = float(best[1])
        check("Job completed successfully." in text, f"the log's end is missing:\n{text}")
        described = self.taxiway("jobs", "describe", JOB)
        check("state: SUCCEEDED" in described, f"the job is not SUCCEEDED:\n{described}")
        limit = 5.2 if self.given else constant_error(*self.rides()) / 2
        check(self.rmse < limit, f"RMSE {self.rmse} is not below {limit:.2f}: the model did not learn")
        step.detail = f"SUCCEEDED, RMSE {self.rmse:.2f}, {len(said)} lines of log"

    def predict(self) -> str:
        told = ["--model", MODEL, "--version", VERSION, "--json-instances", str(EXAMPLE / "test.json")]
        answer = json.loads(self.taxiway("predict", *told, "--format", "json"))
        predictions = answer["predictions"] if isinstance(answer, dict) else answer
        (self.fare,) = predictions[0]["predictions"]
        check(FARES[0] < self.fare < FARES[1], f"${self.fare:.2f} is no taxi fare")
        return f"the ride of test.json costs ${self.fare:.2f}"

    def ask(self) -> str:
        program = [sys.executable, str(EXAMPLE / "ask.py"), "--project", PROJECT, "--model", MODEL]
        said = self.command([*program, str(EXAMPLE / "test.json")]).strip()
        check(said.startswith(f"${self.fare:.2f} "), f"the client library was told {said}, the CLI ${self.fare:.2f}")
        return said.partition(" for ")[0]

    def stop_server(self) -> str:
        assert self.server
        self.server.send_signal(signal.SIGTERM)
        check(self.server.wait(60) == 0, f"the server did not end well:\n{(self.folder / 'server.log').read_text()}")
        left = [each for each in processes() if str(self.home) in " ".join(each.cmdline())]
        check(not left, f"still running: {left}")
        return "nothing is left running"

    def taxiway(self, *words: str) -> str:
        return self.command([*taxiway(), *words])

    def command(self, words: list[str]) -> str:
        ended = subprocess.run(words, env=self.environ, capture_output=True, text=True)
        shown = " ".join(Path(word).name if word.startswith("/") else word for word in words[-8:])
        check(ended.returncode == 0, f"{shown} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        return ended.stdout


def taxiway() -> list[str]:
    return [str(Path(sys.executable).with_name("taxiway"))]


def processes() -> Iterator[psutil.Process]:
    for each in psutil.process_iter():
        try:
            each.cmdline()
        except psutil.Error:
            continue
        yield each


def count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def constant_error(train: Path, valid: Path) -> float:
    """RMSE of always answering the mean fare, in dollars."""
    fares = [[float(line.split(",")[0] or 0) for line in path.read_text().splitlines()] for path in (train, valid)]
    mean = sum(fares[0]) / len(fares[0])
    return float((sum((fare - mean) ** 2 for fare in fares[1]) / len(fares[1])) ** 0.5)


def check(held: bool, otherwise: str) -> None:
    if not held:
        raise Unheld(otherwise)


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole path, from a package to a prediction, checked.")
    parser.add_argument("--data", type=Path, help="a folder with taxi-train.csv and taxi-valid.csv")
    args = parser.parse_args()
    console = Console()
    show = Show(console)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="taxiway-lab-") as folder:
        lab = Lab(Path(folder), args.data.absolute() if args.data else None, show)
        try:
            if console.is_terminal:
                with Live(show, console=console, refresh_per_second=10) as show.live:
                    lab.run()
            else:
                lab.run()
        except Unheld as error:
            console.print(f"\n{error}", style="red", markup=False, highlight=False)
            return 1
        finally:
            if lab.server and lab.server.poll() is None:
                lab.server.terminate()
                lab.server.wait()
    console.print(
        f"\nFrom a package to a prediction in {time.monotonic() - began:.1f} s: "
        f"RMSE {lab.rmse:.2f}, ${lab.fare:.2f} for the ride of test.json.\n\n"
        "Now by hand:\n"
        "  .venv/bin/taxiway up                      # in one terminal\n"
        '  eval "$(.venv/bin/taxiway env)"           # in another: now gcloud and Google\'s libraries talk to it\n'
        "  README.md has the lab, command by command.",
        highlight=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
