"""The taxi-fare example trained by several replicas together: locally, by hand with losses, and as a job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import trainers
from conftest import running
from test_local_runs import free_ports
from test_taxifare import EXAMPLE, exported, figures, lowest_error, make_rides
from trainers import Lab, until

pytestmark = pytest.mark.runtime

STEPS = 3000  # calls of 100, which three replicas do not share evenly
TEAMS = """
import json, sys
from trainer import replicas
for config in sys.argv[1:]:
    try:
        print(json.dumps(replicas.team({"TF_CONFIG": config})))
    except replicas.BadInput as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def rides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rides")
    assert make_rides(folder, "--rows", "2000", "--seed", "7").returncode == 0
    return folder


def test_who_is_in_the_team_is_read_from_tf_config_and_what_is_not_understood_is_told():
    cluster = {"chief": ["a:1"], "worker": ["b:2", "[::1]:3"], "ps": ["c:4"]}

    def config(role, index, **other):
        return json.dumps({"cluster": other or cluster, "task": {"type": role, "index": index}})

    names, addresses = ["chief 0", "worker 0", "worker 1"], ["a:1", "b:2", "[::1]:3"]
    alone = [["chief 0"], [""], 0, ""]
    expected = {
        "": alone,
        "{}": alone,
        json.dumps({"cluster": {}, "task": {}}): alone,
        config("chief", 0): [names, addresses, 0, ""],
        config("worker", "1"): [names, addresses, 2, ""],
        config("master", 0, master=["a:1"], worker=["b:2"]): [["master 0", "worker 0"], ["a:1", "b:2"], 0, ""],
        config("worker", 1, worker=["a:1", "b:2"]): [["worker 0", "worker 1"], ["a:1", "b:2"], 1, ""],
        config("ps", 0): [["chief 0"], [""], 0, "ps 0"],
        config("evaluator", 0): [["chief 0"], [""], 0, "evaluator 0"],
    }
    wrong = ["{", "[]", config("worker", 2), config("chief", None), config("chief", 0, chief=["a"], worker=["b"])]
    command = [sys.executable, "-c", TEAMS, *expected, *wrong]  # it needs no TensorFlow for that
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[: len(expected)] == list(expected.values())
    for sentence, given in zip(found[len(expected) :], wrong, strict=True):
        assert sentence.startswith("TF_CONFIG is not understood ("), sentence
        assert sentence.endswith(given)


EXCHANGE = """
import socket, sys, threading
from trainer import replicas
team = replicas.Team(("chief 0", "worker 0"), (sys.argv[1], "b:2"), 1)
order = replicas.Order(10, 5, 0.5)

def work():
    chief = replicas.Chief(team)
    for order, numbers in chief.orders():
        chief.answer(order._replace(rate=0.25), numbers * 2)

with replicas.Workers(team) as workers:
    try:
        replicas.Workers(team)
    except replicas.BadInput as error:
        print(error)
    strangers = [socket.create_connection(replicas.host_and_port(sys.argv[1])) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    strangers[1].sendall(replicas.HELLO.pack(replicas.MAGIC, 7))
    strangers[2].close()
    worker = threading.Thread(target=work)
    worker.start()
    for number in (1.5, -2.0):
        workers.give(order, [number, 0.0])
        [(answer, numbers)] = workers.answers([])
        print(*answer, *numbers)
    workers.end()
    worker.join()
    print(workers.answers(["interrupted"]))
    replicas.PATIENCE = 1
    try:
        workers.answers([])
    except replicas.BadInput as error:
        print(error)
try:
    next(replicas.Chief(team).orders())
except replicas.BadInput as error:
    print(error)
"""


def test_strangers_at_the_chiefs_port_are_sent_away_and_whoever_stays_silent_is_named_after_a_while():
    address = f"localhost:{free_ports(1)}"
    command = [sys.executable, "-c", EXCHANGE, address]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    taken, *said = done.stdout.splitlines()
    assert taken.startswith(f"{address}, the chief's address in TF_CONFIG, cannot be had: ")
    assert re.fullmatch(r"Of [\d.]+ s, \d+% went into orders and the wait for answers", said.pop(3))
    assert said == [
        "worker 0 is there",
        "10 5 0.25 3.0 0.0",
        "10 5 0.25 -4.0 0.0",
        "None",
        "worker 0 is lost; it may come again",
        "nothing was heard of worker 0 for 1 s: see what the others' logs say",
        f"the chief's address, {address}, has not answered for 1 s",
    ]


def told(train_data, eval_data, output, steps=STEPS):
    """The trainer's arguments."""
    paths = ["--train_data_paths", train_data, "--eval_data_paths", eval_data, "--output_dir", output]
    return [str(word) for word in [*paths, "--train_steps", steps]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rides, runtime_python):
    """A run of `taxiway local train --distributed` with the usual counts: its output folder, and what it said."""
    home = tmp_path_factory.mktemp("local")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    kept |= {name: os.environ[name] for name in ("TAXIWAY_CACHE", "TAXIWAY_PYTHONS") if name in os.environ}
    words = ["--module-name", "trainer.task", "--package-path", EXAMPLE / "trainer", "--distributed"]
    words += ["--start-port", free_ports(5), "--"]
    words += [*told(rides / "taxi-train.csv", rides / "taxi-valid.csv", home / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "taxiway", "local", "train", *map(str, words)],
        env={**kept, "TAXIWAY_HOME": str(home / "home")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    done.stdout, others = (
        "".join(line.partition(" | ")[2] for line in done.stdout.splitlines(True) if line.startswith("master") is chief)
        for chief in (True, False)
    )
    return home / "out", done, others


def test_a_local_cluster_trains_together_and_gives_one_model(whole):
    output, done, others = whole
    assert exported(done).parent == output / "export" / "exporter"
    assert len(list((output / "export" / "exporter").iterdir())) == 1
    assert "2,000 rides to train on, 400 to evaluate on" in done.stdout
    assert {"worker 0 is there", "worker 1 is there"} < set(done.stdout.splitlines())
    assert f"step {STEPS}/{STEPS} " in done.stdout
    assert re.search(r"^Of [\d.]+ s, \d+% went into orders and the wait for answers$", done.stdout, re.MULTILINE)
    assert lowest_error(done) < 4.0  # as one alone: see test_taxifare.py
    for index, count in ((0, 667), (1, 666)):
        assert f"worker {index}: {count} rides to train on, with localhost:" in others
        assert f"ps {index} has nothing to do" in others
    assert others.count("The chief says that it is over") == 2
    assert {path.name for path in output.iterdir()} == {
        "train", "eval", "export", "checkpoint", f"ckpt-{STEPS}.index", f"ckpt-{STEPS}.data-00000-of-00001",
    }  # fmt: skip
    assert [len(list((output / name).iterdir())) for name in ("train", "eval")] == [1, 1]  # the chief's alone


class Replicas:
    """The trainer's replicas as processes of this test's, each with its words in a file."""

    def __init__(self, command, folder, workers):
        self.command, self.folder, first = command, folder, free_ports(workers + 1)
        ports = [f"localhost:{port}" for port in range(first, first + workers + 1)]
        self.cluster, self.running = {"chief": ports[:1], "worker": ports[1:]}, {}

    def start(self, role, index=0):
        config = {"cluster": self.cluster, "task": {"type": role, "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "PYTHONUNBUFFERED": "1"}
        with self.said(role, index).open("a") as file:
            self.running[role, index] = subprocess.Popen(
                self.command, cwd=EXAMPLE, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def said(self, role, index=0):
        return self.folder / f"{role}-{index}.txt"

    def until_said(self, role, words):
        until(lambda: words in self.said(role).read_text(), self.said(role).read_text)

    def kill(self, role, index=0, number=signal.SIGKILL):
        process = self.running.pop((role, index))
        process.send_signal(number)
        return process.wait(60)

    def ended(self):
        return {name: process.wait(120) for name, process in self.running.items()}


@pytest.fixture
def replicas(runtime_python, rides, tmp_path):
    paths = rides / "taxi-train.csv", rides / "taxi-valid.csv", tmp_path / "out"
    replicas = Replicas([runtime_python, "-m", "trainer.task", *told(*paths)], tmp_path, 2)
    yield replicas
    for process in replicas.running.values():
        process.kill()
        process.wait()


@pytest.mark.torture
def test_who_is_lost_comes_again_and_the_end_is_the_very_one_it_would_have_been(replicas, whole):
    for each in (("worker", 0), ("worker", 1), ("chief", 0)):
        replicas.start(*each)
    replicas.until_said("chief", "\nstep ")
    replicas.kill("worker", 1)
    replicas.until_said("chief", "worker 1 is lost; it may come again")
    assert replicas.kill("chief", number=signal.SIGTERM) == 128 + signal.SIGTERM  # while it waits for that worker
    cut = replicas.said("chief").read_text()
    step = re.search(r"^Interrupted at step (\d+), saved as .+\.$", cut, re.MULTILINE)[1]
    replicas.start("chief")
    replicas.start("worker", 1)
    assert replicas.ended() == {("worker", 0): 0, ("worker", 1): 0, ("chief", 0): 0}, replicas.said("chief").read_text()
    replicas.until_said("worker", "The chief is lost; it may come again")  # the first stayed
    rest = subprocess.CompletedProcess([], 0, replicas.said("chief").read_text()[len(cut) :], "")
    assert f"Resuming from step {step}, " in rest.stdout
    assert 0 < int(step) < STEPS
    assert figures(rest) == figures(whole[1])[-len(figures(rest)) :]
    assert lowest_error(rest) == lowest_error(whole[1])


@pytest.fixture(scope="module")
def lab(tmp_path_factory, rides, runtime_python):
    """A server with the example's package and the rides in a bucket."""
    with running(tmp_path_factory.mktemp("server") / "home", TAXIWAY_JOBS="2") as server:
        lab = Lab(server.call, server.project, server.address.service_agent).open()
        files = {"setup.py": (EXAMPLE / "setup.py").read_text()}
        files |= {f"trainer/{path.name}": path.read_text() for path in (EXAMPLE / "trainer").glob("*.py")}
        lab.put("trainer-0.1.tar.gz", trainers.sdist(files))
        for name in ("taxi-train.csv", "taxi-valid.csv"):
            lab.put(name, (rides / name).read_bytes())
        yield lab


def submit(lab, name, steps):
    bucket = f"gs://{lab.bucket}"
    args = told(f"{bucket}/taxi-train*", f"{bucket}/taxi-valid*", f"{bucket}/{name}", steps)
    return lab.submit("", scaleTier="STANDARD_1", args=args, jobDir=f"{bucket}/{name}")


def check(lab, job, name, steps):
    """The job ended well, and there is one model and nothing that a worker left."""
    found = lab.ended(job)
    assert found["state"] == "SUCCEEDED", (found, lab.said(job))
    chief = "\n".join(lab.said(job, "master-replica-0"))
    assert f"step {steps}/{steps} " in chief
    assert lowest_error(subprocess.CompletedProcess([], 0, chief, "")) < 4.0
    objects = [each for each in lab.listed(f"{name}/") if not each.endswith("/")]
    assert len([each for each in objects if each.endswith("/saved_model.pb")]) == 1
    assert {each.split("/")[1].partition("-")[0] for each in objects} == {
        "checkpoint", "ckpt", "eval", "export", "train",
    }  # fmt: skip
    assert trainers.processes(job) == []
    return chief, objects


def test_a_job_of_a_named_tier_trains_together_on_cloud_storage(lab):
    job = submit(lab, "standard", 300)
    _, objects = check(lab, job, "standard", 300)
    assert len([each for each in objects if "/train/" in each or "/eval/" in each]) == 2
    assert "The chief says that it is over" in lab.said(job, "worker-replica-0")
    tries = {(each["task"], each["reason"]) for each in lab.get(job)["taxiway"]["attempts"]}
    assert {
        ("master-replica-0", "Completed"),
        ("ps-replica-0", "Completed"),
        ("worker-replica-0", "Completed"),
    } <= tries


@pytest.mark.torture
@pytest.mark.parametrize("victims", [["worker"], ["chief"], ["worker", "chief"]], ids="-".join)
def test_a_job_goes_on_to_its_end_whichever_of_its_replicas_are_killed(lab, victims):
    name, steps = f"cut-{'-'.join(victims)}", 90_000
    job = submit(lab, name, steps)
    until(lambda: f"{name}/checkpoint" in lab.listed(f"{name}/"), lambda: lab.said(job))
    for role in victims:
        victim = next(
            each
            for each in trainers.processes(job)
            if "trainer.task" in each.cmdline()[:5] and f'"type":"{role}"' in each.environ()["TF_CONFIG"]
        )
        victim.kill()
    chief, _ = check(lab, job, name, steps)
    if "chief" in victims:
        assert "Resuming from step " in chief
        assert "The chief is lost; it may come again" in lab.said(job, "worker-replica-0") or "worker" in victims
    else:
        assert "worker 0 is lost; it may come again" in chief
        assert chief.count("worker 0 is there") == 2
    tries = [(each["task"], each["restart"]) for each in lab.get(job)["taxiway"]["attempts"]]
    again = {"chief": "master-replica-0", "worker": "worker-replica-0"}
    assert {(again[role], 1) for role in victims} <= set(tries)
