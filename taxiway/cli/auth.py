"""taxiway auth: the access token that the commands send."""

from __future__ import annotations

import typer

from taxiway.cli import client, options

app = options.group("The access token that the commands send.")


@app.command(
    "print-access-token",
    epilog=options.example('curl -H "Authorization: Bearer $(taxiway auth print-access-token)" ...'),
)
def print_access_token() -> None:
    """Print an access token that holds for the next minutes; the server renews it."""
    typer.echo(client.connect().token.read_text(encoding="ascii").strip())


@app.callback()
def root() -> None:
    """The access token that the commands send."""
