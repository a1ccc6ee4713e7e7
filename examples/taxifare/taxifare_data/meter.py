"""What a ride costs: the meter's rules of 2015 (NYC Taxi & Limousine Commission, rate of fare).

Money is in whole cents; every argument is an array with one entry for a ride. Tax and surcharges are in the price; the
improvement surcharge of 30 cents, the same for every ride, is left out.
"""

from __future__ import annotations

import numpy as np

# A unit is a fifth of a mile at 12 mph or more, or a minute in slower traffic.
FLAG_DROP, UNIT, TAX, NIGHT, PEAK = 250, 50, 50, 50, 100
JFK_FLAT = 5200  # between JFK and Manhattan, whatever the way
NEWARK_SURCHARGE = 1750
TOLL, NEWARK_TOLL = 554, 1175  # a bridge or tunnel of the city with E-ZPass; those to New Jersey and back


def fares(
    miles: np.ndarray, slow: np.ndarray, hour: np.ndarray, weekday: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Cents without tolls. `slow` is in minutes, `hour` 0 to 23, weekday 0 is Monday, `start` and `end` are areas."""
    cents = metered(miles, slow, hour, weekday)
    cents = np.where(between("JFK", "Manhattan", start, end), JFK_FLAT + TAX, cents)
    return cents + NEWARK_SURCHARGE * (end == "Newark")


def metered(miles: np.ndarray, slow: np.ndarray, hour: np.ndarray, weekday: np.ndarray) -> np.ndarray:
    """What the meter shows, in cents, with tax and the surcharges of night and rush hour."""
    units = np.floor(5 * miles).astype(int) + np.floor(slow).astype(int)
    night = (hour >= 20) | (hour < 6)
    peak = (hour >= 16) & (hour < 20) & (weekday < 5)
    return FLAG_DROP + UNIT * units + TAX + NIGHT * night + PEAK * peak


def tolls(start: np.ndarray, end: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Cents. Between Manhattan and Queens a driver takes the tunnel or a bridge, with a toll or without."""
    paid = np.zeros(len(start))
    paid[between("Queens", "Manhattan", start, end)] = 0.1
    paid[between("LaGuardia", "Manhattan", start, end) | between("JFK", "Manhattan", start, end)] = 0.45
    return TOLL * (chance.random(len(start)) < paid) + NEWARK_TOLL * (end == "Newark")


def between(one: str, other: str, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return ((start == one) & (end == other)) | ((start == other) & (end == one))
