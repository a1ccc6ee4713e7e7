"""python -m taxifare_data make | enlarge | download: files of taxi rides for the taxi-fare lab."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from taxifare_data import copies, files, records, rides

FROM_TLC = "https://d37ci6vzurychx.cloudfront.net/trip-data/yellow_tripdata_2010-01.parquet"


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except files.BadInput as error:
        sys.exit(f"taxifare_data: error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ntaxifare_data: stopped; no file was left half-written")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="taxifare_data", description="Files of taxi rides for the taxi-fare lab.")
    commands = top.add_subparsers(required=True, metavar="make | enlarge | download")

    make = commands.add_parser("make", help="invent rides of any number", allow_abbrev=False)
    make.add_argument("--rows", type=positive, default=10_000, help="rides in taxi-train.csv (%(default)s)")
    make.add_argument("--bad-rows", type=share, default=0.0, help="share of rows to spoil, 0 to 1 (%(default)s)")
    make.add_argument("--output", type=Path, required=True, help="folder for the two files; made if need be")
    make.set_defaults(run=run_make)

    enlarge = commands.add_parser("enlarge", help="make a large file of a small one", allow_abbrev=False)
    enlarge.add_argument("--from", dest="source", required=True, help="a taxi-train.csv: a path, or a URL")
    enlarge.add_argument("--rows", type=positive, default=1_000_000, help="rides to write (%(default)s)")
    enlarge.add_argument("--output", type=Path, required=True, help="the file to write")
    enlarge.set_defaults(run=run_enlarge)

    download = commands.add_parser(
        "download", help="take rides from the city's public yellow trip records", allow_abbrev=False
    )
    download.add_argument(
        "--from", dest="source", required=True, help=f"CSV or Parquet: a path or a URL, with * for many ({FROM_TLC})"
    )
    download.add_argument("--rows", type=positive, help="stop when taxi-train.csv has as many rides (default: all)")
    download.add_argument("--every", type=positive, default=1, help="take one pickup time in so many (%(default)s)")
    download.add_argument("--output", type=Path, required=True, help="folder for the two files; made if need be")
    download.set_defaults(run=run_download)

    for command in (make, enlarge, download):
        command.add_argument("--seed", type=whole, default=1, help="the same seed gives the same files (%(default)s)")
    return top


def run_make(args: argparse.Namespace) -> None:
    tell(rides.make(args.rows, args.seed, args.output, args.bad_rows))


def run_enlarge(args: argparse.Namespace) -> None:
    folder, slash, name = args.source.rpartition("/")
    tell(copies.enlarge(args.source, args.rows, args.seed, args.output), f"{folder}{slash}{beside(name)}")


def run_download(args: argparse.Namespace) -> None:
    tell(records.download(args.source, args.rows, args.every, args.seed, args.output))


def beside(name: str) -> str:
    """The file to evaluate on that usually lies beside a file to train on."""
    return name.replace("train", "valid") if "train" in name else "taxi-valid.csv"


def tell(written: dict[Path, int], held_out: str | None = None) -> None:
    """Says what was written, and the command that trains on it; `held_out` is evaluated on if only one file was."""
    for path, rows in written.items():
        print(f"{path}: {rows:,} rows")
    train, valid = [*map(str, written), held_out][:2]
    paths = ["--train_data_paths", train, "--eval_data_paths", str(valid)]
    print("Next:", shlex.join(["python", "-m", "trainer.task", *paths, "--output_dir", "taxi_trained"]))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


if __name__ == "__main__":
    main()
