"""A version's own copy of its model: what it was made from may change or go, and it answers as before.

The copies are objects of a bucket that the service keeps for each project; blobs are immutable, so a copy is a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from taxiway import errors, names, schemas
from taxiway.db.database import Database
from taxiway.iam import members, policies, projects
from taxiway.iam.members import Caller
from taxiway.storage import buckets, objects
from taxiway.storage.blobs import Blobs

FIELD = "version.deployment_uri"
MOST_FILES = 1000  # the service's own limit
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def find(db: Database, project: projects.Project, resource: schemas.Version) -> list[str]:
    """The names of the model's files, relative to deploymentUri.

    Raises InvalidArgument for what is no gs:// folder, PermissionDenied if the project's service agent may not read it
    (with the grant), FailedPrecondition for a folder without a SavedModel.
    """
    bucket, prefix = _folder(resource.deployment_uri)
    agent = Caller(members.of_email(projects.service_agent(project.number)))
    policies.need(db, agent, "storage.objects.list", "storage.objects.get", bucket=bucket)
    page = objects.page(db, bucket, prefix=prefix, limit=MOST_FILES + 1)
    if len(page.items) > MOST_FILES:
        raise _bad(f"{resource.deployment_uri} holds more than {MOST_FILES} files; name the model's own folder.")
    found = [item.name.removeprefix(prefix) for item in page.items]
    found = [name for name in found if name and not name.endswith("/")]
    if not found:
        raise _bad(f"there is nothing at {resource.deployment_uri}. See: taxiway storage ls {resource.deployment_uri}")
    saved = [name for name in found if name in SAVED_MODEL]
    if len(saved) != 1:
        nested = sorted({name.rpartition("/")[0] for name in found if name.rpartition("/")[2] in SAVED_MODEL} - {""})
        hint = f" Did you mean {names.join_gs(bucket, prefix + nested[-1])}?" if nested else ""
        raise _bad(
            f"{resource.deployment_uri} has {'both' if saved else 'neither'} saved_model.pb "
            f"{'and' if saved else 'nor'} saved_model.pbtxt; a SavedModel's folder has exactly one of them.{hint}"
        )
    return found


def make(
    db: Database, blobs: Blobs, project: projects.Project, source: str, found: list[str], folder: str, *, now: float
) -> None:
    """Copy the files to `folder`, a gs:// prefix from `place`."""
    bucket, prefix = _folder(source)
    ours, target = names.gs(folder, FIELD)
    _ensure_bucket(db, project, ours, now=now)
    owner = members.of_email(projects.service_agent(project.number))
    for name in found:
        copied = (bucket, prefix + name), (ours, target + name)
        objects.copy(db, blobs, *copied, owner=owner, now=now, replacing=lambda: False)


def place(project: projects.Project, model: str, version: str, unique: str) -> str:
    """Where a version's copy goes."""
    return f"gs://{_bucket(project)}/{model}/{version}/{unique}/"


def remove(db: Database, blobs: Blobs, folder: str) -> None:
    """Delete the copy; what is gone already is no matter."""
    bucket, prefix = names.gs(folder, FIELD)
    with suppress(errors.NotFound):
        for name in _all(db, bucket, prefix):
            with suppress(errors.NotFound):
                objects.delete(db, blobs, bucket, name)


def sweep(db: Database, blobs: Blobs, kept: Collection[str]) -> None:
    """Delete every copy but those in the folders `kept`: a server that died could not say whose they are."""
    for project in projects.every(db):
        bucket = _bucket(project)
        with suppress(errors.NotFound):
            for name in _all(db, bucket, ""):
                if names.join_gs(bucket, "/".join([*name.split("/")[:3], ""])) not in kept:
                    objects.delete(db, blobs, bucket, name)


def _all(db: Database, bucket: str, prefix: str) -> Iterator[str]:
    """The names below a prefix. Raises NotFound for a bucket that does not exist."""
    start = ""
    while True:
        page = objects.page(db, bucket, prefix=prefix, start=start)
        yield from (item.name for item in page.items)
        start = page.following
        if not start:
            return


def _bucket(project: projects.Project) -> str:
    return f"taxiway-models-{project.number}"


def _ensure_bucket(db: Database, project: projects.Project, name: str, *, now: float) -> None:
    agent = members.of_email(projects.service_agent(project.number))
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": [agent]}]}
    try:
        held = buckets.get(db, name)
    except errors.NotFound:
        held = buckets.insert(db, project.id, name, policy=policy, now=now)
    if held.project != project.id or held.policy != policy:
        raise errors.FailedPrecondition(
            f"The bucket gs://{name}, which the service keeps for this project's models, is somebody else's or has "
            "another policy; delete it."
        )


def _folder(uri: str) -> tuple[str, str]:
    if not uri:
        raise errors.InvalidArgument(faults=[(FIELD, "is required: the gs:// folder of the model.")])
    bucket, prefix = names.gs(uri, FIELD)
    return bucket, prefix.rstrip("/") + "/" if prefix else ""


def _bad(sentence: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(f"Field: {FIELD} Error: {sentence}")
