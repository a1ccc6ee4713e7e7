"""kill -9 under concurrent writers: what was acknowledged is whole, nothing is half there, nothing is left behind."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import threading
from contextlib import suppress
from urllib.parse import quote

import httpx
import pytest
from conftest import start

BUCKET = "written-under-fire"
WRITERS = 6
NAMES = 4  # of each writer: most writes replace an object
SIZES = (0, 100, 4096, 70_000, 300_000, 2_000_000)  # in a row, in a file, several batches
CHUNK = 256 * 1024


def content(number, size, rng):
    """Bytes that say which write they are of, and prove that they are whole."""
    body = number.to_bytes(8, "big") + rng.randbytes(size)
    return hashlib.sha256(body).digest() + body


def write_of(data):
    """The number of the write that an object's bytes are of."""
    assert hashlib.sha256(data[32:]).digest() == data[:32], f"half an object: {len(data)} bytes"
    return int.from_bytes(data[32:40], "big")


class Writer(threading.Thread):
    """Writes, copies, composes and deletes objects of its own until the server is gone."""

    def __init__(self, server, number, rng, held):
        super().__init__()
        self.server, self.number, self.rng = server, number, rng
        self.held = held  # name -> the numbers of the writes that may be there; None: no object
        self.session = None  # (URL, name, data) of a resumable upload that was under way
        self.failure = None
        self.acknowledged = 0

    def run(self):
        headers = {"Authorization": f"Bearer {self.server.token}"}
        try:
            with httpx.Client(base_url=self.server.url, headers=headers, timeout=60, trust_env=False) as self.http:
                while True:
                    self.write()
        except httpx.TransportError:
            pass  # killed in the middle of it
        except BaseException as failure:  # noqa: BLE001 - raised again by whoever waits for this thread
            self.failure = failure

    def write(self):
        name = f"{self.number}/{self.rng.randrange(NAMES)}"
        way = self.rng.choice((self.media, self.media, self.multipart, self.resumable, self.copied, self.deleted))
        if way == self.deleted:
            return self.attempt(name, None, lambda: way(name))
        number = self.rng.getrandbits(63)
        data = content(number, self.rng.choice(SIZES), self.rng)
        return self.attempt(name, number, lambda: way(name, data))

    def attempt(self, name, number, send):
        before = self.held.setdefault(name, {None})
        self.held[name] = before | {number}
        answer = send()
        assert answer.status_code in (200, 204) or (number is None and answer.status_code == 404), answer.text
        self.held[name] = {number}
        self.acknowledged += 1

    def media(self, name, data):
        return self.http.post(upload("media", name), content=data)

    def multipart(self, name, data):
        first = b'--cut\r\ncontent-type: application/json\r\n\r\n{"metadata":{"a":"b"}}'
        parts = (first, b"--cut\r\n\r\n" + data, b"--cut--")
        told = {"Content-Type": "multipart/related; boundary=cut"}
        return self.http.post(upload("multipart", name), content=b"\r\n".join(parts), headers=told)

    def resumable(self, name, data):
        url = self.http.post(upload("resumable", name)).headers["location"]
        self.session = url, name, data
        for first in range(0, max(len(data), 1), CHUNK):
            answer = self.http.put(url, content=data[first : first + CHUNK], headers=span(data, first))
        self.session = None
        return answer

    def copied(self, name, data):
        """Through another object, which is then composed with an empty one: three writes, of which the last counts."""
        self.http.post(upload("media", f"{name}.part"), content=data).raise_for_status()
        self.http.post(upload("media", f"{name}.empty"), content=b"").raise_for_status()
        sources = [{"name": f"{name}.part"}, {"name": f"{name}.empty"}]
        path = f"/storage/v1/b/{BUCKET}/o"
        whole = f"{path}/{quote(name + '.whole', safe='')}"
        self.http.post(f"{whole}/compose", json={"sourceObjects": sources}).raise_for_status()
        return self.http.post(f"{whole}/copyTo/b/{BUCKET}/o/{quote(name, safe='')}")

    def deleted(self, name):
        return self.http.delete(f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}")


def upload(kind, name):
    return f"/upload/storage/v1/b/{BUCKET}/o?uploadType={kind}&name={quote(name, safe='')}"


def span(data, first):
    if not data:
        return {"Content-Range": "bytes */0"}
    return {"Content-Range": f"bytes {first}-{min(first + CHUNK, len(data)) - 1}/{len(data)}"}


def go_on(server, session):
    """Ask for the state of an upload that was cut off, and send the rest."""
    url, name, data = session
    url = f"{server.url}{url[url.index('/upload/') :]}"  # the server may have another port now
    state = server.http.put(url, headers={"Content-Range": "bytes */*"})
    if state.status_code == 308:
        first = int(state.headers.get("range", "bytes=0--1").rpartition("-")[2]) + 1 if "range" in state.headers else 0
        assert first <= len(data)
        rest = f"bytes {first}-{len(data) - 1}/{len(data)}" if first < len(data) else f"bytes */{len(data)}"
        state = server.http.put(url, content=data[first:], headers={"Content-Range": rest})
    assert state.status_code == 200, state.text
    return name, write_of(data)


def check(server, held):
    """Every object is whole, and is the last that was acknowledged, or the one that was on its way."""
    listed = {}
    token = ""
    while True:
        page = server.call("GET", f"/storage/v1/b/{BUCKET}/o?maxResults=50&pageToken={token}").json()
        listed |= {item["name"]: item for item in page.get("items", [])}
        if not (token := page.get("nextPageToken", "")):
            break
    for name, item in listed.items():
        data = server.call("GET", f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}?alt=media").content
        assert len(data) == int(item["size"])
        if name.endswith(".empty"):
            continue
        number = write_of(data)
        if name in held:  # and not the part of a copy
            assert number in held[name], f"{name} went back to an older write"
            held[name] = {number}
    for name, numbers in held.items():
        assert name in listed or None in numbers, f"{name} was acknowledged, and is not there"
        if name not in listed:
            held[name] = {None}


def check_nothing_is_left(home):
    """As many files as rows that need one."""
    rows = sqlite3.connect(f"file:{home}/taxiway.db?mode=ro", uri=True)
    try:
        needed = {blob for (blob,) in rows.execute("select id from blobs where data is null")}
        pointed = {blob for (blob,) in rows.execute("select blob from objects union select blob from noncurrent")}
        every = {blob for (blob,) in rows.execute("select id from blobs")}
        open_uploads = {upload for (upload,) in rows.execute("select id from uploads where result is null")}
    finally:
        rows.close()
    assert pointed == every
    files = {path.name for path in (home / "blobs").iterdir()}
    assert needed <= files
    assert files <= needed | open_uploads


def rounds(tmp_path, count, seed):
    rng = random.Random(seed)
    held = {}  # each name is one writer's
    acknowledged = 0
    server = start(tmp_path / "home")
    try:
        server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": BUCKET}).raise_for_status()
        for _ in range(count):
            writers = [Writer(server, n, random.Random(rng.random()), held) for n in range(WRITERS)]
            for writer in writers:
                writer.start()
            killing = threading.Timer(rng.uniform(0.02, 0.6), server.kill)
            killing.start()
            for writer in writers:
                writer.join(60)
                assert writer.failure is None, repr(writer.failure)
            killing.join()
            server.http.close()
            server = start(tmp_path / "home")
            check(server, held)
            check_nothing_is_left(server.home)
            for session in [writer.session for writer in writers if writer.session]:
                name, number = go_on(server, session)
                held[name] = {number}
            check(server, held)
            acknowledged += sum(writer.acknowledged for writer in writers)
        assert acknowledged > 10 * count, "the server was killed before anything was written"
        assert "Traceback" not in server.log
    finally:
        server.http.close()
        with suppress(ProcessLookupError):
            server.stop()


def test_what_was_acknowledged_is_whole_after_a_kill_and_nothing_is_left(tmp_path):
    rounds(tmp_path, 10, seed=2018)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(10))
def test_what_was_acknowledged_is_whole_after_a_kill_twenty_times_over(tmp_path, seed):
    rounds(tmp_path, 20, seed=seed)
