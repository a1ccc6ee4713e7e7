"""Attempts: each start of a replica is a row, committed before anything is started; a superseded one has no word.

STARTED -> PREPARING -> RUNNING -> ENDED        FENCED: its successor was made, or its job was given up
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import attempts, logs
from taxiway.handles import Exit
from taxiway.plan import Work

ORDER = ("STARTED", "PREPARING", "RUNNING", "ENDED")
LIVE = ORDER[:-1]
BEFORE = 500  # lines that an agent says at most before the user's code begins
RUNNING, COMPLETED = "Running command: ", "Module completed; cleaning up."  # the agent's lines around the user's own
SIGNALLED = 128  # an exit code from there on: 128 + the signal that ended the code


@dataclass(frozen=True, slots=True)
class Attempt:
    id: str
    project: str
    kind: str
    subject: str
    task: str
    trial: str
    gang: str
    number: int
    restart: int
    retry: int
    pause: float
    state: str
    identity: str
    work: Any
    handle: str
    exit_code: int | None
    error: str | None
    reason: str | None
    created: float
    ran: float | None
    spoke: float | None
    heard: float | None
    ended: float | None
    remains: dict[str, Any] | None

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def over(self) -> bool:
        """Whether it has ended, and nothing of it is left to be seen to."""
        return not self.live and self.remains is not None


@dataclass(frozen=True, slots=True)
class Turn:
    """Which try of its job an attempt is, which start of its replica within that, and how long it waits to start."""

    restart: int = 0
    retry: int = 0
    pause: float = 0.0


FIRST = Turn()


def create(
    tx: sa.Connection, attempt: str, kind: str, work: Work, *, identity: str, now: float, turn: Turn = FIRST
) -> Attempt:
    """Commit an attempt; every earlier one of the same replica is fenced in the same transaction."""
    same = _of(work.project, kind, work.subject) & (attempts.c.task == work.task)
    earlier = same & (attempts.c.trial == work.trial) & attempts.c.state.in_(LIVE)
    tx.execute(attempts.update().where(earlier).values(state="FENCED", reason="Superseded", ended=now))
    number = tx.execute(sa.select(sa.func.count()).select_from(attempts).where(same)).scalar_one() + 1
    tx.execute(
        attempts.insert().values(
            id=attempt,
            project=work.project,
            kind=kind,
            subject=work.subject,
            task=work.task,
            trial=work.trial,
            gang=work.gang,
            number=number,
            restart=turn.restart,
            retry=turn.retry,
            pause=turn.pause,
            state="STARTED",
            identity=identity,
            work=msgspec.to_builtins(work),
            handle="",
            created=now,
        )
    )
    return read(tx, attempt)


def read(rows: sa.Connection, attempt: str) -> Attempt:
    """Raises NotFound."""
    row = rows.execute(sa.select(attempts).where(attempts.c.id == attempt)).first()
    if row is None:
        raise errors.NotFound(f"There is no attempt {attempt!r}.")
    return Attempt(**row._mapping)


def get(db: Database, attempt: str) -> Attempt:
    with db.read() as rows:
        return read(rows, attempt)


def known(rows: sa.Connection, ids: Collection[str]) -> set[str]:
    """Those of the ids that are attempts, or gangs of which some live."""
    found = sa.select(attempts.c.id).where(attempts.c.id.in_(ids))
    gangs = sa.select(attempts.c.gang).where(attempts.c.gang.in_(ids), attempts.c.state.in_(LIVE))
    return {*rows.execute(found).scalars(), *rows.execute(gangs).scalars()}


def last(rows: sa.Connection, project: str, kind: str, subject: str) -> Attempt | None:
    """The newest attempt of a job or a version."""
    asked = sa.select(attempts).where(_of(project, kind, subject)).order_by(attempts.c.number.desc()).limit(1)
    row = rows.execute(asked).first()
    return Attempt(**row._mapping) if row else None


def of(rows: sa.Connection, project: str, kind: str, subject: str) -> list[Attempt]:
    """Every attempt of a job or a version, of each task the first one first."""
    found = rows.execute(sa.select(attempts).where(_of(project, kind, subject)).order_by(attempts.c.number))
    return [Attempt(**row._mapping) for row in found]


def latest(rows: sa.Connection, project: str, kind: str, subject: str) -> list[Attempt]:
    """The newest attempt of each replica of a job, by trial and place."""
    newest: dict[tuple[str, str], Attempt] = {}
    for each in of(rows, project, kind, subject):
        newest[each.trial, each.task] = each
    return sorted(newest.values(), key=lambda each: (int(each.trial or 0), each.work.get("place", 0)))


def all_up(rows: sa.Connection, attempt: Attempt) -> bool:
    """Whether the code of each replica beside this one runs, or has run."""
    beside = _of(attempt.project, attempt.kind, attempt.subject) & (attempts.c.trial == attempt.trial)
    late = sa.select(attempts.c.id).where(beside, attempts.c.state.in_(LIVE[:-1])).limit(1)
    return rows.execute(late).first() is None


def growing(rows: sa.Connection) -> set[tuple[str, str]]:
    """(project, subject) of everything that an attempt lives of."""
    found = rows.execute(sa.select(attempts.c.project, attempts.c.subject).where(attempts.c.state.in_(LIVE)))
    return {(row.project, row.subject) for row in found}


def hold(db: Database, attempt: str, handle: str) -> None:
    """Keep the engine's word for the running replica."""
    db.write(lambda tx: tx.execute(attempts.update().where(attempts.c.id == attempt).values(handle=handle)))


def hear(tx: sa.Connection, attempt: str, state: str, *, now: float) -> Attempt | None:
    """A heartbeat: the replica lives and is in `state`. States only go forward; answers the attempt if this one did.

    Raises FailedPrecondition if the attempt has ended or was superseded (the replica must stop), InvalidArgument for a
    state that is none of a living replica.
    """
    if state not in LIVE:
        raise errors.InvalidArgument(faults=[("state", f"must be one of {', '.join(LIVE)}, and is {state!r}.")])
    must_live(tx, attempt)
    mine, earlier = attempts.c.id == attempt, ORDER[: ORDER.index(state)]
    tx.execute(attempts.update().where(mine).values(heard=now))
    change = {"state": state, **({"ran": now} if state == "RUNNING" else {})}
    moved = tx.execute(attempts.update().where(mine & attempts.c.state.in_(earlier)).values(**change)).rowcount
    return read(tx, attempt) if moved else None


def listen(tx: sa.Connection, attempt: str) -> None:
    """Note when the user's code said its first line: the one behind the agent's last, if the log has it by now."""
    found = read(tx, attempt)
    if found.ran is None or found.spoke is not None:
        return
    begin = f"{found.number:04d}.{found.task}."
    own = (logs.c.project == found.project) & (logs.c.subject == found.subject)
    own &= (logs.c.insert_id > begin) & (logs.c.insert_id < f"{begin}~")
    asked = sa.select(logs.c.message, logs.c.created).where(own).order_by(logs.c.insert_id).limit(BEFORE)
    lines = iter(tx.execute(asked).all())
    if any(line.message.startswith(RUNNING) for line in lines):
        first = next(lines, None)
        if first is not None and first.message != COMPLETED:
            tx.execute(attempts.update().where(attempts.c.id == attempt).values(spoke=first.created))


def looked(tx: sa.Connection, attempt: str, found: Mapping[str, int], *, now: float) -> dict[str, int]:
    """Keep what was looked for after an attempt's end, and how many of each were there; its tokens are counted here.

    The newest look counts. Answers all that was found.
    """
    remains = {**found, "tokens": int(read(tx, attempt).live)}  # they live as long as it does
    tx.execute(attempts.update().where(attempts.c.id == attempt).values(remains={"time": now, "found": remains}))
    return remains


def must_live(rows: sa.Connection, attempt: str) -> Attempt:
    """The attempt, if its word still counts. Raises FailedPrecondition."""
    found = read(rows, attempt)
    if not found.live:
        raise errors.FailedPrecondition(f"Attempt {attempt} has ended or was superseded; its word is refused.")
    return found


def finish(db: Database, attempt: str, exited: Exit, *, now: float) -> None:
    """The replica's last word: its code's exit. Said twice it is heard once; of a fenced attempt it is refused."""

    def save(tx: sa.Connection) -> None:
        ended = tx.execute(
            attempts.update()
            .where(attempts.c.id == attempt, attempts.c.state.in_(LIVE))
            .values(
                state="ENDED",
                exit_code=exited.code,
                error=exited.error,
                reason=exited.reason or word(exited.code),
                heard=now,
                ended=now,
            )
        ).rowcount
        if not ended and read(tx, attempt).state != "ENDED":
            raise errors.FailedPrecondition(f"Attempt {attempt} was superseded; its report is refused.")

    db.write(save)


def fence(tx: sa.Connection, attempt: str, *, reason: str = "Superseded", error: str = "", now: float) -> None:
    """From here on nothing that the attempt says counts, and its tokens are dead. One that has ended stays as it is."""
    alive = (attempts.c.id == attempt) & attempts.c.state.in_(LIVE)
    tx.execute(attempts.update().where(alive).values(state="FENCED", reason=reason, error=error, ended=now))


def _of(project: str, kind: str, subject: str) -> sa.ColumnElement[bool]:
    return (attempts.c.project == project) & (attempts.c.kind == kind) & (attempts.c.subject == subject)


def word(exit_code: int) -> str:
    """Why it ended, as far as an exit code tells.

    >>> [word(code) for code in (0, 1, 127, 137)]
    ['Completed', 'Error', 'Error', 'Signal']
    """
    if exit_code == 0:
        return "Completed"
    return "Signal" if exit_code >= SIGNALLED else "Error"
