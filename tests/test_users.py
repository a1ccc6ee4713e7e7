"""People with passwords: who is let in, who is not, and what that costs a guesser."""

from __future__ import annotations

import json
import stat
import threading
import uuid

import pytest
from commands import Commands

from taxiway import errors, household, settings
from taxiway.db.tables import users as rows_of_users
from taxiway.iam import logins, projects, users
from taxiway.iam.users import AT_ONCE, GUESSES, Passwords

NOW = 1_800_000_000.0
PASSWORD = "correct horse"
ANN = "ann@example.com"


@pytest.fixture
def ann(db):
    db.write(lambda tx: users.create(tx, ANN, password=users.hashed(PASSWORD), now=NOW))
    return db


def test_the_right_password_tells_who_one_is(ann):
    assert Passwords(ann).check(ANN, PASSWORD) == f"user:{ANN}"
    assert Passwords(ann).check(" Ann@Example.COM ", PASSWORD) == f"user:{ANN}"


def test_only_a_hash_is_kept(ann):
    with ann.read() as rows:
        kept = rows.execute(rows_of_users.select()).one().password
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert PASSWORD not in kept


def test_a_password_that_is_typed_on_another_keyboard_is_the_same(db):
    db.write(lambda tx: users.create(tx, ANN, password=users.hashed("n\u0303andu\u0301 ride"), now=NOW))
    assert Passwords(db).check(ANN, "\u00f1and\u00fa ride") == f"user:{ANN}"


@pytest.mark.parametrize(
    ("email", "password"),
    [(ANN, "wrong horse"), (ANN, ""), ("bob@example.com", PASSWORD), ("", ""), (ANN, "x" * 100_000), (ANN, "\ud800")],
)
def test_a_wrong_name_and_a_wrong_password_are_told_alike(ann, email, password):
    with pytest.raises(errors.Unauthenticated, match="The e-mail address or the password is wrong"):
        Passwords(ann).check(email, password)


def test_who_has_no_password_is_not_let_in(db):
    db.write(lambda tx: users.create(tx, ANN, now=NOW))
    with pytest.raises(errors.Unauthenticated, match="is wrong"):
        Passwords(db).check(ANN, "")


def test_an_unknown_user_costs_the_same_work(ann, monkeypatch):
    """Counted, not timed: one check of a hash of the same cost, whoever is asked for."""
    seen = []
    real = users._matches
    monkeypatch.setattr(users, "_matches", lambda kept, told: seen.append(kept.split("$")[:4]) or real(kept, told))
    passwords = Passwords(ann)
    for email in (ANN, "bob@example.com"):
        with pytest.raises(errors.Unauthenticated):
            passwords.check(email, "wrong horse")
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_disabled_user_is_told_so_only_with_the_right_password(ann):
    ann.write(lambda tx: users.disable(tx, ANN, True))
    with pytest.raises(errors.Unauthenticated, match="disabled"):
        Passwords(ann).check(ANN, PASSWORD)
    with pytest.raises(errors.Unauthenticated, match="is wrong"):
        Passwords(ann).check(ANN, "wrong horse")
    ann.write(lambda tx: users.disable(tx, ANN, False))
    assert Passwords(ann).check(ANN, PASSWORD) == f"user:{ANN}"


@pytest.mark.parametrize("email", [ANN, "bob@example.com"])
def test_a_guesser_is_slowed_down_and_others_are_not(ann, email):
    passwords = Passwords(ann)
    ann.write(lambda tx: users.create(tx, "eve@example.com", password=users.hashed(PASSWORD), now=NOW))
    for _ in range(GUESSES):
        with pytest.raises(errors.Unauthenticated):
            passwords.check(email, "wrong horse")
    with pytest.raises(errors.ResourceExhausted, match=r"try again in [0-9]+ seconds"):
        passwords.check(email, PASSWORD)
    assert passwords.check("eve@example.com", PASSWORD) == "user:eve@example.com"


def test_a_right_password_ends_the_count(ann):
    passwords = Passwords(ann)
    for _ in range(3):
        for _ in range(GUESSES - 1):
            with pytest.raises(errors.Unauthenticated):
                passwords.check(ANN, "wrong horse")
        assert passwords.check(ANN, PASSWORD)


def test_many_guesses_at_once_count_as_many(ann):
    passwords, told = Passwords(ann), []

    def guess():
        try:
            passwords.check(ANN, "wrong horse")
        except errors.Error as error:
            told.append(type(error))

    threads = [threading.Thread(target=guess) for _ in range(4 * AT_ONCE)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert told.count(errors.Unauthenticated) <= GUESSES
    assert len(told) == 4 * AT_ONCE


@pytest.mark.parametrize("password", ["", "short", "x" * 257, "\ud800" * 10])
def test_a_password_that_cannot_be_kept_is_refused(password):
    with pytest.raises(errors.InvalidArgument, match="password"):
        users.hashed(password)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ann",
        "ann@",
        "@x",
        "a b@x.y",
        "ann@x..y",
        "ann@example.com\n",
        "user:ann@x.y",
        "owner@taxiway.iam.gserviceaccount.com",
        "x@GSERVICEACCOUNT.com",
        "allUsers",
    ],
)
def test_what_is_no_persons_address_is_refused(email):
    if email.endswith("\n"):
        assert users.address(email) == "ann@example.com"  # what was pasted with a line end
        return
    with pytest.raises(errors.InvalidArgument):
        users.address(email)


def test_a_new_password_and_being_disabled_end_the_logins(ann):
    for change in (
        lambda tx: users.set_password(tx, ANN, users.hashed("battery staple")),
        lambda tx: users.disable(tx, ANN, True),
    ):
        token, _ = ann.write(lambda tx: logins.begin(tx, f"user:{ANN}", "cloud-platform", now=NOW))
        assert logins.of(ann, token, now=NOW).member == f"user:{ANN}"
        ann.write(change)
        with pytest.raises(errors.Unauthenticated, match="revoked"):
            logins.of(ann, token, now=NOW)


def test_the_first_start_makes_the_owner_a_user(db, tmp_path):
    configured = settings.read({}, home=tmp_path)
    made = household.first_project(db, configured, NOW)
    (owner,) = users.every(db)
    assert (owner.email, owner.has_password) == (household.owner_email(made.id), False)
    assert household.first_project(db, configured, NOW) == made


def test_the_owner_of_an_older_home_becomes_a_user(db, tmp_path):
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=["user:owner@taxi-one.localhost"], now=NOW))
    household.first_project(db, settings.read({}, home=tmp_path), NOW)
    assert [each.email for each in users.every(db)] == ["owner@taxi-one.localhost"]


def test_the_first_project_stays_the_first_when_the_clock_is_put_back(db):
    """Who owns the first project owns the server."""
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=["user:a@b.c"], now=NOW))
    db.write(lambda tx: projects.create(tx, "taxi-two", owners=["user:eve@b.c"], now=NOW - 3600))
    assert projects.first(db).id == "taxi-one"


# --- on the wire ---


@pytest.fixture
def person(server):
    """A new user of the shared server: (email, what logs in)."""
    email = f"ann-{uuid.uuid4().hex[:8]}@example.com"
    made = server.call("POST", "/taxiway/v1/users", json={"email": email, "password": PASSWORD, "displayName": "Ann"})
    assert made.status_code == 200, made.text
    assert made.json()["hasPassword"] is True
    assert PASSWORD not in made.text
    return email


def log_in(server, email, password=PASSWORD):
    return server.http.post("/token", data={"grant_type": "password", "username": email, "password": password})


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_a_person_logs_in_and_may_what_they_are_granted(server, person):
    answer = log_in(server, person)
    assert answer.status_code == 200, answer.text
    mine = bearer(answer.json()["access_token"])
    path = f"/v1/projects/{server.project}"
    refused = server.http.get(path, headers=mine)
    assert refused.status_code == 403
    assert f"user:{person}" in refused.text
    policy = server.call("POST", f"{path}:getIamPolicy", json={}).json()
    policy["bindings"].append({"role": "roles/viewer", "members": [f"user:{person}"]})
    assert server.call("POST", f"{path}:setIamPolicy", json={"policy": policy}).status_code == 200
    assert server.http.get(path, headers=mine).status_code == 200


def test_a_wrong_password_is_told_in_oauths_shape(server, person):
    answer = log_in(server, person, "wrong horse")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert "wrong horse" not in answer.text


def test_a_guesser_on_the_wire_is_told_to_wait(server, person):
    codes = [log_in(server, person, f"wrong horse {each}").status_code for each in range(GUESSES + 1)]
    assert codes == [400] * GUESSES + [429]
    assert log_in(server, person).status_code == 429


def test_a_disabled_user_is_out_at_once_and_in_again(server, person):
    told = log_in(server, person).json()
    mine = bearer(told["access_token"])
    assert server.http.get("/v1/projects", headers=mine).status_code == 200
    assert server.call("POST", f"/taxiway/v1/users/{person}:disable").status_code == 200
    answer = server.http.get("/v1/projects", headers=mine)
    assert answer.status_code == 401
    refresh = {"grant_type": "refresh_token", "refresh_token": told["refresh_token"]}
    assert server.http.post("/token", data=refresh).json()["error"] == "invalid_grant"
    assert log_in(server, person).status_code == 400
    assert server.call("POST", f"/taxiway/v1/users/{person}:enable").status_code == 200
    assert server.http.get("/v1/projects", headers=mine).status_code == 401  # its login has ended
    assert log_in(server, person).status_code == 200


def test_people_change_their_own_password_by_saying_the_old_one(server, person):
    mine = bearer(log_in(server, person).json()["access_token"])
    path = f"/taxiway/v1/users/{person}:setPassword"
    for body in ({"password": "battery staple"}, {"password": "battery staple", "currentPassword": "wrong horse"}):
        answer = server.http.post(path, headers=mine, json=body)
        assert answer.status_code == 400
        assert "currentPassword" in answer.text
    short = server.http.post(path, headers=mine, json={"password": "short", "currentPassword": PASSWORD})
    assert short.status_code == 400
    done = server.http.post(path, headers=mine, json={"password": "battery staple", "currentPassword": PASSWORD})
    assert done.status_code == 200, done.text
    assert server.http.get("/v1/projects", headers=mine).status_code == 401
    assert log_in(server, person).status_code == 400
    assert log_in(server, person, "battery staple").status_code == 200


def test_only_owners_of_the_first_project_keep_users(server, person):
    mine = bearer(log_in(server, person).json()["access_token"])
    owner = server.address.owner
    assert server.http.get(f"/taxiway/v1/users/{person}", headers=mine).json()["email"] == person
    for method, path, body in (
        ("GET", "/taxiway/v1/users", None),
        ("POST", "/taxiway/v1/users", {"email": "eve@example.com"}),
        ("GET", f"/taxiway/v1/users/{owner}", None),
        ("POST", f"/taxiway/v1/users/{owner}:setPassword", {"password": "taken over"}),
        ("POST", f"/taxiway/v1/users/{owner}:disable", {}),
        ("POST", f"/taxiway/v1/users/{person}:enable", {}),
    ):
        answer = server.http.request(method, path, headers=mine, json=body)
        assert answer.status_code == 403, path
        assert "taxiway.users.admin" in answer.text
        assert server.http.request(method, path, json=body).status_code == 401, path


def test_the_homes_owner_cannot_be_locked_out(server):
    answer = server.call("POST", f"/taxiway/v1/users/{server.address.owner}:disable")
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {"email": 1},
        {"email": "x"},
        {"email": "a@b.c", "password": "short"},
        {"email": "a@b.c", "password": {}},
    ],
)
def test_a_malformed_user_is_refused(server, body):
    assert server.call("POST", "/taxiway/v1/users", json=body).status_code == 400


def test_a_user_is_made_once_and_listed_in_pages(server, person):
    again = server.call("POST", "/taxiway/v1/users", json={"email": person.upper()})
    assert again.status_code == 409
    seen, token = [], ""
    while True:
        page = server.call("GET", "/taxiway/v1/users", params={"pageSize": 1, "pageToken": token}).json()
        seen += [each["email"] for each in page["users"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert person in seen
    assert seen == sorted(set(seen))
    assert server.call("POST", "/taxiway/v1/users/nobody@example.com:disable").status_code == 404


# --- the command line ---


@pytest.fixture
def taxiway(server, tmp_path):
    with Commands(TAXIWAY_HOME=str(server.home), XDG_CONFIG_HOME=str(tmp_path / "config")) as commands:
        yield commands.run


def test_the_commands_act_as_who_is_logged_in(taxiway, server, tmp_path):
    email = f"cli-{uuid.uuid4().hex[:8]}@example.com"
    assert taxiway("auth", "list").split() == ["ACTIVE", "ACCOUNT", "*", server.address.owner]
    taxiway("users", "create", email, "--display-name", "Ann", piped=f"{PASSWORD}\n")
    assert email in taxiway("users", "list")
    assert "is wrong" in taxiway("auth", "login", email, piped="wrong horse\n", code=1)
    taxiway("auth", "login", email, piped=f"{PASSWORD}\n")
    (kept,) = (tmp_path / "config" / "taxiway" / "logins").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert PASSWORD not in kept.read_text()
    listed = {each["account"]: each["status"] for each in json.loads(taxiway("auth", "list", "--format=json"))}
    assert listed == {email: "ACTIVE", server.address.owner: ""}

    token = taxiway("auth", "print-access-token").strip()
    told = server.http.get("/tokeninfo", params={"access_token": token}).json()
    assert told["email"] == email
    assert f"user:{email} does not have taxiway.users.admin" in taxiway("users", "list", code=1)

    taxiway("users", "set-password", email, piped=f"{PASSWORD}\nbattery staple\n")
    assert f"taxiway auth login {email}" in taxiway("projects", "list", code=1)  # that login has ended
    taxiway("auth", "login", email, piped="battery staple\n")
    taxiway("auth", "revoke")
    assert not kept.exists()
    assert taxiway("auth", "print-access-token").strip() == server.token
    assert "Nobody is logged in" in taxiway("auth", "revoke", code=1)
    taxiway("users", "disable", email)
    assert "disabled" in taxiway("auth", "login", email, piped="battery staple\n", code=1)
    taxiway("users", "enable", email)
    taxiway("users", "set-password", email, piped=f"{PASSWORD}\n")
    taxiway("auth", "login", email, piped=f"{PASSWORD}\n")


def test_projects_are_made_and_shared_by_command(taxiway, server):
    project = f"night-{uuid.uuid4().hex[:8]}"
    made = json.loads(taxiway("projects", "create", project, "--name", "Night rides", "--format=json"))
    assert (made["projectId"], made["name"]) == (project, "Night rides")
    listed = json.loads(taxiway("projects", "list", "--filter", "name:night*", "--format=json"))
    assert project in [each["projectId"] for each in listed]
    grant = ("--member", "user:ann@example.com", "--role", "roles/viewer")
    assert "ann@example.com" in taxiway("projects", "add-iam-policy-binding", project, *grant)
    assert "ann@example.com" not in taxiway("projects", "remove-iam-policy-binding", project, *grant)
    assert "not found" in taxiway("projects", "remove-iam-policy-binding", project, *grant, code=1)
