"""A clock that may be set while we run: how long ago something was, without what the wall clock jumped since."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

MOST = 10_000  # moments that are remembered; one that is forgotten is asked for anew
JUMP_S = 2.0  # what two looks may differ by before it counts as a jump; slewing and a busy machine stay below


class Jump(NamedTuple):
    """The wall clock went from `before` to `after` while no time passed."""

    before: float
    after: float


class Clock:
    """Wall time that is compared with the steady clock at each `look`, of which there must be several a minute.

    A limit must not be over because the clock was set: from the first time that somebody asks for a moment, the steady
    clock counts; before that, the jumps that were seen since are left out. What lies before this process is taken as
    the wall clock has it. Where a moment could be before or after a jump back, it is taken for after: then a limit is
    over later, and never too early. A suspended machine is a jump too: the steady clock stands still then.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._last = wall(), steady()
        self._jumps: list[Jump] = []
        self._first: dict[float, tuple[float, float]] = {}  # moments -> what was answered first, and when (steady)

    def look(self) -> float:
        """The wall clock's time now."""
        wall, steady = self._wall(), self._steady()
        expected = self._last[0] + steady - self._last[1]
        if abs(wall - expected) > JUMP_S:
            self._jumps.append(Jump(expected, wall))
        self._last = wall, steady
        return wall

    def since(self, moment: float) -> float:
        """What the wall clock would show now, had nobody set it since `moment`."""
        wall, steady = self._last
        if moment not in self._first:
            if len(self._first) >= MOST:
                self._first.pop(next(iter(self._first)), None)
            self._first[moment] = max(moment, wall - self._jumped(moment)), steady
        answered, then = self._first[moment]
        return answered + steady - then

    def _jumped(self, moment: float) -> float:
        """By how much the clock was set since; what lies before a jump is that which cannot lie after it."""
        seconds = 0.0
        for before, after in reversed(self._jumps):
            if moment >= after or before < moment:
                break
            seconds += after - before
        return seconds

    def latest(self) -> float:
        """`since` answers nothing later for a moment of the past, but for what slewing moved."""
        return self._last[0] + JUMP_S + sum(max(0.0, before - after) for before, after in self._jumps)
