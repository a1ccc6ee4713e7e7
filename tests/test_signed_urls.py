"""Signed URLs and the XML API against a live server: by Google's client, by any host name, in a browser's page."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from datetime import timedelta
from urllib.parse import quote, urlsplit

import httpx
import pytest
from conftest import run_cli
from google.cloud import storage
from google.oauth2 import service_account

from taxiway.cli import signing
from taxiway.db.database import Database
from taxiway.db.tables import service_account_keys, service_accounts
from taxiway.iam import keys, projects

HOST = "storage.googleapis.com"
SPACE = "{http://doc.s3.amazonaws.com/2006-03-01}"
TEN = timedelta(minutes=10)


@pytest.fixture(scope="module")
def rows(server):
    opened = Database(server.home / "taxiway.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def signer(server, rows):
    """A service account that may read and write in `bucket` and nowhere else, as its key file."""
    return account(server, rows)


def account(server, rows):
    email = projects.account_email(server.project, f"signer-{uuid.uuid4().hex[:8]}")

    def make(tx):
        projects.create_account(tx, server.project, email, "signs", now=time.time())
        return keys.create_key(tx, email, token_uri=f"{server.url}/token", now=time.time())

    return rows.write(make)


@pytest.fixture(scope="module")
def bucket(server, signer):
    name = f"signed-{uuid.uuid4().hex[:10]}"
    answer = server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": name})
    assert answer.status_code == 200, answer.text
    grant(server, name, f"serviceAccount:{signer['client_email']}", "roles/storage.objectAdmin")
    return name


def grant(server, bucket, member, role):
    policy = server.call("GET", f"/storage/v1/b/{bucket}/iam").json()
    policy["bindings"].append({"role": role, "members": [member]})
    answer = server.call("PUT", f"/storage/v1/b/{bucket}/iam", json=policy)
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def blob(server, signer, bucket):
    """blob(name) of google-cloud-storage, with the signer's credentials."""
    credentials = service_account.Credentials.from_service_account_info(signer)
    client = storage.Client(server.project, credentials, client_options={"api_endpoint": server.url})
    yield client.bucket(bucket).blob
    client.close()


@pytest.fixture
def url(server, blob):
    """url(name, ...) -> a signed URL of ours, by google-cloud-storage."""
    return lambda name, **rest: blob(name).generate_signed_url(
        api_access_endpoint=server.url, **{"version": "v4", "expiration": TEN, **rest}
    )


@pytest.fixture(scope="module")
def anyone(server):
    """Somebody without a token."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as made:
        yield made


def put(server, bucket, name, data=b"x", kind="text/plain"):
    answer = server.http.post(
        f"/upload/storage/v1/b/{bucket}/o",
        params={"uploadType": "media", "name": name},
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": kind},
        content=data,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def signed(server, key, method, path, base="", seconds=600, **rest):
    """By our own signing, for what Google's client does not sign."""
    loaded = signing.signer_of(key)
    return signing.url(loaded, method, base or server.url, path, seconds=seconds, now=time.time(), **rest)


def raw(server, method, url, body=None, headers=None):
    """A request whose path goes out as it is: clients take dots and slashes away."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(method, url.removeprefix(server.url), body, headers or {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/xml")
    told = ET.fromstring(answer.content)
    assert (told.tag, told.findtext("Code")) == ("Error", code), answer.text
    assert told.findtext("Message")
    return told.findtext("Details")


# ---- by Google's own client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v4"])
@pytest.mark.parametrize("name", ["plain.txt", "a b/ü%2F+&=?#~'.csv", "…/日本語", "a//b", "dots/../x", "ends/", "..."])
def test_an_object_goes_its_whole_way_without_a_token(server, bucket, url, version, name):
    data = os.urandom(70_000)
    status, body = raw(server, "PUT", url(name, version=version, method="PUT"), data)
    assert status == 200, body
    status, body = raw(server, "GET", url(name, version=version))
    assert (status, body) == (200, data)
    held = server.call("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
    assert held.json()["size"] == str(len(data))
    status, body = raw(server, "HEAD", url(name, version=version, method="HEAD"))
    assert (status, body) == (200, b"")
    assert raw(server, "DELETE", url(name, version=version, method="DELETE"))[0] == 204
    assert raw(server, "GET", url(name, version=version))[0] == 404


def test_a_download_says_what_the_object_is(server, anyone, bucket, url):
    data = os.urandom(1000)
    made = put(server, bucket, "told", data, "text/csv")
    answer = anyone.get(url("told"))
    assert answer.content == data
    assert answer.headers["content-type"] == "text/csv"
    assert answer.headers["etag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert answer.headers["x-goog-generation"] == made["generation"]
    assert answer.headers["x-goog-hash"] == f"crc32c={made['crc32c']},md5={made['md5Hash']}"
    assert answer.headers["content-security-policy"] == "sandbox", "it is no page of ours"
    named = anyone.get(url("told", response_disposition='attachment; filename="r.csv"', response_type="text/x"))
    assert named.headers["content-disposition"] == 'attachment; filename="r.csv"'
    assert named.headers["content-type"] == "text/x"
    assert anyone.get(url("told", generation=made["generation"])).content == data
    assert "NoSuchKey" in anyone.get(url("told", generation=5)).text
    bad = anyone.get(url("told", response_disposition="a\r\nX-Evil: 1"))
    refused(bad, 400, "InvalidArgument")


def test_a_range_is_sent_and_one_past_the_end_is_told(server, anyone, bucket, url):
    put(server, bucket, "ten", b"0123456789")
    answer = anyone.get(url("ten"), headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    past = anyone.get(url("ten"), headers={"Range": "bytes=10-"})
    refused(past, 416, "InvalidRange")
    assert past.headers["content-range"] == "bytes */10"


def test_a_cache_is_told_what_has_not_changed(server, anyone, bucket, url):
    put(server, bucket, "kept", b"one")
    first = anyone.get(url("kept"))
    tag, when = first.headers["etag"], first.headers["last-modified"]
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Modified-Since": when}, 304),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 412),
    ):
        answer = anyone.get(url("kept"), headers=headers)
        assert answer.status_code == status, (headers, answer.text)
        if status == 304:
            assert (answer.headers["etag"], answer.content) == (tag, b"")


def test_an_upload_keeps_what_its_signed_headers_say(server, anyone, bucket, url):
    headers = {"x-goog-meta-team": "rides", "x-goog-storage-class": "NEARLINE", "x-goog-acl": "private"}
    signed_put = url("kept.csv", method="PUT", content_type="text/csv", headers=dict(headers))
    sent = {**headers, "Content-Type": "text/csv", "Cache-Control": "no-store"}
    answer = anyone.put(signed_put, content=b"a,b", headers=sent)
    assert answer.status_code == 200, answer.text
    held = server.call("GET", f"/storage/v1/b/{bucket}/o/kept.csv?projection=full").json()
    assert (held["contentType"], held["metadata"], held["cacheControl"], held["storageClass"]) == (
        *("text/csv", {"team": "rides"}),
        *("no-store", "NEARLINE"),
    )
    assert {each["role"] for each in held["acl"]} == {"OWNER"}
    assert answer.headers["x-goog-generation"] == held["generation"]
    assert answer.headers["etag"] == f'"{hashlib.md5(b"a,b").hexdigest()}"'
    for changed in ({"Content-Type": "text/plain"}, {"x-goog-meta-team": "other"}):
        refused(anyone.put(signed_put, content=b"z", headers={**sent, **changed}), 403, "SignatureDoesNotMatch")
    for name in ("Content-Type", "x-goog-meta-team"):
        without = {each: value for each, value in sent.items() if each != name}
        assert name.lower() in refused(
            anyone.put(signed_put, content=b"z", headers=without), 400, "MalformedSecurityHeader"
        )
    more = refused(
        anyone.put(signed_put, content=b"z", headers={**sent, "x-goog-meta-b": "1"}), 400, "MalformedSecurityHeader"
    )
    assert "'x-goog-meta-b', which was not signed" in more
    assert server.call("GET", f"/storage/v1/b/{bucket}/o/kept.csv?alt=media").content == b"a,b"


def test_an_upload_that_is_not_what_it_says_leaves_nothing(server, anyone, bucket, url):
    wrong = base64.b64encode(b"\0" * 16).decode()
    refused(
        anyone.put(url("bad", method="PUT", content_md5=wrong), content=b"x", headers={"Content-MD5": wrong}),
        *(400, "BadDigest"),
    )
    crc = {"x-goog-hash": "crc32c=AAAAAA=="}
    refused(anyone.put(url("bad", method="PUT", headers=dict(crc)), content=b"x", headers=crc), 400, "BadDigest")
    digest = {"x-goog-content-sha256": hashlib.sha256(b"x").hexdigest()}
    at = url("bad", method="PUT", headers=dict(digest))
    refused(anyone.put(at, content=b"y", headers=digest), 400, "BadDigest")
    assert raw(server, "GET", url("bad"))[0] == 404
    assert anyone.put(at, content=b"x", headers=digest).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_whoever_signs_bounds_how_much_is_uploaded(anyone, url, chunked):
    bounds = {"x-goog-content-length-range": "2,5"}
    at = url(f"bounded-{chunked}", method="PUT", headers=dict(bounds))

    def put_it(data):
        return anyone.put(at, content=iter([data]) if chunked else data, headers=bounds)

    refused(put_it(b"1"), 400, "EntityTooSmall")
    refused(put_it(b"123456"), 400, "EntityTooLarge")
    assert anyone.get(url(f"bounded-{chunked}")).status_code == 404
    assert put_it(b"12345").status_code == 200
    other = {"x-goog-content-length-range": "2"}
    refused(
        anyone.put(url("b", method="PUT", headers=dict(other)), content=b"1", headers=other), 400, "InvalidArgument"
    )


def test_preconditions_are_headers(server, anyone, bucket, url):
    new = {"x-goog-if-generation-match": "0"}
    at = url("cond", method="PUT", headers=dict(new))
    answer = anyone.put(at, content=b"1", headers=new)
    generation = answer.headers["x-goog-generation"]
    refused(anyone.put(at, content=b"2", headers=new), 412, "PreconditionFailed")
    other = {"x-goog-if-generation-match": "5"}
    refused(anyone.delete(url("cond", method="DELETE", headers=dict(other)), headers=other), 412, "PreconditionFailed")
    refused(anyone.get(url("cond", headers=dict(other)), headers=other), 412, "PreconditionFailed")
    no = {"x-goog-if-generation-match": "x"}
    assert "x-goog-if-generation-match" in refused(
        anyone.delete(url("cond", method="DELETE", headers=dict(no)), headers=no), 400, "InvalidArgument"
    )
    same = {"x-goog-if-generation-match": generation, "x-goog-if-metageneration-match": "1"}
    assert anyone.delete(url("cond", method="DELETE", headers=dict(same)), headers=same).status_code == 204


@pytest.mark.parametrize("version", ["v2", "v4"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_resumable_upload_starts_signed_and_goes_on_by_its_own_url(server, anyone, bucket, url, version, method):
    data, start = os.urandom(600_000), {"x-goog-resumable": "start"}
    if method == "POST":
        at = url("big", version=version, method="RESUMABLE", content_type="video/x")
    else:
        at = url("big", version=version, method="PUT", content_type="video/x", headers=dict(start))
    begun = anyone.request(method, at, headers={"Content-Type": "video/x", **start}, content=b"")
    assert begun.status_code == 201, begun.text
    session = begun.headers["location"]
    assert session.startswith(server.url)
    part = anyone.put(session, content=data[:262144], headers={"Content-Range": "bytes 0-262143/*"})
    assert (part.status_code, part.headers["range"]) == (308, "bytes=0-262143")
    last = anyone.put(session, content=data[262144:], headers={"Content-Range": "bytes 262144-599999/600000"})
    assert last.status_code == 200, last.text
    answer = anyone.get(url("big"))
    assert (answer.content, answer.headers["content-type"]) == (data, "video/x")


def test_post_takes_a_resumable_start_only(anyone, server, signer, bucket):
    at = signed(server, signer, "POST", f"/{bucket}/o")
    assert "x-goog-resumable" in refused(anyone.post(at, content=b"x"), 400, "InvalidArgument")


# ---- what a URL gives, and when not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v4"])
def test_an_expired_url_says_when_it_ended(server, anyone, bucket, signer, blob, version):
    put(server, bucket, "late")
    if version == "v4":
        at = signing.url(
            *(signing.signer_of(signer), "GET", server.url, f"/{bucket}/late"), seconds=60, now=time.time() - 100
        )
    else:
        ended = int(time.time()) - 100
        at = blob("late").generate_signed_url(version="v2", expiration=ended, api_access_endpoint=server.url)
    assert "its signature held until" in refused(anyone.get(at), 400, "ExpiredToken")
    early = signing.url(
        *(signing.signer_of(signer), "GET", server.url, f"/{bucket}/late"), seconds=60, now=time.time() + 900
    )
    assert "is valid from" in refused(anyone.get(early), 403, "RequestTimeTooSkewed")


def test_a_wrong_signature_shows_what_should_have_been_signed(server, anyone, bucket, url):
    put(server, bucket, "o")
    answer = anyone.get(f"{url('o')}&extra=1")
    assert "does not match the signature you provided" in refused(answer, 403, "SignatureDoesNotMatch")
    told = ET.fromstring(answer.content)
    assert told.findtext("StringToSign").startswith("GOOG4-RSA-SHA256\n")
    assert f"GET\n/{bucket}/o\n" in told.findtext("CanonicalRequest")
    assert "extra=1" in told.findtext("CanonicalRequest")
    refused(anyone.delete(url("o")), 403, "SignatureDoesNotMatch")
    refused(anyone.get(url("o").replace(f"/{bucket}/o?", f"/{bucket}/other?")), 403, "SignatureDoesNotMatch")
    refused(anyone.get(url("o"), headers={"Host": "localhost"}), 403, "SignatureDoesNotMatch")
    missing = url("o").partition("&X-Goog-Signature")[0]
    assert "X-Goog-Signature" in refused(anyone.get(missing), 400, "MalformedSecurityHeader")
    assert ET.fromstring(anyone.get(missing).content).findtext("ParameterName") == "X-Goog-Signature"


def test_a_revoked_key_or_account_ends_its_urls_at_once(server, rows, anyone, bucket):
    key = account(server, rows)
    email = key["client_email"]
    grant(server, bucket, f"serviceAccount:{email}", "roles/storage.objectViewer")
    put(server, bucket, "soon-gone")
    at = signed(server, key, "GET", f"/{bucket}/soon-gone")

    def change(table, column, **values):
        rows.write(lambda tx: tx.execute(table.update().where(column).values(**values)).rowcount)

    of_key, of_account = service_account_keys.c.email == email, service_accounts.c.email == email
    assert anyone.get(at).status_code == 200
    change(service_account_keys, of_key, disabled=True)
    assert f"none of the 0 enabled keys of {email}" in refused(anyone.get(at), 403, "SignatureDoesNotMatch")
    change(service_account_keys, of_key, disabled=False)
    assert anyone.get(at).status_code == 200
    change(service_accounts, of_account, disabled=True)
    assert f"{email} is disabled" in refused(anyone.get(at), 403, "InvalidSecurity")
    change(service_accounts, of_account, disabled=False)
    rows.write(lambda tx: tx.execute(service_account_keys.delete().where(of_key)).rowcount)
    refused(anyone.get(at), 403, "SignatureDoesNotMatch")


def test_a_url_gives_what_its_signer_may_at_that_time_and_the_refusal_names_the_grant(server, rows, anyone, bucket):
    key = account(server, rows)
    member = f"serviceAccount:{key['client_email']}"
    put(server, bucket, "granted")
    read, write = (signed(server, key, method, f"/{bucket}/granted") for method in ("GET", "PUT"))
    sentence = refused(anyone.get(read), 403, "AccessDenied")
    for part in (member, "storage.objects.get", f"gs://{bucket}", "--role=roles/storage.objectViewer"):
        assert part in sentence, sentence
    grant(server, bucket, member, "roles/storage.objectViewer")
    assert anyone.get(read).content == b"x"
    sentence = refused(anyone.put(write, content=b"y"), 403, "AccessDenied")
    assert "storage.objects.create" in sentence
    listing = signed(server, key, "GET", f"/{bucket}")
    assert anyone.get(listing).status_code == 200
    nowhere = signed(server, key, "GET", "/no-such-bucket-here/o")
    refused(anyone.get(nowhere), 404, "NoSuchBucket")
    refused(anyone.get(signed(server, key, "GET", f"/{bucket}/none")), 404, "NoSuchKey")


def test_a_signature_in_a_url_means_an_object_and_none_of_our_pages(server, anyone, signer):
    """Nothing but objects is served to a signature: neither the JSON API nor ML takes one."""
    for path in ("/storage/v1/b", f"/v1/projects/{server.project}/models", "/healthz", "/storage/v1/b/x/o/y"):
        answer = anyone.get(signed(server, signer, "GET", path))
        assert answer.status_code in (403, 404), path
        assert answer.text.startswith("<?xml"), path


def test_a_part_of_an_object_is_not_taken_for_the_whole(server, anyone, signer, bucket):
    put(server, bucket, "whole", b"kept")
    for part in ("acl", "uploads", "tagging"):
        at = signed(server, signer, "PUT", f"/{bucket}/whole", query={part: ""})
        assert f"?{part}" in refused(anyone.put(at, content=b"<x/>"), 501, "NotImplemented")
    copy = {"x-goog-copy-source": f"/{bucket}/other"}
    at = signed(server, signer, "PUT", f"/{bucket}/whole", headers=copy)
    refused(anyone.put(at, content=b"", headers=copy), 501, "NotImplemented")
    assert server.call("GET", f"/storage/v1/b/{bucket}/o/whole?alt=media").content == b"kept"
    refused(anyone.patch(signed(server, signer, "GET", f"/{bucket}/whole")), 405, "MethodNotAllowed")


# ---- where it answers -----------------------------------------------------------------------------------------------


def test_by_the_host_names_that_mean_it_no_signature_is_needed(server, anyone, bucket):
    put(server, bucket, "a b/ü", b"ride")
    mine = {"Authorization": f"Bearer {server.token}"}
    path = f"/{quote('a b/ü')}"
    for host, at in (
        (HOST, f"/{bucket}{path}"),
        ("commondatastorage.googleapis.com", f"/{bucket}{path}"),
        (f"{bucket}.{HOST}", path),
        (f"{bucket}.{HOST}:443".upper(), path),
        (f"{bucket}.commondatastorage.googleapis.com", path),
    ):
        answer = anyone.get(at, headers={"Host": host, **mine})
        assert (answer.status_code, answer.content) == (200, b"ride"), (host, answer.text)
        assert "content-security-policy" not in answer.headers
        refused(anyone.get(at, headers={"Host": host}), 401, "AuthenticationRequired")
    assert anyone.get(f"/{bucket}{path}", headers=mine).status_code == 404, "a bucket is no page of ours"
    assert anyone.put(f"/{bucket}{path}", headers=mine, content=b"z").status_code in (404, 405)


def test_an_object_for_everybody_needs_nothing(server, anyone):
    name = f"public-{uuid.uuid4().hex[:10]}"
    server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": name})
    grant(server, name, "allUsers", "roles/storage.objectViewer")
    put(server, name, "page.html", b"<p>hi", "text/html")
    for host, path in ((HOST, f"/{name}/page.html"), (f"{name}.{HOST}", "/page.html")):
        answer = anyone.get(path, headers={"Host": host})
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"<p>hi", "text/html")
        answer = anyone.get(f"{path}?response-content-type=text/evil", headers={"Host": host})
        assert answer.headers["content-type"] == "text/html", "nobody is asked to sign, so nobody is listened to"
        refused(anyone.put(path, headers={"Host": host}, content=b"z"), 401, "AuthenticationRequired")
        refused(anyone.delete(path, headers={"Host": host}), 401, "AuthenticationRequired")


@pytest.mark.parametrize("style", ["virtual_hosted_style", "bucket_bound_hostname", "path"])
def test_urls_for_googles_own_names_work_where_those_are_ours(server, anyone, bucket, blob, style):
    """As in a job, whose requests for Google's names come here: the name is in the Host header."""
    rest = {
        "virtual_hosted_style": {"virtual_hosted_style": True, "api_access_endpoint": f"https://{HOST}"},
        "bucket_bound_hostname": {"bucket_bound_hostname": f"{bucket}.{HOST}", "scheme": "https"},
        "path": {"api_access_endpoint": f"https://{HOST}"},
    }[style]

    def at(name, **more):
        split = urlsplit(blob(name).generate_signed_url(version="v4", expiration=TEN, **rest, **more))
        assert split.hostname == (HOST if style == "path" else f"{bucket}.{HOST}")
        return f"{server.url}{split.path}?{split.query}", {"Host": split.netloc}

    where, host = at("v/ü 1", method="PUT")
    assert anyone.put(where, content=b"one", headers=host).status_code == 200
    where, host = at("v/ü 1")
    assert anyone.get(where, headers=host).content == b"one"
    refused(anyone.get(where), 403, "SignatureDoesNotMatch") if style == "path" else None
    where, host = at("v/2", method="RESUMABLE")
    begun = anyone.post(where, headers={**host, "x-goog-resumable": "start"})
    assert begun.status_code == 201, begun.text
    session = urlsplit(begun.headers["location"])
    assert session.netloc == HOST
    done = anyone.put(f"{session.path}?{session.query}", headers={"Host": HOST}, content=b"two")
    assert done.status_code == 200, done.text
    assert server.call("GET", f"/storage/v1/b/{bucket}/o/v%2F2?alt=media").content == b"two"


def test_googles_own_urls_work_unchanged_through_the_proxy(server, bucket, blob):
    trusted = ssl.create_default_context(cafile=server.address.bundle)
    proxy = f"http://127.0.0.1:{server.address.proxy_port}"
    with httpx.Client(proxy=proxy, verify=trusted, trust_env=False, timeout=60) as client:
        for rest in ({}, {"virtual_hosted_style": True}):
            at = {
                method: blob("t/ü 1").generate_signed_url(
                    version="v4", expiration=TEN, method=method, api_access_endpoint=f"https://{HOST}", **rest
                )
                for method in ("PUT", "GET", "DELETE", "RESUMABLE")
            }
            assert client.put(at["PUT"], content=b"one").status_code == 200
            assert client.get(at["GET"]).content == b"one"
            begun = client.post(at["RESUMABLE"], headers={"x-goog-resumable": "start"})
            assert client.put(begun.headers["location"], content=b"two").status_code == 200
            assert client.get(at["GET"]).content == b"two"
            assert client.delete(at["DELETE"]).status_code == 204


def test_a_signature_in_the_header_is_taken_where_the_host_means_objects(server, anyone, signer, bucket):
    put(server, bucket, "by-header", b"ride")
    at = signed(server, signer, "GET", f"/{bucket}/by-header", base=f"http://{HOST}")
    refused(
        anyone.get(f"/{bucket}/by-header", headers={"Host": HOST, "Authorization": "GOOG4-RSA-SHA256 Credential=x"}),
        *(400, "MalformedSecurityHeader"),
    )
    assert anyone.get(at.removeprefix(f"http://{HOST}"), headers={"Host": HOST}).content == b"ride"


def test_a_bucket_is_listed_by_marker_and_by_token(server, anyone, signer, bucket):
    for name in ("l/a", "l/b/1", "l/b/2", "l/c<&>\x01", "l/ü"):
        put(server, bucket, name)

    def page(**query):
        answer = anyone.get(signed(server, signer, "GET", f"/{bucket}", query=query))
        assert answer.status_code == 200, answer.text
        return answer.text if "\x01" in query else answer

    def every(token, following, **query):
        found, after = [], None
        while True:
            answer = page(**query, **({token: after} if after else {}))
            told = ET.fromstring(answer.content)
            assert told.tag == f"{SPACE}ListBucketResult"
            found += [each.findtext(f"{SPACE}Prefix") for each in told.findall(f"{SPACE}CommonPrefixes")]
            found += [each.findtext(f"{SPACE}Key") for each in told.findall(f"{SPACE}Contents")]
            if told.findtext(f"{SPACE}IsTruncated") == "false":
                return found
            after = told.findtext(f"{SPACE}{following}")

    asked = {"prefix": "l/", "max-keys": "1", "encoding-type": "url"}
    names = ["l/a", "l/b/1", "l/b/2", "l/c%3C%26%3E%01", "l/%C3%BC"]
    second = {"list-type": "2", **asked}
    assert every("continuation-token", "NextContinuationToken", **second) == names
    folders = ["l/a", "l/b/", "l/c%3C%26%3E%01", "l/%C3%BC"]
    assert every("continuation-token", "NextContinuationToken", delimiter="/", **second) == folders
    plain = {"prefix": "l/", "max-keys": "1"}
    server.call("DELETE", f"/storage/v1/b/{bucket}/o/{quote('l/c<&>' + chr(1), safe='')}")
    assert every("marker", "NextMarker", **plain) == ["l/a", "l/b/1", "l/b/2", "l/ü"]
    assert every("marker", "NextMarker", delimiter="/", **plain) == ["l/a", "l/b/", "l/ü"]
    refused(anyone.get(signed(server, signer, "GET", f"/{bucket}", query={"max-keys": "-1"})), 400, "InvalidArgument")


# ---- in a page of another site --------------------------------------------------------------------------------------

RULES = [
    {
        "origin": ["https://fares.example"],
        "method": ["GET", "PUT", "POST"],
        "responseHeader": ["Content-Type", "x-goog-resumable", "Location", "Range"],
        "maxAgeSeconds": 60,
    }
]


@pytest.fixture
def open_bucket(server, bucket):
    answer = server.call("PATCH", f"/storage/v1/b/{bucket}", json={"cors": RULES})
    assert answer.status_code == 200, answer.text
    yield bucket
    assert server.call("PATCH", f"/storage/v1/b/{bucket}", json={"cors": []}).status_code == 200


def test_a_page_of_a_named_site_may_use_signed_urls(server, anyone, open_bucket, url):
    page = {"Origin": "https://fares.example"}
    at = url("cors", method="PUT", content_type="text/csv")
    asked = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type, x-evil"}
    told = anyone.options(at, headers={**page, **asked})
    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] == "https://fares.example"
    assert told.headers["access-control-allow-methods"] == "GET,PUT,POST"
    assert told.headers["access-control-allow-headers"] == "content-type"
    assert told.headers["access-control-max-age"] == "60"
    answer = anyone.put(at, content=b"1", headers={**page, "Content-Type": "text/csv"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://fares.example")
    assert answer.headers["access-control-expose-headers"] == "Content-Type,x-goog-resumable,Location,Range"
    refusal = anyone.get(url("cors") + "x", headers=page)
    assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (400, "https://fares.example")
    begun = anyone.post(url("cors", method="RESUMABLE"), headers={**page, "x-goog-resumable": "start"})
    session = begun.headers["location"]
    told = anyone.options(session, headers={**page, "Access-Control-Request-Method": "PUT"})
    assert told.headers["access-control-allow-origin"] == "https://fares.example"
    done = anyone.put(session, headers=page, content=b"2")
    assert (done.status_code, done.headers["access-control-allow-origin"]) == (200, "https://fares.example")


def test_a_page_of_any_other_site_is_told_nothing(server, anyone, open_bucket, url):
    put(server, open_bucket, "cors-2")
    for origin in ("https://evil.example", "https://fares.example.evil", "null"):
        told = anyone.options(url("cors-2"), headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
        assert "access-control-allow-origin" not in told.headers
        answer = anyone.get(url("cors-2"), headers={"Origin": origin})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
    for headers in ({"Origin": "https://fares.example"}, {}):
        refused(anyone.options(url("cors-2"), headers=headers), 400, "InvalidArgument")
    none = {"Origin": "https://fares.example", "Access-Control-Request-Method": "DELETE"}
    assert "access-control-allow-origin" not in anyone.options(url("cors-2"), headers=none).headers


# ---- by a command ---------------------------------------------------------------------------------------------------


def test_the_command_signs_for_this_server(server, anyone, bucket, signer, tmp_path):
    key = tmp_path / "key.json"
    key.write_text(json.dumps(signer))
    words = ("storage", "sign-url", f"gs://{bucket}/by command/ü.csv", "--private-key-file", str(key))
    ended = run_cli(server, *words, "--http-verb", "PUT", "--content-type", "text/csv", "-d", "10m", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["http_verb"], told["resource"]) == ("PUT", f"gs://{bucket}/by command/ü.csv")
    assert told["signed_url"].startswith(f"{server.url}/{bucket}/")
    answer = anyone.put(told["signed_url"], content=b"1", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 200, answer.text
    shown = run_cli(server, *words)
    at = next(line.partition(" ")[2].strip("'") for line in shown.stdout.splitlines() if line.startswith("signed_url:"))
    assert anyone.get(at).content == b"1"
    owner = run_cli(server, *words[:3])
    assert owner.returncode == 0, owner.stderr


def test_the_command_says_what_it_cannot_sign(server, bucket, tmp_path):
    for words, said in (
        (["gs://b-1/o", "--private-key-file", str(tmp_path / "none.json")], "none.json"),
        (["gs://b-1/o", "--duration", "8d"], "seven days"),
        (["gs://b-1/o", "--http-verb", "PATCH"], "'PATCH'"),
        (["gs://b-1/o", "--headers", "x"], "--headers: expected KEY=VALUE"),
        (["https://b-1/o"], "gs://BUCKET/OBJECT"),
    ):
        ended = run_cli(server, "storage", "sign-url", *words)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert said in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_gclouds_own_command_signs_for_this_server(server, anyone, bucket, signer, tmp_path):
    put(server, bucket, "by gcloud/ü.csv", b"ride")
    key = tmp_path / "key.json"
    key.write_text(json.dumps(signer))
    told = subprocess.run(
        [sys.executable, "-m", "taxiway", "env", "--home", str(server.home)], capture_output=True, text=True, check=True
    ).stdout
    exported = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | exported
    environ |= {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}
    words = ["gcloud", "storage", "sign-url", f"gs://{bucket}/by gcloud/ü.csv", f"--private-key-file={key}"]
    command = [*words, "--query-params=response-content-disposition=attachment; filename=a", "--format=json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
    if "pyOpenSSL" in ended.stderr:
        pytest.skip("this gcloud has no pyOpenSSL, and signs nothing")
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(ended.stdout)
    answer = anyone.get(row["signed_url"])
    assert (answer.status_code, answer.content) == (200, b"ride"), answer.text
    assert answer.headers["content-disposition"] == "attachment; filename=a"
