"""Google's own clients, unmodified and with credentials, against a live server."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import uuid

import pytest
from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage import transfer_manager


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


def test_many_files_go_up_and_come_down_together(bucket, tmp_path):
    (tmp_path / "up" / "below").mkdir(parents=True)
    held = {f"below/{each}.bin" if each % 2 else f"{each}.bin": os.urandom(1000 * each) for each in range(8)}
    for name, data in held.items():
        (tmp_path / "up" / name).write_bytes(data)
    threads = {"worker_type": transfer_manager.THREAD, "max_workers": 4, "raise_exception": True}
    transfer_manager.upload_many_from_filenames(bucket, list(held), source_directory=str(tmp_path / "up"), **threads)
    assert {blob.name: blob.size for blob in bucket.list_blobs()} == {name: len(held[name]) for name in held}
    (tmp_path / "down").mkdir()
    transfer_manager.download_many_to_path(bucket, list(held), destination_directory=str(tmp_path / "down"), **threads)
    for name, data in held.items():
        assert (tmp_path / "down" / name).read_bytes() == data
    large = os.urandom(3_000_000)
    bucket.blob("large").upload_from_string(large)
    pieces = {"chunk_size": 700_000, "worker_type": transfer_manager.THREAD, "max_workers": 4}
    transfer_manager.download_chunks_concurrently(bucket.blob("large"), str(tmp_path / "large"), **pieces)
    assert (tmp_path / "large").read_bytes() == large


def test_a_listing_of_some_fields_and_pages(client, bucket):
    for each in ("a", "b/c", "d"):
        bucket.blob(each).upload_from_string(each, content_type="text/plain")
    listed = list(client.list_blobs(bucket, fields="items(name,size),nextPageToken", page_size=1))
    assert [(blob.name, blob.size, blob.content_type) for blob in listed] == [
        ("a", 1, None),
        ("b/c", 3, None),
        ("d", 1, None),
    ]
    listing = client.list_blobs(bucket, delimiter="/", fields="prefixes")
    assert (list(listing), listing.prefixes) == ([], {"b/"})
    assert bucket.blob("a").exists()
    assert not bucket.blob("e").exists()


def test_another_class_another_name_and_another_generation(bucket):
    blob = bucket.blob("o")
    blob.upload_from_string(b"1", checksum="crc32c")
    blob.update_storage_class("NEARLINE")
    assert bucket.get_blob("o").storage_class == "NEARLINE"
    moved = bucket.rename_blob(blob, "p", if_source_generation_match=blob.generation)
    assert (moved.download_as_bytes(checksum="md5"), bucket.get_blob("o")) == (b"1", None)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("q").rewrite(moved, if_source_generation_match=1)
    with pytest.raises(exceptions.NotFound):
        bucket.blob("p", generation=1).download_as_bytes()


def test_a_zipped_object_is_read_unzipped_and_raw(bucket):
    blob = bucket.blob("zipped")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(b"plain" * 1000))
    assert blob.download_as_bytes() == b"plain" * 1000
    assert gzip.decompress(blob.download_as_bytes(raw_download=True)) == b"plain" * 1000


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
assert fs.glob(f"{bucket}/**/e*") == [f"{bucket}/c d/e%2F.txt", f"{bucket}/empty"]
assert fs.info(f"{bucket}/z")["type"] == "directory" and fs.du(f"{bucket}/z") == len(data)
with fs.open(f"{bucket}/lines.csv", "w") as file:
    file.write("a,b\\n1,2\\n")
with fs.open(f"{bucket}/lines.csv", "rt") as file:
    assert list(file) == ["a,b\\n", "1,2\\n"]
fs.setxattrs(f"{bucket}/lines.csv", content_type="text/csv", k="v")
assert fs.getxattr(f"{bucket}/lines.csv", "k") == "v"
fs.rm(f"{bucket}/lines.csv")
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
