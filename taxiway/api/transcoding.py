"""Objects that rest as gzip, sent as what was zipped to whoever does not take gzip.

Rules from https://cloud.google.com/storage/docs/transcoding: the object says `Content-Encoding: gzip`, the request has
no `Accept-Encoding: gzip`, and the object's Cache-Control has no `no-transform`. A Range is ignored then.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from taxiway.storage.blobs import READ, Blobs
from taxiway.storage.objects import Object

MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS  # zlib's word for a gzip member
_OTHERWISE = {b"content-encoding", b"accept-ranges"}


def applies(found: Object, request: Request) -> bool:
    """Whether this request gets the object unzipped."""
    if (found.content_encoding or "").lower() != "gzip" or "no-transform" in (found.cache_control or "").lower():
        return False
    for taken in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = taken.partition(";")
        if coding.strip() == "gzip" and weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return False
    return True


class Unzipped(Response):
    """Sends the object unzipped, piece by piece: a few bytes may hold gigabytes. No length can be told beforehand.

    `source` is the bytes or a file, which is closed at the end. What does not begin as gzip is sent as it is. Where it
    ends too early or is damaged, so does the answer: without its end, so that nobody takes it for whole.
    """

    def __init__(self, blobs: Blobs, source: bytes | int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = 200
        self.raw_headers = headers
        self.background = None
        self.blobs = blobs
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        request = Request(scope, receive)
        pieces = _unzipped(self.source)
        coming: asyncio.Future[bytes | None] | None = None
        try:
            zipped = scope["method"] == "HEAD" or await loop.run_in_executor(self.blobs.threads, _is_gzip, self.source)
            if zipped:
                kept = [(name, value) for name, value in self.raw_headers if name.lower() not in _OTHERWISE]
                self.raw_headers = [*kept, (b"warning", b"214 UploadServer gunzipped"), (b"vary", b"Accept-Encoding")]
            else:
                pieces = _as_it_is(self.source)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while scope["method"] != "HEAD":
                coming = loop.run_in_executor(self.blobs.threads, next, pieces, None)
                piece = await coming
                if piece is None:
                    break
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if await request.is_disconnected():
                    return
            await send({"type": "http.response.body", "body": b""})
        except zlib.error:
            return
        finally:
            if coming is not None:
                await asyncio.wait({coming})  # the file is closed only when nobody reads it
            if isinstance(self.source, int) and self.source >= 0:
                os.close(self.source)


def _is_gzip(source: bytes | int) -> bool:
    return _read(source, 0, len(MAGIC)) == MAGIC


def _unzipped(source: bytes | int) -> Iterator[bytes]:
    """Pieces of at most READ bytes, of one gzip member after another. Raises zlib.error."""
    at, held, member = 0, b"", zlib.decompressobj(_GZIP)
    while True:
        if not held:
            held = _read(source, at, READ)
            at += len(held)
        if member.eof:
            if not held:
                return
            member = zlib.decompressobj(_GZIP)
        last = not held
        piece = member.decompress(held, READ)
        held = member.unused_data if member.eof else member.unconsumed_tail
        if piece:
            yield piece
        elif last and not member.eof:
            raise zlib.error("the object ends within its gzip data")


def _as_it_is(source: bytes | int) -> Iterator[bytes]:
    at = 0
    while piece := _read(source, at, READ):
        at += len(piece)
        yield piece


def _read(source: bytes | int, at: int, most: int) -> bytes:
    return source[at : at + most] if isinstance(source, bytes) else os.pread(source, most, at)
