"""The whole path on this machine, checked step by step: package, bucket, job, logs, model, versions, predictions.

    make lab                   # a seeded set of synthetic rides
    make lab DATA=folder       # your own taxi-train.csv and taxi-valid.csv
    make lab LARGE=1           # at the end also a job of 100,000 steps over a million rides

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
MODEL = "taxifare"
STEPS, TRIED, LARGE = 3000, 300, 100_000  # of a job, of the try before it, of the large job
MILLION = 1_000_000
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


@dataclass(frozen=True)
class Candidate:
    """A job, and the version that serves what it exported."""

    job: str
    version: str
    features: str


RAW, ENGINEERED = Candidate("taxifare_1", "v1", "raw"), Candidate("taxifare_2", "v2", "engineered")


class Lab:
    """One run of the lab, in a folder of its own."""

    def __init__(self, folder: Path, data: Path | None, large: bool, show: Show) -> None:
        self.folder, self.given, self.large, self.show = folder, data, large, show
        self.home = folder / "home"
        self.bucket = f"gs://{PROJECT}-lab-{os.getpid()}"
        self.server: subprocess.Popen[bytes] | None = None
        self.environ = {**os.environ, "TAXIWAY_HOME": str(self.home)}
        self.train = self.valid = Path()
        self.rmse: dict[str, float] = {}  # by job, as its log says it
        self.default = ""
        self.fare = 0.0

    def run(self) -> None:
        with self.show.step("Rides to learn from") as step:
            self.rides()
            step.detail = f"{count(self.train):,} to train on, {count(self.valid):,} to evaluate on"
        with self.show.step("Try the package here, without a server") as step:
            receipt = self.try_here(step)
        with self.show.step("Start a server on a fresh home") as step:
            step.detail = self.start_server()
        with self.show.step("Make a bucket") as step:
            self.taxiway("storage", "mb", self.bucket, "--location", "us-central1")
            step.detail = self.bucket
        with self.show.step("Copy the rides into it") as step:
            self.taxiway("storage", "cp", str(self.train), str(self.valid), f"{self.bucket}/data/")
            listed = self.taxiway("storage", "ls", f"{self.bucket}/data/").split()
            check(len(listed) == 2, f"expected two files in {self.bucket}/data/, and found {listed}")
            step.detail = "  ".join(listed)
        with self.show.step("Without the grant, a job is refused") as step:
            step.detail = self.refused_without_grant()
        with self.show.step("Grant the bucket to the ML service agent") as step:
            step.detail = self.grant()
        with self.show.step("Submit the trainer, follow its logs") as step:
            self.submit(step, RAW.job, "--train_steps", str(STEPS))
        with self.show.step("It is what was tried here") as step:
            step.detail = self.same_as_tried(receipt)
        with self.show.step("Make a model and deploy its version") as step:
            self.taxiway("models", "create", MODEL, "--regions", "us-central1")
            step.detail = self.deploy(RAW)
        with self.show.step("Predict from the command line") as step:
            self.fare = self.predict("--version", RAW.version)
            step.detail = f"the ride of test.json costs ${self.fare:.2f}"
        with self.show.step("Predict with google-api-python-client") as step:
            step.detail = self.ask()
        with self.show.step("Submit it again, with engineered features") as step:
            self.submit(step, ENGINEERED.job, "--train_steps", str(STEPS), "--features", ENGINEERED.features)
        with self.show.step("Deploy a second version beside the first") as step:
            step.detail = self.deploy(ENGINEERED)
            fare = self.predict()
            check(fare == self.fare, f"the default should still be {RAW.version}, which said ${self.fare}: ${fare}")
        with self.show.step("Compare both on the held-out rides") as step:
            best = self.compare(step)
        with self.show.step("Make the better one the default") as step:
            step.detail = self.set_default(best)
        if self.large:
            with self.show.step("A million rides into the bucket") as step:
                step.detail = self.enlarge()
            with self.show.step("Submit the large job, follow its logs") as step:
                large = f"{self.bucket}/data/large.csv"
                self.submit(step, "taxifare_large", "--train_steps", str(LARGE), train=large)
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

    def rides(self) -> None:
        folder = self.given or self.folder / "data"
        if self.given is None:
            self.maker("make", "--rows", str(SYNTHETIC_ROWS), "--seed", "2018", "--output", str(folder))
        self.train, self.valid = folder / "taxi-train.csv", folder / "taxi-valid.csv"
        for path in (self.train, self.valid):
            check(path.is_file(), f"there is no {path}; DATA must name a folder with taxi-train.csv and taxi-valid.csv")

    def try_here(self, step: Step) -> str:
        """`local train` and `local predict`; returns the run's receipt."""
        output = self.folder / "tried"
        told = ["--module-name", "trainer.task", "--package-path", str(EXAMPLE / "trainer"), "--"]
        told += ["--train_data_paths", str(self.train), "--eval_data_paths", str(self.valid)]
        told += ["--output_dir", str(output), "--train_steps", str(TRIED)]
        ended = subprocess.run(
            [*taxiway(), "local", "train", *told], env=self.environ, capture_output=True, text=True, check=False
        )
        check(ended.returncode == 0, f"local train ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
        receipt, best = re.search(r"Receipt (local-\w+):", ended.stderr), BEST.search(ended.stdout)
        check(receipt is not None and best is not None, f"no receipt, or no RMSE:\n{ended.stdout}{ended.stderr}")
        assert receipt
        assert best
        (exported,) = (output / "export" / "exporter").iterdir()
        asked = ["--model-dir", str(exported), "--json-instances", str(EXAMPLE / "test.json"), "--format", "json"]
        fare = fares_in(self.taxiway("local", "predict", *asked))[0]
        check(FARES[0] < fare < FARES[1], f"${fare:.2f} is no taxi fare")
        step.detail = f"RMSE {best[1]} after {TRIED} steps, ${fare:.2f} for the ride of test.json"
        return receipt[1]

    def refused_without_grant(self) -> str:
        refused = self.submission(RAW.job, f"{self.bucket}/data/taxi-train.csv", ["--async"])
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

    def submission(self, job: str, train: str, flags: list[str], *trainers: str) -> list[str]:
        output = f"{self.bucket}/{job}"
        return [
            *[*taxiway(), "jobs", "submit", "training", job, "--module-name", "trainer.task"],
            *["--package-path", str(EXAMPLE / "trainer"), "--staging-bucket", self.bucket, "--job-dir", output],
            *["--region", "us-central1", "--scale-tier", "BASIC", "--runtime-version", "2.21", *flags, "--"],
            *["--train_data_paths", train, "--eval_data_paths", f"{self.bucket}/data/taxi-valid.csv"],
            *["--output_dir", output, *trainers],
        ]

    def submit(self, step: Step, job: str, *trainers: str, train: str = "") -> None:
        """Submit with --stream-logs; its lines move the display. The log must be whole and the job must succeed."""
        following = subprocess.Popen(
            self.submission(job, train or f"{self.bucket}/data/taxi-train.csv", ["--stream-logs"], *trainers),
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
        self.rmse[job] = float(best[1])
        check("Job completed successfully." in text, f"the log's end is missing:\n{text}")
        described = self.taxiway("jobs", "describe", job)
        check("state: SUCCEEDED" in described, f"the job is not SUCCEEDED:\n{described}")
        limit = 5.0 if self.given else constant_error(self.train, self.valid) / 2
        check(self.rmse[job] < limit, f"RMSE {self.rmse[job]} is not below {limit:.2f}: the model did not learn")
        step.detail = f"SUCCEEDED, RMSE {self.rmse[job]:.2f}, {len(said)} lines of log"

    def same_as_tried(self, receipt: str) -> str:
        """The job's receipt and the try's differ in the arguments, which name other folders, and in nothing else."""
        words = [*taxiway(), "jobs", "diff", receipt, RAW.job, "--format", "json"]
        ended = subprocess.run(words, env=self.environ, capture_output=True, text=True, check=False)
        check(ended.returncode == 1, f"the arguments differ, and the exit code is {ended.returncode}:\n{ended.stderr}")
        different = [part["part"] for part in json.loads(ended.stdout) if not part["same"]]
        check(different == ["args"], f"expected the same but for the args:\n{ended.stdout}")
        return "package, runtime and environment are the same, only the arguments differ"

    def deploy(self, candidate: Candidate) -> str:
        folder = f"{self.bucket}/{candidate.job}/export/exporter/"
        exported = self.taxiway("storage", "ls", folder).split()
        check(bool(exported), f"nothing was exported below {folder}")
        told = ["--origin", exported[-1], "--runtime-version", "2.21", "--framework", "tensorflow"]
        self.taxiway("versions", "create", candidate.version, "--model", MODEL, *told)
        state = self.taxiway("versions", "describe", candidate.version, "--model", MODEL)
        check("state: READY" in state, f"the version is not READY:\n{state}")
        return f"{MODEL}/{candidate.version} is READY, from {exported[-1]}"

    def predict(self, *version: str) -> float:
        asked = ["--model", MODEL, *version, "--json-instances", str(EXAMPLE / "test.json"), "--format", "json"]
        (fare,) = fares_in(self.taxiway("predict", *asked))
        check(FARES[0] < fare < FARES[1], f"${fare:.2f} is no taxi fare")
        return fare

    def compare(self, step: Step) -> Candidate:
        """Both versions' errors on rides that neither has learned from, by their answers; returns the better one."""
        fares, rides = instances(self.valid)
        asked = self.folder / "held-out.json"
        asked.write_text("".join(f"{json.dumps(ride)}\n" for ride in rides))
        errors = {}
        for each in (RAW, ENGINEERED):
            told = ["--model", MODEL, "--version", each.version, "--json-instances", str(asked), "--format", "json"]
            guesses = fares_in(self.taxiway("predict", *told))
            squares = [(guess - fare) ** 2 for guess, fare in zip(guesses, fares, strict=True)]
            errors[each] = (sum(squares) / len(squares)) ** 0.5
            held = abs(errors[each] - self.rmse[each.job]) < 0.02
            check(held, f"{each.version} errs by {errors[each]:.3f}, its job said {self.rmse[each.job]}")
        said = [f"{each.version} ({each.features}) ${error:.2f}" for each, error in errors.items()]
        step.detail = f"{len(fares):,} rides: {', '.join(said)}"
        return min(errors, key=errors.__getitem__)

    def set_default(self, best: Candidate) -> str:
        self.taxiway("versions", "set-default", best.version, "--model", MODEL)
        asked = self.predict()
        check(asked == self.predict("--version", best.version), f"{MODEL} does not answer as {best.version}")
        self.default, self.fare = best.version, asked
        return f"{MODEL} answers as {best.version}: ${asked:.2f}"

    def enlarge(self) -> str:
        large = self.folder / "large.csv"
        self.maker("enlarge", "--from", str(self.train), "--rows", str(MILLION), "--output", str(large))
        self.taxiway("storage", "cp", str(large), f"{self.bucket}/data/")
        return f"{large.stat().st_size / 1e6:.0f} MB at {self.bucket}/data/large.csv"

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

    def maker(self, *words: str) -> None:
        self.command([sys.executable, "-m", "taxifare_data", *words], EXAMPLE)

    def command(self, words: list[str], folder: Path | None = None) -> str:
        ended = subprocess.run(words, env=self.environ, cwd=folder, capture_output=True, text=True, check=False)
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


def instances(path: Path) -> tuple[list[float], list[dict[str, float]]]:
    """The fares of a file of rides, and the rides as a version is asked for them."""
    names = ["pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]
    rows = [[float(word) for word in line.split(",")[:-1]] for line in path.read_text().splitlines()]
    return [row[0] for row in rows], [dict(zip(names, row[1:], strict=True)) for row in rows]


def fares_in(answer: str) -> list[float]:
    return [float(each["predictions"][0]) for each in json.loads(answer)["predictions"]]


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
    parser.add_argument("--large", action="store_true", help="train on a million rides as well")
    parser.add_argument("--data", type=Path, help="a folder with taxi-train.csv and taxi-valid.csv")
    args = parser.parse_args()
    console = Console()
    show = Show(console)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="taxiway-lab-") as folder:
        lab = Lab(Path(folder), args.data.absolute() if args.data else None, args.large, show)
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
        f"RMSE {min(lab.rmse.values()):.2f}, ${lab.fare:.2f} for the ride of test.json ({lab.default}).\n\n"
        "Now by hand:\n"
        "  .venv/bin/taxiway up                      # in one terminal\n"
        '  eval "$(.venv/bin/taxiway env)"           # in another: now gcloud and Google\'s libraries talk to it\n'
        "  README.md has the lab, command by command.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
