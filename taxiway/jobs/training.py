"""What a training job must be, checked before anything is queued; every fault is named at once."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from taxiway import environments, errors, names, schemas
from taxiway.db.database import Database
from taxiway.iam import members, policies, projects
from taxiway.iam.members import Caller
from taxiway.schemas import TrainingInput
from taxiway.storage import objects

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
    "scheduling",
    "service_account",
    "use_chief_in_tf_config",
    "worker_config",
    "worker_count",
    "worker_type",
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A job that may be queued: its id, and its input with the runtime that was chosen."""

    id: str
    training: TrainingInput
    labels: dict[str, str]


def check(db: Database, project: projects.Project, job: schemas.Job) -> Checked:
    """Everything that can be known before the queue.

    Raises InvalidArgument with all faults of the fields; then PermissionDenied or NotFound for what the project's
    service agent cannot read or write, with the grant that mends it.
    """
    told = job.training_input
    if told is None:
        what = "predictionInput: batch prediction is not offered yet" if job.prediction_input else "nothing"
        raise errors.InvalidArgument(faults=[("trainingInput", f"is required; the job has {what}.")])
    faults = [*_faults_of_fields(job, told)]
    runtime = python = ""
    try:
        choice = environments.resolve(told.runtime_version or None, told.python_version or None)
        runtime, python = choice.runtime.version, choice.python
    except errors.InvalidArgument as error:
        faults += [(f"trainingInput.{field}", fault) for field, fault in error.faults]
    if faults:
        raise errors.InvalidArgument(faults=faults)
    _check_grants(db, project, told)
    chosen = {"scale_tier": TIER, "runtime_version": runtime, "python_version": python}
    return Checked(job.job_id, msgspec.structs.replace(told, **chosen), dict(job.labels))


def _faults_of_fields(job: schemas.Job, told: TrainingInput) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []

    def try_(check: object, value: str, field: str) -> None:
        try:
            check(value, field)  # type: ignore[operator]
        except errors.InvalidArgument as error:
            faults.extend(error.faults)

    try_(names.ml_name, job.job_id, "jobId")
    try_(lambda value, field: names.labels(value, field), job.labels, "labels")  # type: ignore[arg-type]
    if told.python_module:
        try_(names.python_module, told.python_module, "trainingInput.pythonModule")
    else:
        faults.append(("trainingInput.pythonModule", "is required: the module to run, such as trainer.task."))
    if told.region:
        try_(names.region, told.region, "trainingInput.region")
    else:
        faults.append(("trainingInput.region", "is required, such as us-central1."))
    if not 1 <= len(told.package_uris) <= PACKAGES:
        faults.append(("trainingInput.packageUris", f"must name 1 to {PACKAGES} packages in gs://."))
    for index, uri in enumerate(told.package_uris):
        field = f"trainingInput.packageUris[{index}]"
        try_(names.gs, uri, field)
        if not uri.endswith(environments.ARCHIVES):
            kinds = ", ".join(environments.ARCHIVES)
            faults.append((field, f"{uri!r} is no Python package: its name must end in one of {kinds}."))
    if told.job_dir:
        try_(names.gs, told.job_dir, "trainingInput.jobDir")
    if told.scale_tier not in (None, TIER):
        faults.append(("trainingInput.scaleTier", f"{told.scale_tier} is not offered yet; use {TIER}."))
    for name in LATER:
        if getattr(told, name):
            camel = name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])
            faults.append((f"trainingInput.{camel}", "is not offered yet; leave it out."))
    return faults


def _check_grants(db: Database, project: projects.Project, told: TrainingInput) -> None:
    """What the service agent will need: to read each package, and to write the job's folder."""
    agent = Caller(members.of_email(projects.service_agent(project.number)))
    for uri in told.package_uris:
        bucket, name = names.gs(uri, "trainingInput.packageUris")
        policies.need(db, agent, "storage.objects.get", bucket=bucket)
        objects.get(db, bucket, name)
    if told.job_dir:
        bucket, _ = names.gs(told.job_dir, "trainingInput.jobDir")
        policies.need(db, agent, *WRITES, bucket=bucket)
