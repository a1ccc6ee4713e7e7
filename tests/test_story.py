"""What the server tells of a job beyond Google's fields: its start, its attempts, and that nothing of them is left."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import run_cli
from trainers import Lab, until

from taxiway.api import shapes, wire
from taxiway.jobs import story

pytestmark = pytest.mark.runtime

# A family that does all it can to stay: away from its parents and session, deaf to SIGTERM, without a mark of its own.
STAYS = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import os, time; print('bare', os.getpid(), flush=True); open('there', 'w').close(); time.sleep(600)"
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        subprocess.Popen([sys.executable, "-S", "-c", child], env={}, start_new_session=True)
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("there"):
    time.sleep(0.01)
os.mkdir("locked"); open("locked/in", "w").close(); os.chmod("locked", 0)
print("trainer", os.getpid(), os.getcwd(), flush=True)
"""
ENDS = {
    "ends": "time.sleep(0.5)",
    "fails": "raise SystemExit(3)",
    "is cancelled": "time.sleep(600)",
    "crashes": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture(scope="module")
def lab(server, runtime_python):
    return Lab(server.call, server.project, server.address.service_agent).open()


def pids(lab, job):
    """Every process that the trainer's family told of."""
    words = [line.split() for line in lab.said(job) if line.startswith(("bare ", "daemon ", "trainer "))]
    return {int(each[1]) for each in words}


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def marked(attempt):
    """The processes that bear an attempt's mark, as /proc itself has them."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                if attempt.encode() in (each / "environ").read_bytes() + (each / "cmdline").read_bytes():
                    found.append(int(each.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("how", ENDS)
def test_nothing_is_left_of_a_job_that(server, lab, how):
    job = lab.submit(STAYS + ENDS[how])
    until(lambda: len(pids(lab, job)) >= 3, lambda: lab.said(job))
    place = Path(next(line.split()[2] for line in lab.said(job) if line.startswith("trainer "))).parent
    attempt = place.name
    family = pids(lab, job)
    if how == "crashes":
        until(lambda: lab.said(job).count("restart 1 of 5") or len(lab.get(job)["taxiway"]["attempts"]) > 1)
        first = lab.get(job)["taxiway"]["attempts"][0]
        assert (first["reason"], first["exitCode"]) == ("Signal", 137)
    if how in ("is cancelled", "crashes"):
        lab.cancel(job)
    ended = lab.ended(job)
    assert [pid for pid in family | pids(lab, job) if runs(pid)] == []
    assert marked(attempt) == []
    assert not place.exists()
    for told in ended["taxiway"]["attempts"]:
        assert told["left"] == {"processes": 0, "folders": 0, "tokens": 0}
        assert told["endTime"] <= told["checkTime"] <= ended["endTime"]
    assert (
        ended["taxiway"]["attempts"][0]["reason"]
        == {
            "ends": "Completed",
            "fails": "Error",
            "is cancelled": "Cancelled",
            "crashes": "Signal",
        }[how]
    )
    shown = run_cli(server, "jobs", "describe", job).stdout
    assert "checkTime: " in shown
    assert "tokens: 0" in shown


def test_the_start_of_a_job_is_told_stage_by_stage(lab):
    job = lab.submit("import time; time.sleep(1); print('first'); print('second'); time.sleep(0.5)")
    ended = lab.ended(job)
    stages = ended["taxiway"]["startup"]
    assert [each["stage"] for each in stages] == ["validate", "queue", "environment", "import", "first line"]
    began = [wire.parse_timestamp(each["startTime"]) for each in stages]
    assert began == sorted(began)
    assert stages[0]["startTime"] == ended["createTime"]
    lasted = {each["stage"]: float(each["duration"].rstrip("s")) for each in stages[:-1]}
    for stage, following in zip(stages[:-1], began[1:], strict=True):
        assert wire.parse_timestamp(stage["startTime"]) + lasted[stage["stage"]] == pytest.approx(following, abs=1e-3)
    assert 1 <= lasted["import"] < 30
    (first,) = [entry for entry in lab.entries(job) if entry["jsonPayload"]["message"] == "first"]
    assert began[-1] == pytest.approx(first["jsonPayload"]["created"], abs=1e-3)


def test_every_field_of_ours_is_in_the_readme():
    told = (Path(__file__).parent.parent / "README.md").read_text().partition("## What a job tells")[2]
    told = told.partition("\n## ")[0]
    for message in (story.Story, story.Waiting, story.Stage, story.Try):
        for member in shapes.members(message):
            assert f"`{member.name}`" in told, f"{message.__name__}.{member.name}"
            assert member.description, f"{message.__name__}.{member.name}"


def test_a_job_that_says_nothing_has_no_first_line(lab):
    ended = lab.ended(lab.submit("pass"))
    assert [each["stage"] for each in ended["taxiway"]["startup"]] == ["validate", "queue", "environment", "import"]


def test_a_job_that_is_sent_back_as_it_was_read_is_no_fault(lab):
    job = lab.submit("pass")
    lab.ended(job)
    path = f"/v1/projects/{lab.project}/jobs/{job}"
    answer = lab.call("PATCH", f"{path}?updateMask=labels", json={**lab.get(job), "labels": {"owner": "ann"}})
    assert answer.status_code == 200, answer.text
    assert lab.get(job)["labels"] == {"owner": "ann"}
    listed = lab.call("GET", f"/v1/projects/{lab.project}/jobs").json()["jobs"]
    assert all("taxiway" not in each for each in listed)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_gcloud_describes_a_job_with_a_field_that_it_does_not_know(server, lab, tmp_path):
    job = lab.submit("print('hi')")
    lab.ended(job)
    told = run_cli(server, "env").stdout
    environ = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ |= {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {"CLOUDSDK_CONFIG": str(tmp_path), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    command = ["gcloud", "ai-platform", "jobs", "describe", job]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "state: SUCCEEDED" in done.stdout
