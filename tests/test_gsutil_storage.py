"""Google's own gsutil: files, trees, metadata and checksums, one command at a time and many at once."""

from __future__ import annotations

import base64
import hashlib
import os
import uuid

import google_crc32c
import pytest

DATA = os.urandom(9_000_000)  # above 8 MiB gsutil uploads resumably


@pytest.fixture
def bucket(server):
    name = f"gsutil-{uuid.uuid4().hex[:10]}"
    made = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name})
    assert made.status_code == 200, made.text
    return name


@pytest.fixture
def did(gsutil, tmp_path):
    """Runs a command that is to go well; its output."""

    def run(*words, **rest):
        ended = gsutil(*words, cwd=tmp_path, **rest)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "a.csv").write_text("one\ntwo\n")
    (tmp_path / "data" / "below" / "b c+%2F.txt").write_text("b")
    (tmp_path / "data" / "large.bin").write_bytes(DATA)
    return tmp_path / "data"


def names(server, bucket):
    listed = server.call("GET", f"/storage/v1/b/{bucket}/o?fields=items/name").json()
    return [each["name"] for each in listed.get("items", [])]


def test_a_tree_goes_up_and_comes_down_and_is_synchronised(server, did, bucket, tree, tmp_path):
    did("-m", "cp", "-r", "data", f"gs://{bucket}")
    every = ["data/a.csv", "data/below/b c+%2F.txt", "data/large.bin"]
    assert names(server, bucket) == every
    (tmp_path / "back").mkdir()
    did("cp", "-r", f"gs://{bucket}/data", "back")
    for name in every:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()

    (tree / "a.csv").write_text("changed, and longer\n")
    (tree / "large.bin").unlink()
    did("rsync", "-r", "-d", "data", f"gs://{bucket}/data")
    assert names(server, bucket) == every[:2]
    did("-m", "rsync", "-r", "-d", f"gs://{bucket}/data", "back/data")
    assert (tmp_path / "back" / "data" / "a.csv").read_text() == "changed, and longer\n"
    assert not (tmp_path / "back" / "data" / "large.bin").exists()

    did("-m", "mv", f"gs://{bucket}/data", f"gs://{bucket}/moved")
    assert names(server, bucket) == ["moved/a.csv", "moved/below/b c+%2F.txt"]
    did("-m", "rm", "-r", f"gs://{bucket}/moved/**")
    assert names(server, bucket) == []
    did("rm", "-r", f"gs://{bucket}")
    assert server.call("GET", f"/storage/v1/b/{bucket}").status_code == 404


def test_objects_are_listed_measured_read_and_composed(server, did, bucket, tree):
    did("-h", "Content-Type:text/csv", "cp", "data/a.csv", f"gs://{bucket}/a.csv")
    did("cp", "data/large.bin", f"gs://{bucket}/large.bin")
    did("cp", "-", f"gs://{bucket}/piped", input="from a pipe")
    listed = did("ls", "-l", "-a", f"gs://{bucket}").splitlines()
    assert [line.split()[0] for line in listed] == ["8", "9000000", "11", "TOTAL:"]
    assert "#" in listed[0]
    assert did("du", "-s", f"gs://{bucket}").split()[0] == "9000019"
    assert did("cat", "-r", "4-6", f"gs://{bucket}/a.csv") == "two"
    stat = did("stat", f"gs://{bucket}/a.csv")
    assert [word in stat for word in ("text/csv", "Content-Length:         8", "Hash (md5)")] == [True] * 3
    told = did("hash", "-m", "-c", f"gs://{bucket}/large.bin")
    assert base64.b64encode(hashlib.md5(DATA).digest()).decode() in told
    assert base64.b64encode(google_crc32c.value(DATA).to_bytes(4, "big")).decode() in told
    did("compose", f"gs://{bucket}/a.csv", f"gs://{bucket}/piped", f"gs://{bucket}/joined")
    assert did("cat", f"gs://{bucket}/joined") == "one\ntwo\nfrom a pipe"


def test_metadata_is_set_and_zipped_files_come_down_unzipped(server, did, bucket, tree, tmp_path):
    did("cp", "-Z", "data/a.csv", f"gs://{bucket}/a.csv")
    did("setmeta", "-h", "x-goog-meta-k:v", "-h", "Cache-Control:no-store", f"gs://{bucket}/a.csv")
    told = server.call("GET", f"/storage/v1/b/{bucket}/o/a.csv").json()
    assert (told["metadata"], told["contentEncoding"]) == ({"k": "v"}, "gzip")
    assert "no-store" in told["cacheControl"]
    did("cp", f"gs://{bucket}/a.csv", "back.csv")
    assert (tmp_path / "back.csv").read_text() == "one\ntwo\n"


def test_what_is_not_there_is_told(gsutil, bucket):
    ended = gsutil("cp", f"gs://{bucket}/none", "-")
    assert ended.returncode == 1
    assert "No URLs matched" in ended.stderr
