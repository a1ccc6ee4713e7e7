"""Resource Manager: projects, and who may do what in them.

Sources: https://cloud.google.com/resource-manager/reference/rest/v1/projects and .../rest/v3/projects
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taxiway import errors, names
from taxiway.api import wire
from taxiway.api.call import SIGNED_IN, Call, Route
from taxiway.iam import policies, projects
from taxiway.iam.projects import Project

PROJECT = "/v1/projects/{project}"
PROJECT_3 = "/v3/projects/{project}"

NAME = re.compile(r"[\w '\"!-]{1,30}")  # a display name
TERM = re.compile(r"""([A-Za-z.]+)\s*[:=]\s*(?:"([^"]*)"|'([^']*)'|([^\s()]+))""")


def create_project(call: Call) -> dict[str, Any]:
    """A project that its creator owns; the operation is done when it is answered.

    Owners of the first project may. Raises AlreadyExists for an id that is taken.
    """
    body = wire.message(call.body)
    call.need("resourcemanager.projects.create", project=projects.first(call.house.db).id)
    project = names.project_id(str(body.get("projectId", "")), "projectId")
    name, owner, now = _named(body, "name") or project, call.who.member, call.now
    made = call.house.db.write(lambda tx: projects.create(tx, project, owners=[owner], name=name, now=now))
    call.resource = f"projects/{project}"
    return _operation(made)


def get_operation(call: Call) -> dict[str, Any]:
    """The operation that made a project, for whoever may see that: done since it was answered."""
    number = call.path["operation"].removeprefix("cp.")
    made = projects.get(call.house.db, number if number.isdigit() else "-")
    call.need("resourcemanager.projects.get", project=made.id)
    return _operation(made)


def list_projects(call: Call) -> dict[str, Any]:
    """Those that the caller may see, by their id; `filter` knows id, name, projectNumber and lifecycleState."""
    size = wire.page_size(call.query, default=500, most=1000)
    after = wire.page_key(call.query, tuple[str])
    choices = _choices(call.query.get("filter", ""))
    every = [each for each in projects.every(call.house.db) if after is None or each.id > after[0]]
    asked = (each for each in every if any(all(_fits(each, *term) for term in terms) for terms in choices))
    seen = []
    for each in asked:
        if call.may("resourcemanager.projects.get", project=each.id):
            seen.append(each)
        if len(seen) > size:
            break
    return wire.page("projects", seen, size, lambda each: (each.id,), _project)


def get_project(call: Call) -> dict[str, Any]:
    return _project(projects.get(call.house.db, call.path["project"]))


def update_project(call: Call) -> dict[str, Any]:
    """PUT, and PATCH: the display name is all that can be changed."""
    project, name = call.path["project"], _named(wire.message(call.body), "name")
    if not name:
        raise wire.wrong("name", "is required: the display name is what can be changed.")
    return _project(call.house.db.write(lambda tx: projects.rename(tx, project, name)))


def get_policy(call: Call) -> dict[str, Any]:
    return _policy(projects.get(call.house.db, call.path["project"]))


def set_policy(call: Call) -> dict[str, Any]:
    told = call.body.get("policy") if isinstance(call.body, dict) else None
    if not isinstance(told, dict):
        raise errors.InvalidArgument(faults=[("policy", "is required: {bindings: [{role, members}]}.")])
    changed = projects.set_policy(call.house.db, call.path["project"], told)
    call.house.access.forget()
    return _policy(changed)


def test_permissions(call: Call) -> dict[str, Any]:
    """Those of `permissions` that the caller has. Raises NotFound for a project that does not exist."""
    wanted = wire.strings(wire.message(call.body), "permissions")
    held = [each for each in wanted if call.may(each, project=call.path["project"])]
    return {"permissions": held} if held else {}


def get_ancestry(call: Call) -> dict[str, Any]:
    """A project stands alone: there are no folders and no organization here."""
    return {"ancestor": [{"resourceId": {"type": "project", "id": call.path["project"]}}]}


def region(call: Call) -> dict[str, Any]:
    """`gcloud config set compute/region` asks for this; a 404 only makes it warn."""
    raise errors.NotFound(f"Regions of Compute Engine are not offered here; {call.path['region']} is set all the same.")


def get_project_3(call: Call) -> dict[str, Any]:
    """The same as v3 writes it."""
    held = projects.get(call.house.db, call.path["project"])
    return {
        "name": f"projects/{held.number}",
        "projectId": held.id,
        "displayName": held.name,
        "state": "ACTIVE",
        "createTime": wire.timestamp(held.created),
        "etag": policies.etag(held.policy_version),
    }


def _named(body: Mapping[str, Any], field: str) -> str:
    name = body.get(field, "")
    if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
        allowed = "1 to 30 letters, digits, spaces, hyphens, quotes and exclamation points"
        raise wire.wrong(field, f"{wire.shown(name)}: a project's name must have {allowed}.")
    return name


def _choices(text: str) -> list[list[tuple[str, str]]]:
    """A filter's `field:value` and `field=value`: those of one part between ORs must all hold; the rest is not read."""
    parts = re.split(r"\bOR\b", text)
    return [[(field, double or single or bare) for field, double, single, bare in TERM.findall(part)] for part in parts]


def _fits(project: Project, field: str, value: str) -> bool:
    held = {
        "id": project.id,
        "projectId": project.id,
        "name": project.name,
        "projectNumber": str(project.number),
        "lifecycleState": "ACTIVE",
    }.get(field)
    if held is None:
        return True
    pattern = re.escape(value.lower()).replace(r"\*", ".*")
    return re.fullmatch(pattern, held.lower()) is not None


def _project(project: Project) -> dict[str, Any]:
    return {
        "projectId": project.id,
        "projectNumber": str(project.number),
        "name": project.name,
        "lifecycleState": "ACTIVE",
        "createTime": wire.timestamp(project.created),
    }


def _operation(made: Project) -> dict[str, Any]:
    status = {"createTime": wire.timestamp(made.created), "gettable": True, "ready": True}
    kind = "type.googleapis.com/google.cloudresourcemanager.v1."
    return {
        "name": f"operations/cp.{made.number}",
        "metadata": {"@type": f"{kind}ProjectCreationStatus", **status},
        "done": True,
        "response": {"@type": f"{kind}Project", **_project(made)},
    }


def _policy(project: Project) -> dict[str, Any]:
    return {"version": 1, "etag": policies.etag(project.policy_version), **project.policy}


ROUTES = [
    Route("GET", "/v1/projects", SIGNED_IN, list_projects),
    Route("POST", "/v1/projects", SIGNED_IN, create_project),
    Route("GET", "/v1/operations/{operation}", SIGNED_IN, get_operation),
    Route("GET", PROJECT, "resourcemanager.projects.get", get_project),
    Route("PUT", PROJECT, "resourcemanager.projects.update", update_project),
    Route("PATCH", PROJECT, "resourcemanager.projects.update", update_project),
    Route("GET", PROJECT_3, "resourcemanager.projects.get", get_project_3),
    Route("POST", f"{PROJECT}:getIamPolicy", "resourcemanager.projects.getIamPolicy", get_policy),
    Route("POST", f"{PROJECT}:setIamPolicy", "resourcemanager.projects.setIamPolicy", set_policy),
    Route("POST", f"{PROJECT}:testIamPermissions", SIGNED_IN, test_permissions),
    Route("POST", f"{PROJECT}:getAncestry", "resourcemanager.projects.get", get_ancestry),
    Route("GET", "/compute/v1/projects/{project}/regions/{region}", SIGNED_IN, region),
]
