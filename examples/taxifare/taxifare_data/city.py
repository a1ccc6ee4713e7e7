"""New York City as far as a taxi needs it: neighbourhoods and airports, water, and the way along the streets.

Positions are longitudes and latitudes in degrees, distances are miles; functions take and return NumPy arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

MILES_PER_DEGREE_NORTH = 69.0
MILES_PER_DEGREE_EAST = 52.3  # at 40.75 degrees north
GRID = math.radians(29)  # Manhattan's avenues run 29 degrees east of north; cars follow them


class Place(NamedTuple):
    name: str
    lon: float
    lat: float
    spread: float  # degrees, one standard deviation
    pickups: float  # relative weights: nearly the percents of all rides
    dropoffs: float  # relative weights among places equally far away; see destinations()
    area: str


PLACES = [
    Place("Financial District", -74.009, 40.708, 0.0035, 3.0, 4.4, "Manhattan"),
    Place("SoHo and Tribeca", -74.005, 40.721, 0.0040, 4.5, 3.9, "Manhattan"),
    Place("Lower East Side", -73.988, 40.717, 0.0035, 2.2, 2.2, "Manhattan"),
    Place("East Village", -73.986, 40.728, 0.0045, 7.0, 4.5, "Manhattan"),
    Place("West Village", -74.003, 40.733, 0.0035, 5.1, 3.8, "Manhattan"),
    Place("Chelsea", -73.997, 40.744, 0.0050, 11.2, 6.3, "Manhattan"),
    Place("Gramercy and Murray Hill", -73.980, 40.744, 0.0045, 8.2, 4.6, "Manhattan"),
    Place("Midtown", -73.982, 40.756, 0.0045, 10.0, 6.2, "Manhattan"),
    Place("Midtown East", -73.971, 40.756, 0.0045, 11.1, 6.5, "Manhattan"),
    Place("Hell's Kitchen", -73.990, 40.763, 0.0050, 9.1, 6.3, "Manhattan"),
    Place("Upper East Side", -73.957, 40.774, 0.0060, 12.0, 8.6, "Manhattan"),
    Place("Upper West Side", -73.977, 40.786, 0.0060, 7.0, 7.1, "Manhattan"),
    Place("East Harlem", -73.942, 40.795, 0.0050, 1.3, 1.9, "Manhattan"),
    Place("Harlem", -73.948, 40.811, 0.0070, 1.3, 3.7, "Manhattan"),
    Place("Washington Heights", -73.938, 40.843, 0.0080, 0.2, 2.2, "Manhattan"),
    Place("Williamsburg", -73.955, 40.714, 0.0060, 0.8, 2.4, "Brooklyn"),
    Place("Downtown Brooklyn", -73.987, 40.689, 0.0070, 0.9, 3.2, "Brooklyn"),
    Place("Park Slope", -73.978, 40.672, 0.0080, 0.25, 2.6, "Brooklyn"),
    Place("Bushwick and Crown Heights", -73.935, 40.685, 0.0120, 0.2, 2.7, "Brooklyn"),
    Place("Flatbush", -73.960, 40.635, 0.0150, 0.1, 1.4, "Brooklyn"),
    Place("Long Island City", -73.943, 40.748, 0.0060, 0.4, 0.7, "Queens"),
    Place("Astoria", -73.922, 40.764, 0.0070, 0.4, 1.8, "Queens"),
    Place("Jackson Heights", -73.885, 40.750, 0.0080, 0.15, 1.0, "Queens"),
    Place("Forest Hills", -73.847, 40.722, 0.0120, 0.1, 1.7, "Queens"),
    Place("The Bronx", -73.905, 40.845, 0.0150, 0.07, 1.4, "The Bronx"),
    Place("LaGuardia", -73.868, 40.771, 0.0030, 2.1, 5.6, "LaGuardia"),
    Place("JFK", -73.784, 40.645, 0.0035, 1.45, 2.9, "JFK"),
    Place("Newark", -74.178, 40.690, 0.0035, 0.0, 0.4, "Newark"),  # the city's taxis may not wait there
]
AIRPORTS = {"LaGuardia", "JFK", "Newark"}
LON, LAT, SPREAD = (np.array([getattr(place, field) for place in PLACES]) for field in ("lon", "lat", "spread"))

# The shores of each water, going round: coarse, a little inside the true ones, without islands.
# fmt: off
WATER = {
    "Hudson": [
        (-74.0170, 40.7030), (-74.0190, 40.7110), (-74.0145, 40.7220), (-74.0125, 40.7310), (-74.0105, 40.7430),
        (-74.0065, 40.7570), (-73.9975, 40.7710), (-73.9800, 40.7950), (-73.9635, 40.8180), (-73.9490, 40.8430),
        (-73.9300, 40.8800), (-73.9050, 40.9150), (-73.9180, 40.9150), (-73.9510, 40.8730), (-73.9660, 40.8450),
        (-73.9760, 40.8200), (-74.0060, 40.7830), (-74.0200, 40.7630), (-74.0250, 40.7400), (-74.0310, 40.7150),
        (-74.0450, 40.7000),
    ],
    "East River": [
        (-74.0130, 40.7000), (-74.0020, 40.7055), (-73.9910, 40.7095), (-73.9770, 40.7105), (-73.9715, 40.7200),
        (-73.9715, 40.7350), (-73.9690, 40.7450), (-73.9575, 40.7580), (-73.9420, 40.7740), (-73.9400, 40.7820),
        (-73.9310, 40.7900), (-73.9285, 40.8000), (-73.9140, 40.8020), (-73.8900, 40.8030), (-73.8500, 40.8080),
        (-73.8000, 40.8080), (-73.7950, 40.7960), (-73.8500, 40.7960), (-73.8580, 40.7860), (-73.8720, 40.7880),
        (-73.8970, 40.7870), (-73.9200, 40.7860), (-73.9370, 40.7720), (-73.9550, 40.7500), (-73.9630, 40.7380),
        (-73.9630, 40.7220), (-73.9700, 40.7110), (-73.9730, 40.7070), (-73.9850, 40.7055), (-73.9960, 40.7040),
        (-74.0040, 40.6930),
    ],
    "Flushing Bay": [
        (-73.8570, 40.7640), (-73.8480, 40.7640), (-73.8450, 40.7780), (-73.8500, 40.7840), (-73.8540, 40.7760),
    ],
    "Upper Bay": [
        (-74.0170, 40.7030), (-74.0100, 40.6990), (-74.0060, 40.6900), (-74.0220, 40.6760), (-74.0240, 40.6600),
        (-74.0350, 40.6450), (-74.0410, 40.6200), (-74.0360, 40.6080), (-74.0520, 40.6020), (-74.0720, 40.6300),
        (-74.0750, 40.6450), (-74.0700, 40.6600), (-74.0600, 40.6800), (-74.0450, 40.7000),
    ],
    "Jamaica Bay": [
        (-73.8900, 40.5850), (-73.9000, 40.6100), (-73.8900, 40.6220), (-73.8700, 40.6400), (-73.8500, 40.6500),
        (-73.8300, 40.6480), (-73.8220, 40.6400), (-73.8200, 40.6250), (-73.7900, 40.6170), (-73.7700, 40.6200),
        (-73.7650, 40.6100), (-73.8000, 40.5970), (-73.8500, 40.5830), (-73.8800, 40.5750),
    ],
    "Atlantic Ocean": [
        (-74.0500, 40.6000), (-74.0300, 40.6000), (-74.0100, 40.5920), (-74.0100, 40.5700), (-73.9300, 40.5720),
        (-73.8300, 40.5750), (-73.7400, 40.5880), (-73.6000, 40.5800), (-73.6000, 40.5000), (-74.1500, 40.5000),
    ],
}
# fmt: on


def somewhere_in(places: np.ndarray, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A longitude and a latitude in each of `places`, numbers of PLACES; drawn again where they fall on water."""
    lon, lat = np.empty(len(places)), np.empty(len(places))
    wet = np.arange(len(places))
    while len(wet):
        of = places[wet]
        lon[wet], lat[wet] = chance.normal(LON[of], SPREAD[of]), chance.normal(LAT[of], SPREAD[of])
        wet = wet[on_water(lon[wet], lat[wet])]
    return lon, lat


def on_water(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    return np.any([inside(shore, lon, lat) for shore in WATER.values()], axis=0)


def inside(outline: list[tuple[float, float]], lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Whether each point lies in a polygon: a line from it to the east then crosses the outline an odd number of
    times."""
    odd = np.zeros(lon.shape, bool)
    for (from_lon, from_lat), (to_lon, to_lat) in zip(outline, outline[1:] + outline[:1], strict=True):
        if from_lat != to_lat:
            beside = (from_lat > lat) != (to_lat > lat)
            crossing = from_lon + (to_lon - from_lon) * (lat - from_lat) / (to_lat - from_lat)
            odd ^= beside & (lon < crossing)
    return odd


def destinations() -> np.ndarray:
    """The chance of each place (column) as the end of a ride from each place (row).

    Most people take a taxi for a mile or two; some go wherever they have to, and nobody from an airport to itself.
    """
    miles = street_miles(LON - LON[:, None], LAT - LAT[:, None])
    weights = np.array([place.dropoffs for place in PLACES]) * (0.05 + np.exp(-miles / 1.3))
    weights[np.diag([place.area in AIRPORTS for place in PLACES])] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


def street_miles(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """Miles along a grid of streets turned by 29 degrees, for a way given in degrees."""
    x, y = east * MILES_PER_DEGREE_EAST, north * MILES_PER_DEGREE_NORTH
    along = np.abs(x * math.sin(GRID) + y * math.cos(GRID))
    across = np.abs(x * math.cos(GRID) - y * math.sin(GRID))
    return along + across
