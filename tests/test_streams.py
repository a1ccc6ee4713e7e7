"""A log as it grows, by server-sent events: every line once and at once, whatever is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import people
import psutil
import pytest
from starlette.requests import Request
from trainers import Lab, until, work_of

from taxiway.api import streams as wire
from taxiway.api.call import Call
from taxiway.cli import tail
from taxiway.compute import filters, logs
from taxiway.compute.streams import Streams
from taxiway.handles import Said
from taxiway.iam import projects
from taxiway.iam.access import Access
from taxiway.iam.keys import Keys
from taxiway.iam.members import Caller
from taxiway.jobs import queue
from taxiway.schemas import TrainingInput

PROJECT = "rides-1"
TASKS = ("master-replica-0", "worker-replica-0", "ps-replica-0")


def line(seq, task=TASKS[0], at=None, message=""):
    return logs.line(1, task, Said(seq, time.time() if at is None else at, "INFO", message or f"{task} {seq}"))


def messages(shown):
    return [each["message"] for event in tail.events([shown]) for each in event.data["lines"]]


async def followed(streams, place="", *, over, task="", cut=0.0):
    """What a follower sees, and where it stands: to the end of the log, or until it is cut off."""
    seen = []
    with streams.following(PROJECT, "j") as woken:
        while True:
            woken.clear()
            page = await streams.page(PROJECT, "j", place, task=task, show=wire.lines_event, ended=over)
            place = page.place
            seen += messages(page.shown)
            if page.ended or (page.shown and random.random() < cut):
                return seen, place, page.ended
            if not page.more:
                await asyncio.wait_for(woken.wait(), 20)


def test_every_follower_sees_every_line_once_however_often_it_is_cut_off(db):
    """Three replicas write at once, some of their lines late; the last ones are written just before the end."""
    count, streams = 400, Streams(db)

    def over():
        return bool(logs.page(db, [PROJECT], filters.sql('textPayload="the end"'), limit=1))

    def write(task, late):
        for seq in range(1, count + 1, 4):
            at = time.time() - late * (seq % 3)
            logs.append(db, PROJECT, "j", [line(each, task, at) for each in range(seq, seq + 4)], now=time.time())

    async def follow(cut):
        seen, place, ended = [], "", False
        while not ended:
            more, place, ended = await followed(streams, place, over=over, cut=cut)
            seen += more
        return seen

    async def all_of_them():
        writers = [asyncio.to_thread(write, task, late) for task, late in zip(TASKS, (0, 3, 30), strict=True)]
        followers = [asyncio.create_task(follow(cut)) for cut in (0, 0.1, 0.5, 1)]
        await asyncio.gather(*writers)
        logs.append(db, PROJECT, "j", [line(count + 1, message="the end")], now=time.time())
        return await asyncio.gather(*followers)

    first, *others = asyncio.run(all_of_them())
    assert all(seen == first for seen in others)
    for task in TASKS:
        own = [each for each in first if each.startswith(task)]
        assert own == [f"{task} {seq}" for seq in range(1, count + 1)]
    assert len(first) == 3 * count + 1


def test_followers_who_stand_at_one_place_share_one_reading(db):
    logs.append(db, PROJECT, "j", [line(1)], now=time.time())
    over, shown = threading.Event(), []

    def show(lines, place):
        shown.append(place)
        return wire.lines_event(lines, place)

    async def follow(streams, ready):
        place = ""
        with streams.following(PROJECT, "j") as woken:
            for _ in range(2):
                woken.clear()
                page = await streams.page(PROJECT, "j", place, task="", show=show, ended=over.is_set)
                place = page.place
                if page.ended:
                    return
                ready.release()
                await woken.wait()

    async def many():
        streams, ready = Streams(db), asyncio.Semaphore(0)
        followers = [asyncio.create_task(follow(streams, ready)) for _ in range(50)]
        for _ in followers:
            await ready.acquire()
        assert len(shown) == 1
        over.set()
        await asyncio.to_thread(logs.append, db, PROJECT, "j", [line(2)], now=time.time())
        await asyncio.gather(*followers)
        assert len(shown) == 2
        assert streams._logs == {}

    asyncio.run(many())


def test_one_task_alone_can_be_followed_and_long_lines_come_in_small_pages(db):
    said = [line(seq, TASKS[seq % 2], message=f"{seq} " + "x" * 60_000) for seq in range(1, 101)]
    logs.append(db, PROJECT, "j", said, now=time.time())
    over, streams, sizes = threading.Event(), Streams(db), []
    over.set()

    def show(lines, place):
        sizes.append(sum(len(each.message) for each in lines))
        return wire.lines_event(lines, place)

    async def read(task):
        seen, place, ended = [], "", False
        with streams.following(PROJECT, "j"):
            while not ended:
                page = await streams.page(PROJECT, "j", place, task=task, show=show, ended=over.is_set)
                place, ended = page.place, page.ended
                seen += [int(each.split()[0]) for each in messages(page.shown)]
        return seen

    assert asyncio.run(read("")) == list(range(1, 101))
    assert asyncio.run(read(TASKS[0])) == list(range(2, 101, 2))
    assert asyncio.run(read("nobody")) == []
    assert max(sizes) < 1.2 * 2**20


def test_a_silent_stream_shows_that_it_lives_and_ends_when_its_reader_may_no_longer_read(db, monkeypatch):
    monkeypatch.setattr(wire, "BEAT_S", 0.1)
    monkeypatch.setattr(wire, "ASKED_S", 0.3)
    me, secret = "user:o@x.org", Keys(b"s" * 32)
    db.write(lambda tx: projects.create(tx, PROJECT, owners=[me], now=0))
    queue.create(db, PROJECT, "j", TrainingInput(python_module="trainer.task"), {}, creator=me, now=time.time())
    bearer = secret.access_token(me, now=time.time(), seconds=3)

    async def read():
        call = Call(
            house=SimpleNamespace(db=db, streams=Streams(db), access=Access(db, secret)),
            who=Caller(me),
            path={"project": PROJECT, "job": "j"},
            query={},
            request=Request({"type": "http", "headers": [(b"authorization", f"Bearer {bearer}".encode())]}),
            body=None,
            now=time.time(),
            base="",
        )
        return [chunk async for chunk in wire._events(call, "", "")]

    began = time.monotonic()
    retry, lines, *beats = asyncio.run(read())
    assert retry == wire.RETRY
    assert messages(lines)[-1] == "Job j is queued."
    assert set(beats) == {b":\n\n"}
    assert len(beats) >= 10
    assert 1 < time.monotonic() - began < 8


# --- on a running server ---

PRINTS = """
    import time
    for number in range(30):
        time.sleep(0.05 + 0.2 * (number % 5 == 0))
        print(number, time.time(), flush=True)
"""


@pytest.fixture(scope="module")
def lab(server):
    return Lab(server.call, server.project, server.address.service_agent).open()


def path(server, job):
    return f"/v1/projects/{server.project}/jobs/{job}:streamLogs"


def stream(server, job, place="", **query):
    headers = {"Authorization": f"Bearer {server.token}", **({"Last-Event-ID": place} if place else {})}
    return server.http.stream("GET", path(server, job), headers=headers, params=query)


def whole(server, job, place="", **query):
    with stream(server, job, place, **query) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *found, end = tail.events(answer.iter_bytes())
    assert end.kind == "end"
    return found, end.data


def told(found):
    return [(each["taskName"], each["message"]) for event in found for each in event.data["lines"]]


def test_a_line_is_there_within_a_moment_of_its_print(lab, server, runtime_python):
    job = lab.submit(PRINTS)
    delays, seen = [], []
    with stream(server, job, taskName="master-replica-0") as answer:
        for event in tail.events(answer.iter_bytes()):
            if event.kind == "end":
                assert event.data == lab.get(job)
                assert event.data["state"] == "SUCCEEDED"
                break
            for each in event.data["lines"]:
                words = each["message"].split()
                if words[0].isdigit():
                    seen.append(int(words[0]))
                    delays.append(time.time() - float(words[1]))
    assert seen == list(range(30))
    assert sorted(delays)[len(delays) // 2] < 0.2, delays  # the median: the machine may be busy for a moment


def test_the_stream_holds_what_entries_list_does_and_goes_on_from_any_of_its_ids(lab, server, runtime_python):
    job = lab.submit("print('one')\nraise SystemExit(3)")
    lab.ended(job)
    found, end = whole(server, job)
    entries = [(each["resource"]["labels"]["task_name"], each["jsonPayload"]["message"]) for each in lab.entries(job)]
    assert told(found) == entries
    assert (end["state"], end["jobId"]) == ("FAILED", job)
    stamps = [each["timestamp"] for event in found for each in event.data["lines"]]
    for count, stamp in enumerate(stamps, 1):
        rest, _ = whole(server, job, stamp)
        assert told(rest) == entries[count:]
    rest, _ = whole(server, job, lastEventId=stamps[3])
    assert told(rest) == entries[4:]


def test_who_may_read_the_job_and_not_the_projects_logs_is_refused(lab, server, runtime_python):
    job = lab.submit("print('one')")
    neighbour, _ = people.second_project(server, "other-rides")
    policy = {"bindings": [{"role": "roles/ml.jobOwner", "members": [neighbour]}]}
    granted = server.call("POST", f"/v1/projects/{server.project}/jobs/{job}:setIamPolicy", json={"policy": policy})
    assert granted.status_code == 200
    headers = people.bearer(server, neighbour)
    assert server.http.get(f"/v1/projects/{server.project}/jobs/{job}", headers=headers).status_code == 200
    refused = server.http.get(path(server, job), headers=headers)
    assert refused.status_code == 403
    assert "logging.logEntries.list" in refused.json()["error"]["message"]


def test_nobody_and_what_is_not_there_are_refused_before_a_stream_begins(lab, server):
    for headers, code in (({}, 401), ({"Authorization": f"Bearer {server.token}"}, 404)):
        assert server.http.get(path(server, "nope"), headers=headers).status_code == code
    bad = server.call("GET", path(server, "nope") + "?lastEventId=yesterday")
    assert bad.json()["error"]["message"].startswith("Field: lastEventId Error: 'yesterday' is no id of an event")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_stream_ends_with_its_server_and_the_command_line_goes_on_with_the_next(
    start_server, tmp_path, end, runtime_python
):
    running = start_server()
    lab = Lab(running.call, running.project, running.address.service_agent).open()
    job = lab.submit("""
        import pathlib, time
        for number in range(100):
            print("number", number)
            time.sleep(0.02)
        while not pathlib.Path("go-on").exists():
            time.sleep(0.01)
        for number in range(100, 200):
            print("number", number)
    """)
    following = subprocess_of(running, tmp_path, "jobs", "stream-logs", job)
    out = tmp_path / "out"
    until(lambda: "number 50" in out.read_text(), lambda: out.read_text())
    go_on = work_of(running.home, job) / "go-on"
    began = time.monotonic()
    with stream(running, job) as answer:
        events = tail.events(answer.iter_bytes())
        next(events)
        if end == "stop":
            assert running.stop() == 0
            assert all(event.kind == "message" for event in events)  # it was ended, and says no untrue end
            assert time.monotonic() - began < 8  # well before the grace is over
        else:
            running.kill()
    until(lambda: "Waiting for it; the job goes on." in (tmp_path / "err").read_text())
    go_on.touch()
    again = start_server(running.home)
    following.wait(60)
    numbers = [each.split("\t")[4] for each in out.read_text().splitlines() if "\tnumber " in each]
    assert numbers == [f"number {number}" for number in range(200)]
    assert following.returncode == 0, (tmp_path / "err").read_text()
    assert out.read_text().splitlines()[-1].endswith("Job completed successfully.")
    assert "Traceback" not in again.log


def test_two_hundred_who_wait_cost_the_server_nothing_to_speak_of(lab, server, runtime_python):
    job = lab.submit("""
        import pathlib, time
        print("here")
        while not pathlib.Path("go-on").exists():
            time.sleep(0.01)
        time.sleep(3)
        print("later")
        time.sleep(300)
    """)
    lab.until_said(job, "here")
    go_on = work_of(server.home, job) / "go-on"
    process = psutil.Process(server.process.pid)
    address = server.url.removeprefix("http://").split(":")
    asked = f"GET {path(server, job)} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    try:
        with contextlib.ExitStack() as held:
            waiting = [held.enter_context(socket.create_connection(address, 20)) for _ in range(200)]
            for each in waiting:
                each.sendall(asked.encode())
            for each in waiting:
                read_until(each, b"here")
            before = sum(process.cpu_times()[:2])
            go_on.touch()
            for each in waiting:
                read_until(each, b"later")
            assert sum(process.cpu_times()[:2]) - before < 0.6  # seconds, of three and more; others use the server too
    finally:
        lab.cancel(job)


def read_until(waiting, words):
    held = b""
    while words not in held:
        held += waiting.recv(65536)


def subprocess_of(server, folder, *words):
    """The command line on its own, with its output in files."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        environ = {**kept, "TAXIWAY_HOME": str(server.home)}
        return subprocess.Popen([sys.executable, "-m", "taxiway", *words], stdout=out, stderr=err, env=environ)
