"""OAuth's endpoints as Google's own clients use them; and every token that must not be believed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid

import google.auth.transport.requests
import google.oauth2.credentials
import httpx
import jwt
import pytest
import requests
import sqlalchemy as sa
from google.auth import exceptions, impersonated_credentials
from google.oauth2 import service_account

from taxiway.db.tables import refresh_tokens
from taxiway.iam import keys, logins
from taxiway.iam.scopes import PREFIX

NOW = 1_800_000_000.0
PASSWORD = "correct horse"
ALL = f"{PREFIX}cloud-platform"
WRONG = f"No such thing {uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def person(server):
    email = f"tok-{uuid.uuid4().hex[:8]}@example.com"
    made = server.call("POST", "/taxiway/v1/users", json={"email": email, "password": PASSWORD})
    assert made.status_code == 200, made.text
    return email


@pytest.fixture
def login(server, person):
    answer = server.http.post("/token", data={"grant_type": "password", "username": person, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
def account(server):
    """A new service account with a key: (email, the key's file as a dictionary)."""
    name = f"tok-{uuid.uuid4().hex[:8]}"
    path = f"/v1/projects/{server.project}/serviceAccounts"
    made = server.call("POST", path, json={"accountId": name, "serviceAccount": {"displayName": "Tokens"}})
    assert made.status_code == 200, made.text
    email = made.json()["email"]
    key = server.call("POST", f"{path}/{email}/keys", json={})
    assert key.status_code == 200, key.text
    return email, json.loads(
        jwt.utils.base64url_decode(key.json()["privateKeyData"].replace("+", "-").replace("/", "_"))
    )


@pytest.fixture
def transport():
    session = requests.Session()
    session.trust_env = False
    yield google.auth.transport.requests.Request(session)
    session.close()


def status(server, token):
    return server.http.get("/v1/projects", headers={"Authorization": f"Bearer {token}"}).status_code


def info(server, token):
    return server.http.get("/tokeninfo", params={"access_token": token})


# --- Google's own clients ---


def test_google_auth_refreshes_a_login(server, person, login, transport):
    made = google.oauth2.credentials.Credentials(
        None,
        refresh_token=login["refresh_token"],
        token_uri=f"{server.url}/token",
        client_id="any",
        client_secret="any",
        scopes=[ALL],
    )
    made.refresh(transport)
    assert made.valid
    assert made.granted_scopes == [ALL]
    assert info(server, made.token).json()["email"] == person


def test_google_auth_reads_an_authorized_user_file(server, login, transport):
    """As gcloud's well-known file is; its token_uri is Google's, which only an interception leads here."""
    told = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": login["refresh_token"]}
    made = google.oauth2.credentials.Credentials.from_authorized_user_info(told)
    made._token_uri = f"{server.url}/token"
    made.refresh(transport)
    assert status(server, made.token) == 200


def test_google_auth_turns_a_key_into_tokens(server, account, transport):
    email, key = account
    made = service_account.Credentials.from_service_account_info(key, scopes=[f"{PREFIX}devstorage.read_only"])
    made.refresh(transport)
    told = info(server, made.token).json()
    assert (told["email"], told["scope"]) == (email, f"{PREFIX}devstorage.read_only")
    assert 3500 < int(told["expires_in"]) <= 3600


def test_google_auth_signs_its_own_token_with_a_scope(server, account, transport):
    email, key = account
    made = service_account.Credentials.from_service_account_info(key, always_use_jwt_access=True)
    made = made.with_scopes([f"{PREFIX}logging.read"])
    made._create_self_signed_jwt(None)
    made.refresh(transport)
    told = info(server, made.token).json()
    assert (told["email"], told["scope"]) == (email, f"{PREFIX}logging.read")


def test_google_auth_acts_as_another_account(server, account, transport):
    email, key = account
    source = service_account.Credentials.from_service_account_info(json.loads(server.key.read_text()), scopes=[ALL])
    made = impersonated_credentials.Credentials(
        source,
        target_principal=email,
        target_scopes=[f"{PREFIX}devstorage.read_only"],
        lifetime=600,
        iam_endpoint_override=f"{server.url}/v1/projects/-/serviceAccounts/{email}:generateAccessToken",
    )
    made.refresh(transport)
    told = info(server, made.token).json()
    assert (told["email"], told["scope"]) == (email, f"{PREFIX}devstorage.read_only")
    assert 500 < int(told["expires_in"]) <= 600
    stranger = service_account.Credentials.from_service_account_info(key, scopes=[ALL])
    other = impersonated_credentials.Credentials(
        stranger,
        target_principal=f"owner@{server.project}.iam.gserviceaccount.com",
        target_scopes=[ALL],
        iam_endpoint_override=f"{server.url}/v1/projects/-/serviceAccounts/"
        f"owner@{server.project}.iam.gserviceaccount.com:generateAccessToken",
    )
    with pytest.raises(exceptions.RefreshError, match=r"iam\.serviceAccounts\.getAccessToken"):
        other.refresh(transport)


def test_oauth2client_turns_a_key_into_tokens(server, account, tmp_path):
    email, key = account
    (tmp_path / "key.json").write_text(json.dumps(key))
    program = (
        "import sys, httplib2\n"
        "from oauth2client.service_account import ServiceAccountCredentials as Credentials\n"
        "made = Credentials.from_json_keyfile_name(sys.argv[1], scopes=sys.argv[2:])\n"
        "made.refresh(httplib2.Http(proxy_info=None))\n"
        "print(made.access_token)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "key.json"), ALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert info(server, done.stdout.strip()).json().get("email") == email, done.stderr


# --- the endpoints ---


def test_a_refresh_token_may_ask_for_less_and_never_for_more(server, person):
    form = {"grant_type": "password", "username": person, "password": PASSWORD}
    narrow = f"{PREFIX}devstorage.read_only {PREFIX}logging.read"
    told = server.http.post("/token", data={**form, "scope": narrow}).json()
    refresh = {"grant_type": "refresh_token", "refresh_token": told["refresh_token"]}
    assert server.http.post("/token", data=refresh).json()["scope"] == narrow
    less = server.http.post("/token", data={**refresh, "scope": f"{PREFIX}logging.read"}).json()
    assert less["scope"] == f"{PREFIX}logging.read"
    more = server.http.post("/token", data={**refresh, "scope": ALL})
    assert (more.status_code, more.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/revoke", "/o/oauth2/revoke"])
@pytest.mark.parametrize("kind", ["refresh_token", "access_token"])
def test_revoking_either_token_ends_the_login_at_once(server, login, path, kind):
    refresh = {"grant_type": "refresh_token", "refresh_token": login["refresh_token"]}
    later = server.http.post("/token", data=refresh).json()["access_token"]
    assert status(server, login["access_token"]) == status(server, later) == 200
    assert server.http.post(path, data={"token": login[kind]}).status_code == 200
    assert status(server, login["access_token"]) == status(server, later) == 401
    assert server.http.post("/token", data=refresh).json()["error"] == "invalid_grant"
    again = server.http.post(path, params={"token": login[kind]})
    assert (again.status_code, again.json()["error"]) == (400, "invalid_token")


def test_a_token_without_a_login_cannot_be_revoked_and_that_is_said(server):
    answer = server.http.post("/revoke", data={"token": server.token})
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_token_type")
    assert status(server, server.token) == 200


def test_a_token_says_whose_it_is(server, person, login):
    token = login["access_token"]
    told = server.http.get("/oauth2/v1/tokeninfo", params={"access_token": token}).json()
    assert (told["email"], told["scope"], told["verified_email"]) == (person, ALL, True)
    assert 0 < told["expires_in"] <= 3600
    three = server.http.post("/tokeninfo", data={"access_token": token}).json()
    assert int(three["exp"]) - time.time() == pytest.approx(int(three["expires_in"]), abs=5)
    mine = {"Authorization": f"Bearer {token}"}
    assert server.http.get("/oauth2/v3/userinfo", headers=mine).json()["sub"] == person
    assert server.http.get("/oauth2/v1/userinfo", headers=mine).json()["email"] == person
    assert server.http.get("/oauth2/v1/userinfo").status_code == 401
    for wrong in ("", "x", f"{token}x"):
        answer = info(server, wrong)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_token")


BAD = [
    {},
    {"grant_type": "authorization_code", "code": "x"},
    {"grant_type": "refresh_token"},
    {"grant_type": "refresh_token", "refresh_token": WRONG},
    {"grant_type": "password", "username": "x"},
    {"grant_type": "password", "username": "nobody@example.com", "password": WRONG},
    {"grant_type": keys.JWT_GRANT},
    {"grant_type": keys.JWT_GRANT, "assertion": WRONG},
]


@pytest.mark.parametrize("form", BAD)
def test_a_grant_that_does_not_hold_is_refused_in_oauths_shape(server, form):
    for sent in ({"data": form}, {"json": form}):
        answer = server.http.post("/token", **sent)
        assert answer.status_code == 400
        assert answer.json()["error"] in ("unsupported_grant_type", "invalid_grant", "invalid_request")
        assert answer.json()["error_description"]
        assert WRONG not in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"7", b'"x"', b"\xff\xfe=&=&%zz", b"grant_type=" + b"x" * 99_999]
)
def test_bytes_that_are_no_form_are_refused(server, body):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/token", "/revoke", "/tokeninfo"):
        answer = server.http.post(path, content=body, headers=form)
        assert answer.status_code == 400, answer.text
        assert len(answer.content) < 2000


# --- tokens that must not be believed ---


def signed(key, **claims):
    now = time.time()
    told = {"iss": key["client_email"], "sub": key["client_email"], "aud": "x", "iat": now, "exp": now + 3600, **claims}
    return jwt.encode(told, key["private_key"], algorithm="RS256", headers={"kid": key["private_key_id"]})


def test_forged_expired_and_foreign_tokens_are_refused(server, account, start_server):
    _, key = account
    now = time.time()
    assert status(server, signed(key)) == 200
    head, claims, mark = server.token.split(".")
    other = start_server()
    foreign_key = json.loads(other.key.read_text())
    wrong = {
        "alg=none": jwt.encode({"iss": "taxiway", "sub": "user:x@y.z", "exp": now + 60}, "", algorithm="none"),
        "another secret": keys.Keys(b"x" * 32).access_token("user:x@y.z", now=now),
        "no signature": f"{head}.{claims}.",
        "a cut signature": f"{head}.{claims}.{mark[:-4]}",
        "another server's token": other.token,
        "another server's key": signed(foreign_key),
        "an expired JWT": signed(key, iat=now - 7200, exp=now - 3600),
        "a JWT of two hours": signed(key, exp=now + 7200),
        "a JWT from the future": signed(key, iat=now + 7200, exp=now + 7200),
        "a JWT in another's name": signed(key, sub=server.address.owner),
        "a JWT by another": signed(key, iss=server.address.service_agent),
        "a JWT of another server's owner": signed(key, iss=foreign_key["client_email"]),
    }
    for name, token in wrong.items():
        assert status(server, token) == 401, name
        grant = {"grant_type": keys.JWT_GRANT, "assertion": token}
        assert server.http.post("/token", data=grant).json()["error"] == "invalid_grant", name
        assert info(server, token).status_code == 400, name


def test_the_keys_of_one_account_say_nothing_for_another_project(server, account):
    """A key of this project's account: known, and allowed nothing that was not granted."""
    _, key = account
    mine = {"Authorization": f"Bearer {signed(key)}"}
    project = f"other-{uuid.uuid4().hex[:8]}"
    assert server.call("POST", "/v1/projects", json={"projectId": project}).status_code == 200
    for path in (f"/v1/projects/{project}", f"/v1/projects/{server.project}"):
        assert server.http.get(path, headers=mine).status_code == 403


@pytest.mark.parametrize("end", ["disabled key", "deleted key", "disabled account", "deleted account"])
def test_tokens_end_at_once_with_their_key_and_their_account(server, account, end):
    email, key = account
    grant = {"grant_type": keys.JWT_GRANT, "assertion": signed(key)}
    held = [signed(key), server.http.post("/token", data=grant).json()["access_token"]]
    assert [status(server, each) for each in held] == [200, 200]
    path = f"/v1/projects/-/serviceAccounts/{email}"
    path += f"/keys/{key['private_key_id']}" if "key" in end else ""
    ended = server.call("DELETE", path) if "deleted" in end else server.call("POST", f"{path}:disable", json={})
    assert ended.status_code == 200, ended.text
    assert [status(server, each) for each in held] == [401, 401]
    assert server.http.post("/token", data=grant).json()["error"] == "invalid_grant"
    if "disabled" in end:
        assert server.call("POST", f"{path}:enable", json={}).status_code == 200
        assert [status(server, each) for each in held] == [200, 200]


def test_a_token_of_a_deleted_account_stays_dead_when_its_name_comes_back(server, account):
    email, key = account
    held = server.http.post("/token", data={"grant_type": keys.JWT_GRANT, "assertion": signed(key)}).json()
    unique = server.call("GET", f"/v1/projects/-/serviceAccounts/{email}").json()["uniqueId"]
    assert server.call("DELETE", f"/v1/projects/-/serviceAccounts/{email}").status_code == 200
    path = f"/v1/projects/{server.project}/serviceAccounts"
    taken = server.call("POST", path, json={"accountId": email.partition("@")[0]})
    assert (taken.status_code, taken.json()["error"]["status"]) == (409, "ALREADY_EXISTS")
    back = server.call("POST", f"{path}/{unique}:undelete", json={})
    assert back.json()["restoredAccount"]["email"] == email
    assert status(server, held["access_token"]) == 401  # its key is gone
    assert status(server, signed(key)) == 401


# --- rows ---


def test_a_refresh_token_is_kept_as_a_hash(db):
    token, login = db.write(lambda tx: logins.begin(tx, "user:a@b.c", "cloud-platform", now=NOW))
    with db.read() as rows:
        kept = [str(value) for row in rows.execute(sa.select(refresh_tokens)) for value in row]
    assert login.id in kept
    assert not any(token in value for value in kept)
    assert logins.of(db, token, now=NOW + 1).member == "user:a@b.c"


def test_a_clock_that_is_put_back_does_no_harm(db):
    held = keys.Keys(b"s" * 32)
    token, login = db.write(lambda tx: logins.begin(tx, "user:a@b.c", "cloud-platform", now=NOW))
    access = held.access_token("user:a@b.c", now=NOW, source=keys.Source(login=login.id))
    for now in (NOW - 3600, NOW, NOW - 3600):
        assert held.caller(db, access, now=now).member == "user:a@b.c"
        assert logins.of(db, token, now=now).id == login.id
    db.write(lambda tx: logins.end(tx, login.id))
    with pytest.raises(Exception, match="revoked"):
        held.caller(db, access, now=NOW - 3600)


# --- what is written down ---


def test_no_secret_is_in_the_log_or_the_database(start_server):
    """A life of logins, keys and tokens, also those that fail; then everything that was written is searched."""
    running = start_server()
    secret, other = f"pass word {uuid.uuid4().hex}", f"wrong word {uuid.uuid4().hex}"
    email = "ann@example.com"
    assert running.call("POST", "/taxiway/v1/users", json={"email": email, "password": secret}).status_code == 200
    form = {"grant_type": "password", "username": email}
    running.http.post("/token", data={**form, "password": other})
    told = running.http.post("/token", data={**form, "password": secret}).json()
    running.http.post("/token", content=b"{" + other.encode(), headers={"Content-Type": "application/json"})
    running.http.post(f"/token?password={other}")
    running.http.get("/tokeninfo", params={"access_token": told["access_token"]})
    running.http.get("/v1/projects", params={"access_token": told["access_token"]})
    running.http.get("/v1/projects", headers={"Authorization": f"Bearer {told['access_token']}x"})
    path = f"/v1/projects/{running.project}/serviceAccounts"
    made = running.call("POST", path, json={"accountId": "trainer"}).json()
    file = running.call("POST", f"{path}/{made['email']}/keys", json={}).json()["privateKeyData"]
    key = json.loads(jwt.utils.base64url_decode(file.replace("+", "-").replace("/", "_")))
    assertion = signed(key)
    access = running.http.post("/token", data={"grant_type": keys.JWT_GRANT, "assertion": assertion}).json()
    running.http.post("/revoke", data={"token": told["refresh_token"]})
    assert running.stop() == 0
    secrets = [secret, other, told["refresh_token"], file[100:180], assertion, access["access_token"]]
    secrets += [told["access_token"], *(line for line in key["private_key"].splitlines() if len(line) == 64)]
    written = [running.log.encode(), *(each.read_bytes() for each in running.home.glob("*.db*"))]
    for each in secrets:
        assert not any(each.encode() in text for text in written), each


def test_httpx_is_kept_honest(server):
    """A bearer in the query is taken too, as Google takes it; one that is wrong is refused."""
    assert httpx.get(f"{server.url}/v1/projects", params={"access_token": server.token}).status_code == 200
    assert httpx.get(f"{server.url}/v1/projects", params={"access_token": "x"}).status_code == 401
