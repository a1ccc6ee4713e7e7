"""Consumed ML units: what a job's machines would have been charged for."""

from __future__ import annotations

HOUR = 3600.0


def consumed(an_hour: float, *, started: float | None, ended: float | None) -> float | None:
    """Hours times the units of all machines that were asked for, whatever ran in their place; None for what never ran.

    To a hundredth, as the service told them: "consumed ML units" are its price list's units with the job's duration
    factored in (https://cloud.google.com/ml-engine/docs/pricing).

    >>> consumed(0.3878, started=0.0, ended=7200.0)
    0.78
    """
    if started is None or ended is None:
        return None
    return round(max(0.0, ended - started) / HOUR * an_hour, 2)  # a clock that was set back costs nothing
