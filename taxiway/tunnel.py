"""A CONNECT proxy that leads Google's names to our TLS port, and other names nowhere or to themselves.

    proxy = Tunnel()
    port = await proxy.start("127.0.0.1", 0, upstream=("127.0.0.1", tls_port), hold_s=60, other_hosts="tunnel")
    ... a client with https_proxy=http://127.0.0.1:{port} and our authority speaks to us as storage.googleapis.com ...
    await proxy.close()

    await proxy.lead(listening, upstream)   # no CONNECT: whoever connects there is led on at once

It never looks inside: TLS ends at the server. While the server is away a connection is held and tried again, so that
a job which opens a new connection for each request (TensorFlow does) lives through a restart. Small packets leave at
once (TCP_NODELAY on both sides): without that three TensorFlow checkpoints took 8 s instead of 0.6 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from http import HTTPStatus
from typing import Any, Literal, TypeVar, cast

from taxiway import errors

T = TypeVar("T")
Address = tuple[str, int]
Upstream = Callable[[], Address]
OtherHosts = Literal["tunnel", "refuse"] | Collection[str]  # names, or *.example.com for all below one

GOOGLE_HOSTS = ("googleapis.com", "accounts.google.com", "metadata.google.internal")
GOOGLE_DOMAIN = ".googleapis.com"

# curl, Python's own ssl, requests, httplib2, gcloud and gRPC look each in another place for whom to trust.
CERTIFICATES = (
    *("CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPLIB2_CA_CERTS"),
    *("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
)

HEAD_LIMIT = 16 * 1024  # bytes of a request's head
EARLY_LIMIT = 64 * 1024  # bytes that a client may send before it was told that the way is open
HEAD_S = 30.0
CONNECT_S = 10.0
RETRY_S = 0.2
LINGER_S = 2.0  # for a refused client to read why, and for the last bytes at `close`
BACKLOG = 2048

_REQUEST = re.compile(rb"([!-~]+) ([!-~]+) HTTP/1\.[01]")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_WHERE = "*.googleapis.com, accounts.google.com and metadata.google.internal"


class Tunnel:
    """The proxy on one port, and ways that need no proxy. Every method belongs to the event loop of the first."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._closing = False
        self._live: set[_Request | _End] = set()
        self._openings: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._upstream: Upstream = lambda: ("", 0)
        self._hold_s = 0.0
        self._other_hosts: OtherHosts = "refuse"

    async def start(
        self,
        host: str,
        port: int,
        *,
        upstream: Upstream | Address,
        hold_s: float,
        other_hosts: OtherHosts,
        listening: socket.socket | None = None,
    ) -> int:
        """Listens and returns the port (a free one if `port` is 0), or serves on a socket that listens already.

        `upstream` is the server's TLS address; a function is asked at every try, because a restarted server may have
        another port, and may raise OSError or Unavailable for "not now". A connection is held for up to `hold_s`
        seconds while nothing answers there. `other_hosts="tunnel"` on an address that others can reach is an open
        proxy. Raises FailedPrecondition if the address cannot be listened on.
        """
        self._upstream = upstream if callable(upstream) else lambda: upstream
        self._hold_s = hold_s
        self._other_hosts = other_hosts
        loop = asyncio.get_running_loop()
        try:
            where: dict[str, Any] = {"sock": listening} if listening else {"host": host, "port": port}
            server = await loop.create_server(lambda: _Request(self), **where, backlog=BACKLOG)
        except OSError as e:
            raise errors.FailedPrecondition(
                f"The proxy could not listen on {host}:{port} ({e.strerror or e}). "
                "Choose another port (0 takes a free one)."
            ) from e
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def lead(self, listening: socket.socket, upstream: Upstream, *, hold_s: float) -> None:
        """Whoever connects to a socket that listens is led to `upstream`, and held while nobody answers there."""
        loop = asyncio.get_running_loop()
        led = loop.create_server(lambda: _Led(self, upstream, hold_s), sock=listening, backlog=BACKLOG)
        self._servers.append(await led)

    async def close(self) -> None:
        """Stops listening and ends every tunnel; bytes already taken are sent on if the other side still reads."""
        self._closing = True
        for server in self._servers:
            server.close()
        for opening in self._openings:
            opening.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)
        for side in list(self._live):
            side.transport.close()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_gone(), LINGER_S)
        for side in list(self._live):
            side.transport.abort()
        await self._all_gone()
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    async def _all_gone(self) -> None:
        while self._live:
            self._empty.clear()
            await self._empty.wait()

    def came(self, side: _Request | _End) -> None:
        self._live.add(side)
        if self._closing:  # accepted in the very moment of `close`
            side.transport.abort()

    def left(self, side: _Request | _End) -> None:
        self._live.discard(side)
        if not self._live:
            self._empty.set()

    def open(self, request: _Request, host: str, port: int) -> asyncio.Task[None]:
        opening = asyncio.get_running_loop().create_task(request.open(host, port))
        self._openings.add(opening)
        opening.add_done_callback(self._openings.discard)
        return opening

    async def reach(self, host: str, port: int) -> _End:
        """A connection to whoever answers for `host` here. Raises PermissionDenied or Unavailable."""
        if is_google(host):
            if port != 443:
                raise errors.PermissionDenied(f"Taxiway answers for {host} on port 443 only, not on {port}.")
            return await self.reach_server(self._upstream, self._hold_s)
        if self._other_hosts != "tunnel" and not _named(host, self._other_hosts):
            raise errors.PermissionDenied(
                f"This proxy leads to Taxiway only ({_WHERE}), not to {host}:{port}. "
                "Name the host in no_proxy to reach it without the proxy."
            )
        try:
            return await self._connect(host, port)
        except OSError as e:
            raise errors.Unavailable(f"{host}:{port} did not answer ({_reason(e)}). Is the name right?") from e

    async def reach_server(self, upstream: Upstream, hold_s: float) -> _End:
        """A connection to the server, once it answers. Raises Unavailable if that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + hold_s
        while True:
            where = "its address"
            try:
                host, port = upstream()
                where = f"{host}:{port}"
                return await self._connect(host, port)
            except (OSError, errors.Unavailable) as e:
                if loop.time() + RETRY_S > deadline:
                    raise errors.Unavailable(
                        f"The Taxiway server did not answer at {where} within {hold_s:g} s ({_reason(e)}). "
                        "Start it again with `taxiway up`, then repeat the request."
                    ) from e
            await asyncio.sleep(RETRY_S)

    async def _connect(self, host: str, port: int) -> _End:
        """Raises OSError, also when nobody answers in time (TimeoutError is one since Python 3.11 only)."""
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(lambda: _End(self), host, port)
        try:
            _, end = await asyncio.wait_for(connecting, CONNECT_S)
        except asyncio.TimeoutError as e:
            raise OSError(f"no answer within {CONNECT_S:g} s") from e
        return end


@contextlib.contextmanager
def run_in_thread(ready: Callable[[Tunnel], Coroutine[Any, Any, T]]) -> Iterator[T]:
    """A tunnel with a thread and an event loop of its own; yields what `ready` made of it, and leaves nothing behind.

    Raises what `ready` raises; the functions that it gives the tunnel are called in that thread.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tunnel", daemon=True)
    thread.start()
    try:
        tunnel = Tunnel()
        try:
            yield asyncio.run_coroutine_threadsafe(ready(tunnel), loop).result()
        finally:
            asyncio.run_coroutine_threadsafe(tunnel.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        # Names of other hosts are looked up in the loop's pool of threads; one may still be waiting for its answer.
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def is_google(host: str) -> bool:
    """Whether we answer for this host name (any case, with or without the root's dot)."""
    host = host.lower().rstrip(".")
    return host in GOOGLE_HOSTS or host.endswith(GOOGLE_DOMAIN)


def _named(host: str, allowed: Collection[str]) -> bool:
    """Whether a host is among the names, of which *.example.com means all below example.com."""
    host = host.lower().rstrip(".")
    return allowed != "refuse" and any(
        host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in allowed
    )


class _Request(asyncio.Protocol):
    """A client until its tunnel is open: reads the head of one request, then refuses it or opens the way."""

    transport: asyncio.Transport
    greeting = b"HTTP/1.1 200 Connection established\r\n\r\n"

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.received = bytearray()
        self.answered = False
        self.opening: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.tunnel.came(self)
        self.timer = asyncio.get_running_loop().call_later(
            HEAD_S, self.answer, HTTPStatus.REQUEST_TIMEOUT, f"No complete request came within {HEAD_S:g} s."
        )

    def data_received(self, data: bytes) -> None:
        if self.answered:
            return
        self.received += data
        if self.opening is not None:
            if len(self.received) > EARLY_LIMIT:
                self.transport.pause_reading()
            return
        end = self.received.find(b"\r\n\r\n", 0, HEAD_LIMIT)
        if end >= 0:
            head = bytes(self.received[:end])
            del self.received[: end + 4]
            self.timer.cancel()
            self.take(head)
        elif len(self.received) >= HEAD_LIMIT:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.answer(too_large, f"The head of the request is larger than {HEAD_LIMIT} bytes.")

    def take(self, head: bytes) -> None:
        request = _REQUEST.fullmatch(head.split(b"\r\n", 1)[0])
        if request is None:
            self.answer(
                HTTPStatus.BAD_REQUEST, "This is not an HTTP/1.1 request; expected `CONNECT host:port HTTP/1.1`."
            )
            return
        method, target = request[1].decode(), request[2].decode()
        if method != "CONNECT":
            self.answer(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"This proxy serves CONNECT only, not {method} {target[:200]}: it is meant for https_proxy. "
                "Unset http_proxy, or list the host in no_proxy.",
            )
            return
        authority = _AUTHORITY.fullmatch(target)
        if authority is None or not 0 < int(authority[3]) < 65536:
            self.answer(
                HTTPStatus.BAD_REQUEST,
                f"CONNECT needs host:port, such as storage.googleapis.com:443, not {target[:200]}.",
            )
            return
        self.opening = self.tunnel.open(self, authority[1] or authority[2], int(authority[3]))

    async def open(self, host: str, port: int) -> None:
        try:
            far = await self.tunnel.reach(host, port)
        except errors.PermissionDenied as e:
            self.answer(HTTPStatus.FORBIDDEN, str(e))
        except errors.Unavailable as e:
            self.answer(HTTPStatus.BAD_GATEWAY, str(e))
        else:
            self.join(far)

    def join(self, far: _End) -> None:
        """From here on the two connections are one; what the client already said goes first."""
        if self.transport.is_closing():
            far.transport.abort()
            return
        if far.transport.is_closing():
            self.answer(HTTPStatus.BAD_GATEWAY, "The other side closed the connection at once. Try again.")
            return
        near = _End(self.tunnel)
        near.peer, far.peer = far, near
        near.connection_made(self.transport)
        self.transport.set_protocol(near)
        self.tunnel.left(self)
        self.transport.write(self.greeting + far.early)
        far.early.clear()
        if far.ended:
            self.transport.write_eof()
        if self.received:
            far.transport.write(bytes(self.received))
        self.transport.resume_reading()

    def answer(self, status: HTTPStatus, sentence: str) -> None:
        """Refuses, then reads on for a moment: to close on unread bytes would reset the answer away."""
        if self.transport.is_closing() or self.answered:
            return
        self.answered = True
        self.timer.cancel()
        body = f"{sentence}\n".encode()
        allow = "Allow: CONNECT\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self.transport.resume_reading()
        self.timer = asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        if self.opening is not None:
            self.opening.cancel()
        self.tunnel.left(self)


class _Led(_Request):
    """A client who asks for nothing: there is one way from where it connected."""

    greeting = b""

    def __init__(self, tunnel: Tunnel, upstream: Upstream, hold_s: float) -> None:
        super().__init__(tunnel)
        self.upstream = upstream
        self.hold_s = hold_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.timer.cancel()
        self.opening = self.tunnel.open(self, "", 0)

    async def open(self, _host: str, _port: int) -> None:
        try:
            far = await self.tunnel.reach_server(self.upstream, self.hold_s)
        except errors.Unavailable:
            self.transport.abort()
        else:
            self.join(far)

    def answer(self, _status: HTTPStatus, _sentence: str) -> None:
        """There are no words for it in whatever the client speaks."""
        self.transport.abort()


class _End(asyncio.Protocol):
    """One of the two connections of an open tunnel; whatever arrives here is written to its peer."""

    transport: asyncio.Transport

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.peer: _End | None = None
        # What a server says before `join`, which follows at once; uvloop cannot be asked to wait from the first moment.
        self.early = bytearray()
        self.ended = False  # this side has said its last word; it may still listen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.tunnel.came(self)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer that vanished without a word (a laptop that slept) is noticed by the kernel.
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self.early += data
        elif not self.peer.transport.is_closing():
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Passes a half-close on; the connection ends when both sides have ended."""
        self.ended = True
        if self.peer is None:
            return True
        if self.peer.ended:
            self.peer.transport.close()
            return False
        if not self.peer.transport.is_closing():
            with contextlib.suppress(OSError):  # it was reset in this very moment; connection_lost follows
                self.peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        # A transport that resumed after its end would report the end again.
        if self.peer is not None and not self.peer.ended and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.left(self)
        if self.peer is not None and not self.peer.transport.is_closing():
            if exc is None:
                self.peer.transport.close()
            else:
                self.peer.transport.abort()


def _reason(e: Exception) -> str:
    return (e.strerror if isinstance(e, OSError) else None) or str(e)


def variables(proxy: str, bundle: str) -> dict[str, str]:
    """What points the clients in a process at a tunnel, with its proxy's URL ("": they need none)."""
    here = "localhost,127.0.0.1,::1,169.254.169.254,metadata,metadata.google.internal"
    way = {"https_proxy": proxy, "HTTPS_PROXY": proxy, "no_proxy": here, "NO_PROXY": here} if proxy else {}
    return {**way, **dict.fromkeys(CERTIFICATES, bundle)}
