"""Takes rides from the public yellow trip records of the NYC Taxi & Limousine Commission, with the lab's filter.

They have coordinates from January 2009 to June 2016; as the city publishes them today (Parquet, one file a month), only
in 2009 and 2010. Columns were renamed twice on the way. A file is read a batch at a time, CSV or Parquet.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from taxifare_data import files, progress, sources

try:
    from pyarrow import parquet
except ImportError:
    parquet = None

SPELLINGS = {  # what is needed -> its names in 2009, 2010 to 2014, 2015 and 2016; in lower case, without spaces around
    "time": ("trip_pickup_datetime", "pickup_datetime", "tpep_pickup_datetime"),
    "from_lon": ("start_lon", "pickup_longitude"),
    "from_lat": ("start_lat", "pickup_latitude"),
    "to_lon": ("end_lon", "dropoff_longitude"),
    "to_lat": ("end_lat", "dropoff_latitude"),
    "passengers": ("passenger_count",),
    "miles": ("trip_distance",),
    "fare": ("fare_amt", "fare_amount"),
    "tolls": ("tolls_amt", "tolls_amount"),
}
TRAIN, VALID = 0, 1
VALID_SHARE = 6  # one pickup time in so many goes to taxi-valid.csv
BATCH = 65_536  # records of a Parquet file in memory at once

Values = Sequence[Any]  # text from CSV; numbers, times and None from Parquet


class Record(NamedTuple):
    """What the lab wants of one ride; the pickup's time in New York, degrees, miles, US dollars."""

    time: str
    from_lon: float
    from_lat: float
    to_lon: float
    to_lat: float
    passengers: float
    miles: float
    fare: float
    tolls: float


def download(source: str, rows: int | None, every: int, seed: int, folder: Path) -> dict[Path, int]:
    """Writes taxi-train.csv and taxi-valid.csv, about five to one; returns the rows of each.

    A hash of the pickup time and the seed chooses one time in `every`, and the file that its rides go to: always the
    same rides, and none in both files. With `rows`, reading stops when taxi-train.csv has that many. Raises BadInput if
    the source cannot be read, has no coordinates, or has no ride for one of the two files.
    """
    paths = [folder / "taxi-train.csv", folder / "taxi-valid.csv"]
    counts, seen, corrupt = [0, 0], 0, 0
    with ExitStack() as stack:
        targets = [stack.enter_context(files.whole(path)) for path in paths]
        with progress.Progress(f"Reading {source}") as bar:
            for seen, values in enumerate(records(source), 1):
                record = parse(values)
                corrupt += record is None
                if record and wanted(record) and (side := choose(record.time, every, seed)) is not None:
                    targets[side].write(written(record))
                    counts[side] += 1
                    if counts[TRAIN] == rows:
                        break
                bar(seen)
        if corrupt:
            print(f"WARNING: left out {corrupt:,} corrupt records of {seen:,} in {source}", file=sys.stderr)
        if not all(counts):
            raise files.BadInput(
                f"{source} gives {counts[TRAIN]:,} rides to train on and {counts[VALID]:,} to evaluate on, of "
                f"{seen:,} records: both files need some; take another source, a smaller --every or a larger --rows"
            )
    return dict(zip(paths, counts, strict=True))


@sources.guarded
def records(source: str) -> Iterator[Values | None]:
    """The values of SPELLINGS for each record of every file of the source; None for one with more columns, or fewer."""
    for name, stream in sources.streams(source):
        read = parquet_records if stream.peek(4)[:4] == b"PAR1" else csv_records
        yield from read(name, stream)


def csv_records(name: str, stream: io.BufferedReader) -> Iterator[Values | None]:
    rows = csv.reader(line.replace("\0", "") for line in sources.text(stream))
    header = next(rows, [])
    columns = find_columns(header, name)
    for row in rows:
        if row:  # some years have an empty line after the header
            yield [row[column] for column in columns] if len(row) == len(header) else None


def parquet_records(name: str, stream: io.BufferedReader) -> Iterator[Values]:
    if parquet is None:
        raise files.BadInput(f"cannot read {name}: Parquet needs pyarrow: pip install fsspec pyarrow")
    file = parquet.ParquetFile(stream)
    header = file.schema_arrow.names
    columns = [header[column] for column in find_columns(header, name)]
    for batch in file.iter_batches(BATCH, columns=columns):
        yield from zip(*[batch.column(column).to_pylist() for column in columns], strict=True)


def find_columns(header: Sequence[str], name: str) -> list[int]:
    """Where the values of SPELLINGS stand. Raises BadInput that names what is missing."""
    names = [column.strip().lower() for column in header]
    columns = []
    for spellings in SPELLINGS.values():
        found = [names.index(spelling) for spelling in spellings if spelling in names]
        if not found and "pulocationid" in names:
            raise files.BadInput(
                f"{name} has zones (PULocationID) in place of coordinates: take a file of January 2009 to June 2016; "
                "of the Parquet files that the city publishes today, only those of 2009 and 2010 have coordinates"
            )
        if not found:
            raise files.BadInput(
                f"{name} is no file of the yellow trip records: it has no column {' or '.join(spellings)}"
            )
        columns += found[:1]
    return columns


def parse(values: Values | None) -> Record | None:
    """None if the record is corrupt."""
    if values is None:
        return None
    time, known = str(values[0] or "").strip(), files.numbers(values[1:])
    return Record(time, *known) if time and "," not in time and known else None


def wanted(record: Record) -> bool:
    """The lab's filter, from Google's public repository training-data-analyst."""
    return (
        record.miles > 0
        and record.fare >= 2.5
        and -78 < record.from_lon < -70
        and -78 < record.to_lon < -70
        and 37 < record.from_lat < 45
        and 37 < record.to_lat < 45
        and record.passengers > 0
    )


def choose(time: str, every: int, seed: int) -> int | None:
    """TRAIN, VALID or, for all times but one in `every`, None: by a hash, as good as a draw and always the same."""
    drawn = int.from_bytes(hashlib.blake2b(f"{seed} {time}".encode(), digest_size=8).digest(), "big")
    turn, rest = divmod(drawn, every)
    if rest:
        return None
    return VALID if turn % VALID_SHARE == 0 else TRAIN


def written(record: Record) -> str:
    """A row of the lab; its key is the pickup time and the coordinates, by which the record can be found again."""
    _, *positions, passengers, _, fare, tolls = record
    key = " ".join([record.time, *(f"{position:.6f}" for position in positions)])
    return files.ROW % (round(fare + tolls, 2), *positions, f"{passengers:g}", key)
