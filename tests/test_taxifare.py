"""The taxi-fare example: the trainer, run as a person runs it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "taxifare"
EMPTY = Path("/dev/null")
REAL_RIDES = ROOT.parent / "shared" / "data" / "taxifare"

ASK_THE_EXPORT = """
import json, sys
import tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
serve = signatures["serving_default"]
inputs = {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in serve.structured_input_signature[1].items()}
outputs = {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in serve.structured_outputs.items()}
columns = {name: tf.constant(values, tf.float32) for name, values in json.loads(sys.argv[2]).items()}
print(json.dumps([list(signatures), inputs, outputs, serve(**columns)["predictions"].numpy().tolist()]))
"""

PARSE_EACH = """
import sys
from trainer import task
for word in sys.argv[1:]:
    try:
        task.arguments(["--train_data_paths", "a", "--eval_data_paths", "b", "--output_dir", "c", word])
    except SystemExit as end:
        print(end.code)
"""


def make_rides(folder, *args):
    command = [sys.executable, "-m", "taxifare_data", "make", "--output", folder, *args]
    return subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True)


def rows_of(file):
    return [line.split(",") for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def rides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rides")
    done = make_rides(folder, "--rows", "2000", "--seed", "7")
    assert done.returncode == 0, done.stderr
    return folder


def training(python, output, train_data, eval_data, *args):
    command = [python, "-m", "trainer.task", "--train_data_paths", train_data, "--eval_data_paths", eval_data]
    command += ["--output_dir", output, *args, "--job-dir", "gs://bucket/job"]
    return [str(word) for word in command]


def train(*told):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(training(*told), cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=240)


def ask(python, folder, columns):
    command = [python, "-c", ASK_THE_EXPORT, folder, json.dumps(columns)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exported(done):
    assert done.returncode == 0, done.stderr
    return Path(re.search(r"^Exported to (.+)$", done.stdout, re.MULTILINE)[1])


def lowest_error(done):
    return float(re.search(r"^RMSE: (\d+\.\d\d) \(best, step \d+\)$", done.stdout, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def trained(runtime_python, rides, tmp_path_factory):
    """A finished training of 600 steps: (its output folder, what it said)."""
    output = tmp_path_factory.mktemp("trained")
    done = train(runtime_python, output, rides / "taxi-train*.csv", rides / "taxi-valid.csv", "--train_steps", "600")
    return output, done


@pytest.mark.runtime
def test_it_trains_on_made_rides_and_says_how_it_goes(trained):
    output, done = trained
    folder = exported(done)
    assert folder.parent == output / "export" / "exporter"
    assert folder.name.isdecimal()
    progress = r"^step 600/600  loss \d+\.\d\d  eval RMSE \d+\.\d\d  [\d,]+ examples/s$"
    assert re.search(progress, done.stdout, re.MULTILINE)
    assert "2,000 rides to train on, 400 to evaluate on" in done.stdout
    assert lowest_error(done) < 4.0  # always guessing the mean fare scores above 6
    assert done.stderr == ""


@pytest.mark.runtime
def test_the_export_takes_five_columns_and_is_as_good_as_the_training_said(trained, runtime_python, rides):
    _, done = trained
    features = list(json.loads((EXAMPLE / "test.json").read_text()))
    fares, *columns = zip(*[map(float, row[:6]) for row in rows_of(rides / "taxi-valid.csv")], strict=True)
    signatures, inputs, outputs, guesses = ask(
        runtime_python, exported(done), dict(zip(features, columns, strict=True))
    )
    assert signatures == ["serving_default"]
    assert inputs == {name: ["float32", [None]] for name in features}
    assert outputs == {"predictions": ["float32", [None, 1]]}
    squares = [(guess - fare) ** 2 for (guess,), fare in zip(guesses, fares, strict=True)]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(lowest_error(done), abs=0.01)


@pytest.mark.runtime
def test_it_goes_on_from_its_checkpoint(trained, runtime_python, rides):
    output, done = trained
    paths = output, rides / "taxi-train.csv", rides / "taxi-valid.csv"
    more = train(runtime_python, *paths, "--train_steps", "630", "--hidden_units", "128", "32", "4")
    assert f"Resuming from step 600, {output}/ckpt-600" in more.stdout
    assert re.findall(r"^step (\d+)/630 ", more.stdout, re.MULTILINE) == ["621", "630"]
    assert lowest_error(more) <= lowest_error(done)
    assert exported(more) != exported(done)


@pytest.mark.runtime
def test_a_checkpoint_of_another_network_is_an_error_that_names_it(trained, runtime_python, rides):
    output, _ = trained
    paths = output, rides / "taxi-train.csv", rides / "taxi-valid.csv"
    other = train(runtime_python, *paths, "--hidden_units", "16 4")
    assert other.returncode == 1
    assert re.fullmatch(
        rf"trainer.task: error: {re.escape(str(output))}/ckpt-\d+ holds another network: "
        r"choose another --output_dir, or the --hidden_units and --features it has\n",
        other.stderr,
    )
    other = train(runtime_python, *paths, "--features", "engineered")
    assert other.returncode == 1
    assert "holds another network" in other.stderr


@pytest.mark.runtime
def test_corrupt_rows_are_skipped_with_one_warning_and_empty_fields_have_defaults(runtime_python, rides, tmp_path):
    good = (rides / "taxi-train.csv").read_text().splitlines()[:300]
    corrupt = [
        "fare_amount,pickuplon,pickuplat,dropofflon,dropofflat,passengers,key",
        "1,2,3",
        "nan,-74,40.7,-74,40.7,1,9",
    ]
    corrupt += ["4.5,-74,1e39,-74,40.7,1,10", "4.5,-74,40.7,-74,40.7,1,11,12", "\ufffd\x00"]
    (tmp_path / "a.csv").write_text("\n".join([corrupt[0], *good, "4.5,,,,,,", "", *corrupt[1:]]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join(good))
    paths = f"{tmp_path}/a.csv, {tmp_path}/b.csv"
    done = train(
        runtime_python, tmp_path / "out", paths, rides / "taxi-valid.csv", "--train_steps", "3", "--eval_steps", "1"
    )
    assert exported(done).is_dir()
    assert done.stderr == (
        "WARNING: skipped 6 of 607 rows: each needs 7 columns, and a number or nothing in all but the last "
        f"(first: {tmp_path}/a.csv line 1)\n"
    )
    assert "601 rides to train on, 400 to evaluate on" in done.stdout
    assert "step 3/3" in done.stdout


@pytest.mark.runtime
def test_data_that_cannot_be_used_is_an_error_that_names_it(runtime_python, rides, tmp_path):
    done = train(
        runtime_python, tmp_path / "out", f"{rides}/taxi-train.csv,{tmp_path}/no-*.csv", rides / "taxi-valid.csv"
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"trainer.task: error: no file matches {tmp_path}/no-*.csv: ")

    (tmp_path / "words.csv").write_text("not,a,ride\n")
    done = train(runtime_python, tmp_path / "out", rides / "taxi-train.csv", tmp_path / "words.csv")
    assert done.returncode == 1
    assert f"trainer.task: error: no ride can be read from {tmp_path}/words.csv: " in done.stderr

    done = train(runtime_python, tmp_path / "out", rides / "taxi-train.csv", EMPTY)
    assert done.returncode == 1
    assert "no ride can be read from /dev/null: expected rows of fare_amount," in done.stderr

    batch = ("--train_batch_size", "2001")
    done = train(runtime_python, tmp_path / "out", rides / "taxi-train.csv", rides / "taxi-valid.csv", *batch)
    assert done.returncode == 1
    assert done.stderr == (
        "trainer.task: error: --train_batch_size 2001 is more than there are rides to train on: "
        "give at most 2000, or more rides\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.runtime
def test_unknown_and_malformed_arguments_are_refused_by_name(runtime_python):
    refusals = {
        "--train_step=5": "unrecognized arguments: --train_step=5",
        "--train_steps=0": "argument --train_steps: it must be above 0",
        "--hidden_units=128 many": "argument --hidden_units: 'many' is not a whole number",
        "--seed=4294967296": "argument --seed: it must be below 2**32",
        "--features=cooked": "argument --features: invalid choice: 'cooked'",
        "--learning_rate=nan": "argument --learning_rate: 'nan' is not a number above 0",
        "--eval_data_paths= , ": "argument --eval_data_paths: it is empty",
    }
    command = [str(runtime_python), "-c", PARSE_EACH, *refusals]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"] * len(refusals)  # argparse's exit code
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    for line, sentence in zip(said, refusals.values(), strict=True):
        assert sentence in line


@pytest.mark.runtime
def test_an_output_folder_that_cannot_be_written_is_an_error_before_the_training(runtime_python, rides, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(runtime_python, tmp_path / "file", rides / "taxi-train.csv", rides / "taxi-valid.csv")
    assert done.returncode == 1
    assert done.stderr.startswith(f"trainer.task: error: --output_dir {tmp_path}/file cannot be written: ")
    assert "step " not in done.stdout


@pytest.mark.runtime
def test_a_training_that_diverges_is_an_error_and_exports_nothing(runtime_python, rides, tmp_path):
    steps = ("--train_steps", "30", "--learning_rate", "1e30")
    done = train(runtime_python, tmp_path / "out", rides / "taxi-train.csv", rides / "taxi-valid.csv", *steps)
    assert done.returncode == 1
    assert "training diverged, there is nothing to export: try a --learning_rate below 1e+30" in done.stderr
    assert not (tmp_path / "out" / "export").exists()


@pytest.mark.runtime
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_goes_on_to_the_very_end_it_would_have_had(runtime_python, rides, tmp_path, number):
    steps = ("--train_steps", "6000", "--train_batch_size", "300")
    paths = rides / "taxi-train.csv", rides / "taxi-valid.csv"
    command = training(runtime_python, tmp_path / "cut", *paths, *steps)
    with subprocess.Popen(command, cwd=EXAMPLE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not running.stdout.readline().startswith("step 400/"):
            assert running.poll() is None
        running.send_signal(number)
        said, faults = running.communicate(timeout=60)
    assert running.returncode == 128 + number, (said, faults)
    assert faults == ""
    interrupted = re.search(r"^Interrupted at step (\d+), saved as (.+)\.$", said, re.MULTILINE)
    assert "The same command goes on from there." in said
    step, checkpoint = interrupted.groups()
    assert 400 <= int(step) < 6000
    assert checkpoint == f"{tmp_path}/cut/ckpt-{step}"
    assert not (tmp_path / "cut" / "export").exists()

    rest = train(runtime_python, tmp_path / "cut", *paths, *steps)
    assert f"Resuming from step {step}, {checkpoint}" in rest.stdout
    whole = train(runtime_python, tmp_path / "whole", *paths, *steps)
    assert figures(rest) == figures(whole)[-len(figures(rest)) :]
    assert lowest_error(rest) == lowest_error(whole)


def figures(done):
    """What each progress line says but for its speed."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"^(step .+?)  [\d,]+ examples/s$", done.stdout, re.MULTILINE)


@pytest.mark.runtime
def test_engineered_features_err_less_and_are_served_from_the_same_five_columns(
    trained, runtime_python, rides, tmp_path
):
    steps = ("--train_steps", "600", "--features", "engineered")
    done = train(runtime_python, tmp_path, rides / "taxi-train.csv", rides / "taxi-valid.csv", *steps)
    assert lowest_error(done) < lowest_error(trained[1])
    features = list(json.loads((EXAMPLE / "test.json").read_text()))
    fares, *columns = zip(*[map(float, row[:6]) for row in rows_of(rides / "taxi-valid.csv")], strict=True)
    _, inputs, outputs, guesses = ask(runtime_python, exported(done), dict(zip(features, columns, strict=True)))
    assert inputs == {name: ["float32", [None]] for name in features}
    assert outputs == {"predictions": ["float32", [None, 1]]}
    squares = [(guess - fare) ** 2 for (guess,), fare in zip(guesses, fares, strict=True)]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(lowest_error(done), abs=0.01)


READ_SUMMARIES = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for name in ("train", "eval"):
    events = EventAccumulator(f"{sys.argv[1]}/{name}", size_guidance={"tensors": 0})
    events.Reload()
    plugin = lambda tag: events.summary_metadata[tag].plugin_data.plugin_name
    found[name] = {tag: [plugin(tag), [each.step for each in events.Tensors(tag)]] for tag in events.Tags()["tensors"]}
print(json.dumps(found))
"""


@pytest.mark.runtime
def test_tensorboard_gets_both_errors_the_learning_rate_and_the_weights(trained, runtime_python):
    output, _ = trained
    read = [str(runtime_python), "-c", READ_SUMMARIES, str(output)]
    found = json.loads(subprocess.run(read, capture_output=True, text=True, check=True, timeout=120).stdout)
    steps = list(range(20, 601, 20))
    assert set(found["eval"]) == {"loss", "rmse"}
    assert found["eval"]["rmse"][0] == "scalars"
    assert found["eval"]["rmse"][1][:30] == steps
    scalars = {tag for tag, (kind, _) in found["train"].items() if kind == "scalars"}
    assert scalars == {"loss", "rmse", "learning_rate", "examples_per_second"}
    histograms = {tag: each for tag, (kind, each) in found["train"].items() if kind == "histograms"}
    kinds = {f"layer_{n}/{kind}" for n in range(1, 5) for kind in ("kernel", "bias")}
    assert set(histograms) == kinds - {"layer_1/bias"}
    assert histograms["layer_1/kernel"][:30] == steps


@pytest.mark.runtime
@pytest.mark.skipif(not REAL_RIDES.is_dir(), reason="the real rides are not beside this checkout")
@pytest.mark.parametrize(("features", "most"), [("raw", 5.0), ("engineered", 4.87)])
def test_on_real_rides_the_error_is_less_than_five_dollars(runtime_python, tmp_path, features, most):
    paths = REAL_RIDES / "taxi-train.csv", REAL_RIDES / "taxi-valid.csv"
    done = train(runtime_python, tmp_path, *paths, "--features", features)
    assert exported(done).is_dir()
    assert lowest_error(done) <= most
