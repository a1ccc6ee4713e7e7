"""POST /batch/storage/v1: several requests in one multipart/mixed body, each answered by the same routes.

https://cloud.google.com/storage/docs/batch; google-cloud-storage sends it for `with client.batch()`.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
from email.message import Message
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import msgspec
from starlette.responses import Response
from starlette.types import Message as Event
from starlette.types import Scope

from taxiway import errors
from taxiway.api import wire
from taxiway.api.call import Call

CALLS = 1000  # google-cloud-storage's own limit
BYTES = 16 * 1024 * 1024
ANSWERS = 64 * 1024 * 1024  # bytes of all answers together, which are held until the last one is there
BOUNDARY = "batch_of_answers"

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body


async def batch(call: Call) -> Response:
    """Every part is authorised and answered for itself, whatever becomes of the others.

    One without an Authorization header takes the outer one.
    """
    raw = bytearray()
    async for chunk in call.request.stream():
        raw += chunk
        if len(raw) > BYTES:
            raise errors.TooLarge(f"A batch is over {BYTES} bytes; send fewer requests in one.")
    parts = await asyncio.to_thread(_parts, call.request.headers.get("content-type", ""), bytes(raw))
    written = bytearray()
    for part in parts:
        try:
            if len(written) > ANSWERS:
                raise errors.TooLarge(f"The answers are over {ANSWERS} bytes already; ask for this one alone.")
            payload = part.get_payload(decode=True)
            answer = await _dispatch(call, payload if isinstance(payload, bytes) else b"")
        except errors.Error as error:
            answer = error.code, [(b"content-type", b"application/json")], msgspec.json.encode(wire.storage_body(error))
        written += _written(str(part.get("Content-ID") or ""), *answer)
    written += f"--{BOUNDARY}--\r\n".encode()
    return Response(bytes(written), media_type=f'multipart/mixed; boundary="{BOUNDARY}"')


def _parts(content_type: str, raw: bytes) -> list[Message]:
    kind = content_type.replace("'", '"')
    try:
        parsed = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw, policy=email.policy.compat32)
    except RecursionError as error:
        raise errors.InvalidArgument("The batch has bodies in bodies in bodies; it takes requests only.") from error
    if not parsed.is_multipart():
        raise errors.InvalidArgument("Expected a multipart/mixed body of application/http parts; check the boundary.")
    parts = [part for part in parsed.get_payload() if isinstance(part, Message)]
    if len(parts) > CALLS:
        raise errors.InvalidArgument(f"A batch may have {CALLS} requests; this has {len(parts)}.")
    return parts


def _written(identity: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    named = "".join(identity.split()).strip("<>")  # one line, whatever came
    lines = [f"--{BOUNDARY}", "Content-Type: application/http"]
    if named:
        lines.append(f"Content-ID: <response-{named}>")
    lines += ["", f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body + b"\r\n"


async def _dispatch(call: Call, request: bytes) -> Answer:
    """Run one inner request through the application that the batch itself came by."""
    head, _, body = request.replace(b"\r\n", b"\n").lstrip(b"\n").partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, _, target = first.partition(" ")
    try:
        url = urlsplit(target.rpartition(" HTTP/")[0] or target)
    except ValueError as error:
        raise errors.InvalidArgument(f"A part of the batch has no URL: {first[:100]!r}.") from error
    if not method.isalpha() or not url.path.startswith("/storage/"):
        raise errors.InvalidArgument(f"A part of the batch is no request to /storage/: {first[:100]!r}.")
    if "media" in parse_qs(url.query).get("alt", []):
        raise errors.InvalidArgument("A batch cannot hold downloads; ask for alt=media alone.")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value
    }
    outer = call.request.headers
    for name in ("authorization", "host"):
        if name == "host" or name not in headers:
            headers[name] = outer.get(name, "")
    headers["content-length"] = str(len(body))
    scope: Scope = {
        "type": "http",
        "asgi": call.request.scope["asgi"],
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": call.request.scope["scheme"],
        "path": url.path,
        "raw_path": url.path.encode("latin-1"),
        "root_path": "",
        "query_string": url.query.encode("latin-1"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items() if value],
        "client": call.request.scope.get("client"),
        "server": call.request.scope.get("server"),
    }
    said: list[Event] = []

    async def receive() -> Event:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Event) -> None:
        said.append(event)

    await call.request.scope["app"](scope, receive, send)
    return said[0]["status"], list(said[0]["headers"]), b"".join(event.get("body", b"") for event in said[1:])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
