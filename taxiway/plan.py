"""What a replica is to do: a job's or a version's work, its roles, TF_CONFIG, arguments, variables. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from taxiway import schemas

# Words in a command or a variable that only the replica knows; it puts its own values in their place.
PYTHON = "{taxiway.python}"  # the interpreter of the environment
RUNNERS = "{taxiway.runners}"  # the folder of taxiway/runners
PORT = "{taxiway.port}"  # a free port on the replica's host

METRIC_FILE = "/tmp/hypertune/output.metrics"  # where cloudml-hypertune writes unless it is told otherwise
BY_THE_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # CUDA counts GPUs by their speed, unless it is told to
PRIMARY, EVALUATOR = "master", "evaluator"
ROLES = (PRIMARY, "parameter_server", "worker", EVALUATOR)  # as TrainingInput's fields begin
MASTER = "master-replica-0"
SERVER = "server-replica-0"


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
    cpus: float = 0.0  # at most so many; 0: no limit
    memory: int = 0  # bytes, at most; 0: no limit
    gpus: list[int] = []  # those of the host's that are its alone, as nvidia-smi counts them
    devices: list[str] = []  # their files below /dev
    trial: str = ""  # of a job that tunes: 1, 2, ...
    metric: str = ""  # what a trial reports, by its name
    gang: str = ""  # the try of a job of several replicas that it belongs to: they share one network
    place: int = 0  # its number among all of those, from 0


class Gpu(Protocol):
    """One of the host's: its number, its word for CUDA, its file below /dev."""

    @property
    def index(self) -> int: ...
    @property
    def word(self) -> str: ...
    @property
    def device(self) -> str: ...


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Work that is done on the caller's machine, with the caller's terminal in place of a server."""

    works: list[Work]  # the primary first: when it ends, all do
    python: str  # the interpreter of the environment
    folder: str  # where the user's code runs
    variables: dict[str, str]  # over the caller's own, below the work's


class Seat(NamedTuple):
    """One replica of a job, and what it gets of its host: at most so many CPUs and bytes, 0 for no limit."""

    role: str = PRIMARY  # one of ROLES
    cpus: float = 0.0
    memory: int = 0
    gpus: Sequence[Gpu] | None = None  # those of the host that it sees, in nvidia-smi's order; None leaves that to it


def training(
    project: str,
    number: int,
    job: str,
    told: schemas.TrainingInput,
    *,
    runtime: str,
    python: str,
    seats: Sequence[Seat] = (Seat(),),
    ports: Sequence[int] = (),
    host: str = "127.0.0.1",
    gang: str = "",
    trial: Trial | None = None,
) -> list[Work]:
    """A job's replicas, the primary first: `python -m module args --job-dir dir`, as the service ran it.

    Those of a trial have its values behind the arguments, and its number behind the folder.

    The arguments' order, TF_CONFIG and CLOUD_ML_* are those of the training service (its distributed training page).
    `ports` are free ones on the host, one for each seat; without them a replica, which must be alone, takes one itself.
    """
    tasks = {PRIMARY: _primary(runtime, told), "parameter_server": "ps"}
    cluster: dict[str, list[str]] = {}
    places = []
    for index, seat in enumerate(seats):
        role = tasks.get(seat.role, seat.role)
        addresses = cluster.setdefault(role, []) if seat.role != EVALUATOR else []
        addresses.append(f"{host}:{ports[index]}" if ports else f"127.0.0.1:{PORT}")
        same = sum(each.role == seat.role for each in seats[:index])
        places.append(Place(cluster, role, same))
    evaluators = sum(seat.role == EVALUATOR for seat in seats)
    works = []
    for index, (seat, place) in enumerate(zip(seats, places, strict=True)):
        work = _replica(
            project, number, job, told, place, runtime=runtime, python=python, evaluators=evaluators, trial=trial
        )
        gpus = seat.gpus or ()
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(each.word for each in gpus), **BY_THE_BUS}
        work = msgspec.structs.replace(
            work,
            cpus=seat.cpus,
            memory=seat.memory,
            gpus=[each.index for each in gpus],
            devices=[each.device for each in gpus],
            variables={**work.variables, **({} if seat.gpus is None else seen)},
            gang=gang if len(seats) > 1 else "",
            place=index,
            trial=str(trial.number) if trial else "",
            metric=trial.metric if trial and place.task == MASTER else "",
        )
        works.append(work)
    return works


def local(told: schemas.TrainingInput, *, project: str, python: str, start_port: int = 0) -> list[Work]:
    """The replicas of a run on this machine, the primary first; `told` holds the runtime that was chosen.

    In tier BASIC there is one, as of a job. In tier CUSTOM the parameter servers and workers that `told` counts are
    beside it, at localhost on ports in a row from `start_port`: the primary, parameter servers, workers, as gcloud's
    `local train` gives them out. Evaluators belong to no cluster. No replica imports from the folder that it runs in,
    so that the installed package is what runs, as in a job; a Python before 3.11 cannot be told so (`-P`).
    """
    counts = {PRIMARY: 1}
    if told.scale_tier == "CUSTOM":
        counts |= {role: getattr(told, f"{role}_count") or 0 for role in ("parameter_server", "worker", EVALUATOR)}
    seats = [Seat(role) for role, count in counts.items() for _ in range(count)]
    ports = range(start_port, start_port + len(seats)) if told.scale_tier == "CUSTOM" else ()
    runtime = told.runtime_version
    works = training(
        project, 0, "local", told, runtime=runtime, python=python, seats=seats, ports=ports, host="localhost"
    )
    flags = _safe_path(python)
    return [msgspec.structs.replace(work, command=[*work.command[:2], *flags, *work.command[2:]]) for work in works]


class Trial(NamedTuple):
    """A trial of a job that tunes: its number, its values as arguments, and the name of the metric that it reports."""

    number: int
    arguments: Sequence[str]
    metric: str

    @property
    def variables(self) -> dict[str, str]:
        """What cloudml-hypertune reads, and what the service set beside it; the file is for the replica to say."""
        return {"CLOUD_ML_TRIAL_ID": str(self.number), "CLOUD_ML_HP_METRIC_TAG": self.metric}


class Place(NamedTuple):
    """A replica's place in its cluster: role -> addresses, its own role, its number among those, from 0."""

    cluster: dict[str, list[str]]
    role: str
    number: int

    @property
    def task(self) -> str:
        return MASTER if self.role in ("chief", "master") else f"{self.role}-replica-{self.number}"


def _primary(runtime: str, told: schemas.TrainingInput) -> str:
    """What the first replica is called in TF_CONFIG: TensorFlow 1 knew a master, TensorFlow 2 knows a chief, as does
    what is no TensorFlow."""
    return "master" if _is_one(runtime) and not told.use_chief_in_tf_config else "chief"


def _is_one(runtime: str) -> bool:
    """Whether TensorFlow 1 was asked for; `runners/tensorflow1` gives a TensorFlow 2 in its place the old names."""
    return runtime.startswith("1.")


def _estimator_of_two(runtime: str) -> bool:
    """Whether it is a TensorFlow 2 that has tf.estimator, which would leave evaluation and export to somebody beside a
    chief: one that is alone is told of no cluster, as gcloud's `local train` does."""
    first, _, second = runtime.partition(".")  # not every runtime is named by numbers
    return first == "2" and second.isdecimal() and int(second) < 16


def _safe_path(python: str) -> list[str]:
    return ["-P"] if tuple(map(int, python.split("."))) >= (3, 11) else []


def _replica(
    project: str,
    number: int,
    job: str,
    told: schemas.TrainingInput,
    place: Place,
    *,
    runtime: str,
    python: str,
    evaluators: int,
    trial: Trial | None,
) -> Work:
    folder = f"{told.job_dir.rstrip('/')}/{trial.number}" if told.job_dir and trial else told.job_dir
    arguments = [*told.args, *(trial.arguments if trial else ()), *(["--job-dir", folder] if folder else [])]
    described = msgspec.to_builtins(told)
    lone = sum(map(len, place.cluster.values())) == 1 and not evaluators
    alone = lone and _estimator_of_two(runtime)
    tf_config = {
        "cluster": {} if alone else place.cluster,
        "task": {
            **({} if alone else {"type": place.role, "index": place.number}),
            **({"trial": str(trial.number)} if trial else {}),
        },
        "job": described,
        "environment": "cloud",
    }
    return Work(
        project=project,
        project_number=number,
        subject=job,
        task=place.task,
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
            **({} if lone else _rendezvous(place, tf_config)),
            **(trial.variables if trial else {}),
            **({"PYTHONPATH": f"{RUNNERS}/tensorflow1"} if _is_one(runtime) else {}),
        },
    )


def _rendezvous(place: Place, tf_config: dict[str, Any]) -> dict[str, str]:
    """How others than TensorFlow find each other: the service's CLUSTER_SPEC, torch.distributed's variables (its env://
    initialisation) and JAX's, which reads the first of them itself (0.10: jax.distributed.initialize) and is told the
    others by its program. The primary is number 0, workers follow; parameter servers and evaluators have no part in
    it."""
    spec = {"CLUSTER_SPEC": msgspec.json.encode(tf_config).decode()}
    primary = next(role for role in place.cluster if role in ("chief", "master"))
    if place.role not in (primary, "worker"):
        return spec
    address = place.cluster[primary][0]
    size, rank = 1 + len(place.cluster.get("worker", ())), 0 if place.role == primary else place.number + 1
    host, _, port = address.partition(":")
    torch = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(size), "RANK": str(rank)}
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    jax = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(size), "JAX_PROCESS_ID": str(rank)}
    return {**spec, **torch, **alone, **jax}


def serving(project: str, number: int, version: str, source: str, *, runtime: str, python: str, framework: str) -> Work:
    """The server of a version: fetch the model from `source`, load it, answer frames on a socket beside it."""
    return Work(
        project=project,
        project_number=number,
        subject=version,
        task=SERVER,
        runtime=runtime,
        python=python,
        packages=[],
        fetch={"model": source},
        command=_runner("--socket", "model.sock", "--model", "model", "--framework", framework),
        variables={"CUDA_VISIBLE_DEVICES": ""},  # the GPUs of the host are for the jobs that asked for them
    )


def predicting(model: str, *, runtime: str, python: str, framework: str) -> Work:
    """The same server for one request on this machine: its body comes on standard input, the reply goes to output."""
    return Work(
        project="",
        project_number=0,
        subject="local",
        task=SERVER,
        runtime=runtime,
        python=python,
        packages=[],
        fetch={},
        command=_runner("--once", "--model", model, "--framework", framework),
        variables={},
    )


def _runner(*words: str) -> list[str]:
    return [PYTHON, "-u", f"{RUNNERS}/serve.py", *words]
