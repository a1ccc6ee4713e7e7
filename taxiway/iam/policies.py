"""May they? Bindings of roles to members, on a project or a bucket, and the words of a refusal."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import buckets, projects
from taxiway.iam import members, roles
from taxiway.iam.members import Caller

Binding = Mapping[str, Any]  # {"role": str, "members": [str, ...]}
EMAIL = re.compile(r"[^@\s:]+@[^@\s:]+")
MEMBERS = (
    "user:EMAIL, serviceAccount:EMAIL, projectOwner|projectEditor|projectViewer:PROJECT, allUsers or "
    "allAuthenticatedUsers"
)


def may(who: Iterable[str], permission: str, bindings: Sequence[Binding]) -> bool:
    """Whether any of the members is bound to a role that has the permission. Pure."""
    names = set(who)
    return any(
        permission in roles.ROLES.get(binding["role"], ()) and not names.isdisjoint(binding["members"])
        for binding in bindings
    )


def names_of(who: Caller, project: str, project_bindings: Sequence[Binding]) -> set[str]:
    """Every member string that stands for this caller on a resource of the project."""
    names = {members.ALL_USERS}
    if not who.signed_in:
        return names
    names |= {who.member, members.ALL_SIGNED_IN}
    for binding in project_bindings:
        kind = roles.PROJECT_MEMBERS.get(binding["role"])
        if kind and who.member in binding["members"]:
            names.add(f"{kind}:{project}")
    return names


def default_bucket_policy(project: str) -> dict[str, Any]:
    """What Cloud Storage gives a new bucket: the project's owners and editors own it, its viewers read it."""
    owners = [f"projectEditor:{project}", f"projectOwner:{project}"]
    readers = [f"projectViewer:{project}"]
    return {
        "bindings": [
            {"role": "roles/storage.legacyBucketOwner", "members": owners},
            {"role": "roles/storage.legacyBucketReader", "members": readers},
            {"role": "roles/storage.legacyObjectOwner", "members": owners},
            {"role": "roles/storage.legacyObjectReader", "members": readers},
        ]
    }


def allowed(
    db: Database, who: Caller, permission: str, *, bucket: str | None = None, project: str | None = None
) -> bool:
    """Whether the caller has the permission on the bucket (or on its project), else on the project.

    Raises NotFound for a bucket or project that does not exist.
    """
    with db.read() as rows:
        return _allowed(rows, who, permission, bucket=bucket, project=project)


def _allowed(rows: sa.Connection, who: Caller, permission: str, *, bucket: str | None, project: str | None) -> bool:
    bucket_bindings: Sequence[Binding] = ()
    if bucket is not None:
        found = rows.execute(sa.select(buckets.c.project, buckets.c.policy).where(buckets.c.name == bucket)).first()
        if found is None:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist. Make it: taxiway storage mb gs://{bucket}")
        project, bucket_bindings = found.project, found.policy["bindings"]
    policy = rows.execute(sa.select(projects.c.policy).where(projects.c.id == project)).scalar()
    if policy is None:
        raise errors.NotFound(f"The project {project!r} does not exist here, or its name is misspelt.")
    project_bindings = policy["bindings"]
    names = names_of(who, str(project), project_bindings)
    return may(names, permission, bucket_bindings) or may(names, permission, project_bindings)


def need(db: Database, who: Caller, *permissions: str, bucket: str | None = None, project: str | None = None) -> None:
    """Raise unless all are allowed: Unauthenticated for nobody, else PermissionDenied with the grants that fix it.

    Raises NotFound for a bucket or project that does not exist; nobody is not told that.
    """
    try:
        with db.read() as rows:
            missing = [each for each in permissions if not _allowed(rows, who, each, bucket=bucket, project=project)]
    except errors.NotFound:
        if who.signed_in:
            raise
        missing = list(permissions)
    if not missing:
        return
    if not who.signed_in:
        resource = f"gs://{bucket}" if bucket is not None else f"projects/{project}"
        raise errors.Unauthenticated(
            f"An anonymous caller does not have {missing[0]} on {resource}. Send an access token "
            '(Authorization: Bearer ...): eval "$(taxiway env)" sets one for Google\'s clients in this shell.'
        )
    raise errors.PermissionDenied(refusal(who.member, missing, bucket=bucket, project=project))


def refusal(member: str, permissions: Sequence[str], *, bucket: str | None = None, project: str | None = None) -> str:
    """The sentence of a 403: who lacks what on which thing, and the commands that grant it."""
    if bucket is not None:
        what, command = f"gs://{bucket}", f"taxiway storage buckets add-iam-policy-binding gs://{bucket}"
    else:
        what, command = f"projects/{project}", f"taxiway projects add-iam-policy-binding {project}"
    suggested = dict.fromkeys(roles.suggested(permission) for permission in permissions)
    wanted = [role for role in suggested if not any(roles.covers(other, role) for other in suggested if other != role)]
    commands = " && ".join(f"{command} --member={member} --role={role}" for role in wanted)
    return f"{member} does not have {', '.join(permissions)} on {what}. Grant it: {commands}"


def etag(version: int) -> str:
    """A policy's etag: valid base64, as clients insist."""
    return base64.b64encode(version.to_bytes(8, "big")).decode()


def checked(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bindings of a policy that somebody sends, one per role, members sorted; every fault is named.

    Raises InvalidArgument for an unknown role, a malformed member or a condition (conditions are not offered).
    """
    bindings = policy.get("bindings") or []
    if not isinstance(bindings, list):
        raise errors.InvalidArgument(faults=[("bindings", "must be a list of {role, members}.")])
    faults = [fault for index, each in enumerate(bindings) for fault in _faults(f"bindings[{index}]", each)]
    if faults:
        raise errors.InvalidArgument(faults=faults)
    merged: dict[str, set[str]] = {}
    for binding in bindings:
        merged.setdefault(binding["role"], set()).update(binding.get("members") or [])
    return [{"role": role, "members": sorted(bound)} for role, bound in sorted(merged.items()) if bound]


def _faults(where: str, binding: object) -> Iterator[tuple[str, str]]:
    if not isinstance(binding, dict):
        yield where, "must be an object: {role, members}."
        return
    role, bound = binding.get("role"), binding.get("members") or []
    if not isinstance(role, str) or role not in roles.ROLES:
        yield f"{where}.role", f"{role!r} is not a role here. There are: {', '.join(roles.ROLES)}."
    if binding.get("condition"):
        yield f"{where}.condition", "conditions are not offered; leave it out."
    if not isinstance(bound, list):
        yield f"{where}.members", "must be a list of members, such as user:ann@example.com."
        return
    for member in bound:
        if not _is_member(member):
            yield f"{where}.members", f"{member!r} is no member: expected {MEMBERS}."


def _is_member(member: object) -> bool:
    if not isinstance(member, str):
        return False
    kind, _, rest = member.partition(":")
    if kind in roles.PROJECT_MEMBERS.values():
        return bool(rest)
    if kind in ("user", "serviceAccount"):
        return EMAIL.fullmatch(rest) is not None
    return member in (members.ALL_USERS, members.ALL_SIGNED_IN)
