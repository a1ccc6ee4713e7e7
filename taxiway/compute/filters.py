"""Logging's filter language, as far as gcloud and people use it, turned into SQL over the log's rows.

    (resource.type="ml_job" OR resource.type="cloudml_job") AND resource.labels.job_id="J" AND timestamp>="T"

Comparisons = != < <= > >= and : (has), AND, OR (also written |), NOT (also written -), parentheses; two comparisons
side by side are both required. NOT binds the tightest, then OR, then AND: `a OR b AND c` is `(a OR b) AND c`.
Source: https://cloud.google.com/logging/docs/view/logging-query-language
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.compute.logs import SEVERITIES
from taxiway.db.tables import logs

TOKEN = re.compile(
    r"""\s*(?:
      (?P<paren>[()])
    | (?P<compare><=|>=|!=|=|<|>|:)
    | (?P<bar>\||-(?=\S))
    | "(?P<text>(?:[^"\\]|\\.)*)"
    | (?P<word>(?:[^\s()<>=!:|"]|(?<=\.)"[^"]*")+)
    )""",
    re.VERBOSE,
)
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TIMES = ("timestamp", "receiveTimestamp")


@dataclass(frozen=True, slots=True)
class Fields:
    """What can be asked of some table's rows."""

    columns: Mapping[str, sa.ColumnElement[Any]]  # of text
    time: sa.ColumnElement[Any]
    severity: sa.ColumnElement[str]
    constant: Mapping[str, str]  # what every row has
    ignored: Collection[str] = ()  # fields that any value is right for
    others: Mapping[str, tuple[sa.ColumnElement[Any], Callable[[str], Any]]] = field(default_factory=dict)
    moment: Callable[[str], Any] = str  # a time of nine digits -> as `time` has it


LINES_COLUMNS: dict[str, sa.ColumnElement[Any]] = {
    "insertId": logs.c.insert_id,
    "textPayload": logs.c.message,
    "jsonPayload.message": logs.c.message,
    "resource.labels.job_id": logs.c.subject,
    "labels.ml.googleapis.com/job_id": logs.c.subject,
    "resource.labels.task_name": logs.c.task,
    "labels.task_name": logs.c.task,
    "labels.ml.googleapis.com/task_name": logs.c.task,
    "resource.labels.project_id": logs.c.project,
    "labels.ml.googleapis.com/trial_id": logs.c.trial,
}
LINES = Fields(
    columns=LINES_COLUMNS,
    time=logs.c.timestamp,
    severity=logs.c.severity,
    constant={"resource.type": "ml_job", "labels.ml.googleapis.com/job_id/log_area": "root"},
    ignored=("logName",),
)
LONGEST = 20_000  # characters: Logging's own limit
DEEPEST = 50  # parentheses and NOTs within each other
MOST = 300  # comparisons: SQLite's trees of expressions are limited


def sql(text: str, fields: Fields = LINES) -> sa.ColumnElement[bool]:
    """The filter as a condition on the rows of a log; an empty one is true.

    Raises InvalidArgument that names the place and what is understood.
    """
    return _Parser(text, lambda *asked: _condition(fields, *asked)).whole()


def condition(
    text: str, compared: Callable[[str, str, str, Wrong], sa.ColumnElement[bool]], *, example: str
) -> sa.ColumnElement[bool]:
    """A filter over other rows than a log's: `compared` answers for (field, comparison, value); an empty one is true.

    What it cannot answer it raises by `Wrong`, with a sentence. `example` is a field, to be named to who gave none.
    """
    return _Parser(text, compared, example).whole()


def asked(text: str) -> list[tuple[str, str]]:
    """(field, value) of every comparison of a filter, but for what a NOT excludes. Raises InvalidArgument."""
    found: list[tuple[str, str]] = []

    def note(name: str, compare: str, value: str, _wrong: Wrong) -> sa.ColumnElement[bool]:
        if not parser.negated and compare != "!=":
            found.append((name.replace('"', ""), value))
        return sa.true()

    parser = _Parser(text, note)
    parser.whole()
    return found


Wrong = Callable[[str], errors.InvalidArgument]


class _Parser:
    def __init__(
        self,
        text: str,
        condition: Callable[[str, str, str, Wrong], sa.ColumnElement[bool]],
        example: str = "resource.labels.job_id",
    ) -> None:
        self.text = text
        self.condition = condition
        self.example = example
        self.negated = False
        self.at = 0
        self.depth = 0
        self.comparisons = 0

    def whole(self) -> sa.ColumnElement[bool]:
        if len(self.text) > LONGEST:
            raise errors.InvalidArgument(faults=[("filter", f"must have {LONGEST} characters at most.")])
        if not self.text.strip():
            return sa.true()
        found = self._all()
        if self._peek() is not None:
            raise self._wrong("expected AND, OR or the end")
        return found

    def _all(self) -> sa.ColumnElement[bool]:
        found = self._either()
        while self._peek() not in (None, ("paren", ")")):
            self._take("word", "AND")
            found = sa.and_(found, self._either())
        return found

    def _either(self) -> sa.ColumnElement[bool]:
        found = self._one()
        while self._take("bar", "|") or self._take("word", "OR"):
            found = sa.or_(found, self._one())
        return found

    def _one(self) -> sa.ColumnElement[bool]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._wrong(f"goes deeper than {DEEPEST} parentheses")
        if self._take("word", "NOT") or self._take("bar", "-"):
            self.negated = not self.negated
            found = sa.not_(self._one())
            self.negated = not self.negated
        elif self._take("paren", "("):
            found = self._all()
            if not self._take("paren", ")"):
                raise self._wrong("expected )")
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> sa.ColumnElement[bool]:
        self.comparisons += 1
        if self.comparisons > MOST:
            raise self._wrong(f"has more than {MOST} comparisons")
        name = self._value(f"a field, such as {self.example}")
        token = self._peek()
        if token is None or token[0] != "compare":
            raise self._wrong(f"expected a comparison after {name}")
        self._next()
        value = self._value(f"a value for {name}")
        return self.condition(name, token[1], value, self._wrong)

    def _value(self, what: str) -> str:
        token = self._peek()
        if token is None or token[0] not in ("text", "word"):
            raise self._wrong(f"expected {what}")
        self._next()
        return token[1]

    def _peek(self) -> tuple[str, str] | None:
        match = TOKEN.match(self.text, self.at)
        if match is None:
            if self.text[self.at :].strip():
                raise self._wrong("cannot be read")
            return None
        kind = str(match.lastgroup)
        value = match.group(kind)
        return kind, re.sub(r"\\(.)", r"\1", value) if kind == "text" else value

    def _next(self) -> None:
        match = TOKEN.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _take(self, kind: str, value: str) -> bool:
        if self._peek() != (kind, value):
            return False
        self._next()
        return True

    def _wrong(self, why: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(faults=[("filter", f"{why}, at character {self.at + 1} of {self.text!r}.")])


def _condition(fields: Fields, name: str, compare: str, value: str, wrong: Wrong) -> sa.ColumnElement[bool]:
    name = name.replace('"', "")
    if name in fields.constant:
        held = fields.constant[name]
        holds = value in held if compare == ":" else COMPARE[compare](held, value)
        return sa.true() if holds else sa.false()
    if name == "severity":
        return _severity(fields.severity, compare, value, wrong)
    if name in fields.ignored:
        return sa.true()
    if name in TIMES:
        return _compared(fields.time, compare, fields.moment(nine_digits(value, wrong)))
    if name in fields.others:
        column, read = fields.others[name]
        try:
            return _compared(column, compare, read(value))
        except ValueError as error:
            raise wrong(f"{value} is no value of {name}") from error
    if name not in fields.columns:
        known = ", ".join([*TIMES, *fields.columns, *fields.others, "severity"])
        raise wrong(f"{name} is no field that can be asked for; there are {known}")
    column = fields.columns[name]
    return column.contains(value, autoescape=True) if compare == ":" else _compared(column, compare, value)


def _compared(column: sa.ColumnElement[Any], compare: str, value: Any) -> sa.ColumnElement[bool]:
    found: sa.ColumnElement[bool] = COMPARE["=" if compare == ":" else compare](column, value)
    return found


def _severity(column: sa.ColumnElement[str], compare: str, value: str, wrong: Wrong) -> sa.ColumnElement[bool]:
    if value.upper() not in SEVERITIES:
        raise wrong(f"{value} is no severity; there are {', '.join(SEVERITIES)}")
    rank = SEVERITIES.index(value.upper())
    compared = COMPARE["=" if compare == ":" else compare]
    return column.in_([name for index, name in enumerate(SEVERITIES) if compared(index, rank)])


def nine_digits(moment: str, wrong: Wrong) -> str:
    """A time as `logs.stamp` writes it: clients send any number of digits and any zone; lines are compared as text."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-]\d\d:\d\d)))?", moment)
    try:
        if match is None:
            raise ValueError
        day, clock, fraction, zone = match.groups()
        there = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}{zone or '+00:00'}")
    except ValueError as error:
        raise wrong(f'{moment} is no time; expected one in quotes, such as "2026-01-31T12:00:00Z"') from error
    return f"{there.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}.{(fraction or '').ljust(9, '0')}Z"
