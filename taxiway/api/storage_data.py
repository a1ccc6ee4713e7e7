"""Objects' bytes on the wire: uploads in three forms, downloads with ranges. Everything here streams."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taxiway import errors, listeners, names
from taxiway.api import storage_acl, transcoding
from taxiway.api import storage_forms as forms
from taxiway.api.call import Call
from taxiway.iam import audit
from taxiway.storage import objects, uploads
from taxiway.storage.blobs import READ, Blobs
from taxiway.storage.conditions import Conditions
from taxiway.storage.objects import Metadata, Object
from taxiway.storage.uploads import Checksums, Intent

log = logging.getLogger("taxiway.storage")

METADATA_BYTES = 1024 * 1024  # a JSON metadata part or body: far above what an object may have
PEEK = 32  # chunks between two looks whether the reader is still there
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


# ---- uploads --------------------------------------------------------------------------------------------------------


async def upload(call: Call) -> Any:
    """POST /upload/storage/v1/b/{bucket}/o: uploadType media, multipart or resumable; with upload_id as PUT."""
    if "upload_id" in call.query:
        return await resume(call)
    kind = call.query.get("uploadType", "")
    if kind == "media":
        return await _media(call)
    if kind == "multipart":
        return await _multipart(call)
    if kind == "resumable":
        return await _begin(call)
    raise errors.InvalidArgument(
        faults=[("uploadType", f"Expected media, multipart or resumable; got {kind[:100]!r}.")]
    )


async def resume(call: Call) -> Any:
    """PUT (or POST) to a resumable session's URL: 308 and a Range until all is here, then the object's resource."""
    headers = call.request.headers
    said = headers.get("content-range")
    session = _session(call)
    result = await uploads.receive(
        call.house.db,
        call.house.blobs,
        session,
        call.request.stream(),
        uploads.content_range(said) if said else None,
        checksums=header_checksums(call.request),
        now=call.now,
    )
    if isinstance(result, Object):
        return forms.object_form(call.base, result)
    received = {"Range": f"bytes=0-{result - 1}"} if result else {}
    return Response(status_code=308, headers={**received, "X-GUploader-UploadID": session})


async def cancel(call: Call) -> Response:
    """DELETE of a session's URL; 499 is what Cloud Storage answers when that went well."""
    await uploads.cancel(call.house.db, call.house.blobs, _session(call))
    return Response(status_code=499)


async def _media(call: Call) -> dict[str, Any]:
    headers = call.request.headers
    encoding = call.query.get("contentEncoding") or headers.get("content-encoding")
    said = forms.metadata_of(forms.content_type(headers.get("content-type")), encoding)
    if acl := await _acl(call, UNSET):
        said = msgspec.structs.replace(said, **acl)
    size = whole_header(call.request, "content-length")
    made = await store(call, _name(call, None), said, [], call.request.stream(), size)
    return await _form(call, made)


async def _multipart(call: Call) -> dict[str, Any]:
    parts = Related(call.request.stream(), call.request.headers.get("content-type", ""))
    body, kind = await parts.metadata()
    said = forms.said(body)
    acl = await _acl(call, said.acl)
    metadata = forms.metadata({"content_type": forms.content_type(kind), **_told(call, said), **acl})
    size = whole_header(call.request, "content-length")
    made = await store(call, _name(call, said.name), metadata, [said.checksums()], parts.data(), size)
    return await _form(call, made)


async def _begin(call: Call) -> Response:
    headers = call.request.headers
    raw = await _limited(call.request.stream())
    said = forms.said(_decoded(raw, "The request body"))
    name = _name(call, said.name)
    kind = forms.content_type(headers.get("x-upload-content-type"))
    acl = await _acl(call, said.acl)
    metadata = forms.metadata({"content_type": kind, **_told(call, said), **acl})
    size = whole_header(call.request, "x-upload-content-length")
    session = await begin(call, name, metadata, said.checksums(), size)
    path = call.request.scope["path"]
    asked = f"&fields={quote(call.query['fields'], safe='')}" if call.query.get("fields") else ""
    return Response(
        status_code=200,
        headers={
            "Location": f"{call.base}{path}?uploadType=resumable{asked}&upload_id={session}",
            "X-GUploader-UploadID": session,
        },
    )


async def begin(call: Call, name: str, metadata: Metadata, told: Checksums, size: int | None) -> str:
    """A new resumable session's id: whoever has it may send the bytes, with what the caller may now."""
    bucket = call.path["bucket"]
    intent = Intent(
        metadata=metadata,
        conditions=forms.conditions(call.query),
        checksums=told,
        may_replace=await asyncio.to_thread(call.may, "storage.objects.delete", bucket=bucket),
    )
    return await uploads.begin(call.house.db, bucket, name, intent, owner=call.who.member, size=size, now=call.now)


async def store(
    call: Call,
    name: str,
    metadata: Metadata,
    told: list[Checksums],
    body: AsyncIterator[bytes],
    size: int | None,
) -> Object:
    """All bytes of one request, hashed, durable and then visible; nothing is left of a request that fails."""
    bucket = call.path["bucket"]
    wanted: Conditions = forms.conditions(call.query)
    writer = call.house.blobs.writer(size=size)
    try:
        async for chunk in body:
            if chunk:
                await writer.write(chunk)
        content = await writer.finish()
        for checksums in (*told, header_checksums(call.request)):
            checksums.check(name, content)
    except BaseException:
        await writer.abandon()
        raise
    return await objects.insert(
        call.house.db,
        call.house.blobs,
        bucket,
        name,
        content,
        metadata,
        owner=call.who.member,
        now=call.now,
        conditions=wanted,
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )


async def _acl(call: Call, said: object) -> dict[str, Any]:
    """What the request says of the object's access control list; nothing is read for one that says nothing."""
    if said is UNSET and not call.query.get("predefinedAcl"):
        return {}
    return await asyncio.to_thread(storage_acl.of_new_object, call, call.path["bucket"], said)


async def _form(call: Call, made: Object) -> dict[str, Any]:
    form = forms.object_form(call.base, made)
    if storage_acl.full(call):
        form.update(await asyncio.to_thread(lambda: storage_acl.shown(call, made.bucket)(made)))
    return form


def _told(call: Call, said: forms.Said) -> dict[str, Any]:
    """What the body says of an object; without a content type it does not undo what the part's header says."""
    changes = {field: value for field, value in said.changes().items() if value is not None}
    if call.query.get("contentEncoding"):
        changes["content_encoding"] = call.query["contentEncoding"]
    return changes


def _name(call: Call, said: str | None) -> str:
    """The object's name from the query or the metadata; checked before a byte is read."""
    name = call.query.get("name") or said
    if not name:
        raise errors.InvalidArgument(
            faults=[("name", "Required: the object's name, in the query (name=) or in the metadata.")]
        )
    named = names.object_name(name, "name")
    call.resource = audit.object_of(call.path["bucket"], named)
    return named


def _session(call: Call) -> str:
    session = call.query.get("upload_id", "")
    if not session:
        raise errors.InvalidArgument(
            faults=[("upload_id", "Required: send to the URL that the upload's first answer gave as Location.")]
        )
    return session


def header_checksums(request: Request) -> Checksums:
    """Content-MD5, and x-goog-hash: crc32c=...,md5=... in one header or several."""
    told: dict[str, str | None] = {"md5": None, "crc32c": None}
    for name, value in request.scope["headers"]:  # once, and not by each name: most requests have neither
        if name == b"content-md5":
            told["md5"] = value.decode("latin-1")
        elif name == b"x-goog-hash":
            pairs = (pair.strip().partition("=") for pair in value.decode("latin-1").split(","))
            told |= {word: said for word, _, said in pairs if word in told}
    return Checksums(**told)


def whole_header(request: Request, name: str) -> int | None:
    text = request.headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


async def _limited(body: AsyncIterator[bytes]) -> bytes:
    raw = b""
    async for chunk in body:
        raw += chunk
        if len(raw) > METADATA_BYTES:
            raise errors.TooLarge(f"An object's metadata is over {METADATA_BYTES} bytes; send less of it.")
    return raw


def _decoded(raw: bytes, what: str) -> Any:
    """JSON, or None for none."""
    try:
        return msgspec.json.decode(raw) if raw.strip() else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidArgument(f"{what} is not JSON: {error}.") from error


class Related:
    """A multipart/related body of two parts, metadata as JSON and the bytes, read as it arrives.

    Takes what clients send: a boundary in single or double quotes or none (gcloud, gsutil), lines that end in LF alone
    (gcsfs, gcloud).
    """

    def __init__(self, stream: AsyncIterator[bytes], content_type: str) -> None:
        match = re.search(r"boundary=(\"[^\"]+\"|'[^']+'|[^;\s]+)", content_type, re.IGNORECASE)
        boundary = match[1].strip("\"'").encode("latin-1") if match else b""
        if not boundary or not content_type.lower().startswith("multipart/"):
            raise errors.InvalidArgument(
                f"Content-Type: expected multipart/related; boundary=..., got {content_type[:100]!r}."
            )
        self._marker = b"--" + boundary
        self._stream = stream
        self._buffer = b""
        self._line = b"\r\n"

    async def metadata(self) -> tuple[Any, str | None]:
        """(the JSON of the first part, the Content-Type of the second)."""
        await self._need(self._marker, at_start=True)
        await self._need(b"\n")
        self._line = b"\r\n" if self._buffer.partition(b"\n")[0].endswith(b"\r") else b"\n"
        await self._next_part()
        raw = await self._taken(self._line + self._marker)
        kind = await self._next_part(after=b"")
        return _decoded(raw, "The metadata part"), kind

    async def data(self) -> AsyncIterator[bytes]:
        """The bytes of the second part. Raises InvalidArgument if they end before the closing boundary."""
        end = self._line + self._marker
        ended = False
        held, seen = self._buffer, 0
        while True:
            cut = held.find(end, seen)
            after = held[cut + len(end) : cut + len(end) + 2] if cut >= 0 else b""
            if after == b"--":
                ended = True
                yield held[:cut]
                break
            if after[:1].isspace():
                raise errors.InvalidArgument("The multipart body has a third part; expected metadata, then the bytes.")
            if after not in (b"", b"-"):  # bytes that only begin as the boundary does
                seen = cut + len(end)
                continue
            safe = cut if cut >= 0 else len(held) - len(end) + 1
            if safe > 0:
                yield held[:safe]
                held, seen = held[safe:], max(seen - safe, 0)
            chunk = await anext(self._stream, None)
            if chunk is None:
                break
            held += chunk
        if not ended:
            raise errors.InvalidArgument(
                "The multipart body ends before its closing boundary: it was cut off. Nothing was stored; send again."
            )
        async for _ in self._stream:
            pass  # an epilogue

    async def _next_part(self, after: bytes | None = None) -> str | None:
        """Go past a boundary's line and the part's headers; its Content-Type."""
        if after is None:
            self._buffer = self._buffer[len(self._marker) :]
        await self._need(self._line)
        if self._buffer.startswith(b"--"):
            raise errors.InvalidArgument("The multipart body has one part; expected the metadata, then the bytes.")
        self._buffer = self._buffer[self._buffer.index(self._line) :]
        blank = self._line + self._line
        await self._need(blank)
        head, _, self._buffer = self._buffer.partition(blank)
        for line in head.decode("latin-1").splitlines():
            field, _, value = line.partition(":")
            if field.strip().lower() == "content-type":
                return value.strip()
        return None

    async def _taken(self, end: bytes) -> bytes:
        await self._need(end)
        taken, _, self._buffer = self._buffer.partition(end)
        return taken

    async def _need(self, what: bytes, *, at_start: bool = False) -> None:
        while what not in self._buffer:
            if len(self._buffer) > METADATA_BYTES:
                raise errors.InvalidArgument("The multipart body's metadata part does not end; check the boundary.")
            chunk = await anext(self._stream, None)
            if chunk is None:
                raise errors.InvalidArgument(
                    f"The multipart body has no {what!r} where one was expected; check the boundary and its parts."
                )
            self._buffer += chunk
        if at_start:
            self._buffer = self._buffer[self._buffer.index(what) :]


# ---- downloads ------------------------------------------------------------------------------------------------------


async def download(call: Call) -> Response:
    """GET or HEAD of an object's bytes: 200, or 206 for a Range."""
    db, blobs = call.house.db, call.house.blobs
    bucket, name = call.path["bucket"], call.path["object"]
    generation, wanted = forms.whole(call.query, "generation"), forms.conditions(call.query)
    while True:
        # One indexed row: reading it here costs less than a thread would.
        found, data = objects.get_with_data(db, bucket, name, generation=generation, conditions=wanted)
        if call.by_list:
            await asyncio.to_thread(storage_acl.still, call, found)
        try:
            file = -1 if data is not None or call.request.method == "HEAD" else blobs.open(found.blob)
            break
        except FileNotFoundError:
            continue  # deleted or replaced since the row was read: it says so the next time
    if transcoding.applies(found, call.request):
        return transcoding.Unzipped(blobs, file if data is None else data, forms.data_headers(found))
    try:
        span = _span(call.request.headers.get("range", ""), found.size)
    except errors.OutOfRange as error:
        _close(file)
        return Response(str(error), 416, headers={"Content-Range": f"bytes */{found.size}"}, media_type="text/plain")
    start, stop = span or (0, found.size)
    headers = [*forms.data_headers(found), (b"content-length", str(stop - start).encode())]
    if span is not None:
        headers.append((b"content-range", f"bytes {start}-{stop - 1}/{found.size}".encode()))
    status = 200 if span is None else 206
    if file >= 0:
        return Download(blobs, file, start, stop, status, headers)
    response = Response((data or b"")[start:stop] if call.request.method == "GET" else b"", status)
    response.raw_headers = headers
    return response


class Download(Response):
    """Sends part of a file: from a thread where the connection allows it, else in pieces, of which memory holds two."""

    def __init__(
        self, blobs: Blobs, file: int, start: int, stop: int, status: int, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.status_code = status
        self.raw_headers = headers
        self.background = None
        self.blobs = blobs
        self.file = file
        self.start = start
        self.stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = listeners.in_hand(scope, receive)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if cycle is None:
                await self._in_pieces(Request(scope, receive), send)
                return
            try:
                await listeners.send_file(cycle, self.blobs.threads, self.file, self.start, self.stop)
                await send({"type": "http.response.body", "body": b""})
            except ConnectionError:  # the client left
                pass
            except OSError as error:
                log.error("a download ended early: %s", error)
        finally:
            _close(self.file)

    async def _in_pieces(self, request: Request, send: Send) -> None:
        """The next one is read while one is sent."""
        loop = asyncio.get_running_loop()
        coming: asyncio.Future[bytes] | None = None
        try:
            at, sent = self.start, 0
            coming = loop.run_in_executor(self.blobs.threads, self._read, at)
            while at < self.stop:
                piece = await coming
                at += len(piece)
                if at < self.stop:
                    coming = loop.run_in_executor(self.blobs.threads, self._read, at)
                await send({"type": "http.response.body", "body": piece, "more_body": at < self.stop})
                sent += 1
                if sent % PEEK == 0 and await request.is_disconnected():
                    return
        finally:
            if coming is not None:
                await asyncio.wait({coming})  # the file is closed only when nobody reads it

    def _read(self, at: int) -> bytes:
        piece = os.pread(self.file, min(READ, self.stop - at), at)
        if not piece:
            raise OSError(f"a blob ended at byte {at}, and its row says {self.stop}")
        return piece


def _span(header: str, size: int) -> tuple[int, int] | None:
    """bytes=FIRST-LAST -> [start, stop); None for no range, several, or one that is malformed: then all is sent.

    Raises OutOfRange for one that begins past the end (RFC 9110, section 14).
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or (not match[1] and int(match[2]) == 0):
        raise errors.OutOfRange(f"The requested range {header!r} begins past the end: the object has {size} bytes.")
    return start, stop


def _close(file: int) -> None:
    if file >= 0:
        os.close(file)
