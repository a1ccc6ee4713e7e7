"""What a replica is to do: a job's or a version's work, its roles, TF_CONFIG, arguments, variables. Pure."""

from __future__ import annotations

import msgspec

from taxiway import schemas

# Words in a command or a variable that only the replica knows; it puts its own values in their place.
PYTHON = "{taxiway.python}"  # the interpreter of the environment
RUNNERS = "{taxiway.runners}"  # the folder of taxiway/runners
PORT = "{taxiway.port}"  # a free port on the replica's host

MASTER = "master-replica-0"


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's work, as it is committed with the attempt and fetched by the replica."""

    project: str
    project_number: int
    subject: str  # the job's id, or model/version
    task: str
    runtime: str  # runtimeVersion
    python: str  # pythonVersion
    packages: list[str]  # gs:// URIs of the packages to install, in order
    fetch: dict[str, str]  # folder below the replica's own -> gs:// prefix whose objects go there
    command: list[str]
    variables: dict[str, str]


def training(project: str, number: int, job: str, told: schemas.TrainingInput, *, runtime: str, python: str) -> Work:
    """The single replica of a BASIC job: `python -m module args --job-dir dir`, as the service ran it.

    The arguments' order, TF_CONFIG and CLOUD_ML_* are those of the training service (its distributed training page).
    """
    arguments = [*told.args, *(["--job-dir", told.job_dir] if told.job_dir else [])]
    described = msgspec.to_builtins(told)
    tf_config = {
        "cluster": {"chief": [f"127.0.0.1:{PORT}"]},
        "task": {"type": "chief", "index": 0},
        "job": described,
        "environment": "cloud",
    }
    return Work(
        project=project,
        project_number=number,
        subject=job,
        task=MASTER,
        runtime=runtime,
        python=python,
        packages=list(told.package_uris),
        fetch={},
        command=[PYTHON, "-u", "-m", str(told.python_module), *arguments],
        variables={
            "TF_CONFIG": msgspec.json.encode(tf_config).decode(),
            "CLOUD_ML_JOB": msgspec.json.encode(described).decode(),
            "CLOUD_ML_JOB_ID": job,
            "CLOUD_ML_PROJECT_ID": project,
            "CLOUD_ML_REGION": told.region or "",
        },
    )


def serving(project: str, number: int, version: str, source: str, *, runtime: str, python: str, framework: str) -> Work:
    """The server of a version: fetch the model from `source`, load it, answer frames on a socket beside it."""
    return Work(
        project=project,
        project_number=number,
        subject=version,
        task="server-replica-0",
        runtime=runtime,
        python=python,
        packages=[],
        fetch={"model": source},
        command=[
            *[PYTHON, "-u", f"{RUNNERS}/serve.py"],
            *["--socket", "model.sock", "--model", "model", "--framework", framework],
        ],
        variables={},
    )
