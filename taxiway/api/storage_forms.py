"""Buckets and objects as the Cloud Storage JSON API writes them, and what it says in queries and bodies.

Fields from https://cloud.google.com/storage/docs/json_api/v1/{buckets,objects}. Fields that we do not keep are ignored
in an object's body, as unknown query parameters are: clients send back what they once read.
"""

from __future__ import annotations

import base64
import email.utils
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from taxiway import errors
from taxiway.api import wire
from taxiway.storage.buckets import CLASSES, Bucket
from taxiway.storage.objects import DEFAULT_TYPE, Conditions, Metadata, Object
from taxiway.storage.uploads import Checksums

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CUSTOM_BYTES = 8 * 1024  # all keys and values of an object's own metadata: Cloud Storage's limit


class Said(msgspec.Struct, rename="camel", frozen=True):
    """What an object's body may say; None takes a field back to its default, UNSET leaves it."""

    name: str | None = None
    content_type: str | UnsetType | None = UNSET
    content_encoding: str | UnsetType | None = UNSET
    content_disposition: str | UnsetType | None = UNSET
    content_language: str | UnsetType | None = UNSET
    cache_control: str | UnsetType | None = UNSET
    storage_class: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET
    md5_hash: str | None = None
    crc32c: str | None = None

    def changes(self) -> dict[str, Any]:
        """The fields that were said, by the names that `objects.Metadata` has for them. Raises InvalidArgument."""
        said = {field: getattr(self, field) for field in _PLAIN if getattr(self, field) is not UNSET}
        if self.metadata is not UNSET:
            said["custom"] = self.metadata
        _check(said)
        return said

    def checksums(self) -> Checksums:
        return Checksums(self.md5_hash, self.crc32c)


_PLAIN = (
    "content_type",
    "content_encoding",
    "content_disposition",
    "content_language",
    "cache_control",
    "storage_class",
)
EVERY_FIELD: dict[str, Any] = dict.fromkeys((*_PLAIN[:-1], "custom"))  # what a PUT that does not name them resets


def said(body: object) -> Said:
    """Raises InvalidArgument that names the field."""
    try:
        return msgspec.convert(body or {}, Said)
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(f"The object's metadata is not as it should be: {error}.") from error


def metadata(changes: Mapping[str, Any]) -> Metadata:
    """A new object's metadata of what was said."""
    values = {field: value for field, value in changes.items() if value is not None}
    if "custom" in values:
        values["custom"] = {key: value for key, value in values["custom"].items() if value is not None}
    return Metadata(**values)


def conditions(query: Mapping[str, str], prefix: str = "if") -> Conditions:
    """ifGenerationMatch and its kin; `prefix` ifSource for those about a copy's source. Raises InvalidArgument."""
    return Conditions(
        generation=whole(query, f"{prefix}GenerationMatch"),
        generation_not=whole(query, f"{prefix}GenerationNotMatch"),
        metageneration=whole(query, f"{prefix}MetagenerationMatch"),
        metageneration_not=whole(query, f"{prefix}MetagenerationNotMatch"),
    )


def whole(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise errors.InvalidArgument(faults=[(name, f"Expected a whole number; got {text[:100]!r}.")])
    return int(text)


def etag(generation: int, metageneration: int) -> str:
    """Another text for every change. It is valid base64, because gcloud decodes it."""
    return base64.b64encode(f"{generation}/{metageneration}".encode()).decode()


def object_form(base: str, found: Object, *, full: bool = False) -> dict[str, Any]:
    """An object's resource; `full` (projection=full) adds its owner and who may read it."""
    name = quote(found.name, safe="")
    created = _time(found.created)
    form: dict[str, Any] = {
        "kind": "storage#object",
        "id": f"{found.bucket}/{found.name}/{found.generation}",
        "selfLink": f"{base}/storage/v1/b/{found.bucket}/o/{name}",
        "mediaLink": f"{base}/download/storage/v1/b/{found.bucket}/o/{name}?generation={found.generation}&alt=media",
        "name": found.name,
        "bucket": found.bucket,
        "generation": str(found.generation),
        "metageneration": str(found.metageneration),
        "contentType": found.content_type,
        "storageClass": found.storage_class,
        "size": str(found.size),
        "crc32c": found.crc32c,
        "etag": etag(found.generation, found.metageneration),
        "timeCreated": created,
        "updated": created if found.updated == found.created else _time(found.updated),
        "timeStorageClassUpdated": created,
        "timeFinalized": created,
    }
    if found.md5 is not None:
        form["md5Hash"] = found.md5
    if found.components:
        form["componentCount"] = found.components
    if found.content_encoding:
        form["contentEncoding"] = found.content_encoding
    if found.content_disposition:
        form["contentDisposition"] = found.content_disposition
    if found.content_language:
        form["contentLanguage"] = found.content_language
    if found.cache_control:
        form["cacheControl"] = found.cache_control
    if found.custom:
        form["metadata"] = found.custom
    if full:
        entity = _entity(found.owner)
        form["owner"] = {"entity": entity}
        form["acl"] = [
            {
                "kind": "storage#objectAccessControl",
                "bucket": found.bucket,
                "object": found.name,
                "generation": str(found.generation),
                "entity": entity,
                "role": "OWNER",
                "etag": form["etag"],
            }
        ]
    return form


_CHEAP: dict[str, Callable[[Object], object]] = {
    "name": lambda found: found.name,
    "bucket": lambda found: found.bucket,
    "size": lambda found: str(found.size),
    "generation": lambda found: str(found.generation),
    "metageneration": lambda found: str(found.metageneration),
    "contentType": lambda found: found.content_type,
    "crc32c": lambda found: found.crc32c,
    "md5Hash": lambda found: found.md5,
    "updated": lambda found: _time(found.updated),
    "timeCreated": lambda found: _time(found.created),
}


def object_part(base: str, found: Object, fields: Collection[str], *, full: bool = False) -> dict[str, Any]:
    """Of an object's resource only these fields; those that listings ask for are written without the others."""
    if all(field in _CHEAP for field in fields):
        return {field: value for field in fields if (value := _CHEAP[field](found)) is not None}
    form = object_form(base, found, full=full)
    return {field: form[field] for field in fields if field in form}


def fields_of_items(fields: str) -> frozenset[str] | None:
    """What `fields` asks of each item of a listing: `items/name,nextPageToken`, `items(name,size),prefixes`.

    None: everything, also for a mask of another form: more than was asked for does no harm. The rest of a listing is
    always told. Syntax: https://cloud.google.com/storage/docs/json_api#partial-response
    """
    if not _LISTING_FIELDS.fullmatch(fields):
        return None
    asked = [word for many, one in _ITEM_FIELDS.findall(fields) for word in (many.split(",") if many else [one])]
    return frozenset(asked) or None


_LISTING_FIELDS = re.compile(r"(?:(?:kind|prefixes|nextPageToken|items/\w+|items\(\w+(?:,\w+)*\))(?:,(?!$)|$))+")
_ITEM_FIELDS = re.compile(r"items(?:\(([\w,]+)\)|/(\w+))")


def bucket_form(base: str, found: Bucket, *, full: bool = False) -> dict[str, Any]:
    """A bucket's resource; `full` (projection=full) adds its owner."""
    form: dict[str, Any] = {
        "kind": "storage#bucket",
        "id": found.name,
        "selfLink": f"{base}/storage/v1/b/{found.name}",
        "name": found.name,
        "projectNumber": str(found.project_number),
        "generation": str(int(found.created * 1_000_000)),
        "metageneration": str(found.metageneration),
        "location": found.location,
        "locationType": found.location_type,
        "storageClass": found.storage_class,
        "etag": etag(0, found.metageneration),
        "timeCreated": wire.timestamp(found.created),
        "updated": wire.timestamp(found.updated),
        "iamConfiguration": {
            "bucketPolicyOnly": {"enabled": False},
            "uniformBucketLevelAccess": {"enabled": False},
            "publicAccessPrevention": "inherited",
        },
    }
    if found.labels:
        form["labels"] = found.labels
    if full:
        owners = f"project-owners-{found.project_number}"
        form["owner"] = {"entity": owners}
        form["acl"] = [
            {
                "kind": "storage#bucketAccessControl",
                "bucket": found.name,
                "entity": f"project-{people}-{found.project_number}",
                "role": role,
                "projectTeam": {"projectNumber": str(found.project_number), "team": people},
                "etag": form["etag"],
            }
            for people, role in (("owners", "OWNER"), ("editors", "OWNER"), ("viewers", "READER"))
        ]
        form["defaultObjectAcl"] = []
    return form


def policy_form(found: Bucket) -> dict[str, Any]:
    return {
        "kind": "storage#policy",
        "resourceId": f"projects/_/buckets/{found.name}",
        "version": 1,
        "etag": etag(0, found.policy_version),
        "bindings": found.policy["bindings"],
    }


def policy_version(text: object) -> int | None:
    """The policy's version that an etag stands for; None for no etag. Raises ConditionNotMet for a foreign one."""
    if not text:
        return None
    try:
        return int(base64.b64decode(str(text), validate=True).decode().partition("/")[2])
    except ValueError as error:
        raise errors.ConditionNotMet(
            f"etag: {str(text)[:100]!r} is not of this bucket's policy: read the policy again, and repeat your change."
        ) from error


def data_headers(found: Object) -> list[tuple[bytes, bytes]]:
    """The headers of an object's bytes, as Cloud Storage sends them with its JSON and XML APIs."""
    hashes = f"crc32c={found.crc32c}" + (f",md5={found.md5}" if found.md5 else "")
    told = {
        "content-type": found.content_type,
        "etag": etag(found.generation, found.metageneration),
        "last-modified": _http_date(int(found.updated)),
        "accept-ranges": "bytes",
        "cache-control": found.cache_control or "private, max-age=0",
        "content-encoding": found.content_encoding,
        "content-disposition": found.content_disposition,
        "content-language": found.content_language,
        "x-goog-generation": str(found.generation),
        "x-goog-metageneration": str(found.metageneration),
        "x-goog-stored-content-encoding": found.content_encoding or "identity",
        "x-goog-stored-content-length": str(found.size),
        "x-goog-hash": hashes,
        "x-goog-storage-class": found.storage_class,
    }
    headers = [(name.encode(), value.encode()) for name, value in told.items() if value]
    for key, value in found.custom.items():
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", key) and not _CONTROL.search(value):
            headers.append((f"x-goog-meta-{key}".lower().encode(), value.encode()))
    return headers


def content_type(header: str | None) -> str:
    """What a body's own header says; a form is what TensorFlow and curl say when they were told nothing."""
    if not header or header.startswith("application/x-www-form-urlencoded"):
        return DEFAULT_TYPE
    return header


def _check(said: Mapping[str, Any]) -> None:
    """Values travel in headers later: no line end may be in them."""
    faults = [
        (msgspec.json.encode(field).decode().strip('"'), "must not contain a line end or another control character.")
        for field in _PLAIN
        if said.get(field) and _CONTROL.search(said[field])
    ]
    if said.get("storage_class") and said["storage_class"] not in CLASSES:
        faults.append(
            ("storageClass", f"{said['storage_class']!r} is no storage class. There are: {', '.join(CLASSES)}.")
        )
    custom = said.get("custom") or {}
    size = sum(len(key.encode()) + len((value or "").encode()) for key, value in custom.items())
    if size > _CUSTOM_BYTES:
        faults.append(("metadata", f"Own metadata may have {_CUSTOM_BYTES} bytes in all; these are {size}."))
    if faults:
        raise errors.InvalidArgument(faults=faults)


def _time(seconds: float) -> str:
    """`wire.timestamp`; a listing writes thousands, many of one second."""
    whole = int(seconds)
    micros = round((seconds - whole) * 1_000_000)
    return f"{_second(whole)}.{micros:06d}Z" if 0 <= micros < 1_000_000 else wire.timestamp(seconds)


@functools.lru_cache(maxsize=4096)
def _second(whole: int) -> str:
    return wire.timestamp(whole)[:19]


@functools.lru_cache(maxsize=4096)
def _http_date(whole: int) -> str:
    return email.utils.formatdate(whole, usegmt=True)


def _entity(member: str) -> str:
    """user:ann@example.com -> user-ann@example.com, as access control lists spell it."""
    return f"user-{member.partition(':')[2]}" if member else "allUsers"
