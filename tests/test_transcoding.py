"""Objects that rest as gzip: unzipped for whoever does not take gzip, and never cut in silence."""

from __future__ import annotations

import gzip
import os
import uuid

import httpx
import pytest

PLAIN = b"pickup,fare\n" * 3 + os.urandom(500) + bytes(200_000)
NOISE = os.urandom(900_000) + bytes(3_000_000)  # zipped, it needs a file and several pieces


@pytest.fixture(scope="module")
def bucket(server):
    name = f"gzip-{uuid.uuid4().hex[:10]}"
    server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name})
    return name


def put(server, bucket, name, data, encoding="gzip", **changes):
    query = {"uploadType": "media", "name": name, "contentEncoding": encoding}
    made = server.call("POST", f"/upload/storage/v1/b/{bucket}/o", params=query, content=data)
    assert made.json()["contentEncoding"] == encoding
    if changes:
        server.call("PATCH", f"/storage/v1/b/{bucket}/o/{name}", json=changes)
    return data


def raw(server, bucket, name, method="GET", **headers):
    """The answer's bytes as they came, unlike httpx's own `content`."""
    told = {"Authorization": f"Bearer {server.token}", **{each.replace("_", "-"): headers[each] for each in headers}}
    if "Accept_Encoding" not in headers:
        told["Accept-Encoding"] = "identity"
    url = f"/storage/v1/b/{bucket}/o/{name}?alt=media"
    with server.http.stream(method, url, headers=told) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize("plain", [PLAIN, NOISE, b"", b"x"], ids=["row", "file", "empty", "byte"])
def test_a_zipped_object_is_unzipped_for_whoever_does_not_take_gzip(server, bucket, plain):
    stored = put(server, bucket, "o", gzip.compress(plain))
    for asked in ("", "identity", "gzip;q=0", "br, deflate"):
        answer, came = raw(server, bucket, "o", Accept_Encoding=asked)
        assert came == plain
        assert "content-encoding" not in answer.headers
        assert "content-length" not in answer.headers
        assert answer.headers["x-goog-stored-content-encoding"] == "gzip"
        assert answer.headers["x-goog-stored-content-length"] == str(len(stored))
        assert answer.headers["warning"] == "214 UploadServer gunzipped"
    for asked in ("gzip", "deflate, gzip;q=0.5", "GZIP"):
        answer, came = raw(server, bucket, "o", Accept_Encoding=asked)
        assert came == stored
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-length"] == str(len(stored))


def test_a_range_is_ignored_only_where_the_object_is_unzipped(server, bucket):
    stored = put(server, bucket, "ranged", gzip.compress(PLAIN))
    answer, came = raw(server, bucket, "ranged", Range="bytes=5-9")
    assert (answer.status_code, came) == (200, PLAIN)
    answer, came = raw(server, bucket, "ranged", Range="bytes=5-9", Accept_Encoding="gzip")
    assert (answer.status_code, came) == (206, stored[5:10])


def test_several_members_one_after_another_are_one_content(server, bucket):
    put(server, bucket, "members", gzip.compress(PLAIN) + gzip.compress(b"") + gzip.compress(NOISE))
    assert raw(server, bucket, "members")[1] == PLAIN + NOISE


def test_what_must_not_be_transformed_or_is_no_gzip_is_sent_as_it_is(server, bucket):
    stored = put(server, bucket, "kept", gzip.compress(PLAIN), cacheControl="public, no-transform")
    assert raw(server, bucket, "kept")[1] == stored
    assert raw(server, bucket, "kept", Range="bytes=0-1")[0].status_code == 206
    put(server, bucket, "plain", b"no gzip")
    assert raw(server, bucket, "plain")[1] == b"no gzip"
    put(server, bucket, "other", b"\x1f\x8bbrotli", encoding="br")
    assert raw(server, bucket, "other")[1] == b"\x1f\x8bbrotli"


def test_a_head_tells_the_same_without_bytes(server, bucket):
    put(server, bucket, "head", gzip.compress(NOISE))
    answer, came = raw(server, bucket, "head", method="HEAD")
    assert (answer.status_code, came, "content-encoding" in answer.headers) == (200, b"", False)


@pytest.mark.parametrize("plain", [PLAIN, NOISE], ids=["row", "file"])
@pytest.mark.parametrize("damage", [lambda zipped: zipped[:-5], lambda zipped: zipped[:-8] + b"12345678"])
def test_damaged_gzip_is_not_taken_for_whole(server, bucket, plain, damage):
    put(server, bucket, "damaged", damage(gzip.compress(plain)))
    with pytest.raises(httpx.RemoteProtocolError):
        raw(server, bucket, "damaged")
    assert "Traceback" not in server.log


def test_a_few_bytes_that_hold_much_do_not_fill_the_memory(server, bucket):
    zipped = b"".join([gzip.compress(bytes(16_000_000))] * 4)
    put(server, bucket, "bomb", zipped)
    size = 0
    told = {"Authorization": f"Bearer {server.token}", "Accept-Encoding": "identity"}
    with server.http.stream("GET", f"/storage/v1/b/{bucket}/o/bomb?alt=media", headers=told) as answer:
        for piece in answer.iter_raw():
            size += len(piece)
    assert size == 64_000_000
