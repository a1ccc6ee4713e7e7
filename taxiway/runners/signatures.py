"""A signature of a model: instances become columns, the columns one run of a form, its outputs rows."""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import operator

import numpy as np
import tensorflow as tf
from taxiway_runners.columns import Input, Output, Refused, quoted, sole_value

PREDICTED, REFUSED, FAILED = 0, 4, 5  # the kinds of an outcome, as serve.py documents them

REFUSALS = (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)  # how a graph turns down what it was given


class Trial:
    """What came of a made-up instance: PREDICTED with the outputs' arrays, REFUSED or FAILED."""

    def __init__(self, kind, arrays):
        self.kind = kind
        self.arrays = arrays


class Signature:
    """One way to call the graph: named inputs, named outputs, and what runs from the ones to the others."""

    def __init__(self, inputs, outputs, form):
        self.form = form
        self.inputs = {name: Input(name, inputs[name]) for name in inputs}  # both in the order of their names
        self.outputs = {name: Output(name, outputs[name]) for name in outputs}
        self.takes_strings = any(given.is_string for given in self.inputs.values())
        ends = list(self.inputs.values()) + list(self.outputs.values())
        self.row_by_row = bool(self.inputs) and all(end.has_rows for end in ends)
        self.callables = {}  # names of the inputs that are fed -> a function from their arrays to the outputs'
        self.sole = next(iter(self.inputs.values())) if len(self.inputs) == 1 else None
        self.in_order = operator.itemgetter(*self.inputs) if self.inputs else None  # an instance's values as a tuple

    def describe(self):
        return {
            "inputs": {name: given.describe() for name, given in self.inputs.items()},
            "outputs": {name: output.describe() for name, output in self.outputs.items()},
        }

    def made_up_columns(self):
        return {name: given.made_up_column() for name, given in self.inputs.items()}

    def try_out(self):
        """What comes of two made-up instances: zeros, then a different number in each place. Returns their Trials."""
        zeros = self.made_up_columns()
        start, counted = 1, {}
        for name, column in zeros.items():
            counted[name] = column
            if column.dtype.kind == "f":
                counted[name] = (np.arange(column.size).reshape(column.shape) % 97 + start).astype(column.dtype)
                start += 1
        return [self.try_one(zeros), self.try_one(counted)]

    def try_one(self, columns):
        try:
            return Trial(PREDICTED, list(self.run(columns)))
        except REFUSALS:
            return Trial(REFUSED, None)
        except Exception:  # noqa: BLE001  an edge: check() will tell, if no other form does better
            return Trial(FAILED, None)

    def columns(self, instances):
        """Turn instances into {input: array of one row for each}. Raises Refused with the input's name."""
        if isinstance(instances, Table):
            return {given.name: given.column(instances.columns[given.name]) for given in self.inputs.values()}
        if self.sole is not None:
            values = [sole_value(instance, self.sole.name) for instance in instances]
            return {self.sole.name: self.sole.column(values)}
        try:
            rows = list(map(self.in_order, instances))
        except (KeyError, TypeError):
            return self.columns_or_the_fault(instances)
        if set(map(len, instances)) != {len(self.inputs)}:
            return self.columns_or_the_fault(instances)
        return {given.name: given.column(values) for given, values in zip(self.inputs.values(), zip(*rows))}

    def columns_or_the_fault(self, instances):
        """As columns(), slowly: says what is wrong, or leaves out inputs that have a default in the graph."""
        values = {}
        for number, instance in enumerate(instances):
            if not isinstance(instance, dict):
                expected = "an object with the inputs {}".format(", ".join(self.inputs))
                raise Refused("Expected {} as instance {}, got {}.".format(expected, number, quoted(instance)))
            for name, value in instance.items():
                if name not in self.inputs:
                    raise Refused("Unexpected tensor name: {}".format(name))
                values.setdefault(name, []).append(value)
        for name, given in self.inputs.items():
            if len(values.get(name, ())) != len(instances) and (name in values or not given.has_default):
                raise Refused("Input {} was missing in at least one input instance.".format(name))
        return {name: given.column(values[name]) for name, given in self.inputs.items() if name in values}

    def run(self, columns):
        """Feed the arrays {input's name: array}; returns the outputs' arrays in the order of self.outputs."""
        names = tuple(columns)
        if names not in self.callables:
            self.callables[names] = self.form.make_callable(names)
        return self.callables[names](*columns.values())

    def rows(self, arrays):
        """Turn the outputs' arrays into a dict for each row. Raises ValueError: differing outer sizes, broken text.

        An output without any dimension counts as one row: a model that squeezes its output loses it for one instance.
        """
        arrays = [np.expand_dims(array, 0) if not np.ndim(array) else array for array in arrays]
        if len({len(array) for array in arrays}) != 1:
            sizes = ", ".join("{} {}".format(name, len(array)) for name, array in zip(self.outputs, arrays))
            sentence = "The outputs differ in their outer (batch) size: {}. Each needs one row for each instance."
            raise ValueError(sentence.format(sizes))
        columns = [output.values(array) for output, array in zip(self.outputs.values(), arrays)]
        if len(columns) == 1:
            (name,) = self.outputs
            return [{name: value} for value in columns[0]]
        names = list(self.outputs)
        return [dict(zip(names, row)) for row in zip(*columns)]


class Table:
    """The instances of a request that was read as columns at once: {input's name: values}, floats or lists of them."""

    def __init__(self, size, columns):
        self.size = size
        self.columns = columns

    def __len__(self):
        return self.size
