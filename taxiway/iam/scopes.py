"""Scopes: what a token may be used for, however much its member may. Pure.

A token's scopes are kept as one text: Google's words without their prefix, each once, in order, joined by spaces
(`devstorage.read_only logging.read`). What a scope covers is what the methods of Google's APIs list as their scopes
(https://developers.google.com/identity/protocols/oauth2/scopes, and each API's discovery document).
"""

from __future__ import annotations

import functools
import re

from taxiway import errors

PREFIX = "https://www.googleapis.com/auth/"
ALL = "cloud-platform"
MOST = 4096  # characters of a token's scopes

_READS = r"[\w.-]+\.(get|list|getConfig|getIamPolicy)"

# Narrowest first: the first one that covers a permission is the one to ask for. The others of Google's, those that
# say who somebody is (openid, userinfo.email) among them, cover nothing here.
COVERED = {
    "devstorage.read_only": re.compile(r"storage\.(objects|buckets)\.(get|list)"),
    "devstorage.read_write": re.compile(r"storage\.(objects|buckets)\.(get|list|create|delete)"),
    "devstorage.full_control": re.compile(r"storage\..+"),
    "logging.read": re.compile(r"logging\.\w+\.(get|list)"),
    "logging.admin": re.compile(r"logging\..+"),
    "cloudplatformprojects.readonly": re.compile(r"resourcemanager\.\w+\.(get|list|getIamPolicy)"),
    "cloudplatformprojects": re.compile(r"resourcemanager\..+"),
    "iam": re.compile(r"iam\..+"),
    "cloud-platform.read-only": re.compile(_READS),
    ALL: re.compile(".+"),
}


class Insufficient(errors.PermissionDenied):
    """A token that may not be used for this, whoever it belongs to; the message names the scope to ask for."""

    reason = "insufficientPermissions"


def parse(text: str) -> str:
    """Scopes as OAuth writes them -> as a token keeps them. None at all, or the one that covers everything, is ALL.

    Raises InvalidArgument for more than a token should carry.

    >>> parse("https://www.googleapis.com/auth/logging.read openid")
    'logging.read openid'
    """
    if len(text) > MOST:
        raise errors.InvalidArgument(f"The scopes are {len(text)} characters long; at most {MOST} are taken.")
    words = {word.removeprefix(PREFIX) for word in text.split()}
    return ALL if ALL in words or not words else " ".join(sorted(words))


def written(scopes: str) -> str:
    """Scopes as OAuth writes them, with Google's prefix."""
    return " ".join(PREFIX + word if word in COVERED else _full(word) for word in scopes.split())


def _full(word: str) -> str:
    return word if word in ("openid", "email", "profile") or "://" in word else PREFIX + word


@functools.lru_cache(4096)
def cover(scopes: str, permission: str) -> bool:
    """Whether a token of these scopes may be used for what needs the permission."""
    return any(COVERED[word].fullmatch(permission) is not None for word in scopes.split() if word in COVERED)


def within(asked: str, held: str) -> str:
    """The scopes of a token made from a grant that has `held`: those that are asked for, all of them if none are.

    Raises InvalidArgument if more is asked for than the grant has (RFC 6749, 6).
    """
    wanted = parse(asked) if asked.strip() else held
    beyond = set(wanted.split()) - set(held.split())
    if held != ALL and beyond:
        raise errors.InvalidArgument(f"The grant has the scopes {written(held)!r}, and not {written(_row(beyond))!r}.")
    return wanted


def refusal(scopes: str, permissions: list[str]) -> Insufficient:
    """The 403 for a token that does not cover the permissions."""
    wanted = next(
        (word for word, covered in COVERED.items() if all(covered.fullmatch(each) for each in permissions)), ALL
    )
    return Insufficient(
        f"Request had insufficient authentication scopes. The token has {written(scopes)!r}, which is not enough for "
        f"{', '.join(permissions)}, whatever its member may do. Get one with the scope {PREFIX}{wanted}"
    )


def _row(words: set[str]) -> str:
    return " ".join(sorted(words))
