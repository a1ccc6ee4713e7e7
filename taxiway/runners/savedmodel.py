"""A SavedModel on disk -> its signatures, each in the quickest form that answers as the model's own function does.

frozen    the signature's function with its variables made constants, in a session's callable: a tenth of the cost
          of the function (about 25 against 230 us for a small model). Not for large models, tables, or state.
session   the whole graph as TensorFlow 1 loaded it, in a session's callable: as quick, and the only form under
          TensorFlow 1, or at first for a SavedModel that it wrote. A SavedModel that Keras 3 wrote can lack
          variables there, so under TensorFlow 2 it must be seen to answer the same.
function  the signature's own function, as TensorFlow 2 loads it.
"""

# ruff: noqa: B905  (zip() has no strict= before Python 3.10)

import gc
import os
import traceback

import numpy as np
from taxiway_runners.signatures import FAILED, PREDICTED, REFUSED, Signature

try:
    import tensorflow.compat.v1 as tf
except ImportError:  # before 1.13 there was only the one
    import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.saved_model import loader_impl

try:
    from tensorflow.python.framework import convert_to_constants
except ImportError:  # before 1.14
    convert_to_constants = None

TENSORFLOW_2 = tf.__version__.split(".")[0] != "1"
NOT_FOR_SERVING = "__saved_model_init_op"  # TensorFlow 2 lists its initialiser among the signatures
SMALL = 64 << 20  # bytes on disk up to which a second thread costs more in hand-overs than it brings
FREEZABLE = 128 << 20  # bytes on disk up to which a copy of the weights for each signature is worth its memory
FROZEN, SESSION, FUNCTION = "frozen", "session", "function"


def load(folder):
    """Load the SavedModel in `folder` and return {name: Signature}. Raises Unloadable with the reason."""
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
    return signatures


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
