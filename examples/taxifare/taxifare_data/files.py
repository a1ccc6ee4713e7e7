"""The files of the lab: how a row is written, and a file that is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

COLUMNS = ["fare_amount", "pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers", "key"]  # no header
ROW = "%s,%.6f,%.6f,%.6f,%.6f,%s,%s\n"  # dollars, degrees to a tenth of a metre, a count, anything
LARGEST = 1e6  # no fare, degree or count is larger, and neither NaN nor infinity is smaller


class BadInput(Exception):
    """A source cannot be read or a target cannot be written; the message says which, why, and what to try."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """A file to write, which gets its name when it is complete; if the block fails, what was there stays.

    Raises BadInput if it cannot be written. Errors of reading must not arrive here as OSError.
    """
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder: name a file in it")
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")  # hidden, so that no pattern of a trainer matches it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8", newline="") as file:
            yield file
        fresh.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}: name another --output, or make room there") from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def numbers(fields: Sequence[Any]) -> list[float] | None:
    """The fields as floats; None if one of them is no number, or not one that a ride can have."""
    try:
        found = [float(field) for field in fields]
    except (TypeError, ValueError):
        return None
    return found if all(abs(number) < LARGEST for number in found) else None
