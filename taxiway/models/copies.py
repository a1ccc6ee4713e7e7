"""A version's own copy of its model: what it was made from may change or go, and it answers as before.

The copies are objects of a bucket that the service keeps for each project; blobs are immutable, so a copy is a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from taxiway import errors, names, schemas
from taxiway.db.database import Database
from taxiway.iam import members, policies, projects
from taxiway.iam.members import Caller
from taxiway.storage import buckets, listings, objects
from taxiway.storage.blobs import Blobs

FIELD = "version.deployment_uri"
MOST_FILES = 1000  # the service's own limit
# The file that a model of each framework is known by; its folder has exactly one of them.
FILES = {
    "TENSORFLOW": ("saved_model.pb", "saved_model.pbtxt"),
    "SCIKIT_LEARN": ("model.joblib", "model.pkl"),
    "XGBOOST": ("model.bst", "model.joblib", "model.pkl"),
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model: its name relative to the model's folder, and the generation that was looked at."""

    name: str
    generation: int


def find(db: Database, project: projects.Project, resource: schemas.Version, framework: str) -> list[File]:
    """The model's files.

    Raises InvalidArgument for what is no gs:// folder, PermissionDenied if the project's service agent may not read it
    all, by the bucket's policy or the objects' own lists (with the grant), FailedPrecondition for a folder without
    exactly one model of the framework.
    """
    bucket, prefix = _folder(resource.deployment_uri)
    agent = Caller(members.of_email(projects.service_agent(project.number)))
    whole = policies.allowed(db, agent, "storage.objects.get", bucket=bucket)
    if not policies.allowed(db, agent, "storage.objects.list", bucket=bucket):
        policies.need(db, agent, "storage.objects.list", "storage.objects.get", bucket=bucket)
    page = listings.page(db, bucket, prefix=prefix, limit=MOST_FILES + 1)
    if len(page.items) > MOST_FILES:
        raise _bad(f"{resource.deployment_uri} holds more than {MOST_FILES} files; name the model's own folder.")
    files = [File(item.name.removeprefix(prefix), item.generation) for item in page.items]
    files = [file for file in files if file.name and not file.name.endswith("/")]
    for file in files if not whole else ():
        within = policies.object_of(prefix + file.name)
        policies.need(db, agent, "storage.objects.get", bucket=bucket, within=within)
    found = [file.name for file in files]
    if not found:
        raise _bad(f"there is nothing at {resource.deployment_uri}. See: taxiway storage ls {resource.deployment_uri}")
    known = FILES[framework]
    saved = [name for name in found if name in known]
    if len(saved) != 1:
        raise _bad(f"{resource.deployment_uri} has {_count(saved, known)}.{_hint(bucket, prefix, found, framework)}")
    return files


def _count(saved: list[str], known: tuple[str, ...]) -> str:
    """How many of the files that a model is known by are there, where it is not one."""
    if known == FILES["TENSORFLOW"]:
        both, link = ("both", "and") if saved else ("neither", "nor")
        return f"{both} {known[0]} {link} {known[1]}; a SavedModel's folder has exactly one of them"
    if saved:
        return f"several models: {', '.join(saved)}; a model's folder has exactly one"
    return f"no {' or '.join(known)}; a model's folder has exactly one of them"


def _hint(bucket: str, prefix: str, found: list[str], framework: str) -> str:
    """What may have been meant: a folder below, or another framework."""
    known = FILES[framework]
    nested = sorted({name.rpartition("/")[0] for name in found if name.rpartition("/")[2] in known} - {""})
    if nested:
        return f" Did you mean {names.join_gs(bucket, prefix + nested[-1])}?"
    others = [other for other, files in FILES.items() if other != framework and set(files) & set(found)]
    return f" Is it a model of {' or '.join(others)}? Then say so in version.framework." if others else ""


def make(
    db: Database, blobs: Blobs, project: projects.Project, source: str, found: list[File], folder: str, *, now: float
) -> None:
    """Copy the files, as they were found, to `folder`, a gs:// prefix from `place`. Raises NotFound if one is gone."""
    bucket, prefix = _folder(source)
    ours, target = names.gs(folder, FIELD)
    _ensure_bucket(db, project, ours, now=now)
    owner = members.of_email(projects.service_agent(project.number))
    for file in found:
        copied = (bucket, prefix + file.name), (ours, target + file.name)
        objects.copy(
            db,
            blobs,
            *copied,
            owner=owner,
            now=now,
            source_generation=file.generation,  # another one was not asked about
            replacing=lambda: False,
        )


def place(project: projects.Project, model: str, version: str, unique: str) -> str:
    """Where a version's copy goes."""
    return f"gs://{_bucket(project)}/{model}/{version}/{unique}/"


def remove(db: Database, blobs: Blobs, folder: str, *, now: float) -> None:
    """Delete the copy; what is gone already is no matter."""
    bucket, prefix = names.gs(folder, FIELD)
    with suppress(errors.NotFound):
        for name in _all(db, bucket, prefix):
            with suppress(errors.NotFound):
                objects.delete(db, blobs, bucket, name, now=now)


def sweep(db: Database, blobs: Blobs, kept: Collection[str], *, now: float) -> None:
    """Delete every copy but those in the folders `kept`: a server that died could not say whose they are."""
    for project in projects.every(db):
        bucket = _bucket(project)
        with suppress(errors.NotFound):
            for name in _all(db, bucket, ""):
                if names.join_gs(bucket, "/".join([*name.split("/")[:3], ""])) not in kept:
                    objects.delete(db, blobs, bucket, name, now=now)


def _all(db: Database, bucket: str, prefix: str) -> Iterator[str]:
    """The names below a prefix. Raises NotFound for a bucket that does not exist."""
    for page in listings.pages(db, bucket, prefix=prefix):
        yield from (item.name for item in page.items)


def _bucket(project: projects.Project) -> str:
    return f"taxiway-models-{project.number}"


def _ensure_bucket(db: Database, project: projects.Project, name: str, *, now: float) -> None:
    agent = members.of_email(projects.service_agent(project.number))
    policy = {"bindings": [{"role": "roles/storage.objectViewer", "members": [agent]}]}
    try:
        held = buckets.get(db, name)
    except errors.NotFound:
        held = buckets.insert(db, project.id, name, policy=policy, access={"uniform": True}, now=now)
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
