"""The engine of one machine: real replicas (whose server is away, so that they wait), real families of processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import psutil
import pytest
from trainers import until

from taxiway import cgroups, errors, handles, plan
from taxiway.address import Address
from taxiway.compute import attempts, local
from taxiway.handles import Exit, Handle, Order
from taxiway.iam import projects
from taxiway.schemas import TrainingInput

A1 = f"a1-{os.getpid()}"  # strays are looked for on the whole machine: another run has its own
PROJECT = "rides-1"


@pytest.fixture
def address():
    with socket.socket() as nobody:  # bound and not listening: whoever calls is refused
        nobody.bind(("127.0.0.1", 0))
        words = dict.fromkeys(("owner", "service_agent", "access_token", "key", "boto", "bundle"), "")
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        yield Address(pid=1, url=url, tls_port=1, proxy_port=1, project=PROJECT, project_number=7, **words)


@pytest.fixture
def engine(tmp_path, address):
    made = local.Local(tmp_path / "attempts", address)
    yield made
    for name in made.left():
        made.stop(name, "")


@pytest.fixture
def attempt(db):
    db.write(lambda tx: projects.create(tx, PROJECT, owners=["user:o@x.org"], now=0))
    return create(db, A1)


def create(db, name):
    told = TrainingInput(python_module="trainer.task", region="us-central1")
    (work,) = plan.training(PROJECT, 7, "job_1", told, runtime="2.21", python="3.11")
    return db.write(lambda tx: attempts.create(tx, name, "job", work, identity="sa", now=1))


def held(handle):
    return msgspec.json.decode(handle, type=Handle)


def test_start_is_idempotent_by_the_attempts_id(engine, attempt):
    handle = engine.start(attempt, "token")
    assert engine.start(attempt, "another") == handle
    assert [each.pid for each in local.strays(A1)] == [held(handle).pid]
    assert Order.read(engine.folder / A1).token == "token"
    assert (engine.folder / A1 / "order.json").stat().st_mode & 0o777 == 0o600
    assert engine.poll(handle) is None


def test_the_engine_of_the_next_server_adopts_what_runs(engine, attempt):
    handle = engine.start(attempt, "token")
    following = dataclasses.replace(engine, children={})
    assert following.start(attempt, "token") == handle
    assert following.poll(handle) is None
    following.stop(A1, handle)
    assert following.poll(handle).code == handles.LOST


def test_of_two_that_start_one_attempt_at_once_one_replica_stays(engine, attempt):
    others = [dataclasses.replace(engine, children={}) for _ in range(3)]
    got = []
    threads = [threading.Thread(target=lambda each=each: got.append(each.start(attempt, "token"))) for each in others]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(got) == 3
    assert len(set(got)) == 1
    until(lambda: [each.pid for each in local.strays(A1)] == [held(got[0]).pid])
    for each in others:
        each.stop(A1, got[0])
        assert each.children == {}


def test_a_replica_that_was_killed_is_lost_and_one_that_left_its_exit_is_not(engine, attempt):
    handle = engine.start(attempt, "token")
    os.kill(held(handle).pid, signal.SIGKILL)
    assert until(lambda: engine.poll(handle)).code == handles.LOST
    handles.save(engine.folder / A1 / "exit.json", Exit(3, "it broke"))
    assert engine.poll(handle) == Exit(3, "it broke")
    assert engine.start(attempt, "token") == handle  # it has lived: it is not started again


def test_a_handle_is_not_fooled_by_a_later_process_with_its_number(tmp_path):
    mine = Handle.mine(tmp_path)
    assert mine.process.pid == os.getpid()
    assert msgspec.structs.replace(mine, started=mine.started - 1).process is None
    assert msgspec.structs.replace(mine, boot="another").process is None
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert msgspec.structs.replace(mine, pid=gone.pid).process is None


def test_a_process_that_nobody_waited_for_does_not_run(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    handle = Handle(child.pid, handles.start_time(child.pid), handles.boot_id(), str(tmp_path))
    assert handle.process
    child.kill()
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert handle.process is None
    child.wait()


FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "300"])
subprocess.Popen(["setsid", "sleep", "300"])
subprocess.Popen(["env", "-i", "/bin/sleep", "300"])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        time.sleep(300)
    os._exit(0)
print("ready", flush=True)
time.sleep(300)
"""


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # init may be slow to reap


def test_stop_ends_the_whole_family_whatever_it_did_to_get_away(engine, attempt):
    handle = engine.start(attempt, "token")
    bystander = subprocess.Popen(["sleep", "300"], env={**os.environ, handles.MARK: "another"})
    family = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, env={**os.environ, handles.MARK: A1}, text=True
    )
    try:
        assert family.stdout.readline() == "ready\n"
        pids = until(lambda: (found := [each.pid for each in local.strays(A1)]) and len(found) >= 6 and found)
        engine.stop(A1, handle)
        assert local.strays(A1) == []
        family.wait()
        assert not [pid for pid in pids if runs(pid)]
        assert bystander.poll() is None
    finally:
        family.stdout.close()
        for each in (family, bystander):
            each.kill()
            each.wait()


def test_a_replica_whose_folder_is_cleared_away_ends_by_itself(engine, attempt):
    handle = engine.start(attempt, "token")
    engine.clear(A1)
    until(lambda: engine.poll(handle) and not engine.children)
    assert local.strays(A1) == []


def test_what_is_left_of_an_attempt_is_counted_where_it_is_and_cleared_with_it(engine, attempt):
    handle = engine.start(attempt, "token")
    assert engine.remains(A1) == {"processes": 1, "groups": 0, "folders": 1}
    group = cgroups.make(f"taxiway-{A1}", memory=0, cpus=0, processes=100)
    handles.save(engine.folder / A1 / "group.json", group)  # as its replica does
    assert engine.remains(A1)["groups"] == len(group.folders)
    engine.stop(A1, handle)
    engine.clear(A1)
    assert engine.remains(A1) == {"processes": 0, "groups": 0, "folders": 0}


def test_stop_of_what_is_gone_or_never_was_is_no_fault(engine, attempt):
    handle = engine.start(attempt, "token")
    for _ in range(2):
        engine.stop(A1, handle)
    engine.stop("never", "")


def test_a_replica_that_does_not_come_up_is_told_with_its_last_words(engine, attempt):
    (engine.folder / A1 / "lock").mkdir(parents=True)
    with pytest.raises(errors.Unavailable, match=r"(?s)attempt a1-\d+ did not come up: .*IsADirectoryError"):
        engine.start(attempt, "token")
    assert local.strays(A1) == []


def test_a_replica_gets_nothing_of_the_servers_environment_but_what_building_needs(engine, attempt, monkeypatch):
    monkeypatch.setenv("TAXIWAY_TOKEN_FILE", "/secret")
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("UV_INDEX", "kept")
    environ = psutil.Process(held(engine.start(attempt, "token")).pid).environ()
    assert "secret" not in str(environ)
    assert environ["UV_INDEX"] == "kept"
    assert {name for name in environ if name.startswith("TAXIWAY_")} <= {"TAXIWAY_CACHE", "TAXIWAY_PYTHONS"}


def test_a_sweep_ends_what_no_row_knows_and_tells_the_rest_the_new_address(engine, attempt, db, address):
    known = engine.start(attempt, "token")
    unknown = engine.start(dataclasses.replace(attempt, id="nobodys"), "token")
    here = msgspec.structs.replace(address, url="http://127.0.0.1:2", tls_port=2)
    local.sweep(db, dataclasses.replace(engine, address=here))
    assert engine.left() == [A1]
    assert engine.poll(unknown).code == handles.LOST
    assert engine.poll(known) is None
    order = Order.read(engine.folder / A1)
    assert (order.url, order.tls_port, order.token) == ("http://127.0.0.1:2", 2, "token")


def test_a_folder_is_cleared_whatever_the_users_code_made_of_it(engine):
    locked = engine.folder / A1 / "work" / "deep"
    locked.mkdir(parents=True)
    (locked / "file").touch()
    locked.chmod(0o000)
    engine.clear(A1)
    assert engine.left() == []


def test_lines_on_the_disk_are_read_up_to_a_half_written_one(tmp_path):
    lines = [handles.Said(seq, 1.0, "INFO", "x") for seq in (1, 2)]
    whole = b"".join(msgspec.json.encode(each) + b"\n" for each in lines)
    (tmp_path / "said.jsonl").write_bytes(whole + b'{"seq":3,"ti')
    assert list(handles.said(tmp_path)) == lines
    assert list(handles.said(Path("/nowhere"))) == []
