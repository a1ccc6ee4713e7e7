"""taxiway iam: service accounts, their keys, and the roles that there are, in gcloud's words."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from taxiway import errors, files
from taxiway.cli import client, options, printing
from taxiway.cli.client import Client
from taxiway.cli.printing import say

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its e-mail address or unique id.")]
IamAccount = Annotated[str, typer.Option("--iam-account", help="The service account's e-mail address.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, as `keys list` shows it.")]
DisplayName = Annotated[str | None, typer.Option(help="What it is called.")]
Description = Annotated[str | None, typer.Option(help="What it is for.")]

app = options.group("Service accounts, their keys, and roles.")
accounts = options.group("Service accounts: who a program is.")
keys = options.group("Keys of service accounts: files that prove who a program is.")
roles = options.group("The roles that a policy can name.")
accounts.add_typer(keys, name="keys")
app.add_typer(accounts, name="service-accounts")
app.add_typer(roles, name="roles")


@accounts.command(epilog=options.example("taxiway iam service-accounts create trainer --display-name 'The trainer'"))
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The part of its address before the @.")],
    display_name: DisplayName = None,
    description: Description = None,
    project: options.Project = None,
) -> None:
    """Make a service account; what it may do is what it is granted then."""
    server = client.connect(project)
    body = {"accountId": name, "serviceAccount": _said(display_name, description)}
    server.post(_accounts(server), body)
    say(f"Created service account [{name}].")


@accounts.command("list", epilog=options.example("taxiway iam service-accounts list"))
def list_accounts(project: options.Project = None, format: options.Format = None) -> None:
    """List the project's service accounts."""
    server = client.connect(project)
    rows = list(server.items(_accounts(server), "accounts", pageSize=100))
    columns: list[printing.Column] = [
        ("DISPLAY NAME", lambda row: row.get("displayName")),
        ("EMAIL", lambda row: row["email"]),
        ("DISABLED", lambda row: bool(row.get("disabled"))),
    ]
    printing.show_list(rows, columns, format)


@accounts.command(
    epilog=options.example("taxiway iam service-accounts describe trainer@taxiway.iam.gserviceaccount.com")
)
def describe(account: Account, project: options.Project = None, format: options.Format = None) -> None:
    """Print a service account."""
    printing.show(client.connect(project).get(_account(account)), format)


@accounts.command(
    epilog=options.example("taxiway iam service-accounts update trainer@... --display-name 'The night trainer'")
)
def update(
    account: Account,
    display_name: DisplayName = None,
    description: Description = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Change what a service account is called, or what it is for."""
    said = _said(display_name, description)
    if not said:
        raise errors.InvalidArgument("Say what to change: --display-name or --description.")
    body = {"serviceAccount": said, "updateMask": ",".join(said)}
    changed = client.connect(project).call("PATCH", _account(account), json=body)
    say(f"Updated service account [{changed['email']}].")
    printing.show(changed, format)


@accounts.command(epilog=options.example("taxiway iam service-accounts delete trainer@taxiway.iam.gserviceaccount.com"))
def delete(account: Account, project: options.Project = None) -> None:
    """Delete a service account with its keys; its tokens end at once."""
    client.connect(project).delete(_account(account))
    say(f"deleted service account [{account}]")


@accounts.command(
    epilog=options.example("taxiway iam service-accounts disable trainer@taxiway.iam.gserviceaccount.com")
)
def disable(account: Account, project: options.Project = None) -> None:
    """Believe nothing any more that the account or its keys signed."""
    client.connect(project).post(f"{_account(account)}:disable", {})
    say(f"Disabled service account [{account}].")


@accounts.command(epilog=options.example("taxiway iam service-accounts enable trainer@taxiway.iam.gserviceaccount.com"))
def enable(account: Account, project: options.Project = None) -> None:
    """Let a disabled account in again."""
    client.connect(project).post(f"{_account(account)}:enable", {})
    say(f"Enabled service account [{account}].")


# ---- keys -----------------------------------------------------------------------------------------------------------

OF = "--iam-account trainer@taxiway.iam.gserviceaccount.com"


@keys.command("create", epilog=options.example(f"taxiway iam service-accounts keys create key.json {OF}"))
def create_key(
    output_file: Annotated[Path, typer.Argument(metavar="OUTPUT-FILE", help="The file to write; - prints it.")],
    iam_account: IamAccount,
    project: options.Project = None,
) -> None:
    """Make a key, and write the file that Google's libraries and gcloud read. It is told this once."""
    if str(output_file) != "-" and not output_file.absolute().parent.is_dir():
        raise errors.InvalidArgument(f"There is no folder {output_file.absolute().parent} to write the key in.")
    made = client.connect(project).post(f"{_account(iam_account)}/keys", {})
    file = base64.b64decode(made["privateKeyData"])
    if str(output_file) == "-":
        typer.echo(file.decode())
    else:
        files.replace(output_file.absolute(), file)
    key = printing.last_part(made["name"])
    say(f"created key [{key}] of type [json] as [{output_file}] for [{iam_account}]")


@keys.command("list", epilog=options.example(f"taxiway iam service-accounts keys list {OF}"))
def list_keys(iam_account: IamAccount, project: options.Project = None, format: options.Format = None) -> None:
    """List the keys of a service account."""
    rows = client.connect(project).get(f"{_account(iam_account)}/keys").get("keys", [])
    columns: list[printing.Column] = [
        ("KEY_ID", lambda row: printing.last_part(row["name"])),
        ("CREATED_AT", lambda row: row["validAfterTime"]),
        ("EXPIRES_AT", lambda row: row["validBeforeTime"]),
        ("DISABLED", lambda row: bool(row.get("disabled"))),
    ]
    printing.show_list(rows, columns, format)


@keys.command("delete", epilog=options.example(f"taxiway iam service-accounts keys delete KEY_ID {OF}"))
def delete_key(key_id: KeyId, iam_account: IamAccount, project: options.Project = None) -> None:
    """Delete a key; the tokens that it made end at once."""
    client.connect(project).delete(f"{_account(iam_account)}/keys/{key_id}")
    say(f"deleted key [{key_id}] for service account [{iam_account}]")


@keys.command("disable", epilog=options.example(f"taxiway iam service-accounts keys disable KEY_ID {OF}"))
def disable_key(key_id: KeyId, iam_account: IamAccount, project: options.Project = None) -> None:
    """Believe nothing any more that the key signs or signed."""
    client.connect(project).post(f"{_account(iam_account)}/keys/{key_id}:disable", {})
    say(f"Disabled key [{key_id}] for service account [{iam_account}].")


@keys.command("enable", epilog=options.example(f"taxiway iam service-accounts keys enable KEY_ID {OF}"))
def enable_key(key_id: KeyId, iam_account: IamAccount, project: options.Project = None) -> None:
    """Believe a disabled key again."""
    client.connect(project).post(f"{_account(iam_account)}/keys/{key_id}:enable", {})
    say(f"Enabled key [{key_id}] for service account [{iam_account}].")


# ---- roles ----------------------------------------------------------------------------------------------------------


@roles.command("list", epilog=options.example("taxiway iam roles list"))
def list_roles(format: options.Format = None) -> None:
    """List the roles that a policy can name."""
    rows = list(client.connect().items("/v1/roles", "roles", pageSize=1000))
    columns: list[printing.Column] = [("NAME", lambda row: row["name"]), ("TITLE", lambda row: row["title"])]
    printing.show_list(rows, columns, format)


@roles.command("describe", epilog=options.example("taxiway iam roles describe roles/storage.objectViewer"))
def describe_role(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="Its name, such as roles/ml.developer.")],
    format: options.Format = None,
) -> None:
    """Print a role and the permissions in it."""
    printing.show(client.connect().get(f"/v1/roles/{role.removeprefix('roles/')}"), format)


def _accounts(server: Client) -> str:
    return f"/v1/projects/{server.project}/serviceAccounts"


def _account(account: str) -> str:
    """By its address or unique id, whichever project has it, as gcloud asks."""
    if not account or "/" in account:
        raise errors.InvalidArgument(f"{account!r} is no service account's e-mail address or unique id.")
    return f"/v1/projects/-/serviceAccounts/{account}"


def _said(display_name: str | None, description: str | None) -> Mapping[str, Any]:
    told = {"displayName": display_name, "description": description}
    return {name: value for name, value in told.items() if value is not None}
