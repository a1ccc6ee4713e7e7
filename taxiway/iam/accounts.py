"""Service accounts and their keys: the rows, and what must not be lost by mistake."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import service_account_keys, service_accounts
from taxiway.iam import projects


@dataclass(frozen=True, slots=True)
class Account:
    email: str
    project: str
    unique_id: str
    display_name: str
    description: str
    disabled: bool
    created: float

    @property
    def etag(self) -> bytes:
        """Another one after every change."""
        return hashlib.sha256(repr((self.display_name, self.description, self.disabled)).encode()).digest()[:8]


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    email: str
    public_key: str  # PEM
    disabled: bool
    created: float


def create(
    tx: sa.Connection, project: str, name: str, *, display_name: str = "", description: str = "", now: float
) -> Account:
    """name@PROJECT.iam.gserviceaccount.com. Raises AlreadyExists, NotFound for the project."""
    projects.read(tx, project)
    email = projects.account_email(project, name)
    held = tx.execute(sa.select(service_accounts).where(service_accounts.c.email == email)).first()
    if held is not None and held.deleted is not None:
        raise errors.AlreadyExists(
            f"Service account {name} was deleted, and grants may still name it: choose another name, or bring it back: "
            f"POST /v1/projects/{project}/serviceAccounts/{held.unique_id}:undelete"
        )
    if held is not None:
        raise errors.AlreadyExists(f"Service account {name} already exists within project projects/{project}.")
    projects.create_account(tx, project, email, display_name, now=now)
    update(tx, email, {"description": description})
    return read(tx, project, email)


def get(db: Database, project: str, name: str) -> Account:
    """An account by its e-mail address or unique id; `project` may be `-` for whichever has it. Raises NotFound."""
    with db.read() as rows:
        return read(rows, project, name)


def read(rows: sa.Connection, project: str, name: str) -> Account:
    """As `get`, on rows in hand."""
    row = rows.execute(sa.select(service_accounts).where(_named(name))).first()
    if row is None or row.deleted is not None or project not in ("-", row.project):
        raise _unknown(project, name)
    return _account(row)


def _named(name: str) -> sa.ColumnElement[bool]:
    return service_accounts.c.email == name if "@" in name else service_accounts.c.unique_id == name


def _unknown(project: str, name: str) -> errors.NotFound:
    return errors.NotFound(f"Unknown service account: {name[:254]!r} does not exist in projects/{project}.")


def _account(row: sa.Row[Any]) -> Account:
    return Account(**{name: row._mapping[name] for name in Account.__slots__})


def page(db: Database, project: str, *, after: str, limit: int) -> list[Account]:
    """The accounts of a project by their address, those after `after`."""
    held = (service_accounts.c.project == project, service_accounts.c.deleted.is_(None))
    look = sa.select(service_accounts).where(*held, service_accounts.c.email > after)
    with db.read() as rows:
        return [_account(row) for row in rows.execute(look.order_by(service_accounts.c.email).limit(limit))]


def update(tx: sa.Connection, email: str, values: Mapping[str, Any]) -> None:
    """Set columns of an account: display_name, description, disabled, deleted."""
    if values:
        tx.execute(service_accounts.update().where(service_accounts.c.email == email).values(**values))


def change(tx: sa.Connection, email: str, values: Mapping[str, Any], *, etag: bytes | None) -> Account:
    """As `update`. Raises Aborted if `etag` is that of an older state, NotFound."""
    if etag is not None and etag != read(tx, "-", email).etag:
        raise errors.Aborted(f"The service account {email} was changed by somebody else; read it again.")
    update(tx, email, values)
    return read(tx, "-", email)


def disable(tx: sa.Connection, account: Account, disabled: bool) -> Account:
    """Believe nothing any more that it or its keys signed, or again. Raises FailedPrecondition for the house's own."""
    if disabled:
        must_be_a_persons(tx, account, "disabled")
    update(tx, account.email, {"disabled": disabled})
    return read(tx, "-", account.email)


def delete(tx: sa.Connection, account: Account, *, now: float) -> None:
    """An account, its keys and, with them, its tokens. Raises FailedPrecondition for the house's own.

    Its row stays: grants and objects still name it, and whoever were given its name next would have them.
    """
    must_be_a_persons(tx, account, "deleted")
    tx.execute(service_account_keys.delete().where(service_account_keys.c.email == account.email))
    update(tx, account.email, {"deleted": now})


def undelete(tx: sa.Connection, project: str, name: str) -> Account:
    """Bring an account back, with what it was granted and without its keys. Raises NotFound, AlreadyExists."""
    row = tx.execute(sa.select(service_accounts).where(_named(name))).first()
    if row is None or project not in ("-", row.project):
        raise _unknown(project, name)
    if row.deleted is None:
        raise errors.AlreadyExists(f"The service account {row.email} is not deleted.")
    update(tx, row.email, {"deleted": None})
    return read(tx, "-", row.email)


def must_be_a_persons(rows: sa.Connection, account: Account, done: str) -> None:
    """Raise FailedPrecondition for an account that the house itself acts as: a project's service agent, its owner's."""
    number = projects.read(rows, account.project).number
    if account.email == projects.service_agent(number):
        raise errors.FailedPrecondition(
            f"{account.email} is the ML service agent of projects/{account.project}, which its jobs and versions act "
            f"as; it cannot be {done}. What it may do is what it is granted."
        )
    if account.email == projects.account_email(account.project, projects.OWNERS_ACCOUNT):
        raise errors.FailedPrecondition(
            f"{account.email} is what `taxiway env` gives Google's libraries to act as; it cannot be {done}."
        )


def must_have_keys(rows: sa.Connection, account: Account) -> None:
    """Raise FailedPrecondition for a project's service agent: nobody acts as it but the project's jobs and versions."""
    if account.email == projects.service_agent(projects.read(rows, account.project).number):
        raise errors.FailedPrecondition(
            f"{account.email} is the ML service agent of projects/{account.project}; it has no keys. Create an account "
            "of your own: taxiway iam service-accounts create NAME"
        )


def keys_of(db: Database, email: str) -> list[Key]:
    """The keys of an account, oldest first."""
    look = sa.select(service_account_keys).where(service_account_keys.c.email == email)
    with db.read() as rows:
        return [
            Key(**row._mapping)
            for row in rows.execute(look.order_by(service_account_keys.c.created, service_account_keys.c.id))
        ]


def key(rows: sa.Connection, email: str, name: str) -> Key:
    """Raises NotFound."""
    by = (service_account_keys.c.email == email, service_account_keys.c.id == name)
    row = rows.execute(sa.select(service_account_keys).where(*by)).first()
    if row is None:
        raise errors.NotFound(f"Service account key {name[:100]!r} of {email} does not exist.")
    return Key(**row._mapping)


def disable_key(tx: sa.Connection, held: Key, disabled: bool) -> None:
    tx.execute(service_account_keys.update().where(service_account_keys.c.id == held.id).values(disabled=disabled))


def delete_key(tx: sa.Connection, held: Key) -> None:
    tx.execute(service_account_keys.delete().where(service_account_keys.c.id == held.id))
