"""What replicas used, every few seconds: kept as a table that stays small, however long a job runs.

When a replica has too many samples, each two of its older half become one, of both their spans: so the last half hour
is there in full, and what is older the more coarsely. No sum and no peak is lost by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from taxiway.compute.attempts import Attempt
from taxiway.db.database import Database
from taxiway.db.tables import samples
from taxiway.handles import Sample

MOST = 1440  # samples of one replica: two hours at five seconds
TOGETHER = 1000  # that go in one transaction
FIELDS = Sample.__struct_fields__


@dataclass(frozen=True, slots=True)
class Kept:
    """A sample of a replica; `number` is that of its attempt."""

    row: int
    task: str
    number: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class Use:
    """What one replica used in all its attempts."""

    task: str
    seconds: float  # that the samples tell of
    cpu: float  # seconds
    memory: int  # bytes, at the peak
    processes: int  # at the peak
    read: int
    written: int
    gpu: float | None  # seconds; null where there is none
    gpu_memory: int | None  # bytes, at the peak


def keep(tx: sa.Connection, attempt: Attempt, taken: Sequence[Sample]) -> None:
    """Keep samples; one that is sent again is kept once."""
    mine = {
        "project": attempt.project,
        "kind": attempt.kind,
        "subject": attempt.subject,
        "task": attempt.task,
        "number": attempt.number,
    }
    rows = [{**mine, **{name: getattr(each, name) for name in FIELDS}} for each in taken]
    if rows:
        tx.execute(insert(samples).on_conflict_do_nothing(), rows)
    of_replica = sa.and_(*(samples.c[name] == mine[name] for name in ("project", "kind", "subject", "task")))
    while tx.execute(sa.select(sa.func.count()).select_from(samples).where(of_replica)).scalar_one() > MOST:
        _thin(tx, of_replica)


def page(
    db: Database, project: str, job: str, *, task: str = "", after: int = 0, limit: int, kind: str = "job"
) -> list[Kept]:
    """Up to `limit` samples of a job in the order of their arrival, behind a row; of one task, if it is named."""
    asked = sa.select(samples).where(_of(project, kind, job), samples.c.row > after).order_by(samples.c.row)
    if task:
        asked = asked.where(samples.c.task == task)
    with db.read() as rows:
        return [_kept(row) for row in rows.execute(asked.limit(limit))]


def used(db: Database, project: str, job: str, *, kind: str = "job") -> list[Use]:
    """Sums and peaks of each replica."""
    its, total, most = samples.c, sa.func.sum, sa.func.max
    columns = (total(its.span), total(its.cpu), most(its.memory), most(its.processes), total(its.read))
    gpus = (total(its.gpu * its.span), most(its.gpu_memory))
    asked = sa.select(its.task, *columns, total(its.written), *gpus)
    with db.read() as rows:
        found = rows.execute(asked.where(_of(project, kind, job)).group_by(its.task).order_by(its.task))
        return [Use(*row) for row in found]


def sweep(db: Database, before: float) -> int:
    """Remove up to a thousand samples, the oldest first, that are older than `before`; how many there were."""
    oldest = sa.select(samples.c.row).order_by(samples.c.row).limit(TOGETHER)
    with db.read() as rows:
        first = rows.execute(sa.select(samples.c.time).order_by(samples.c.row).limit(1)).scalar()
        if first is None or first >= before:
            return 0
    gone = samples.delete().where(samples.c.row.in_(oldest), samples.c.time < before)
    return db.write(lambda tx: tx.execute(gone).rowcount)


def _thin(tx: sa.Connection, of_replica: sa.ColumnElement[bool]) -> None:
    """Make one of each two samples in the older half; those of two attempts stay apart."""
    older = sa.select(samples).where(of_replica).order_by(samples.c.row).limit(MOST // 2)
    kept = [_kept(row) for row in tx.execute(older)]
    changed, gone = [], []
    for first, second in _pairs(kept):
        joined = _joined(first.sample, second.sample)
        changed.append({"its": second.row, **{name: getattr(joined, name) for name in FIELDS}})
        gone.append(first.row)
    if changed:
        tx.execute(samples.update().where(samples.c.row == sa.bindparam("its")), changed)
    tx.execute(samples.delete().where(samples.c.row.in_(gone or [kept[0].row])))  # or each is an attempt of its own


def _pairs(kept: list[Kept]) -> Iterator[tuple[Kept, Kept]]:
    index = 0
    while index + 1 < len(kept):
        if kept[index].number == kept[index + 1].number:
            yield kept[index], kept[index + 1]
            index += 1
        index += 1


def _joined(first: Sample, second: Sample) -> Sample:
    span = first.span + second.span
    busy = None
    if first.gpu is not None and second.gpu is not None and span:
        busy = (first.gpu * first.span + second.gpu * second.span) / span
    held = [each for each in (first.gpu_memory, second.gpu_memory) if each is not None]
    return Sample(
        time=second.time,
        span=span,
        cpu=first.cpu + second.cpu,
        memory=max(first.memory, second.memory),
        processes=max(first.processes, second.processes),
        read=first.read + second.read,
        written=first.written + second.written,
        gpu=busy,
        gpu_memory=max(held, default=None),
    )


def _of(project: str, kind: str, subject: str) -> sa.ColumnElement[bool]:
    return (samples.c.project == project) & (samples.c.kind == kind) & (samples.c.subject == subject)


def _kept(row: sa.Row[Any]) -> Kept:
    return Kept(row.row, row.task, row.number, Sample(**{name: row._mapping[name] for name in FIELDS}))
