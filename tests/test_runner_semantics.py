"""What a served SavedModel answers, word for word: the rules and texts of Cloud ML Engine's online prediction."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_runners import FAILED, PREDICTED, REFUSED, RUNNERS, Runner

pytestmark = pytest.mark.runtime

# One SavedModel of TensorFlow 2 with a signature for each rule, one written as TensorFlow 1 wrote them, one that parses
# tf.Examples, one that cannot run, one without a signature.
MAKER = """
import sys
import tensorflow as tf

root = sys.argv[1]
TAXI = ["pickuplon", "pickuplat", "dropofflat", "dropofflon", "passengers"]

def spec(dtype, shape, name):
    return tf.TensorSpec(shape, dtype, name=name)

class Many(tf.Module):
    def __init__(self):
        self.weights = tf.Variable([[1.0], [2.0], [3.0], [4.0], [5.0]])

    @tf.function(input_signature=[spec(tf.float32, [None], name) for name in TAXI])
    def taxi(self, pickuplon, pickuplat, dropofflat, dropofflon, passengers):
        columns = tf.stack([pickuplon, pickuplat, dropofflat, dropofflon, passengers], 1)
        return {"predictions": columns @ self.weights}

    @tf.function(input_signature=[spec(tf.float32, [None, 3], "x")])
    def single(self, x):
        return {"total": tf.reduce_sum(x, 1), "doubled": x * 2}

    @tf.function(input_signature=[spec(tf.float32, [None, None], "x")])
    def ragged(self, x):
        return {"total": tf.reduce_sum(x, 1)}

    @tf.function(input_signature=[spec(tf.string, [None], "image_bytes"), spec(tf.float32, [None], "scale")])
    def text(self, image_bytes, scale):
        size = tf.cast(tf.strings.length(image_bytes), tf.float32) * scale
        return {"same": image_bytes, "same_bytes": image_bytes, "size": size}

    @tf.function(input_signature=[spec(tf.string, [None, 2], "words")])
    def words(self, words):
        return {"joined": tf.strings.reduce_join(words, 1, separator=" ")}

    @tf.function(input_signature=[spec(tf.int64, [None], "i"), spec(tf.bool, [None], "b"), spec(tf.int32, [None], "n")])
    def whole(self, i, b, n):
        return {"i": i, "b": b, "n": n}

    @tf.function(input_signature=[spec(tf.float32, [None], "x")])
    def differing(self, x):
        return {"a": x, "b": tf.concat([x, x], 0)}

    @tf.function(input_signature=[spec(tf.float32, [None], "x")])
    def logarithm(self, x):
        return {"y": tf.math.log(x)}

    @tf.function(input_signature=[spec(tf.float32, [None], "x")])
    def whole_batch(self, x):
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[spec(tf.float32, [None], "x")])
    def positive(self, x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, message="x must be above zero")]):
            return {"y": tf.sqrt(x)}

    @tf.function(input_signature=[spec(tf.float32, [2], "x")])
    def pair(self, x):
        return {"y": x + 1.0}

    @tf.function(input_signature=[spec(tf.string, [None], "examples")])
    def parse(self, examples):
        return {"y": tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"] * 2}

many = Many()
names = "single ragged text words whole differing logarithm whole_batch positive pair parse".split()
signatures = {name: getattr(many, name) for name in names}
tf.saved_model.save(many, root + "/many", dict(signatures, serving_default=many.taxi))
tf.saved_model.save(tf.Module(), root + "/none")

class Broken(tf.Module):
    @tf.function(input_signature=[spec(tf.int32, [None], "x")])
    def divide(self, x):
        return {"y": 1 // x}

broken = Broken()
tf.saved_model.save(broken, root + "/broken", {"serving_default": broken.divide})

parsing = {"serving_default": many.parse}
tf.saved_model.save(many, root + "/parsing", parsing)

v1 = tf.compat.v1
with v1.Graph().as_default(), v1.Session() as session:
    given = {name: v1.placeholder(tf.float32, [None], name) for name in TAXI[:2]}
    bias = v1.placeholder_with_default([0.5], [None], "bias")
    scale = v1.get_variable("scale", initializer=2.0, use_resource=False)
    total = scale * tf.add_n(list(given.values())) + bias
    session.run(v1.global_variables_initializer())
    builder = v1.saved_model.builder.SavedModelBuilder(root + "/old")
    build = v1.saved_model.signature_def_utils.predict_signature_def
    outputs = {"predictions": tf.expand_dims(total, 1), "again": tf.expand_dims(total, 1), "key": given["pickuplon"]}
    signature = build(dict(given, bias=bias), dict(outputs, twice=outputs["predictions"]))
    builder.add_meta_graph_and_variables(session, ["serve"], {"predict": signature})
    builder.save()
"""

RIDE = {"pickuplon": -73.5, "pickuplat": 40.5, "dropofflat": 41, "dropofflon": -74, "passengers": 2}
FARE = -73.5 + 2 * 40.5 + 3 * 41 + 4 * -74 + 5 * 2


@pytest.fixture(scope="module")
def models(runtime_python: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        subprocess.run([runtime_python, "-c", MAKER, folder], check=True, capture_output=True)
        (Path(folder) / "garbage").mkdir()
        (Path(folder) / "garbage" / "saved_model.pb").write_bytes(b"this is no protocol buffer")
        yield Path(folder)


@pytest.fixture(scope="module")
def many(models: Path, runtime_python: Path) -> Iterator[Runner]:
    yield from running(models / "many", runtime_python)


@pytest.fixture(scope="module")
def old(models: Path, runtime_python: Path) -> Iterator[Runner]:
    yield from running(models / "old", runtime_python)


def running(model: Path, python: Path) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        runner = Runner(Path(folder), str(python), str(model), "tensorflow")
        yield runner
        runner.close()


def predictions(runner: Runner, instances: list, signature: str | None = None) -> list:
    kind, body = runner.peer().ask(request(instances, signature))
    assert kind == PREDICTED, body
    return body["predictions"]


def refusal(runner: Runner, instances: list, signature: str | None = None) -> str:
    kind, body = runner.peer().ask(request(instances, signature))
    assert kind == REFUSED, body
    assert body.keys() == {"error"}
    return body["error"]


def request(instances: list, signature: str | None) -> dict:
    return {"instances": instances} if signature is None else {"instances": instances, "signature_name": signature}


def b64(raw: bytes) -> dict:
    return {"b64": base64.b64encode(raw).decode()}


def test_the_ready_line_describes_the_signatures(many):
    assert many.ready["framework"] == "tensorflow"
    assert many.ready["default"] == "serving_default"
    assert "__saved_model_init_op" not in many.ready["signatures"]
    assert many.ready["signatures"]["single"] == {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 3]}},
        "outputs": {
            "doubled": {"dtype": "float32", "shape": [None, 3]},
            "total": {"dtype": "float32", "shape": [None]},
        },
    }
    assert "remark" not in many.ready


def test_predictions_are_dicts_of_the_outputs_one_for_each_instance(many):
    rides = [dict(RIDE, passengers=number) for number in range(3)]
    assert predictions(many, rides) == [{"predictions": [FARE - 10 + 5 * number]} for number in range(3)]
    assert predictions(many, [RIDE], "serving_default") == predictions(many, [RIDE], "") == [{"predictions": [FARE]}]


def test_a_signature_that_does_not_exist_is_refused_by_name(many):
    expected = "Invalid inputs: No signature found for signature key nonsense. (Error code: 1)"
    assert refusal(many, [RIDE], "nonsense") == expected
    assert "__saved_model_init_op" in refusal(many, [RIDE], "__saved_model_init_op")


def test_a_signature_name_must_be_a_string(many):
    kind, body = many.peer().ask({"instances": [RIDE], "signature_name": 5})
    assert (kind, body["error"]) == (
        REFUSED,
        "Invalid inputs: The field signature_name must be a string, got 5. (Error code: 1)",
    )


def test_a_single_input_is_given_bare_or_by_name(many):
    row = {"total": 6.0, "doubled": [2.0, 4.0, 6.0]}
    assert predictions(many, [[1, 2, 3], {"x": [1.0, 2, 3]}], "single") == [row, row]


def test_a_single_input_under_a_wrong_name_is_refused(many):
    expected = "Invalid inputs: Expected tensor name: x, got tensor name: ['y']. (Error code: 1)"
    assert refusal(many, [{"y": [1, 2, 3]}], "single") == expected
    two = "Invalid inputs: Expected tensor name: x, got tensor name: ['x', 'y']. (Error code: 1)"
    assert refusal(many, [{"x": [1, 2, 3], "y": 1}], "single") == two


def test_an_unexpected_input_is_named(many):
    expected = "Invalid inputs: Unexpected tensor name: tip (Error code: 1)"
    assert refusal(many, [RIDE, dict(RIDE, tip=1)]) == expected


@pytest.mark.parametrize("rest", [[], [RIDE]])
def test_a_missing_input_is_named(many, rest):
    ride = {name: value for name, value in RIDE.items() if name != "passengers"}
    expected = "Invalid inputs: Input passengers was missing in at least one input instance. (Error code: 1)"
    assert refusal(many, [ride, *rest]) == expected


def test_a_bare_value_for_several_inputs_is_refused(many):
    names = "dropofflat, dropofflon, passengers, pickuplat, pickuplon"
    expected = f"Invalid inputs: Expected an object with the inputs {names} as instance 1, got the list [1, 2]."
    assert refusal(many, [RIDE, [1, 2]]) == expected + " (Error code: 1)"


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("2", "the string '2'"),
        (None, "null"),
        ({"a": 1}, "the object {'a': 1}"),
        (b64(b"x"), "the object {'b64': 'eA=='}"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_input_and_the_instance(many, value, seen):
    expected = f"Invalid inputs: Input passengers expects float32, got {seen} in instance 1. (Error code: 1)"
    assert refusal(many, [RIDE, dict(RIDE, passengers=value)]) == expected


def test_a_wrong_shape_names_the_input_and_both_shapes(many):
    expected = "Invalid inputs: Input passengers must have the shape [?] (instances first), got [1, 1]. (Error code: 1)"
    assert refusal(many, [dict(RIDE, passengers=[2])]) == expected
    expected = "Invalid inputs: Input x must have the shape [?, 3] (instances first), got [1, 2]. (Error code: 1)"
    assert refusal(many, [[1, 2]], "single") == expected
    lengths = "Invalid inputs: Input x has lists of different lengths; every instance must have one shape."
    assert refusal(many, [[1, 2, 3], [1, 2]], "single") == lengths + " (Error code: 1)"


def test_whole_numbers_are_kept_exactly_and_never_cut(many):
    rows = [{"i": 2**62 + 1, "b": True, "n": 7}, {"i": 3.0, "b": False, "n": -7}]
    assert predictions(many, rows, "whole") == [rows[0], {"i": 3, "b": False, "n": -7}]
    expected = "Invalid inputs: Input i is of type int64, which cannot hold 1.5. (Error code: 1)"
    assert refusal(many, [dict(rows[0], i=1.5)], "whole") == expected
    expected = f"Invalid inputs: Input n is of type int32, which cannot hold {2**40}. (Error code: 1)"
    assert refusal(many, [dict(rows[0], n=2**40)], "whole") == expected
    assert "Input b is of type bool, which cannot hold 2." in refusal(many, [dict(rows[0], b=2)], "whole")


def test_huge_whole_numbers_are_taken_for_floats(many):
    (row,) = predictions(many, [[10**30, 0, 0]], "single")
    assert row["total"] == pytest.approx(1e30)


def test_strings_and_base64_go_in_and_names_in_bytes_come_out_as_base64(many):
    instances = [{"image_bytes": b64("grüß".encode()), "scale": 1}, {"image_bytes": "grüß", "scale": 0.5}]
    expected = [
        {"same": "grüß", "same_bytes": b64("grüß".encode()), "size": 6.0},
        {"same": "grüß", "same_bytes": b64("grüß".encode()), "size": 3.0},
    ]
    assert predictions(many, instances, "text") == expected
    assert predictions(many, [["a", b64(b"b")], {"words": ["c", "d"]}], "words") == [
        {"joined": "a b"},
        {"joined": "c d"},
    ]


def test_base64_that_is_none_is_refused(many):
    text = refusal(many, [{"image_bytes": {"b64": "%%%"}, "scale": 1}], "text")
    assert text.startswith("Invalid inputs: A value under the key b64 is not base64: the string '%%%'")


def test_a_number_for_a_string_is_refused(many):
    expected = "Invalid inputs: Input image_bytes expects string, got the number 5 in instance 0. (Error code: 1)"
    assert refusal(many, [{"image_bytes": 5, "scale": 1}], "text") == expected


@pytest.mark.parametrize("value", [3, 3.5, 10**30, True, 0.1, -0.0, 2**63])
def test_a_value_comes_to_the_same_whether_the_body_is_read_quickly_or_with_care(many, value):
    instances = [RIDE, dict(RIDE, passengers=value)]
    kind, careful = many.peer().ask({"instances": instances, "an_unknown_field": [1]})
    assert kind == PREDICTED
    assert predictions(many, instances) == careful["predictions"]
    expected = FARE - 10 + 5 * value
    assert careful["predictions"][1]["predictions"][0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("body", [b"1e400", b"-1e400"])
def test_a_number_beyond_all_floats_is_taken_for_infinity(many, body):
    peer = many.peer()
    peer.send(1, json.dumps(request([RIDE], None)).encode().replace(b'"passengers": 2', b'"passengers": ' + body))
    _, kind, payload = peer.receive()
    assert kind == PREDICTED
    assert math.isinf(json.loads(payload)["predictions"][0]["predictions"][0])


def test_bytes_that_are_no_text_fail_as_outputs(many):
    kind, body = many.peer().ask(request([{"image_bytes": b64(b"\xff"), "scale": 1}], "text"))
    assert kind == FAILED
    assert body["error"].startswith(
        "There was a problem processing the outputs: Prediction failed during encoding instances: 'utf-8' codec"
    )
    assert body["error"].endswith("(same: give an output of bytes a name that ends in _bytes) (Error code: 3)")


def test_outputs_of_different_outer_sizes_are_a_fault_of_the_model(many):
    kind, body = many.peer().ask(request([1, 2], "differing"))
    assert kind == FAILED
    assert body["error"] == (
        "There was a problem processing the outputs: The outputs differ in their outer (batch) size: a 2, b 4. "
        "Each needs one row for each instance. (Error code: 3)"
    )


def test_an_output_without_rows_is_one_prediction(many):
    assert predictions(many, [1, 2, 3], "whole_batch") == [{"total": 6.0}]


def test_nan_and_infinity_are_written_as_python_reads_them(many):
    first, second, third = predictions(many, [-1, 0, 1], "logarithm")
    assert math.isnan(first["y"])
    assert second == {"y": -math.inf}
    assert third == {"y": 0.0}


def test_a_graph_that_refuses_its_input_is_the_callers_fault_and_says_why(many):
    text = refusal(many, [-1], "positive")
    assert text.startswith("Failed to run the provided model: Exception during running the graph: ")
    assert "x must be above zero" in text
    assert text.endswith(" (Error code: 2)")


def test_a_fixed_outer_size_is_demanded(many):
    assert predictions(many, [1, 2], "pair") == [{"y": 2.0}, {"y": 3.0}]
    expected = "Invalid inputs: Input x must have the shape [2] (instances first), got [3]. (Error code: 1)"
    assert refusal(many, [1, 2, 3], "pair") == expected


def test_requests_that_arrive_together_each_get_their_own_answer(many):
    bodies = {}
    for number in range(0, 120, 8):
        bodies[number] = (request([dict(RIDE, passengers=number)], None), [{"predictions": [FARE - 10 + 5 * number]}])
        bodies[number + 1] = (request([[number, 1, 1]] * 2, "single"), None)
        bodies[number + 2] = (request([[1.0] * (1 + number % 5)], "ragged"), [{"total": 1.0 + number % 5}])
        bodies[number + 3] = (request([number, 1], "whole_batch"), [{"total": number + 1.0}])
        bodies[number + 4] = (request([number, 1], "pair"), [{"y": number + 1.0}, {"y": 2.0}])
        bodies[number + 5] = (request([dict(RIDE, passengers="x")], None), REFUSED)
        bodies[number + 6] = (request([-number], "positive"), REFUSED)
        bodies[number + 7] = (request([4], "positive"), [{"y": 2.0}])
    peer = many.peer()
    for number, (body, _) in bodies.items():
        peer.send(number, body)
    for _ in bodies:
        number, kind, payload = peer.receive()
        expected = bodies[number][1]
        reply = json.loads(payload)
        if expected == REFUSED:
            assert kind == REFUSED, reply
        else:
            assert kind == PREDICTED, reply
            rows = [{"total": number + 1.0, "doubled": [2.0 * number - 2, 2.0, 2.0]}] * 2
            assert reply["predictions"] == (rows if expected is None else expected)


def test_the_only_signature_of_an_old_model_is_used_whatever_its_name(old):
    assert old.ready["default"] == "predict"
    instance = {"pickuplon": 1, "pickuplat": 2}
    expected = {"predictions": [6.5], "again": [6.5], "twice": [6.5], "key": 1.0}
    assert predictions(old, [instance]) == [expected]
    assert predictions(old, [instance], "predict") == [expected]
    shifted = {"predictions": [7.0], "again": [7.0], "twice": [7.0], "key": 1.0}
    assert predictions(old, [dict(instance, bias=1)]) == [shifted]
    expected = "Invalid inputs: No signature found for signature key serving_default. (Error code: 1)"
    assert refusal(old, [instance], "serving_default") == expected
    missing = "Invalid inputs: Input pickuplat was missing in at least one input instance. (Error code: 1)"
    assert refusal(old, [{"pickuplon": 1}]) == missing


def test_serialised_examples_are_parsed_and_a_wrong_one_is_refused(many):
    good = bytes.fromhex("0a0f0a0d0a0178120812060a0400004040")  # a tf.Example whose x is 3
    assert predictions(many, [b64(good)], "parse") == [{"y": 6.0}]
    assert refusal(many, [b64(good[:-1])], "parse").endswith(" (Error code: 2)")


# Loads each folder with one start of TensorFlow; how serve.py reports a failure is tested with a toy.
LOADER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import serve

framework = serve.framework_file("tensorflow")
told = {}
for folder in sys.argv[2:]:
    try:
        told[folder] = framework.load(folder).check()
    except framework.Unloadable as error:
        told[folder] = "refused: " + str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def verdicts(models: Path, runtime_python: Path) -> dict[str, str | None]:
    """What loading and trying each model said: None, a remark or a refusal."""
    names = ["garbage", "none", "broken", "parsing", "old", ".", "many/variables", "nowhere"]
    command = [runtime_python, "-c", LOADER, RUNNERS, *(models / name for name in names)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1]).values(), strict=True))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("garbage", "Failed to load the model due to bad model data. tags: ['serve']\n"),
        ("none", "The SavedModel has no signature to serve. Export it with one, such as serving_default."),
        ("broken", "It cannot predict for an instance of zeros with signature serving_default. Failed to run the"),
        (".", "There is no saved_model.pb or saved_model.pbtxt in the model's folder. There is one in the folder"),
        ("many/variables", "Deploy the folder that your exporter wrote it to."),
        ("nowhere", "There is no saved_model.pb or saved_model.pbtxt in the model's folder."),
    ],
)
def test_an_unusable_model_says_why(verdicts, model, words):
    assert verdicts[model].startswith("refused: ")
    assert words in verdicts[model]
    assert "Error code" not in verdicts[model]


def test_a_usable_model_is_accepted(verdicts):
    assert verdicts["old"] is None


def test_a_model_that_parses_strings_is_not_turned_down_for_refusing_an_empty_one(verdicts):
    assert verdicts["parsing"] == "not tried: it does not take empty strings"


# Models of the kinds that people export, and what each says to one request while it is still in memory.
ZOO = """
import json, os, sys
import keras
import numpy as np
import tensorflow as tf

root, v1 = sys.argv[1], tf.compat.v1
NAMES = ["a", "b", "c"]
ROWS = [[1.0, 2.0, 3.0], [-4.0, 5.5, 0.25]]
BY_NAME = [dict(zip(NAMES, row)) for row in ROWS]
told = {}

def tell(name, instances, output, rows):
    told[name] = [instances, [{output: row} for row in np.asarray(rows).tolist()]]

def network(standardise):
    layers = [keras.layers.Dense(8, activation="elu"), keras.layers.Dense(1), keras.layers.Rescaling(2.0, 11.0)]
    return keras.Sequential([keras.Input((3,)), standardise, *layers])

def save_in_a_module(name, net):
    specs = [tf.TensorSpec([None], tf.float32, name) for name in NAMES]
    module = tf.Module()
    module.net = net
    module.serve = tf.function(lambda *x: {"fare": net(tf.stack(x, 1))}, input_signature=specs)
    tf.saved_model.save(module, root + "/" + name, signatures={"serving_default": module.serve})
    tell(name, BY_NAME, "fare", net(np.array(ROWS)))

given = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[2.0, 2.0, 0.5])
save_in_a_module("module_of_keras", network(given))
adapted = keras.layers.Normalization()
adapted.adapt(np.random.default_rng(0).normal(3, 2, (50, 3)))
save_in_a_module("module_of_adapted_keras", network(adapted))

net = network(keras.layers.Normalization(mean=[0.0] * 3, variance=[2.0] * 3))
net.export(root + "/keras_export", verbose=False)
tell("keras_export", ROWS, "output_0", net(np.array(ROWS)))
tf.saved_model.save(net, root + "/keras_save")
tell("keras_save", ROWS, "output_0", net(np.array(ROWS)))

ends = {"color": keras.Input((1,), dtype="string", name="color"), "size": keras.Input((1,), name="size")}
one_hot = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")(ends["color"])
both = keras.layers.Dense(1)(keras.layers.Dense(4)(keras.layers.Concatenate()([one_hot, ends["size"]])))
net = keras.Model(ends, both)
asked = [{"color": ["green"], "size": [2.0]}, {"color": ["blue"], "size": [-1.0]}]
rows = net({"color": tf.constant([["green"], ["blue"]]), "size": tf.constant([[2.0], [-1.0]])})
net.export(root + "/keras_lookup", verbose=False)
tell("keras_lookup", asked, "output_0", rows)
module = tf.Module()
module.net = net
specs = [tf.TensorSpec([None, 1], tf.string, "color"), tf.TensorSpec([None, 1], tf.float32, "size")]
module.serve = tf.function(lambda c, s: {"y": net({"color": c, "size": s})}, input_signature=specs)
tf.saved_model.save(module, root + "/module_of_keras_lookup", signatures={"serving_default": module.serve})
tell("module_of_keras_lookup", asked, "y", rows)

class Table(tf.Module):
    def __init__(self, path):
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        lines = tf.lookup.TextFileInitializer(path, tf.string, whole, tf.int64, number)
        self.table, self.scale = tf.lookup.StaticHashTable(lines, -1), tf.Variable(3.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
    def serve(self, word):
        return {"y": tf.cast(self.table.lookup(word), tf.float32) * self.scale}

with open(root + "/words.txt", "w") as file:
    file.write("x\\ny\\n")
table = Table(root + "/words.txt")
tf.saved_model.save(table, root + "/table", {"serving_default": table.serve})
os.remove(root + "/words.txt")
tell("table", ["y", "z"], "y", [3.0, -3.0])

class Plain(tf.Module):
    def __init__(self):
        self.scale = tf.Variable(3.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def loop(self, x):
        step = lambda x: [tf.cond(tf.reduce_sum(x) < 100.0, lambda: x * self.scale, lambda: x - 1.0)]
        (x,) = tf.while_loop(lambda x: tf.reduce_max(x) < 90.0, step, [x], maximum_iterations=4)
        tf.debugging.assert_less(x, 1e6, message="too much")
        return {"y": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def dice(self, x):
        return {"y": x + self.scale * tf.random.uniform(tf.shape(x))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def kept(self, x):
        self.scale.assign(4.0)
        return {"y": x * self.scale}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def two(self, x):
        return {"zebra": x * self.scale, "ape": x}

plain = Plain()
for name in ("loop", "dice", "two", "kept"):
    tf.saved_model.save(plain, root + "/" + name, {"serving_default": getattr(plain, name)})
tell("loop", [1.0, 20.0], "y", plain.loop(tf.constant([1.0, 20.0]))["y"])
tell("kept", [1.0, 2.0], "y", [4.0, 8.0])
told["two"] = [[1.0, 2.0], [{"ape": 1.0, "zebra": 3.0}, {"ape": 2.0, "zebra": 6.0}]]
told["dice"] = [[1.0], None]

with v1.Graph().as_default(), v1.Session() as session:
    word, x = v1.placeholder(tf.string, [None], "word"), v1.placeholder(tf.float32, [None], "x")
    scale = v1.get_variable("scale", initializer=2.0, use_resource=False)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0]), -1.0)
    y = x * scale + table.lookup(word)
    start = v1.tables_initializer()
    session.run([v1.global_variables_initializer(), start])
    builder = v1.saved_model.builder.SavedModelBuilder(root + "/tensorflow_1")
    signature = v1.saved_model.signature_def_utils.predict_signature_def({"word": word, "x": x}, {"y": y})
    builder.add_meta_graph_and_variables(session, ["serve"], {"predict": signature}, main_op=start)
    builder.save()
tell("tensorflow_1", [{"word": "b", "x": 5.0}, {"word": "?", "x": 0.5}], "y", [12.0, 0.0])

print(json.dumps(told))
"""

ANSWERER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import serve

framework = serve.framework_file("tensorflow")
answers = {}
for name, (instances, _) in json.load(sys.stdin).items():
    model = framework.load(sys.argv[2] + "/" + name)
    body = json.dumps({"instances": instances}).encode()
    asked = [(instances, {}), model.read(body) or (instances, {})]
    outcomes = [model.predict_many([request])[0] for request in asked]
    answers[name] = [model.check(), model.summary["forms"][model.default], outcomes]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def zoo(runtime_python: Path) -> dict[str, tuple[list | None, str | None, str, list]]:
    """For each model of the zoo: the rows that it should give, check()'s remark, the form, two outcomes."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        made = subprocess.run([runtime_python, "-c", ZOO, folder], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        told = json.loads(made.stdout.splitlines()[-1])
        command = [runtime_python, "-c", ANSWERER, RUNNERS, folder]
        done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {name: (told[name][1], *answers[name]) for name in told}


@pytest.mark.parametrize(
    ("model", "forms"),
    [
        ("module_of_keras", {"frozen"}),
        ("module_of_adapted_keras", {"frozen"}),
        ("keras_export", {"frozen"}),
        ("keras_save", {"frozen"}),
        ("keras_lookup", {"session", "function"}),
        ("module_of_keras_lookup", {"session", "function"}),
        ("table", {"session"}),
        ("loop", {"frozen"}),
        ("two", {"frozen"}),
        ("kept", {"session", "function"}),
        ("tensorflow_1", {"session"}),
    ],
)
def test_a_model_answers_as_it_did_in_memory_in_whatever_form_it_runs(zoo, model, forms):
    expected, remark, form, outcomes = zoo[model]
    assert remark is None
    assert form in forms
    for kind, rows in outcomes:
        assert kind == PREDICTED, rows
        assert [row.keys() for row in rows] == [row.keys() for row in expected]
        for row, wanted in zip(rows, expected, strict=True):
            assert all(row[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5) for name in wanted)


def test_a_model_of_chance_runs_as_its_own_function(zoo):
    _, remark, form, outcomes = zoo["dice"]
    assert (remark, form) == (None, "function")
    assert all(kind == PREDICTED and 1.0 <= rows[0]["y"] <= 4.0 for kind, rows in outcomes)
