"""A disk that fills up in the middle of a write: 507, nothing is left, nothing is lost, and once freed it goes on."""

from __future__ import annotations

import json
import os

import conftest
import disks
import pytest

MIB = 1024 * 1024
DATA = os.urandom(4 * MIB)
NAMES = ["left", "right"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A server on a small disk with two objects of 3 MiB."""
    with disks.small_disk(tmp_path_factory.mktemp("full") / "disk", "40m") as folder:
        running = conftest.start(folder / "home")
        running.call("POST", f"/storage/v1/b?project={running.project}", json={"name": "small-disk"})
        for name in NAMES:
            made = running.call("POST", f"{UPLOAD}?uploadType=media&name={name}", content=DATA[: 3 * MIB])
            assert made.status_code == 200, made.text
        yield running
        running.http.close()
        assert running.stop() == 0
        assert "Traceback" not in running.log, running.log


UPLOAD = "/upload/storage/v1/b/small-disk/o"
OBJECTS = "/storage/v1/b/small-disk/o"


def files(server):
    return {entry.name: entry.stat().st_size for entry in os.scandir(server.home / "blobs")}


def names(server):
    return [each["name"] for each in server.call("GET", OBJECTS).json()["items"]]


def in_pieces():
    """A body whose size nobody was told."""
    for start in range(0, len(DATA), 65536):
        yield DATA[start : start + 65536]


def multipart(server):
    body = b'--b\r\n\r\n{"name": "new"}\r\n--b\r\n\r\n' + DATA + b"\r\n--b--"
    head = {"Authorization": f"Bearer {server.token}", "Content-Type": "multipart/related; boundary=b"}
    return server.http.post(f"{UPLOAD}?uploadType=multipart", content=body, headers=head)


def resumable(server):
    begun = server.call("POST", f"{UPLOAD}?uploadType=resumable&name=new")
    return server.http.put(begun.headers["location"], content=DATA) if begun.status_code == 200 else begun


WRITES = {
    "media": lambda server: server.call("POST", f"{UPLOAD}?uploadType=media&name=new", content=DATA),
    "media in pieces": lambda server: server.call("POST", f"{UPLOAD}?uploadType=media&name=new", content=in_pieces()),
    "multipart": multipart,
    "resumable": resumable,
    "compose": lambda server: server.call(
        "POST", f"{OBJECTS}/new/compose", json={"sourceObjects": [{"name": name} for name in NAMES]}
    ),
}


@pytest.mark.parametrize("room", [0, MIB])
@pytest.mark.parametrize("kind", WRITES)
def test_a_disk_that_fills_up_is_told_and_once_freed_the_same_write_goes(full, kind, room):
    before = files(full)
    filled = disks.fill(full.home.parent)
    os.truncate(filled, os.stat(filled).st_size - room)
    refused = WRITES[kind](full)
    assert refused.status_code == 507, refused.text
    error = json.loads(refused.text)["error"]
    assert error["errors"][0]["reason"] == "backendError"
    assert "ree some space" in error["message"]
    assert files(full) == before
    assert names(full) == NAMES
    assert full.call("GET", f"{OBJECTS}/left?alt=media").content == DATA[: 3 * MIB]
    filled.unlink()
    made = WRITES[kind](full)
    assert made.status_code == 200, made.text
    expected = (DATA[: 3 * MIB] * 2) if kind == "compose" else DATA
    assert full.call("GET", f"{OBJECTS}/new?alt=media").content == expected
    assert full.call("DELETE", f"{OBJECTS}/new").status_code == 204
    assert files(full) == before


def test_a_resumable_upload_goes_on_with_what_was_durable(full):
    location = full.call("POST", f"{UPLOAD}?uploadType=resumable&name=new").headers["location"]
    first = full.http.put(location, headers={"Content-Range": f"bytes 0-{MIB - 1}/*"}, content=DATA[:MIB])
    assert first.status_code == 308
    filled = disks.fill(full.home.parent)
    rest = {"Content-Range": f"bytes {MIB}-{len(DATA) - 1}/{len(DATA)}"}
    assert full.http.put(location, headers=rest, content=DATA[MIB:]).status_code == 507
    assert MIB in files(full).values(), "what was durable stays, and nothing more"
    filled.unlink()
    asked = full.http.put(location, headers={"Content-Range": f"bytes */{len(DATA)}"})
    assert asked.status_code == 308, asked.text
    assert asked.headers["range"] == f"bytes=0-{MIB - 1}"
    assert full.http.put(location, headers=rest, content=DATA[MIB:]).status_code == 200
    assert full.call("GET", f"{OBJECTS}/new?alt=media").content == DATA
    full.call("DELETE", f"{OBJECTS}/new")
