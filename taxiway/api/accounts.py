"""IAM v1: service accounts, their keys, roles and permissions; and IAM Credentials' access tokens.

Sources: https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts and
https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from taxiway import errors, names
from taxiway.api import wire
from taxiway.api.call import SIGNED_IN, Call, Route
from taxiway.iam import accounts, keys, members, roles, scopes
from taxiway.iam.accounts import Account, Key
from taxiway.iam.keys import HOUR

ACCOUNTS = "/v1/projects/{project}/serviceAccounts"
ACCOUNT = f"{ACCOUNTS}/{{account}}"
KEYS = f"{ACCOUNT}/keys"
KEY = f"{KEYS}/{{key}}"

FOREVER = "9999-12-31T23:59:59Z"
ALGORITHM = "KEY_ALG_RSA_2048"
FILE = "TYPE_GOOGLE_CREDENTIALS_FILE"
UNSAID = "_UNSPECIFIED"
RAW = "TYPE_RAW_PUBLIC_KEY"
LONGEST = {"displayName": 100, "description": 256}  # characters, as Google's
COLUMNS = {"displayName": "display_name", "description": "description"}


# ---- accounts -------------------------------------------------------------------------------------------------------


def create_account(call: Call) -> dict[str, Any]:
    body = wire.message(call.body)
    told = wire.message(body.get("serviceAccount"), "serviceAccount")
    name = names.account_id(str(body.get("accountId", "")), "accountId")
    values, project, now = _texts(told, "serviceAccount."), call.path["project"], call.now
    return _account(call.house.db.write(lambda tx: accounts.create(tx, project, name, **values, now=now)))


def list_accounts(call: Call) -> dict[str, Any]:
    size = wire.page_size(call.query)
    after = wire.page_key(call.query, tuple[str])
    found = accounts.page(call.house.db, call.path["project"], after=after[0] if after else "", limit=size + 1)
    return wire.page("accounts", found, size, lambda each: (each.email,), _account)


def get_account(call: Call) -> dict[str, Any]:
    return _account(_found(call, "iam.serviceAccounts.get"))


def patch_account(call: Call) -> dict[str, Any]:
    body = wire.message(call.body)
    told = wire.message(body.get("serviceAccount"), "serviceAccount")
    named = wire.mask(str(body.get("updateMask", "")), COLUMNS)
    values = _texts({name: told.get(name, "") for name in named}, "serviceAccount.")
    return _updated(call, values, told.get("etag"))


def update_account(call: Call) -> dict[str, Any]:
    """PUT: the account itself as the body; what it does not name stays."""
    body = wire.message(call.body)
    return _updated(call, _texts(body, ""), body.get("etag"))


def _updated(call: Call, values: Mapping[str, str], etag: object) -> dict[str, Any]:
    account = _found(call, "iam.serviceAccounts.update")
    held = call.house.db.write(lambda tx: accounts.change(tx, account.email, values, etag=_etag_of(etag)))
    return _account(held)


def delete_account(call: Call) -> dict[str, Any]:
    account, now = _found(call, "iam.serviceAccounts.delete"), call.now
    call.house.db.write(lambda tx: accounts.delete(tx, account, now=now))
    call.house.access.forget()
    return {}


def undelete_account(call: Call) -> dict[str, Any]:
    """By its unique id; `project` must be named, for a deleted account is nobody's to look up."""
    project, name = call.path["project"], call.path["account"]
    call.need("iam.serviceAccounts.undelete", project=project)
    return {"restoredAccount": _account(call.house.db.write(lambda tx: accounts.undelete(tx, project, name)))}


def enable_account(call: Call) -> dict[str, Any]:
    return _switched(call, "iam.serviceAccounts.enable", disabled=False)


def disable_account(call: Call) -> dict[str, Any]:
    return _switched(call, "iam.serviceAccounts.disable", disabled=True)


def _switched(call: Call, permission: str, *, disabled: bool) -> dict[str, Any]:
    account = _found(call, permission)
    call.house.db.write(lambda tx: accounts.disable(tx, account, disabled))
    call.house.access.forget()
    return {}


def test_permissions(call: Call) -> dict[str, Any]:
    """Those that the caller has on an account: what its project's policy gives."""
    account = accounts.get(call.house.db, call.path["project"], call.path["account"])
    wanted = wire.strings(wire.message(call.body), "permissions")
    held = [each for each in wanted if call.may(each, project=account.project)]
    return {"permissions": held} if held else {}


# ---- keys -----------------------------------------------------------------------------------------------------------


def create_key(call: Call) -> dict[str, Any]:
    """The one time that the private half of a key is told: as the JSON file that Google's libraries read, in base64."""
    account = _found(call, "iam.serviceAccountKeys.create")
    body = wire.message(call.body)
    _only(body, "privateKeyType", FILE)
    _only(body, "keyAlgorithm", ALGORITHM)
    private, token_uri, now = keys.fresh_private(), _token_uri(call.base), call.now

    def save(tx: Any) -> tuple[dict[str, str], Key]:
        accounts.must_have_keys(tx, account)
        file = keys.create_key(tx, account.email, token_uri=token_uri, now=now, private=private)
        return file, accounts.key(tx, account.email, file["private_key_id"])

    file, held = call.house.db.write(save)
    data = base64.b64encode(msgspec.json.format(msgspec.json.encode(file), indent=2)).decode()
    return {**_key(account, held), "privateKeyType": FILE, "privateKeyData": data}


def list_keys(call: Call) -> dict[str, Any]:
    """`keyTypes=USER_MANAGED` is all there is: no key is kept for anybody."""
    account = _found(call, "iam.serviceAccountKeys.list")
    wanted = call.request.query_params.getlist("keyTypes")
    if wanted and "USER_MANAGED" not in wanted and f"KEY_TYPE{UNSAID}" not in wanted:
        return {}
    held = accounts.keys_of(call.house.db, account.email)
    return {"keys": [_key(account, each) for each in held]} if held else {}


def get_key(call: Call) -> dict[str, Any]:
    """With `publicKeyType=TYPE_RAW_PUBLIC_KEY` also its public half: PEM, in base64."""
    account, held = _found_key(call, "iam.serviceAccountKeys.get")
    asked = call.query.get("publicKeyType", "")
    if asked in ("", "TYPE_NONE"):
        return _key(account, held)
    if asked != RAW:
        raise wire.wrong("publicKeyType", f"{wire.shown(asked)} is not offered: expected {RAW} or TYPE_NONE.")
    return {**_key(account, held), "publicKeyData": base64.b64encode(held.public_key.encode()).decode()}


def delete_key(call: Call) -> dict[str, Any]:
    _, held = _found_key(call, "iam.serviceAccountKeys.delete")
    call.house.db.write(lambda tx: accounts.delete_key(tx, held))
    call.house.access.forget()
    return {}


def enable_key(call: Call) -> dict[str, Any]:
    return _switched_key(call, "iam.serviceAccountKeys.enable", disabled=False)


def disable_key(call: Call) -> dict[str, Any]:
    return _switched_key(call, "iam.serviceAccountKeys.disable", disabled=True)


def _switched_key(call: Call, permission: str, *, disabled: bool) -> dict[str, Any]:
    _, held = _found_key(call, permission)
    call.house.db.write(lambda tx: accounts.disable_key(tx, held, disabled))
    call.house.access.forget()
    return {}


# ---- credentials ----------------------------------------------------------------------------------------------------


def generate_access_token(call: Call) -> dict[str, Any]:
    """A token of another account, for whoever may act as it: an hour at most."""
    account = _found(call, "iam.serviceAccounts.getAccessToken")
    body = wire.message(call.body)
    asked = wire.strings(body, "scope")
    if not asked:
        raise wire.wrong("scope", f'is required: a list such as ["{scopes.PREFIX}{scopes.ALL}"].')
    if body.get("delegates"):
        raise wire.wrong("delegates", "chains of accounts are not offered; leave it out.")
    try:
        seconds = wire.parse_duration(body.get("lifetime") or f"{HOUR}s")
    except ValueError as error:
        raise wire.wrong("lifetime", str(error)) from error
    if not 1 <= seconds <= HOUR:
        raise wire.wrong("lifetime", f"must be from 1s to {HOUR}s.")
    member, scope = members.of_email(account.email), scopes.parse(" ".join(asked))
    token = call.house.keys.access_token(member, now=call.now, seconds=int(seconds), scope=scope)
    call.house.keys.caller(call.house.db, token, now=call.now)  # none of a disabled account
    return {"accessToken": token, "expireTime": _whole_second(int(call.now) + int(seconds))}


# ---- roles ----------------------------------------------------------------------------------------------------------


def list_roles(call: Call) -> dict[str, Any]:
    full = call.query.get("view", "").upper() == "FULL"
    size = wire.page_size(call.query, default=300, most=1000)
    after = wire.page_key(call.query, tuple[str])
    found = [name for name in sorted(roles.ROLES) if after is None or name > after[0]]
    return wire.page("roles", found[: size + 1], size, lambda name: (name,), lambda name: _role(name, full))


def get_role(call: Call) -> dict[str, Any]:
    name = f"roles/{call.path['role']}"
    if name not in roles.ROLES:
        raise errors.NotFound(f"The role named {name} was not found. There are: {', '.join(roles.ROLES)}.")
    return _role(name, full=True)


def testable_permissions(call: Call) -> dict[str, Any]:
    """Every permission that means something on the resource: `fullResourceName` as in //HOST/projects/P..."""
    body = wire.message(call.body)
    resource = str(body.get("fullResourceName", ""))
    match = re.fullmatch(r"//(\w+)\.googleapis\.com/\S+", resource)
    if match is None:
        expected = "such as //cloudresourcemanager.googleapis.com/projects/PROJECT"
        raise wire.wrong("fullResourceName", f"{wire.shown(resource)}: expected a full resource name {expected}.")
    query = {name: str(body.get(name) or "") for name in ("pageSize", "pageToken")}
    size = wire.page_size(query, default=100, most=1000)
    after = wire.page_key(query, tuple[str])
    every = sorted(set().union(*roles.ROLES.values()))
    service = match[1]
    meant = [each for each in every if service == "cloudresourcemanager" or each.startswith(f"{service}.")]
    found = [each for each in meant if after is None or each > after[0]]
    return wire.page("permissions", found[: size + 1], size, lambda each: (each,), _permission)


# ---- forms ----------------------------------------------------------------------------------------------------------


def _found(call: Call, permission: str) -> Account:
    """The account of the path, by its address or unique id, for whoever has the permission on its project."""
    account = accounts.get(call.house.db, call.path["project"], call.path["account"])
    call.path = {**call.path, "project": account.project}
    call.resource = f"projects/{account.project}/serviceAccounts/{account.email}"
    call.need(permission, project=account.project)
    return account


def _found_key(call: Call, permission: str) -> tuple[Account, Key]:
    account = _found(call, permission)
    with call.house.db.read() as rows:
        return account, accounts.key(rows, account.email, call.path["key"])


def _texts(told: Mapping[str, Any], before: str) -> dict[str, str]:
    """The columns that a message sets. Raises InvalidArgument for what is no text, or too long."""
    values = {}
    for name, column in COLUMNS.items():
        if name not in told:
            continue
        value = told[name]
        if not isinstance(value, str) or len(value) > LONGEST[name]:
            raise wire.wrong(before + name, f"must be a text of at most {LONGEST[name]} characters.")
        values[column] = value
    return values


def _only(body: Mapping[str, Any], field: str, offered: str) -> None:
    told = body.get(field) or offered
    if told != offered and not str(told).endswith(UNSAID):
        raise wire.wrong(field, f"{wire.shown(told)} is not offered: expected {offered}.")


def _etag_of(told: object) -> bytes | None:
    try:
        return base64.b64decode(str(told), validate=True) if told else None
    except ValueError as error:
        raise wire.wrong("etag", "must be the etag that was read, unchanged.") from error


def _token_uri(base: str) -> str:
    """Where the account's key is turned into tokens: here; where we are reached by Google's names, at Google's."""
    host = base.partition("://")[2].partition(":")[0]
    return "https://oauth2.googleapis.com/token" if host.endswith(".googleapis.com") else f"{base}/token"


def _account(account: Account) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": f"projects/{account.project}/serviceAccounts/{account.email}",
        "projectId": account.project,
        "uniqueId": account.unique_id,
        "email": account.email,
        "etag": base64.b64encode(account.etag).decode(),
        "oauth2ClientId": account.unique_id,
    }
    told |= {name: getattr(account, column) for name, column in COLUMNS.items() if getattr(account, column)}
    return {**told, "disabled": True} if account.disabled else told


def _key(account: Account, held: Key) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": f"projects/{account.project}/serviceAccounts/{account.email}/keys/{held.id}",
        "keyAlgorithm": ALGORITHM,
        "validAfterTime": _whole_second(held.created),
        "validBeforeTime": FOREVER,
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "USER_MANAGED",
    }
    return {**told, "disabled": True} if held.disabled else told


def _role(name: str, full: bool) -> dict[str, Any]:
    words = re.sub(r"([A-Z])", r" \1", name.removeprefix("roles/").replace(".", " "))
    told: dict[str, Any] = {"name": name, "title": words.title(), "stage": "GA", "etag": "AA=="}
    return {**told, "includedPermissions": sorted(roles.ROLES[name])} if full else told


def _permission(name: str) -> dict[str, Any]:
    return {"name": name, "stage": "GA", "customRolesSupportLevel": "NOT_SUPPORTED"}


def _whole_second(seconds: float) -> str:
    return f"{wire.timestamp(float(int(seconds)))[:19]}Z"


ROUTES = [
    Route("GET", ACCOUNTS, "iam.serviceAccounts.list", list_accounts),
    Route("POST", ACCOUNTS, "iam.serviceAccounts.create", create_account),
    # What names one account may leave its project open (`-`): the functions ask for the permission once they know it.
    Route("GET", ACCOUNT, SIGNED_IN, get_account),
    Route("PATCH", ACCOUNT, SIGNED_IN, patch_account),
    Route("PUT", ACCOUNT, SIGNED_IN, update_account),
    Route("DELETE", ACCOUNT, SIGNED_IN, delete_account),
    Route("POST", f"{ACCOUNT}:undelete", SIGNED_IN, undelete_account),
    Route("POST", f"{ACCOUNT}:enable", SIGNED_IN, enable_account),
    Route("POST", f"{ACCOUNT}:disable", SIGNED_IN, disable_account),
    Route("POST", f"{ACCOUNT}:testIamPermissions", SIGNED_IN, test_permissions),
    Route("POST", f"{ACCOUNT}:generateAccessToken", SIGNED_IN, generate_access_token),
    Route("GET", KEYS, SIGNED_IN, list_keys),
    Route("POST", KEYS, SIGNED_IN, create_key),
    Route("GET", KEY, SIGNED_IN, get_key),
    Route("DELETE", KEY, SIGNED_IN, delete_key),
    Route("POST", f"{KEY}:enable", SIGNED_IN, enable_key),
    Route("POST", f"{KEY}:disable", SIGNED_IN, disable_key),
    Route("GET", "/v1/roles", SIGNED_IN, list_roles),
    Route("GET", "/v1/roles/{role}", SIGNED_IN, get_role),
    Route("POST", "/v1/permissions:queryTestablePermissions", SIGNED_IN, testable_permissions),
]
