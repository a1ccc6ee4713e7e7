"""The line of waiting jobs: whose turn it is, behind whom each stands, why it waits, and when it may start.

The higher priority goes first. Among equals the project with the fewest running jobs, so that a thousand jobs of one do
not starve one of another; then the job that came first. Every query goes by an index of the jobs that wait or run:
those that have ended cost it nothing.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from taxiway.compute import logs
from taxiway.db.tables import jobs
from taxiway.jobs import states
from taxiway.jobs.states import State

NAMED = 5  # jobs that a waiting one is told of by name
AT_ONCE = 100  # waiting jobs that are told in one transaction
RECENT = 20  # jobs of a project that tell how long its next one may take
LEAST = 3  # of them, for a guess
FARTHEST = 1000  # places in the line; what starts behind those is not guessed
QUEUED = jobs.c.state == State.QUEUED.value
HELD = jobs.c.state.in_([state.value for state in states.HELD])


@dataclass(frozen=True, slots=True)
class Place:
    """A waiting job, or a running one."""

    project: str
    id: str
    position: int
    started: float | None
    limit: float | None  # the longest time to run that it names; the seven days of one that names none tell nothing


LIMIT = jobs.c.training["scheduling", "maxRunningTime"].as_float()
PLACE = (jobs.c.project, jobs.c.id, jobs.c.position, jobs.c.started, LIMIT)


def first(rows: sa.Connection) -> sa.Row[Any] | None:
    """The row of the queued job whose turn it is."""
    top = sa.select(sa.func.max(jobs.c.priority)).where(QUEUED).scalar_subquery()
    heads = (
        sa.select(jobs.c.project, sa.func.min(jobs.c.position).label("position"))
        .where(QUEUED, jobs.c.priority == top)
        .group_by(jobs.c.project)
        .subquery()
    )
    running = _running()
    turn = (
        sa.select(heads.c.position)
        .outerjoin(running, running.c.project == heads.c.project)
        .order_by(sa.func.coalesce(running.c.jobs, 0), heads.c.position)
        .limit(1)
        .scalar_subquery()
    )
    return rows.execute(sa.select(jobs).where(jobs.c.position == turn)).first()


def order(rows: sa.Connection) -> list[Place]:
    """Every queued job in the order in which they will be claimed, if none that runs now ends before.

    A project's next job counts those before it as if they ran: so merging the projects by who has the fewest is the
    same as sorting by that count.
    """
    running = _running()
    before = sa.func.row_number().over(
        partition_by=jobs.c.project, order_by=(jobs.c.priority.desc(), jobs.c.position)
    ) + sa.func.coalesce(running.c.jobs, 0)
    asked = (
        sa.select(*PLACE)
        .outerjoin(running, running.c.project == jobs.c.project)
        .where(QUEUED)
        .order_by(jobs.c.priority.desc(), before, jobs.c.position)
    )
    return [Place(*row) for row in rows.execute(asked)]


def places(rows: sa.Connection) -> dict[int, int]:
    """By the position of each queued job how many will be claimed before it: 0 is next."""
    return {each.position: place for place, each in enumerate(order(rows))}


def running(rows: sa.Connection) -> list[Place]:
    asked = sa.select(*PLACE).where(HELD).order_by(jobs.c.position)
    return [Place(*row) for row in rows.execute(asked)]


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits. `behind`: the first of its project's own jobs before it; `starts`: None, if unknown."""

    reason: str
    ahead: int
    behind: Sequence[str]
    starts: float | None


def wait(rows: sa.Connection, position: int, *, most: int, now: float) -> Wait | None:
    """What is to be said of a queued job now; None if it is queued no more. `most` jobs may run at once."""
    waiting, held = order(rows), running(rows)
    ahead = next((place for place, each in enumerate(waiting) if each.position == position), None)
    if ahead is None:
        return None
    project = waiting[ahead].project
    own = [each.id for each in waiting[:ahead] if each.project == project]
    if len(held) < most and ahead < most - len(held):
        reason = "There is room for it: it starts in a moment."
    else:
        reason = _reason([each.id for each in held if each.project == project], len(held), most, ahead)
    return Wait(reason, ahead, own[:NAMED], _starts(rows, waiting[:ahead], held, most=most, now=now))


def start_of(rooms: Iterable[float], ahead: Iterable[float], *, now: float) -> float | None:
    """When a job starts: `rooms` are the times at which each room gets free, `ahead` the seconds that each earlier job
    takes. Infinity stands for what nobody knows; None if that decides.

    >>> start_of([50.0, 80.0], [100.0], now=10.0)
    80.0
    >>> start_of([math.inf, 80.0], [math.inf], now=10.0)
    """
    free = [max(now, each) for each in rooms]
    heapq.heapify(free)
    for seconds in ahead:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    found = free[0] if free else math.inf
    return found if found < math.inf else None


def last_queued(rows: sa.Connection) -> int:
    """The highest position of a queued job; 0 if none is."""
    return int(rows.execute(sa.select(sa.func.max(jobs.c.position)).where(QUEUED)).scalar() or 0)


def explain(tx: sa.Connection, *, most: int, after: int, now: float) -> int:
    """Say in the log of queued jobs that arrived after a position why they wait; up to which position it was said.

    For when there is no room. Jobs that run are named if they are of the job's own project; those that do not come to
    their turn within this call are told in the next.
    """
    waiting = order(tx)
    untold: list[int] = sorted(each.position for each in waiting if each.position > after)[:AT_ONCE]
    held = running(tx)
    if not untold or not held:  # none: room has come meanwhile
        return after
    for ahead, each in enumerate(waiting):
        if after < each.position <= untold[-1]:
            own = [other.id for other in held if other.project == each.project]
            logs.say(tx, each.project, each.id, _reason(own, len(held), most, ahead), now=now)
    return untold[-1]


def _running() -> sa.Subquery:
    """How many jobs of each project run."""
    counted = sa.select(jobs.c.project, sa.func.count().label("jobs")).where(HELD)
    return counted.group_by(jobs.c.project).subquery()


def _reason(own: Sequence[str], running: int, most: int, ahead: int) -> str:
    elsewhere = [f"{running - len(own)} of other projects"] if running > len(own) else []
    more = [f"{len(own) - NAMED} more"] if len(own) > NAMED else []
    named = ", ".join([*own[:NAMED], *more, *elsewhere])
    first = f"{ahead} queued {'job starts' if ahead == 1 else 'jobs start'}" if ahead else "no queued job starts"
    return f"Waiting for another job to end: {running} run ({named}), {most} may at once, and {first} before this one."


def _starts(
    rows: sa.Connection, ahead: Sequence[Place], held: Sequence[Place], *, most: int, now: float
) -> float | None:
    """When the job behind `ahead` may start, by what the projects' last jobs took and by the limits that jobs name."""
    if len(ahead) > FARTHEST:
        return None
    usual = {project: _usual(rows, project) for project in {each.project for each in (*ahead, *held)}}
    rooms = [now] * (most - len(held)) + [_ends(each, usual[each.project], now) for each in held]
    return start_of(rooms, (min(usual[each.project], _limit(each)) for each in ahead), now=now)


def _usual(rows: sa.Connection, project: str) -> float:
    """What the project's last jobs took, in seconds; infinity if too few tell."""
    took = jobs.c.ended - jobs.c.started
    done = sa.select(took).where(jobs.c.project == project, jobs.c.state == State.SUCCEEDED.value)
    known = rows.execute(done.order_by(jobs.c.position.desc()).limit(RECENT)).scalars()
    seconds = [max(0.0, each) for each in known if each is not None]
    return statistics.median(seconds) if len(seconds) >= LEAST else math.inf


def _ends(held: Place, usual: float, now: float) -> float:
    """When a running job may end; infinity for one that runs longer than usual already, and names no limit."""
    started, limit = now if held.started is None else held.started, _limit(held)
    return started + (usual if started + usual > now and usual < limit else limit)


def _limit(job: Place) -> float:
    return job.limit or math.inf
