"""ML v1 as data: its 46 methods, and the discovery document that Google's clients build themselves from.

METHODS is the one list of what the API has. Ids, verbs, paths, parameters and scopes are Google's (revision 20251213 of
its document); the descriptions are ours, and the schemas come from taxiway.schemas.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple, cast

from taxiway import errors, schemas
from taxiway.api import shapes
from taxiway.api.call import ANYONE, Call, Route

CLOUD = "https://www.googleapis.com/auth/cloud-platform"
READ_ONLY = "https://www.googleapis.com/auth/cloud-platform.read-only"
SCOPES = {
    CLOUD: {"description": "Everything that you may do in your projects."},
    READ_ONLY: {"description": "Looking at what is in your projects."},
}
REVISION = "20251213"

PAGED = ("pageSize", "pageToken")
FILTERED = ("filter", *PAGED)
MASKED = ("updateMask",)
POLICY_VERSION = ("options.requestedPolicyVersion",)

PARAMETERS: dict[str, dict[str, Any]] = {
    "filter": {"type": "string", "description": "Shows only what matches: labels.owner:ann AND state:FAILED."},
    "options.requestedPolicyVersion": {
        "type": "integer",
        "format": "int32",
        "description": "Highest form of the policy that the caller understands: 0, 1 or 3.",
    },
    "pageSize": {
        "type": "integer",
        "format": "int32",
        "description": "Most items on a page; 20 unless told, at most 100.",
    },
    "pageToken": {"type": "string", "description": "The nextPageToken of the page before."},
    "returnPartialSuccess": {"type": "boolean", "description": "Answers even if some places cannot be reached."},
    "studyId": {"type": "string", "description": "Name of the new study, unique in its location."},
    "updateMask": {
        "type": "string",
        "format": "google-fieldmask",
        "description": "Fields to update, joined by commas.",
    },
}

COMMON: dict[str, dict[str, Any]] = {
    "$.xgafv": {"type": "string", "enum": ["1", "2"], "description": "Form of the errors."},
    "access_token": {"type": "string", "description": "An OAuth token, if no header brings it."},
    "alt": {
        "type": "string",
        "enum": ["json", "media", "proto"],
        "default": "json",
        "description": "Form of the answer.",
    },
    "callback": {"type": "string", "description": "Name of a function to wrap the answer in."},
    "fields": {"type": "string", "description": "Which fields to answer with."},
    "key": {"type": "string", "description": "An API key."},
    "oauth_token": {"type": "string", "description": "The same as access_token."},
    "prettyPrint": {"type": "boolean", "default": "true", "description": "Breaks and indents the answer's lines."},
    "quotaUser": {"type": "string", "description": "Whom to count the request for."},
    "uploadType": {"type": "string", "description": "How media are uploaded: media, multipart."},
    "upload_protocol": {"type": "string", "description": "How media are uploaded: raw, multipart."},
}


class Method(NamedTuple):
    """One method of the API. Its path is `v1/`, then the resource that `parameter` names, then `rest`."""

    id: str
    verb: str
    parameter: str
    pattern: str  # of that resource's name: `*` is one part of a path, `**` any number of them
    rest: str
    request: type[schemas.Message] | None
    response: type[schemas.Message]
    description: str
    query: tuple[str, ...] = ()  # names in PARAMETERS
    read_only: bool = False  # whether the read-only scope is enough

    @property
    def template(self) -> str:
        """As google.api.http writes it: v1/{name=projects/*/jobs/*}:cancel"""
        return f"v1/{{{self.parameter}={self.pattern}}}{self.rest}"


PROJECT = "projects/*"
JOB = "projects/*/jobs/*"
LOCATION = "projects/*/locations/*"
STUDY = "projects/*/locations/*/studies/*"
TRIAL = "projects/*/locations/*/studies/*/trials/*"
MODEL = "projects/*/models/*"
VERSION = "projects/*/models/*/versions/*"
ANYTHING = "projects/**"

# fmt: off
METHODS = (
    Method("ml.projects.getConfig", "GET", "name", PROJECT, ":getConfig", None, schemas.GetConfigResponse,
           "Tells whom to grant rights to, so that the service may use a project's buckets."),
    Method("ml.projects.predict", "POST", "name", ANYTHING, ":predict", schemas.PredictRequest, schemas.HttpBody,
           "Predicts with a version, or with a model's default version."),
    Method("ml.projects.explain", "POST", "name", ANYTHING, ":explain", schemas.ExplainRequest, schemas.HttpBody,
           "Predicts, and tells what each feature had to do with it."),
    Method("ml.projects.jobs.create", "POST", "parent", PROJECT, "/jobs", schemas.Job, schemas.Job,
           "Submits a training or a batch prediction."),
    Method("ml.projects.jobs.get", "GET", "name", JOB, "", None, schemas.Job, "Describes a job.", (), True),
    Method("ml.projects.jobs.list", "GET", "parent", PROJECT, "/jobs", None, schemas.ListJobsResponse,
           "Lists a project's jobs, newest first.", FILTERED, True),
    Method("ml.projects.jobs.cancel", "POST", "name", JOB, ":cancel", schemas.CancelJobRequest, schemas.Empty,
           "Stops a job that has not ended."),
    Method("ml.projects.jobs.patch", "PATCH", "name", JOB, "", schemas.Job, schemas.Job,
           "Changes a job's labels.", MASKED),
    Method("ml.projects.jobs.getIamPolicy", "GET", "resource", JOB, ":getIamPolicy", None, schemas.Policy,
           "Tells who may do what with a job.", POLICY_VERSION),
    Method("ml.projects.jobs.setIamPolicy", "POST", "resource", JOB,
           ":setIamPolicy", schemas.SetIamPolicyRequest, schemas.Policy,
           "Sets who may do what with a job."),
    Method("ml.projects.jobs.testIamPermissions", "POST", "resource", JOB,
           ":testIamPermissions", schemas.TestIamPermissionsRequest, schemas.TestIamPermissionsResponse,
           "Tells which permissions the caller has on a job."),
    Method("ml.projects.locations.get", "GET", "name", LOCATION, "", None, schemas.Location,
           "Tells what a location offers.", (), True),
    Method("ml.projects.locations.list", "GET", "parent", PROJECT, "/locations", None, schemas.ListLocationsResponse,
           "Lists the locations and what they offer.", PAGED, True),
    Method("ml.projects.locations.operations.get", "GET", "name", f"{LOCATION}/operations/*",
           "", None, schemas.Operation,
           "Tells how far a location's operation is."),
    Method("ml.projects.locations.operations.cancel", "POST", "name", f"{LOCATION}/operations/*",
           ":cancel", None, schemas.Empty,
           "Asks a location's operation to end."),
    Method("ml.projects.locations.studies.create", "POST", "parent", LOCATION, "/studies", schemas.Study, schemas.Study,
           "Begins a study.", ("studyId",)),
    Method("ml.projects.locations.studies.get", "GET", "name", STUDY, "", None, schemas.Study, "Describes a study."),
    Method("ml.projects.locations.studies.list", "GET", "parent", LOCATION,
           "/studies", None, schemas.ListStudiesResponse,
           "Lists a location's studies."),
    Method("ml.projects.locations.studies.delete", "DELETE", "name", STUDY, "", None, schemas.Empty,
           "Deletes a study and its trials."),
    Method("ml.projects.locations.studies.trials.create", "POST", "parent", STUDY,
           "/trials", schemas.Trial, schemas.Trial,
           "Adds a trial whose parameters the caller chose."),
    Method("ml.projects.locations.studies.trials.get", "GET", "name", TRIAL, "", None, schemas.Trial,
           "Describes a trial."),
    Method("ml.projects.locations.studies.trials.list", "GET", "parent", STUDY,
           "/trials", None, schemas.ListTrialsResponse,
           "Lists a study's trials."),
    Method("ml.projects.locations.studies.trials.delete", "DELETE", "name", TRIAL, "", None, schemas.Empty,
           "Deletes a trial."),
    Method("ml.projects.locations.studies.trials.suggest", "POST", "parent", STUDY,
           "/trials:suggest", schemas.SuggestTrialsRequest, schemas.Operation,
           "Chooses trials to try next."),
    Method("ml.projects.locations.studies.trials.addMeasurement", "POST", "name", TRIAL,
           ":addMeasurement", schemas.AddTrialMeasurementRequest, schemas.Trial,
           "Adds figures to a running trial."),
    Method("ml.projects.locations.studies.trials.complete", "POST", "name", TRIAL,
           ":complete", schemas.CompleteTrialRequest, schemas.Trial,
           "Ends a trial with its final figures."),
    Method("ml.projects.locations.studies.trials.stop", "POST", "name", TRIAL,
           ":stop", schemas.StopTrialRequest, schemas.Trial,
           "Asks a trial to end early."),
    Method("ml.projects.locations.studies.trials.checkEarlyStoppingState", "POST", "name", TRIAL,
           ":checkEarlyStoppingState", schemas.CheckTrialEarlyStoppingStateRequest, schemas.Operation,
           "Finds out whether a trial should end early."),
    Method("ml.projects.locations.studies.trials.listOptimalTrials", "POST", "parent", STUDY,
           "/trials:listOptimalTrials", schemas.ListOptimalTrialsRequest, schemas.ListOptimalTrialsResponse,
           "Lists the trials that no other beats."),
    Method("ml.projects.models.create", "POST", "parent", PROJECT, "/models", schemas.Model, schemas.Model,
           "Makes a model, to hold versions."),
    Method("ml.projects.models.get", "GET", "name", MODEL, "", None, schemas.Model,
           "Describes a model and its default version.", (), True),
    Method("ml.projects.models.list", "GET", "parent", PROJECT, "/models", None, schemas.ListModelsResponse,
           "Lists a project's models.", FILTERED, True),
    Method("ml.projects.models.patch", "PATCH", "name", MODEL, "", schemas.Model, schemas.Operation,
           "Changes a model's description, labels or default version.", MASKED),
    Method("ml.projects.models.delete", "DELETE", "name", MODEL, "", None, schemas.Operation,
           "Deletes a model that has no versions."),
    Method("ml.projects.models.getIamPolicy", "GET", "resource", MODEL, ":getIamPolicy", None, schemas.Policy,
           "Tells who may do what with a model.", POLICY_VERSION),
    Method("ml.projects.models.setIamPolicy", "POST", "resource", MODEL,
           ":setIamPolicy", schemas.SetIamPolicyRequest, schemas.Policy,
           "Sets who may do what with a model."),
    Method("ml.projects.models.testIamPermissions", "POST", "resource", MODEL,
           ":testIamPermissions", schemas.TestIamPermissionsRequest, schemas.TestIamPermissionsResponse,
           "Tells which permissions the caller has on a model."),
    Method("ml.projects.models.versions.create", "POST", "parent", MODEL,
           "/versions", schemas.Version, schemas.Operation,
           "Deploys a trained model as a version."),
    Method("ml.projects.models.versions.get", "GET", "name", VERSION, "", None, schemas.Version,
           "Describes a version."),
    Method("ml.projects.models.versions.list", "GET", "parent", MODEL, "/versions", None, schemas.ListVersionsResponse,
           "Lists a model's versions.", FILTERED, True),
    Method("ml.projects.models.versions.patch", "PATCH", "name", VERSION, "", schemas.Version, schemas.Operation,
           "Changes a version's description, labels, scaling or request log.", MASKED),
    Method("ml.projects.models.versions.delete", "DELETE", "name", VERSION, "", None, schemas.Operation,
           "Deletes a version that is not the default, or is the only one."),
    Method("ml.projects.models.versions.setDefault", "POST", "name", VERSION,
           ":setDefault", schemas.SetDefaultVersionRequest, schemas.Version,
           "Lets a version answer for its model."),
    Method("ml.projects.operations.get", "GET", "name", "projects/*/operations/*", "", None, schemas.Operation,
           "Tells how far an operation is."),
    Method("ml.projects.operations.list", "GET", "name", PROJECT, "/operations", None, schemas.ListOperationsResponse,
           "Lists a project's operations.", (*FILTERED, "returnPartialSuccess")),
    Method("ml.projects.operations.cancel", "POST", "name", "projects/*/operations/*", ":cancel", None, schemas.Empty,
           "Asks an operation to end."),
)
# fmt: on


def document(root_url: str) -> dict[str, Any]:
    """The discovery document of ML v1 for a server at `root_url` (scheme and host), which clients then call."""
    root = root_url.rstrip("/") + "/"
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": "ml:v1",
        "name": "ml",
        "version": "v1",
        "revision": REVISION,
        "title": "Taxiway",
        "description": "Trains machine learning models, deploys them and predicts with them.",
        "protocol": "rest",
        "rootUrl": root,
        "baseUrl": root,
        "basePath": "",
        "servicePath": "",
        "batchPath": "batch",
        "canonicalName": "Cloud Machine Learning Engine",
        "ownerDomain": "google.com",  # whose API it is; generated clients take their package's name from it
        "ownerName": "Google",
        "version_module": True,
        "fullyEncodeReservedExpansion": True,
        "auth": {"oauth2": {"scopes": SCOPES}},
        "parameters": {name: {**told, "location": "query"} for name, told in COMMON.items()},
        "schemas": _schemas(),
        "resources": _resources(),
    }


def _schemas() -> dict[str, Any]:
    return {id: _schema(id, kind) for id, kind in sorted(schemas.MESSAGES.items())}


def _schema(id: str, kind: type[schemas.Message]) -> dict[str, Any]:
    properties = {member.name: _property(member) for member in shapes.members(kind)}
    return {"id": id, "type": "object", "description": inspect.getdoc(kind), "properties": properties}


def _property(member: shapes.Member) -> dict[str, Any]:
    told = {**_json_type(member.type), "description": member.description}
    return {**told, "readOnly": True} if member.output else told


def _json_type(held: shapes.Type) -> dict[str, Any]:
    """A field's type in the words of JSON schema (draft 3, as discovery has it)."""
    if held.message is not None:
        return {"$ref": schemas.wire_id(cast("type[schemas.Message]", held.message))}
    if held.item is not None and held.word == "array":
        return {"type": "array", "items": _json_type(held.item)}
    if held.item is not None:
        return {"type": "object", "additionalProperties": _json_type(held.item)}
    if held.enum:
        return {"type": "string", "enum": list(held.enum)}
    word = "string" if held.format in shapes.TEXTS else held.word
    return {"type": word, "format": held.format} if held.format else {"type": word}


def _resources() -> dict[str, Any]:
    """The methods in the tree that their ids draw: projects.jobs.cancel stands in projects' resources, in jobs."""
    root: dict[str, Any] = {}
    for method in METHODS:
        _, *collections, name = method.id.split(".")
        node: dict[str, Any] = {"resources": root}
        for collection in collections:
            node = node.setdefault("resources", {}).setdefault(collection, {})
        node.setdefault("methods", {})[name] = _method(method)
    return root


def _method(method: Method) -> dict[str, Any]:
    told = {
        "id": method.id,
        "description": method.description,
        "httpMethod": method.verb,
        "path": f"v1/{{+{method.parameter}}}{method.rest}",
        "flatPath": f"v1/{_flat(method.pattern)}{method.rest}",
        "parameters": {
            **{name: {**PARAMETERS[name], "location": "query"} for name in method.query},
            method.parameter: _path_parameter(method),
        },
        "parameterOrder": [method.parameter],
        "response": {"$ref": schemas.wire_id(method.response)},
        "scopes": [CLOUD, READ_ONLY] if method.read_only else [CLOUD],
    }
    return {**told, "request": {"$ref": schemas.wire_id(method.request)}} if method.request else told


def _path_parameter(method: Method) -> dict[str, Any]:
    pattern = method.pattern.replace("**", ".*") if method.pattern == ANYTHING else method.pattern.replace("*", "[^/]+")
    return {
        "type": "string",
        "location": "path",
        "required": True,
        "pattern": f"^{pattern}$",
        "description": _flat(method.pattern),
    }


def _flat(pattern: str) -> str:
    """projects/*/jobs/* -> projects/{projectsId}/jobs/{jobsId}"""
    return re.sub(r"(\w+)/\*+", r"\1/{\1Id}", pattern)


# ---- routes ---------------------------------------------------------------------------------------------------------


def get_document(call: Call) -> dict[str, Any]:
    """The document, for the address that the client asked. Only ml v1 is described."""
    asked = (call.path.get("api", "ml"), call.path.get("version") or call.query.get("version", "v1"))
    if asked != ("ml", "v1"):
        raise errors.NotFound(f"There is no discovery document of {asked[0]} {asked[1]} here; there is ml v1.")
    return document(f"{call.base}/")


ROUTES = [
    Route("GET", "/$discovery/rest", ANYONE, get_document),
    Route("GET", "/discovery/v1/apis/{api}/{version}/rest", ANYONE, get_document),
    Route("GET", "/cloud-ml/discovery/ml_v1_discovery.json", ANYONE, get_document),
]
