"""Makes honest synthetic taxi rides for the taxi-fare lab, where the real ones are not at hand.

    python taxifare_data.py --rows 10000 --seed 1 --output DIR

writes DIR/taxi-train.csv with that many rides, and DIR/taxi-valid.csv with a fifth as many. Rides go between real
neighbourhoods and airports of New York City; they are priced by the meter's rules of 2015 (NYC Taxi & Limousine
Commission, rate of fare), so there is something to learn: distance, the flat fare of JFK, bridge tolls. Traffic, the
hour and the tolls are not in the columns, so there is also something that no model can know. Standard library only;
the same seed gives the same bytes.
"""

import argparse
import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MILES_PER_DEGREE_NORTH = 69.0
MILES_PER_DEGREE_EAST = 52.3  # at 40.75 degrees north
GRID = math.radians(29)  # Manhattan's avenues run 29 degrees east of north; cars follow them


class Place(NamedTuple):
    name: str
    lon: float
    lat: float
    spread: float  # degrees, one standard deviation
    pickups: float  # relative weights
    dropoffs: float
    area: str


PLACES = [
    Place("Midtown", -73.982, 40.756, 0.008, 30, 27, "Manhattan"),
    Place("Chelsea", -73.998, 40.744, 0.005, 12, 10, "Manhattan"),
    Place("East Village", -73.986, 40.728, 0.005, 12, 10, "Manhattan"),
    Place("Financial District", -74.009, 40.708, 0.004, 7, 7, "Manhattan"),
    Place("Upper East Side", -73.957, 40.774, 0.006, 15, 14, "Manhattan"),
    Place("Upper West Side", -73.976, 40.786, 0.006, 11, 11, "Manhattan"),
    Place("Harlem", -73.945, 40.809, 0.006, 2, 4, "Manhattan"),
    Place("Williamsburg", -73.957, 40.714, 0.006, 2, 4, "Brooklyn"),
    Place("Downtown Brooklyn", -73.986, 40.690, 0.007, 2, 4, "Brooklyn"),
    Place("Astoria", -73.920, 40.765, 0.008, 1, 3, "Queens"),
    Place("Forest Hills", -73.845, 40.720, 0.010, 0.3, 1.5, "Queens"),
    Place("LaGuardia", -73.873, 40.774, 0.002, 2, 6, "LaGuardia"),
    Place("JFK", -73.782, 40.645, 0.002, 1.5, 20, "JFK"),
]
PASSENGERS = {1: 71, 2: 14, 5: 6, 3: 4, 6: 3, 4: 2}  # number -> share of rides in percent

# Cents. A unit is a fifth of a mile at 12 mph or more, or a minute in slower traffic.
FLAG_DROP, UNIT, TAX, NIGHT, PEAK, JFK_FLAT, TOLL = 250, 50, 50, 50, 100, 5200, 554


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=whole, default=10_000, help="rides in taxi-train.csv (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same files (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files; made if need be")
    parser.add_argument("--bad-rows", type=share, default=0.0, help="share of rows to spoil, 0 to 1 (%(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    chance = random.Random(args.seed)
    for name, rows in (("taxi-train.csv", args.rows), ("taxi-valid.csv", max(1, args.rows // 5))):
        path = args.output / name
        path.write_text("".join(f"{line}\n" for line in lines(rows, args.bad_rows, chance)), encoding="utf-8")
        print(f"{path}: {rows:,} rides")


def lines(rows: int, bad_share: float, chance: random.Random) -> Iterator[str]:
    """Rows of fare_amount,pickuplon,pickuplat,dropofflon,dropofflat,passengers,key, the key counting from 0.

    round(rows * bad_share) of them, at random places, are spoiled so that no reader can take them for a ride.
    """
    bad = set(chance.sample(range(rows), round(rows * bad_share)))
    for key in range(rows):
        line = f"{ride(chance)},{key}"
        yield spoiled(line, chance) if key in bad else line


def ride(chance: random.Random) -> str:
    """One ride without its key, such as 12.5,-73.987625,40.750617,-73.971163,40.78518,1."""
    start = chance.choices(PLACES, [place.pickups for place in PLACES])[0]
    end = chance.choices(PLACES, destinations(start))[0]
    from_lon, from_lat = somewhere_in(start, chance)
    to_lon, to_lat = somewhere_in(end, chance)
    miles = street_miles(to_lon - from_lon, to_lat - from_lat) * detour(chance)
    hour, weekday = hour_of_day(chance), chance.randrange(7)
    cents = metered(miles, slow_minutes(miles, hour, weekday, chance), hour, weekday)
    if {start.area, end.area} == {"JFK", "Manhattan"}:
        cents = JFK_FLAT + TAX
    if chance.random() < toll_chance(start.area, end.area):
        cents += TOLL
    passengers = chance.choices(list(PASSENGERS), list(PASSENGERS.values()))[0]
    return f"{cents / 100},{from_lon:.6f},{from_lat:.6f},{to_lon:.6f},{to_lat:.6f},{passengers}"


@functools.cache
def destinations(start: Place) -> list[float]:
    """The weight of each place as the end of a ride from `start`: people mostly take a taxi for a mile or two."""
    return [
        place.dropoffs * math.exp(-street_miles(place.lon - start.lon, place.lat - start.lat) / 3) for place in PLACES
    ]


def metered(miles: float, slow: float, hour: int, weekday: int) -> int:
    """What the meter shows, in cents, tax and surcharges included; weekday 0 is Monday, `slow` is in minutes."""
    cents = FLAG_DROP + UNIT * (int(miles * 5) + int(slow)) + TAX
    if hour >= 20 or hour < 6:
        cents += NIGHT
    elif hour >= 16 and weekday < 5:
        cents += PEAK
    return cents


def toll_chance(start: str, end: str) -> float:
    """Between Manhattan and Queens a driver takes the tunnel or a bridge, with a toll or without."""
    areas = {start, end}
    if "Manhattan" not in areas:
        return 0.0
    if "LaGuardia" in areas or "JFK" in areas:
        return 0.45
    return 0.1 if "Queens" in areas else 0.0


def street_miles(east: float, north: float) -> float:
    """Miles along a grid of streets turned by 29 degrees, for a way given in degrees."""
    x, y = east * MILES_PER_DEGREE_EAST, north * MILES_PER_DEGREE_NORTH
    along = abs(x * math.sin(GRID) + y * math.cos(GRID))
    across = abs(x * math.cos(GRID) - y * math.sin(GRID))
    return along + across


def detour(chance: random.Random) -> float:
    """Miles driven for each mile on the grid: one-way streets, and now and then a stop that is out of the way."""
    return chance.uniform(1.0, 1.15) if chance.random() < 0.96 else chance.uniform(1.2, 3.0)


def slow_minutes(miles: float, hour: int, weekday: int, chance: random.Random) -> float:
    """Minutes below 12 mph: lights and jams, mostly on the first miles, which are in town."""
    busy = 1.5 if weekday < 5 and (7 <= hour < 10 or 16 <= hour < 20) else 0.5 if hour < 6 else 1.0
    return busy * (0.3 + 0.8 * min(miles, 4.0) + 0.3 * max(miles - 4.0, 0.0)) * chance.lognormvariate(-0.25, 0.7)


def hour_of_day(chance: random.Random) -> int:
    """Taxis are busiest in the evening and emptiest before dawn."""
    return int(chance.triangular(6.0, 30.0, 20.0)) % 24


def somewhere_in(place: Place, chance: random.Random) -> tuple[float, float]:
    return chance.gauss(place.lon, place.spread), chance.gauss(place.lat, place.spread)


def spoiled(line: str, chance: random.Random) -> str:
    fields = line.split(",")
    return chance.choice([",".join(fields[:4]), ",".join(["n/a", *fields[1:]]), line.replace("-73.", "-73,", 1)])


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
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
