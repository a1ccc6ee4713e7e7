"""What the Cloud Storage XML API writes, and what it says in headers: errors, listings, ETags, metadata, preconditions.

https://cloud.google.com/storage/docs/xml-api/reference-headers and /reference-status.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from html import escape

from starlette.datastructures import Headers
from starlette.responses import Response

from taxiway import errors
from taxiway.api import storage_forms as forms
from taxiway.api import wire
from taxiway.iam import signatures
from taxiway.storage import objects, uploads
from taxiway.storage.objects import Object

XML = "application/xml"
CONDITIONS = {
    "x-goog-if-generation-match": "ifGenerationMatch",
    "x-goog-if-metageneration-match": "ifMetagenerationMatch",
}
LISTS = {  # x-goog-acl -> predefinedAcl
    "private": "private",
    "project-private": "projectPrivate",
    "public-read": "publicRead",
    "authenticated-read": "authenticatedRead",
    "bucket-owner-read": "bucketOwnerRead",
    "bucket-owner-full-control": "bucketOwnerFullControl",
}


class TooLong(errors.InvalidArgument):
    """More bytes than x-goog-content-length-range allows."""


class TooShort(errors.InvalidArgument):
    """Fewer bytes than x-goog-content-length-range allows."""


WORDS: dict[type[errors.Error], tuple[str, str]] = {  # Code and Message; the sentence is told as Details
    signatures.Expired: ("ExpiredToken", "The provided token has expired."),
    signatures.Malformed: ("MalformedSecurityHeader", "Your request has a malformed header."),
    signatures.Mismatch: ("SignatureDoesNotMatch", "Access denied."),
    signatures.TooEarly: ("RequestTimeTooSkewed", "The request's time and the server's are too far apart."),
    signatures.UnknownSigner: ("InvalidSecurity", "The provided security credentials are not valid."),
    uploads.BadDigest: ("BadDigest", "The Content-MD5 or x-goog-hash does not match what was received."),
    objects.NoSuchObject: ("NoSuchKey", "The specified key does not exist."),
    TooLong: ("EntityTooLarge", "The upload is larger than it may be."),
    TooShort: ("EntityTooSmall", "The upload is smaller than it may be."),
    errors.InvalidArgument: ("InvalidArgument", "Invalid argument."),
    errors.FailedPrecondition: ("InvalidArgument", "Invalid argument."),
    errors.OutOfRange: ("InvalidRange", "The requested range cannot be satisfied."),
    errors.Unauthenticated: ("AuthenticationRequired", "Authentication required."),
    errors.PermissionDenied: ("AccessDenied", "Access denied."),
    errors.NotFound: ("NoSuchBucket", "The specified bucket does not exist."),
    errors.AlreadyExists: ("Conflict", "Somebody else was first."),
    errors.Aborted: ("Conflict", "Somebody else was first."),
    errors.ConditionNotMet: ("PreconditionFailed", "At least one of the pre-conditions does not hold."),
    errors.TooLarge: ("EntityTooLarge", "The request is larger than it may be."),
    errors.ResourceExhausted: ("SlowDown", "Too many requests at once."),
    errors.Unimplemented: ("NotImplemented", "This is not offered."),
    errors.Unavailable: ("ServiceUnavailable", "The server cannot answer now."),
    errors.StorageFull: ("InsufficientStorage", "There is no space left."),
}
OTHERS = {405: ("MethodNotAllowed", "The method is not allowed here.")}


# ---- answers --------------------------------------------------------------------------------------------------------


def refusal(error: errors.Error) -> Response:
    """An error as the XML API tells it."""
    headers = {"WWW-Authenticate": 'Bearer realm="taxiway"'} if error.code == 401 else {}
    if error.code == 304:
        return Response(status_code=304)
    if error.code in (429, 503):
        headers["Retry-After"] = "1"
    known = next((kind for kind in type(error).__mro__ if kind in WORDS), None)
    word, message = WORDS[known] if known else OTHERS.get(error.code, ("InternalError", "The server failed."))
    told = {"Code": word, "Message": message, "Details": str(error)}
    if isinstance(error, signatures.Malformed):
        told["ParameterName"] = error.parameter
    if isinstance(error, signatures.Mismatch):
        told |= {"StringToSign": error.string_to_sign, "CanonicalRequest": error.canonical}
    return Response(document("Error", elements(told)), error.code, headers=headers, media_type=XML)


def etag(found: Object) -> str:
    """An object's ETag as the XML API has it: its MD5 in hexadecimal, as S3's clients expect; quoted."""
    return f'"{b64decode(found.md5).hex()}"' if found.md5 else f'"{forms.etag(found.generation, found.metageneration)}"'


def etag_of(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The ETag of a download, of the hashes that it carries."""
    told = dict(headers)
    md5 = next((each[4:] for each in told.get(b"x-goog-hash", b"").split(b",") if each.startswith(b"md5=")), b"")
    return f'"{b64decode(md5).hex()}"'.encode() if md5 else b'"' + told.get(b"etag", b"") + b'"'


def row(found: Object, shown: Callable[[str], str]) -> str:
    """An object in a listing."""
    told: dict[str, object] = {
        "Key": shown(found.name),
        "Generation": found.generation,
        "MetaGeneration": found.metageneration,
        "LastModified": f"{wire.timestamp(found.updated)[:23]}Z",
        "ETag": etag(found),
        "Size": found.size,
        "StorageClass": found.storage_class,
    }
    return f"<Contents>{elements(told)}</Contents>"


def document(name: str, inner: str, attributes: str = "") -> str:
    return f"<?xml version='1.0' encoding='UTF-8'?><{name}{attributes}>{inner}</{name}>"


def elements(told: Mapping[str, object]) -> str:
    return "".join(f"<{name}>{_escaped(str(value))}</{name}>" for name, value in told.items())


def _escaped(text: str) -> str:
    """Control characters that XML has no form for are written as references, as Google's and S3's listings do."""
    return re.sub(r"[\x00-\x09\x0b-\x1f]", lambda match: f"&#x{ord(match[0]):x};", escape(text, quote=False))


# ---- requests -------------------------------------------------------------------------------------------------------


def generation(query: Mapping[str, str]) -> dict[str, str]:
    return {"generation": query["generation"]} if query.get("generation") else {}


def conditions(said: Headers) -> dict[str, str]:
    """The preconditions as the JSON API's query says them. Raises InvalidArgument that names the header."""
    told = {word: said[header] for header, word in CONDITIONS.items() if header in said}
    for header, word in CONDITIONS.items():
        if word in told:
            forms.whole({header: told[word]}, header)
    return told


def query(said: Headers) -> dict[str, str]:
    """What the headers of an upload say, as the JSON API's query says it."""
    listed = said.get("x-goog-acl")
    if listed is None:
        return conditions(said)
    if listed not in LISTS:
        fault = f"{listed[:100]!r} is no ready-made list of an object. There are: {', '.join(LISTS)}."
        raise errors.InvalidArgument(faults=[("x-goog-acl", fault)])
    return {**conditions(said), "predefinedAcl": LISTS[listed]}


def metadata(said: Headers) -> objects.Metadata:
    """A new object's metadata of an upload's headers. Raises InvalidArgument that names the field."""
    custom = {name[12:]: _text(value) for name, value in said.items() if name.startswith("x-goog-meta-") and name[12:]}
    plain = {
        "contentType": forms.content_type(said.get("content-type")),
        "contentEncoding": said.get("content-encoding"),
        "contentDisposition": said.get("content-disposition"),
        "contentLanguage": said.get("content-language"),
        "cacheControl": said.get("cache-control"),
        "storageClass": said.get("x-goog-storage-class"),
    }
    told = {name: _text(value) for name, value in plain.items() if value}
    return forms.metadata(forms.said({**told, "metadata": custom}).changes())


def _text(value: str) -> str:
    """A header's value, which clients write as UTF-8 and HTTP reads as Latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def length_range(said: Headers) -> tuple[int, int | None]:
    """x-goog-content-length-range: LEAST,MOST, by which whoever signs a URL bounds what may be uploaded with it."""
    text = said.get("x-goog-content-length-range")
    if text is None:
        return 0, None
    match = re.fullmatch(r"\s*(\d{1,18})\s*,\s*(\d{1,18})\s*", text, re.ASCII)
    if match is None:
        fault = f"Expected LEAST,MOST in bytes, such as 0,1048576; got {text[:100]!r}."
        raise errors.InvalidArgument(faults=[("x-goog-content-length-range", fault)])
    return int(match[1]), int(match[2])


def fits(size: int, low: int, high: int | None) -> None:
    allowed = f"x-goog-content-length-range allows {low} to {high} bytes"
    if high is not None and size > high:
        raise TooLong(f"{allowed}, and these are {size} or more. Nothing was stored.")
    if size < low:
        raise TooShort(f"{allowed}, and these are {size}. Nothing was stored.")


def unchanged(said: Headers, found: Object) -> bool:
    """Whether the sender has this already (RFC 9110, 13.2.2). Raises ConditionNotMet if it wants another one."""
    mine = etag(found)
    if "if-match" in said:
        met = _names(said["if-match"], mine)
    else:
        until = _moment(said.get("if-unmodified-since"))
        met = until is None or int(found.updated) <= until.timestamp()
    if not met:
        raise errors.ConditionNotMet(
            f"gs://{found.bucket}/{found.name} has the ETag {mine} and was last changed at "
            f"{wire.timestamp(found.updated)}: If-Match or If-Unmodified-Since does not hold."
        )
    if "if-none-match" in said:
        return _names(said["if-none-match"], mine)
    since = _moment(said.get("if-modified-since"))
    return since is not None and int(found.updated) <= since.timestamp()


def _names(header: str, mine: str) -> bool:
    return header.strip() == "*" or mine in [each.strip().removeprefix("W/") for each in header.split(",")]


def _moment(header: str | None) -> datetime | None:
    """An HTTP date; None for none, and for one that cannot be read, which counts as none."""
    try:
        return parsedate_to_datetime(header) if header else None
    except ValueError:
        return None
