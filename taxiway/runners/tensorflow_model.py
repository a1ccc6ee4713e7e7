"""A TensorFlow SavedModel: load(folder) gives a model that answers as Cloud ML Engine's online prediction did.

A signature can be run in up to three forms, and the quickest that answers as the model's own function does is taken:

    frozen    the signature's function with its variables made constants, in a session's callable: a tenth of the cost
              of the function (about 25 against 230 us for a small model). Not for large models, tables, or state.
    session   the whole graph as TensorFlow 1 loaded it, in a session's callable: as quick, and the only form under
              TensorFlow 1, or at first for a SavedModel that it wrote. A SavedModel that Keras 3 wrote can lack
              variables there, so under TensorFlow 2 it must be seen to answer the same.
    function  the signature's own function, as TensorFlow 2 loads it.

Instances become columns, the columns one run, its outputs rows.

Every fault is a sentence ``<message>: <detail> (Error code: N)`` with the messages and numbers of the service: 0 the
model cannot be loaded, 1 invalid inputs, 2 the run failed, 3 invalid outputs. The words that old clients look for are
kept; where the service said nothing helpful (a string for a float came back as a failed run, a wrong shape as a dump of
the feed) the input is named.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import base64
import binascii
import gc
import itertools
import operator
import os
import struct
import traceback
import typing

# Set before TensorFlow is imported: its notes about the processor would bury a model's own words.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # other models may live on the same one

import numpy as np  # noqa: E402

try:
    import tensorflow.compat.v1 as tf
except ImportError:  # before 1.13 there was only the one
    import tensorflow as tf
from tensorflow.core.protobuf import config_pb2  # noqa: E402
from tensorflow.python.saved_model import loader_impl  # noqa: E402

try:
    from tensorflow.python.framework import convert_to_constants
except ImportError:  # before 1.14
    convert_to_constants = None
try:
    import msgspec
except ImportError:
    msgspec = None

PREDICTED, REFUSED, FAILED = 0, 4, 5  # the kinds of an outcome, as serve.py documents them

INVALID_INPUTS = "Invalid inputs: {} (Error code: 1)"
FAILED_TO_RUN = "Failed to run the provided model: Exception during running the graph: {} (Error code: 2)"
INVALID_OUTPUTS = "There was a problem processing the outputs: {} (Error code: 3)"

DEFAULT_SIGNATURE = "serving_default"
TENSORFLOW_2 = tf.__version__.split(".")[0] != "1"
NOT_FOR_SERVING = "__saved_model_init_op"  # TensorFlow 2 lists its initialiser among the signatures
SMALL = 64 << 20  # bytes on disk up to which a second thread costs more in hand-overs than it brings
FREEZABLE = 128 << 20  # bytes on disk up to which a copy of the weights for each signature is worth its memory
FROZEN, SESSION, FUNCTION = "frozen", "session", "function"


def load(folder):
    """Load the SavedModel in `folder` and return it as a Model. Raises Unloadable with the reason."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    require_a_saved_model(folder)
    load_custom_ops(folder)
    size = sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)
    config = session_config(size)
    try:
        if not TENSORFLOW_2:
            signatures = session_signatures(folder, config)
        elif has_functions(folder):
            signatures = quickest_signatures(folder, config, size)
        else:
            signatures = signatures_of_an_old_model(folder, config)
    except Exception as error:  # noqa: BLE001  an edge: whatever a loader meets in a user's file is the model's fault
        traceback.print_exc()
        raise Unloadable("Failed to load the model due to bad model data. tags: ['serve']\n{}".format(error)) from None
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


def session_config(size):
    """How a model of `size` bytes on disk is run, in sessions (returned) and in functions (set for the process)."""
    threads = 1 if size <= SMALL else 0
    if TENSORFLOW_2 and threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError:  # TensorFlow is running already, with the threads that it has
            pass
    config = config_pb2.ConfigProto(intra_op_parallelism_threads=threads)
    config.inter_op_parallelism_threads = -threads if TENSORFLOW_2 else threads  # -1: in the thread that asks
    config.gpu_options.allow_growth = True
    return config


def has_functions(folder):
    """Whether TensorFlow 2 wrote it: with the objects and functions that belong to its graph."""
    graphs = loader_impl.parse_saved_model(folder).meta_graphs
    return any("serve" in graph.meta_info_def.tags and graph.object_graph_def.nodes for graph in graphs)


def session_signatures(folder, config):
    """{name: Signature} of the whole graph in one session. Raises whatever the loader raises."""
    session = tf.Session(graph=tf.Graph(), config=config)
    definitions = tf.saved_model.loader.load(session, ["serve"], folder).signature_def
    servable = {name: definitions[name] for name in definitions if definitions[name].outputs}
    return each_servable(servable, lambda definition: session_signature(session, definition))


def complete_session_signatures(folder, config):
    """As session_signatures, without those for which the loader left a variable without its value."""
    signatures = session_signatures(folder, config)
    return {name: signature for name, signature in signatures.items() if not empty_variables(signature.form)}


def empty_variables(form):
    """The variables without a value that the form's outputs come from, also by a branch that is seldom taken."""
    seen, ahead = set(), [tensor.op for tensor in form.outputs.values()]
    while ahead:
        operation = ahead.pop()
        if operation not in seen:
            seen.add(operation)
            ahead.extend([tensor.op for tensor in operation.inputs] + list(operation.control_inputs))
    handles = [operation for operation in seen if operation.type == "VarHandleOp"]
    with form.session.graph.as_default():
        has_value = [tf.raw_ops.VarIsInitializedOp(resource=handle.outputs[0]) for handle in handles]
        filled = form.session.run(has_value)
    return [handle.name for handle, full in zip(handles, filled) if not full]


def session_signature(session, definition):
    def tensors(infos):
        return {name: declared_tensor(session.graph, name, infos[name]) for name in sorted(infos)}

    form = GraphForm(SESSION, session, tensors(definition.inputs), tensors(definition.outputs))
    return Signature(form.inputs, form.outputs, form)


def declared_tensor(graph, name, info):
    """The dense tensor that a signature means by a name. Raises ValueError or KeyError if there is none such."""
    tensor = graph.get_tensor_by_name(info.name)
    if info.dtype and info.dtype != tensor.dtype.as_datatype_enum:
        raise ValueError("{} is declared as type {} but is {}".format(name, info.dtype, tensor.dtype.name))
    return tensor


def function_signatures(folder):
    """{name: Signature} of the model's own functions. Raises whatever the loader raises."""
    loaded = tf.saved_model.load_v2(folder, ["serve"])

    def signature(function):
        form = FunctionForm(function, loaded)
        return Signature(form.inputs, form.outputs, form)

    return each_servable(loaded.signatures, signature)


def each_servable(found, make):
    """{name: make(what was found)}, without those that no request could ask for."""
    made = {}
    for name in sorted(found):
        if name != NOT_FOR_SERVING:
            try:
                made[name] = make(found[name])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                print("Signature {} cannot be served and is left out: {}".format(name, error))
    return made


def signatures_of_an_old_model(folder, config):
    """What TensorFlow 1 wrote runs as TensorFlow 1 ran it; only what fails so is tried as a function."""
    signatures = session_signatures(folder, config)
    failing = [name for name in signatures if signatures[name].try_out()[0].kind == FAILED]
    if failing:
        functions = or_none(function_signatures, folder) or {}
        for name in failing:
            if name in functions and functions[name].try_out()[0].kind == PREDICTED:
                signatures[name] = functions[name]
    return signatures


def quickest_signatures(folder, config, size):
    """Each signature in the quickest form that answers as its function does, for a SavedModel of TensorFlow 2."""
    try:
        signatures = function_signatures(folder)
    except Exception:  # noqa: BLE001  an edge: the file may hold anything, and older loaders knew some of it
        traceback.print_exc()
        return session_signatures(folder, config)
    if size > FREEZABLE:
        return signatures
    in_session = None
    for name, signature in signatures.items():
        tried = signature.try_out()
        frozen = or_none(freeze, signature, config)
        if frozen and all(map(agree, tried, frozen.try_out())):
            signatures[name] = frozen
            continue
        if in_session is None:
            in_session = or_none(complete_session_signatures, folder, config) or {}
        rival = in_session.get(name)
        # A refusal proves nothing here: what the session lacks may not have been looked at.
        if rival and any(trial.kind == PREDICTED for trial in tried) and all(map(agree, tried, rival.try_out())):
            signatures[name] = rival
    gc.collect()  # the variables of frozen functions
    return signatures


def or_none(make, *arguments):
    """What make(*arguments) returns, or None if this form cannot be had, which is told in the log only."""
    try:
        return make(*arguments)
    except Exception as error:  # noqa: BLE001  an edge: there is another form, and this one's code is not ours
        reason = (str(error).splitlines() or [""])[0]
        print("{} is not possible: {}: {}".format(make.__name__, type(error).__name__, reason[:200]))
        return None


def freeze(signature, config):
    """The Signature with its variables made constants. Raises whatever stands against it."""
    function = signature.form.function
    names = list(function._arg_keywords)
    frozen = convert_to_constants.convert_variables_to_constants_v2(function, lower_control_flow=False)
    if len(frozen.inputs) != len(names) or len(frozen.outputs) != len(signature.outputs):
        raise ValueError("it holds tables or other resources")
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(frozen.graph.as_graph_def(), name="")

    def tensors(names, ends):
        found = {name: graph.get_tensor_by_name(end.name) for name, end in zip(names, ends)}
        return {name: found[name] for name in sorted(found)}

    session = tf.Session(graph=graph, config=config)
    # A function's flat outputs are in the order of their names.
    form = GraphForm(FROZEN, session, tensors(names, frozen.inputs), tensors(sorted(signature.outputs), frozen.outputs))
    return Signature(signature.form.inputs, signature.form.outputs, form)


def agree(one, other):
    """Whether two trials, of two forms of one signature, came to the same."""
    if one.kind != other.kind or one.kind == FAILED:
        return False
    return one.kind == REFUSED or all(map(alike, one.arrays, other.arrays))


def alike(one, other):
    """Whether two arrays are equal, or as near as two orders of the same sums come."""
    if np.array_equal(one, other):
        return True
    if np.shape(one) != np.shape(other) or np.asarray(one).dtype == object:
        return False
    pair = [np.asarray(array).astype(np.complex128) for array in (one, other)]
    return np.allclose(pair[0], pair[1], rtol=1e-3, atol=1e-5, equal_nan=True)


class GraphForm:
    """A signature's tensors, {name: tensor} each way, in a session."""

    def __init__(self, kind, session, inputs, outputs):
        self.kind = kind
        self.session = session
        self.inputs = inputs
        self.outputs = outputs

    def make_callable(self, names):
        """A function from one array for each of the named inputs to the list of all outputs' arrays."""
        feeds = [self.inputs[name].name for name in names]
        fetches = [tensor.name for tensor in self.outputs.values()]
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


class FunctionForm:
    """A signature's own function. `loaded` is what its variables and tables live by."""

    kind = FUNCTION

    def __init__(self, function, loaded):
        self.function = function
        self.loaded = loaded
        inputs, outputs = function.structured_input_signature[1], function.structured_outputs
        self.inputs = {name: inputs[name] for name in sorted(inputs)}
        self.outputs = {name: outputs[name] for name in sorted(outputs)}

    def make_callable(self, names):
        def call(*arrays):
            results = self.function(**{name: tf.convert_to_tensor(array) for name, array in zip(names, arrays)})
            return [results[name].numpy() for name in self.outputs]

        return call


class Model:
    """A loaded SavedModel and its signatures, {name: Signature}."""

    def __init__(self, signatures):
        self.signatures = signatures
        self.only = next(iter(signatures)) if len(signatures) == 1 else None
        self.default = self.only or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else None)
        self.decode = quick_decoder(signatures[self.default]) if self.default else None

    @property
    def summary(self):
        described = {name: signature.describe() for name, signature in sorted(self.signatures.items())}
        forms = {name: signature.form.kind for name, signature in sorted(self.signatures.items())}
        return {
            "framework": "tensorflow",
            "version": tf.__version__,
            "default": self.default,
            "signatures": described,
            "forms": forms,
        }

    def check(self):
        """Predict for one instance of zeros and empty strings, default signature. Raises Unloadable if that fails.

        A signature that takes strings often parses them (an image, a tf.Example), so an empty one may rightly be
        refused: then the remark that is returned says that the model was loaded but not tried.
        """
        name = self.default
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

    def read(self, body):
        """(instances, options) of a request's body, at half of JSON's cost, or None if it needs a closer look."""
        if self.decode is None:
            return None
        try:
            request = self.decode(body)
        except (ValueError, msgspec.MsgspecError):  # whatever it is, the careful reader takes it or says what is wrong
            return None
        if not request.instances or (request.signature_name and request.signature_name != self.default):
            return None
        return Table(request.instances, self.signatures[self.default]), {}

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


class Table:
    """The instances of a request to the default signature that quick_decoder() has read."""

    def __init__(self, rows, signature):
        self.size = len(rows)
        # {input's name: its values}, each a float or a list of floats
        self.columns = dict(zip(signature.inputs, zip(*map(msgspec.structs.astuple, rows))))

    def __len__(self):
        return self.size


def quick_decoder(signature):
    """A function from a request's body to .instances and .signature_name, or None.

    The instances are Structs of one field for each input. It raises an error of msgspec's for everything that is not
    plain floats under exactly the inputs' names. None: msgspec is missing, or an input is not made of floats.
    """
    kinds = {1: float, 2: typing.List[float]}
    fields, names = [], {}
    for number, given in enumerate(signature.inputs.values()):
        if not (given.dtype.is_floating and given.shape and len(given.shape) in kinds):
            return None
        field = "input_{}".format(number)
        fields.append((field, kinds[len(given.shape)]))
        names[field] = given.name
    if not fields or not hasattr(msgspec, "structs"):  # it is missing, or old
        return None
    try:
        row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
        both = [("instances", typing.List[row]), ("signature_name", typing.Optional[str], None)]
        return msgspec.json.Decoder(msgspec.defstruct("Request", both, forbid_unknown_fields=True)).decode
    except (TypeError, ValueError):  # a name that it cannot take
        return None


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
    except REFUSALS as error:
        return REFUSED, FAILED_TO_RUN.format(error.message)
    except Exception as error:  # noqa: BLE001  an edge: a graph may call anything
        traceback.print_exc()
        return FAILED, FAILED_TO_RUN.format(error)
    try:
        return PREDICTED, work.signature.rows(outputs)
    except (ValueError, TypeError) as error:
        return FAILED, INVALID_OUTPUTS.format(error)


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


class End:
    """An input or output of a signature: its name, and the type and shape of the tensor that it stands for."""

    def __init__(self, name, tensor):
        self.name = name
        self.dtype = tensor.dtype
        if self.dtype.name in ("resource", "variant"):
            raise ValueError("{} is a {}, which no request can hold".format(name, self.dtype.name))
        shape = tensor.shape
        self.shape = None if shape.ndims is None else shape.as_list()  # None: nothing is known, not even the rank
        self.is_string = self.dtype.base_dtype == tf.string

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
