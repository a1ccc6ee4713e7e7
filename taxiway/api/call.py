"""One request: who sends it, its body, what a route's function gets of it, and what a row of the route table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from taxiway import errors
from taxiway.house import House
from taxiway.iam import members, policies
from taxiway.settings import MIB

# Instead of a permission, a row may say one of these:
ANYONE = "-anyone"  # nobody is asked who they are: discovery, the token endpoint, a resumable session's secret URL
SIGNED_IN = "-signed-in"  # any caller with a token that holds
REPLICA = "-replica"  # only the attempt that the path names, by its own token


@dataclass(slots=True, kw_only=True)
class Call:
    """One request, past its authorisation.

    `path` holds the decoded parts of the URL, `query` the last value of each parameter, `body` the parsed JSON of a
    plain row's request ({} if there was none). A streaming row (an `async def`) reads `request` itself.
    """

    house: House
    who: members.Caller
    path: Mapping[str, str]
    query: Mapping[str, str]
    request: Request
    body: Any
    now: float
    base: str  # scheme://host of this request, without a slash at the end: links are built from it
    by_list: str = ""  # the row's permission, if nothing but the object's own access control list gives it
    # What the audit log is told beside the path:
    resource: str = ""  # what the request turned out to be about, if its path does not say
    asked: str = ""  # the permission that the function asked for last, beyond the row's
    passed: bool = False  # whether the caller had the row's permission

    def need(
        self, permission: str, *, bucket: str | None = None, project: str | None = None, within: str | None = None
    ) -> bool:
        """Check one more permission than the row names; raises PermissionDenied with the grant that would fix it.

        Answers whether it holds for the whole bucket, and not only by an object's own access control list.
        """
        self.asked = permission
        return self.house.access.need(self.who, permission, bucket=bucket, project=project, within=within)

    def may(
        self, permission: str, *, bucket: str | None = None, project: str | None = None, within: str | None = None
    ) -> bool:
        return policies.allowed(self.house.db, self.who, permission, bucket=bucket, project=project, within=within)


def within(path: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """What a path names that has a policy of its own: models/M (also for its versions), jobs/J ...; or an object."""
    if "object" in path:
        return policies.object_of(path["object"], query.get("generation", ""))
    for kind in ("model", "job", "operation"):
        if kind in path and "location" not in path:
            return f"{kind}s/{path[kind]}"
    return None


def caller(house: House, authorization: str, query: Mapping[str, str], now: float) -> members.Caller:
    """Who sends a request: by its Authorization header, else by access_token in its query; NOBODY without a token.

    Raises Unauthenticated for a token that does not hold.
    """
    scheme, _, bearer = authorization.partition(" ")
    if not authorization:
        bearer = query.get("access_token") or query.get("oauth_token") or ""
        if not bearer:
            return members.NOBODY
    elif scheme.lower() not in ("bearer", "oauth"):
        raise errors.Unauthenticated(f"Authorization: expected 'Bearer TOKEN', and got the scheme {scheme[:40]!r}.")
    return house.access.caller(bearer.strip(), now=now)


async def whole_body(receive: Receive, most: int) -> bytes:
    """All of a request's body. Raises TooLarge if it has more than `most` bytes, ClientDisconnect."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise errors.TooLarge(f"The request body is over {most // MIB} MiB; send less at a time.")
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


class Route(NamedTuple):
    """A row: `permission` is checked against the bucket that the path names, else against its project."""

    method: str
    path: str
    permission: str
    function: Callable[[Call], Any]
    xml: bool = False  # of Cloud Storage's XML API: takes signed requests, and tells errors in XML
