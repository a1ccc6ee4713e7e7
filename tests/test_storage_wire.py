"""The Cloud Storage wire against a live server: uploads in three forms, ranges, checksums, cut-off bodies, grants."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from urllib.parse import quote, urlsplit

import google_crc32c
import httpx
import pytest

XML_HOST = {"Host": "storage.googleapis.com"}


@pytest.fixture
def bucket(server):
    name = f"wire-{uuid.uuid4().hex[:12]}"
    answer = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name})
    assert answer.status_code == 200, answer.text
    return name


def path_of(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"


def send(server, method, path, headers=None, **rest):
    return server.http.request(
        method, path, headers={"Authorization": f"Bearer {server.token}", **(headers or {})}, **rest
    )


def put(server, bucket, name, data=b"x", **query):
    answer = send(
        server,
        "POST",
        f"/upload/storage/v1/b/{bucket}/o",
        params={"uploadType": "media", "name": name, **query},
        content=data,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def read(server, bucket, name):
    return send(server, "GET", path_of(bucket, name), params={"alt": "media"})


def begin(server, bucket, name, headers=None, body=b"", **query):
    answer = send(
        server,
        "POST",
        f"/upload/storage/v1/b/{bucket}/o",
        params={"uploadType": "resumable", "name": name, **query},
        headers=headers,
        content=body,
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["location"]


def names(server, bucket, **query):
    answer = send(server, "GET", f"/storage/v1/b/{bucket}/o", params=query).json()
    return [each["name"] for each in answer.get("items", [])], answer.get("prefixes", []), answer.get("nextPageToken")


@contextlib.contextmanager
def half_sent(server, head: list[str], body: bytes):
    """A connection on which part of a request was sent; it is cut at the end of the block."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        yield


def eventually(check, what: str, seconds: float = 20):
    """Until it holds; the deadline is only for a failure."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def files(server) -> set[str]:
    return {entry.name for entry in os.scandir(server.home / "blobs")}


# ---- what is written is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 5_000_000])
def test_a_media_upload_is_read_back_with_its_checksums(server, bucket, size):
    data = os.urandom(size)
    made = put(server, bucket, "a b/ü%2F?.bin", data)
    assert made["size"] == str(size)
    assert made["md5Hash"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert made["crc32c"] == base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    answer = read(server, bucket, "a b/ü%2F?.bin")
    assert answer.content == data
    assert answer.headers["x-goog-generation"] == made["generation"]
    assert httpx.get(made["mediaLink"], headers={"Authorization": f"Bearer {server.token}"}).content == data
    assert httpx.get(made["selfLink"], headers={"Authorization": f"Bearer {server.token}"}).json() == made


@pytest.mark.parametrize("line", ["\r\n", "\n"])
@pytest.mark.parametrize("mark", ["boundary='===ab=='", 'boundary="===ab=="', "boundary====ab=="])
def test_a_multipart_upload_takes_every_clients_boundary_and_line_ends(server, bucket, line, mark):
    data = b"\r\n--===a\n\r\n" + os.urandom(100_000) + b"\r\n"
    metadata = json.dumps({"name": "m.bin", "contentType": "text/csv", "metadata": {"k": "v"}})
    parts = ["--===ab==", "Content-Type: application/json", "", metadata, "--===ab==", "Content-Type: text/x", "", ""]
    body = line.join(parts).encode() + data + f"{line}--===ab==--".encode()
    answer = send(
        server,
        "POST",
        f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart",
        headers={"Content-Type": f"multipart/related; {mark}"},
        content=body,
    )
    assert answer.status_code == 200, answer.text
    assert (answer.json()["contentType"], answer.json()["metadata"]) == ("text/csv", {"k": "v"})
    assert read(server, bucket, "m.bin").content == data


def test_tensorflows_dialect_of_a_resumable_upload(server, bucket):
    """An empty body that says it is a form; a zero-size PUT without Content-Range; else one chunk."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "X-Upload-Content-Length": "0"}
    made = server.http.put(begin(server, bucket, "empty", form), content=b"").json()
    assert (made["size"], made["contentType"]) == ("0", "application/octet-stream")
    location = begin(server, bucket, "dir/full", {"X-Upload-Content-Length": "12"})
    answer = server.http.put(location, headers={"Content-Range": "bytes 0-11/12"}, content=iter([b"hello ", b"world!"]))
    assert answer.json()["size"] == "12"
    answer = send(server, "GET", f"/{bucket}/dir%2Ffull", {**XML_HOST, "Range": "bytes=6-67108863"})
    assert (answer.status_code, answer.content) == (206, b"world!")
    assert answer.headers["content-range"] == "bytes 6-11/12"
    assert send(server, "GET", f"/{bucket}/dir/full", {**XML_HOST, "Range": "bytes=12-99"}).status_code == 416
    head = send(server, "HEAD", f"/{bucket}/dir/full", XML_HOST)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "12", b"")


def test_the_json_api_is_served_under_storages_own_host_name_too(server, bucket):
    put(server, bucket, "o")
    assert send(server, "GET", f"/storage/v1/b/{bucket}/o/o", XML_HOST).json()["name"] == "o"


def test_a_chunked_resumable_upload_tells_what_is_durable(server, bucket):
    data = os.urandom(700_000)
    location = begin(server, bucket, "chunks")
    ask = {"Content-Range": "bytes */*"}
    answer = server.http.put(location, headers=ask)
    assert (answer.status_code, "range" in answer.headers) == (308, False)
    answer = server.http.put(location, headers={"Content-Range": "bytes 0-262143/*"}, content=data[:262144])
    assert (answer.status_code, answer.headers["range"]) == (308, "bytes=0-262143")
    assert server.http.put(location, headers=ask).headers["range"] == "bytes=0-262143"
    overlapping = {"Content-Range": "bytes 100000-524287/*"}
    assert server.http.put(location, headers=overlapping, content=data[100000:524288]).headers["range"] == (
        "bytes=0-524287"
    )
    gap = server.http.put(location, headers={"Content-Range": "bytes 600000-699999/700000"}, content=data[600000:])
    assert gap.status_code == 400
    assert "524288" in gap.text
    final = {"Content-Range": "bytes 524288-699999/700000"}
    made = send(server, "POST", location, final, content=data[524288:])  # gcsfs ends an upload by POST
    assert made.json()["size"] == "700000"
    assert server.http.put(location, headers=final, content=data[524288:]).json() == made.json(), "a repeated last one"
    assert read(server, bucket, "chunks").content == data


def test_an_upload_of_unknown_size_ends_with_its_total(server, bucket):
    location = begin(server, bucket, "unknown")
    server.http.put(location, headers={"Content-Range": "bytes 0-4/*"}, content=b"12345")
    assert server.http.put(location, headers={"Content-Range": "bytes */5"}).json()["size"] == "5"
    assert read(server, bucket, "unknown").content == b"12345"


def test_a_cancelled_session_is_gone(server, bucket):
    location = begin(server, bucket, "cancelled")
    server.http.put(location, headers={"Content-Range": "bytes 0-99999/*"}, content=bytes(100_000))
    assert server.http.delete(location).status_code == 499
    assert server.http.put(location, headers={"Content-Range": "bytes */*"}).status_code == 404
    assert read(server, bucket, "cancelled").status_code == 404


# ---- nothing half-written -------------------------------------------------------------------------------------------


def test_a_wrong_checksum_stores_nothing_and_names_both_values(server, bucket):
    before = files(server)
    data, wrong = os.urandom(200_000), base64.b64encode(b"\0" * 16).decode()
    right = base64.b64encode(hashlib.md5(data).digest()).decode()
    url = f"/upload/storage/v1/b/{bucket}/o"
    answer = send(server, "POST", f"{url}?uploadType=media&name=o", {"Content-MD5": wrong}, content=data)
    assert answer.status_code == 400
    assert wrong in answer.text
    assert right in answer.text
    answer = send(server, "POST", f"{url}?uploadType=media&name=o", {"x-goog-hash": "crc32c=AAAAAA=="}, content=data)
    assert answer.status_code == 400
    location = begin(
        server, bucket, "o", {"Content-Type": "application/json"}, body=json.dumps({"md5Hash": wrong}).encode()
    )
    assert server.http.put(location, content=data).status_code == 400
    assert server.http.put(location, headers={"Content-Range": "bytes */*"}).status_code == 404
    assert read(server, bucket, "o").status_code == 404
    assert files(server) == before


@pytest.mark.parametrize("kind", ["media", "multipart"])
def test_a_cut_off_upload_leaves_nothing(server, bucket, kind):
    before = files(server)
    head = [
        f"POST /upload/storage/v1/b/{bucket}/o?uploadType={kind}&name=cut HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {server.token}",
        "Content-Type: multipart/related; boundary=b",
        "Content-Length: 50000000",
    ]
    body = b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\n" + bytes(6_000_000)
    with half_sent(server, head, body):
        eventually(lambda: files(server) != before, "the upload did not begin")
    eventually(lambda: files(server) == before, "the cut-off upload's file was not removed")
    assert read(server, bucket, "cut").status_code == 404


def test_a_multipart_body_without_its_closing_boundary_is_refused(server, bucket):
    body = b'--b\r\nContent-Type: application/json\r\n\r\n{"name": "cut"}\r\n--b\r\n\r\nhalf of it'
    answer = send(
        server,
        "POST",
        f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart",
        {"Content-Type": "multipart/related; boundary=b"},
        content=body,
    )
    assert answer.status_code == 400
    assert "closing boundary" in answer.text
    assert read(server, bucket, "cut").status_code == 404


def test_a_cut_off_resumable_upload_goes_on_where_it_was(server, bucket):
    data = os.urandom(6_000_000)
    location = begin(server, bucket, "resumed")
    path = location.removeprefix(server.url)
    head = [
        f"PUT {path} HTTP/1.1",
        "Host: localhost",
        "Content-Range: bytes 0-5999999/6000000",
        "Content-Length: 6000000",
    ]
    before = files(server)
    with half_sent(server, head, data[:4_000_000]):
        eventually(lambda: files(server) != before, "the upload did not begin")
    received = 0

    def arrived():
        nonlocal received
        answer = server.http.put(location, headers={"Content-Range": "bytes */6000000"})
        assert answer.status_code == 308
        received = int(answer.headers.get("range", "bytes=0--1")[8:]) + 1
        return received > 0

    eventually(arrived, "nothing was kept")
    assert received <= 4_000_000
    rest = {"Content-Range": f"bytes {received}-5999999/6000000"}
    assert server.http.put(location, headers=rest, content=data[received:]).status_code == 200
    assert read(server, bucket, "resumed").content == data


def test_a_newer_request_of_a_session_ends_one_that_hangs(server, bucket):
    data = os.urandom(3_000_000)
    location = begin(server, bucket, "taken-over")
    head = [
        f"PUT {location.removeprefix(server.url)} HTTP/1.1",
        "Host: localhost",
        "Content-Range: bytes 0-2999999/3000000",
        "Content-Length: 3000000",
    ]
    before = files(server)
    with half_sent(server, head, data[:2_500_000]):
        eventually(lambda: files(server) != before, "the upload did not begin")
        answer = server.http.put(location, headers={"Content-Range": "bytes 0-2999999/3000000"}, content=data)
        assert answer.status_code == 200, answer.text
    assert read(server, bucket, "taken-over").content == data


def test_a_body_longer_than_it_said_is_refused(server, bucket):
    location = begin(server, bucket, "long")
    answer = server.http.put(location, headers={"Content-Range": "bytes 0-4/5"}, content=b"123456789")
    assert answer.status_code == 400
    assert read(server, bucket, "long").status_code == 404


# ---- ranges, conditions, listings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 2_000_000])
@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=990-", 990, None), ("bytes=-5", -5, None), ("bytes=5-99999999", 5, None)],
)
def test_a_range_is_answered_with_206(server, bucket, size, header, start, stop):
    data = os.urandom(size)
    put(server, bucket, "r", data)
    answer = send(server, "GET", path_of(bucket, "r"), {"Range": header}, params={"alt": "media"})
    assert (answer.status_code, answer.content) == (206, data[start:stop])


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=a-b", "bytes=0-1,5-6", "items=0-1", ""])
def test_a_range_that_means_nothing_sends_everything(server, bucket, header):
    put(server, bucket, "r", b"0123456789")
    answer = send(server, "GET", path_of(bucket, "r"), {"Range": header}, params={"alt": "media"})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


@contextlib.contextmanager
def reading(server, bucket, *names_):
    """A connection with a small window, on which objects were asked for, one behind the other."""
    where = urlsplit(server.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(30)
        connection.connect((where.hostname, where.port))
        for name in names_:
            lines = [f"GET {path_of(bucket, name)}?alt=media HTTP/1.1", f"Host: {where.netloc}"]
            lines += [f"Authorization: Bearer {server.token}", "", ""]
            connection.sendall("\r\n".join(lines).encode())
        with connection.makefile("rb") as stream:
            yield stream


def answer(stream):
    """One response's body."""
    length = 0
    assert b" 200 " in stream.readline()
    while (line := stream.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return stream.read(length)


def test_a_client_that_reads_late_gets_everything_and_the_connection_goes_on(server, bucket):
    data = os.urandom(6_000_000)
    put(server, bucket, "large", data)
    put(server, bucket, "small", b"little")
    with reading(server, bucket, "large", "small", "large") as stream:
        put(server, bucket, "meanwhile", data)  # long enough for the server's patience with a full socket
        assert [answer(stream) for _ in range(3)] == [data, b"little", data]


def test_a_client_that_leaves_in_the_middle_of_a_download_leaves_nothing_open(server, bucket):
    put(server, bucket, "large", os.urandom(6_000_000))
    handles = f"/proc/{server.process.pid}/fd"

    def blobs_open():
        return [where for each in os.listdir(handles) if "/blobs/" in (where := os.path.realpath(f"{handles}/{each}"))]

    with reading(server, bucket, "large") as stream:
        stream.read(100_000)
        assert blobs_open()
    eventually(lambda: not blobs_open(), "a file is still open")
    assert "without completing" not in server.log


def test_a_file_that_the_disk_lost_in_the_middle_of_a_download_ends_that_download_alone(server, bucket):
    """The bytes are sent from mapped memory: to touch what is gone would be a signal that ends the process."""
    data = os.urandom(12_000_000)
    put(server, bucket, "large", data)
    put(server, bucket, "other", b"whole")
    files = [each for each in (server.home / "blobs").rglob("*") if each.is_file()]
    (held,) = [each for each in files if each.stat().st_size == len(data)]
    with reading(server, bucket, "large") as stream:
        stream.read(100_000)
        os.truncate(held, 4096)
        assert 0 < len(stream.read()) < len(data)
    assert read(server, bucket, "other").content == b"whole"
    eventually(lambda: "a download ended early" in server.log, "nothing is said of it")


def test_preconditions_on_every_verb(server, bucket):
    first = put(server, bucket, "o", b"1", ifGenerationMatch=0)
    assert (
        send(
            server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=o&ifGenerationMatch=0", content=b"2"
        ).status_code
        == 412
    )
    assert read(server, bucket, "o").content == b"1"
    url, generation = path_of(bucket, "o"), first["generation"]
    assert send(server, "GET", url, params={"ifGenerationNotMatch": generation}).status_code == 304
    assert send(server, "GET", url, params={"ifGenerationMatch": 5}).status_code == 412
    assert send(server, "GET", url, params={"generation": 5}).status_code == 404
    second = put(server, bucket, "o", b"2", ifGenerationMatch=generation)
    assert int(second["generation"]) > int(generation)
    assert send(server, "PATCH", url, params={"ifMetagenerationMatch": 2}, json={}).status_code == 412
    assert send(server, "PATCH", url, params={"ifMetagenerationMatch": 1}, json={}).json()["metageneration"] == "2"
    assert send(server, "DELETE", url, params={"ifGenerationMatch": generation}).status_code == 412
    assert send(server, "DELETE", url, params={"ifGenerationMatch": "x"}).status_code == 400
    assert send(server, "DELETE", url, params={"generation": second["generation"]}).status_code == 204


def test_a_listing_by_folder_and_by_pages(server, bucket):
    for name in ("a/1", "a/2", "b", "c/", "c/d/e", "z"):
        put(server, bucket, name)
    assert names(server, bucket, delimiter="/") == (["b", "z"], ["a/", "c/"], None)
    assert names(server, bucket, delimiter="/", includeTrailingDelimiter="true")[0] == ["b", "c/", "z"]
    assert names(server, bucket, prefix="c/", delimiter="/") == (["c/"], ["c/d/"], None)
    found, token = [], ""
    while token is not None:
        items, prefixes, token = names(server, bucket, delimiter="/", maxResults=1, pageToken=token)
        found += items + prefixes
    assert found == ["a/", "b", "c/", "z"]
    assert send(server, "GET", f"/storage/v1/b/{bucket}/o", params={"pageToken": "???"}).status_code == 400


def test_metadata_can_be_changed_and_reset(server, bucket):
    put(server, bucket, "o")
    url = path_of(bucket, "o")
    made = send(server, "PATCH", url, json={"contentType": "text/csv", "metadata": {"a": "1", "b": "2"}}).json()
    assert (made["contentType"], made["metadata"]) == ("text/csv", {"a": "1", "b": "2"})
    assert send(server, "PATCH", url, json={"metadata": {"a": None}}).json()["metadata"] == {"b": "2"}
    made = send(server, "PUT", url, json={"cacheControl": "no-store"}).json()
    assert (made["contentType"], made["cacheControl"], "metadata" in made) == (
        "application/octet-stream",
        "no-store",
        False,
    )
    assert send(server, "PATCH", url, json={"contentType": "a\r\nX-Evil: 1"}).status_code == 400
    assert send(server, "PATCH", url, json={"metadata": {"a": 1}}).status_code == 400


# ---- buckets and grants ---------------------------------------------------------------------------------------------


def test_a_buckets_name_belongs_to_one_project(server, bucket):
    url = f"/storage/v1/b?project={server.project}"
    answer = send(server, "POST", url, json={"name": bucket})
    assert answer.status_code == 409
    assert "already own it" in answer.text
    assert send(server, "POST", url, json={"name": "No_Good"}).status_code == 400
    assert send(server, "POST", url, json={"name": f"{bucket}-x", "location": "mars"}).status_code == 400
    assert send(server, "POST", url, json={}).status_code == 400
    assert send(server, "POST", "/storage/v1/b?project=nobodys-project", json={"name": "abc-def"}).status_code in (
        403,
        404,
    )
    assert bucket in [each["name"] for each in send(server, "GET", url).json()["items"]]


def test_only_an_empty_bucket_is_deleted(server, bucket):
    put(server, bucket, "o")
    assert send(server, "DELETE", f"/storage/v1/b/{bucket}").status_code == 409
    send(server, "DELETE", path_of(bucket, "o"))
    assert send(server, "DELETE", f"/storage/v1/b/{bucket}").status_code == 204
    assert send(server, "GET", f"/storage/v1/b/{bucket}").status_code == 404


def test_a_policy_is_replaced_only_by_who_read_the_last_one(server, bucket):
    url = f"/storage/v1/b/{bucket}/iam"
    policy = send(server, "GET", url).json()
    policy["bindings"].append({"role": "roles/storage.objectViewer", "members": ["user:ann@example.com"]})
    assert send(server, "PUT", url, json=policy).status_code == 200
    assert send(server, "PUT", url, json=policy).status_code == 412, "the etag is of the policy before"
    assert send(server, "PUT", url, json={"bindings": [{"role": "roles/no", "members": []}]}).status_code == 400
    held = send(
        server, "GET", f"{url}/testPermissions", params={"permissions": ["storage.objects.get", "ml.jobs.create"]}
    )
    assert "storage.objects.get" in held.json()["permissions"]


def test_an_anonymous_caller_is_nobody(server, bucket):
    put(server, bucket, "o")
    assert httpx.get(f"{server.url}{path_of(bucket, 'o')}?alt=media").status_code == 401
    url = f"{server.url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=n"
    assert httpx.post(url, content=b"x").status_code == 401
    assert httpx.put(f"{server.url}/upload/storage/v1/b/{bucket}/o?upload_id=guess", content=b"x").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=media", b"x"),
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=carrier&name=o", b"x"),
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=media&name=" + "x" * 1025, b"x"),
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=resumable&name=o", b"{no json"),
        ("POST", "/upload/storage/v1/b/{b}/o?uploadType=multipart&name=o", b"no parts"),
        ("PUT", "/upload/storage/v1/b/{b}/o", b"x"),
        ("POST", "/storage/v1/b/{b}/o/o/compose", b'{"sourceObjects": []}'),
        ("POST", "/storage/v1/b/{b}/o/o/compose", b"[1]"),
        ("GET", "/storage/v1/b/{b}/o?maxResults=-1", b""),
    ],
)
def test_a_malformed_request_is_told_in_googles_shape(server, bucket, method, path, body):
    answer = send(server, method, path.format(b=bucket), content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert answer.json()["error"]["errors"][0]["reason"] == "invalid"


def test_copies_share_their_bytes_and_outlive_their_source(server, bucket):
    data = os.urandom(300_000)
    put(server, bucket, "one", data)
    before = files(server)
    rewritten = send(server, "POST", f"{path_of(bucket, 'one')}/rewriteTo/b/{bucket}/o/two%2F2", content=b"").json()
    assert rewritten["done"] is True
    copied = send(server, "POST", f"{path_of(bucket, 'one')}/copyTo/b/{bucket}/o/three", json={"contentType": "t/x"})
    assert copied.json()["contentType"] == "t/x"
    assert files(server) == before
    send(server, "DELETE", path_of(bucket, "one"))
    send(server, "POST", f"{path_of(bucket, 'three')}/moveTo/o/four", content=b"")
    assert names(server, bucket)[0] == ["four", "two/2"]
    assert read(server, bucket, "four").content == data
    send(server, "DELETE", path_of(bucket, "four"))
    send(server, "DELETE", path_of(bucket, "two/2"))
    assert len(before - files(server)) == 1


# ---- a crash --------------------------------------------------------------------------------------------------------


def test_every_acknowledged_object_survives_a_kill_and_no_other_is_there(start_server, tmp_path):
    first = start_server(tmp_path / "home")
    send(first, "POST", f"/storage/v1/b?project={first.project}", json={"name": "crash-test"})
    acknowledged = {}
    for index in range(30):
        data = os.urandom(100 if index % 3 else 300_000)
        put(first, "crash-test", f"o{index}", data)
        acknowledged[f"o{index}"] = data
    half = os.urandom(400_000)
    location = begin(first, "crash-test", "half")
    first.http.put(location, headers={"Content-Range": "bytes 0-399999/*"}, content=half)
    head = [
        "POST /upload/storage/v1/b/crash-test/o?uploadType=media&name=never HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {first.token}",
        "Content-Length: 90000000",
    ]
    before = files(first)
    with half_sent(first, head, bytes(8_000_000)):
        eventually(lambda: files(first) != before, "the upload did not begin")
        first.kill()
    second = start_server(tmp_path / "home")
    assert names(second, "crash-test")[0] == sorted(acknowledged)
    for name, data in acknowledged.items():
        assert read(second, "crash-test", name).content == data
    assert len(files(second)) == 11, "ten large objects, and the session's bytes"
    again = location.replace(first.url, second.url)
    answer = second.http.put(again, headers={"Content-Range": "bytes */*"})
    assert answer.headers["range"] == "bytes=0-399999"
    assert second.http.put(again, headers={"Content-Range": "bytes */400000"}).status_code == 200
    assert read(second, "crash-test", "half").content == half
