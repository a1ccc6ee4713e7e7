"""Trainers and callers that do what nobody should: each ends as it must, and nobody else notices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pytest
from conftest import running
from disks import fill, small_disk
from trainers import Lab, until, work_of

from taxiway import cgroups, handles
from taxiway.cgroups import Group
from taxiway.handles import Exit, Handle, Order
from taxiway.replica import ground
from taxiway.replica.agent import Agent

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


def test_a_trainer_that_kills_whoever_cares_for_it_is_started_again_and_nothing_of_it_stays(
    start_server, runtime_python
):
    """Its child has neither our mark nor a parent of ours: it is found by the folder that it works in.

    In a jail it could not do any of this.
    """
    server = start_server(None, TAXIWAY_JAIL="off")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
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
    assert ended["taxiway"]["attempts"][0]["left"] == {"processes": 0, "groups": 0, "folders": 0, "tokens": 0}


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
            assert each["left"] == {"processes": 0, "groups": 0, "folders": 0, "tokens": 0}
        assert lab.said(job)[-1] == {"CANCELLED": "Job cancelled."}.get(state, "Job completed successfully.")


def test_of_many_submits_with_one_id_at_once_one_wins_and_the_others_are_told(lab):
    body = lab.body("print('once')")
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lab.post, [body] * 12))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 11
    assert {answer.json()["error"]["status"] for answer in answers if answer.status_code == 409} == {"ALREADY_EXISTS"}
    assert lab.ended(body["jobId"])["state"] == "SUCCEEDED"
    assert lab.printed(body["jobId"]) == ["once"]


# --- the disk ---

NOTHING = {"processes": 0, "groups": 0, "folders": 0, "tokens": 0}
MAY = 24  # MiB that a job may have
BEGIN = """
    import os, sys, time
    piece = b"x" * (1 << 20)
"""
FILLS = {  # without end
    "in its work folder, deep down": """
    for number in range(500):
        os.mkdir("within")
        os.chdir("within")
    while True:
        open("part%d" % time.monotonic_ns(), "wb").write(piece)
        time.sleep(0.02)
    """,
    "in a file without a name in /tmp": """
    with open(os.environ["TMPDIR"] + "/part", "wb") as file:
        os.unlink(file.name)
        while True:
            file.write(piece)
            time.sleep(0.02)
    """,
    "in its home, which it locked": """
    os.mkdir(os.path.expanduser("~/in"))
    os.chmod(os.path.expanduser("~/in"), 0o300)
    while True:
        open(os.path.expanduser("~/in/part%d" % time.monotonic_ns()), "wb").write(piece)
        time.sleep(0.02)
    """,
    "in its log": """
    while True:
        print("x" * 8000)
    """,
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, runtime_python):
    with running(tmp_path_factory.mktemp("narrow") / "home", TAXIWAY_JOB_DISK_MIB=str(MAY)) as started:
        yield started


def test_a_trainer_that_writes_without_end_is_ended_for_good_and_told_why(narrow):
    lab = Lab(narrow.call, narrow.project, narrow.address.service_agent).open()
    jobs = {where: lab.submit(BEGIN + code) for where, code in FILLS.items()}
    for where, job in jobs.items():
        ended = lab.ended(job)
        how, _, why = ended["errorMessage"].splitlines()[0].partition(". It wrote ")
        assert how == "The replica master 0 was killed by SIGKILL (status 137)", (where, ended)
        wrote, _, rest = why.partition(" MiB to its disk and its log, ")
        assert MAY <= int(wrote) < 8 * MAY, (where, ended)
        assert rest.startswith(f"and a job may have {MAY} MiB: write to gs:// what is to stay")
        assert "TAXIWAY_JOB_DISK_MIB" in rest
        (attempt,) = ended["taxiway"]["attempts"]  # it is not started again
        assert (attempt["reason"], attempt["left"]) == ("Disk", NOTHING), where
    enough = lab.submit(f"open('part', 'wb').write(bytes({MAY // 2} << 20))\nimport time; time.sleep(2); print('kept')")
    assert lab.ended(enough)["state"] == "SUCCEEDED"


def test_a_trainer_that_fills_the_whole_disk_in_no_time_leaves_the_server_its_own(
    start_server, tmp_path, runtime_python
):
    """It writes on whatever it is told, and has more before anybody can look."""
    with small_disk(tmp_path / "disk", "256m") as disk:
        server = start_server(disk / "home")
        lab = Lab(server.call, server.project, server.address.service_agent).open()
        beside = lab.submit(
            BEGIN
            + """
    open(os.environ["TMPDIR"] + "/part", "wb").write(piece * 20)
    print("here", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.05)
    """
        )
        lab.until_said(beside, "here")
        job = lab.submit(
            BEGIN
            + """
    file = open("part", "wb", buffering=0)
    while True:
        try:
            file.write(piece)
        except OSError:
            time.sleep(0.001)
    """
        )
        ended = lab.ended(job)
        assert "It wrote on when this host's disk was used up" in ended["errorMessage"], (ended, server.log)
        assert [each["reason"] for each in ended["taxiway"]["attempts"]] == ["Disk"]
        assert lab.get(beside)["state"] == "RUNNING"
        assert lab.read(lab.put("after", bytes(20 << 20)).rpartition("/")[2]) == bytes(20 << 20)
        go = work_of(server.home, beside) / "go"
        filled = fill(disk)  # by somebody else: its end has no room but what it has itself
        go.touch()
        assert lab.ended(beside)["state"] == "SUCCEEDED", (lab.said(beside), server.log)
        filled.unlink()
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_how_a_code_ended_is_kept_on_a_full_disk_in_the_room_of_what_it_wrote_to_tmp(tmp_path):
    with small_disk(tmp_path / "disk") as folder:
        handles.save(folder / "order.json", Order("a", "token", "http://127.0.0.1:1", 1, ""))
        agent = Agent(folder)
        for name in ("tmp", "work"):
            (folder / name / "in").mkdir(parents=True)
            (folder / name / "in" / "file").write_bytes(bytes(16384))
        fill(folder)
        agent._keep(Exit(3, "why"))
        agent.words.close()
        assert Exit.read(folder) == Exit(3, "why")
        assert list((folder / "tmp").iterdir()) == []
        assert (folder / "work" / "in" / "file").exists()


# --- processes ---

FORKS = """
    import os, threading, time
    print("here", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.05)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            open("full", "w").close()
            try:
                while True:
                    threading.Thread(target=time.sleep, args=[600]).start()
            except RuntimeError:
                pass
"""


@pytest.mark.parametrize("jail", ["auto", "off"])
def test_a_trainer_that_forks_without_end_is_held_and_ended_and_other_jobs_live_on(start_server, runtime_python, jail):
    given = cgroups.make("taxiway-asked", memory=0, cpus=0, processes=100)
    given.remove()
    if not given.folders:
        pytest.skip("the kernel gives us no groups of processes here")
    server = start_server(None, TAXIWAY_JAIL=jail, TAXIWAY_JOBS="2")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit(FORKS)
    lab.until_said(job, "here")
    work = work_of(server.home, job)
    group = msgspec.json.decode((work.parent / "group.json").read_bytes(), type=Group)
    pids = Path(group.folders["pids"])
    assert int((pids / "pids.max").read_text()) == ground.PROCESSES
    (pids / "pids.max").write_text("60")  # a small machine has enough of these
    (work / "go").touch()
    until((work / "full").exists)
    assert lab.ended(lab.submit("print('beside')"))["state"] == "SUCCEEDED"
    assert 40 < int((pids / "pids.current").read_text()) <= 60
    lab.cancel(job)
    ended = lab.ended(job)
    assert ended["state"] == "CANCELLED"
    assert [each["left"] for each in ended["taxiway"]["attempts"]] == [NOTHING]
    assert not pids.exists()
    assert server.stop() == 0
    assert "Traceback" not in server.log
