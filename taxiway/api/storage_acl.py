"""Access control lists on the wire: of objects, of buckets, and of a bucket for its new objects.

https://cloud.google.com/storage/docs/json_api/v1/{objectAccessControls,bucketAccessControls,defaultObjectAccessControls}.
Objects and buckets also carry them in their own resources (projection=full), and take them there and as ready-made
lists (predefinedAcl). The list of a bucket is a view of its policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET

from taxiway import errors
from taxiway.api import storage_forms as forms
from taxiway.api import wire
from taxiway.api.call import SIGNED_IN, Call, Route
from taxiway.iam import acls, policies, projects
from taxiway.iam.acls import Entry, Kind
from taxiway.storage import buckets, objects
from taxiway.storage.buckets import Access, Bucket
from taxiway.storage.objects import Object

LOCKED_AFTER_S = 90 * 24 * 3600  # uniform access can be turned off again for so long
PREVENTIONS = ("inherited", "enforced")

Change = Callable[[list[Entry]], list[Entry]]
Form = Callable[[Entry], dict[str, Any]]


# ---- in the resources of objects -------------------------------------------------------------------------------------


def full(call: Call) -> bool:
    return call.query.get("projection", "").lower() == "full"


def shown(call: Call, bucket: str) -> Callable[[Object], dict[str, Any]]:
    """What projection=full adds to an object's resource: its owner and its list.

    Nothing for whoever may not read the list, and nothing where access is uniform.
    """
    held = buckets.get(call.house.db, bucket) if full(call) else None
    if held is None or held.uniform:
        return lambda found: {}
    number = held.project_number
    every = call.may("storage.objects.getIamPolicy", bucket=bucket)
    own = acls.of_member(call.who.member, {})
    decided: dict[bytes, bool] = {}  # objects have few different lists

    def show(found: Object) -> dict[str, Any]:
        owner = _owner(found)
        if not every and not (owner and owner == own):
            key = msgspec.json.encode(found.acl)
            if key not in decided:
                within = policies.object_of(found.name, str(found.generation))
                decided[key] = call.may("storage.objects.getIamPolicy", bucket=bucket, within=within)
            if not decided[key]:
                return {}
        form = _object_form(call, found)
        added: dict[str, Any] = {"acl": [form(each) for each in acls.with_owner(_entries(found, number), owner)]}
        return {"owner": {"entity": owner}, **added} if owner else added

    return show


def of_new_object(
    call: Call, bucket: str, said: object, field: str = "acl", query: str = "predefinedAcl"
) -> dict[str, Any]:
    """{"acl": entries} of what a request wants on an object: by a ready-made list, else in its body; {}: nothing.

    Raises InvalidArgument (also where access is uniform), ConditionNotMet where nothing may be public,
    PermissionDenied for nobody, who will not own the object.
    """
    if said is UNSET and not call.query.get(query):
        return {}
    held = buckets.get(call.house.db, bucket)
    _refuse_uniform(held, "insert", "object")
    if not call.who.signed_in:
        call.need("storage.objects.setIamPolicy", bucket=bucket)
    return {"acl": _wanted(call, held, said, "object", field, query)}


def of_patched_object(call: Call, said: object) -> dict[str, Any]:
    """As `of_new_object`, for the object that the path names: who changes its list needs the right to."""
    if said is UNSET and not call.query.get("predefinedAcl"):
        return {}
    bucket = call.path["bucket"]
    within = policies.object_of(call.path["object"], call.query.get("generation", ""))
    call.need("storage.objects.setIamPolicy", bucket=bucket, within=within)
    held = buckets.get(call.house.db, bucket)
    _refuse_uniform(held, "update", "object")
    return {"acl": _wanted(call, held, said, "object", "acl", "predefinedAcl")}


# ---- what only a list allows -----------------------------------------------------------------------------------------


def still(call: Call, found: Object, permission: str = "") -> None:
    """Sees that what was read is what the caller may: a list is one object's, which may have been replaced meanwhile.

    Raises Aborted. `permission` is what is needed by nothing but the list; else it is the row's, if that was so.
    """
    lacking = permission or call.by_list
    if lacking and not policies.listed(
        call.house.db, call.who, lacking, bucket=found.bucket, owner=found.owner, acl=found.acl
    ):
        raise errors.Aborted(f"gs://{found.bucket}/{found.name} was replaced meanwhile; try again.")


def generation(call: Call) -> int | None:
    """Which generation a change is of: what was asked for, or the one whose own list lets the caller in."""
    asked = forms.whole(call.query, "generation")
    if not call.by_list:
        return asked
    return _pinned(call, call.path["bucket"], call.path["object"], asked, call.by_list)


def need_source(call: Call, bucket: str, name: str, asked: int | None) -> int | None:
    """Which generation to copy of an object that the caller must be allowed to read; None: whichever is there."""
    within = policies.object_of(name, "" if asked is None else str(asked))
    if call.need("storage.objects.get", bucket=bucket, within=within):
        return asked
    return _pinned(call, bucket, name, asked, "storage.objects.get")


def _pinned(call: Call, bucket: str, name: str, asked: int | None, permission: str) -> int:
    found = objects.get(call.house.db, bucket, name, generation=asked)
    still(call, found, permission)
    return found.generation


# ---- in the resources of buckets -------------------------------------------------------------------------------------


def of_bucket_shown(call: Call) -> Callable[[Bucket], dict[str, Any]]:
    """What projection=full adds to a bucket's resource: owner, acl, defaultObjectAcl; as `shown`."""
    if not full(call):
        return lambda found: {}
    numbers = projects.numbers(call.house.db)

    def show(found: Bucket) -> dict[str, Any]:
        if found.uniform or not call.may("storage.buckets.getIamPolicy", bucket=found.name):
            return {}
        form, default = _bucket_form(call, found), _default_form(found)
        return {
            "owner": {"entity": _bucket_owner(found)},
            "acl": [form(each) for each in acls.of_policy(found.policy["bindings"], numbers)],
            "defaultObjectAcl": [default(each) for each in _default(found)],
        }

    return show


def of_new_bucket(call: Call, project: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a new bucket that say who may. Raises InvalidArgument, ConditionNotMet."""
    db = call.house.db
    numbers = projects.numbers(db)
    number = projects.get(db, project).number
    policy = policies.default_bucket_policy(project)
    columns: dict[str, Any] = {"policy": policy, "uniform": False, "extra": {}}
    columns.update(_iam_configuration(body, columns["uniform"], {}, call.now))
    prevented = policies.prevents_public(columns["extra"])
    for field, query, kind in _IN_BUCKETS:
        if body.get(field) is None and not call.query.get(query):
            continue
        if columns["uniform"]:
            raise _uniform(str(body.get("name")), "insert", kind)
        entries = _said(call, body.get(field, UNSET), _KINDS[kind], number, numbers, field, query)
        if prevented:
            acls.not_public(entries, str(body.get("name")))
        if kind == "default":
            columns["default_acl"] = entries
        else:
            own = acls.with_owner(entries, f"project-owners-{number}")
            columns["policy"] = {"bindings": acls.into_policy(policy["bindings"], own, numbers)}
    return columns


def of_patched_bucket(call: Call, body: Mapping[str, Any]) -> Access | None:
    """What a change of a bucket says of who may; None: nothing. Raises PermissionDenied, InvalidArgument.

    The answer raises InvalidArgument where access is uniform, FailedPrecondition where it stays so, ConditionNotMet
    where nothing may be public.
    """
    db, name = call.house.db, call.path["bucket"]
    before = buckets.get(db, name)
    wanted: dict[str, list[Entry]] = {}
    numbers = projects.numbers(db)
    for field, query, kind in _IN_BUCKETS:
        if body.get(field) is not None or call.query.get(query):
            said, number = body.get(field, UNSET), before.project_number
            wanted[kind] = _said(call, said, _KINDS[kind], number, numbers, field, query)
    if not wanted and not _iam_configuration(body, before.uniform, before.extra, call.now):
        return None
    call.need("storage.buckets.setIamPolicy", bucket=name)

    def access(current: Bucket) -> dict[str, Any]:
        columns = _iam_configuration(body, current.uniform, current.extra, call.now)
        if wanted and columns.get("uniform", current.uniform):
            raise _uniform(name, "update", next(iter(wanted)))
        if policies.prevents_public(columns.get("extra", current.extra)):
            for entries in wanted.values():
                acls.not_public(entries, name)
        if "default" in wanted:
            columns["default_acl"] = wanted["default"]
        if "bucket" in wanted:
            columns.update(_policy_of(current, wanted["bucket"], numbers))
        return columns

    return access


def refuse_public(held: Bucket, bindings: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConditionNotMet if a policy would let everybody in where the bucket prevents it."""
    if policies.prevents_public(held.extra):
        acls.not_public([(member, each["role"]) for each in bindings for member in each["members"]], held.name)


_IN_BUCKETS = (
    ("acl", "predefinedAcl", "bucket"),
    ("defaultObjectAcl", "predefinedDefaultObjectAcl", "default"),
)
_KINDS: dict[str, Kind] = {"bucket": "bucket", "default": "object"}


def _iam_configuration(body: Mapping[str, Any], uniform: bool, extra: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The columns that iamConfiguration changes: {} if it changes none."""
    said = body.get("iamConfiguration")
    if said is None:
        return {}
    field = "iamConfiguration"
    if not isinstance(said, dict):
        raise wire.wrong(field, "must be a JSON object.")
    columns: dict[str, Any] = {}
    wanted = uniform
    for name in ("bucketPolicyOnly", "uniformBucketLevelAccess"):  # the older name of the same; the newer one wins
        switch = said.get(name)
        if switch is not None and not (isinstance(switch, dict) and isinstance(switch.get("enabled", False), bool)):
            raise wire.wrong(f"{field}.{name}.enabled", "must be true or false.")
        if switch is not None and "enabled" in switch:
            wanted = switch["enabled"]
    if wanted != uniform:
        if uniform and extra.get("uniformLocked", now) < now:
            raise errors.FailedPrecondition(
                f"{field}.uniformBucketLevelAccess: it was enabled more than 90 days ago, and stays enabled; "
                "make another bucket."
            )
        columns["uniform"] = wanted
        columns["extra"] = {"uniformLocked": now + LOCKED_AFTER_S} if wanted else {"uniformLocked": None}
    prevention = said.get("publicAccessPrevention")
    if prevention is not None:
        prevention = "inherited" if prevention == "unspecified" else prevention  # Google's older word for it
        if prevention not in PREVENTIONS:
            raise wire.wrong(f"{field}.publicAccessPrevention", f"must be one of {', '.join(PREVENTIONS)}.")
        if prevention != extra.get("publicAccessPrevention", "inherited"):
            columns["extra"] = {**columns.get("extra", {}), "publicAccessPrevention": prevention}
    return columns


# ---- as resources of their own ---------------------------------------------------------------------------------------


class Lists:
    """The methods of one kind of list; what differs is how it is read and changed.

    `read` answers its entries and the owner who is implied (or ""); `change` sets it to what a pure function makes of
    the entries, in one transaction. Both give what writes an entry.
    """

    def __init__(
        self,
        kind: Kind,
        word: str,
        read: Callable[[Call], tuple[list[Entry], str, Form]],
        change: Callable[[Call, Change], tuple[list[Entry], str, Form]],
    ) -> None:
        self.kind: Kind = kind
        self.word = word  # storage#objectAccessControls
        self._read = read
        self._change = change

    def every(self, call: Call) -> dict[str, Any]:
        entries, owner, form = self._read(call)
        return {"kind": self.word, "items": [form(each) for each in acls.with_owner(entries, owner)]}

    def one(self, call: Call) -> dict[str, Any]:
        entries, owner, form = self._read(call)
        return form(_entry(acls.with_owner(entries, owner), self._entity(call)))

    def insert(self, call: Call) -> dict[str, Any]:
        """Give an entity a role, in place of the one that it may have."""
        body = _mapping(call.body)
        named = acls.entity(body.get("entity"), "entity", projects.numbers(call.house.db))
        return self._set(call, named, acls.checked_role(body.get("role"), self.kind, "role"), must_be_there=False)

    def update(self, call: Call) -> dict[str, Any]:
        """Give an entity that is on the list another role."""
        role = acls.checked_role(_mapping(call.body).get("role"), self.kind, "role")
        return self._set(call, self._entity(call), role, must_be_there=True)

    def delete(self, call: Call) -> None:
        named = self._entity(call)

        def without(entries: list[Entry]) -> list[Entry]:
            _entry(entries, named)
            return [each for each in entries if each[0] != named]

        self._change(call, without)

    def _set(self, call: Call, named: str, role: str, *, must_be_there: bool) -> dict[str, Any]:
        def with_it(entries: list[Entry]) -> list[Entry]:
            if must_be_there:
                _entry(entries, named)
            return [*(each for each in entries if each[0] != named), (named, role)]

        _, _, form = self._change(call, with_it)
        return form((named, role))

    def _entity(self, call: Call) -> str:
        return acls.entity(call.path["entity"], "entity", projects.numbers(call.house.db))


def _read_object(call: Call) -> tuple[list[Entry], str, Form]:
    held = buckets.get(call.house.db, call.path["bucket"])
    _refuse_uniform(held, "get", "object")
    found = _found(call)
    still(call, found)
    return _entries(found, held.project_number), _owner(found), _object_form(call, found)


def _change_object(call: Call, change: Change) -> tuple[list[Entry], str, Form]:
    held = buckets.get(call.house.db, call.path["bucket"])
    _refuse_uniform(held, "update", "object")

    def changed(current: Object) -> list[Entry]:
        owner, before = _owner(current), _entries(current, held.project_number)
        after = _with(change, before, owner, held, "the object")
        return [each for each in after if each[0] != owner]

    made = objects.change_acl(
        call.house.db,
        held.name,
        call.path["object"],
        changed,
        now=call.now,
        generation=generation(call),
        conditions=forms.conditions(call.query),
    )
    return _entries(made, held.project_number), _owner(made), _object_form(call, made)


def _read_bucket(call: Call) -> tuple[list[Entry], str, Form]:
    found = buckets.get(call.house.db, call.path["bucket"], conditions=forms.conditions(call.query))
    _refuse_uniform(found, "get", "bucket")
    entries = acls.of_policy(found.policy["bindings"], projects.numbers(call.house.db))
    return entries, "", _bucket_form(call, found)


def _change_bucket(call: Call, change: Change) -> tuple[list[Entry], str, Form]:
    numbers = projects.numbers(call.house.db)

    def access(current: Bucket) -> dict[str, Any]:
        _refuse_uniform(current, "update", "bucket")
        before = acls.of_policy(current.policy["bindings"], numbers)
        after = _with(change, before, _bucket_owner(current), current, f"gs://{current.name}")
        return _policy_of(current, after, numbers)

    made = _patched(call, access)
    return acls.of_policy(made.policy["bindings"], numbers), "", _bucket_form(call, made)


def _read_default(call: Call) -> tuple[list[Entry], str, Form]:
    found = buckets.get(call.house.db, call.path["bucket"], conditions=forms.conditions(call.query))
    _refuse_uniform(found, "get", "default")
    return _default(found), "", _default_form(found)


def _change_default(call: Call, change: Change) -> tuple[list[Entry], str, Form]:
    def access(current: Bucket) -> dict[str, Any]:
        _refuse_uniform(current, "update", "default")
        return {"default_acl": _with(change, _default(current), "", current, f"gs://{current.name}")}

    made = _patched(call, access)
    return _default(made), "", _default_form(made)


def _with(change: Change, before: list[Entry], owner: str, held: Bucket, what: str) -> list[Entry]:
    """What a change makes of a list.

    Raises FailedPrecondition if it takes something from the owner, InvalidArgument if the list becomes too long.
    """
    after = change(acls.with_owner(before, owner))
    if len(after) > max(acls.MOST, len(before)):
        raise wire.wrong(
            "entity", f"A list may have {acls.MOST} entries. Grant by a policy, or take somebody off first."
        )
    if owner and (owner, acls.OWNER) not in after:
        raise errors.FailedPrecondition(
            f"entity: {owner} owns {what}, and stays OWNER on its list; it cannot be removed or given another role."
        )
    if policies.prevents_public(held.extra):
        acls.not_public([each for each in after if each not in before], held.name)
    return after


def _patched(call: Call, access: Access) -> Bucket:
    made = buckets.patch(
        call.house.db, call.path["bucket"], access=access, conditions=forms.conditions(call.query), now=call.now
    )
    call.house.access.forget()
    return made


# ---- an object's list as a policy ------------------------------------------------------------------------------------


def get_object_policy(call: Call) -> dict[str, Any]:
    """The list as the bindings of legacyObjectOwner and legacyObjectReader, which is what it comes to."""
    entries, owner, _ = _read_object(call)
    return _policy_form(call, _found(call), acls.with_owner(entries, owner))


def set_object_policy(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    numbers = projects.numbers(call.house.db)
    entries = acls.of_object_policy(policies.checked(body), numbers)
    version = forms.policy_version(body.get("etag"))

    def to(current: Object) -> list[Entry]:
        if version is not None and version != current.metageneration:
            raise errors.ConditionNotMet(
                f"The policy of gs://{current.bucket}/{current.name} was changed since you read it: read it again, and "
                "repeat your change."
            )
        return entries

    held = buckets.get(call.house.db, call.path["bucket"])
    _refuse_uniform(held, "update", "object")
    if policies.prevents_public(held.extra):
        acls.not_public(entries, held.name)
    made = objects.change_acl(
        call.house.db,
        held.name,
        call.path["object"],
        to,
        now=call.now,
        generation=generation(call),
        conditions=forms.conditions(call.query),
    )
    return _policy_form(call, made, acls.with_owner(entries, _owner(made)))


def test_object_permissions(call: Call) -> dict[str, Any]:
    wanted = call.request.query_params.getlist("permissions")
    within = policies.object_of(call.path["object"], call.query.get("generation", ""))
    held = [each for each in wanted if call.may(each, bucket=call.path["bucket"], within=within)]
    form: dict[str, Any] = {"kind": "storage#testIamPermissionsResponse"}
    return {**form, "permissions": held} if held else form


def _policy_form(call: Call, found: Object, entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "kind": "storage#policy",
        "resourceId": f"projects/_/buckets/{found.bucket}/objects/{found.name}",
        "version": 1,
        "etag": forms.etag(found.generation, found.metageneration),
        "bindings": acls.object_policy(entries, projects.numbers(call.house.db)),
    }


# ---- entries and their forms -----------------------------------------------------------------------------------------


def _found(call: Call) -> Object:
    return objects.get(
        call.house.db,
        call.path["bucket"],
        call.path["object"],
        generation=forms.whole(call.query, "generation"),
        conditions=forms.conditions(call.query),
    )


def _owner(found: Object) -> str:
    return acls.of_member(found.owner, {}) or ""


def _entries(found: Object, number: int) -> list[Entry]:
    return acls.private_to_project(number) if found.acl is None else list(found.acl)


def _default(found: Bucket) -> list[Entry]:
    return acls.private_to_project(found.project_number) if found.default_acl is None else list(found.default_acl)


def _bucket_owner(found: Bucket) -> str:
    return f"project-owners-{found.project_number}"


def _policy_of(current: Bucket, entries: Sequence[Entry], numbers: acls.Numbers) -> dict[str, Any]:
    entries = acls.with_owner(entries, _bucket_owner(current))
    return {"policy": {"bindings": acls.into_policy(current.policy["bindings"], entries, numbers)}}


def _wanted(call: Call, held: Bucket, said: object, kind: Kind, field: str, query: str) -> list[Entry] | None:
    """The entries of a request; None for an `acl` of null, which is what an object has when nobody says anything."""
    if said is None and not call.query.get(query):
        return None
    entries = _said(call, said, kind, held.project_number, projects.numbers(call.house.db), field, query)
    if policies.prevents_public(held.extra):
        acls.not_public(entries, held.name)
    return entries


def _said(
    call: Call, said: object, kind: Kind, number: int, numbers: acls.Numbers, field: str, query: str
) -> list[Entry]:
    """A ready-made list goes before the body: clients that send one leave an empty list there."""
    name = call.query.get(query)
    if name:
        return acls.predefined(name, kind, number, query)
    return acls.checked(said, kind, numbers, field)


def _entry(entries: Sequence[Entry], named: str) -> Entry:
    for each in entries:
        if each[0] == named:
            return each
    there = ", ".join(each[0] for each in entries) or "nobody"
    raise errors.NotFound(f"{named} is not on the list; on it are: {there}.")


def _refuse_uniform(held: Bucket, verb: str, kind: str) -> None:
    if held.uniform:
        raise _uniform(held.name, verb, kind)


def _uniform(bucket: str, verb: str, kind: str) -> errors.InvalidArgument:
    """Google's sentence, and what to do instead."""
    what = {"object": "legacy ACL for an object", "bucket": "legacy ACL for a bucket"}.get(
        kind, "legacy default object ACL for a bucket"
    )
    return errors.InvalidArgument(
        f"Cannot {verb} {what} when uniform bucket-level access is enabled. Read more at "
        "https://cloud.google.com/storage/docs/uniform-bucket-level-access. Grant by the bucket's policy instead: "
        f"taxiway storage buckets add-iam-policy-binding gs://{bucket} --member=MEMBER --role=ROLE"
    )


def _object_form(call: Call, found: Object) -> Form:
    name, generation = quote(found.name, safe=""), str(found.generation)
    tag = forms.etag(found.generation, found.metageneration)

    def form(entry: Entry) -> dict[str, Any]:
        link = f"{call.base}/storage/v1/b/{found.bucket}/o/{name}/acl/{quote(entry[0], safe='@')}"
        return {
            "kind": "storage#objectAccessControl",
            "id": f"{found.bucket}/{found.name}/{generation}/{entry[0]}",
            "selfLink": link,
            "bucket": found.bucket,
            "object": found.name,
            "generation": generation,
            **_who(entry),
            "etag": tag,
        }

    return form


def _bucket_form(call: Call, found: Bucket) -> Form:
    def form(entry: Entry) -> dict[str, Any]:
        return {
            "kind": "storage#bucketAccessControl",
            "id": f"{found.name}/{entry[0]}",
            "selfLink": f"{call.base}/storage/v1/b/{found.name}/acl/{quote(entry[0], safe='@')}",
            "bucket": found.name,
            **_who(entry),
            "etag": forms.etag(0, found.metageneration),
        }

    return form


def _default_form(found: Bucket) -> Form:
    return lambda entry: {
        "kind": "storage#objectAccessControl",
        **_who(entry),
        "etag": forms.etag(0, found.metageneration),
    }


def _who(entry: Entry) -> dict[str, Any]:
    named, role = entry
    kind, _, rest = named.partition("-")
    told: dict[str, Any] = {"entity": named, "role": role}
    if kind == "user":
        told["email"] = rest
    elif kind == "project":
        team, _, number = rest.partition("-")
        told["projectTeam"] = {"projectNumber": number, "team": team}
    return told


def _mapping(body: object) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise errors.InvalidArgument("The request body must be a JSON object, such as {}.")
    return body


_BUCKET = "/storage/v1/b/{bucket}"
_OBJECT = _BUCKET + "/o/{object}"


def _rows(path: str, lists: Lists, resource: str) -> list[Route]:
    read, write = f"{resource}.getIamPolicy", f"{resource}.setIamPolicy"
    return [
        Route("GET", path, read, lists.every),
        Route("POST", path, write, lists.insert),
        Route("GET", path + "/{entity}", read, lists.one),
        Route("PUT", path + "/{entity}", write, lists.update),
        Route("PATCH", path + "/{entity}", write, lists.update),
        Route("DELETE", path + "/{entity}", write, lists.delete),
    ]


_OF_OBJECTS, _OF_BUCKETS = "storage#objectAccessControls", "storage#bucketAccessControls"

ROUTES = [
    *_rows(_OBJECT + "/acl", Lists("object", _OF_OBJECTS, _read_object, _change_object), "storage.objects"),
    *_rows(_BUCKET + "/acl", Lists("bucket", _OF_BUCKETS, _read_bucket, _change_bucket), "storage.buckets"),
    *_rows(
        _BUCKET + "/defaultObjectAcl", Lists("object", _OF_OBJECTS, _read_default, _change_default), "storage.buckets"
    ),
    Route("GET", _OBJECT + "/iam", "storage.objects.getIamPolicy", get_object_policy),
    Route("PUT", _OBJECT + "/iam", "storage.objects.setIamPolicy", set_object_policy),
    Route("GET", _OBJECT + "/iam/testPermissions", SIGNED_IN, test_object_permissions),
]
