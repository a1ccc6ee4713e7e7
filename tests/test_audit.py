"""The audit log: what is kept of whom, by whom it is read, and that nobody waits for it."""

from __future__ import annotations

import json
import re
import time
import uuid

import people
import pytest
import sqlalchemy as sa
from conftest import run_cli

from taxiway import server as house
from taxiway.api import audit_entries, wire
from taxiway.db.tables import audit as table
from taxiway.iam import audit, keys, members, policies, projects
from taxiway.iam.audit import ACTIVITY, DATA_ACCESS, Audit, Entry
from taxiway.storage import buckets

DAY = 24 * 3600.0


def entry(number, *, project="taxi-one", resource="projects/taxi-one/models/m", now=1_800_000_000.0, **rest):
    told = {"log": ACTIVITY, "member": "user:ann@x.y", "address": "10.0.0.1", "permission": "ml.models.update"}
    told |= {"method": f"m{number}", "allowed": True, "code": 200}
    return Entry(time=now + number / 1000, project=project, resource=resource, **{**told, **rest})


def trail(db, **rest):
    return Audit(db, **{"home": "taxi-one", "reads": False, "days": 400, **rest})


def kept(db, condition=None, **rest):
    return audit.page(db, sa.true() if condition is None else condition, **{"limit": 100_000, **rest})


@pytest.fixture
def rows(db):
    """Two projects, and a bucket of the second."""
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=["user:ann@x.y"], now=1))
    db.write(lambda tx: projects.create(tx, "taxi-two", owners=["user:bob@x.y"], now=1))
    buckets.insert(db, "taxi-two", "rides", policy=policies.default_bucket_policy("taxi-two"), now=1)
    return db


# --- rows ---


def test_what_is_noted_is_written_in_its_order_and_by_batches(rows):
    mine = trail(rows)
    mine.start()
    for number in range(3 * audit.BATCH):
        mine.note(entry(number))
    mine.stop()
    assert [row.method for row in kept(rows)] == [f"m{number}" for number in range(3 * audit.BATCH)]


class Busy(Audit):
    """One of a server that never rests: something comes whenever rows are written."""

    def _write(self, rows):
        super()._write(rows)
        self.note(entry(1))


def test_what_comes_while_rows_are_written_waits_for_the_next_turn(rows):
    mine = Busy(rows, home="taxi-one", reads=False, days=400)
    mine.note(entry(0))
    mine._flush()
    assert [row.method for row in kept(rows)] == ["m0"]
    mine._flush()
    assert [row.method for row in kept(rows)] == ["m0", "m1"]


def test_a_row_is_there_within_two_seconds_without_a_stop(rows):
    mine = trail(rows)
    mine.start()
    mine.note(entry(1))
    deadline = time.monotonic() + 10 * audit.EVERY_S
    while not kept(rows):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mine.stop()


def test_a_row_belongs_to_the_project_that_it_names_or_whose_bucket_it_is_or_to_the_home(rows):
    mine, number = trail(rows), str(projects.get(rows, "taxi-two").number)
    agent = members.of_email(projects.account_email("taxi-two", "robot"))
    mine.note(entry(1, project="taxi-two"))
    mine.note(entry(2, project=number))
    mine.note(entry(3, project="", resource="projects/_/buckets/rides/objects/a"))
    mine.note(entry(4, project="", resource="projects/_/buckets/no-such/objects/a"))
    mine.note(entry(5, project="nowhere"))
    mine.note(entry(6, project="", resource="", member=agent))
    mine.stop()
    owners = [row.project for row in kept(rows)]
    assert owners == ["taxi-two", "taxi-two", "taxi-two", "taxi-one", "taxi-one", "taxi-two"]


def test_the_row_of_a_bucket_that_is_gone_is_still_its_projects(rows):
    mine = trail(rows)
    mine.learn("rides")
    rows.write(lambda tx: tx.execute(sa.text("delete from buckets")))
    mine.note(entry(1, project="", resource="projects/_/buckets/rides"))
    mine.stop()
    assert [row.project for row in kept(rows)] == ["taxi-two"]


def test_what_a_stranger_made_up_is_cut_off(rows):
    mine = trail(rows)
    mine.note(entry(1, resource="x" * 100_000, member="y" * 100_000))
    mine.stop()
    (row,) = kept(rows)
    assert len(row.resource) == len(row.member) == audit.LONGEST


def test_a_disk_that_takes_nothing_costs_the_newest_rows_and_no_memory(rows, monkeypatch):
    monkeypatch.setattr(audit, "MOST", 10)
    mine = trail(rows)
    for number in range(25):
        mine.note(entry(number))
    mine.stop()
    assert [row.method for row in kept(rows)] == [f"m{number}" for number in range(10)]


def test_rows_wait_while_they_cannot_be_written(rows):
    mine = trail(rows)
    mine.note(entry(1))
    mine.note(entry(2))
    rows.write(lambda tx: tx.execute(sa.text("alter table audit rename to elsewhere")))
    with pytest.raises(sa.exc.OperationalError):
        mine._flush()
    rows.write(lambda tx: tx.execute(sa.text("alter table elsewhere rename to audit")))
    mine.note(entry(3))
    mine.stop()
    assert [row.method for row in kept(rows)] == ["m1", "m2", "m3"]


def test_what_is_too_old_is_swept_away_and_nothing_else(rows):
    now = time.time()
    mine = trail(rows)
    for number in range(2 * audit.SWEPT + 5):
        mine.note(entry(number, now=now - 500 * DAY))
    mine.note(entry(0, now=now - 399 * DAY, project="taxi-two"))
    mine.note(entry(1, now=now))
    mine.stop()
    swept = []
    while gone := audit.sweep(rows, now - 400 * DAY):
        swept.append(gone)
    assert swept == [audit.SWEPT, audit.SWEPT, 5]
    assert [row.project for row in kept(rows)] == ["taxi-two", "taxi-one"]


def test_pages_go_both_ways(rows):
    mine = trail(rows)
    for number in range(5):
        mine.note(entry(number, now=1_800_000_000.0))
    mine.stop()
    for newest_first in (False, True):
        found, after = [], None
        while page := kept(rows, newest_first=newest_first, after=after, limit=2):
            found += [row.method for row in page]
            after = (page[-1].time, page[-1].row)
        wanted = [f"m{number}" for number in range(5)]
        assert found == (wanted[::-1] if newest_first else wanted)


# --- what is kept ---


@pytest.mark.parametrize(
    ("permission", "verb", "path", "log", "allowed_too", "with_reads"),
    [
        ("ml.models.create", "POST", "/v1/projects/{project}/models", ACTIVITY, True, False),
        ("ml.models.get", "GET", "/v1/projects/{project}/models/{model}", DATA_ACCESS, False, True),
        ("ml.models.predict", "POST", "", DATA_ACCESS, False, True),
        ("ml.models.setIamPolicy", "POST", "", ACTIVITY, True, False),
        ("storage.objects.create", "POST", "", DATA_ACCESS, True, False),
        ("storage.objects.get", "GET", "", DATA_ACCESS, False, True),
        ("storage.objects.setIamPolicy", "PUT", "", ACTIVITY, True, False),
        ("storage.buckets.delete", "DELETE", "", ACTIVITY, True, False),
        ("-signed-in", "GET", "/v1/projects", DATA_ACCESS, False, True),
        ("-signed-in", "POST", "/v1/projects", ACTIVITY, True, False),
        ("-signed-in", "POST", "/v1/projects/{project}/models/{model}:testIamPermissions", DATA_ACCESS, False, True),
        ("-signed-in", "POST", "/v2/entries:list", DATA_ACCESS, False, True),
        ("-anyone", "POST", "/token", ACTIVITY, True, False),
        ("-anyone", "PUT", "/upload/storage/v1/b/{bucket}/o", ACTIVITY, False, False),
        ("-replica", "POST", "/taxiway/v1/attempts/{attempt}:log", ACTIVITY, False, False),
    ],
)
def test_changes_are_kept_and_reads_only_if_asked_for(db, permission, verb, path, log, allowed_too, with_reads):
    sort = audit.sort_of(permission, verb, path)
    assert sort.log == log
    assert trail(db).keeps(sort, refused=False) is allowed_too
    assert trail(db, reads=True).keeps(sort, refused=False) is (allowed_too or with_reads)
    assert trail(db).keeps(sort, refused=True)


def test_every_route_names_its_thing(server):
    for route in house.ROUTES:
        parts = {name.partition(":")[0]: f"<{name}>" for name in re.findall(r"{([^}]*)}", route.path)}
        named = audit.resource_of(route.path)(parts)
        assert "{" not in named, route
        assert bool(named) == bool(parts), route


# --- on a running server ---


class Log:
    """The audit log of one server, as its owner reads it."""

    def __init__(self, server):
        self.server = server

    def entries(self, text, *, ok=200, headers=None, **rest):
        body = {"resourceNames": [f"projects/{self.server.project}"], "filter": text, "pageSize": 1000, **rest}
        headers = headers or {"Authorization": f"Bearer {self.server.token}"}
        answer = self.server.http.post("/v2/entries:list", json=body, headers=headers)
        assert answer.status_code == ok, answer.text
        return answer.json().get("entries", []) if ok == 200 else answer.json()["error"]

    def waited(self, text, count=1):
        """The entries, once they are there."""
        deadline = time.monotonic() + 20
        while len(found := self.entries(text)) < count:
            assert time.monotonic() < deadline, (text, found)
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def log(server):
    return Log(server)


@pytest.fixture
def model(server):
    name = f"m_{uuid.uuid4().hex[:8]}"
    made = server.call("POST", f"/v1/projects/{server.project}/models", json={"name": name})
    assert made.status_code == 200, made.text
    return name


def of(resource):
    return f'resource.type="audited_resource" AND protoPayload.resourceName="{resource}"'


def test_who_what_on_which_when_and_whether_is_told(server, log, model):
    began = time.time()
    resource = f"projects/{server.project}/models/{model}"
    (found,) = log.waited(of(resource))
    payload = found["protoPayload"]
    assert payload["@type"] == "type.googleapis.com/google.cloud.audit.AuditLog"
    assert payload["authenticationInfo"]["principalEmail"] == server.address.owner
    assert payload["methodName"] == "ml.projects.models.create"
    assert payload["serviceName"] == "ml.googleapis.com"
    granted = {"resource": resource, "permission": "ml.models.create", "granted": True}
    assert payload["authorizationInfo"] == [granted]
    assert payload["requestMetadata"]["callerIp"] == "127.0.0.1"
    assert payload["status"] == {}
    assert found["severity"] == "NOTICE"
    assert found["logName"] == f"projects/{server.project}/logs/cloudaudit.googleapis.com%2Factivity"
    assert abs(audit_entries._seconds(found["timestamp"]) - began) < 60


def test_a_refusal_is_told_with_whom_and_the_permission_that_lacked(server, log, model):
    resource = f"projects/{server.project}/models/{model}"
    eve = people.bearer(server, "user:eve@example.com")
    assert server.http.delete(f"/v1/{resource}", headers=eve).status_code == 403
    assert server.http.get(f"/v1/{resource}").status_code == 401
    assert server.http.post(f"/v1/{resource}:predict", headers=eve, content=b"{}").status_code == 403
    assert server.http.get(f"/v1/{resource}", headers={"Authorization": "Bearer forged"}).status_code == 401
    found = log.waited(f"{of(resource)} AND protoPayload.authorizationInfo.granted=false", 4)
    told = {
        (
            each["protoPayload"]["authenticationInfo"].get("principalSubject", ""),
            each["protoPayload"]["authorizationInfo"][0]["permission"],
            each["httpRequest"]["status"],
            each["protoPayload"]["status"]["message"],
            each["severity"],
        )
        for each in found
    }
    assert told == {
        ("user:eve@example.com", "ml.models.delete", 403, "PERMISSION_DENIED", "ERROR"),
        ("user:eve@example.com", "ml.models.predict", 403, "PERMISSION_DENIED", "ERROR"),
        ("", "ml.models.get", 401, "UNAUTHENTICATED", "ERROR"),
    }


def test_writes_of_objects_are_told_and_reads_are_not(server, log):
    bucket = f"audited-{uuid.uuid4().hex[:8]}"
    server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": bucket})
    upload = f"/upload/storage/v1/b/{bucket}/o"
    assert server.call("POST", f"{upload}?uploadType=media&name=a%2Fb", content=b"x").status_code == 200
    path = f"/storage/v1/b/{bucket}/o/a%2Fb"
    assert server.call("GET", path, params={"alt": "media"}).status_code == 200
    assert server.call("GET", f"/storage/v1/b/{bucket}/o").status_code == 200
    assert server.call("DELETE", path).status_code == 204
    assert server.call("DELETE", f"/storage/v1/b/{bucket}").status_code == 204
    found = log.waited(f'logName:cloudaudit AND protoPayload.resourceName:"buckets/{bucket}"', 4)
    bucketed, whole = f"projects/_/buckets/{bucket}", f"projects/_/buckets/{bucket}/objects/a/b"
    assert [(each["protoPayload"]["methodName"], each["protoPayload"]["resourceName"]) for each in found] == [
        ("storage.buckets.create", bucketed),
        ("storage.objects.create", whole),
        ("storage.objects.delete", whole),
        ("storage.buckets.delete", bucketed),
    ]
    assert [each["logName"].rpartition("%2F")[2] for each in found] == [ACTIVITY, DATA_ACCESS, DATA_ACCESS, ACTIVITY]


def test_nothing_secret_is_in_it(server, log):
    secret = f"secret-{uuid.uuid4().hex}"
    server.http.get(f"/v1/projects/{server.project}/models", params={"access_token": secret})
    server.http.post("/token", data={"grant_type": "password", "username": "ann@example.com", "password": secret})
    server.http.get(f"/v1/projects/{server.project}/jobs", headers={"Authorization": f"Bearer {secret}"})
    log.waited('protoPayload.methodName="POST /token" AND protoPayload.authorizationInfo.granted=false')
    log.waited(f"{of(f'projects/{server.project}')} AND httpRequest.status=401", 2)
    assert secret not in json.dumps(log.entries("logName:cloudaudit"))


def test_a_token_that_is_given_out_names_whom_for(server, log):
    key = json.loads(server.key.read_text())
    signed = people.assertion(key)
    answer = server.http.post("/token", data={"grant_type": keys.JWT_GRANT, "assertion": signed})
    assert answer.status_code == 200, answer.text
    (found, *_) = log.waited(
        'protoPayload.methodName="POST /token" AND protoPayload.authorizationInfo.granted=true AND '
        f'protoPayload.authenticationInfo.principalEmail="{key["client_email"]}"'
    )
    assert found["protoPayload"]["serviceName"] == "iam.googleapis.com"


def test_what_a_route_asks_within_is_named_by_the_permission(server, log):
    """Rows of service accounts look up whose the account is before they ask."""
    email = json.loads(server.key.read_text())["client_email"]
    path = f"/v1/projects/{server.project}/serviceAccounts/{email}/keys"
    began = wire.timestamp(time.time())  # other tests ask for things of this account too
    made = server.call("POST", path, json={})
    assert made.status_code == 200, made.text
    assert server.http.post(path, headers=people.bearer(server, "user:eve@example.com"), json={}).status_code == 403
    assert server.call("DELETE", f"/v1/{made.json()['name']}").status_code == 200
    found = log.waited(f'protoPayload.resourceName:"serviceAccounts/{email}" AND timestamp>="{began}"', 3)
    told = [
        (each["protoPayload"]["methodName"], each["httpRequest"]["status"], each["protoPayload"]["serviceName"])
        for each in found
    ]
    assert told == [
        ("iam.serviceAccountKeys.create", 200, "iam.googleapis.com"),
        ("iam.serviceAccountKeys.create", 403, "iam.googleapis.com"),
        ("iam.serviceAccountKeys.delete", 200, "iam.googleapis.com"),
    ]
    assert "privateKeyData" not in json.dumps(found)


def test_data_access_is_for_the_owner_and_activity_for_viewers(server, log, model):
    ann = f"user:ann-{uuid.uuid4().hex[:6]}@example.com"
    granted = run_cli(
        server, "projects", "add-iam-policy-binding", server.project, "--member", ann, "--role", "roles/viewer"
    )
    assert granted.returncode == 0, granted.stderr
    hers = people.bearer(server, ann)
    resource = f"projects/{server.project}/models/{model}"
    assert server.http.get(f"/v1/{resource}").status_code == 401  # a read that was refused: data_access
    log.waited(f"{of(resource)} AND logName:data_access")
    names = {each["logName"].rpartition("%2F")[2] for each in log.entries(of(resource), headers=hers)}
    assert names == {ACTIVITY}
    named = f'logName="projects/{server.project}/logs/cloudaudit.googleapis.com%2Fdata_access"'
    refused = log.entries(named, headers=hers, ok=403)
    assert "logging.privateLogEntries.list" in refused["message"]
    assert "roles/logging.privateLogViewer" in refused["message"]
    assert log.entries(named)
    assert log.entries(named.replace("%2F", "/"))  # as a person writes it


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("logName:cloudaudit AND severity>=ERROR", {401, 403}),
        ("protoPayload.status.code=7", {403}),
        ("protoPayload.status.code=16 AND protoPayload.serviceName=ml.googleapis.com", {401}),
        ('resource.type="audited_resource" AND NOT severity>=ERROR AND httpRequest.status<300', {200}),
        ('protoPayload.methodName:"models.delete" AND severity=ERROR', {403}),
        ('logName:cloudaudit AND timestamp>"2999-01-01T00:00:00Z"', set()),
        ('protoPayload.requestMetadata.callerIp="10.9.8.7"', set()),
    ],
)
def test_filters_find_what_they_say(server, log, model, text, code):
    resource = f"projects/{server.project}/models/{model}"
    server.http.get(f"/v1/{resource}")
    server.http.delete(f"/v1/{resource}", headers=people.bearer(server, "user:eve@example.com"))
    log.waited(of(resource), 3)
    found = log.entries(f'protoPayload.resourceName="{resource}" AND ({text})')
    assert {each["httpRequest"]["status"] for each in found} == code


@pytest.mark.parametrize(
    "text", ["", "severity>=ERROR", "NOT logName:cloudaudit", 'resource.labels.job_id="cloudaudit"', 'logName="x"']
)
def test_a_filter_that_does_not_ask_for_it_reads_what_jobs_say(text):
    assert not audit_entries.wanted(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("protoPayload.secret=1", "protoPayload.secret is no field"),
        ("protoPayload.status.code=PERMISSION_DENIED", "no value of protoPayload.status.code"),
        ("protoPayload.authorizationInfo.granted=perhaps", "no value of"),
    ],
)
def test_a_filter_that_is_not_understood_is_refused(log, text, word):
    assert word in log.entries(text, ok=400)["message"]


def test_a_cursor_of_times_finds_what_comes_after_it(server, log, model):
    """The microseconds of a stamp come back as they were: a client that goes on from the last one misses nothing."""
    resource = f"projects/{server.project}/models/{model}"
    for _ in range(5):
        server.http.get(f"/v1/{resource}")
    every = log.waited(of(resource), 6)
    for at, each in enumerate(every):
        here = [one["insertId"] for one in log.entries(f'{of(resource)} AND timestamp="{each["timestamp"]}"')]
        later = [one["insertId"] for one in log.entries(f'{of(resource)} AND timestamp>"{each["timestamp"]}"')]
        assert each["insertId"] in here
        assert set(later) | set(here) >= {one["insertId"] for one in every[at:]}


def test_the_command_shows_it_and_finds_what_was_refused(server, log, model):
    resource = f"projects/{server.project}/models/{model}"
    server.http.delete(f"/v1/{resource}", headers=people.bearer(server, "user:eve@example.com"))
    log.waited(of(resource), 2)
    shown = run_cli(server, "audit", "--resource", f"models/{model}")
    assert shown.returncode == 0, shown.stderr
    head, newest, oldest = shown.stdout.splitlines()
    assert head.split() == ["TIME", "MEMBER", "METHOD", "RESOURCE", "ALLOWED", "CODE"]
    assert newest.split()[1:] == ["user:eve@example.com", "ml.projects.models.delete", resource, "NO", "403"]
    assert oldest.split()[4:] == ["yes", "200"]
    denied = run_cli(
        server, "audit", "--denied", "--since", "1h", "--member", "user:eve@example.com", "--format", "json"
    )
    assert all(each["severity"] == "ERROR" for each in json.loads(denied.stdout))
    assert run_cli(server, "audit", "--limit", "1", "--format", "json").stdout.count('"insertId"') == 1
    assert "no length of time" in run_cli(server, "audit", "--since", "yesterday").stderr


def test_reads_are_kept_where_they_are_asked_for_and_rows_survive_a_stop(start_server):
    server = start_server(None, TAXIWAY_AUDIT_READS="1")
    assert server.call("GET", f"/v1/projects/{server.project}/models").status_code == 200
    server.stop()
    rows = people.opened(server)
    condition = table.c.method == "ml.projects.models.list"
    (row,) = kept(rows, condition)
    rows.close()
    assert (row.log, row.allowed, row.code, row.project) == (DATA_ACCESS, True, 200, server.project)
