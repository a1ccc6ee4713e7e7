"""The rows of models, versions and operations, and the rules between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors, names, schemas
from taxiway.db.database import Database
from taxiway.db.tables import models, operations, versions
from taxiway.iam import policies

CREATING, READY, FAILED, DELETING = "CREATING", "READY", "FAILED", "DELETING"
BUSY = (CREATING, "UPDATING", DELETING)


@dataclass(frozen=True, slots=True)
class Model:
    project: str
    name: str
    resource: schemas.Model
    default_version: str | None
    etag: int
    created: float
    policy: dict[str, Any]  # {"bindings": [{"role", "members"}]}
    policy_version: int


@dataclass(frozen=True, slots=True)
class Version:
    project: str
    model: str
    name: str
    resource: schemas.Version
    state: str
    error: str | None
    folder: str  # gs:// prefix of the copied model
    runtime: Mapping[str, str]  # {"version", "python", "framework"}
    etag: int
    created: float
    last_use: float | None

    @property
    def subject(self) -> str:
        return f"{self.model}/{self.name}"


@dataclass(frozen=True, slots=True)
class Operation:
    project: str
    id: str
    kind: str
    model: str
    version: str | None
    done: bool
    cancelled: bool
    error: Mapping[str, Any] | None
    response: Mapping[str, Any] | None
    created: float
    started: float | None
    ended: float | None
    policy: dict[str, Any]  # {"bindings": [{"role", "members"}]}
    policy_version: int


# --- models ---


def create_model(
    db: Database, project: str, name: str, resource: schemas.Model, *, creator: str = "", now: float
) -> Model:
    """A model that its creator owns. Raises AlreadyExists."""

    def save(tx: sa.Connection) -> Model:
        if tx.execute(sa.select(models.c.name).where(_is_model(project, name))).first():
            raise errors.AlreadyExists(
                f"Field: model.name Error: A model with the name {name!r} exists already in projects/{project}."
            )
        tx.execute(
            models.insert().values(
                project=project,
                name=name,
                resource=msgspec.to_builtins(resource),
                etag=1,
                created=now,
                policy=policies.owned_by(creator, "roles/ml.modelOwner"),
            )
        )
        return read_model(tx, project, name)

    return db.write(save)


def read_model(rows: sa.Connection, project: str, name: str) -> Model:
    """Raises NotFound."""
    row = rows.execute(sa.select(models).where(_is_model(project, name))).first()
    if row is None:
        raise errors.NotFound(
            f"The model projects/{project}/models/{name} does not exist. Make it: taxiway models create {name}"
        )
    return _model(row)


def get_model(db: Database, project: str, name: str) -> Model:
    with db.read() as rows:
        return read_model(rows, project, name)


def list_models(db: Database, project: str, *, limit: int, after: str = "") -> list[Model]:
    asked = sa.select(models).where(models.c.project == project, models.c.name > after)
    with db.read() as rows:
        return [_model(row) for row in rows.execute(asked.order_by(models.c.name).limit(limit))]


def set_policy(db: Database, project: str, name: str, bindings: list[dict[str, Any]], *, version: int | None) -> Model:
    """Replace the bindings of a model. Raises Aborted unless `version` is None or the present policy's, NotFound."""

    def save(tx: sa.Connection) -> Model:
        held = read_model(tx, project, name)
        policies.must_be(held.policy_version, version, names.model_name(project, name))
        change = {"policy": {"bindings": bindings}, "policy_version": held.policy_version + 1}
        tx.execute(models.update().where(_is_model(project, name)).values(**change))
        return read_model(tx, project, name)

    return db.write(save)


def delete_model(db: Database, project: str, name: str, *, creator: str = "", now: float) -> Operation:
    """Raises FailedPrecondition while it has versions."""

    def save(tx: sa.Connection) -> Operation:
        read_model(tx, project, name)
        if tx.execute(sa.select(versions.c.name).where(_of_model(project, name)).limit(1)).first():
            raise errors.FailedPrecondition(
                f"Field: model.name Error: The model {name} has versions; delete them first: "
                f"taxiway versions list --model {name}"
            )
        tx.execute(models.delete().where(_is_model(project, name)))
        made = begin(tx, project, "DELETE_MODEL", name, None, creator=creator, now=now)
        return finish(tx, project, made.id, response={}, now=now)

    return db.write(save)


# --- versions ---


def create_version(
    tx: sa.Connection,
    project: str,
    model: str,
    name: str,
    resource: schemas.Version,
    *,
    folder: str,
    runtime: Mapping[str, str],
    creator: str = "",
    now: float,
) -> tuple[Version, Operation]:
    """The row of a version that is being made, and its operation. Raises AlreadyExists."""
    read_model(tx, project, model)
    _must_be_new(tx, project, model, name)
    tx.execute(
        versions.insert().values(
            project=project,
            model=model,
            name=name,
            resource=msgspec.to_builtins(resource),
            state=CREATING,
            folder=folder,
            runtime=dict(runtime),
            etag=1,
            created=now,
        )
    )
    made = begin(tx, project, "CREATE_VERSION", model, name, creator=creator, now=now)
    return read_version(tx, project, model, name), made


def must_be_new(db: Database, project: str, model: str, name: str) -> None:
    """Raises AlreadyExists; said before the work of copying, and again by `create_version`."""
    with db.read() as rows:
        _must_be_new(rows, project, model, name)


def _must_be_new(rows: sa.Connection, project: str, model: str, name: str) -> None:
    if rows.execute(sa.select(versions.c.name).where(_is_version(project, model, name))).first():
        raise errors.AlreadyExists(
            f"Field: version.name Error: A version with the name {name!r} exists already in the model {model}."
        )


def read_version(rows: sa.Connection, project: str, model: str, name: str) -> Version:
    """Raises NotFound."""
    row = rows.execute(sa.select(versions).where(_is_version(project, model, name))).first()
    if row is None:
        read_model(rows, project, model)
        raise errors.NotFound(
            f"The version projects/{project}/models/{model}/versions/{name} does not exist. "
            f"List them: taxiway versions list --model {model}"
        )
    return _version(row)


def get_version(db: Database, project: str, model: str, name: str) -> Version:
    with db.read() as rows:
        return read_version(rows, project, model, name)


def default_version(db: Database, project: str, model: str) -> Version:
    """The version that answers for the model. Raises FailedPrecondition if it has none."""
    with db.read() as rows:
        found = read_model(rows, project, model)
        if found.default_version is None:
            raise errors.FailedPrecondition(
                f"The model {model} has no version yet that could answer. "
                f"Make one: taxiway versions create V --model {model} --origin gs://..."
            )
        return read_version(rows, project, model, found.default_version)


def list_versions(db: Database, project: str, model: str, *, limit: int, after: str = "") -> list[Version]:
    asked = sa.select(versions).where(_of_model(project, model) & (versions.c.name > after))
    with db.read() as rows:
        read_model(rows, project, model)
        return [_version(row) for row in rows.execute(asked.order_by(versions.c.name).limit(limit))]


def in_state(db: Database, *states: str) -> list[Version]:
    with db.read() as rows:
        return [_version(row) for row in rows.execute(sa.select(versions).where(versions.c.state.in_(states)))]


def ready(db: Database, version: Version, *, now: float) -> Version:
    """The version answers: READY, the model's default if it has none, its operation done with it."""

    def save(tx: sa.Connection) -> Version:
        if not _set_state(tx, version, CREATING, READY, None):
            return read_version(tx, version.project, version.model, version.name)
        first = _is_model(version.project, version.model) & models.c.default_version.is_(None)
        tx.execute(models.update().where(first).values(default_version=version.name, etag=models.c.etag + 1))
        for operation in _unfinished(tx, version, "CREATE_VERSION"):
            name = names.version_name(version.project, version.model, version.name)
            finish(tx, version.project, operation, response={"name": name}, now=now)
        return read_version(tx, version.project, version.model, version.name)

    return db.write(save)


def failed(db: Database, version: Version, error: errors.Error, *, now: float) -> None:
    """The version could not be made: FAILED with the reason, its operation done with the error."""

    def save(tx: sa.Connection) -> None:
        _set_state(tx, version, CREATING, FAILED, str(error))
        for operation in _unfinished(tx, version, "CREATE_VERSION"):
            finish(tx, version.project, operation, error=error, now=now)

    db.write(save)


def set_default(db: Database, project: str, model: str, name: str) -> Version:
    """Raises FailedPrecondition unless the version is READY."""

    def save(tx: sa.Connection) -> Version:
        found = read_version(tx, project, model, name)
        if found.state != READY:
            raise errors.FailedPrecondition(
                f"Field: version.name Error: The version {name} is {found.state}, and only a READY one is a default."
            )
        change = {"default_version": name, "etag": models.c.etag + 1}
        tx.execute(models.update().where(_is_model(project, model)).values(**change))
        return found

    return db.write(save)


def begin_delete(
    db: Database, project: str, model: str, name: str, *, creator: str = "", now: float
) -> tuple[Version, Operation]:
    """Raises FailedPrecondition for the default version (unless it is the only one) and for one that is busy."""

    def save(tx: sa.Connection) -> tuple[Version, Operation]:
        found = read_version(tx, project, model, name)
        if found.state in BUSY:
            raise errors.FailedPrecondition(f"The version {name} is {found.state}; wait for that operation to end.")
        count = tx.execute(
            sa.select(sa.func.count()).select_from(versions).where(_of_model(project, model))
        ).scalar_one()
        if read_model(tx, project, model).default_version == name and count > 1:
            raise errors.FailedPrecondition(
                f"Field: version.name Error: {name} is the default version of {model}; make another one the default "
                f"first: taxiway versions set-default V --model {model}"
            )
        _set_state(tx, found, found.state, DELETING, found.error)
        return found, begin(tx, project, "DELETE_VERSION", model, name, creator=creator, now=now)

    return db.write(save)


def deleted(db: Database, version: Version, *, now: float) -> None:
    """The version's server and bytes are gone: so is its row."""

    def save(tx: sa.Connection) -> None:
        tx.execute(versions.delete().where(_is_version(version.project, version.model, version.name)))
        was = _is_model(version.project, version.model) & (models.c.default_version == version.name)
        tx.execute(models.update().where(was).values(default_version=None, etag=models.c.etag + 1))
        for operation in _unfinished(tx, version, "DELETE_VERSION"):
            finish(tx, version.project, operation, response={}, now=now)

    db.write(save)


def used(db: Database, version: Version, *, now: float) -> None:
    mine = _is_version(version.project, version.model, version.name)
    db.write(lambda tx: tx.execute(versions.update().where(mine).values(last_use=now)))


# --- operations ---


def begin(
    tx: sa.Connection, project: str, kind: str, model: str, version: str | None, *, creator: str = "", now: float
) -> Operation:
    """An operation that runs from now on and that its creator owns, whatever comes of the model; its name tells what
    it does, and when it began (microseconds)."""
    name = "_".join([kind.lower(), model[:64], *([version[:64]] if version else []), f"{int(now * 1e6)}"])
    tx.execute(
        operations.insert().values(
            project=project,
            id=name,
            kind=kind,
            model=model,
            version=version,
            done=False,
            cancelled=False,
            created=now,
            started=now,
            policy=policies.owned_by(creator, "roles/ml.operationOwner"),
        )
    )
    return read_operation(tx, project, name)


def finish(
    tx: sa.Connection,
    project: str,
    operation: str,
    *,
    now: float,
    error: errors.Error | None = None,
    response: Mapping[str, Any] | None = None,
) -> Operation:
    told = {"code": GRPC_CODES[error.status], "message": str(error)} if error else None
    mine = (operations.c.project == project) & (operations.c.id == operation)
    tx.execute(operations.update().where(mine).values(done=True, ended=now, error=told, response=response))
    return read_operation(tx, project, operation)


# google.rpc.Code: the numbers of the words, as an operation's error has them
GRPC_CODES = {
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}


def read_operation(rows: sa.Connection, project: str, name: str) -> Operation:
    """Raises NotFound."""
    row = rows.execute(sa.select(operations).where(operations.c.project == project, operations.c.id == name)).first()
    if row is None:
        raise errors.NotFound(f"The operation projects/{project}/operations/{name} does not exist.")
    return Operation(**row._mapping)


def get_operation(db: Database, project: str, name: str) -> Operation:
    with db.read() as rows:
        return read_operation(rows, project, name)


def list_operations(db: Database, project: str, *, limit: int, after: str = "") -> list[Operation]:
    asked = sa.select(operations).where(operations.c.project == project, operations.c.id > after)
    with db.read() as rows:
        return [Operation(**row._mapping) for row in rows.execute(asked.order_by(operations.c.id).limit(limit))]


def cancel_operation(db: Database, project: str, name: str) -> Operation:
    """Note the wish; making a version ends with it as soon as it is seen. Ended ones stay as they are."""

    def save(tx: sa.Connection) -> Operation:
        found = read_operation(tx, project, name)
        mine = (operations.c.project == project) & (operations.c.id == name) & ~operations.c.done
        tx.execute(operations.update().where(mine).values(cancelled=True))
        return found

    return db.write(save)


def cancel_asked(db: Database, version: Version) -> bool:
    with db.read() as rows:
        asked = sa.select(operations.c.id).where(_operation_of(version, "CREATE_VERSION") & operations.c.cancelled)
        return rows.execute(asked).first() is not None


def _unfinished(tx: sa.Connection, version: Version, kind: str) -> list[str]:
    return list(tx.execute(sa.select(operations.c.id).where(_operation_of(version, kind))).scalars())


def _operation_of(version: Version, kind: str) -> sa.ColumnElement[bool]:
    return (
        (operations.c.project == version.project)
        & (operations.c.model == version.model)
        & (operations.c.version == version.name)
        & (operations.c.kind == kind)
        & ~operations.c.done
    )


def _set_state(tx: sa.Connection, version: Version, was: str, state: str, error: str | None) -> bool:
    """Compare and set: False if the version is not in the state that it `was` in."""
    mine = _is_version(version.project, version.model, version.name) & (versions.c.state == was)
    change = {"state": state, "error": error, "etag": versions.c.etag + 1}
    return bool(tx.execute(versions.update().where(mine).values(**change)).rowcount)


def _is_model(project: str, name: str) -> sa.ColumnElement[bool]:
    return (models.c.project == project) & (models.c.name == name)


def _of_model(project: str, model: str) -> sa.ColumnElement[bool]:
    return (versions.c.project == project) & (versions.c.model == model)


def _is_version(project: str, model: str, name: str) -> sa.ColumnElement[bool]:
    return _of_model(project, model) & (versions.c.name == name)


def _model(row: sa.Row[Any]) -> Model:
    told = dict(row._mapping)
    return Model(**{**told, "resource": msgspec.convert(told["resource"], schemas.Model)})


def _version(row: sa.Row[Any]) -> Version:
    told = dict(row._mapping)
    return Version(**{**told, "resource": msgspec.convert(told["resource"], schemas.Version)})
