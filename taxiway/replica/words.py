"""What the user's code says: each line gets a time and a severity, is kept on the disk, and shipped in batches."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

import msgspec

from taxiway import errors
from taxiway.handles import Said
from taxiway.replica.wire import Wire

log = logging.getLogger(__name__)

LONGEST = 64 * 1024  # characters of one line; what is over is cut, and the line says so
BATCH = 1000
PACE_S = 0.2  # how long a line may wait for company
TRACEBACK = "Traceback (most recent call last):"
GLOG = re.compile(r"^(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: )?([IWEF])(?:\d{4} \d\d:\d\d:\d\d\.\d+| )")
LOGGING = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[:\s]")
LETTERS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}


class Words:
    """The log of one attempt, on its way from the user's pipes to the server."""

    def __init__(self, folder: Path, wire: Wire) -> None:
        self.wire = wire
        self.last_traceback: list[str] = []
        self.tail: deque[str] = deque(maxlen=20)  # of the error stream, for a failure without a traceback
        self._kept = (folder / "said.jsonl").open("ab", buffering=0)
        self._lock = threading.Lock()
        self._waiting: deque[Said] = deque()
        self._seq = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ship_forever, name="words", daemon=True)
        self._thread.start()

    def say(self, message: str, severity: str = "INFO") -> None:
        """One line, on the disk before this returns."""
        if len(message) > LONGEST:
            message = f"{message[:LONGEST]} ... (cut: the line had {len(message)} characters)"
        with self._lock:
            self._seq += 1
            said = Said(self._seq, time.time(), severity, message)
            self._kept.write(msgspec.json.encode(said) + b"\n")
            self._waiting.append(said)

    def follow(self, pipe: IO[bytes], *, errors_stream: bool) -> None:
        """Every line of a pipe until it is closed."""
        traceback: list[str] | None = None
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
            if not line.strip():
                continue
            severity = severity_of(line)
            if errors_stream:
                self.tail.append(line)
                if line.startswith(TRACEBACK):
                    traceback = []
                if traceback is not None:
                    severity = "ERROR"
                    traceback.append(line)
                    if not line.startswith((" ", TRACEBACK)):  # the exception itself ends a traceback
                        self.last_traceback, traceback = traceback, None
            self.say(line, severity)

    def close(self) -> None:
        """Ship what is left; returns when the server has every line, or will take no more."""
        self._closing.set()
        self._thread.join()
        self._kept.close()

    def _ship_forever(self) -> None:
        while True:
            ending = self._closing.wait(PACE_S)
            while self._waiting:
                batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
                try:
                    self.wire.say([msgspec.to_builtins(each) for each in batch])
                except errors.Error as error:
                    log.warning("the server takes no more lines: %s", error)
                    return
                for _ in batch:
                    self._waiting.popleft()
            if ending:
                return


def severity_of(line: str) -> str:
    """The severity that a line names itself (glog's letter, or Python logging's word), else INFO."""
    glog = GLOG.match(line)
    if glog:
        return LETTERS[glog.group(1)]
    named = LOGGING.match(line)
    return named.group(1) if named else "INFO"
