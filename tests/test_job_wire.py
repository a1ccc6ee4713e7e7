"""A job's small print on a server that runs one at a time: labels, lists, the order of the queue, limits, units."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing

import pytest
from conftest import run_cli, running
from test_jobs import error_of
from trainers import Lab, until

from taxiway.api import wire

pytestmark = pytest.mark.runtime

STAYS = "import time; print('running', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, runtime_python):
    """A server with room for one job."""
    with running(tmp_path_factory.mktemp("alone") / "home", TAXIWAY_JOBS="1") as started:
        yield started


@pytest.fixture(scope="module")
def lab(alone):
    return Lab(alone.call, alone.project, alone.address.service_agent).open()


@pytest.fixture
def busy(lab):
    """A job that holds the only room, for the time of a test."""
    job = lab.submit(STAYS)
    lab.until_said(job, "running")
    yield job
    lab.cancel(job)
    lab.ended(job)


@pytest.fixture
def queued(lab, busy):
    """A job that waits behind it."""
    job = lab.submit("pass")
    yield job
    lab.cancel(job)


def patch(lab, job, body, mask="labels"):
    query = f"?updateMask={mask}" if mask else ""
    return lab.call("PATCH", f"/v1/projects/{lab.project}/jobs/{job}{query}", json=body)


def listed(lab, **query):
    answer = lab.call("GET", f"/v1/projects/{lab.project}/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [job["jobId"] for job in answer.json().get("jobs", [])]


# --- labels ---


def bare(job):
    """Without our own field, which jobs.get alone answers."""
    return {name: value for name, value in job.items() if name != "taxiway"}


def test_labels_are_replaced_and_the_job_is_answered(lab, queued):
    before = bare(lab.get(queued))
    answer = patch(lab, queued, {"labels": {"owner": "ann"}})
    assert answer.status_code == 200, answer.text
    assert (
        answer.json() == bare(lab.get(queued)) == {**before, "labels": {"owner": "ann"}, "etag": answer.json()["etag"]}
    )
    assert answer.json()["etag"] != before["etag"]
    assert "labels" not in patch(lab, queued, {"labels": {}, "jobId": "another"}).json()


@pytest.mark.parametrize("mask", ["labels", "labels,etag", "etag"])
def test_an_etag_that_is_stale_is_a_conflict(lab, queued, mask):
    read = lab.get(queued)
    body = {"labels": {"phase": "one"}, "etag": read["etag"]}
    assert patch(lab, queued, body, mask).status_code == 200
    patch(lab, queued, {"labels": {"phase": "two"}})
    code, status, message = error_of(patch(lab, queued, body, mask))
    assert (code, status) == (409, "ABORTED")
    assert f"projects/{lab.project}/jobs/{queued} has changed since it was read" in message
    assert lab.get(queued)["labels"] == {"phase": "two"}


@pytest.mark.parametrize(
    ("body", "mask", "words"),
    [
        ({"labels": {}}, "", ["updateMask", "Say which fields to update", "etag, labels"]),
        ({"labels": {}}, "trainingInput", ["updateMask", '"trainingInput" cannot be updated']),
        ({"labels": {"Owner": "ann"}}, "labels", ["labels", "start with a lower-case letter"]),
        ({"labels": {"owner": "Ann"}}, "labels", ["labels.owner", "it is 'Ann'"]),
        ({"labels": ["a"]}, "labels", ["labels", "Expected a JSON object"]),
        ({"labels": {}}, "labels,etag", ["etag", "as you read it"]),
        ({"labels": {}, "etag": "%"}, "labels", ["etag", "base64"]),
        ({"lables": {}}, "labels", ["lables", "Did you mean labels?"]),
    ],
)
def test_an_update_that_cannot_be_is_told_by_its_field(lab, queued, body, mask, words):
    before = lab.get(queued)
    code, status, message = error_of(patch(lab, queued, body, mask))
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert [word for word in words if word not in message] == [], message
    assert lab.get(queued) == before


def test_an_etag_of_any_length_only_does_not_match(lab, queued):
    etag = base64.b64encode(b"x" * 1000).decode()
    assert patch(lab, queued, {"labels": {}, "etag": etag}).status_code == 409


def test_the_command_line_changes_labels_as_gcloud_does(alone, lab, queued):
    def update(*words):
        ended = run_cli(alone, "jobs", "update", queued, *words, "--format=json")
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == f"Updated job [{queued}].\n"
        return json.loads(ended.stdout).get("labels")

    assert update("--update-labels=owner=ann,phase=one") == {"owner": "ann", "phase": "one"}
    assert update("--update-labels=phase=two,x=", "--remove-labels=owner,none") == {"phase": "two", "x": ""}
    assert update("--clear-labels", "--update-labels=y=1") == {"y": "1"}
    assert update("--clear-labels") is None
    for words in ([], ["--clear-labels", "--remove-labels=a"], ["--update-labels=a"]):
        assert run_cli(alone, "jobs", "update", queued, *words).returncode == 2
    nowhere = run_cli(alone, "jobs", "update", "nope", "--clear-labels")
    assert nowhere.returncode == 1
    assert "NOT_FOUND" in nowhere.stderr


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_gcloud_changes_labels(alone, lab, queued, tmp_path):
    told = run_cli(alone, "env").stdout
    environ = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ |= {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}

    def update(*words):
        command = ["gcloud", "ai-platform", "jobs", "update", queued, *words]
        ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
        assert ended.returncode == 0, ended.stderr
        return lab.get(queued).get("labels")

    assert update("--update-labels=owner=ann,phase=one") == {"owner": "ann", "phase": "one"}
    assert update("--remove-labels=owner") == {"phase": "one"}
    assert update("--clear-labels") is None


# --- lists ---


def test_a_list_is_filtered_on_the_wire_and_by_the_command(alone, lab, busy, queued):
    patch(lab, queued, {"labels": {"owner": "ann"}})
    assert listed(lab, filter="state:RUNNING") == [busy]
    assert listed(lab, filter=f"jobId:{queued[:-1]}* AND labels.owner=ann") == [queued]
    assert listed(lab, filter="labels.owner=bob") == []
    shown = run_cli(alone, "jobs", "list", "--filter", f"state:QUEUED AND jobId={queued}", "--format=json")
    assert [job["jobId"] for job in json.loads(shown.stdout)] == [queued]
    code, status, message = error_of(
        lab.call("GET", f"/v1/projects/{lab.project}/jobs", params={"filter": "state:LOST"})
    )
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert "Field: filter Error: LOST is no state of a job" in message


# --- the queue ---


def test_the_queue_goes_by_priority_and_says_why_each_waits(alone, lab, busy):
    low = lab.submit("pass")
    high = lab.submit("pass", scheduling={"priority": 7})
    assert (lab.get(low)["jobPosition"], lab.get(high)["jobPosition"]) == ("1", "0")
    assert lab.get(high)["trainingInput"]["scheduling"] == {"priority": 7}
    why = f"Waiting for another job to end: 1 run ({busy}), 1 may at once, and"
    until(lambda: any(line.startswith(why) for line in lab.said(low)), lambda: lab.said(low))
    lab.until_said(high, f"{why} no queued job starts before this one.")
    shown = run_cli(alone, "jobs", "describe", low)
    assert f"Job [{low}] is queued. {why} 1 queued job starts before this one." in shown.stderr
    assert f"Of this project before it: {high}." in shown.stderr
    waiting = lab.get(low)["taxiway"]["waiting"]
    assert (waiting["reason"], waiting["ahead"]) == (f"{why} 1 queued job starts before this one.", 1)
    assert waiting["behind"] == [high]
    assert "state: QUEUED" in shown.stdout.splitlines()
    lab.cancel(busy)
    assert lab.ended(high)["startTime"] < lab.ended(low)["startTime"]
    assert "queued" not in run_cli(alone, "jobs", "describe", low).stderr


def test_a_waiting_job_is_told_when_it_may_start(alone, lab):
    holds = lab.submit(STAYS, scheduling={"maxRunningTime": "600s"})
    lab.until_said(holds, "running")
    following = lab.submit("pass", scheduling={"maxRunningTime": "60s"})
    last = lab.submit("pass")
    begun = wire.parse_timestamp(lab.get(holds)["startTime"])
    start = wire.parse_timestamp(lab.get(following)["taxiway"]["waiting"]["estimatedStartTime"])
    assert begun < start <= begun + 600
    after = wire.parse_timestamp(lab.get(last)["taxiway"]["waiting"]["estimatedStartTime"])
    assert start <= after <= start + 60  # or sooner, if the jobs of earlier tests tell so
    assert "It may start at about 20" in run_cli(alone, "jobs", "describe", last).stderr
    for job in (last, following, holds):
        lab.cancel(job)
        lab.ended(job)


# --- limits and units ---


def test_a_job_that_runs_too_long_is_cancelled_and_the_next_one_runs(lab):
    job = lab.submit(STAYS, scheduling={"maxRunningTime": "2s"})
    following = lab.submit("pass")
    ended = lab.ended(job)
    why = "The job ran longer than its maxRunningTime of 2s and was cancelled."
    assert (ended["state"], ended["errorMessage"]) == ("CANCELLED", why)
    assert "running" in lab.said(job)
    assert lab.said(job)[-2:] == [why, "Job cancelled."]
    assert ended["trainingOutput"]["consumedMLUnits"] == 0
    assert lab.ended(following)["state"] == "SUCCEEDED"
    assert "errorMessage" not in lab.get(following)


def test_a_job_that_waits_too_long_is_cancelled_by_the_server(alone, lab, busy):
    job = lab.submit("pass", scheduling={"maxWaitTime": "1800s"})
    assert lab.get(job)["state"] == "QUEUED"
    with closing(sqlite3.connect(alone.home / "taxiway.db")) as rows:  # it came half an hour ago
        rows.execute("update jobs set created = created - 1801, wait_until = wait_until - 1801 where id = ?", [job])
        rows.commit()
    ended = lab.ended(job)
    why = "The job waited longer than its maxWaitTime of 1800s and was cancelled."
    assert (ended["state"], ended["errorMessage"], ended["trainingOutput"]) == ("CANCELLED", why, {})
    assert lab.said(job)[-2:] == [why, "Job cancelled."]


def test_a_job_that_ended_while_the_server_was_away_is_not_over_its_time(start_server, runtime_python):
    """It ended in time; that nobody was there to hear it is not its fault."""
    server = start_server()
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit("import time; print('running', flush=True); time.sleep(1)", scheduling={"maxRunningTime": "4s"})
    lab.until_said(job, "running")
    limit = wire.parse_timestamp(lab.get(job)["startTime"]) + 4
    server.kill()
    until(lambda: time.time() > limit + 0.5)
    lab.call = start_server(server.home).call
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert lab.get(job)["endTime"] > wire.timestamp(limit)  # as it was heard


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"priority": 1001}, ["trainingInput.scheduling.priority", "from 0 to 1000"]),
        ({"priority": "high"}, ["trainingInput.scheduling.priority", "whole number"]),
        ({"maxWaitTime": "60s"}, ["trainingInput.scheduling.maxWaitTime", "1800s or more"]),
        ({"maxWaitTime": "1h"}, ["trainingInput.scheduling.maxWaitTime", "such as 7200s"]),
        ({"maxRunningTime": "0s"}, ["trainingInput.scheduling.maxRunningTime", "more than 0s"]),
    ],
)
def test_a_schedule_that_cannot_be_is_told_by_its_field(lab, told, words):
    code, status, message = error_of(lab.post(lab.body("", scheduling=told)))
    assert (code, status) == (400, "INVALID_ARGUMENT")
    assert [word for word in words if word not in message] == [], message


def test_the_command_line_submits_with_a_schedule(alone, lab, tmp_path):
    folder = tmp_path / "trainer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "task.py").write_text("print('hi')\n")
    job = f"scheduled_{os.getpid()}"
    ended = run_cli(
        alone,
        *("jobs", "submit", "training", job, "--module-name=trainer.task", f"--package-path={folder}"),
        *(f"--staging-bucket=gs://{lab.bucket}", "--priority=3", "--max-wait-time=3600s", "--max-running-time=600s"),
    )
    assert ended.returncode == 0, ended.stderr
    scheduling = {"priority": 3, "maxWaitTime": "3600s", "maxRunningTime": "600s"}
    assert lab.get(job)["trainingInput"]["scheduling"] == scheduling
    assert lab.ended(job)["state"] == "SUCCEEDED"
