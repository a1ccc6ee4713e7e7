"""taxiway auth: who the commands act as, and the access token that they send."""

from __future__ import annotations

from typing import Annotated

import typer

from taxiway import errors
from taxiway.cli import client, logins, options, printing

app = options.group("Who the commands act as, and the access token that they send.")


@app.command(epilog=options.example("taxiway auth login ann@example.com"))
def login(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="A user of the server (taxiway users create).")],
) -> None:
    """Log in with a password, which is asked for (or read from what is piped in); the commands then act as that user.

    The login is kept in your own configuration, for this server, until `taxiway auth revoke`.
    """
    server = client.connect()
    email = email.strip().lower()
    form = {"grant_type": "password", "username": email, "password": logins.ask_password(f"Password of {email}")}
    answer = server.form("/token", form)
    before = [each for each in logins.read(server.name) if each.email == email]
    logins.keep(server.name, logins.Login(email=email, refresh_token=answer["refresh_token"]))
    for each in before:
        _revoke(server, each)
    printing.say(f"You are now logged in at {server.url} as [{email}].")


@app.command(
    "print-access-token",
    epilog=options.example('curl -H "Authorization: Bearer $(taxiway auth print-access-token)" ...'),
)
def print_access_token() -> None:
    """Print an access token of whom the commands act as; it holds for the next minutes."""
    typer.echo(client.connect().access_token())


@app.command("list", epilog=options.example("taxiway auth list"))
def list_logins(format: options.Format = None) -> None:
    """Whom the commands can act as at this server, and whom they do."""
    server = client.connect()
    held = logins.read(server.name)
    rows = [{"account": each.email, "status": ""} for each in held]
    owner = client.owner()
    rows += [{"account": owner, "status": ""}] if owner and owner not in {each.email for each in held} else []
    acting = server.acting
    for row in rows:
        row["status"] = "ACTIVE" if row["account"] == acting else ""
    columns: list[printing.Column] = [
        ("ACTIVE", lambda row: "*" if row["status"] else ""),
        ("ACCOUNT", lambda row: row["account"]),
    ]
    printing.show_list(rows, columns, format)


@app.command(epilog=options.example("taxiway auth revoke", "taxiway auth revoke ann@example.com"))
def revoke(
    email: Annotated[
        str | None, typer.Argument(metavar="EMAIL", help="Whose login (default: whom the commands act as).")
    ] = None,
) -> None:
    """Log out: the login holds no more, here and at the server. The commands then act as whoever logged in before.

    If nobody did, they act as the owner of the home.
    """
    server = client.connect()
    held = {each.email: each for each in logins.read(server.name)}
    wanted = email.strip().lower() if email else next(reversed(held), "")
    if wanted not in held:
        whose = f"[{wanted}] is not logged in" if wanted else "Nobody is logged in"
        raise errors.NotFound(f"{whose} at {server.name}. Log in: taxiway auth login EMAIL")
    _revoke(server, held[wanted])
    logins.drop(server.name, wanted)
    printing.say(f"Revoked the login of [{wanted}].")


def _revoke(server: client.Client, held: logins.Login) -> None:
    """At the server; one that does not know it any more is content."""
    try:
        server.form("/revoke", {"token": held.refresh_token})
    except client.Refused as error:
        if error.code != 400:
            raise
