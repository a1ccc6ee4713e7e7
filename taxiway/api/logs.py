"""Logging's entries:list (https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list).

Two logs are read by it: what jobs say, and the audit log, if the filter asks for that (see `audit_entries`).
"""

from __future__ import annotations

from typing import Any

from taxiway import errors
from taxiway.api import audit_entries, wire
from taxiway.api.call import SIGNED_IN, Call, Route
from taxiway.compute import filters, logs
from taxiway.compute.logs import Entry

FIELDS = ("resourceNames", "projectIds", "filter", "orderBy", "pageSize", "pageToken")
PAGE = 50
MOST = 1000
ORDERS = {"": False, "timestamp asc": False, "timestamp": False, "timestamp desc": True}


def list_entries(call: Call) -> dict[str, Any]:
    """The lines of the projects that `resourceNames` lists; the caller needs logging.logEntries.list on each."""
    body = call.body if isinstance(call.body, dict) else {}
    unknown = [(name, f"is no field here; there are {', '.join(FIELDS)}.") for name in body if name not in FIELDS]
    if unknown:
        raise errors.InvalidArgument(faults=unknown)
    projects = _projects(body.get("resourceNames") or body.get("projectIds") or [])
    for project in projects:
        call.need("logging.logEntries.list", project=project)
    order = str(body.get("orderBy", "")).strip()
    if order not in ORDERS:
        raise errors.InvalidArgument(faults=[("orderBy", f"{order!r}: expected 'timestamp asc' or 'timestamp desc'.")])
    size = wire.page_size({"pageSize": str(body.get("pageSize", "") or "")}, default=PAGE, most=MOST)
    token = {"pageToken": str(body.get("pageToken", "") or "")}
    text = str(body.get("filter", ""))
    if audit_entries.wanted(text):
        place = wire.page_key(token, tuple[float, int])
        rows = audit_entries.page(call, projects, text, newest_first=ORDERS[order], after=place, limit=size + 1)
        return wire.page("entries", rows, size, lambda row: (row.time, row.row), audit_entries.entry)
    after = wire.page_key(token, tuple[str, str])
    found = logs.page(
        call.house.db, projects, filters.sql(text), newest_first=ORDERS[order], after=after, limit=size + 1
    )
    return wire.page("entries", found, size, lambda entry: (entry.timestamp, entry.insert_id), _entry)


def _projects(names: object) -> list[str]:
    found = []
    for name in names if isinstance(names, list) else []:
        parts = str(name).split("/")
        if len(parts) == 1:  # projectIds, the older field
            parts = ["projects", *parts]
        if parts[0] != "projects" or not parts[1]:
            raise errors.InvalidArgument(faults=[("resourceNames", f"{name!r}: expected projects/PROJECT.")])
        found.append(parts[1])
    if not found:
        raise errors.InvalidArgument(faults=[("resourceNames", "is required: a list of projects/PROJECT.")])
    return found


def _entry(entry: Entry) -> dict[str, Any]:
    """A LogEntry as the training service wrote them (clients read its labels and jsonPayload)."""
    return {
        "logName": f"projects/{entry.project}/logs/{entry.task}",
        "insertId": entry.insert_id,
        "timestamp": entry.timestamp,
        "receiveTimestamp": entry.timestamp,
        "severity": entry.severity,
        "resource": {
            "type": "ml_job",
            "labels": {"job_id": entry.subject, "project_id": entry.project, "task_name": entry.task},
        },
        "labels": {
            "ml.googleapis.com/job_id": entry.subject,
            "ml.googleapis.com/task_name": entry.task,
            "ml.googleapis.com/job_id/log_area": "root",
            **({"ml.googleapis.com/trial_id": entry.trial} if entry.trial else {}),
        },
        "jsonPayload": {"message": entry.message, "levelname": entry.severity, "created": entry.created},
    }


ROUTES = [Route("POST", "/v2/entries:list", SIGNED_IN, list_entries)]
