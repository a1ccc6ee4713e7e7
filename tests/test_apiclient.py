"""Google's own Python client, built from our discovery document, with a service account's key: no line is special."""

from __future__ import annotations

import time
import uuid

import google_auth_httplib2
import httplib2
import pytest
import saved_models
from google.oauth2 import service_account
from googleapiclient import discovery, errors

PATHS = ("/$discovery/rest?version={apiVersion}", "/discovery/v1/apis/{api}/{apiVersion}/rest")
LAB = "/cloud-ml/discovery/ml_v1_discovery.json"  # what the lab's notebook of 2018 names
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@pytest.fixture
def client(server):
    """Builds the client from one of the document's paths."""
    made = []

    def build(path):
        credentials = service_account.Credentials.from_service_account_file(server.key, scopes=[SCOPE])
        http = google_auth_httplib2.AuthorizedHttp(credentials, http=httplib2.Http(timeout=60))
        made.append(
            discovery.build(
                "ml", "v1", discoveryServiceUrl=f"{server.url}{path}", http=http, cache_discovery=False, num_retries=0
            )
        )
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.mark.parametrize("path", [*PATHS, LAB])
def test_every_path_of_the_document_makes_a_client_that_works(server, client, path):
    ml = client(path)
    told = ml.projects().getConfig(name=f"projects/{server.project}").execute()
    assert told["serviceAccount"] == server.address.service_agent
    assert int(told["serviceAccountProject"]) == server.address.project_number


def test_errors_are_told_as_the_client_reads_them(server, client):
    ml = client(PATHS[0])
    with pytest.raises(errors.HttpError) as refused:
        ml.projects().models().get(name=f"projects/{server.project}/models/nope").execute()
    assert refused.value.status_code == 404
    assert "does not exist" in refused.value.reason
    asked = (
        ml.projects().models().create(parent=f"projects/{server.project}", body={"name": "9", "regions": ["nowhere"]})
    )
    with pytest.raises(errors.HttpError) as refused:
        asked.execute()
    assert [each["field"] for each in refused.value.error_details[0]["fieldViolations"]] == [
        "model.name",
        "model.regions",
    ]
    with pytest.raises(errors.HttpError) as refused:
        ml.projects().locations().list(parent=f"projects/{server.project}").execute()
    assert refused.value.status_code == 501


def test_lists_are_paged_as_the_client_pages(server, client):
    models = client(PATHS[0]).projects().models()
    parent, mark = f"projects/{server.project}", uuid.uuid4().hex[:8]
    for number in range(3):
        models.create(parent=parent, body={"name": f"page_{mark}_{number}"}).execute()
    request, seen = models.list(parent=parent, pageSize=2), []
    while request is not None:
        answer = request.execute()
        assert len(answer.get("models", [])) <= 2
        seen += [each["name"] for each in answer.get("models", [])]
        request = models.list_next(request, answer)
    assert [each for each in seen if mark in each] == [f"{parent}/models/page_{mark}_{number}" for number in range(3)]
    for number in range(3):
        models.delete(name=f"{parent}/models/page_{mark}_{number}").execute()


@pytest.mark.runtime
def test_a_model_goes_its_whole_way(server, client, runtime_python, tmp_path_factory):
    folder = saved_models.fares(runtime_python, tmp_path_factory.getbasetemp())
    projects = client(PATHS[1]).projects()
    project, mark = f"projects/{server.project}", uuid.uuid4().hex[:8]
    bucket, agent = f"apiclient-{mark}", f"serviceAccount:{server.address.service_agent}"
    server.call("POST", "/storage/v1/b", params={"project": server.project}, json={"name": bucket})
    policy = {"bindings": [{"role": "roles/storage.admin", "members": [agent, f"projectOwner:{server.project}"]}]}
    server.call("PUT", f"/storage/v1/b/{bucket}/iam", json=policy)
    uri = saved_models.upload(server.call, folder / "one", bucket, "export")

    def done(operation):
        deadline = time.monotonic() + 120
        while not operation.get("done"):
            assert time.monotonic() < deadline, operation
            time.sleep(0.1)
            operation = projects.operations().get(name=operation["name"]).execute()
        assert "error" not in operation, operation
        return operation

    model = (
        projects.models().create(parent=project, body={"name": f"taxi_{mark}", "regions": ["us-central1"]}).execute()
    )
    body = {"name": "v1", "deploymentUri": uri, "runtimeVersion": "2.21", "framework": "TENSORFLOW"}
    operation = done(projects.models().versions().create(parent=model["name"], body=body).execute())
    assert operation["metadata"]["operationType"] == "CREATE_VERSION"
    version = projects.models().versions().get(name=f"{model['name']}/versions/v1").execute()
    assert (version["state"], version["isDefault"]) == ("READY", True)

    rides = {"instances": [{"miles": 3, "passengers": 1}]}
    for name in (model["name"], version["name"]):
        answer = projects.predict(name=name, body=rides).execute()
        assert answer["predictions"][0]["fare"] == pytest.approx(5.5)
    with pytest.raises(errors.HttpError) as refused:
        projects.predict(name=model["name"], body={"instances": [{"miles": 3}]}).execute()
    assert refused.value.status_code == 400
    assert b"Input passengers was missing" in refused.value.content

    assert operation["name"] in [
        each["name"] for each in projects.operations().list(name=project, pageSize=100).execute()["operations"]
    ]
    done(projects.models().versions().delete(name=version["name"]).execute())
    done(projects.models().delete(name=model["name"]).execute())
