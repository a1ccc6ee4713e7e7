"""What a token may be used for, however much its member may: the pure rule, and the rule on the wire."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors
from taxiway.iam import roles, scopes
from taxiway.iam.scopes import ALL, PREFIX

PERMISSIONS = sorted(set().union(*roles.ROLES.values()))
WORDS = st.sets(st.sampled_from([*scopes.COVERED, "userinfo.email", "openid", "bigquery"]), max_size=4)


@given(WORDS, st.sampled_from(PERMISSIONS))
def test_a_token_may_what_one_of_its_scopes_covers(words, permission):
    told = scopes.parse(" ".join(PREFIX + word for word in words))
    one_by_one = any(scopes.cover(word, permission) for word in words)
    assert scopes.cover(told, permission) == (one_by_one or not words or ALL in words)


@given(WORDS)
def test_scopes_are_written_as_they_were_read(words):
    told = scopes.parse(" ".join(words))
    assert scopes.parse(scopes.written(told)) == told


@given(WORDS, WORDS)
def test_a_token_never_gets_more_than_its_grant(words, asked):
    held = scopes.parse(" ".join(words))
    try:
        given = scopes.within(" ".join(asked), held)
    except errors.InvalidArgument:
        return
    for permission in PERMISSIONS:
        assert scopes.cover(held, permission) or not scopes.cover(given, permission)


@given(st.sampled_from(PERMISSIONS))
def test_the_refusal_names_a_scope_that_is_enough(permission):
    told = str(scopes.refusal("openid", [permission]))
    wanted = told.rpartition(PREFIX)[2]
    assert permission in told
    assert scopes.cover(wanted, permission)


COVERS = {
    "cloud-platform": (PERMISSIONS, []),
    "cloud-platform.read-only": (
        ["storage.objects.get", "ml.jobs.list", "iam.serviceAccounts.list", "resourcemanager.projects.getIamPolicy"],
        ["storage.objects.create", "ml.jobs.cancel", "iam.serviceAccounts.getAccessToken", "taxiway.users.admin"],
    ),
    "devstorage.read_only": (
        ["storage.objects.get", "storage.buckets.list"],
        ["storage.objects.create", "storage.objects.getIamPolicy", "ml.jobs.get", "logging.logEntries.list"],
    ),
    "devstorage.read_write": (
        ["storage.objects.create", "storage.objects.delete", "storage.objects.get"],
        ["storage.objects.setIamPolicy", "storage.buckets.setIamPolicy", "storage.buckets.update", "ml.jobs.get"],
    ),
    "devstorage.full_control": (["storage.buckets.setIamPolicy", "storage.objects.update"], ["ml.models.predict"]),
    "logging.read": (["logging.logEntries.list"], ["storage.objects.get"]),
    "userinfo.email": ([], PERMISSIONS),
    "openid email": ([], PERMISSIONS),
    "unheard.of": ([], PERMISSIONS),
}


@pytest.mark.parametrize("scope", COVERS)
def test_a_scope_covers_what_googles_does(scope):
    enough, lacking = COVERS[scope]
    assert [each for each in enough if not scopes.cover(scopes.parse(scope), each)] == []
    assert [each for each in lacking if scopes.cover(scopes.parse(scope), each)] == []


def test_no_scope_at_all_is_all():
    assert scopes.parse("") == scopes.parse(f"openid {PREFIX}{ALL}") == ALL


def test_absurdly_many_scopes_are_refused():
    with pytest.raises(errors.InvalidArgument, match="4096"):
        scopes.parse("x" * 5000)


# --- on the wire ---


@pytest.fixture(scope="module")
def scoped(server):
    """An access token of the owner, by a login that asked for these scopes; the owner's rights are whole."""
    email, password = f"scoped-{uuid.uuid4().hex[:8]}@example.com", "correct horse"
    made = server.call("POST", "/taxiway/v1/users", json={"email": email, "password": password})
    assert made.status_code == 200, made.text
    path = f"/v1/projects/{server.project}"
    policy = server.call("POST", f"{path}:getIamPolicy", json={}).json()
    policy["bindings"].append({"role": "roles/owner", "members": [f"user:{email}"]})
    policy["bindings"].append({"role": "roles/storage.admin", "members": [f"user:{email}"]})
    assert server.call("POST", f"{path}:setIamPolicy", json={"policy": policy}).status_code == 200

    def token(scope):
        form = {"grant_type": "password", "username": email, "password": password, "scope": scope}
        answer = server.http.post("/token", data=form)
        assert answer.status_code == 200, answer.text
        assert answer.json()["scope"] == scope
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    return token


@pytest.fixture(scope="module")
def bucket(server):
    name = f"scopes-{uuid.uuid4().hex[:8]}"
    made = server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": name})
    assert made.status_code == 200, made.text
    return name


def test_a_reading_token_reads_and_writes_nothing(server, scoped, bucket):
    mine = scoped(f"{PREFIX}devstorage.read_only")
    assert server.http.get(f"/storage/v1/b/{bucket}/o", headers=mine).status_code == 200
    answer = server.http.post(f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=a", headers=mine, content=b"x")
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert [each["reason"] for each in error["errors"]] == ["insufficientPermissions"]
    assert f"{PREFIX}devstorage.read_write" in error["message"]
    assert "storage.objects.create" in error["message"]


def test_a_writing_token_changes_no_policy(server, scoped, bucket):
    mine = scoped(f"{PREFIX}devstorage.read_write")
    path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=b"
    assert server.http.post(path, headers=mine, content=b"x").status_code == 200
    assert server.http.get(f"/storage/v1/b/{bucket}/iam", headers=mine).status_code == 403
    assert server.http.put(f"/storage/v1/b/{bucket}/iam", headers=mine, json={"bindings": []}).status_code == 403
    whole = scoped(f"{PREFIX}devstorage.full_control")
    assert server.http.get(f"/storage/v1/b/{bucket}/iam", headers=whole).status_code == 200


def test_what_one_token_may_another_of_the_same_member_may_not(server, scoped, bucket):
    """The answer is remembered by the scopes too."""
    path = f"/storage/v1/b/{bucket}/o"
    whole, nothing = scoped(f"{PREFIX}cloud-platform"), scoped(f"{PREFIX}userinfo.email")
    for _ in range(3):
        assert server.http.get(path, headers=whole).status_code == 200
        assert server.http.get(path, headers=nothing).status_code == 403


def test_other_apis_are_told_as_google_tells_them(server, scoped):
    mine = scoped(f"{PREFIX}devstorage.full_control")
    answer = server.http.get(f"/v1/projects/{server.project}/jobs", headers=mine)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["status"] == "PERMISSION_DENIED"
    assert error["details"][0]["reason"] == "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
    assert f"{PREFIX}cloud-platform.read-only" in error["message"]
    predict = server.http.post(f"/v1/projects/{server.project}/models/m:predict", headers=mine, json={"instances": []})
    assert predict.status_code == 403
    assert server.http.get("/v1/projects", headers=mine).json() == {}
    assert server.http.post("/taxiway/v1/users", headers=mine, json={"email": "x@y.z"}).status_code == 403
