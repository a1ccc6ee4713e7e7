"""GPUs: each is one job's alone, who needs one waits and is told for whom; given by rows, seen by the job.

The machines of these tests have none: their hosts are imitated by the table of one, or by a program nvidia-smi.
"""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainers import Lab, work_of

from taxiway.db.database import Database
from taxiway.iam import projects
from taxiway.jobs import queue
from taxiway.jobs.line import Line
from taxiway.jobs.states import State
from taxiway.replica import jail
from taxiway.replica.jail import Seen
from taxiway.schemas import TrainingInput

PROJECTS = ("rides-1", "trees-1")
HOST = {"NVIDIA_TESLA_T4": (1, 2), "BASIC_GPU": (0, 1, 2), "NVIDIA_TESLA_V100": ()}
T4, ANY = "NVIDIA_TESLA_T4", "BASIC_GPU"


def fitting(wanted):
    return HOST.get(wanted, ())


@pytest.fixture
def db(db):
    for project in PROJECTS:
        db.write(lambda tx, project=project: projects.create(tx, project, owners=["user:o@x.org"], now=0))
    return db


def create(db, job, wants="", count=1, project=PROJECTS[0]):
    told = TrainingInput(python_module="trainer.task")
    wanted = (wants, count) if wants else ("", 0)
    return queue.create(db, project, job, told, {}, accelerators=wanted, creator="user:o", now=0.0)


def claim(db, worker="w1"):
    """The job that is claimed next, and its GPUs."""
    found = db.write(lambda tx: queue.claim(tx, worker=worker, now=10.0, lease=60.0, fitting=fitting))
    return found and (found.id, found.gpus)


def end(db, job, project=PROJECTS[0]):
    db.write(lambda tx: queue.runs(tx, project, job, now=10.0))
    db.write(lambda tx: queue.move(tx, project, job, State.SUCCEEDED, ended=20.0))


def wait(db, job, *, most=9, now=15.0, project=PROJECTS[0]):
    return Line(db, fitting).now().wait(queue.get(db, project, job).position, most=most, now=now)


# --- who is given which ---


def test_a_gpu_is_given_to_one_job_at_a_time_and_who_needs_none_goes_past(db):
    for job in ("a", "b", "c"):
        create(db, job, T4)
    create(db, "without")
    assert [claim(db) for _ in range(4)] == [("a", [1]), ("b", [2]), ("without", None), None]
    end(db, "b")
    assert claim(db) == ("c", [2])


def test_who_needs_several_waits_until_all_are_free_and_is_not_passed_by_who_needs_less(db):
    create(db, "one", T4)
    assert claim(db) == ("one", [1])
    create(db, "two", T4, 2)
    create(db, "small", T4)
    create(db, "any", ANY)
    assert [claim(db), claim(db)] == [("any", [0]), None]  # what would do for `two` is kept for it
    end(db, "one")
    assert [claim(db), claim(db)] == [("two", [1, 2]), None]
    end(db, "two")
    assert claim(db) == ("small", [1])


def test_what_the_host_has_not_at_all_is_not_waited_for(db):
    create(db, "more", T4, 4)
    create(db, "gone", "NVIDIA_TESLA_V100", 1)  # the host had one when the job was queued
    assert [claim(db), claim(db)] == [("more", [1, 2]), ("gone", [])]


def test_who_holds_a_gpu_stands_in_the_rows_until_its_job_has_ended(db, tmp_path):
    create(db, "a", T4)
    create(db, "b", T4, 2)
    claim(db)
    db.close()
    again = Database(tmp_path / "taxiway.db")
    queue.release_all(again)  # a server that starts
    assert [claim(again, "w2"), claim(again, "w2")] == [("a", [1]), None]  # abandoned, and with the same GPU
    queue.cancel(again, PROJECTS[0], "a", now=20.0)
    assert claim(again, "w2") is None  # CANCELLING: its replica may still run
    again.write(lambda tx: queue.move(tx, PROJECTS[0], "a", State.CANCELLED, ended=21.0))
    assert claim(again, "w2") == ("b", [1, 2])
    again.close()


WANTS = st.sampled_from(["", T4, ANY])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WANTS, st.integers(1, 3), st.booleans()), min_size=1, max_size=12))
def test_no_two_jobs_ever_hold_one_gpu_and_whoever_waits_is_known_to(db, wanted):
    for wants, count, ends in wanted:
        create(db, f"j_{uuid.uuid4().hex}", wants, count)
        while True:
            order = Line(db, fitting).now()
            claimed = claim(db)
            if claimed is None:
                assert order.short == list(range(len(order.waiting)))
                break
            places = [place for place, each in enumerate(order.waiting) if each.id == claimed[0]]
            assert not set(places) & set(order.short)
        held = [gpu for each in Line(db, fitting).now().held for gpu in each.gpus]
        assert len(held) == len(set(held))
        if ends and (running := Line(db, fitting).now().held):
            end(db, running[0].id)
    for each in Line(db, fitting).now().held:
        end(db, each.id)
    while claimed := claim(db):
        end(db, claimed[0])
    assert not Line(db, fitting).now().waiting  # nobody waits for ever


# --- what is told ---


def test_a_job_that_waits_for_a_gpu_is_told_who_has_it(db):
    create(db, "a", T4)
    create(db, "b", T4, project=PROJECTS[1])
    assert (claim(db), claim(db)) == (("a", [1]), ("b", [2]))
    create(db, "c", T4)
    create(db, "d", T4, 2)
    create(db, "without")
    assert wait(db, "c").reason == (
        "Waiting for a GPU: it wants 1 of the 2 that would do, 2 of them are held by a, 1 of other projects."
    )
    assert wait(db, "d").reason == (
        "Waiting for GPUs: it wants 2 of the 2 that would do, 2 of them are held by a, 1 of other projects, "
        "1 queued before it wants such."
    )
    assert wait(db, "d").behind == ["c"]
    assert wait(db, "without").reason == "There is room for it: it starts in a moment."
    assert wait(db, "without", most=2).reason.startswith("Waiting for another job to end: 2 run (a, 1 of other")
    assert Line(db, fitting).explain(most=3, after=0, now=20.0) == queue.get(db, PROJECTS[0], "d").position


def test_when_a_gpu_gets_free_is_guessed_by_those_that_have_it(db):
    for number, seconds in enumerate((50, 50, 50)):
        create(db, f"past_{number}")
        claim(db)
        db.write(lambda tx, number=number: queue.runs(tx, PROJECTS[0], f"past_{number}", now=0.0))
        move = {"to": State.SUCCEEDED, "ended": float(seconds)}
        db.write(lambda tx, number=number, move=move: queue.move(tx, PROJECTS[0], f"past_{number}", **move))
    for job, started in (("a", 80.0), ("b", 90.0)):
        create(db, job, T4)
        claim(db)
        db.write(lambda tx, job=job, started=started: queue.runs(tx, PROJECTS[0], job, now=started))
    for job, count in (("c", 1), ("d", 2), ("e", 1)):
        create(db, job, T4, count)
    assert [wait(db, job, now=100.0).starts for job in ("c", "d", "e")] == [130.0, 180.0, 230.0]
    assert wait(db, "c", now=141.0).starts is None  # they run longer than usual


# --- what a job sees of it ---

SMI = """#!/bin/sh
case "$1" in
*uuid*) for each in 0 1; do echo "$each, Tesla T4, GPU-0000000$each-aaaa, 00000000:0$each:00.0"; done;;
*) echo "0, 0"; echo "0, 0";;
esac
"""
CODE = """
import os, time
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
"""


@pytest.mark.runtime
def test_jobs_share_the_hosts_gpus_one_each_and_a_restart_gives_none_away(
    start_server, runtime_python, tmp_path, monkeypatch
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(SMI)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    server = start_server(None, TAXIWAY_JOBS="4")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    accelerator = {"acceleratorConfig": {"type": "NVIDIA_TESLA_T4", "count": "1"}}
    custom = {"scaleTier": "CUSTOM", "masterType": "n1-standard-1", "masterConfig": accelerator}
    jobs = [lab.submit(CODE, **custom) for _ in range(3)]
    for job, sees in zip(jobs, ("GPU-00000000-aaaa", "GPU-00000001-aaaa"), strict=False):
        lab.until_said(job, sees)
    lab.until_said(jobs[0], "It has GPU 0 (Tesla T4) of this host to itself.")
    why = f"Waiting for a GPU: it wants 1 of the 2 that would do, 2 of them are held by {jobs[0]}, {jobs[1]}."
    assert lab.get(jobs[2])["taxiway"]["waiting"]["reason"] == why
    lab.until_said(jobs[2], why)
    without = lab.submit("import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))")
    assert lab.ended(without)["state"] == "SUCCEEDED"
    assert lab.printed(without) == ["''"]
    server.kill()
    server = start_server(server.home, TAXIWAY_JOBS="4")
    lab.call = server.call
    assert lab.get(jobs[2])["state"] == "QUEUED"
    (work_of(server.home, jobs[1]) / "go").touch()
    assert lab.ended(jobs[1])["state"] == "SUCCEEDED"
    lab.until_state(jobs[2], "RUNNING")
    lab.until_said(jobs[2], "GPU-00000001-aaaa")
    for job in (jobs[0], jobs[2]):
        (work_of(server.home, job) / "go").touch()
        assert lab.ended(job)["state"] == "SUCCEEDED"


def test_a_jail_shows_the_files_of_the_gpus_that_were_given_and_no_other(jailed, tmp_path):
    if not jailed:
        pytest.skip("there can be no jail here")
    usual = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    usual |= {"tty", "urandom", "zero"}
    there = sorted(each for each in Path("/dev").iterdir() if each.is_char_device())
    other = next(each.name for each in there if each.name not in usual)
    write = {place: tmp_path / name for name, place in (("work", jail.WORK), ("tmp", "/tmp"), ("home", jail.HOME))}
    for folder in write.values():
        folder.mkdir()
    for devices, expected in (((), set()), ((other, "nvidia0"), {other})):  # of one that is not there is no trace
        with jail.opened() as held:
            words = held.enter(["ls", "/dev"], Seen([], write, Path("/dev/null"), devices), tmp_path / "etc", [], 0)
            listed = subprocess.run(words, capture_output=True, text=True, check=True, pass_fds=held.passed)
        assert set(listed.stdout.split()) - usual == expected
