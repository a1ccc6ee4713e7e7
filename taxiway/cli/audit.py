"""taxiway audit: who did what to which thing, and what was refused."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from taxiway import errors, names
from taxiway.cli import client, objects, options, printing
from taxiway.cli.client import Client

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
PAGE = 500
BUCKETS = "projects/_/buckets/"  # how the log names a bucket

COLUMNS: list[printing.Column] = [
    ("TIME", lambda row: printing.date(row.get("timestamp"))),
    ("MEMBER", lambda row: _payload(row).get("authenticationInfo", {}).get("principalSubject") or "(anonymous)"),
    ("METHOD", lambda row: _payload(row).get("methodName")),
    ("RESOURCE", lambda row: _shown(_payload(row).get("resourceName", ""))),
    ("ALLOWED", lambda row: "yes" if _payload(row)["authorizationInfo"][0]["granted"] else "NO"),
    ("CODE", lambda row: row.get("httpRequest", {}).get("status")),
]


def add_to(app: typer.Typer) -> None:
    """Put the command into the program."""
    app.command(
        epilog=options.example(
            "taxiway audit --denied --since 1h",
            "taxiway audit --resource gs://my-rides --member user:ann@example.com --format json",
        )
    )(audit)


def audit(
    member: Annotated[str | None, typer.Option(help="Only what they did: user:EMAIL, serviceAccount:EMAIL.")] = None,
    resource: Annotated[
        str | None, typer.Option(help="Only what was done to this and what is in it: gs://BUCKET, models/NAME ...")
    ] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    since: Annotated[str | None, typer.Option(help="Only of so long: 30s, 15m, 1h, 7d, 2w.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Show the audit log, the newest first. Reads are in it only if the server runs with TAXIWAY_AUDIT_READS=1."""
    server = client.connect(project)
    filters = ['resource.type="audited_resource"']
    if member:
        kind = "principalSubject" if ":" in member else "principalEmail"
        filters.append(f"protoPayload.authenticationInfo.{kind}={_quoted(member)}")
    if resource:
        name = _named(server, resource)
        filters.append(
            f"(protoPayload.resourceName={_quoted(name)} OR protoPayload.resourceName:{_quoted(name + '/')})"
        )
    if denied:
        filters.append("protoPayload.authorizationInfo.granted=false")
    if since:
        filters.append(f'timestamp>="{_before(since, time.time())}"')
    printing.show_list(list(_entries(server, " AND ".join(filters), limit)), COLUMNS, format)


def _entries(server: Client, asked: str, limit: int) -> Iterator[dict[str, Any]]:
    token = ""
    while limit > 0:
        body = {
            "resourceNames": [names.project_name(server.project)],
            "filter": asked,
            "orderBy": "timestamp desc",
            "pageSize": min(limit, PAGE),
            **({"pageToken": token} if token else {}),
        }
        page = server.post("/v2/entries:list", body)
        yield from page.get("entries", [])
        limit -= len(page.get("entries", []))
        token = page.get("nextPageToken", "")
        if not token:
            return


def _payload(row: Any) -> dict[str, Any]:
    return dict(row["protoPayload"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _named(server: Client, resource: str) -> str:
    """gs://b/o or models/m as the log names it."""
    if not objects.is_remote(resource):
        return resource if resource.startswith("projects/") else f"{names.project_name(server.project)}/{resource}"
    bucket, name = names.gs(resource, "--resource")
    return f"{BUCKETS}{bucket}" + (f"/objects/{name}" if name else "")


def _shown(resource: str) -> str:
    if not resource.startswith(BUCKETS):
        return resource
    bucket, _, name = resource.removeprefix(BUCKETS).partition("/objects/")
    return names.join_gs(bucket, name)


def _before(since: str, now: float) -> str:
    """The time that was so long ago. Raises InvalidArgument."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", since)
    if match is None:
        raise errors.InvalidArgument(
            f"--since: {since!r} is no length of time; expected one such as 30s, 15m, 1h or 7d."
        )
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - int(match[1]) * UNITS[match[2]]))
