"""What a training job must be, checked before anything is queued; every fault is named at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from taxiway import errors, names, schemas
from taxiway.db.database import Database
from taxiway.environments import packages, runtimes
from taxiway.iam import accounts, projects
from taxiway.jobs import scheduling, tuner, tuning
from taxiway.jobs.machines import Machines
from taxiway.schemas import TrainingInput

Fault = tuple[str, str]  # field, sentence
T = TypeVar("T")
PACKAGES = 100  # the service's own limit
LATER = (  # fields of TrainingInput that are understood and not offered yet
    "enable_web_access",
    "encryption_config",
    "network",
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A job that may be queued: its id, and its input with the runtime that was asked for, or chosen."""

    id: str
    training: TrainingInput
    labels: dict[str, str]
    identity: str  # the e-mail address of the account that its code acts as


def check(db: Database, project: projects.Project, job: schemas.Job, machines: Machines) -> Checked:
    """The fields, each for itself and together. Raises InvalidArgument with all faults."""
    told = job.training_input
    faults = list(_faults_of_job(job))
    if told is None:
        raise errors.InvalidArgument(faults=faults)
    faults += _faults_of_training(told)
    faults += machines.faults(told)
    faults += _faults_of_account(db, project, told.service_account)
    faults += _faults_of_tuning(db, project, told.hyperparameters)
    runtime = python = ""
    try:
        choice = runtimes.resolve(told.runtime_version or None, told.python_version or None)
        runtime, python = choice.version, choice.python_version
        if unasked := runtimes.unasked(choice):
            faults.append(("trainingInput.runtimeVersion", unasked))
    except errors.InvalidArgument as error:
        faults += [(f"trainingInput.{field}", fault) for field, fault in error.faults]
    if faults:
        raise errors.InvalidArgument(faults=faults)
    chosen = {"scale_tier": told.scale_tier or "BASIC", "runtime_version": runtime, "python_version": python}
    identity = told.service_account or projects.service_agent(project.number)
    return Checked(job.job_id, msgspec.structs.replace(told, **chosen), dict(job.labels), identity)


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
    if told.scheduling is not None:
        yield from scheduling.faults(told.scheduling)
    for name in LATER:
        if getattr(told, name):
            camel = name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])
            yield f"trainingInput.{camel}", "is not offered yet; leave it out."


def _faults_of_account(db: Database, project: projects.Project, email: str) -> Iterator[Fault]:
    if not email:
        return
    field = "trainingInput.serviceAccount"
    make = "Make one: taxiway iam service-accounts create NAME"
    try:
        found = accounts.get(db, project.id, email)
    except errors.NotFound:
        found = None
    if found is None or found.email != email:
        whose = f"a service account of projects/{project.id}"
        yield field, f"must be the e-mail address of {whose}; {email[:254]!r} is none. {make}"
    elif found.disabled:
        yield field, f"{email} is disabled. Enable it, or name another one."


def _faults_of_tuning(
    db: Database, project: projects.Project, told: schemas.HyperparameterSpec | None
) -> Iterator[Fault]:
    if told is None:
        return
    if importlib.util.find_spec("optuna") is None:
        yield tuning.FIELD, "needs Optuna, which is not installed beside this server: pip install 'taxiway[tuning]'"
    wrong = list(tuning.faults(told))
    yield from wrong
    if told.resume_previous_job_id and not wrong:
        with db.read() as rows:
            why = tuner.unresumable(rows, project.id, told)
        if why:
            yield f"{tuning.FIELD}.resumePreviousJobId", why


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
