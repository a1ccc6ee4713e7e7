"""A TensorFlow SavedModel: load(folder) gives a model that answers as Cloud ML Engine's online prediction did.

The graph is run through a session's callable, which costs a tenth of a signature's ConcreteFunction (about 20 against
210 us for a small model) and works alike for SavedModels written by TensorFlow 1 and 2. Instances become columns, the
columns one run, its outputs rows.

Every fault is a sentence ``<message>: <detail> (Error code: N)`` with the messages and numbers of the service: 0 the
model cannot be loaded, 1 invalid inputs, 2 the run failed, 3 invalid outputs. The words that old clients look for are
kept; where the service said nothing helpful (a string for a float came back as a failed run, a wrong shape as a dump of
the feed) the input is named.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import base64
import binascii
import itertools
import operator
import os
import traceback

# Set before TensorFlow is imported: its notes about the processor would bury a model's own words.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import numpy as np  # noqa: E402

try:
    import tensorflow.compat.v1 as tf
except ImportError:  # before 1.13 there was only the one
    import tensorflow as tf
from tensorflow.core.protobuf import config_pb2  # noqa: E402

PREDICTED, REFUSED, FAILED = 0, 4, 5  # the kinds of an outcome, as serve.py documents them

INVALID_INPUTS = "Invalid inputs: {} (Error code: 1)"
FAILED_TO_RUN = "Failed to run the provided model: Exception during running the graph: {} (Error code: 2)"
INVALID_OUTPUTS = "There was a problem processing the outputs: {} (Error code: 3)"

DEFAULT_SIGNATURE = "serving_default"
NOT_FOR_SERVING = "__saved_model_init_op"  # TensorFlow 2 lists its initialiser among the signatures
SMALL = 64 << 20  # bytes on disk up to which a second thread costs more in hand-overs than it brings


def load(folder):
    """Load the SavedModel in `folder` and return it as a Model. Raises Unloadable with the reason."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    if tf.__version__.split(".")[0] != "1":
        tf.disable_v2_behavior()
    require_a_saved_model(folder)
    load_custom_ops(folder)
    session = tf.Session(graph=tf.Graph(), config=session_config(folder))
    try:
        meta_graph = tf.saved_model.loader.load(session, ["serve"], folder)
    except Exception as error:  # noqa: BLE001  an edge: whatever the loader meets in a user's file is the model's fault
        traceback.print_exc()
        raise Unloadable("Failed to load the model due to bad model data. tags: ['serve']\n{}".format(error)) from None
    signatures = {}
    for name, definition in meta_graph.signature_def.items():
        if name != NOT_FOR_SERVING and definition.outputs:
            try:
                signatures[name] = Signature(session, definition)
            except (ValueError, KeyError, TypeError) as error:
                print("Signature {} cannot be served and is left out: {}".format(name, error))
    if not signatures:
        raise Unloadable("The SavedModel has no signature to serve. Export it with one, such as serving_default.")
    return Model(signatures)


class Unloadable(Exception):
    """Why a model cannot be loaded, as a whole sentence for the model's owner."""

    is_a_sentence = True


def require_a_saved_model(folder):
    def holds_one(place):
        return any(os.path.isfile(os.path.join(place, name)) for name in ("saved_model.pb", "saved_model.pbtxt"))

    if holds_one(folder):
        return
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    below = [name for name in names if holds_one(os.path.join(folder, name))]
    if below:
        advice = "There is one in the folder {} below it: deploy that folder.".format(below[-1])
    else:
        advice = "Deploy the folder that your exporter wrote it to."
    raise Unloadable("There is no saved_model.pb or saved_model.pbtxt in the model's folder. " + advice)


def load_custom_ops(folder):
    """Load the operations that a model brings along in assets.extra, as the service did."""
    extra = os.path.join(folder, "assets.extra")
    if os.path.isdir(extra):
        for name in sorted(os.listdir(extra)):
            if name.endswith(".so"):
                tf.load_op_library(os.path.join(extra, name))


def session_config(folder):
    size = sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)
    threads = 1 if size <= SMALL else 0
    config = config_pb2.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    config.gpu_options.allow_growth = True
    return config


class Model:
    """A loaded SavedModel and its signatures, {name: Signature}."""

    def __init__(self, signatures):
        self.signatures = signatures
        self.only = next(iter(signatures)) if len(signatures) == 1 else None

    @property
    def summary(self):
        described = {name: signature.describe() for name, signature in sorted(self.signatures.items())}
        default = self.only or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in self.signatures else None)
        return {"framework": "tensorflow", "version": tf.__version__, "default": default, "signatures": described}

    def check(self):
        """Predict for one instance of zeros and empty strings, default signature. Raises Unloadable if that fails.

        A signature that takes strings often parses them (an image, a tf.Example), so an empty one may rightly be
        refused: then the remark that is returned says that the model was loaded but not tried.
        """
        name = self.summary["default"]
        if name is None:
            return "not tried: without a signature serving_default each request must name one with signature_name"
        signature = self.signatures[name]
        work = Work(signature, signature.made_up_columns(), 1)
        kind, value = predict_alone(work)
        if kind == REFUSED and signature.takes_strings:
            return "not tried: it does not take empty strings"
        if kind != PREDICTED:
            reason = value.rpartition(" (Error code")[0]
            raise Unloadable("It cannot predict for an instance of zeros with signature {}. {}".format(name, reason))
        return None

    def predict_many(self, requests):
        """Predict for requests [(instances, options)]: each is checked alone, then those of one shape share a run.

        Returns [(PREDICTED, [one dict for each row]) | (REFUSED | FAILED, sentence)] in the order of the requests. Rows
        are dicts of the signature's outputs, also when it has only one (gcloud's `local predict` prints them so).
        """
        outcomes = [self.prepare(instances, options) for instances, options in requests]
        alike = {}
        for index, work in enumerate(outcomes):
            if isinstance(work, Work):
                alike.setdefault(work.likeness(index), []).append((index, work))
        for group in alike.values():
            answers = predict_together([work for _, work in group])
            for (index, _), answer in zip(group, answers):
                outcomes[index] = answer
        return outcomes

    def prepare(self, instances, options):
        """The Work of one request, or the outcome that refuses it."""
        try:
            signature = self.signature(options.get("signature_name"))
            if signature.takes_strings:
                instances = [decode_base64(instance) for instance in instances]
            return Work(signature, signature.columns(instances), len(instances))
        except Refused as refused:
            return REFUSED, INVALID_INPUTS.format(refused)

    def signature(self, name):
        """The signature of that name; without one the only signature, else serving_default."""
        if name is not None and not isinstance(name, str):
            raise Refused("The field signature_name must be a string, got {!r}.".format(name))
        if not name and self.only:
            name = self.only
        found = self.signatures.get(name or DEFAULT_SIGNATURE)
        if found is None:
            raise Refused("No signature found for signature key {}.".format(name))
        return found


class Refused(Exception):
    """A request that the model cannot take, with the detail of the sentence that says why."""


class Work:
    """One request, ready to run: a signature, and an array with a row for each instance for each input that is fed."""

    def __init__(self, signature, columns, rows):
        self.signature = signature
        self.columns = columns  # {input's name: array}
        self.rows = rows

    def likeness(self, index):
        """Equal for requests that one run may answer together; the index keeps those apart that must run alone."""
        if not self.signature.row_by_row:
            return index
        return (id(self.signature),) + tuple([(name, column.shape[1:]) for name, column in self.columns.items()])


def predict_together(works):
    """One run for all the works, of one likeness; unless that comes out right each is tried alone."""
    if len(works) == 1:
        return [predict_alone(works[0])]
    signature = works[0].signature
    merged = {name: np.concatenate([work.columns[name] for work in works]) for name in works[0].columns}
    try:
        outputs = signature.run(merged)
        rows = signature.rows(outputs)
    except Exception:  # noqa: BLE001  an edge: each will tell its own reason below
        rows = None
    if rows is None or len(rows) != sum(work.rows for work in works):
        return [predict_alone(work) for work in works]
    answers = iter(rows)
    return [(PREDICTED, list(itertools.islice(answers, work.rows))) for work in works]


def predict_alone(work):
    try:
        outputs = work.signature.run(work.columns)
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
        return REFUSED, FAILED_TO_RUN.format(error.message)
    except Exception as error:  # noqa: BLE001  an edge: a graph may call anything
        traceback.print_exc()
        return FAILED, FAILED_TO_RUN.format(error)
    try:
        return PREDICTED, work.signature.rows(outputs)
    except (ValueError, TypeError) as error:
        return FAILED, INVALID_OUTPUTS.format(error)


class Signature:
    """One way to call the graph: named inputs, named outputs, and what runs from the ones to the others."""

    def __init__(self, session, definition):
        self.session = session
        graph = session.graph
        self.inputs = {name: Input(graph, name, definition.inputs[name]) for name in sorted(definition.inputs)}
        self.outputs = {name: Output(graph, name, definition.outputs[name]) for name in sorted(definition.outputs)}
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

    def columns(self, instances):
        """Turn instances into {input: array of one row for each}. Raises Refused with the input's name."""
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
            self.callables[names] = self.make_callable(names)
        return self.callables[names](*columns.values())

    def make_callable(self, names):
        feeds = [self.inputs[name].tensor.name for name in names]
        fetches = [output.tensor.name for output in self.outputs.values()]
        distinct = sorted(set(fetches))
        options = config_pb2.CallableOptions(feed=feeds, fetch=distinct)
        try:
            call = self.session._make_callable_from_options(options)
        except (AttributeError, ValueError, tf.errors.OpError):
            # A callable cannot fetch an output that is itself an input; Session.run() can, ten times slower.
            return lambda *arrays: self.session.run(fetches, dict(zip(feeds, arrays)))
        if distinct == fetches:
            return call
        places = [distinct.index(fetch) for fetch in fetches]

        def run_and_share(*arrays):
            results = call(*arrays)
            return [results[place] for place in places]

        return run_and_share

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


class End:
    """An input or output of a signature: its name, and the tensor of the graph that it stands for."""

    def __init__(self, graph, name, info):
        self.name = name
        self.tensor = graph.get_tensor_by_name(info.name)  # ValueError for what is not one dense tensor
        self.dtype = self.tensor.dtype
        if info.dtype and info.dtype != self.dtype.as_datatype_enum:
            raise ValueError("{} is declared as type {} but is {}".format(name, info.dtype, self.dtype.name))
        if self.dtype.name in ("resource", "variant"):
            raise ValueError("{} is a {}, which no request can hold".format(name, self.dtype.name))
        shape = self.tensor.get_shape()
        self.shape = None if shape.ndims is None else shape.as_list()  # None: nothing is known, not even the rank
        self.is_string = self.dtype.base_dtype == tf.string

    @property
    def has_rows(self):
        """Whether the outer dimension may be of any size, so that requests can share a run."""
        return self.shape is None or (len(self.shape) > 0 and self.shape[0] is None)

    def describe(self):
        return {"dtype": self.dtype.name, "shape": self.shape}


class Input(End):
    def __init__(self, graph, name, info):
        End.__init__(self, graph, name, info)
        self.numpy_type = np.dtype(self.dtype.as_numpy_dtype)
        self.has_default = self.tensor.op.type == "PlaceholderWithDefault"
        self.is_whole = self.dtype.is_integer or self.dtype.is_bool
        self.is_list = self.shape == [
            None
        ]  # one plain value an instance: the usual case, which needs no look at its shape

    def made_up_column(self):
        shape = [size or 1 for size in self.shape] if self.shape is not None else [1]
        if self.is_string:
            column = np.empty(shape, dtype=object)
            column.fill(b"")
            return column
        return np.zeros(shape, dtype=self.numpy_type)

    def column(self, values):
        """One array of the input's own type from one value for each instance. Raises Refused."""
        array = self.strings(values) if self.is_string else self.numbers(values)
        if not (self.is_list and array.ndim == 1):
            self.require_shape(array.shape)
        return array

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
