"""JSON bodies to Structs and back.

Reading follows the proto3 JSON mapping (https://protobuf.dev/programming-guides/json): lowerCamel and snake_case names,
whole numbers as numbers or strings, null as unset, base64 with either alphabet. Beyond it every fault of a body is told
at once, each with the dotted name of its field. Any msgspec Struct can be read and written, not only ML v1's.
"""

from __future__ import annotations

import base64
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import msgspec

from taxiway import errors
from taxiway.api import wire
from taxiway.api.shapes import Member, Type, members
from taxiway.api.wire import MOST_FAULTS, WHOLE, cut, shown

T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

DEEPEST = 100  # levels of messages and lists in a body: protobuf's own limit
RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def read(kind: type[T], body: object, field: str = "") -> T:
    """A body (JSON bytes, or what they decode to) as a `kind`; names of faulty fields begin with `field`.

    Raises InvalidArgument with every fault that was found, 20 at most.
    """
    at = field or "body"
    if isinstance(body, bytes | bytearray | memoryview):
        body = _decoded(kind, bytes(body), at)
    reader = _Reader()
    value = reader.message(kind, body, field, 1)
    if reader.faults:
        raise errors.InvalidArgument(faults=reader.faults[:MOST_FAULTS])
    return cast(T, value)


def write(message: msgspec.Struct) -> dict[str, Any]:
    """A message as what JSON encodes: lowerCamel names, unset left out, 64-bit numbers and times as strings."""
    sparse = type(message).__struct_config__.omit_defaults
    written = {}
    for member in members(type(message)):
        value = getattr(message, member.attribute)
        if value is None or value is msgspec.UNSET or (sparse and value == member.default):
            continue
        written[member.name] = _written(member.type, value)
    return written


def packed(message: msgspec.Struct, name: str) -> dict[str, Any]:
    """A message as a google.protobuf.Any: packed(metadata, "google.cloud.ml.v1.OperationMetadata")."""
    return {"@type": f"type.googleapis.com/{name}", **write(message)}


def _decoded(kind: type[msgspec.Struct], body: bytes, at: str) -> object:
    if not body.strip():
        if not members(kind):
            return {}
        raise wire.wrong(
            at, f"The request has no body. Send a JSON object, a {kind.__name__}, with {_some_names(kind)}."
        )
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        reason = _why_not_json(error, len(body))
        raise wire.wrong(at, f"The body is not JSON: {reason}. Send a JSON object, a {kind.__name__}.") from error


def _why_not_json(error: Exception, length: int) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} levels deep"
    if "truncated" in str(error):
        return f"it ends too early, after {length} bytes"
    return str(error).removeprefix("JSON is malformed: ")


class _Reader:
    """Walks a body beside the shape that it should have, and remembers every fault."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []

    def fault(self, at: str, sentence: str) -> None:
        self.faults.append((at, sentence))

    def message(self, kind: type[msgspec.Struct], value: object, at: str, depth: int) -> msgspec.Struct | None:
        if not isinstance(value, dict):
            self.fault(at or "body", f"Expected a JSON object, a {kind.__name__}; got {shown(value)}.")
            return None
        if depth > DEEPEST:
            self.fault(at, f"The body is nested more than {DEEPEST} levels deep.")
            return None
        given = self.given(kind, value, at)
        before = len(self.faults)
        found = {
            member.attribute: self.value(member.type, item, _under(at, member.name), depth)
            for member, _, item in given
            if item is not None and len(self.faults) < MOST_FAULTS
        }
        for member in members(kind):
            if member.default is msgspec.NODEFAULT and member.attribute not in found:
                self.fault(_under(at, member.name), f"This field is required: {member.description}".rstrip(": "))
        return kind(**found) if len(self.faults) == before else None

    def given(self, kind: type[msgspec.Struct], value: dict[str, object], at: str) -> list[tuple[Member, str, object]]:
        """The known fields of an object, with the spelling that came; the others are faults."""
        known, found = _spellings(kind), dict[str, tuple[Member, str, object]]()
        for _, key in self.some(value):
            member = known.get(key)
            if member is None:
                self.fault(_under(at, cut(key)), f"Unknown field of a {kind.__name__}. {_nearest(key, kind)}")
            elif member.attribute in found:
                twice = f"Given twice: as {found[member.attribute][1]} and as {key}. Leave one out."
                self.fault(_under(at, key), twice)
            else:
                found[member.attribute] = (member, key, value[key])
        return list(found.values())

    def value(self, type: Type, value: object, at: str, depth: int) -> object:
        """The value as `type`; what is returned after a fault is never used."""
        if type.message is not None:
            return self.message(type.message, value, at, depth + 1)
        if type.item is not None:
            walk = self.array if type.word == "array" else self.map
            return walk(type.make, type.item, value, at, depth)
        if type.word == "any":
            return value
        try:
            return _scalar(type, value)
        except ValueError as error:
            self.fault(at, f"{error} Got {shown(value)}.")
            return None

    def array(self, make: type, item: Type, value: object, at: str, depth: int) -> object:
        if not isinstance(value, list | tuple):
            self.fault(at, f"Expected a list of {_plain_word(item)}s; got {shown(value)}.")
            return None
        return make(self.element(item, element, f"{at}[{index}]", depth) for index, element in self.some(value))

    def map(self, make: type, item: Type, value: object, at: str, depth: int) -> object:
        if not isinstance(value, dict):
            told = f"Expected a JSON object with a {_plain_word(item)} for each key"
            self.fault(at, f"{told}; got {shown(value)}.")
            return None
        if any("\0" in key for key in value):
            self.fault(at, "A key must not contain the character NUL.")
        return make((key, self.element(item, value[key], _under(at, cut(key)), depth)) for _, key in self.some(value))

    def element(self, item: Type, value: object, at: str, depth: int) -> object:
        """One element of a list or map, where null is not silence but a fault."""
        if value is None and item.word != "any":
            self.fault(at, f"Expected a {_plain_word(item)}; got null.")
            return None
        return self.value(item, value, at, depth)

    def some(self, elements: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """The elements with their numbers, until enough is wrong: a long bad body costs no more than a short one."""
        for index, element in enumerate(elements):
            if len(self.faults) >= MOST_FAULTS:
                return
            yield index, element


def _scalar(type: Type, value: object) -> object:
    """One plain value; ValueError says in a sentence what was expected."""
    if type.enum:
        return _word(type.enum, value)
    if type.format == "google-datetime":
        return wire.parse_timestamp(value)
    if type.format == "google-duration":
        return wire.parse_duration(value)
    if type.format == "byte":
        return _bytes(value)
    return _SCALARS[type.word](type, value)


def _word(allowed: Sequence[str], value: object) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(value[:80].upper(), allowed, 1) if isinstance(value, str) else []
    raise ValueError(f"Expected one of {', '.join(allowed)}.{f' Did you mean {near[0]}?' if near else ''}")


def _string(_: Type, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("Expected a string.")
    if "\0" in value:
        raise ValueError("A string must not contain the character NUL.")
    return value


def _boolean(_: Type, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("Expected true or false.")
    return value


def _integer(type: Type, value: object) -> int:
    least, most = RANGES[type.format]
    whole = isinstance(value, int) and not isinstance(value, bool)
    whole = whole or (isinstance(value, float) and value.is_integer())
    if not whole and not (isinstance(value, str) and WHOLE.fullmatch(value)):
        raise ValueError("Expected a whole number.")
    number = int(cast("int | float | str", value))
    if not least <= number <= most:
        raise ValueError(f"Expected a whole number from {least} to {most}.")
    return number


def _number(_: Type, value: object) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        raise ValueError("Expected a number.")
    try:
        number = float(cast("int | float | str", value))
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("Expected a finite number.")
    return number


_SCALARS: dict[str, Callable[[Type, object], object]] = {
    "string": _string,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
}


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("Expected bytes as a base64 string.")
    text = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ValueError("Expected bytes as a base64 string.") from error


def _written(type: Type, value: Any) -> Any:
    if type.message is not None:
        return write(value)
    if type.item is not None:
        if type.word == "array":
            return [_written(type.item, element) for element in value]
        return {key: _written(type.item, element) for key, element in value.items()}
    form = _FORMS.get(type.format)
    return form(value) if form else value


def _written_number(value: float) -> float | str:
    """JSON has no word for these three; proto3 writes them as strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _some_names(kind: type[msgspec.Struct]) -> str:
    names = [member.name for member in members(kind) if not member.output]
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")


@functools.cache
def _spellings(kind: type[msgspec.Struct]) -> dict[str, Member]:
    known = {member.attribute: member for member in members(kind)}
    return known | {member.name: member for member in members(kind)}


def _nearest(name: str, kind: type[msgspec.Struct]) -> str:
    """What was perhaps meant: the known name that is nearest, or else all of them."""
    known = {member.name.lower(): member.name for member in members(kind)}
    near = difflib.get_close_matches(name[:80].replace("_", "").lower(), known, 1)
    if near:
        return f"Did you mean {known[near[0]]}?"
    return f"Known are {', '.join(known.values())}." if known else "It has no fields."


def _plain_word(type: Type) -> str:
    if type.message is not None:
        return type.message.__name__
    return {"integer": "whole number", "array": "list", "map": "JSON object"}.get(type.word, type.word)


def _under(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


_FORMS: dict[str, Callable[[Any], Any]] = {
    "int64": str,
    "uint64": str,
    "byte": lambda value: base64.b64encode(value).decode(),
    "double": _written_number,
    "google-datetime": wire.timestamp,
    "google-duration": wire.duration,
}
