"""ML v1: studies, their trials, and the operations that choose trials or judge them.

    POST /v1/projects/{project}/locations/{location}/studies?studyId=STUDY

Lists are whole, as Google's are; one who sends pageSize (or pageToken) gets pages of them, which is our addition. So is
`taxiway.warnings` in a study: what is done otherwise here than it asks for, a sentence each.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from taxiway import errors, names, schemas
from taxiway.api import messages, wire
from taxiway.api.call import Call
from taxiway.jobs import searcher, space, studies, suggestions
from taxiway.jobs.stopping import Measured
from taxiway.jobs.studies import Place, Study, Trial
from taxiway.jobs.suggestions import Operation

Fault = tuple[str, str]  # field, sentence

OURS = "taxiway"
PACKAGE = "google.cloud.ml.v1"
MOST_SUGGESTED = 100  # trials of one request
LONGEST = 256  # characters of a client's id
LONGEST_REASON = 2000
ADDED = (studies.REQUESTED, studies.ACTIVE, studies.COMPLETED)  # states that a trial can be added in
STEPS = 2**53

# ---- studies --------------------------------------------------------------------------------------------------------


def create_study(call: Call) -> dict[str, Any]:
    location = _location(call)
    told = messages.read(schemas.Study, _without_ours(call.body))
    faults: list[Fault] = []
    id = call.query.get("studyId", "")
    try:
        names.study_id(id, "studyId")
    except errors.InvalidArgument as error:
        faults += [("studyId", f"is required. {fault}") if not id else (field, fault) for field, fault in error.faults]
    if told.study_config is None:
        faults.append(("studyConfig", "is required: metrics and parameters."))
    else:
        try:
            space.checked(told.study_config)
        except errors.InvalidArgument as error:
            faults += error.faults
    if faults or told.study_config is None:
        raise errors.InvalidArgument(faults=faults)
    place = Place(call.path["project"], location, id)
    call.resource = place.name
    return _study(studies.create(call.house.db, place, told.study_config, seed=secrets.randbits(32), now=call.now))


def get_study(call: Call) -> dict[str, Any]:
    return _study(studies.get(call.house.db, _place(call)))


def list_studies(call: Call) -> dict[str, Any]:
    location = _location(call)
    size, key = _size(call), wire.page_key(call.query, tuple[str])
    found = studies.list_studies(
        call.house.db, call.path["project"], location, limit=size and size + 1, after=key[0] if key else ""
    )
    return wire.page("studies", found, size or len(found), lambda study: (study.id,), _study)


def delete_study(call: Call) -> dict[str, Any]:
    studies.delete(call.house.db, _place(call))
    return {}


def _study(study: Study) -> dict[str, Any]:
    state: Any = study.state
    told = schemas.Study(
        name=names.study_name(study.project, study.location, study.id),
        state=state,
        create_time=study.created,
        study_config=study.config,
    )
    warnings = _warnings(study)
    return {**messages.write(told), **({OURS: {"warnings": warnings}} if warnings else {})}


def _warnings(study: Study) -> list[str]:
    if study.config.algorithm != space.GAUSSIAN or searcher.gaussian():
        return []
    told = f"{space.GAUSSIAN} needs PyTorch and SciPy, which are not installed on the server (pip install torch scipy)"
    return [f"{told}: Bayesian search by tree-structured Parzen estimators chooses the trials in its place."]


def _without_ours(body: Any) -> Any:
    """A study that is sent as it was read bears our field, which says nothing."""
    return {name: value for name, value in body.items() if name != OURS} if isinstance(body, dict) else body


# ---- trials ---------------------------------------------------------------------------------------------------------


def create_trial(call: Call) -> dict[str, Any]:
    """Add a trial of the caller's own: to be tried (REQUESTED, unless it says ACTIVE), or as it was (COMPLETED)."""
    study = studies.get(call.house.db, _place(call))
    told = messages.read(schemas.Trial, call.body)
    state = told.state if told.state not in (None, "STATE_UNSPECIFIED") else studies.REQUESTED
    faults: list[Fault] = []
    if state not in ADDED:
        faults.append(("state", f"A trial is added as {', '.join(ADDED[:-1])} or {ADDED[-1]}; got {state}."))
    elif state != studies.COMPLETED and (told.final_measurement or told.measurements):
        faults.append(("state", "must be COMPLETED for a trial with measurements."))
    measured = [
        _measured(study, each, f"measurements[{index}]", faults) for index, each in enumerate(told.measurements)
    ]
    final = _final(study, told.final_measurement, faults)
    try:
        point = space.point(space.read(study.config), told.parameters, "parameters")
    except errors.InvalidArgument as error:
        faults += error.faults
    if faults:
        raise errors.InvalidArgument(faults=faults[: wire.MOST_FAULTS])
    made = studies.create_trial(
        call.house.db, _place(call), point, state=str(state), final=final, measured=measured, now=call.now
    )
    call.resource = names.trial_name(*_place(call), made.number)
    return _trial(made)


def get_trial(call: Call) -> dict[str, Any]:
    return _trial(studies.get_trial(call.house.db, *_trial_of(call)))


def list_trials(call: Call) -> dict[str, Any]:
    place = _place(call)
    size, key = _size(call), wire.page_key(call.query, tuple[int])
    found = studies.list_trials(call.house.db, place, limit=size and size + 1, after=key[0] if key else 0)
    return wire.page("trials", found, size or len(found), lambda trial: (trial.number,), _trial)


def delete_trial(call: Call) -> dict[str, Any]:
    studies.delete_trial(call.house.db, *_trial_of(call))
    return {}


def add_measurement(call: Call) -> dict[str, Any]:
    place, number = _trial_of(call)
    study, _ = studies.get(call.house.db, place), studies.get_trial(call.house.db, place, number)
    told = messages.read(schemas.AddTrialMeasurementRequest, call.body)
    faults: list[Fault] = []
    if told.measurement is None:
        raise wire.wrong("measurement", "is required: {stepCount, metrics: [{metric, value}]}.")
    measured = _measured(study, told.measurement, "measurement", faults)
    if faults:
        raise errors.InvalidArgument(faults=faults)
    return _trial(
        studies.add_measurement(call.house.db, place, number, step=measured.step, values=measured.values, now=call.now)
    )


def complete_trial(call: Call) -> dict[str, Any]:
    place, number = _trial_of(call)
    study, _ = studies.get(call.house.db, place), studies.get_trial(call.house.db, place, number)
    told = messages.read(schemas.CompleteTrialRequest, call.body)
    faults: list[Fault] = []
    if told.infeasible_reason and not told.trial_infeasible:
        faults.append(("infeasibleReason", "is only for a trial with trialInfeasible: true."))
    if len(told.infeasible_reason) > LONGEST_REASON:
        faults.append(("infeasibleReason", f"must have {LONGEST_REASON} characters at most."))
    final = _final(study, told.final_measurement, faults) if not told.trial_infeasible else None
    if faults:
        raise errors.InvalidArgument(faults=faults)
    return _trial(
        studies.complete(
            call.house.db,
            place,
            number,
            final=final,
            infeasible=told.trial_infeasible,
            reason=told.infeasible_reason,
            now=call.now,
        )
    )


def stop_trial(call: Call) -> dict[str, Any]:
    place, number = _trial_of(call)
    studies.get_trial(call.house.db, place, number)
    messages.read(schemas.StopTrialRequest, call.body)
    return _trial(studies.stop(call.house.db, place, number))


def list_optimal(call: Call) -> dict[str, Any]:
    place = _place(call)
    studies.get(call.house.db, place)
    messages.read(schemas.ListOptimalTrialsRequest, call.body)
    found = studies.optimal(call.house.db, place)
    return {"trials": [_trial(each) for each in found]} if found else {}


def _trial(trial: Trial) -> dict[str, Any]:
    return messages.write(_trial_message(trial))


def _trial_message(trial: Trial) -> schemas.Trial:
    state: Any = trial.state
    return schemas.Trial(
        name=names.trial_name(*trial.place, trial.number),
        state=state,
        parameters=trial.parameters,
        final_measurement=trial.final,
        measurements=tuple(studies.told(each) for each in trial.measured),
        start_time=trial.started,
        end_time=trial.ended,
        client_id=trial.client,
        trial_infeasible=trial.infeasible,
        infeasible_reason=trial.infeasible_reason,
    )


def _final(study: Study, told: schemas.Measurement | None, faults: list[Fault]) -> schemas.Measurement | None:
    """Figures to end with: every metric of the study."""
    if told is None:
        return None
    measured = _measured(study, told, "finalMeasurement", faults)
    lacking = [metric for metric in study.goals if metric not in measured.values]
    if lacking and not faults:
        faults.append(("finalMeasurement.metrics", f"lacks {', '.join(map(repr, lacking))}."))
    return msgspec.structs.replace(studies.told(measured), elapsed_time=None)


def _measured(study: Study, told: schemas.Measurement, field: str, faults: list[Fault]) -> Measured:
    """The figures of a measurement; its time is for the server to say."""
    values: dict[str, float] = {}
    if told.step_count is not None and not 0 <= told.step_count <= STEPS:
        faults.append((f"{field}.stepCount", f"must be from 0 to {STEPS}."))
    if not told.metrics:
        faults.append((f"{field}.metrics", f"is required: figures of {', '.join(map(repr, study.goals))}."))
    for index, each in enumerate(told.metrics):
        at = f"{field}.metrics[{index}]"
        if each.metric not in study.goals:
            known = ", ".join(map(repr, study.goals))
            faults.append((f"{at}.metric", f"{wire.cut(each.metric)!r} is no metric of the study, which has {known}."))
        elif each.metric in values:
            faults.append((f"{at}.metric", f"{wire.cut(each.metric)!r} is given twice."))
        elif each.value is None:
            faults.append((f"{at}.value", "is required: a finite number."))
        else:
            values[each.metric] = each.value
    return Measured(told.step_count, 0.0, values)


# ---- operations -----------------------------------------------------------------------------------------------------


def suggest_trials(call: Call) -> dict[str, Any]:
    """Trials for a client to try; the operation is done already if they were quick to choose."""
    place = _place(call)
    studies.get(call.house.db, place)
    told = messages.read(schemas.SuggestTrialsRequest, call.body)
    faults: list[Fault] = []
    if not 0 < len(told.client_id) <= LONGEST:
        faults.append(("clientId", f"is required: whoever tries the trials, in {LONGEST} characters at most."))
    if not 0 < (told.suggestion_count or 0) <= MOST_SUGGESTED:
        faults.append(("suggestionCount", f"is required: 1 to {MOST_SUGGESTED}."))
    if faults:
        raise errors.InvalidArgument(faults=faults)
    asked = call.house.suggestions.suggest(
        place, told.client_id, told.suggestion_count or 0, id=_new_id("suggest", place), now=call.now
    )
    return _operation(call, asked)


def check_early_stopping(call: Call) -> dict[str, Any]:
    place, number = _trial_of(call)
    studies.get_trial(call.house.db, place, number)
    messages.read(schemas.CheckTrialEarlyStoppingStateRequest, call.body)
    asked = suggestions.check(call.house.db, place, number, id=_new_id("check", place), now=call.now)
    return _operation(call, asked)


def get_operation(call: Call) -> dict[str, Any]:
    return _operation(call, suggestions.get(call.house.db, *_operation_of(call)))


def cancel_operation(call: Call) -> dict[str, Any]:
    suggestions.cancel(call.house.db, *_operation_of(call))
    return {}


def _operation(call: Call, operation: Operation) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": names.location_operation_name(operation.project, operation.location, operation.id),
        "metadata": _metadata(operation),
    }
    if operation.done:
        told["done"] = True
        if operation.error is not None:
            told["error"] = operation.error
        else:
            told["response"] = _response(call, operation, operation.response or {})
    return told


def _metadata(operation: Operation) -> dict[str, Any]:
    if operation.kind == suggestions.CHECK:
        checks = schemas.CheckTrialEarlyStoppingStateMetadata(
            create_time=operation.created,
            study=operation.place.name,
            trial=names.trial_name(*operation.place, operation.trial or 0),
        )
        return messages.packed(checks, f"{PACKAGE}.CheckTrialEarlyStoppingStateMetatdata")  # spelled so by Google
    suggests = schemas.SuggestTrialsMetadata(
        client_id=operation.client,
        create_time=operation.created,
        study=operation.place.name,
        suggestion_count=operation.count,
    )
    return messages.packed(suggests, f"{PACKAGE}.SuggestTrialsMetadata")


def _response(call: Call, operation: Operation, held: Mapping[str, Any]) -> dict[str, Any]:
    """The trials as they are now; those that were deleted since are left out."""
    times = {"start_time": operation.created, "end_time": operation.ended}
    if operation.kind == suggestions.CHECK:
        checked = schemas.CheckTrialEarlyStoppingStateResponse(should_stop=held["stop"], **times)
        return messages.packed(checked, f"{PACKAGE}.CheckTrialEarlyStoppingStateResponse")
    trials = studies.find_trials(call.house.db, operation.place, held["trials"])
    suggested = schemas.SuggestTrialsResponse(
        trials=tuple(_trial_message(each) for each in trials), study_state=held["state"], **times
    )
    return messages.packed(suggested, f"{PACKAGE}.SuggestTrialsResponse")


# ---- what they share ------------------------------------------------------------------------------------------------


def _location(call: Call) -> str:
    """Every region is this machine; others do not exist."""
    location = call.path["location"]
    if location not in names.REGIONS:
        there = ", ".join(names.REGIONS)
        raise errors.NotFound(f"The location {wire.cut(location)} does not exist; there are {there}.")
    return location


def _place(call: Call) -> Place:
    return Place(call.path["project"], call.path["location"], call.path["study"])


def _trial_of(call: Call) -> tuple[Place, int]:
    """The study and the trial's number; raises NotFound for what is no number, or without its study."""
    place, number = _place(call), call.path["trial"]
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        studies.get(call.house.db, place)
        raise studies.no_trial(place, wire.cut(number))
    return place, int(number)


def _operation_of(call: Call) -> tuple[str, str, str]:
    return call.path["project"], call.path["location"], call.path["operation"]


def _new_id(what: str, place: Place) -> str:
    return f"{what}_{place.study[:64]}_{uuid.uuid4().hex[:12]}"


def _size(call: Call) -> int | None:
    """How many to show; None where nobody asks for pages."""
    return wire.page_size(call.query) if {"pageSize", "pageToken"} & call.query.keys() else None


# ---- routes, as ml's: by the methods' ids ---------------------------------------------------------------------------

OFFERED: dict[str, tuple[str, Callable[[Call], Any]]] = {
    "projects.locations.operations.get": ("ml.operations.get", get_operation),
    "projects.locations.operations.cancel": ("ml.operations.cancel", cancel_operation),
    "projects.locations.studies.create": ("ml.studies.create", create_study),
    "projects.locations.studies.get": ("ml.studies.get", get_study),
    "projects.locations.studies.list": ("ml.studies.list", list_studies),
    "projects.locations.studies.delete": ("ml.studies.delete", delete_study),
    "projects.locations.studies.trials.create": ("ml.trials.create", create_trial),
    "projects.locations.studies.trials.get": ("ml.trials.get", get_trial),
    "projects.locations.studies.trials.list": ("ml.trials.list", list_trials),
    "projects.locations.studies.trials.delete": ("ml.trials.delete", delete_trial),
    "projects.locations.studies.trials.suggest": ("ml.trials.create", suggest_trials),
    "projects.locations.studies.trials.addMeasurement": ("ml.trials.update", add_measurement),
    "projects.locations.studies.trials.complete": ("ml.trials.update", complete_trial),
    "projects.locations.studies.trials.stop": ("ml.trials.update", stop_trial),
    "projects.locations.studies.trials.checkEarlyStoppingState": ("ml.trials.update", check_early_stopping),
    "projects.locations.studies.trials.listOptimalTrials": ("ml.trials.list", list_optimal),
}
