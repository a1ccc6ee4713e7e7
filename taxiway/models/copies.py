"""A version's own copy of its model: what it was made from may change or go, and it answers as before.

The copies are objects of a bucket that the service keeps for each project; blobs are immutable, so a copy is a row.
"""

from __future__ import annotations

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
        copied = objects.copy
        copied(db, blobs, (bucket, prefix + name), (ours, target + name), owner=owner, now=now, replacing=bool)


def place(project: projects.Project, model: str, version: str, unique: str) -> str:
    """Where a version's copy goes."""
    return f"gs://taxiway-models-{project.number}/{model}/{version}/{unique}/"


def remove(db: Database, blobs: Blobs, folder: str) -> None:
    """Delete the copy; what is gone already is no matter."""
    bucket, prefix = names.gs(folder, FIELD)
    try:
        for item in objects.page(db, bucket, prefix=prefix, limit=MOST_FILES + 1).items:
            objects.delete(db, blobs, bucket, item.name)
    except errors.NotFound:
        return


def _ensure_bucket(db: Database, project: projects.Project, name: str, *, now: float) -> None:
    try:
        held = buckets.get(db, name)
    except errors.NotFound:
        held = buckets.insert(db, project.id, name, now=now)
    if held.project != project.id:
        raise errors.FailedPrecondition(
            f"The bucket gs://{name}, which the service keeps for this project's models, belongs to projects/{held.project}."
        )
    agent = members.of_email(projects.service_agent(project.number))
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": [agent]}]}
    if held.policy != policy:
        buckets.set_policy(db, name, policy, now=now)


def _folder(uri: str) -> tuple[str, str]:
    if not uri:
        raise errors.InvalidArgument(faults=[(FIELD, "is required: the gs:// folder of the model.")])
    bucket, prefix = names.gs(uri, FIELD)
    return bucket, prefix.rstrip("/") + "/" if prefix else ""


def _bad(sentence: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(f"Field: {FIELD} Error: {sentence}")
