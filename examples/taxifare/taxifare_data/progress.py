"""How far long work is: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 24  # characters of the bar


class Progress:
    """Call it with what is done so far; nothing is said before `pace` seconds, and nothing more often.

    Without a total there is no bar, only numbers.
    """

    def __init__(
        self, what: str, total: int = 0, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.pace = 0.1 if self.live else 10.0  # seconds
        self.began = self.said = clock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.write("\r\x1b[K")  # the finished bar makes room for what is said next

    def __call__(self, done: int) -> None:
        now = self.clock()
        if now - self.said < self.pace:
            return
        self.said = now
        line = f"{self.what}  {self.amount(done)}  {done / (now - self.began):,.0f} a second"
        self.write(f"\r{line}\x1b[K" if self.live else f"{line}\n")

    def amount(self, done: int) -> str:
        if not self.total:
            return f"{done:,}"
        full = WIDTH * done // self.total
        return f"[{'#' * full}{'.' * (WIDTH - full)}] {done:,} of {self.total:,}"

    def write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
