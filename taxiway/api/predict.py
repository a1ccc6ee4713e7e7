"""projects.predict: a bare ASGI route that passes bytes. It checks who and which version, and never parses instances.

Who may and which version answers are remembered for a second, so that a thousand requests cost one look at the rows;
what changes the answer itself (another default, a version that goes, a policy) is seen at once.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from dataclasses import dataclass
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
from taxiway.iam import audit, policies, projects
from taxiway.models import frames, registry
from taxiway.models.registry import Version
from taxiway.settings import MIB

log = logging.getLogger("taxiway.predict")

REMEMBER_S = 1.0
REMEMBERED = 10_000
PATH = re.compile(r"/v1/projects/([^/]+)/models/([^/:]+)(?:/versions/([^/:]+))?:predict")
STATUS = {frames.OK: 200, frames.BAD_REQUEST: 400, frames.FAILED: 500}
SORTS = [audit.sort_of(f"ml.{kind}.predict", "POST", "", "ml.projects.predict") for kind in ("models", "versions")]
JSON = (b"content-type", b"application/json; charset=UTF-8")


class Known(NamedTuple):
    member: str
    version: Version
    until: float
    epochs: tuple[int, int]  # of the deployments and of the policies, before they were looked at


@dataclass(slots=True)
class Asked:
    """What the audit log is told of a request."""

    path: str
    member: str = ""


class Predict:
    """POST /v1/projects/P/models/M[/versions/V]:predict"""

    def __init__(self, house: House) -> None:
        self.house = house
        self.most = house.settings.body_mib * MIB
        self._known: dict[tuple[str, bytes, bytes], Known] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Asked(scope["path"])
        try:
            version = await self._version(scope, asked)
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
        self._note(scope, asked, status)
        headers = [JSON, (b"content-length", str(len(payload)).encode())]
        if status in (429, 503):
            headers.append((b"retry-after", b"1"))
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="taxiway"'))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _version(self, scope: Scope, asked: Asked) -> Version:
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        key = (scope["path"], authorization, scope["query_string"])
        known = self._known.get(key)
        now, epochs = time.monotonic(), (self.house.deployments.epoch, self.house.access.epoch)
        if known is None or known.until < now or known.epochs != epochs:
            version = await run_in_threadpool(self._look, asked, *key)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[key] = Known(asked.member, version, now + REMEMBER_S, epochs)
        asked.member = known.member
        return known.version

    def _look(self, asked: Asked, path: str, authorization: bytes, query: bytes) -> Version:
        """Raises Unauthenticated, PermissionDenied, NotFound, FailedPrecondition."""
        match = PATH.fullmatch(path)
        if match is None:
            raise errors.NotFound(
                f"{path} names no model: expected /v1/projects/P/models/M:predict or .../versions/V:predict."
            )
        project, model, version = (unquote(part or "") for part in match.groups())
        db, parameters = self.house.db, dict(parse_qsl(query.decode("latin-1")))
        who = caller(self.house, authorization.decode("latin-1"), parameters, time.time())
        asked.member = who.member
        if who.signed_in:
            project = projects.canonical(db, project)
        permission = "ml.versions.predict" if version else "ml.models.predict"
        policies.need(db, who, permission, project=project, within=f"models/{model}")
        if version:
            return registry.get_version(db, project, model, version)
        return registry.default_version(db, project, model)

    def _note(self, scope: Scope, asked: Asked, code: int) -> None:
        """Tell the audit log, if it keeps such a request."""
        sort, refused = SORTS["/versions/" in asked.path], code in (401, 403)
        if not self.house.audit.keeps(sort, refused=refused):
            return
        resource = unquote(asked.path.removeprefix("/v1/").rpartition(":")[0])
        project = resource.split("/")[1] if resource.startswith("projects/") else ""
        address = (scope.get("client") or ("",))[0]
        what = (sort.log, asked.member, address, sort.permission, resource, sort.method)
        self.house.audit.note(audit.Entry(time.time(), project, *what, not refused, code))
