"""taxiway jobs: package and submit a training job, watch it, in gcloud's words."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from taxiway import errors, names
from taxiway.cli import client, configs, objects, options, packaging, policies, printing, tail, transfer
from taxiway.cli.client import Client
from taxiway.cli.printing import say

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Task = Annotated[str | None, typer.Option(help="Only this one's lines, such as master-replica-0.")]

DEFAULT_RUNTIME = "2.21"
DEFAULT_REGION = "us-central1"  # the wire demands one; every region is this machine

STILL_ACTIVE = """\
Your job is still active. You may view the status of your job with the command

  $ taxiway jobs describe {job}

or continue streaming the logs with the command

  $ taxiway jobs stream-logs {job}"""

app = options.group("Training jobs.")
submit = options.group("Submit a job.")
app.add_typer(submit, name="submit")


@submit.command(
    cls=options.WithRest,
    epilog=options.example(
        "taxiway jobs submit training fares_1 --module-name trainer.task --package-path trainer \\",
        "    --staging-bucket gs://my-rides --job-dir gs://my-rides/fares_1 --stream-logs \\",
        "    -- --train_steps 1000",
    ),
)
def training(
    context: typer.Context,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A new id: a letter, then letters, digits and underscores.")
    ],
    module_name: Annotated[str | None, typer.Option(help="The module to run, such as trainer.task.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A job as a YAML or JSON file (hyperparameters, ...); flags go before it.")
    ] = None,
    package_path: Annotated[Path | None, typer.Option(help="Your package: the folder with the __init__.py.")] = None,
    packages: Annotated[
        str | None, typer.Option(help="More packages (.tar.gz, .whl), local or gs://, by commas.")
    ] = None,
    staging_bucket: Annotated[str | None, typer.Option(help="gs://BUCKET to upload packages to.")] = None,
    job_dir: Annotated[
        str | None, typer.Option(help="gs:// folder for what comes of the job; passed as --job-dir.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(envvar="CLOUDSDK_COMPUTE_REGION", help=f"The region (default: {DEFAULT_REGION}).")
    ] = None,
    scale_tier: Annotated[
        str | None, typer.Option(help="BASIC (default), STANDARD_1, PREMIUM_1, BASIC_GPU, BASIC_TPU or CUSTOM.")
    ] = None,
    master_machine_type: Annotated[str | None, typer.Option(help="With CUSTOM, such as n1-standard-4.")] = None,
    master_accelerator: Annotated[
        str | None, typer.Option(metavar="type=TYPE[,count=N]", help="With CUSTOM, such as type=nvidia-tesla-t4.")
    ] = None,
    worker_machine_type: Annotated[str | None, typer.Option(help="With CUSTOM.")] = None,
    worker_count: Annotated[int | None, typer.Option(min=0, help="With CUSTOM.")] = None,
    parameter_server_machine_type: Annotated[str | None, typer.Option(help="With CUSTOM.")] = None,
    parameter_server_count: Annotated[int | None, typer.Option(min=0, help="With CUSTOM.")] = None,
    service_account: Annotated[
        str | None, typer.Option(help="The account that your code acts as (default: the project's service agent).")
    ] = None,
    runtime_version: Annotated[
        str | None, typer.Option(help=f"See: taxiway runtimes list (default: {DEFAULT_RUNTIME}).")
    ] = None,
    python_version: Annotated[str | None, typer.Option(help="Such as 3.11 (default: the runtime's).")] = None,
    labels: Annotated[str | None, typer.Option(metavar="KEY=VALUE,...", help="Labels.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="0 to 1000: of two waiting jobs the higher starts first.")
    ] = None,
    max_wait_time: Annotated[
        str | None, typer.Option(help="Cancelled if it does not run within, such as 7200s.")
    ] = None,
    max_running_time: Annotated[
        str | None, typer.Option(help="Cancelled if it runs longer (default: 604800s, seven days).")
    ] = None,
    stream_logs: Annotated[bool, typer.Option("--stream-logs", help="Print the log until the job ends.")] = False,
    asynchronous: Annotated[bool, typer.Option("--async", help="Return at once, as without it.")] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Upload, print what is checked and what is doubtful, queue nothing.")
    ] = False,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Package your code, upload it and run it as a training job. Words after -- go to your module."""
    if stream_logs and asynchronous:
        raise typer.BadParameter("--async and --stream-logs cannot both be given")
    names.ml_name(job, "jobId")  # and the module: before anything is uploaded
    told = configs.read(config, "a job: trainingInput, labels") if config else {}
    wanted = told.get("trainingInput") or {}
    if not isinstance(wanted, dict):
        raise errors.InvalidArgument(f"--config: trainingInput of {config} must be an object.")
    module = module_name or wanted.get("pythonModule") or ""
    if not module:
        raise typer.BadParameter("--module-name is required: the module to run, such as trainer.task")
    names.python_module(module, "trainingInput.pythonModule")
    server = client.connect(project)
    held = _packages(package_path, packages, module)
    if not held and not wanted.get("packageUris"):
        raise errors.InvalidArgument("A job must have packages. Give --package-path FOLDER, or --packages FILE,...")
    staging = _staging(held, staging_bucket, job_dir or wanted.get("jobDir"), job)
    scheduling = _told(priority=priority, maxWaitTime=max_wait_time, maxRunningTime=max_running_time)
    flags = _told(
        scaleTier=scale_tier,
        pythonModule=module_name,
        region=region,
        runtimeVersion=runtime_version,
        pythonVersion=python_version,
        jobDir=job_dir,
        args=context.meta[options.REST] or None,
        scheduling={**(wanted.get("scheduling") or {}), **scheduling} if scheduling else None,
        masterType=master_machine_type,
        masterConfig=_accelerator(master_accelerator),
        workerType=worker_machine_type,
        workerCount=worker_count,
        parameterServerType=parameter_server_machine_type,
        parameterServerCount=parameter_server_count,
        serviceAccount=service_account,
    )
    usual = {"scaleTier": "BASIC", "region": DEFAULT_REGION, "runtimeVersion": DEFAULT_RUNTIME, "args": []}
    uris = [*_upload(server, held, staging), *(wanted.get("packageUris") or [])]
    body = {
        "jobId": job,
        "labels": {**(told.get("labels") or {}), **_labels(labels)},
        "trainingInput": {**usual, **wanted, **flags, "packageUris": uris},
    }
    path = f"/v1/projects/{server.project}/jobs"
    if validate_only:
        looked = server.post(path, body, validateOnly="true")
        _warn(looked["warnings"])
        say(f"Job [{job}] could be submitted; nothing was queued.")
        printing.show({"checks": looked["checks"], "warnings": looked["warnings"]}, format)
        return
    made = server.post(path, body)
    _warn(made.get("taxiway", {}).get("warnings", []))
    say(f"Job [{job}] submitted successfully.")
    if not stream_logs:
        say(STILL_ACTIVE.format(job=job))
        printing.show(_in_short(made), format)
        return
    ended = _follow(server, job, None, to_stderr=True)
    printing.show(_in_short(ended), format)
    _exit_by(ended)


@app.command(epilog=options.example("taxiway jobs describe fares_1"))
def describe(job: Job, project: options.Project = None, format: options.Format = None) -> None:
    """Print all that is known of a job; of one that is queued, also why it waits, else what it used."""
    server = client.connect(project)
    found = server.get(_path(server, job))
    printing.show(found, format)
    if waiting := found.get("taxiway", {}).get("waiting"):
        _explain(job, waiting)
    for use in server.get(f"{_path(server, job)}:summarizeUsage").get("tasks", []):
        say(_usage(use))


@app.command("list", epilog=options.example("taxiway jobs list --limit 5 --filter 'jobId:fares* AND state:FAILED'"))
def list_jobs(
    filter: Annotated[
        str, typer.Option(help="Only those: jobId, state, labels.KEY, createTime, startTime, endTime; AND, OR, NOT.")
    ] = "",
    limit: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """List the project's jobs, the newest first."""
    server = client.connect(project)
    rows: list[dict[str, Any]] = []
    for row in server.items(f"/v1/projects/{server.project}/jobs", "jobs", pageSize=100, filter=filter):
        if limit is not None and len(rows) >= limit:
            break
        rows.append(row)
    columns: list[printing.Column] = [
        ("JOB_ID", lambda row: row["jobId"]),
        ("STATUS", lambda row: row.get("state")),
        ("CREATED", lambda row: printing.date(row.get("createTime"))),
    ]
    printing.show_list(rows, columns, format)


@app.command(epilog=options.example("taxiway jobs update fares_1 --update-labels owner=ann,phase=try"))
def update(
    job: Job,
    update_labels: Annotated[str, typer.Option(metavar="KEY=VALUE,...", help="Labels to set.")] = "",
    remove_labels: Annotated[str, typer.Option(metavar="KEY,...", help="Labels to take away.")] = "",
    clear_labels: Annotated[bool, typer.Option("--clear-labels", help="Take all away, and then set.")] = False,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Change a job's labels, in whatever state it is."""
    if not (update_labels or remove_labels or clear_labels):
        raise typer.BadParameter("give --update-labels, --remove-labels or --clear-labels")
    if remove_labels and clear_labels:
        raise typer.BadParameter("--remove-labels and --clear-labels cannot both be given")
    told, gone = _labels(update_labels, "--update-labels"), set(remove_labels.split(","))

    def changed(found: dict[str, Any]) -> dict[str, str]:
        held = {} if clear_labels else found.get("labels", {})
        return {key: value for key, value in {**held, **told}.items() if key not in gone}

    server = client.connect(project)
    updated = _relabelled(server, job, changed)
    say(f"Updated job [{job}].")
    printing.show(updated, format)


@app.command(epilog=options.example("taxiway jobs cancel fares_1"))
def cancel(job: Job, project: options.Project = None) -> None:
    """Ask a job to end; it is CANCELLED once its processes are gone."""
    server = client.connect(project)
    server.post(f"{_path(server, job)}:cancel", {})
    say(f"Cancelling job [{job}].")


@app.command("stream-logs", epilog=options.example("taxiway jobs stream-logs fares_1"))
def stream_logs(job: Job, task_name: Task = None, project: options.Project = None) -> None:
    """Print a job's log from its first line until the job ends; exit code 0 only if it succeeded."""
    server = client.connect(project)
    server.get(_path(server, job))  # a job that is not there is said at once
    _exit_by(_follow(server, job, task_name, to_stderr=False))


@app.command(epilog=options.example("taxiway jobs samples fares_1"))
def samples(job: Job, task_name: Task = None, project: options.Project = None, format: options.Format = None) -> None:
    """List what a job used, every few seconds: busy cores and GPUs, memory, what was read and written."""
    server = client.connect(project)
    asked = {"pageSize": 5000, **({"taskName": task_name} if task_name else {})}
    rows = list(server.items(f"{_path(server, job)}:listSamples", "samples", **asked))
    columns: list[printing.Column] = [
        ("TIME", lambda row: printing.date(row["time"])),
        ("SPAN", lambda row: f"{float(row['span'][:-1]):.1f}s"),
        ("TASK", lambda row: row["taskName"]),
        ("CPU", lambda row: f"{row['cpu']:.2f}"),
        ("MEMORY", lambda row: printing.size(int(row["memoryBytes"]))),
        ("PROCESSES", lambda row: row["processes"]),
        ("READ", lambda row: printing.size(int(row["readBytes"]))),
        ("WRITTEN", lambda row: printing.size(int(row["writtenBytes"]))),
    ]
    if any("gpu" in row for row in rows):
        columns += [
            ("GPU", lambda row: f"{row['gpu']:.2f}" if "gpu" in row else ""),
            ("GPU_MEMORY", lambda row: printing.size(int(row.get("gpuMemoryBytes", 0)))),
        ]
    printing.show_list(rows, columns, format)


GRANT = "fares_1 --member user:ann@example.com --role roles/ml.jobOwner"


@app.command("get-iam-policy", epilog=options.example("taxiway jobs get-iam-policy fares_1"))
def get_iam_policy(job: Job, project: options.Project = None, format: options.Format = None) -> None:
    """Print who may do what with a job, beside whoever may in the whole project."""
    server = client.connect(project)
    printing.show(policies.of_ml(server, _path(server, job)).read(), format)


@app.command("add-iam-policy-binding", epilog=options.example(f"taxiway jobs add-iam-policy-binding {GRANT}"))
def add_iam_policy_binding(
    job: Job,
    member: policies.Member,
    role: policies.OfMl,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Grant a role on a job."""
    server = client.connect(project)
    printing.show(policies.grant(policies.of_ml(server, _path(server, job)), member, role), format)


@app.command("remove-iam-policy-binding", epilog=options.example(f"taxiway jobs remove-iam-policy-binding {GRANT}"))
def remove_iam_policy_binding(
    job: Job,
    member: policies.Member,
    role: policies.OfMl,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Take a role on a job back."""
    server = client.connect(project)
    printing.show(policies.take_back(policies.of_ml(server, _path(server, job)), member, role), format)


def _path(server: Client, job: str) -> str:
    return f"/v1/{names.job_name(server.project, names.ml_name(job, 'jobId'))}"


def _told(**values: Any) -> dict[str, Any]:
    """Those of the values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _accelerator(text: str | None) -> dict[str, Any] | None:
    """type=nvidia-tesla-t4,count=2, as gcloud takes it -> a ReplicaConfig."""
    if text is None:
        return None
    told = dict(pair.partition("=")[::2] for pair in text.split(","))
    if not told.keys() <= {"type", "count"} or not told.get("type") or not told.get("count", "1").isdigit():
        raise typer.BadParameter(f"--master-accelerator: {text!r} must be type=TYPE or type=TYPE,count=N")
    named = told["type"].upper().replace("-", "_")
    return {"acceleratorConfig": {"type": named, "count": told.get("count", "1")}}


def _packages(folder: Path | None, others: str | None, module: str) -> list[packaging.Package | str]:
    """What the job installs: packages to upload, and gs:// addresses as they are."""
    held: list[packaging.Package | str] = []
    if folder is not None:
        held.append(packaging.build(folder))
        packaging.check_module(folder, module)
    for word in filter(None, (others or "").split(",")):
        path = Path(word)
        held.append(word if objects.is_remote(word) else packaging.Package(path.name, path.read_bytes()))
    files = [each.rpartition("/")[2] if isinstance(each, str) else each.file for each in held]
    for file in files:
        if files.count(file) > 1:
            raise errors.InvalidArgument(f"Two packages are called {file}. Rename one of them.")
    return held


def _staging(held: list[packaging.Package | str], bucket: str | None, job_dir: str | None, job: str) -> tuple[str, str]:
    """The bucket and the folder to upload to, as gcloud chooses them; not demanded without local packages."""
    if job_dir:
        names.gs(job_dir, "--job-dir")
    if bucket:
        holder, folder = names.gs(bucket, "--staging-bucket")
        return holder, f"{folder.rstrip('/')}/{job}" if folder else job
    if job_dir:
        holder, folder = names.gs(job_dir, "--job-dir")
        return holder, f"{folder.rstrip('/')}/packages" if folder else "packages"
    if any(isinstance(each, packaging.Package) for each in held):
        raise errors.InvalidArgument("Local packages need a bucket to go to. Give --staging-bucket or --job-dir.")
    return "", ""


def _upload(server: Client, held: list[packaging.Package | str], staging: tuple[str, str]) -> list[str]:
    """The gs:// addresses of all packages, the local ones uploaded under the hash of their bytes."""
    bucket, folder = staging
    uris, work = [], []
    for each in held:
        if isinstance(each, str):
            uris.append(each)
            continue
        name = f"{folder}/{hashlib.sha256(each.content).hexdigest()}/{each.file}"
        uris.append(names.join_gs(bucket, name))
        work.append(functools.partial(transfer.upload_bytes, server, each.content, bucket, name))
    transfer.in_parallel(work)
    return uris


def _relabelled(server: Client, job: str, changed: Callable[[dict[str, Any]], dict[str, str]]) -> dict[str, Any]:
    """The job with other labels; again if it changed in between (its etag says so), as a running one does by itself."""

    def attempt() -> dict[str, Any]:
        found = server.get(_path(server, job))
        body = {"labels": changed(found), "etag": found["etag"]}
        return server.call("PATCH", _path(server, job), json=body, params={"updateMask": "labels,etag"})

    return client.unless_overtaken(attempt, f"The job {job}")


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        say(f"WARNING: {warning}")


def _explain(job: str, waiting: dict[str, Any]) -> None:
    """Why a queued job waits, behind whom, and until when, if the server dares a guess."""
    say(f"Job [{job}] is queued. {waiting['reason']}")
    if behind := waiting.get("behind"):
        say(f"Of this project before it: {', '.join(behind)}.")
    if start := waiting.get("estimatedStartTime"):
        say(f"It may start at about {printing.date(start)}.")


def _usage(use: dict[str, Any]) -> str:
    """What a replica used, in a line."""

    def size(name: str) -> str:
        return printing.size(int(use[name]))

    gpu = f", {use['gpu']:.2f} GPUs, at most {size('peakGpuMemoryBytes')} there" if "gpu" in use else ""
    return (
        f"{use['taskName']} used {use['cpu']:.2f} cores in the mean ({use['cpuSeconds']:.1f} s in all), at most "
        f"{size('peakMemoryBytes')} of memory{gpu}; it read {size('readBytes')} and wrote {size('writtenBytes')}."
    )


def _labels(text: str | None, flag: str = "--labels") -> dict[str, str]:
    labels = {}
    for pair in filter(None, (text or "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{flag}: {pair!r} must be KEY=VALUE")
        labels[key] = value
    return labels


def _follow(server: Client, job: str, task: str | None, to_stderr: bool) -> dict[str, Any]:
    """Print the log until the job ends; the job then. Ctrl-C leaves the job running and exits with 130."""
    try:
        return tail.follow(server, job, task, to_stderr)
    except KeyboardInterrupt:
        say("Received keyboard interrupt.\n")
        say(STILL_ACTIVE.format(job=job))
        raise typer.Exit(130) from None


def _in_short(job: dict[str, Any]) -> dict[str, Any]:
    return {key: job[key] for key in ("jobId", "state", "startTime", "endTime") if key in job}


def _exit_by(job: dict[str, Any]) -> None:
    if job.get("state") == "SUCCEEDED":
        return
    say(f"Job [{job['jobId']}] ended as {job.get('state')}.")
    raise typer.Exit(1)
