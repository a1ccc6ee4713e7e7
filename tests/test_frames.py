"""The gateway's end of the socket to a model's server: replies find their requests, however they are cut."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.models import frames
from taxiway.models.frames import HEADER, MOST, Frames, Reply


class Sent:
    """Stands at the other end: what was written, and whether the connection was cut."""

    def __init__(self):
        self.requests: list[tuple[int, int, bytes]] = []
        self.cut = False

    def writelines(self, parts):
        _, number, kind = HEADER.unpack(parts[0])
        self.requests.append((number, kind, parts[1]))

    def is_closing(self):
        return self.cut

    def abort(self):
        self.cut = True


def opened():
    made, sent = Frames(), Sent()
    made.connection_made(sent)
    return made, sent


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.randoms(), st.integers(1, 50))
def test_replies_find_their_requests_in_any_order_and_cut_anywhere(bodies, chance, size):
    async def talk():
        made, sent = opened()
        asked = [made.ask(frames.PREDICT, body) for body in bodies]
        replies = [HEADER.pack(len(body), number, frames.OK) + body for number, _, body in sent.requests]
        chance.shuffle(replies)
        stream = b"".join(replies)
        for start in range(0, len(stream), size):
            made.data_received(stream[start : start + size])
        return [each.result() for each in asked]

    assert asyncio.run(talk()) == [Reply(frames.OK, body) for body in bodies]


def test_everybody_who_waits_is_told_when_the_server_goes():
    async def talk():
        made, _ = opened()
        asked = [made.ask(frames.PREDICT, b"x") for _ in range(3)]
        made.connection_lost(None)
        assert made.gone.is_set()
        assert not made.open
        with pytest.raises(errors.Unavailable, match="has gone"):
            made.ask(frames.PREDICT, b"x")
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(each) for each in asyncio.run(talk())] == [errors.Unavailable] * 3


def test_a_reply_that_nobody_waits_for_is_let_go():
    async def talk():
        made, sent = opened()
        made.ask(frames.PREDICT, b"x").cancel()
        later = made.ask(frames.PREDICT, b"y")
        for number in (99, *(each[0] for each in sent.requests)):
            made.data_received(HEADER.pack(1, number, frames.OK) + b"z")
        return later.result()

    assert asyncio.run(talk()) == Reply(frames.OK, b"z")


def test_a_reply_that_would_fill_the_memory_cuts_the_connection():
    async def talk():
        made, sent = opened()
        made.data_received(HEADER.pack(MOST + 1, 1, frames.OK))
        return sent.cut, made.open

    assert asyncio.run(talk()) == (True, False)


def test_a_socket_is_reached_however_long_its_path_is(tmp_path):
    folder = tmp_path / ("long" * 40)
    folder.mkdir()

    async def talk():
        with pytest.raises(OSError, match="No such file"):
            await frames.connect(folder)
        held = os.open(folder, os.O_RDONLY)
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), f"/proc/self/fd/{held}/model.sock")
        reached = await frames.connect(folder)
        await asyncio.wait_for(reached.gone.wait(), 20)
        server.close()
        os.close(held)

    asyncio.run(talk())


def test_what_a_model_puts_in_its_sockets_place_leads_nowhere(tmp_path):
    """The folder is the model's own to write: a link there would make the server speak to a socket of the host."""

    async def talk():
        other = tmp_path / "host.sock"
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), str(other))
        (tmp_path / "model").mkdir()
        (tmp_path / "model/model.sock").symlink_to(other)
        with pytest.raises(OSError, match="no socket"):
            await frames.connect(tmp_path / "model")
        server.close()

    asyncio.run(talk())
