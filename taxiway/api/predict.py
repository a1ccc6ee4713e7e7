"""projects.predict: a bare ASGI route that passes bytes. It checks who and which version, and never parses instances.

Who may and which version answers are remembered for a second, so that a thousand requests cost one look at the rows;
what changes the answer itself (another default, a version that goes) is seen at once.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from taxiway import errors
from taxiway.api import wire
from taxiway.api.call import caller, whole_body
from taxiway.house import House
from taxiway.iam import policies, projects
from taxiway.models import frames, registry
from taxiway.models.registry import Version
from taxiway.settings import MIB

log = logging.getLogger("taxiway.predict")

REMEMBER_S = 1.0
REMEMBERED = 10_000
PATH = re.compile(r"/v1/projects/([^/]+)/models/([^/:]+)(?:/versions/([^/:]+))?:predict")
STATUS = {frames.OK: 200, frames.BAD_REQUEST: 400, frames.FAILED: 500}
JSON = (b"content-type", b"application/json; charset=UTF-8")


class Known(NamedTuple):
    version: Version
    until: float
    epoch: int  # of the deployments, before the version was looked up


class Predict:
    """POST /v1/projects/P/models/M[/versions/V]:predict"""

    def __init__(self, house: House) -> None:
        self.house = house
        self.most = house.settings.body_mib * MIB
        self._known: dict[tuple[str, bytes, bytes], Known] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            version = await self._version(scope)
            body = await whole_body(receive, self.most)
            if not body.strip():
                raise errors.InvalidArgument('The request has no body. Send {"instances": [...]}.')
            reply = await self.house.deployments.predict(version, body)
            status, payload = STATUS.get(reply.kind, 500), reply.payload
        except ClientDisconnect:
            return
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
        key = (scope["path"], authorization, scope["query_string"])
        known = self._known.get(key)
        now, epoch = time.monotonic(), self.house.deployments.epoch
        if known is None or known.until < now or known.epoch != epoch:
            version = await run_in_threadpool(self._look, *key)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = Known(version, now + REMEMBER_S, epoch)
        return known.version

    def _look(self, path: str, authorization: bytes, query: bytes) -> Version:
        """Raises Unauthenticated, PermissionDenied, NotFound, FailedPrecondition."""
        match = PATH.fullmatch(path)
        if match is None:
            raise errors.NotFound(
                f"{path} names no model: expected /v1/projects/P/models/M:predict or .../versions/V:predict."
            )
        project, model, version = (unquote(part or "") for part in match.groups())
        db = self.house.db
        asked = dict(parse_qsl(query.decode("latin-1")))
        who = caller(self.house, authorization.decode("latin-1"), asked, time.time())
        if who.signed_in:
            project = projects.canonical(db, project)
        policies.need(db, who, "ml.versions.predict" if version else "ml.models.predict", project=project)
        if version:
            return registry.get_version(db, project, model, version)
        return registry.default_version(db, project, model)
