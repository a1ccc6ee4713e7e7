"""Google's own clients, unmodified and with credentials, against a live server."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import uuid

import pytest
from google.api_core import exceptions
from google.cloud import storage


@pytest.fixture
def name():
    return f"clients-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.key))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", server.url)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    made = storage.Client(project=server.project)
    yield made
    made.close()


@pytest.fixture
def bucket(client, name):
    made = client.create_bucket(name, location="us-central1")
    yield made
    made.delete(force=True)


def test_a_bucket_is_made_labelled_and_listed(client, bucket):
    assert (bucket.location, bucket.location_type, bucket.storage_class) == ("US-CENTRAL1", "region", "STANDARD")
    bucket.labels = {"team": "rides"}
    bucket.patch()
    assert client.get_bucket(bucket.name).labels == {"team": "rides"}
    assert bucket.name in [each.name for each in client.list_buckets()]
    assert not client.bucket(bucket.name + "-not").exists()
    with pytest.raises(exceptions.Conflict, match="already own it"):
        client.create_bucket(bucket.name)


@pytest.mark.parametrize("chunk", [None, 256 * 1024])
@pytest.mark.parametrize("size", [0, 10, 256 * 1024, 9_000_000])
@pytest.mark.parametrize("told", [True, False])
def test_a_file_goes_up_and_comes_down(bucket, chunk, size, told):
    data = os.urandom(size)
    blob = bucket.blob("folder/a file.bin", chunk_size=chunk)
    blob.upload_from_file(io.BytesIO(data), size=size if told else None, checksum="md5")
    assert blob.size == size
    assert bucket.blob("folder/a file.bin").download_as_bytes(checksum="crc32c") == data
    if size > 20:
        assert blob.download_as_bytes(start=5, end=19) == data[5:20]


def test_a_file_object_is_written_and_read(bucket):
    data = os.urandom(2_000_000)
    with bucket.blob("f").open("wb", chunk_size=256 * 1024) as file:
        for start in range(0, len(data), 300_000):
            file.write(data[start : start + 300_000])
    with bucket.blob("f").open("rb") as file:
        file.seek(1_000_000)
        assert file.read() == data[1_000_000:]


def test_listing_copying_renaming_composing(client, bucket):
    for each in ("a/1", "a/2", "b"):
        bucket.blob(each).upload_from_string(each)
    found = client.list_blobs(bucket, delimiter="/")
    assert [each.name for each in found] == ["b"]
    assert found.prefixes == {"a/"}
    assert [each.name for each in client.list_blobs(bucket, page_size=1)] == ["a/1", "a/2", "b"]
    assert bucket.copy_blob(bucket.blob("b"), bucket, "c").download_as_bytes() == b"b"
    assert bucket.rename_blob(bucket.blob("c"), "d").name == "d"
    assert bucket.blob("c").exists() is False
    joined = bucket.blob("joined")
    joined.content_type = "text/plain"
    joined.compose([bucket.blob("a/1"), bucket.blob("a/2")])
    assert joined.download_as_bytes() == b"a/1a/2"
    joined.reload()
    assert (joined.component_count, joined.md5_hash, joined.content_type) == (2, None, "text/plain")
    assert bucket.blob("rewritten").rewrite(bucket.blob("b")) == (None, 1, 1)


def test_a_batch_is_answered_part_by_part(client, bucket):
    for each in ("a", "b"):
        bucket.blob(each).upload_from_string(each)
    with client.batch():
        bucket.delete_blob("a")
        kept = bucket.blob("b")
        kept.metadata = {"k": "v"}
        kept.patch()
    assert [each.name for each in client.list_blobs(bucket)] == ["b"]
    assert bucket.get_blob("b").metadata == {"k": "v"}
    with pytest.raises(exceptions.NotFound), client.batch():
        bucket.delete_blob("a")


def test_preconditions_metadata_and_policy(bucket):
    blob = bucket.blob("o")
    blob.upload_from_string("1", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("o").upload_from_string("2", if_generation_match=0)
    blob.metadata = {"a": "1"}
    blob.patch(if_metageneration_match=1)
    blob.reload()
    assert (blob.metadata, blob.metageneration) == ({"a": "1"}, 2)
    policy = bucket.get_iam_policy(requested_policy_version=3)
    policy.bindings.append({"role": "roles/storage.objectViewer", "members": {"user:ann@example.com"}})
    bucket.set_iam_policy(policy)
    assert {"role": "roles/storage.objectViewer", "members": {"user:ann@example.com"}} in (
        bucket.get_iam_policy(requested_policy_version=3).bindings
    )
    assert "storage.objects.get" in bucket.test_iam_permissions(["storage.objects.get", "storage.objects.list"])


GCSFS = """
import os, sys, gcsfs
bucket, project, key = sys.argv[1:]
fs = gcsfs.GCSFileSystem(project=project, token=key)
fs.mkdir(bucket)
fs.pipe(f"{bucket}/a/b.txt", b"hi")
assert fs.cat(f"{bucket}/a/b.txt") == b"hi"
data = os.urandom(11_000_000)
with fs.open(f"{bucket}/big", "wb") as file:
    file.write(data)
with fs.open(f"{bucket}/empty", "wb"):
    pass
assert fs.cat(f"{bucket}/big") == data and fs.cat(f"{bucket}/empty") == b""
with fs.open(f"{bucket}/big") as file:
    file.seek(100)
    assert file.read(10) == data[100:110]
fs.mv(f"{bucket}/a/b.txt", f"{bucket}/c d/e%2F.txt")
fs.cp(f"{bucket}/big", f"{bucket}/z/big2")
assert fs.find(bucket) == [f"{bucket}/{name}" for name in ("big", "c d/e%2F.txt", "empty", "z/big2")]
assert fs.glob(f"{bucket}/*") == [f"{bucket}/{name}" for name in ("big", "c d", "empty", "z")]
fs.merge(f"{bucket}/joined", [f"{bucket}/big", f"{bucket}/z/big2"])
assert fs.cat(f"{bucket}/joined") == data + data
fs.rm(bucket, recursive=True)
assert not fs.exists(bucket)
"""


def test_gcsfs_with_a_key_file(server, name):
    environ = {**os.environ, "FSSPEC_GCS_ENDPOINT_URL": server.url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    environ.pop("STORAGE_EMULATOR_HOST", None)
    ran = subprocess.run(
        [sys.executable, "-c", GCSFS, name, server.project, str(server.key)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_gcloud_storage(server, name, tmp_path):
    environ = {
        **os.environ,
        "CLOUDSDK_CONFIG": str(tmp_path / "config"),
        "CLOUDSDK_CORE_PROJECT": server.project,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{server.url}/storage/v1/",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(server.address.access_token),
    }

    def gcloud(*words: str) -> str:
        ran = subprocess.run(
            ["gcloud", "storage", *words], env=environ, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "small.txt").write_text("hello")
    (folder / "large.bin").write_bytes(os.urandom(9_000_000))
    gcloud("buckets", "create", f"gs://{name}", "--location=us-central1")
    gcloud("cp", "-r", str(folder), f"gs://{name}/")
    assert gcloud("cat", f"gs://{name}/data/small.txt") == "hello"
    assert gcloud("ls", f"gs://{name}/data/").split() == [
        f"gs://{name}/data/{each}" for each in sorted(os.listdir(folder))
    ]
    (folder / "more.txt").write_text("more")
    gcloud("rsync", "-r", str(folder), f"gs://{name}/data")
    gcloud("cp", f"gs://{name}/data/large.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == (folder / "large.bin").read_bytes()
    gcloud("mv", f"gs://{name}/data/more.txt", f"gs://{name}/moved.txt")
    gcloud("rm", "-r", f"gs://{name}")
