"""How values are shown: YAML as gcloud writes it, tables, JSON; data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import typer

# A string that a YAML reader takes for what it is without quotes; whatever is doubtful gets them.
_PLAIN = re.compile(r"[A-Za-z_/][\w/.@+=#-]*(?::[\w/.@+=#-]+)*(?: [\w/.@+=()-][\w/.@+=(),#-]*)*", re.ASCII)
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~"}  # YAML 1.1 reads these as other things

Column = tuple[str, Callable[[Mapping[str, Any]], Any]]


def say(text: str) -> None:
    """Talk: to stderr."""
    typer.echo(text, err=True)


def show(value: Any, form: str | None) -> None:
    """Print one thing: `json`, or YAML by default."""
    text = json.dumps(value, indent=2, ensure_ascii=False) if form == "json" else yaml(value)
    typer.echo(text)


def show_list(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], form: str | None) -> None:
    """Print many things: a table by default, `json` as one list, `yaml` as documents; says so if there are none."""
    if form == "json":
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not rows:
        say("Listed 0 items.")
    elif form == "yaml":
        typer.echo("\n".join(f"---\n{yaml(row)}" for row in rows))
    else:
        typer.echo(table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows]))


def yaml(value: Any) -> str:
    """JSON-like data as YAML, keys sorted, no line end at its end. Timestamps and numbers in strings are quoted."""
    return "\n".join(_lines(value))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns two spaces apart under upper-case heads; a missing value is an empty cell."""
    shown = [[head.upper() for head in heads], *([text(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in shown)


def text(value: Any) -> str:
    """One value on one line: a string as it is, the rest as JSON."""
    if value is None:
        return ""
    flat = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(flat.splitlines()) if "\n" in flat else flat


def last_part(name: str) -> str:
    """projects/p/models/m -> m."""
    return name.rpartition("/")[2]


def moment(stamp: str) -> datetime:
    """An RFC 3339 time, with any number of fraction digits, in the local time zone."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00").astimezone()


def date(stamp: str | None) -> str:
    """An RFC 3339 time as gcloud's lists show it: 2030-01-31T17:05:09, local; "" for none."""
    return moment(stamp).strftime("%Y-%m-%dT%H:%M:%S") if stamp else ""


def size(count: float) -> str:
    """Bytes for a person: 12B, 4.2kiB, 1.0GiB."""
    for unit in ("B", "kiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}TiB"


def on_terminal() -> bool:
    """Whether talk goes to a person's terminal, so that a line may be redrawn."""
    return sys.stderr.isatty()


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key in sorted(value, key=str):
            yield from _entry(f"{_scalar(str(key))}:", value[key])
    elif isinstance(value, (list, tuple)) and value:
        for item in value:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(head: str, value: Any) -> Iterator[str]:
    if isinstance(value, str) and _is_block(value):
        yield f"{head} |-"
        yield from (f"  {line}".rstrip() for line in value.split("\n"))
        return
    if not value or not isinstance(value, (Mapping, list, tuple)):
        yield f"{head} {_scalar(value)}"
        return
    yield head
    indent = "  " if isinstance(value, Mapping) else ""
    yield from (f"{indent}{line}" for line in _lines(value))


def _is_block(value: str) -> bool:
    """Whether a text of several lines can stand as it is: a traceback does, and reads better so."""
    lines = value.split("\n")
    kept = all(line.isprintable() and line == line.rstrip() for line in lines)
    return len(lines) > 1 and kept and bool(lines[-1]) and bool(lines[0]) and not lines[0].startswith(" ")


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    # JSON's escapes are YAML's too; what a terminal must not get as it is stays escaped.
    return json.dumps(value, ensure_ascii=not value.replace("\n", "").isprintable())
