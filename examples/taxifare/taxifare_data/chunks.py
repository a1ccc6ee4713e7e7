"""Any number of rows in flat memory: a chunk at a time, each with a chance of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SIZE = 16_384  # rows; a part of what a seed means: with another size the same seed gives other rows


def each(rows: int, *seed: int) -> Iterator[tuple[int, int, np.random.Generator]]:
    """Yields (first row, rows, chance) of each chunk until there are `rows`.

    Who draws SIZE rows each time, and keeps those asked for, makes small files that are the beginnings of large ones.
    """
    for number, first in enumerate(range(0, rows, SIZE)):
        yield first, min(SIZE, rows - first), np.random.default_rng([*seed, number])
