"""projects.predict: a bare ASGI route that passes bytes. It checks who and which version, and never parses instances.

Who may and which version answers are remembered for a second, so that a thousand requests cost one look at the rows.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from taxiway import errors
from taxiway.api import wire
from taxiway.house import House
from taxiway.iam import members, policies
from taxiway.models import frames, registry
from taxiway.models.registry import Version

log = logging.getLogger("taxiway.predict")

REMEMBER_S = 1.0
REMEMBERED = 10_000
PATH = re.compile(r"/v1/projects/([^/]+)/models/([^/:]+)(?:/versions/([^/:]+))?:predict")
STATUS = {frames.OK: 200, frames.BAD_REQUEST: 400, frames.FAILED: 500}
JSON = (b"content-type", b"application/json; charset=UTF-8")


class Known(NamedTuple):
    version: Version
    until: float


class Predict:
    """POST /v1/projects/P/models/M[/versions/V]:predict"""

    def __init__(self, house: House) -> None:
        self.house = house
        self.most = house.settings.body_mib * 1024 * 1024
        self._known: dict[tuple[str, bytes], Known] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            version = await self._version(scope)
            body = await self._body(receive)
            if body is None:
                return
            if not body.strip():
                raise errors.InvalidArgument('The request has no body. Send {"instances": [...]}.')
            reply = await self.house.deployments.predict(version, body)
            status, payload = STATUS.get(reply.kind, 500), reply.payload
        except errors.Error as error:
            status, payload = error.code, msgspec.json.encode(wire.ml_body(error))
        except Exception:  # noqa: BLE001 - the edge: our own failure is INTERNAL for the caller, a traceback in our log
            log.error("predict failed\n%s", traceback.format_exc())
            told = errors.Internal("The server failed on this prediction; its log has the traceback.")
            status, payload = told.code, msgspec.json.encode(wire.ml_body(told))
        headers = [JSON, (b"content-length", str(len(payload)).encode())]
        if status in (429, 503):
            headers.append((b"retry-after", b"1"))
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="taxiway"'))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _version(self, scope: Scope) -> Version:
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = (scope["path"], authorization)
        known = self._known.get(key)
        now = time.monotonic()
        if known is None or known.until < now:
            version = await run_in_threadpool(self._look, scope["path"], authorization.decode("latin-1"))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = Known(version, now + REMEMBER_S)
        return known.version

    def _look(self, path: str, authorization: str) -> Version:
        """Raises Unauthenticated, PermissionDenied, NotFound, FailedPrecondition."""
        match = PATH.fullmatch(path)
        if match is None:
            raise errors.NotFound(
                f"{path} names no model: expected /v1/projects/P/models/M:predict or .../versions/V:predict."
            )
        project, model, version = (unquote(part) if part else None for part in match.groups())
        db = self.house.db
        scheme, _, bearer = authorization.partition(" ")
        who = members.NOBODY
        if scheme.lower() == "bearer":
            who = self.house.keys.caller(db, bearer.strip(), now=time.time())
        elif authorization:
            raise errors.Unauthenticated(f"Authorization: expected 'Bearer TOKEN', and got the scheme {scheme!r}.")
        permission = "ml.versions.predict" if version else "ml.models.predict"
        policies.need(db, who, permission, project=project)
        assert project and model
        return (
            registry.get_version(db, project, model, version)
            if version
            else registry.default_version(db, project, model)
        )

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone. Raises TooLarge."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                raise errors.TooLarge(f"The request is over {self.most >> 20} MiB; send fewer instances at a time.")
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)
