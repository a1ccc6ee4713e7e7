"""A bucket's settings and its versions on the wire: asked for as Google's own clients do, kept, told, taken back."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from urllib.parse import quote

import pytest
from google.api_core import exceptions
from google.cloud import storage

DAY = 86_400
RULES = {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30, "matchesPrefix": ["tmp/"]}}]}


@pytest.fixture
def make(server):
    def made(**body):
        name = f"kept-{uuid.uuid4().hex[:12]}"
        answer = server.call("POST", f"/storage/v1/b?project={server.project}", json={"name": name, **body})
        assert answer.status_code == 200, answer.text
        return name

    return made


def ask(server, method, bucket, path="", **rest):
    return server.call(method, f"/storage/v1/b/{bucket}{path}", **rest)


def at(name, action=""):
    return f"/o/{quote(name, safe='')}{action}"


def put(server, bucket, name, data=b"x"):
    query = {"uploadType": "media", "name": name}
    answer = server.call("POST", f"/upload/storage/v1/b/{bucket}/o", params=query, content=data)
    assert answer.status_code == 200, answer.text
    return answer.json()


def listed(server, bucket, **query):
    """(name, generation) of all pages."""
    found, token = [], None
    while True:
        page = ask(server, "GET", bucket, "/o", params={**query, **({"pageToken": token} if token else {})}).json()
        found += [(each["name"], each["generation"]) for each in page.get("items", [])]
        token = page.get("nextPageToken")
        if not token:
            return found


# ---- settings -------------------------------------------------------------------------------------------------------

KEPT = {
    "cors": [{"origin": ["*"], "method": ["GET"], "responseHeader": ["Content-Type"], "maxAgeSeconds": 60}],
    "website": {"mainPageSuffix": "index.html", "notFoundPage": "404.html"},
    "logging": {"logBucket": "logs", "logObjectPrefix": "rides"},
    "billing": {"requesterPays": True},
    "rpo": "DEFAULT",
    "versioning": {"enabled": True},
    "lifecycle": RULES,
}


def told(answer):
    assert answer.status_code == 200, answer.text
    return {field: answer.json()[field] for field in KEPT if field in answer.json()}


def test_what_a_new_bucket_is_told_it_keeps(server, make):
    assert told(ask(server, "GET", make(**KEPT))) == KEPT
    assert told(ask(server, "GET", make())) == {}


def test_a_patch_changes_what_it_names_and_null_takes_it_back(server, make):
    bucket = make()
    assert told(ask(server, "PATCH", bucket, json=KEPT)) == KEPT
    assert told(ask(server, "PATCH", bucket, json={"labels": {"a": "b"}})) == KEPT
    changed = told(ask(server, "PATCH", bucket, json={"website": {"notFoundPage": None}, "billing": None}))
    assert changed["website"] == {"mainPageSuffix": "index.html"}
    assert "billing" not in changed
    left = told(ask(server, "PATCH", bucket, json={**dict.fromkeys(KEPT), "rpo": "DEFAULT"}))
    assert left == {"rpo": "DEFAULT"}


def test_a_put_takes_back_what_it_does_not_name(server, make):
    bucket = make(**KEPT)
    assert told(ask(server, "PUT", bucket, json={"versioning": {"enabled": True}})) == {"versioning": {"enabled": True}}
    assert told(ask(server, "PUT", bucket, json={})) == {}


def test_a_change_of_who_may_leaves_the_settings_alone(server, make):
    bucket = make(**KEPT)
    uniform = {"iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}}}
    assert told(ask(server, "PATCH", bucket, json=uniform)) == KEPT
    again = ask(server, "PATCH", bucket, json={"website": None}).json()
    assert again["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"] is True


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"retentionPolicy": {"retentionPeriod": "60"}}, 501, "retentionPolicy"),
        ({"encryption": {"defaultKmsKeyName": "projects/p/k"}}, 501, "encryption"),
        ({"hierarchicalNamespace": {"enabled": True}}, 501, "hierarchicalNamespace"),
        ({"autoclass": {"enabled": True}}, 501, "autoclass"),
        ({"customPlacementConfig": {"dataLocations": ["A"]}}, 501, "customPlacementConfig"),
        ({"defaultEventBasedHold": True}, 501, "defaultEventBasedHold"),
        ({"ipFilter": {"mode": "Enabled"}}, 501, "ipFilter"),
        ({"versioning": True}, 400, "enabled"),
        ({"versioning": {"enabled": "yes"}}, 400, "enabled"),
        ({"softDeletePolicy": {"retentionDurationSeconds": "60"}}, 400, "7 days"),
        ({"softDeletePolicy": {"retentionDurationSeconds": "7776001"}}, 400, "90 days"),
        ({"softDeletePolicy": {"retentionDurationSeconds": "soon"}}, 400, "retentionDurationSeconds"),
        ({"softDeletePolicy": 604800}, 400, "retentionDurationSeconds"),
        ({"cors": {"origin": ["*"]}}, 400, "cors"),
        ({"cors": [{"origin": "*"}]}, 400, "cors[0].origin"),
        ({"cors": [{"maxAgeSeconds": -1}]}, 400, "cors[0].maxAgeSeconds"),
        ({"website": {"index": "a"}}, 400, "website"),
        ({"rpo": 7}, 400, "rpo"),
        ({"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": "x"}}]}}, 400, "condition.age"),
    ],
)
def test_what_is_wrong_or_would_promise_too_much_is_refused_by_its_name(server, make, body, status, word):
    bucket = make()
    refused = [ask(server, "PATCH", bucket, json=body)]
    other = {"name": f"{bucket}-2", **body}
    refused.append(server.call("POST", f"/storage/v1/b?project={server.project}", json=other))
    for answer in refused:
        assert answer.status_code == status, answer.text
        assert word in answer.json()["error"]["message"]
    assert ask(server, "GET", f"{bucket}-2").status_code == 404


def test_what_asks_for_nothing_is_no_promise(server, make):
    nothing = {
        "retentionPolicy": None,
        "encryption": {},
        "hierarchicalNamespace": {"enabled": False},
        "autoclass": {"enabled": False},
        "ipFilter": {"mode": "Disabled"},
    }
    assert ask(server, "PATCH", make(**nothing), json=nothing).status_code == 200


# ---- versions and soft-deleted objects ------------------------------------------------------------------------------


def test_every_verb_finds_a_generation(server, make):
    bucket = make(versioning={"enabled": True})
    first = put(server, bucket, "a/b", b"one")["generation"]
    second = put(server, bucket, "a/b", b"two")["generation"]
    assert listed(server, bucket) == [("a/b", second)]
    assert listed(server, bucket, versions="true") == listed(server, bucket, versions="true", maxResults=1)
    assert listed(server, bucket, versions="true") == [("a/b", first), ("a/b", second)]
    of_first = {"generation": first}
    found = ask(server, "GET", bucket, at("a/b"), params=of_first).json()
    assert found["timeDeleted"] >= found["timeCreated"]
    assert "timeDeleted" not in ask(server, "GET", bucket, at("a/b")).json()
    assert ask(server, "GET", bucket, at("a/b"), params={**of_first, "alt": "media"}).content == b"one"
    changed = ask(server, "PATCH", bucket, at("a/b"), params=of_first, json={"contentType": "text/x"}).json()
    assert (changed["generation"], changed["contentType"], changed["metageneration"]) == (first, "text/x", "2")
    back = ask(server, "POST", bucket, at("a/b", f"/copyTo/b/{bucket}/o/a%2Fb"), params={"sourceGeneration": first})
    assert back.json()["contentType"] == "text/x"
    assert ask(server, "GET", bucket, at("a/b"), params={"alt": "media"}).content == b"one"
    assert ask(server, "DELETE", bucket, at("a/b"), params=of_first).status_code == 204
    assert ask(server, "DELETE", bucket, at("a/b"), params=of_first).status_code == 404
    assert ask(server, "DELETE", bucket, at("a/b")).status_code == 204
    assert ask(server, "GET", bucket, at("a/b")).status_code == 404
    assert listed(server, bucket, versions="true") == [("a/b", second), ("a/b", back.json()["generation"])]
    refused = ask(server, "DELETE", bucket)
    assert (refused.status_code, "not empty" in refused.text) == (409, True)
    for _, generation in listed(server, bucket, versions="true"):
        assert ask(server, "DELETE", bucket, at("a/b"), params={"generation": generation}).status_code == 204
    assert ask(server, "DELETE", bucket).status_code == 204


def test_a_soft_deleted_object_is_found_and_restored(server, make):
    policy = {"retentionDurationSeconds": str(7 * DAY)}
    bucket = make(softDeletePolicy=policy)
    policy_told = ask(server, "GET", bucket).json()["softDeletePolicy"]
    assert policy_told["retentionDurationSeconds"] == str(7 * DAY)
    assert policy_told["effectiveTime"].endswith("Z")
    generation = put(server, bucket, "a", b"one")["generation"]
    assert ask(server, "DELETE", bucket, at("a")).status_code == 204
    assert listed(server, bucket) == listed(server, bucket, versions="true") == []
    assert listed(server, bucket, softDeleted="true") == [("a", generation)]
    soft = {"softDeleted": "true", "generation": generation}
    found = ask(server, "GET", bucket, at("a"), params=soft).json()
    assert found["hardDeleteTime"] > found["softDeleteTime"] >= found["timeCreated"]
    assert ask(server, "GET", bucket, at("a"), params={"generation": generation}).status_code == 404
    assert ask(server, "GET", bucket, at("a"), params={"softDeleted": "true"}).status_code == 400
    assert ask(server, "GET", bucket, "/o", params={"softDeleted": "true", "versions": "true"}).status_code == 400
    assert ask(server, "POST", bucket, at("a", "/restore")).status_code == 400
    assert ask(server, "POST", bucket, at("a", "/restore"), params={"generation": 5}).status_code == 404
    told = {"generation": generation, "ifGenerationMatch": 0}
    made = ask(server, "POST", bucket, at("a", "/restore"), params=told).json()
    assert int(made["generation"]) > int(generation)
    assert "hardDeleteTime" not in made
    assert ask(server, "GET", bucket, at("a"), params={"alt": "media"}).content == b"one"
    assert ask(server, "POST", bucket, at("a", "/restore"), params=told).status_code == 412
    assert (
        ask(server, "PATCH", bucket, json={"softDeletePolicy": None}).json()["softDeletePolicy"][
            "retentionDurationSeconds"
        ]
        == "0"
    )
    assert ask(server, "DELETE", bucket, at("a")).status_code == 204
    assert ask(server, "DELETE", bucket).status_code == 204, "soft-deleted objects do not keep it"


@pytest.mark.parametrize("held", [{"temporaryHold": True}, {"eventBasedHold": True}, {"retention": {"mode": "Locked"}}])
def test_a_hold_that_would_hold_nothing_is_refused(server, make, held):
    bucket = make()
    put(server, bucket, "o")
    answer = ask(server, "PATCH", bucket, at("o"), json=held)
    assert (answer.status_code, next(iter(held)) in answer.text) == (501, True)
    none = {"temporaryHold": False, "eventBasedHold": None, "retention": None}
    assert ask(server, "PATCH", bucket, at("o"), json=none).status_code == 200


# ---- listings -------------------------------------------------------------------------------------------------------


def test_a_listing_by_pattern(server, make):
    bucket = make()
    for name in ("a/1.csv", "a/b/2.csv", "a/b/3.txt", "c.csv"):
        put(server, bucket, name)
    assert [name for name, _ in listed(server, bucket, matchGlob="**.csv", maxResults=1)] == [
        "a/1.csv",
        "a/b/2.csv",
        "c.csv",
    ]
    page = ask(server, "GET", bucket, "/o", params={"matchGlob": "a/*/", "delimiter": "/", "prefix": "a/"}).json()
    assert (page["prefixes"], "items" in page) == (["a/b/"], False)
    offsets = {"startOffset": "a/b/2.csv", "endOffset": "c", "includeFoldersAsPrefixes": "true"}
    assert [name for name, _ in listed(server, bucket, **offsets)] == ["a/b/2.csv", "a/b/3.txt"]


@pytest.mark.parametrize(
    "query",
    [
        {"pageToken": "???"},
        {"pageToken": "W10"},  # []
        {"pageToken": "WyJhIl0"},  # ["a"]
        {"pageToken": "WyJhIiwtMV0"},  # ["a", -1]
        {"pageToken": "WyJhIiw5OTk5OTk5OTk5OTk5OTk5OTk5OTldfQ"},
        {"pageToken": "WyJhIiw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5XQ"},  # ["a", 9999999999999999999999]
        {"pageToken": "e30"},  # {}
        {"pageToken": "é"},
        {"matchGlob": "[a"},
        {"matchGlob": "*", "delimiter": "a"},
        {"maxResults": "many"},
    ],
)
def test_an_absurd_listing_is_refused(server, make, query):
    answer = ask(server, "GET", make(), "/o", params=query)
    assert answer.status_code == 400, answer.text
    assert next(iter(query)) in answer.text or "delimiter" in answer.text


# ---- Google's clients -----------------------------------------------------------------------------------------------


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.key))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", server.url)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    made = storage.Client(project=server.project)
    yield made
    made.close()


def test_google_cloud_storage_keeps_versions(client, make):
    bucket = client.get_bucket(make())
    bucket.versioning_enabled = True
    bucket.patch()
    assert client.get_bucket(bucket.name).versioning_enabled
    for each in ("one", "two"):
        bucket.blob("o").upload_from_string(each)
    versions = list(client.list_blobs(bucket, versions=True))
    assert [blob.download_as_bytes() for blob in versions] == [b"one", b"two"]
    assert [blob.time_deleted is None for blob in versions] == [False, True]
    old = bucket.get_blob("o", generation=versions[0].generation)
    bucket.copy_blob(old, bucket, "o", source_generation=old.generation)
    assert bucket.blob("o").download_as_bytes() == b"one"
    bucket.delete_blob("o", generation=old.generation)
    assert bucket.get_blob("o", generation=old.generation) is None
    bucket.delete_blob("o")
    assert len(list(client.list_blobs(bucket, versions=True))) == 2
    with pytest.raises(exceptions.Conflict, match="not empty"):
        bucket.delete()
    bucket.delete(force=True)
    assert not bucket.exists()


def test_google_cloud_storage_restores_what_is_soft_deleted(client, make):
    bucket = client.get_bucket(make())
    bucket.soft_delete_policy.retention_duration_seconds = 10 * DAY
    bucket.patch()
    assert client.get_bucket(bucket.name).soft_delete_policy.retention_duration_seconds == 10 * DAY
    bucket.blob("o").upload_from_string("one")
    generation = bucket.get_blob("o").generation
    bucket.delete_blob("o")
    (found,) = client.list_blobs(bucket, soft_deleted=True)
    assert (found.name, found.generation, (found.hard_delete_time - found.soft_delete_time).days) == (
        "o",
        generation,
        10,
    )
    assert bucket.get_blob("o", generation=generation, soft_deleted=True).soft_delete_time == found.soft_delete_time
    assert bucket.restore_blob("o", generation=generation).generation > generation
    assert bucket.blob("o").download_as_bytes() == b"one"
    bucket.delete(force=True)


def test_google_cloud_storage_sets_rules_and_the_rest(client, make):
    bucket = client.get_bucket(make())
    bucket.add_lifecycle_delete_rule(age=30, matches_prefix=["tmp/"])
    bucket.add_lifecycle_set_storage_class_rule("ARCHIVE", number_of_newer_versions=2, is_live=False)
    bucket.add_lifecycle_abort_incomplete_multipart_upload_rule(age=1)
    bucket.cors = [{"origin": ["*"], "method": ["GET"], "maxAgeSeconds": 9}]
    bucket.configure_website("index.html", "404.html")
    bucket.enable_logging("logs", "rides")
    bucket.requester_pays = True
    bucket.patch()
    again = client.get_bucket(bucket.name)
    assert [dict(rule) for rule in again.lifecycle_rules] == [dict(rule) for rule in bucket.lifecycle_rules]
    assert len(list(again.lifecycle_rules)) == 3
    assert (again.cors, again.get_logging()["logBucket"], again.requester_pays) == (bucket.cors, "logs", True)
    again.clear_lifecycle_rules()
    again.disable_logging()
    again.patch()
    assert list(client.get_bucket(bucket.name).lifecycle_rules) == []
    again.update()
    assert client.get_bucket(bucket.name).cors == bucket.cors


def test_google_cloud_storage_lists_by_pattern(client, make):
    bucket = client.bucket(make())
    for name in ("a/1.csv", "a/b/2.csv", "c.csv"):
        bucket.blob(name).upload_from_string("x")
    assert [blob.name for blob in client.list_blobs(bucket, match_glob="**/*.csv", page_size=1)] == [
        "a/1.csv",
        "a/b/2.csv",
        "c.csv",
    ]
    found = client.list_blobs(bucket, match_glob="*/", delimiter="/")
    assert (list(found), found.prefixes) == ([], {"a/"})


@pytest.fixture
def gcloud(server, tmp_path):
    """Runs `gcloud storage` in a shell that has evaluated `taxiway env`."""
    exported = subprocess.run(
        [sys.executable, "-m", "taxiway", "env", "--home", str(server.home)], capture_output=True, text=True, check=True
    ).stdout
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **dict(shlex.split(line)[1].partition("=")[::2] for line in exported.splitlines()),
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }

    def run(*words):
        ran = subprocess.run(["gcloud", "storage", *words], capture_output=True, text=True, env=environ, timeout=200)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_our_own_rm_takes_a_bucket_with_all_its_versions(server, cli, make):
    bucket = make(versioning={"enabled": True})
    for name in ("a", "a", "b/c"):
        put(server, bucket, name)
    ran = cli("storage", "rm", "-r", f"gs://{bucket}")
    assert ran.returncode == 0, ran.stderr
    assert ask(server, "GET", bucket).status_code == 404


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_gcloud_keeps_versions_and_sets_rules(server, gcloud, make, tmp_path):
    bucket = make()
    url, rules = f"gs://{bucket}", tmp_path / "rules.json"
    rules.write_text(json.dumps({"lifecycle": RULES}))
    gcloud("buckets", "update", url, "--versioning", f"--lifecycle-file={rules}", "--soft-delete-duration=7d")
    kept = ask(server, "GET", bucket).json()
    assert (kept["versioning"], kept["lifecycle"]) == ({"enabled": True}, RULES)
    assert kept["softDeletePolicy"]["retentionDurationSeconds"] == str(7 * DAY)
    generations = [put(server, bucket, "o", data)["generation"] for data in (b"one", b"two")]
    assert gcloud("ls", "-a", url).split() == [f"{url}/o#{each}" for each in generations]
    assert gcloud("cat", f"{url}/o#{generations[0]}") == "one"
    gcloud("cp", f"{url}/o#{generations[0]}", f"{url}/o")
    assert gcloud("cat", f"{url}/o") == "one"
    gcloud("rm", f"{url}/o#{generations[1]}")
    assert gcloud("ls", "--soft-deleted", url).split() == [f"{url}/o#{generations[1]}"]
    gcloud("restore", f"{url}/o#{generations[1]}")
    assert gcloud("cat", f"{url}/o") == "two"
    gcloud("buckets", "update", url, "--no-versioning", "--clear-lifecycle", "--clear-soft-delete")
    kept = ask(server, "GET", bucket).json()
    assert not {"versioning", "lifecycle"} & set(kept)
    assert kept["softDeletePolicy"]["retentionDurationSeconds"] == "0"
    gcloud("rm", "-r", url)
    assert ask(server, "GET", bucket).status_code == 404


def test_gsutil_keeps_versions_and_sets_rules(server, gsutil, make, tmp_path):
    def ran(*words):
        ended = gsutil(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    bucket = make()
    url, rules = f"gs://{bucket}", tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))
    ran("versioning", "set", "on", url)
    ran("lifecycle", "set", str(rules), url)
    assert ask(server, "GET", bucket).json()["lifecycle"] == RULES
    generations = [put(server, bucket, "o", data)["generation"] for data in (b"one", b"two")]
    assert ran("ls", "-a", url).split() == [f"{url}/o#{each}" for each in generations]
    ran("cp", f"{url}/o#{generations[0]}", f"{url}/o")
    assert ask(server, "GET", bucket, at("o"), params={"alt": "media"}).content == b"one"
    ran("rm", "-a", f"{url}/o")
    assert listed(server, bucket, versions="true") == []
