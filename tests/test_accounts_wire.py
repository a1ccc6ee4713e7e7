"""IAM v1 and Resource Manager on the wire, by hand, by command and by gcloud: accounts, keys, roles, projects."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid

import jwt
import pytest
from commands import Commands
from cryptography.hazmat.primitives import serialization

from taxiway.iam import roles

NEEDS_GCLOUD = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")


@pytest.fixture(scope="module")
def base(server):
    return f"/v1/projects/{server.project}/serviceAccounts"


@pytest.fixture
def account(server, base):
    """A new service account: its resource."""
    body = {"accountId": f"acc-{uuid.uuid4().hex[:8]}", "serviceAccount": {"displayName": "One", "description": "two"}}
    made = server.call("POST", base, json=body)
    assert made.status_code == 200, made.text
    return made.json()


@pytest.fixture(scope="module")
def as_role(server):
    """The headers of a new user who has one role in the project."""
    held = {}

    def headers(role):
        if role not in held:
            email = f"{uuid.uuid4().hex[:12]}@example.com"
            body = {"email": email, "password": "correct horse"}
            assert server.call("POST", "/taxiway/v1/users", json=body).status_code == 200
            path = f"/v1/projects/{server.project}"
            policy = server.call("POST", f"{path}:getIamPolicy", json={}).json()
            policy["bindings"].append({"role": role, "members": [f"user:{email}"]})
            assert server.call("POST", f"{path}:setIamPolicy", json={"policy": policy}).status_code == 200
            form = {"grant_type": "password", "username": email, "password": "correct horse"}
            held[role] = {"Authorization": f"Bearer {server.http.post('/token', data=form).json()['access_token']}"}
        return held[role]

    return headers


def refusal(answer):
    return answer.status_code, answer.json()["error"]["status"]


# --- accounts ---


def test_an_account_is_made_read_changed_and_deleted(server, base, account):
    email = account["email"]
    assert account["name"] == f"projects/{server.project}/serviceAccounts/{email}"
    assert (account["displayName"], account["description"], account["projectId"]) == ("One", "two", server.project)
    assert account["uniqueId"].isdigit()
    base64.b64decode(account["etag"], validate=True)
    for path in (f"{base}/{email}", f"{base}/{account['uniqueId']}", f"/v1/projects/-/serviceAccounts/{email}"):
        assert server.call("GET", path).json() == account
    body = {"serviceAccount": {"displayName": "Three", "etag": account["etag"]}, "updateMask": "displayName"}
    changed = server.call("PATCH", f"{base}/{email}", json=body).json()
    assert (changed["displayName"], changed["description"]) == ("Three", "two")
    assert refusal(server.call("PATCH", f"{base}/{email}", json=body)) == (409, "ABORTED")  # that etag is an old one
    put = server.call("PUT", f"{base}/{email}", json={"description": "four"}).json()
    assert (put["displayName"], put["description"]) == ("Three", "four")
    assert server.call("POST", f"{base}/{email}:disable", json={}).json() == {}
    assert server.call("GET", f"{base}/{email}").json()["disabled"] is True
    server.call("POST", f"{base}/{email}:enable", json={})
    assert "disabled" not in server.call("GET", f"{base}/{email}").json()
    assert server.call("DELETE", f"{base}/{email}").json() == {}
    assert refusal(server.call("GET", f"{base}/{email}")) == (404, "NOT_FOUND")
    assert refusal(server.call("DELETE", f"{base}/{email}")) == (404, "NOT_FOUND")


def test_accounts_are_listed_in_pages(server, base, account):
    seen, token = [], ""
    while True:
        page = server.call("GET", base, params={"pageSize": 2, "pageToken": token}).json()
        seen += [each["email"] for each in page["accounts"]]
        token = page.get("nextPageToken")
        if not token:
            break
    assert account["email"] in seen
    assert seen == sorted(set(seen))
    assert server.call("GET", base, params={"pageToken": "?"}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {},
        {"accountId": "short"},
        {"accountId": "owner"},
        {"accountId": "Upper-Case"},
        {"accountId": "x" * 31},
        {"accountId": "trail-ing-"},
        {"accountId": "a@b.c.d.e"},
        {"accountId": "line-end\n"},
        {"accountId": ["a-list"]},
        {"accountId": "good-name", "serviceAccount": []},
        {"accountId": "good-name", "serviceAccount": {"displayName": 7}},
        {"accountId": "good-name", "serviceAccount": {"displayName": "x" * 101}},
        {"accountId": "good-name", "serviceAccount": {"description": "x" * 257}},
    ],
)
def test_a_malformed_account_is_refused_and_leaves_nothing(server, base, body):
    before = server.call("GET", base, params={"pageSize": 100}).json()
    assert refusal(server.call("POST", base, json=body)) == (400, "INVALID_ARGUMENT")
    assert server.call("GET", base, params={"pageSize": 100}).json() == before


def test_a_name_is_given_once(server, base, account):
    body = {"accountId": account["email"].partition("@")[0]}
    assert refusal(server.call("POST", base, json=body)) == (409, "ALREADY_EXISTS")


def test_the_house_s_own_accounts_are_not_lost_by_mistake(server, base):
    agent, owner = server.address.service_agent, f"owner@{server.project}.iam.gserviceaccount.com"
    for email in (agent, owner):
        assert refusal(server.call("DELETE", f"{base}/{email}")) == (400, "FAILED_PRECONDITION")
        assert refusal(server.call("POST", f"{base}/{email}:disable", json={})) == (400, "FAILED_PRECONDITION")
    assert refusal(server.call("POST", f"{base}/{agent}/keys", json={})) == (400, "FAILED_PRECONDITION")


def test_an_account_of_another_project_is_not_found_here(server, account):
    project = f"else-{uuid.uuid4().hex[:8]}"
    assert server.call("POST", "/v1/projects", json={"projectId": project}).status_code == 200
    path = f"/v1/projects/{project}/serviceAccounts/{account['email']}"
    assert refusal(server.call("GET", path)) == (404, "NOT_FOUND")
    assert refusal(server.call("DELETE", path)) == (404, "NOT_FOUND")


# --- who may ---

ADMIN = "roles/iam.serviceAccountAdmin"


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("roles/viewer", {"get", "list", "keys"}),
        ("roles/editor", {"get", "list", "keys", "disable", "patch"}),
        (ADMIN, {"get", "list", "disable", "patch"}),
        ("roles/iam.serviceAccountKeyAdmin", {"get", "list", "keys", "key"}),
        ("roles/iam.serviceAccountTokenCreator", {"get", "list", "token"}),
        ("roles/iam.serviceAccountUser", {"get", "list"}),
        ("roles/storage.admin", set()),
    ],
)
def test_each_role_does_what_it_says_and_nothing_else(server, base, account, as_role, role, may):
    one = f"{base}/{account['email']}"
    anywhere = f"/v1/projects/-/serviceAccounts/{account['email']}"
    asked = {
        "get": ("GET", anywhere, None),
        "list": ("GET", base, None),
        "keys": ("GET", f"{one}/keys", None),
        "patch": ("PATCH", one, {"serviceAccount": {"displayName": "x"}, "updateMask": "displayName"}),
        "key": ("POST", f"{one}/keys", {}),
        "token": ("POST", f"{anywhere}:generateAccessToken", {"scope": ["openid"]}),
        "disable": ("POST", f"{one}:disable", {}),
    }
    codes = {name: server.http.request(*rest[:2], headers=as_role(role), json=rest[2]) for name, rest in asked.items()}
    assert {name for name, answer in codes.items() if answer.status_code == 200} == may
    for name, answer in codes.items():
        if name not in may:
            assert answer.status_code == 403, name
            assert "taxiway projects add-iam-policy-binding" in answer.text
            assert server.http.request(*asked[name][:2], json=asked[name][2]).status_code == 401, name


def test_one_is_told_what_one_may(server, account, as_role):
    path = f"/v1/projects/-/serviceAccounts/{account['email']}:testIamPermissions"
    body = {"permissions": ["iam.serviceAccounts.get", "iam.serviceAccounts.delete", "no.such.thing"]}
    told = server.http.post(path, headers=as_role("roles/viewer"), json=body).json()
    assert told == {"permissions": ["iam.serviceAccounts.get"]}
    assert server.call("POST", path, json={"permissions": "x"}).status_code == 400


# --- keys ---


def test_a_key_is_told_once_and_its_public_half_stays(server, base, account):
    path = f"{base}/{account['email']}/keys"
    made = server.call("POST", path, json={"privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE"}).json()
    file = json.loads(base64.b64decode(made["privateKeyData"]))
    assert file["type"] == "service_account"
    assert (file["client_email"], file["token_uri"]) == (account["email"], f"{server.url}/token")
    assert made["name"] == f"projects/{server.project}/serviceAccounts/{account['email']}/keys/{file['private_key_id']}"
    (listed,) = server.call("GET", path).json()["keys"]
    assert listed["keyAlgorithm"] == "KEY_ALG_RSA_2048"
    assert listed["keyType"] == "USER_MANAGED"
    assert listed["validAfterTime"] < listed["validBeforeTime"]
    assert "privateKeyData" not in listed
    one = f"/v1/{made['name']}"
    raw = server.call("GET", one, params={"publicKeyType": "TYPE_RAW_PUBLIC_KEY"}).json()["publicKeyData"]
    public = serialization.load_pem_public_key(base64.b64decode(raw))
    mine = jwt.encode({"a": 1}, file["private_key"], algorithm="RS256")
    assert jwt.decode(mine, public, algorithms=["RS256"]) == {"a": 1}
    assert server.call("GET", one, params={"publicKeyType": "TYPE_X509_PEM_FILE"}).status_code == 400
    assert server.call("GET", path, params={"keyTypes": "SYSTEM_MANAGED"}).json() == {}
    server.call("POST", f"{one}:disable", json={})
    assert server.call("GET", one).json()["disabled"] is True
    server.call("POST", f"{one}:enable", json={})
    assert server.call("DELETE", one).json() == {}
    assert server.call("GET", path).json() == {}
    assert refusal(server.call("DELETE", one)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "body", [{"privateKeyType": "TYPE_PKCS12_FILE"}, {"keyAlgorithm": "KEY_ALG_RSA_1024"}, [], "x"]
)
def test_a_key_of_another_kind_is_refused(server, base, account, body):
    path = f"{base}/{account['email']}/keys"
    assert refusal(server.call("POST", path, json=body)) == (400, "INVALID_ARGUMENT")
    assert server.call("GET", path).json() == {}


def test_a_key_of_another_account_is_not_found(server, base, account):
    other = server.call("POST", base, json={"accountId": f"acc-{uuid.uuid4().hex[:8]}"}).json()["email"]
    name = server.call("POST", f"{base}/{other}/keys", json={}).json()["name"].rpartition("/")[2]
    path = f"{base}/{account['email']}/keys/{name}"
    for method, wanted in (("GET", path), ("DELETE", path), ("POST", f"{path}:disable")):
        assert refusal(server.call(method, wanted)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "x"},
        {"scope": ["openid"], "lifetime": "7200s"},
        {"scope": ["openid"], "lifetime": "-1s"},
        {"scope": ["openid"], "lifetime": "soon"},
        {"scope": ["openid"], "delegates": ["x"]},
        [],
    ],
)
def test_a_malformed_wish_for_a_token_is_refused(server, account, body):
    path = f"/v1/projects/-/serviceAccounts/{account['email']}:generateAccessToken"
    assert refusal(server.call("POST", path, json=body)) == (400, "INVALID_ARGUMENT")


# --- roles ---


def test_every_role_is_listed_with_what_is_in_it(server):
    seen, token = {}, ""
    while True:
        page = server.call("GET", "/v1/roles", params={"view": "FULL", "pageSize": 5, "pageToken": token}).json()
        seen |= {each["name"]: each["includedPermissions"] for each in page["roles"]}
        token = page.get("nextPageToken")
        if not token:
            break
    assert seen == {name: sorted(held) for name, held in roles.ROLES.items()}
    one = server.call("GET", "/v1/roles/ml.developer").json()
    assert (one["name"], one["title"]) == ("roles/ml.developer", "Ml Developer")
    assert "includedPermissions" not in server.call("GET", "/v1/roles").json()["roles"][0]
    assert refusal(server.call("GET", "/v1/roles/no.such")) == (404, "NOT_FOUND")


def test_the_permissions_that_mean_something_somewhere_are_told(server):
    path = "/v1/permissions:queryTestablePermissions"
    body = {"fullResourceName": f"//ml.googleapis.com/projects/{server.project}", "pageSize": 1000}
    told = [each["name"] for each in server.call("POST", path, json=body).json()["permissions"]]
    assert "ml.jobs.create" in told
    assert all(each.startswith("ml.") for each in told)
    for wrong in ({}, {"fullResourceName": "projects/x"}, []):
        assert refusal(server.call("POST", path, json=wrong)) == (400, "INVALID_ARGUMENT")


# --- projects ---


def test_a_project_is_made_by_an_operation_that_is_done(server):
    project = f"made-{uuid.uuid4().hex[:8]}"
    made = server.call("POST", "/v1/projects", json={"projectId": project, "name": "Made 'here'"}).json()
    assert made["done"] is True
    held = made["response"]
    assert (held["projectId"], held["name"], held["lifecycleState"]) == (project, "Made 'here'", "ACTIVE")
    assert server.call("GET", f"/v1/{made['name']}").json() == made
    by_number = server.call("GET", f"/v1/projects/{held['projectNumber']}").json()
    assert by_number["projectId"] == project
    policy = server.call("POST", f"/v1/projects/{project}:getIamPolicy", json={}).json()
    assert policy["bindings"] == [{"role": "roles/owner", "members": [f"user:{server.address.owner}"]}]
    renamed = server.call("PUT", f"/v1/projects/{project}", json={"name": "Renamed"}).json()
    assert renamed["name"] == "Renamed"
    assert server.call("GET", f"/v3/projects/{project}").json()["displayName"] == "Renamed"
    ancestor = server.call("POST", f"/v1/projects/{project}:getAncestry", json={}).json()["ancestor"]
    assert ancestor == [{"resourceId": {"type": "project", "id": project}}]
    again = server.call("POST", "/v1/projects", json={"projectId": project})
    assert refusal(again) == (409, "ALREADY_EXISTS")
    agent = server.call("GET", f"/v1/projects/{project}:getConfig").json()["serviceAccount"]
    assert held["projectNumber"] in agent


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"projectId": "x"},
        {"projectId": "Upper-Case"},
        {"projectId": 7},
        {"projectId": "good-id", "name": "<b>"},
    ],
)
def test_a_malformed_project_is_refused(server, body):
    assert refusal(server.call("POST", "/v1/projects", json=body)) == (400, "INVALID_ARGUMENT")


def test_only_owners_of_the_first_project_make_projects(server, as_role):
    body = {"projectId": f"mine-{uuid.uuid4().hex[:8]}"}
    answer = server.http.post("/v1/projects", headers=as_role("roles/editor"), json=body)
    assert answer.status_code == 403
    assert "resourcemanager.projects.create" in answer.text
    assert server.http.post("/v1/projects", json=body).status_code == 401
    mine = as_role("roles/owner")
    assert server.http.post("/v1/projects", headers=mine, json=body).status_code == 200
    listed = server.http.get("/v1/projects", headers=as_role("roles/editor")).json()["projects"]
    assert [each["projectId"] for each in listed] == [server.project]  # one does not see what is not shared
    operation = server.http.get("/v1/operations/cp.1", headers=mine)
    assert refusal(operation) == (404, "NOT_FOUND")


def test_projects_are_filtered_and_listed_in_pages(server):
    mark = uuid.uuid4().hex[:8]
    for number in range(3):
        body = {"projectId": f"page-{mark}-{number}", "name": f"Ride {number}"}
        assert server.call("POST", "/v1/projects", json=body).status_code == 200

    def ids(**query):
        return [
            each["projectId"] for each in server.call("GET", "/v1/projects", params=query).json().get("projects", [])
        ]

    assert ids(filter=f"id:page-{mark}-*") == [f"page-{mark}-{number}" for number in range(3)]
    assert ids(filter=f"id:page-{mark}-1") == [f"page-{mark}-1"]
    assert ids(filter=f'id=page-{mark}-* AND name:"ride 2"') == [f"page-{mark}-2"]
    assert ids(filter=f"id:page-{mark}-0 OR id:page-{mark}-2") == [f"page-{mark}-0", f"page-{mark}-2"]
    assert ids(filter=f"(lifecycleState:ACTIVE) AND labels.x:y AND id:page-{mark}-1") == [f"page-{mark}-1"]
    assert ids(filter="lifecycleState:DELETE_REQUESTED") == []
    assert server.project in ids()
    first = server.call("GET", "/v1/projects", params={"pageSize": 2, "filter": f"id:page-{mark}-*"}).json()
    assert len(first["projects"]) == 2
    query = {"pageSize": 2, "filter": f"id:page-{mark}-*", "pageToken": first["nextPageToken"]}
    rest = server.call("GET", "/v1/projects", params=query).json()
    assert [each["projectId"] for each in rest["projects"]] == [f"page-{mark}-2"]
    assert "nextPageToken" not in rest


def test_one_is_told_what_one_may_in_a_project(server, as_role):
    path = f"/v1/projects/{server.project}:testIamPermissions"
    body = {"permissions": ["ml.jobs.get", "ml.jobs.create", "taxiway.users.admin"]}
    assert server.http.post(path, headers=as_role("roles/viewer"), json=body).json() == {"permissions": ["ml.jobs.get"]}
    assert server.call("POST", path, json=body).json() == body


# --- the command line ---


def test_accounts_and_keys_go_their_way_by_command(server, tmp_path):
    name = f"cli-{uuid.uuid4().hex[:8]}"
    email, file = f"{name}@{server.project}.iam.gserviceaccount.com", tmp_path / "key.json"
    accounts = ("iam", "service-accounts")
    with Commands(TAXIWAY_HOME=str(server.home), XDG_CONFIG_HOME=str(tmp_path / "config")) as commands:
        run = commands.run
        run(*accounts, "create", name, "--display-name", "By command")
        assert email in run(*accounts, "list")
        assert "By command" in run(*accounts, "describe", email)
        assert "For the night" in run(*accounts, "update", email, "--description", "For the night")
        run(*accounts, "keys", "create", str(file), "--iam-account", email)
        assert file.stat().st_mode & 0o777 == 0o600
        key = json.loads(file.read_text())["private_key_id"]
        assert key in run(*accounts, "keys", "list", "--iam-account", email)
        for word in ("disable", "enable", "delete"):
            run(*accounts, "keys", word, key, "--iam-account", email)
        assert "Listed 0 items" in run(*accounts, "keys", "list", "--iam-account", email)
        for word in ("disable", "enable", "delete"):
            run(*accounts, word, email)
        assert "NOT_FOUND" in run(*accounts, "describe", email, code=1)
        nowhere = str(tmp_path / "no" / "key.json")
        assert "There is no folder" in run(*accounts, "keys", "create", nowhere, "--iam-account", email, code=1)
        assert "roles/ml.developer" in run("iam", "roles", "list")
        assert "ml.jobs.create" in run("iam", "roles", "describe", "roles/ml.developer")


# --- gcloud ---


@pytest.fixture(scope="module")
def gcloud(server, tmp_path_factory):
    """Runs one gcloud command in a shell that has evaluated `taxiway env`; `own`: with its own credentials instead."""
    command = [sys.executable, "-m", "taxiway", "env", "--home", str(server.home)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **exported,
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }

    def run(*words, own=False):
        kept = {name: value for name, value in environ.items() if not own or name != "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"}
        ended = subprocess.run(["gcloud", *words], capture_output=True, text=True, env=kept, timeout=200)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


@NEEDS_GCLOUD
def test_gcloud_makes_an_account_and_becomes_it(gcloud, server, tmp_path):
    name = f"gc-{uuid.uuid4().hex[:8]}"
    email, file = f"{name}@{server.project}.iam.gserviceaccount.com", tmp_path / "key.json"
    accounts = ("iam", "service-accounts")
    gcloud(*accounts, "create", name, "--display-name=By gcloud")
    assert email in [each["email"] for each in json.loads(gcloud(*accounts, "list", "--format=json"))]
    gcloud(*accounts, "keys", "create", str(file), f"--iam-account={email}")
    key = json.loads(file.read_text())["private_key_id"]
    (listed,) = json.loads(gcloud(*accounts, "keys", "list", f"--iam-account={email}", "--format=json"))
    assert listed["name"].endswith(f"/keys/{key}")

    gcloud("auth", "activate-service-account", f"--key-file={file}")
    token = gcloud("auth", "print-access-token", own=True).strip()
    assert server.http.get("/tokeninfo", params={"access_token": token}).json()["email"] == email
    assert json.loads(gcloud("projects", "list", "--format=json", own=True)) == []
    granted = ("projects", "add-iam-policy-binding", server.project, f"--member=serviceAccount:{email}")
    gcloud(*granted, "--role=roles/viewer")
    (project,) = json.loads(gcloud("projects", "list", "--format=json", own=True))
    assert project["projectId"] == server.project

    acting = gcloud("auth", "print-access-token", f"--impersonate-service-account={email}").strip()
    assert server.http.get("/tokeninfo", params={"access_token": acting}).json()["email"] == email
    gcloud(*accounts, "keys", "delete", key, f"--iam-account={email}")
    assert server.http.get("/tokeninfo", params={"access_token": token}).status_code == 400
    gcloud(*accounts, "delete", email)


@NEEDS_GCLOUD
def test_gcloud_makes_a_project_and_reads_roles(gcloud):
    project = f"gc-{uuid.uuid4().hex[:8]}"
    gcloud("projects", "create", project, "--no-enable-cloud-apis", "--name=By gcloud")
    told = json.loads(gcloud("projects", "describe", project, "--format=json"))
    assert told["name"] == "By gcloud"
    assert project in [each["projectId"] for each in json.loads(gcloud("projects", "list", "--format=json"))]
    assert "ml.jobs.create" in gcloud("iam", "roles", "describe", "roles/ml.developer")
