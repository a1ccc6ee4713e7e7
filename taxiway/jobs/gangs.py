"""The replicas of one job together: what is to be done next, by the newest attempt of each. Pure.

One replica is a gang of one. When its primary has ended well the job has, whatever the others still do: parameter
servers never end by themselves, and workers need not. A replica that was lost is started again under its name while the
others go on, as they can where parameters are served. Where each step is everybody's they cannot: a program that loses
a peer ends with an error of its own, which therefore counts as a loss within a while. Then all start again together,
as they do behind a primary that was lost, and that is one restart: one by one they were seen to meet what is left of
the last try, and to wait for it without end (TensorFlow 2.21: a worker for its chief, a chief for its old servers).
Each time they have new addresses; so they do where one of these was taken by another program of the host.
Source: https://cloud.google.com/ai-platform/training/docs/distributed-training-details
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taxiway import plan
from taxiway.compute.attempts import Attempt, Turn
from taxiway.jobs import restarts

GRACE_S = 5.0  # for workers and evaluators to end by themselves behind their primary
SHAKEN_S = 300.0  # after a loss, in which an error of another replica is taken for its consequence
LATE_S = 2.0  # by which the report of a loss may come after that of an error it led to


@dataclass(frozen=True, slots=True)
class Again:
    """`attempt` is followed by another: of its replica alone, or (`all`) of all of them."""

    attempt: Attempt
    turn: Turn
    all: bool


@dataclass(frozen=True, slots=True)
class Over:
    """All of it is over; by `attempt`, which failed, or well if that is the primary's and completed."""

    attempt: Attempt
    well: bool


def primary(tries: Sequence[Attempt]) -> Attempt:
    return next(each for each in tries if each.task == plan.MASTER)


def following(tries: Sequence[Attempt], *, pause_s: float, now: float) -> Again | Over | None:
    """What follows, of the newest attempts of a gang's replicas; None while all that matter go on.

    `pause_s` is the first pause before a restart. What has ended must have been seen to.
    """
    first = primary(tries)
    ended_well = not first.live and restarts.reason(first) == restarts.COMPLETED
    failed = [each for each in tries if not each.live and restarts.reason(each) in (restarts.ERROR, restarts.DISK)]
    for each in sorted(failed, key=_end):
        if not _shaken(each, tries) and (not ended_well or _end(each) < _end(first)):
            late = len(tries) > 1 and restarts.reason(each) == restarts.ERROR and 0 <= now - _end(each) < LATE_S
            return None if late else Over(each, well=False)
    if ended_well:
        helpers = [each for each in tries if each.live and role(each) != "ps"]
        return None if helpers and 0 <= now - _end(first) < GRACE_S else Over(first, well=True)
    down = [
        each for each in tries if not each.live and restarts.reason(each) not in (restarts.COMPLETED, restarts.STOPPED)
    ]
    shaken = [
        each for each in down if each is first or restarts.reason(each) == restarts.ADDRESS or _shaken(each, tries)
    ]
    if shaken and (turn := restarts.together(shaken[0], tries, pause_s)):
        return Again(shaken[0], turn, all=True)
    if not down:
        return None
    worst = next((each for each in down if each not in shaken), down[0])
    turn = restarts.following(worst, pause_s)
    return Again(worst, turn, all=turn.restart == 0 or len(tries) == 1) if turn else Over(worst, well=False)


def role(attempt: Attempt) -> str:
    """master, worker, ps, evaluator."""
    return attempt.task.partition("-replica-")[0]


def _shaken(attempt: Attempt, tries: Sequence[Attempt]) -> bool:
    """Whether it ended by itself and not well, and another one of them was lost shortly before."""
    if restarts.reason(attempt) != restarts.ERROR and attempt.exit_code != restarts.ABORTED:
        return False
    for each in tries:
        if each.id == attempt.id:
            continue
        lost = each.created if each.restart else None
        if not each.live and restarts.reason(each) in restarts.AGAIN:
            lost = _end(each)
        if lost is not None and -restarts.LONGEST_S < _end(attempt) - lost < SHAKEN_S:
            return True
    return False


def _end(attempt: Attempt) -> float:
    return attempt.created if attempt.ended is None else attempt.ended
