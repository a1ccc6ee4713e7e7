"""May they? Bindings of roles to members, on a project or a bucket, and the words of a refusal."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import buckets, jobs, models, noncurrent, objects, operations, projects
from taxiway.iam import acls, members, roles, scopes
from taxiway.iam.members import Caller

Binding = Mapping[str, Any]  # {"role": str, "members": [str, ...]}
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


def owned_by(member: str, role: str) -> dict[str, Any]:
    """What a new model, job or operation is given: whoever makes it owns it."""
    return {"bindings": [{"role": role, "members": [member]}] if member else []}


def allowed(
    db: Database,
    who: Caller,
    permission: str,
    *,
    bucket: str | None = None,
    project: str | None = None,
    within: str | None = None,
) -> bool:
    """Whether the caller has the permission on the bucket (or on its project), else on the project.

    `within` names what else of the project has a policy that may grant it: models/M, jobs/J or operations/O; of a
    bucket the object whose access control list may (see `object_of`). Raises NotFound for a bucket or project that does
    not exist.
    """
    if not scopes.cover(who.scopes, permission):
        return False
    with db.read() as rows:
        return _allowed(rows, who, permission, bucket=bucket, project=project, within=within) or (
            bucket is not None and within is not None and _listed(rows, who, permission, bucket, within)
        )


def _allowed(
    rows: sa.Connection,
    who: Caller,
    permission: str,
    *,
    bucket: str | None,
    project: str | None,
    within: str | None,
) -> bool:
    bucket_bindings: Sequence[Binding] = ()
    public = True
    if bucket is not None:
        look = sa.select(buckets.c.project, buckets.c.policy, buckets.c.extra).where(buckets.c.name == bucket)
        found = rows.execute(look).first()
        if found is None:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist. Make it: taxiway storage mb gs://{bucket}")
        project, bucket_bindings, public = found.project, found.policy["bindings"], not prevents_public(found.extra)
    policy = rows.execute(sa.select(projects.c.policy).where(projects.c.id == project)).scalar()
    if policy is None:
        raise errors.NotFound(f"The project {project!r} does not exist here, or its name is misspelt.")
    project_bindings = policy["bindings"]
    names = names_of(who, str(project), project_bindings)
    if not public:
        names -= set(acls.PUBLIC)
    if may(names, permission, bucket_bindings) or may(names, permission, project_bindings):
        return True
    if bucket is not None or within is None:
        return False
    return may(names, permission, _bindings_within(rows, str(project), within))


def _bindings_within(rows: sa.Connection, project: str, within: str) -> Sequence[Binding]:
    """The bindings of models/M, jobs/J or operations/O; none if there is no such thing."""
    kind, _, name = within.partition("/")
    policy, key = {
        "models": (models.c.policy, (models.c.project, models.c.name)),
        "jobs": (jobs.c.policy, (jobs.c.project, jobs.c.id)),
        "operations": (operations.c.policy, (operations.c.project, operations.c.id)),
    }[kind]
    held = rows.execute(sa.select(policy).where(key[0] == project, key[1] == name)).scalar()
    return held["bindings"] if held else ()


def _listed(rows: sa.Connection, who: Caller, permission: str, bucket: str, within: str) -> bool:
    """Whether an object's own access control list gives it, or having written the object."""
    found = _object(rows, bucket, within) if permission in acls.ON_OBJECTS else None
    return found is not None and _gives(rows, who, permission, bucket, found.owner, found.acl)


def _gives(
    rows: sa.Connection, who: Caller, permission: str, bucket: str, owner: str, acl: Sequence[acls.Entry] | None
) -> bool:
    look = sa.select(buckets.c.uniform, buckets.c.extra, projects.c.number).join(projects)
    held = rows.execute(look.where(buckets.c.name == bucket)).first()
    if held is None or held.uniform:
        return False
    entries = acls.private_to_project(held.number) if acl is None else acl
    mine = entities(rows, who, acls.projects_of(entries))
    if prevents_public(held.extra):
        mine -= set(acls.PUBLIC)
    return acls.gives(entries, acls.of_member(owner, {}) or "", permission, mine)


def _object(rows: sa.Connection, bucket: str, within: str) -> Any:
    """The row (owner, acl) of the object that `object_of` named; None if there is none."""
    _, generation, name = within.split("/", 2)
    for table in (objects, noncurrent) if generation else (objects,):
        look = sa.select(table.c.owner, table.c.acl).where(table.c.bucket == bucket, table.c.name == name)
        if generation:
            look = look.where(table.c.generation == int(generation))
        found = rows.execute(look).first()
        if found is not None:
            return found
    return None


def entities(rows: sa.Connection, who: Caller, numbers: Iterable[int]) -> set[str]:
    """Every entity that stands for this caller in lists that name the people of these projects."""
    own = acls.of_member(who.member, {}) if who.signed_in else None
    mine = {members.ALL_USERS, own, members.ALL_SIGNED_IN} if own else {members.ALL_USERS}
    for each in rows.execute(sa.select(projects).where(projects.c.number.in_(list(numbers)))):
        names = names_of(who, each.id, each.policy["bindings"])
        mine |= {named for name in names if (named := acls.of_member(name, {each.id: each.number}))}
    return mine


def listed(
    db: Database, who: Caller, permission: str, *, bucket: str, owner: str, acl: Sequence[acls.Entry] | None
) -> bool:
    """Whether an object with this owner and list gives the caller a permission, whatever policies say."""
    with db.read() as rows:
        return scopes.cover(who.scopes, permission) and _gives(rows, who, permission, bucket, owner, acl)


def object_of(name: str, generation: str = "") -> str:
    """An object as `within` names it; `generation` is the text of a query, and only counts if it is a number."""
    whole = generation.isascii() and generation.isdigit() and len(generation) < 19
    return f"objects/{generation if whole else ''}/{name}"


def prevents_public(extra: Mapping[str, Any]) -> bool:
    """Whether a bucket enforces public access prevention: then nothing is for everybody, whatever a grant says."""
    return extra.get("publicAccessPrevention") == "enforced"


def need(
    db: Database,
    who: Caller,
    *permissions: str,
    bucket: str | None = None,
    project: str | None = None,
    within: str | None = None,
) -> bool:
    """Raise unless all are allowed: Unauthenticated for nobody, else PermissionDenied with the grants that fix it.

    Answers whether policies gave them, and not an object's own list: only then they hold for the whole bucket. Raises
    NotFound for a bucket or project that does not exist; nobody is not told that. An object that does not exist is
    NotFound for whoever may list its bucket (so that a writer can look whether it has written yet).
    """
    beyond = [each for each in permissions if not scopes.cover(who.scopes, each)]
    if beyond:
        raise scopes.refusal(who.scopes, beyond)
    place = {"bucket": bucket, "project": project, "within": within}
    absent, lists = False, False
    try:
        with db.read() as rows:
            missing = [each for each in permissions if not _allowed(rows, who, each, **place)]
            if missing and bucket is not None and within is not None:
                missing = [each for each in missing if not _listed(rows, who, each, bucket, within)]
                if not missing:
                    return False
                absent = _object(rows, bucket, within) is None and _allowed(
                    rows, who, "storage.objects.list", bucket=bucket, project=None, within=None
                )
                lists = not rows.execute(sa.select(buckets.c.uniform).where(buckets.c.name == bucket)).scalar()
    except errors.NotFound:
        if who.signed_in:
            raise
        missing = list(permissions)
    if not missing:
        return True
    if absent and acls.ON_OBJECTS.issuperset(missing):
        raise errors.NotFound(
            f"No such object: {_named_in(bucket, within)}. See what is there: taxiway storage ls gs://{bucket}"
        )
    if not who.signed_in:
        resource = _named_in(bucket, within) if bucket is not None else _named(project, within)
        raise errors.Unauthenticated(
            f"An anonymous caller does not have {missing[0]} on {resource}. Send an access token "
            '(Authorization: Bearer ...): eval "$(taxiway env)" sets one for Google\'s clients in this shell.'
        )
    raise errors.PermissionDenied(refusal(who.member, missing, **place, lists=lists))


def refusal(
    member: str,
    permissions: Sequence[str],
    *,
    bucket: str | None = None,
    project: str | None = None,
    within: str | None = None,
    lists: bool = False,
) -> str:
    """The sentence of a 403: who lacks what on which thing, and the commands that grant it.

    `lists`: whether the object's access control list is another way.
    """
    kind, _, name = (within or "").partition("/")
    if bucket is not None:
        what, command = _named_in(bucket, within), f"taxiway storage buckets add-iam-policy-binding gs://{bucket}"
    elif kind in ("models", "jobs"):
        what, command = _named(project, within), f"taxiway {kind} add-iam-policy-binding {name} --project={project}"
    else:
        what, command = f"projects/{project}", f"taxiway projects add-iam-policy-binding {project}"
    suggested = dict.fromkeys(roles.suggested(permission) for permission in permissions)
    wanted = [role for role in suggested if not any(roles.covers(other, role) for other in suggested if other != role)]
    commands = " && ".join(f"{command} --member={member} --role={role}" for role in wanted)
    if lists and acls.ON_OBJECTS.issuperset(permissions):
        letter = "R" if set(permissions) == {"storage.objects.get"} else "O"
        alone = f"gsutil acl ch -u {member.partition(':')[2]}:{letter} {shlex.quote(what)}"
        commands = f"{alone} or, for the whole bucket, {commands}"
    return f"{member} does not have {', '.join(permissions)} on {what}. Grant it: {commands}"


def _named_in(bucket: str | None, within: str | None) -> str:
    name = within.split("/", 2)[2] if within else ""
    return f"gs://{bucket}/{name}" if name else f"gs://{bucket}"


def _named(project: str | None, within: str | None) -> str:
    return f"projects/{project}/{within}" if within else f"projects/{project}"


def must_be(held: int, version: int | None, name: str) -> None:
    """Raise Aborted if a policy was changed since somebody read it; `version` None: nobody asks."""
    if version is not None and version != held:
        raise overtaken(name)


def overtaken(name: str) -> errors.Aborted:
    return errors.Aborted(f"The policy of {name} was changed by somebody else; read it again.")


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
        return members.EMAIL.fullmatch(rest) is not None
    return member in (members.ALL_USERS, members.ALL_SIGNED_IN)
