"""TensorBoards of the command line: real ones, on event files that TensorFlow wrote, looked at over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import httpx
import msgspec
import psutil
import pytest
from conftest import run_cli

from taxiway import handles
from taxiway.cli.tensorboards import Board
from taxiway.handles import Handle

WRITE = """
import sys
import tensorflow as tf

with tf.summary.create_file_writer(sys.argv[1]).as_default():
    for step in range(3):
        tf.summary.scalar("loss", 1.0 / (step + 1), step)
"""
WAIT_S = 60


def environ():
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    return kept | {name: os.environ[name] for name in ("TAXIWAY_CACHE", "TAXIWAY_PYTHONS") if name in os.environ}


def command(home, *words):
    return [sys.executable, "-m", "taxiway", "tensorboard", *words, "--home", str(home)]


@pytest.fixture
def home(tmp_path):
    """A home in which no server was ever started; what runs there at the end is stopped."""
    folder = tmp_path / "home"
    yield folder
    subprocess.run(command(folder, "stop", "--all"), check=True, capture_output=True, timeout=60, env=environ())


@pytest.fixture
def tensorboard(home):
    """`taxiway tensorboard` in that home."""
    return lambda *words, **rest: subprocess.run(
        command(home, *words), capture_output=True, text=True, timeout=200, env=environ(), **rest
    )


@pytest.fixture(scope="module")
def events(tmp_path_factory, runtime_python):
    """A folder with the event file of one run, `train`."""
    folder = tmp_path_factory.mktemp("tried")
    subprocess.run([str(runtime_python), "-c", WRITE, str(folder / "train")], check=True, capture_output=True)
    return folder


@pytest.fixture
def sleeper():
    """A process that is none of ours."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def until(promise):
    """What a function gives, once it gives something."""
    deadline = time.monotonic() + WAIT_S
    while not (given := promise()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return given


def tags(url):
    return httpx.get(f"{url}data/plugin/scalars/tags", timeout=30, trust_env=False).json()


def listed(tensorboard):
    ended = tensorboard("list", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def answers(url):
    try:
        return httpx.get(url, timeout=30, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.mark.runtime
def test_a_tensorboard_shows_a_folder_is_started_once_and_ends_when_it_is_stopped(home, tensorboard, events):
    started = tensorboard("start", events.name, cwd=events.parent)
    assert started.returncode == 0, started.stderr
    url = started.stdout.strip()
    assert list(until(lambda: tags(url))) == ["train"]
    assert list(tags(url)["train"]) == ["loss"]

    (row,) = listed(tensorboard)
    assert (row["logdir"], row["url"]) == (str(events), url)
    assert f"taxiway tensorboard stop {row['pid']} --home {home}" in started.stderr
    shown = tensorboard("list").stdout
    assert shown.startswith("PID ")
    assert url in shown

    assert os.getsid(row["pid"]) == row["pid"]  # what ends the session of the shell does not reach it
    assert {each.laddr.ip for each in psutil.Process(row["pid"]).net_connections()} == {"127.0.0.1"}
    assert {file.stat().st_mode & 0o777 for file in (home / "tensorboards").glob("*.*")} == {0o600}

    again = tensorboard("start", str(events / ".." / events.name))
    assert (again.returncode, again.stdout) == (0, f"{url}\n")
    assert f"TensorBoard {row['pid']} shows {events} since" in again.stderr
    elsewhere = tensorboard("start", str(events), "--port", "1024")
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "")
    assert f"{events} is shown at {url} already" in elsewhere.stderr
    assert listed(tensorboard) == [row]

    stopped = tensorboard("stop", str(row["pid"]))
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert f"Stopped TensorBoard {row['pid']} ({events})." in stopped.stderr
    assert not answers(url)
    assert listed(tensorboard) == []


@pytest.mark.runtime
def test_two_starts_at_once_are_one_tensorboard_and_a_killed_one_leaves_the_list(
    home, tensorboard, tmp_path, runtime_python
):
    coming = tmp_path / "coming"
    starts = [
        subprocess.Popen(command(home, "start", str(coming)), text=True, stdout=-1, stderr=-1, env=environ())
        for _ in range(2)
    ]
    said = [each.communicate(timeout=200) for each in starts]
    assert [each.returncode for each in starts] == [0, 0], said
    (url,) = {out for out, _ in said}
    assert all(f"{coming} does not exist yet" in err for _, err in said)
    (row,) = listed(tensorboard)
    assert url == f"{row['url']}\n"

    process = psutil.Process(row["pid"])
    process.kill()
    process.wait(WAIT_S)
    ended = tensorboard("list")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == [f"TensorBoard {row['pid']} ({coming}) runs no more.", "Listed 0 items."]
    assert [file.name for file in (home / "tensorboards").iterdir()] == ["lock"]


@pytest.mark.runtime
def test_a_tensorboard_that_cannot_listen_ends_with_its_last_words(home, tensorboard, tmp_path, runtime_python):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = tensorboard("start", str(tmp_path), "--port", str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ERROR: (taxiway.tensorboard.start) TensorBoard ended before it answered" in ended.stderr
    assert f"could not bind to port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [file.name for file in (home / "tensorboards").iterdir()] == ["lock"]


@pytest.mark.runtime
def test_a_start_that_is_given_up_leaves_no_tensorboard(home, tensorboard, tmp_path, runtime_python):
    start = subprocess.Popen(command(home, "start", str(tmp_path)), stdout=-1, stderr=-1, env=environ())
    (record,) = until(lambda: list((home / "tensorboards").glob("*.json")))
    board = msgspec.json.decode(record.read_bytes(), type=Board)
    start.send_signal(signal.SIGINT)
    out, _ = start.communicate(timeout=WAIT_S)
    assert start.returncode != 0
    assert out == b""
    assert board.handle.process is None
    assert not record.exists()


def test_a_pid_that_is_not_ours_is_refused_and_lives(home, tensorboard, sleeper):
    ended = tensorboard("stop", str(sleeper.pid))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"No TensorBoard of {home} has the pid {sleeper.pid}; nothing was stopped." in ended.stderr
    assert sleeper.poll() is None


def test_a_pid_that_another_process_has_by_now_is_not_taken_for_ours(home, tensorboard, sleeper):
    folder = home / "tensorboards"
    folder.mkdir(parents=True)
    earlier = Handle(sleeper.pid, handles.start_time(sleeper.pid) - 1, handles.boot_id(), str(folder))
    board = Board("0a0b0c0d", earlier, "/tried", 0, "2030-01-31T17:05:09.000000Z")
    handles.save(board.record, board)
    assert tensorboard("stop", str(sleeper.pid)).returncode == 1
    assert sleeper.poll() is None
    assert not board.record.exists()
    handles.save(board.record, board)
    assert tensorboard("stop", "--all").stderr.splitlines()[-1] == "No TensorBoard runs."
    assert sleeper.poll() is None


def test_what_is_typed_wrong_is_told(tensorboard, tmp_path):
    (tmp_path / "file").touch()
    for words, code, told in [
        (["stop"], 2, "give the PIDs, or --all"),
        (["stop", "1", "--all"], 2, "give the PIDs, or --all"),
        (["stop", "one"], 2, "a valid integer"),
        (["start", str(tmp_path), "--port", "0"], 2, "--port"),
        (["start", str(tmp_path / "file")], 1, "is not a folder"),
        (["start", str(tmp_path), "--runtime-version", "0.1"], 1, "Runtime version '0.1' is not offered"),
        (["start", "gs://rides/tried"], 1, "No server has been started"),
    ]:
        ended = tensorboard(*words)
        assert (ended.returncode, ended.stdout) == (code, "")
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.runtime
def test_a_bucket_is_shown_as_the_owner_reads_it_and_goes_on_when_the_server_stops(start_server, events, tmp_path):
    server = start_server()
    bucket = f"gs://tried-{uuid.uuid4().hex[:8]}"
    for words in (["mb", bucket], ["cp", "-r", str(events / "train"), f"{bucket}/job/"]):
        assert run_cli(server, "storage", *words).returncode == 0
    try:
        started = run_cli(server, "tensorboard", "start", f"{bucket}/job/")
        assert started.returncode == 0, started.stderr
        url = started.stdout.strip()
        assert list(until(lambda: tags(url))["train"]) == ["loss"]
        (row,) = json.loads(run_cli(server, "tensorboard", "list", "--format", "json").stdout)
        assert (row["logdir"], row["url"]) == (f"{bucket}/job", url)
        server.stop()
        assert list(tags(url)) == ["train"]
    finally:
        assert run_cli(server, "tensorboard", "stop", "--all").returncode == 0
    assert not answers(url)


def test_a_bucket_that_does_not_exist_is_refused_by_name_before_anything_is_started(server, cli):
    missing = f"gs://missing-{uuid.uuid4().hex[:8]}"
    ended = cli("tensorboard", "start", f"{missing}/job")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"The bucket {missing} does not exist" in ended.stderr
    assert not (server.home / "tensorboards").exists()
