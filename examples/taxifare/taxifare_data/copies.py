"""Makes a small file of rides large: draws its rows again and again, each time a few dozen metres aside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taxifare_data import chunks, files, progress, sources

JITTER = 5e-4  # degrees, one standard deviation: 55 metres to the north, 42 to the east


class Source(NamedTuple):
    """The rides of a file, a row of each array for a ride."""

    fares: np.ndarray  # as they stand in the file
    positions: np.ndarray  # float64 [n, 4], degrees
    passengers: np.ndarray  # as they stand in the file


def enlarge(source: str, rows: int, seed: int, path: Path) -> dict[Path, int]:
    """Writes `rows` rows, each one of the source's drawn with replacement; returns {path: rows}.

    Fares and passengers stay what they are; each of the four coordinates gets noise of its own, N(0, JITTER); keys
    count from 0. The same source and seed give the same bytes. Raises BadInput if the source has no ride.
    """
    rides = read(source)
    with files.whole(path) as file, progress.Progress(f"Making {path.name}", rows) as bar:
        for first, count, chance in chunks.each(rows, seed):
            drawn = chance.integers(len(rides.fares), size=chunks.SIZE)
            moved = rides.positions[drawn] + chance.normal(0.0, JITTER, (chunks.SIZE, 4))
            columns = [rides.fares[drawn], *moved.T, rides.passengers[drawn]]
            table = zip(*[column[:count].tolist() for column in columns], range(first, first + count), strict=True)
            file.writelines([files.ROW % row for row in table])
            bar(first + count)
    return {path: rows}


def read(source: str) -> Source:
    """Every ride of a file in the lab's format; what is no ride is left out, and one warning counts it."""
    rides, headers, corrupt = [], 0, 0
    for line in sources.lines(source):
        fields = [field.strip() for field in line.split(",")]
        if fields == files.COLUMNS:
            headers += 1
        elif len(fields) == len(files.COLUMNS) and (known := files.numbers(fields[:-1])):
            rides.append((fields[0], known[1:5], fields[5]))
        elif fields != [""]:
            corrupt += 1
    if headers or corrupt:
        seen = len(rides) + headers + corrupt
        print(
            f"WARNING: left out {corrupt:,} corrupt and {headers:,} header lines of {seen:,} in {source}: "
            f"a ride has {len(files.COLUMNS)} columns, and numbers in all but the last",
            file=sys.stderr,
        )
    if not rides:
        raise files.BadInput(f"no ride can be read from {source}: expected rows of {','.join(files.COLUMNS)}")
    fares, positions, passengers = zip(*rides, strict=True)
    return Source(np.array(fares, object), np.array(positions), np.array(passengers, object))
