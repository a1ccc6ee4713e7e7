"""The discovery document against Google's own, which ships inside google-api-python-client."""

import json
from pathlib import Path

import googleapiclient
import pytest
from google.auth.credentials import AnonymousCredentials
from googleapiclient import discovery as client

from taxiway import schemas
from taxiway.api import discovery

GOOGLES = Path(googleapiclient.__file__).parent / "discovery_cache/documents/ml.v1.json"
ROOT = "http://127.0.0.1:8080"
OURS_ALONE = ("description", "enumDescriptions", "readOnly")  # words, and a mark that Google sets on few of its outputs


@pytest.fixture(scope="module")
def google():
    return json.loads(GOOGLES.read_text())


@pytest.fixture(scope="module")
def ours():
    return json.loads(json.dumps(discovery.document(ROOT)))


def methods_of(node):
    """Every method under a node of the tree, by its id."""
    found = {method["id"]: method for method in node.get("methods", {}).values()}
    for inner in node.get("resources", {}).values():
        found |= methods_of(inner)
    return found


def bare(node):
    """Without whatever is allowed to be in our own words."""
    if isinstance(node, dict):
        return {key: bare(value) for key, value in node.items() if key not in OURS_ALONE or isinstance(value, dict)}
    return [bare(value) for value in node] if isinstance(node, list) else node


def test_every_method_is_there_and_none_besides(google, ours):
    assert set(methods_of(ours)) == set(methods_of(google))
    assert len(discovery.METHODS) == 46
    assert len({method.id for method in discovery.METHODS}) == 46


@pytest.mark.parametrize("method", discovery.METHODS, ids=lambda method: method.id)
def test_a_method_is_exactly_google_s(method, google, ours):
    assert bare(methods_of(ours)[method.id]) == bare(methods_of(google)[method.id])


def test_every_schema_is_there_and_none_besides(google, ours):
    assert set(ours["schemas"]) == set(google["schemas"])


@pytest.mark.parametrize("name", sorted(schemas.MESSAGES))
def test_a_schema_has_exactly_google_s_fields_and_types(name, google, ours):
    assert bare(ours["schemas"][name]) == bare(google["schemas"][name])


def test_what_google_marks_as_output_is_output_here(google, ours):
    for name, schema in google["schemas"].items():
        for field, told in schema.get("properties", {}).items():
            if told.get("readOnly") or told.get("description", "").startswith("Output only"):
                assert ours["schemas"][name]["properties"][field].get("readOnly"), f"{name}.{field}"


def test_common_parameters_scopes_and_the_head_are_google_s(google, ours):
    assert bare(ours["parameters"]) == bare(google["parameters"])
    assert set(ours["auth"]["oauth2"]["scopes"]) == set(google["auth"]["oauth2"]["scopes"])
    for key in (
        "kind",
        "discoveryVersion",
        "id",
        "name",
        "version",
        "protocol",
        "basePath",
        "servicePath",
        "batchPath",
    ):
        assert ours[key] == google[key]


def test_descriptions_are_there_and_our_own(google, ours):
    def descriptions(node):
        if isinstance(node, dict):
            if isinstance(node.get("description"), str):
                yield node["description"]
            for value in node.values():
                yield from descriptions(value)

    def without(node):
        return [name for name, told in node.items() if not told.get("description")]

    theirs = {text for text in descriptions(google) if len(text) > 30}
    assert not theirs & set(descriptions(ours))
    assert without(methods_of(ours)) == []
    for name, schema in ours["schemas"].items():
        assert schema["description"], name
        assert without(schema["properties"]) == [], name


@pytest.mark.parametrize("root", [ROOT, ROOT + "/"])
def test_the_root_is_the_server_that_was_asked(root):
    document = discovery.document(root)
    assert (document["rootUrl"], document["baseUrl"]) == (ROOT + "/", ROOT + "/")


def test_google_s_client_is_built_from_it_and_composes_requests(ours):
    with client.build_from_document(ours, credentials=AnonymousCredentials()) as ml:
        projects = ml.projects()
        asked = [
            projects.getConfig(name="projects/demo-project"),
            projects.predict(name="projects/demo-project/models/m/versions/v", body={"instances": [1]}),
            projects.jobs().list(parent="projects/demo-project", filter="jobId:rnn*", pageSize=5),
            projects.jobs().create(parent="projects/demo-project", body={"jobId": "j"}),
            projects.jobs().getIamPolicy(resource="projects/demo-project/jobs/j", options_requestedPolicyVersion=3),
            projects.locations()
            .studies()
            .trials()
            .suggest(parent="projects/demo-project/locations/us-central1/studies/s", body={"suggestionCount": 1}),
            projects.models()
            .versions()
            .patch(name="projects/demo-project/models/m/versions/v", body={}, updateMask="description"),
        ]
    assert [(request.method, request.uri.removeprefix(ROOT)) for request in asked] == [
        ("GET", "/v1/projects/demo-project:getConfig?alt=json"),
        ("POST", "/v1/projects/demo-project/models/m/versions/v:predict?alt=json"),
        ("GET", "/v1/projects/demo-project/jobs?filter=jobId%3Arnn%2A&pageSize=5&alt=json"),
        ("POST", "/v1/projects/demo-project/jobs?alt=json"),
        ("GET", "/v1/projects/demo-project/jobs/j:getIamPolicy?options.requestedPolicyVersion=3&alt=json"),
        ("POST", "/v1/projects/demo-project/locations/us-central1/studies/s/trials:suggest?alt=json"),
        ("PATCH", "/v1/projects/demo-project/models/m/versions/v?updateMask=description&alt=json"),
    ]


def test_a_template_is_written_as_google_api_http_writes_it():
    templates = {method.id: method.template for method in discovery.METHODS}
    assert templates["ml.projects.jobs.cancel"] == "v1/{name=projects/*/jobs/*}:cancel"
    assert templates["ml.projects.jobs.list"] == "v1/{parent=projects/*}/jobs"
    assert templates["ml.projects.predict"] == "v1/{name=projects/**}:predict"
