"""What a server keeps in its home beside its data: the lock, the owner, and the credentials that clients are given."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import sqlalchemy as sa

from taxiway import errors, files
from taxiway.address import Address
from taxiway.db.database import Database
from taxiway.iam import keys, members, projects, users
from taxiway.iam.keys import Keys
from taxiway.settings import Settings


@contextmanager
def locked(configured: Settings) -> Iterator[None]:
    """One server a home: an flock that the kernel lets go of however we end."""
    with writing(configured.home):
        for folder in (configured.home, configured.credentials, configured.blobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(configured.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.FailedPrecondition(
                f"Another server (pid {Path(configured.lock).read_text().strip() or 'unknown'}) runs on the home "
                f"{configured.home}. Stop it first, or take another home with --home DIR."
            ) from error
        with writing(configured.home):
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def writing(home: Path) -> Iterator[None]:
    """Tells what goes wrong with the home's files. Raises StorageFull."""
    try:
        yield
    except OSError as error:
        raise errors.StorageFull(
            f"The home {home} cannot be written: {error.strerror or error}. Free or unlock it, or take another with "
            "--home DIR."
        ) from error


def owner_email(project: str) -> str:
    return f"owner@{project}.localhost"


def owner_account(project: str) -> str:
    return projects.account_email(project, projects.OWNERS_ACCOUNT)


def first_project(db: Database, configured: Settings, now: float) -> projects.Project:
    """The home's own project; made with its owner, and a service account with the owner's rights."""
    if projects.every(db):
        return _with_owner(db, projects.first(db), now)
    account = owner_account(configured.project)
    owners = [members.of_email(owner_email(configured.project)), members.of_email(account)]

    def make(tx: sa.Connection) -> projects.Project:
        made = projects.create(tx, configured.project, owners=owners, now=now)
        projects.create_account(tx, made.id, account, "The owner, for Google's client libraries", now=now)
        users.create(tx, owner_email(made.id), display_name="The owner", now=now)
        return made

    return db.write(make)


def _with_owner(db: Database, project: projects.Project, now: float) -> projects.Project:
    """A home of before there were users: its owner becomes one."""
    email = owner_email(project.id)
    if all(each.email != email for each in users.every(db)):
        db.write(lambda tx: users.create(tx, email, display_name="The owner", now=now))
    return project


def write_credentials(db: Database, held: Keys, located: Address) -> None:
    """What `taxiway env` points clients at: the token, the key (with the token_uri of today), gsutil's settings."""
    write_token(held, located)
    write_key(db, located)
    boto = (
        f"[Credentials]\ngs_service_key_file = {located.key}\ngs_json_host = 127.0.0.1\n"
        f"gs_json_port = {located.tls_port}\n\n"
        f"[OAuth2]\nprovider_token_uri = https://127.0.0.1:{located.tls_port}/token\n\n"
        f"[Boto]\nca_certificates_file = {located.bundle}\n\n"
        f"[GSUtil]\ndefault_project_id = {located.project}\n"
    )
    files.replace(Path(located.boto), boto.encode())


def write_token(held: Keys, located: Address) -> None:
    token = held.access_token(members.of_email(located.owner), now=time.time())
    files.replace(Path(located.access_token), token.encode())


def write_key(db: Database, located: Address) -> None:
    """The owner's key file; the same key for as long as the file and the database both have it."""
    path, token_uri = Path(located.key), f"{located.url}/token"
    try:
        key = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (FileNotFoundError, msgspec.DecodeError):
        key = {}
    if not keys.has_key(db, key.get("private_key_id", "")):
        email = owner_account(located.project)
        key = db.write(lambda tx: keys.create_key(tx, email, token_uri="", now=time.time()))
    if key.get("token_uri") != token_uri:
        key |= {"token_uri": token_uri, "auth_uri": f"{located.url}/auth"}
        files.replace(path, msgspec.json.format(msgspec.json.encode(key), indent=2))
