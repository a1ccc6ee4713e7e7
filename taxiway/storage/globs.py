r"""Patterns of names, as Cloud Storage's `matchGlob` writes them.

    *       any characters but /, also none        [a-z]   one character of these; [!a-z], [^a-z]: one of the others
    **      any characters, also none              {a,b}   one of these patterns, which may hold others
    **/     any folders, also none                 \       takes what is special from the character that follows
    ?       one character but /

Rules from https://cloud.google.com/storage/docs/json_api/v1/objects/list#list-object-glob; the service's own answers to
questions that the page leaves open are told in https://github.com/fsouza/fake-gcs-server/pull/2328 and /2344.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from taxiway import errors

LENGTH = 1024  # characters: a name has no more
DEPTH = 32  # braces inside one another
STATES = 2000  # of what is known about names; a pattern that needs more forgets and starts anew


@dataclass(frozen=True, slots=True)
class Some:
    """One character: of these ranges, or of all others."""

    ranges: tuple[tuple[str, str], ...]
    but: bool = False

    def holds(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges) != self.but


ANY = Some((), but=True)
PLAIN = Some((("/", "/"),), but=True)
Known = frozenset[int]  # the places in a pattern that a name may have reached


class Glob:
    """A pattern, ready to be asked: `matches` takes a step for each character of a name, whatever the pattern is.

    `literal` is what every name that matches begins with.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.literal = ""
        self._steps: list[tuple[Some, int] | None] = []  # of each place: what it takes, and where that leads
        self._free: list[list[int]] = []  # where a place leads without taking anything
        start = self._place()
        self._end = _Reader(self, pattern).sequence(start, at_folder=True)
        self._start = self._closure([start])
        self._known: dict[tuple[Known, str], Known] = {}

    def matches(self, name: str) -> bool:
        known, reached = self._known, self._start
        for character in name:
            following = known.get((reached, character))
            if following is None:
                following = self._step(reached, character)
            if not following:
                return False
            reached = following
        return self._end in reached

    def _step(self, reached: Known, character: str) -> Known:
        if len(self._known) >= STATES:
            self._known.clear()
        steps = [step for place in reached if (step := self._steps[place]) is not None]
        following = self._closure(target for some, target in steps if some.holds(character))
        self._known[reached, character] = following
        return following

    def _closure(self, places: Iterable[int]) -> Known:
        reached: set[int] = set()
        left = list(places)
        while left:
            place = left.pop()
            if place not in reached:
                reached.add(place)
                left += self._free[place]
        return frozenset(reached)

    def _place(self) -> int:
        self._steps.append(None)
        self._free.append([])
        return len(self._steps) - 1

    def _takes(self, start: int, some: Some) -> int:
        end = self._place()
        self._steps[start] = (some, end)
        return end

    def _repeats(self, start: int, some: Some) -> int:
        again, end = self._place(), self._place()
        self._free[start] += [again, end]
        self._steps[again] = (some, start)
        return end


@functools.lru_cache(maxsize=64)
def glob(pattern: str) -> Glob:
    """Raises InvalidArgument that says where the pattern is wrong."""
    if len(pattern) > LENGTH:
        raise errors.InvalidArgument(
            faults=[("matchGlob", f"A pattern has {LENGTH} characters at most; this has {len(pattern)}.")]
        )
    return Glob(pattern)


class _Reader:
    """Turns a pattern into places, from left to right."""

    def __init__(self, made: Glob, pattern: str) -> None:
        self.made, self.pattern, self.at = made, pattern, 0
        self.literal = True  # whether everything so far was a character that stands for itself
        self.open: list[int] = []  # where the braces begin that are not closed yet

    def sequence(self, start: int, *, at_folder: bool) -> int:
        """Read to the end, or to the comma or brace that ends an alternative; where the pattern is then."""
        made, pattern = self.made, self.pattern
        while self.at < len(pattern):
            character = pattern[self.at]
            if character in ",}" and self.open:
                return start
            if character == "}":
                raise self._wrong(f"the '}}' at character {self.at} closes no '{{'; write \\}} for itself")
            if character == "]":
                raise self._wrong(f"the ']' at character {self.at} closes no '['; write \\] for itself")
            if character in "*?[{":
                self.literal = False
            if character == "*":
                start = self._stars(start, at_folder=at_folder)
            elif character == "[":
                start = made._takes(start, self._class())
            elif character == "{":
                start = self._alternatives(start, at_folder=at_folder)
            elif character == "?":
                start = made._takes(start, PLAIN)
                self.at += 1
            else:
                start = self._itself(start)
            at_folder = pattern[self.at - 1] == "/"
        if self.open:
            raise self._wrong(f"the '{{' at character {self.open[-1]} is not closed; write \\{{ for itself")
        return start

    def _stars(self, start: int, *, at_folder: bool) -> int:
        begin = self.at
        while self.pattern[self.at : self.at + 1] == "*":
            self.at += 1
        if self.at - begin == 1:
            return self.made._repeats(start, PLAIN)
        if not at_folder or self.pattern[self.at : self.at + 1] != "/":
            return self.made._repeats(start, ANY)
        self.at += 1
        folders = self.made._place()
        end = self.made._takes(self.made._repeats(folders, ANY), _one("/"))
        self.made._free[start] += [folders, end]  # some folders, or none
        return end

    def _itself(self, start: int) -> int:
        character = self.pattern[self.at]
        if character == "\\" and self.at + 1 < len(self.pattern):
            self.at += 1
            character = self.pattern[self.at]
        self.at += 1
        if self.literal:
            self.made.literal += character
        return self.made._takes(start, _one(character))

    def _alternatives(self, start: int, *, at_folder: bool) -> int:
        made, end = self.made, self.made._place()
        self.open.append(self.at)
        if len(self.open) > DEPTH:
            raise self._wrong(f"more than {DEPTH} braces stand inside one another")
        while True:
            self.at += 1
            first = made._place()
            made._free[start].append(first)
            last = self.sequence(first, at_folder=at_folder)
            made._free[last].append(end)
            if self.pattern[self.at] == "}":
                break
        self.open.pop()
        self.at += 1
        return end

    def _class(self) -> Some:
        begin = self.at
        but = self.pattern[begin + 1 : begin + 2] in ("!", "^")
        members: list[tuple[str, bool]] = []  # each with whether it was escaped
        self.at += 2 if but else 1
        while (character := self.pattern[self.at : self.at + 1]) != "]":
            escaped = character == "\\"
            if escaped:
                self.at += 1
                character = self.pattern[self.at : self.at + 1]
            if not character or (not escaped and (character in "{}" or (character == "," and self.open))):
                raise self._wrong(f"the '[' at character {begin} is not closed; write \\[ for itself")
            if character == "[" and not escaped:
                raise self._wrong(f"the '[' at character {self.at} stands inside another one; write \\[ for it")
            members.append((character, escaped))
            self.at += 1
        self.at += 1
        if not members:
            raise self._wrong(f"the '[' at character {begin} holds no character")
        ranges = self._ranges(members)
        return Some((*ranges, ("/", "/")) if but else tuple(ranges), but)

    def _ranges(self, members: list[tuple[str, bool]]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        while members:
            low = high = members.pop(0)[0]
            if len(members) > 1 and members[0] == ("-", False):
                high = members[1][0]
                del members[:2]
            if low > high:
                raise self._wrong(f"the range {low}-{high} ends before it begins")
            found.append((low, high))
        return found

    def _wrong(self, why: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(faults=[("matchGlob", f"{self.pattern!r} is no pattern: {why}.")])


def _one(character: str) -> Some:
    return Some(((character, character),))
