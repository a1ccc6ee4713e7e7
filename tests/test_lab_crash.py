"""The lab's own job, TensorFlow over gs://, with the server killed in the middle of it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Server, run_cli

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "taxifare"
STEPS = 60_000
BUCKET = "gs://lab-crash"
ENOUGH_S = 240


def words(server: Server) -> list[str]:
    """The messages of the job's log so far, in their order."""
    body = {
        "resourceNames": [f"projects/{server.project}"],
        "filter": 'resource.labels.job_id="fares"',
        "orderBy": "timestamp asc",
        "pageSize": 1000,
    }
    answer = server.call("POST", "/v2/entries:list", json=body).json()
    assert "nextPageToken" not in answer
    return [entry["jsonPayload"]["message"] for entry in answer.get("entries", [])]


def until(what, server: Server):
    deadline = time.monotonic() + ENOUGH_S
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"it took too long; the log: {words(server)}")


@pytest.mark.runtime
def test_the_labs_job_and_its_log_outlive_a_killed_server(start_server, runtime_python, tmp_path):
    server = start_server()
    maker = [sys.executable, "-m", "taxifare_data", "make", "--rows", "5000", "--output", str(tmp_path / "data")]
    subprocess.run(maker, cwd=EXAMPLE, check=True, capture_output=True)
    member = f"--member=serviceAccount:{server.address.service_agent}"
    grant = ("storage", "buckets", "add-iam-policy-binding", BUCKET, member)
    for command in (
        ("storage", "mb", BUCKET),
        ("storage", "cp", f"{tmp_path}/data/taxi-train.csv", f"{tmp_path}/data/taxi-valid.csv", f"{BUCKET}/data/"),
        (*grant, "--role=roles/storage.objectAdmin"),
        (*grant, "--role=roles/storage.legacyBucketReader"),
        (
            *("jobs", "submit", "training", "fares", "--module-name", "trainer.task", "--region", "us-central1"),
            *("--package-path", str(EXAMPLE / "trainer"), "--staging-bucket", BUCKET, "--job-dir", f"{BUCKET}/fares"),
            *("--", "--train_data_paths", f"{BUCKET}/data/taxi-train*", "--output_dir", f"{BUCKET}/fares"),
            *("--eval_data_paths", f"{BUCKET}/data/taxi-valid*", "--train_steps", str(STEPS)),
        ),
    ):
        ended = run_cli(server, *command)
        assert ended.returncode == 0, ended.stderr

    until(lambda: any(line.startswith("step ") for line in words(server)), server)
    server.kill()
    (kept,) = (server.home / "attempts").glob("*/said.jsonl")
    before = kept.stat().st_size
    deadline = time.monotonic() + ENOUGH_S
    while kept.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.1)  # the job goes on without a server, and keeps its words
    assert kept.stat().st_size > before
    again = start_server(server.home)
    path = f"/v1/projects/{again.project}/jobs/fares"
    job = until(lambda: (found := again.call("GET", path).json()).get("endTime") and found, again)

    said = words(again)
    assert job["state"] == "SUCCEEDED", (job, said)
    assert sum(line.startswith("Running command") for line in said) == 1
    steps = [int(found[1]) for line in said if (found := re.match(r"step (\d+)/", line))]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert {after - before for before, after in itertools.pairwise(steps)} == {steps[0]}, "a line is missing"
    listing = again.call("GET", "/storage/v1/b/lab-crash/o?prefix=fares/export/exporter/").json()["items"]
    models = [item["name"] for item in listing if item["name"].endswith("/saved_model.pb")]
    assert len(models) == 1
    assert any(f"gs://lab-crash/{models[0].removesuffix('/saved_model.pb')}" in line for line in said)
