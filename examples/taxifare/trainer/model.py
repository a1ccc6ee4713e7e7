"""A neural network that guesses a taxi fare: prepare the rides, train, keep the best weights, export them.

Read it from top to bottom: train_and_evaluate is the whole story, and what it calls follows in the same order.
Everything that happens once a step happens inside TensorFlow; Python has its turn once in a thousand steps. If there
are workers, that is when what all have learned is averaged (replicas.py).
"""

import contextlib
import functools
import math
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from trainer import BEGAN, BadInput, replicas, rides, trials
from trainer.rides import FEATURES

try:
    import tensorboard  # tf.summary cannot write without it
except ImportError:
    tensorboard = None

SAVE_EVERY = 15  # seconds between two checkpoints: one on gs:// takes a while
LONGEST_CALL = 1000  # steps between two evaluations, at most
KM_EAST, KM_NORTH = 84.3, 111.2  # kilometres in a degree, at 40.75 degrees north
AVENUES = math.radians(29)  # Manhattan's avenues run so far east of north, and cars follow them
PLACES = {  # where a fare has rules of its own, and the middle of most rides: (lon, lat)
    "JFK": (-73.783, 40.6455),
    "LaGuardia": (-73.872, 40.774),
    "Newark": (-74.178, 40.6915),
    "Midtown": (-73.982, 40.757),
}


def train_and_evaluate(args, team):
    """Trains until step args.train_steps, from the last checkpoint if there is one, and exports the best weights.

    In a team of several, each takes its part of the steps on its part of the rides; all but the chief write nothing.
    """
    imported = time.monotonic()
    # One thread: a step of so small a network is over before a second thread has heard of it.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(args.seed)

    train_rides, train_fares = rides.read_rides(args.train_data_paths)
    own = slice(team.rank, None, team.size)  # all of them, if it is alone
    if args.train_batch_size > len(train_fares[own]):
        each = f" for each of {team.size} replicas" if team.size > 1 else ""
        raise BadInput(
            f"--train_batch_size {args.train_batch_size} is more than there are rides to train on{each}: give at most "
            f"{len(train_fares) // team.size}, or more rides"
        )
    if team.rank:
        work(args, team, train_rides, train_fares)
        return
    eval_rides, eval_fares = rides.read_rides(args.eval_data_paths)
    if args.eval_steps:
        most = args.eval_steps * args.train_batch_size
        eval_rides, eval_fares = eval_rides[:most], eval_fares[:most]
    print(f"{len(train_fares):,} rides to train on, {len(eval_fares):,} to evaluate on", flush=True)
    read = time.monotonic()

    scales = Scales(args.features, train_rides, train_fares)
    network = build_network(args.hidden_units, scales.width)
    best = keras.models.clone_model(network)  # the weights with the lowest error so far
    optimizer = Adam(network.trainable_variables)
    progress = Progress()
    checkpoint = tf.train.Checkpoint(scales=scales, network=network, optimizer=optimizer, best=best, progress=progress)
    manager = open_checkpoints(checkpoint, progress, args.output_dir)

    batch, steps_a_call = args.train_batch_size, min(LONGEST_CALL, max(1, args.train_steps // 30))
    steps_each = -(-steps_a_call // team.size)
    features, targets = scales.inputs(train_rides[own]), scales.targets(train_fares[own])
    blocks = shuffled_blocks(features, targets, steps_each * batch, int(progress.step) // team.size * batch, args.seed)
    train = train_function(network, scales, optimizer, batch)
    own_steps = functools.partial(take, blocks=blocks, train=train, batch=batch, replicas=team.size)
    state = State(scales, optimizer)
    evaluate = evaluate_function(network, scales, eval_rides, eval_fares)
    summaries = Summaries(args.output_dir, network)
    print(
        f"Ready after {time.monotonic() - BEGAN:.1f} s: imports {imported - BEGAN:.1f}, reading {read - imported:.1f}, "
        f"building {time.monotonic() - read:.1f}",
        flush=True,
    )

    saved = time.monotonic()
    with interrupts() as interrupted, replicas.Workers(team) if team.size > 1 else contextlib.nullcontext() as workers:
        while progress.step < args.train_steps and not interrupted:
            began, before = time.monotonic(), int(progress.step)
            steps = min(steps_each, -(-(args.train_steps - before) // team.size))
            rate = learning_rate(args.learning_rate, before / args.train_steps)
            order = replicas.Order(before, steps, rate)
            loss = together(workers, order, state, own_steps, interrupted) if workers else own_steps(order)
            if loss is None:
                break
            progress.step.assign(min(before + steps * team.size, args.train_steps))
            speed = steps * team.size * batch / (time.monotonic() - began)
            rmse = float(evaluate())
            if rmse < progress.best_rmse:
                best.set_weights(network.get_weights())
                progress.best_rmse.assign(rmse)
                progress.best_step.assign(progress.step)
            print(
                f"step {int(progress.step)}/{args.train_steps}  loss {loss:.2f}  eval RMSE {rmse:.2f}  "
                f"{speed:,.0f} examples/s",
                flush=True,
            )
            summaries.write(progress.step, *map(tf.constant, (loss, rmse, rate, speed)))
            trials.report(int(progress.step), float(progress.best_rmse))
            if not interrupted and (progress.step == args.train_steps or time.monotonic() - saved > SAVE_EVERY):
                manager.save(checkpoint_number=progress.step)
                summaries.flush()
                saved = time.monotonic()
        if interrupted:
            manager.save(checkpoint_number=progress.step)
            summaries.flush()
        elif workers:
            workers.end()

    if interrupted:
        print(f"Interrupted at step {int(progress.step)}, saved as {manager.latest_checkpoint}.")
        print("The same command goes on from there.", flush=True)
        sys.exit(128 + interrupted[0])
    if not progress.best_step:
        raise BadInput(
            f"training diverged, there is nothing to export: try a --learning_rate below {args.learning_rate}, "
            "and another --output_dir"
        )
    print(f"RMSE: {float(progress.best_rmse):.2f} (best, step {int(progress.best_step)})")
    print(f"Exported to {export(scales, best, args.output_dir)}", flush=True)


def together(workers, order, state, own_steps, interrupted):
    """A round of all replicas; returns the mean loss. None if it was interrupted, and all is as it was before."""
    before = state.read()
    workers.give(order, before)
    losses, states = [own_steps(order)], [state.read()]
    answers = workers.answers(interrupted)
    if answers is None:
        state.write(before)
        return None
    for answer, numbers in answers:
        losses.append(answer.rate)
        states.append(numbers)
    state.write(np.mean(states, axis=0, dtype=np.float64))
    return float(np.mean(losses))


def work(args, team, train_rides, train_fares):
    """Takes steps with the chief until it says that all are taken. What its orders do not bring is not kept."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has to be saved
    scales = Scales(args.features, train_rides, train_fares)
    network = build_network(args.hidden_units, scales.width)
    optimizer = Adam(network.trainable_variables)
    state, train = State(scales, optimizer), train_function(network, scales, optimizer, args.train_batch_size)
    train_rides, train_fares = train_rides[team.rank :: team.size], train_fares[team.rank :: team.size]
    print(f"{team.names[team.rank]}: {len(train_fares):,} rides to train on, with {team.addresses[0]}", flush=True)
    chief, following = replicas.Chief(team), None
    for order, numbers in chief.orders():
        state.write(numbers)
        if order.step != following:  # the first, or the chief has gone back to a checkpoint
            features, targets = scales.inputs(train_rides), scales.targets(train_fares)
            skipped = order.step // team.size * args.train_batch_size
            blocks = shuffled_blocks(features, targets, order.steps * args.train_batch_size, skipped, args.seed)
        loss = take(order, blocks, train, args.train_batch_size, team.size)
        following = order.step + order.steps * team.size
        chief.answer(order._replace(rate=loss), state.read())
    print("The chief says that it is over", flush=True)


def take(order, blocks, train, batch, replicas):
    """Takes the order's steps on the next block; returns their mean loss."""
    features, targets = next(blocks)
    rows = order.steps * batch
    return float(train(features[:rows], targets[:rows], order.rate, order.step // replicas))


class Scales(tf.Module):
    """Between what people say, degrees and dollars, and what a network likes: numbers about 0, one apart.

    Both scales come from the training rides, and are kept in the checkpoints and in the exported model. Nothing here
    learns, so for all training rides it is done once, before the first step.
    """

    def __init__(self, kind, train_rides, train_fares):
        super().__init__()
        self.columns = engineered if kind == "engineered" else tf.identity
        columns = self.columns(tf.constant(train_rides)).numpy()
        self.width = columns.shape[1] + 1
        self.mean, self.deviation = fixed(columns.mean(0, np.float64)), fixed(spread(columns))
        self.fare_mean, self.fare_deviation = fixed(train_fares.mean(0, np.float64)), fixed(spread(train_fares))

    def inputs(self, some_rides):
        """Rides [n, 5] -> what the network sees [n, width]: the columns of FEATURES, or those of `engineered`, and a 1.

        Each is cut off at five standard deviations, so that one odd ride cannot pull at every weight. What the first
        layer multiplies the 1 by is its bias, without the operations that a bias costs of its own.
        """
        scaled = tf.clip_by_value((self.columns(some_rides) - self.mean) / self.deviation, -5.0, 5.0)
        return tf.pad(scaled, [[0, 0], [0, 1]], constant_values=1.0)

    def targets(self, fares):
        """Dollars [n] -> what the network is to say [n, 1]."""
        return (fares[:, None] - self.fare_mean) / self.fare_deviation

    def dollars(self, guesses):
        """What the network says [n, 1] -> dollars [n, 1]."""
        return guesses * self.fare_deviation + self.fare_mean


def fixed(value):
    return tf.Variable(value, trainable=False, dtype=tf.float32)


def spread(values):
    return np.maximum(values.std(0, np.float64), 1e-6)  # a column may be the same for all


def engineered(some_rides):
    """The five columns, float32 [n, 5], and what a taximeter and its rules make of them, [n, 20]."""
    from_lon, from_lat, to_lon, to_lat, _ = tf.unstack(some_rides, axis=1)
    east, north = (to_lon - from_lon) * KM_EAST, (to_lat - from_lat) * KM_NORTH
    straight = tf.sqrt(east**2 + north**2)
    along = tf.abs(east * math.sin(AVENUES) + north * math.cos(AVENUES))
    across = tf.abs(east * math.cos(AVENUES) - north * math.sin(AVENUES))
    near = [  # 1 at the place itself, half of it after 1.4 km, next to nothing elsewhere
        tf.exp(-tf.sqrt(((lon - place_lon) * KM_EAST) ** 2 + ((lat - place_lat) * KM_NORTH) ** 2) / 2)
        for place_lon, place_lat in PLACES.values()
        for lon, lat in ((from_lon, from_lat), (to_lon, to_lat))
    ]
    made = [east, north, straight, along, across, along + across, tf.math.log(straight + 0.1), *near]
    return tf.concat([some_rides, tf.stack(made, axis=1)], axis=1)


def build_network(hidden_units, width):
    """A network from Scales.inputs, [n, width], to Scales.targets, [n, 1].

    ReLU is the quickest, and the first layer can spare a unit that dies of it. A layer of four cannot: if all of them
    die, every ride costs the same. A leaky one lives.
    """
    first, *others = hidden_units
    return keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(first, activation="relu", use_bias=False),
            *[keras.layers.Dense(units, activation="leaky_relu") for units in others],
            keras.layers.Dense(1),
        ]
    )


class Adam(tf.Module):
    """Adam (Kingma and Ba, 2014) by TensorFlow's own kernel: one operation a variable, where Keras takes a dozen."""

    def __init__(self, variables):
        super().__init__()
        self.variables_ = [variable.value for variable in variables]
        self.means = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self.variables_]
        self.squares = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in self.variables_]

    def apply(self, gradients, rate, step):
        """One step, the step-th from 1 on, against the gradients."""
        beta1, beta2, step = 0.9, 0.999, tf.cast(step, tf.float32)
        powers = {"beta1_power": beta1**step, "beta2_power": beta2**step}
        for variable, mean, square, gradient in zip(self.variables_, self.means, self.squares, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=mean.handle, v=square.handle, **powers,
                lr=rate, beta1=beta1, beta2=beta2, epsilon=1e-7, grad=gradient,
            )  # fmt: skip


class State(tf.Module):
    """All that the steps of a replica depend on, its rides apart, as one vector of float32."""

    def __init__(self, scales, optimizer):
        super().__init__()
        # The scales are the same for all, and so is their mean, in float64.
        self.parts = [*scales.variables, *optimizer.variables]

    def read(self):
        return self._joined().numpy()

    @tf.function
    def _joined(self):
        return tf.concat([tf.reshape(part, [-1]) for part in self.parts], 0)

    @tf.function(input_signature=[tf.TensorSpec([None])])
    def write(self, numbers):
        sizes = [part.shape.num_elements() for part in self.parts]
        for part, new in zip(self.parts, tf.split(numbers, sizes), strict=True):
            part.assign(tf.reshape(new, part.shape))


class Progress(tf.Module):
    """How far the training is, as a part of its checkpoints."""

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, trainable=False)
        self.best_step = tf.Variable(0, trainable=False)
        self.best_rmse = tf.Variable(float("inf"), trainable=False)


def open_checkpoints(checkpoint, progress, output_dir):
    """Returns the manager of the output folder's checkpoints, with the newest restored if there is one.

    Raises BadInput if the folder cannot be written, or if what it holds belongs to another network.
    """
    tf.get_logger().setLevel("ERROR")  # or it lists every value of a checkpoint that does not fit
    trial = f"{output_dir.rstrip('/')}/.writable"
    try:
        tf.io.gfile.makedirs(output_dir)
        with tf.io.gfile.GFile(trial, "w") as file:  # better known before the training than after
            file.write("1")
        tf.io.gfile.remove(trial)
    except tf.errors.OpError as error:
        raise BadInput(f"--output_dir {output_dir} cannot be written: {error.message}") from error
    manager = tf.train.CheckpointManager(checkpoint, output_dir, max_to_keep=2)
    if not manager.latest_checkpoint:
        return manager
    try:
        checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise BadInput(
            f"{manager.latest_checkpoint} holds another network: "
            "choose another --output_dir, or the --hidden_units and --features it has"
        ) from error
    print(f"Resuming from step {int(progress.step)}, {manager.latest_checkpoint}", flush=True)
    return manager


def shuffled_blocks(features, targets, rows, skipped, seed):
    """Yields (features [rows, width], targets [rows, 1]) for ever: epoch after epoch, each in an order of its own.

    The order comes from the seed and the epoch's number alone, and the first `skipped` rows are left out: so a training
    that goes on from a checkpoint sees the very batches that it would have seen. While TensorFlow trains on one block,
    a thread of tf.data gathers the next.
    """
    count = len(targets)
    first_epoch, begin = divmod(skipped, count)

    def epoch_of(number):
        order = tf.random.experimental.stateless_shuffle(tf.range(count), [seed, number])
        order = order[begin if number == first_epoch else 0 :]
        return tf.gather(features, order), tf.gather(targets, order)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # or it would wait for the thread that trains
    options.autotune.enabled = False  # there is nothing to tune, and its thread can hold up the end by twenty seconds
    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max).map(epoch_of)
    return iter(epochs.rebatch(rows).prefetch(1).with_options(options))


def learning_rate(first, done):
    """From `first` down to next to nothing along half a cosine; `done` is the share of the training, 0 to 1."""
    return first * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train_function(network, scales, optimizer, batch):
    """Returns train(features, targets, rate, before): one step for each `batch` rows, in order; their mean loss.

    The loss is in dollars squared; `before` is the number of steps that were taken before. The loop runs inside
    TensorFlow: no step comes back to Python.
    """
    variables = network.trainable_variables

    @tf.function
    def train(features, targets, rate, before):
        features = tf.reshape(features, [-1, batch, scales.width])
        targets = tf.reshape(targets, [-1, batch, 1])
        steps = len(targets)
        total = 0.0
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                # The mean of the squares: l2_loss is half their sum, in one operation.
                loss = 2 / batch * tf.nn.l2_loss(network(features[step]) - targets[step])
            optimizer.apply(tape.gradient(loss, variables), rate, before + step + 1)
            total += loss
        return total / tf.cast(steps, tf.float32) * scales.fare_deviation**2

    shapes = [None, scales.width], [None, 1], []
    numbers = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return train.get_concrete_function(*numbers, tf.TensorSpec([], tf.int32))  # so the first step need not trace it


def evaluate_function(network, scales, rides, fares):
    """Returns evaluate(): the root of the mean squared error in dollars, 8,192 rides at a time."""
    features, targets = scales.inputs(rides), scales.targets(fares)

    @tf.function
    def evaluate():
        total = 0.0
        for start in tf.range(0, len(targets), 8192):
            rows = slice(start, start + 8192)
            total += tf.reduce_sum(tf.square(network(features[rows]) - targets[rows]))
        return tf.sqrt(total / len(targets)) * scales.fare_deviation

    return evaluate.get_concrete_function()


class Summaries(tf.Module):
    """For TensorBoard: `train` and `eval` as two runs, so that both errors are curves of one chart."""

    def __init__(self, output_dir, network):
        super().__init__()
        self.layers = [layer for layer in network.layers if layer.weights]
        self.writers = []
        if tensorboard:
            # Written when a checkpoint is: on gs://, each flush writes the whole file anew.
            patience = {"max_queue": 10_000, "flush_millis": 3600_000}
            folders = [f"{output_dir.rstrip('/')}/{name}" for name in ("train", "eval")]
            self.writers = [tf.summary.create_file_writer(folder, **patience) for folder in folders]
        else:
            print("No summaries for TensorBoard: the tensorboard package is not installed", flush=True)

    @tf.function
    def write(self, step, loss, rmse, rate, speed):
        if not self.writers:
            return
        train, evaluation = self.writers
        with train.as_default(tf.cast(step, tf.int64)):
            tf.summary.scalar("rmse", tf.sqrt(loss), description="Root of the mean squared error, in dollars")
            tf.summary.scalar("loss", loss, description="Mean squared error of the last steps' batches")
            tf.summary.scalar("learning_rate", rate)
            tf.summary.scalar("examples_per_second", speed)
            for number, layer in enumerate(self.layers, 1):
                for weights in layer.weights:
                    tf.summary.histogram(f"layer_{number}/{weights.name}", weights.value)
        with evaluation.as_default(tf.cast(step, tf.int64)):
            tf.summary.scalar("rmse", rmse)
            tf.summary.scalar("loss", rmse**2)

    def flush(self):
        for writer in self.writers:
            writer.flush()


@contextlib.contextmanager
def interrupts():
    """Yields a list to which Ctrl-C and a polite kill add their number; a second one ends the program as always."""
    numbers = []

    def take(number, _frame):
        numbers.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def export(scales, network, output_dir):
    """Writes a SavedModel and returns its folder.

    Its one signature, serving_default, takes the five FEATURES, each float32 [n], and returns predictions, float32
    [n, 1], in dollars.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name) for name in FEATURES])
    def serve(*features):
        return {"predictions": scales.dollars(network(scales.inputs(tf.stack(features, axis=1))))}

    module = tf.Module()
    module.scales, module.network, module.serve = scales, network, serve
    folder = f"{output_dir.rstrip('/')}/export/exporter/{time.time():.0f}"
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})
    return folder
