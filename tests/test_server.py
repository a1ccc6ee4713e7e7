"""One server from its start to its end, what it answers to whom, and what it leaves on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import disks
import httpx
import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import taxiway.server
from taxiway import household, plan, schemas
from taxiway.compute import attempts
from taxiway.db.database import Database
from taxiway.iam import keys, projects

CURL = ["curl", "-sS", "--max-time", "20"]


def up(*words, home, **rest):
    """`taxiway up` that is expected not to come up."""
    command = [sys.executable, "-m", "taxiway", "up", "--home", str(home), *words]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAXIWAY_")}
    return subprocess.run(command, capture_output=True, text=True, env={**environ, **rest}, timeout=60)


def refused(ended, *parts):
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    (line,) = [each for each in ended.stderr.splitlines() if each.startswith("ERROR: (taxiway.up)")]
    for part in parts:
        assert part in line


# --- start and end ---


def test_it_says_that_it_is_well(server):
    answer = server.http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert server.http.head("/healthz").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_ports_and_project_stay(start_server, number):
    first = start_server()
    kept = httpx.Client(base_url=first.url)  # a pooled connection must not hold it up
    assert kept.get("/healthz").status_code == 200
    began = time.monotonic()
    first.process.send_signal(number)
    assert first.process.wait(30) == 0
    assert time.monotonic() - began < 8
    kept.close()
    assert "Traceback" not in first.log
    again = start_server()
    for name in ("url", "tls_port", "proxy_port", "project", "project_number", "service_agent", "key", "bundle"):
        assert getattr(again.address, name) == getattr(first.address, name)
    assert again.address.pid == again.process.pid != first.address.pid


def test_it_starts_again_after_a_kill(start_server):
    start_server().kill()
    assert start_server().http.get("/healthz").status_code == 200


def test_the_token_and_the_key_hold_over_a_restart(start_server):
    first = start_server()
    token, key = first.token, json.loads(first.key.read_text())
    assert first.stop() == 0
    again = start_server()
    assert again.token != token  # a fresh one
    assert json.loads(again.key.read_text()) == key
    for each in (token, again.token):
        answer = again.http.get(f"/v1/projects/{again.project}", headers={"Authorization": f"Bearer {each}"})
        assert answer.status_code == 200, answer.text


def test_a_lost_or_strange_key_file_is_made_again(db, server, tmp_path):
    here = msgspec.structs.replace(server.address, key=str(tmp_path / "key.json"))
    email = household.owner_account(here.project)
    db.write(lambda tx: projects.create(tx, here.project, owners=["user:a@b"], now=1))
    db.write(lambda tx: projects.create_account(tx, here.project, email, "", now=1))
    path = tmp_path / "key.json"
    household.write_key(db, here)
    first = path.read_text()
    household.write_key(db, here)
    assert path.read_text() == first
    seen = {json.loads(first)["private_key_id"]}
    for content in (first.replace(*seen, "0" * 40), "{", "[]", "null"):
        path.write_text(content)
        household.write_key(db, here)
        key = json.loads(path.read_text())
        assert key["private_key_id"] not in {*seen, "0" * 40}
        assert keys.has_key(db, key["private_key_id"])
        seen.add(key["private_key_id"])
    household.write_key(db, msgspec.structs.replace(here, url="http://127.0.0.1:9"))
    moved = json.loads(path.read_text())
    assert moved == {**key, "token_uri": "http://127.0.0.1:9/token", "auth_uri": "http://127.0.0.1:9/auth"}


def test_the_token_file_is_renewed(tmp_path, server):
    here = msgspec.structs.replace(server.address, access_token=str(tmp_path / "token"))
    token = tmp_path / "token"

    async def watch():
        renewing = asyncio.create_task(taxiway.server._renew(keys.Keys(b"s" * 32), here, 0.01))
        seen = set()
        while len(seen) < 3:
            if token.exists():
                seen.add(token.stat().st_mtime_ns)
            await asyncio.sleep(0.005)
        renewing.cancel()

    asyncio.run(asyncio.wait_for(watch(), 20))
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_it_writes_down_where_it_listens(server):
    told = json.loads((server.home / "server.json").read_text())
    assert told["pid"] == server.process.pid
    assert told["url"] == server.url
    assert told["owner"] == f"owner@{server.project}.localhost"
    assert told["service_agent"].startswith(f"service-{told['project_number']}@cloud-ml.google.com.iam")
    for name in ("access_token", "key", "boto", "bundle"):
        assert Path(told[name]).is_file()


def test_secrets_are_for_their_owner_only(server):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(server.home) == 0o700
    for folder in ("keys", "credentials", "blobs"):
        assert mode(server.home / folder) == 0o700, folder
    files = [*(server.home / "keys").iterdir(), *(server.home / "credentials").iterdir(), *server.home.glob("*.db*")]
    files += list((server.home / "tls").glob("*.key"))
    assert len(files) >= 8
    for path in files:
        assert mode(path) == 0o600, path


# --- a start that cannot be ---


def test_a_second_server_on_a_home_is_refused(server):
    refused(up("--port", "0", home=server.home), f"Another server (pid {server.process.pid})", "--home DIR")
    assert server.http.get("/healthz").status_code == 200


def test_a_port_in_use_is_refused(tmp_path, server):
    port = server.url.rpartition(":")[2]
    refused(up("--port", port, home=tmp_path / "home"), f"127.0.0.1:{port}", "Address already in use", "--port")


def test_an_address_of_another_machine_is_refused(tmp_path):
    refused(up("--host", "192.0.2.1", "--port", "0", home=tmp_path / "home"), "192.0.2.1:0", "--host")


def test_settings_that_do_not_hold_are_refused(tmp_path):
    refused(up(home=tmp_path / "home", TAXIWAY_PROT="1"), "TAXIWAY_PROT", "TAXIWAY_PORT")
    refused(up("--port", "99999", home=tmp_path / "home"), "--port", "65535")
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "home").touch()
    refused(up("--port", "0", home=tmp_path / "home"), "cannot be written: File exists")


def test_a_read_only_home_is_refused(tmp_path):
    with disks.small_disk(tmp_path / "disk") as folder:
        disks.remount(folder, "ro")
        refused(up("--port", "0", home=folder / "home"), f"The home {folder / 'home'}", "Read-only file system")


@pytest.mark.parametrize("room_kib", [0, 40, 300, 400])
def test_a_full_home_is_refused_wherever_it_is_noticed(tmp_path, room_kib):
    with disks.small_disk(tmp_path / "disk") as folder:
        (folder / "room").write_bytes(bytes(room_kib * 1024))
        disks.fill(folder)
        (folder / "room").unlink()
        ended = up("--port", "0", home=folder / "home")
        refused(ended, "disk is full" if "disk is full" in ended.stderr else "No space left on device")


def test_a_home_that_fills_up_tells_and_goes_on(tmp_path, start_server):
    with disks.small_disk(tmp_path / "disk", "8m") as folder:
        running = start_server(folder / "home")
        filled = disks.fill(folder)
        answer = running.call(
            "POST", f"/v1/projects/{running.project}/models", json={"name": "m", "description": "x" * 10**6}
        )
        assert answer.status_code == 507, answer.text
        assert "free some space" in answer.json()["error"]["message"]
        assert running.http.get("/healthz").status_code == 200
        filled.unlink()
        answer = running.call("POST", f"/v1/projects/{running.project}/models", json={"name": "m"})
        assert answer.status_code == 200, answer.text
        assert running.stop() == 0
        assert "Traceback" not in running.log


# --- who asks ---


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/projects"),
        ("GET", "/v1/projects/{project}"),
        ("GET", "/v1/projects/{project}:getConfig"),
        ("GET", "/v1/projects/no-such-project/models"),
        ("POST", "/v1/projects/{project}/jobs"),
        ("POST", "/v1/projects/{project}/models/m:predict"),
        ("POST", "/v1/projects/{project}/models/m:explain"),
        ("POST", "/v2/entries:list"),
        ("GET", "/storage/v1/b?project={project}"),
        ("GET", "/storage/v1/b"),
        ("GET", "/storage/v1/b/no-such-bucket/o/x?alt=media"),
        ("POST", "/upload/storage/v1/b/no-such-bucket/o?uploadType=media&name=x"),
        ("GET", "/taxiway/v1/attempts/a1"),
    ],
)
def test_without_a_token_one_is_nobody_on_loopback_too(server, method, path):
    path = path.format(project=server.project)
    answer = server.http.request(method, path)
    assert answer.status_code in (401, 403) if "attempts" in path else answer.status_code == 401, answer.text
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for header in ("Bearer forged", "Bearer", "Basic YTpi", f"Bearer {server.token}x"):
        answer = server.http.request(method, path, headers={"Authorization": header})
        assert answer.status_code == 401, (header, answer.text)
        assert "Traceback" not in answer.text


def test_the_data_host_does_not_let_anybody_in(server):
    """A request for storage.googleapis.com may be XML-style; it is authorised all the same."""
    made = server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": "host-rides"})
    assert made.status_code == 200, made.text
    url = "/upload/storage/v1/b/host-rides/o?uploadType=media&name=a%2Fb"
    assert server.call("POST", url, content=b"ride").status_code == 200
    mine = {"Authorization": f"Bearer {server.token}"}
    paths = ("/host-rides/a/b", "/host-rides/a%2Fb", "/storage/v1/b/host-rides/o/a%2Fb?alt=media")
    for host in ("storage.googleapis.com", "STORAGE.googleapis.com:443"):
        for path in paths:
            assert server.http.get(path, headers={"Host": host}).status_code == 401
            answer = server.http.get(path, headers={"Host": host, **mine})
            assert (answer.status_code, answer.content) == (200, b"ride"), path
        assert server.http.get("/v1/projects", headers={"Host": host}).status_code in (401, 404)
    assert server.http.get("/host-rides/a/b", headers=mine).status_code == 404  # not XML-style by any other name


def test_an_owners_service_account_may_what_the_owner_may(server):
    key = json.loads(server.key.read_text())
    assert key["token_uri"] == f"{server.url}/token"
    assertion = signed(key)
    answer = server.http.post("/token", data={"grant_type": keys.JWT_GRANT, "assertion": assertion})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["token_type"], answer.json()["expires_in"]) == ("Bearer", 3600)
    for token in (answer.json()["access_token"], assertion):  # exchanged, or as it is
        answer = server.http.get("/v1/projects", headers={"Authorization": f"Bearer {token}"})
        assert [each["projectId"] for each in answer.json()["projects"]] == [server.project]


def test_a_replicas_token_reports_on_its_attempt_and_opens_nothing_else(server):
    held = keys.load(server.home / "keys")
    rows = Database(server.home / "taxiway.db")
    (work,) = plan.training(
        server.project, 1, "no_job", schemas.TrainingInput(python_module="m"), runtime="2.21", python="3.11"
    )
    identity = server.address.service_agent
    rows.write(lambda tx: attempts.create(tx, "mine", "test", work, identity=identity, now=time.time()))
    rows.write(lambda tx: attempts.create(tx, "other", "test2", work, identity=identity, now=time.time()))
    own = {"Authorization": f"Bearer {held.replica_token('mine', now=time.time())}"}
    answer = server.http.get("/taxiway/v1/attempts/mine", headers=own)
    assert answer.json()["identity"] == identity
    assert server.http.get("/taxiway/v1/attempts/other", headers=own).status_code == 403
    assert server.call("GET", "/taxiway/v1/attempts/mine").status_code == 403  # nor is it for the owner
    project = f"/v1/projects/{server.project}"
    for path in ("/v1/projects", project, f"{project}/jobs", f"/storage/v1/b?project={server.project}"):
        assert server.http.get(path, headers=own).status_code == 401, path
    assert server.http.post(f"{project}/models/m:predict", headers=own).status_code == 401

    users = server.http.post("/taxiway/v1/attempts/mine:token", headers=own).json()["access_token"]
    theirs = {"Authorization": f"Bearer {users}"}
    assert server.http.get("/taxiway/v1/attempts/mine", headers=theirs).status_code == 403
    answer = server.http.get(f"{project}/jobs", headers=theirs)
    assert f"serviceAccount:{identity} does not have ml.jobs.list" in answer.json()["error"]["message"]

    rows.write(lambda tx: attempts.fence(tx, "mine", now=time.time()))
    for header in (own, theirs):
        for path in ("/taxiway/v1/attempts/mine", f"{project}/jobs"):
            answer = server.http.get(path, headers=header)
            assert answer.status_code == 401
            assert "has ended or was superseded" in answer.json()["error"]["message"]
    rows.write(lambda tx: attempts.fence(tx, "other", now=time.time()))
    rows.close()


def test_the_token_endpoint_refuses_in_oauths_words(server):
    key = json.loads(server.key.read_text())
    cases = [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "authorization_code", "code": "x"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_grant"),
        ({"grant_type": keys.JWT_GRANT}, "invalid_grant"),
        ({"grant_type": keys.JWT_GRANT, "assertion": "x"}, "invalid_grant"),
        ({"grant_type": keys.JWT_GRANT, "assertion": server.token}, "invalid_grant"),
        ({"grant_type": keys.JWT_GRANT, "assertion": signed(key) + "x"}, "invalid_grant"),
        ({"grant_type": keys.JWT_GRANT, "assertion": signed(key, iat=time.time() - 9000)}, "invalid_grant"),
    ]
    for form, word in cases:
        for rest in ({"data": form}, {"json": form}):
            answer = server.http.post("/token", **rest)
            assert (answer.status_code, answer.json()["error"]) == (400, word), form
            assert answer.json()["error_description"]
    assert server.http.post("/token", content=b"a" * (2 << 20)).status_code == 413


# --- bad requests ---


def test_an_unknown_path_says_where_the_api_is(server):
    for path in ("/", "/nowhere", "/v1", "/v1/projects/a/b/c", "/v1beta1/projects/p/jobs", "//healthz", "/%00"):
        answer = server.call("GET", path)
        assert answer.status_code == 404, path
        assert "/$discovery/rest" in answer.json()["error"]["message"]
    assert server.call("GET", "/storage/v1/nowhere").json()["error"]["errors"][0]["reason"] == "notFound"


def test_a_path_by_a_wrong_method_says_which_is_right(server):
    answer = server.call("DELETE", f"/v1/projects/{server.project}/jobs")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == 405
    assert "DELETE is not offered" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "project", ["no-such-project", "..%2Fx", "9" * 12, "9" * 40, "a%00b", "%F0%9F%9A%95", "x" * 5000]
)
def test_a_project_that_is_none_is_not_found(server, project):
    for path in ("/jobs", "/models/m", ":getConfig", ""):
        answer = server.call("GET", f"/v1/projects/{project}{path}")
        assert answer.status_code == 404, answer.text


def test_a_list_of_buckets_needs_a_project(server):
    answer = server.call("GET", "/storage/v1/b")
    assert answer.status_code == 400
    assert "project" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 200_000, b"nope"])
def test_a_body_that_is_no_json_is_refused(server, body):
    for path in (
        f"/v1/projects/{server.project}/jobs",
        f"/v1/projects/{server.project}:setIamPolicy",
        "/v2/entries:list",
    ):
        answer = server.call("POST", path, content=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["status"] == "INVALID_ARGUMENT"


def test_an_oversized_body_is_refused(server):
    answer = server.call("POST", f"/v1/projects/{server.project}/jobs", content=b" " * (65 << 20))
    assert answer.status_code == 413
    assert "over 64 MiB" in answer.json()["error"]["message"]


def test_a_policy_of_the_project_is_read_changed_and_checked(server):
    path = f"/v1/projects/{server.project}"
    policy = server.call("POST", f"{path}:getIamPolicy", json={}).json()
    added = {"role": "roles/ml.viewer", "members": ["user:bob@example.com"]}
    changed = {**policy, "bindings": [*policy["bindings"], added]}
    answer = server.call("POST", f"{path}:setIamPolicy", json={"policy": changed})
    assert added in answer.json()["bindings"]
    assert server.call("POST", f"{path}:setIamPolicy", json={"policy": changed}).status_code == 409
    for bad in (None, [], {"policy": None}, {"policy": {"bindings": ["x"]}}, {"policy": {"bindings": []}}):
        assert server.call("POST", f"{path}:setIamPolicy", json=bad).status_code == 400, bad
    answer = server.call("POST", f"{path}:setIamPolicy", json={"policy": {"bindings": policy["bindings"]}})
    assert answer.json()["bindings"] == policy["bindings"]


def test_headers_that_come_back_are_not_split(server):
    """What a client writes into its Host header comes back in links only, never as a header of its own."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(b"GET /$discovery/rest?version=v1 HTTP/1.1\r\nHost: a.b\rX-Evil: 1\r\nConnection: close\r\n\r\n")
        head = b"".join(iter(lambda: raw.recv(65536), b"")).partition(b"\r\n\r\n")[0]
    assert b"x-evil" not in head.lower()


# --- TLS, and the proxy ---


def test_the_tls_port_is_whom_the_bundle_says(server):
    context = ssl.create_default_context(cafile=server.address.bundle)
    for name in ("127.0.0.1", "localhost"):
        answer = httpx.get(f"https://{name}:{server.address.tls_port}/healthz", verify=context, trust_env=False)
        assert answer.json() == {"status": "ok"}
    with pytest.raises(httpx.ConnectError, match="verify failed"):
        httpx.get(f"https://localhost:{server.address.tls_port}/healthz", trust_env=False)


@pytest.mark.parametrize("host", ["storage.googleapis.com", "ml.googleapis.com", "us-central1-ml.googleapis.com"])
def test_the_proxy_brings_googles_names_to_the_server(server, host):
    command = [*CURL, "-x", f"http://127.0.0.1:{server.address.proxy_port}", "--cacert", server.address.bundle]
    answer = subprocess.run(
        [*command, f"https://{host}/$discovery/rest?version=v1"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["rootUrl"] == f"https://{host}/"


def test_the_proxy_tunnels_other_hosts_untouched(server):
    command = [*CURL, "-p", "-x", f"http://127.0.0.1:{server.address.proxy_port}", f"{server.url}/healthz"]
    answer = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert json.loads(answer.stdout) == {"status": "ok"}, answer.stderr


# --- helpers ---


def signed(key, iat=None):
    now = iat or time.time()
    claims = {"iss": key["client_email"], "aud": "https://oauth2.googleapis.com/token", "iat": now, "exp": now + 3600}
    return jwt.encode(claims, key["private_key"], algorithm="RS256", headers={"kid": key["private_key_id"]})


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=4), st.text("a=&%+;2F", max_size=12))
def test_a_query_is_read_as_the_standard_library_reads_it(pairs, raw):
    for text in (urlencode(pairs), raw):
        assert taxiway.server._query(text.encode()) == dict(parse_qsl(text, keep_blank_values=True))
