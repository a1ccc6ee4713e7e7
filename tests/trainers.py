"""Tiny trainers for tests of jobs: one package for all, whose module runs the Python that it gets as an argument.

So an environment is built once, and a test shows its trainer where it shows what must come of it.
"""

from __future__ import annotations

import io
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from taxiway import handles

FILES = {
    "setup.py": "from setuptools import find_packages, setup\n"
    "setup(name='trainer', version='0.1', packages=find_packages())\n",
    "trainer/__init__.py": "",
    "trainer/task.py": "import sys\nexec(compile(sys.argv[sys.argv.index('--code') + 1], 'code.py', 'exec'))\n",
}
# Reads and writes objects by the standard library alone, in a jail and beside one, and waits for a server that is away.
# Without braces: tests fill in the rest by str.format.
CLOUD = """
import json, os, sys, time, urllib.error, urllib.request
from urllib.parse import quote
def ask(opener, url, data=None, **headers):
    while True:
        try:
            named = dict((name.replace("_", "-"), value) for name, value in headers.items())
            return opener.open(urllib.request.Request(url, data, named)).read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
        except OSError:
            pass
        time.sleep(0.05)
host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
answer = ask(urllib.request.build_opener(urllib.request.ProxyHandler(dict())), "http://" + host
             + "/computeMetadata/v1/instance/service-accounts/default/token", Metadata_Flavor="Google")
mine = dict(Authorization="Bearer " + json.loads(answer)["access_token"], Content_Type="text/plain")
storage = "https://storage.googleapis.com/"
def read(bucket, name):
    url = storage + "storage/v1/b/" + bucket + "/o/" + quote(name, "") + "?alt=media"
    return ask(urllib.request.build_opener(), url, **mine)
def write(bucket, name, text):
    ask(urllib.request.build_opener(), storage + "upload/storage/v1/b/" + bucket + "/o?uploadType=media&name=" + name,
        text.encode(), **mine)
"""
LINES = '(resource.type="ml_job" OR resource.type="cloudml_job")'  # as gcloud begins its filter
PATIENCE_S = 100


def sdist(files: dict[str, str] | None = None) -> bytes:
    """A source package as `setup.py sdist` makes them; the same files make the same bytes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (files or FILES).items():
            entry = tarfile.TarInfo(f"trainer-0.1/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    # gzip's header holds the time; every run would make, and build, another package
    return made.getvalue()[:4] + b"\0\0\0\0" + made.getvalue()[8:]


@dataclass
class Lab:
    """A bucket that the service agent may write, a package in it, and jobs on a server."""

    call: Callable[..., httpx.Response]
    project: str
    agent: str
    bucket: str = field(default_factory=lambda: f"lab-{uuid.uuid4().hex[:10]}")
    submitted: list[str] = field(default_factory=list, repr=False)

    def open(self) -> Lab:
        self.make(self.bucket)
        self.grant(self.bucket, "roles/storage.legacyBucketWriter", "roles/storage.legacyObjectOwner")
        self.grant(self.bucket, "roles/storage.objectAdmin")
        self.put("trainer-0.1.tar.gz", sdist())
        return self

    def make(self, bucket: str) -> None:
        assert self.call("POST", f"/storage/v1/b?project={self.project}", json={"name": bucket}).status_code == 200

    def grant(self, bucket: str, *roles: str) -> None:
        policy = self.call("GET", f"/storage/v1/b/{bucket}/iam").json()
        policy["bindings"] += [{"role": role, "members": [f"serviceAccount:{self.agent}"]} for role in roles]
        assert self.call("PUT", f"/storage/v1/b/{bucket}/iam", json=policy).status_code == 200

    def put(self, name: str, data: bytes) -> str:
        path = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=media&name={name}"
        assert self.call("POST", path, content=data).status_code == 200
        return f"gs://{self.bucket}/{name}"

    def read(self, name: str) -> bytes:
        answer = self.call("GET", f"/storage/v1/b/{self.bucket}/o/{name.replace('/', '%2F')}?alt=media")
        assert answer.status_code == 200, answer.text
        return answer.content

    def listed(self, prefix: str) -> list[str]:
        answer = self.call("GET", f"/storage/v1/b/{self.bucket}/o?prefix={prefix}&maxResults=1000").json()
        return [each["name"] for each in answer.get("items", [])]

    def body(self, code: str = "", job: str = "", **told: Any) -> dict[str, Any]:
        return {
            "jobId": job or f"job_{uuid.uuid4().hex[:10]}",
            "trainingInput": {
                "scaleTier": "BASIC",
                "region": "us-central1",
                "runtimeVersion": "2.21",
                "pythonModule": "trainer.task",
                "packageUris": [f"gs://{self.bucket}/trainer-0.1.tar.gz"],
                "args": ["--code", textwrap.dedent(code)],
                **told,
            },
        }

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return self.call("POST", f"/v1/projects/{self.project}/jobs", json=body)

    def submit(self, code: str, **told: Any) -> str:
        answer = self.post(self.body(code, **told))
        assert answer.status_code == 200, answer.text
        self.submitted.append(str(answer.json()["jobId"]))
        return self.submitted[-1]

    def get(self, job: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/v1/projects/{self.project}/jobs/{job}").json())

    def cancel(self, job: str) -> httpx.Response:
        return self.call("POST", f"/v1/projects/{self.project}/jobs/{job}:cancel", json={})

    def give_way(self) -> None:
        """Cancel what a failed test left: it would hold the room that the next ones need."""
        for job in self.submitted:
            if "endTime" not in self.get(job):
                self.cancel(job)

    def ended(self, job: str) -> dict[str, Any]:
        """The job, once it has ended."""
        return until(lambda: (found := self.get(job)).get("endTime") and found, lambda: (self.get(job), self.said(job)))

    def until_state(self, job: str, *states: str) -> dict[str, Any]:
        return until(lambda: (found := self.get(job))["state"] in states and found, lambda: self.get(job))

    def until_said(self, job: str, message: str) -> None:
        until(lambda: message in self.said(job), lambda: (self.get(job), self.said(job)))

    def entries(self, job: str, more: str = "") -> list[dict[str, Any]]:
        """The whole log, page by page."""
        found: list[dict[str, Any]] = []
        ask = {
            "resourceNames": [f"projects/{self.project}"],
            "filter": f'{LINES} AND resource.labels.job_id="{job}"{more}',
            "orderBy": "timestamp asc",
            "pageSize": 1000,
        }
        token = ""
        while True:
            answer = self.call("POST", "/v2/entries:list", json={**ask, "pageToken": token})
            assert answer.status_code == 200, answer.text
            found += answer.json().get("entries", [])
            token = answer.json().get("nextPageToken", "")
            if not token:
                return found

    def said(self, job: str, task: str = "") -> list[str]:
        """The messages of the log, of one task or of all."""
        more = f' AND resource.labels.task_name="{task}"' if task else ""
        return [entry["jsonPayload"]["message"] for entry in self.entries(job, more)]

    def printed(self, job: str) -> list[str]:
        """What the trainer itself printed."""
        said = self.said(job, "master-replica-0")
        start = next(index for index, line in enumerate(said) if line.startswith("Running command: "))
        end = said.index("Module completed; cleaning up.") if "Module completed; cleaning up." in said else len(said)
        return said[start + 1 : end]


def processes(job: str) -> list[psutil.Process]:
    """What runs on this host for a job, its agent apart: by the variable that a trainer is given, jailed or not."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get("CLOUD_ML_JOB_ID") == job and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def trainer(job: str) -> psutil.Process:
    """The user's code itself, below whatever a jail is made of."""
    return until(lambda: next((each for each in processes(job) if "trainer.task" in each.cmdline()[:5]), None))


def work_of(home: Path, job: str) -> Path:
    """The folder on this host that a job's trainer works in, and that it alone and its owner can write."""
    return home / "attempts" / trainer(job).environ()[handles.MARK] / handles.WORK


def until(true: Callable[[], Any], tell: Callable[[], object] = lambda: "", *, seconds: float = PATIENCE_S) -> Any:
    """What `true` answers, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"this did not come about within {seconds} s: {tell()}")


# The taxi-fare lab as it was in 2018: an Estimator that reads rides, keeps checkpoints and exports its model, on gs://
# or in a folder, for a TensorFlow 1.
ESTIMATOR = {
    "setup.py": FILES["setup.py"],
    "trainer/__init__.py": "",
    "trainer/task.py": """
import argparse

import tensorflow as tf

from . import model

parser = argparse.ArgumentParser()
parser.add_argument("--train_data_paths", required=True)
parser.add_argument("--eval_data_paths", required=True)
parser.add_argument("--output_dir", required=True)
parser.add_argument("--train_steps", type=int, default=100)
parser.add_argument("--job-dir", default="junk")
arguments = parser.parse_args()
print("TensorFlow {} with contrib: {}".format(tf.__version__, hasattr(tf, "contrib")))
model.train_and_evaluate(vars(arguments))
""",
    "trainer/model.py": """
import tensorflow as tf

tf.logging.set_verbosity(tf.logging.INFO)
COLUMNS = ["fare_amount", "pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]
FEATURES = COLUMNS[1:]


def read(pattern, mode, batch_size=64):
    def decode(line):
        row = dict(zip(COLUMNS, tf.decode_csv(line, record_defaults=[[0.0]] * len(COLUMNS))))
        return {name: row[name] for name in FEATURES}, row["fare_amount"]

    def rides():
        lines = tf.data.TextLineDataset(tf.gfile.Glob(pattern)).map(decode)
        if mode == tf.estimator.ModeKeys.TRAIN:
            lines = lines.shuffle(1000).repeat()
        return lines.batch(batch_size).make_one_shot_iterator().get_next()

    return rides


def distance(features):
    features = dict(features)
    latitude = features["pickuplat"] - features["dropofflat"]
    longitude = features["pickuplon"] - features["dropofflon"]
    features["euclidean"] = tf.sqrt(latitude * latitude + longitude * longitude)
    return features


def engineered(read_rides):
    def rides():
        features, fare = read_rides()
        return distance(features), fare

    return rides


def serving():
    given = {name: tf.placeholder(tf.float32, [None]) for name in FEATURES}
    return tf.estimator.export.ServingInputReceiver(distance(given), given)


def train_and_evaluate(args):
    columns = [tf.feature_column.numeric_column(name) for name in FEATURES + ["euclidean"]]
    estimator = tf.estimator.DNNRegressor(
        hidden_units=[16, 4],
        feature_columns=columns,
        optimizer=tf.train.AdamOptimizer(0.02),
        model_dir=args["output_dir"],
        config=tf.estimator.RunConfig(save_checkpoints_steps=200, tf_random_seed=1),
    )
    train, evaluate = tf.estimator.ModeKeys.TRAIN, tf.estimator.ModeKeys.EVAL
    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(engineered(read(args["train_data_paths"], train)), max_steps=args["train_steps"]),
        tf.estimator.EvalSpec(
            engineered(read(args["eval_data_paths"], evaluate)),
            steps=None,
            start_delay_secs=0,
            throttle_secs=0,
            exporters=tf.estimator.LatestExporter("exporter", serving),
        ),
    )
""",
}


def rides(count: int) -> bytes:
    """Lines of the lab's CSV: a fare that grows with the way, for the same rides at each call."""
    lines = []
    for number in range(count):
        east, north, passengers = (number * 37 % 100) / 1000, (number * 53 % 100) / 1000, number % 4 + 1
        fare = 2.5 + 150 * (east**2 + north**2) ** 0.5
        lines.append(f"{fare:.2f},-74.0,40.7,{-74.0 + east:.3f},{40.7 + north:.3f},{passengers}")
    return "\n".join(lines).encode() + b"\n"
