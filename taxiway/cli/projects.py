"""taxiway projects: the project, who may do what in it, and its service agent."""

from __future__ import annotations

from typing import Annotated

import typer

from taxiway.cli import client, options, printing, storage

Named = Annotated[
    str | None,
    typer.Argument(metavar="PROJECT", help="The project's id (default: CLOUDSDK_CORE_PROJECT, else the server's)."),
]

app = options.group("The project and its service agent.")


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
    server = client.connect(project)
    printing.show(server.post(f"/v1/projects/{server.project}:getIamPolicy", {}), format)


@app.command(
    "add-iam-policy-binding",
    epilog=options.example(
        "taxiway projects add-iam-policy-binding taxiway --member user:ann@example.com --role roles/viewer"
    ),
)
def add_iam_policy_binding(
    project: Annotated[str, typer.Argument(help="The project's id.")],
    member: storage.Member,
    role: storage.Role,
    format: options.Format = None,
) -> None:
    """Grant a role in a whole project."""
    server = client.connect(project)
    path = f"/v1/projects/{server.project}"
    policy = storage.with_member(server.post(f"{path}:getIamPolicy", {}), member, role)
    changed = server.post(f"{path}:setIamPolicy", {"policy": policy})
    printing.say(f"Updated IAM policy for project [{server.project}].")
    printing.show(changed, format)
