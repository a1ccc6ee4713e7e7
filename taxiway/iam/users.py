"""Users: people with a password on this server. A password is kept as an argon2id hash, and written nowhere else."""

from __future__ import annotations

import re
import secrets
import threading
import time
import unicodedata
from dataclasses import dataclass

import argon2
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import refresh_tokens, users
from taxiway.iam import members

EMAIL = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[a-z0-9]([a-z0-9.-]{0,188}[a-z0-9])?")
SERVICE_ACCOUNTS = "gserviceaccount.com"
LEAST, MOST = 8, 256  # characters of a password (NIST SP 800-63B, 3.1.1.2: at least eight)
GUESSES, EVERY_S = 5, 60.0  # wrong passwords that one user is allowed in that time
AT_ONCE = 8  # checks: each takes 19 MiB for its while
REMEMBERED = 10_000  # users whose wrong guesses are counted

# The least that OWASP's password storage page asks of argon2id: 19 MiB, two passes, one lane.
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class User:
    email: str
    display_name: str
    disabled: bool
    has_password: bool
    created: float


class Passwords:
    """Checks passwords, and slows down whoever guesses. Safe to ask from any thread; the counts are this process's."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._lock = threading.Lock()
        self._wrong: dict[str, list[float]] = {}  # when each user's last guesses were (monotonic)
        self._room = threading.BoundedSemaphore(AT_ONCE)
        # What an unknown user's password is compared with, so that their check costs what any other costs.
        self._nobodys = HASHER.hash(secrets.token_urlsafe())

    def check(self, email: str, password: str) -> str:
        """The member whose password this is.

        Raises Unauthenticated, in the same words and after the same work for an unknown user and a wrong password;
        for a disabled user only once the password was right; ResourceExhausted after too many wrong ones.
        """
        email = email.strip().lower()
        self._count(email)
        if not self._room.acquire(blocking=False):
            raise errors.ResourceExhausted("Too many passwords are being checked at once; try again in a moment.")
        try:
            with self.db.read() as rows:
                found = rows.execute(sa.select(users).where(users.c.email == email)).first()
            right = _matches(found.password if found and found.password else self._nobodys, password)
        finally:
            self._room.release()
        if not right or found is None or not found.password:
            raise errors.Unauthenticated(
                "The e-mail address or the password is wrong. Who has no password yet is given one by an owner of the "
                "server: taxiway users set-password EMAIL"
            )
        with self._lock:
            self._wrong.pop(email, None)
        if found.disabled:
            raise errors.Unauthenticated(
                f"The user {email} is disabled. An owner may change that: taxiway users enable {email}"
            )
        return members.of_email(email)

    def _count(self, email: str) -> None:
        """Take one guess before it is checked, so that many at once count as many. Raises ResourceExhausted."""
        now = time.monotonic()
        with self._lock:
            lately = [when for when in self._wrong.get(email, []) if when > now - EVERY_S]
            if len(lately) >= GUESSES:
                wait = int(lately[0] + EVERY_S - now) + 1
                raise errors.ResourceExhausted(
                    f"Too many wrong passwords for {email[:254]!r}; try again in {wait} seconds."
                )
            if len(self._wrong) >= REMEMBERED:
                self._wrong.clear()
            self._wrong[email[:254]] = [*lately, now]


def _matches(hashed: str, password: str) -> bool:
    try:
        return HASHER.verify(hashed, _spelled(password).encode("utf-8", "replace"))
    except argon2.exceptions.VerificationError:
        return False


def _spelled(password: str) -> str:
    """One spelling for what looks the same, whichever keyboard it was typed on."""
    return unicodedata.normalize("NFKC", password)


def hashed(password: str, field: str = "password") -> str:
    """The hash to keep. It takes some 20 ms: made before the transaction. Raises InvalidArgument."""
    if not LEAST <= len(password) <= MOST:
        raise errors.InvalidArgument(
            faults=[(field, f"must have {LEAST} to {MOST} characters; this one has {len(password)}.")]
        )
    try:
        return HASHER.hash(_spelled(password))
    except UnicodeEncodeError as error:
        raise errors.InvalidArgument(faults=[(field, "must be Unicode text without lone surrogates.")]) from error


def address(text: str, field: str = "email") -> str:
    """An e-mail address that a user may have, in lower case. Raises InvalidArgument; those of service accounts are."""
    email = text.strip().lower()
    if not EMAIL.fullmatch(email) or ".." in email:
        raise errors.InvalidArgument(faults=[(field, f"{text[:100]!r} is no e-mail address such as ann@example.com.")])
    if email.endswith(SERVICE_ACCOUNTS):
        raise errors.InvalidArgument(
            faults=[(field, f"{email!r} is a service account's: make one by taxiway iam service-accounts create.")]
        )
    return email


def create(tx: sa.Connection, email: str, *, display_name: str = "", password: str = "", now: float) -> User:
    """A user; `password` is hashed already, "" for none yet. Raises AlreadyExists."""
    if tx.execute(sa.select(users.c.email).where(users.c.email == email)).first():
        raise errors.AlreadyExists(f"The user {email} exists already.")
    row = {"email": email, "display_name": display_name, "password": password, "created": now}
    tx.execute(users.insert().values(**row))
    return _read(tx, email)


def get(db: Database, email: str) -> User:
    """Raises NotFound."""
    with db.read() as rows:
        return _read(rows, email)


def every(db: Database) -> list[User]:
    with db.read() as rows:
        return [_user(row) for row in rows.execute(sa.select(users).order_by(users.c.email))]


def disable(tx: sa.Connection, email: str, disabled: bool) -> User:
    """Let a user in no more, or again. Who is disabled loses the logins they had. Raises NotFound."""
    _read(tx, email)
    tx.execute(users.update().where(users.c.email == email).values(disabled=disabled))
    if disabled:
        _log_out(tx, email)
    return _read(tx, email)


def set_password(tx: sa.Connection, email: str, password: str) -> User:
    """Keep another hash; whoever was logged in by the old password is not any more. Raises NotFound."""
    _read(tx, email)
    tx.execute(users.update().where(users.c.email == email).values(password=password))
    _log_out(tx, email)
    return _read(tx, email)


def _log_out(tx: sa.Connection, email: str) -> None:
    tx.execute(refresh_tokens.delete().where(refresh_tokens.c.member == members.of_email(email)))


def _read(rows: sa.Connection, email: str) -> User:
    row = rows.execute(sa.select(users).where(users.c.email == email)).first()
    if row is None:
        raise errors.NotFound(f"The user {email} does not exist. Make one: taxiway users create {email}")
    return _user(row)


def _user(row: sa.Row[tuple[object, ...]]) -> User:
    return User(row.email, row.display_name, row.disabled, bool(row.password), row.created)
