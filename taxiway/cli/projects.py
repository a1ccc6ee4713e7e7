"""taxiway projects: projects, who may do what in them, and their service agents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from taxiway import errors
from taxiway.cli import client, options, printing, storage

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
    _change(project, lambda policy: storage.with_member(policy, member, role), format)


@app.command(
    "remove-iam-policy-binding",
    epilog=options.example(
        "taxiway projects remove-iam-policy-binding taxiway --member user:ann@example.com --role roles/viewer"
    ),
)
def remove_iam_policy_binding(
    project: Annotated[str, typer.Argument(help="The project's id.")],
    member: storage.Member,
    role: storage.Role,
    format: options.Format = None,
) -> None:
    """Take a role in a whole project back."""
    _change(project, lambda policy: storage.without_member(policy, member, role), format)


def _change(project: str, change: Callable[[dict[str, Any]], dict[str, Any]], format: options.Form | None) -> None:
    """Read, change and write the policy; again if somebody else wrote in between (its etag says so)."""
    server = client.connect(project)
    path = f"/v1/projects/{server.project}"
    for _ in range(storage.RETRIES):
        policy = change(server.post(f"{path}:getIamPolicy", {}))
        try:
            changed = server.post(f"{path}:setIamPolicy", {"policy": policy})
        except client.Refused as error:
            if error.code != 409:
                raise
            continue
        printing.say(f"Updated IAM policy for project [{server.project}].")
        printing.show(changed, format)
        return
    raise errors.Aborted(f"The policy of projects/{server.project} is changed by others all the time. Try again.")
