"""Google's wire: JSON bodies to Structs and back, times, pages, masks and errors.

Reading follows the proto3 JSON mapping (https://protobuf.dev/programming-guides/json): lowerCamel and snake_case names,
whole numbers as numbers or strings, null as unset, base64 with either alphabet. Beyond it every fault of a body is told
at once, each with the dotted name of its field. Any msgspec Struct can be read and written, not only ML v1's.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from taxiway import errors

T = TypeVar("T", bound=msgspec.Struct)
Item = TypeVar("Item")

DEEPEST = 100  # levels of messages and lists in a body: protobuf's own limit
MOST_FAULTS = 20
RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1)}

_WHOLE = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DURATION = re.compile(r"-?\d{1,12}(\.\d{1,9})?s", re.ASCII)


# ---- the shape of a message, as data --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Type:
    """What a field holds. `word` is string, integer, number, boolean, any, array, map or message."""

    word: str
    format: str = ""
    enum: tuple[str, ...] = ()
    item: Type | None = None
    make: type = tuple  # tuple, list or dict: what an array or a map is kept in
    message: type[msgspec.Struct] | None = None


@dataclasses.dataclass(frozen=True)
class Member:
    """A field: its name in Python and on the wire, its type, what it means and what it is when unset."""

    attribute: str
    name: str
    type: Type
    description: str
    output: bool
    default: object


@functools.cache
def members(kind: type[msgspec.Struct]) -> tuple[Member, ...]:
    """The fields of a Struct in their order. A field without a default has msgspec.NODEFAULT: it is required."""
    return tuple(_member(field) for field in msgspec.structs.fields(kind))


def _member(field: msgspec.structs.FieldInfo) -> Member:
    metas = getattr(field.type, "__metadata__", ())
    description = next((meta.description for meta in metas if meta.description), "")
    output = any((meta.extra_json_schema or {}).get("readOnly", False) for meta in metas)
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Member(field.name, field.encode_name, _type(field.type), description, output, default)


_PLAIN = {
    str: Type("string"),
    bool: Type("boolean"),
    int: Type("integer", "int64"),
    float: Type("number", "double"),
    bytes: Type("string", "byte"),
    Any: Type("any"),
    object: Type("any"),
}


def _type(hint: Any) -> Type:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        formats = [meta.extra["format"] for meta in args[1:] if meta.extra and "format" in meta.extra]
        return dataclasses.replace(_type(args[0]), format=formats[0]) if formats else _type(args[0])
    if origin in (typing.Union, types.UnionType):
        (held,) = [arg for arg in args if arg not in (type(None), msgspec.UnsetType)]
        return _type(held)
    if origin is Literal:
        return Type("string", enum=args)
    if origin in (tuple, list):
        return Type("array", item=_type(args[0]), make=origin)
    if origin is dict:
        return Type("map", item=_type(args[1]), make=dict)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return Type("message", message=hint)
    return _PLAIN[hint]


# ---- bodies ---------------------------------------------------------------------------------------------------------


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
        raise _wrong(at, f"The request has no body. Send a JSON object, a {kind.__name__}, with {_some_names(kind)}.")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        reason = _why_not_json(error, len(body))
        raise _wrong(at, f"The body is not JSON: {reason}. Send a JSON object, a {kind.__name__}.") from error


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
            self.fault(at or "body", f"Expected a JSON object, a {kind.__name__}; got {_shown(value)}.")
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
                self.fault(_under(at, _cut(key)), f"Unknown field of a {kind.__name__}. {_nearest(key, kind)}")
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
            self.fault(at, f"{error} Got {_shown(value)}.")
            return None

    def array(self, make: type, item: Type, value: object, at: str, depth: int) -> object:
        if not isinstance(value, list | tuple):
            self.fault(at, f"Expected a list of {_plain_word(item)}s; got {_shown(value)}.")
            return None
        return make(self.element(item, element, f"{at}[{index}]", depth) for index, element in self.some(value))

    def map(self, make: type, item: Type, value: object, at: str, depth: int) -> object:
        if not isinstance(value, dict):
            told = f"Expected a JSON object with a {_plain_word(item)} for each key"
            self.fault(at, f"{told}; got {_shown(value)}.")
            return None
        if any("\0" in key for key in value):
            self.fault(at, "A key must not contain the character NUL.")
        return make((key, self.element(item, value[key], _under(at, _cut(key)), depth)) for _, key in self.some(value))

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
        return _seconds_of_time(value)
    if type.format == "google-duration":
        return _seconds_of_duration(value)
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
    if not whole and not (isinstance(value, str) and _WHOLE.fullmatch(value)):
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


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a JSON object"
    if isinstance(value, list | tuple):
        return "a list"
    return _cut(msgspec.json.encode(value).decode())


def _wrong(field: str, sentence: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(faults=[(field, sentence)])


# ---- times ----------------------------------------------------------------------------------------------------------


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, always with six digits, so that texts sort as times do."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z".rjust(27, "0")


def parse_timestamp(text: str, field: str) -> float:
    """RFC 3339 with any offset and up to nine digits -> seconds since the epoch, cut to microseconds."""
    return _told(_seconds_of_time, text, field)


def duration(seconds: float) -> str:
    """7200.0 -> "7200s", 1.5 -> "1.5s"; nine digits at most."""
    digits = f"{seconds:.9f}".rstrip("0").rstrip(".")
    return f"{'0' if digits == '-0' else digits}s"


def parse_duration(text: str, field: str) -> float:
    """ "7200s" -> 7200.0."""
    return _told(_seconds_of_duration, text, field)


def _told(parse: Callable[[object], float], text: str, field: str) -> float:
    try:
        return parse(text)
    except ValueError as error:
        raise _wrong(field, f"{error} Got {_shown(text)}.") from error


def _seconds_of_time(value: object) -> float:
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    expected = "Expected a time such as 2026-11-01T09:30:00Z."
    if not match:
        raise ValueError(expected)
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        return moment.replace(microsecond=int((fraction or ".")[1:7].ljust(6, "0"))).timestamp()
    except ValueError as error:
        raise ValueError(expected) from error


def _seconds_of_duration(value: object) -> float:
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return float(value[:-1])
    raise ValueError("Expected a duration in seconds such as 7200s.")


_FORMS: dict[str, Callable[[Any], Any]] = {
    "int64": str,
    "uint64": str,
    "byte": lambda value: base64.b64encode(value).decode(),
    "double": _written_number,
    "google-datetime": timestamp,
    "google-duration": duration,
}

# formats whose values are strings in JSON
TEXTS = frozenset(_FORMS) - {"double"} | {"google-fieldmask"}


# ---- pages ----------------------------------------------------------------------------------------------------------


def page_size(query: Mapping[str, str], default: int = 20, most: int = 100, name: str = "pageSize") -> int:
    """How many items a caller wants: `default` if unsaid or 0, `most` if more (https://google.aip.dev/158)."""
    text = query.get(name, "") or "0"
    if not _WHOLE.fullmatch(text) or int(text) < 0:
        raise _wrong(name, f"Expected a whole number from 1 to {most}, or nothing for {default}; got {_shown(text)}.")
    return min(int(text) or default, most)


def page_token(key: Sequence[object]) -> str:
    """The key of the last item shown (strings and numbers), as an opaque text that is safe in a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def page_key(query: Mapping[str, str], kind: type[Item], name: str = "pageToken") -> Item | None:
    """The key inside the caller's token, as a `kind` such as tuple[float, str]; None for the first page."""
    token = query.get(name, "")
    if not token:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=kind)
    except ValueError as error:
        raise _wrong(
            name, "Expected the nextPageToken of the page before, unchanged; start again without it."
        ) from error


def page(
    name: str,
    items: Sequence[Item],
    size: int,
    key: Callable[[Item], Sequence[object]],
    form: Callable[[Item], object],
) -> dict[str, Any]:
    """A list response: {name: items, nextPageToken}; {} if there are none, as Google's.

    `items` are at most `size` + 1 of them, read after the last page's key: the one too many says that more follow.
    """
    shown = items[:size]
    written: dict[str, Any] = {name: [form(item) for item in shown]} if shown else {}
    if len(items) > size:
        written["nextPageToken"] = page_token(key(shown[-1]))
    return written


# ---- field masks ----------------------------------------------------------------------------------------------------


def mask(text: str, allowed: Collection[str], field: str = "updateMask") -> tuple[str, ...]:
    """ "description,default_version.name" -> those of `allowed` (dotted lowerCamel) that it names, each once.

    Raises InvalidArgument for an empty mask and for every name that may not be updated.
    """
    offered = f"Can be updated: {', '.join(sorted(allowed))}."
    named = [path.strip() for path in text.split(",") if path.strip()]
    if not named:
        raise _wrong(field, f"Say which fields to update, joined by commas. {offered}")
    spelled = {path: path if path in allowed else _camel(path) for path in named}
    faults = [
        (field, f"{_shown(path)} cannot be updated. {offered}") for path, name in spelled.items() if name not in allowed
    ]
    if faults:
        raise errors.InvalidArgument(faults=faults[:MOST_FAULTS])
    return tuple(dict.fromkeys(spelled.values()))


def _camel(path: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), path)


# ---- errors ---------------------------------------------------------------------------------------------------------


def ml_body(error: errors.Error) -> dict[str, Any]:
    """An error as google.rpc says it; each fault is a violation of a field."""
    told: dict[str, Any] = {"code": error.code, "message": str(error), "status": error.status}
    if isinstance(error, errors.InvalidArgument) and error.faults:
        violations = [{"field": field, "description": sentence} for field, sentence in error.faults]
        told["details"] = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}]
    return {"error": told}


def storage_body(error: errors.Error) -> dict[str, Any]:
    """The same as the Cloud Storage JSON API says it."""
    detail = {"domain": "global", "reason": error.reason, "message": str(error)}
    return {"error": {"code": error.code, "message": str(error), "errors": [detail]}}
