"""The scalars in TensorBoard's event files, read without TensorFlow: who wants one figure does not wait for all of it.

An event file is a row of records (a length, its checksum, the data, its checksum), each an Event: the step, and values
under tags. Formats: TensorFlow's record_writer.h, event.proto, summary.proto and tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

LENGTH, CHECKSUM = 8, 4  # bytes; the checksums are not looked at: a torn record has no whole data, and is the last
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # protobuf's wire types
FLOAT, DOUBLE = 1, 2  # DataType of a TensorProto
LONGEST = 64 * 1024 * 1024  # of a record; images are larger than scalars, and no scalar is in what is larger still


def scalars(data: bytes, tag: str) -> Iterator[tuple[int, float]]:
    """(step, value) of one tag, in their order. What is torn off at the end is left out, and what is no event file
    has none.

    >>> list(scalars(b"no events", "loss"))
    []
    """
    for record in _records(data):
        step, summaries = 0, []
        for field, value in _fields(record):
            if field == 2 and isinstance(value, int):
                step = value
            elif field == 5 and isinstance(value, bytes):
                summaries.append(value)
        for summary in summaries:
            for field, value in _fields(summary):
                if field == 1 and isinstance(value, bytes) and (found := _value(value, tag.encode())) is not None:
                    yield step, found


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most so many of them, in their order and evenly spaced, the last one among them.

    >>> thinned([1, 2, 3, 4, 5, 6, 7], 3)
    [3, 5, 7]
    """
    count = min(most, len(values))
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]


def _records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + LENGTH + CHECKSUM <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        begin = at + LENGTH + CHECKSUM
        if length > LONGEST or begin + length + CHECKSUM > len(data):
            return
        yield data[begin : begin + length]
        at = begin + length + CHECKSUM


def _value(message: bytes, tag: bytes) -> float | None:
    """Of a Summary.Value, if it has the tag: simple_value, or a tensor of one number."""
    found, mine = None, False
    for field, value in _fields(message):
        if field == 1:
            mine = value == tag
        elif field == 2 and isinstance(value, float):
            found = value
        elif field == 8 and isinstance(value, bytes):
            found = _number(value)
    return found if mine else None


def _number(tensor: bytes) -> float | None:
    kind, raw = 0, b""
    for field, value in _fields(tensor):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field in (4, 5, 6) and isinstance(value, bytes):  # tensor_content, float_val, double_val
            raw = value
        elif field in (5, 6) and isinstance(value, float):
            return value
    if kind == FLOAT and len(raw) == 4:
        return float(struct.unpack("<f", raw)[0])
    if kind == DOUBLE and len(raw) == 8:
        return float(struct.unpack("<d", raw)[0])
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """A protobuf message's fields, as they stand; what is malformed ends it."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield field, value
        elif kind == BYTES:
            length, at = _varint(message, at)
            yield field, message[at : at + length]
            at += length
        elif kind == FOUR and at + 4 <= len(message):
            yield field, float(struct.unpack_from("<f", message, at)[0])
            at += 4
        elif kind == EIGHT and at + 8 <= len(message):
            yield field, float(struct.unpack_from("<d", message, at)[0])
            at += 8
        else:
            return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return number, at
