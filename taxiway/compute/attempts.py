"""Attempts: each start of a replica is a row, committed before anything is started; a superseded one has no word.

STARTED -> PREPARING -> RUNNING -> ENDED        FENCED: its successor was made, or its job was given up
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import attempts
from taxiway.plan import Work

ORDER = ("STARTED", "PREPARING", "RUNNING", "ENDED")
LIVE = ORDER[:-1]


@dataclass(frozen=True, slots=True)
class Attempt:
    id: str
    project: str
    kind: str
    subject: str
    task: str
    number: int
    state: str
    identity: str
    work: Any
    handle: str
    exit_code: int | None
    error: str | None
    created: float
    heard: float | None
    ended: float | None

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def trial(self) -> str:
        """The number of the trial that it works on; "" for a job that tunes nothing."""
        return str(self.work.get("trial", ""))


def create(tx: sa.Connection, attempt: str, kind: str, work: Work, *, identity: str, now: float) -> Attempt:
    """Commit an attempt; every earlier one of the same replica is fenced in the same transaction."""
    same = (
        (attempts.c.project == work.project)
        & (attempts.c.kind == kind)
        & (attempts.c.subject == work.subject)
        & (attempts.c.task == work.task)
    )
    tx.execute(attempts.update().where(same & attempts.c.state.in_(LIVE)).values(state="FENCED", ended=now))
    number = tx.execute(sa.select(sa.func.count()).select_from(attempts).where(same)).scalar_one() + 1
    tx.execute(
        attempts.insert().values(
            id=attempt,
            project=work.project,
            kind=kind,
            subject=work.subject,
            task=work.task,
            number=number,
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
    """Those of the ids that are attempts."""
    return set(rows.execute(sa.select(attempts.c.id).where(attempts.c.id.in_(ids))).scalars())


def last(rows: sa.Connection, project: str, kind: str, subject: str) -> Attempt | None:
    """The newest attempt of a job or a version."""
    row = rows.execute(
        sa.select(attempts)
        .where(attempts.c.project == project, attempts.c.kind == kind, attempts.c.subject == subject)
        .order_by(attempts.c.number.desc())
        .limit(1)
    ).first()
    return Attempt(**row._mapping) if row else None


def live(rows: sa.Connection, kind: str) -> Sequence[Attempt]:
    found = rows.execute(sa.select(attempts).where(attempts.c.kind == kind, attempts.c.state.in_(LIVE)))
    return [Attempt(**row._mapping) for row in found]


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
    moved = tx.execute(attempts.update().where(mine & attempts.c.state.in_(earlier)).values(state=state)).rowcount
    return read(tx, attempt) if moved else None


def must_live(rows: sa.Connection, attempt: str) -> Attempt:
    """The attempt, if its word still counts. Raises FailedPrecondition."""
    found = read(rows, attempt)
    if not found.live:
        raise errors.FailedPrecondition(f"Attempt {attempt} has ended or was superseded; its word is refused.")
    return found


def finish(db: Database, attempt: str, exit_code: int, error: str, *, now: float) -> None:
    """The replica's last word: its code's exit. Said twice it is heard once; of a fenced attempt it is refused."""

    def save(tx: sa.Connection) -> None:
        ended = tx.execute(
            attempts.update()
            .where(attempts.c.id == attempt, attempts.c.state.in_(LIVE))
            .values(state="ENDED", exit_code=exit_code, error=error, heard=now, ended=now)
        ).rowcount
        if not ended and read(tx, attempt).state != "ENDED":
            raise errors.FailedPrecondition(f"Attempt {attempt} was superseded; its report is refused.")

    db.write(save)


def fence(tx: sa.Connection, attempt: str, *, now: float) -> None:
    """From here on nothing that the attempt says counts, and its tokens are dead."""
    tx.execute(
        attempts.update().where(attempts.c.id == attempt, attempts.c.state.in_(LIVE)).values(state="FENCED", ended=now)
    )
