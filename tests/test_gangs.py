"""Jobs of several replicas: the rule of what follows, then real trainers that find each other, are lost and return."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import socket

import psutil
import pytest
import trainers
from conftest import running
from test_restarts import ended
from trainers import Lab, until

from taxiway import plan
from taxiway.compute.attempts import Turn
from taxiway.jobs import gangs, machines, restarts
from taxiway.jobs.gangs import Again, Over
from taxiway.jobs.host import GIB, Host
from taxiway.schemas import TrainingInput

NOW = 1000.0


def at(task, code=None, *, end=NOW - 3, live=False, **more):
    """An attempt of a replica, which has ended at a time, or lives."""
    made = dataclasses.replace(
        ended(code, **more), id=task, task=f"{task.split()[0]}-replica-{[*task.split(), '0'][1]}"
    )
    return dataclasses.replace(made, state="RUNNING", ended=None) if live else dataclasses.replace(made, ended=end)


def following(*tries):
    return gangs.following(tries, pause_s=0.5, now=NOW)


# --- the rule ---


def test_a_job_goes_on_while_its_primary_does():
    master, worker, ps = (at(task, live=True) for task in ("master", "worker", "ps"))
    assert following(master, ps, worker) is None
    assert following(master, ps, at("worker", 0)) is None  # it did its part


def test_when_the_primary_has_ended_well_the_job_has_and_parameter_servers_hold_nothing():
    ps, worker = at("ps", live=True), at("worker", live=True)
    assert following(at("master", 0), ps) == Over(at("master", 0), well=True)
    just, long_ago = at("master", 0, end=NOW - 1), at("master", 0, end=NOW - gangs.GRACE_S - 1)
    assert following(just, ps, worker) is None  # a moment, to end by itself
    assert following(long_ago, ps, worker) == Over(long_ago, well=True)
    late = at("worker", 1, end=NOW - 0.5)
    assert following(just, ps, late) == Over(just, well=True)  # an error behind the end is none of the job's


def test_an_error_of_any_replica_is_the_jobs():
    for task in ("worker 1", "ps", "evaluator"):
        assert following(at("master", live=True), at(task, 3)) == Over(at(task, 3), well=False)


def test_a_lost_replica_alone_is_started_again_and_after_five_times_all_of_them():
    master = at("master", live=True)
    lost = at("worker", 137)
    assert following(master, lost) == Again(lost, Turn(1, 0, 0.5), all=False)
    often = at("worker", 137, restart=restarts.RESTARTS)
    assert following(master, often) == Again(often, Turn(0, 1, 15.0), all=True)
    last = at("worker", 137, restart=restarts.RESTARTS, retry=restarts.RETRIES)
    assert following(master, last) == Over(last, well=False)


def test_an_error_is_judged_when_the_loss_that_led_to_it_had_time_to_be_reported():
    error = at("master", 1, end=NOW - gangs.LATE_S / 2)
    assert following(error, at("worker", live=True)) is None
    lost = at("worker", 137, end=NOW)
    assert following(error, lost) == Again(error, Turn(1, 0, 0.5), all=True)
    assert following(error) == Over(error, well=False)  # nobody is beside it


@pytest.mark.parametrize("code", [1, restarts.ABORTED])
def test_an_error_soon_after_a_peer_was_lost_is_taken_for_its_consequence_and_all_start_again_together(code):
    lost, again = at("worker", 137), at("worker", live=True, restart=1)
    again = dataclasses.replace(again, created=NOW - 10)
    error = at("master", code)
    for peer in (lost, again):  # as one restart, whether the lost one was started again before or not
        assert following(error, peer, at("ps", live=True)) == Again(error, Turn(1, 0, 0.5), all=True)
    anew = dataclasses.replace(at("master", code, restart=1), created=NOW - 10)
    assert following(anew, again) == Again(anew, Turn(2, 0, 1.0), all=True)  # nobody was lost since
    lost_again = dataclasses.replace(again, restart=2)
    assert following(anew, lost_again) == Again(anew, Turn(2, 0, 1.0), all=True)


def test_behind_a_primary_that_was_lost_all_start_again_together():
    lost, worker = at("master", 137), at("worker", live=True)
    assert following(lost, worker) == Again(lost, Turn(1, 0, 0.5), all=True)
    worn = at("master", 137, restart=restarts.RESTARTS)
    assert following(worn, worker) == Again(worn, Turn(0, 1, 15.0), all=True)
    for attempt, behind in ((lost, ""), (at("worker", 1), " A replica beside it was lost before, so")):
        said = restarts.announcement(attempt, Turn(1, 0, 0.5), all_of=3)
        assert said.endswith(" All 3 start again together in 0.5 s: restart 1 of 5.")
        assert ("A replica beside it" in said) == bool(behind)


def test_together_they_start_five_times_and_then_the_job_is_tried_again_in_which_an_error_is_its_own():
    again = dataclasses.replace(at("worker", live=True, restart=1), created=NOW - 10)
    worn = at("master", 1, restart=restarts.RESTARTS)
    assert following(worn, again) == Again(worn, Turn(0, 1, 15.0), all=True)
    assert following(at("master", 1, retry=1), at("worker", live=True, retry=1)).well is False
    last = at("master", 1, restart=restarts.RESTARTS, retry=restarts.RETRIES)
    assert following(last, again) == Over(last, well=False)
    long_ago = dataclasses.replace(again, created=NOW - gangs.SHAKEN_S - 10)
    assert following(at("master", 1), long_ago) == Over(at("master", 1), well=False)


def test_what_was_stopped_for_a_new_try_is_followed_by_that_try_once():
    lost = at("worker", 137, restart=restarts.RESTARTS)
    stopped = at("master", None, reason=restarts.STOPPED)
    assert following(stopped, lost) == Again(lost, Turn(0, 1, 15.0), all=True)


# --- who is in it ---


def test_a_named_tier_runs_at_least_one_of_each_role_and_more_where_there_is_room():
    told = TrainingInput(scale_tier="STANDARD_1")

    def roles(cpus, memory=64):
        return [seat.role for seat in machines.read(on=Host(cpus, memory * GIB)).seats(told)]

    assert roles(2.0) == ["master", "parameter_server", "worker"]
    assert roles(4.0) == ["master", "parameter_server", "worker", "worker"]
    assert roles(96.0) == ["master"] + ["parameter_server"] * 3 + ["worker"] * 4
    seats = machines.read(on=Host(2.0, 8 * GIB)).seats(told)
    assert sum(seat.memory for seat in seats) <= 7 * GIB
    assert {seat.cpus for seat in seats} == {2.0}


def test_each_replica_is_told_of_the_others_in_the_words_of_every_framework():
    told = TrainingInput(python_module="t.task", args=("--x",), use_chief_in_tf_config=True)
    seats = [
        plan.Seat(),
        plan.Seat("parameter_server"),
        plan.Seat("worker"),
        plan.Seat("worker"),
        plan.Seat("evaluator"),
    ]
    works = plan.training(
        "p", 1, "j", told, runtime="1.15", python="3.7", seats=seats, ports=range(5001, 5006), gang="gang-1"
    )
    tasks = ["master-replica-0", "ps-replica-0", "worker-replica-0", "worker-replica-1", "evaluator-replica-0"]
    assert [work.task for work in works] == tasks
    assert [(work.gang, work.place) for work in works] == [("gang-1", place) for place in range(5)]
    configs = [json.loads(work.variables["TF_CONFIG"]) for work in works]
    cluster = {
        "chief": ["127.0.0.1:5001"],
        "ps": ["127.0.0.1:5002"],
        "worker": ["127.0.0.1:5003", "127.0.0.1:5004"],
    }
    assert all(config["cluster"] == cluster for config in configs)
    assert [tuple(config["task"].values()) for config in configs] == [
        ("chief", 0),
        ("ps", 0),
        ("worker", 0),
        ("worker", 1),
        ("evaluator", 0),
    ]
    assert [work.variables["CLUSTER_SPEC"] == work.variables["TF_CONFIG"] for work in works] == [True] * 5
    assert [work.variables.get("RANK") for work in works] == ["0", None, "1", "2", None]
    last = works[3].variables
    assert (last["MASTER_ADDR"], last["MASTER_PORT"], last["WORLD_SIZE"]) == ("127.0.0.1", "5001", "3")
    assert (last["JAX_COORDINATOR_ADDRESS"], last["JAX_NUM_PROCESSES"], last["JAX_PROCESS_ID"]) == (
        "127.0.0.1:5001",
        "3",
        "2",
    )
    (alone,) = plan.training("p", 1, "j", told, runtime="1.15", python="3.7", gang="gang-1")
    assert (alone.gang, "RANK" in alone.variables) == ("", False)


# --- real trainers ---

GANG = {
    "scaleTier": "CUSTOM",
    "masterType": "n1-standard-1",
    "workerType": "n1-standard-1",
    "workerCount": "2",
    "parameterServerType": "n1-standard-1",
    "parameterServerCount": "1",
}
# Each replica answers at its own address with its name, and the primary asks all the others.
MEETS = """
    import json, os, socket, threading, time
    config = json.loads(os.environ["TF_CONFIG"])
    role, index = config["task"]["type"], config["task"]["index"]
    host, port = config["cluster"][role][index].split(":")
    own = socket.create_server((host, int(port)))

    def ask(address):
        for _ in range(600):
            try:
                with socket.create_connection(address.split(":"), 5) as link:
                    return link.recv(100).decode()
            except OSError:
                time.sleep(0.1)

    def answer():
        while True:
            link, _ = own.accept()
            link.sendall(f"{role} {index}".encode())
            link.close()

    threading.Thread(target=answer, daemon=True).start()
"""


@pytest.fixture(scope="module", params=["auto", "off"], ids=["jail", "host"])
def lab(request, tmp_path_factory, runtime_python, jailed):
    if request.param == "auto" and not jailed:
        pytest.skip("no jail can be made here: see README.md")
    with running(tmp_path_factory.mktemp("gangs") / "home", TAXIWAY_JAIL=request.param, TAXIWAY_JOBS="2") as server:
        lab = Lab(server.call, server.project, server.address.service_agent).open()
        lab.home, lab.jail = server.home, request.param
        yield lab


def test_replicas_reach_each_other_and_the_job_ends_with_its_primary(lab):
    job = lab.submit(
        MEETS
        + """
    if role == "chief":
        others = [each for role in ("ps", "worker") for each in config["cluster"][role]]
        print(json.dumps([ask(each) for each in others]), flush=True)
    else:
        print(role, index, "waits", flush=True)
        time.sleep(600)
    """,
        **GANG,
    )
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert '["ps 0", "worker 0", "worker 1"]' in lab.printed(job)
    for task in ("ps-replica-0", "worker-replica-0", "worker-replica-1"):
        assert f"{task.split('-')[0]} {task[-1]} waits" in lab.said(job, task)
    story = lab.get(job)["taxiway"]
    assert {each["task"]: each["reason"] for each in story["attempts"]} == {
        "master-replica-0": "Completed",
        "ps-replica-0": "Stopped",
        "worker-replica-0": "Stopped",
        "worker-replica-1": "Stopped",
    }
    assert all(not any(each["left"].values()) for each in story["attempts"])
    assert list((lab.home / "attempts").iterdir()) == []
    assert trainers.processes(job) == []


def places(lab, job):
    """What the second worker said of where it is."""
    return [line for line in lab.said(job, "worker-replica-1") if line.startswith("at ")]


def test_it_runs_only_when_all_are_up_and_a_lost_worker_comes_again_under_its_name(lab):
    job = lab.submit(
        MEETS
        + """
    if role == "chief":
        while ask(config["cluster"]["worker"][1]) and not os.path.exists("done"):
            time.sleep(0.1)
    else:
        print("at", port, flush=True)
        time.sleep(600)
    """,
        **GANG,
    )
    lab.until_state(job, "RUNNING")
    first = until(lambda: places(lab, job))
    victim = next(
        each
        for each in trainers.processes(job)
        if "trainer.task" in each.cmdline()[:5] and '"type":"worker","index":1' in each.environ()["TF_CONFIG"]
    )
    victim.send_signal(signal.SIGKILL)
    until(lambda: len(places(lab, job)) == 2)
    assert places(lab, job) == first * 2  # its address too
    told = lab.get(job)
    assert told["state"] == "RUNNING"  # the others never stopped
    tries = [(each["task"], each["attempt"], each["restart"]) for each in told["taxiway"]["attempts"]]
    assert sorted(tries) == [
        ("master-replica-0", 1, 0),
        ("ps-replica-0", 1, 0),
        ("worker-replica-0", 1, 0),
        ("worker-replica-1", 1, 0),
        ("worker-replica-1", 2, 1),
    ]
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    assert list((lab.home / "attempts").iterdir()) == []
    assert trainers.processes(job) == []


def test_nobody_else_reaches_a_gang_in_its_jails(lab, jailed):
    if lab.jail == "off":
        pytest.skip("without a jail all share the host's network")
    gang = lab.submit(MEETS + "    print(config['cluster']['worker'][0], flush=True)\n    time.sleep(600)\n", **GANG)
    address = until(lambda: next((line for line in lab.said(gang) if line.startswith("127.0.0.1:")), None))
    host, _, port = address.partition(":")
    alone = lab.submit(f"import socket\nprint(socket.socket().connect_ex(({host!r}, {port})))")
    assert lab.ended(alone)["state"] == "SUCCEEDED", lab.said(alone)
    assert lab.printed(alone) == [str(errno.ECONNREFUSED)]
    lab.cancel(gang)
    assert lab.ended(gang)["state"] == "CANCELLED"


def test_whoever_made_the_network_may_end_before_others_come(lab):
    for _ in range(4):
        job = lab.submit("print('by itself')", **GANG)
        assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
        assert lab.said(job).count("by itself") == 4
        assert [line for line in lab.said(job) if "jail" in line and lab.jail != "off"] == []


def test_an_error_of_a_worker_ends_the_job_with_its_words(lab):
    job = lab.submit(
        MEETS + "    if role == 'worker' and index == 1:\n        raise SystemExit(3)\n    time.sleep(600)\n", **GANG
    )
    told = lab.ended(job)
    assert told["state"] == "FAILED"
    assert told["errorMessage"].startswith("The replica worker 1 exited with a non-zero status of 3.")
    assert trainers.processes(job) == []


KEEPS = (
    MEETS
    + """
    beat = 0
    while not os.path.exists("stop"):
        if role == "chief":
            assert ask(config["cluster"]["worker"][0]) == "worker 0"
        beat += 1
        if beat % 20 == 1:
            print(role, index, "beats", beat, flush=True)
        time.sleep(0.05)
    """
)


def test_a_gang_outlives_its_server_and_the_agent_of_any_of_its_replicas(start_server, runtime_python):
    """No replica depends on another's agent, nor the network on that of whoever made it."""
    server = start_server()
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit(KEEPS, **GANG)
    lab.until_state(job, "RUNNING")
    server.process.kill()
    server.process.wait()
    server = start_server(server.home)
    lab.call = server.call
    assert lab.get(job)["state"] == "RUNNING"
    assert {each["attempt"] for each in lab.get(job)["taxiway"]["attempts"]} == {1}  # all were adopted
    for task in ("worker-replica-0", "ps-replica-0", "worker-replica-1", "master-replica-0"):
        agent_of(server.home, task).kill()
        again = until(lambda task=task: [each for each in running_tries(lab, job) if each["task"] == task])
        assert [each["attempt"] for each in again] == [2]
        begun = f"{task.split('-')[0].replace('master', 'chief')} {task[-1]} beats 1"
        until(lambda task=task, begun=begun: lab.said(job, task).count(begun) == 2)
    tries = [each["attempt"] for each in running_tries(lab, job)]
    assert sorted(tries) == [2, 3, 3, 3]  # behind the primary all began again
    lab.until_state(job, "RUNNING")
    assert lab.get(job)["state"] == "RUNNING"
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    assert list((server.home / "attempts").iterdir()) == []
    assert trainers.processes(job) == []


def test_an_address_that_another_program_took_is_told_and_left_to_it(start_server, runtime_python):
    server = start_server(TAXIWAY_JAIL="off")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit(MEETS + "    print('at', port, flush=True)\n    time.sleep(600)\n", **GANG)
    lab.until_state(job, "RUNNING")
    host, port = "127.0.0.1", int(until(lambda: places(lab, job))[0].split()[1])
    victim = next(
        each for each in trainers.processes(job) if PLACE_OF["worker-replica-1"] in each.environ()["TF_CONFIG"]
    )
    victim.send_signal(signal.SIGKILL)
    with until(lambda: listening(host, port)):
        until(lambda: len(places(lab, job)) == 2)
    assert places(lab, job)[1] != f"at {port}"
    story = lab.said(job, "service")
    assert any(
        f"The address {host}:{port} of the replica worker 1 is not free: Address already" in each for each in story
    )
    assert sorted(each["attempt"] for each in running_tries(lab, job)) == [2, 2, 2, 3]
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"


def listening(host, port):
    try:
        return socket.create_server((host, port))
    except OSError:
        return None


def test_a_program_that_takes_no_part_runs_in_each_replica_to_its_end(lab):
    job = lab.submit("print('alone')", **GANG)
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert "alone" in lab.printed(job)
    story = lab.get(job)["taxiway"]["attempts"]
    assert {each["reason"] for each in story} <= {"Completed", "Stopped"}
    assert [each["attempt"] for each in story] == [1] * 4


def test_a_gang_that_waits_for_what_never_comes_ends_with_its_time(lab):
    job = lab.submit("import time\ntime.sleep(600)", **{**GANG, "scheduling": {"maxRunningTime": "3s"}})
    assert lab.ended(job)["state"] == "CANCELLED"
    assert trainers.processes(job) == []


def running_tries(lab, job):
    return [each for each in lab.get(job)["taxiway"]["attempts"] if not each.get("endTime") and each["attempt"] > 1]


def agent_of(home, task):
    """The process that is beside a task's code."""
    for folder in (home / "attempts").iterdir():
        if (folder / "handle.json").exists():
            pid = json.loads((folder / "handle.json").read_bytes())["pid"]
            code = [each for each in psutil.Process(pid).children(recursive=True) if "trainer.task" in each.cmdline()]
            if code and PLACE_OF[task] in code[-1].environ()["TF_CONFIG"]:
                return psutil.Process(pid)
    raise AssertionError(f"nobody is beside {task}")


PLACE_OF = {
    "master-replica-0": '"type":"chief"',
    "ps-replica-0": '"type":"ps"',
    "worker-replica-0": '"type":"worker","index":0',
    "worker-replica-1": '"type":"worker","index":1',
}
