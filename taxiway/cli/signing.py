"""Signed URLs, made here: a service account's key file and a request -> a URL that does it, for whoever holds it.

V4 (GOOG4-RSA-SHA256) of https://cloud.google.com/storage/docs/authentication/signatures. Nothing is sent anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from taxiway import errors

ALGORITHM = "GOOG4-RSA-SHA256"
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
LONGEST_S = 7 * 24 * 3600
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?", re.ASCII)


@dataclass(frozen=True)
class Signer:
    email: str
    key: rsa.RSAPrivateKey


def signer(path: Path, password: str | None = None) -> Signer:
    """Of a service account's JSON key file. Raises InvalidArgument for any other file, OSError for none."""
    try:
        return signer_of(json.loads(path.read_bytes()), password)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise errors.InvalidArgument(
            f"{path} is no service account's key file in JSON, with client_email and private_key ({error!r})."
        ) from error


def signer_of(told: Mapping[str, str], password: str | None = None) -> Signer:
    """Of what such a file holds. Raises whatever a wrong one leads to."""
    key = serialization.load_pem_private_key(told["private_key"].encode(), password.encode() if password else None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError(f"the key is not RSA, and signed URLs take {ALGORITHM}")
    return Signer(told["client_email"], key)


def url(
    signer: Signer,
    method: str,
    base: str,
    path: str,
    *,
    seconds: int,
    now: float,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    location: str = "auto",
) -> str:
    """`base` is scheme://host, `path` /bucket/object unescaped. Whoever uses it must send the same `headers`.

    Raises InvalidArgument for another method, or a time that is not 1 second to seven days.
    """
    if method not in METHODS:
        raise errors.InvalidArgument(f"A URL can be signed for {', '.join(METHODS)}; got {method!r}.")
    if not 1 <= seconds <= LONGEST_S:
        raise errors.InvalidArgument(f"A signed URL holds for 1 second to seven days; got {seconds} seconds.")
    moment = f"{datetime.fromtimestamp(now, timezone.utc):%Y%m%dT%H%M%SZ}"
    scope = f"{moment[:8]}/{location.lower()}/storage/goog4_request"
    sent = {name.lower(): " ".join(value.split()) for name, value in (headers or {}).items()}
    sent["host"] = urlsplit(base).netloc
    signed = ";".join(sorted(sent))
    asked = {
        **(query or {}),
        "X-Goog-Algorithm": ALGORITHM,
        "X-Goog-Credential": f"{signer.email}/{scope}",
        "X-Goog-Date": moment,
        "X-Goog-Expires": str(seconds),
        "X-Goog-SignedHeaders": signed,
    }
    resource = quote(path, safe="/~")
    canonical_query = "&".join(f"{quote(name, safe='~')}={quote(asked[name], safe='~')}" for name in sorted(asked))
    lines = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    payload = sent.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD")
    request = f"{method}\n{resource}\n{canonical_query}\n{lines}\n{signed}\n{payload}"
    text = f"{ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = signer.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()).hex()
    return f"{base}{resource}?{canonical_query}&X-Goog-Signature={signature}"


def duration(text: str) -> int:
    """Seconds of a duration in gcloud's spelling. Raises InvalidArgument for anything else.

    >>> duration("1h30m"), duration("90"), duration("7d")
    (5400, 90, 604800)
    """
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise errors.InvalidArgument(f"--duration: expected such as 10m, 1h30m or 7d; got {text!r}.")
    return sum(int(count or 0) * each for count, each in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
