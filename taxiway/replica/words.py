"""What the user's code says: each line gets a time and a severity, is kept on the disk, and shipped in batches."""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from taxiway import errors
from taxiway.handles import Said
from taxiway.replica import severities
from taxiway.replica.severities import TRACEBACK
from taxiway.replica.wire import Wire

log = logging.getLogger(__name__)

LONGEST = 64 * 1024  # bytes of one line; what is over is cut, and the line says so
PIECE = 64 * 1024  # what a pipe holds
BATCH = 1024 * 1024  # bytes of one report at most; a line never has that many
ROOM = 16 * 1024 * 1024  # bytes of shipped lines that may stay on the disk
MOST = 256 * 1024 * 1024  # bytes of all lines there: the next wait for the server, or are missing while it is away
AWAY_S = 30.0  # a server that took nothing for so long is away
PACE_S = 0.1  # between two reports: a line after a pause leaves at once, those that follow it closely wait for company
REMEMBERED = 200  # lines of the error stream
TOLD = 20  # of them, for a failure without a traceback
ENCODER = msgspec.json.Encoder()
UNSEEN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")  # colours, and what no log can show


class Words:
    """The log of one attempt, on its way from the user's pipes to the server: through a file, so that memory stays flat
    and nothing is lost while the server is away.
    """

    def __init__(self, folder: Path, wire: Wire) -> None:
        self.wire = wire
        self.stderr: deque[str] = deque(maxlen=REMEMBERED)
        self.said = 0  # bytes of all lines, kept for good by the server
        self._kept = (folder / "said.jsonl").open("ab+", buffering=0)
        self._shipped = 0  # bytes of it that the server has
        self._lock = threading.Lock()
        self._seq = 0
        self._missing = 0  # lines that were not taken
        self._why = ""  # the last of them was not
        self._taken = time.monotonic()  # when the server took lines last
        self._fresh = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ship, name="words", daemon=True)
        self._thread.start()

    def say(self, message: str, severity: str = "INFO") -> None:
        """One line; a kill of this process does not lose it once this returned, unless the disk is full."""
        self._keep([(severity, message)])

    def _keep(self, said: Sequence[tuple[str, str]]) -> None:
        """Lines that were said now, by one write: a trainer may print a hundred thousand a second.

        What a full disk does not take is missing, and the log says so later: a pipe that nobody reads would stop the
        trainer. So is what is said while the server is away and MOST waits for it; one that is there, and slower than
        the trainer, is waited for.
        """
        while (full := bool(said) and self._size() > MOST) and time.monotonic() - self._taken < AWAY_S:
            self._closing.wait(PACE_S)
        now = time.time()
        with self._lock:
            if full:
                self._missing += len(said)
                self._why = f"the server was away, and {MOST // 1024**2} MiB of lines waited for it"
                return
            if self._missing:
                said = [("ERROR", f"{self._missing} lines are missing here: {self._why}."), *said]
            kept = [Said(seq, now, *each) for seq, each in enumerate(said, self._seq + 1)]
            before = self._size()
            try:
                whole = memoryview(ENCODER.encode_lines(kept))
                while whole:  # a disk that is almost full takes a part first
                    whole = whole[self._kept.write(whole) :]
            except OSError as error:
                self._kept.truncate(before)
                self._missing += len(said) - (self._missing > 0)
                self._why = "the disk was full"
                log.warning("lines could not be kept: %s", error)
                return
            self.said += self._size() - before
            self._seq += len(kept)
            self._missing = 0
        self._fresh.set()

    def follow(self, pipe: IO[bytes], *, errors_stream: bool) -> None:
        """Every line of a pipe until it is closed."""
        reader = severities.Reader()
        for piece in pieces(pipe):
            if errors_stream:
                self.stderr.extend(piece)
            self._keep([(reader.severity(line), line) for line in piece])

    def close(self) -> None:
        """Ship what is left; returns when the server has every line, or will take no more."""
        if self._missing:
            self._keep([])
        self._closing.set()
        self._fresh.set()
        self._thread.join()
        self._kept.close()

    def _ship(self) -> None:
        try:
            self._ship_all()
        except errors.Error as error:
            log.warning("the server takes no more lines: %s", error)
        except Exception:  # noqa: BLE001 - the edge of a thread: the lines stay on the disk, where the engine finds them
            log.error("lines could not be shipped\n%s", traceback.format_exc())

    def _ship_all(self) -> None:
        closing = False
        while not closing:
            self._fresh.wait()
            self._fresh.clear()
            closing = self._closing.is_set()  # before the lines are read: what was said before the end is among them
            more = True
            while more:
                batch, more = self._next()
                if batch:
                    self.wire.say(batch)
                    self._taken = time.monotonic()
            self._make_room(0 if closing else ROOM)
            self._closing.wait(PACE_S)

    def _next(self) -> tuple[list[bytes], bool]:
        """The next lines that are whole on the disk, and whether there may be more: what is said just now can wait."""
        piece = os.pread(self._kept.fileno(), BATCH, self._shipped)
        end = piece.rfind(b"\n") + 1
        self._shipped += end
        return piece[:end].splitlines(), len(piece) == BATCH

    def _make_room(self, most: int) -> None:
        """Once all is shipped and more than `most` bytes are there, the file begins anew."""
        with self._lock:
            if self._shipped > most and self._shipped == self._size():
                self._kept.truncate(0)
                self._shipped = 0

    def _size(self) -> int:
        return os.fstat(self._kept.fileno()).st_size


def lines(pipe: IO[bytes]) -> Iterator[str]:
    """Each line of a pipe as a person would see it, as it comes; memory stays flat however long a line is."""
    return itertools.chain.from_iterable(pieces(pipe))


def pieces(pipe: IO[bytes]) -> Iterator[list[str]]:
    """`lines`, all that came together at once."""
    held, over = b"", 0
    while piece := os.read(pipe.fileno(), PIECE):
        first, *whole = (held + piece).split(b"\n")
        if whole:
            *whole, held = whole
            yield [shown(first, over), *map(shown, whole)]
            over = 0
        else:
            held = first
        drawn_over = held.rstrip(b"\r").rfind(b"\r") + 1
        if drawn_over:
            held, over = held[drawn_over:], 0
        over += max(0, len(held) - LONGEST)
        held = held[:LONGEST]
    if held:
        yield [shown(held, over)]


def shown(line: bytes, over: int = 0) -> str:
    """A line's text, without what a carriage return drew over, colours and what is no text; cut if it is long."""
    line = line.rstrip(b"\r").rpartition(b"\r")[2]
    over += max(0, len(line) - LONGEST)
    text = line[:LONGEST].decode("utf-8", "replace")
    text = text if text.isprintable() else UNSEEN.sub("", text)
    return f"{text} ... (cut: the line had {LONGEST + over} bytes)" if over else text


def last_of(stderr: list[str]) -> list[str]:
    """What tells why a program failed: its last traceback with all that follows, else the last lines."""
    starts = [index for index, line in enumerate(stderr) if TRACEBACK in line]
    return stderr[starts[-1] :] if starts else stderr[-TOLD:]
