"""The Cloud Storage JSON API (https://cloud.google.com/storage/docs/json_api/v1), and the rows of its XML API (see
storage_xml). Names of objects travel as one %2F-escaped segment of the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta
from starlette.concurrency import run_in_threadpool

from taxiway import errors, names
from taxiway.api import fields, storage_acl, storage_batch, storage_data, storage_settings, storage_xml, wire
from taxiway.api import storage_forms as forms
from taxiway.api.call import ANYONE, SIGNED_IN, Call, Route
from taxiway.iam import audit, policies, projects
from taxiway.storage import buckets, globs, listings, noncurrent, objects, uploads
from taxiway.storage.buckets import Bucket
from taxiway.storage.conditions import Conditions
from taxiway.storage.listings import PAGE, Of


class Place(NamedTuple):
    """Where a listing goes on."""

    name: str
    generation: Annotated[int, Meta(ge=0, lt=2**62)]


# ---- buckets --------------------------------------------------------------------------------------------------------


def insert_bucket(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    settings = storage_settings.of_new_bucket(body, now=call.now)
    project = call.query.get("project")
    if not project:
        raise errors.InvalidArgument(faults=[("project", "Required: the project that is to own the bucket.")])
    call.resource = f"{audit.BUCKETS}{_text(body, 'name')}"
    made = buckets.insert(
        call.house.db,
        project,
        _text(body, "name"),
        location=_text(body, "location", "US"),
        storage_class=_text(body, "storageClass", "STANDARD"),
        labels=_mapping(body.get("labels"), "labels"),
        access=storage_acl.of_new_bucket(call, project, body),
        settings=settings,
        now=call.now,
    )
    return _bucket_form(call)(made)


def get_bucket(call: Call) -> dict[str, Any]:
    found = buckets.get(call.house.db, call.path["bucket"], conditions=forms.conditions(call.query))
    return _bucket_form(call)(found)


def list_buckets(call: Call) -> dict[str, Any]:
    size = wire.page_size(call.query, PAGE, PAGE, "maxResults")
    key = wire.page_key(call.query, tuple[str])
    found = buckets.page(
        call.house.db,
        call.query.get("project", ""),
        prefix=call.query.get("prefix", ""),
        start=key[0] + "\0" if key else "",
        limit=size + 1,
    )
    form = wire.page("items", found, size, lambda last: (last.name,), _bucket_form(call))
    return {"kind": "storage#buckets", **form}


def patch_bucket(call: Call) -> dict[str, Any]:
    body, replace = _mapping(call.body), call.request.method == "PUT"
    settings = storage_settings.of_patched_bucket(body, replace=replace, now=call.now)
    before = buckets.get(call.house.db, call.path["bucket"])
    place = body.get("location")
    if place is not None and str(place).upper() != before.location:
        raise errors.InvalidArgument(
            faults=[("location", f"A bucket stays where it was made ({before.location}); make another bucket there.")]
        )
    access = storage_acl.of_patched_bucket(call, body)
    made = buckets.patch(
        call.house.db,
        call.path["bucket"],
        access=access,
        settings=settings,
        labels=_mapping(body["labels"], "labels") if "labels" in body else None,
        storage_class=_text(body, "storageClass", before.storage_class) if "storageClass" in body else None,
        replace_labels=replace or ("labels" in body and body["labels"] is None),
        conditions=forms.conditions(call.query),
        now=call.now,
    )
    if access is not None:
        call.house.access.forget()
    return _bucket_form(call)(made)


def delete_bucket(call: Call) -> None:
    db, kept = call.house.db, call.house.blobs
    call.house.audit.learn(call.path["bucket"])  # whose it is, as long as somebody knows
    ended = buckets.delete(db, kept, call.path["bucket"], conditions=forms.conditions(call.query))
    uploads.forget(call.house.blobs, ended)


def storage_layout(call: Call) -> dict[str, Any]:
    found = buckets.get(call.house.db, call.path["bucket"])
    return {
        "kind": "storage#storageLayout",
        "bucket": found.name,
        "location": found.location,
        "locationType": found.location_type,
        "hierarchicalNamespace": {"enabled": False},
    }


def no_folders(call: Call) -> dict[str, Any]:
    """There are none: names with slashes are only names. `gcloud storage rm -r` looks for them all the same."""
    return {"kind": f"storage#{call.request.scope['path'].rpartition('/')[2]}"}


def get_policy(call: Call) -> dict[str, Any]:
    return forms.policy_form(buckets.get(call.house.db, call.path["bucket"]))


def set_policy(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    bindings = policies.checked(body)
    storage_acl.refuse_public(buckets.get(call.house.db, call.path["bucket"]), bindings)
    made = buckets.set_policy(
        call.house.db,
        call.path["bucket"],
        {"bindings": bindings},
        version=forms.policy_version(body.get("etag")),
        now=call.now,
    )
    call.house.access.forget()
    return forms.policy_form(made)


def test_permissions(call: Call) -> dict[str, Any]:
    wanted = call.request.query_params.getlist("permissions")
    held = [each for each in wanted if call.may(each, bucket=call.path["bucket"])]
    form: dict[str, Any] = {"kind": "storage#testIamPermissionsResponse"}
    return {**form, "permissions": held} if held else form


def service_account(call: Call) -> dict[str, Any]:
    number = projects.get(call.house.db, call.path["project"]).number
    return {
        "kind": "storage#serviceAccount",
        "email_address": f"service-{number}@gs-project-accounts.iam.gserviceaccount.com",
    }


# ---- objects --------------------------------------------------------------------------------------------------------


def list_objects(call: Call) -> dict[str, Any]:
    query, delimiter = call.query, call.query.get("delimiter", "")
    if query.get("filter"):
        raise errors.Unimplemented("filter: listing by contexts is not offered; list with prefix or matchGlob.")
    pattern = globs.glob(query["matchGlob"]) if query.get("matchGlob") else None
    if pattern and delimiter not in ("", "/"):
        raise wire.wrong("delimiter", f"With matchGlob it must be /, or left out; got {wire.shown(delimiter)}.")
    place = wire.page_key(query, Place) or Place("", 0)
    start = max(place.name, query.get("startOffset", ""))
    found = listings.page(
        call.house.db,
        call.path["bucket"],
        of=_kind(query),
        prefix=query.get("prefix", ""),
        delimiter=delimiter,
        start=start,
        generation=place.generation if start == place.name else 0,
        end=query.get("endOffset", ""),
        trailing=_true(query, "includeTrailingDelimiter"),
        glob=pattern,
        limit=wire.page_size(query, PAGE, PAGE, "maxResults"),
    )
    form: dict[str, Any] = {"kind": "storage#objects"}
    if found.prefixes:
        form["prefixes"] = found.prefixes
    if found.items:
        asked = forms.fields_of_items(fields.asked(query))
        lists = storage_acl.shown(call, call.path["bucket"])
        if asked is None:
            form["items"] = [{**forms.object_form(call.base, each), **lists(each)} for each in found.items]
        else:
            form["items"] = [{**forms.object_part(call.base, each, asked), **lists(each)} for each in found.items]
    if found.following:
        form["nextPageToken"] = wire.page_token([found.following, found.generation])
    return form


async def get_object(call: Call) -> Any:
    """The resource, or with alt=media the bytes."""
    if call.query.get("alt") == "media":
        return await storage_data.download(call)
    db, bucket, name = call.house.db, call.path["bucket"], call.path["object"]
    wanted = forms.conditions(call.query)
    if _true(call.query, "softDeleted"):
        found = noncurrent.get(db, bucket, name, _generation(call.query), conditions=wanted)
    else:
        found = objects.get(db, bucket, name, generation=forms.whole(call.query, "generation"), conditions=wanted)
    if call.by_list:
        await run_in_threadpool(storage_acl.still, call, found)
    if storage_acl.full(call):
        return await run_in_threadpool(_object_form, call, found)
    return forms.object_form(call.base, found)


def patch_object(call: Call) -> dict[str, Any]:
    """PATCH changes what the body names; PUT sets what it does not name back to its default."""
    said = forms.said(_mapping(call.body))
    changes = said.changes()
    if call.request.method == "PUT":
        changes = {**forms.EVERY_FIELD, **changes}
    changes.update(storage_acl.of_patched_object(call, said.acl))
    made = objects.patch(
        call.house.db,
        call.path["bucket"],
        call.path["object"],
        changes,
        now=call.now,
        generation=storage_acl.generation(call),
        conditions=forms.conditions(call.query),
    )
    return _object_form(call, made)


def delete_object(call: Call) -> None:
    objects.delete(
        call.house.db,
        call.house.blobs,
        call.path["bucket"],
        call.path["object"],
        now=call.now,
        generation=forms.whole(call.query, "generation"),
        conditions=forms.conditions(call.query),
    )


def restore_object(call: Call) -> dict[str, Any]:
    """A soft-deleted object becomes the live one of its name, and stays soft-deleted until its time is over."""
    bucket = call.path["bucket"]
    call.need("storage.objects.create", bucket=bucket)
    same_acl = _true(call.query, "copySourceAcl")
    if same_acl:
        call.need("storage.objects.setIamPolicy", bucket=bucket)
    made = noncurrent.restore(
        call.house.db,
        call.house.blobs,
        bucket,
        call.path["object"],
        _generation(call.query),
        now=call.now,
        same_acl=same_acl,
        conditions=forms.conditions(call.query),
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )
    return _object_form(call, made)


def rewrite_object(call: Call) -> dict[str, Any]:
    """A rewrite is done at once: the copy shares the bytes."""
    made = _copied(call)
    return {
        "kind": "storage#rewriteResponse",
        "totalBytesRewritten": str(made.size),
        "objectSize": str(made.size),
        "done": True,
        "resource": _object_form(call, made),
    }


def copy_object(call: Call) -> dict[str, Any]:
    return _object_form(call, _copied(call))


def move_object(call: Call) -> dict[str, Any]:
    """A rename within a bucket, in one transaction."""
    bucket = call.path["bucket"]
    source = call.path["source"]
    generation = storage_acl.need_source(call, bucket, source, forms.whole(call.query, "sourceGeneration"))
    call.need("storage.objects.delete", bucket=bucket)
    made = objects.copy(
        call.house.db,
        call.house.blobs,
        (bucket, source),
        (bucket, call.path["object"]),
        owner=call.who.member,
        now=call.now,
        source_generation=generation,
        source_conditions=forms.conditions(call.query, "ifSource"),
        conditions=forms.conditions(call.query),
        replacing=lambda: None,
        move=True,
    )
    return forms.object_form(call.base, made)


def compose_object(call: Call) -> dict[str, Any]:
    bucket = call.path["bucket"]
    body = _mapping(call.body)
    said = _mapping(body.get("destination"), "destination")
    sources = body.get("sourceObjects")
    if not isinstance(sources, list) or not all(isinstance(each, dict) and each.get("name") for each in sources):
        raise errors.InvalidArgument(faults=[("sourceObjects", "Required: a list of {name, generation?}.")])
    parts = [
        (name, storage_acl.need_source(call, bucket, name, generation), wanted)
        for name, generation, wanted in map(_source, sources)
    ]
    destination = forms.said(said)
    acl = storage_acl.of_new_object(call, bucket, destination.acl, "destination.acl", "destinationPredefinedAcl")
    made = objects.compose(
        call.house.db,
        call.house.blobs,
        bucket,
        parts,
        call.path["object"],
        owner=call.who.member,
        now=call.now,
        metadata=forms.metadata(destination.changes()) if said.get("contentType") else None,
        **acl,
        conditions=forms.conditions(call.query),
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )
    return forms.object_form(call.base, made)


def _source(said: Mapping[str, Any]) -> tuple[str, int | None, Conditions]:
    numbers = {name: str(value) for name, value in said.items() if name == "generation" and value is not None}
    told = _mapping(said.get("objectPreconditions"), "objectPreconditions")
    wanted = {name: str(value) for name, value in told.items() if value is not None}
    return names.object_name(_text(said, "name"), "name"), forms.whole(numbers, "generation"), forms.conditions(wanted)


def _copied(call: Call) -> objects.Object:
    source, bucket = (call.path["source_bucket"], call.path["source"]), call.path["bucket"]
    generation = storage_acl.need_source(call, *source, forms.whole(call.query, "sourceGeneration"))
    said = forms.said(_mapping(call.body))
    changes = {field: value for field, value in said.changes().items() if value is not None}
    return objects.copy(
        call.house.db,
        call.house.blobs,
        source,
        (bucket, call.path["object"]),
        owner=call.who.member,
        now=call.now,
        changes={**changes, **storage_acl.of_new_object(call, bucket, said.acl, "acl", "destinationPredefinedAcl")},
        source_generation=generation,
        source_conditions=forms.conditions(call.query, "ifSource"),
        conditions=forms.conditions(call.query),
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )


# ---- what bodies and queries say ------------------------------------------------------------------------------------


def _true(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() == "true"


def _kind(query: Mapping[str, str]) -> Of:
    """Which generations a listing is to show."""
    versions, soft_deleted = _true(query, "versions"), _true(query, "softDeleted")
    if versions and soft_deleted:
        raise errors.InvalidArgument(faults=[("softDeleted", "A listing is of versions or of soft-deleted objects.")])
    return Of.VERSIONS if versions else Of.SOFT_DELETED if soft_deleted else Of.LIVE


def _generation(query: Mapping[str, str]) -> int:
    generation = forms.whole(query, "generation")
    if generation is None:
        raise errors.InvalidArgument(
            faults=[("generation", "Required for a soft-deleted object; a listing with softDeleted=true tells it.")]
        )
    return generation


def _object_form(call: Call, found: objects.Object) -> dict[str, Any]:
    return {**forms.object_form(call.base, found), **storage_acl.shown(call, found.bucket)(found)}


def _bucket_form(call: Call) -> Callable[[Bucket], dict[str, Any]]:
    lists = storage_acl.of_bucket_shown(call)
    return lambda found: {**forms.bucket_form(call.base, found), **storage_settings.form(found), **lists(found)}


def _mapping(body: object, field: str = "") -> Mapping[str, Any]:
    if body is None:
        return {}
    if isinstance(body, str):
        return {}  # a form: TensorFlow's rewrite says so, with an empty body
    if not isinstance(body, dict):
        raise errors.InvalidArgument(f"{field or 'The request body'} must be a JSON object, such as {{}}.")
    return body


def _text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name, default) if body.get(name) is not None else default
    if not isinstance(value, str):
        raise errors.InvalidArgument(faults=[(name, "Required: a text.")])
    return value


_BUCKET = "/storage/v1/b/{bucket}"
_OBJECT = _BUCKET + "/o/{object}"
_FROM = "/storage/v1/b/{source_bucket}/o/{source}"
_TO = "/b/{bucket}/o/{object}"

# Starlette answers HEAD wherever it answers GET, and looks at one row after another: the busiest come first.
ROUTES = [
    Route("GET", _OBJECT, "storage.objects.get", get_object),
    Route("POST", "/upload" + _BUCKET + "/o", "storage.objects.create", storage_data.upload),
    Route("GET", _BUCKET + "/o", "storage.objects.list", list_objects),
    Route("POST", "/storage/v1/b", "storage.buckets.create", insert_bucket),
    Route("GET", "/storage/v1/b", "storage.buckets.list", list_buckets),
    Route("GET", _BUCKET, "storage.buckets.get", get_bucket),
    Route("PATCH", _BUCKET, "storage.buckets.update", patch_bucket),
    Route("PUT", _BUCKET, "storage.buckets.update", patch_bucket),
    Route("DELETE", _BUCKET, "storage.buckets.delete", delete_bucket),
    Route("GET", _BUCKET + "/storageLayout", "storage.objects.list", storage_layout),
    Route("GET", _BUCKET + "/managedFolders", "storage.objects.list", no_folders),
    Route("GET", _BUCKET + "/folders", "storage.objects.list", no_folders),
    Route("GET", _BUCKET + "/iam", "storage.buckets.getIamPolicy", get_policy),
    Route("PUT", _BUCKET + "/iam", "storage.buckets.setIamPolicy", set_policy),
    Route("GET", _BUCKET + "/iam/testPermissions", SIGNED_IN, test_permissions),
    Route("GET", "/storage/v1/projects/{project}/serviceAccount", "resourcemanager.projects.get", service_account),
    Route("PATCH", _OBJECT, "storage.objects.update", patch_object),
    Route("PUT", _OBJECT, "storage.objects.update", patch_object),
    Route("DELETE", _OBJECT, "storage.objects.delete", delete_object),
    Route("POST", _OBJECT + "/restore", "storage.objects.restore", restore_object),
    Route("POST", _OBJECT + "/compose", "storage.objects.create", compose_object),
    Route("POST", _BUCKET + "/o/{source}/moveTo/o/{object}", "storage.objects.create", move_object),
    Route("POST", _FROM + "/rewriteTo" + _TO, "storage.objects.create", rewrite_object),
    Route("POST", _FROM + "/copyTo" + _TO, "storage.objects.create", copy_object),
    Route("GET", "/download" + _OBJECT, "storage.objects.get", storage_data.download),
    Route("POST", "/resumable/upload" + _BUCKET + "/o", "storage.objects.create", storage_data.upload),
    *(
        row
        for path in ("/upload" + _BUCKET + "/o", "/resumable/upload" + _BUCKET + "/o")
        for row in (
            Route("PUT", path, ANYONE, storage_data.resume),
            Route("DELETE", path, ANYONE, storage_data.cancel),
            Route("OPTIONS", path, ANYONE, storage_xml.preflight),
        )
    ),
    *storage_acl.ROUTES,
    Route("POST", "/batch/storage/v1", ANYONE, storage_batch.batch),
]

# For requests that `storage_xml` is for, after every other route: /{bucket}/{object}, escaped or not.
XML_ROUTES = [
    Route(method, path, permission, function, xml=True)
    for method, path, permission, function in (
        ("GET", "/{bucket}", "storage.objects.list", storage_xml.list_objects),
        ("GET", "/{bucket}/", "storage.objects.list", storage_xml.list_objects),
        ("GET", "/{bucket}/{object:path}", "storage.objects.get", storage_xml.download),
        ("PUT", "/{bucket}/{object:path}", "storage.objects.create", storage_xml.put),
        ("POST", "/{bucket}/{object:path}", "storage.objects.create", storage_xml.begin),
        ("DELETE", "/{bucket}/{object:path}", "storage.objects.delete", storage_xml.delete),
        ("OPTIONS", "/{bucket}", ANYONE, storage_xml.preflight),
        ("OPTIONS", "/{bucket}/{object:path}", ANYONE, storage_xml.preflight),
    )
]
