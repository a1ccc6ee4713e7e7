"""The rows of studies, their trials and measurements, and the rules between them.

A trial is REQUESTED (somebody's own parameters, which nobody tries yet), ACTIVE (a client tries it), STOPPING (it
should end) and COMPLETED. Its parameters are a point of its study's space. What is chosen next is for `suggestions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.db.tables import measurements, studies, study_operations, trials
from taxiway.jobs import space as spaces
from taxiway.jobs import stopping
from taxiway.jobs.space import Past, Point
from taxiway.jobs.stopping import Measured
from taxiway.schemas import Measurement, MeasurementMetric, StudyConfig, TrialParameter

ACTIVE, COMPLETED = "ACTIVE", "COMPLETED"  # of studies and trials
REQUESTED, STOPPING = "REQUESTED", "STOPPING"  # of trials
GOING = (ACTIVE, STOPPING)
MOST_TRIALS = 10_000  # of one study: each choice looks at all of them


class Place(NamedTuple):
    """Which study."""

    project: str
    location: str
    study: str

    @property
    def name(self) -> str:
        return names.study_name(*self)


@dataclass(frozen=True, slots=True)
class Study:
    project: str
    location: str
    id: str
    config: StudyConfig
    seed: int
    state: str
    made: int  # trials that there ever were
    created: float

    @property
    def goals(self) -> dict[str, str]:
        return spaces.metrics(self.config)


@dataclass(frozen=True, slots=True)
class Trial:
    project: str
    location: str
    study: str
    number: int
    state: str
    parameters: tuple[TrialParameter, ...]
    client: str
    final: Measurement | None
    infeasible: bool
    infeasible_reason: str
    created: float
    started: float | None
    ended: float | None
    measured: tuple[Measured, ...]

    @property
    def place(self) -> Place:
        return Place(self.project, self.location, self.study)

    def values(self, goals: Iterable[str]) -> tuple[float, ...]:
        """Its final figures in the order of the metrics; () unless it is completed and feasible."""
        if self.final is None or self.infeasible:
            return ()
        held = {each.metric: each.value for each in self.final.metrics}
        return tuple(value for goal in goals if (value := held.get(goal)) is not None)


# ---- studies --------------------------------------------------------------------------------------------------------


def create(db: Database, place: Place, config: StudyConfig, *, seed: int, now: float) -> Study:
    """A study of a configuration that can be searched (see `space.checked`). Raises AlreadyExists."""

    def save(tx: sa.Connection) -> Study:
        if tx.execute(sa.select(studies.c.id).where(_is_study(place))).first():
            raise errors.AlreadyExists(f"Field: studyId Error: The study {place.name} exists already; take another id.")
        told = {"config": msgspec.to_builtins(config), "seed": seed, "state": ACTIVE, "created": now}
        tx.execute(studies.insert().values(project=place.project, location=place.location, id=place.study, **told))
        return read(tx, place)

    return db.write(save)


def read(rows: sa.Connection, place: Place) -> Study:
    """Raises NotFound."""
    row = rows.execute(sa.select(studies).where(_is_study(place))).first()
    if row is None:
        make = f"taxiway studies create {place.study} --config FILE --region {place.location}"
        raise errors.NotFound(f"The study {place.name} does not exist. Make it: {make}")
    return _study(row)


def get(db: Database, place: Place) -> Study:
    with db.read() as rows:
        return read(rows, place)


def list_studies(
    db: Database, project: str, location: str, *, limit: int | None = None, after: str = ""
) -> list[Study]:
    """By their ids; all of them without a limit."""
    asked = sa.select(studies).where(studies.c.project == project, studies.c.location == location, studies.c.id > after)
    with db.read() as rows:
        return [_study(row) for row in rows.execute(asked.order_by(studies.c.id).limit(limit))]


def delete(db: Database, place: Place) -> None:
    """Its trials, measurements and operations go with it. Raises NotFound."""

    def save(tx: sa.Connection) -> None:
        read(tx, place)
        for table in (measurements, trials, study_operations):
            tx.execute(table.delete().where(_of_study(table, place)))
        tx.execute(studies.delete().where(_is_study(place)))

    db.write(save)


# ---- trials ---------------------------------------------------------------------------------------------------------


def create_trial(
    db: Database,
    place: Place,
    point: Point,
    *,
    state: str = REQUESTED,
    final: Measurement | None = None,
    measured: Sequence[Measured] = (),
    now: float,
) -> Trial:
    """A trial of a point that somebody chose. A COMPLETED one has its `final` figures, or the best of `measured`.

    Raises FailedPrecondition if the study takes no more, InvalidArgument if a COMPLETED one has no figures.
    """

    def save(tx: sa.Connection) -> Trial:
        study = must_take(read(tx, place))
        number = study.made + 1
        add(tx, study, [point], state=state, now=now)
        for each in measured:
            measure(tx, place, number, each)
        if state == COMPLETED:
            _complete(tx, study, number, final or _best(measured, study), now=now)
        return read_trial(tx, place, number)

    return db.write(save)


def must_take(study: Study, more: int = 1) -> Study:
    """Raises FailedPrecondition for a study that takes no new trials."""
    place = Place(study.project, study.location, study.id)
    if study.state != ACTIVE:
        why = f"The study {place.name} is {study.state}"
        raise errors.FailedPrecondition(f"{why}: nothing is left to try. Its trials can be read and completed.")
    if study.made + more > MOST_TRIALS:
        told = f"The study {place.name} has had {study.made} trials, and {MOST_TRIALS} are the most"
        raise errors.FailedPrecondition(f"{told}; go on in a new one, with the best of these as trials of its own.")
    return study


def add(
    tx: sa.Connection, study: Study, points: Sequence[Point], *, state: str, client: str = "", now: float
) -> list[int]:
    """New trials, numbered on from the last that there ever was: a number is never used again."""
    space = spaces.read(study.config)
    numbers = list(range(study.made + 1, study.made + 1 + len(points)))
    for number, point in zip(numbers, points, strict=True):
        tx.execute(
            trials.insert().values(
                project=study.project,
                location=study.location,
                study=study.id,
                number=number,
                state=state,
                parameters=msgspec.to_builtins(spaces.told(space, point)),
                client=client,
                created=now,
                started=None if state == REQUESTED else now,
            )
        )
    place = Place(study.project, study.location, study.id)
    tx.execute(studies.update().where(_is_study(place)).values(made=study.made + len(points)))
    return numbers


def read_trial(rows: sa.Connection, place: Place, number: int) -> Trial:
    """Raises NotFound."""
    row = rows.execute(sa.select(trials).where(_is_trial(place, number))).first()
    if row is None:
        read(rows, place)
        raise no_trial(place, str(number))
    return _trial(row, _measured(rows, _of_trial(place, number)).get(number, ()))


def no_trial(place: Place, number: str) -> errors.NotFound:
    listing = f"taxiway studies trials {place.study} --region {place.location}"
    return errors.NotFound(f"The trial {place.name}/trials/{number} does not exist. List them: {listing}")


def get_trial(db: Database, place: Place, number: int) -> Trial:
    with db.read() as rows:
        return read_trial(rows, place, number)


def list_trials(db: Database, place: Place, *, limit: int | None = None, after: int = 0) -> list[Trial]:
    """By their numbers; all of them without a limit. Raises NotFound."""
    with db.read() as rows:
        read(rows, place)
        return read_trials(rows, place, trials.c.number > after, limit=limit)


def read_trials(
    rows: sa.Connection, place: Place, *which: sa.ColumnElement[bool], limit: int | None = None
) -> list[Trial]:
    asked = sa.select(trials).where(_of_study(trials, place), *which).order_by(trials.c.number).limit(limit)
    found = rows.execute(asked).all()
    if not found:
        return []
    between = measurements.c.trial.between(found[0].number, found[-1].number)
    held = _measured(rows, _of_study(measurements, place) & between)
    return [_trial(row, held.get(row.number, ())) for row in found]


def find_trials(db: Database, place: Place, numbers: Sequence[int]) -> list[Trial]:
    """Those that are there of some."""
    with db.read() as rows:
        return read_trials(rows, place, trials.c.number.in_(numbers))


def delete_trial(db: Database, place: Place, number: int) -> None:
    def save(tx: sa.Connection) -> None:
        read_trial(tx, place, number)
        tx.execute(measurements.delete().where(_of_trial(place, number)))
        tx.execute(trials.delete().where(_is_trial(place, number)))

    db.write(save)


def add_measurement(
    db: Database, place: Place, number: int, *, step: int | None, values: Mapping[str, float], now: float
) -> Trial:
    """Raises FailedPrecondition unless somebody tries it."""

    def save(tx: sa.Connection) -> Trial:
        trial = _going(read_trial(tx, place, number), "takes no measurement")
        measure(tx, place, number, Measured(step, _elapsed(trial, now), values))
        return read_trial(tx, place, number)

    return db.write(save)


def complete(
    db: Database,
    place: Place,
    number: int,
    *,
    final: Measurement | None = None,
    infeasible: bool = False,
    reason: str = "",
    now: float,
) -> Trial:
    """End a trial with its final figures, or with what counts of its measurements; or as one that cannot be tried.

    Raises FailedPrecondition unless somebody tries it, InvalidArgument if it has no figures to end with.
    """

    def save(tx: sa.Connection) -> Trial:
        study = read(tx, place)
        trial = _going(read_trial(tx, place, number), "cannot be completed")
        if infeasible:
            told = {"infeasible": True, "infeasible_reason": reason, "state": COMPLETED, "ended": now}
            tx.execute(trials.update().where(_is_trial(place, number)).values(**told))
        else:
            timed = msgspec.structs.replace(final, elapsed_time=_elapsed(trial, now)) if final else None
            _complete(tx, study, number, timed or _best(trial.measured, study), now=now)
        return read_trial(tx, place, number)

    return db.write(save)


def stop(db: Database, place: Place, number: int) -> Trial:
    """Say that a trial should end; whoever tries it completes it. Raises FailedPrecondition unless somebody does."""

    def save(tx: sa.Connection) -> Trial:
        _going(read_trial(tx, place, number), "cannot be stopped")
        tx.execute(trials.update().where(_is_trial(place, number)).values(state=STOPPING))
        return read_trial(tx, place, number)

    return db.write(save)


def hopeless(db: Database, place: Place, number: int) -> bool:
    """Whether a trial should end: it was told so, or its study's rule says so now.

    Raises FailedPrecondition unless somebody tries it.
    """
    with db.read() as rows:
        study, trial = read(rows, place), _going(read_trial(rows, place, number), "cannot be stopped")
        rule = study.config.automated_stopping_config
        if trial.state == STOPPING or rule is None:
            return trial.state == STOPPING
        others = read_trials(rows, place, trials.c.state == COMPLETED, ~trials.c.infeasible)
    return stopping.hopeless(rule, trial.measured, [each.measured for each in others], study.goals)


def optimal(db: Database, place: Place) -> list[Trial]:
    """The completed trials that no other beats. Raises NotFound."""
    with db.read() as rows:
        goals = read(rows, place).goals
        asked = sa.select(trials).where(_of_study(trials, place), trials.c.state == COMPLETED)
        found = {row.number: values for row in rows.execute(asked) if (values := _trial(row, ()).values(goals))}
        best = stopping.optimal(found, list(goals.values()))
        return [read_trial(rows, place, number) for number in best]


# ---- for whoever chooses ---------------------------------------------------------------------------------------------


def past(rows: sa.Connection, study: Study) -> tuple[Past, ...]:
    """All trials as the search sees them."""
    place = Place(study.project, study.location, study.id)
    asked = sa.select(trials).where(_of_study(trials, place)).order_by(trials.c.number)
    found = (_trial(row, ()) for row in rows.execute(asked))
    return tuple(
        Past(point=spaces.values(each.parameters), values=each.values(study.goals), infeasible=each.infeasible)
        for each in found
    )


def pending(rows: sa.Connection, place: Place, client: str) -> list[int]:
    """The trials that a client tries."""
    asked = sa.select(trials.c.number).where(
        _of_study(trials, place), trials.c.state == ACTIVE, trials.c.client == client
    )
    return list(rows.execute(asked.order_by(trials.c.number)).scalars())


def take_requested(tx: sa.Connection, place: Place, client: str, most: int, *, now: float) -> list[int]:
    """Give a client trials that somebody asked for and nobody tries, the oldest first."""
    asked = sa.select(trials.c.number).where(_of_study(trials, place), trials.c.state == REQUESTED)
    found = list(tx.execute(asked.order_by(trials.c.number).limit(most)).scalars())
    told = {"state": ACTIVE, "client": client, "started": now}
    for number in found:
        tx.execute(trials.update().where(_is_trial(place, number)).values(**told))
    return found


def use_up(tx: sa.Connection, place: Place) -> None:
    """Nothing is left to try."""
    tx.execute(studies.update().where(_is_study(place), studies.c.state == ACTIVE).values(state=COMPLETED))


# ---- below ----------------------------------------------------------------------------------------------------------


def _going(trial: Trial, what: str) -> Trial:
    if trial.state in GOING:
        return trial
    why = f"it is {trial.state}" + (", and nobody was given it by suggest yet" if trial.state == REQUESTED else "")
    raise errors.FailedPrecondition(f"The trial {trial.place.name}/trials/{trial.number} {what}: {why}.")


def _elapsed(trial: Trial, now: float) -> float:
    return round(max(0.0, now - (trial.started or now)), 6)


def _best(measured: Sequence[Measured], study: Study) -> Measurement:
    found = stopping.final(measured, study.goals)
    if found is None:
        lacking = f"is required: no measurement of the trial has {', '.join(study.goals)}."
        raise errors.InvalidArgument(faults=[("finalMeasurement", f"{lacking} Or send trialInfeasible: true.")])
    return told(found)


def told(measured: Measured) -> Measurement:
    """As the wire has it."""
    figures = tuple(MeasurementMetric(metric=metric, value=value) for metric, value in measured.values.items())
    return Measurement(elapsed_time=measured.elapsed, step_count=measured.step, metrics=figures)


def _complete(tx: sa.Connection, study: Study, number: int, final: Measurement, *, now: float) -> None:
    place = Place(study.project, study.location, study.id)
    change = {"state": COMPLETED, "final": msgspec.to_builtins(final), "ended": now}
    tx.execute(trials.update().where(_is_trial(place, number)).values(**change))


def measure(tx: sa.Connection, place: Place, number: int, measured: Measured) -> None:
    """Keep the figures of a trial at one moment, whatever its state."""
    figures = {"step": measured.step, "elapsed": measured.elapsed, "figures": dict(measured.values)}
    tx.execute(measurements.insert().values(**place._asdict(), trial=number, **figures))


def _measured(rows: sa.Connection, which: sa.ColumnElement[bool]) -> dict[int, tuple[Measured, ...]]:
    """The measurements of each trial, by steps and then by time."""
    found: dict[int, list[Measured]] = {}
    for row in rows.execute(sa.select(measurements).where(which)):
        found.setdefault(row.trial, []).append(Measured(row.step, row.elapsed, row.figures))
    return {number: tuple(sorted(held, key=lambda each: each.place)) for number, held in found.items()}


def _is_study(place: Place) -> sa.ColumnElement[bool]:
    return sa.and_(
        studies.c.project == place.project, studies.c.location == place.location, studies.c.id == place.study
    )


def _of_study(table: sa.Table, place: Place) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.project == place.project, table.c.location == place.location, table.c.study == place.study)


def _is_trial(place: Place, number: int) -> sa.ColumnElement[bool]:
    return _of_study(trials, place) & (trials.c.number == number)


def _of_trial(place: Place, number: int) -> sa.ColumnElement[bool]:
    return _of_study(measurements, place) & (measurements.c.trial == number)


def _study(row: sa.Row[Any]) -> Study:
    held = dict(row._mapping)
    return Study(**{**held, "config": msgspec.convert(held["config"], StudyConfig)})


def _trial(row: sa.Row[Any], measured: tuple[Measured, ...]) -> Trial:
    held = dict(row._mapping)
    held["parameters"] = msgspec.convert(held["parameters"], tuple[TrialParameter, ...])
    held["final"] = msgspec.convert(held["final"], Measurement) if held["final"] is not None else None
    return Trial(**held, measured=measured)
