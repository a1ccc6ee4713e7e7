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
from taxiway.api.fields import Mask
from taxiway.storage.buckets import CLASSES, Bucket
from taxiway.storage.conditions import Conditions
from taxiway.storage.objects import DEFAULT_TYPE, Metadata, Object
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
    acl: Any = UNSET  # checked by `storage_acl`: that takes the projects' numbers
    temporary_hold: Any = None
    event_based_hold: Any = None
    retention: Any = None

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
    """Raises InvalidArgument that names the field, Unimplemented for a hold: nothing here would hold the object."""
    try:
        read = msgspec.convert({} if body is None else body, Said)
    except msgspec.ValidationError as error:
        raise errors.InvalidArgument(f"The object's metadata is not as it should be: {error}.") from error
    for field in ("temporary_hold", "event_based_hold", "retention"):
        if getattr(read, field):
            name = Said.__struct_encode_fields__[Said.__struct_fields__.index(field)]
            raise errors.Unimplemented(f"{name}: nothing here would hold the object; leave it out.")
    return read


def metadata(changes: Mapping[str, Any]) -> Metadata:
    """A new object's metadata of what was said."""
    values = {field: value for field, value in changes.items() if value is not None}
    if "custom" in values:
        values["custom"] = {key: value for key, value in values["custom"].items() if value is not None}
    return Metadata(**values)


@functools.lru_cache(maxsize=256)
def metadata_of(content_type: str, content_encoding: str | None) -> Metadata:
    """A new object's metadata where its headers say all. Raises InvalidArgument."""
    return metadata(said({"contentType": content_type, "contentEncoding": content_encoding}).changes())


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


def object_form(base: str, found: Object) -> dict[str, Any]:
    """An object's resource, without who may (see `storage_acl.shown`)."""
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
    if found.deleted is not None:
        form["timeDeleted" if found.kept_until is None else "softDeleteTime"] = _time(found.deleted)
    if found.kept_until is not None:
        form["hardDeleteTime"] = _time(found.kept_until)
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


def object_part(base: str, found: Object, fields: Collection[str]) -> dict[str, Any]:
    """Of an object's resource only these fields; those that listings ask for are written without the others."""
    if all(field in _CHEAP for field in fields):
        return {field: value for field in fields if (value := _CHEAP[field](found)) is not None}
    form = object_form(base, found)
    return {field: form[field] for field in fields if field in form}


def fields_of_items(mask: Mask | None) -> frozenset[str] | None:
    """The fields of each item that a listing's mask asks something of; None: all of them."""
    items = {} if mask is None else mask.get("items", mask.get("*", {}))
    if mask is None or items is None or "*" in items:
        return None
    return frozenset(items)


def bucket_form(base: str, found: Bucket) -> dict[str, Any]:
    """A bucket's resource, without who may (see `storage_acl.of_bucket_shown`)."""
    uniform: dict[str, Any] = {"enabled": found.uniform}
    if "uniformLocked" in found.extra:
        uniform["lockedTime"] = wire.timestamp(found.extra["uniformLocked"])
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
            "bucketPolicyOnly": uniform,
            "uniformBucketLevelAccess": uniform,
            "publicAccessPrevention": found.extra.get("publicAccessPrevention", "inherited"),
        },
    }
    if found.labels:
        form["labels"] = found.labels
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
    headers = [(name.encode(), sent) for name, value in told.items() if value and (sent := value.strip().encode())]
    for key, value in found.custom.items():
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", key) and not _CONTROL.search(value):
            headers.append((f"x-goog-meta-{key}".lower().encode(), value.strip().encode()))
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
