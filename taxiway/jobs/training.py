"""What a training job must be, checked before anything is queued; every fault is named at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from taxiway import errors, names, schemas
from taxiway.db.database import Database
from taxiway.environments import packages, runtimes
from taxiway.iam import members, policies, projects
from taxiway.iam.members import Caller
from taxiway.jobs import scheduling
from taxiway.schemas import TrainingInput
from taxiway.storage import buckets, objects

Fault = tuple[str, str]  # field, sentence
T = TypeVar("T")
TIER = "BASIC"
PACKAGES = 100  # the service's own limit
WRITES = (  # what TensorFlow needs to keep checkpoints, summaries and exports below a folder
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
    "storage.buckets.get",
)
LATER = (  # fields of TrainingInput that are understood and not offered yet
    "enable_web_access",
    "encryption_config",
    "evaluator_config",
    "evaluator_count",
    "evaluator_type",
    "hyperparameters",
    "master_config",
    "master_type",
    "network",
    "parameter_server_config",
    "parameter_server_count",
    "parameter_server_type",
    "service_account",
    "use_chief_in_tf_config",
    "worker_config",
    "worker_count",
    "worker_type",
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A job that may be queued: its id, and its input with the runtime that was asked for, or chosen."""

    id: str
    training: TrainingInput
    labels: dict[str, str]


def check(db: Database, project: projects.Project, job: schemas.Job) -> Checked:
    """Everything that can be known before the queue.

    Raises InvalidArgument with all faults of the fields; then PermissionDenied or NotFound for what the project's
    service agent cannot read or write, with the grant that mends it.
    """
    told = job.training_input
    faults = list(_faults_of_job(job))
    if told is None:
        raise errors.InvalidArgument(faults=faults)
    faults += _faults_of_training(told)
    runtime = python = ""
    try:
        choice = runtimes.resolve(told.runtime_version or None, told.python_version or None)
        runtime, python = choice.version, choice.python_version
    except errors.InvalidArgument as error:
        faults += [(f"trainingInput.{field}", fault) for field, fault in error.faults]
    if faults:
        raise errors.InvalidArgument(faults=faults)
    _check_grants(db, project, told)
    chosen = {"scale_tier": TIER, "runtime_version": runtime, "python_version": python}
    return Checked(job.job_id, msgspec.structs.replace(told, **chosen), dict(job.labels))


def _faults_of_job(job: schemas.Job) -> Iterator[Fault]:
    yield from _faults(names.ml_name, job.job_id, "jobId")
    yield from _faults(names.labels, job.labels, "labels")
    if job.prediction_input is not None:
        yield "predictionInput", "batch prediction is not offered yet; a job here has trainingInput alone."
    elif job.training_input is None:
        yield "trainingInput", "is required: what to train."


def _faults_of_training(told: TrainingInput) -> Iterator[Fault]:
    if told.python_module:
        yield from _faults(names.python_module, told.python_module, "trainingInput.pythonModule")
    else:
        yield "trainingInput.pythonModule", "is required: the module to run, such as trainer.task."
    if told.region:
        yield from _faults(names.region, told.region, "trainingInput.region")
    else:
        yield "trainingInput.region", "is required, such as us-central1."
    if not 1 <= len(told.package_uris) <= PACKAGES:
        yield "trainingInput.packageUris", f"must name 1 to {PACKAGES} packages in gs://."
    for index, uri in enumerate(told.package_uris[:PACKAGES]):
        yield from _faults_of_package(uri, f"trainingInput.packageUris[{index}]")
    if told.job_dir:
        yield from _faults(names.gs, told.job_dir, "trainingInput.jobDir")
    if told.scale_tier not in (None, TIER):
        yield "trainingInput.scaleTier", f"{told.scale_tier} is not offered yet; use {TIER}."
    if told.scheduling is not None:
        yield from scheduling.faults(told.scheduling)
    for name in LATER:
        if getattr(told, name):
            camel = name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])
            yield f"trainingInput.{camel}", "is not offered yet; leave it out."


def _faults_of_package(uri: str, field: str) -> Iterator[Fault]:
    wrong = list(_faults(names.gs, uri, field))
    yield from wrong
    if not wrong and not uri.endswith(packages.ARCHIVES):
        kinds = ", ".join(packages.ARCHIVES)
        yield field, f"{uri!r} is no Python package: its name must end in one of {kinds}."


def _faults(check: Callable[[T, str], object], value: T, field: str) -> tuple[Fault, ...]:
    """What a check of names finds wrong."""
    try:
        check(value, field)
    except errors.InvalidArgument as error:
        return error.faults
    return ()


def _refusal(db: Database, who: Caller, bucket: str, permissions: set[str]) -> str:
    """Why somebody may not; "" if they may. Raises NotFound for a bucket that is not there."""
    try:
        policies.need(db, who, *sorted(permissions), bucket=bucket)
    except errors.PermissionDenied as error:
        return str(error)
    return ""


def _check_grants(db: Database, project: projects.Project, told: TrainingInput) -> None:
    """What the service agent will need: to read each package, and to write the job's folder."""
    agent = Caller(members.of_email(projects.service_agent(project.number)))
    needed: dict[str, set[str]] = {}  # bucket -> permissions
    for uri in told.package_uris:
        bucket, name = names.gs(uri, "trainingInput.packageUris")
        if not policies.allowed(db, agent, "storage.objects.get", bucket=bucket, within=policies.object_of(name)):
            needed.setdefault(bucket, set()).add("storage.objects.get")
    if told.job_dir:
        bucket = names.gs(told.job_dir, "trainingInput.jobDir")[0]
        owns = not buckets.get(db, bucket).uniform  # there a trainer may read what it writes: it owns it
        needed.setdefault(bucket, set()).update(set(WRITES) - ({"storage.objects.get"} if owns else set()))
    refused = [_refusal(db, agent, bucket, permissions) for bucket, permissions in needed.items()]
    if any(refused):
        raise errors.PermissionDenied("\n".join(filter(None, refused)))
    for uri in told.package_uris:
        objects.get(db, *names.gs(uri, "trainingInput.packageUris"))
