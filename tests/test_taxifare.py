"""The taxi-fare example: the maker of rides, and the trainer run as a person runs it."""

import importlib
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "taxifare"
REAL_RIDES = ROOT.parent / "shared" / "data" / "taxifare"
TOLL = 5.54

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
    command = [sys.executable, EXAMPLE / "taxifare_data.py", "--output", folder, *args]
    return subprocess.run(command, capture_output=True, text=True)


def rows_of(file):
    return [line.split(",") for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def rides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rides")
    done = make_rides(folder, "--rows", "2000", "--seed", "7")
    assert done.returncode == 0, done.stderr
    return folder


def train(python, output, train_data, eval_data, *args):
    command = [python, "-m", "trainer.task", "--train_data_paths", train_data, "--eval_data_paths", eval_data]
    command += ["--output_dir", output, *args, "--job-dir", "gs://bucket/job"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(
        [str(word) for word in command], cwd=EXAMPLE, env=environment, capture_output=True, text=True, timeout=240
    )


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


def test_the_same_seed_makes_the_same_bytes_and_another_seed_does_not(rides, tmp_path):
    assert make_rides(tmp_path / "again", "--rows", "2000", "--seed", "7").returncode == 0
    assert make_rides(tmp_path / "other", "--rows", "2000", "--seed", "8").returncode == 0
    for name in ("taxi-train.csv", "taxi-valid.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (rides / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (rides / name).read_bytes()


def test_made_rides_have_the_labs_seven_columns_and_lie_in_new_york(rides):
    train_rows, valid_rows = rows_of(rides / "taxi-train.csv"), rows_of(rides / "taxi-valid.csv")
    assert (len(train_rows), len(valid_rows)) == (2000, 400)
    assert [row[6] for row in train_rows] == [str(key) for key in range(2000)]
    for row in train_rows + valid_rows:
        assert len(row) == 7
        _, from_lon, from_lat, to_lon, to_lat = map(float, row[:5])
        assert all(-74.1 < lon < -73.7 for lon in (from_lon, to_lon))
        assert all(40.6 < lat < 40.9 for lat in (from_lat, to_lat))
        assert row[5] in {"1", "2", "3", "4", "5", "6"}


def test_made_fares_follow_the_meters_rules(rides):
    for row in rows_of(rides / "taxi-train.csv"):
        fare, from_lon, from_lat, to_lon, to_lat = map(float, row[:5])
        at_least = (
            2.5 + 0.5 + 0.5 * math.floor(5 * math.dist((from_lon * 52, from_lat * 69), (to_lon * 52, to_lat * 69)))
        )
        to_or_from_jfk = (from_lon > -73.8) != (to_lon > -73.8)
        assert fare >= (min(at_least, 52.5) if to_or_from_jfk else at_least), row
        without_toll = fare if (fare * 2).is_integer() else fare - TOLL
        assert math.isclose(without_toll * 2, round(without_toll * 2), abs_tol=1e-9), row


def test_the_meter_counts_fifths_of_miles_slow_minutes_and_surcharges(taxifare_data):
    monday, saturday = 0, 5
    assert taxifare_data.metered(miles=0.0, slow=0.0, hour=12, weekday=monday) == 300
    assert taxifare_data.metered(miles=2.0, slow=3.9, hour=12, weekday=monday) == 300 + 500 + 150
    assert taxifare_data.metered(miles=0.0, slow=0.0, hour=17, weekday=monday) == 400
    assert taxifare_data.metered(miles=0.0, slow=0.0, hour=17, weekday=saturday) == 300
    assert taxifare_data.metered(miles=0.0, slow=0.0, hour=23, weekday=saturday) == 350


def test_a_ride_between_jfk_and_manhattan_costs_the_flat_fare(taxifare_data):
    made = [taxifare_data.ride(random.Random(seed)).split(",") for seed in range(4000)]
    midtown = [
        float(row[0])
        for row in made
        if float(row[1]) > -73.8 and float(row[3]) < -73.97 and float(row[4]) > 40.74  # well inside Manhattan
    ]
    assert midtown
    assert set(midtown) <= {52.5, 58.04}


@pytest.fixture
def taxifare_data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("taxifare_data")


def test_bad_rows_are_the_share_that_was_asked_for(tmp_path):
    assert make_rides(tmp_path, "--rows", "500", "--bad-rows", "0.1").returncode == 0
    rows = rows_of(tmp_path / "taxi-train.csv")
    assert len(rows) == 500
    assert sum(len(row) != 7 or row[0] == "n/a" for row in rows) == 50


@pytest.mark.parametrize("args", [("--rows", "0"), ("--rows", "many"), ("--bad-rows", "1.5"), ("--bad-rows", "nan")])
def test_the_maker_refuses_bad_numbers_by_name_and_writes_nothing(tmp_path, args):
    done = make_rides(tmp_path / "rides", *args)
    assert done.returncode == 2
    assert f"argument {args[0]}: {args[1]!r} is not a" in done.stderr.replace('"', "'")
    assert not (tmp_path / "rides").exists()


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
        r"choose another --output_dir, or the --hidden_units it has\n",
        other.stderr,
    )


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
    assert not (tmp_path / "out").exists()


@pytest.mark.runtime
def test_unknown_and_malformed_arguments_are_refused_by_name(runtime_python):
    refusals = {
        "--train_step=5": "unrecognized arguments: --train_step=5",
        "--train_steps=0": "argument --train_steps: it must be above 0",
        "--hidden_units=128 many": "argument --hidden_units: 'many' is not a whole number",
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
@pytest.mark.skipif(not REAL_RIDES.is_dir(), reason="the real rides are not beside this checkout")
def test_on_real_rides_the_error_is_at_most_five_dollars_twenty(runtime_python, tmp_path):
    done = train(runtime_python, tmp_path, REAL_RIDES / "taxi-train.csv", REAL_RIDES / "taxi-valid.csv")
    assert exported(done).is_dir()
    assert lowest_error(done) <= 5.2
