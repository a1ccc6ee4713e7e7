"""OAuth's token endpoint, and the part of Resource Manager that clients ask: a project, its policy.

Sources: https://developers.google.com/identity/protocols/oauth2/service-account and
https://cloud.google.com/resource-manager/reference/rest/v1/projects
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import Response

from taxiway import errors
from taxiway.api import wire
from taxiway.api.call import ANYONE, SIGNED_IN, Call, Route
from taxiway.iam import keys, members, policies, projects
from taxiway.iam.projects import Project

PROJECT = "/v1/projects/{project}"


def issue_token(call: Call) -> Response | dict[str, Any]:
    """An access token for a JWT that a service account signed; errors in OAuth's shape (RFC 6749, 5.2)."""
    form = call.body if isinstance(call.body, dict) else dict(parse_qsl(str(call.body)))
    if form.get("grant_type") != keys.JWT_GRANT:
        told = f"grant_type {form.get('grant_type')!r} is not offered; send {keys.JWT_GRANT} with an assertion."
        return _oauth_error("unsupported_grant_type", told)
    try:
        email = keys.assertion_email(call.house.db, str(form.get("assertion", "")), now=call.now)
    except errors.Unauthenticated as error:
        return _oauth_error("invalid_grant", str(error))
    token = call.house.keys.access_token(members.of_email(email), now=call.now)
    return {"access_token": token, "expires_in": keys.HOUR, "token_type": "Bearer"}


def _oauth_error(word: str, sentence: str) -> Response:
    body = msgspec.json.encode({"error": word, "error_description": sentence})
    return Response(body, 400, media_type="application/json")


def get_project(call: Call) -> dict[str, Any]:
    return _project(projects.get(call.house.db, call.path["project"]))


def list_projects(call: Call) -> dict[str, Any]:
    """Those that the caller may see."""
    every = projects.every(call.house.db)
    seen = [each for each in every if call.may("resourcemanager.projects.get", project=each.id)]
    return {"projects": [_project(each) for each in seen]} if seen else {}


def get_policy(call: Call) -> dict[str, Any]:
    return _policy(projects.get(call.house.db, call.path["project"]))


def set_policy(call: Call) -> dict[str, Any]:
    told = call.body.get("policy") if isinstance(call.body, dict) else None
    if not isinstance(told, dict):
        raise errors.InvalidArgument(faults=[("policy", "is required: {bindings: [{role, members}]}.")])
    changed = projects.set_policy(call.house.db, call.path["project"], told)
    call.house.access.forget()
    return _policy(changed)


def region(call: Call) -> dict[str, Any]:
    """`gcloud config set compute/region` asks for this; a 404 only makes it warn."""
    raise errors.NotFound(f"Regions of Compute Engine are not offered here; {call.path['region']} is set all the same.")


def _project(project: Project) -> dict[str, Any]:
    return {
        "projectId": project.id,
        "projectNumber": str(project.number),
        "name": project.name,
        "lifecycleState": "ACTIVE",
        "createTime": wire.timestamp(project.created),
    }


def _policy(project: Project) -> dict[str, Any]:
    return {"version": 1, "etag": policies.etag(project.policy_version), **project.policy}


ROUTES = [
    Route("POST", "/token", ANYONE, issue_token),
    Route("POST", "/oauth2/v4/token", ANYONE, issue_token),
    Route("POST", "/o/oauth2/token", ANYONE, issue_token),
    Route("GET", "/v1/projects", SIGNED_IN, list_projects),
    Route("GET", PROJECT, "resourcemanager.projects.get", get_project),
    Route("POST", f"{PROJECT}:getIamPolicy", "resourcemanager.projects.getIamPolicy", get_policy),
    Route("POST", f"{PROJECT}:setIamPolicy", "resourcemanager.projects.setIamPolicy", set_policy),
    Route("GET", "/compute/v1/projects/{project}/regions/{region}", SIGNED_IN, region),
]
