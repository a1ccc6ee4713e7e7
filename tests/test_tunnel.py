import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
import uvloop

from taxiway import authority, errors, tunnel

MIB = 1024 * 1024


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine in a fresh loop, of each kind that the tunnel lives in, and sees that no task stays behind."""

    def run_to_end(coroutine):
        loop = request.param()
        failures = []
        loop.set_exception_handler(lambda _, context: failures.append(context))

        async def main():
            await asyncio.wait_for(coroutine, 60)
            await asyncio.sleep(0)
            return asyncio.all_tasks() - {asyncio.current_task()}

        try:
            assert loop.run_until_complete(main()) == set()
            assert failures == []
        finally:
            loop.close()

    return run_to_end


@contextlib.asynccontextmanager
async def proxy(upstream, hold_s=5.0, other_hosts="refuse"):
    served = tunnel.Tunnel()
    port = await served.start("127.0.0.1", 0, upstream=upstream, hold_s=hold_s, other_hosts=other_hosts)
    try:
        yield port
    finally:
        await served.close()
        assert served._live == set()


@contextlib.asynccontextmanager
async def upstream(serve, port=0):
    """A server whose connections are each given to `serve`; yields its address."""
    tasks = []

    async def served(reader, writer):
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    def taken(reader, writer):
        tasks.append(asyncio.create_task(served(reader, writer)))

    server = await asyncio.start_server(taken, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def say(port, head):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    return reader, writer


async def connect(port, target="storage.googleapis.com:443"):
    reader, writer = await say(port, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n"), reader, writer


async def refused(port, head):
    """(status line, body) of an answer after which the connection ends."""
    reader, writer = await say(port, head)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.split(b"\r\n")[0].decode(), body.decode()


@contextlib.contextmanager
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    yield port


@pytest.mark.parametrize(
    "target",
    [
        "storage.googleapis.com:443",
        "us-central1-ml.googleapis.com:443",
        "WWW.GoogleAPIs.com.:443",
        "googleapis.com:443",
        "accounts.google.com:443",
        "metadata.google.internal:443",
    ],
)
def test_googles_names_lead_to_the_server(run, target):
    async def main():
        async with upstream(echo) as address, proxy(address) as port:
            head, reader, writer = await connect(port, target)
            assert head.startswith(b"HTTP/1.1 200 ")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    run(main())


def test_what_a_client_says_before_it_was_answered_arrives_first(run):
    async def main():
        async with upstream(echo) as address, proxy(address) as port:
            reader, writer = await say(port, b"CONNECT www.googleapis.com:443 HTTP/1.0\r\n\r\nfirst,")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"second")
            assert await reader.readexactly(12) == b"first,second"
            writer.close()

    run(main())


def test_a_server_that_speaks_first_is_heard(run):
    async def greet(reader, writer):
        writer.write(b"welcome")
        assert await reader.read() == b"thanks"
        writer.write(b", bye")

    async def main():
        async with upstream(greet) as address, proxy(address) as port:
            _, reader, writer = await connect(port)
            assert await reader.readexactly(7) == b"welcome"
            writer.write(b"thanks")
            writer.write_eof()
            assert await reader.read() == b", bye"
            writer.close()

    run(main())


def test_a_request_may_come_in_pieces(run):
    async def main():
        async with upstream(echo) as address, proxy(address) as port:
            reader, writer = await say(port, b"CONN")
            for piece in (b"ECT www.googleapis.com:4", b"43 HTTP/1.1\r\nHost: x\r", b"\n\r", b"\n"):
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(piece)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.close()

    run(main())


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("example.com:443", "not to example.com:443. Name the host in no_proxy"),
        ("evilgoogleapis.com:443", "leads to Taxiway only"),
        ("googleapis.com.example.com:443", "leads to Taxiway only"),
        ("storage.googleapis.com:80", "on port 443 only, not on 80"),
        ("[::1]:443", "not to ::1:443"),
    ],
)
def test_another_host_is_refused_with_the_reason(run, target, sentence):
    async def main():
        async with proxy(("127.0.0.1", 1)) as port:
            status, body = await refused(port, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            assert status == "HTTP/1.1 403 Forbidden"
            assert sentence in body

    run(main())


def test_another_host_is_reached_where_that_is_allowed(run):
    async def main():
        nowhere = ("127.0.0.1", 1)
        async with upstream(echo) as (host, other), proxy(nowhere, other_hosts="tunnel") as port:
            head, reader, writer = await connect(port, f"{host}:{other}")
            assert head.startswith(b"HTTP/1.1 200 ")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()

    run(main())


def test_another_host_that_does_not_answer_is_a_bad_gateway(run):
    async def main():
        with free_port() as closed:
            async with proxy(("127.0.0.1", 1), other_hosts="tunnel") as port:
                status, body = await refused(port, f"CONNECT localhost:{closed} HTTP/1.1\r\n\r\n".encode())
                assert status == "HTTP/1.1 502 Bad Gateway"
                assert f"localhost:{closed} did not answer" in body

    run(main())


@pytest.mark.parametrize(
    ("head", "status", "sentence"),
    [
        (b"GET http://example.com/ HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "Unset http_proxy"),
        (b"POST http://x/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed", "Unset http_proxy"),
        (b"GET / HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "not GET /"),
        (b"nonsense\r\n\r\n", "400 Bad Request", "not an HTTP/1.1 request"),
        (b"\x16\x03\x01\r\n\r\n", "400 Bad Request", "not an HTTP/1.1 request"),
        (b"CONNECT storage.googleapis.com HTTP/1.1\r\n\r\n", "400 Bad Request", "needs host:port"),
        (b"CONNECT storage.googleapis.com:0 HTTP/1.1\r\n\r\n", "400 Bad Request", "needs host:port"),
        (b"CONNECT storage.googleapis.com:99999 HTTP/1.1\r\n\r\n", "400 Bad Request", "needs host:port"),
        (b"CONNECT a b:443 HTTP/1.1\r\n\r\n", "400 Bad Request", "not an HTTP/1.1 request"),
        (b"CONNECT www.googleapis.com:443 HTTP/1.1\r\nA: " + b"x" * 20000, "431 Request Header", "larger than 16384"),
    ],
)
def test_what_is_not_a_connect_is_refused_with_a_sentence(run, head, status, sentence):
    async def main():
        async with proxy(("127.0.0.1", 1)) as port:
            line, body = await refused(port, head)
            assert line.startswith(f"HTTP/1.1 {status}")
            assert sentence in body

    run(main())


def test_a_refused_client_that_is_still_sending_can_read_why(run):
    async def main():
        async with proxy(("127.0.0.1", 1)) as port:
            reader, writer = await say(port, b"PUT http://x/ HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(100):
                writer.write(b"x" * 10000)
                await writer.drain()
            assert (await reader.read()).startswith(b"HTTP/1.1 405 ")
            writer.close()

    run(main())


def test_a_connection_is_held_while_the_server_restarts(run):
    async def main():
        tries = []
        with free_port() as later:

            def where():
                tries.append(later)
                if len(tries) == 1:
                    raise errors.Unavailable("The file with the port is not written yet.")
                return "127.0.0.1", later

            async with proxy(where, hold_s=30) as port:
                waiting = asyncio.create_task(connect(port))
                while len(tries) < 3:  # the request came, and nobody answered
                    await asyncio.sleep(0.01)
                assert not waiting.done()
                async with upstream(echo, later):
                    head, reader, writer = await waiting
                    assert head.startswith(b"HTTP/1.1 200 ")
                    writer.write(b"still here")
                    assert await reader.readexactly(10) == b"still here"
                    writer.close()

    run(main())


def test_a_server_that_stays_away_is_a_bad_gateway(run):
    async def main():
        with free_port() as closed:
            async with proxy(("127.0.0.1", closed), hold_s=0.3) as port:
                status, body = await refused(port, b"CONNECT ml.googleapis.com:443 HTTP/1.1\r\n\r\n")
                assert status == "HTTP/1.1 502 Bad Gateway"
                assert f"127.0.0.1:{closed} within 0.3 s" in body
                assert "taxiway up" in body

    run(main())


def test_a_client_that_goes_while_it_is_held_is_forgotten(run):
    async def main():
        served = tunnel.Tunnel()
        with free_port() as closed:
            port = await served.start("127.0.0.1", 0, upstream=("127.0.0.1", closed), hold_s=3600, other_hosts="refuse")
            _, writer = await say(port, b"CONNECT ml.googleapis.com:443 HTTP/1.1\r\n\r\n")
            while not served._openings:
                await asyncio.sleep(0.01)
            writer.close()
            while served._openings or served._live:
                await asyncio.sleep(0.01)
            await served.close()

    run(main())


def test_closing_ends_what_is_held_and_what_is_open(run):
    async def main():
        async with upstream(echo) as address:
            where = [address]
            async with proxy(lambda: where[0], hold_s=3600) as port:
                _, open_reader, open_writer = await connect(port)
                with free_port() as closed:
                    where[0] = ("127.0.0.1", closed)
                    held_reader, held_writer = await say(port, b"CONNECT ml.googleapis.com:443 HTTP/1.1\r\n\r\n")
                    idle_reader, idle_writer = await say(port, b"CONN")
            for reader, writer in ((open_reader, open_writer), (held_reader, held_writer), (idle_reader, idle_writer)):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

    run(main())


def test_either_side_may_end_its_half_first(run):
    async def answer_after_the_end(reader, writer):
        asked = await reader.read()
        writer.write(b"you said " + asked)
        await writer.drain()

    async def end_then_listen(reader, writer):
        writer.write(b"my last word")
        writer.write_eof()
        heard.append(await reader.read())

    heard = []

    async def main():
        async with upstream(answer_after_the_end) as address, proxy(address) as port:
            _, reader, writer = await connect(port)
            writer.write(b"all of it")
            writer.write_eof()
            assert await reader.read() == b"you said all of it"
            writer.close()
        async with upstream(end_then_listen) as address, proxy(address) as port:
            _, reader, writer = await connect(port)
            assert await reader.read() == b"my last word"
            writer.write(b"and mine")
            writer.write_eof()
            while not heard:
                await asyncio.sleep(0.01)
            writer.close()
        assert heard == [b"and mine"]

    run(main())


def test_64_mib_come_through_intact_both_ways_at_once(run):
    async def main():
        async with upstream(echo) as address, proxy(address) as port:
            _, reader, writer = await connect(port)
            sent, received = hashlib.sha256(), hashlib.sha256()

            async def send():
                for number in range(64):
                    block = number.to_bytes(4, "big") * (MIB // 4)
                    sent.update(block)
                    writer.write(block)
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            total = 0
            while data := await reader.read(MIB):
                received.update(data)
                total += len(data)
            await sending
            writer.close()
            assert (total, received.digest()) == (64 * MIB, sent.digest())

    run(main())


def test_a_reader_that_does_not_read_stops_the_writer(run):
    """Bytes wait in the sender, not in the proxy: what fits in between is a few buffers, not 64 MiB."""

    async def main():
        go_on = asyncio.Event()
        swallowed = []

        async def wait_then_read(reader, writer):
            await go_on.wait()
            while data := await reader.read(MIB):
                swallowed.append(len(data))

        async with upstream(wait_then_read) as address, proxy(address) as port:
            _, _, writer = await connect(port)
            sent = 0
            block = b"x" * MIB
            while sent < 64:
                writer.write(block)
                try:
                    await asyncio.wait_for(writer.drain(), 0.5)
                except asyncio.TimeoutError:
                    break
                sent += 1
            assert sent < 32
            go_on.set()
            writer.write_eof()
            while sum(swallowed) < (sent + 1) * MIB:
                await asyncio.sleep(0.01)
            writer.close()

    run(main())


def test_a_reset_on_one_side_ends_the_other(run):
    async def reset(reader, writer):
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def main():
        async with upstream(reset) as address, proxy(address) as port:
            _, reader, writer = await connect(port)
            writer.write(b"x")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run(main())


def test_a_taken_port_is_refused_with_a_sentence(run):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(errors.FailedPrecondition, match=f"could not listen on 127.0.0.1:{port}"):
                await tunnel.Tunnel().start(
                    "127.0.0.1", port, upstream=("127.0.0.1", 1), hold_s=1, other_hosts="refuse"
                )

    run(main())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reaches_a_tls_server_by_googles_name(tmp_path):
    paths = authority.create(tmp_path / "tls", time.time())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=_answer_once, args=(listening, authority.server_context(paths)))
        server.start()
        address = listening.getsockname()[:2]
        with tunnel.run_in_thread(
            lambda made: made.start("127.0.0.1", 0, upstream=address, hold_s=5, other_hosts="refuse")
        ) as port:
            done = subprocess.run(
                ["curl", "-sS", "https://storage.googleapis.com/storage/v1/b"],
                env=os.environ | {"https_proxy": f"http://127.0.0.1:{port}", "CURL_CA_BUNDLE": str(paths.bundle)},
                capture_output=True,
                text=True,
                check=False,
            )
        server.join()
    assert (done.stdout, done.stderr) == ("GET /storage/v1/b HTTP/1.1", "")
    assert not [thread for thread in threading.enumerate() if thread.name == "tunnel"]


def _answer_once(listening: socket.socket, context: ssl.SSLContext) -> None:
    plain, _ = listening.accept()
    with context.wrap_socket(plain, server_side=True) as connection:
        asked = connection.recv(65536).split(b"\r\n")[0]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(asked), asked))
