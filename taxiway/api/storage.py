"""The Cloud Storage JSON API (https://cloud.google.com/storage/docs/json_api/v1), and the part of its XML API that
TensorFlow reads with. Names of objects travel as one %2F-escaped segment of the path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taxiway import errors, names
from taxiway.api import storage_batch, storage_data, wire
from taxiway.api import storage_forms as forms
from taxiway.api.call import ANYONE, SIGNED_IN, Call, Route
from taxiway.iam import policies, projects
from taxiway.storage import buckets, objects
from taxiway.storage.objects import PAGE, Conditions

DATA_HOST = "storage.googleapis.com"
NOT_KEPT = ("lifecycle", "retentionPolicy", "website", "cors", "logging", "billing", "acl", "defaultObjectAcl")


def is_data_host(host: str) -> bool:
    """Whether a request for this host name (without its port) may be XML-style: /{bucket}/{object}."""
    return host == DATA_HOST or host.endswith("." + DATA_HOST)


# ---- buckets --------------------------------------------------------------------------------------------------------


def insert_bucket(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    _refuse_unkept(body)
    project = call.query.get("project")
    if not project:
        raise errors.InvalidArgument(faults=[("project", "Required: the project that is to own the bucket.")])
    made = buckets.insert(
        call.house.db,
        project,
        _text(body, "name"),
        location=_text(body, "location", "US"),
        storage_class=_text(body, "storageClass", "STANDARD"),
        labels=_mapping(body.get("labels"), "labels"),
        policy=policies.default_bucket_policy(project),
        now=call.now,
    )
    return forms.bucket_form(call.base, made, full=_full(call))


def get_bucket(call: Call) -> dict[str, Any]:
    found = buckets.get(call.house.db, call.path["bucket"], conditions=forms.conditions(call.query))
    return forms.bucket_form(call.base, found, full=_full(call))


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
    form = wire.page(
        "items", found, size, lambda last: (last.name,), lambda it: forms.bucket_form(call.base, it, full=_full(call))
    )
    return {"kind": "storage#buckets", **form}


def patch_bucket(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    _refuse_unkept(body)
    before = buckets.get(call.house.db, call.path["bucket"])
    place = body.get("location")
    if place is not None and str(place).upper() != before.location:
        raise errors.InvalidArgument(
            faults=[("location", f"A bucket stays where it was made ({before.location}); make another bucket there.")]
        )
    made = buckets.patch(
        call.house.db,
        call.path["bucket"],
        labels=_mapping(body["labels"], "labels") if "labels" in body else None,
        storage_class=_text(body, "storageClass", before.storage_class) if "storageClass" in body else None,
        replace_labels=call.request.method == "PUT" or ("labels" in body and body["labels"] is None),
        conditions=forms.conditions(call.query),
        now=call.now,
    )
    return forms.bucket_form(call.base, made, full=_full(call))


def delete_bucket(call: Call) -> None:
    buckets.delete(call.house.db, call.path["bucket"], conditions=forms.conditions(call.query))


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
    return {"kind": f"storage#{call.request.url.path.rpartition('/')[2]}"}


def get_policy(call: Call) -> dict[str, Any]:
    return forms.policy_form(buckets.get(call.house.db, call.path["bucket"]))


def set_policy(call: Call) -> dict[str, Any]:
    body = _mapping(call.body)
    made = buckets.set_policy(
        call.house.db,
        call.path["bucket"],
        {"bindings": policies.checked(body)},
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
    query = call.query
    for name in ("matchGlob", "filter"):
        if query.get(name):
            raise errors.Unimplemented(f"{name}: listing by a pattern is not offered; list with prefix and delimiter.")
    key = wire.page_key(query, tuple[str])
    found = objects.page(
        call.house.db,
        call.path["bucket"],
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        start=max(key[0] if key else "", query.get("startOffset", "")),
        end=query.get("endOffset", ""),
        trailing=query.get("includeTrailingDelimiter", "").lower() == "true",
        limit=wire.page_size(query, PAGE, PAGE, "maxResults"),
    )
    full = _full(call)
    form: dict[str, Any] = {"kind": "storage#objects"}
    if found.prefixes:
        form["prefixes"] = found.prefixes
    if found.items:
        fields = forms.fields_of_items(query.get("fields", ""))
        if fields is None:
            form["items"] = [forms.object_form(call.base, each, full=full) for each in found.items]
        else:
            form["items"] = [forms.object_part(call.base, each, fields, full=full) for each in found.items]
    if found.following:
        form["nextPageToken"] = wire.page_token([found.following])
    return form


async def get_object(call: Call) -> Any:
    """The resource, or with alt=media the bytes."""
    if call.query.get("alt") == "media":
        return await storage_data.download(call)
    found = objects.get(
        call.house.db,
        call.path["bucket"],
        call.path["object"],
        generation=forms.whole(call.query, "generation"),
        conditions=forms.conditions(call.query),
    )
    return forms.object_form(call.base, found, full=_full(call))


def patch_object(call: Call) -> dict[str, Any]:
    """PATCH changes what the body names; PUT sets what it does not name back to its default."""
    changes = forms.said(_mapping(call.body)).changes()
    if call.request.method == "PUT":
        changes = {**forms.EVERY_FIELD, **changes}
    made = objects.patch(
        call.house.db,
        call.path["bucket"],
        call.path["object"],
        changes,
        now=call.now,
        generation=forms.whole(call.query, "generation"),
        conditions=forms.conditions(call.query),
    )
    return forms.object_form(call.base, made, full=_full(call))


def delete_object(call: Call) -> None:
    objects.delete(
        call.house.db,
        call.house.blobs,
        call.path["bucket"],
        call.path["object"],
        generation=forms.whole(call.query, "generation"),
        conditions=forms.conditions(call.query),
    )


def rewrite_object(call: Call) -> dict[str, Any]:
    """A rewrite is done at once: the copy shares the bytes."""
    made = _copied(call)
    return {
        "kind": "storage#rewriteResponse",
        "totalBytesRewritten": str(made.size),
        "objectSize": str(made.size),
        "done": True,
        "resource": forms.object_form(call.base, made, full=_full(call)),
    }


def copy_object(call: Call) -> dict[str, Any]:
    return forms.object_form(call.base, _copied(call), full=_full(call))


def move_object(call: Call) -> dict[str, Any]:
    """A rename within a bucket, in one transaction."""
    bucket = call.path["bucket"]
    call.need("storage.objects.get", bucket=bucket)
    call.need("storage.objects.delete", bucket=bucket)
    made = objects.copy(
        call.house.db,
        call.house.blobs,
        (bucket, call.path["source"]),
        (bucket, call.path["object"]),
        owner=call.who.member,
        now=call.now,
        source_generation=forms.whole(call.query, "sourceGeneration"),
        source_conditions=forms.conditions(call.query, "ifSource"),
        conditions=forms.conditions(call.query),
        replacing=lambda: None,
        move=True,
    )
    return forms.object_form(call.base, made)


def compose_object(call: Call) -> dict[str, Any]:
    bucket = call.path["bucket"]
    call.need("storage.objects.get", bucket=bucket)
    body = _mapping(call.body)
    said = _mapping(body.get("destination"), "destination")
    sources = body.get("sourceObjects")
    if not isinstance(sources, list) or not all(isinstance(each, dict) and each.get("name") for each in sources):
        raise errors.InvalidArgument(faults=[("sourceObjects", "Required: a list of {name, generation?}.")])
    made = objects.compose(
        call.house.db,
        call.house.blobs,
        bucket,
        [_source(each) for each in sources],
        call.path["object"],
        owner=call.who.member,
        now=call.now,
        metadata=forms.metadata(forms.said(said).changes()) if said.get("contentType") else None,
        conditions=forms.conditions(call.query),
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )
    return forms.object_form(call.base, made)


def _source(said: Mapping[str, Any]) -> tuple[str, int | None, Conditions]:
    numbers = {name: str(value) for name, value in said.items() if name == "generation" and value is not None}
    wanted = {name: str(value) for name, value in (said.get("objectPreconditions") or {}).items() if value is not None}
    return names.object_name(str(said["name"]), "name"), forms.whole(numbers, "generation"), forms.conditions(wanted)


def _copied(call: Call) -> objects.Object:
    source, bucket = call.path["source_bucket"], call.path["bucket"]
    call.need("storage.objects.get", bucket=source)
    changes = forms.said(_mapping(call.body)).changes()
    return objects.copy(
        call.house.db,
        call.house.blobs,
        (source, call.path["source"]),
        (bucket, call.path["object"]),
        owner=call.who.member,
        now=call.now,
        changes={field: value for field, value in changes.items() if value is not None},
        source_generation=forms.whole(call.query, "sourceGeneration"),
        source_conditions=forms.conditions(call.query, "ifSource"),
        conditions=forms.conditions(call.query),
        replacing=lambda: call.need("storage.objects.delete", bucket=bucket),
    )


# ---- what bodies and queries say ------------------------------------------------------------------------------------


def _full(call: Call) -> bool:
    return call.query.get("projection", "").lower() == "full"


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


def _refuse_unkept(body: Mapping[str, Any]) -> None:
    """Say what we would otherwise forget in silence."""
    for name in NOT_KEPT:
        if body.get(name):
            raise errors.Unimplemented(f"{name}: buckets do not offer it yet; leave it out.")
    if _mapping(body.get("versioning"), "versioning").get("enabled"):
        raise errors.Unimplemented("versioning: buckets keep one version of each object; leave it out.")


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
        )
    ),
    Route("POST", "/batch/storage/v1", ANYONE, storage_batch.batch),
]

# For requests whose Host is `is_data_host`, after every other route: /{bucket}/{object}, escaped or not.
XML_ROUTES = [
    Route("GET", "/{bucket}/{object:path}", "storage.objects.get", storage_data.download),
]
