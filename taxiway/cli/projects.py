"""taxiway projects: projects, who may do what in them, and their service agents."""

from __future__ import annotations

from typing import Annotated

import typer

from taxiway.cli import client, options, policies, printing
from taxiway.cli.client import Client

Named = Annotated[
    str | None,
    typer.Argument(metavar="PROJECT", help="The project's id (default: CLOUDSDK_CORE_PROJECT, else the server's)."),
]

app = options.group("Projects, who may do what in them, and their service agents.")


@app.command(epilog=options.example("taxiway projects create night-rides --name 'Night rides'"))
def create(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The new project's id.")],
    name: Annotated[str | None, typer.Option(help="What it is called (default: its id).")] = None,
    format: options.Format = None,
) -> None:
    """Make a project that you own, with a number and a service agent of its own."""
    server = client.connect()
    made = server.post("/v1/projects", {"projectId": project, **({"name": name} if name else {})})
    printing.say(f"Created [https://cloudresourcemanager.googleapis.com/v1/projects/{project}].")
    printing.show(made["response"], format)


@app.command("list", epilog=options.example("taxiway projects list"))
def list_projects(
    filter: Annotated[str | None, typer.Option(help="Such as id:night* or name:'Night rides'.")] = None,
    format: options.Format = None,
) -> None:
    """List the projects that you may see."""
    query = {"filter": filter} if filter else {}
    columns: list[printing.Column] = [
        ("PROJECT_ID", lambda row: row["projectId"]),
        ("NAME", lambda row: row["name"]),
        ("PROJECT_NUMBER", lambda row: row["projectNumber"]),
    ]
    printing.show_list(list(client.connect().items("/v1/projects", "projects", **query)), columns, format)


@app.command(epilog=options.example("taxiway projects describe"))
def describe(project: Named = None, format: options.Format = None) -> None:
    """Print a project's id, number and state."""
    server = client.connect(project)
    printing.show(server.get(f"/v1/projects/{server.project}"), format)


@app.command("get-config", epilog=options.example("taxiway projects get-config"))
def get_config(project: Named = None, format: options.Format = None) -> None:
    """Print the service agent that jobs and versions act as: grant it the buckets that they need."""
    server = client.connect(project)
    printing.show(server.get(f"/v1/projects/{server.project}:getConfig"), format)


@app.command("get-iam-policy", epilog=options.example("taxiway projects get-iam-policy"))
def get_iam_policy(project: Named = None, format: options.Format = None) -> None:
    """Print who may do what in a project."""
    printing.show(policies.of_project(client.connect(project)).read(), format)


@app.command(
    "add-iam-policy-binding",
    epilog=options.example(
        "taxiway projects add-iam-policy-binding taxiway --member user:ann@example.com --role roles/viewer"
    ),
)
def add_iam_policy_binding(
    project: Annotated[str, typer.Argument(help="The project's id.")],
    member: policies.Member,
    role: policies.Role,
    format: options.Format = None,
) -> None:
    """Grant a role in a whole project."""
    server = client.connect(project)
    _show(server, policies.grant(policies.of_project(server), member, role), format)


@app.command(
    "remove-iam-policy-binding",
    epilog=options.example(
        "taxiway projects remove-iam-policy-binding taxiway --member user:ann@example.com --role roles/viewer"
    ),
)
def remove_iam_policy_binding(
    project: Annotated[str, typer.Argument(help="The project's id.")],
    member: policies.Member,
    role: policies.Role,
    format: options.Format = None,
) -> None:
    """Take a role in a whole project back."""
    server = client.connect(project)
    _show(server, policies.take_back(policies.of_project(server), member, role), format)


def _show(server: Client, changed: policies.Bindings, format: options.Form | None) -> None:
    printing.say(f"Updated IAM policy for project [{server.project}].")
    printing.show(changed, format)
