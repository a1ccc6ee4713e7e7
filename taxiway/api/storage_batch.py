"""POST /batch/storage/v1: several requests in one multipart/mixed body, each answered by the same routes.

https://cloud.google.com/storage/docs/batch; google-cloud-storage sends it for `with client.batch()`.
"""

from __future__ import annotations

import email
import email.policy
from email.message import Message
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Message as Event
from starlette.types import Scope

from taxiway import errors
from taxiway.api.call import Call

CALLS = 1000  # google-cloud-storage's own limit
BYTES = 16 * 1024 * 1024
BOUNDARY = "batch_of_answers"


async def batch(call: Call) -> Response:
    """Every part is authorised for itself; one without an Authorization header takes the outer one."""
    raw = b""
    async for chunk in call.request.stream():
        raw += chunk
        if len(raw) > BYTES:
            raise errors.TooLarge(f"A batch is over {BYTES} bytes; send fewer requests in one.")
    kind = call.request.headers.get("content-type", "").replace("'", '"')
    parsed = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw, policy=email.policy.compat32)
    if not parsed.is_multipart():
        raise errors.InvalidArgument("Expected a multipart/mixed body of application/http parts; check the boundary.")
    parts = [part for part in parsed.get_payload() if isinstance(part, Message)]
    if len(parts) > CALLS:
        raise errors.InvalidArgument(f"A batch may have {CALLS} requests; this has {len(parts)}.")
    answers = [await _answered(call, part) for part in parts]
    body = b"".join(answers) + f"--{BOUNDARY}--\r\n".encode()
    return Response(body, media_type=f'multipart/mixed; boundary="{BOUNDARY}"')


async def _answered(call: Call, part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    status, headers, body = await _dispatch(call, payload if isinstance(payload, bytes) else b"")
    identity = (part.get("Content-ID") or "").strip("<>")
    lines = [f"--{BOUNDARY}", "Content-Type: application/http"]
    if identity:
        lines.append(f"Content-ID: <response-{identity}>")
    lines += ["", f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body + b"\r\n"


async def _dispatch(call: Call, request: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Run one inner request through the router that the batch itself came by."""
    head, _, body = request.replace(b"\r\n", b"\n").lstrip(b"\n").partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, _, target = first.partition(" ")
    url = urlsplit(target.rpartition(" HTTP/")[0] or target)
    if not method.isalpha() or not url.path.startswith("/storage/"):
        raise errors.InvalidArgument(f"A part of the batch is no request to /storage/: {first[:100]!r}.")
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
        "scheme": call.request.url.scheme,
        "path": url.path,
        "raw_path": url.path.encode(),
        "root_path": "",
        "query_string": url.query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items() if value],
        "client": call.request.scope.get("client"),
        "server": call.request.scope.get("server"),
    }
    said: list[Event] = []

    async def receive() -> Event:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Event) -> None:
        said.append(event)

    await call.request.scope["router"](scope, receive, send)
    return said[0]["status"], list(said[0]["headers"]), b"".join(event.get("body", b"") for event in said[1:])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
