"""What a route's function gets, and what a row of the route table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.requests import Request

from taxiway.house import House
from taxiway.iam import members, policies

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

    def need(self, permission: str, *, bucket: str | None = None, project: str | None = None) -> None:
        """Check one more permission than the row names; raises PermissionDenied with the grant that would fix it."""
        policies.need(self.house.db, self.who, permission, bucket=bucket, project=project)

    def may(self, permission: str, *, bucket: str | None = None, project: str | None = None) -> bool:
        return policies.allowed(self.house.db, self.who, permission, bucket=bucket, project=project)


class Route(NamedTuple):
    """A row: `permission` is checked against the bucket that the path names, else against its project."""

    method: str
    path: str
    permission: str
    function: Callable[[Call], Any]
