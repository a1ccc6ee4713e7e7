"""What replicas report, each on its own attempt by its own token: the only part of the wire that is not Google's."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from taxiway import errors
from taxiway.api.call import REPLICA, Call, Route
from taxiway.compute import attempts, logs, samples
from taxiway.handles import Exit, Said, Sample
from taxiway.iam import members
from taxiway.iam.keys import HOUR
from taxiway.jobs import queue, tuner
from taxiway.jobs.studies import Place
from taxiway.jobs.tuner import KIND

ATTEMPT = "/taxiway/v1/attempts/{attempt}"


def get_work(call: Call) -> dict[str, Any]:
    """What the replica is to do, and as whom."""
    attempt = attempts.get(call.house.db, call.path["attempt"])
    return {"work": attempt.work, "identity": attempt.identity}


def heartbeat(call: Call) -> dict[str, Any]:
    """The replica lives. Once its code and that of all beside it runs, so does the job, at once: a quick one too."""
    state = _of(call, "state", str)

    def save(tx: sa.Connection) -> None:
        attempt = attempts.hear(tx, call.path["attempt"], state, now=call.now)
        if attempt is not None and attempt.kind == KIND and state == "RUNNING" and attempts.all_up(tx, attempt):
            queue.runs(tx, attempt.project, attempt.subject, now=call.now)

    call.house.db.write(save)
    return {}


def say(call: Call) -> dict[str, Any]:
    """Keep lines of output; a batch that is sent again is kept once."""
    told = _of(call, "lines", list[Said])

    def save(tx: sa.Connection) -> None:
        attempt = attempts.must_live(tx, call.path["attempt"])
        lines = [logs.line(attempt.number, attempt.task, said, attempt.trial) for said in told]
        logs.write(tx, attempt.project, attempt.subject, lines, now=call.now)
        if attempt.kind == KIND and attempt.spoke is None:
            attempts.listen(tx, attempt.id)

    call.house.db.write(save)
    return {}


def sample(call: Call) -> dict[str, Any]:
    """Keep samples of what the replica used; one that is sent again is kept once."""
    told = _of(call, "samples", list[Sample])
    call.house.db.write(lambda tx: samples.keep(tx, attempts.must_live(tx, call.path["attempt"]), told))
    return {}


def measure(call: Call) -> dict[str, Any]:
    """Keep what a trial reports of its metric, (step, value) each; what is sent again is kept once."""
    told = _of(call, "measurements", list[tuple[int, float]])

    def save(tx: sa.Connection) -> None:
        attempt = attempts.must_live(tx, call.path["attempt"])
        if attempt.kind == KIND and attempt.trial:
            place = Place(attempt.project, tuner.LOCATION, attempt.subject)
            tuner.measure(tx, place, int(attempt.trial), attempt.work["metric"], told, now=call.now)

    call.house.db.write(save)
    return {}


def issue_token(call: Call) -> dict[str, Any]:
    """An access token of the attempt's service account; it dies with the attempt."""
    attempt = attempts.get(call.house.db, call.path["attempt"])
    token = call.house.keys.access_token(members.of_email(attempt.identity), now=call.now, attempt=attempt.id)
    return {"access_token": token, "expires_in": HOUR, "token_type": "Bearer"}


def finish(call: Call) -> dict[str, Any]:
    """How the user's code ended. `reason` may be left out: replicas that an earlier server started know of none."""
    code, error = _of(call, "exitCode", int), _of(call, "error", str)
    reason = _of(call, "reason", str) if "reason" in call.body else ""
    attempts.finish(call.house.db, call.path["attempt"], Exit(code, error, reason), now=call.now)
    call.house.worker.wake()
    return {}


def _of(call: Call, field: str, kind: Any) -> Any:
    try:
        return msgspec.convert(call.body[field], kind)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise errors.InvalidArgument(faults=[(field, f"is missing or malformed: {error}.")]) from error


ROUTES = [
    Route("GET", ATTEMPT, REPLICA, get_work),
    Route("POST", f"{ATTEMPT}:heartbeat", REPLICA, heartbeat),
    Route("POST", f"{ATTEMPT}:log", REPLICA, say),
    Route("POST", f"{ATTEMPT}:sample", REPLICA, sample),
    Route("POST", f"{ATTEMPT}:measure", REPLICA, measure),
    Route("POST", f"{ATTEMPT}:token", REPLICA, issue_token),
    Route("POST", f"{ATTEMPT}:finish", REPLICA, finish),
]
