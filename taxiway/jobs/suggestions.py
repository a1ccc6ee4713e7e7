"""Which trials a client tries next, and whether one should end: each asked for by an operation.

A request for trials is a row before anything is chosen, and one thread answers them in their order: what a server that
was killed had not answered, the next one does. The same client gets what it tries already; trials that somebody asked
for go before those that are chosen. What is chosen is saved only if nobody made a trial meanwhile; else it is chosen
anew.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import study_operations as operations
from taxiway.jobs import studies
from taxiway.jobs.searcher import Searcher
from taxiway.jobs.space import Answer, Question
from taxiway.jobs.studies import ACTIVE, Place, Study
from taxiway.models.registry import GRPC_CODES

log = logging.getLogger("taxiway.jobs")

SUGGEST, CHECK = "SUGGEST_TRIALS", "CHECK_TRIAL_EARLY_STOPPING_STATE"
REST_S = 60.0  # without a request, then the process that chooses is let go
AGAIN_S = 1.0  # after a turn that stumbled
TURNS = 20  # at a choice that others were quicker with
WAIT_S = 2.0  # a caller waits so long for an answer before it is told to ask again
PATIENT = 4  # callers that may wait so at one time


@dataclass(frozen=True, slots=True)
class Operation:
    project: str
    location: str
    id: str
    kind: str
    study: str
    trial: int | None
    client: str
    count: int
    done: bool
    error: Mapping[str, Any] | None
    response: Mapping[str, Any] | None  # {"trials": [1, 2], "state": "ACTIVE"} or {"stop": true}
    created: float
    ended: float | None

    @property
    def place(self) -> Place:
        return Place(self.project, self.location, self.study)


class Suggestions:
    """One thread that answers requests for trials, in their order."""

    def __init__(self, db: Database, searcher: Searcher) -> None:
        self.db, self.searcher = db, searcher
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._patience = threading.Semaphore(PATIENT)
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="taxiway-suggestions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What is not answered yet is left to the next server."""
        self._ending.set()
        self._woken.set()
        self.searcher.end()
        if self._thread.is_alive():
            self._thread.join()

    def suggest(self, place: Place, client: str, count: int, *, id: str, now: float) -> Operation:
        """Ask for `count` trials; the operation is often done already. Raises NotFound, FailedPrecondition."""
        asked = begin(self.db, place, client, count, id=id, now=now)
        if asked.done:
            return asked
        self._woken.set()
        if self._patience.acquire(blocking=False):
            try:
                with self._answered:
                    self._answered.wait_for(lambda: get(self.db, asked.project, asked.location, id).done, WAIT_S)
            finally:
                self._patience.release()
        return get(self.db, asked.project, asked.location, id)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            pause = REST_S
            try:
                for asked in unfinished(self.db):
                    if self._ending.is_set():
                        return
                    self._answer(asked)
            except Exception:  # noqa: BLE001 - the thread's edge: one bad turn is told, and the next one comes
                log.error("the choice of trials stumbled\n%s", traceback.format_exc())
                pause = AGAIN_S
            if not self._woken.wait(pause) and pause == REST_S:
                self.searcher.rest()

    def _answer(self, asked: Operation) -> None:
        try:
            answered = any(self._tried(asked) for _ in range(TURNS))
            error: errors.Error | None = (
                None if answered else errors.Aborted("Others made trials all the time; try again.")
            )
        except errors.NotFound:  # the study is gone, and the operation with it
            error = None
        except errors.Error as found:
            error = found
        if error is not None and not self._ending.is_set():
            self.db.write(lambda tx: _finish(tx, asked, error=error, now=time.time()))
        with self._answered:
            self._answered.notify_all()

    def _tried(self, asked: Operation) -> bool:
        """Whether the request is answered now; False if others made trials while these were chosen."""
        with self.db.read() as rows:
            study = studies.read(rows, asked.place)
            lacking = asked.count - len(studies.pending(rows, asked.place, asked.client))
            past = studies.past(rows, study) if lacking > 0 and study.state == ACTIVE else ()
        answer = Answer()
        if lacking > 0 and study.state == ACTIVE:
            studies.must_take(study, lacking)
            question = Question(config=study.config, seed=study.seed, first=study.made + 1, count=lacking, past=past)
            answer = self.searcher.ask(question)
        return self.db.write(lambda tx: _hand_out(tx, asked, study, lacking, answer, now=time.time()))


# ---- the rows -------------------------------------------------------------------------------------------------------


def begin(db: Database, place: Place, client: str, count: int, *, id: str, now: float) -> Operation:
    """A request for trials, done if the client tries as many already, or somebody asked for as many to be tried."""

    def save(tx: sa.Connection) -> Operation:
        study = studies.read(tx, place)
        mine = studies.pending(tx, place, client)[:count]
        mine += studies.take_requested(tx, place, client, count - len(mine), now=now)
        done = len(mine) == count
        if not done:
            try:
                studies.must_take(study, count - len(mine))
            except errors.FailedPrecondition:
                if not mine:
                    raise
                done = True  # it goes on with what it has
        told = {"kind": SUGGEST, "client": client, "count": count, "done": False, "created": now}
        tx.execute(operations.insert().values(**place._asdict(), id=id, **told))
        made = _read(tx, place.project, place.location, id)
        return _finish(tx, made, response=_trials(mine, study.state), now=now) if done else made

    return db.write(save)


def check(db: Database, place: Place, number: int, *, id: str, now: float) -> Operation:
    """The answer whether a trial should end; one that should is STOPPING from now on."""
    stops = studies.hopeless(db, place, number)
    if stops:
        studies.stop(db, place, number)

    def save(tx: sa.Connection) -> Operation:
        studies.read(tx, place)
        told = {"kind": CHECK, "trial": number, "done": False, "created": now}
        tx.execute(operations.insert().values(**place._asdict(), id=id, **told))
        return _finish(tx, _read(tx, place.project, place.location, id), response={"stop": stops}, now=now)

    return db.write(save)


def get(db: Database, project: str, location: str, id: str) -> Operation:
    """Raises NotFound."""
    with db.read() as rows:
        return _read(rows, project, location, id)


def cancel(db: Database, project: str, location: str, id: str) -> Operation:
    """End a request that is not answered yet; an ended one stays as it is. Raises NotFound."""

    def save(tx: sa.Connection) -> Operation:
        found = _read(tx, project, location, id)
        return found if found.done else _finish(tx, found, error=errors.Cancelled("Cancelled."), now=time.time())

    return db.write(save)


def unfinished(db: Database) -> list[Operation]:
    asked = sa.select(operations).where(~operations.c.done).order_by(operations.c.created, operations.c.id)
    with db.read() as rows:
        return [Operation(**row._mapping) for row in rows.execute(asked)]


def _hand_out(tx: sa.Connection, asked: Operation, seen: Study, lacked: int, answer: Answer, *, now: float) -> bool:
    """Make the chosen trials the client's; False if the study is not as it was seen."""
    held = _read(tx, asked.project, asked.location, asked.id)
    if held.done:  # cancelled meanwhile
        return True
    study = studies.read(tx, asked.place)
    mine = studies.pending(tx, asked.place, asked.client)
    if study.made != seen.made or study.state != seen.state or asked.count - len(mine) != lacked:
        return False
    if answer.points:
        mine += studies.add(tx, study, answer.points, state=ACTIVE, client=asked.client, now=now)
    if answer.used_up:
        studies.use_up(tx, asked.place)
    state = studies.read(tx, asked.place).state
    _finish(tx, held, response=_trials(mine[: asked.count], state), now=now)
    return True


def _trials(numbers: list[int], state: str) -> dict[str, Any]:
    return {"trials": numbers, "state": state}


def _read(rows: sa.Connection, project: str, location: str, id: str) -> Operation:
    row = rows.execute(sa.select(operations).where(_is(project, location, id))).first()
    if row is None:
        raise errors.NotFound(f"The operation projects/{project}/locations/{location}/operations/{id} does not exist.")
    return Operation(**row._mapping)


def _finish(
    tx: sa.Connection,
    operation: Operation,
    *,
    now: float,
    response: Mapping[str, Any] | None = None,
    error: errors.Error | None = None,
) -> Operation:
    """The row decides: what was done before stays as it is."""
    told = {"code": GRPC_CODES[error.status], "message": str(error)} if error else None
    mine = _is(operation.project, operation.location, operation.id) & ~operations.c.done
    tx.execute(operations.update().where(mine).values(done=True, ended=now, error=told, response=response))
    return _read(tx, operation.project, operation.location, operation.id)


def _is(project: str, location: str, id: str) -> sa.ColumnElement[bool]:
    return sa.and_(operations.c.project == project, operations.c.location == location, operations.c.id == id)
