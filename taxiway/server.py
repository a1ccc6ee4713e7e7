"""The server: builds the rooms, starts the workers, turns route rows into endpoints (who, may they, call, answer)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, unquote_to_bytes

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from taxiway import address, authority, errors, hosts, household, listeners, tunnel
from taxiway.api import (
    accounts,
    cors,
    discovery,
    fields,
    home,
    iam,
    logs,
    ml,
    predict,
    replicas,
    samples,
    storage,
    storage_xml,
    streams,
    tokens,
    users,
    wire,
)
from taxiway.api import storage_xml_forms as xml
from taxiway.api.call import ANYONE, REPLICA, SIGNED_IN, Call, Route, caller, whole_body, within
from taxiway.compute import local
from taxiway.compute.retention import Retention
from taxiway.compute.streams import Streams
from taxiway.db import migrate
from taxiway.db.database import Database
from taxiway.house import House
from taxiway.iam import audit, keys, projects, signatures
from taxiway.iam.access import Access
from taxiway.iam.audit import Audit
from taxiway.iam.keys import Keys
from taxiway.iam.members import NOBODY
from taxiway.iam.users import Passwords
from taxiway.jobs import machines, queue
from taxiway.jobs.line import Line
from taxiway.jobs.preflight import Preflight
from taxiway.jobs.searcher import Searcher
from taxiway.jobs.suggestions import Suggestions
from taxiway.jobs.worker import Worker
from taxiway.models.deployments import Deployments
from taxiway.settings import MIB, Settings
from taxiway.storage import blobs, upkeep

log = logging.getLogger("taxiway")

RENEW_S = 20 * 60  # how often the owner's token file is rewritten; a token holds for an hour
HOLD_S = 600  # how long the proxy holds a connection while the TLS port is away
GRACE_S = 10  # how long running requests may take at the end

ROUTES: list[Route] = [
    *storage.ROUTES,
    *streams.ROUTES,  # before ml's {job}, which would match J:streamLogs too
    *samples.ROUTES,
    *ml.ROUTES,
    *logs.ROUTES,
    *iam.ROUTES,
    *accounts.ROUTES,
    *tokens.ROUTES,
    *users.ROUTES,
    *replicas.ROUTES,
    *discovery.ROUTES,
    *home.ROUTES,
]


class Row:
    """One route row as an ASGI endpoint."""

    def __init__(self, house: House, route: Route) -> None:
        self.house = house
        self.route = route
        self.streams = iscoroutinefunction(route.function)
        self.most = MIB if route.permission == ANYONE else house.settings.body_mib * MIB
        method = ml.METHOD_IDS.get((route.method, route.path), "")
        self.sort = audit.sort_of(route.permission, route.method, route.path, method)
        self.resource = audit.resource_of(route.path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        made = self._made(request)
        try:
            answer = await self._answer(made)
        except ClientDisconnect:
            return
        except errors.Error as error:
            answer = self._refusal(request, error)
        except Exception:  # noqa: BLE001 - the edge: our own failure is INTERNAL for the caller, a traceback in our log
            log.error("%s %s failed\n%s", request.method, scope["path"], traceback.format_exc())
            answer = self._refusal(
                request, errors.Internal("The server failed on this request; its log has the traceback.")
            )
        if scope["scheme"] == "https":  # TensorFlow looks for Location and Range, and not for location and range
            answer.raw_headers = [(name.title(), value) for name, value in answer.raw_headers]
        self._note(made, answer.status_code)
        # What came together is worked on in one go, and then answered: each answer wakes its client, and the next
        # request's code would start with cold caches (measured with 16 connections: half as many requests again).
        await asyncio.sleep(0)
        await answer(scope, receive, send)

    def _made(self, request: Request) -> Call:
        scope = request.scope
        return Call(
            house=self.house,
            who=NOBODY,
            path={name: unquote(_utf8(value)) for name, value in request.path_params.items()},
            query=_query(scope["query_string"]),
            request=request,
            body=None,
            now=time.time(),
            base=f"{scope['scheme']}://{request.headers.get('host') or ':'.join(map(str, scope['server']))}",
        )

    async def _answer(self, made: Call) -> Response:
        _expect_utf8(made.request.scope)
        mask = fields.asked(made.query)  # before anything is done: a malformed one does nothing
        if self.streams:
            if not self._remembered(made):
                await run_in_threadpool(self._authorise, made)
            made.passed = True
            value = await self.route.function(made)
        else:
            raw = await whole_body(made.request.receive, self.most)
            value = await run_in_threadpool(self._call, made, raw)
        if isinstance(value, Response):
            return value
        if value is None:
            return Response(status_code=204)
        if mask is not None and isinstance(value, dict):
            value = fields.keep(mask, value)
        return Response(msgspec.json.encode(value), media_type="application/json; charset=UTF-8")

    def _call(self, made: Call, raw: bytes) -> Any:
        self._authorise(made)
        made.passed = True
        made.body = parsed(raw, made.request.headers.get("content-type", ""))
        return self.route.function(made)

    def _refusal(self, request: Request, error: errors.Error) -> Response:
        return xml.refusal(error) if self.route.xml else refusal(request.scope["path"], error)

    def _authorise(self, made: Call) -> None:
        permission, path, query = self.route.permission, dict(made.path), dict(made.query)
        if permission == ANYONE:
            return
        if self.route.xml:
            made.who = storage_xml.caller(made)
        else:
            made.who = caller(self.house, made.request.headers.get("authorization", ""), made.query, made.now)
        if permission == REPLICA:
            if not made.who.member and not made.who.attempt:
                raise errors.Unauthenticated("This needs the token of the attempt's own replica.")
            if made.who.member or made.who.attempt != path["attempt"] or not made.who.attempt:
                raise errors.PermissionDenied("Only the replica of this attempt may report on it, by its own token.")
            return
        for told in (path, query):
            if made.who.signed_in and "project" in told:
                told["project"] = projects.canonical(self.house.db, told["project"])
        made.path, made.query = path, query
        if permission == SIGNED_IN:
            if not made.who.signed_in:
                raise errors.Unauthenticated("This needs an access token (Authorization: Bearer ...).")
            return
        bucket, project = path.get("bucket"), path.get("project") or query.get("project")
        if made.who.signed_in and not bucket and not project:
            raise errors.InvalidArgument(faults=[("project", "is required, as ?project=PROJECT.")])
        what = within(path, query)
        if not self.house.access.need(made.who, permission, bucket=bucket, project=project, within=what):
            made.by_list = permission

    def _remembered(self, made: Call) -> bool:
        """Whether this caller was allowed this on this bucket a moment ago: then no thread and no row is needed."""
        bucket = made.path.get("bucket")
        who = self.house.access.remembered_caller(made.request.headers.get("authorization", "").partition(" ")[2])
        if who is None or bucket is None:
            return False
        made.who = who
        return self.house.access.remembered(who, self.route.permission, bucket=bucket, project=None)

    def _note(self, made: Call, code: int) -> None:
        """Tell the audit log, if it keeps such a request."""
        sort, path = self.sort, made.path
        refused = code in (401, 403) or (code >= 400 and sort.kept and self.route.permission == ANYONE)
        if not self.house.audit.keeps(sort, refused=refused):
            return
        project = path.get("project") or ("" if "bucket" in path else made.query.get("project", ""))
        entry = audit.Entry(
            time=time.time(),
            project=project,
            log=sort.log,
            member=made.who.member,
            address=(made.request.scope.get("client") or ("",))[0],
            permission=(made.asked if refused else "") or sort.permission or made.asked,
            resource=made.resource or self.resource(path) or (f"projects/{project}" if project else ""),
            method=made.asked if made.asked and sort.unnamed else sort.method,
            allowed=made.passed and not refused,
            code=code,
        )
        self.house.audit.note(entry)


def _query(raw: bytes) -> dict[str, str]:
    """The last value of each parameter, as urllib's parse_qsl reads them, in half its time."""
    pairs = (pair.partition("=") for pair in raw.decode("utf-8", "replace").split("&") if pair)
    return {_plain(name): _plain(value) for name, _, value in pairs}


def _plain(text: str) -> str:
    return unquote_plus(text) if "%" in text or "+" in text else text


def _utf8(text: str) -> str:
    """Part of the path, which the router matched as latin-1."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")


def _expect_utf8(scope: Scope) -> None:
    """Raises InvalidArgument for a URL that is no text: another name would be read or written than was meant."""
    url = scope["path"].encode("latin-1") + b"?" + scope["query_string"]
    if b"%" in url or not url.isascii():
        try:
            unquote_to_bytes(url).decode()
        except UnicodeDecodeError as error:
            raise errors.InvalidArgument("The URL is not UTF-8; escape each byte of a name's UTF-8 as %XX.") from error


def parsed(raw: bytes, content_type: str) -> Any:
    """The JSON of a plain row's body; {} for none. A form (the token endpoint's) stays text."""
    if not raw.strip():
        return {}
    if content_type.startswith("application/x-www-form-urlencoded") and raw[:1] not in b"{[":
        return raw.decode("utf-8", "replace")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidArgument(f"The request body is not JSON: {error}.") from error
    if isinstance(body, str):  # as if it were a form
        raise errors.InvalidArgument("The request body must be a JSON object, such as {}; it is a text.")
    return body


def refusal(path: str, error: errors.Error) -> Response:
    """An error in the shape that the clients of this path read."""
    headers = {"WWW-Authenticate": 'Bearer realm="taxiway"'} if error.code == 401 else {}
    if error.code == 304:
        return Response(status_code=304)
    if error.code in (429, 503):
        headers["Retry-After"] = "1"
    storage_paths = ("/storage/", "/upload/", "/resumable/", "/download/", "/batch/storage")
    body = wire.storage_body(error) if path.startswith(storage_paths) else wire.ml_body(error)
    return Response(
        msgspec.json.encode(body), error.code, headers=headers, media_type="application/json; charset=UTF-8"
    )


class WrongMethod(errors.Error):
    """A path that is known, by another method."""

    code, status, reason = 405, "UNIMPLEMENTED", "methodNotAllowed"


class WrongHost(errors.Error):
    """A request for a name that does not mean this server: perhaps a web page's, which had it resolve to us."""

    code, status, reason = 421, "FAILED_PRECONDITION", "misdirected"


class App:
    """The ASGI application: picks the router by the name that the client asked for, and routes by the undecoded path.

    Object names travel as one %2F-escaped segment, so a path is matched before it is decoded.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.hosts = hosts.Hosts(house.settings.host, house.settings.hosts)
        self.predict = predict.Predict(house)
        self.pages = _router(house, ROUTES)
        self.objects = _router(house, storage.XML_ROUTES)
        # There /{bucket}/{object} is a path too, but for what storage itself and the discovery of ML v1 serve.
        self.data = _router(house, [*discovery.ROUTES, *storage.ROUTES, *storage.XML_ROUTES, *ROUTES])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
            return
        raw = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        scope["path"] = raw
        header = _host(scope)
        name = self.hosts.named(header, (scope.get("server") or ("",))[0])
        if name is None:
            await refusal(raw, WrongHost(hosts.refusal(header)))(scope, receive, send)
            return
        if scope["method"] == "POST" and raw.endswith(":predict"):
            await self.predict(scope, receive, send)
            return
        scope["app"] = self  # so Starlette raises what it would answer itself in plain text
        bucket, query = storage_xml.bucket_of(name), scope["query_string"]
        router, in_xml = self.pages, False
        if bucket or signatures.hinted(query):  # a signed URL means an object by whatever name we are called
            router, in_xml = self.objects, True
            scope["path"] = f"/{bucket}{raw}" if bucket else raw
        elif bucket is not None:
            router, in_xml = self.data, not raw.startswith(storage_xml.JSON_PATHS)
        if in_xml or b"upload_id=" in query:
            send = cors.answering(self.house.db, scope, send)
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            offered = (error.headers or {}).get("Allow", "another method")
            told = WrongMethod(f"{scope['method']} is not offered on {raw}; {offered} is.")
            await (xml.refusal(told) if in_xml else refusal(raw, told))(scope, receive, send)


def _router(house: House, rows: Iterable[Route]) -> Router:
    endpoints = [Endpoint(row.path, Row(house, row), methods=[row.method]) for row in rows]
    return Router(endpoints, default=nowhere, redirect_slashes=False)


async def _no_lifespan(receive: Receive, send: Send) -> None:
    """The rooms are built and ended by `run`; the protocol only wants to hear so."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _host(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"host":
            return bytes(value)
    return b""


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    told = errors.NotFound(f"Nothing is served at {scope['method']} {path}. The API: /$discovery/rest?version=v1")
    await refusal(path, told)(scope, receive, send)


# --- one server, from its start to its end ---


Announce = Callable[[address.Address, str], None]  # where it listens, and whether code runs in a jail


def run(configured: Settings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises FailedPrecondition if another server holds the home, the port is taken, or there can be no jail where one is
    required; StorageFull if the home cannot be written.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "alembic", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    jail = jailing(configured.jail)
    with household.locked(configured):
        before = _last_address(configured.home)
        wanted = configured.port or _port(before.url if before else "")
        plain = listeners.bound(configured.host, wanted, fixed=configured.port > 0)
        secure = listeners.bound("127.0.0.1", before.tls_port if before else 0, fixed=False)
        proxy_port = listeners.free_port(before.proxy_port if before else 0)
        with household.writing(configured.home):
            house, located = open_house(configured, plain, secure, proxy_port, jail)
        try:
            listeners.run(_serve(house, located, plain, secure, announce))
        finally:
            house.db.close()


def jailing(wanted: str) -> str:
    """Whether code will run in a jail, and why not, in a sentence. Raises FailedPrecondition."""
    lack = "TAXIWAY_JAIL=off." if wanted == "off" else local.lacking()
    if lack and wanted == "require":
        told = f"All code must run in a jail here (TAXIWAY_JAIL=require), and there can be none: {lack}"
        raise errors.FailedPrecondition(told)
    return f"Jobs run without a jail, beside the server's own files: {lack}" if lack else "Jobs run in a jail."


def open_house(
    configured: Settings, plain: socket.socket, secure: socket.socket, proxy_port: int, jail: str
) -> tuple[House, address.Address]:
    """Build the rooms; on a first start also the project, its owner, the keys and the private CA."""
    now = time.time()
    offered = machines.read(configured.home)  # an admin's own table that is wrong is told before anything is made
    authority.create(configured.tls, now)
    configured.database.touch(mode=0o600)  # SQLite gives its other files the mode of this one
    migrate.upgrade(configured.database)
    db = Database(configured.database)
    held = keys.load(configured.keys)
    url = f"http://{listeners.reachable(configured.host)}:{plain.getsockname()[1]}"
    project = household.first_project(db, configured, now)
    located = address.Address(
        pid=os.getpid(),
        url=url,
        tls_port=secure.getsockname()[1],
        proxy_port=proxy_port,
        project=project.id,
        project_number=project.number,
        owner=household.owner_email(project.id),
        service_agent=projects.service_agent(project.number),
        access_token=str(configured.credentials / "access_token"),
        key=str(configured.credentials / "key.json"),
        boto=str(configured.credentials / "boto"),
        bundle=str(configured.tls / "bundle.crt"),
        authority=str(configured.tls / "ca.crt"),
    )
    engine = local.Local(
        configured.attempts, located, configured.jail, configured.jail_hosts, configured.job_disk_mib * MIB
    )
    local.sweep(db, engine)
    kept = blobs.Blobs(configured.blobs)
    kept.sweep(db)
    waiting = Line(db, offered.fitting)
    searcher = Searcher()
    house = House(
        settings=configured,
        db=db,
        keys=held,
        access=Access(db, held),
        passwords=Passwords(db),
        audit=Audit(db, home=project.id, reads=configured.audit_reads > 0, days=configured.audit_days),
        blobs=kept,
        deployments=Deployments(db, held, engine, kept),
        machines=offered,
        preflight=Preflight(db, kept, offered),
        line=waiting,
        jail=jail,
        worker=Worker(db, held, engine, configured, offered, waiting, kept, searcher),
        streams=Streams(db),
        suggestions=Suggestions(db, searcher),
    )
    household.write_credentials(db, held, located)
    return house, located


async def _serve(
    house: House,
    located: address.Address,
    plain: socket.socket,
    secure: socket.socket,
    announce: Announce,
) -> None:
    ended = listeners.until_signalled()
    tls = authority.server_context(authority.create(house.settings.tls, time.time()))
    connect = tunnel.Tunnel()
    upstream = ("127.0.0.1", located.tls_port)
    await connect.start("127.0.0.1", located.proxy_port, upstream=upstream, hold_s=HOLD_S, other_hosts="tunnel")
    await house.deployments.start()  # before the first request: it may ask for a prediction
    house.worker.start()
    house.suggestions.start()
    house.audit.start()
    rows = [listeners.Listener(plain, None, "httptools"), listeners.Listener(secure, tls, "h11")]
    listening = listeners.Listeners(App(house), rows, GRACE_S)
    serving = asyncio.create_task(listening.serve(ended))
    serving.add_done_callback(lambda _: ended.set())
    started = asyncio.create_task(listening.started.wait())
    renewing = asyncio.create_task(_renew(house.keys, located, RENEW_S))
    kept = house.settings
    retention = Retention(house.db, days=kept.log_days, mib=kept.log_mib, going=queue.going)
    retention.start()
    caring = upkeep.Upkeep(house.db, house.blobs, every_s=house.settings.upkeep_s)
    cared = asyncio.create_task(caring.run())
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            gc.collect()
            gc.freeze()  # what was built to start stays; looking through it again and again is what made pauses
            with household.writing(house.settings.home):
                address.write(house.settings.home, located)
            announce(located, house.jail)
        await ended.wait()
    finally:
        ended.set()
        house.streams.close()
        started.cancel()
        renewing.cancel()
        caring.stop()
        await run_in_threadpool(house.worker.stop)
        await run_in_threadpool(house.suggestions.stop)
        await serving
        await cared
        await house.deployments.stop()
        await connect.close()
        await run_in_threadpool(retention.stop)
        await run_in_threadpool(house.audit.stop)


async def _renew(held: Keys, located: address.Address, every_s: float) -> None:
    """Rewrite the owner's token long before it expires; a full disk may yet be freed in time."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await run_in_threadpool(household.write_token, held, located)
        except OSError as error:
            log.warning("%s could not be renewed (%s); trying again", located.access_token, error.strerror)


def _last_address(folder: Path) -> address.Address | None:
    try:
        return address.read(folder)
    except errors.Unavailable:
        return None


def _port(url: str) -> int:
    return int(url.rpartition(":")[2] or 0)
