"""The filter of jobs.list, as a condition on the rows of jobs.

    jobId:rnn* AND (state:FAILED OR state:CANCELLED) AND NOT labels.owner=ann AND createTime>"2026-01-31T12:00:00Z"

`:` and `=` are alike: the whole value, in which * stands for anything; `labels.KEY:*` asks whether a label is there.
Source: https://cloud.google.com/ai-platform/training/docs/managing-models-jobs, and https://google.aip.dev/160 for `*`.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from taxiway.compute import filters, logs
from taxiway.compute.filters import COMPARE, Wrong
from taxiway.db.tables import jobs
from taxiway.jobs.states import State

TEXTS: dict[str, sa.ColumnElement[Any]] = {"jobId": jobs.c.id, "state": jobs.c.state}
TIMES: dict[str, sa.ColumnElement[Any]] = {
    "createTime": jobs.c.created,
    "startTime": jobs.c.started,
    "endTime": jobs.c.ended,
}
LABEL = "labels."
EQUAL = (":", "=", "!=")


def sql(text: str) -> sa.ColumnElement[bool]:
    """The filter as a condition; an empty one is true. Raises InvalidArgument that names the place."""
    return filters.condition(text, _condition, example="jobId")


def _condition(name: str, compare: str, value: str, wrong: Wrong) -> sa.ColumnElement[bool]:
    name = name.replace('"', "")
    if name in TIMES:
        moment = logs.nanos(filters.nine_digits(value, wrong)) // 1000
        shown = sa.cast(sa.func.round(TIMES[name] * 1e6), sa.BigInteger)  # as the wire tells it, to the microsecond
        return _known(COMPARE["=" if compare == ":" else compare](shown, moment))
    if name not in TEXTS and not (name.startswith(LABEL) and name != LABEL):
        raise wrong(f"{name} is no field that can be asked for; there are {', '.join([*TEXTS, *TIMES])}, labels.KEY")
    if compare not in EQUAL:
        raise wrong(f"{name} is compared by {' '.join(EQUAL)}, and not by {compare}")
    if name == "state":
        value = _state(value, wrong)
    column = TEXTS[name] if name in TEXTS else _label(name.removeprefix(LABEL))
    found = _known(column.bool_op("GLOB")(_glob(value)) if "*" in value else column == value)
    return sa.not_(found) if compare == "!=" else found


def _label(key: str) -> sa.ColumnElement[Any]:
    """A label's value; null without it. Not by a path in the JSON, whose keys SQLite may compare with escapes."""
    each = sa.func.json_each(jobs.c.labels).table_valued("key", "value")
    return sa.select(each.c.value).where(each.c.key == key).correlate(jobs).scalar_subquery()


def _known(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """False where SQL says unknown: a job without the label, or that never started, is none of those asked for."""
    return sa.func.coalesce(condition, sa.false())


def _state(value: str, wrong: Wrong) -> str:
    words = [state.value for state in State]
    if "*" not in value and value.upper() not in words:
        raise wrong(f"{value} is no state of a job; there are {', '.join(words)}")
    return value.upper()


def _glob(value: str) -> str:
    """Only * stands for anything; GLOB's other signs for themselves."""
    return value.replace("[", "[[]").replace("?", "[?]")
