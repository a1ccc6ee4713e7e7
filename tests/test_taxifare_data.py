"""The maker of taxi rides: made ones, enlarged ones, and those of the city's public records."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import importlib
import io
import itertools
import math
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "taxifare"
HEADER = "fare_amount,pickuplon,pickuplat,dropofflon,dropofflat,passengers,key"
TOLL, NEWARK_TOLL = 5.54, 11.75
JFK, LAGUARDIA, NEWARK = (-73.784, 40.645), (-73.868, 40.771), (-74.178, 40.690)

# What is needed, as the records of three times call it; the order and the other columns differ as well.
SPELLINGS = {
    2009: "vendor_name,Trip_Pickup_DateTime,Passenger_Count,Trip_Distance,Start_Lon,Start_Lat,Rate_Code,End_Lon,"
    "End_Lat,Fare_Amt,mta_tax,Tolls_Amt",
    2014: "vendor_id, pickup_datetime, passenger_count, trip_distance, pickup_longitude, pickup_latitude, rate_code,"
    " dropoff_longitude, dropoff_latitude, fare_amount, mta_tax, tolls_amount",
    2016: "VendorID,tpep_pickup_datetime,passenger_count,trip_distance,pickup_longitude,pickup_latitude,RatecodeID,"
    "dropoff_longitude,dropoff_latitude,fare_amount,mta_tax,tolls_amount",
}
GOOD = {"time": "2015-01-15 19:05:39", "passengers": 1, "miles": 1.59, "fare": 12, "tolls": 0}
GOOD |= {"from_lon": -73.993896, "from_lat": 40.750111, "to_lon": -73.974785, "to_lat": 40.750618}


def start(*args, folder=EXAMPLE, **options):
    command = [sys.executable, "-m", "taxifare_data", *map(str, args)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def room(monkeypatch):
    """The package's modules by name."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = ("__main__", "city", "meter", "progress")
    return SimpleNamespace(**{name: importlib.import_module(f"taxifare_data.{name}") for name in names})


@pytest.fixture
def run(room, capsys):
    """Runs a command in this process: (what sys.exit was called with, stdout, stderr)."""

    def command(*args):
        end = None
        try:
            room.__main__.main([str(arg) for arg in args])
        except SystemExit as error:
            end = error.code
        said = capsys.readouterr()
        return SimpleNamespace(end=end, out=said.out, err=said.err)

    return command


def rows_of(*files):
    return [line.split(",") for file in files for line in file.read_text().splitlines()]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def table_of(file):
    """The first six columns as numbers."""
    return np.loadtxt(file, delimiter=",", usecols=range(6))


def near(lon, lat, point, miles):
    return np.hypot((lon - point[0]) * 52.3, (lat - point[1]) * 69.0) < miles


def is_ride(fields):
    try:
        return len(fields) == 7 and all(abs(float(field)) < 1e6 for field in fields[:6])
    except ValueError:
        return False


# make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    done = start("make", "--rows", 40_000, "--seed", 7, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


def test_the_same_seed_makes_the_same_bytes_and_another_seed_does_not(run, made, tmp_path):
    run("make", "--rows", 40_000, "--seed", 7, "--output", tmp_path / "again")
    run("make", "--rows", 40_000, "--seed", 8, "--output", tmp_path / "other")
    for name in ("taxi-train.csv", "taxi-valid.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (made / name).read_bytes()


def test_a_small_file_is_the_beginning_of_a_large_one(run, made, tmp_path):
    run("make", "--rows", 20_000, "--seed", 7, "--output", tmp_path)
    small, large = ((folder / "taxi-train.csv").read_text() for folder in (tmp_path, made))
    assert large.startswith(small)
    assert small.count("\n") == 20_000


def test_what_is_held_out_is_not_what_is_trained_on(made):
    train, valid = (set(map(tuple, rows_of(made / name))) for name in ("taxi-train.csv", "taxi-valid.csv"))
    assert not {row[:6] for row in train} & {row[:6] for row in valid}


def test_it_says_what_it_wrote_and_the_command_that_trains_on_it(run, tmp_path):
    done = run("make", "--rows", 10, "--output", tmp_path / "a folder")
    train, valid = tmp_path / "a folder" / "taxi-train.csv", tmp_path / "a folder" / "taxi-valid.csv"
    *told, following = done.out.splitlines()
    assert told == [f"{train}: 10 rows", f"{valid}: 2 rows"]
    paths = ["--train_data_paths", str(train), "--eval_data_paths", str(valid)]
    assert shlex.split(following) == ["Next:", "python", "-m", "trainer.task", *paths, "--output_dir", "taxi_trained"]


def test_made_rides_have_the_labs_seven_columns_and_lie_in_new_york(made):
    train_rows, valid_rows = rows_of(made / "taxi-train.csv"), rows_of(made / "taxi-valid.csv")
    assert (len(train_rows), len(valid_rows)) == (40_000, 8_000)
    for rows in (train_rows, valid_rows):
        assert [row[6] for row in rows] == [str(key) for key in range(len(rows))]
    for row in train_rows + valid_rows:
        assert len(row) == 7
        _, from_lon, from_lat, to_lon, to_lat = map(float, row[:5])
        assert all(-74.2 < lon < -73.7 for lon in (from_lon, to_lon))
        assert all(40.55 < lat < 40.92 for lat in (from_lat, to_lat))
        assert row[5] in {"1", "2", "3", "4", "5", "6"}


def test_made_fares_follow_the_meters_rules(made):
    for row in rows_of(made / "taxi-train.csv"):
        fare, from_lon, from_lat, to_lon, to_lat = map(float, row[:5])
        miles = math.dist((from_lon * 52.3, from_lat * 69), (to_lon * 52.3, to_lat * 69))
        metered = 2.5 + 0.5 + 0.5 * math.floor(5 * miles - 1e-3)
        jfk = near(from_lon, from_lat, JFK, 2) or near(to_lon, to_lat, JFK, 2)
        assert fare >= (min(metered, 52.5) if jfk else metered), row
        newark = near(to_lon, to_lat, NEWARK, 2)
        without_toll = fare - NEWARK_TOLL if newark else fare if (fare * 2).is_integer() else fare - TOLL
        assert math.isclose(without_toll * 2, round(without_toll * 2), abs_tol=1e-9), row


def test_the_meter_counts_fifths_of_miles_slow_minutes_and_surcharges(room):
    def metered(miles, slow, hour, weekday):
        return int(room.meter.metered(*map(np.array, (miles, slow, hour, weekday))))

    monday, saturday = 0, 5
    assert metered(miles=0.0, slow=0.0, hour=12, weekday=monday) == 300
    assert metered(miles=2.0, slow=3.9, hour=12, weekday=monday) == 300 + 500 + 150
    assert metered(miles=0.0, slow=0.0, hour=17, weekday=monday) == 400
    assert metered(miles=0.0, slow=0.0, hour=17, weekday=saturday) == 300
    assert metered(miles=0.0, slow=0.0, hour=20, weekday=monday) == 350
    assert metered(miles=0.0, slow=0.0, hour=5, weekday=saturday) == 350
    assert metered(miles=0.0, slow=0.0, hour=6, weekday=monday) == 300


def test_jfk_has_a_flat_fare_to_manhattan_alone_and_newark_a_surcharge(room):
    def fare(start, end):
        one = np.array([10.0]), np.array([0.0]), np.array([12]), np.array([0]), np.array([start]), np.array([end])
        return int(room.meter.fares(*one)[0])

    assert fare("Manhattan", "JFK") == fare("JFK", "Manhattan") == 5250
    assert fare("Brooklyn", "JFK") == fare("JFK", "Queens") == fare("LaGuardia", "Manhattan") == 300 + 2500
    assert fare("Manhattan", "Newark") == 300 + 2500 + 1750


def test_a_made_ride_between_jfk_and_manhattan_costs_the_flat_fare_with_a_toll_or_without(made):
    fare, from_lon, from_lat, to_lon, to_lat, _ = table_of(made / "taxi-train.csv").T
    midtown = near(from_lon, from_lat, JFK, 2) & near(to_lon, to_lat, (-73.982, 40.756), 1)
    assert set(fare[midtown]) == {52.5, 58.04}


MID_WATER = {
    "Hudson": [(-74.017, 40.745), (-74.002, 40.775), (-73.972, 40.815)],
    "East River": [(-73.967, 40.728), (-73.9625, 40.747), (-73.985, 40.7075), (-73.90, 40.795)],
    "Upper Bay": [(-74.03, 40.69), (-74.05, 40.65)],
    "Jamaica Bay": [(-73.84, 40.61)],
    "Flushing Bay": [(-73.849, 40.773)],
    "Atlantic Ocean": [(-73.95, 40.55)],
}
ON_LAND = {
    "Times Square": (-73.9855, 40.758),
    "Battery Park": (-74.016, 40.704),
    "Stuyvesant Town": (-73.976, 40.731),
    "Hoboken": (-74.032, 40.745),
    "Long Island City": (-73.948, 40.745),
    "Brooklyn Heights": (-73.994, 40.696),
    "Red Hook": (-74.009, 40.677),
    "LaGuardia": (-73.873, 40.774),
    "JFK": (-73.778, 40.641),
    "Coney Island": (-73.98, 40.576),
}


def test_water_is_water_and_land_is_land(room):
    for expected, places in (
        (True, {f"{name} {at}": at for name, points in MID_WATER.items() for at in points}),
        (False, ON_LAND),
    ):
        for name, (lon, lat) in places.items():
            assert room.city.on_water(np.array([lon]), np.array([lat]))[0] == expected, name


def test_no_made_ride_begins_or_ends_in_the_middle_of_the_water(made):
    table = table_of(made / "taxi-train.csv")
    lon, lat = np.concatenate([table[:, 1], table[:, 3]]), np.concatenate([table[:, 2], table[:, 4]])
    for name, points in MID_WATER.items():
        for point in points:
            assert not near(lon, lat, point, 0.12).any(), f"{name} {point}"


def test_made_rides_are_like_those_of_the_citys_records(made):
    """The bounds stand around the lab's sample of them: mean 11.1, deviation 9.1, 2.1 % and 3.4 % at the airports."""
    fare, from_lon, from_lat, to_lon, to_lat, passengers = table_of(made / "taxi-train.csv").T
    assert 10.3 < fare.mean() < 12.3
    assert 8.3 < fare.std() < 10.5
    assert 7.3 < np.median(fare) < 9.0
    miles = np.hypot((from_lon - to_lon) * 52.3, (from_lat - to_lat) * 69.0)
    assert 1.8 < miles.mean() < 2.3
    assert 1.1 < np.median(miles) < 1.5
    for airport, low, high in ((JFK, 0.015, 0.027), (LAGUARDIA, 0.027, 0.042)):
        share = (near(from_lon, from_lat, airport, 1.2) | near(to_lon, to_lat, airport, 1.2)).mean()
        assert low < share < high
    assert not (near(from_lon, from_lat, JFK, 1.2) & near(to_lon, to_lat, JFK, 1.2)).any()
    assert 0 < near(to_lon, to_lat, NEWARK, 1.2).mean() < 0.003
    assert not near(from_lon, from_lat, NEWARK, 1.2).any()
    assert 0.65 < (passengers == 1).mean() < 0.73


def test_bad_rows_are_the_share_that_was_asked_for_and_bad_in_every_way(run, tmp_path):
    run("make", "--rows", 20_000, "--bad-rows", 0.1, "--output", tmp_path)
    rows = rows_of(tmp_path / "taxi-train.csv")
    bad = [row for row in rows if not is_ride(row)]
    assert (len(rows), len(bad)) == (20_000, 2_000)
    ways = Counter(
        "header" if row == HEADER.split(",")
        else "word" if row[0] == "n/a"
        else "nan" if row[1] == "nan"
        else f"{len(row)} columns"
        for row in bad
    )  # fmt: skip
    assert set(ways) == {"header", "word", "nan", "4 columns", "8 columns"}
    assert min(ways.values()) > 300
    run("make", "--rows", 50, "--bad-rows", 1, "--output", tmp_path)
    assert not any(map(is_ride, rows_of(tmp_path / "taxi-train.csv", tmp_path / "taxi-valid.csv")))


@pytest.mark.parametrize(
    ("command", "flag", "word"),
    [
        ("make", "--rows", "0"),
        ("make", "--rows", "many"),
        ("make", "--seed", "-1"),
        ("make", "--bad-rows", "1.5"),
        ("make", "--bad-rows", "nan"),
        ("enlarge", "--rows", "1e6"),
        ("download", "--rows", "0"),
        ("download", "--every", "0"),
    ],
)
def test_bad_numbers_are_refused_by_name_and_nothing_is_written(run, tmp_path, command, flag, word):
    source = [] if command == "make" else ["--from", "rides.csv"]
    done = run(command, *source, f"{flag}={word}", "--output", tmp_path / "rides")
    assert done.end == 2
    assert f"argument {flag}: {word!r} is not a" in done.err
    assert files_in(tmp_path) == []


def test_a_target_that_cannot_be_written_is_an_error_that_names_it(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("make", "--rows", 10, "--output", tmp_path / "file")
    assert done.end.startswith(f"taxifare_data: error: cannot write {tmp_path}/file/taxi-train.csv: ")
    a_source(tmp_path / "source.csv")
    done = run("enlarge", "--from", tmp_path / "source.csv", "--rows", 10, "--output", tmp_path)
    assert done.end == f"taxifare_data: error: cannot write {tmp_path}: it is a folder: name a file in it"
    assert files_in(tmp_path) == ["file", "source.csv"]


# progress


def test_a_terminal_shows_a_bar_that_grows_and_goes(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "taxifare_data", "make", "--rows", "300000", "--output", str(tmp_path)]
    maker = subprocess.Popen(command, cwd=EXAMPLE, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the terminal's other side was closed
        pass
    assert maker.wait() == 0
    os.close(ours)
    assert b"\rMaking taxi-train.csv  [#" in shown
    assert b" of 300,000  " in shown
    assert shown.endswith(b"\r\x1b[K")


def test_a_log_gets_a_line_every_ten_seconds(room):
    log, now = io.StringIO(), iter([0, 4, 11, 15, 22])
    with room.progress.Progress("Reading rides.csv", out=log, clock=lambda: next(now)) as bar:
        for done in (1_000, 2_750, 4_000, 5_500):
            bar(done)
    assert log.getvalue() == "Reading rides.csv  2,750  250 a second\nReading rides.csv  5,500  250 a second\n"


# enlarge


def a_source(path, rows=200):
    """Rides that their fares tell apart, written in more than one way: '3.0' and '3.01', six digits and ten."""
    lines = []
    for number in range(rows):
        lon, lat = f"{-73.95 - number / 9000:.10f}", f"{40.75 + number / 8000:.6f}"
        lines.append(f"{3 + number / 100},{lon},{lat},{lat and lon},{lat},{number % 6 + 1},{number}\n")
    path.write_text("".join(lines))
    return path


def test_enlarged_rides_are_those_of_the_source_with_noise_on_their_coordinates(run, tmp_path):
    source, target = a_source(tmp_path / "taxi-train.csv"), tmp_path / "large.csv"
    done = run("enlarge", "--from", source, "--rows", 40_000, "--output", target)
    assert (done.end, done.err) == (None, "")
    known = {row[0]: row for row in rows_of(source)}
    rows = rows_of(target)
    assert [row[6] for row in rows] == [str(key) for key in range(40_000)]
    assert {len(row) for row in rows} == {7}
    assert all(row[5] == known[row[0]][5] for row in rows)
    noise = np.array([row[1:5] for row in rows], float) - np.array([known[row[0]][1:5] for row in rows], float)
    assert noise.std(axis=0) == pytest.approx([5e-4] * 4, rel=0.02)
    assert noise.mean(axis=0) == pytest.approx([0.0] * 4, abs=1e-5)
    assert abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.03  # each coordinate by itself
    times = Counter(row[0] for row in rows)
    assert len(times) == 200  # all of them
    assert max(times.values()) < 270  # 200 times each, and chance


def test_the_same_source_and_seed_give_the_same_large_file(run, tmp_path):
    source = a_source(tmp_path / "taxi-train.csv")
    contents = []
    for seed in (1, 1, 2):
        run("enlarge", "--from", source, "--rows", 20_000, "--seed", seed, "--output", tmp_path / "large.csv")
        contents.append((tmp_path / "large.csv").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_corrupt_rows_and_headers_of_a_source_are_left_out_and_counted(run, tmp_path):
    source = a_source(tmp_path / "taxi-train.csv")
    corrupt = ["1,2,3", "n/a,-74,40.7,-74,40.7,1,9", "4.5,nan,40.7,-74,40.7,1,9", "4.5,-74,1e39,-74,40.7,1,9", "a\0b"]
    source.write_text("\r\n".join([HEADER, "", *source.read_text().split(), *corrupt, HEADER, ""]))
    done = run("enlarge", "--from", source, "--rows", 1_000, "--output", tmp_path / "large.csv")
    assert done.err == (
        f"WARNING: left out 5 corrupt and 2 header lines of 207 in {source}: a ride has 7 columns, and numbers in all "
        "but the last\n"
    )
    assert {row[0] for row in rows_of(tmp_path / "large.csv")} <= {str(3 + number / 100) for number in range(200)}


def test_the_next_command_evaluates_on_the_file_beside_the_source(run, tmp_path):
    source = a_source(tmp_path / "taxi-train.csv")
    done = run("enlarge", "--from", source, "--rows", 10, "--output", tmp_path / "large.csv")
    assert f"--train_data_paths {tmp_path}/large.csv --eval_data_paths {tmp_path}/taxi-valid.csv" in done.out


def test_a_source_without_a_ride_is_an_error_and_what_was_there_stays(run, tmp_path):
    target = tmp_path / "large.csv"
    target.write_text("what was there")
    (tmp_path / "words.csv").write_text(f"{HEADER}\nnot,a,ride\n")
    done = run("enlarge", "--from", tmp_path / "words.csv", "--output", target)
    assert done.end == f"taxifare_data: error: no ride can be read from {tmp_path}/words.csv: expected rows of {HEADER}"
    done = run("enlarge", "--from", tmp_path / "no-*.csv", "--output", target)
    assert done.end == f"taxifare_data: error: no file matches {tmp_path}/no-*.csv: check the path"
    assert target.read_text() == "what was there"
    assert files_in(tmp_path) == ["large.csv", "words.csv"]


# download


def times(count):
    """Pickup times, each a minute after the other."""
    return [f"2015-01-{1 + n // 1440:02} {n // 60 % 24:02}:{n % 60:02}:00" for n in range(count)]


def a_record(**values):
    known = GOOD | values
    names = ("time", "passengers", "miles", "from_lon", "from_lat", "rate", "to_lon", "to_lat", "fare", "tax", "tolls")
    return ["2", *(str(known.get(name, 0)) for name in names)]


def write_records(path, records, year=2016):
    text = io.StringIO()
    csv.writer(text).writerows(records)
    gap = "\r\n" if year == 2014 else ""
    content = f"{SPELLINGS[year]}\r\n{gap}{text.getvalue()}".encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def some_records():
    return [a_record(time=time, fare=5 + n % 40) for n, time in enumerate(times(600))]


def taken(folder):
    return [(folder / name).read_text() for name in ("taxi-train.csv", "taxi-valid.csv")]


def test_the_records_of_every_year_with_coordinates_give_the_same_rides(run, some_records, tmp_path):
    for year in SPELLINGS:
        source = write_records(tmp_path / f"yellow_{year}.csv", some_records, year)
        done = run("download", "--from", source, "--output", tmp_path / str(year))
        assert (done.end, done.err) == (None, "")
    assert taken(tmp_path / "2009") == taken(tmp_path / "2014") == taken(tmp_path / "2016")


def test_a_ride_is_fare_and_tolls_where_it_went_who_sat_in_it_and_the_key_of_its_record(run, some_records, tmp_path):
    found = a_record(time="2015-02-01 00:00:00", fare=52.1, tolls=5.54, passengers=3)
    source = write_records(tmp_path / "yellow.csv", [*some_records, found])
    run("download", "--from", source, "--output", tmp_path / "rides")
    (row,) = [line for line in "".join(taken(tmp_path / "rides")).splitlines() if "2015-02-01" in line]
    where = ["-73.993896", "40.750111", "-73.974785", "40.750618"]
    assert row == ",".join(["57.64", *where, "3", " ".join(["2015-02-01 00:00:00", *where])])


@pytest.mark.parametrize(
    ("value", "refused", "accepted"),
    [
        ("miles", 0, 0.1),
        ("fare", 2.49, 2.5),
        ("passengers", 0, 1),
        ("from_lon", -78, -77.9),
        ("from_lon", -70, -70.1),
        ("to_lon", 0, -70.1),
        ("from_lat", 37, 37.1),
        ("from_lat", 45, 44.9),
        ("to_lat", 0, 37.1),
    ],
)
def test_the_labs_filter_leaves_out_what_cannot_be_a_ride(run, some_records, tmp_path, value, refused, accepted):
    edge = [a_record(time="left out", **{value: refused}), a_record(time="taken", **{value: accepted})]
    source = write_records(tmp_path / "yellow.csv", [*some_records, *edge])
    done = run("download", "--from", source, "--output", tmp_path / "rides")
    text = "".join(taken(tmp_path / "rides"))
    assert ("left out" in text, "taken" in text, text.count("\n")) == (False, True, 601)
    assert done.err == ""


def test_rides_of_one_time_go_to_one_file_about_five_to_one(run, tmp_path):
    records = [a_record(time=time, fare=fare) for time in times(3_000) for fare in (5, 6)]
    source = write_records(tmp_path / "yellow.csv", records)
    done = run("download", "--from", source, "--output", tmp_path)
    train, valid = ({row[6] for row in rows_of(tmp_path / name)} for name in ("taxi-train.csv", "taxi-valid.csv"))
    assert len(train) + len(valid) == 3_000  # and so none is in both
    assert 4.3 < len(train) / len(valid) < 5.8
    assert [int(word.replace(",", "")) for word in done.out.split() if word[0].isdecimal()] == [
        2 * len(train),
        2 * len(valid),
    ]


def test_every_nth_is_the_same_choice_each_time_and_another_one_with_another_seed(run, tmp_path):
    source = write_records(tmp_path / "yellow.csv", [a_record(time=time) for time in times(4_000)])
    backwards = write_records(tmp_path / "backwards.csv", [a_record(time=time) for time in reversed(times(4_000))])
    chosen = {}
    for name, path, seed in (("one", source, 1), ("again", backwards, 1), ("other", source, 2)):
        run("download", "--from", path, "--every", 4, "--seed", seed, "--output", tmp_path / name)
        chosen[name] = [set(text.splitlines()) for text in taken(tmp_path / name)]
    assert chosen["one"] == chosen["again"]
    assert chosen["one"][0] != chosen["other"][0]
    assert 900 < sum(map(len, chosen["one"])) < 1_100
    assert len(chosen["one"][0]) > 3 * len(chosen["one"][1])


def test_reading_stops_when_there_are_as_many_rows_as_were_asked_for(run, some_records, tmp_path):
    source = write_records(tmp_path / "yellow.csv", [*some_records, ["this", "line", "is", "not", "reached"]])
    done = run("download", "--from", source, "--rows", 100, "--output", tmp_path / "rides")
    train, valid = taken(tmp_path / "rides")
    assert train.count("\n") == 100
    assert valid
    assert done.err == ""


def test_corrupt_records_are_left_out_and_counted(run, some_records, tmp_path):
    corrupt = [["1", "2", "3"], [*some_records[0], "a column more"], a_record(fare="n/a"), a_record(from_lat="nan")]
    corrupt += [a_record(time=""), a_record(tolls="")]
    source = write_records(tmp_path / "yellow.csv", [*corrupt, *some_records])
    with source.open("ab") as file:
        file.write(b"\xff\x00\xfe\r\n")
    done = run("download", "--from", source, "--output", tmp_path / "rides")
    assert done.err == f"WARNING: left out 7 corrupt records of 607 in {source}\n"
    assert "".join(taken(tmp_path / "rides")).count("\n") == 600


def test_records_without_coordinates_are_refused_with_the_years_that_have_them(run, tmp_path):
    source = tmp_path / "yellow_tripdata_2019-01.csv"
    source.write_text(
        "VendorID,tpep_pickup_datetime,passenger_count,trip_distance,RatecodeID,PULocationID,DOLocationID,fare_amount,"
        "tolls_amount\n1,2019-01-01 00:46:40,1,1.5,1,151,239,7,0\n"
    )
    done = run("download", "--from", source, "--output", tmp_path / "rides")
    assert done.end.startswith(f"taxifare_data: error: {source} has zones (PULocationID) in place of coordinates: ")
    assert "January 2009 to June 2016" in done.end
    assert files_in(tmp_path / "rides") == []


def test_a_file_of_something_else_is_refused_by_what_it_lacks(run, tmp_path):
    (tmp_path / "page.csv").write_text("<html>moved</html>\n")
    done = run("download", "--from", tmp_path / "page.csv", "--output", tmp_path / "rides")
    assert done.end == (
        f"taxifare_data: error: {tmp_path}/page.csv is no file of the yellow trip records: it has no column "
        "trip_pickup_datetime or pickup_datetime or tpep_pickup_datetime"
    )


@pytest.mark.parametrize("records", [[], [a_record()], [a_record(fare=0)] * 50, [["1"]] * 50])
def test_a_source_with_too_few_good_records_is_an_error_and_writes_nothing(run, tmp_path, records):
    source = write_records(tmp_path / "yellow.csv", records)
    done = run("download", "--from", source, "--output", tmp_path / "rides")
    assert done.end.startswith(f"taxifare_data: error: {source} gives ")
    assert f"of {len(records)} records: both files need some" in done.end
    assert files_in(tmp_path / "rides") == []


def test_plain_packed_and_many_files_are_read_from_paths_and_from_urls(run, some_records, tmp_path):
    half = len(some_records) // 2
    plain = write_records(tmp_path / "yellow.csv", some_records)
    packed = write_records(tmp_path / "yellow.csv.gz", some_records)
    write_records(tmp_path / "yellow_1.csv", some_records[:half], 2009)
    write_records(tmp_path / "yellow_2.csv.gz", some_records[half:], 2016)
    fsspec.filesystem("memory").pipe("/city/yellow.csv", plain.read_bytes())
    fsspec.filesystem("memory").pipe("/city/yellow.csv.gz", packed.read_bytes())
    sources = [
        plain,
        packed,
        f"{tmp_path}/yellow_*",
        f"file://{plain}",
        f"file://{packed}",
        f"file://{tmp_path}/yellow_*",
    ]
    sources += ["memory://city/yellow.csv", "memory://city/yellow.csv.gz"]
    results = []
    for number, source in enumerate(sources):
        done = run("download", "--from", source, "--output", tmp_path / str(number))
        assert (done.end, done.err) == (None, ""), source
        results.append(taken(tmp_path / str(number)))
    assert all(result == results[0] for result in results)
    fsspec.filesystem("memory").rm("/city", recursive=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_records_are_read_over_http(run, some_records, tmp_path):
    write_records(tmp_path / "yellow.csv", some_records)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            done = run("download", "--from", f"{url}/yellow.csv", "--output", tmp_path / "remote")
            missing = run("download", "--from", f"{url}/no.csv", "--output", tmp_path / "no")
        finally:
            server.shutdown()
            thread.join()
    run("download", "--from", tmp_path / "yellow.csv", "--output", tmp_path / "local")
    assert (done.end, done.err) == (None, "")
    assert taken(tmp_path / "remote") == taken(tmp_path / "local")
    assert missing.end.startswith(f"taxifare_data: error: cannot read {url}/no.csv: FileNotFoundError")
    assert files_in(tmp_path / "no") == []


def test_a_source_that_breaks_off_is_an_error_and_what_was_there_stays(run, some_records, tmp_path):
    folder = tmp_path / "rides"
    run("make", "--rows", 10, "--output", folder)
    before = taken(folder)
    broken = write_records(tmp_path / "yellow.csv.gz", some_records)
    broken.write_bytes(broken.read_bytes()[:-200])
    for source in (broken, f"file://{broken}"):
        done = run("download", "--from", source, "--output", folder)
        assert done.end.startswith(f"taxifare_data: error: cannot read {source}: EOFError")
    assert taken(folder) == before
    assert files_in(folder) == ["taxi-train.csv", "taxi-valid.csv"]


INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
runpy.run_module("taxifare_data", run_name="__main__")
"""


def test_an_interrupted_command_leaves_no_file(some_records, tmp_path):
    """The records come through a pipe that stays open, so the command is known to be in the middle of its work."""
    pipe = tmp_path / "yellow.csv"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        "download",
        "--from",
        str(pipe),
        "--output",
        str(tmp_path / "rides"),
    ]
    reader = subprocess.Popen(command, cwd=EXAMPLE, stderr=subprocess.PIPE, text=True)
    with pipe.open("w") as file:  # opens when the other side does
        file.write(SPELLINGS[2016] + "\r\n")
        csv.writer(file).writerows(itertools.islice(itertools.cycle(some_records), 20_000))
        file.flush()  # more than a pipe holds: some was read
        assert [name.endswith(".new") for name in files_in(tmp_path / "rides")] == [True, True]
        reader.send_signal(signal.SIGINT)
        _, said = reader.communicate(timeout=30)
    assert reader.returncode == 1
    assert said.endswith("taxifare_data: stopped; no file was left half-written\n")
    assert files_in(tmp_path / "rides") == []


def test_parquet_gives_the_rides_that_csv_gives(run, some_records, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    convert = importlib.import_module("pyarrow.csv").read_csv
    for year in SPELLINGS:
        source = write_records(tmp_path / f"yellow_{year}.csv", some_records, year)
        table = convert(source)
        named = [name for name in table.column_names if "ickup" in name and "ate" in name]
        assert pyarrow.types.is_timestamp(table.schema.field(named[0]).type)
        if year == 2009:  # in the city's files of this year, times are text
            table = table.set_column(1, named[0], table[named[0]].cast("string"))
        lacking = {name: pyarrow.nulls(1, table.schema.field(name).type) for name in table.column_names}
        table = pyarrow.concat_tables([table, pyarrow.table(lacking, schema=table.schema)])
        parquet.write_table(table, tmp_path / f"yellow_{year}.parquet", row_group_size=100)
        run("download", "--from", source, "--output", tmp_path / "csv")
        for url in (tmp_path / f"yellow_{year}.parquet", f"file://{tmp_path}/yellow_{year}.parquet"):
            done = run("download", "--from", url, "--output", tmp_path / "parquet")
            assert done.end is None
            assert done.err == f"WARNING: left out 1 corrupt records of 601 in {url}\n"
            assert taken(tmp_path / "parquet") == taken(tmp_path / "csv")


def test_plain_csv_needs_neither_fsspec_nor_pyarrow_and_the_rest_says_how_to_get_them(some_records, tmp_path):
    for name in ("fsspec", "pyarrow"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is not installed')\n")
    bare = {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    source = write_records(tmp_path / "yellow.csv", some_records)
    done = start("download", "--from", source, "--output", tmp_path / "rides", **bare)
    assert done.returncode == 0, done.stderr
    (tmp_path / "yellow.parquet").write_bytes(b"PAR1 and so on")
    for asked, needed in (("https://city/yellow.csv", "fsspec"), (tmp_path / "yellow.parquet", "pyarrow")):
        done = start("download", "--from", asked, "--output", tmp_path / "no", **bare)
        assert done.returncode == 1
        assert f"needs {needed}: pip install fsspec pyarrow" in done.stderr
