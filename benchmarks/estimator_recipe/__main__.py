"""python -m estimator_recipe TRAIN_CSV VALID_CSV OUTPUT_DIR STEPS: trains, evaluates, exports, and logs its speed."""

from __future__ import annotations

import functools
import sys

import tensorflow as tf

BATCH = 512
HIDDEN_UNITS = [128, 32, 4]
DEFAULTS = {"pickuplon": -74.0, "pickuplat": 40.0, "dropofflon": -74.0, "dropofflat": 40.7, "passengers": 1.0}
estimator = tf.compat.v1.estimator  # not tf.estimator, whose heads and optimizers are of a later kind


def main(train_csv: str, valid_csv: str, output_dir: str, steps: int) -> None:
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.INFO)
    columns = [tf.feature_column.numeric_column(name) for name in DEFAULTS]
    regressor = estimator.DNNRegressor(HIDDEN_UNITS, columns, model_dir=output_dir)
    training = estimator.TrainSpec(functools.partial(rides, train_csv, forever=True), max_steps=steps)
    exporter = estimator.LatestExporter("exporter", serving)
    evaluation = estimator.EvalSpec(functools.partial(rides, valid_csv, forever=False), steps=None, exporters=exporter)
    estimator.train_and_evaluate(regressor, training, evaluation)


def rides(path: str, forever: bool) -> tf.data.Dataset:
    """Batches of (columns by name, fares): shuffled and without an end, or each row once in the file's order."""
    rows = tf.data.TextLineDataset(path).map(decoded)
    if forever:
        rows = rows.shuffle(10 * BATCH).repeat()
    return rows.batch(BATCH)


def decoded(line: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    fare, *columns, _key = tf.io.decode_csv(line, [[0.0], *[[default] for default in DEFAULTS.values()], ["nokey"]])
    return dict(zip(DEFAULTS, columns, strict=True)), fare


def serving() -> estimator.export.ServingInputReceiver:
    columns = {name: tf.compat.v1.placeholder(tf.float32, [None], name) for name in DEFAULTS}
    return estimator.export.ServingInputReceiver(columns, columns)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
