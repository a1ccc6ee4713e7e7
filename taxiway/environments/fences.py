"""Where a stranger's own code runs while it is built: behind a fence, if whoever asks has one.

A package's setup.py may do what it likes. Whoever builds for others puts a fence around it (a replica puts up its
jail); who builds his own package on his own machine needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entered:
    """What to start in place of a command: itself, or what runs it behind a fence."""

    command: Sequence[str]
    variables: Mapping[str, str]  # all that it has
    passed: Sequence[int] = ()  # descriptors that it inherits


class Fence(Protocol):
    def enter(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        read: Sequence[Path],
        write: Path,
        hosts: Sequence[str],
    ) -> AbstractContextManager[Entered]:
        """The command behind the fence, for as long as this lasts. There it has these variables beside what the fence
        itself gives, finds the files and folders of `read` and may change the folder `write`, each at its own place,
        and reaches `hosts` by https; nothing else is there. Raises FailedPrecondition if it cannot be put up."""


@dataclass(frozen=True)
class Within:
    """A fence with what is to be found behind it. `hosts` empty: no network."""

    fence: Fence
    read: Sequence[Path]
    write: Path
    hosts: Sequence[str] = ()

    def reaching(self, hosts: Sequence[str]) -> Within:
        return replace(self, hosts=hosts)

    def writing(self, folder: Path) -> Within:
        return replace(self, write=folder)
