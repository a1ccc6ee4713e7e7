"""A model's way from a folder in a bucket to predictions, and every way in which it can go wrong."""

from __future__ import annotations

import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest
import saved_models

from taxiway import handles

pytestmark = pytest.mark.runtime

RIDES = [{"miles": 3.0, "passengers": 1}, {"miles": 10, "passengers": 2}]


class Ml:
    """One server's ML API and storage, as its owner."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        self.project = f"/v1/projects/{server.project}"
        self.attempts = set()  # those that were ever seen

    def call(self, method, path, *, ok=200, **rest):
        answer = self.server.call(method, path, **rest)
        assert answer.status_code == ok, answer.text
        return answer.json() if answer.content else None

    def bucket(self, *, grant=True):
        name = f"fares-{uuid.uuid4().hex[:10]}"
        self.call("POST", "/storage/v1/b", params={"project": self.server.project}, json={"name": name})
        if grant:
            policy = self.call("GET", f"/storage/v1/b/{name}/iam")
            agent = f"serviceAccount:{self.server.address.service_agent}"
            policy["bindings"].append({"role": "roles/storage.objectViewer", "members": [agent]})
            self.call("PUT", f"/storage/v1/b/{name}/iam", json=policy)
        return name

    def upload(self, bucket, which="one", prefix="export/1"):
        return saved_models.upload(self.server.call, self.folder / which, bucket, prefix)

    def model(self, name=None, **fields):
        name = name or f"m_{uuid.uuid4().hex[:8]}"
        self.call("POST", f"{self.project}/models", json={"name": name, **fields})
        return name

    def begin(self, model, version, uri, ok=200, **fields):
        body = {"name": version, "deploymentUri": uri, "runtimeVersion": "2.21", **fields}
        return self.call("POST", f"{self.project}/models/{model}/versions", ok=ok, json=body)

    def wait(self, operation):
        deadline = time.monotonic() + 120
        while not operation.get("done"):
            assert time.monotonic() < deadline, operation
            time.sleep(0.05)
            operation = self.call("GET", f"/v1/{operation['name']}")
        return operation

    def version(self, model, version, uri, **fields):
        operation = self.wait(self.begin(model, version, uri, **fields))
        assert "error" not in operation, operation
        return operation["response"]

    def get(self, model, version=""):
        return self.call("GET", f"{self.project}/models/{model}" + (f"/versions/{version}" if version else ""))

    def predict(self, model, version="", instances=RIDES, ok=200, **rest):
        path = f"{self.project}/models/{model}" + (f"/versions/{version}" if version else "") + ":predict"
        return self.call("POST", path, ok=ok, **({"json": {"instances": instances}} | rest))

    def fares(self, model, version="", instances=RIDES):
        return [round(each["fare"], 3) for each in self.predict(model, version, instances)["predictions"]]

    def runners(self):
        """The processes of this home's model servers."""
        self.attempts |= {each.name for each in (self.server.home / "attempts").iterdir()}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                serves = any(word.endswith("serve.py") for word in process.cmdline()[:4])
                if serves and process.environ().get(handles.MARK) in self.attempts:
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def folder(runtime_python, tmp_path_factory):
    return saved_models.fares(runtime_python, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def ml(server, folder):
    return Ml(server, folder)


@pytest.fixture(scope="module")
def taxi(ml):
    """A model with two versions: `cheap` asks 1 a mile, `dear` asks 2; the first one made is the default."""
    bucket = ml.bucket()
    model = ml.model("taxi", regions=["us-central1"], description="fares", labels={"owner": "ann"})
    ml.version(model, "cheap", ml.upload(bucket, "one", "one"))
    ml.version(model, "dear", ml.upload(bucket, "two", "two") + "/")
    return model


def error_of(answer):
    return answer["error"]["code"], answer["error"]["status"], answer["error"]["message"]


# --- the good way ---


def test_a_version_tells_what_it_is(ml, taxi):
    found = ml.get(taxi, "cheap")
    assert found["name"] == f"projects/{ml.server.project}/models/taxi/versions/cheap"
    assert (found["state"], found["isDefault"], found["framework"]) == ("READY", True, "TENSORFLOW")
    assert (found["runtimeVersion"], found["pythonVersion"], found["machineType"]) == ("2.21", "3.11", "mls1-c1-m2")
    assert found["deploymentUri"].startswith("gs://fares-")
    assert "isDefault" not in ml.get(taxi, "dear")
    listed = ml.call("GET", f"{ml.project}/models/taxi/versions")["versions"]
    assert [(each["name"].rpartition("/")[2], each.get("isDefault", False)) for each in listed] == [
        ("cheap", True),
        ("dear", False),
    ]


def test_a_version_of_an_old_runtime_answers_on_the_nearest_and_shows_what_was_asked(ml, taxi):
    model = ml.model("old_taxi")
    asked = {"runtimeVersion": "2.18", "pythonVersion": "3.9"}
    ml.version(model, "v", ml.upload(ml.bucket(), "one", "one"), **asked)
    found = ml.get(model, "v")
    assert found["state"] == "READY"
    assert {name: found[name] for name in asked} == asked
    assert ml.fares(model) == ml.fares("taxi", "cheap")
    ml.wait(ml.call("DELETE", f"{ml.project}/models/{model}/versions/v"))


def test_a_model_tells_its_default_version(ml, taxi):
    found = ml.get(taxi)
    assert found["defaultVersion"]["name"].endswith("/versions/cheap")
    assert found["defaultVersion"]["state"] == "READY"
    assert (found["regions"], found["description"], found["labels"]) == (["us-central1"], "fares", {"owner": "ann"})
    assert "taxi" in [each["name"].rpartition("/")[2] for each in ml.call("GET", f"{ml.project}/models")["models"]]


def test_a_model_answers_by_its_default_version_and_a_version_by_itself(ml, taxi):
    assert ml.fares(taxi) == ml.fares(taxi, "cheap") == [5.5, 12.5]
    assert ml.fares(taxi, "dear") == [8.5, 22.5]


def test_another_default_answers_from_the_next_request_on(ml, taxi):
    for version, fares in (("dear", [8.5, 22.5]), ("cheap", [5.5, 12.5])):
        answer = ml.call("POST", f"{ml.project}/models/{taxi}/versions/{version}:setDefault", json={})
        assert answer["isDefault"]
        assert ml.fares(taxi) == fares
        assert ml.get(taxi)["defaultVersion"]["name"].endswith(version)


def test_many_instances_are_predicted_at_once(ml, taxi):
    rides = [{"miles": number, "passengers": 1} for number in range(1500)]
    assert ml.fares(taxi, instances=rides) == [2.5 + number for number in range(1500)]


def test_many_requests_are_predicted_at_once_and_none_gets_anothers_answer(ml, taxi):
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ml.fares, taxi, "", [{"miles": number, "passengers": 1}]) for number in range(200)]
    assert [each.result() for each in asked] == [[2.5 + number] for number in range(200)]


def test_the_use_of_a_version_is_noted(ml, taxi):
    ml.fares(taxi)
    deadline = time.monotonic() + 20
    while "lastUseTime" not in ml.get(taxi, "cheap"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_projects_number_names_it_too(ml, taxi):
    number = ml.server.address.project_number
    answer = ml.call("POST", f"/v1/projects/{number}/models/taxi:predict", json={"instances": RIDES})
    assert len(answer["predictions"]) == 2
    assert ml.call("GET", f"/v1/projects/{number}/models/taxi")["name"] == f"projects/{ml.server.project}/models/taxi"


def test_a_token_in_the_query_is_as_good_as_in_the_header(ml, taxi):
    url = f"{ml.server.url}{ml.project}/models/taxi:predict"
    answer = httpx.post(url, params={"access_token": ml.server.token}, json={"instances": RIDES})
    assert answer.status_code == 200, answer.text


# --- bad requests for predictions ---


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "no body"),
        (b"  \n", "no body"),
        (b'{"instances": [', "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "instances"),
        (b'{"rides": []}', "instances"),
        (b'{"instances": {"miles": 1}}', "list"),
        (b'{"instances": []}', "empty"),
        (b'{"instances": [{"miles": 1}]}', "Input passengers was missing in at least one input instance."),
        (b'{"instances": [{"miles": 1, "passengers": 1, "colour": 2}]}', "Unexpected tensor name: colour"),
        (b'{"instances": [{"miles": "far", "passengers": 1}]}', "miles"),
        (b'{"instances": [{"miles": [1, 2], "passengers": 1}]}', ""),
        (b'{"instances": [{"miles": 1, "passengers": 1}], "signature_name": "nope"}', "signature key nope"),
    ],
)
def test_a_bad_request_is_refused_with_a_reason(ml, taxi, body, match):
    answer = ml.predict(taxi, ok=400, content=body, json=None)
    told = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
    assert match in told
    assert "predictions" not in answer
    assert ml.fares(taxi) == [5.5, 12.5]


def test_an_oversized_body_is_refused(ml, taxi):
    answer = ml.predict(taxi, ok=413, content=b" " * (65 << 20), json=None)
    assert "over 64 MiB" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["models/nope", "models/taxi/versions/nope", "models/..%2F..", "models/a/b", "jobs/a"])
def test_an_unknown_model_or_version_is_not_found(ml, taxi, path):
    answer = ml.call("POST", f"{ml.project}/{path}:predict", ok=404, json={"instances": []})
    assert answer["error"]["status"] == "NOT_FOUND"


def test_a_prediction_needs_a_caller_who_may(ml, taxi):
    url = f"{ml.server.url}{ml.project}/models/taxi:predict"
    anonymous = httpx.post(url, json={"instances": RIDES})
    assert error_of(anonymous.json())[:2] == (401, "UNAUTHENTICATED")
    assert anonymous.headers["www-authenticate"].startswith("Bearer")
    forged = httpx.post(url, json={"instances": RIDES}, headers={"Authorization": "Bearer " + ml.server.token + "x"})
    assert error_of(forged.json())[:2] == (401, "UNAUTHENTICATED")
    basic = httpx.post(url, json={"instances": RIDES}, headers={"Authorization": "Basic YTpi"})
    assert "expected 'Bearer TOKEN'" in error_of(basic.json())[2]


def test_a_model_without_a_version_says_what_to_make(ml):
    answer = ml.predict(ml.model(), ok=400)
    assert error_of(answer)[1] == "FAILED_PRECONDITION"
    assert "taxiway versions create" in answer["error"]["message"]


# --- bad models ---


def test_a_folder_without_a_saved_model_is_refused_at_once_with_a_hint(ml, taxi):
    bucket = ml.bucket()
    uri = ml.upload(bucket, prefix="export/exporter/1700000000")
    code, status, message = error_of(ml.begin(taxi, "v", f"gs://{bucket}/export", ok=400))
    assert (code, status) == (400, "FAILED_PRECONDITION")
    assert message.startswith("Field: version.deployment_uri Error: ")
    assert f"Did you mean {uri}?" in message
    _, _, message = error_of(ml.begin(taxi, "v", f"gs://{bucket}/elsewhere/", ok=400))
    assert f"there is nothing at gs://{bucket}/elsewhere/" in message
    saved_models.put(ml.server.call, bucket, "export/exporter/1700000000/saved_model.pbtxt", b"")
    assert "has both saved_model.pb and" in error_of(ml.begin(taxi, "v", uri, ok=400))[2]
    ml.call("GET", f"{ml.project}/models/{taxi}/versions/v", ok=404)


def test_a_model_that_does_not_load_says_why_and_harms_nobody(ml, taxi):
    bucket = ml.bucket()
    uri = ml.upload(bucket)
    saved_models.put(ml.server.call, bucket, "export/1/saved_model.pb", b"this is no protocol buffer")
    operation = ml.wait(ml.begin(taxi, "broken", uri))
    assert operation["error"]["code"] == 9
    message = operation["error"]["message"]
    assert message.startswith('Create Version failed. Bad model detected with error: "Failed to load model: ')
    assert message.endswith('(Error code: 0)"')
    found = ml.get(taxi, "broken")
    assert (found["state"], found["errorMessage"]) == ("FAILED", message)
    assert "is FAILED, not READY: Create Version failed" in ml.predict(taxi, "broken", ok=400)["error"]["message"]
    refused = ml.call("POST", f"{ml.project}/models/{taxi}/versions/broken:setDefault", ok=400, json={})
    assert "only a READY one" in refused["error"]["message"]
    assert ml.fares(taxi) == [5.5, 12.5]
    assert ml.wait(ml.call("DELETE", f"{ml.project}/models/{taxi}/versions/broken"))["response"]
    assert len(ml.runners()) == 2


def test_a_missing_grant_is_named_with_the_command_that_gives_it(ml, taxi):
    bucket = ml.bucket(grant=False)
    answer = ml.begin(taxi, "v", ml.upload(bucket), ok=403)
    assert answer["error"]["status"] == "PERMISSION_DENIED"
    for part in (
        f"serviceAccount:{ml.server.address.service_agent}",
        "storage.objects.list, storage.objects.get",
        f"taxiway storage buckets add-iam-policy-binding gs://{bucket}",
        "--role=roles/storage.objectViewer",
    ):
        assert part in answer["error"]["message"]


def test_several_faults_are_told_at_once(ml, taxi):
    answer = ml.begin(
        taxi,
        "1st",
        "/tmp/model",
        ok=400,
        runtimeVersion="1.99",
        machineType="huge",
        autoScaling={"minNodes": 1},
        labels={"Owner": "ann"},
    )
    violations = answer["error"]["details"][0]["fieldViolations"]
    assert {each["field"] for each in violations} == {
        "version.name",
        "version.deployment_uri",
        "version.runtime_version",
        "version.machine_type",
        "version.auto_scaling",
        "version.labels",
    }


def test_unknown_and_malformed_fields_are_refused_by_name(ml, taxi):
    answer = ml.begin(taxi, "v", "gs://b-b-b/x", ok=400, deploymentURI="x", labels=[], manualScaling={"nodes": "two"})
    fields = [each["field"] for each in answer["error"]["details"][0]["fieldViolations"]]
    assert sorted(fields) == ["deploymentURI", "labels", "manualScaling.nodes"]
    answer = ml.call("POST", f"{ml.project}/models", ok=400, json={"nam": "x", "regions": "us-central1"})
    fields = [each["field"] for each in answer["error"]["details"][0]["fieldViolations"]]
    assert {"nam", "regions"} <= set(fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'"x"', b"[" * 100_000, b'{"name": "\\ud800"}'])
def test_a_body_that_is_no_message_is_refused(ml, taxi, body):
    for path in ("models", f"models/{taxi}/versions"):
        answer = ml.call("POST", f"{ml.project}/{path}", ok=400, content=body)
        assert answer["error"]["status"] == "INVALID_ARGUMENT"


# --- rules about models, versions, defaults and operations ---


def test_names_are_taken_once(ml, taxi):
    assert error_of(ml.call("POST", f"{ml.project}/models", ok=409, json={"name": taxi}))[1] == "ALREADY_EXISTS"
    bucket = ml.bucket()
    assert error_of(ml.begin(taxi, "cheap", ml.upload(bucket), ok=409))[1] == "ALREADY_EXISTS"
    for name in ("", "9to5", "a-b", "x" * 129, "a/b"):
        assert error_of(ml.call("POST", f"{ml.project}/models", ok=400, json={"name": name}))[1] == "INVALID_ARGUMENT"


def test_what_is_not_offered_for_a_model_is_refused_by_name(ml):
    asked = {"name": "m", "onlinePredictionLogging": True, "regions": ["us-central1", "europe-west1"]}
    _, _, message = error_of(ml.call("POST", f"{ml.project}/models", ok=400, json=asked))
    assert "model.online_prediction_logging" in message
    assert "model.regions" in message
    assert "not offer filter" in ml.call("GET", f"{ml.project}/models?filter=a", ok=501)["error"]["message"]


def test_a_default_version_and_a_model_with_versions_stay(ml, taxi):
    refused = ml.call("DELETE", f"{ml.project}/models/{taxi}/versions/cheap", ok=400)
    assert "is the default version" in refused["error"]["message"]
    refused = ml.call("DELETE", f"{ml.project}/models/{taxi}", ok=400)
    assert "has versions; delete them first" in refused["error"]["message"]
    assert ml.fares(taxi) == [5.5, 12.5]


def test_the_only_version_may_go_and_then_its_model(ml):
    model, bucket = ml.model(), ml.bucket()
    created = ml.begin(model, "only", ml.upload(bucket))
    assert created["metadata"]["operationType"] == "CREATE_VERSION"
    assert created["metadata"]["version"]["name"].endswith(f"{model}/versions/only")
    assert ml.get(model, "only")["state"] == "CREATING"
    assert "is CREATING, not READY" in ml.predict(model, "only", ok=400)["error"]["message"]
    refused = ml.call("DELETE", f"{ml.project}/models/{model}/versions/only", ok=400)
    assert "is CREATING" in refused["error"]["message"]
    done = ml.wait(created)
    assert done["response"]["@type"].endswith("v1.Version")
    assert done["response"]["state"] == "READY"
    assert ml.fares(model) == [5.5, 12.5]
    deleted = ml.wait(ml.call("DELETE", f"{ml.project}/models/{model}/versions/only"))
    assert deleted["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
    ml.call("GET", f"{ml.project}/models/{model}/versions/only", ok=404)
    assert "defaultVersion" not in ml.get(model)
    assert "no version yet" in ml.predict(model, ok=400)["error"]["message"]
    assert "does not exist" in ml.predict(model, "only", ok=404)["error"]["message"]
    assert ml.wait(ml.call("DELETE", f"{ml.project}/models/{model}"))["metadata"]["operationType"] == "DELETE_MODEL"
    ml.call("GET", f"{ml.project}/models/{model}", ok=404)
    assert len(ml.runners()) == 2


def test_operations_are_listed_got_and_cancelled(ml, taxi):
    bucket = ml.bucket()
    running = ml.begin(taxi, "unwanted", ml.upload(bucket))
    assert ml.call("POST", f"/v1/{running['name']}:cancel", json={}) == {}
    done = ml.wait(running)
    assert done["error"] == {"code": 1, "message": "The operation was cancelled."}
    assert done["metadata"]["isCancellationRequested"]
    assert ml.get(taxi, "unwanted")["state"] == "FAILED"
    ml.wait(ml.call("DELETE", f"{ml.project}/models/{taxi}/versions/unwanted"))
    listed = ml.call("GET", f"{ml.project}/operations", params={"pageSize": 100})["operations"]
    assert running["name"] in [each["name"] for each in listed]
    first = ml.call("GET", f"{ml.project}/operations", params={"pageSize": 1})
    second = ml.call("GET", f"{ml.project}/operations", params={"pageSize": 1, "pageToken": first["nextPageToken"]})
    assert [*first["operations"], *second["operations"]] == listed[:2]
    ml.call("GET", f"{ml.project}/operations/nope", ok=404)
    ml.call("GET", f"{ml.project}/operations", ok=400, params={"pageSize": "many"})


def test_whoever_asks_what_he_may_is_told(ml, taxi):
    asked = {"permissions": ["ml.models.predict", "ml.models.fly"]}
    answer = ml.call("POST", f"{ml.project}/models/{taxi}:testIamPermissions", json=asked)
    assert answer == {"permissions": ["ml.models.predict"]}
    assert ml.call("POST", f"{ml.project}/models/nope:testIamPermissions", json=asked) == {}
    assert ml.call("POST", "/v1/projects/nowhere/models/nope:testIamPermissions", json=asked) == {}


# --- deaths ---


def test_a_model_server_that_is_killed_is_started_again_and_requests_wait_for_it(ml, taxi):
    before = {each.pid for each in ml.runners()}
    for process in ml.runners():
        process.kill()

    def ask(_):
        return ml.server.call("POST", f"{ml.project}/models/{taxi}:predict", json={"instances": RIDES})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"]
            assert "Retry" in answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["predictions"]) == 2
    assert ml.fares(taxi) == [5.5, 12.5]
    assert ml.fares(taxi, "dear") == [8.5, 22.5]
    after = {each.pid for each in ml.runners()}
    assert len(after) == 2
    assert not after & before


def test_a_version_outlives_its_origin_its_server_and_the_taxiway(start_server, folder, tmp_path):
    ml = Ml(start_server(), folder)
    model, bucket = ml.model(), ml.bucket()
    uri = ml.upload(bucket)

    running = ml.begin(model, "v1", uri)  # killed while it is being made
    ml.server.kill()
    ml = Ml(start_server(), folder)
    assert "error" not in ml.wait(ml.call("GET", f"/v1/{running['name']}"))
    assert ml.fares(model) == [5.5, 12.5]

    for item in ml.call("GET", f"/storage/v1/b/{bucket}/o")["items"]:
        ml.call("DELETE", f"/storage/v1/b/{bucket}/o/{item['name'].replace('/', '%2F')}", ok=204)
    assert ml.fares(model) == [5.5, 12.5]

    (held,) = ml.runners()
    ml.server.kill()  # its model's server lives on, and is adopted
    ml = Ml(start_server(), folder)
    assert ml.fares(model) == [5.5, 12.5]
    assert [each.pid for each in ml.runners()] == [held.pid]

    assert ml.server.stop() == 0  # SIGTERM ends everything
    assert ml.runners() == []
    assert not list((ml.server.home / "attempts").iterdir())

    ml = Ml(start_server(), folder)  # and the copy is loaded again
    assert ml.fares(model) == [5.5, 12.5]
    assert "Traceback" not in ml.server.log
    ml.server.process.send_signal(signal.SIGINT)
    assert ml.server.process.wait(30) == 0
    assert ml.runners() == []


def test_copies_of_no_version_are_swept_away(start_server, folder):
    ml = Ml(start_server(), folder)
    bucket = f"taxiway-models-{ml.server.address.project_number}"
    ml.call("POST", "/storage/v1/b", params={"project": ml.server.project}, json={"name": bucket})
    saved_models.put(ml.server.call, bucket, "m/v/0123456789ab/saved_model.pb", b"left by a server that died")
    ml.server.kill()
    ml = Ml(start_server(), folder)
    assert ml.call("GET", f"/storage/v1/b/{bucket}/o").get("items", []) == []
