"""A neural network that guesses a taxi fare: read the rides, build, train, keep the best, export.

Read it from top to bottom: train_and_evaluate is the whole story, and what it calls follows in the same order.
"""

import io
import sys
import time

import keras
import numpy as np
import tensorflow as tf

try:
    import tensorboard  # tf.summary cannot write without it
except ImportError:
    tensorboard = None

LABEL = "fare_amount"  # US dollars
FEATURES = ["pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]  # degrees, and a count
COLUMNS = [LABEL, *FEATURES, "key"]  # the files have no header; the key is not used
DEFAULTS = [0.0, -74.0, 40.0, -74.0, 40.7, 1.0]  # stand in for an empty field, as in the 2018 lab
LARGEST = 1e6  # no fare, degree or count is larger, and neither NaN nor infinity is smaller


class BadInput(Exception):
    """The data or the output folder cannot be used; the message says which, and what to try."""


def train_and_evaluate(args):
    """Trains until step args.train_steps, from the last checkpoint if there is one, and exports the best weights."""
    rides, fares = read_rides(args.train_data_paths)
    held_out = read_rides(args.eval_data_paths)
    if args.eval_steps:
        held_out = [column[: args.eval_steps * args.train_batch_size] for column in held_out]
    print(f"{len(fares):,} rides to train on, {len(held_out[1]):,} to evaluate on", flush=True)

    tf.get_logger().setLevel("ERROR")  # or it lists every value of a checkpoint that does not fit
    keras.utils.set_random_seed(args.seed)
    network = build_network(args.hidden_units, rides, fares)
    best = keras.models.clone_model(network)  # the weights with the lowest error so far
    optimizer = keras.optimizers.Adam(args.learning_rate)
    optimizer.build(network.trainable_variables)
    step, best_step = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)
    best_rmse = tf.Variable(float("inf"))
    checkpoint = tf.train.Checkpoint(
        network=network, optimizer=optimizer, best=best, step=step, best_step=best_step, best_rmse=best_rmse
    )
    manager = tf.train.CheckpointManager(checkpoint, args.output_dir, max_to_keep=2)
    resume(checkpoint, manager, step)

    train = train_function(network, optimizer, rides, fares, args.train_batch_size, args.seed)
    evaluate = evaluate_function(network, *held_out)
    summaries = open_summaries(args.output_dir)
    every = min(1000, max(1, args.train_steps // 30))  # steps between two evaluations
    saved = time.monotonic()
    while step < args.train_steps:
        began, first = time.monotonic(), int(step)
        last = min(first + every, args.train_steps)
        loss = float(train(first, last))
        speed = (last - first) * args.train_batch_size / (time.monotonic() - began)
        step.assign(last)
        rmse = float(evaluate())
        if rmse < best_rmse:
            best.set_weights(network.get_weights())
            best_rmse.assign(rmse)
            best_step.assign(last)
        report(summaries, last, args.train_steps, loss, rmse, speed)
        if last == args.train_steps or time.monotonic() - saved > 15:  # seconds: a save to gs:// takes a while
            manager.save(checkpoint_number=last)
            saved = time.monotonic()

    if not best_step:
        raise BadInput(
            f"training diverged, there is nothing to export: try a --learning_rate below {args.learning_rate}, "
            "and another --output_dir"
        )
    print(f"RMSE: {float(best_rmse):.2f} (best, step {int(best_step)})")
    print(f"Exported to {export(best, args.output_dir)}", flush=True)


def read_rides(patterns):
    """Returns (features [n, 5], fares [n]), both float32, of every file that the patterns match.

    Raises BadInput if a pattern matches nothing, or if no row is left. Corrupt rows are skipped, with one warning.
    """
    tables, corrupt = [], []
    for path in matching_files(patterns):
        with tf.io.gfile.GFile(path, "rb") as file:
            table, bad_lines = parse(file.read().decode(errors="replace"))
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
    paths = []
    for pattern in patterns:
        try:
            matches = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
        except tf.errors.NotFoundError:  # a bucket that does not exist
            matches = []
        if not matches:
            raise BadInput(f"no file matches {pattern}: check the path, and that the bucket or folder holds the file")
        paths += sorted(matches)
    return paths


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


def build_network(hidden_units, rides, fares):
    """A network from [n, 5] to [n, 1] that standardises its own inputs, so that callers send plain degrees."""
    # Given, not adapt()ed: what a layer learned by adapt() does not reach a clone of the network, nor a restored one.
    standardise = keras.layers.Normalization(
        mean=rides.mean(0, np.float64).tolist(), variance=rides.var(0, np.float64).tolist()
    )
    # ELU, not ReLU: a layer of four ReLUs can die, and then every ride costs the same. The last layer turns
    # standard deviations into dollars, so that the first guess is the mean fare and not zero.
    return keras.Sequential(
        [
            keras.Input((len(FEATURES),)),
            standardise,
            *[keras.layers.Dense(units, activation="elu") for units in hidden_units],
            keras.layers.Dense(1),
            keras.layers.Rescaling(scale=float(fares.std()) or 1.0, offset=float(fares.mean())),
        ]
    )


def resume(checkpoint, manager, step):
    """Restores the newest checkpoint of the output folder, if there is one."""
    if not manager.latest_checkpoint:
        return
    try:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    except (AssertionError, ValueError) as error:
        raise BadInput(
            f"{manager.latest_checkpoint} holds another network: "
            "choose another --output_dir, or the --hidden_units it has"
        ) from error
    print(f"Resuming from step {int(step)}, {manager.latest_checkpoint}", flush=True)


def train_function(network, optimizer, rides, fares, batch_size, seed):
    """Returns train(first, last): takes the steps first..last - 1 and returns their mean loss.

    The rides stay in memory and the loop runs inside TensorFlow: no step comes back to Python. Every epoch has its own
    order, computed from the seed and the epoch's number alone, so a resumed training sees the batches it would have.
    """
    rides, fares = tf.constant(rides), tf.constant(fares)
    last_ride = tf.constant(len(fares) - 1, tf.int64)
    batches = max(1, len(fares) // batch_size)  # in one epoch; the rides left over are others each time

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64)] * 2)
    def train(first, last):
        total = 0.0
        for step in tf.range(first, last):
            places = (step % batches * batch_size + tf.range(batch_size, dtype=tf.int64)) % len(fares)
            order = tf.stack([seed, step // batches])
            batch = tf.random.experimental.index_shuffle(places, order, last_ride)
            with tf.GradientTape() as tape:
                guesses = network(tf.gather(rides, batch))[:, 0]
                loss = tf.reduce_mean(tf.square(guesses - tf.gather(fares, batch)))
            optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
            total += loss
        return total / tf.cast(last - first, tf.float32)

    return train.get_concrete_function()  # traced here, so that the first steps are timed without it


def evaluate_function(network, rides, fares):
    """Returns evaluate(): the root of the mean squared error in dollars, 8,192 rides at a time."""
    rides, fares = tf.constant(rides), tf.constant(fares)

    @tf.function
    def evaluate():
        total = 0.0
        for start in tf.range(0, len(fares), 8192):
            guesses = network(rides[start : start + 8192])[:, 0]
            total += tf.reduce_sum(tf.square(guesses - fares[start : start + 8192]))
        return tf.sqrt(total / len(fares))

    return evaluate


def open_summaries(output_dir):
    if tensorboard:
        return tf.summary.create_file_writer(output_dir)
    print("No summaries for TensorBoard: the tensorboard package is not installed", flush=True)
    return None


def report(summaries, step, steps, loss, rmse, speed):
    print(f"step {step}/{steps}  loss {loss:.2f}  eval RMSE {rmse:.2f}  {speed:,.0f} examples/s", flush=True)
    if summaries:
        with summaries.as_default(step=step):
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("rmse", rmse)
            tf.summary.scalar("examples_per_second", speed)


def export(network, output_dir):
    """Writes a SavedModel and returns its folder.

    Its one signature, serving_default, takes the five FEATURES, each float32 [n], and returns predictions, float32
    [n, 1], in dollars.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name) for name in FEATURES])
    def serve(*features):
        return {"predictions": network(tf.stack(features, axis=1))}

    module = tf.Module()
    module.network, module.serve = network, serve
    folder = f"{output_dir.rstrip('/')}/export/exporter/{time.time():.0f}"
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})
    return folder
