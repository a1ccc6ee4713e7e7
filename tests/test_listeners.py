import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time

import pytest

from taxiway import authority, errors, listeners

PUT = (
    b"PUT /upload?id=1 HTTP/1.1\r\nHost: storage.googleapis.com\r\nContent-Range: bytes 0-10/11\r\n"
    b"Content-Length: 11\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nContent-Type: "
    b"application/x-www-form-urlencoded\r\n\r\n"
)
CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


class App:
    """Tells each request back as JSON; /wait answers when `go_on` is set; counts its lifespans."""

    def __init__(self):
        self.lives = []
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        self.ended = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            self.lives.append("up")
            scope["state"]["house"] = "built"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            self.lives.append("down")
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/wait":
            self.waiting.set()
            try:
                await self.go_on.wait()
            finally:
                self.ended.append(list(self.lives))
        told = {"scheme": scope["scheme"], "path": scope["path"], "client": scope["client"][0], "body": body.decode()}
        answer = json.dumps(told | scope["state"]).encode()
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Served:
    def __init__(self, app, plain, secure, paths, until):
        self.app, self.plain, self.secure, self.until = app, plain, secure, until
        self.tls = ssl.create_default_context(cafile=str(paths.ca_cert))

    async def open(self, secure):
        if not secure:
            return await asyncio.open_connection("127.0.0.1", self.plain)
        return await asyncio.open_connection(
            "127.0.0.1", self.secure, ssl=self.tls, server_hostname="storage.googleapis.com"
        )


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return authority.create(tmp_path_factory.mktemp("tls"), time.time())


@contextlib.asynccontextmanager
async def serving(paths, grace_s=10.0):
    app, until = App(), asyncio.Event()
    plain, secure = listeners.listen("127.0.0.1", 0), listeners.listen("127.0.0.1", 0)
    rows = [
        listeners.Listener(plain, None, "httptools"),
        listeners.Listener(secure, authority.server_context(paths), "h11"),
    ]
    ports = [row.sock.getsockname()[1] for row in rows]
    served = listeners.Listeners(app, rows, grace_s)
    task = asyncio.create_task(served.serve(until))
    started = asyncio.create_task(served.started.wait())
    await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield Served(app, *ports, paths, until)
    finally:
        started.cancel()
        until.set()
        await asyncio.wait_for(task, 30)


async def answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return head.split("\r\n")[0], json.loads(await reader.readexactly(length))


def in_loop(test):
    """Runs an async test in the loop that the server itself runs in."""

    def run(paths):
        listeners.run(asyncio.wait_for(test(paths), 60))

    run.__name__ = test.__name__
    return run


@in_loop
async def test_tensorflows_put_is_taken_on_the_tls_port_and_the_connection_goes_on(paths):
    async with serving(paths) as served:
        reader, writer = await served.open(secure=True)
        for _ in range(2):
            writer.write(PUT)
            began = time.monotonic()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert time.monotonic() - began < 0.9  # curl sends the body unasked after one second
            writer.write(CHUNKS)
            status, told = await answer(reader)
            assert status == "http/1.1 200 ok"
            assert (told["scheme"], told["path"], told["body"]) == ("https", "/upload", "hello world")
        writer.close()


@in_loop
async def test_both_ports_serve_one_app_with_one_lifespan(paths):
    async with serving(paths) as served:
        for secure, scheme in ((False, "http"), (True, "https")):
            reader, writer = await served.open(secure)
            for path in ("/a", "/b"):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n".encode())
                _, told = await answer(reader)
                assert told == {"scheme": scheme, "path": path, "client": "127.0.0.1", "body": "", "house": "built"}
            writer.close()
        assert served.app.lives == ["up"]
    assert served.app.lives == ["up", "down"]


@in_loop
async def test_a_running_request_ends_before_the_house_is_closed(paths):
    async with serving(paths) as served:
        connections = [await served.open(secure) for secure in (False, True)]
        for _, writer in connections:
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await served.app.waiting.wait()
        served.until.set()
        while True:  # new clients are refused ...
            try:
                _, writer = await served.open(secure=False)
            except OSError:
                break
            writer.close()
            await asyncio.sleep(0)
        served.app.go_on.set()  # ... and the old ones answered
        for reader, writer in connections:
            assert (await answer(reader))[0] == "http/1.1 200 ok"
            assert await reader.read() == b""
            writer.close()
    assert served.app.ended == [["up"], ["up"]]
    assert served.app.lives == ["up", "down"]


@in_loop
async def test_a_request_that_does_not_end_is_cut_off_after_the_grace(paths):
    async with serving(paths, grace_s=0.2) as served:
        reader, writer = await served.open(secure=True)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await served.app.waiting.wait()
        served.until.set()
        with contextlib.suppress(OSError):
            assert b"200 OK" not in await reader.read()
        writer.close()
    assert served.app.ended == [["up"]]
    assert served.app.lives == ["up", "down"]


@in_loop
async def test_idle_connections_do_not_hold_the_end_back(paths):
    async with serving(paths, grace_s=30) as served:
        connections = [await served.open(secure) for secure in (False, True, True)]
        for reader, writer in connections:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await answer(reader)
        silent = socket.create_connection(("127.0.0.1", served.secure))  # never says its TLS hello
        served.until.set()
        began = time.monotonic()
    assert time.monotonic() - began < 10
    silent.close()
    for _, writer in connections:
        writer.close()


def test_a_lifespan_that_fails_is_told(paths):
    async def app(scope, receive, send):
        raise RuntimeError("no house")

    async def main():
        row = listeners.Listener(listeners.listen("127.0.0.1", 0), None, "httptools")
        try:
            await listeners.Listeners(app, [row], 1).serve(asyncio.Event())
        finally:
            assert row.sock.fileno() == -1

    with pytest.raises(errors.Internal, match="did not start"):
        listeners.run(main())


def test_a_taken_port_is_refused_with_a_sentence():
    with contextlib.closing(listeners.listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(errors.FailedPrecondition, match=f"could not listen on 127.0.0.1:{port}"):
            listeners.listen("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number):
    program = (
        "import asyncio\n"
        "from taxiway import listeners\n"
        "async def app(scope, receive, send):\n"
        "    await receive(); await send({'type': 'lifespan.startup.complete'})\n"
        "    await receive(); print('down', flush=True); await send({'type': 'lifespan.shutdown.complete'})\n"
        "async def main():\n"
        "    row = listeners.Listener(listeners.listen('127.0.0.1', 0), None, 'httptools')\n"
        "    served, until = listeners.Listeners(app, [row], 1), listeners.until_signalled()\n"
        "    serving = asyncio.create_task(served.serve(until))\n"
        "    await served.started.wait(); print('up', flush=True)\n"
        "    await serving\n"
        "listeners.run(main())\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    with started:
        assert started.stdout.readline() == "up\n"
        started.send_signal(number)
        out, err = started.communicate(timeout=30)
    assert (out, err, started.returncode) == ("down\n", "", 0)
