"""Names, ranges, tokens, conditions, bodies and headers at the edge and past it: the right word, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import unicodedata
import uuid
from urllib.parse import quote, urlsplit

import httpx
import pytest

from taxiway.iam import projects
from taxiway.storage import buckets, objects
from taxiway.storage.blobs import Blobs
from taxiway.storage.objects import Metadata

XML_HOST = {"Host": "storage.googleapis.com"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def bucket(server):
    return make(server)


def make(server):
    name = f"bad-{uuid.uuid4().hex[:12]}"
    answer = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name})
    assert answer.status_code == 200, answer.text
    return name


def send(server, method, path, headers=None, **rest):
    told = {"Authorization": f"Bearer {server.token}", **(headers or {})}
    return server.http.request(method, path, headers=told, **rest)


def object_of(bucket, name):
    return f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"


def put(server, bucket, name, data=b"x", **query):
    told = {"uploadType": "media", "name": name, **query}
    return send(server, "POST", f"/upload/storage/v1/b/{bucket}/o", params=told, content=data)


def names(server, bucket, **query):
    answer = send(server, "GET", f"/storage/v1/b/{bucket}/o", params=query)
    assert answer.status_code == 200, answer.text
    return [each["name"] for each in answer.json().get("items", [])]


def told(answer, status, reason="invalid"):
    """The refusal's sentence, once it is one in storage's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["errors"][0]["reason"]) == (status, reason)
    assert error["message"]
    return error["message"]


# ---- names of objects -----------------------------------------------------------------------------------------------

GOOD = [
    *(
        "a..b",
        "...",
        "a/../b",
        "a/./b",
        "./a",
        "../a",
        "/lead",
        "trail/",
        "a//b",
        "//",
        "/",
        "-",
        "~",
        " ",
        " a ",
        "a b",
    ),
    *(
        "a+b c",
        "a%2Fb",
        "%",
        "%zz",
        "%00",
        "%25",
        "a?b#c&d=e;f",
        "tab\ta",
        'it\'s "quoted"',
        "back\\slash",
        "a\x7f\x01",
    ),
    *(
        "*[]{}",
        "\ufeffbom",
        "\ufffd",
        ".well-known/other",
        "gs://b/o",
        "a:b@c,d",
        "ü/日本/🚕",
        "\U0010ffff",
        "o",
        "O",
        "b",
    ),
    *(
        "acl",
        "o/acl",
        "compose",
        "x/rewriteTo/b/c/o/d",
        unicodedata.normalize("NFC", "é"),
        unicodedata.normalize("NFD", "é"),
    ),
    *("x" * 1024, "ü" * 512, "/" * 1024),
]
BAD = {
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "a line end": "a\nb",
    "a carriage return": "a\rb",
    "only a line end": "\n",
    "a zero byte": "a\0b",
    "1025 bytes": "x" * 1025,
    "1025 bytes in 513 letters": "ü" * 512 + "x",
    "a challenge": ".well-known/acme-challenge/x",
}


def test_every_allowed_name_is_stored_listed_read_copied_and_deleted(server):
    bucket = make(server)
    for name in GOOD:
        made = put(server, bucket, name, name.encode())
        assert made.status_code == 200, (name, made.text)
        assert made.json()["name"] == name
        assert send(server, "GET", urlsplit(made.json()["selfLink"]).path).json()["name"] == name
        assert send(server, "GET", object_of(bucket, name), params={"alt": "media"}).content == name.encode()
        assert send(server, "GET", f"/{bucket}/{quote(name, safe='')}", XML_HOST).content == name.encode()
    assert names(server, bucket) == sorted(GOOD, key=str.encode)
    other = make(server)
    for name in GOOD:
        where = f"{object_of(bucket, name)}/copyTo{object_of(other, name).removeprefix('/storage/v1')}"
        assert send(server, "POST", where).json()["name"] == name
        assert send(server, "DELETE", object_of(bucket, name)).status_code == 204, name
    assert names(server, bucket) == []
    assert names(server, other) == sorted(GOOD, key=str.encode)


def test_two_spellings_of_a_letter_are_two_names(server):
    bucket = make(server)
    composed, apart = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    put(server, bucket, composed, b"1")
    put(server, bucket, apart, b"2")
    assert send(server, "GET", object_of(bucket, composed), params={"alt": "media"}).content == b"1"
    assert send(server, "GET", object_of(bucket, apart), params={"alt": "media"}).content == b"2"


def test_a_name_beside_the_same_name_as_a_folder(server):
    bucket = make(server)
    for name in ("a", "a/", "a/b"):
        put(server, bucket, name, name.encode())
    listed = send(server, "GET", f"/storage/v1/b/{bucket}/o", params={"delimiter": "/"}).json()
    assert ([each["name"] for each in listed["items"]], listed["prefixes"]) == (["a"], ["a/"])
    assert send(server, "DELETE", object_of(bucket, "a")).status_code == 204
    assert names(server, bucket) == ["a/", "a/b"]
    assert send(server, "DELETE", object_of(bucket, "a/")).status_code == 204
    assert names(server, bucket) == ["a/b"]


def multipart(server, bucket, metadata):
    body = b"--b\r\n\r\n" + metadata + b"\r\n--b\r\n\r\nx\r\n--b--"
    kind = {"Content-Type": "multipart/related; boundary=b"}
    return send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart", kind, content=body)


def begin(server, bucket, metadata):
    return send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable", JSON, content=metadata)


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_name_that_is_not_allowed_is_refused_on_every_way_in(server, bucket, name):
    put(server, bucket, "source")
    before, source = names(server, bucket), object_of(bucket, "source")
    metadata, escaped = json.dumps({"name": name}).encode(), quote(name, safe="")
    ways = [put(server, bucket, name), multipart(server, bucket, metadata), begin(server, bucket, metadata)]
    if name not in ("", ".", ".."):  # httpx resolves dots, escaped or not
        ways += [
            send(server, "POST", f"{source}/copyTo/b/{bucket}/o/{escaped}"),
            send(server, "POST", f"{source}/rewriteTo/b/{bucket}/o/{escaped}"),
            send(server, "POST", f"{source}/moveTo/o/{escaped}"),
            send(server, "POST", f"{object_of(bucket, name)}/compose", json={"sourceObjects": [{"name": "source"}]}),
        ]
    for answer in ways:
        assert "name" in told(answer, 400).lower()
        assert len(answer.text) < 1000
    assert names(server, bucket) == before


@pytest.mark.parametrize("escaped", ["%FF", "a%C3", "%ED%A0%80", "%c0%ae%c0%ae"])
def test_a_url_that_is_no_text_is_refused_instead_of_meaning_another_name(server, bucket, escaped):
    for method, path in (
        ("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={escaped}"),
        ("GET", f"/storage/v1/b/{bucket}/o/{escaped}"),
        ("DELETE", f"/storage/v1/b/{bucket}/o/{escaped}"),
        ("GET", f"/storage/v1/b/{bucket}/o?prefix={escaped}"),
    ):
        assert "UTF-8" in told(send(server, method, path), 400)


def test_half_a_character_in_a_body_is_refused(server, bucket):
    for answer in (multipart(server, bucket, b'{"name": "\\ud800"}'), begin(server, bucket, b'{"name": "\xff"}')):
        told(answer, 400)
    for changes in (
        b'{"contentType": "\\ud800"}',
        b'{"metadata": {"\\udfff": "a"}}',
        b'{"metadata": {"a": "\\ud800"}}',
    ):
        put(server, bucket, "half")
        assert send(server, "PATCH", object_of(bucket, "half"), JSON, content=changes).status_code == 400


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "ab",
        "A-b",
        "-ab",
        "ab-",
        "a b",
        "ab/c",
        "ab.",
        ".ab",
        "1.2.3.4",
        "google-x",
        "goog-a",
        "my-g00gle",
        "é-é",
        "x" * 64,
        "a." + "x" * 64,
        ".".join(["x" * 60] * 4),
        "a\nb",
        "a%2Fb",
        "..",
        "null\x00",
    ],
)
def test_a_buckets_name_that_is_not_allowed(server, name):
    answer = send(server, "POST", f"/storage/v1/b?project={server.project}", json={"name": name})
    told(answer, 400)
    found = send(
        server, "GET", f"/storage/v1/b/{quote(name, safe='')}" if name not in ("", "..") else "/storage/v1/b/%2E"
    )
    assert found.status_code in (400, 403, 404), found.text


# ---- ranges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=0-", 206, slice(0, None)),
        ("bytes=9-", 206, slice(9, None)),
        ("bytes=5-999999999999999999", 206, slice(5, None)),
        ("bytes=-3", 206, slice(-3, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=-0", 416, None),
        ("bytes=SIZE-", 416, None),
        ("bytes=SIZE-SIZE", 416, None),
        ("bytes=999999999999999999-", 416, None),
        ("bytes=5-2", 200, slice(0, None)),
        ("bytes=0-1,3-4", 200, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
        ("bytes=a-b", 200, slice(0, None)),
        ("bytes = 0-1", 200, slice(0, None)),
        ("bytes=1-2-3", 200, slice(0, None)),
        ("bytes=٣-٤", 200, slice(0, None)),
        ("bytes=99999999999999999999-", 200, slice(0, None)),
        ("octets=0-1", 200, slice(0, None)),
        ("", 200, slice(0, None)),
    ],
)
def test_ranges(server, bucket, size, header, status, part):
    data = os.urandom(size)
    put(server, bucket, "ranged", data)
    asked = {"Range": header.replace("SIZE", str(size)).encode()}
    answer = send(server, "GET", object_of(bucket, "ranged"), asked, params={"alt": "media"})
    assert answer.status_code == status, answer.text
    if part is None:
        assert answer.headers["content-range"] == f"bytes */{size}"
        return
    assert answer.content == data[part]
    start, stop, _ = part.indices(size)
    assert answer.headers.get("content-range") == (f"bytes {start}-{stop - 1}/{size}" if status == 206 else None)


def test_of_an_empty_object_no_range_can_be_had(server, bucket):
    put(server, bucket, "empty", b"")
    for header, status in (("bytes=0-", 416), ("bytes=-5", 416), ("bytes=0-0", 416), ("", 200)):
        answer = send(server, "GET", object_of(bucket, "empty"), {"Range": header}, params={"alt": "media"})
        assert answer.status_code == status


# ---- conditions, pages, queries -------------------------------------------------------------------------------------


def test_conditions_that_contradict_one_another_never_hold(server, bucket):
    generation = put(server, bucket, "held").json()["generation"]
    url = object_of(bucket, "held")
    for query in (
        {"ifGenerationMatch": generation, "ifGenerationNotMatch": generation},
        {"ifGenerationMatch": 0, "ifMetagenerationMatch": 1},
        {"ifMetagenerationMatch": 1, "ifMetagenerationNotMatch": 1},
    ):
        told(send(server, "DELETE", url, params=query), 412, "conditionNotMet")
        told(put(server, bucket, "held", b"other", **query), 412, "conditionNotMet")
    told(send(server, "DELETE", url, params={"generation": 1, "ifGenerationMatch": generation}), 404, "notFound")
    for absurd in ("-1", "1.0", "x", "9" * 30, "٣", "0x1", "1,2", "null"):
        told(send(server, "DELETE", url, params={"ifGenerationMatch": absurd}), 400)
        told(send(server, "GET", url, params={"generation": absurd}), 400)
        told(put(server, bucket, "held", b"other", ifMetagenerationNotMatch=absurd), 400)
    assert send(server, "GET", url, params={"alt": "media"}).content == b"x"


@pytest.mark.parametrize(
    "token",
    ["?", "a", "AAAA", "bnVsbA", "W10", "WzFd", "e30", "WyJhIiwiYiJd", "/w", "A" * 5000, "\0", "ü", "WyJcdWQ4MDAiXQ"],
)
def test_an_absurd_page_token_is_refused(server, bucket, token):
    for path in (f"/storage/v1/b/{bucket}/o", f"/storage/v1/b?project={server.project}"):
        answer = send(server, "GET", path, params={"pageToken": token, "project": server.project})
        assert "pageToken" in told(answer, 400)


def test_a_page_token_of_another_listing_shows_nothing_twice_and_nothing_foreign(server):
    one, other = make(server), make(server)
    for name in ("a", "b", "c", "d"):
        put(server, one, name)
    put(server, other, "z")
    token = send(server, "GET", f"/storage/v1/b/{one}/o", params={"maxResults": 2}).json()["nextPageToken"]
    assert names(server, other, pageToken=token) == ["z"]
    assert names(server, one, pageToken=token, prefix="a") == []
    assert names(server, one, pageToken=token, prefix="d") == ["d"]
    assert names(server, one, pageToken=token) == ["c", "d"]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ("", 3),
        ("0", 3),
        ("1", 1),
        ("2", 2),
        ("1001", 3),
        ("99999999999", 3),
        ("-1", 0),
        ("x", 0),
        ("1.5", 0),
        ("9" * 30, 0),
    ],
)
def test_the_size_of_a_page(server, size, shown):
    bucket = make(server)
    for name in ("a", "b", "c"):
        put(server, bucket, name)
    answer = send(server, "GET", f"/storage/v1/b/{bucket}/o", params={"maxResults": size})
    if shown:
        assert len(answer.json()["items"]) == shown
    else:
        assert "maxResults" in told(answer, 400)


def test_of_a_parameter_that_is_said_twice_the_last_one_counts(server, bucket):
    put(server, bucket, "twice")
    assert names(server, bucket, prefix=["none-such", "twice"]) == ["twice"]
    url = f"/upload/storage/v1/b/{bucket}/o?uploadType=carrier&uploadType=media&name=one&name=two"
    assert send(server, "POST", url, content=b"x").json()["name"] == "two"


def test_unheard_of_parameters_do_nothing(server, bucket):
    query = {"alt": "json", "prettyPrint": "true", "key": "k", "quotaUser": "q", "userProject": "p", "x": "y", "": ""}
    assert send(server, "GET", f"/storage/v1/b/{bucket}/o", params=query).status_code == 200


# ---- bodies and headers ---------------------------------------------------------------------------------------------

NO_OBJECTS = [b"[]", b"[1]", b"1", b"true", b'"text"', b'""', b"0", b"{", b"}", b"{]", b"nul", b"\xff\xfe", b"{}{}"]
DEEP = [b"[" * 100_000, b'{"metadata":' * 50_000 + b"1" + b"}" * 50_000]


@pytest.mark.parametrize("body", [*NO_OBJECTS, *DEEP], ids=lambda body: body[:10])
def test_a_body_that_is_no_object_is_refused(server, bucket, body):
    put(server, bucket, "kept")
    kept, before = object_of(bucket, "kept"), names(server, bucket)
    for method, path in (
        ("POST", f"/storage/v1/b?project={server.project}"),
        ("PATCH", f"/storage/v1/b/{bucket}"),
        ("PUT", f"/storage/v1/b/{bucket}/iam"),
        ("PATCH", kept),
        ("PUT", kept),
        ("POST", f"{kept}/copyTo/b/{bucket}/o/copy"),
        ("POST", f"{kept}/rewriteTo/b/{bucket}/o/copy"),
        ("POST", f"{kept}/compose"),
        ("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=begun"),
    ):
        told(send(server, method, path, JSON, content=body), 400)
    assert multipart(server, bucket, body).status_code == 400
    assert names(server, bucket) == before
    assert send(server, "GET", kept).json()["metageneration"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": []},
        {"metadata": {"a": {}}},
        {"metadata": "a"},
        {"contentType": 1},
        {"contentType": ["text/csv"]},
        {"contentType": "a\r\nb"},
        {"cacheControl": "a\0"},
        {"storageClass": "GOLD"},
        {"metadata": {"k" * 8000: "v" * 1000}},
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_and_changes_nothing(server, bucket, body):
    put(server, bucket, "typed")
    told(send(server, "PATCH", object_of(bucket, "typed"), json=body), 400)
    assert multipart(server, bucket, json.dumps({"name": "typed2", **body}).encode()).status_code == 400
    assert begin(server, bucket, json.dumps({"name": "typed2", **body}).encode()).status_code == 400
    assert send(server, "GET", object_of(bucket, "typed")).json()["metageneration"] == "1"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"sourceObjects": None},
        {"sourceObjects": {}},
        {"sourceObjects": [1]},
        {"sourceObjects": [{}]},
        {"sourceObjects": [{"name": 1}]},
        {"sourceObjects": [{"name": "composed", "generation": "x"}]},
        {"sourceObjects": [{"name": "composed", "objectPreconditions": []}]},
        {"sourceObjects": [{"name": "composed", "objectPreconditions": {"ifGenerationMatch": "x"}}]},
        {"sourceObjects": [{"name": "composed"}], "destination": []},
        {"sourceObjects": [{"name": "composed"}], "destination": {"contentType": 5}},
        {"sourceObjects": [{"name": "composed"}] * 33},
    ],
)
def test_a_compose_that_means_nothing_is_refused(server, bucket, body):
    put(server, bucket, "composed")
    told(send(server, "POST", f"{object_of(bucket, 'made')}/compose", json=body), 400)
    assert "made" not in names(server, bucket)


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "multipart/related",
        "multipart/related; boundary=",
        'multipart/related; boundary=""',
        "multipart/related;boundary='",
        "text/plain; boundary=b",
        "boundary=b",
        "multipart/related; boundary=other",
        "ÿþ",
    ],
)
def test_a_multipart_body_of_an_odd_content_type_is_refused(server, bucket, kind):
    body = b'--b\r\n\r\n{"name": "odd"}\r\n--b\r\n\r\nx\r\n--b--'
    head = {"Content-Type": kind.encode("latin-1")}
    told(send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart", head, content=body), 400)
    assert "odd" not in names(server, bucket)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--",
        b"--b\r\n\r\n{}\r\n--b--",
        b'--b\r\n\r\n{"name": "parts"}\r\n--b\r\n\r\nx',
        b'--b\r\n\r\n{"name": "parts"}\r\n--b\r\n\r\nx\r\n--b',
        b'--b\r\n\r\n{"name": "parts"}\r\n--b\r\n\r\nx\r\n--b-',
        b'--b\r\n\r\n{"name": "parts"}\r\n--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--',
        b'--b\r\n\r\n{"name": "parts"\r\n--b\r\n\r\nx\r\n--b--',
        b'--b\r\nno header\r\n{"name": "parts"}\r\n--b\r\n\r\nx\r\n--b--',
    ],
)
def test_a_multipart_body_that_is_not_two_parts_is_refused(server, bucket, body):
    head = {"Content-Type": "multipart/related; boundary=b"}
    told(send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart", head, content=body), 400)
    assert "parts" not in names(server, bucket)


@pytest.mark.parametrize("data", [b"\r\n--bar\r\n", b"\r\n--b-ar", b"\r\n--\r\n--b", b"--b--", b"\n--b--\n", b""])
def test_data_that_looks_like_the_boundary_is_data(server, bucket, data):
    if data.endswith(b"\r\n--b"):
        data += b"!"
    body = b'preamble\r\n--b  \r\n\r\n{"name": "like"}\r\n--b\r\n\r\n' + data + b"\r\n--b--\r\nepilogue"
    head = {"Content-Type": "multipart/related; boundary=b"}
    answer = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart", head, content=body)
    assert answer.status_code == 200, answer.text
    assert send(server, "GET", object_of(bucket, "like"), params={"alt": "media"}).content == data


ODD_HEADERS = [
    {"Content-MD5": "x"},
    {"Content-MD5": "\xff"},
    {"x-goog-hash": "crc32c"},
    {"x-goog-hash": "crc32c=,md5="},
    {"x-goog-hash": "crc32c=\xe9"},
]


@pytest.mark.parametrize("odd", ODD_HEADERS, ids=str)
def test_a_checksum_that_is_none_is_wrong_or_none(server, bucket, odd):
    headers = {name: value.encode("latin-1") for name, value in odd.items()}
    answer = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=hash", headers, content=b"x")
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    "odd", ["\xff\xfe", "text/plain; charset=\xfc", "/", ";;;", "a" * 5000, "text/html\x7f", "a b"]
)
def test_an_odd_content_type_is_kept_and_sent_back_or_refused(server, bucket, odd):
    url = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=kind"
    answer = send(server, "POST", url, {"Content-Type": odd.encode("latin-1")}, content=b"x")
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert send(server, "GET", object_of(bucket, "kind"), params={"alt": "media"}).content == b"x"


@pytest.mark.parametrize("value", [" text/csv ", "日本", "é", "\u0085", "\xa0", "a\u2028b", "x" * 4000])
def test_whatever_metadata_is_kept_can_be_sent_as_headers_on_both_ports(server, bucket, value):
    changes = {
        "contentType": value,
        "contentDisposition": value,
        "cacheControl": value,
        "metadata": {"k": value, value: "v"},
    }
    put(server, bucket, "headers")
    assert send(server, "PATCH", object_of(bucket, "headers"), json=changes).status_code == 200
    ours = ssl.create_default_context(cafile=server.address.bundle)
    with httpx.Client(verify=ours, trust_env=False) as secure:
        for http, base in ((server.http, server.url), (secure, f"https://localhost:{server.address.tls_port}")):
            url = f"{base}{object_of(bucket, 'headers')}?alt=media"
            answer = http.get(url, headers={"Authorization": f"Bearer {server.token}"})
            assert (answer.status_code, answer.content) == (200, b"x")
            assert "x-goog-meta-k" in answer.headers


@pytest.mark.parametrize(
    "said",
    ["bytes", "bytes 0-4", "bytes 4-0/5", "bytes 0-5/5", "bytes a-b/c", "octets 0-4/5", "bytes 0-4/5x", "bytes -1-4/5"],
)
def test_a_malformed_content_range_is_refused_and_the_upload_goes_on(server, bucket, said):
    begun = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=resumed")
    location = begun.headers["location"]
    told(server.http.put(location, headers={"Content-Range": said}, content=b"12345"), 400)
    assert server.http.put(location, headers={"Content-Range": "bytes 0-4/5"}, content=b"12345").status_code == 200


# ---- a resumable upload's odd ways -----------------------------------------------------------------------------------


def test_an_upload_that_is_shorter_than_announced_is_not_finished(server, bucket):
    announced = {"X-Upload-Content-Length": "10"}
    begun = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=short", announced)
    location = begun.headers["location"]
    answer = server.http.put(location, content=b"12345")
    assert (answer.status_code, answer.headers["range"]) == (308, "bytes=0-4")
    told(server.http.put(location, headers={"Content-Range": "bytes 0-4/5"}, content=b"12345"), 400)
    told(server.http.put(location, headers={"Content-Range": "bytes */5"}), 400)
    told(server.http.put(location, content=b"12345678901"), 400)
    assert send(server, "GET", object_of(bucket, "short")).status_code == 404
    assert server.http.put(location, headers={"Content-Range": "bytes 5-9/10"}, content=b"67890").status_code == 200


def test_a_body_that_is_shorter_than_its_range_is_kept_as_far_as_it_came(server, bucket):
    begun = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=part")
    location = begun.headers["location"]
    answer = server.http.put(location, headers={"Content-Range": "bytes 0-9/10"}, content=b"12345")
    assert (answer.status_code, answer.headers["range"]) == (308, "bytes=0-4")
    assert server.http.put(location, headers={"Content-Range": "bytes 5-9/10"}, content=b"67890").json()["size"] == "10"


def test_a_body_without_content_range_is_never_taken_for_the_end_of_what_came(server, bucket):
    begun = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=whole")
    location = begun.headers["location"]
    assert server.http.put(location, headers={"Content-Range": "bytes 0-4/*"}, content=b"12345").status_code == 308
    assert "whole content" in told(server.http.put(location, content=b""), 400)
    assert send(server, "GET", object_of(bucket, "whole")).status_code == 404
    assert server.http.put(location, content=b"1234567").json()["size"] == "7"


def test_a_bucket_that_is_deleted_takes_its_open_uploads_along(server):
    bucket = make(server)
    before = {entry.name for entry in os.scandir(server.home / "blobs")}
    begun = send(server, "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name=gone")
    location = begun.headers["location"]
    half = {"Content-Range": "bytes 0-99999/*"}
    assert server.http.put(location, headers=half, content=bytes(100_000)).status_code == 308
    assert send(server, "DELETE", f"/storage/v1/b/{bucket}").status_code == 204
    assert {entry.name for entry in os.scandir(server.home / "blobs")} == before
    told(server.http.put(location, headers={"Content-Range": "bytes */*"}), 404, "notFound")


# ---- raw bytes, and a clock that goes back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /storage/v1/b/%s/o/\xc3\xbc HTTP/1.1",
        b"GET /storage/v1/b/%s/o/\xff HTTP/1.1",
        b"GET /storage/v1/b/%s/o/a%%zz%%2 HTTP/1.1",
        b"GET //storage/v1/b/%s/o HTTP/1.1",
        b"GET /storage/v1/b/%s/../../b HTTP/1.1",
        b"GET http://storage.googleapis.com/storage/v1/b/%s/o HTTP/1.1",
        b"OPTIONS * HTTP/1.1%.0s",
        b"GET /storage/v1/b/%s/o?\xff=\xfe&&&=&a HTTP/1.1",
        b"BREW /storage/v1/b/%s HTTP/1.1",
        b"GET /storage/v1/b/%s/o HTTP/9.9",
        b"\x16\x03\x01\x02\x00%.0s",
    ],
)
def test_an_odd_request_line_is_answered_or_cut_and_never_our_failure(server, bucket, request_line):
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        head = f"\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\nConnection: close\r\n\r\n".encode()
        connection.sendall(request_line % bucket.encode() + head)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert not answer or answer[9:12] < b"500", answer
    assert "Traceback" not in server.log


def test_generations_grow_though_the_clock_goes_back(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=["user:a@example.com"], now=1))
    buckets.insert(db, "rides-project", "rides", now=1)

    async def write(blobs, now):
        writer = blobs.writer()
        await writer.write(b"x")
        content, rest = await writer.finish(), {"owner": "user:a@example.com", "replacing": lambda: None}
        return await objects.insert(db, blobs, "rides", "o", content, Metadata(), now=now, **rest)

    seen = []
    for clocks in ((1000, 900, 900, 1001), (10, 5)):  # the second ones after a restart
        blobs = Blobs(tmp_path / "blobs")
        blobs.sweep(db, now=1)
        seen += [asyncio.run(write(blobs, now)).generation for now in clocks]
        blobs.close()
    assert seen == sorted(set(seen))
