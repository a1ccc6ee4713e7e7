"""The audit log as entries of Logging: google.cloud.audit.AuditLog payloads, and what can be asked of them.

Source: https://cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from taxiway.api.call import Call
from taxiway.compute import filters, logs
from taxiway.compute.filters import Fields
from taxiway.db.tables import audit as rows
from taxiway.iam import audit
from taxiway.iam.audit import ACTIVITY, DATA_ACCESS, Kept

LOG = "cloudaudit.googleapis.com"
TYPE = "type.googleapis.com/google.cloud.audit.AuditLog"
RESOURCE = "audited_resource"
PRIVATE = "logging.privateLogEntries.list"
MICRO = 10**6

# HTTP's number -> google.rpc.Code, as a payload's status has it
RPC = {
    **{400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 413: 3, 416: 11, 429: 8},
    **{499: 1, 500: 13, 501: 12, 503: 14, 504: 4, 507: 8},
}
WORDS = {
    **{1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND"},
    **{6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION"},
    **{11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED"},
}
SERVICES = {
    "ml": "ml.googleapis.com",
    "storage": "storage.googleapis.com",
    "logging": "logging.googleapis.com",
    "resourcemanager": "cloudresourcemanager.googleapis.com",
}
IAM = "iam.googleapis.com"  # whatever is none of these: accounts, keys, tokens


def wanted(text: str) -> bool:
    """Whether a filter asks for the audit log: by its name, its kind of resource or its payload."""
    return any(
        (name == "logName" and LOG in value)
        or (name == "resource.type" and value and value in RESOURCE)
        or name.startswith("protoPayload")
        for name, value in filters.asked(text)
    )


def page(
    call: Call, projects: Sequence[str], text: str, *, newest_first: bool, after: tuple[float, int] | None, limit: int
) -> list[Kept]:
    """Up to `limit` rows of the projects that a filter finds and the caller may see: data_access is not for everybody.

    Raises PermissionDenied for a filter that names data_access where the caller may not see it.
    """
    named = any(name == "logName" and value.endswith(DATA_ACCESS) for name, value in filters.asked(text))
    seen = []
    for project in projects:
        if named:
            call.need(PRIVATE, project=project)
        whole = named or call.may(PRIVATE, project=project)
        seen.append((rows.c.project == project) & (sa.true() if whole else rows.c.log == ACTIVITY))
    return audit.page(
        call.house.db,
        sa.or_(*seen) & filters.sql(text.replace(f"{LOG}/", f"{LOG}%2F"), FIELDS),
        newest_first=newest_first,
        after=after,
        limit=limit,
    )


def entry(kept: Kept) -> dict[str, Any]:
    """A LogEntry. Its httpRequest has the answer's own code; the payload's status is google.rpc's."""
    service, code = _service(kept.permission or kept.method), _rpc(kept.code)
    stamp = logs.stamp(round(kept.time * MICRO) * 1000)
    return {
        "logName": f"projects/{kept.project}/logs/{LOG}%2F{kept.log}",
        "insertId": f"{kept.row:020d}",
        "timestamp": stamp,
        "receiveTimestamp": stamp,
        "severity": "ERROR" if kept.code >= 400 else "NOTICE" if kept.log == ACTIVITY else "INFO",
        "resource": {
            "type": RESOURCE,
            "labels": {"project_id": kept.project, "service": service, "method": kept.method},
        },
        "httpRequest": {"status": kept.code, **({"remoteIp": kept.address} if kept.address else {})},
        "protoPayload": {
            "@type": TYPE,
            "serviceName": service,
            "methodName": kept.method,
            "resourceName": kept.resource,
            "authenticationInfo": {
                "principalEmail": kept.member.partition(":")[2],
                "principalSubject": kept.member,
            }
            if kept.member
            else {},
            "requestMetadata": {"callerIp": kept.address},
            "authorizationInfo": [
                {"resource": kept.resource, "permission": kept.permission, "granted": kept.allowed},
            ],
            "status": {"code": code, "message": WORDS[code]} if code else {},
        },
    }


def _service(method: str) -> str:
    return SERVICES.get(method.partition(".")[0], IAM)


def _rpc(code: int) -> int:
    return 0 if code < 400 else RPC.get(code, 2)


def _seconds(stamp: str) -> float:
    """A time of nine digits as the rows have it: to the microsecond."""
    whole = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    return (whole * MICRO + int(stamp[20:26])) / MICRO


def _flag(text: str) -> bool:
    """Raises ValueError for another word than true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_CODE = sa.case(*((rows.c.code == http, rpc) for http, rpc in RPC.items()), (rows.c.code < 400, 0), else_=2)
_SERVICE = sa.case(
    *(
        (column.startswith(f"{word}."), name)
        for word, name in SERVICES.items()
        for column in (rows.c.permission, rows.c.method)
    ),
    else_=IAM,
)
FIELDS = Fields(
    columns={
        "insertId": sa.func.printf("%020d", rows.c.row),
        "logName": sa.literal("projects/") + rows.c.project + sa.literal(f"/logs/{LOG}%2F") + rows.c.log,
        "resource.labels.project_id": rows.c.project,
        "resource.labels.service": _SERVICE,
        "resource.labels.method": rows.c.method,
        "protoPayload.serviceName": _SERVICE,
        "protoPayload.methodName": rows.c.method,
        "protoPayload.resourceName": rows.c.resource,
        "protoPayload.authenticationInfo.principalEmail": sa.func.substr(
            rows.c.member, sa.func.instr(rows.c.member, ":") + 1
        ),
        "protoPayload.authenticationInfo.principalSubject": rows.c.member,
        "protoPayload.requestMetadata.callerIp": rows.c.address,
        "protoPayload.authorizationInfo.permission": rows.c.permission,
        "protoPayload.authorizationInfo.resource": rows.c.resource,
    },
    time=rows.c.time,
    severity=sa.case((rows.c.code >= 400, "ERROR"), (rows.c.log == ACTIVITY, "NOTICE"), else_="INFO"),
    constant={"resource.type": RESOURCE, "protoPayload.@type": TYPE},
    others={
        "protoPayload.status.code": (_CODE, int),
        "httpRequest.status": (rows.c.code, int),
        "protoPayload.authorizationInfo.granted": (rows.c.allowed, _flag),
    },
    moment=_seconds,
)
