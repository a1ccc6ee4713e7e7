"""One application on several ports of one process, each with its own parser: uvicorn, started and ended as one.

    async def main() -> None:
        plain, secure = listen("127.0.0.1", 8080), listen("127.0.0.1", 0)
        rows = [Listener(plain, None, "httptools"), Listener(secure, context, "h11")]
        await Listeners(app, rows, grace_s=10).serve(until_signalled())

    run(main())

The plain port parses with httptools, which is twice as fast. The TLS port parses with h11: TensorFlow sends its PUT
with both `Transfer-Encoding: chunked` and `Content-Length`, and httptools refuses that.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import re
import select
import signal
import socket
import ssl
from collections.abc import Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, NamedTuple, TypeVar

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope
from uvicorn.lifespan.off import LifespanOff
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from taxiway import errors

try:
    import uvloop
except ImportError:  # Windows and PyPy have none; asyncio's own loop is slower, and right
    uvloop = None  # type: ignore[assignment]

T = TypeVar("T")

IDENTITY = re.compile(rb"(?<=\r\n)transfer-encoding: *identity\r\n", re.IGNORECASE)
BACKLOG = 2048
KEEP_ALIVE_S = 65  # longer than the pools of Google's clients keep an idle connection without looking
WINDOW = 2 * 1024 * 1024  # bytes of a file that are mapped at once: more would count as memory, and gain nothing
ROUND = 64 * 1024 * 1024  # what a thread sends before it looks whether anything has changed
WAIT_MS = 20  # how long a thread waits for a client; then the event loop does
LINGER_S = 1.0  # for a closed connection to be closed on the other side too


class Listener(NamedTuple):
    """A bound socket, the TLS context if it speaks https, and who parses HTTP there."""

    sock: socket.socket
    tls: ssl.SSLContext | None
    parser: Literal["httptools", "h11"]


class Identity(H11Protocol):
    """h11, for a client that names the encoding of no encoding.

    TensorFlow's empty POST says `Transfer-Encoding: identity` beside its Content-Length (RFC 2616, 3.6); h11 knows only
    `chunked`. A request's head arrives before anything of its body, so only what comes between two requests is read.
    """

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE:
            data = IDENTITY.sub(b"", data, count=1)
        super().data_received(data)


def in_hand(scope: Scope, receive: Receive) -> RequestResponseCycle | None:
    """uvicorn's own record of a request, where its answer can be sent by `send_file`: on a plain connection."""
    cycle = getattr(receive, "__self__", None)
    return cycle if isinstance(cycle, RequestResponseCycle) and scope["scheme"] == "http" else None


async def send_file(cycle: RequestResponseCycle, threads: Executor, file: int, start: int, stop: int) -> None:
    """The body that a response's head has announced: bytes `start` to `stop` of a file.

    A thread maps a window of the file and sends from there, over and over: nothing is copied but by the kernel into
    the connection, which is twice as fast as to hand the event loop pieces to send, and than sendfile. It is the kernel
    that reads the window, so what the disk cannot read is an error, and no signal that ends the server. Raises
    ConnectionError if the client left, OSError if the file cannot be read; then the connection has ended.
    """
    loop, transport = asyncio.get_running_loop(), cycle.transport
    patience = 0.0
    while transport.get_write_buffer_size():  # the head is on its way
        await asyncio.sleep(patience)
        patience = 0.001
    try:
        # Another handle of the socket: the transport may close its own while a thread sends.
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
            at = start
            while at < stop:
                if transport.is_closing():
                    raise ConnectionResetError("the client left")
                sending = loop.run_in_executor(threads, _send_some, sock, file, at, stop)
                try:
                    await asyncio.wait({sending})
                except asyncio.CancelledError:
                    await asyncio.wait({sending})  # socket and file are closed only when no thread uses them
                    raise
                reached = sending.result()
                if reached < min(at + ROUND, stop):
                    await _writable(loop, sock)
                at = reached
    except OSError:
        transport.abort()
        cycle.disconnected = True  # uvicorn has not heard of it yet, and would miss the rest of the answer
        raise
    cycle.expected_content_length -= stop - start


class Listeners:
    """Serves `app` on all `rows`: one lifespan, one state. It handles no signals and writes no access log."""

    def __init__(self, app: ASGIApp, rows: Sequence[Listener], grace_s: float) -> None:
        """Takes bound sockets (see `listen`), which it closes; at the end running requests get `grace_s` seconds."""
        self._rows = rows
        self._servers = [uvicorn.Server(_config(app, row)) for row in rows]
        self._grace_s = grace_s
        self.started = asyncio.Event()

    async def serve(self, until: asyncio.Event) -> None:
        """Serves until the event is set, then lets the running requests end. Call it once.

        `started` is set when every port answers. Raises Internal if the application's lifespan did not start; the
        reason stands in the log of `uvicorn.error`.
        """
        lifespan = LifespanOn(self._servers[0].config)
        await lifespan.startup()
        if lifespan.should_exit:
            for row in self._rows:
                row.sock.close()
            raise errors.Internal("The server did not start; the reason stands in its log, above.")
        ticking: list[asyncio.Task[None]] = []
        try:
            for server, row in zip(self._servers, self._rows, strict=True):
                await _start(server, row, lifespan.state)
                ticking.append(asyncio.create_task(server.main_loop()))
            self.started.set()
            await until.wait()
        finally:
            for server in self._servers:
                server.should_exit = True
            await asyncio.gather(*ticking)
            await self._drain()
            await lifespan.shutdown()

    async def _drain(self) -> None:
        """Ends every connection: the idle at once, the others after their request, all of them after the grace.

        uvicorn's own end waits for connections, and a TLS client that keeps one in its pool never answers the goodbye.
        """
        states = [server.server_state for server in self._servers]
        for server, row in zip(self._servers, self._rows, strict=True):
            for listening in getattr(server, "servers", []):  # none where the start-up was cut short
                listening.close()
            row.sock.close()
            for connection in list(server.server_state.connections):
                connection.shutdown()
        running = [task for state in states for task in state.tasks]
        if running:
            _, late = await asyncio.wait(running, timeout=self._grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        clock = asyncio.get_running_loop()
        deadline = clock.time() + LINGER_S
        while any(state.connections for state in states) and clock.time() < deadline:
            await asyncio.sleep(0.01)
        for state in states:
            for connection in list(state.connections):
                connection.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address (a free port if `port` is 0), for a `Listener`.

    SO_REUSEADDR only: with SO_REUSEPORT a second server would share the port instead of being refused. Raises
    FailedPrecondition if the address is taken or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as e:
        raise errors.FailedPrecondition(
            f"The server could not listen on {host}:{port} ({e.strerror or e}). "
            "Stop the program that uses the address, or choose another with --host and --port."
        ) from e
    return sock


def bound(host: str, port: int, *, fixed: bool) -> socket.socket:
    """A listening socket on the port; on a free one if that is taken and was not asked for (`fixed`)."""
    try:
        return listen(host, port)
    except errors.FailedPrecondition:
        if fixed or not port:
            raise
        return listen(host, 0)


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else a free port."""
    sock = bound("127.0.0.1", wanted, fixed=False)
    port = int(sock.getsockname()[1])
    sock.close()
    return port


def reachable(host: str) -> str:
    """Where a client on this machine finds what listens on `host`, as a part of a URL."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` in an event loop of its own: uvloop's where it is installed."""
    return asyncio.run(main) if uvloop is None else uvloop.run(main)  # type: ignore[redundant-expr]


def until_signalled() -> asyncio.Event:
    """An event of the running loop that the first SIGTERM or SIGINT sets; later ones change nothing."""
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    return signalled


def _send_some(sock: socket.socket, file: int, at: int, stop: int) -> int:
    """How far it came: all of a round, or until the client took nothing for a while. In a thread."""
    ready = select.poll()
    ready.register(sock, select.POLLOUT)
    end = min(at + ROUND, stop)
    while at < end:
        before = at % mmap.ALLOCATIONGRANULARITY
        size = min(WINDOW, end - (at - before))
        with _mapped(file, at - before, size) as window, memoryview(window) as view:
            while before < size:
                taken = _taken(sock, view, before)
                if not taken and not ready.poll(WAIT_MS):
                    return at
                before += taken
                at += taken
    return at


def _mapped(file: int, start: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, size, access=mmap.ACCESS_READ, offset=start)
    except ValueError as error:
        raise OSError(f"a file has no bytes {start} to {start + size} any more, which were announced") from error


def _taken(sock: socket.socket, data: memoryview, start: int) -> int:
    """How many bytes from `start` on the socket takes now."""
    with data[start:] as rest:  # an error must not hold on to it
        try:
            return sock.send(rest)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise OSError("the disk could not read a file, whose bytes were announced") from error
            raise


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Until the socket takes more, or its other end has gone."""
    free = loop.create_future()
    loop.add_writer(sock, lambda: None if free.done() else free.set_result(None))
    try:
        await free
    finally:
        loop.remove_writer(sock)


def _config(app: ASGIApp, row: Listener) -> uvicorn.Config:
    tls = row.tls
    return uvicorn.Config(
        app,
        http=Identity if row.parser == "h11" else row.parser,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Clients come through our own relay on loopback: what they say about who they are is not to be believed.
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )


async def _start(server: uvicorn.Server, row: Listener, state: dict[str, Any]) -> None:
    """What `uvicorn.Server.serve` does first, without a lifespan and signals of its own."""
    if not server.config.loaded:
        server.config.load()
    server.lifespan = LifespanOff(server.config)
    server.lifespan.state = state
    await server.startup(sockets=[row.sock])
