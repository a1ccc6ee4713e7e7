"""Logins: a refresh token each, kept as its SHA-256, that makes access tokens until it is revoked (RFC 6749, 6)."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import refresh_tokens

USED_S = 60.0  # how exactly it is written down when a login was last used


@dataclass(frozen=True, slots=True)
class Login:
    id: str
    member: str
    scopes: str


def begin(tx: sa.Connection, member: str, scopes: str, *, now: float) -> tuple[str, Login]:
    """A login of the member: its refresh token, which nobody can be told a second time."""
    token = secrets.token_urlsafe(32)
    made = Login(_id(token), member, scopes)
    tx.execute(refresh_tokens.insert().values(id=made.id, member=member, scopes=scopes, created=now))
    return token, made


def of(db: Database, token: str, *, now: float) -> Login:
    """Whose refresh token this is. Raises Unauthenticated if it was revoked, or never given out."""
    with db.read() as rows:
        row = rows.execute(sa.select(refresh_tokens).where(refresh_tokens.c.id == _id(token))).first()
    if row is None:
        raise errors.Unauthenticated("The refresh token was revoked or is not this server's. Log in again.")
    if row.used is None or abs(now - row.used) > USED_S:
        db.write(lambda tx: tx.execute(refresh_tokens.update().where(refresh_tokens.c.id == row.id).values(used=now)))
    return Login(row.id, row.member, row.scopes)


def end(tx: sa.Connection, login: str) -> bool:
    """Revoke a login by its id; whether there was one."""
    return tx.execute(refresh_tokens.delete().where(refresh_tokens.c.id == login)).rowcount > 0


def end_token(tx: sa.Connection, token: str) -> bool:
    """Revoke a login by its refresh token; whether there was one."""
    return end(tx, _id(token))


def _id(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
