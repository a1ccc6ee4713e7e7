"""Policies of models, jobs and operations: what each route asks, who is let in by them and by nothing else, and that
the service agent reads and writes only what it was granted.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
import uuid

import msgspec
import people
import pytest
from conftest import run_cli
from trainers import Lab, sdist

from taxiway import plan, schemas
from taxiway.api import discovery, ml
from taxiway.compute import attempts
from taxiway.iam import keys, policies, projects, roles
from taxiway.jobs import queue
from taxiway.models import registry

ON_MODELS = ("roles/ml.modelUser", "roles/ml.modelOwner")
UNDER = [each for each in discovery.METHODS if each.id.removeprefix("ml.") in ml.OFFERED]


def fresh(word):
    return f"{word}_{uuid.uuid4().hex[:8]}"


class Somebody:
    """A member who is granted nothing yet."""

    def __init__(self, server, name=""):
        self.server = server
        self.member = f"user:{name or fresh('ann')}@example.com"
        self.headers = people.bearer(server, self.member)

    def call(self, method, path, **rest):
        return self.server.http.request(method, path, headers=self.headers, **rest)


class Made:
    """A model and a job of the server's project, and what goes on with them as the owner."""

    def __init__(self, server):
        self.server = server
        self.project = f"/v1/projects/{server.project}"
        self.model, self.job = fresh("m"), fresh("j")
        answer = server.call("POST", f"{self.project}/models", json={"name": self.model})
        assert answer.status_code == 200, answer.text
        # Put into the queue as one that has ended: no runtime is needed to ask who may see it.
        rows = people.opened(server)
        told = schemas.TrainingInput(python_module="m", runtime_version="2.21", python_version="3.11")
        rows.write(
            lambda tx: tx.execute(
                queue.jobs.insert().values(
                    project=server.project,
                    id=self.job,
                    position=0,
                    state="SUCCEEDED",
                    training=msgspec.to_builtins(told),
                    labels={},
                    etag=1,
                    creator="user:somebody@example.com",
                    attempts=0,
                    created=time.time(),
                )
            )
        )
        self.operation = rows.write(
            lambda tx: registry.begin(tx, server.project, "CREATE_VERSION", self.model, "v", now=time.time())
        ).id
        rows.close()

    def path(self, kind="models"):
        return f"{self.project}/{kind}/{self.model if kind == 'models' else self.job}"

    def grant(self, member, role, kind="models"):
        policy = self.server.call("GET", f"{self.path(kind)}:getIamPolicy").json()
        policy = {**policy, "bindings": [*policy.get("bindings", []), {"role": role, "members": [member]}]}
        answer = self.server.call("POST", f"{self.path(kind)}:setIamPolicy", json={"policy": policy})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def made(server):
    return Made(server)


def message(answer):
    return answer.json()["error"]["message"]


# --- what a policy is ---


@pytest.mark.parametrize("kind", ["models", "jobs"])
def test_a_policy_is_read_replaced_and_guarded_by_its_etag(server, made, kind):
    path = made.path(kind)
    first = server.call("GET", f"{path}:getIamPolicy", params={"options.requestedPolicyVersion": 3}).json()
    assert first["version"] == 1
    binding = {"role": "roles/ml.viewer", "members": ["user:ann@example.com"]}
    told = {"policy": {"bindings": [binding], "etag": first["etag"]}, "updateMask": "bindings,etag"}
    second = server.call("POST", f"{path}:setIamPolicy", json=told)
    assert second.status_code == 200, second.text
    assert second.json()["bindings"] == [binding]
    assert second.json()["etag"] != first["etag"]
    stale = server.call("POST", f"{path}:setIamPolicy", json=told)
    assert (stale.status_code, stale.json()["error"]["status"]) == (409, "ABORTED")
    assert "read it again" in message(stale)
    assert server.call("GET", f"{path}:getIamPolicy").json() == second.json()
    unasked = {"policy": {"bindings": []}, "updateMask": "etag"}  # bindings are not in the mask: they stay
    assert server.call("POST", f"{path}:setIamPolicy", json=unasked).json()["bindings"] == [binding]
    emptied = server.call("POST", f"{path}:setIamPolicy", json={"policy": {"bindings": []}})
    assert emptied.json()["bindings"] == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "Field: policy"),
        ({"policy": {"bindings": [{"role": "roles/nope", "members": []}]}}, "bindings[0].role"),
        ({"policy": {"bindings": [{"role": "roles/ml.viewer", "members": ["ann"]}]}}, "bindings[0].members"),
        ({"policy": {"bindings": [{"role": "roles/ml.viewer", "condition": {"expression": "x"}}]}}, "condition"),
        ({"policy": {"auditConfigs": [{"service": "allServices"}]}}, "policy.auditConfigs"),
        ({"policy": {}, "updateMask": "auditConfigs"}, "updateMask"),
        ({"policy": {"bindings": "all"}}, "bindings"),
        ({"policies": {}}, "policies"),
    ],
)
def test_a_bad_policy_is_refused_by_its_field_and_nothing_changes(server, made, body, word):
    before = server.call("GET", f"{made.path()}:getIamPolicy").json()
    answer = server.call("POST", f"{made.path()}:setIamPolicy", json=body)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert word in message(answer)
    assert server.call("GET", f"{made.path()}:getIamPolicy").json() == before


def test_policies_of_what_does_not_exist_are_not_found_and_no_permissions_are_held_on_it(server):
    for kind in ("models", "jobs"):
        path = f"/v1/projects/{server.project}/{kind}/no_such"
        assert server.call("GET", f"{path}:getIamPolicy").status_code == 404
        assert server.call("POST", f"{path}:setIamPolicy", json={"policy": {}}).status_code == 404
        asked = {"permissions": ["ml.models.get", "ml.jobs.get"]}
        answer = server.call("POST", f"{path}:testIamPermissions", json=asked)
        assert (answer.status_code, answer.json()) == (200, {})


# --- what it opens ---


@pytest.mark.parametrize("role", [*ON_MODELS, "roles/ml.jobOwner", "roles/ml.operationOwner", "roles/ml.viewer"])
def test_each_route_asks_the_policy_of_its_own_model_or_job(server, made, role):
    """A role on a model opens the routes below it that need what is in the role, and no other route."""
    ann = Somebody(server)
    kind = "jobs" if role == "roles/ml.jobOwner" else "models"
    made.grant(ann.member, role, kind)
    parts = {"project": server.project, "model": made.model, "job": made.job, "version": "v"}
    parts |= {"operation": made.operation, "location": "us-central1", "study": "s", "trial": "1"}
    for method in UNDER:
        permission, _ = ml.OFFERED[method.id.removeprefix("ml.")]
        if permission == ml.SIGNED_IN or method.id.endswith(("cancel", "delete", "setIamPolicy")):
            continue  # what changes things is asked below
        path = ml.path_of(method)
        answer = ann.call(method.verb, path.format(**parts), json={} if method.verb == "POST" else None)
        opened = f"{{{kind[:-1]}}}" in path and permission in roles.ROLES[role]
        assert (answer.status_code not in (401, 403)) == opened, (method.id, answer.text)
        assert answer.status_code != 500, answer.text


def test_a_model_is_predicted_with_by_whom_it_was_granted_to_and_at_once(server, made):
    ann, other = Somebody(server), Made(server)
    asked = {"content": b'{"instances": [1]}'}
    refused = ann.call("POST", f"{made.path()}:predict", **asked)
    assert refused.status_code == 403
    line = f"taxiway models add-iam-policy-binding {made.model} --project={server.project} --member={ann.member}"
    assert f"does not have ml.models.predict on projects/{server.project}/models/{made.model}." in message(refused)
    assert message(refused).endswith(f"Grant it: {line} --role=roles/ml.modelUser")
    policy = made.grant(ann.member, "roles/ml.modelUser")
    past = ann.call("POST", f"{made.path()}:predict", **asked)
    assert (past.status_code, "has no version yet" in message(past)) == (400, True)
    assert ann.call("POST", f"{made.path()}/versions/v:predict", **asked).status_code == 404
    assert ann.call("POST", f"{other.path()}:predict", **asked).status_code == 403
    owners = [each for each in policy["bindings"] if each["role"] != "roles/ml.modelUser"]
    server.call("POST", f"{made.path()}:setIamPolicy", json={"policy": {"bindings": owners}})
    assert ann.call("POST", f"{made.path()}:predict", **asked).status_code == 403


def test_a_grant_in_the_project_that_is_taken_back_ends_predictions_at_once(server, made):
    ann, project = Somebody(server), made.project
    before = server.call("POST", f"{project}:getIamPolicy").json()
    granted = [*before["bindings"], {"role": "roles/ml.developer", "members": [ann.member]}]
    assert server.call("POST", f"{project}:setIamPolicy", json={"policy": {"bindings": granted}}).status_code == 200
    assert ann.call("POST", f"{made.path()}:predict", content=b"{}").status_code == 400
    server.call("POST", f"{project}:setIamPolicy", json={"policy": {"bindings": before["bindings"]}})
    assert ann.call("POST", f"{made.path()}:predict", content=b"{}").status_code == 403


def test_a_model_for_everybody_needs_no_token(server, made):
    assert server.http.post(f"{made.path()}:predict", content=b"{}").status_code == 401
    made.grant("allUsers", "roles/ml.modelUser")
    assert server.http.post(f"{made.path()}:predict", content=b"{}").status_code == 400
    assert server.http.get(made.path()).json()["name"].endswith(made.model)
    assert server.http.delete(made.path()).status_code == 401


def test_the_line_that_a_refusal_names_is_the_one_that_helps(server, made):
    """The words of the refusal, run as they stand, for a model and for a job."""
    for kind in ("models", "jobs"):
        ann = Somebody(server)
        refused = ann.call("GET", made.path(kind))
        assert refused.status_code == 403
        words = shlex.split(message(refused).partition("Grant it: taxiway ")[2])
        ended = run_cli(server, *words)
        assert ended.returncode == 0, ended.stderr
        assert ann.call("GET", made.path(kind)).status_code == 200


def test_permissions_on_a_model_are_those_of_its_policy_too(server, made):
    ann = Somebody(server)
    asked = {"permissions": ["ml.models.predict", "ml.models.delete", "ml.versions.list"]}
    assert ann.call("POST", f"{made.path()}:testIamPermissions", json=asked).json() == {}
    made.grant(ann.member, "roles/ml.modelUser")
    told = ann.call("POST", f"{made.path()}:testIamPermissions", json=asked).json()
    assert told == {"permissions": ["ml.models.predict", "ml.versions.list"]}


# --- who makes a thing owns it ---


def test_who_makes_a_model_owns_it_and_its_operations_and_no_other(server, made):
    ann, project = Somebody(server), made.project
    policy = server.call("POST", f"{project}:getIamPolicy").json()
    policy["bindings"].append({"role": "roles/ml.developer", "members": [ann.member]})
    assert server.call("POST", f"{project}:setIamPolicy", json={"policy": policy}).status_code == 200
    mine = fresh("mine")
    assert ann.call("POST", f"{project}/models", json={"name": mine}).status_code == 200
    held = ann.call("GET", f"{project}/models/{mine}:getIamPolicy").json()
    assert held["bindings"] == [{"role": "roles/ml.modelOwner", "members": [ann.member]}]

    # From here on she is nobody in the project.
    policy = server.call("POST", f"{project}:getIamPolicy").json()
    policy["bindings"] = [each for each in policy["bindings"] if ann.member not in each["members"]]
    assert server.call("POST", f"{project}:setIamPolicy", json={"policy": policy}).status_code == 200
    assert ann.call("GET", f"{project}/models/{mine}").status_code == 200
    assert ann.call("DELETE", made.path()).status_code == 403
    assert ann.call("GET", f"{project}/models").status_code == 403
    deleted = ann.call("DELETE", f"{project}/models/{mine}")
    assert deleted.status_code == 200, deleted.text
    operation = f"/v1/{deleted.json()['name']}"
    assert ann.call("GET", operation).json()["done"] is True
    assert ann.call("GET", f"{project}/operations/{made.operation}").status_code == 403

    # A model of the same name that another makes is not hers.
    assert server.call("POST", f"{project}/models", json={"name": mine}).status_code == 200
    assert ann.call("GET", f"{project}/models/{mine}").status_code == 403


def test_who_queues_a_job_owns_it(db):
    db.write(lambda tx: projects.create(tx, "taxi-one", owners=["user:bob@x.y"], now=1))
    told = schemas.TrainingInput(python_module="m", runtime_version="2.21", python_version="3.11")
    job = queue.create(db, "taxi-one", "j", told, {}, creator="user:ann@x.y", now=1)
    assert job.policy == policies.owned_by("user:ann@x.y", "roles/ml.jobOwner")


# --- by command ---


@pytest.mark.parametrize(("group", "role"), [("models", "roles/ml.modelUser"), ("jobs", "roles/ml.jobOwner")])
def test_the_commands_read_grant_and_take_back(server, made, group, role):
    ann = Somebody(server)
    name = made.model if group == "models" else made.job
    words = (name, "--member", ann.member, "--role", role)
    granted = run_cli(server, group, "add-iam-policy-binding", *words)
    assert granted.returncode == 0, granted.stderr
    assert ann.member in granted.stdout
    assert ann.call("GET", made.path(group)).status_code == 200
    assert ann.member in run_cli(server, group, "get-iam-policy", name, "--format", "json").stdout
    assert run_cli(server, group, "remove-iam-policy-binding", *words).returncode == 0
    assert ann.call("GET", made.path(group)).status_code == 403
    again = run_cli(server, group, "remove-iam-policy-binding", *words)
    assert (again.returncode, "not found" in again.stderr) == (1, True)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")
def test_gcloud_reads_grants_takes_back_and_sets(server, made, tmp_path):
    told = run_cli(server, "env").stdout
    exported = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | exported
    environ |= {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"}

    def gcloud(*words):
        command = ["gcloud", *words, "--format=json"]
        ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    ann = Somebody(server)
    words = (made.model, f"--member={ann.member}", "--role=roles/ml.modelUser")
    granted = gcloud("ai-platform", "models", "add-iam-policy-binding", *words)
    assert {"role": "roles/ml.modelUser", "members": [ann.member]} in granted["bindings"]
    assert ann.call("GET", made.path()).status_code == 200
    held = gcloud("ai-platform", "models", "get-iam-policy", made.model)
    assert held == granted
    gcloud("ai-platform", "models", "remove-iam-policy-binding", *words)
    assert ann.call("GET", made.path()).status_code == 403
    held = gcloud("ai-platform", "models", "get-iam-policy", made.model)
    held["bindings"] = [{"role": "roles/ml.modelOwner", "members": [ann.member]}]
    (tmp_path / "policy.json").write_text(json.dumps(held))
    gcloud("ai-platform", "models", "set-iam-policy", made.model, str(tmp_path / "policy.json"))
    assert ann.call("GET", f"{made.path()}:getIamPolicy").json()["bindings"] == held["bindings"]
    read = gcloud("logging", "read", f'logName:cloudaudit AND protoPayload.resourceName:"{made.model}"')
    assert {each["protoPayload"]["methodName"] for each in read} >= {"ml.projects.models.setIamPolicy"}


# --- the service agent ---


@pytest.fixture
def lab(server):
    """A bucket in which the service agent may nothing yet."""
    held = Lab(server.call, server.project, server.address.service_agent)
    held.make(held.bucket)
    return held


def deploy(server, made, uri):
    body = {"name": fresh("v"), "deploymentUri": uri, "runtimeVersion": "2.21"}
    return server.call("POST", f"{made.path()}/versions", json=body)


def test_a_version_is_made_of_what_the_agent_may_read_whoever_asks(server, made, lab):
    """The owner may read it all; the agent reads for the version, and what it may not read is not copied."""
    for name in ("m/saved_model.pb", "m/variables/variables.index"):
        lab.put(name.replace("/", "%2F"), b"no model")
    agent = f"serviceAccount:{server.address.service_agent}"
    refused = deploy(server, made, f"gs://{lab.bucket}/m")
    assert refused.status_code == 403
    assert message(refused).startswith(f"{agent} does not have storage.objects.list, storage.objects.get on gs://")
    lab.grant(lab.bucket, "roles/storage.legacyBucketReader")  # it may list them, and not read one
    refused = deploy(server, made, f"gs://{lab.bucket}/m")
    assert refused.status_code == 403
    assert f"{agent} does not have storage.objects.get on gs://{lab.bucket}/m/saved_model.pb" in message(refused)
    assert "gsutil acl ch" in message(refused)
    entity = {"entity": f"user-{server.address.service_agent}", "role": "READER"}
    for name in ("m%2Fsaved_model.pb", "m%2Fvariables%2Fvariables.index"):
        before = server.call("POST", f"/storage/v1/b/{lab.bucket}/o/{name}/acl", json=entity)
        assert before.status_code == 200, before.text
    past = server.call(
        "POST",
        f"{made.path()}/versions",
        json={"name": "v", "deploymentUri": f"gs://{lab.bucket}/m", "runtimeVersion": "2.21"},
    )
    assert past.status_code == 200, past.text
    deadline = time.monotonic() + 120
    while not server.call("GET", f"/v1/{past.json()['name']}").json().get("done"):  # it is no model, and says so
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_jobs_account_reads_and_writes_what_it_was_granted_and_owns_what_it_writes(server, lab):
    package = lab.put("trainer-0.1.tar.gz", sdist())
    rows = people.opened(server)
    held, number = keys.load(server.home / "keys"), schemas.TrainingInput(python_module="m")
    (work,) = plan.training(server.project, 1, fresh("j"), number, runtime="2.21", python="3.11")
    identity, name = server.address.service_agent, fresh("attempt")
    rows.write(lambda tx: attempts.create(tx, name, "test", work, identity=identity, now=time.time()))
    own = {"Authorization": f"Bearer {held.replica_token(name, now=time.time())}"}
    token = server.http.post(f"/taxiway/v1/attempts/{name}:token", headers=own).json()["access_token"]
    job = {"Authorization": f"Bearer {token}"}
    path = f"/storage/v1/b/{lab.bucket}/o/trainer-0.1.tar.gz"
    upload = f"/upload{path.rpartition('/')[0]}?uploadType=media&name=out"
    try:
        refused = server.http.get(path, params={"alt": "media"}, headers=job)
        assert refused.status_code == 403, package
        assert f"serviceAccount:{identity} does not have storage.objects.get" in message(refused)
        assert server.http.post(upload, headers=job, content=b"x").status_code == 403
        lab.grant(lab.bucket, "roles/storage.legacyBucketWriter")
        written = server.http.post(upload, headers=job, content=b"x")
        assert written.status_code == 200, written.text
        assert server.http.get(path, headers=job).status_code == 403  # it may write, and read what it wrote
        mine = server.http.get(f"{path.rpartition('/')[0]}/out", params={"projection": "full"}, headers=job)
        assert mine.json()["owner"]["entity"] == f"user-{identity}"
    finally:
        rows.write(lambda tx: attempts.fence(tx, name, now=time.time()))
        rows.close()


def test_a_job_is_checked_against_what_its_account_may_read_object_by_object(server, lab):
    """The lab's grants: R on the objects, W on the bucket; what the trainer writes it owns, and so may read."""
    uri = lab.put("trainer-0.1.tar.gz", sdist())
    body = lab.body("", packageUris=[uri], jobDir=f"gs://{lab.bucket}/out")
    lines = message(server.call("POST", f"/v1/projects/{server.project}/jobs", json=body))
    assert "storage.objects.create" in lines
    assert "storage.objects.get" in lines
    lab.grant(lab.bucket, "roles/storage.legacyBucketWriter")
    refused = server.call("POST", f"/v1/projects/{server.project}/jobs", json=body)
    assert refused.status_code == 403
    assert "does not have storage.objects.get on" in message(refused)
    entity = {"entity": f"user-{server.address.service_agent}", "role": "READER"}
    path = f"/storage/v1/b/{lab.bucket}/o/trainer-0.1.tar.gz"
    assert server.call("POST", f"{path}/acl", json=entity).status_code == 200
    queued = server.call("POST", f"/v1/projects/{server.project}/jobs", json=body)
    assert queued.status_code == 200, queued.text
    job = f"/v1/projects/{server.project}/jobs/{body['jobId']}"
    server.call("POST", f"{job}:cancel", json={})
    deadline = time.monotonic() + 120
    while not server.call("GET", job).json().get("endTime"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
