"""kill -9 of anything at any moment: no job, no line and no write is lost, and nothing runs twice."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import uuid

import msgspec
import pytest
from conftest import start
from trainers import Lab, trainer, until, work_of

from taxiway.compute import local
from taxiway.handles import Handle

pytestmark = pytest.mark.runtime

# Prints every number once, and keeps the last one in an object: how far it came, and that it went there once.
COUNTS = """
import sys, time
from google.cloud import storage
blob = storage.Client().bucket({bucket!r}).blob({name!r})
if blob.exists():
    sys.exit("a second run")
for number in range({most}):
    print(number, flush=True)
    blob.upload_from_string(str(number), retry=storage.retry.DEFAULT_RETRY)
    time.sleep(0.01)
"""

# A daemon of the family holds a lock of this host; whoever starts beside it says so, and ends for good by that. The
# lock is on a file of its Python, which all jails have in common: who may only read a file may lock it.
BESIDE = 99
HOLDS = """
import fcntl, os, sys, time
files = sorted(os.path.join(place, name) for place, _, names in os.walk(os.path.dirname(os.__file__))
               if "site-packages" not in place for name in names if name.endswith(".py"))
held = open(files[{lock} % len(files)])
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("BESIDE ITS PREDECESSOR", flush=True)
    os._exit(99)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()
"""
LOCKS = f"""{HOLDS}
print("started", flush=True)
time.sleep({{seconds}})
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, runtime_python):
    yield from worlds(tmp_path_factory.mktemp("crash") / "home")


@pytest.fixture(scope="module")
def open_world(tmp_path_factory, runtime_python):
    """One without jails: what runs there outlives its replica."""
    yield from worlds(tmp_path_factory.mktemp("open") / "home", TAXIWAY_JAIL="off")


def worlds(home, **variables):
    made = World(home, **variables)
    yield made
    made.server.http.close()
    assert made.server.stop() == 0
    assert "Traceback" not in made.server.log


class World:
    """A server that is killed and comes back, with a lab in it."""

    def __init__(self, home, **variables):
        self.variables = {"TAXIWAY_RESTART_MS": "50", **variables}
        self.server = start(home, **self.variables)
        self.lab = Lab(lambda *call, **rest: self.server.call(*call, **rest), *self.names).open()

    @property
    def names(self):
        return self.server.project, self.server.address.service_agent

    def up(self, *flags, **variables):
        self.server.http.close()
        self.server = start(self.server.home, *flags, **{**self.variables, **variables})

    def agent(self, job):
        """(attempt, handle) of the replica that runs for a job."""
        for folder in (self.server.home / "attempts").iterdir():
            if attempt_job(self.server.home, folder.name) == job and (folder / "handle.json").exists():
                handle = msgspec.json.decode((folder / "handle.json").read_bytes(), type=Handle)
                if handle.process:
                    return folder.name, handle
        return None

    def attempts(self, job):
        return rows(self.server.home, "select state, id from attempts where subject = ? order by number", job)


def rows(home, query, *values):
    database = sqlite3.connect(home / "taxiway.db")
    try:
        return database.execute(query, values).fetchall()
    finally:
        database.close()


def attempt_job(home, attempt):
    found = rows(home, "select subject from attempts where id = ?", attempt)
    return found[0][0] if found else None


def kill_rounds(world, rounds, rng):
    most = 40 + 40 * rounds
    lab = world.lab
    name = f"count-{uuid.uuid4().hex}"  # two rounds of one seed must not meet in one object
    job = lab.submit(COUNTS.format(bucket=lab.bucket, name=name, most=most))
    for _ in range(rounds):
        before = len(lab.said(job))
        until(lambda before=before: len(lab.said(job)) >= before + rng.randrange(30) or lab.get(job).get("endTime"))
        world.server.kill()
        world.up()
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", (ended, lab.said(job)[-5:])
    assert [line for line in lab.printed(job) if line.isdigit()] == [str(number) for number in range(most)]
    assert lab.read(name) == str(most - 1).encode()
    assert len(world.attempts(job)) == 1
    assert len([line for line in lab.said(job) if line.startswith("Running command: ")]) == 1
    stamps = [entry["timestamp"] for entry in lab.entries(job)]
    assert stamps == sorted(set(stamps))
    assert list((world.server.home / "attempts").iterdir()) == []


def test_a_server_that_is_killed_again_and_again_loses_nothing_of_a_job_and_runs_nothing_twice(world):
    kill_rounds(world, 3, random.Random(1))


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(10))
def test_many_kills(world, seed):
    kill_rounds(world, 10, random.Random(seed))


def test_a_server_that_is_killed_as_soon_as_it_took_a_job_runs_it_once(world):
    job = world.lab.submit("print('once')")
    world.server.kill()
    world.up()
    assert world.lab.ended(job)["state"] == "SUCCEEDED"
    assert world.lab.printed(job) == ["once"]


def test_a_job_that_ends_while_the_server_is_away_is_told_when_it_is_back_on_another_port(world):
    lab = world.lab
    job = lab.submit("import time; print('begun', flush=True); time.sleep(1); print('line\\n' * 5000); print('end')")
    lab.until_said(job, "begun")
    _, handle = world.agent(job)
    folder = world.server.home / "attempts" / attempt_of(world, job)
    world.server.kill()
    until((folder / "exit.json").exists)
    assert handle.process  # it waits for somebody to tell
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    world.up("--port", str(port))
    assert world.server.address.url.endswith(f":{port}")
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert [line for line in lab.printed(job) if line] == ["begun", *["line"] * 5000, "end"]
    until(lambda: handle.process is None)


def attempt_of(world, job):
    return until(lambda: world.agent(job))[0]


ONE_REQUEST = """
import json, os, time, urllib.request
where = "metadata.google.internal" if "GCE_METADATA_HOST" not in os.environ else os.environ["GCE_METADATA_HOST"]
path = "/computeMetadata/v1/instance/service-accounts/default/token"
ask = urllib.request.Request(f"http://{where}{path}", headers={"Metadata-Flavor": "Google"})
token = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask))["access_token"]
print("here", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
url = "https://storage.googleapis.com/storage/v1/b/BUCKET/o"
open("asking", "w").close()
answer = urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}))
print("answered", answer.status, flush=True)
"""


@pytest.mark.parametrize("kind", ["world", "open_world"])
def test_a_request_that_is_made_while_the_server_is_away_is_held_until_it_is_back(request, kind):
    """By a client that tries once, as TensorFlow's does for some: in a jail, and beside one."""
    world = request.getfixturevalue(kind)
    lab = world.lab
    job = lab.submit(ONE_REQUEST.replace("BUCKET", lab.bucket))
    lab.until_said(job, "here")
    place = work_of(world.server.home, job)
    world.server.kill()
    (place / "go").touch()
    until((place / "asking").exists)
    world.up()  # which takes longer than a request that finds nobody
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert lab.printed(job) == ["here", "answered 200"]


def test_a_job_is_adopted_by_the_server_that_follows_one_that_was_told_to_end(world):
    lab = world.lab
    job = lab.submit("import time\nfor n in range(100): print(n, flush=True); time.sleep(0.03)")
    lab.until_said(job, "5")
    _, handle = world.agent(job)
    assert world.server.stop() == 0
    assert "Traceback" not in world.server.log
    assert handle.process
    world.up()
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert lab.printed(job) == [str(number) for number in range(100)]
    assert len(world.attempts(job)) == 1


@pytest.mark.parametrize("kind", ["world", "open_world"])
def test_a_replica_that_is_killed_has_a_successor_only_when_its_family_is_dead(request, kind):
    world = request.getfixturevalue(kind)
    lab = world.lab
    job = lab.submit(LOCKS.format(lock=random.randrange(10**9), seconds=600))
    for number in (1, 2, 3):
        until(lambda number=number: lab.said(job).count("started") == number)
        attempt, handle = world.agent(job)
        os.kill(handle.pid, signal.SIGKILL)
        until(lambda attempt=attempt: not local.strays(attempt))
    until(lambda: lab.said(job).count("started") == 4)
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    said = lab.said(job)
    assert "BESIDE ITS PREDECESSOR" not in said
    why = "The replica master 0 was lost: it was killed from outside, or its host went down. It starts again "
    assert [line for line in said if line.startswith(why)] == [
        f"{why}at once: restart 1 of 5.",
        f"{why}in 0.1 s: restart 2 of 5.",
        f"{why}in 0.2 s: restart 3 of 5.",
    ]
    assert [state for state, _ in world.attempts(job)] == ["FENCED"] * 4
    assert list((world.server.home / "attempts").iterdir()) == []


def test_when_server_and_replica_are_killed_the_next_server_ends_the_family_before_it_starts_anew(open_world):
    world, lab = open_world, open_world.lab
    job = lab.submit(LOCKS.format(lock=random.randrange(10**9), seconds=1.5))
    lab.until_said(job, "started")
    attempt, handle = world.agent(job)
    world.server.kill()
    os.kill(handle.pid, signal.SIGKILL)
    assert until(lambda: handle.process is None and local.strays(attempt))  # its trainer runs on, for now
    world.up()
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert lab.said(job).count("started") == 2
    assert "BESIDE ITS PREDECESSOR" not in lab.said(job)
    assert [state for state, _ in world.attempts(job)] == ["FENCED", "ENDED"]


CHECKPOINTS = """
import json, os, time
from google.cloud import storage
blob = storage.Client().bucket({bucket!r}).blob({name!r})
task = json.loads(os.environ["TF_CONFIG"])
print("I am", task["task"]["type"], task["task"]["index"], os.environ["CLOUD_ML_JOB_ID"], flush=True)
if blob.exists():
    print("resumed from", blob.download_as_text(), flush=True)
else:
    blob.upload_from_string("step 7")
    print("waits", flush=True)
    time.sleep(600)
"""


def test_a_trainer_that_is_killed_from_outside_goes_on_from_its_checkpoint_under_its_own_names(world):
    lab = world.lab
    job = lab.submit(CHECKPOINTS.format(bucket=lab.bucket, name=f"checkpoint-{uuid.uuid4().hex}"))
    lab.until_said(job, "waits")
    os.kill(trainer(job).pid, signal.SIGKILL)
    ended = lab.ended(job)
    assert (ended["state"], len(world.attempts(job))) == ("SUCCEEDED", 2)
    said = lab.said(job)
    why = "The replica master 0 was killed by SIGKILL (status 137). It may have run out of memory."
    assert f"{why} It starts again at once: restart 1 of 5." in said
    assert said.count(f"I am chief 0 {job}") == 2
    assert "resumed from step 7" in said


def test_a_pause_before_a_restart_outlives_the_server_and_blocks_nobody(world):
    lab = world.lab
    world.server.kill()
    world.up(TAXIWAY_RESTART_MS="15000")
    job = lab.submit("import os; print('here', flush=True); os.abort()")
    until(lambda: [state for state, _ in world.attempts(job)] == ["ENDED", "STARTED"])
    assert lab.get(job)["state"] == "PREPARING"
    assert lab.ended(lab.submit("pass"))["state"] == "SUCCEEDED"
    world.server.kill()
    world.up()
    assert lab.ended(lab.submit("pass"))["state"] == "SUCCEEDED"
    assert rows(world.server.home, "select restart, pause from attempts where subject = ? order by number", job) == [
        (0, 0.0),
        (1, 15.0),
    ]
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    assert lab.said(job).count("here") == 1


def test_a_job_whose_cancelling_was_cut_short_is_cancelled_by_the_next_server(world):
    lab = world.lab
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here', flush=True)\ntime.sleep(600)"
    )
    job = lab.submit(stubborn)
    lab.until_said(job, "here")
    attempt, _ = world.agent(job)
    lab.cancel(job)
    world.server.kill()
    world.up()
    assert lab.ended(job)["state"] == "CANCELLED"
    assert local.strays(attempt) == []
    assert "here" in lab.said(job)
    assert list((world.server.home / "attempts").iterdir()) == []


def test_what_an_earlier_server_could_not_clear_away_goes_at_the_next_start(world):
    lab = world.lab
    job = lab.submit("print('hi')")
    lab.ended(job)
    ((_, attempt),) = world.attempts(job)
    world.server.stop()
    for name in (attempt, "of_no_row"):
        (world.server.home / "attempts" / name / "work").mkdir(parents=True)
    world.up()
    assert list((world.server.home / "attempts").iterdir()) == []
    assert lab.get(job)["state"] == "SUCCEEDED"


def test_our_own_failure_ends_the_job_as_internal_and_no_other(start_server, runtime_python):
    server = start_server()
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    (server.home / "attempts").touch()  # where replicas' folders should be
    ended = lab.ended(lab.submit("print('hi')"))
    assert ended["state"] == "FAILED"
    assert ended["errorMessage"].startswith("INTERNAL: the service failed on this job")
    assert "NotADirectoryError" in server.log
    (server.home / "attempts").unlink()
    assert lab.ended(lab.submit("print('hi')"))["state"] == "SUCCEEDED"
