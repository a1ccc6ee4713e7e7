"""Hyperparameters of a training job: what they may be, the study that searches them, and a trial's arguments. Pure.

A job's trials are chosen and judged as those of studies are: see `space`, `search` and `stopping`. What
HyperparameterSpec may say follows its descriptions in Google's discovery document of ML v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from taxiway import errors, names
from taxiway.jobs import space
from taxiway.jobs.studies import MOST_TRIALS
from taxiway.schemas import (
    AutomatedStoppingConfig,
    CategoricalValueSpec,
    DiscreteValueSpec,
    DoubleValueSpec,
    HyperparameterSpec,
    IntegerValueSpec,
    MedianAutomatedStoppingConfig,
    ParameterSpec,
    StudyConfig,
    StudyMetricSpec,
    StudyParameterSpec,
    TrialParameter,
)

Fault = tuple[str, str]  # field, sentence

FIELD = "trainingInput.hyperparameters"
TAG = "training/hptuning/metric"  # what the service looked for where a job names no other
NAME = re.compile(r"[^\s=-][^\s=]*")  # it becomes --NAME
SPELLED = (  # a fault of the study, as the job has the field
    (r"\.parameters\b", ".params"),
    (r"\.(double|integer)ValueSpec\.(minValue|maxValue)$", r".\2"),
    (r"\.(double|integer)ValueSpec$", ".minValue"),
    (r"\.(categorical|discrete)ValueSpec(\.values)?$", r".\1Values"),
    (r"\.parameter$", ".parameterName"),
    (r"\.metrics.*", ".hyperparameterMetricTag"),
)


def faults(spec: HyperparameterSpec) -> Iterator[Fault]:
    """All that is wrong, each under the field of the job."""
    for index, each in enumerate(spec.params):
        yield from _faults_of(each, f"{FIELD}.params[{index}]")
    try:
        space.checked(study(spec), FIELD)
    except errors.InvalidArgument as error:
        for field, sentence in error.faults:
            for pattern, ours in SPELLED:
                field = re.sub(pattern, ours, field)
            yield field, sentence
    trials, parallel, failed = spec.max_trials, spec.max_parallel_trials, spec.max_failed_trials
    if trials is not None and not 1 <= trials <= MOST_TRIALS:
        yield f"{FIELD}.maxTrials", f"must be from 1 to {MOST_TRIALS}."
    if parallel is not None and not 1 <= parallel <= MOST_TRIALS:
        yield f"{FIELD}.maxParallelTrials", f"must be from 1 to {MOST_TRIALS}."
    if failed is not None and failed < 0:
        yield f"{FIELD}.maxFailedTrials", "must not be below 0; 0 leaves it to the service."
    if spec.resume_previous_job_id:
        try:
            names.ml_name(spec.resume_previous_job_id, f"{FIELD}.resumePreviousJobId")
        except errors.InvalidArgument as error:
            yield from error.faults


def study(spec: HyperparameterSpec) -> StudyConfig:
    """The study that the trials of a job are: one metric, no conditions; hopeless trials by the median rule."""
    stopping = AutomatedStoppingConfig(median_automated_stopping_config=MedianAutomatedStoppingConfig())
    return StudyConfig(
        algorithm=spec.algorithm,
        metrics=(StudyMetricSpec(metric=tag(spec), goal=spec.goal),),
        parameters=tuple(_parameter(each) for each in spec.params),
        automated_stopping_config=stopping if spec.enable_trial_early_stopping else None,
    )


def tag(spec: HyperparameterSpec) -> str:
    """The name that a trial reports its metric under."""
    return spec.hyperparameter_metric_tag or TAG


def values(parameters: Sequence[TrialParameter]) -> dict[str, str]:
    """A trial's values as they are told and passed on; a whole number has no point, so that type=int reads it."""
    return {name: _shown(value) for name, value in space.values(parameters).items()}


def arguments(parameters: Sequence[TrialParameter]) -> list[str]:
    """A trial's values as its trainer gets them: --rate 0.1 --layers 3"""
    return [word for name, value in values(parameters).items() for word in (f"--{name}", value)]


def _shown(value: space.Value) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < space.EXACT:
        return str(int(value))
    return str(value)


def _faults_of(told: ParameterSpec, field: str) -> Iterator[Fault]:
    """What the study's own parameter could not show."""
    if told.parameter_name and not NAME.fullmatch(told.parameter_name):
        yield f"{field}.parameterName", "becomes --NAME: it must have no spaces and no =, and not start with a hyphen."
    if told.type != space.CATEGORICAL and told.categorical_values:
        yield f"{field}.categoricalValues", f"is for CATEGORICAL; this one is {told.type}."
    if told.type != space.DISCRETE and told.discrete_values:
        yield f"{field}.discreteValues", f"is for DISCRETE; this one is {told.type}."
    if told.type == space.INTEGER:
        for name, value in (("minValue", told.min_value), ("maxValue", told.max_value)):
            if value is not None and not value.is_integer():
                yield f"{field}.{name}", f"must be a whole number for an INTEGER; it is {value:g}."


def _parameter(told: ParameterSpec) -> StudyParameterSpec:
    low, high = told.min_value, told.max_value
    return StudyParameterSpec(
        parameter=told.parameter_name,
        type=told.type,
        scale_type=None if told.scale_type == "NONE" else told.scale_type,
        double_value_spec=DoubleValueSpec(min_value=low, max_value=high) if told.type == space.DOUBLE else None,
        integer_value_spec=IntegerValueSpec(min_value=_whole(low), max_value=_whole(high))
        if told.type == space.INTEGER
        else None,
        categorical_value_spec=CategoricalValueSpec(values=told.categorical_values)
        if told.type == space.CATEGORICAL
        else None,
        discrete_value_spec=DiscreteValueSpec(values=told.discrete_values) if told.type == space.DISCRETE else None,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
