"""Trainers and callers that do what nobody should: each ends as it must, and nobody else notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil
import pytest
from trainers import Lab, until

from taxiway.handles import Handle

pytestmark = pytest.mark.runtime

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def lab(server, runtime_python):
    return Lab(server.call, server.project, server.address.service_agent).open()


def test_a_line_of_ten_megabytes_and_bytes_that_are_no_text_cost_no_memory_and_no_line(server, lab):
    job = lab.submit("""
        import sys, time
        out = sys.stdout.buffer
        print("before", flush=True)
        out.write(b"x" * 10_000_000 + b"\\n")
        out.write(bytes(range(256)) * 4000 + b"\\n")
        sys.stderr.buffer.write(b"\\xfe\\xff" * 500_000 + b"\\n")
        out.write(b"y" * 10_000_000)
        out.flush()
        print("\\nafter", flush=True)
        time.sleep(1)
    """)
    lab.until_said(job, "after")
    assert sum(psutil.Process(pid).memory_info().rss for pid in agents(server, job)) < 120 * MIB
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    said = lab.printed(job)
    assert (said[0], said[-1]) == ("before", "after")
    assert max(map(len, said)) < 70_000
    for letter in "xy":
        (line,) = [each for each in said if each.startswith(letter * 1000)]
        assert line.endswith(" ... (cut: the line had 10000000 bytes)")


def agents(server, job):
    """The processes of our own that care for a job."""
    found = []
    for folder in (server.home / "attempts").iterdir():
        handle = folder / "handle.json"
        if handle.exists():
            pid = msgspec.json.decode(handle.read_bytes(), type=Handle).pid
            if any(each.environ().get("CLOUD_ML_JOB_ID") == job for each in psutil.Process(pid).children()):
                found.append(pid)
    assert found
    return found


def test_a_trainer_that_kills_whoever_cares_for_it_is_started_again_and_nothing_of_it_stays(lab):
    """Its child has neither our mark nor a parent of ours: it is found by the folder that it works in."""
    job = lab.submit("""
        import os, signal, subprocess, sys, time
        child = "import os, time; print('bare', os.getpid(), flush=True); time.sleep(600)"
        subprocess.Popen([sys.executable, "-S", "-c", child], env={}, start_new_session=True)
        time.sleep(1)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    """)
    until(lambda: len(bare(lab, job)) == 2, lambda: lab.said(job))
    lab.cancel(job)
    ended = lab.ended(job)
    assert ended["state"] == "CANCELLED"
    assert [each["reason"] for each in ended["taxiway"]["attempts"]][:1] == ["Lost"]
    assert [pid for pid in bare(lab, job) if runs(pid)] == []


def bare(lab, job):
    return {int(line.split()[1]) for line in lab.said(job) if line.startswith("bare ")}


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_trainer_that_closes_its_output_and_goes_on_is_waited_for(lab):
    job = lab.submit("""
        import os, sys, time
        print("last", flush=True)
        os.close(1); os.close(2)
        time.sleep(1)
        os._exit(7)
    """)
    ended = lab.ended(job)
    assert ended["errorMessage"].startswith("The replica master 0 exited with a non-zero status of 7.")
    assert lab.printed(job)[0] == "last"


def test_a_trainer_that_stops_itself_is_cancelled(server, lab):
    job = lab.submit("import os, signal; print('here', flush=True); os.kill(os.getpid(), signal.SIGSTOP)")
    lab.until_said(job, "here")
    lab.cancel(job)
    ended = lab.ended(job)
    assert ended["state"] == "CANCELLED"
    assert ended["taxiway"]["attempts"][0]["left"] == {"processes": 0, "folders": 0, "tokens": 0}


def test_a_job_may_be_cancelled_at_any_moment(server, lab):
    """From the moment it is taken, through its start and its run, to its end."""
    jobs = []
    timers = []
    for number in range(12):
        jobs.append(lab.submit("import time; print('here', flush=True); time.sleep(0.3)"))
        timers.append(threading.Timer(number * 0.12, lab.cancel, [jobs[-1]]))
        timers[-1].start()
    for timer in timers:
        timer.join()
    states = [lab.ended(job)["state"] for job in jobs]
    assert set(states) <= {"CANCELLED", "SUCCEEDED"}
    assert states[0] == "CANCELLED"
    for job, state in zip(jobs, states, strict=True):
        for each in lab.get(job)["taxiway"]["attempts"] if state == "CANCELLED" and "here" in lab.said(job) else ():
            assert each["left"] == {"processes": 0, "folders": 0, "tokens": 0}
        assert lab.said(job)[-1] == {"CANCELLED": "Job cancelled."}.get(state, "Job completed successfully.")


def test_of_many_submits_with_one_id_at_once_one_wins_and_the_others_are_told(lab):
    body = lab.body("print('once')")
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lab.post, [body] * 12))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 11
    assert {answer.json()["error"]["status"] for answer in answers if answer.status_code == 409} == {"ALREADY_EXISTS"}
    assert lab.ended(body["jobId"])["state"] == "SUCCEEDED"
    assert lab.printed(body["jobId"]) == ["once"]
