"""The table of strangers: every route, live, as everybody who has no business there. Run with -s to read the table.

A row is refused to all of them (401, or 403 to whoever has a name), tells nothing and changes nothing; or it stands in
OPEN with what it answers, and why. A new route is in the table by being a route: it needs at most samples for its path.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Collection
from typing import NamedTuple

import jwt
import msgspec
import people
import pytest
from conftest import start
from cryptography.hazmat.primitives.asymmetric import rsa

from taxiway import plan, schemas
from taxiway import server as house
from taxiway.api import ml, storage
from taxiway.api.call import REPLICA, Route
from taxiway.cli import signing
from taxiway.compute import attempts
from taxiway.db import tables
from taxiway.jobs import queue
from taxiway.models import registry

SECRET = "what only its owner may read"
DATA_HOST = "storage.googleapis.com"
HOUR = 3600
OF_STUDIES = "/v1/projects/{project}/locations/{location}/operations/{operation}"
LATER = ("audit", "alembic_version")  # tables that a refused request may write to

BARE = [
    Route("POST", "/v1/projects/{project}/models/{model}:predict", "ml.models.predict", lambda call: None),
    Route("POST", "/v1/projects/{project}/models/{model}/versions/{version}:predict", "", lambda call: None),
]
ROWS = [
    *(("pages", route) for route in house.ROUTES),
    *(("objects", route) for route in storage.XML_ROUTES),
    *(("bare", route) for route in BARE),
]

# A row that asks for more than its path.
QUERIES = {
    ("GET", "/storage/v1/b"): {"project": "{project}"},
    ("POST", "/storage/v1/b"): {"project": "{project}"},
    ("POST", "/upload/storage/v1/b/{bucket}/o"): {"uploadType": "media", "name": "theirs"},
    ("POST", "/resumable/upload/storage/v1/b/{bucket}/o"): {"uploadType": "resumable", "name": "theirs"},
    ("PUT", "/upload/storage/v1/b/{bucket}/o"): {"upload_id": "a-guess"},
    ("DELETE", "/upload/storage/v1/b/{bucket}/o"): {"upload_id": "a-guess"},
    ("PUT", "/resumable/upload/storage/v1/b/{bucket}/o"): {"upload_id": "a-guess"},
    ("DELETE", "/resumable/upload/storage/v1/b/{bucket}/o"): {"upload_id": "a-guess"},
    ("GET", "/storage/v1/b/{bucket}/iam/testPermissions"): {"permissions": "storage.objects.get"},
    ("GET", "/storage/v1/b/{bucket}/o/{object}/iam/testPermissions"): {"permissions": "storage.objects.get"},
    ("POST", "/storage/v1/b/{bucket}/o/{object}/restore"): {"generation": "1"},
}
PREFLIGHT = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
INNER = b"--cut\r\nContent-Type: application/http\r\n\r\nDELETE /storage/v1/b/owners-things HTTP/1.1\r\n\r\n--cut--"
ACL = {"entity": "allUsers", "role": "READER"}
ASKED = {"permissions": ["ml.models.get", "ml.jobs.get", "resourcemanager.projects.get", "iam.serviceAccounts.get"]}
BODIES = {
    ("PATCH", "/v1/projects/{project}/serviceAccounts/{account}"): {
        "serviceAccount": {"displayName": "Stranger"},
        "updateMask": "displayName",
    },
    ("POST", "/v1/permissions:queryTestablePermissions"): {
        "fullResourceName": "//cloudresourcemanager.googleapis.com/projects/{project}"
    },
    ("POST", "/v2/entries:list"): {"resourceNames": ["projects/{project}"]},
    ("POST", "/storage/v1/b"): {"name": "a-bucket-of-a-stranger"},
    ("POST", "/storage/v1/b/{bucket}/acl"): ACL,
    ("POST", "/storage/v1/b/{bucket}/defaultObjectAcl"): ACL,
    ("POST", "/storage/v1/b/{bucket}/o/{object}/acl"): ACL,
    ("POST", "/v1/projects"): {"projectId": "{project}"},
    ("POST", "/taxiway/v1/users"): {"email": "stranger@example.com", "password": "long-enough-for-a-password"},
}


class Open(NamedTuple):
    """A row that refuses not everybody: what it answers, and why that is right."""

    why: str
    nobody: Collection[int] = (401,)  # to whoever has no token that holds
    member: Collection[int] = (403,)  # to an unrelated member
    holds: str = ""  # a pattern of the whole answer to the member: nothing of anybody else is in it


DOCUMENT = Open("the API's description is for everybody", {200}, {200})
GUESS = Open("an upload's URL is a secret of its own: a guess finds nothing", {404, 410}, {404, 410})
TOKEN = Open("it asks for its own proof, which there is none of here", {400}, {400})
OWN_NAME = Open("it tells the caller's own name", {401}, {200}, r'\{"(id|sub)":"neighbour@next-door-1\.[^{]*\}')
OWN_PROJECTS = Open("it lists the caller's own", {401}, {200}, r'\{"projects":\[\{"projectId":"next-door-1"[^{]*\}\]\}')
CATALOGUE = Open("the roles that there are, for every member", {401}, {200})
NO_RULE = Open("a browser is told that no page may", {200}, {200})
NONE_HELD = Open("it tells the caller's own permissions: none", {401}, {200}, r'\{("kind":"[^"]*")?\}')
NO_REGIONS = Open("there are no regions, for nobody", {401}, {404})
PARTS = Open("it asks for each part", {200}, {200}, r"(?s).*HTTP/1.1 403 Forbidden.*does not have.*")
LATER_OFFERED = Open("no method yet, for nobody", {401}, {501})

UPLOADS = ("/upload/storage/v1/b/{bucket}/o", "/resumable/upload/storage/v1/b/{bucket}/o")
OPEN = {
    ("GET", "/healthz"): Open("whether the server is well", {200}, {200}, r'\{"status":"ok"\}'),
    ("GET", "/$discovery/rest"): DOCUMENT,
    ("GET", "/discovery/v1/apis/{api}/{version}/rest"): DOCUMENT,
    ("GET", "/cloud-ml/discovery/ml_v1_discovery.json"): DOCUMENT,
    **{("POST", path): TOKEN for path in ("/token", "/oauth2/v4/token", "/o/oauth2/token")},
    **{("POST", path): TOKEN for path in ("/revoke", "/o/oauth2/revoke")},
    **{("GET", path): TOKEN for path in ("/tokeninfo", "/oauth2/v1/tokeninfo", "/oauth2/v3/tokeninfo")},
    ("POST", "/tokeninfo"): TOKEN,
    **{("GET", path): OWN_NAME for path in ("/oauth2/v1/userinfo", "/oauth2/v3/userinfo", "/v1/userinfo")},
    ("GET", "/v1/projects"): OWN_PROJECTS,
    ("GET", "/v1/roles"): CATALOGUE,
    ("GET", "/v1/roles/{role}"): CATALOGUE,
    ("POST", "/v1/permissions:queryTestablePermissions"): CATALOGUE,
    ("GET", "/compute/v1/projects/{project}/regions/{region}"): NO_REGIONS,
    ("POST", "/batch/storage/v1"): PARTS,
    **{(verb, path): GUESS for verb in ("PUT", "DELETE") for path in UPLOADS},
    **{("OPTIONS", path): NO_RULE for path in ("/{bucket}", "/{bucket}/{object:path}", *UPLOADS)},
}
EVERY = {(route.method, route.path) for _, route in ROWS}


class Stranger(NamedTuple):
    name: str
    headers: dict[str, str]


class World:
    """A server with something of everything in its project, and strangers to it."""

    def __init__(self, server):
        self.server = server
        self.neighbour, self.key = people.second_project(server, "next-door-1")
        self.strangers = [
            Stranger("anonymous", {}),
            Stranger("forged", people.bearer(server, f"user:{server.address.owner}", secret=secrets.token_bytes(32))),
            Stranger("expired", people.bearer(server, f"user:{server.address.owner}", now=time.time() - 2 * HOUR)),
            Stranger("unknown key", {"Authorization": f"Bearer {self._self_signed()}"}),
            Stranger("neighbour", people.bearer(server, self.neighbour)),
        ]
        self.samples, asked = self._fill(), self._study()
        self.others = {  # where a part of a path has another meaning
            "/discovery/v1/apis/{api}/{version}/rest": {"version": "v1"},
            "/v1/operations/{operation}": {"operation": f"cp.{server.address.project_number}"},
            OF_STUDIES: {"operation": asked},
            f"{OF_STUDIES}:cancel": {"operation": asked},
        }

    def _study(self):
        """A study with a trial that somebody tries; answers an operation of it."""
        studies = f"/v1/projects/{self.server.project}/locations/us-central1/studies"
        words = {"parameter": "p", "type": "CATEGORICAL", "categoricalValueSpec": {"values": [SECRET]}}
        config = {"metrics": [{"metric": SECRET}], "parameters": [words]}
        self.owner("POST", studies, params={"studyId": "s1"}, json={"studyConfig": config})
        tried = {"state": "ACTIVE", "parameters": [{"parameter": "p", "stringValue": SECRET}]}
        self.owner("POST", f"{studies}/s1/trials", json=tried)
        asked = self.owner("POST", f"{studies}/s1/trials/1:checkEarlyStoppingState", json={})
        return asked.json()["name"].rpartition("/")[2]

    def _self_signed(self):
        """As a service account's own JWT, in the owner's name, by a key that nobody gave out."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        owner = msgspec.json.decode(self.server.key.read_bytes())["client_email"]
        claims = {"iss": owner, "sub": owner, "aud": "https://x/", "iat": time.time(), "exp": time.time() + HOUR}
        return jwt.encode(claims, private, algorithm="RS256", headers={"kid": uuid.uuid4().hex})

    def _fill(self):
        """Something of everything; answers a sample for each part of a path."""
        server = self.server
        project, bucket, name = server.project, "owners-things", "a/secret.txt"
        ours = f"/storage/v1/b/{bucket}"
        self.owner("POST", "/storage/v1/b", params={"project": project}, json={"name": bucket})
        told = {"uploadType": "media", "name": name}
        self.owner("POST", f"/upload{ours}/o", params=told, content=SECRET.encode())
        entity = f"user-{server.address.owner}"
        for place in ("acl", "defaultObjectAcl", f"o/{name.replace('/', '%2F')}/acl"):
            self.owner("POST", f"{ours}/{place}", json={"entity": entity, "role": "OWNER"})
        self.owner("POST", f"/v1/projects/{project}/models", json={"name": "m", "description": SECRET})
        key = msgspec.json.decode(server.key.read_bytes())
        rows, now = people.opened(server), time.time()
        input = schemas.TrainingInput(python_module=SECRET, runtime_version="2.21", python_version="3.11")
        (work,) = plan.training(project, 1, "j", input, runtime="2.21", python="3.11")
        operation = rows.write(lambda tx: registry.begin(tx, project, "CREATE_VERSION", "m", "v", now=now)).id
        rows.write(lambda tx: attempts.create(tx, "a1", "test", work, identity=key["client_email"], now=now))
        rows.write(lambda tx: tx.execute(tables.versions.insert().values(**a_version(project, now))))
        rows.write(lambda tx: tx.execute(tables.jobs.insert().values(**a_job(project, input, now))))
        rows.close()
        return {
            "account": key["client_email"],
            "api": "ml",
            "attempt": "a1",
            "bucket": bucket,
            "email": server.address.owner,
            "entity": entity,
            "job": "j",
            "key": key["private_key_id"],
            "location": "us-central1",
            "model": "m",
            "object": name,
            "operation": operation,
            "project": project,
            "region": "us-central1",
            "rest": "models/m",
            "role": "viewer",
            "source": name,
            "source_bucket": bucket,
            "study": "s1",
            "trial": "1",
            "version": "v",
        }

    def owner(self, method, path, **rest):
        answer = self.server.call(method, path, **rest)
        assert answer.status_code < 300, answer.text
        return answer

    def path(self, kind, route):
        """A route's path to things that are there."""

        def filled(match):
            part, _, converter = match[1].partition(":")
            sample = self.others.get(route.path, self.samples).get(part) or self.samples.get(part)
            assert sample is not None, f"{route.method} {route.path}: give {{{part}}} a sample in World._fill"
            return sample if converter == "path" else sample.replace("/", "%2F")

        return re.sub(r"{([^}]*)}", filled, route.path)

    def ask(self, kind, route, headers):
        at = (route.method, route.path)
        query = {name: value.format(**self.samples) for name, value in QUERIES.get(at, {}).items()}
        if kind == "objects":
            headers = {**headers, "Host": DATA_HOST}
        if route.path.startswith("/batch"):
            headers = {**headers, "Content-Type": "multipart/mixed; boundary=cut"}
            return self.server.http.post(route.path, headers=headers, content=INNER)
        if route.method == "OPTIONS":
            headers = {**headers, **PREFLIGHT}
        if route.method in ("GET", "HEAD", "DELETE", "OPTIONS"):
            return self.server.http.request(route.method, self.path(kind, route), params=query, headers=headers)
        body = ASKED if route.path.endswith("testIamPermissions") else BODIES.get(at, {})
        content = msgspec.json.encode(body).decode().replace("{project}", self.samples["project"]).encode()
        headers = {**headers, "Content-Type": "application/json"}
        path = self.path(kind, route)
        return self.server.http.request(route.method, path, params=query, headers=headers, content=content)

    def everything(self):
        """All rows of all tables, but those that refusals themselves may write to."""
        rows = people.opened(self.server)
        try:
            with rows.read() as look:
                return {
                    name: sorted(map(repr, look.execute(table.select())))
                    for name, table in tables.metadata.tables.items()
                    if name not in LATER
                }
        finally:
            rows.close()


def a_version(project, now):
    told = schemas.Version(name="v", deployment_uri="gs://owners-things/a", runtime_version="2.21")
    return {
        **{"project": project, "model": "m", "name": "v", "resource": msgspec.to_builtins(told), "state": "READY"},
        **{"folder": "gs://owners-things/a/", "runtime": {}, "etag": 1, "created": now},
    }


def a_job(project, input, now):
    return {
        **{"project": project, "id": "j", "position": 1, "state": queue.State.SUCCEEDED.value},
        **{"training": msgspec.to_builtins(input), "labels": {}, "etag": 1, "creator": "user:x@y", "attempts": 1},
        **{"created": now, "ended": now},
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    server = start(tmp_path_factory.mktemp("strangers") / "home")
    yield World(server)
    server.http.close()
    assert server.stop() == 0
    assert "Traceback" not in server.log, server.log


def how(route):
    """What a row answers to strangers, if it refuses not all of them."""
    at = (route.method, route.path)
    found = OPEN.get(at)
    if found is None and route.path.endswith(("testIamPermissions", "/iam/testPermissions")):
        found = NONE_HELD
    method = ml.METHOD_IDS.get(at, "").removeprefix("ml.")
    if found is None and method and method not in (*ml.OFFERED, *ml.BARE):
        found = LATER_OFFERED
    return found


@pytest.mark.parametrize(("kind", "route"), ROWS, ids=[f"{route.method} {route.path}" for _, route in ROWS])
def test_a_stranger_gets_nothing_and_changes_nothing(world, kind, route):
    before = world.everything()
    opened = how(route) or Open("")
    answers = {stranger.name: world.ask(kind, route, stranger.headers) for stranger in world.strangers}
    codes = {name: answer.status_code for name, answer in answers.items()}
    shown = " ".join(f"{name} {code}" for name, code in codes.items())
    print(f"{route.method:7}{route.path:95} {shown}   {opened.why}")
    for name, answer in answers.items():
        wanted = opened.member if name == "neighbour" else opened.nobody
        assert answer.status_code in wanted, f"{name}: {answer.status_code} {answer.text}"
        assert SECRET not in answer.text, f"{name} reads it: {answer.text}"
        assert "Traceback" not in answer.text
    if route.method == "OPTIONS":
        assert not any("access-control-allow-origin" in answer.headers for answer in answers.values())
    if route.path.startswith("/batch"):
        assert "HTTP/1.1 401" in answers["anonymous"].text
    if opened.holds and codes["neighbour"] == 200:
        assert re.fullmatch(opened.holds, answers["neighbour"].text), answers["neighbour"].text
    if codes["neighbour"] == 403 and route.permission != REPLICA:  # that one cannot be granted
        for word in (f"{world.neighbour} does not have ", "Grant it: "):
            assert word in answers["neighbour"].text, answers["neighbour"].text
    assert world.everything() == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_strangers_signed_url_gets_nothing_and_changes_nothing(world, method):
    """Signed in the owner's name by another key, signed by the owner once and too old, signed by a neighbour."""
    key, now = msgspec.json.decode(world.server.key.read_bytes()), time.time()
    before, path = world.everything(), "/owners-things/a/secret.txt"
    forged = signing.Signer(key["client_email"], rsa.generate_private_key(public_exponent=65537, key_size=2048))
    urls = {
        "forged": signing.url(forged, method, world.server.url, path, seconds=60, now=now),
        "expired": signing.url(signing.signer_of(key), method, world.server.url, path, seconds=1, now=now - HOUR),
        "neighbour": signing.url(signing.signer_of(world.key), method, world.server.url, path, seconds=60, now=now),
    }
    for name, url in urls.items():
        answer = world.server.http.request(method, url, content=b"mine" if method == "PUT" else None)
        assert answer.status_code == (400 if name == "expired" else 403), (name, answer.text)
        assert SECRET not in answer.text
    assert world.everything() == before


def test_the_open_rows_are_rows():
    assert set(OPEN) <= EVERY, f"no rows any more: {set(OPEN) - EVERY}"
    assert set(QUERIES) | set(BODIES) <= EVERY, (set(QUERIES) | set(BODIES)) - EVERY


def test_what_the_strangers_ask_for_is_there_for_its_owner(world):
    """Else a row would refuse for the wrong reason."""
    for kind, route in ROWS:
        if route.method == "GET" and route.permission.startswith(("storage.", "ml.", "resourcemanager.", "iam.")):
            owner = {"Authorization": f"Bearer {world.server.token}"}
            answer = world.ask(kind, route, owner)
            assert answer.status_code == 200, (route, answer.text)
