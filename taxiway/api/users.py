"""The users of this server: our own routes, for the owners of its first project; and a person's own password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taxiway import errors, household
from taxiway.api import wire
from taxiway.api.call import SIGNED_IN, Call, Route
from taxiway.iam import projects, users
from taxiway.iam.users import User

USERS = "/taxiway/v1/users"
USER = f"{USERS}/{{email}}"
ADMIN = "taxiway.users.admin"


def create_user(call: Call) -> dict[str, Any]:
    """A user who may be granted roles; without a password until one is set, and then nobody logs in as them."""
    _must_be_admin(call)
    body = wire.message(call.body)
    email, name, now = users.address(_text(body, "email")), _text(body, "displayName")[:100], call.now
    told = _text(body, "password")
    password = users.hashed(told) if told else ""
    made = call.house.db.write(lambda tx: users.create(tx, email, display_name=name, password=password, now=now))
    return _user(made)


def list_users(call: Call) -> dict[str, Any]:
    _must_be_admin(call)
    size = wire.page_size(call.query, default=500, most=1000)
    after = wire.page_key(call.query, tuple[str])
    found = [each for each in users.every(call.house.db) if after is None or each.email > after[0]]
    return wire.page("users", found[: size + 1], size, lambda each: (each.email,), _user)


def get_user(call: Call) -> dict[str, Any]:
    """Oneself, or for an admin anybody."""
    email = call.path["email"].lower()
    if not _is(call, email):
        _must_be_admin(call)
    return _user(users.get(call.house.db, email))


def set_password(call: Call) -> dict[str, Any]:
    """By an admin anybody's; by a person their own, who says the old one too (`currentPassword`).

    Whoever was logged in as them is not any more.
    """
    email, body = call.path["email"].lower(), wire.message(call.body)
    call.resource = f"users/{email}"
    if not call.may(ADMIN, project=projects.first(call.house.db).id):
        if not _is(call, email):
            _must_be_admin(call)
        try:
            call.house.passwords.check(email, _text(body, "currentPassword"))
        except errors.Unauthenticated as error:
            raise wire.wrong("currentPassword", "is not your password; say it to set another one.") from error
    users.get(call.house.db, email)
    password = users.hashed(_text(body, "password"))
    changed = call.house.db.write(lambda tx: users.set_password(tx, email, password))
    call.house.access.forget()
    return _user(changed)


def enable_user(call: Call) -> dict[str, Any]:
    return _switched(call, disabled=False)


def disable_user(call: Call) -> dict[str, Any]:
    return _switched(call, disabled=True)


def _switched(call: Call, *, disabled: bool) -> dict[str, Any]:
    first = projects.first(call.house.db).id
    _must_be_admin(call)
    email = call.path["email"].lower()
    call.resource = f"users/{email}"
    if disabled and (email == household.owner_email(first) or _is(call, email)):
        whose = "your own user" if _is(call, email) else "the owner that this server's home belongs to"
        raise errors.FailedPrecondition(f"{email} is {whose}, and cannot be disabled.")
    changed = call.house.db.write(lambda tx: users.disable(tx, email, disabled))
    call.house.access.forget()
    return _user(changed)


def _must_be_admin(call: Call) -> None:
    call.need(ADMIN, project=projects.first(call.house.db).id)


def _is(call: Call, email: str) -> bool:
    return call.who.member == f"user:{email}"


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field, "")
    if not isinstance(value, str):
        raise wire.wrong(field, "must be a string.")
    return value


def _user(user: User) -> dict[str, Any]:
    return {
        "email": user.email,
        "displayName": user.display_name,
        "disabled": user.disabled,
        "hasPassword": user.has_password,
        "createTime": wire.timestamp(user.created),
    }


ROUTES = [
    Route("GET", USERS, SIGNED_IN, list_users),
    Route("POST", USERS, SIGNED_IN, create_user),
    Route("GET", USER, SIGNED_IN, get_user),
    Route("POST", f"{USER}:setPassword", SIGNED_IN, set_password),
    Route("POST", f"{USER}:enable", SIGNED_IN, enable_user),
    Route("POST", f"{USER}:disable", SIGNED_IN, disable_user),
]
