"""What a job uses is sampled, kept in few rows, and told as sums and peaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainers import Lab

from taxiway.compute import attempts, samples
from taxiway.db import tables
from taxiway.handles import Sample
from taxiway.plan import Work
from taxiway.replica.samples import Meter, taken

PROJECT = "rides-1"
MIB = 2**20
HEADS = ["TIME", "SPAN", "TASK", "CPU", "MEMORY", "PROCESSES", "READ", "WRITTEN"]


# --- taking them


def child(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def metered(code):
    """What was used between two lines that a child prints, and what until its end."""
    running = child(code)
    meter = Meter(running.pid)
    seen = []
    for _ in range(code.count("print(")):
        assert running.stdout.readline()
        seen.append(meter.read())
        running.stdin.write(b"go on\n")
        running.stdin.flush()
    running.stdin.close()
    running.wait()
    running.stdout.close()
    return [*seen, meter.read()]


def test_memory_and_files_and_processors_are_metered_with_those_of_children(tmp_path):
    first, second, last = metered(f"""
import subprocess, sys, time
print("ready", flush=True); sys.stdin.readline()
held = b"x" * {200 * MIB}
open({str(tmp_path / "file")!r}, "wb").write(held)
began = time.process_time()
while time.process_time() - began < 0.3: pass
inner = "import time\\nwhile time.process_time() < 0.5: pass\\ninput()"
other = subprocess.Popen([sys.executable, "-c", inner], stdin=subprocess.PIPE)
time.sleep(1)
print("used", flush=True); sys.stdin.readline()
other.communicate(b"go on\\n")
""")
    assert first.memory < 100 * MIB < 200 * MIB < second.memory < 300 * MIB
    assert (first.processes, second.processes, last.processes) == (1, 2, 0)
    assert 200 * MIB <= second.written < 202 * MIB
    assert second.cpu + last.cpu > 0.7
    assert second.cpu + last.cpu < 10  # one who counts twice would count each second of a long job so
    assert first.span > 0


def test_what_ends_between_two_looks_is_counted_by_what_the_kernel_kept():
    """Behind a shell: the kernel takes a process for no smaller than whoever started it, and this one is large."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_samples import metered
(only,) = metered('import time; held = b"x" * {300 * MIB}\\nwhile time.process_time() < 0.4: pass')
print(only.cpu, only.memory)
"""
    shell = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code]
    told = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True).stdout
    cpu, memory = map(float, told.split())
    assert cpu >= 0.4
    assert memory >= 300 * MIB


def test_what_ran_before_does_not_count():
    before = child("input()")
    running = child("input()")
    try:
        assert Meter(running.pid).read().processes == 1
    finally:
        for each in (before, running):
            each.communicate(b"\n")


class Server:
    """What a sampler sees of a server."""

    def __init__(self):
        self.taken = []

    def sample(self, batch):
        self.taken += batch


def test_samples_are_taken_while_a_process_runs_and_all_are_reported_at_its_end():
    server, running = Server(), child("import time; time.sleep(1.2)")
    began = time.time()
    with taken(running, server):
        running.wait()
    running.communicate()
    assert len(server.taken) >= 3
    assert abs(sum(each.span for each in server.taken) - (time.time() - began)) < 0.5


def test_a_gpu_is_read_where_nvidia_smi_tells_of_one(tmp_path, monkeypatch):
    told = tmp_path / "nvidia-smi"
    told.write_text(
        "#!/bin/sh\ntest \"$1\" = --query-gpu=utilization.gpu,memory.used && printf '50, 1024\\n25, 2\\n'\n"
    )
    told.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (only,) = metered("")
    assert (only.gpu, only.gpu_memory) == (0.75, 1026 * MIB)
    told.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    (only,) = metered("")
    assert (only.gpu, only.gpu_memory) == (None, None)


# --- keeping them


def begun(db, task="master-replica-0"):
    work = Work(
        project=PROJECT,
        project_number=1,
        subject="j",
        task=task,
        runtime="2.21",
        python="3.11",
        packages=[],
        fetch={},
        command=[],
        variables={},
    )
    with db.read() as rows:
        known = rows.execute(sa.select(sa.func.count()).select_from(tables.attempts)).scalar_one()
    if not known:
        row = {"id": PROJECT, "number": 1, "name": "", "policy": {}, "policy_version": 1, "created": 0}
        db.write(lambda tx: tx.execute(tables.projects.insert().values(row)))
    return db.write(lambda tx: attempts.create(tx, f"a{known}", "job", work, identity="me", now=0))


def sample(at, **told):
    return Sample(**{"time": at, "span": 5.0, "cpu": 1.0, "memory": 1, "processes": 1, "read": 1, "written": 2, **told})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.integers(0, 2**40), st.floats(0, 20), st.booleans()), min_size=1, max_size=12
    )
)
def test_however_many_there_are_few_are_kept_and_sums_and_peaks_are_true(db, runs):
    """Some attempts, each with some samples; a report is sent again now and then."""
    for table in (tables.samples, tables.attempts, tables.projects):
        db.write(lambda tx, table=table: tx.execute(table.delete()))
    at, everything = 0.0, []
    for count, memory, cpu, again in runs:
        attempt = begun(db)
        batch = [sample(at + 5 * n, memory=memory + n % 7, cpu=cpu, gpu=0.5, gpu_memory=n) for n in range(1, count + 1)]
        at += 5 * count
        for _ in range(1 + again):
            db.write(lambda tx, attempt=attempt, batch=batch: samples.keep(tx, attempt, batch))
        everything += batch
    kept = samples.page(db, PROJECT, "j", limit=10**6)
    assert len(kept) <= samples.MOST
    assert [each.sample.time for each in kept] == sorted({each.sample.time for each in kept})
    assert kept[-1].sample.time == everything[-1].time
    (use,) = samples.used(db, PROJECT, "j")
    assert use.seconds == pytest.approx(5 * len(everything))
    assert use.cpu == pytest.approx(sum(each.cpu for each in everything))
    assert use.gpu == pytest.approx(2.5 * len(everything))
    assert use.memory == max(each.memory for each in everything)
    assert use.gpu_memory == max(each.gpu_memory for each in everything)
    assert (use.read, use.written) == (len(everything), 2 * len(everything))


def test_two_days_of_samples_are_bounded_and_the_last_half_hour_is_whole(db):
    attempt = begun(db)
    count = 2 * 24 * 720
    for first in range(0, count, 720):
        batch = [sample(5.0 * n, memory=n) for n in range(first, first + 720)]
        db.write(lambda tx, batch=batch: samples.keep(tx, attempt, batch))
    kept = samples.page(db, PROJECT, "j", limit=10**6)
    assert len(kept) <= samples.MOST
    assert [each.sample.span for each in kept[-360:]] == [5.0] * 360
    assert sum(each.sample.span for each in kept) == 5 * count
    older = [each.sample.span for each in kept]
    assert older == sorted(older, reverse=True)


def test_samples_that_are_too_old_go(db):
    attempt = begun(db)
    db.write(lambda tx: samples.keep(tx, attempt, [sample(5.0 * n) for n in range(1200)]))
    assert [samples.sweep(db, before=5505.0) for _ in range(3)] == [1000, 101, 0]
    assert samples.page(db, PROJECT, "j", limit=1)[0].sample.time == 5505.0


def test_many_attempts_with_one_sample_each_are_bounded_too(db, monkeypatch):
    monkeypatch.setattr(samples, "MOST", 10)
    for at in range(25):
        attempt = begun(db)
        db.write(lambda tx, attempt=attempt, at=at: samples.keep(tx, attempt, [sample(at)]))
    assert [each.sample.time for each in samples.page(db, PROJECT, "j", limit=99)] == list(range(15, 25))


# --- on a running server


@pytest.fixture(scope="module")
def lab(server):
    return Lab(server.call, server.project, server.address.service_agent).open()


def test_a_jobs_samples_are_on_the_wire_and_in_the_command_line(lab, server, cli, runtime_python):
    job = lab.submit(f"""
        import time
        held = b"x" * {150 * MIB}
        while time.process_time() < 0.5: pass
        time.sleep(1)
    """)
    lab.ended(job)
    path = f"/v1/projects/{server.project}/jobs/{job}"
    found = server.call("GET", f"{path}:listSamples").json()["samples"]
    assert len(found) >= 3
    assert {each["taskName"] for each in found} == {"master-replica-0"}
    assert max(int(each["memoryBytes"]) for each in found) > 150 * MIB
    first = server.call("GET", f"{path}:listSamples?pageSize=1").json()
    rest = server.call("GET", f"{path}:listSamples?pageSize=100&pageToken={first['nextPageToken']}").json()
    assert first["samples"] + rest["samples"] == found
    assert server.call("GET", f"{path}:listSamples?taskName=worker-replica-0").json() == {}
    (use,) = server.call("GET", f"{path}:summarizeUsage").json()["tasks"]
    assert use["cpuSeconds"] >= 0.5
    assert int(use["peakMemoryBytes"]) == max(int(each["memoryBytes"]) for each in found)

    listed = cli("jobs", "samples", job)
    assert listed.stdout.splitlines()[0].split()[:8] == HEADS
    assert len(listed.stdout.splitlines()) == 1 + len(found)
    described = cli("jobs", "describe", job, "--format", "json")
    assert json.loads(described.stdout)["jobId"] == job
    assert described.stderr.startswith("master-replica-0 used ")
    assert "MiB of memory; it read " in described.stderr
    for verb in ("listSamples", "summarizeUsage"):
        assert server.call("GET", f"/v1/projects/{server.project}/jobs/nope:{verb}").status_code == 404
