"""Whose rights a job has, and what its log is warned of before it runs: grants, patterns, places."""

from __future__ import annotations

import uuid

import people
import pytest
from trainers import Lab

from taxiway import errors
from taxiway.jobs import preflight_storage
from taxiway.schemas import TrainingInput
from taxiway.storage import buckets


@pytest.fixture(scope="module")
def lab(server):
    return Lab(server.call, server.project, server.address.service_agent).open()


@pytest.fixture(scope="module")
def rows(server):
    opened = people.opened(server)
    yield opened
    opened.close()


def warnings(lab, rows, *args, **told):
    told = TrainingInput(args=args, **{"region": "us-central1", **told})
    return [sentence for _, sentence in preflight_storage.notes(rows, lab.agent, told)]


def made(lab, **settings):
    """A bucket that nobody but the project's people may read."""
    name = f"b-{uuid.uuid4().hex[:10]}"
    path = f"/storage/v1/b?project={lab.project}"
    assert lab.call("POST", path, json={"name": name, **settings}).status_code == 200
    return name


# --- the addresses among the arguments ---


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--steps", "5", "gs", "s3://a/b"], []),
        (["--in", "gs://b/x*", "--out=gs://b/out"], ["gs://b/x*", "gs://b/out"]),
        (["gs://b/a,gs://b/c,d", "gs://b/a"], ["gs://b/a", "gs://b/c"]),
        (["--note=see gs://b/a"], []),
    ],
)
def test_addresses_are_found_where_trainers_have_them(args, found):
    assert preflight_storage.addresses(args) == found


def test_a_pattern_that_matches_nothing_is_told(lab, rows):
    lab.put("data/train-0.csv", b"1")
    lab.put("data/parts/0", b"1")
    bucket = f"gs://{lab.bucket}"
    for pattern in ("data/train*", "data/t?ain-0.csv", "data/p*", "data/[a-t]rain-0.csv", "data/parts/*"):
        assert warnings(lab, rows, f"--in={bucket}/{pattern}") == []
    (told,) = warnings(lab, rows, f"--in={bucket}/data/valid*,{bucket}/data/train*")
    assert told.startswith(f"Nothing in {bucket} matches {bucket}/data/valid*. See what is there: taxiway storage ls")


def test_what_is_not_there_yet_is_taken_for_an_output(lab, rows):
    assert warnings(lab, rows, "--out", f"gs://{lab.bucket}/not/there/yet", f"gs://{lab.bucket}") == []


@pytest.mark.parametrize(
    ("address", "permission"),
    [
        ("/data*", "storage.objects.get, storage.objects.list"),
        ("/held.csv", "storage.objects.get"),
        ("/folder", "storage.objects.get, storage.objects.list"),
        ("/out", "storage.objects.create"),
    ],
)
def test_what_the_account_may_not_is_told_with_the_grant(lab, rows, address, permission):
    bucket = made(lab)
    for name in ("held.csv", "folder/a.csv"):
        lab.call("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content=b"1")
    (told,) = warnings(lab, rows, f"--x=gs://{bucket}{address}")
    assert told.startswith(f"The arguments name gs://{bucket}{address}, and serviceAccount:{lab.agent} does not have ")
    assert permission in told
    assert f"add-iam-policy-binding gs://{bucket} --member=serviceAccount:{lab.agent} --role=roles/storage." in told


def test_buckets_that_are_none_and_addresses_that_are_none_are_told(lab, rows):
    absent, malformed = warnings(lab, rows, "gs://no-such-bucket-here/x", "gs://NO/x")
    assert "gs://no-such-bucket-here does not exist" in absent
    assert malformed.startswith("Among the arguments: ")


@pytest.mark.parametrize(
    ("location", "region", "far"),
    [
        ("US", "us-central1", False),
        ("US-CENTRAL1", "us-central1", False),
        ("EU", "europe-west4", False),
        ("EUR4", "europe-west4", False),
        ("NAM4", "us-east1", False),
        ("ASIA1", "asia-northeast1", False),
        ("EUROPE-WEST1", "global", False),
        ("US", "europe-west1", True),
        ("EUROPE-WEST1", "us-central1", True),
        ("US-EAST1", "us-central1", True),
    ],
)
def test_a_bucket_elsewhere_is_told(lab, rows, location, region, far):
    bucket = made(lab, location=location)
    lab.grant(bucket, "roles/storage.objectAdmin", "roles/storage.legacyBucketReader")
    assert buckets.get(rows, bucket).location == location
    told = warnings(lab, rows, region=region, job_dir=f"gs://{bucket}/out")
    assert bool(told) is far
    if far:
        assert told[0].startswith(f"gs://{bucket} is in {location} and the job's region is {region}: ")


# --- an account of one's own ---


def account(lab, **change):
    body = {"accountId": f"acc-{uuid.uuid4().hex[:8]}"}
    answer = lab.call("POST", f"/v1/projects/{lab.project}/serviceAccounts", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["email"]


def as_user(lab, server, *roles):
    """The headers of a new user with roles in the project."""
    email = f"{uuid.uuid4().hex[:12]}@example.com"
    body = {"email": email, "password": "correct horse"}
    assert lab.call("POST", "/taxiway/v1/users", json=body).status_code == 200
    path = f"/v1/projects/{lab.project}"
    policy = lab.call("POST", f"{path}:getIamPolicy", json={}).json()
    policy["bindings"] += [{"role": role, "members": [f"user:{email}"]} for role in roles]
    assert lab.call("POST", f"{path}:setIamPolicy", json={"policy": policy}).status_code == 200
    return people.bearer(server, f"user:{email}")


def test_an_account_that_is_none_of_the_projects_is_refused_by_its_field(lab, server):
    disabled = account(lab)
    path = f"/v1/projects/{lab.project}/serviceAccounts/{disabled}"
    assert lab.call("POST", f"{path}:disable", json={}).status_code == 200
    unique = lab.call("GET", path).json()["uniqueId"]
    for email, words in (
        ("nobody@taxiway.iam.gserviceaccount.com", "must be the e-mail address of a service account of projects/"),
        (unique, "must be the e-mail address"),
        ("ann@example.com", "Make one: taxiway iam service-accounts create NAME"),
        (disabled, "is disabled"),
    ):
        answer = lab.post(lab.body("", serviceAccount=email))
        assert answer.status_code == 400, answer.text
        assert "Field: trainingInput.serviceAccount Error: " in answer.json()["error"]["message"]
        assert words in answer.json()["error"]["message"]


def test_only_who_may_act_as_an_account_gives_it_to_a_job(lab, server):
    email = account(lab)
    developer = as_user(lab, server, "roles/ml.developer")
    body = lab.body("", serviceAccount=email)
    path = f"/v1/projects/{lab.project}/jobs"
    refused = server.http.post(path, json=body, headers=developer)
    assert refused.status_code == 403
    assert "iam.serviceAccounts.actAs" in refused.json()["error"]["message"]
    assert "--role=roles/iam.serviceAccountUser" in refused.json()["error"]["message"]
    assert lab.call("GET", f"{path}/{body['jobId']}").status_code == 404
    # Who may act as it is told what the account itself lacks, as it is told of the service agent.
    trusted = as_user(lab, server, "roles/ml.developer", "roles/iam.serviceAccountUser")
    refused = server.http.post(path, json=body, headers=trusted)
    assert refused.status_code == 403
    assert f"serviceAccount:{email} does not have storage.objects.get" in refused.json()["error"]["message"]


def test_the_packages_of_an_account_are_those_that_it_may_read(lab, rows):
    told = TrainingInput(package_uris=(f"gs://{lab.bucket}/trainer-0.1.tar.gz",))
    assert [each.name for each in preflight_storage.packages(rows, lab.agent, told)] == ["trainer-0.1.tar.gz"]
    with pytest.raises(errors.PermissionDenied, match="somebody@x"):
        preflight_storage.packages(rows, "somebody@x.iam.gserviceaccount.com", told)
