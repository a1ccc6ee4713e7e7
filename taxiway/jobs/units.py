"""Consumed ML units: what a job's machines would have been charged for."""

from __future__ import annotations

HOUR = 3600.0
# Training units of an hour, by scale tier: the service's price list, https://cloud.google.com/ml-engine/docs/pricing
# (its last one). "Consumed ML units" are those with the job's duration factored in; times 0.49 they were US dollars.
UNITS = {
    "BASIC": 0.3878,
    "STANDARD_1": 4.0571,
    "PREMIUM_1": 33.7829,
    "BASIC_GPU": 1.6939,
    "BASIC_TPU": 9.5714,
}


def consumed(tier: str | None, *, started: float | None, ended: float | None) -> float | None:
    """Hours times the tier's units, to a hundredth as the service told them; None for what never ran or has no price.

    >>> consumed("BASIC", started=0.0, ended=7200.0)
    0.78
    """
    if started is None or ended is None or tier not in UNITS:
        return None
    return round(max(0.0, ended - started) / HOUR * UNITS[tier], 2)  # a clock that was set back costs nothing
