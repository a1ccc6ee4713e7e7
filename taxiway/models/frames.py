"""One persistent, multiplexed socket to a version's server.

A frame is a header, network order: payload length (uint32), request id (uint64), kind (uint8); then the payload.
runners/serve.py has the other end and the list of kinds; replies come in any order.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple, cast

from taxiway import errors

HEADER = struct.Struct("!IQB")
PREDICT = 1  # what we send
MOST = 1 << 30  # bytes of a reply
OK, BAD_REQUEST, FAILED = 0, 4, 5  # what comes back


class Reply(NamedTuple):
    kind: int
    payload: bytes


class Frames(asyncio.Protocol):
    """The gateway's end. When the server goes, every waiter is told at once, and `gone` is set."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, kind: int, payload: bytes) -> asyncio.Future[Reply]:
        """Send one frame; its reply comes later. Raises Unavailable, now or then, if the server goes away before."""
        if self._transport is None or self._transport.is_closing():
            raise errors.Unavailable("The version's server has gone; it is being started again. Retry in a moment.")
        number = next(self._ids)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._transport.writelines((HEADER.pack(len(payload), number, kind), payload))
        return reply

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
            if length > MOST and self._transport is not None:
                self._transport.abort()  # broken or hostile: it runs its owner's code
                return
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            waiter = self._waiting.pop(number, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(Reply(kind, bytes(memoryview(self._buffer)[start + HEADER.size : end])))
            start = end
        if start:
            del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.gone.set()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(errors.Unavailable("The version's server went away while it predicted. Retry."))
        self._waiting.clear()


async def connect(folder: Path, name: str = "model.sock") -> Frames:
    """Connect to a socket by its folder: a path of any length works, though a socket's own may have 108 bytes only.

    The folder is the model's own to write, so what leads elsewhere is not followed. Raises OSError while nobody listens
    there.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not stat.S_ISSOCK(os.lstat(name, dir_fd=held).st_mode):
            raise OSError(f"{name} is no socket")
        short = Path(f"/proc/self/fd/{held}")
        path = (short if short.exists() else folder) / name
        _, frames = await asyncio.get_running_loop().create_unix_connection(Frames, str(path))
        return frames
    finally:
        os.close(held)
