"""A job's log as server-sent events: our own addition to the wire, beside Logging's entries:list, to be polled.

    GET /v1/projects/{project}/jobs/{job}:streamLogs?taskName=TASK
    Last-Event-ID: 2026-01-31T12:00:00.000000001Z

    id: 2026-01-31T12:00:00.250000000Z
    data: {"lines":[{"timestamp":"...","severity":"INFO","taskName":"master-replica-0","trialId":"1","message":"..."}]}

    event: end
    data: {"jobId":"...","state":"SUCCEEDED", ...}

Every line from the first on, or from behind the Last-Event-ID (header, or `lastEventId` in the query), each once, as
soon as it is kept; the job itself once it has ended and all its lines are sent. A comment comes when nothing else does.
A stream that ends without `end` is to be opened again with the last id. Whoever may both get the job and list log
entries may read it; that is asked again as it goes on.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from taxiway import errors
from taxiway.api import ml
from taxiway.api.call import Call, Route, caller, within
from taxiway.compute.streams import Line
from taxiway.jobs import queue, states

BEAT_S = 15.0  # a comment at the latest: proxies and clients take a longer silence for a lost connection
ASKED_S = 60.0  # how often it is asked whether the caller still may
PERMISSION = "ml.jobs.get"
ENTRIES = "logging.logEntries.list"
RETRY = b"retry: 1000\n\n"
PLACE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", re.ASCII)
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx must not hold it back


class Shown(msgspec.Struct, rename="camel", omit_defaults=True):
    """A line on the wire."""

    timestamp: str
    severity: str
    task_name: str
    message: str
    trial_id: str = ""


async def stream_logs(call: Call) -> Response:
    place = call.request.headers.get("last-event-id") or call.query.get("lastEventId", "")
    if place and not PLACE.fullmatch(place):
        raise errors.InvalidArgument(faults=[("lastEventId", f"{place[:100]!r} is no id of an event of this stream.")])
    await run_in_threadpool(_first_look, call)
    events = _events(call, place, call.query.get("taskName", ""))
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)


def _first_look(call: Call) -> None:
    """Raises PermissionDenied, NotFound: there is a status for it now, and no more within the stream."""
    call.need(ENTRIES, project=call.path["project"])
    queue.get(call.house.db, call.path["project"], call.path["job"])


async def _events(call: Call, place: str, task: str) -> AsyncIterator[bytes]:
    streams, project, job = call.house.streams, call.path["project"], call.path["job"]

    def ended() -> bool:
        return queue.get(call.house.db, project, job).state in states.FINAL

    yield RETRY
    asked = time.monotonic()
    with streams.following(project, job) as woken:
        while not streams.closed:
            woken.clear()
            page = await streams.page(project, job, place, task=task, show=lines_event, ended=ended)
            place = page.place
            if page.shown:
                yield page.shown
            if page.ended:
                yield _end_event(await run_in_threadpool(ml.get_job, call))
                return
            if page.more:
                continue
            try:
                await asyncio.wait_for(woken.wait(), BEAT_S)
            except asyncio.TimeoutError:
                yield b":\n\n"
            if time.monotonic() - asked > ASKED_S:
                if not await run_in_threadpool(_still_may, call):
                    return  # who opens it again is told why not
                asked = time.monotonic()


def lines_event(lines: Sequence[Line], place: str) -> bytes:
    shown = [Shown(each.timestamp, each.severity, each.task, each.message, each.trial) for each in lines]
    return b"id: %s\ndata: %s\n\n" % (place.encode(), msgspec.json.encode({"lines": shown}))


def _end_event(job: object) -> bytes:
    return b"event: end\ndata: %s\n\n" % msgspec.json.encode(job)


def _still_may(call: Call) -> bool:
    """Whether the token still holds, and its bearer may still read this log."""
    project, access = call.path["project"], call.house.access
    try:
        who = caller(call.house, call.request.headers.get("authorization", ""), call.query, time.time())
        access.need(who, PERMISSION, bucket=None, project=project, within=within(call.path, call.query))
        access.need(who, ENTRIES, bucket=None, project=project)
    except errors.Error:
        return False
    return True


ROUTES = [Route("GET", "/v1/projects/{project}/jobs/{job}:streamLogs", PERMISSION, stream_logs)]
