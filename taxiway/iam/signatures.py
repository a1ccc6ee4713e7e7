"""Signed requests: a service account's key signs "exactly this request, from then until then", in a URL or a header.

A signature gives what its account may do at the moment of use, no more; whoever holds the URL needs no token. V4
(GOOG4-RSA-SHA256) and the older V2, of https://cloud.google.com/storage/docs/authentication/signatures,
/docs/authentication/canonical-requests and /docs/access-control/signing-urls-manually-v2. `read` and `verify` are pure;
`caller` asks the rows. What was signed is compared as it was sent: nothing is decoded and written anew.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import unquote_plus

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import service_account_keys, service_accounts
from taxiway.iam import members
from taxiway.iam.keys import LEEWAY_S
from taxiway.iam.members import Caller

ALGORITHM = "GOOG4-RSA-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
LONGEST_S = 7 * 24 * 3600  # the longest life of a V4 signed URL
HEADER_S = 15 * 60  # how long a signature in the Authorization header holds
ASK_AGAIN = "Sign the URL again."

_HINT = re.compile(rb"(?:^|&)(?:x-goog-algorithm|GoogleAccessId)=", re.IGNORECASE)
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_NEEDED = ("algorithm", "credential", "date", "expires", "signedheaders", "signature")
_SPELLED = {name: f"X-Goog-{name.capitalize()}" for name in _NEEDED} | {"signedheaders": "X-Goog-SignedHeaders"}
# Client libraries add these by themselves; they change nothing of what a request does.
_HARMLESS = ("x-goog-api-client", "x-goog-user-project", "x-goog-request-params")


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it came: path and query undecoded, headers in their order with names in lower case.

    `resource` is /bucket/object, escaped as in the path: V2 signs that, whatever host name the request went to.
    """

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    resource: str = ""

    def header(self, name: str) -> str | None:
        """All values of a header in one, as a canonical request writes them."""
        values = [" ".join(value.split()) for each, value in self.headers if each == name]
        return ",".join(values) if values else None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a signature says: `email` signed one of `texts`, and now is within its time."""

    email: str
    texts: tuple[str, ...]
    signature: bytes
    canonical: str = ""  # the canonical request, whose hash is in the text (V4)


class Malformed(errors.InvalidArgument):
    """A signature that cannot even be read; `parameter` is the part at fault."""

    def __init__(self, parameter: str, sentence: str) -> None:
        self.parameter = parameter
        super().__init__(f"{parameter}: {sentence}")


class Expired(errors.InvalidArgument):
    """Its time is over (400, as Cloud Storage answers)."""


class TooEarly(errors.PermissionDenied):
    """Its time has not begun: the signer's clock, or ours, is wrong."""


class UnknownSigner(errors.PermissionDenied):
    """No account here, or one that may not sign."""


class Mismatch(errors.PermissionDenied):
    """No key of the account made this signature over this request."""

    def __init__(self, claim: Claim, message: str) -> None:
        self.string_to_sign, self.canonical = claim.texts[0], claim.canonical
        super().__init__(message)


def hinted(query: bytes) -> bool:
    """Whether a raw query says that its request is signed, well or not."""
    return b"oog" in query and _HINT.search(query) is not None  # the first half is for all the others: it is quick


def read(sent: Sent, *, now: float) -> Claim | None:
    """What a request's signature says; None for a request without one.

    Raises Malformed, Expired, TooEarly.
    """
    scheme, _, rest = (sent.header("authorization") or "").partition(" ")
    if scheme.upper().startswith("GOOG"):
        return _of_header(sent, scheme, rest, now)
    if not hinted(sent.query.encode("latin-1")):
        return None
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in sent.query.split("&"))]
    if any(name.lower() == "x-goog-algorithm" for name, _ in pairs):
        return _v4(sent, pairs, now)
    return _v2(sent, pairs, now)


def verify(claim: Claim, public_keys: Iterable[str]) -> bool:
    """Whether one of the keys (PEM) made the signature."""
    for pem in public_keys:
        key = _public(pem)
        for text in claim.texts:
            try:
                key.verify(claim.signature, text.encode("latin-1"), padding.PKCS1v15(), hashes.SHA256())
            except InvalidSignature:
                continue
            return True
    return False


def caller(db: Database, sent: Sent, *, now: float) -> Caller | None:
    """Whoever signed the request; None for a request without a signature.

    Raises as `read`, UnknownSigner for an account that is not here or is disabled, Mismatch.
    """
    claim = read(sent, now=now)
    if claim is None:
        return None
    with db.read() as rows:
        account = rows.execute(
            sa.select(service_accounts.c.disabled, service_accounts.c.deleted).where(
                service_accounts.c.email == claim.email
            )
        ).first()
        keys = rows.execute(
            sa.select(service_account_keys.c.public_key, service_account_keys.c.disabled).where(
                service_account_keys.c.email == claim.email
            )
        ).all()
    if account is None or account.deleted is not None:
        raise UnknownSigner(f"The signature is said to be by {claim.email!r}, and there is no such service account.")
    if account.disabled:
        raise UnknownSigner(f"The service account {claim.email} is disabled, and so are its signed URLs.")
    enabled = [key.public_key for key in keys if not key.disabled]
    if not verify(claim, enabled):
        raise Mismatch(
            claim,
            "The request signature we calculated does not match the signature you provided: none of the "
            f"{len(enabled)} enabled keys of {claim.email} signed this request. Check that its method, path, query and "
            "signed headers are those that were signed, and that the key was not deleted or disabled.",
        )
    return Caller(members.of_email(claim.email))


# ---- V4 -------------------------------------------------------------------------------------------------------------


def _v4(sent: Sent, pairs: list[tuple[str, str]], now: float) -> Claim:
    found: dict[str, str] = {}
    for name, value in pairs:
        word = name.lower().removeprefix("x-goog-")
        if name.lower().startswith("x-goog-") and word in _NEEDED:
            if word in found:
                raise Malformed(_SPELLED[word], "it is in the URL twice.")
            found[word] = unquote_plus(value)
    for word in _NEEDED:
        if not found.get(word):
            raise Malformed(_SPELLED[word], f"a signed URL needs it, and it is missing. {ASK_AGAIN}")
    _only_rsa(found["algorithm"])
    seconds = found["expires"]
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10 and 1 <= int(seconds) <= LONGEST_S):
        raise Malformed("X-Goog-Expires", f"expected 1 to {LONGEST_S} seconds (seven days); got {seconds[:40]!r}.")
    email, scope = _credential(found["credential"], found["date"])
    _in_time(found["date"], int(seconds), now)
    kept = [(name, value) for name, value in pairs if name.lower() != "x-goog-signature"]
    return _claim(sent, kept, email, scope, found["date"], found["signedheaders"], found["signature"])


def _of_header(sent: Sent, scheme: str, rest: str, now: float) -> Claim:
    """Authorization: GOOG4-RSA-SHA256 Credential=..., SignedHeaders=..., Signature=..."""
    _only_rsa(scheme)
    said = {name.strip().lower(): value for name, _, value in (part.partition("=") for part in rest.split(","))}
    for word in ("Credential", "SignedHeaders", "Signature"):
        if not said.get(word.lower()):
            raise Malformed(word, f"Authorization: {ALGORITHM} needs it, and it is missing.")
    date = sent.header("x-goog-date") or ""
    email, scope = _credential(said["credential"], date)
    _in_time(date, HEADER_S, now)
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in sent.query.split("&") if pair)]
    return _claim(sent, pairs, email, scope, date, said["signedheaders"], said["signature"])


def _only_rsa(algorithm: str) -> None:
    if algorithm != ALGORITHM:
        raise Malformed(
            "X-Goog-Algorithm", f"expected {ALGORITHM}: a service account's own key; got {algorithm[:40]!r}."
        )


def _credential(text: str, date: str) -> tuple[str, str]:
    """(the account's e-mail, the scope) of EMAIL/DATE/LOCATION/storage/goog4_request."""
    if not _DATE.fullmatch(date):
        raise Malformed("X-Goog-Date", f"expected a time such as 20261101T093000Z; got {date[:40]!r}.")
    email, _, scope = text.partition("/")
    words = scope.split("/")
    if not email or len(words) != 4 or not words[1] or words[2:] != ["storage", "goog4_request"]:
        raise Malformed(
            "X-Goog-Credential", f"expected EMAIL/{date[:8]}/LOCATION/storage/goog4_request; got {text[:200]!r}."
        )
    if words[0] != date[:8]:
        raise Malformed("X-Goog-Credential", f"it is of {words[0][:20]!r}, and X-Goog-Date is of {date[:8]}.")
    return email, scope


def _in_time(date: str, seconds: int, now: float) -> None:
    try:
        starts = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError as error:
        raise Malformed("X-Goog-Date", f"{date!r} is no time that there is.") from error
    if now < starts - LEEWAY_S:
        raise TooEarly(f"The signature is valid from {date} on, which is {starts - now:.0f} seconds from now.")
    if now > starts + seconds:
        raise Expired(_over(starts + seconds, now))


def _over(ended: float, now: float) -> str:
    try:
        moment = f"{datetime.fromtimestamp(ended, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # a year that there is not
        moment = f"{ended:.0f} seconds since 1970"
    return f"The request has expired: its signature held until {moment}, {now - ended:.0f} seconds ago. {ASK_AGAIN}"


def _claim(
    sent: Sent, pairs: list[tuple[str, str]], email: str, scope: str, date: str, signed: str, signature: str
) -> Claim:
    names = [name.lower() for name in signed.split(";")]
    if not (signed + scope).isascii():
        raise Malformed("X-Goog-SignedHeaders", "neither it nor X-Goog-Credential can have letters beyond ASCII.")
    if "host" not in names:
        raise Malformed("X-Goog-SignedHeaders", "host must be among the signed headers.")
    for name in names:
        if sent.header(name) is None:
            raise Malformed("X-Goog-SignedHeaders", f"the request was signed with the header {name!r}; send it too.")
    for name, _ in sent.headers:
        if name.startswith("x-goog-") and name not in names and name not in _HARMLESS:
            raise Malformed(
                "X-Goog-SignedHeaders", f"the request has the header {name!r}, which was not signed; leave it out."
            )
    if not _HEX.fullmatch(signature):
        raise Malformed("X-Goog-Signature", "expected hexadecimal digits, two for each byte.")
    lines = "".join(f"{name}:{sent.header(name)}\n" for name in names)
    payload = sent.header("x-goog-content-sha256") or UNSIGNED
    # By name as the rule says, or by the whole pair as google-cloud-storage sorts: they differ for `a` beside `a-b`.
    orders = dict.fromkeys(
        "&".join(f"{name}={value}" for name, value in ordered)
        for ordered in (sorted(pairs), sorted(pairs, key="=".join))
    )
    requests = [f"{sent.method}\n{sent.path}\n{query}\n{lines}\n{signed}\n{payload}" for query in orders]
    texts = tuple(
        f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(request.encode('latin-1')).hexdigest()}" for request in requests
    )
    return Claim(email, texts, bytes.fromhex(signature), requests[0])


# ---- V2 -------------------------------------------------------------------------------------------------------------


def _v2(sent: Sent, pairs: list[tuple[str, str]], now: float) -> Claim:
    said: dict[str, str] = {}
    for name, value in pairs:
        if name in said:
            raise Malformed(name[:40], "it is in the URL twice.")
        said[name] = unquote_plus(value)
    for word in ("GoogleAccessId", "Expires", "Signature"):
        if not said.get(word):
            raise Malformed(word, f"a signed URL needs it, and it is missing. {ASK_AGAIN}")
    ends = said["Expires"]
    if not (ends.isascii() and ends.isdigit() and len(ends) < 12):
        raise Malformed("Expires", f"expected seconds since 1970; got {ends[:40]!r}.")
    if now > int(ends):
        raise Expired(_over(int(ends), now))
    try:
        given = base64.b64decode(said["Signature"], validate=True)
    except ValueError as error:
        raise Malformed("Signature", "it is not base64; has the URL lost its escapes?") from error
    extension = sorted({name for name, _ in sent.headers if name.startswith("x-goog-") and name not in _HARMLESS})
    lines = [
        sent.method,
        sent.header("content-md5") or "",
        sent.header("content-type") or "",
        ends,
        *(f"{name}:{sent.header(name)}" for name in extension),
        sent.resource,
    ]
    return Claim(said["GoogleAccessId"], ("\n".join(lines),), given)


@functools.lru_cache(maxsize=256)
def _public(pem: str) -> rsa.RSAPublicKey:
    key = serialization.load_pem_public_key(pem.encode())
    assert isinstance(key, rsa.RSAPublicKey)  # `keys.create_key` makes no other
    return key
