"""The server: builds the rooms, starts the workers, turns route rows into endpoints (who, may they, call, answer)."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as Endpoint
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from taxiway import address, authority, errors, listeners, settings, tunnel
from taxiway.api import discovery, home, iam, logs, ml, predict, replicas, storage, wire
from taxiway.api.call import ANYONE, REPLICA, SIGNED_IN, Call, Route
from taxiway.compute import local
from taxiway.db import migrate
from taxiway.db.database import Database
from taxiway.house import House
from taxiway.iam import keys, members, policies, projects
from taxiway.iam.members import NOBODY, Caller
from taxiway.jobs.worker import Worker
from taxiway.models.deployments import Deployments
from taxiway.settings import Settings
from taxiway.storage import blobs

log = logging.getLogger("taxiway")

RENEW_S = 20 * 60  # how often the owner's token file is rewritten; a token holds for an hour
HOLD_S = 600  # how long the proxy holds a connection while the TLS port is away
GRACE_S = 10  # how long running requests may take at the end
MIB = settings.MIB

ROUTES: list[Route] = [
    *storage.ROUTES,
    *ml.ROUTES,
    *logs.ROUTES,
    *iam.ROUTES,
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        except errors.Error as error:
            answer = refusal(request.url.path, error)
        except Exception:  # noqa: BLE001 - the edge: our own failure is INTERNAL for the caller, a traceback in our log
            log.error("%s %s failed\n%s", request.method, request.url.path, traceback.format_exc())
            answer = refusal(
                request.url.path, errors.Internal("The server failed on this request; its log has the traceback.")
            )
        if scope["scheme"] == "https":  # TensorFlow looks for Location and Range, and not for location and range
            answer.raw_headers = [(name.title(), value) for name, value in answer.raw_headers]
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        made = Call(
            house=self.house,
            who=NOBODY,
            path={name: unquote(value) for name, value in request.path_params.items()},
            query=dict(request.query_params),
            request=request,
            body=None,
            now=time.time(),
            base=f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}",
        )
        if self.streams:
            await run_in_threadpool(self._authorise, made)
            value = await self.route.function(made)
        else:
            raw = await read_body(request, self.house.settings.body_mib * MIB)
            value = await run_in_threadpool(self._call, made, raw)
        if isinstance(value, Response):
            return value
        if value is None:
            return Response(status_code=204)
        return Response(msgspec.json.encode(value), media_type="application/json; charset=UTF-8")

    def _call(self, made: Call, raw: bytes) -> Any:
        self._authorise(made)
        made.body = parsed(raw, made.request.headers.get("content-type", ""))
        return self.route.function(made)

    def _authorise(self, made: Call) -> None:
        permission = self.route.permission
        if permission == ANYONE:
            return
        made.who = authenticated(self.house, made.request, made.now)
        if permission == SIGNED_IN:
            if not made.who.signed_in:
                raise errors.Unauthenticated("This needs an access token (Authorization: Bearer ...).")
        elif permission == REPLICA:
            if made.who.member or made.who.attempt != made.path["attempt"] or not made.who.attempt:
                raise errors.PermissionDenied("Only the replica of this attempt may report on it, by its own token.")
        else:
            project = made.path.get("project") or made.query.get("project")
            policies.need(self.house.db, made.who, permission, bucket=made.path.get("bucket"), project=project)


def authenticated(house: House, request: Request, now: float) -> Caller:
    """Who sends this request; NOBODY without a token. Raises Unauthenticated for a token that does not hold."""
    header = request.headers.get("authorization", "")
    scheme, _, bearer = header.partition(" ")
    if not header:
        bearer = request.query_params.get("access_token") or request.query_params.get("oauth_token") or ""
        if not bearer:
            return NOBODY
    elif scheme.lower() not in ("bearer", "oauth"):
        raise errors.Unauthenticated(f"Authorization: expected 'Bearer TOKEN', and got the scheme {scheme!r}.")
    return house.keys.caller(house.db, bearer.strip(), now=now)


async def read_body(request: Request, most: int) -> bytes:
    """The whole body of a plain row, up to `most` bytes. Raises TooLarge."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise errors.TooLarge(f"The request body is over {most // MIB} MiB; send less at a time.")
        parts.append(part)
    return b"".join(parts)


def parsed(raw: bytes, content_type: str) -> Any:
    """The JSON of a plain row's body; {} for none. A form (the token endpoint's) stays text."""
    if not raw.strip():
        return {}
    if content_type.startswith("application/x-www-form-urlencoded") and raw[:1] not in b"{[":
        return raw.decode("utf-8", "replace")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise errors.InvalidArgument(f"The request body is not JSON: {error}.") from error


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


class App:
    """The ASGI application: picks the router by the name that the client asked for, and routes by the undecoded path.

    Object names travel as one %2F-escaped segment, so a path is matched before it is decoded.
    """

    def __init__(self, house: House) -> None:
        self.predict = predict.Predict(house)
        self.pages = Router([_endpoint(house, row) for row in ROUTES], default=nowhere, redirect_slashes=False)
        self.data = Router(
            [*(_endpoint(house, row) for row in [*discovery.ROUTES, *storage.XML_ROUTES, *ROUTES])],
            default=nowhere,
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
            return
        raw = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        scope["path"] = raw
        if scope["method"] == "POST" and raw.endswith(":predict"):
            await self.predict(scope, receive, send)
            return
        try:
            await (self.data if storage.is_data_host(_host(scope)) else self.pages)(scope, receive, send)
        except HTTPException as error:  # Starlette's own: a path that is known, by another method
            told = errors.Unimplemented(f"{scope['method']} is not offered on {raw}.")
            told.code = error.status_code
            await refusal(raw, told)(scope, receive, send)


async def _no_lifespan(receive: Receive, send: Send) -> None:
    """The rooms are built and ended by `run`; the protocol only wants to hear so."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _host(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            return str(value.decode("latin-1")).partition(":")[0].lower()
    return ""


def _endpoint(house: House, row: Route) -> Endpoint:
    return Endpoint(row.path, Row(house, row), methods=[row.method])


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    told = errors.NotFound(f"Nothing is served at {scope['method']} {path}. The API: /$discovery/rest?version=v1")
    await refusal(path, told)(scope, receive, send)


# --- one server, from its start to its end ---


def run(configured: Settings, announce: Callable[[address.Address], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises FailedPrecondition if another server holds the home or the port is taken, StorageFull if the home cannot be
    written.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("httpx", "alembic", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with locked_home(configured):
        before = _last_address(configured.home)
        wanted = configured.port or _port(before.url if before else "")
        plain = bound(configured.host, wanted, fixed=configured.port > 0)
        secure = bound("127.0.0.1", before.tls_port if before else 0, fixed=False)
        proxy_port = free_port(before.proxy_port if before else 0)
        house, located = open_house(configured, plain, secure, proxy_port)
        try:
            listeners.run(_serve(house, located, plain, secure, announce))
        finally:
            house.db.close()


def open_house(
    configured: Settings, plain: socket.socket, secure: socket.socket, proxy_port: int
) -> tuple[House, address.Address]:
    """Build the rooms; on a first start also the project, its owner, the keys and the private CA."""
    now = time.time()
    authority.create(configured.tls, now)
    migrate.upgrade(configured.database)
    db = Database(configured.database)
    held = keys.load(configured.keys)
    url = f"http://{configured.host}:{plain.getsockname()[1]}"
    project = first_project(db, configured, now)
    located = address.Address(
        pid=os.getpid(),
        url=url,
        tls_port=secure.getsockname()[1],
        proxy_port=proxy_port,
        project=project.id,
        project_number=project.number,
        owner=owner_email(project.id),
        service_agent=projects.service_agent(project.number),
        access_token=str(configured.credentials / "access_token"),
        key=str(configured.credentials / "key.json"),
        boto=str(configured.credentials / "boto"),
        bundle=str(configured.tls / "bundle.crt"),
    )
    engine = local.Local(configured.attempts, located)
    local.sweep(db, engine)
    kept = blobs.Blobs(configured.blobs)
    kept.sweep(db)
    house = House(
        settings=configured,
        db=db,
        keys=held,
        blobs=kept,
        deployments=Deployments(db, held, engine, kept),
        worker=Worker(db, held, engine, configured),
    )
    write_credentials(house, located)
    return house, located


async def _serve(
    house: House,
    located: address.Address,
    plain: socket.socket,
    secure: socket.socket,
    announce: Callable[[address.Address], None],
) -> None:
    ended = listeners.until_signalled()
    tls = authority.server_context(authority.create(house.settings.tls, time.time()))
    connect = tunnel.Tunnel()
    upstream = ("127.0.0.1", located.tls_port)
    await connect.start(
        "127.0.0.1", located.proxy_port, upstream=upstream, hold_s=HOLD_S, other_hosts="tunnel"
    )
    rows = [listeners.Listener(plain, None, "httptools"), listeners.Listener(secure, tls, "h11")]
    listening = listeners.Listeners(App(house), rows, GRACE_S)
    serving = asyncio.create_task(listening.serve(ended))
    serving.add_done_callback(lambda _: ended.set())
    renewing = asyncio.create_task(_renew(house, located))
    await house.deployments.start()
    house.worker.start()
    await listening.started.wait()
    address.write(house.settings.home, located)
    announce(located)
    try:
        await ended.wait()
    finally:
        renewing.cancel()
        await run_in_threadpool(house.worker.stop)
        await serving
        await house.deployments.stop()
        await connect.close()


async def _renew(house: House, located: address.Address) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        await run_in_threadpool(write_token, house, located)


# --- the home ---


@contextmanager
def locked_home(configured: Settings) -> Iterator[None]:
    """One server a home: an flock that the kernel lets go of however we end."""
    try:
        for folder in (configured.home, configured.credentials, configured.blobs, configured.uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(configured.lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise errors.StorageFull(
            f"The home {configured.home} cannot be written: {error.strerror}. Free or unlock it, or take another "
            "with --home DIR."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.FailedPrecondition(
                f"Another server (pid {Path(configured.lock).read_text().strip() or 'unknown'}) runs on the home "
                f"{configured.home}. Stop it first, or take another home with --home DIR."
            ) from error
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def bound(host: str, port: int, *, fixed: bool) -> socket.socket:
    """A listening socket on the port; on a free one if that is taken and was not asked for (`fixed`)."""
    try:
        return listeners.listen(host, port)
    except errors.FailedPrecondition:
        if fixed or not port:
            raise
        return listeners.listen(host, 0)


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else a free port."""
    sock = bound("127.0.0.1", wanted, fixed=False)
    port = int(sock.getsockname()[1])
    sock.close()
    return port


def _last_address(folder: Path) -> address.Address | None:
    try:
        return address.read(folder)
    except errors.Unavailable:
        return None


def _port(url: str) -> int:
    return int(url.rpartition(":")[2] or 0)


def owner_email(project: str) -> str:
    return f"owner@{project}.localhost"


def owner_account(project: str) -> str:
    return projects.account_email(project, "owner")


def first_project(db: Database, configured: Settings, now: float) -> projects.Project:
    """The home's own project; made with its owner, and a service account with the owner's rights."""
    every = projects.every(db)
    if every:
        return min(every, key=lambda each: each.created)
    account = owner_account(configured.project)
    owners = [members.of_email(owner_email(configured.project)), members.of_email(account)]

    def make(tx: sa.Connection) -> projects.Project:
        made = projects.create(tx, configured.project, owners=owners, now=now)
        projects.create_account(tx, made.id, account, "The owner, for Google's client libraries", now=now)
        return made

    return db.write(make)


def write_credentials(house: House, located: address.Address) -> None:
    """What `taxiway env` points clients at: the token, the key (with the token_uri of today), gsutil's settings."""
    write_token(house, located)
    key_file = Path(located.key)
    token_uri = f"{located.url}/token"
    try:
        key = msgspec.json.decode(key_file.read_bytes())
    except FileNotFoundError:
        email = owner_account(located.project)
        key = house.db.write(lambda tx: keys.create_key(tx, email, token_uri="", now=time.time()))
    if key["token_uri"] != token_uri:
        key |= {"token_uri": token_uri, "auth_uri": f"{located.url}/auth"}
        write_secret(key_file, msgspec.json.format(msgspec.json.encode(key), indent=2))
    boto = (
        f"[Credentials]\ngs_service_key_file = {located.key}\ngs_json_host = 127.0.0.1\n"
        f"gs_json_port = {located.tls_port}\n\n"
        f"[OAuth2]\nprovider_token_uri = https://127.0.0.1:{located.tls_port}/token\n\n"
        f"[Boto]\nca_certificates_file = {located.bundle}\n\n"
        f"[GSUtil]\ndefault_project_id = {located.project}\n"
    )
    write_secret(Path(located.boto), boto.encode())


def write_token(house: House, located: address.Address) -> None:
    token = house.keys.access_token(members.of_email(located.owner), now=time.time())
    write_secret(Path(located.access_token), token.encode())


def write_secret(path: Path, content: bytes) -> None:
    """Replace a file that only its owner may read, in one step."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        fresh.unlink()
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
