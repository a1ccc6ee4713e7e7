"""The line of waiting jobs: whose turn it is, behind whom each stands, why it waits, and when it may start.

The higher priority goes first. Among equals the project with the fewest running jobs, so that a thousand jobs of one do
not starve one of another; then the job that came first. One that has to wait for GPUs is passed (see gpus.py). Every
query goes by an index of the jobs that wait or run: those that have ended cost it nothing.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import math
import statistics
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway.compute import logs
from taxiway.db import database
from taxiway.db.database import Database, Prepared, Topic
from taxiway.db.tables import jobs
from taxiway.jobs import gpus, states
from taxiway.jobs.states import State

NAMED = 5  # jobs that a waiting one is told of by name
AT_ONCE = 100  # waiting jobs that are told in one transaction
RECENT = 20  # jobs of a project that tell how long its next one may take
LEAST = 3  # of them, for a guess
FARTHEST = 1000  # places in the line; what starts behind those is not guessed
QUEUED = jobs.c.state == State.QUEUED.value
HELD = jobs.c.state.in_([state.value for state in states.HELD])
TOPIC: Topic = ("line",)


@dataclass(frozen=True, slots=True)
class Place:
    """A waiting job, or a running one."""

    project: str
    id: str
    position: int
    started: float | None
    limit: float | None  # the longest time to run that it names; the seven days of one that names none tell nothing
    wants: str = ""  # GPUs: see machines.Machines.accelerators
    count: int = 0
    gpus: Sequence[int] = ()  # those that were given to it


_LIMIT = sa.func.json_extract(jobs.c.training, "$.scheduling.maxRunningTime")
_PLACE = sa.select(
    *(jobs.c.project, jobs.c.id, jobs.c.position, jobs.c.started, _LIMIT),
    *(jobs.c.accelerator, jobs.c.accelerators, jobs.c.gpus),
)
_WAITING = Prepared(sa.select(jobs.c.priority, jobs.c.position, jobs.c.project).where(QUEUED))  # all within an index
_NEW = Prepared(_PLACE.where(QUEUED, jobs.c.position >= sa.bindparam("least")))
_HELD = Prepared(
    _PLACE.where(sa.or_(*(jobs.c.state == state.value for state in states.HELD))).order_by(jobs.c.position)
)
_TOOK = Prepared(
    sa.select(jobs.c.ended - jobs.c.started)
    .where(jobs.c.project == sa.bindparam("project"), jobs.c.state == State.SUCCEEDED.value)
    .order_by(jobs.c.position.desc())
    .limit(RECENT)
)


def first(rows: sa.Connection, without: Collection[str] = ()) -> sa.Row[Any] | None:
    """The row of the queued job whose turn it is; of those only that do not want GPUs of some kinds."""
    queued = QUEUED & jobs.c.accelerator.not_in(without) if without else QUEUED
    top = sa.select(sa.func.max(jobs.c.priority)).where(queued).scalar_subquery()
    heads = (
        sa.select(jobs.c.project, sa.func.min(jobs.c.position).label("position"))
        .where(queued, jobs.c.priority == top)
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


def start(rows: sa.Connection, fitting: gpus.Fitting) -> tuple[sa.Row[Any], list[int] | None] | None:
    """The row of the first queued job that may start, and the GPUs that it is given (None if it wants none).

    See gpus.py for who goes past whom.
    """
    without: set[str] = set()
    taken: set[int] | None = None
    while (row := first(rows, without)) is not None:
        if not row.accelerator:
            return row, None
        if taken is None:
            given = rows.execute(sa.select(jobs.c.gpus).where(HELD, jobs.c.accelerator != "")).scalars()
            taken = {gpu for some in given for gpu in some or ()}
        if (found := gpus.granted(row.accelerator, row.accelerators, taken, fitting)) is not None:
            return row, found
        taken |= set(fitting(row.accelerator))
        without.add(row.accelerator)
    return None


def last_queued(rows: sa.Connection) -> int:
    """The highest position of a queued job; 0 if none is."""
    return int(rows.execute(sa.select(sa.func.max(jobs.c.position)).where(QUEUED)).scalar() or 0)


def changed(tx: sa.Connection) -> None:
    """To be said by whoever changes in this transaction which jobs wait or run."""
    database.tell(tx, TOPIC)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits. `behind`: the first of its project's own jobs before it; `starts`: None, if unknown."""

    reason: str
    ahead: int
    behind: Sequence[str]
    starts: float | None


@dataclass(eq=False)
class Order:
    """The line at one moment: every queued job in the order in which they will be claimed, if none that runs then ends
    before; and every job that runs."""

    db: Database
    waiting: Sequence[Place]
    held: Sequence[Place]
    fitting: gpus.Fitting = gpus.none
    _usual: dict[str, float] = field(default_factory=dict)
    _guessed: tuple[Sequence[float], Sequence[float | None]] = ((), ())

    @cached_property
    def places(self) -> dict[int, int]:
        """By the position of each queued job how many will be claimed before it: 0 is next."""
        return {each.position: place for place, each in enumerate(self.waiting)}

    @cached_property
    def short(self) -> list[int]:
        """The places of those that have to wait for GPUs, even if there is room."""
        taken = {gpu for each in self.held for gpu in each.gpus}
        found = []
        for place, each in enumerate(self.waiting):
            if each.wants:
                given = gpus.granted(each.wants, each.count, taken, self.fitting)
                if given is None:
                    found.append(place)
                taken |= set(self.fitting(each.wants) if given is None else given)
        return found

    @cached_property
    def _own(self) -> dict[str, list[int]]:
        """The places of each project's jobs."""
        found: dict[str, list[int]] = {}
        for place, each in enumerate(self.waiting):
            found.setdefault(each.project, []).append(place)
        return found

    def wait(self, position: int, *, most: int, now: float) -> Wait | None:
        """What is to be said of a queued job now; None if it was queued no more. `most` jobs may run at once."""
        ahead = self.places.get(position)
        if ahead is None:
            return None
        first = self._own[self.waiting[ahead].project][:NAMED]
        own = [self.waiting[place].id for place in first if place < ahead]
        reason = self.reason(ahead, most=most) or "There is room for it: it starts in a moment."
        return Wait(reason, ahead, own, self._starts(ahead, most=most, now=now))

    def reason(self, ahead: int, *, most: int) -> str:
        """Why the job at a place waits; "" for one that has room, and all else that it needs."""
        passed = bisect.bisect_left(self.short, ahead)
        if self._lacks(ahead):
            return self._reason_of_gpus(ahead)
        if ahead - passed < most - len(self.held):
            return ""
        room = f"{len(self.held)} run ({_named(self.held, self.waiting[ahead].project)}), {most} may at once"
        first = f"{ahead} queued {'job starts' if ahead == 1 else 'jobs start'}" if ahead else "no queued job starts"
        return f"Waiting for another job to end: {room}, and {first} before this one."

    def _lacks(self, ahead: int) -> bool:
        """Whether the job at a place has to wait for GPUs."""
        near = bisect.bisect_left(self.short, ahead)
        return self.short[near : near + 1] == [ahead]

    def _reason_of_gpus(self, ahead: int) -> str:
        each = self.waiting[ahead]
        would_do = set(self.fitting(each.wants))
        having = [held for held in self.held if would_do & set(held.gpus)]
        taken = sum(len(would_do & set(held.gpus)) for held in having)
        before = sum(bool(would_do & set(self.fitting(other.wants))) for other in self.waiting[:ahead] if other.wants)
        count = min(each.count, len(would_do))
        wants = f"it wants {count} of the {len(would_do)} that would do"
        by = f"{taken} of them {'is' if taken == 1 else 'are'} held by {_named(having, each.project)}" if taken else ""
        behind = f"{before} queued before it {'wants' if before == 1 else 'want'} such" if before else ""
        return f"Waiting for {'a GPU' if count == 1 else 'GPUs'}: {', '.join(filter(None, (wants, by, behind)))}."

    def _starts(self, ahead: int, *, most: int, now: float) -> float | None:
        """When the job at a place may start, by what the projects' last jobs took and by the limits that jobs name.

        The guesses for all places are made together, and hold for as long as the rooms are thought to get free when
        they were.
        """
        if ahead > FARTHEST:
            return None
        free = [now] * (most - len(self.held))
        rooms = free + [max(now, _ends(each, self.usual(each.project), now)) for each in self.held]
        told, guesses = self._guessed
        if told != rooms:
            takes = (min(self.usual(each.project), _limit(each)) for each in self.waiting[:FARTHEST])
            guesses = list(starts(rooms, takes))
            self._guessed = rooms, guesses
        room = guesses[ahead]
        if room is None or not self._lacks(ahead):
            return room
        given = self._given(ahead, now)
        return max(room, given) if given < math.inf else None

    def _given(self, ahead: int, now: float) -> float:
        """When the job at a place may have its GPUs, if those before it that want such take them in turn."""
        want = self.waiting[ahead]
        free = dict.fromkeys(self.fitting(want.wants), now)
        for each in self.held:
            for gpu in free.keys() & set(each.gpus):
                free[gpu] = max(now, _ends(each, self.usual(each.project), now))
        for each in self.waiting[:ahead]:
            would_do = sorted(free.keys() & set(self.fitting(each.wants)) if each.wants else (), key=free.__getitem__)
            if taken := would_do[: each.count]:
                ends = free[taken[-1]] + min(self.usual(each.project), _limit(each))
                free.update(dict.fromkeys(taken, ends))
        return sorted(free.values())[: want.count][-1]

    def usual(self, project: str) -> float:
        """What the project's last jobs took, in seconds; infinity if too few tell."""
        if project not in self._usual:
            seconds = [max(0.0, took) for (took,) in self.db.rows(_TOOK, {"project": project}) if took is not None]
            self._usual[project] = statistics.median(seconds) if len(seconds) >= LEAST else math.inf
        return self._usual[project]


class Line:
    """The line as it is now: ordered once after each change of its rows, for all who ask.

    Whoever was told that a change is on the disk sees it here: changes are counted before their callers are told, and
    an order that was read before the last of them is of no use any more. So who changes the rows must say so
    (`changed`), in the process whose Database this is.
    """

    def __init__(self, db: Database, fitting: gpus.Fitting = gpus.none) -> None:
        self.db, self.fitting = db, functools.cache(fitting)
        self._changes = 0
        self._ordering = threading.Lock()
        self._known: dict[int, Place] = {}  # by the positions of queued jobs
        self._held: tuple[int, Order] | None = None  # of how many changes it knows at least
        db.listen(self._committed)

    def now(self) -> Order:
        wanted = self._changes
        with self._ordering:
            if self._held is None or self._held[0] < wanted:
                changes = self._changes
                self._held = changes, self._read()
            return self._held[1]

    def explain(self, *, most: int, after: int, now: float) -> int:
        """Say in the log of queued jobs that arrived after a position why they wait; up to which position it was said.

        Jobs that run are named if they are of the job's own project. Those that do not come to their turn within this
        call are told in the next, and so are all behind one that starts in a moment.
        """
        order = self.now()
        told: dict[int, tuple[Place, str]] = {}
        for position in sorted(position for position in order.places if position > after)[:AT_ONCE]:
            place = order.places[position]
            if not (why := order.reason(place, most=most)):
                break
            told[position] = order.waiting[place], why
        if not told:
            return after
        last = max(told)

        def save(tx: sa.Connection) -> None:
            still = sa.select(jobs.c.position).where(QUEUED, jobs.c.position.between(min(told), last))
            for position in told.keys() & set(tx.execute(still).scalars()):  # the others were cancelled meanwhile
                each, why = told[position]
                logs.say(tx, each.project, each.id, why, now=now)

        self.db.write(save)
        return last

    def _committed(self, topics: set[Topic]) -> None:
        if TOPIC in topics:
            self._changes += 1

    def _read(self) -> Order:
        """The order itself is an index's alone; of a job is read once what it never changes while it waits."""
        with self.db.snapshot() as look:
            waiting, known = look(_WAITING, {}), self._known
            if lacking := [position for _, position, _ in waiting if position not in known]:
                new = (_place(row) for row in look(_NEW, {"least": min(lacking)}))
                known = {**known, **{each.position: each for each in new}}
            held = [_place(row) for row in look(_HELD, {})]
        self._known = {position: known[position] for _, position, _ in waiting}
        running = Counter(each.project for each in held)
        places = [self._known[position] for position in ordered(waiting, running)]
        return Order(self.db, places, held, self.fitting)


def ordered(waiting: Iterable[tuple[int, int, str]], running: Mapping[str, int]) -> list[int]:
    """The positions of queued jobs, told as (priority, position, project), in the order in which they will be claimed.

    A project's next job counts those before it as if they ran: so merging the projects by who has the fewest is the
    same as sorting by that count.

    >>> ordered([(0, 1, "a"), (0, 2, "a"), (0, 3, "b"), (9, 4, "a")], {})
    [4, 3, 1, 2]
    """
    counts = Counter(running)
    found = []
    for lower, position, project in sorted((-priority, position, project) for priority, position, project in waiting):
        found.append((lower, counts[project], position))
        counts[project] += 1
    return [position for _, _, position in sorted(found)]


def starts(rooms: Iterable[float], takes: Iterable[float]) -> Iterator[float | None]:
    """When each place in the line starts, and the one behind the last: `rooms` are the times at which each room gets
    free, `takes` the seconds of each job. Infinity stands for what nobody knows; None if that decides.

    >>> list(starts([50.0, 80.0], [100.0, 100.0]))
    [50.0, 80.0, 150.0]
    >>> list(starts([math.inf, 80.0], [math.inf]))
    [80.0, None]
    """
    free = list(rooms)
    heapq.heapify(free)
    for seconds in (*takes, 0.0):
        found = free[0] if free else math.inf
        yield found if found < math.inf else None
        if free:
            heapq.heapreplace(free, found + seconds)


def _place(row: tuple[Any, ...]) -> Place:
    project, id_, position, started, limit, wants, count, given = row
    return Place(project, id_, position, started, limit, wants, count, msgspec.json.decode(given) if given else ())


def _named(running: Sequence[Place], project: str) -> str:
    """Jobs that run, by name those of one's own project."""
    own = [each.id for each in running if each.project == project]
    elsewhere = [f"{len(running) - len(own)} of other projects"] if len(running) > len(own) else []
    more = [f"{len(own) - NAMED} more"] if len(own) > NAMED else []
    return ", ".join([*own[:NAMED], *more, *elsewhere])


def _running() -> sa.Subquery:
    """How many jobs of each project run."""
    counted = sa.select(jobs.c.project, sa.func.count().label("jobs")).where(HELD)
    return counted.group_by(jobs.c.project).subquery()


def _ends(held: Place, usual: float, now: float) -> float:
    """When a running job may end; infinity for one that runs longer than usual already, and names no limit."""
    started, limit = now if held.started is None else held.started, _limit(held)
    return started + (usual if started + usual > now and usual < limit else limit)


def _limit(job: Place) -> float:
    return job.limit or math.inf
