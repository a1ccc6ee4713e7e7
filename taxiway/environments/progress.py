"""How far a build is, for a person: read from what uv draws, told to a terminal or as the lines of a log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

PACE_S = 10.0  # between two lines of a log on how far a download is


@dataclass(frozen=True)
class Progress:
    """What a build is at: a stage (wait, download, install, compile, build), a line for a person, how much of the stage
    is done (0 to 1, or None where nobody knows)."""

    stage: str
    text: str
    fraction: float | None = None


Say = Callable[[Progress], None]


class Lines:
    """Progress as lines of a log: one for each stage, and of a download's many steps one every ten seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.write = write
        self.clock = clock
        self.said = ""
        self.due: float | None = None  # when the next word on a download is

    def __call__(self, progress: Progress) -> None:
        text = progress.text
        if progress.fraction is not None:
            now = self.clock()
            if self.due is None:  # uv only learns how much there is while it downloads: its first figures say nothing
                text = "Downloading what is not in the cache yet"
            elif now < self.due:
                return
            self.due = now + PACE_S
        if text != self.said:
            self.said = text
            self.write(text)


def tell(say: Say | None, progress: Progress) -> None:
    if say:
        say(progress)


UNITS = {"B": 1.0 / (1 << 20), "KiB": 1.0 / (1 << 10), "MiB": 1.0, "GiB": float(1 << 10)}
# The name begins after a space, so one that a piece cuts in two is not taken for another.
BAR = re.compile(r"(?<=\s)([\w.-]+) +-+ +([\d.]+) ([KMG]?i?B)/([\d.]+) ([KMG]?i?B)")


def read(text: str, sizes: dict[str, tuple[float, float]]) -> Progress | None:
    """The news in a piece of uv's output; `sizes` remembers what every package has and will have, in MiB."""
    for name, have, unit, whole, of in BAR.findall(text):
        sizes[name] = (float(have) * UNITS[unit], float(whole) * UNITS[of])
    if "Installed " in text:
        return Progress("compile", "Compiling, so that imports are fast")
    if "Prepared " in text:
        return Progress("install", "Installing")
    if not BAR.search(text):
        return None
    done, total = (sum(column) for column in zip(*sizes.values(), strict=True))
    largest = max(sizes, key=lambda name: sizes[name][1] - sizes[name][0])
    return Progress("download", f"Downloading {largest}: {done:.0f} of {total:.0f} MiB", min(1.0, done / (total or 1)))
