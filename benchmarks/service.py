"""A Taxiway server on a fresh home, trainers installed for it, and their jobs: what benchmarks of jobs work with."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import peers
import psutil
from peers import BUCKET

from taxiway import address
from taxiway.cli import packaging, tail
from taxiway.environments import layers, runtimes

RUNTIME = "2.21"


class Service:
    """A running server, and jobs on it."""

    def __init__(self, home: Path) -> None:
        self.home, self.at = home, address.read(home)
        self.process = psutil.Process(self.at.pid)
        token = Path(self.at.access_token).read_text()
        self.http = httpx.Client(
            base_url=self.at.url, headers={"Authorization": f"Bearer {token}"}, timeout=600, trust_env=False
        )
        self.jobs = f"/v1/projects/{self.at.project}/jobs"

    def open(self) -> None:
        """The service agent may use the bucket."""
        policy = self.call("GET", f"/storage/v1/b/{BUCKET}/iam").json()
        members = [f"serviceAccount:{self.at.service_agent}"]
        for role in ("roles/storage.objectAdmin", "roles/storage.legacyBucketReader"):
            policy["bindings"].append({"role": role, "members": members})
        self.call("PUT", f"/storage/v1/b/{BUCKET}/iam", json=policy)

    def call(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self.http.request(method, path, **rest).raise_for_status()

    def put(self, name: str, path: Path) -> str:
        with path.open("rb") as content:
            query = {"uploadType": "media", "name": name}
            self.call("POST", f"/upload/storage/v1/b/{BUCKET}/o", params=query, content=content)
        return f"gs://{BUCKET}/{name}"

    def submit(self, job: str, uri: str, args: list[str], tier: str = "BASIC", **more: Any) -> None:
        told = {"scaleTier": tier, "region": "us-central1", "runtimeVersion": RUNTIME, "packageUris": [uri]}
        told |= {"pythonModule": "trainer.task", "args": args, **more}
        self.call("POST", self.jobs, json={"jobId": job, "trainingInput": told})

    def follow(self, job: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Every line of a job's log, and the job once it has ended."""
        lines: list[dict[str, str]] = []
        with self.http.stream("GET", f"{self.jobs}/{job}:streamLogs") as answer:
            for event in tail.events(answer.iter_raw()):
                if event.kind == "end":
                    if event.data["state"] != "SUCCEEDED":
                        raise SystemExit(f"{job}: {event.data['state']}. {event.data.get('errorMessage')}")
                    return lines, event.data
                lines += event.data["lines"]
        raise SystemExit(f"The log of {job} broke off")

    def fetch(self, prefix: str, to: Path) -> None:
        """Every object below a prefix into a folder."""
        for item in self.call("GET", f"/storage/v1/b/{BUCKET}/o", params={"prefix": prefix}).json()["items"]:
            if not item["name"].endswith("/"):
                path = to / item["name"].removeprefix(prefix)
                path.parent.mkdir(parents=True, exist_ok=True)
                at = f"/storage/v1/b/{BUCKET}/o/{item['name'].replace('/', '%2F')}"
                path.write_bytes(self.call("GET", at, params={"alt": "media"}).content)


@contextmanager
def running(folder: Path) -> Iterator[Service]:
    with peers.taxiway(folder) as peer:
        made = Service(folder / "home")
        assert made.at.pid == peer.pid
        made.open()
        yield made


@dataclass(frozen=True)
class Program:
    """A trainer: its package, in a bucket too, and the interpreter in which it is installed, as it is for its job."""

    name: str
    uri: str
    python: Path
    args: list[str]  # by hand, and by Ray; FRESH stands for a new name
    of_job: list[str]

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-u", "-m", "trainer.task"]


def program(
    on: Service, folder: Path, name: str, source: Path | str, *, args: Sequence[str] = (), of_job: Sequence[str] = ()
) -> Program:
    """`source` is the folder of the package, or the text of its only module."""
    place = Path(tempfile.mkdtemp(dir=folder))
    if isinstance(source, str):
        made = place / "trainer"
        made.mkdir()
        (made / "__init__.py").touch()
        (made / "task.py").write_text(source)
        source = made
    package = packaging.build(source)
    (place / package.file).write_bytes(package.content)
    uri = on.put(f"{place.name}/{package.file}", place / package.file)
    python = layers.ensure(runtimes.resolve(RUNTIME, None), [place / package.file])
    return Program(name, uri, python, list(args), list(of_job))


def printed(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """What the program itself printed."""
    said = [line for line in lines if line.get("taskName") == "master-replica-0"]
    start = next(place for place, line in enumerate(said) if line["message"].startswith("Running command: "))
    end = next(place for place, line in enumerate(said) if line["message"] == "Module completed; cleaning up.")
    return said[start + 1 : end]


def new_id() -> str:
    return f"job_{uuid.uuid4().hex}"


def moment(stamp: str) -> float:
    """Of an RFC 3339 time of any number of digits, in UTC."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
