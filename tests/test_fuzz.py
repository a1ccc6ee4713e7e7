"""Anything at all, sent to every route and parser: it is answered or refused, and is never our own failure.

A bounded run here, and a long one by `make torture`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import socket
import uuid
from collections import Counter
from urllib.parse import quote, urlsplit

import conftest
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taxiway import errors
from taxiway.api import storage_data
from taxiway.api.call import REPLICA
from taxiway.api.storage import XML_ROUTES
from taxiway.server import ROUTES
from taxiway.storage import uploads

BUCKET = "fuzzed-bucket"
NOT_OURS = {501, 507}  # known and not offered; a full disk
LOCKS_OUT = re.compile(r"setIamPolicy|serviceAccount|users|keys|acl|Acl")  # what would take our own right away
PARAMETERS = [
    *(
        "name",
        "prefix",
        "delimiter",
        "pageToken",
        "pageSize",
        "maxResults",
        "generation",
        "projection",
        "fields",
        "alt",
    ),
    *(
        "ifGenerationMatch",
        "ifMetagenerationNotMatch",
        "ifSourceGenerationMatch",
        "startOffset",
        "endOffset",
        "versions",
    ),
    *(
        "uploadType",
        "upload_id",
        "updateMask",
        "filter",
        "project",
        "permissions",
        "matchGlob",
        "softDeleted",
        "entity",
    ),
    *(
        "predefinedAcl",
        "destinationPredefinedAcl",
        "sourceGeneration",
        "optionsRequestedPolicyVersion",
        "contentEncoding",
    ),
]
FIELDS = [
    *("name", "metadata", "contentType", "bindings", "members", "role", "policy", "etag", "labels", "acl", "entity"),
    *("sourceObjects", "destination", "generation", "objectPreconditions", "jobId", "trainingInput", "regions", "args"),
    *(
        "resourceNames",
        "filter",
        "orderBy",
        "pageSize",
        "permissions",
        "lifecycle",
        "rule",
        "action",
        "condition",
        "type",
    ),
    *("versioning", "enabled", "age", "deploymentUri", "runtimeVersion", "iamConfiguration", "cors", "accountId"),
]

text = st.text(max_size=20) | st.sampled_from(
    ["", "a", "a/b", "0", "-1", "true", "media", "multipart", "resumable", "full"]
)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | text, inner, max_size=4),
    max_leaves=12,
)
bodies = values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60) | st.just(b"")


def fuzzed(rounds, strategy, check):
    """Run a check on so many examples."""
    quiet = settings(max_examples=rounds, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    quiet(given(strategy)(check))()


def rounds(some):
    return pytest.mark.parametrize(
        "rounds", [some, pytest.param(some * 100, marks=pytest.mark.torture)], ids=["some", "many"]
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A server for these tests alone: they change whatever they may."""
    running = conftest.start(tmp_path_factory.mktemp("fuzz") / "home")
    running.call("POST", f"/storage/v1/b?project={running.project}", json={"name": BUCKET})
    for name in ("a", "a/b"):
        running.call("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name)}", content=b"data")
    yield running
    running.http.close()
    ended = running.stop()
    conftest.end_replicas(running.home)
    assert ended == 0, running.log
    assert "Traceback" not in running.log, running.log


# ---- every route ----------------------------------------------------------------------------------------------------

ROWS = [row for row in (*ROUTES, *XML_ROUTES) if row.permission != REPLICA]


@st.composite
def requests(draw, project):
    """A request to some route, with what we have or anything else in the places of its path."""
    row = draw(st.sampled_from(ROWS))
    ours = {"bucket": BUCKET, "source_bucket": BUCKET, "project": project, "object": "a", "source": "a/b"}
    if LOCKS_OUT.search(row.permission + row.path):
        del ours["project"], ours["bucket"]

    def filled(match):
        name = match[1].partition(":")[0]
        if name in ours and often(draw):
            return quote(ours[name], safe="")
        return quote(draw(st.text(min_size=1, max_size=30) | st.binary(min_size=1, max_size=10)), safe="")

    path = re.sub(r"\{([^}]+)\}", filled, row.path)
    asked = draw(st.lists(st.tuples(st.sampled_from(PARAMETERS) | text, text), max_size=4))
    if not often(draw):
        asked += draw(st.lists(st.tuples(text, st.binary(max_size=6)), max_size=2))
    query = "&".join(
        f"{quote(name.encode(errors='replace'))}={quote(value)}" for name, value in asked if encodes(value)
    )
    kind = draw(
        st.sampled_from(["application/json", "multipart/related; boundary=b", "text/plain", "multipart/mixed", ""])
    )
    headers = draw(
        st.dictionaries(st.sampled_from(["Range", "Content-Range", "x-goog-hash", "Content-MD5"]), latin, max_size=2)
    )
    if row in XML_ROUTES:
        headers["Host"] = draw(st.sampled_from(["storage.googleapis.com", f"{BUCKET}.storage.googleapis.com"]))
    return row.method, f"{path}?{query}", {"Content-Type": kind, **headers}, draw(bodies)


latin = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=20)


def often(draw):
    return draw(st.integers(0, 9)) < 9


def encodes(value):
    return isinstance(value, bytes) or not re.search("[\ud800-\udfff]", value)


@rounds(400)
def test_every_route_answers_or_refuses(alone, rounds):
    seen = Counter()

    def check(request):
        method, path, headers, body = request
        head = {"Authorization": f"Bearer {alone.token}", **headers}
        head = {name: value.encode("latin-1") for name, value in head.items()}
        try:
            answer = alone.http.request(method, path, headers=head, content=body)
        except httpx.InvalidURL:
            return
        assert answer.status_code < 500 or answer.status_code in NOT_OURS, (request, answer.status_code, answer.text)
        seen[answer.status_code] += 1
        told = answer.headers.get("content-type", "")
        if answer.status_code >= 400 and answer.content and told.startswith("application/json"):
            assert json.loads(answer.content)["error"], (request, answer.text)

    fuzzed(rounds, requests(alone.project), check)
    assert seen[401] + seen[403] < sum(seen.values()) / 2, f"too little was tried with a right to it: {seen}"
    assert "Traceback" not in alone.log, alone.log[alone.log.index("Traceback") - 500 :][:3000]


@rounds(60)
def test_odd_urls_are_answered_or_cut(alone, rounds):
    where = urlsplit(alone.url)
    pieces = st.sampled_from(
        [
            b"/storage/v1/b/",
            BUCKET.encode(),
            b"/o/",
            b"%2F",
            b"%",
            b"%2",
            b"%zz",
            b"%00",
            b"%C3",
            b"..",
            b"//",
            b"?",
            b"#",
            b"&",
            b"/v1/projects/",
            b":predict",
            b";",
            b"\xff",
            b"\xc3\xbc",
            b"/batch/storage/v1",
            b"/upload",
            b"a",
            b"=",
            b"\\",
            b"{",
            b":",
        ]
    )

    hosts = st.sampled_from(
        ["storage.googleapis.com", "b.storage.googleapis.com", "localhost", "[", "a:b:c", "", "\xff"]
    )

    def check(drawn):
        url, host = drawn
        with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
            head = f"Host: {host}\r\nAuthorization: Bearer {alone.token}\r\nConnection: close\r\n\r\n"
            connection.sendall(b"GET /" + b"".join(url) + b" HTTP/1.1\r\n" + head.encode("latin-1"))
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        assert not answer or answer[9:12] < b"500" or answer[9:12] == b"501", (url, answer)

    fuzzed(rounds, st.tuples(st.lists(pieces, max_size=8), hosts), check)
    assert "Traceback" not in alone.log


# ---- batches, tokens ------------------------------------------------------------------------------------------------

part = st.sampled_from(
    [
        b"GET /storage/v1/b/%s/o/a HTTP/1.1\r\n\r\n" % BUCKET.encode(),
        b'PATCH /storage/v1/b/%s/o/a HTTP/1.1\r\nContent-Type: application/json\r\n\r\n{"metadata": {"k": "v"}}'
        % BUCKET.encode(),
        b"DELETE /storage/v1/b/%s/o/none\r\n\r\n" % BUCKET.encode(),
        b"GET http://[/storage/v1/b",
        b"GET /storage/v1/b/x/o/\xff?\xfe=%ff HTTP/1.1\n\n",
        b"POST /upload/storage/v1/b HTTP/1.1\r\n\r\n",
        b"get /storage/v1/b/%s?alt=media" % BUCKET.encode(),
        b"",
        b"\r\n\r\n\r\n",
    ]
)
heads = st.sampled_from(
    [
        b"Content-Type: application/http",
        b"Content-ID: <a+1>",
        b"Content-ID: \xff\xfe",
        b"Content-Transfer-Encoding: base64",
        b"Content-ID: a\r\n b",
        b"Content-Type: multipart/mixed; boundary=a",
        b"Content-Type: message/rfc822",
        b"\x00",
        b"x",
    ]
)


@rounds(100)
def test_any_batch_is_answered_part_by_part_or_refused(alone, rounds):
    def body_of(parts):
        return (
            b"".join(b"--a\r\n" + b"\r\n".join(head) + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + b"--a--"
        )

    some = st.lists(st.tuples(st.lists(heads, max_size=3), part | st.binary(max_size=40)), max_size=4).map(body_of)

    def check(body):
        head = {"Authorization": f"Bearer {alone.token}", "Content-Type": "multipart/mixed; boundary=a"}
        answer = alone.http.post("/batch/storage/v1", headers=head, content=body)
        assert answer.status_code in (200, 400), answer.text
        assert not re.search(rb"^HTTP/1.1 5", answer.content, re.MULTILINE), answer.text

    fuzzed(rounds, some | st.binary(max_size=200), check)
    assert "Traceback" not in alone.log


def test_a_batch_of_bodies_in_bodies_is_refused(alone):
    nested = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (depth, depth) for depth in range(5000)
    )
    head = {"Authorization": f"Bearer {alone.token}", "Content-Type": "multipart/mixed; boundary=a"}
    answer = alone.http.post("/batch/storage/v1", headers=head, content=b"--a\r\n" + nested)
    assert answer.status_code == 400
    assert "Traceback" not in alone.log


@rounds(60)
def test_any_page_token_is_one_or_is_refused(alone, rounds):
    def token(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    own = f"pages-{uuid.uuid4().hex[:10]}"  # which no other case knows: theirs may have been deleted by one of them
    assert alone.call("POST", f"/storage/v1/b?project={alone.project}", json={"name": own}).status_code == 200

    def check(sent):
        for path in (f"/storage/v1/b/{own}/o", "/storage/v1/b", f"/v1/projects/{alone.project}/models"):
            answer = alone.call("GET", path, params={"pageToken": sent, "project": alone.project})
            assert answer.status_code in (200, 400), (path, answer.text)
        logged = {"resourceNames": [f"projects/{alone.project}"], "pageToken": sent}
        assert alone.call("POST", "/v2/entries:list", json=logged).status_code in (200, 400)

    fuzzed(
        rounds, values.map(token) | st.lists(text, max_size=2).map(token) | st.text(st.characters(codec="utf-8")), check
    )
    assert "Traceback" not in alone.log


# ---- parsers --------------------------------------------------------------------------------------------------------

chunks = st.sampled_from(
    [b"\r\n--b", b"--b", b"--", b"-", b"\r\n", b"\r", b"\n", b"b", b"\r\n\r\n", b"{}", b"\x00", b"xyz"]
)
noise = st.lists(chunks | st.binary(max_size=5), max_size=12).map(b"".join)
related = noise | st.builds(
    lambda line, data, end: (
        line.join([b"--b", b"", b'{"name": "a"}', b"--b", b"Content-Type: a/b", b"", data]) + line + end
    ),
    st.sampled_from([b"\r\n", b"\n"]),
    noise,
    st.sampled_from([b"--b--", b"--b--\r\n", b"--b", b"--b\r\n\r\nx", b""]),
)


async def read(parts):
    """What the parser makes of a body in these pieces: its metadata and data, or its refusal."""

    async def stream():
        for each in parts:
            yield each

    try:
        parser = storage_data.Related(stream(), "multipart/related; boundary=b")
        told = await parser.metadata()
        return told, b"".join([piece async for piece in parser.data()])
    except errors.InvalidArgument as error:
        return str(error)


@given(related, st.lists(st.integers(0, 200), max_size=20))
@settings(max_examples=300, deadline=None)
@example(b"--b\r\n\r\n{}\r\n--b\r\n\r\na\r\n--bc\r\n--b--", list(range(40)))
def test_a_multipart_body_means_the_same_however_it_is_cut(body, cuts):
    places = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[start:stop] for start, stop in itertools.pairwise(places)]
    assert asyncio.run(read(pieces)) == asyncio.run(read([body]))
    assert asyncio.run(read([body[at : at + 1] for at in range(len(body))])) == asyncio.run(read([body]))


@given(st.binary(max_size=100), st.sampled_from([b"\r\n", b"\n"]))
@settings(max_examples=200, deadline=None)
def test_the_data_of_a_multipart_body_are_the_bytes_that_were_sent(data, line):
    if line + b"--b" not in data:
        body = line.join([b"--b", b"", b"{}", b"--b", b"", data, b"--b--"])
        assert asyncio.run(read([body])) == (({}, None), data)


@given(st.text("bytes=0123456789-, */", max_size=25) | st.text(max_size=10), st.integers(0, 30))
@settings(max_examples=500, deadline=None)
def test_any_range_lies_within_the_object_or_is_none(header, size):
    try:
        span = storage_data._span(header, size)
    except errors.OutOfRange:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


@given(st.text("bytes 0123456789-*/", max_size=25) | st.text(max_size=10))
@settings(max_examples=500, deadline=None)
def test_any_content_range_is_one_or_is_refused(text):
    try:
        said = uploads.content_range(text)
    except errors.InvalidArgument:
        return
    first, last, total = said.first, said.last, said.total
    assert (first is None) == (last is None)
    assert first is None or last is None or (first <= last and (total is None or last < total))
    body = "*" if first is None else f"{first}-{last}"
    assert uploads.content_range(f"bytes {body}/{'*' if total is None else total}") == said
