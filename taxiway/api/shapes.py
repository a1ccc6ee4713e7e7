"""The shape of a message, as data: what bodies are read by and the discovery document is written from."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Annotated, Any, Literal

import msgspec

# Formats whose values are strings in JSON (https://protobuf.dev/programming-guides/json).
TEXTS = frozenset({"int64", "uint64", "byte", "google-datetime", "google-duration", "google-fieldmask"})


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
