"""gcloud's storage commands as they are, with the settings that `taxiway env` prints."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")


@pytest.fixture(scope="module")
def environ(server, tmp_path_factory):
    told = subprocess.run(
        [sys.executable, "-m", "taxiway", "env", "--home", str(server.home)], capture_output=True, text=True, check=True
    ).stdout
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines()),
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }


@pytest.fixture
def gcloud(environ, tmp_path):
    def run(*words, ok=True, **rest):
        command = ["gcloud", "storage", *words]
        ended = subprocess.run(command, capture_output=True, env=environ, timeout=200, cwd=tmp_path, **rest)
        told = ended.stdout if ok else ended.stderr
        assert (ended.returncode == 0) == ok, ended.stderr.decode()
        assert b"Traceback" not in ended.stderr, ended.stderr.decode()
        return told.decode()

    return run


@pytest.fixture
def bucket(gcloud):
    name = f"gs://gcloud-{uuid.uuid4().hex[:10]}"
    gcloud("buckets", "create", name, "--location=us-central1")
    return name


def test_a_tree_goes_up_is_shown_synchronised_moved_and_removed(gcloud, bucket, tmp_path):
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text("hello")
    (folder / "below" / "b c.txt").write_text("b")
    large = os.urandom(9_000_000)  # above 8 MiB gcloud uploads resumably
    (folder / "large.bin").write_bytes(large)
    gcloud("cp", "-r", "data", bucket)
    gcloud("cp", "-", f"{bucket}/data/piped.txt", input=b"from a pipe")
    assert gcloud("cat", f"{bucket}/data/a.txt", f"{bucket}/data/piped.txt") == "hellofrom a pipe"
    assert gcloud("cat", "--range=1-3", f"{bucket}/data/a.txt") == "ell"
    every = [f"{bucket}/data/{name}" for name in ("a.txt", "below/b c.txt", "large.bin", "piped.txt")]
    assert gcloud("ls", "-r", f"{bucket}/**").splitlines() == every
    listed = gcloud("ls", "-l", f"{bucket}/data/").splitlines()
    assert [line.split()[0] for line in listed if line.endswith(("a.txt", "large.bin"))] == ["5", "9000000"]
    assert listed[-1].startswith("TOTAL: 3 objects, 9000016 bytes")
    assert gcloud("du", "-s", bucket).split()[0] == "9000017"

    (folder / "a.txt").write_text("changed")
    (folder / "large.bin").unlink()
    gcloud("rsync", "-r", "--delete-unmatched-destination-objects", "data", f"{bucket}/data")
    assert gcloud("ls", "-r", f"{bucket}/**").splitlines() == every[:2]
    gcloud("mv", f"{bucket}/data/below", f"{bucket}/moved")
    (tmp_path / "back").mkdir()
    gcloud("cp", "-r", f"{bucket}/*", "back")
    back = {str(path.relative_to(tmp_path / "back")): path.read_text() for path in (tmp_path / "back").rglob("*.txt")}
    assert back == {"data/a.txt": "changed", "moved/b c.txt": "b"}
    gcloud("rm", "-r", bucket)
    assert "not found: 404" in gcloud("ls", bucket, ok=False)


def test_what_is_known_of_objects_and_buckets_is_told_and_changed(gcloud, bucket, server):
    gcloud("cp", "-", f"{bucket}/o.csv", "--content-type=text/csv", input=b"a,b")
    gcloud("objects", "update", f"{bucket}/o.csv", "--custom-metadata=k=v", "--cache-control=no-store")
    told = json.loads(gcloud("objects", "describe", f"{bucket}/o.csv", "--format=json"))
    assert (told["content_type"], told["cache_control"], told["custom_fields"]) == ("text/csv", "no-store", {"k": "v"})
    assert (told["size"], told["metageneration"]) == (3, 2)
    assert told["md5_hash"] == base64.b64encode(hashlib.md5(b"a,b").digest()).decode()
    gcloud("buckets", "update", bucket, "--update-labels=team=rides")
    told = json.loads(gcloud("buckets", "describe", bucket, "--format=json"))
    assert (told["labels"], told["location"]) == ({"team": "rides"}, "US-CENTRAL1")
    agent = f"serviceAccount:{server.address.service_agent}"
    role = "--role=roles/storage.objectViewer"
    policy = json.loads(gcloud("buckets", "add-iam-policy-binding", bucket, f"--member={agent}", role, "--format=json"))
    assert {"members": [agent], "role": "roles/storage.objectViewer"} in policy["bindings"]
    told = json.loads(gcloud("buckets", "get-iam-policy", bucket, "--format=json"))
    assert {"members": [agent], "role": "roles/storage.objectViewer"} in told["bindings"]
    assert bucket in gcloud("ls").split("/\n")
    assert "matched no objects" in gcloud("cp", f"{bucket}/none*", ".", ok=False)
