"""A job's log as it grows: entries:list with gcloud's filter, read again and again until the job has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import typer

from taxiway import errors, names
from taxiway.cli import client, printing
from taxiway.cli.client import Client

POLL_S = 1.0
LATE_S = 5.0  # a line may arrive so long after one of another replica that bears a later time
AWAY_S = 600.0  # for so long we wait for a server that does not answer
CATCH_UP_S = 60.0  # after that, for so long lines from the time without it may still arrive

COLOURS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red", "ALERT": "red"}


def follow(server: Client, job: str, task: str | None, to_stderr: bool) -> dict[str, Any]:
    """Print every line of a job once, from the first on, until it has ended; returns the job.

    A server that is away for a while is waited for. Raises Unavailable if it stays away.
    """
    log = Log(server, job, task)
    away_since: float | None = None
    while True:
        began = time.monotonic()
        try:
            # First the job and then the log: what a job that had ended has said is all there by then.
            found = server.get(f"/v1/{names.job_name(server.project, job)}")
            for entry in log.fresh(began):
                _print(entry, to_stderr)
            if found.get("endTime"):
                return found
            away_since = None
        except (errors.Unavailable, client.Refused) as error:
            if isinstance(error, client.Refused) and error.code < 500:
                raise
            if away_since is None:
                away_since = began
                log.lost()
                printing.say(f"{error}\nWaiting for it; the job goes on.")
            if began - away_since > AWAY_S:
                raise
        time.sleep(max(0.0, POLL_S - (time.monotonic() - began)))


class Log:
    """The entries of a job that were not seen yet. Reads the last seconds anew each time, as entries may come late."""

    def __init__(self, server: Client, job: str, task: str | None, holding: str = "") -> None:
        self.server = server
        filters = ['(resource.type="ml_job" OR resource.type="cloudml_job")', f'resource.labels.job_id="{job}"']
        if task:
            filters.append(f'(resource.labels.task_name="{task}" OR labels.task_name="{task}")')
        if holding:
            filters.append(f'jsonPayload.message:"{holding}"')
        self.filter = " AND ".join(filters)
        self.seen: dict[str, str] = {}  # insertId -> timestamp, of the entries that may be listed again
        self.low = "1970-01-01T01:00:00.000000000Z"  # gcloud's first one
        self.gap = False
        self.hold = 0.0  # monotonic: until then `low` stays where it is

    def fresh(self, now: float) -> Iterator[dict[str, Any]]:
        """The entries that were not given before, in order of their times. `now` is monotonic."""
        token = ""
        while True:
            page = self.server.post("/v2/entries:list", self._request(token))
            for entry in page.get("entries", []):
                if entry["insertId"] not in self.seen:
                    self.seen[entry["insertId"]] = entry["timestamp"]
                    yield entry
            token = page.get("nextPageToken", "")
            if not token:
                break
        if self.gap:
            self.gap, self.hold = False, now + CATCH_UP_S
        self._move_on(now)

    def lost(self) -> None:
        """The server is away: what is said meanwhile will arrive late, and has the time at which it was said."""
        self.gap = True

    def _request(self, token: str) -> dict[str, Any]:
        return {
            "resourceNames": [names.project_name(self.server.project)],
            "filter": f'{self.filter} AND timestamp>="{self.low}"',
            "orderBy": "timestamp asc",
            "pageSize": 1000,
            **({"pageToken": token} if token else {}),
        }

    def _move_on(self, now: float) -> None:
        """Forget what is too old to be listed again."""
        if now < self.hold or not self.seen:
            return
        newest = int(printing.moment(max(self.seen.values())).timestamp())
        low = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(newest - LATE_S))
        if low > self.low:
            self.low = low
            self.seen = {key: stamp for key, stamp in self.seen.items() if stamp >= low}


def messages(server: Client, job: str, holding: str) -> Iterator[str]:
    """The messages of a job's log so far that hold some words, in order of their times."""
    for entry in Log(server, job, None, holding).fresh(time.monotonic()):
        yield str(entry.get("jsonPayload", {}).get("message") or "")


def lines(entry: dict[str, Any]) -> Iterator[str]:
    """An entry as gcloud prints it, a line for each of its message: severity, local time, task, trial, message."""
    labels = {**entry.get("labels", {}), **entry.get("resource", {}).get("labels", {})}
    task = labels.get("task_name") or labels.get("ml.googleapis.com/task_name") or "unknown_task"
    trial = labels.get("ml.googleapis.com/trial_id", "")
    when = printing.moment(entry["timestamp"]).strftime("%Y-%m-%d %H:%M:%S %z")
    message = str(entry.get("jsonPayload", {}).get("message") or entry.get("textPayload") or "")
    for line in message.splitlines() or [""]:
        yield "\t".join([entry.get("severity", "DEFAULT"), when, task, trial, line])


def _print(entry: dict[str, Any], to_stderr: bool) -> None:
    # typer.secho leaves the colour out where the output is no terminal.
    for line in lines(entry):
        typer.secho(line, fg=COLOURS.get(entry.get("severity", "")), err=to_stderr)
