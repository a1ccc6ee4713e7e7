"""One persistent, multiplexed socket to a version's server.

A frame is a header, network order: payload length (uint32), request id (uint64), kind (uint8); then the payload.
runners/serve.py has the other end and the list of kinds; replies come in any order.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from pathlib import Path
from typing import NamedTuple, cast

from taxiway import errors

HEADER = struct.Struct("!IQB")
PREDICT, PING = 1, 2  # what we send
OK, PONG, BAD_REQUEST, FAILED = 0, 2, 4, 5  # what comes back


class Reply(NamedTuple):
    kind: int
    payload: bytes


class Frames(asyncio.Protocol):
    """The gateway's end. When the server goes, every waiter is told at once."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    async def ask(self, kind: int, payload: bytes) -> Reply:
        """Send one frame and wait for its reply. Raises Unavailable if the server goes away before it answers."""
        if self._transport is None or self._transport.is_closing():
            raise errors.Unavailable("The version's server has gone; it is being started again. Retry in a moment.")
        number = next(self._ids)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        self._transport.writelines((HEADER.pack(len(payload), number, kind), payload))
        try:
            return await reply
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses of asyncio's

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, number, kind = HEADER.unpack_from(self._buffer, start)
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            waiter = self._waiting.get(number)
            if waiter is not None and not waiter.done():
                waiter.set_result(Reply(kind, bytes(memoryview(self._buffer)[start + HEADER.size : end])))
            start = end
        if start:
            del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(errors.Unavailable("The version's server went away while it predicted. Retry."))


async def connect(folder: Path, name: str = "model.sock") -> Frames:
    """Connect to a socket by its folder: a path of any length works, though a socket's own may have 108 bytes only.

    Raises OSError while nobody listens there.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = Path(f"/proc/self/fd/{held}")
        path = (short if short.exists() else folder) / name
        _, frames = await asyncio.get_running_loop().create_unix_connection(Frames, str(path))
        return frames
    finally:
        os.close(held)
