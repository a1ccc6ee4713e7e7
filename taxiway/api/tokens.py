"""OAuth: tokens for assertions, logins and passwords, their revocation, and what a token says.

Sources: https://developers.google.com/identity/protocols/oauth2/service-account, RFC 6749 (the grants and their
errors), RFC 7009 (revocation), and Google's tokeninfo and userinfo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import Response

from taxiway import errors
from taxiway.api.call import ANYONE, SIGNED_IN, Call, Route
from taxiway.iam import keys, logins, members, scopes, users
from taxiway.iam.keys import HOUR, Source

Form = Mapping[str, str]


def issue_token(call: Call) -> Response | dict[str, Any]:
    """An access token: for a JWT that a service account signed, a refresh token, or a person's name and password.

    Errors have OAuth's shape (RFC 6749, 5.2).
    """
    form = _form(call)
    grant = GRANTS.get(form.get("grant_type", ""))
    if grant is None:
        told = f"grant_type {form.get('grant_type', '')[:100]!r} is not offered; there are {', '.join(GRANTS)}."
        return _oauth_error("unsupported_grant_type", told)
    try:
        return grant(call, form)
    except errors.Unauthenticated as error:
        return _oauth_error("invalid_grant", str(error))
    except errors.InvalidArgument as error:
        return _oauth_error("invalid_request", str(error))


def _by_assertion(call: Call, form: Form) -> dict[str, Any]:
    """gcloud first asks an identity token (`target_audience`), and is content with an access token."""
    made = keys.asserted(call.house.db, form.get("assertion", ""), now=call.now)
    return _token(call, members.of_email(made.email), made.scopes, Source(key=made.key))


def _by_refresh_token(call: Call, form: Form) -> dict[str, Any]:
    login = logins.of(call.house.db, form.get("refresh_token", ""), now=call.now)
    scope = scopes.within(form.get("scope", ""), login.scopes)
    return _token(call, login.member, scope, Source(login=login.id))


def _by_password(call: Call, form: Form) -> dict[str, Any]:
    """A login: its refresh token is told this once."""
    scope = scopes.parse(form.get("scope", ""))
    call.resource = f"users/{users.address(form.get('username', ''), 'username')}"
    member = call.house.passwords.check(form.get("username", ""), form.get("password", ""))
    refresh, login = call.house.db.write(lambda tx: logins.begin(tx, member, scope, now=call.now))
    return {**_token(call, member, scope, Source(login=login.id)), "refresh_token": refresh}


GRANTS = {keys.JWT_GRANT: _by_assertion, "refresh_token": _by_refresh_token, "password": _by_password}


def _token(call: Call, member: str, scope: str, source: Source) -> dict[str, Any]:
    token = call.house.keys.access_token(member, now=call.now, scope=scope, source=source)
    call.who = call.house.keys.caller(call.house.db, token, now=call.now)  # for a member who was disabled, no token
    call.who = members.Caller(member)  # for the audit log: whoever proved to be somebody
    return {"access_token": token, "expires_in": HOUR, "token_type": "Bearer", "scope": scopes.written(scope)}


def revoke(call: Call) -> Response | dict[str, Any]:
    """End a login, by its refresh token or an access token made from it; both hold no more."""
    token = _form(call).get("token", "") or call.query.get("token", "")
    if call.house.db.write(lambda tx: logins.end_token(tx, token)):
        call.house.access.forget()
        return {}
    try:
        login = call.house.keys.token(call.house.db, token, now=call.now).login
    except errors.Unauthenticated:
        return _oauth_error("invalid_token", "The token has expired, was revoked, or is not this server's.")
    if not login:
        told = (
            "The token is not of a login. It ends by itself, or at once if the key or account that made it is disabled."
        )
        return _oauth_error("unsupported_token_type", told)
    call.house.db.write(lambda tx: logins.end(tx, login))
    call.house.access.forget()
    return {}


def token_info(call: Call) -> Response | dict[str, Any]:
    """Whose token it is, for what, and for how long."""
    bearer = call.query.get("access_token") or _form(call).get("access_token", "")
    try:
        token = call.house.keys.token(call.house.db, bearer, now=call.now)
    except errors.Unauthenticated as error:
        return _oauth_error("invalid_token", str(error))
    if not token.caller.signed_in:
        return _oauth_error("invalid_token", "The token is a replica's own, for its reports and nothing else.")
    email, left = token.caller.email, max(int(token.expires - call.now), 0)
    told: dict[str, Any] = {"scope": scopes.written(token.caller.scopes), "email": email, "access_type": "offline"}
    if "v1" in call.request.scope["path"]:
        return told | {"issued_to": email, "audience": email, "verified_email": True, "expires_in": left}
    exp = str(int(token.expires))
    return told | {"azp": email, "aud": email, "email_verified": "true", "exp": exp, "expires_in": str(left)}


def user_info(call: Call) -> dict[str, Any]:
    """Whose token the request carries."""
    named = "sub" if "v3" in call.request.scope["path"] else "id"
    verified = "email_verified" if "v3" in call.request.scope["path"] else "verified_email"
    return {named: call.who.email, "email": call.who.email, verified: True}


def _form(call: Call) -> dict[str, str]:
    if isinstance(call.body, dict):
        return {name: str(value) for name, value in call.body.items()}
    return dict(parse_qsl(call.body)) if isinstance(call.body, str) else {}


def _oauth_error(word: str, sentence: str) -> Response:
    body = msgspec.json.encode({"error": word, "error_description": sentence})
    return Response(body, 400, media_type="application/json")


ROUTES = [
    Route("POST", "/token", ANYONE, issue_token),
    Route("POST", "/oauth2/v4/token", ANYONE, issue_token),
    Route("POST", "/o/oauth2/token", ANYONE, issue_token),
    Route("POST", "/revoke", ANYONE, revoke),
    Route("POST", "/o/oauth2/revoke", ANYONE, revoke),
    Route("GET", "/tokeninfo", ANYONE, token_info),
    Route("POST", "/tokeninfo", ANYONE, token_info),
    Route("GET", "/oauth2/v1/tokeninfo", ANYONE, token_info),
    Route("GET", "/oauth2/v3/tokeninfo", ANYONE, token_info),
    Route("GET", "/oauth2/v1/userinfo", SIGNED_IN, user_info),
    Route("GET", "/oauth2/v3/userinfo", SIGNED_IN, user_info),
    Route("GET", "/v1/userinfo", SIGNED_IN, user_info),
]
