"""Lifecycle rules: which objects of a bucket are to be deleted or to change their class, and when. Nothing acts here.

    told = lifecycle.checked({"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]})
    lifecycle.decide(lifecycle.rules(told), Thing("a.csv", created=0.0), now=31 * DAY)   # Action(type="Delete")

Rules from https://cloud.google.com/storage/docs/lifecycle.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from taxiway import errors
from taxiway.storage.buckets import CLASSES

DAY = 86_400.0
MOST = 100  # rules of one bucket: Cloud Storage's limit
DELETE, SET_CLASS, ABORT = "Delete", "SetStorageClass", "AbortIncompleteMultipartUpload"
TYPES = (DELETE, SET_CLASS, ABORT)
COLDNESS = dict.fromkeys(CLASSES, 0) | {"NEARLINE": 1, "COLDLINE": 2, "ARCHIVE": 3}  # a colder one rests cheaper
DATES = ("created_before", "noncurrent_time_before")
OF_UPLOADS = {"age", "matches_prefix", "matches_suffix"}

Days = Annotated[int, Meta(ge=0)]


class Action(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """What a rule does; `storage_class` is where SetStorageClass leads."""

    type: str
    storage_class: str | None = None


class Condition(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """When a rule does it: all that is said must hold. Dates are YYYY-MM-DD, and mean their midnight in UTC."""

    age: Days | None = None
    created_before: str | None = None
    is_live: bool | None = None
    num_newer_versions: Days | None = None
    days_since_noncurrent_time: Days | None = None
    noncurrent_time_before: str | None = None
    matches_prefix: list[str] | None = None
    matches_suffix: list[str] | None = None
    matches_storage_class: list[str] | None = None


class Rule(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    action: Action
    condition: Condition


class Thing(msgspec.Struct, frozen=True):
    """What a rule may ask of an object, or of an upload that is not finished."""

    name: str
    created: float
    storage_class: str = "STANDARD"
    noncurrent: float | None = None  # since when; None: it is live
    newer: int = 0  # generations of the same name that came later


def checked(told: object) -> dict[str, Any] | None:
    """A bucket's `lifecycle` as it is kept; None: there are no rules. Raises InvalidArgument that names every fault."""
    said = {} if told is None else told
    listed = said.get("rule", []) if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(listed, list | None) or said.keys() - {"rule"}:
        raise errors.InvalidArgument(faults=[("lifecycle", 'Expected {"rule": [...]}.')])
    faults: list[tuple[str, str]] = []
    kept: list[Rule] = []
    for index, one in enumerate(listed or []):
        field = f"lifecycle.rule[{index}]"
        try:
            kept.append(msgspec.convert(one, Rule, strict=False))
        except msgspec.ValidationError as error:
            faults.append(_of_conversion(field, str(error)))
        else:
            faults += _faults(field, kept[-1])
    if len(kept) > MOST:
        faults.append(("lifecycle.rule", f"A bucket has at most {MOST} rules; these are {len(kept)}."))
    if faults:
        raise errors.InvalidArgument(faults=faults[:MOST])
    return {"rule": msgspec.to_builtins(kept)} if kept else None


def rules(kept: object) -> list[Rule]:
    """Of what `checked` answered."""
    return [] if kept is None else msgspec.convert(kept, dict[str, list[Rule]])["rule"]


def decide(of: Iterable[Rule], thing: Thing, *, now: float) -> Action | None:
    """What is to be done with an object: deleting it goes before a change of its class, and the coldest class wins.

    A class only ever becomes a colder one.
    """
    due = [rule.action for rule in of if rule.action.type != ABORT and _holds(rule.condition, thing, now)]
    for action in due:
        if action.type == DELETE:
            return action
    coldest = max(due, key=_coldness, default=None)
    if coldest is None or _coldness(coldest) <= COLDNESS.get(thing.storage_class, 0):
        return None
    return coldest


def abandons(of: Iterable[Rule], upload: Thing, *, now: float) -> bool:
    """Whether an upload that is not finished is to be given up."""
    return any(rule.action.type == ABORT and _holds(rule.condition, upload, now) for rule in of)


def counts_versions(of: Iterable[Rule]) -> bool:
    """Whether a rule asks for `Thing.newer`."""
    return any(rule.condition.num_newer_versions is not None for rule in of)


def _holds(condition: Condition, thing: Thing, now: float) -> bool:
    since = thing.noncurrent
    asked: list[tuple[object, bool]] = [
        (condition.age, now >= thing.created + (condition.age or 0) * DAY),
        (condition.created_before, thing.created < _midnight(condition.created_before)),
        (condition.is_live, condition.is_live is (since is None)),
        (condition.num_newer_versions, thing.newer >= (condition.num_newer_versions or 0)),
        (
            condition.days_since_noncurrent_time,
            since is not None and now >= since + (condition.days_since_noncurrent_time or 0) * DAY,
        ),
        (condition.noncurrent_time_before, since is not None and since < _midnight(condition.noncurrent_time_before)),
        (condition.matches_prefix, thing.name.startswith(tuple(condition.matches_prefix or ()))),
        (condition.matches_suffix, thing.name.endswith(tuple(condition.matches_suffix or ()))),
        (condition.matches_storage_class, thing.storage_class in (condition.matches_storage_class or ())),
    ]
    return all(held for wanted, held in asked if wanted is not None)


def _coldness(action: Action) -> int:
    return COLDNESS[action.storage_class or "STANDARD"]


@functools.lru_cache(maxsize=256)
def _midnight(date: str | None) -> float:
    """Raises ValueError."""
    if date is None:
        return 0.0
    return datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()


def _of_conversion(field: str, message: str) -> tuple[str, str]:
    """msgspec's sentence and where it is: `Expected `int`, got `str` - at `$.condition.age``."""
    sentence, _, path = message.partition(" - at `$")
    unknown = re.search(r"unknown field `(\w+)`", sentence)
    where = field + path.rstrip("`") + (f".{unknown[1]}" if unknown else "")
    return (where, "is not offered; leave it out." if unknown else f"{sentence}.")


def _faults(field: str, rule: Rule) -> list[tuple[str, str]]:
    action, condition = rule.action, rule.condition
    said = {name for name in Condition.__struct_fields__ if getattr(condition, name) is not None}
    faults = []
    if action.type not in TYPES:
        faults.append((f"{field}.action.type", f"{action.type!r} is no action. There are: {', '.join(TYPES)}."))
    if action.type == SET_CLASS and action.storage_class not in CLASSES:
        faults.append((f"{field}.action.storageClass", f"Required, one of {', '.join(CLASSES)}."))
    if action.type != SET_CLASS and action.storage_class is not None:
        faults.append((f"{field}.action.storageClass", f"means nothing to {action.type}; leave it out."))
    if not said:
        faults.append((f"{field}.condition", "says nothing: the rule would hold for every object. Say when it does."))
    for name in sorted(said):
        value, where = getattr(condition, name), f"{field}.condition.{_camel(name)}"
        if action.type == ABORT and name not in OF_UPLOADS:
            faults.append((where, f"cannot be asked for {ABORT}; age, matchesPrefix and matchesSuffix can."))
        if name in DATES and not _is_date(value):
            faults.append((where, f"Expected a date such as 2026-11-01; got {value[:40]!r}."))
        if name == "matches_storage_class" and not set(value) <= set(CLASSES):
            faults.append((where, f"Expected some of {', '.join(CLASSES)}."))
    return faults


def _is_date(text: str) -> bool:
    try:
        return _midnight(text) is not None
    except ValueError:
        return False


def _camel(name: str) -> str:
    return Condition.__struct_encode_fields__[Condition.__struct_fields__.index(name)]
