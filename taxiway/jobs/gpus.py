"""The GPUs of the host: each is one job's alone for as long as that is held; who needs one waits until enough are free.

What a job was given stands in its row, so that it is still the job's after a restart. Jobs that wait for GPUs are given
them in their order in the line: those that would do for one are kept for it, and are given to nobody behind it, who
would else go past it again and again. Jobs that need none go past.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

Fitting = Callable[[str], Collection[int]]  # what a job wants -> the GPUs of the host that would do


def none(_wanted: str) -> Collection[int]:
    """Of a host without."""
    return ()


def granted(wanted: str, count: int, taken: Collection[int], fitting: Fitting) -> list[int] | None:
    """The GPUs for a job that wants so many; None if it must wait. Where the host has fewer at all, it gets those.

    >>> granted("T4", 2, {1}, lambda wanted: (1, 2, 3))
    [2, 3]
    >>> granted("T4", 2, {1, 2}, lambda wanted: (1, 2, 3))
    >>> granted("T4", 2, (), lambda wanted: (1,))
    [1]
    """
    would_do = fitting(wanted) if wanted else ()
    count = min(count, len(would_do))
    free = sorted(set(would_do) - set(taken))
    return free[:count] if len(free) >= count else None
