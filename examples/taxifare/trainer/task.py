"""The command line of the taxi-fare trainer: python -m trainer.task --help."""

import argparse
import importlib
import sys

from trainer import BadInput, quiet, replicas, trials


def main(argv=None):
    args = arguments(argv)
    try:
        team = replicas.team()
        if team.idle:
            print(f"{team.idle} has nothing to do: the chief and the workers train, and the chief evaluates")
            return
        with quiet():  # what needs no TensorFlow is told before it is imported, which takes seconds
            model = importlib.import_module("trainer.model")
        model.train_and_evaluate(args, team)
    except BadInput as error:
        sys.exit(f"trainer.task: error: {error}")


def arguments(argv=None):
    """The parsed arguments; an unknown or malformed one ends the program with argparse's message and exit code 2."""
    parser = argparse.ArgumentParser(prog="trainer.task", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--train_data_paths", type=patterns, nargs="+", required=True, help="CSV files: local or gs://, * and commas")
    add("--eval_data_paths", type=patterns, nargs="+", required=True, help="CSV files that are only evaluated on")
    add(
        "--output_dir",
        required=True,
        help="folder for checkpoints and exports, local or gs://; a trial's has its number",
    )
    add("--train_batch_size", type=positive, default=512, help="rides in one training step (%(default)s)")
    add("--train_steps", type=positive, default=3000, help="train until this step (%(default)s)")
    add("--eval_steps", type=positive, help="evaluate on at most so many batches (default: every ride)")
    add("--hidden_units", type=sizes, nargs="+", default=[[128, 32, 4]], help="sizes of the hidden layers (128 32 4)")
    add(
        "--features",
        choices=["raw", "engineered"],
        default="raw",
        help="the five columns, or more of them (%(default)s)",
    )
    add("--learning_rate", type=rate, default=0.001, help="Adam's (%(default)s)")
    add("--seed", type=seed, default=1, help="of the first weights and the shuffling (%(default)s)")
    add("--job-dir", help="given by the service; this trainer writes to --output_dir alone")
    args = parser.parse_args(argv)
    args.output_dir = trials.folder(args.output_dir)
    for name in ("train_data_paths", "eval_data_paths", "hidden_units"):
        setattr(args, name, [item for word in getattr(args, name) for item in word])  # "128 32 4" is 128 32 4
    return args


def patterns(text):
    paths = [path.strip() for path in text.split(",") if path.strip()]
    if not paths:
        raise argparse.ArgumentTypeError("it is empty: name a file, or a pattern such as gs://bucket/taxi-train*.csv")
    return paths


def sizes(text):
    return [positive(word) for word in text.replace(",", " ").split()]


def positive(text):
    if whole(text) == 0:
        raise argparse.ArgumentTypeError("it must be above 0")
    return int(text)


def whole(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def seed(text):
    if whole(text) >= 2**32:
        raise argparse.ArgumentTypeError("it must be below 2**32")
    return int(text)


def rate(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


if __name__ == "__main__":
    main()
