"""A bucket's settings on the wire: versions, soft delete, lifecycle rules, and what is only kept and told.

Fields from https://cloud.google.com/storage/docs/json_api/v1/buckets. A field that would promise what is not done here
is refused by its name; those of who may are `storage_acl`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from taxiway import errors
from taxiway.api import wire
from taxiway.storage import lifecycle
from taxiway.storage.buckets import Access, Bucket

DAY = 86_400
SOFT_DELETE = (7 * DAY, 90 * DAY)  # seconds, at least and at most; 0: off

# What a client may say to have nothing of it, and the words for who says more.
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "retentionPolicy": (bool, "objects can be deleted at any age"),
    "objectRetention": (bool, "objects can be deleted at any age"),
    "defaultEventBasedHold": (bool, "objects have no holds"),
    "encryption": (bool, "there are no keys of Cloud KMS; encrypt the home's disk"),
    "hierarchicalNamespace": (lambda told: _enabled(told), "names are flat"),
    "autoclass": (lambda told: _enabled(told), "a class changes by lifecycle rules alone"),
    "customPlacementConfig": (bool, "there is one place"),
    "ipFilter": (lambda told: isinstance(told, dict) and told.get("mode") not in (None, "Disabled"), "it does nothing"),
}


class Cors(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    origin: list[str] = []
    method: list[str] = []
    response_header: list[str] = []
    max_age_seconds: Annotated[int, Meta(ge=0)] = 0


class Website(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    main_page_suffix: str | None = None
    not_found_page: str | None = None


class Logging(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    log_bucket: str | None = None
    log_object_prefix: str | None = None


class Billing(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    requester_pays: bool | None = None


KEPT: dict[str, Any] = {"cors": list[Cors], "website": Website, "logging": Logging, "billing": Billing, "rpo": str}
FIELDS = ("versioning", "softDeletePolicy", "lifecycle", *KEPT)


def of_new_bucket(body: Mapping[str, Any], *, now: float) -> dict[str, Any]:
    """The columns that a new bucket's body sets. Raises InvalidArgument, Unimplemented."""
    return _columns(body, {}, now)


def of_patched_bucket(body: Mapping[str, Any], *, replace: bool, now: float) -> Access:
    """What a change of a bucket says of its settings: null takes one back, and so does silence if `replace` (PUT).

    Raises InvalidArgument, Unimplemented.
    """
    said = {**dict.fromkeys(FIELDS), **body} if replace else body
    _columns(said, {}, now)  # before anything is looked at
    return lambda current: _columns(said, {} if replace else current.extra, now)


def form(found: Bucket) -> dict[str, Any]:
    """The part of a bucket's resource that is told by its settings."""
    since = found.extra.get("softDeleteSince", found.created)
    told: dict[str, Any] = {
        "softDeletePolicy": {
            "retentionDurationSeconds": str(found.soft_delete),
            "effectiveTime": wire.timestamp(since),
        }
    }
    if found.versioning:
        told["versioning"] = {"enabled": True}
    if found.lifecycle:
        told["lifecycle"] = found.lifecycle
    return {**told, **{field: found.extra[field] for field in KEPT if field in found.extra}}


def _columns(body: Mapping[str, Any], before: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Columns of the bucket's row, and what changes in `extra`: None takes a field out."""
    for field, (asked, why) in REFUSED.items():
        if asked(body.get(field)):
            raise errors.Unimplemented(f"{field}: not offered here ({why}); leave it out.")
    columns: dict[str, Any] = {}
    extra: dict[str, Any] = {field: _kept(field, body[field], before.get(field)) for field in KEPT if field in body}
    if "versioning" in body:
        columns["versioning"] = _enabled(body["versioning"])
    if "lifecycle" in body:
        columns["lifecycle"] = lifecycle.checked(body["lifecycle"])
    if "softDeletePolicy" in body:
        columns["soft_delete"] = _retention(body["softDeletePolicy"])
        extra["softDeleteSince"] = now
    return {**columns, "extra": extra} if extra else columns


def _enabled(told: object) -> bool:
    """{"enabled": true}; null is no. Raises InvalidArgument."""
    if told is None:
        return False
    if not isinstance(told, dict) or not isinstance(told.get("enabled", False), bool | None):
        raise errors.InvalidArgument(f'Expected {{"enabled": true}} or {{"enabled": false}}; got {wire.shown(told)}.')
    return bool(told.get("enabled"))


def _retention(told: object) -> int:
    field, (least, most) = "softDeletePolicy.retentionDurationSeconds", SOFT_DELETE
    said = told.get("retentionDurationSeconds") if isinstance(told, dict) else told
    text = str(0 if said is None else said)
    if (told is not None and not isinstance(told, dict)) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise wire.wrong(field, f"Expected a whole number of seconds; got {wire.shown(said)}.")
    if int(text) and not least <= int(text) <= most:
        raise wire.wrong(field, f"Expected 0 (off), or from {least} (7 days) to {most} (90 days); got {text}.")
    return int(text)


def _kept(field: str, told: object, before: object) -> object:
    """What is kept of a field; a JSON object keeps the parts that a change does not name. None: nothing."""
    if isinstance(told, dict) and isinstance(before, dict):
        told = {**before, **told}
    if isinstance(told, dict):
        told = {name: value for name, value in told.items() if value is not None}
    if not told:
        return None
    try:
        msgspec.convert(told, KEPT[field], strict=False)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$")
        raise wire.wrong(f"{field}{path.rstrip('`')}", f"{sentence}.") from error
    return told
