"""Who may do what: the policy of a project, a bucket, a model or a job, read, changed and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

from taxiway import errors, names
from taxiway.cli import client, objects
from taxiway.cli.client import Client

Member = Annotated[str, typer.Option(help="Who: serviceAccount:EMAIL, user:EMAIL, allUsers ...")]
Role = Annotated[str, typer.Option(help="What they may: roles/storage.objectViewer, roles/ml.developer ...")]
OfMl = Annotated[str, typer.Option(help="What they may: roles/ml.modelUser, roles/ml.modelOwner, roles/ml.jobOwner.")]

Bindings = dict[str, Any]  # {"bindings": [{"role", "members"}], "etag"}


class Policy(NamedTuple):
    """What has a policy, and how that is read and written."""

    what: str
    read: Callable[[], Bindings]
    write: Callable[[Bindings], Bindings]


def of_project(server: Client) -> Policy:
    path = f"/v1/projects/{server.project}"
    return Policy(
        path.removeprefix("/v1/"),
        lambda: server.post(f"{path}:getIamPolicy", {}),
        lambda policy: server.post(f"{path}:setIamPolicy", {"policy": policy}),
    )


def of_bucket(server: Client, bucket: str) -> Policy:
    path = f"{objects.path_of(bucket)}/iam"
    return Policy(
        names.join_gs(bucket),
        lambda: server.get(path, optionsRequestedPolicyVersion=3),
        lambda policy: server.put(path, policy),
    )


def of_ml(server: Client, path: str) -> Policy:
    """Of the model or the job at a path of ML v1."""
    return Policy(
        path.removeprefix("/v1/"),
        lambda: server.get(f"{path}:getIamPolicy"),
        lambda policy: server.post(f"{path}:setIamPolicy", {"policy": policy, "updateMask": "bindings,etag"}),
    )


def grant(its: Policy, member: str, role: str) -> Bindings:
    """Give a member a role; the policy then."""
    return _changed(its, lambda policy: with_member(policy, member, role))


def take_back(its: Policy, member: str, role: str) -> Bindings:
    """The opposite of `grant`. Raises NotFound if the member did not have the role."""
    return _changed(its, lambda policy: without_member(policy, member, role))


def with_member(policy: Bindings, member: str, role: str) -> Bindings:
    """The policy with one more member in a role's binding."""
    bindings = [{**binding, "members": list(binding.get("members", []))} for binding in policy.get("bindings", [])]
    mine = next((each for each in bindings if each["role"] == role and not each.get("condition")), None)
    if mine is None:
        mine = {"role": role, "members": []}
        bindings.append(mine)
    if member not in mine["members"]:
        mine["members"].append(member)
    return {**policy, "bindings": bindings}


def without_member(policy: Bindings, member: str, role: str) -> Bindings:
    """The policy without a member in a role's binding. Raises NotFound if it was not there."""
    bindings, found = [], False
    for binding in policy.get("bindings", []):
        members = list(binding.get("members", []))
        if binding["role"] == role and member in members:
            found = True
            members.remove(member)
        bindings += [{**binding, "members": members}] if members else []
    if not found:
        raise errors.NotFound(f"Policy binding with member {member!r} and role {role!r} not found.")
    return {**policy, "bindings": bindings}


def _changed(its: Policy, change: Callable[[Bindings], Bindings]) -> Bindings:
    return client.unless_overtaken(lambda: its.write(change(its.read())), f"The policy of {its.what}")
