"""Who goes first, how long a job may wait and run, and the sentence that ends one that is over its time.

The rules are those of `Scheduling` in the API's reference: waiting is all until a job first runs, running is counted
from there, and who is over the one or the other is cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator

from taxiway.schemas import Scheduling, TrainingInput

LONGEST_RUN_S = 604_800.0  # seven days, unless the job says otherwise
LEAST_WAIT_S = 1800.0
HIGHEST = 1000
FIELD = "trainingInput.scheduling"


def faults(told: Scheduling) -> Iterator[tuple[str, str]]:
    """(field, sentence) of everything that cannot be promised."""
    if told.priority is not None and not 0 <= told.priority <= HIGHEST:
        yield f"{FIELD}.priority", f"must be from 0 to {HIGHEST} (the higher starts first); it is {told.priority}."
    if told.max_wait_time is not None and told.max_wait_time < LEAST_WAIT_S:
        told_s, least = _seconds(told.max_wait_time), _seconds(LEAST_WAIT_S)
        yield f"{FIELD}.maxWaitTime", f"must be {least} or more; it is {told_s}. Leave it out to wait without a limit."
    if told.max_running_time is not None and told.max_running_time <= 0:
        sentence = f"must be more than 0s, such as 7200s; it is {_seconds(told.max_running_time)}."
        yield f"{FIELD}.maxRunningTime", sentence


def priority(told: TrainingInput) -> int:
    return (told.scheduling.priority if told.scheduling else None) or 0


def wait_until(told: TrainingInput, *, created: float) -> float | None:
    """When the job is cancelled if it has not run by then; None: never."""
    longest = told.scheduling.max_wait_time if told.scheduling else None
    return None if longest is None else created + longest


def over(told: TrainingInput, *, created: float, started: float | None, now: float) -> str:
    """Why the job must end now; "" for one that may go on."""
    if started is None:
        limit = wait_until(told, created=created)
        if limit is None or now <= limit:
            return ""
        return f"The job waited longer than its maxWaitTime of {_seconds(limit - created)} and was cancelled."
    longest = (told.scheduling.max_running_time if told.scheduling else None) or LONGEST_RUN_S
    if now <= started + longest:
        return ""
    return f"The job ran longer than its maxRunningTime of {_seconds(longest)} and was cancelled."


def _seconds(value: float) -> str:
    """A duration as its sender wrote it: 7200.0 -> 7200s."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "s"
