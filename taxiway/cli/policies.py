"""Who may do what with one model or one job: the policy read, changed and written, whoever else writes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from taxiway import errors
from taxiway.cli import client, storage
from taxiway.cli.client import Client

Role = Annotated[str, typer.Option(help="What they may: roles/ml.modelUser, roles/ml.modelOwner, roles/ml.jobOwner.")]


def get(server: Client, path: str) -> dict[str, Any]:
    return server.get(f"{path}:getIamPolicy")


def grant(server: Client, path: str, member: str, role: str) -> dict[str, Any]:
    """Give a member a role on what is at the path; the policy then."""
    return _changed(server, path, lambda policy: storage.with_member(policy, member, role))


def take_back(server: Client, path: str, member: str, role: str) -> dict[str, Any]:
    """The opposite of `grant`. Raises NotFound if the member did not have the role."""
    return _changed(server, path, lambda policy: storage.without_member(policy, member, role))


def _changed(server: Client, path: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Again if somebody else wrote in between (its etag says so)."""
    for _ in range(storage.RETRIES):
        body = {"policy": change(get(server, path)), "updateMask": "bindings,etag"}
        try:
            return server.post(f"{path}:setIamPolicy", body)
        except client.Refused as error:
            if error.code != 409:
                raise
    raise errors.Aborted(f"{path.removeprefix('/v1/')}: its policy is changed by others all the time. Try again.")
