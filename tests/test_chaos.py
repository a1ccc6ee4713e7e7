"""kill -9 of server, agent or trainer at random moments: no job lost, stuck or run twice at once, and no end untrue."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_crash import BESIDE, HOLDS, World
from trainers import CLOUD, until

from taxiway.compute import local

pytestmark = pytest.mark.runtime

STEPS = 20
AT_ONCE = 3  # jobs under way

# Goes on from its checkpoint.
TRAINER = f"""{HOLDS}{CLOUD}
steps = read({{bucket!r}}, {{name!r}}).split()
print("from", len(steps), flush=True)
for number in range(len(steps), {{most}}):
    time.sleep(0.05)
    steps.append(str(number))
    write({{bucket!r}}, {{name!r}}, " ".join(steps))
    print("step", number, flush=True)
sys.exit({{code}})
"""


@pytest.fixture(scope="module", params=["auto", "off"])
def world(request, tmp_path_factory, runtime_python):
    """In jails, and without: what runs there may outlive its agent."""
    made = World(tmp_path_factory.mktemp("chaos") / "home", TAXIWAY_JAIL=request.param)
    yield made
    made.server.http.close()
    assert made.server.stop() == 0
    assert "Traceback" not in made.server.log


def chaos(world, rounds, rng):
    lock = random.randrange(10**9)
    codes = {}  # of every job that was submitted: how its trainer ends
    killed = dict.fromkeys(("server", "agent", "trainer"), 0)

    def submit():
        code, name = rng.choice([0, 0, 3]), f"steps-{uuid.uuid4().hex}"
        where = {"lock": lock + len(codes), "bucket": world.lab.bucket, "name": name}
        codes[world.lab.submit(TRAINER.format(**where, most=STEPS, code=code))] = (code, name)

    def under_way():
        return [job for job in codes if not world.lab.get(job).get("endTime")]

    for _ in range(rounds):
        while len(under_way()) < AT_ONCE:
            submit()
        threading.Event().wait(rng.uniform(0, 1))  # whatever moment that is
        victim = rng.choice(list(killed))
        if victim == "server":
            world.server.kill()
            world.up()
        else:
            with suppress(psutil.NoSuchProcess):
                os.kill(rng.choice(until(lambda victim=victim: running(world, victim))), signal.SIGKILL)
        killed[victim] += 1
    assert all(killed.values()), killed
    for job, (code, name) in codes.items():
        true_end(world, job, code, name)
    listed = world.lab.call("GET", f"/v1/projects/{world.lab.project}/jobs?pageSize=100").json()["jobs"]
    assert {job["jobId"] for job in listed} >= set(codes) or len(codes) > 100
    assert list((world.server.home / "attempts").iterdir()) == []


def running(world, what):
    """The processes of all agents, or of all trainers, from their first moment on."""
    found = []
    for folder in (world.server.home / "attempts").iterdir():
        for process in local.strays(folder.name):
            with suppress(psutil.Error):
                words = process.cmdline()
                if ("taxiway.replica" in words, "--code" in words) == (what == "agent", what == "trainer"):
                    found.append(process.pid)
    return sorted(found)


def true_end(world, job, code, name):
    ended = world.lab.ended(job)
    tell = (ended, world.lab.said(job, "service"), (world.server.home.parent / "home.log").read_text()[-3000:])
    assert ended["state"] == ("FAILED" if code else "SUCCEEDED"), tell
    assert BESIDE not in [each.get("exitCode") for each in ended["taxiway"]["attempts"]], tell
    assert "BESIDE ITS PREDECESSOR" not in world.lab.said(job), tell
    steps = world.lab.read(name).decode().split()
    assert steps == [str(number) for number in range(STEPS)], tell
    if code:
        assert ended["errorMessage"].startswith(f"The replica master 0 exited with a non-zero status of {code}."), tell
    *before, last = ended["taxiway"]["attempts"]
    assert last["reason"] == ("Error" if code else "Completed"), tell
    assert {each["reason"] for each in before} <= {"Lost", "Signal"}, tell
    assert [each["attempt"] for each in (*before, last)] == list(range(1, len(before) + 2))
    assert [each["left"] for each in (*before, last)] == [{"processes": 0, "groups": 0, "folders": 0, "tokens": 0}] * (
        len(before) + 1
    ), tell
    for _, attempt in world.attempts(job):
        assert local.strays(attempt) == []
        assert [each for each in Path("/proc").glob("[0-9]*/environ") if bears(each, attempt)] == []
    says = [line for line in world.lab.said(job) if line.startswith("step ")]
    assert set(says) == {f"step {number}" for number in range(STEPS)} or before, tell


def bears(environ, attempt):
    with suppress(OSError):
        return attempt.encode() in environ.read_bytes()
    return False


# Each step of the chief is one of its worker too: without it the chief fails.
GANG = {
    "scaleTier": "CUSTOM",
    **{f"{role}Type": "n1-highcpu-2" for role in ("master", "worker", "parameterServer")},
    **{f"{role}Count": "1" for role in ("worker", "parameterServer")},
}
MEMBER = f"""
import json, os, socket
config = json.loads(os.environ["TF_CONFIG"])
role = config["task"]["type"]
place = ["chief", "worker", "ps"].index(role)
{HOLDS}{CLOUD}
if role != "chief":
    own = socket.create_server(("127.0.0.1", int(config["cluster"][role][0].split(":")[1])))
    while True:
        own.accept()[0].close()

def meet():
    for _ in range(100):
        try:
            return socket.create_connection(config["cluster"]["worker"][0].split(":"), 5).close()
        except OSError:
            time.sleep(0.05)
    sys.exit("the worker is gone")

steps = read({{bucket!r}}, {{name!r}}).split()
print("from", len(steps), flush=True)
for number in range(len(steps), {{most}}):
    meet()
    time.sleep(0.1)
    steps.append(str(number))
    write({{bucket!r}}, {{name!r}}, " ".join(steps))
"""


def gang_chaos(world, rounds, rng, steps):
    submitted = {}

    def under_way():
        return any(not world.lab.get(job).get("endTime") for job in submitted)

    for _ in range(rounds):
        if not under_way():
            name = f"steps-{uuid.uuid4().hex}"
            lock = f"({random.randrange(10**9)} + place)"
            code = MEMBER.format(lock=lock, bucket=world.lab.bucket, name=name, most=steps)
            submitted[world.lab.submit(code, **GANG)] = name
        threading.Event().wait(rng.uniform(0, 2))  # whatever moment that is
        victim = rng.choice(["server", "agent", "trainer"])
        if victim == "server":
            world.server.kill()
            world.up()
        elif found := running(world, victim):
            with suppress(psutil.NoSuchProcess):
                os.kill(rng.choice(found), signal.SIGKILL)
    for job, name in submitted.items():
        ended = world.lab.ended(job)
        tell = (ended, world.lab.said(job, "service"), (world.server.home.parent / "home.log").read_text()[-3000:])
        assert ended["state"] == "SUCCEEDED", tell
        assert "BESIDE ITS PREDECESSOR" not in world.lab.said(job), tell
        assert world.lab.read(name).decode().split() == [str(number) for number in range(steps)], tell
        assert not any(any(each["left"].values()) for each in ended["taxiway"]["attempts"]), tell
        assert all(local.strays(attempt) == [] for _, attempt in world.attempts(job))
    assert list((world.server.home / "attempts").iterdir()) == []


def test_kills_at_random_moments_of_a_gang_lose_no_step_and_leave_nothing(world):
    gang_chaos(world, 2, random.Random(3), 20)


@pytest.mark.torture
def test_thirty_kills_at_random_moments_of_gangs_lose_no_step_and_leave_nothing(world):
    gang_chaos(world, 30, random.Random(30), 60)


def test_ten_kills_at_random_moments_lose_nothing_and_leave_nothing(world):
    chaos(world, 10, random.Random(10))


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills_at_random_moments_lose_nothing_and_leave_nothing(world, seed):
    chaos(world, 25, random.Random(seed))
