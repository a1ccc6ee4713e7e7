"""taxiway users: the people who may log in at this server; for the owners of its first project."""

from __future__ import annotations

from typing import Annotated

import typer

from taxiway.cli import client, logins, options, printing
from taxiway.cli.printing import say

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="The user's e-mail address.")]

USERS = "/taxiway/v1/users"

app = options.group("The people who may log in at this server.")


@app.command(epilog=options.example("taxiway users create ann@example.com --display-name Ann"))
def create(
    email: Email,
    display_name: Annotated[str | None, typer.Option(help="What the user is called.")] = None,
    no_password: Annotated[bool, typer.Option("--no-password", help="Ask for none; set one later.")] = False,
) -> None:
    """Make a user; the password is asked for (or read from what is piped in). What they may do is granted then."""
    server = client.connect()
    password = "" if no_password else logins.new_password()
    body = {"email": email, "displayName": display_name or "", "password": password}
    made = server.post(USERS, body)
    say(f"Created user [{made['email']}]. They may do what they are granted:")
    say(f"taxiway projects add-iam-policy-binding PROJECT --member=user:{made['email']} --role=roles/ml.developer")


@app.command("list", epilog=options.example("taxiway users list"))
def list_users(format: options.Format = None) -> None:
    """List the users."""
    columns: list[printing.Column] = [
        ("EMAIL", lambda row: row["email"]),
        ("DISPLAY NAME", lambda row: row["displayName"]),
        ("PASSWORD", lambda row: "set" if row["hasPassword"] else "none"),
        ("DISABLED", lambda row: row["disabled"]),
    ]
    printing.show_list(list(client.connect().items(USERS, "users")), columns, format)


@app.command(epilog=options.example("taxiway users disable ann@example.com"))
def disable(email: Email) -> None:
    """Let a user in no more; their logins and tokens end at once."""
    client.connect().post(f"{USERS}/{email}:disable", {})
    say(f"Disabled user [{email}].")


@app.command(epilog=options.example("taxiway users enable ann@example.com"))
def enable(email: Email) -> None:
    """Let a disabled user in again."""
    client.connect().post(f"{USERS}/{email}:enable", {})
    say(f"Enabled user [{email}].")


@app.command("set-password", epilog=options.example("taxiway users set-password ann@example.com"))
def set_password(email: Email) -> None:
    """Set a user's password, which is asked for (or read from what is piped in); their logins end.

    For your own, without being an owner, the old one is asked for first.
    """
    server = client.connect()
    body = {}
    if server.acting == email.strip().lower() != client.owner():
        body["currentPassword"] = logins.ask_password("Password until now")
    server.post(f"{USERS}/{email}:setPassword", {**body, "password": logins.new_password()})
    say(f"Set the password of [{email}].")
