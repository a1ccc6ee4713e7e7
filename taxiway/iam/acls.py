"""Access control lists: entries of an entity and a role, as Cloud Storage spells them, and what they come to.

The list of an object adds rights on that object to what policies give. The list of a bucket is a view of its policy:
an entry is a member of one of the three legacy bucket roles. Everything here is pure; `numbers` holds the number of
each project by its id, because entries name a project's people by its number and policies by its id.

Rules from https://cloud.google.com/storage/docs/access-control/lists and /docs/access-control/iam#acls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

from taxiway import errors
from taxiway.iam import members, roles
from taxiway.iam.members import EMAIL

Entry = tuple[str, str]  # (entity, role)
Binding = Mapping[str, Any]  # {"role": str, "members": [str, ...]}
Numbers = Mapping[str, int]  # a project's id -> its number

OWNER, WRITER, READER = "OWNER", "WRITER", "READER"
BUCKET_ROLES = {
    OWNER: "roles/storage.legacyBucketOwner",
    WRITER: "roles/storage.legacyBucketWriter",
    READER: "roles/storage.legacyBucketReader",
}
OBJECT_ROLES = {OWNER: "roles/storage.legacyObjectOwner", READER: "roles/storage.legacyObjectReader"}
ON_OBJECTS = roles.ROLES[OBJECT_ROLES[OWNER]]  # every permission that an object's own list can give
TEAMS = {"owners": "projectOwner", "editors": "projectEditor", "viewers": "projectViewer"}
PUBLIC = (members.ALL_USERS, members.ALL_SIGNED_IN)
MOST = 100  # entries in one list: Cloud Storage's limit
ENTITIES = (
    "user-EMAIL (people and service accounts), project-owners|editors|viewers-PROJECT, allUsers or "
    "allAuthenticatedUsers"
)

Kind = Literal["object", "bucket"]


# ---- who an entity is ------------------------------------------------------------------------------------------------


def of_member(member: str, numbers: Numbers) -> str | None:
    """The entity that stands for a policy's member; None for one that lists have no word for.

    >>> of_member("user:ann@example.com", {})
    'user-ann@example.com'
    >>> of_member("projectViewer:taxi", {"taxi": 7})
    'project-viewers-7'
    """
    kind, _, rest = member.partition(":")
    if member in PUBLIC:
        return member
    if kind in ("user", "serviceAccount"):
        return f"user-{rest}"
    for team, people in TEAMS.items():
        if kind == people and rest in numbers:
            return f"project-{team}-{numbers[rest]}"
    return None


def to_member(entity: str, numbers: Numbers) -> str | None:
    """The member of a policy that an entity stands for; None for a project that is not among them.

    >>> to_member("user-lab@taxi.iam.gserviceaccount.com", {})
    'serviceAccount:lab@taxi.iam.gserviceaccount.com'
    """
    if entity in PUBLIC:
        return entity
    kind, _, rest = entity.partition("-")
    if kind == "user":
        return members.of_email(rest)
    team, number = _team(entity)
    for project, its in numbers.items():
        if its == number:
            return f"{TEAMS[team]}:{project}"
    return None


def projects_of(entries: Iterable[Entry]) -> set[int]:
    """The numbers of the projects whose people a list names."""
    return {_team(entity)[1] for entity, _ in entries if entity.startswith("project-")}


def entity(text: object, field: str, numbers: Numbers) -> str:
    """An entity as it is kept. Raises InvalidArgument that names the field, also for what is not offered."""
    faults = list(_entity_faults(text, field, numbers))
    if faults:
        raise errors.InvalidArgument(faults=faults)
    return _kept(str(text), numbers)


# ---- what lists give -------------------------------------------------------------------------------------------------


def private_to_project(number: int) -> list[Entry]:
    """What a list that nobody set says: the project's owners and editors own the object, its viewers read it."""
    return predefined("projectPrivate", "object", number, "predefinedAcl")


def gives(entries: Iterable[Entry], owner: str, permission: str, entities: Collection[str]) -> bool:
    """Whether an object's list gives a permission to whoever these entities stand for; its owner has them all.

    `owner` is the entity that wrote the object, empty for nobody.
    """
    if permission not in ON_OBJECTS:
        return False
    if owner and owner in entities:
        return True
    return any(named in entities and permission in roles.ROLES[OBJECT_ROLES[role]] for named, role in entries)


def with_owner(entries: Iterable[Entry], owner: str) -> list[Entry]:
    """A list as it is shown: the owner first, who cannot be taken off it and always owns."""
    return ([(owner, OWNER)] if owner else []) + [each for each in entries if each[0] != owner]


# ---- a bucket's list, as a view of its policy ------------------------------------------------------------------------


def of_policy(bindings: Iterable[Binding], numbers: Numbers) -> list[Entry]:
    """The entries that a bucket's policy comes to; of several roles of one member the greatest."""
    held: dict[str, str] = {}
    for role in BUCKET_ROLES:
        for binding in bindings:
            if binding["role"] == BUCKET_ROLES[role]:
                for member in binding["members"]:
                    named = of_member(member, numbers)
                    if named is not None:
                        held.setdefault(named, role)
    return list(held.items())


def into_policy(bindings: Iterable[Binding], entries: Iterable[Entry], numbers: Numbers) -> list[dict[str, Any]]:
    """The policy whose view is `entries`; every other role, and members that lists have no word for, stay."""
    bound: dict[str, set[str]] = {}
    legacy = set(BUCKET_ROLES.values())
    for binding in bindings:
        kept = [
            member
            for member in binding["members"]
            if binding["role"] not in legacy or of_member(member, numbers) is None
        ]
        bound.setdefault(binding["role"], set()).update(kept)
    for named, role in entries:
        member = to_member(named, numbers)
        if member is not None:
            bound.setdefault(BUCKET_ROLES[role], set()).add(member)
    return [{"role": role, "members": sorted(those)} for role, those in sorted(bound.items()) if those]


# ---- an object's list, as a policy -----------------------------------------------------------------------------------


def object_policy(entries: Iterable[Entry], numbers: Numbers) -> list[dict[str, Any]]:
    """The bindings that an object's list comes to."""
    bound: dict[str, set[str]] = {}
    for named, role in entries:
        member = to_member(named, numbers)
        if member is not None:
            bound.setdefault(OBJECT_ROLES[role], set()).add(member)
    return [{"role": role, "members": sorted(those)} for role, those in sorted(bound.items())]


def of_object_policy(bindings: Iterable[Binding], numbers: Numbers) -> list[Entry]:
    """The list that bindings (checked already) come to. Raises InvalidArgument for what a list cannot say."""
    words = {role: word for word, role in OBJECT_ROLES.items()}
    held: dict[str, str] = {}
    for index, binding in enumerate(bindings):
        if binding["role"] not in words:
            offered = ", ".join(words)
            raise errors.InvalidArgument(
                faults=[(f"bindings[{index}].role", f"An object's policy may have {offered}; not {binding['role']}.")]
            )
        for member in binding["members"]:
            named = of_member(member, numbers)
            if named is None:
                raise errors.InvalidArgument(
                    faults=[(f"bindings[{index}].members", f"{member!r} is of a project that is not here.")]
                )
            if held.get(named) != OWNER:
                held[named] = words[binding["role"]]
    return list(held.items())


# ---- lists that somebody sends ---------------------------------------------------------------------------------------


def predefined(name: str, kind: Kind, number: int, field: str) -> list[Entry]:
    """The entries, beside the owner's, of one of Google's ready-made lists, for a bucket of the project `number`.

    Raises InvalidArgument that names the field and all that there are.
    """
    owners, editors, viewers = (f"project-{team}-{number}" for team in TEAMS)
    everybody, signed_in = PUBLIC
    for_project = [(owners, OWNER), (editors, OWNER), (viewers, READER)]
    own = [(owners, OWNER)] if kind == "bucket" else []  # a bucket belongs to its project's owners
    offered: dict[str, list[Entry]] = {
        "private": own,
        "projectPrivate": for_project,
        "publicRead": [*own, (everybody, READER)],
        "authenticatedRead": [*own, (signed_in, READER)],
    }
    if kind == "bucket":
        offered["publicReadWrite"] = [*own, (everybody, WRITER)]
    else:
        offered["bucketOwnerRead"] = [(owners, READER)]
        offered["bucketOwnerFullControl"] = [(owners, OWNER)]
    if name not in offered:
        raise errors.InvalidArgument(
            faults=[(field, f"{name[:100]!r} is no ready-made list. There are: {', '.join(offered)}.")]
        )
    return offered[name]


def checked(entries: object, kind: Kind, numbers: Numbers, field: str) -> list[Entry]:
    """The entries of [{"entity", "role"}, ...] as a body says them; of two for one entity the last.

    Raises InvalidArgument that names every fault by its field.
    """
    if not isinstance(entries, list):
        raise errors.InvalidArgument(faults=[(field, "must be a list of {entity, role}.")])
    faults = [] if len(entries) <= MOST else [(field, f"A list may have {MOST} entries; this has {len(entries)}.")]
    for index, each in enumerate(entries[:MOST]):
        faults += _faults(each, kind, numbers, f"{field}[{index}]")
    if faults:
        raise errors.InvalidArgument(faults=faults)
    held: dict[str, str] = {}
    for each in entries:
        held[_kept(each["entity"], numbers)] = each["role"]
    return list(held.items())


def checked_role(role: object, kind: Kind, field: str) -> str:
    """Raises InvalidArgument that names the field and all that there are."""
    offered = BUCKET_ROLES if kind == "bucket" else OBJECT_ROLES
    if not isinstance(role, str) or role not in offered:
        raise errors.InvalidArgument(
            faults=[(field, f"{role!r} is no role in the list of {_a(kind)}. There are: {', '.join(offered)}.")]
        )
    return role


def not_public(entries: Iterable[Entry], bucket: str) -> None:
    """Raises ConditionNotMet if a list would let everybody in where the bucket prevents it."""
    public = [named for named, _ in entries if named in PUBLIC]
    if public:
        raise errors.ConditionNotMet(
            f"{' and '.join(public)} cannot be granted anything on gs://{bucket}: its public access prevention is "
            "enforced. Name the people (user-EMAIL), or set iamConfiguration.publicAccessPrevention to inherited first."
        )


def _faults(entry: object, kind: Kind, numbers: Numbers, field: str) -> Iterator[tuple[str, str]]:
    if not isinstance(entry, dict):
        yield field, "must be an object: {entity, role}."
        return
    yield from _entity_faults(entry.get("entity"), f"{field}.entity", numbers)
    try:
        checked_role(entry.get("role"), kind, f"{field}.role")
    except errors.InvalidArgument as error:
        yield from error.faults


def _entity_faults(text: object, field: str, numbers: Numbers) -> Iterator[tuple[str, str]]:
    said = text if isinstance(text, str) else ""
    kind, _, rest = said.partition("-")
    if kind in ("group", "domain"):
        yield field, f"{kind}s are not known here; name their people one by one, as user-EMAIL. It is {said[:100]!r}."
    elif kind == "project" and rest.partition("-")[0] in TEAMS:
        project = rest.partition("-")[2]
        if project not in numbers and project not in map(str, numbers.values()):
            yield field, f"There is no project {project[:100]!r} here; it is named by its id or its number."
    elif said not in PUBLIC and not (kind == "user" and EMAIL.fullmatch(rest)):
        yield field, f"{text!r} is no entity: expected {ENTITIES}."


def _kept(text: str, numbers: Numbers) -> str:
    """A project's people by its number, however they were named."""
    if not text.startswith("project-"):
        return text
    _, team, project = text.split("-", 2)
    return f"project-{team}-{numbers.get(project, project)}"


def _team(entity: str) -> tuple[str, int]:
    _, team, number = entity.split("-", 2)
    return team, int(number)


def _a(kind: Kind) -> str:
    return "an object" if kind == "object" else "a bucket"
