"""Projects and their service accounts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import projects, service_accounts
from taxiway.iam import policies

DOMAIN = "gserviceaccount.com"
OWNER = "roles/owner"
OWNERS_ACCOUNT = "owner"  # shorter than any account that can be made, so nobody else can be given it


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    number: int
    name: str
    policy: dict[str, Any]
    policy_version: int
    created: float


def create(tx: sa.Connection, project: str, *, owners: list[str], name: str = "", now: float) -> Project:
    """A project with a number of its own, its ML service agent, and its owners. Raises AlreadyExists."""
    if tx.execute(sa.select(projects.c.id).where(projects.c.id == project)).first():
        raise errors.AlreadyExists(f"The project {project!r} exists already; choose another id.")
    number = 100_000_000_000 + secrets.randbelow(900_000_000_000)  # twelve digits, as Google's
    policy = {"bindings": [{"role": OWNER, "members": sorted(owners)}]}
    # The first stays the first, also if the clock was put back since: who owns it owns the server.
    latest = tx.execute(sa.select(sa.func.max(projects.c.created))).scalar()
    now = now if latest is None else max(now, latest + 0.001)
    tx.execute(
        projects.insert().values(
            id=project, number=number, name=name or project, policy=policy, policy_version=1, created=now
        )
    )
    create_account(tx, project, service_agent(number), "ML service agent: what jobs and versions act as", now=now)
    return read(tx, project)


def service_agent(number: int) -> str:
    """The e-mail of a project's ML service agent, as getConfig tells it."""
    return f"service-{number}@cloud-ml.google.com.iam.{DOMAIN}"


def account_email(project: str, name: str) -> str:
    return f"{name}@{project}.iam.{DOMAIN}"


def create_account(tx: sa.Connection, project: str, email: str, display_name: str, *, now: float) -> None:
    tx.execute(
        service_accounts.insert().values(
            email=email,
            project=project,
            unique_id=str(10**20 + secrets.randbelow(9 * 10**20)),
            display_name=display_name,
            created=now,
        )
    )


def get(db: Database, project: str) -> Project:
    """A project by its id or its number. Raises NotFound."""
    with db.read() as rows:
        return read(rows, project)


def numbers(db: Database) -> dict[str, int]:
    """The number of every project, by its id."""
    with db.read() as rows:
        return {row.id: row.number for row in rows.execute(sa.select(projects.c.id, projects.c.number))}


def canonical(db: Database, project: str) -> str:
    """The id of a project that may be told by its number. Raises NotFound for a number that is none."""
    return get(db, project).id if _is_number(project) else project


def _is_number(project: str) -> bool:
    return project.isascii() and project.isdigit() and len(project) < 19  # what a row can hold


def every(db: Database) -> list[Project]:
    with db.read() as rows:
        return [Project(**row._mapping) for row in rows.execute(sa.select(projects).order_by(projects.c.id))]


def first(db: Database) -> Project:
    """The home's own project: whoever owns it owns the server. Raises NotFound before the first start."""
    with db.read() as rows:
        row = rows.execute(sa.select(projects).order_by(projects.c.created, projects.c.id).limit(1)).first()
    if row is None:
        raise errors.NotFound("This home has no project yet; the first start of its server makes one.")
    return Project(**row._mapping)


def rename(tx: sa.Connection, project: str, name: str) -> Project:
    """Give a project another display name. Raises NotFound."""
    held = read(tx, project)
    tx.execute(projects.update().where(projects.c.id == held.id).values(name=name))
    return read(tx, held.id)


def set_policy(db: Database, project: str, policy: dict[str, Any]) -> Project:
    """Replace the bindings.

    Raises Aborted if `policy` carries the etag of an older one, InvalidArgument for bad words, FailedPrecondition if
    nobody would own the project any more: nobody could ever change it again.
    """
    bindings = policies.checked(policy)
    if not any(binding["role"] == OWNER for binding in bindings):
        raise errors.FailedPrecondition(f"projects/{project} must keep an owner: name at least one member of {OWNER}.")

    def save(tx: sa.Connection) -> Project:
        held = read(tx, project)
        if policy.get("etag") not in (None, "", policies.etag(held.policy_version)):
            raise policies.overtaken(f"projects/{held.id}")
        tx.execute(
            projects.update()
            .where(projects.c.id == held.id)
            .values(policy={"bindings": bindings}, policy_version=held.policy_version + 1)
        )
        return read(tx, held.id)

    return db.write(save)


def read(rows: sa.Connection, project: str) -> Project:
    """As `get`, on rows in hand."""
    by = projects.c.number == int(project) if _is_number(project) else projects.c.id == project
    row = rows.execute(sa.select(projects).where(by)).first()
    if row is None:
        raise errors.NotFound(f"The project {project!r} does not exist here, or its name is misspelt.")
    return Project(**row._mapping)
