"""Every method of ML v1 is routed, or refused by its name; every route says who may call it."""

from __future__ import annotations

import re

import pytest

from taxiway import server as house
from taxiway.api import call, discovery, ml, storage
from taxiway.iam import roles

NOTHING = "nothing_of_this_name"
PERMISSIONS = set().union(*roles.ROLES.values())


def path_of(method, project):
    """A method's path for things that do not exist, in a project that does."""
    name = method.pattern.replace("projects/**", "projects/*/models/*").replace("*", project, 1).replace("*", NOTHING)
    return f"/v1/{name}{method.rest}"


def test_there_are_46_methods():
    assert len({each.id for each in discovery.METHODS}) == 46
    assert set(ml.OFFERED) | set(ml.BARE) <= {each.id.removeprefix("ml.") for each in discovery.METHODS}


@pytest.mark.parametrize("method", discovery.METHODS, ids=lambda each: each.id)
def test_a_method_is_routed_or_refused_by_its_name(server, method):
    path = path_of(method, server.project)
    answer = server.call(method.verb, path, json={} if method.verb in ("POST", "PATCH") else None)
    error = answer.json().get("error", {}) if answer.content else {}
    message = error.get("message", "")
    assert answer.status_code not in (401, 403, 405, 500), answer.text
    assert "Nothing is served" not in message
    name = method.id.removeprefix("ml.")
    if name not in (*ml.OFFERED, *ml.BARE):
        assert (answer.status_code, error["status"]) == (501, "UNIMPLEMENTED")
        assert message == f"{method.id} is not offered yet."
    elif NOTHING in path and not name.endswith("testIamPermissions"):
        assert answer.status_code == 404, answer.text
        assert NOTHING in message
    elif method.verb == "POST" and not name.endswith("testIamPermissions"):
        assert (answer.status_code, error["status"]) == (400, "INVALID_ARGUMENT")
    else:
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("method", discovery.METHODS, ids=lambda each: each.id)
def test_nobody_may_call_a_method_without_a_token(server, method):
    answer = server.http.request(method.verb, path_of(method, server.project))
    assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_every_route_says_who_may_call_it():
    for route in [*house.ROUTES, *storage.XML_ROUTES]:
        assert route.permission in PERMISSIONS | {call.ANYONE, call.SIGNED_IN, call.REPLICA}, route


def test_what_anyone_may_call_is_a_short_list():
    """Discovery and health tell nothing; an upload's URL and a token are secrets; a batch asks for each part."""
    anyone = {(each.method, each.path) for each in house.ROUTES if each.permission == call.ANYONE}
    assert anyone == {
        ("GET", "/$discovery/rest"),
        ("GET", "/discovery/v1/apis/{api}/{version}/rest"),
        ("GET", "/cloud-ml/discovery/ml_v1_discovery.json"),
        ("GET", "/healthz"),
        ("POST", "/token"),
        ("POST", "/oauth2/v4/token"),
        ("POST", "/o/oauth2/token"),
        ("POST", "/revoke"),
        ("POST", "/o/oauth2/revoke"),
        ("GET", "/tokeninfo"),
        ("POST", "/tokeninfo"),
        ("GET", "/oauth2/v1/tokeninfo"),
        ("GET", "/oauth2/v3/tokeninfo"),
        ("POST", "/batch/storage/v1"),
        ("PUT", "/upload/storage/v1/b/{bucket}/o"),
        ("DELETE", "/upload/storage/v1/b/{bucket}/o"),
        ("OPTIONS", "/upload/storage/v1/b/{bucket}/o"),
        ("PUT", "/resumable/upload/storage/v1/b/{bucket}/o"),
        ("DELETE", "/resumable/upload/storage/v1/b/{bucket}/o"),
        ("OPTIONS", "/resumable/upload/storage/v1/b/{bucket}/o"),
    }


def test_a_route_with_a_permission_names_what_it_is_checked_on():
    """The permission is checked on the path's bucket or project; the list of buckets names its project in the query."""
    for route in house.ROUTES:
        words = set(re.findall(r"{(\w+)", route.path))
        if route.permission in PERMISSIONS and not words & {"bucket", "project"}:
            assert route.path == "/storage/v1/b", route


def test_no_route_hides_another(server):
    """A path with a verb is not taken for a name: GET .../models/m:getIamPolicy is not the model `m:getIamPolicy`."""
    for path, said in (
        ("jobs/j:getIamPolicy", f"The job projects/{server.project}/jobs/j does not exist."),
        ("models/m:getIamPolicy", f"The model projects/{server.project}/models/m does not exist."),
        (
            "locations/us-central1/studies/s/trials/1:stop",
            f"The study projects/{server.project}/locations/us-central1/studies/s ",
        ),
    ):
        verb = "POST" if path.endswith("stop") else "GET"
        answer = server.call(verb, f"/v1/projects/{server.project}/{path}")
        assert answer.json()["error"]["message"].startswith(said)


def test_the_projects_config_names_the_service_agent(server):
    answer = server.call("GET", f"/v1/projects/{server.project}:getConfig").json()
    assert answer == {
        "serviceAccount": server.address.service_agent,
        "serviceAccountProject": str(server.address.project_number),
        "taxiway": {"jail": answer["taxiway"]["jail"]},
    }
    assert answer["taxiway"]["jail"] in server.log  # as `taxiway up` said it
    assert answer["taxiway"]["jail"].startswith(("Jobs run in a jail.", "Jobs run without a jail, beside"))
