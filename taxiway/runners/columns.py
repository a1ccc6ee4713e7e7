"""Instances <-> columns: what JSON holds as arrays of a tensor's own type, and arrays as what JSON holds.

Refusals name the input; the words that old clients look for are kept.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import base64
import binascii
import itertools
import struct

import numpy as np


class Refused(Exception):
    """A request that the model cannot take, with the detail of the sentence that says why."""


class End:
    """An input or output of a signature: its name, and the type and shape of the tensor that it stands for."""

    def __init__(self, name, tensor):
        self.name = name
        self.dtype = tensor.dtype
        if self.dtype.name in ("resource", "variant"):
            raise ValueError("{} is a {}, which no request can hold".format(name, self.dtype.name))
        shape = tensor.shape
        self.shape = None if shape.ndims is None else shape.as_list()  # None: nothing is known, not even the rank
        self.is_string = self.dtype.base_dtype.name == "string"

    @property
    def has_rows(self):
        """Whether the outer dimension may be of any size, so that requests can share a run."""
        return self.shape is None or (len(self.shape) > 0 and self.shape[0] is None)

    def describe(self):
        return {"dtype": self.dtype.name, "shape": self.shape}


class Input(End):
    def __init__(self, name, tensor):
        End.__init__(self, name, tensor)
        self.numpy_type = np.dtype(self.dtype.as_numpy_dtype)
        self.has_default = getattr(getattr(tensor, "op", None), "type", None) == "PlaceholderWithDefault"
        self.is_whole = self.dtype.is_integer or self.dtype.is_bool
        self.is_list = self.shape == [None]  # one value an instance: the usual case
        self.is_plain = self.dtype.is_floating and (self.is_list or (self.shape is not None and len(self.shape) == 2))

    def made_up_column(self):
        shape = [size or 1 for size in self.shape] if self.shape is not None else [1]
        if self.is_string:
            column = np.empty(shape, dtype=object)
            column.fill(b"")
            return column
        return np.zeros(shape, dtype=self.numpy_type)

    def column(self, values):
        """One array of the input's own type from one value for each instance. Raises Refused."""
        array = self.plain_floats(values) if self.is_plain else None
        if array is None:
            array = self.strings(values) if self.is_string else self.numbers(values)
        if not (self.is_list and array.ndim == 1):
            self.require_shape(array.shape)
        return array

    def plain_floats(self, values):
        """As numbers(), at a quarter of its cost, or None if these are not all numbers in lists of one length."""
        try:
            if self.is_list:
                flat, shape = values, (len(values),)
            else:
                (width,) = set(map(len, values))
                flat, shape = list(itertools.chain.from_iterable(values)), (len(values), width)
            packed = struct.pack("{}d".format(len(flat)), *flat)
        except (struct.error, TypeError, ValueError, OverflowError):
            return None
        return np.frombuffer(packed).reshape(shape).astype(self.numpy_type)

    def require_shape(self, shape):
        if self.shape is None:
            return
        fits = len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape)
        )
        if not fits:
            wanted, got = [["?" if size is None else size for size in sizes] for sizes in (self.shape, shape)]
            raise Refused(
                "Input {} must have the shape {} (instances first), got {}.".format(
                    self.name, shown(wanted), shown(got)
                )
            )

    def numbers(self, values):
        try:
            raw = np.array(values)
            if raw.dtype.kind == "O":  # whole numbers beyond 64 bits, null, or (numpy before 1.24) a ragged list
                self.require_leaves(values)
            elif raw.dtype.kind not in "fiub":
                raise self.odd_one(values)
            if not self.is_whole:
                return raw.astype(self.numpy_type)
            if raw.dtype.kind in "fO":
                raw = whole_numbers(values)
            cast = raw.astype(self.numpy_type)
        except OverflowError:
            raise self.cannot_hold("a number that large") from None
        except (ValueError, TypeError):
            raise self.odd_one(values) from None
        if not np.array_equal(cast, raw):
            raise self.cannot_hold(raw[cast != raw].ravel()[0])
        return cast

    def cannot_hold(self, value):
        return Refused("Input {} is of type {}, which cannot hold {}.".format(self.name, self.dtype.name, value))

    def odd_one(self, values):
        """The refusal that fits: a value of the wrong type, or lists of different lengths."""
        try:
            self.require_leaves(values)
        except Refused as refused:
            return refused
        return Refused("Input {} has lists of different lengths; every instance must have one shape.".format(self.name))

    def require_leaves(self, values):
        """Raise Refused for the first value that is not of a type that this input takes."""
        allowed = (str, bytes) if self.is_string else (int, float)
        for number, value in enumerate(values):
            for leaf in leaves(value):
                if not isinstance(leaf, allowed):
                    raise Refused(
                        "Input {} expects {}, got {} in instance {}.".format(
                            self.name, self.dtype.name, quoted(leaf), number
                        )
                    )

    def strings(self, values):
        self.require_leaves(values)
        try:
            raw = np.array(values, dtype=object)
            flat = [leaf.encode("utf-8") if isinstance(leaf, str) else leaf for leaf in raw.ravel()]
        except UnicodeEncodeError as error:
            raise Refused("Input {} holds text that is not valid Unicode: {}.".format(self.name, error)) from None
        except (ValueError, AttributeError):
            raise self.odd_one(values) from None
        if any(not isinstance(leaf, bytes) for leaf in flat):
            raise self.odd_one(values)
        encoded = np.empty(len(flat), dtype=object)
        encoded[:] = flat
        return encoded.reshape(raw.shape)


class Output(End):
    def values(self, array):
        """The rows of an array as Python values: bytes as text, or as {"b64": ...} if the name ends in _bytes."""
        if not self.is_string:
            return array.tolist()
        try:
            return encode_strings(array.tolist(), self.name.endswith("_bytes"))
        except UnicodeDecodeError as error:
            advice = "give an output of bytes a name that ends in _bytes"
            sentence = "Prediction failed during encoding instances: {} ({}: {})".format(error, self.name, advice)
            raise ValueError(sentence) from None


def sole_value(instance, name):
    """The value of a single-input model's instance, given bare or as {name: value}."""
    if not isinstance(instance, dict):
        return instance
    if len(instance) == 1 and name in instance:
        return instance[name]
    raise Refused("Expected tensor name: {}, got tensor name: {}.".format(name, list(instance)))


def whole_numbers(values):
    """An array of Python numbers whose whole ones are integers: numpy would make floats, of 53 bits, of a mixed list.

    Raises OverflowError beyond 64 bits, ValueError for lists of different lengths.
    """
    raw = np.array(values, dtype=object)
    if any(isinstance(leaf, list) for leaf in raw.ravel()):
        raise ValueError("lists of different lengths")
    if any(leaf != leaf or leaf in (float("inf"), float("-inf")) or leaf != int(leaf) for leaf in raw.ravel()):
        return raw.astype(np.float64)  # some are not whole, which the caller will find and name
    exact = np.array([int(leaf) for leaf in raw.ravel()])
    if exact.dtype.kind not in "iu":
        raise OverflowError
    return exact.reshape(raw.shape)


def decode_base64(value):
    """Replace every {"b64": text} within an instance by the bytes that it stands for."""
    if isinstance(value, list):
        return [decode_base64(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or "b64" not in value:
        return {name: decode_base64(item) for name, item in value.items()}
    try:
        return base64.b64decode("".join(value["b64"].split()), validate=True)
    except (binascii.Error, ValueError, AttributeError, TypeError) as error:
        sentence = "A value under the key b64 is not base64: {} ({}).".format(quoted(value["b64"]), error)
        raise Refused(sentence) from None


def encode_strings(value, as_bytes):
    if isinstance(value, list):
        return [encode_strings(item, as_bytes) for item in value]
    raw = value if isinstance(value, bytes) else value.encode("utf-8")
    return {"b64": base64.b64encode(raw).decode("ascii")} if as_bytes else raw.decode("utf-8")


def leaves(value):
    if not isinstance(value, list):
        yield value
        return
    for item in value:
        for leaf in leaves(item):
            yield leaf


def quoted(value):
    """A value as JSON's reader would call it, short enough for a sentence."""
    kinds = {str: "the string", bytes: "the bytes", dict: "the object", list: "the list", bool: "the boolean"}
    text = repr(value)
    if value is None:
        return "null"
    return "{} {}".format(kinds.get(type(value), "the number"), text if len(text) <= 60 else text[:57] + "...")


def shown(sizes):
    return "[{}]".format(", ".join(str(size) for size in sizes))
