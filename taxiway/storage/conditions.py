"""Preconditions: what must hold of an object or a bucket, by its two counters, for a request to go on.

Rules from https://cloud.google.com/storage/docs/request-preconditions. Whoever checks and changes does both in one
transaction.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from taxiway import errors


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Cloud Storage's preconditions; generation 0 stands for "no such object"."""

    generation: int | None = None
    generation_not: int | None = None
    metageneration: int | None = None
    metageneration_not: int | None = None

    def check(self, name: str, current: Versioned | None, *, reading: bool = False) -> None:
        """Raises ConditionNotMet, or NotModified where a read asked for something new."""
        generation = current.generation if current else 0
        metageneration = current.metageneration if current else None
        for word, wanted, found in (
            ("ifGenerationMatch", self.generation, generation),
            ("ifMetagenerationMatch", self.metageneration, metageneration),
        ):
            if wanted is not None and wanted != found:
                raise errors.ConditionNotMet(
                    f"At least one of the pre-conditions you specified did not hold: {word}={wanted}, but "
                    f"{_has(name, word, found)}. Read it again and retry with what it has now."
                )
        for word, unwanted, found in (
            ("ifGenerationNotMatch", self.generation_not, generation),
            ("ifMetagenerationNotMatch", self.metageneration_not, metageneration),
        ):
            if unwanted is not None and unwanted == found:
                kind = errors.NotModified if reading else errors.ConditionNotMet
                raise kind(
                    f"At least one of the pre-conditions you specified did not hold: {word}={unwanted}, and "
                    f"{_has(name, word, found)}."
                )


class Versioned(Protocol):
    """Anything that carries Cloud Storage's two counters."""

    @property
    def generation(self) -> int: ...
    @property
    def metageneration(self) -> int: ...


class Versions(NamedTuple):
    """Only the counters of an object."""

    generation: int
    metageneration: int


ALWAYS = Conditions()


def _has(name: str, word: str, found: int | None) -> str:
    if not found:
        return f"{name} does not exist"
    return f"{name} has {'metageneration' if 'Meta' in word else 'generation'} {found}"
