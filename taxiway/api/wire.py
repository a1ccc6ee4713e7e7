"""What all of Google's APIs write alike: times, pages, masks and errors."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import msgspec

from taxiway import errors

Item = TypeVar("Item")

MOST_FAULTS = 20
INSUFFICIENT = "insufficientPermissions"  # the reason of a token whose scopes do not cover what is asked

WHOLE = re.compile(r"-?[0-9]{1,20}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DURATION = re.compile(r"-?\d{1,12}(\.\d{1,9})?s", re.ASCII)


# ---- times ----------------------------------------------------------------------------------------------------------


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, always with six digits, so that texts sort as times do."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z".rjust(27, "0")


def parse_timestamp(value: object) -> float:
    """RFC 3339 with any offset and up to nine digits -> seconds since the epoch, cut to microseconds.

    ValueError says in a sentence what was expected.
    """
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    expected = "Expected a time such as 2026-11-01T09:30:00Z."
    if not match:
        raise ValueError(expected)
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
        return moment.replace(microsecond=int((fraction or ".")[1:7].ljust(6, "0"))).timestamp()
    except ValueError as error:
        raise ValueError(expected) from error


def duration(seconds: float) -> str:
    """7200.0 -> "7200s", 1.5 -> "1.5s"; nine digits at most."""
    digits = f"{seconds:.9f}".rstrip("0").rstrip(".")
    return f"{'0' if digits == '-0' else digits}s"


def parse_duration(value: object) -> float:
    """ "7200s" -> 7200.0. ValueError says in a sentence what was expected."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return float(value[:-1])
    raise ValueError("Expected a duration in seconds such as 7200s.")


# ---- pages ----------------------------------------------------------------------------------------------------------


def page_size(query: Mapping[str, str], default: int = 20, most: int = 100, name: str = "pageSize") -> int:
    """How many items a caller wants: `default` if unsaid or 0, `most` if more (https://google.aip.dev/158)."""
    text = query.get(name, "") or "0"
    if not WHOLE.fullmatch(text) or int(text) < 0:
        raise wrong(name, f"Expected a whole number from 1 to {most}, or nothing for {default}; got {shown(text)}.")
    return min(int(text) or default, most)


def page_token(key: Sequence[object]) -> str:
    """The key of the last item shown (strings and numbers), as an opaque text that is safe in a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def page_key(query: Mapping[str, str], kind: type[Item], name: str = "pageToken") -> Item | None:
    """The key inside the caller's token, as a `kind` such as tuple[float, str]; None for the first page."""
    token = query.get(name, "")
    if not token:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=kind)
    except ValueError as error:
        raise wrong(
            name, "Expected the nextPageToken of the page before, unchanged; start again without it."
        ) from error


def page(
    name: str,
    items: Sequence[Item],
    size: int,
    key: Callable[[Item], Sequence[object]],
    form: Callable[[Item], object],
) -> dict[str, Any]:
    """A list response: {name: items, nextPageToken}; {} if there are none, as Google's.

    `items` are at most `size` + 1 of them, read after the last page's key: the one too many says that more follow.
    """
    shown = items[:size]
    written: dict[str, Any] = {name: [form(item) for item in shown]} if shown else {}
    if len(items) > size:
        written["nextPageToken"] = page_token(key(shown[-1]))
    return written


# ---- switches -------------------------------------------------------------------------------------------------------


def switch(query: Mapping[str, str], name: str) -> bool:
    """Whether a parameter is set; raises InvalidArgument for what is neither true nor false."""
    text = query.get(name, "").lower()
    if text not in ("", "true", "false"):
        raise wrong(name, f"Expected true or false; got {shown(text)}.")
    return text == "true"


# ---- field masks ----------------------------------------------------------------------------------------------------


def mask(text: str, allowed: Collection[str], field: str = "updateMask") -> tuple[str, ...]:
    """ "description,default_version.name" -> those of `allowed` (dotted lowerCamel) that it names, each once.

    Raises InvalidArgument for an empty mask and for every name that may not be updated.
    """
    offered = f"Can be updated: {', '.join(sorted(allowed))}."
    named = [path.strip() for path in text.split(",") if path.strip()]
    if not named:
        raise wrong(field, f"Say which fields to update, joined by commas. {offered}")
    spelled = {path: path if path in allowed else _camel(path) for path in named}
    faults = [
        (field, f"{shown(path)} cannot be updated. {offered}") for path, name in spelled.items() if name not in allowed
    ]
    if faults:
        raise errors.InvalidArgument(faults=faults[:MOST_FAULTS])
    return tuple(dict.fromkeys(spelled.values()))


def _camel(path: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), path)


# ---- bodies ---------------------------------------------------------------------------------------------------------


def message(value: object, field: str = "") -> Mapping[str, Any]:
    """A body, or a message inside one under `field`; {} for none. Raises InvalidArgument for what is no JSON object."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        told = "must be a JSON object."
        raise wrong(field, told) if field else errors.InvalidArgument(f"The request body {told}")
    return value


def strings(body: Mapping[str, Any], field: str) -> list[str]:
    """A list of strings inside a body; [] for none. Raises InvalidArgument."""
    value = body.get(field) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise wrong(field, "must be a list of strings.")
    return value


# ---- errors ---------------------------------------------------------------------------------------------------------


def ml_body(error: errors.Error) -> dict[str, Any]:
    """An error as google.rpc says it; each fault is a violation of a field."""
    told: dict[str, Any] = {"code": error.code, "message": str(error), "status": error.status}
    if isinstance(error, errors.InvalidArgument) and error.faults:
        violations = [{"field": field, "description": sentence} for field, sentence in error.faults]
        told["details"] = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}]
    if error.reason == INSUFFICIENT:
        told["details"] = [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                "domain": "googleapis.com",
            }
        ]
    return {"error": told}


def storage_body(error: errors.Error) -> dict[str, Any]:
    """The same as the Cloud Storage JSON API says it."""
    detail = {"domain": "global", "reason": error.reason, "message": str(error)}
    return {"error": {"code": error.code, "message": str(error), "errors": [detail]}}


# ---- faults ----------------------------------------------------------------------------------------------------------


def cut(text: str) -> str:
    """A text, short enough for a sentence."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def shown(value: object) -> str:
    """A value as a sentence names it."""
    if isinstance(value, dict):
        return "a JSON object"
    if isinstance(value, list | tuple):
        return "a list"
    return cut(msgspec.json.encode(value).decode())


def wrong(field: str, sentence: str) -> errors.InvalidArgument:
    """The refusal for one field."""
    return errors.InvalidArgument(faults=[(field, sentence)])
