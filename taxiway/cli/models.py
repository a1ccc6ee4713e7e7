"""taxiway models, versions and operations, in gcloud's words."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from taxiway import errors, names
from taxiway.cli import client, objects, options, policies, printing, transfer
from taxiway.cli.client import Client, Refused
from taxiway.cli.jobs import DEFAULT_RUNTIME
from taxiway.cli.printing import say

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
OfModel = Annotated[str, typer.Option("--model", help="The model's name.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="The version's name.")]
Operation = Annotated[
    str, typer.Argument(metavar="OPERATION", help="The operation's name, as `operations list` shows it.")
]

POLLS_S = (0.1, 0.2, 0.4, 0.7, 1.0)  # between looks at an operation; the last one again and again
CREATING = "Creating version (this might take a few minutes)"

models = options.group("Models: names that versions are served under.")
versions = options.group("Versions of a model.")
operations = options.group("Operations: what goes on behind versions create and the deletes.")


@models.command("create", epilog=options.example("taxiway models create fares --regions us-central1"))
def create_model(
    model: Model,
    regions: Annotated[str, typer.Option(help="A region; kept with the model.")] = "us-central1",
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    region: options.Region = None,
    project: options.Project = None,
) -> None:
    """Make a model; versions are then created in it."""
    server = client.connect(project)
    names.ml_name(model, "model.name")
    body = {"name": model, "regions": regions.split(","), **({"description": description} if description else {})}
    made = server.post(f"/v1/projects/{server.project}/models", body)
    say(f"Created ai platform model [{made.get('name', model)}].")


@models.command("list", epilog=options.example("taxiway models list"))
def list_models(region: options.Region = None, project: options.Project = None, format: options.Format = None) -> None:
    """List the project's models and their default versions."""
    server = client.connect(project)
    rows = list(server.items(f"/v1/projects/{server.project}/models", "models", pageSize=100))
    columns: list[printing.Column] = [
        ("NAME", lambda row: printing.last_part(row["name"])),
        ("DEFAULT_VERSION_NAME", lambda row: printing.last_part(row.get("defaultVersion", {}).get("name", ""))),
    ]
    printing.show_list(rows, columns, format)


@models.command("describe", epilog=options.example("taxiway models describe fares"))
def describe_model(
    model: Model, region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """Print all that is known of a model."""
    server = client.connect(project)
    printing.show(server.get(_model(server, model)), format)


@models.command("delete", epilog=options.example("taxiway models delete fares"))
def delete_model(model: Model, region: options.Region = None, project: options.Project = None) -> None:
    """Delete a model that has no versions."""
    server = client.connect(project)
    wait_for(server, server.delete(_model(server, model)), f"Deleting model [{model}]")


GRANT = "fares --member user:ann@example.com --role roles/ml.modelUser"


@models.command("get-iam-policy", epilog=options.example("taxiway models get-iam-policy fares"))
def get_iam_policy(
    model: Model, region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """Print who may do what with a model, beside whoever may in the whole project."""
    server = client.connect(project)
    printing.show(policies.of_ml(server, _model(server, model)).read(), format)


@models.command("add-iam-policy-binding", epilog=options.example(f"taxiway models add-iam-policy-binding {GRANT}"))
def add_iam_policy_binding(
    model: Model,
    member: policies.Member,
    role: policies.OfMl,
    region: options.Region = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Grant a role on a model and its versions."""
    server = client.connect(project)
    printing.show(policies.grant(policies.of_ml(server, _model(server, model)), member, role), format)


@models.command(
    "remove-iam-policy-binding", epilog=options.example(f"taxiway models remove-iam-policy-binding {GRANT}")
)
def remove_iam_policy_binding(
    model: Model,
    member: policies.Member,
    role: policies.OfMl,
    region: options.Region = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Take a role on a model back."""
    server = client.connect(project)
    printing.show(policies.take_back(policies.of_ml(server, _model(server, model)), member, role), format)


@versions.command(
    "create",
    epilog=options.example(
        "taxiway versions create v1 --model fares --origin gs://my-rides/fares_1/export/exporter/1700000000",
        "taxiway versions create v2 --model fares --origin ./saved_model --staging-bucket gs://my-rides",
    ),
)
def create_version(
    version: Version,
    model: OfModel,
    origin: Annotated[str, typer.Option(help="The folder of the model: gs://, or local with --staging-bucket.")],
    staging_bucket: Annotated[str | None, typer.Option(help="gs://BUCKET to upload a local folder to.")] = None,
    runtime_version: Annotated[str, typer.Option(help="See: taxiway runtimes list")] = DEFAULT_RUNTIME,
    python_version: Annotated[str | None, typer.Option(help="Such as 3.11 (default: the runtime's).")] = None,
    framework: Annotated[str, typer.Option(help="tensorflow, scikit-learn or xgboost.")] = "tensorflow",
    description: Annotated[str | None, typer.Option(help="What is new in it.")] = None,
    asynchronous: Annotated[bool, typer.Option("--async", help="Do not wait until it serves.")] = False,
    region: options.Region = None,
    project: options.Project = None,
) -> None:
    """Deploy a saved model as a version and wait until it serves; a model's first version becomes its default."""
    server = client.connect(project)
    names.ml_name(version, "version.name")
    server.get(_model(server, model))  # before anything is uploaded
    body = {
        "name": version,
        "deploymentUri": origin if objects.is_remote(origin) else _upload_model(server, origin, staging_bucket),
        "runtimeVersion": runtime_version,
        "framework": framework.upper().replace("-", "_"),
        **({"pythonVersion": python_version} if python_version else {}),
        **({"description": description} if description else {}),
    }
    operation = server.post(f"{_model(server, model)}/versions", body)
    if asynchronous:
        printing.show(operation, None)
    else:
        wait_for(server, operation, CREATING)


@versions.command("list", epilog=options.example("taxiway versions list --model fares"))
def list_versions(
    model: OfModel, region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """List a model's versions."""
    server = client.connect(project)
    rows = list(server.items(f"{_model(server, model)}/versions", "versions", pageSize=100))
    columns: list[printing.Column] = [
        ("NAME", lambda row: printing.last_part(row["name"])),
        ("DEPLOYMENT_URI", lambda row: row.get("deploymentUri")),
        ("STATE", lambda row: row.get("state")),
    ]
    printing.show_list(rows, columns, format)


@versions.command("describe", epilog=options.example("taxiway versions describe v1 --model fares"))
def describe_version(
    version: Version,
    model: OfModel,
    region: options.Region = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Print all that is known of a version."""
    server = client.connect(project)
    printing.show(server.get(_version(server, model, version)), format)


@versions.command("set-default", epilog=options.example("taxiway versions set-default v2 --model fares"))
def set_default(
    version: Version,
    model: OfModel,
    region: options.Region = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Let a version answer where only the model is named."""
    server = client.connect(project)
    printing.show(server.post(f"{_version(server, model, version)}:setDefault", {}), format)


@versions.command("delete", epilog=options.example("taxiway versions delete v1 --model fares"))
def delete_version(
    version: Version, model: OfModel, region: options.Region = None, project: options.Project = None
) -> None:
    """Delete a version; the default one only if it is the last."""
    server = client.connect(project)
    wait_for(server, server.delete(_version(server, model, version)), f"Deleting version [{version}]")


@operations.command("list", epilog=options.example("taxiway operations list"))
def list_operations(
    region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """List the project's operations."""
    server = client.connect(project)
    rows = list(server.items(f"/v1/projects/{server.project}/operations", "operations", pageSize=100))
    columns: list[printing.Column] = [
        ("NAME", lambda row: printing.last_part(row["name"])),
        ("OPERATION", lambda row: row.get("metadata", {}).get("operationType")),
        ("DONE", lambda row: str(bool(row.get("done")))),
    ]
    printing.show_list(rows, columns, format)


@operations.command("describe", epilog=options.example("taxiway operations describe create_fares_v1_1700000000000"))
def describe_operation(
    operation: Operation, region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """Print all that is known of an operation."""
    server = client.connect(project)
    printing.show(server.get(_operation(server, operation)), format)


@operations.command("wait", epilog=options.example("taxiway operations wait create_fares_v1_1700000000000"))
def wait_operation(
    operation: Operation, region: options.Region = None, project: options.Project = None, format: options.Format = None
) -> None:
    """Wait until an operation is done; exit code 0 only if it succeeded."""
    server = client.connect(project)
    found = server.get(_operation(server, operation))
    printing.show(wait_for(server, found, f"Waiting for operation [{printing.last_part(operation)}]"), format)


def wait_for(server: Client, operation: dict[str, Any], message: str) -> dict[str, Any]:
    """Poll an operation until it is done, showing the seconds. Raises Refused with its error if it failed."""
    with _waiting(message):
        looks = iter(POLLS_S)
        while not operation.get("done"):
            time.sleep(next(looks, POLLS_S[-1]))
            operation = server.get(f"/v1/{operation['name']}")
        failed = client.error_of(operation)
        if failed:
            raise Refused(400, failed[0] or "UNKNOWN", failed[1])
    return operation


@contextlib.contextmanager
def _waiting(message: str) -> Iterator[None]:
    """`message...done.` with a spinner and the seconds on a terminal; the same words without them elsewhere."""
    end = "failed."
    try:
        if printing.on_terminal():
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as line:
                line.add_task(f"{message}...", total=None)
                yield
        else:
            yield
        end = "done."
    finally:
        say(f"{message}...{end}")


def _upload_model(server: Client, origin: str, staging_bucket: str | None) -> str:
    """Upload a local folder under the hash of its contents; returns its gs:// address, which ends in a slash."""
    root = Path(origin)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if not files:
        raise errors.InvalidArgument(f"--origin: {origin} is no folder with files in it, and no gs:// address.")
    if not staging_bucket:
        raise errors.InvalidArgument("--origin is a local folder: give --staging-bucket gs://BUCKET to upload it to.")
    bucket, above = names.gs(staging_bucket, "--staging-bucket")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            for piece in transfer.pieces(file):
                digest.update(piece)
    folder = f"{above.rstrip('/')}/{digest.hexdigest()}/".lstrip("/")
    with transfer.progress(sum(path.stat().st_size for path in files), "Uploading") as told:
        transfer.in_parallel(
            functools.partial(
                transfer.upload, server, path, bucket, f"{folder}{path.relative_to(root).as_posix()}", told
            )
            for path in files
        )
    return names.join_gs(bucket, folder)


def _model(server: Client, model: str) -> str:
    return f"/v1/{names.model_name(server.project, names.ml_name(model, 'model'))}"


def _version(server: Client, model: str, version: str) -> str:
    name = names.version_name(server.project, names.ml_name(model, "model"), names.ml_name(version, "version"))
    return f"/v1/{name}"


def _operation(server: Client, operation: str) -> str:
    name = names.operation_name(server.project, printing.last_part(operation))
    names.parse_operation(name, "operation")
    return f"/v1/{name}"
