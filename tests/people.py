"""Who may send a request to a running server: members by name, a second project with people of its own."""

from __future__ import annotations

import time

import jwt

from taxiway.db.database import Database
from taxiway.iam import keys, members, projects
from taxiway.iam.keys import HOUR


def bearer(server, member, *, now=None, secret=b""):
    """The header of a token for a member, signed by the server's own secret or by another."""
    held = keys.Keys(secret) if secret else keys.load(server.home / "keys")
    return {"Authorization": f"Bearer {held.access_token(member, now=now or time.time())}"}


def assertion(key, **rest):
    """A JWT that a service account signs with its key."""
    claims = {"iss": key["client_email"], "aud": "https://oauth2.googleapis.com/token", "iat": time.time()}
    claims |= {"exp": time.time() + HOUR, **rest}
    return jwt.encode(claims, key["private_key"], algorithm="RS256", headers={"kid": key["private_key_id"]})


def opened(server):
    """The server's rows, to be closed by whoever asks."""
    return Database(server.home / "taxiway.db")


def second_project(server, project):
    """Makes a project that has nothing to do with the server's own; its owner: a service account, and a key of it."""
    email = projects.account_email(project, "neighbour")
    member = members.of_email(email)
    rows = opened(server)
    try:
        rows.write(lambda tx: projects.create(tx, project, owners=[member], now=time.time()))
        rows.write(lambda tx: projects.create_account(tx, project, email, "A neighbour", now=time.time()))
        key = rows.write(lambda tx: keys.create_key(tx, email, token_uri="", now=time.time()))
    finally:
        rows.close()
    return member, key
