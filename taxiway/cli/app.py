"""Every command put together, and the one edge where an error becomes a line and an exit code."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_command

from taxiway import errors
from taxiway.cli import (
    audit,
    auth,
    client,
    host,
    iam,
    jobs,
    local,
    models,
    options,
    predict,
    printing,
    projects,
    storage,
    studies,
    tensorboards,
    users,
)

app = options.group("A self-hosted Cloud ML Engine: package, train, deploy and predict.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"taxiway {importlib.metadata.version('taxiway')}")
        raise typer.Exit


@app.callback(epilog=options.example("taxiway up", 'eval "$(taxiway env)"', "taxiway storage mb gs://my-rides"))
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A self-hosted Cloud ML Engine: package, train, deploy and predict."""


host.add_to(app)
app.add_typer(auth.app, name="auth")
app.add_typer(storage.app, name="storage")
app.add_typer(projects.app, name="projects")
app.add_typer(iam.app, name="iam")
app.add_typer(users.app, name="users")
app.add_typer(jobs.app, name="jobs")
app.add_typer(local.app, name="local")
app.add_typer(models.models, name="models")
app.add_typer(models.versions, name="versions")
app.add_typer(models.operations, name="operations")
app.add_typer(studies.app, name="studies")
app.add_typer(tensorboards.app, name="tensorboard")
predict.add_to(app)
audit.add_to(app)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code: 0, 1 for what failed, 2 for what was typed wrong."""
    command = get_command(app)
    try:
        command(args=list(arguments), prog_name="taxiway")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except client.Refused as error:
        return _failed(command, arguments, f"{error.status}: {error}")
    except errors.Error as error:
        return _failed(command, arguments, str(error))
    except OSError as error:
        return _failed(command, arguments, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 0


def _failed(command: object, arguments: Sequence[str], message: str) -> int:
    printing.say(f"ERROR: ({'.'.join(['taxiway', *_spoken(command, arguments)])}) {message}")
    return 1


def _spoken(command: object, arguments: Sequence[str]) -> list[str]:
    """The words of the command that was meant: jobs, submit, training."""
    words = []
    for word in arguments:
        if not isinstance(command, TyperGroup):
            break
        if word in command.commands:
            words.append(word)
            command = command.commands[word]
    return words
