"""Taxi rides from CSV files, in bulk: read_rides(patterns) -> two arrays.

A file is parsed as a whole by NumPy. Only one with a row that is not as it should be is read line by line, to find out
which row that is.
"""

import io
import sys

import numpy as np
import tensorflow as tf

from trainer import BadInput

LABEL = "fare_amount"  # US dollars
FEATURES = ["pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]  # degrees, and a count
COLUMNS = [LABEL, *FEATURES, "key"]  # the files have no header; the key is not used
DEFAULTS = [0.0, -74.0, 40.0, -74.0, 40.7, 1.0]  # stand in for an empty field, as in the 2018 lab
LARGEST = 1e6  # no fare, degree or count is larger, and neither NaN nor infinity is smaller


def read_rides(patterns):
    """Returns (rides [n, 5], fares [n]), both float32, of every file that the patterns match.

    Raises BadInput if a pattern matches nothing, or if no row is left. Corrupt rows are skipped, with one warning.
    """
    tables, corrupt = [], []
    for path in matching_files(patterns):
        table, bad_lines = parse(contents(path))
        tables.append(table)
        corrupt += [f"{path} line {number}" for number in bad_lines]
    rows = np.concatenate(tables)
    if corrupt:
        print(
            f"WARNING: skipped {len(corrupt):,} of {len(rows) + len(corrupt):,} rows: each needs {len(COLUMNS)} "
            f"columns, and a number or nothing in all but the last (first: {corrupt[0]})",
            file=sys.stderr,
            flush=True,
        )
    if not len(rows):
        raise BadInput(f"no ride can be read from {', '.join(patterns)}: expected rows of {','.join(COLUMNS)}")
    return rows[:, 1:], rows[:, 0]


def matching_files(patterns):
    """Every file that a pattern stands for, in order. Raises BadInput with the pattern that stands for none."""
    paths = []
    for pattern in patterns:
        try:
            matches = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
        except tf.errors.NotFoundError:  # a bucket that does not exist
            matches = []
        except tf.errors.OpError as error:
            raise BadInput(f"{pattern} cannot be listed: {error.message}") from error
        if not matches:
            raise BadInput(f"no file matches {pattern}: check the path, and that the bucket or folder holds the file")
        paths += sorted(matches)
    return paths


def contents(path):
    """A file's text. Raises BadInput if it may not be read."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read().decode(errors="replace")
    except tf.errors.OpError as error:
        raise BadInput(f"{path} cannot be read: {error.message}") from error


def parse(text):
    """Returns (rows float32 [n, 6] without the key, numbers of the corrupt lines from 1)."""
    if not text.strip():
        return np.empty((0, len(DEFAULTS)), np.float32), []
    row_type = [(name, np.float32) for name in COLUMNS[:-1]] + [("key", "S1")]
    try:
        table = np.loadtxt(io.StringIO(text), row_type, delimiter=",", comments=None, ndmin=1)
        rows = np.stack([table[name] for name in COLUMNS[:-1]], axis=1)
        if (np.abs(rows) < LARGEST).all():
            return rows, []
    except ValueError:  # an empty field or a corrupt row somewhere: go line by line, three times as slow
        pass
    parsed = [(number, parse_line(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    rows = [row for _, row in parsed if row]
    return np.array(rows, np.float32).reshape(-1, len(DEFAULTS)), [number for number, row in parsed if not row]


def parse_line(line):
    """The six numbers of a row, None if it is corrupt."""
    fields = line.split(",")
    if len(fields) != len(COLUMNS):
        return None
    try:
        # zip ends with the defaults, before the key.
        row = [float(field) if field.strip() else default for field, default in zip(fields, DEFAULTS, strict=False)]
    except ValueError:
        return None
    return row if all(abs(number) < LARGEST for number in row) else None
