"""ML v1: jobs, models, versions, operations; studies stand in a file of their own. Every method of `discovery.METHODS`
is a route; one that is known and not offered yet is refused by its name.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from taxiway import errors, names, schemas
from taxiway.api import discovery, messages, studies, wire
from taxiway.api.call import SIGNED_IN, Call, Route, within
from taxiway.api.discovery import Method
from taxiway.environments import runtimes
from taxiway.iam import policies, projects
from taxiway.jobs import queue, selection, story, training, tuner, units
from taxiway.jobs.states import State
from taxiway.models import copies, registry

Fault = tuple[str, str]  # field, sentence
Value = TypeVar("Value")

META = "google.cloud.ml.v1.OperationMetadata"
UNSET = (None, "FRAMEWORK_UNSPECIFIED")  # then it is TensorFlow
SNAKE = {
    "runtimeVersion": "runtime_version",
    "pythonVersion": "python_version",
}  # as the service told faults of versions
MACHINES = re.compile(r"mls1-(c1-m2|c4-m2|highmem-1|highcpu-4)|n1-(standard|highmem|highcpu)-(2|4|8|16|32)")
OURS = "taxiway"  # the field of a job that is not Google's: see jobs/story.py
JOB_FIELDS = ("labels", "etag")  # that an update may name
MODELS_LATER = ("online_prediction_logging", "online_prediction_console_logging")
VERSIONS_LATER = (  # fields of Version that are understood and not offered yet
    "accelerator_config",
    "auto_scaling",
    "container",
    "explanation_config",
    "manual_scaling",
    "package_uris",
    "prediction_class",
    "request_logging_config",
    "routes",
    "service_account",
)

# --- project ---


def get_config(call: Call) -> dict[str, Any]:
    """The service agent; under `taxiway`, which is ours, `jail` says whether code runs in one, and why not."""
    project = projects.get(call.house.db, call.path["project"])
    told = schemas.GetConfigResponse(
        service_account=projects.service_agent(project.number), service_account_project=project.number
    )
    return {**messages.write(told), OURS: {"jail": call.house.jail}}


# --- jobs ---


def create_job(call: Call) -> dict[str, Any]:
    """Look at a job, and queue it. What is doubtful about it goes to its log, and under `taxiway` as `warnings`.

    The query parameter validateOnly=true is ours: nothing is queued, and beside the job as it would be the answer has
    `checks` and `warnings`, a sentence each.
    """
    only = wire.switch(call.query, "validateOnly")
    project = projects.get(call.house.db, call.path["project"])
    checked = training.check(call.house.db, project, messages.read(schemas.Job, call.body), call.house.machines)
    if checked.training.service_account:
        call.need("iam.serviceAccounts.actAs", project=project.id)
    if not only:
        call.resource = names.job_name(project.id, checked.id)
    report = call.house.preflight.look(checked)
    if only:
        with call.house.db.read() as rows:
            queue.must_be_new(rows, project.id, checked.id)
        told = schemas.Job(job_id=checked.id, training_input=checked.training, labels=checked.labels)
        return {**messages.write(told), "checks": report.checks, "warnings": report.warnings}
    job = queue.create(
        call.house.db,
        project.id,
        checked.id,
        checked.training,
        checked.labels,
        notes=report.notes,
        accelerators=call.house.machines.accelerators(checked.training),
        creator=call.who.member,
        now=call.now,
        checked=time.time(),
    )
    call.house.worker.wake()
    return {**_job(call, job), **({OURS: {"warnings": report.warnings}} if report.warnings else {})}


def get_job(call: Call) -> dict[str, Any]:
    """The job, and under `taxiway` what Google's message has no field for."""
    job = queue.get(call.house.db, call.path["project"], call.path["job"])
    told = story.tell(call.house.db, call.house.line, job, most=call.house.worker.most, now=call.now)
    return {**_job(call, job), OURS: messages.write(told)}


def list_jobs(call: Call) -> dict[str, Any]:
    size = wire.page_size(call.query)
    key = wire.page_key(call.query, tuple[int])
    having = selection.sql(call.query.get("filter", ""))
    found = queue.newest(
        call.house.db, call.path["project"], limit=size + 1, before=key[0] if key else None, having=having
    )
    places = call.house.line.now().places
    return wire.page("jobs", found, size, lambda job: (job.position,), lambda job: _job(call, job, places))


def patch_job(call: Call) -> dict[str, Any]:
    """Replace the labels. An etag in the body is honoured whether the mask names it or not."""
    job = queue.get(call.house.db, call.path["project"], call.path["job"])
    told = messages.read(schemas.Job, _without_ours(call.body))
    mask = wire.mask(call.query.get("updateMask", ""), JOB_FIELDS)
    if "etag" in mask and not told.etag:
        raise wire.wrong("etag", "The update mask names it: send the etag of the job as you read it.")
    etag = int.from_bytes(told.etag, "big") if told.etag else None
    if "labels" not in mask:
        queue.must_be(job, etag)
        return _job(call, job)
    names.labels(told.labels, "labels")
    return _job(call, queue.set_labels(call.house.db, job.project, job.id, dict(told.labels), etag=etag))


def cancel_job(call: Call) -> dict[str, Any]:
    queue.cancel(call.house.db, call.path["project"], call.path["job"], now=call.now)
    call.house.worker.wake()
    return {}


def get_job_policy(call: Call) -> dict[str, Any]:
    return _policy(queue.get(call.house.db, call.path["project"], call.path["job"]))


def set_job_policy(call: Call) -> dict[str, Any]:
    job = queue.get(call.house.db, call.path["project"], call.path["job"])
    bindings, version = _told_policy(call, job)
    changed = queue.set_policy(call.house.db, job.project, job.id, bindings, version=version)
    call.house.access.forget()
    return _policy(changed)


def _without_ours(body: Any) -> Any:
    """A job that is sent back as it was read bears our field: an output, as others that are read and ignored."""
    return {name: value for name, value in body.items() if name != OURS} if isinstance(body, dict) else body


def _job(call: Call, job: queue.Job, places: Mapping[int, int] | None = None) -> dict[str, Any]:
    position = None
    if job.state is State.QUEUED:
        position = (call.house.line.now().places if places is None else places).get(job.position)
    return messages.write(
        schemas.Job(
            job_id=job.id,
            training_input=job.training,
            create_time=job.created,
            start_time=job.started,
            end_time=job.ended,
            state=job.state.value,
            error_message=job.error or "",
            job_position=position,
            labels=job.labels,
            etag=_etag(job.etag),
            training_output=_output(call, job) if job.ended or job.training.hyperparameters else None,
        )
    )


def _output(call: Call, job: queue.Job) -> schemas.TrainingOutput:
    used = units.consumed(call.house.machines.units(job.training), started=job.started, ended=job.ended)
    if job.training.hyperparameters is None:
        return schemas.TrainingOutput(consumed_ml_units=used)
    return tuner.output(call.house.db, job, consumed=used)


# --- models ---


def create_model(call: Call) -> dict[str, Any]:
    project = projects.get(call.house.db, call.path["project"])
    told = messages.read(schemas.Model, call.body)
    faults: list[Fault] = []
    _gather(faults, names.ml_name, told.name, "model.name")
    _gather(faults, names.labels, told.labels, "model.labels")
    for region in told.regions:
        _gather(faults, names.region, region, "model.regions")
    if len(told.regions) > 1:
        faults.append(("model.regions", "must name one region; a model is deployed in one."))
    faults += _not_offered(told, "model", MODELS_LATER)
    if faults:
        raise errors.InvalidArgument(faults=faults)
    call.resource = names.model_name(project.id, told.name)
    kept = msgspec.structs.replace(told, default_version=None, etag=b"", regions=told.regions or ("us-central1",))
    made = registry.create_model(call.house.db, project.id, told.name, kept, creator=call.who.member, now=call.now)
    return _model(call, made)


def get_model(call: Call) -> dict[str, Any]:
    return _model(call, registry.get_model(call.house.db, call.path["project"], call.path["model"]))


def list_models(call: Call) -> dict[str, Any]:
    _refuse_filter(call, "projects.models.list")
    size = wire.page_size(call.query)
    key = wire.page_key(call.query, tuple[str])
    found = registry.list_models(call.house.db, call.path["project"], limit=size + 1, after=key[0] if key else "")
    return wire.page("models", found, size, lambda model: (model.name,), lambda model: _model(call, model))


def delete_model(call: Call) -> dict[str, Any]:
    path = call.path
    found = registry.delete_model(call.house.db, path["project"], path["model"], creator=call.who.member, now=call.now)
    call.house.access.forget()  # a model of this name that is made later has a policy of its own
    return _operation(call, found)


def get_model_policy(call: Call) -> dict[str, Any]:
    return _policy(registry.get_model(call.house.db, call.path["project"], call.path["model"]))


def set_model_policy(call: Call) -> dict[str, Any]:
    model = registry.get_model(call.house.db, call.path["project"], call.path["model"])
    bindings, version = _told_policy(call, model)
    changed = registry.set_policy(call.house.db, model.project, model.name, bindings, version=version)
    call.house.access.forget()
    return _policy(changed)


def _model(call: Call, model: registry.Model) -> dict[str, Any]:
    default = None
    if model.default_version:
        with suppress(errors.NotFound):  # deleted since the model was read
            version = registry.get_version(call.house.db, model.project, model.name, model.default_version)
            default = _version_message(version, default=True)
    return messages.write(
        msgspec.structs.replace(
            model.resource,
            name=names.model_name(model.project, model.name),
            default_version=default,
            etag=_etag(model.etag),
        )
    )


# --- versions ---


def create_version(call: Call) -> dict[str, Any]:
    """What can be known at once is checked at once; the copy and the row are made; loading takes its time."""
    house, project = call.house, projects.get(call.house.db, call.path["project"])
    model = registry.get_model(house.db, project.id, call.path["model"])
    told = messages.read(schemas.Version, call.body)
    runtime = _checked_version(told)
    call.resource = names.version_name(project.id, model.name, told.name)
    registry.must_be_new(house.db, project.id, model.name, told.name)
    framework = _framework(told)
    found = copies.find(house.db, project, told, framework)
    folder = copies.place(project, model.name, told.name, uuid.uuid4().hex[:12])
    unset: dict[str, Any] = {"create_time": None, "state": None, "error_message": "", "is_default": False, "etag": b""}
    kept = msgspec.structs.replace(
        told,
        **unset,
        last_use_time=None,
        runtime_version=runtime["version"],
        python_version=runtime["python"],
        framework=framework,
        machine_type=told.machine_type or "mls1-c1-m2",
    )
    try:
        copies.make(house.db, house.blobs, project, told.deployment_uri, found, folder, now=call.now)
        version, operation = house.db.write(
            lambda tx: registry.create_version(
                tx,
                project.id,
                model.name,
                told.name,
                kept,
                folder=folder,
                runtime=runtime,
                creator=call.who.member,
                now=call.now,
            )
        )
    except errors.Error:
        copies.remove(house.db, house.blobs, folder, now=call.now)
        raise
    house.deployments.deploy(version)
    return _operation(call, operation)


def _checked_version(told: schemas.Version) -> dict[str, str]:
    """The runtime that was asked for, or chosen; raises InvalidArgument with every fault."""
    faults: list[Fault] = []
    _gather(faults, names.ml_name, told.name, "version.name")
    _gather(faults, names.labels, told.labels, "version.labels")
    if not told.deployment_uri:
        faults.append((copies.FIELD, "is required: the gs:// folder of the model."))
    else:
        _gather(faults, names.gs, told.deployment_uri, copies.FIELD)
    if told.machine_type and not MACHINES.fullmatch(told.machine_type):
        faults.append(("version.machine_type", f"{told.machine_type!r} is none for predictions; mls1-c1-m2 is usual."))
    faults += _not_offered(told, "version", VERSIONS_LATER)
    try:
        choice = runtimes.resolve(told.runtime_version or None, told.python_version or None)
        if (framework := _framework(told)) not in choice.runtime.frameworks:
            runtime = choice.runtime
            fault = f"{framework} is not offered with runtime version {runtime.version}, which has {runtime.served}."
            faults.append(("version.framework", fault))
    except errors.InvalidArgument as error:
        faults += [(f"version.{SNAKE[field]}", fault) for field, fault in error.faults]
    if faults:
        raise errors.InvalidArgument(faults=faults)
    return {"version": choice.version, "python": choice.python_version, "framework": framework.lower()}


def _framework(told: schemas.Version) -> str:
    return "TENSORFLOW" if told.framework in UNSET else str(told.framework)


def get_version(call: Call) -> dict[str, Any]:
    path = call.path
    return _version(call, registry.get_version(call.house.db, path["project"], path["model"], path["version"]))


def list_versions(call: Call) -> dict[str, Any]:
    _refuse_filter(call, "projects.models.versions.list")
    size = wire.page_size(call.query)
    key = wire.page_key(call.query, tuple[str])
    found = registry.list_versions(
        call.house.db, call.path["project"], call.path["model"], limit=size + 1, after=key[0] if key else ""
    )
    default = registry.get_model(call.house.db, call.path["project"], call.path["model"]).default_version
    return wire.page(
        "versions",
        found,
        size,
        lambda one: (one.name,),
        lambda one: messages.write(_version_message(one, default=one.name == default)),
    )


def set_default(call: Call) -> dict[str, Any]:
    path = call.path
    found = registry.set_default(call.house.db, path["project"], path["model"], path["version"])
    call.house.deployments.changed()
    return _version(call, found)


def delete_version(call: Call) -> dict[str, Any]:
    path = call.path
    version, operation = registry.begin_delete(
        call.house.db, path["project"], path["model"], path["version"], creator=call.who.member, now=call.now
    )
    call.house.deployments.undeploy(version)
    return _operation(call, operation)


def _version(call: Call, version: registry.Version) -> dict[str, Any]:
    model = registry.get_model(call.house.db, version.project, version.model)
    return messages.write(_version_message(version, default=model.default_version == version.name))


def _version_message(version: registry.Version, *, default: bool) -> schemas.Version:
    state: Any = version.state
    return msgspec.structs.replace(
        version.resource,
        name=names.version_name(version.project, version.model, version.name),
        is_default=default,
        state=state,
        error_message=version.error or "",
        create_time=version.created,
        last_use_time=version.last_use,
        etag=_etag(version.etag),
    )


# --- operations ---


def get_operation(call: Call) -> dict[str, Any]:
    return _operation(call, registry.get_operation(call.house.db, call.path["project"], call.path["operation"]))


def list_operations(call: Call) -> dict[str, Any]:
    _refuse_filter(call, "projects.operations.list")
    size = wire.page_size(call.query)
    key = wire.page_key(call.query, tuple[str])
    found = registry.list_operations(call.house.db, call.path["project"], limit=size + 1, after=key[0] if key else "")
    return wire.page("operations", found, size, lambda one: (one.id,), lambda one: _operation(call, one))


def cancel_operation(call: Call) -> dict[str, Any]:
    registry.cancel_operation(call.house.db, call.path["project"], call.path["operation"])
    return {}


def _operation(call: Call, operation: registry.Operation) -> dict[str, Any]:
    kind: Any = operation.kind
    model = names.model_name(operation.project, operation.model)
    version = schemas.Version(name=f"{model}/versions/{operation.version}") if operation.version else None
    metadata = schemas.OperationMetadata(
        create_time=operation.created,
        start_time=operation.started,
        end_time=operation.ended,
        is_cancellation_requested=operation.cancelled,
        model_name=model,
        operation_type=kind,
        version=version,
    )
    told: dict[str, Any] = {
        "name": names.operation_name(operation.project, operation.id),
        "metadata": messages.packed(metadata, META),
    }
    if operation.done:
        told["done"] = True
        if operation.error is not None:
            told["error"] = operation.error
        else:
            kind = "google.cloud.ml.v1.Version" if operation.kind == "CREATE_VERSION" else "google.protobuf.Empty"
            told["response"] = {"@type": f"type.googleapis.com/{kind}"}
            if operation.kind == "CREATE_VERSION" and operation.version:
                told["response"] |= _version_now(call, operation)
    return told


def _version_now(call: Call, operation: registry.Operation) -> dict[str, Any]:
    """The version that was made, as it is now; only its name if it is gone again."""
    try:
        made = registry.get_version(call.house.db, operation.project, operation.model, str(operation.version))
    except errors.NotFound:
        return dict(operation.response or {})
    return _version(call, made)


# --- policies of models and jobs ---

POLICY_FIELDS = ("bindings", "etag", "version")  # gcloud names the version as well; there is one


def _policy(held: registry.Model | queue.Job) -> dict[str, Any]:
    return {"version": 1, "etag": policies.etag(held.policy_version), **held.policy}


def _told_policy(call: Call, held: registry.Model | queue.Job) -> tuple[list[dict[str, Any]], int | None]:
    """The bindings that a setIamPolicy leaves there, and the version of the policy that its sender had read."""
    told = messages.read(schemas.SetIamPolicyRequest, call.body)
    mask = wire.mask(told.update_mask, POLICY_FIELDS) if told.update_mask else POLICY_FIELDS
    if told.policy is None:
        raise errors.InvalidArgument(faults=[("policy", "is required: {bindings: [{role, members}]}.")])
    if told.policy.audit_configs:
        sentence = "are not offered; TAXIWAY_AUDIT_READS says for the whole server what is kept."
        raise errors.InvalidArgument(faults=[("policy.auditConfigs", sentence)])
    version = int.from_bytes(told.policy.etag, "big") if told.policy.etag else None
    if "bindings" not in mask:
        return held.policy["bindings"], version
    return policies.checked(messages.write(told.policy)), version


def test_permissions(call: Call) -> dict[str, Any]:
    """Which of the asked permissions the caller has; a resource that does not exist has none."""
    asked = messages.read(schemas.TestIamPermissionsRequest, call.body).permissions
    db, project = call.house.db, call.path["project"]
    try:
        if "job" in call.path:
            queue.get(db, project, call.path["job"])
        else:
            registry.get_model(db, project, call.path["model"])
        held = [each for each in asked if call.may(each, project=project, within=within(call.path, call.query))]
    except errors.NotFound:
        held = []
    return {"permissions": held} if held else {}


# --- what they share ---


def _etag(count: int) -> bytes:
    return count.to_bytes(8, "big")


def _gather(faults: list[Fault], check: Callable[[Value, str], object], value: Value, field: str) -> None:
    try:
        check(value, field)
    except errors.InvalidArgument as error:
        faults.extend(error.faults)


def _not_offered(told: msgspec.Struct, message: str, later: Iterable[str]) -> list[Fault]:
    return [(f"{message}.{name}", "is not offered yet; leave it out.") for name in later if getattr(told, name)]


def _refuse_filter(call: Call, method: str) -> None:
    if call.query.get("filter"):
        raise errors.Unimplemented(f"{method} does not offer filter yet; leave it out.")


# --- routes ---

OFFERED: dict[str, tuple[str, Callable[[Call], Any]]] = {
    "projects.getConfig": ("ml.projects.getConfig", get_config),
    "projects.jobs.create": ("ml.jobs.create", create_job),
    "projects.jobs.get": ("ml.jobs.get", get_job),
    "projects.jobs.list": ("ml.jobs.list", list_jobs),
    "projects.jobs.patch": ("ml.jobs.update", patch_job),
    "projects.jobs.cancel": ("ml.jobs.cancel", cancel_job),
    "projects.jobs.getIamPolicy": ("ml.jobs.getIamPolicy", get_job_policy),
    "projects.jobs.setIamPolicy": ("ml.jobs.setIamPolicy", set_job_policy),
    "projects.jobs.testIamPermissions": (SIGNED_IN, test_permissions),
    "projects.models.create": ("ml.models.create", create_model),
    "projects.models.get": ("ml.models.get", get_model),
    "projects.models.list": ("ml.models.list", list_models),
    "projects.models.delete": ("ml.models.delete", delete_model),
    "projects.models.getIamPolicy": ("ml.models.getIamPolicy", get_model_policy),
    "projects.models.setIamPolicy": ("ml.models.setIamPolicy", set_model_policy),
    "projects.models.testIamPermissions": (SIGNED_IN, test_permissions),
    "projects.models.versions.create": ("ml.versions.create", create_version),
    "projects.models.versions.get": ("ml.versions.get", get_version),
    "projects.models.versions.list": ("ml.versions.list", list_versions),
    "projects.models.versions.setDefault": ("ml.versions.update", set_default),
    "projects.models.versions.delete": ("ml.versions.delete", delete_version),
    "projects.operations.get": ("ml.operations.get", get_operation),
    "projects.operations.list": ("ml.operations.list", list_operations),
    "projects.operations.cancel": ("ml.operations.cancel", cancel_operation),
    **studies.OFFERED,
}
BARE = ("projects.predict",)  # answered by predict.Predict, before any router


def path_of(method: Method) -> str:
    """A method's path as a route: projects/*/jobs/* -> /v1/projects/{project}/jobs/{job}.

    >>> path_of(next(each for each in discovery.METHODS if each.id == "ml.projects.jobs.cancel"))
    '/v1/projects/{project}/jobs/{job}:cancel'
    """
    named = re.sub(r"(\w+?)(ies|s)/\*(?!\*)", _named, method.pattern)
    return f"/v1/{named.replace('projects/**', 'projects/{project}/{rest:path}')}{method.rest}"


def _named(match: re.Match[str]) -> str:
    one = f"{match[1]}y" if match[2] == "ies" else match[1]
    return f"{match[0][:-1]}{{{one}}}"


def _refusal(method: Method) -> Callable[[Call], Any]:
    def refuse(call: Call) -> Any:
        raise errors.Unimplemented(f"{method.id} is not offered yet.")

    return refuse


def _route(method: Method) -> Route:
    offered = OFFERED.get(method.id.removeprefix("ml."))
    permission, function = offered or (SIGNED_IN, _refusal(method))
    return Route(method.verb, path_of(method), permission, function)


# Those with a verb come first: {job} would match J:cancel too.
ROUTES = sorted(
    (_route(method) for method in discovery.METHODS if method.id.removeprefix("ml.") not in BARE),
    key=lambda route: ":" not in route.path.rpartition("/")[2],
)
METHOD_IDS = {(each.verb, path_of(each)): each.id for each in discovery.METHODS}  # of a route, by its verb and path
