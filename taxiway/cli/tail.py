"""A job's log as it grows, by the server's events (see api/streams.py); and what it holds by now, by entries:list."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import typer

from taxiway import errors, names
from taxiway.cli import client, printing
from taxiway.cli.client import Client

PAUSE_S = 0.5  # between a stream that broke off and the next
SILENCE_S = 60.0  # the server says something every fifteen seconds
CONNECT_S = 10.0
AWAY_S = 600.0  # for so long we wait for a server that does not answer

COLOURS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red", "ALERT": "red"}


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event: its kind ("message" if it names none), its id ("" without one) and its data."""

    kind: str
    id: str
    data: Any


def follow(server: Client, job: str, task: str | None, to_stderr: bool) -> dict[str, Any]:
    """Print every line of a job once, from the first on, until it has ended; returns the job.

    A server that is away for a while is waited for: it goes on behind the last line. Raises Unavailable if it stays
    away, Refused if it refuses.
    """
    place = ""
    away_since: float | None = None
    while True:
        try:
            for event in _events(server, job, task, place):
                away_since = None
                if event.kind == "end":
                    return dict(event.data)
                _print(event.data["lines"], to_stderr)
                place = event.id or place
        except (errors.Unavailable, client.Refused) as error:
            if isinstance(error, client.Refused) and error.code < 500:
                raise
            if away_since is None:
                away_since = time.monotonic()
                printing.say(f"{error}\nWaiting for it; the job goes on.")
            if time.monotonic() - away_since > AWAY_S:
                raise
        time.sleep(PAUSE_S)


def messages(server: Client, job: str, holding: str) -> Iterator[str]:
    """The messages of a job's log so far that hold some words, in order of their times."""
    body = {
        "resourceNames": [names.project_name(server.project)],
        "filter": f'resource.type="ml_job" AND resource.labels.job_id="{job}" AND jsonPayload.message:"{holding}"',
        "orderBy": "timestamp asc",
        "pageSize": 1000,
    }
    token = ""
    while True:
        page = server.post("/v2/entries:list", {**body, **({"pageToken": token} if token else {})})
        yield from (str(entry["jsonPayload"]["message"]) for entry in page.get("entries", []))
        token = page.get("nextPageToken", "")
        if not token:
            return


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream, however it was cut; one that was not finished is none. Data is JSON."""
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n\n")
        for block in whole:
            fields = dict(_field(line) for line in block.split(b"\n"))
            if b"data" in fields:
                kind, place = fields.get(b"event", b"message").decode(), fields.get(b"id", b"").decode()
                yield Event(kind, place, json.loads(fields[b"data"]))


def lines(line: Mapping[str, str]) -> Iterator[str]:
    """A line as gcloud prints it, or one for each of its message: severity, local time, task, trial, message."""
    second, task = _local(line["timestamp"][:19]), line.get("taskName", "unknown_task")
    for message in line["message"].splitlines() or [""]:
        yield "\t".join([line["severity"], second, task, line.get("trialId", ""), message])


def _events(server: Client, job: str, task: str | None, place: str) -> Iterator[Event]:
    """What comes behind a place until the stream breaks off. Raises Unavailable, Refused."""
    path = f"/v1/{names.job_name(server.project, job)}:streamLogs"
    with (
        server.answering(),
        server.http.stream(
            "GET",
            path,
            params={"taskName": task} if task else {},
            headers={"Last-Event-ID": place} if place else {},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        ) as answer,
    ):
        if answer.is_error:
            answer.read()
            client.raise_for(answer)
        yield from events(answer.iter_bytes())


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


@functools.lru_cache(maxsize=64)
def _local(second: str) -> str:
    return printing.moment(f"{second}Z").strftime("%Y-%m-%d %H:%M:%S %z")


def _print(told: Iterable[Mapping[str, str]], to_stderr: bool) -> None:
    """All at once, and out at once: a trainer may print a million of them. No colours where it is no terminal."""
    out = sys.stderr if to_stderr else sys.stdout
    if out.isatty():
        shown = [typer.style(each, fg=COLOURS.get(line["severity"])) for line in told for each in lines(line)]
    else:
        shown = [each for line in told for each in lines(line)]
    typer.echo("\n".join(shown), err=to_stderr)
