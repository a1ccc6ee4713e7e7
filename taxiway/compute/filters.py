"""Logging's filter language, as far as gcloud and people use it, turned into SQL over the log's rows.

    (resource.type="ml_job" OR resource.type="cloudml_job") AND resource.labels.job_id="J" AND timestamp>="T"

Comparisons = != < <= > >= and : (has), AND, OR (also written |), NOT (also written -), parentheses; two comparisons
side by side are both required. Source: https://cloud.google.com/logging/docs/view/logging-query-language
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
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
COLUMNS: dict[str, sa.ColumnElement[Any]] = {
    "timestamp": logs.c.timestamp,
    "receiveTimestamp": logs.c.timestamp,
    "insertId": logs.c.insert_id,
    "textPayload": logs.c.message,
    "jsonPayload.message": logs.c.message,
    "resource.labels.job_id": logs.c.subject,
    "labels.ml.googleapis.com/job_id": logs.c.subject,
    "resource.labels.task_name": logs.c.task,
    "labels.task_name": logs.c.task,
    "labels.ml.googleapis.com/task_name": logs.c.task,
    "resource.labels.project_id": logs.c.project,
}
CONSTANT = {"resource.type": "ml_job", "labels.ml.googleapis.com/job_id/log_area": "root"}  # what every line here has
LONGEST = 20_000  # characters: Logging's own limit
DEEPEST = 50  # parentheses and NOTs within each other
MOST = 300  # comparisons: SQLite's trees of expressions are limited


def sql(text: str) -> sa.ColumnElement[bool]:
    """The filter as a condition on the log's rows; an empty one is true.

    Raises InvalidArgument that names the place and what is understood.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.comparisons = 0

    def whole(self) -> sa.ColumnElement[bool]:
        if len(self.text) > LONGEST:
            raise errors.InvalidArgument(faults=[("filter", f"must have {LONGEST} characters at most.")])
        if not self.text.strip():
            return sa.true()
        found = self._either()
        if self._peek() is not None:
            raise self._wrong("expected AND, OR or the end")
        return found

    def _either(self) -> sa.ColumnElement[bool]:
        found = self._both()
        while self._take("bar", "|") or self._take("word", "OR"):
            found = sa.or_(found, self._both())
        return found

    def _both(self) -> sa.ColumnElement[bool]:
        found = self._one()
        while True:
            following = self._peek()
            if following is None or following in (("paren", ")"), ("bar", "|"), ("word", "OR")):
                return found
            self._take("word", "AND")
            found = sa.and_(found, self._one())

    def _one(self) -> sa.ColumnElement[bool]:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._wrong(f"goes deeper than {DEEPEST} parentheses")
        if self._take("word", "NOT") or self._take("bar", "-"):
            found = sa.not_(self._one())
        elif self._take("paren", "("):
            found = self._either()
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
        field = self._value("a field, such as resource.labels.job_id")
        token = self._peek()
        if token is None or token[0] != "compare":
            raise self._wrong(f"expected a comparison after {field}")
        self._next()
        value = self._value(f"a value for {field}")
        return _condition(field, token[1], value, self._wrong)

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


def _condition(
    field: str, compare: str, value: str, wrong: Callable[[str], errors.InvalidArgument]
) -> sa.ColumnElement[bool]:
    field = field.replace('"', "")
    if field in CONSTANT:
        held = CONSTANT[field]
        holds = value in held if compare == ":" else COMPARE[compare](held, value)
        return sa.true() if holds else sa.false()
    if field == "severity":
        return _severity(compare, value, wrong)
    if field == "logName":
        return sa.true()
    column = COLUMNS.get(field)
    if column is None:
        raise wrong(f"{field} is no field that can be asked for; there are {', '.join([*COLUMNS, 'severity'])}")
    if compare == ":":
        return column.contains(value, autoescape=True)
    if field in ("timestamp", "receiveTimestamp"):
        value = _nine_digits(value, wrong)
    found: sa.ColumnElement[bool] = COMPARE[compare](column, value)
    return found


def _severity(compare: str, value: str, wrong: Callable[[str], errors.InvalidArgument]) -> sa.ColumnElement[bool]:
    if value.upper() not in SEVERITIES:
        raise wrong(f"{value} is no severity; there are {', '.join(SEVERITIES)}")
    rank = SEVERITIES.index(value.upper())
    compared = COMPARE["=" if compare == ":" else compare]
    return logs.c.severity.in_([name for index, name in enumerate(SEVERITIES) if compared(index, rank)])


def _nine_digits(moment: str, wrong: Callable[[str], errors.InvalidArgument]) -> str:
    """A time as the rows have it: clients send any number of digits and any zone, and rows are compared as text."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-]\d\d:\d\d)))?", moment)
    try:
        if match is None:
            raise ValueError
        day, clock, fraction, zone = match.groups()
        there = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}{zone or '+00:00'}")
    except ValueError as error:
        raise wrong(f"{moment} is no time; expected one such as 2026-01-31T12:00:00Z") from error
    return f"{there.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}.{(fraction or '').ljust(9, '0')}Z"
