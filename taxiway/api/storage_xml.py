"""The Cloud Storage XML API, as far as signed URLs, browsers and TensorFlow's reader use it: /{bucket}/{object}.

https://cloud.google.com/storage/docs/xml-api/overview. It answers to the host names that mean it, and by any other name
to requests that are signed, so that buckets and our own pages cannot have the same address. What the JSON API says in a
query is said in headers here, and errors are XML.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from taxiway import errors, hosts, names
from taxiway.api import call as calls
from taxiway.api import cors, storage_acl, storage_data, wire
from taxiway.api import storage_forms as forms
from taxiway.api import storage_xml_forms as xml
from taxiway.api.call import Call
from taxiway.iam import members, signatures
from taxiway.storage import listings, objects, uploads
from taxiway.storage.listings import PAGE
from taxiway.storage.objects import Metadata
from taxiway.storage.uploads import Checksums

HOSTS = ("storage.googleapis.com", "commondatastorage.googleapis.com")
# Paths of the JSON API, which has its own under the same host names.
JSON_PATHS = ("/storage/", "/upload/", "/resumable/", "/download/", "/batch/")
# Parts of buckets and objects that are addressed by a word in the query; a plain PUT must not overwrite the whole.
PARTS = (
    *("acl", "billing", "compose", "cors", "defaultObjectAcl", "encryption", "encryptionConfig", "lifecycle"),
    *("location", "logging", "notification", "partNumber", "policy", "publicAccessBlock", "restore", "retention"),
    *("storageClass", "tagging", "torrent", "uploadId", "uploads", "versioning", "versions", "website"),
)
OVERRIDES = {"response-content-type": b"content-type", "response-content-disposition": b"content-disposition"}
# A page of somebody's bucket under our own name must not act as one of our pages.
OURS = [(b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff")]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


# ---- where it answers, and to whom ----------------------------------------------------------------------------------


def bucket_of(host: str) -> str | None:
    """What a host name (lower case, without its port) says of the bucket.

    None: nothing, it is one of our own names. "": the bucket is the first part of the path. Else the host names it.
    """
    for name in HOSTS:
        if host == name:
            return ""
        if host.endswith("." + name):
            return host[: -len(name) - 1]
    return None


def caller(call: Call) -> members.Caller:
    """Who sends a request: whoever signed it, else as `call.caller`. Raises what `signatures.caller` does."""
    scope = call.request.scope
    authorization = call.request.headers.get("authorization", "")
    if authorization[:4].upper() == "GOOG" or (not authorization and signatures.hinted(scope["query_string"])):
        sent = signatures.Sent(
            method=call.request.method,
            path=scope["raw_path"].partition(b"?")[0].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            resource=scope["path"],
        )
        signer = signatures.caller(call.house.db, sent, now=call.now)
        if signer is not None:
            return signer
    return calls.caller(call.house, authorization, call.query, call.now)


def preflight(call: Call) -> Response:
    """OPTIONS: a browser asks whether a page of another site may send what it is about to send."""
    said = call.request.headers
    origin, method = said.get("origin", ""), said.get("access-control-request-method", "")
    if not origin or not method:
        raise errors.InvalidArgument("A browser's preflight (OPTIONS) has Origin and Access-Control-Request-Method.")
    rules = cors.rules_of(call.house.db, call.path["bucket"])
    told = cors.preflight(rules, origin, method, said.get("access-control-request-headers", ""))
    return Response(status_code=200, headers={**told, "Vary": "Origin"})


# ---- objects --------------------------------------------------------------------------------------------------------


async def download(call: Call) -> Response:
    """GET or HEAD of an object: its bytes, and what is known of it in headers."""
    _whole(call)
    overrides = _overrides(call)
    said = call.request.headers
    call.query = {**xml.generation(call.query), **xml.conditions(said)}
    if any(name in said for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")):
        found = objects.get(
            call.house.db, call.path["bucket"], call.path["object"], generation=forms.whole(call.query, "generation")
        )
        if xml.unchanged(said, found):
            return Response(status_code=304, headers={"ETag": xml.etag(found)})
        call.query["ifGenerationMatch"] = str(found.generation)  # what is sent is what was asked about
    answer = await storage_data.download(call)
    if answer.status_code == 416:
        told = xml.refusal(errors.OutOfRange(bytes(answer.body).decode()))
        told.headers["Content-Range"] = answer.headers["Content-Range"]
        return told
    kept = [(name, value) for name, value in answer.raw_headers if name not in overrides and name != b"etag"]
    answer.raw_headers = [*kept, *overrides.items(), (b"etag", xml.etag_of(answer.raw_headers))]
    if bucket_of(hosts.name_in(call.request.headers.get("host", ""))) is None:
        answer.raw_headers += OURS
    return answer


async def put(call: Call) -> Response:
    """PUT of an object: its bytes in one request, its metadata in headers; or the start of a resumable upload."""
    _whole(call)
    said = call.request.headers
    if "x-goog-resumable" in said:
        return await begin(call)
    if "x-goog-copy-source" in said:
        raise errors.Unimplemented("x-goog-copy-source: copying by the XML API is not offered; copy by the JSON API.")
    name, metadata = await _named(call)
    low, high = xml.length_range(said)
    size = storage_data.whole_header(call.request, "content-length")
    if size is not None:
        xml.fits(size, low, high)
    body = _watched(call.request.stream(), low, high, said.get("x-goog-content-sha256", signatures.UNSIGNED))
    made = await storage_data.store(call, name, metadata, [], body, size)
    hashes = ",".join(f"{word}={value}" for word, value in (("crc32c", made.crc32c), ("md5", made.md5)) if value)
    told = {
        "ETag": xml.etag(made),
        "x-goog-generation": str(made.generation),
        "x-goog-metageneration": str(made.metageneration),
        "x-goog-hash": hashes,
        "x-goog-stored-content-encoding": made.content_encoding or "identity",
        "x-goog-stored-content-length": str(made.size),
    }
    return Response(status_code=200, headers=told)


async def begin(call: Call) -> Response:
    """POST or PUT with x-goog-resumable: start -> 201 and the session's URL, whose PUTs need no signature."""
    _whole(call)
    said = call.request.headers
    if said.get("x-goog-resumable", "").lower() != "start":
        raise errors.InvalidArgument("x-goog-resumable: expected start, with which POST begins a resumable upload.")
    if "x-goog-content-length-range" in said:
        raise errors.Unimplemented(
            "x-goog-content-length-range: not offered with a resumable upload; sign a PUT of the whole object."
        )
    name, metadata = await _named(call)
    session = await storage_data.begin(call, name, metadata, Checksums(), None)
    path = f"/upload/storage/v1/b/{quote(call.path['bucket'], safe='')}/o"
    url = f"{_path_style(call.base)}{path}?uploadType=resumable&upload_id={session}"
    return Response(status_code=201, headers={"Location": url, "X-GUploader-UploadID": session})


def delete(call: Call) -> None:
    _whole(call)
    query = {**xml.generation(call.query), **xml.conditions(call.request.headers)}
    objects.delete(
        call.house.db,
        call.house.blobs,
        call.path["bucket"],
        call.path["object"],
        now=call.now,
        generation=forms.whole(query, "generation"),
        conditions=forms.conditions(query),
    )


# ---- a bucket -------------------------------------------------------------------------------------------------------


def list_objects(call: Call) -> Response:
    """GET of a bucket: its objects as ListBucketResult, by marker or (list-type=2) by continuation token."""
    _whole(call)
    query, bucket = call.query, call.path["bucket"]
    prefix, delimiter, second = query.get("prefix", ""), query.get("delimiter", ""), query.get("list-type") == "2"
    size = wire.page_size(query, PAGE, PAGE, "max-keys")
    after = query.get("start-after" if second else "marker", "")
    start = _past(after, prefix, delimiter)
    if second and (key := wire.page_key(query, tuple[str], "continuation-token")):
        start = key[0]
    found = listings.page(call.house.db, bucket, prefix=prefix, delimiter=delimiter, start=start, limit=size)
    shown = quote if query.get("encoding-type") == "url" else str
    told: dict[str, object] = {"Name": bucket, "Prefix": shown(prefix)}
    told |= {"StartAfter": shown(after)} if second else {"Marker": shown(after)}
    if found.following and second:
        told["NextContinuationToken"] = wire.page_token([found.following])
    elif found.following:
        told["NextMarker"] = shown(max([*found.prefixes[-1:], *(each.name for each in found.items[-1:])]))
    told |= {"MaxKeys": size, "Delimiter": shown(delimiter), "IsTruncated": str(bool(found.following)).lower()}
    if second:
        told["KeyCount"] = len(found.items) + len(found.prefixes)
    rows = "".join(xml.row(each, shown) for each in found.items)
    folders = "".join(
        f"<CommonPrefixes>{xml.elements({'Prefix': shown(each)})}</CommonPrefixes>" for each in found.prefixes
    )
    space = ' xmlns="http://doc.s3.amazonaws.com/2006-03-01"'
    return Response(xml.document("ListBucketResult", xml.elements(told) + rows + folders, space), media_type=xml.XML)


def _past(marker: str, prefix: str, delimiter: str) -> str:
    """Where a listing goes on after a name, or after a folder that was told by its common prefix."""
    if not marker:
        return ""
    folder = delimiter and marker.endswith(delimiter) and marker.startswith(prefix) and len(marker) > len(prefix)
    return listings.after_all(marker) if folder else marker + "\0"


# ---- what a request says --------------------------------------------------------------------------------------------


def _whole(call: Call) -> None:
    """Refuse what addresses a part of a bucket or an object: it would be taken for the whole."""
    for name in PARTS:
        if name in call.query:
            raise errors.Unimplemented(f"?{name}: the XML API offers whole objects here; use the JSON API for it.")


async def _named(call: Call) -> tuple[str, Metadata]:
    """The name and the metadata of the object that an upload is to make; from here on its query is the JSON API's."""
    name, metadata = names.object_name(call.path["object"], "object"), xml.metadata(call.request.headers)
    call.query = xml.query(call.request.headers)
    acl = await asyncio.to_thread(storage_acl.of_new_object, call, call.path["bucket"], msgspec.UNSET)
    return name, msgspec.structs.replace(metadata, **acl)


async def _watched(body: AsyncIterator[bytes], low: int, high: int | None, digest: str) -> AsyncIterator[bytes]:
    """The body, held to its length and, if the request says x-goog-content-sha256, to that hash."""
    size, hashed = 0, None if digest == signatures.UNSIGNED else hashlib.sha256()
    async for chunk in body:
        size += len(chunk)
        if high is not None and size > high:
            xml.fits(size, low, high)
        if hashed is not None:
            hashed.update(chunk)
        yield chunk
    xml.fits(size, low, high)
    if hashed is not None and hashed.hexdigest() != digest.lower():
        raise uploads.BadDigest(
            f"x-goog-content-sha256 says {digest[:100]!r}, and the bytes have {hashed.hexdigest()!r}. Nothing is kept."
        )


def _overrides(call: Call) -> dict[bytes, bytes]:
    """Headers of a download that the URL asks for; an anonymous caller's are not listened to."""
    told = {header: call.query[name] for name, header in OVERRIDES.items() if call.query.get(name)}
    for value in told.values():
        if _CONTROL.search(value):
            raise errors.InvalidArgument(f"A response header must not contain a control character: {value[:100]!r}.")
    return {name: value.encode() for name, value in told.items()} if call.who.signed_in else {}


def _path_style(base: str) -> str:
    """scheme://host without the bucket in the host's name."""
    scheme, _, host = base.partition("://")
    bucket = bucket_of(hosts.name_in(host))
    return f"{scheme}://{host[len(bucket) + 1 :]}" if bucket else base
