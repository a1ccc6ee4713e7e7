"""Flags that many commands share, and the two kinds of command that typer does not have."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


class Form(str, Enum):
    """How a result is printed."""

    json = "json"
    yaml = "yaml"
    table = "table"


Project = Annotated[
    str | None, typer.Option(help="The project's id (default: CLOUDSDK_CORE_PROJECT, else the server's).")
]
Format = Annotated[Form | None, typer.Option(help="How the result is printed.")]
Region = Annotated[str | None, typer.Option(help="Accepted as gcloud's; the one server here answers for every region.")]

REST = "taxiway.rest"


class WithRest(TyperCommand):
    """A command whose words after `--` are somebody else's: kept aside in `context.meta[REST]`, never read as flags."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        mine, rest = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta[REST] = rest
        return super().parse_args(ctx, mine)


def group(help: str) -> typer.Typer:
    """A group of commands, as all of ours are: plain help, no completion."""
    return typer.Typer(help=help, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def example(*lines: str) -> str:
    """An epilog that shows the command in use, one line each."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
