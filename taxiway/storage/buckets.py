"""Buckets: a name in one world-wide space (here: of this home), a place, labels and a policy.

Rules from https://cloud.google.com/storage/docs/json_api/v1/buckets and /docs/locations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.db.tables import buckets as table
from taxiway.db.tables import noncurrent, objects, projects, uploads
from taxiway.storage import noncurrent as soft_deleted
from taxiway.storage.blobs import Blobs
from taxiway.storage.conditions import ALWAYS, Conditions

MULTI_REGIONS = ("ASIA", "EU", "US")
DUAL_REGIONS = ("ASIA1", "EUR4", "EUR5", "EUR7", "EUR8", "NAM4")
CLASSES = ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE", "MULTI_REGIONAL", "REGIONAL", "DURABLE_REDUCED_AVAILABILITY")


# Columns as a bucket is to have them, such as those that say who may (uniform, default_acl, policy), and what changes
# in `extra`, where None takes something out; pure, it runs in the transaction of the change.
Access = Callable[["Bucket"], Mapping[str, Any]]


class Bucket(msgspec.Struct, frozen=True):
    """A bucket as it is now. The fields are the columns of its row, in their order, and its project's number."""

    name: str
    project: str
    location: str
    location_type: str
    storage_class: str
    labels: dict[str, str]
    policy: dict[str, Any]
    policy_version: int
    metageneration: int
    created: float
    updated: float
    uniform: bool
    default_acl: list[tuple[str, str]] | None
    versioning: bool
    soft_delete: int
    lifecycle: dict[str, Any] | None
    extra: dict[str, Any]
    project_number: int

    @property
    def generation(self) -> int:
        """Buckets have none; a precondition on it is met by no number that a caller could know."""
        return self.metageneration


def insert(
    db: Database,
    project: str,
    name: str,
    *,
    location: str = "US",
    storage_class: str = "STANDARD",
    labels: Mapping[str, str] | None = None,
    policy: Mapping[str, Any] | None = None,
    access: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    now: float,
) -> Bucket:
    """A new bucket with its policy, {"bindings": [...]}; without one nobody may anything.

    `access` has columns of it that say who may (uniform, default_acl, policy, extra), and `settings` those that say
    what becomes of its objects (versioning, soft_delete, lifecycle, extra), checked already.
    Raises AlreadyExists (also if another project has the name), InvalidArgument, NotFound (the project).
    """
    names.bucket(name, "name")
    place, kind = checked_location(location)
    if storage_class.upper() not in CLASSES:
        raise errors.InvalidArgument(
            faults=[("storageClass", f"{storage_class!r} is no storage class. There are: {', '.join(CLASSES)}.")]
        )
    values: dict[str, Any] = {
        "name": name,
        "project": project,
        "location": place,
        "location_type": kind,
        "storage_class": storage_class.upper(),
        "labels": dict(names.labels(labels or {})),
        "policy": dict(policy or {"bindings": []}),
        "policy_version": 1,
        "metageneration": 1,
        "created": now,
        "updated": now,
        "uniform": False,
        "default_acl": None,
        "versioning": False,
        "soft_delete": 0,
        "lifecycle": None,
        "extra": {},
        **(access or {}),
        **(settings or {}),
    }
    values["extra"] = {
        key: value
        for some in (access, settings)
        for key, value in (some or {}).get("extra", {}).items()
        if value is not None
    }

    def work(rows: sa.Connection) -> Bucket:
        number = rows.execute(sa.select(projects.c.number).where(projects.c.id == project)).scalar()
        if number is None:
            raise errors.NotFound(f"The project {project!r} does not exist here, or its name is misspelt.")
        taken = rows.execute(sa.select(table.c.project).where(table.c.name == name)).scalar()
        if taken is not None:
            raise errors.AlreadyExists(_taken(name, by_you=taken == project))
        rows.execute(sa.insert(table).values(values))
        return Bucket(**values, project_number=number)

    return db.write(work)


def get(db: Database, name: str, *, conditions: Conditions = ALWAYS) -> Bucket:
    """Raises NotFound, ConditionNotMet, NotModified."""
    with db.read() as rows:
        found = _found(rows, name)
    conditions.check(name, found, reading=True)
    return found


def page(db: Database, project: str, *, prefix: str = "", start: str = "", limit: int) -> list[Bucket]:
    """The project's buckets by name, from `start` on; at most `limit`. Raises NotFound for an unknown project."""
    query = _SELECT.where(table.c.project == project, table.c.name >= max(start, prefix))
    if prefix:
        query = query.where(table.c.name < prefix + "\U0010ffff")
    with db.read() as rows:
        if rows.execute(sa.select(projects.c.id).where(projects.c.id == project)).first() is None:
            raise errors.NotFound(f"The project {project!r} does not exist here, or its name is misspelt.")
        return [Bucket(*row) for row in rows.execute(query.order_by(table.c.name).limit(limit))]


def delete(db: Database, blobs: Blobs, name: str, *, conditions: Conditions = ALWAYS) -> list[str]:
    """Only a bucket without live and noncurrent objects; soft-deleted ones go with it.

    Returns the resumable uploads that end with it: their files are of no use any more. Raises NotFound,
    ConditionNotMet, Aborted (409) if it holds objects.
    """

    def work(rows: sa.Connection) -> list[str] | None:
        conditions.check(name, _found(rows, name))
        held = rows.execute(_HELD, {"bucket": name}).first()
        if held is not None:
            raise errors.Aborted(
                f"The bucket you tried to delete is not empty: gs://{name} holds {held.name!r}, generation "
                f"{held.generation}. Remove everything with it: taxiway storage rm -r gs://{name}"
            )
        ended = sa.select(uploads.c.id).where(uploads.c.bucket == name, uploads.c.result.is_(None))
        ids = list(rows.execute(ended).scalars())
        if rows.execute(sa.select(noncurrent.c.name).where(noncurrent.c.bucket == name).limit(1)).first():
            return None
        rows.execute(sa.delete(table).where(table.c.name == name))
        return ids

    while (ended := db.write(work)) is None:
        soft_deleted.discard(db, blobs, name)
    return ended


def patch(
    db: Database,
    name: str,
    *,
    labels: Mapping[str, str | None] | None = None,
    storage_class: str | None = None,
    replace_labels: bool = False,
    access: Access | None = None,
    settings: Access | None = None,
    conditions: Conditions = ALWAYS,
    now: float,
) -> Bucket:
    """Change labels (None removes one), the class for new objects, by `access` who may, and by `settings` what becomes
    of its objects.

    Raises NotFound, ConditionNotMet, and what those two raise.
    """
    if storage_class is not None and storage_class not in CLASSES:
        raise errors.InvalidArgument(
            faults=[("storageClass", f"{storage_class!r} is no storage class. There are: {', '.join(CLASSES)}.")]
        )

    def work(rows: sa.Connection) -> Bucket:
        current = _found(rows, name)
        conditions.check(name, current)
        values: dict[str, Any] = {"metageneration": current.metageneration + 1, "updated": now}
        if labels is not None:
            merged = {**({} if replace_labels else current.labels), **labels}
            values["labels"] = dict(names.labels({key: text for key, text in merged.items() if text is not None}))
        if storage_class is not None:
            values["storage_class"] = storage_class
        for change in (access, settings):
            if change is not None:
                values.update(_of_access(msgspec.structs.replace(current, **values), change))
        rows.execute(sa.update(table).where(table.c.name == name).values(values))
        return msgspec.structs.replace(current, **values)

    return db.write(work)


def set_policy(db: Database, name: str, policy: Mapping[str, Any], *, version: int | None = None, now: float) -> Bucket:
    """Replace the policy by {"bindings": [...]}, checked already (`policies.checked`).

    `version` is the one that it was read at; None overwrites whatever is there. Raises NotFound, ConditionNotMet if the
    policy was changed since.
    """

    def work(rows: sa.Connection) -> Bucket:
        current = _found(rows, name)
        if version is not None and version != current.policy_version:
            raise errors.ConditionNotMet(
                f"The policy of gs://{name} was changed since you read it: read it again, and repeat your change."
            )
        values = {
            "policy": {"bindings": list(policy["bindings"])},
            "policy_version": current.policy_version + 1,
            "metageneration": current.metageneration + 1,
            "updated": now,
        }
        rows.execute(sa.update(table).where(table.c.name == name).values(values))
        return msgspec.structs.replace(current, **values)

    return db.write(work)


def checked_location(text: str) -> tuple[str, str]:
    """(location in upper case, its kind): US, EU and ASIA, the dual-regions, and any region by its form."""
    place = text.upper()
    if place in MULTI_REGIONS:
        return place, "multi-region"
    if place in DUAL_REGIONS:
        return place, "dual-region"
    try:
        if text.lower() == "global":
            raise errors.InvalidArgument("global is no place for a bucket.")
        names.location(text.lower(), "location")
    except errors.InvalidArgument as error:
        fault = (
            f"The specified location constraint is not valid: {text!r}. Expected a region such as us-central1, or one "
            f"of {', '.join(MULTI_REGIONS + DUAL_REGIONS)}."
        )
        raise errors.InvalidArgument(faults=[("location", fault)]) from error
    return place, "region"


_HELD = sa.union_all(
    *(
        sa.select(its.c.name, its.c.generation).where(its.c.bucket == sa.bindparam("bucket"), kept)
        for its, kept in ((objects, sa.true()), (noncurrent, noncurrent.c.kept_until.is_(None)))
    )
).limit(1)
_SELECT = sa.select(table, projects.c.number).join(projects, projects.c.id == table.c.project)


def _of_access(current: Bucket, access: Access) -> Mapping[str, Any]:
    values = dict(access(current))
    if "policy" in values:
        values["policy_version"] = current.policy_version + 1
    if "extra" in values:
        merged = {**current.extra, **values["extra"]}
        values["extra"] = {key: value for key, value in merged.items() if value is not None}
    return values


def _found(rows: sa.Connection, name: str) -> Bucket:
    row = rows.execute(_SELECT.where(table.c.name == name)).first()
    if row is None:
        raise errors.NotFound(f"The bucket gs://{name} does not exist. Make it: taxiway storage mb gs://{name}")
    return Bucket(*row)


def _taken(name: str, *, by_you: bool) -> str:
    if by_you:
        return (
            f"Your previous request to create the named bucket succeeded and you already own it: gs://{name}. "
            "Go on using it, or choose another name."
        )
    return (
        f"The requested bucket name is not available: gs://{name} belongs to another project, and names are shared by "
        f"all projects. Choose another name, such as {name}-2."
    )
