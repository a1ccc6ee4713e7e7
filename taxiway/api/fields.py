"""Partial responses: `fields=kind,items(name,metadata/*)`, and what such a mask keeps of an answer.

Syntax: https://cloud.google.com/storage/docs/json_api#partial-response. Every JSON API of Google's takes it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from taxiway import errors

# {field: what to keep of its value}, None for all of it. "*" stands for the fields that are not named beside it.
Mask = dict[str, "Mask | None"]

DEPTH = 32  # objects inside one another: far more than any resource has
LENGTH = 4096  # characters: clients send a few hundred
_WORD = re.compile(r"\s*([\w.:@$-]+|[*,/()])\s*")
_NOTHING: Final[Mask] = {}


class Malformed(errors.InvalidArgument):
    """A mask that breaks the syntax. A field that is not there breaks nothing: clients ask for newer ones than ours."""

    reason = "invalidParameter"


def asked(query: Mapping[str, str]) -> Mask | None:
    """The mask that a request's query gives; None: the whole answer. Raises Malformed."""
    text = query.get("fields") or query.get("$fields")
    if not text:
        return None
    if len(text) > LENGTH:
        raise _malformed(text)
    return parse(text)


@functools.lru_cache(maxsize=128)
def parse(text: str) -> Mask | None:
    """A mask's text, read. None: it keeps everything. Raises Malformed.

    The same text gives the same mask again, so it must not be changed.

    >>> parse("a,b/c(d,*/e)")
    {'a': None, 'b': {'c': {'d': None, '*': {'e': None}}}}
    """
    mask: Mask = {}
    path: tuple[str, ...] = ()
    open_lists: list[tuple[str, ...]] = []  # what stands before each bracket that is open
    before = ","
    for word in (*_words(text), ""):
        after_name = before not in ",/()"
        if word in ("", ",", ")"):
            _expect(after_name or before == ")", text)
            if after_name:
                _add(mask, path)
            if word == ")":
                _expect(bool(open_lists), text)
                open_lists.pop()
            path = open_lists[-1] if open_lists else ()
        elif word in ("/", "("):
            _expect(after_name, text)
            if word == "(":
                open_lists.append(path)
        else:
            _expect(not after_name and before != ")" and len(path) < DEPTH, text)
            path = (*path, word)
        before = word
    _expect(not open_lists, text)
    return None if mask.get("*", mask) is None else mask


def keep(mask: Mask, answer: Any) -> Any:
    """What a mask keeps of a JSON value: the fields that it names, of every item where the value is a list.

    What was asked for inside a field and is not there takes the field with it.

    >>> keep({"items": {"name": None}}, {"kind": "k", "items": [{"name": "a", "size": "1"}, {"size": "2"}]})
    {'items': [{'name': 'a'}, {}]}
    """
    if isinstance(answer, list):
        return [keep(mask, each) for each in answer if isinstance(each, dict | list)]
    others = mask.get("*", _NOTHING)
    kept = {}
    for name, value in answer.items():
        wanted = mask.get(name, others)
        if wanted is None:
            kept[name] = value
        elif wanted and isinstance(value, dict | list) and (part := keep(wanted, value)):
            kept[name] = part
    return kept


def _words(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise _malformed(text)
        yield match[1]
        at = match.end()


def _add(mask: Mask, path: tuple[str, ...]) -> None:
    """Keep all of what lies at the path, unless something around it is kept whole already."""
    here = mask
    for word in path[:-1]:
        inner = here.setdefault(word, {})
        if inner is None:
            return
        here = inner
    here[path[-1]] = None


def _expect(right: bool, text: str) -> None:
    if not right:
        raise _malformed(text)


def _malformed(text: str) -> Malformed:
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    sentence = f"Invalid field selection {shown!r}. Expected such as kind,items(name,metadata/key)."
    return Malformed(faults=[("fields", sentence)])
