"""Invents rides of 2015 between the places of New York City, and prices them by the meter's rules.

There is something to learn: distance, the flat fare of JFK, Newark's surcharge. Traffic, the hour and the tolls are not
in the columns, so there is also something that no model can know. The weights of the places are such that fares,
distances and airports come out as in the city's trip records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from taxifare_data import chunks, city, files, meter, progress

AREAS = np.array([place.area for place in city.PLACES])
PICKUPS = np.array([place.pickups for place in city.PLACES])
DESTINATIONS = city.destinations().cumsum(axis=1)  # a row for each start, growing to 1
PASSENGERS = {1: 69, 2: 15, 5: 7, 3: 4, 6: 3, 4: 2}  # number -> share of rides in percent


class Rides(NamedTuple):
    """An array for each column, with one entry for a ride: cents, degrees, a count."""

    cents: np.ndarray
    from_lon: np.ndarray
    from_lat: np.ndarray
    to_lon: np.ndarray
    to_lat: np.ndarray
    passengers: np.ndarray


def make(rows: int, seed: int, folder: Path, bad_share: float) -> dict[Path, int]:
    """Writes taxi-train.csv with `rows` rides and taxi-valid.csv with a fifth as many; returns the rows of each."""
    counts = {folder / "taxi-train.csv": rows, folder / "taxi-valid.csv": max(1, rows // 5)}
    with ExitStack() as stack:  # both files get their names when both are complete
        for stream, (path, count) in enumerate(counts.items()):
            file = stack.enter_context(files.whole(path))
            with progress.Progress(f"Making {path.name}", count) as bar:
                for done, text in lines(count, bad_share, seed, stream):
                    file.writelines(text)
                    bar(done)
    return counts


def lines(rows: int, bad_share: float, seed: int, stream: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (rows so far, the latest rows), their keys counting from 0.

    round(rows * bad_share) of them, at random places, are spoiled so that no reader can take them for a ride.
    """
    for first, count, chance in chunks.each(rows, seed, stream):
        text = written(draw(chance), first)[:count]
        last = first + count
        bad = round(last * bad_share) - round(first * bad_share)
        for row in chance.choice(count, bad, replace=False):
            text[row] = spoiled(text[row], chance)
        yield last, text


def draw(chance: np.random.Generator) -> Rides:
    """As many rides as a chunk has."""
    start = chance.choice(len(PICKUPS), chunks.SIZE, p=PICKUPS / PICKUPS.sum())
    end = (DESTINATIONS[start, :-1] < chance.random((chunks.SIZE, 1))).sum(axis=1)
    from_lon, from_lat = city.somewhere_in(start, chance)
    to_lon, to_lat = city.somewhere_in(end, chance)
    miles = city.street_miles(to_lon - from_lon, to_lat - from_lat) * detour(chance)
    hour, weekday = hours(chance), chance.integers(7, size=chunks.SIZE)
    areas = AREAS[start], AREAS[end]
    cents = meter.fares(miles, slow_minutes(miles, hour, weekday, chance), hour, weekday, *areas)
    cents += meter.tolls(*areas, chance)
    passengers = chance.choice(list(PASSENGERS), chunks.SIZE, p=np.array(list(PASSENGERS.values())) / 100)
    return Rides(cents, from_lon, from_lat, to_lon, to_lat, passengers)


def detour(chance: np.random.Generator) -> np.ndarray:
    """Miles driven for each mile on the grid: one-way streets, and now and then a stop that is out of the way."""
    straight = chance.random(chunks.SIZE) < 0.96
    return np.where(straight, chance.uniform(1.0, 1.15, chunks.SIZE), chance.uniform(1.2, 3.0, chunks.SIZE))


def hours(chance: np.random.Generator) -> np.ndarray:
    """Hours of the day, 0 to 23: taxis are busiest in the evening and emptiest before dawn."""
    return chance.triangular(6.0, 20.0, 30.0, chunks.SIZE).astype(int) % 24


def slow_minutes(miles: np.ndarray, hour: np.ndarray, weekday: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Minutes below 12 mph: lights and jams, mostly on the first miles, which are in town."""
    rush = (weekday < 5) & (((hour >= 7) & (hour < 10)) | ((hour >= 16) & (hour < 20)))
    busy = np.where(rush, 1.5, np.where(hour < 6, 0.5, 1.0))
    usual = 0.5 + 0.6 * np.minimum(miles, 4.0) + 0.2 * np.maximum(miles - 4.0, 0.0)
    return busy * usual * chance.lognormal(-0.25, 0.7, chunks.SIZE)


def written(rides: Rides, first: int) -> list[str]:
    """The rows of a file, such as 12.5,-73.987625,40.750617,-73.971163,40.785180,1,0."""
    dollars = (rides.cents / 100).tolist()
    columns = [column.tolist() for column in rides[1:]]
    return [files.ROW % row for row in zip(dollars, *columns, range(first, first + len(dollars)), strict=True)]


def spoiled(line: str, chance: np.random.Generator) -> str:
    """A row as it arrives from a broken export, a spreadsheet of another country, or two files put together."""
    fields = line.rstrip("\n").split(",")
    ways = [
        fields[:4],  # cut off
        ["n/a", *fields[1:]],  # a word for a number
        [*fields[:1], "nan", *fields[2:]],  # a position that was never known
        [line.rstrip("\n").replace(".", ",", 1)],  # a decimal comma: one column more
        files.COLUMNS,  # a header in the middle
    ]
    return ",".join(ways[chance.integers(len(ways))]) + "\n"
