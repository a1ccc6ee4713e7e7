"""Hyperparameters of a job: what is refused by which field, and the study that they are."""

from __future__ import annotations

import pytest

from taxiway import schemas
from taxiway.api import messages
from taxiway.jobs import search, space, tuning
from taxiway.jobs.space import Question

RATE = {"parameterName": "rate", "type": "DOUBLE", "minValue": 0.001, "maxValue": 1, "scaleType": "UNIT_LOG_SCALE"}
LAYERS = {"parameterName": "layers", "type": "INTEGER", "minValue": 1, "maxValue": 4}
BATCH = {"parameterName": "batch", "type": "DISCRETE", "discreteValues": [64, 128]}
KIND = {"parameterName": "kind", "type": "CATEGORICAL", "categoricalValues": ["dnn", "linear"]}


def spec(*params, **rest):
    return messages.read(schemas.HyperparameterSpec, {"goal": "MINIMIZE", "params": list(params), **rest})


@pytest.mark.parametrize(
    ("param", "field", "said"),
    [
        ({**RATE, "minValue": 2}, "minValue", "must not be over maxValue"),
        ({**RATE, "minValue": 0}, "scaleType", "above 0"),
        ({"parameterName": "p", "type": "DOUBLE", "maxValue": 1}, "minValue", "is required"),
        ({**LAYERS, "maxValue": 4.5}, "maxValue", "must be a whole number for an INTEGER; it is 4.5"),
        ({**KIND, "categoricalValues": []}, "categoricalValues", "these are 0"),
        ({**KIND, "categoricalValues": ["a", "a"]}, "categoricalValues", "the same word twice"),
        ({**BATCH, "discreteValues": [2, 1]}, "discreteValues", "must be strictly increasing"),
        ({**BATCH, "discreteValues": list(range(1001))}, "discreteValues", "these are 1001"),
        ({**RATE, "categoricalValues": ["a"]}, "categoricalValues", "is for CATEGORICAL; this one is DOUBLE"),
        ({**KIND, "discreteValues": [1]}, "discreteValues", "is for DISCRETE"),
        ({**RATE, "parameterName": "--rate"}, "parameterName", "not start with a hyphen"),
        ({**RATE, "parameterName": "a b"}, "parameterName", "no spaces"),
        ({**RATE, "parameterName": ""}, "parameterName", "is required"),
        ({"parameterName": "p"}, "type", "is required"),
    ],
)
def test_a_hyperparameter_that_cannot_be_searched_is_refused_by_its_field(param, field, said):
    found = dict(tuning.faults(spec(param)))
    assert said in found[f"trainingInput.hyperparameters.params[0].{field}"], found


@pytest.mark.parametrize(
    ("rest", "field"),
    [
        ({"maxTrials": 0}, "maxTrials"),
        ({"maxTrials": 10_001}, "maxTrials"),
        ({"maxParallelTrials": -1}, "maxParallelTrials"),
        ({"maxFailedTrials": -1}, "maxFailedTrials"),
        ({"resumePreviousJobId": "9"}, "resumePreviousJobId"),
        ({"algorithm": "GRID_SEARCH"}, "algorithm"),
        ({"hyperparameterMetricTag": "x" * 257}, "hyperparameterMetricTag"),
        ({"params": []}, "params"),
        ({"params": [RATE, RATE]}, "params[1].parameterName"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused_by_its_field(rest, field):
    assert [at for at, _ in tuning.faults(spec(**{"params": [RATE], **rest}))] == [
        f"trainingInput.hyperparameters.{field}"
    ]


def test_what_can_be_tuned_is_searched_as_a_study_and_passed_as_arguments():
    told = spec(RATE, LAYERS, BATCH, KIND, enableTrialEarlyStopping=True, maxTrials=20, maxParallelTrials=4)
    assert list(tuning.faults(told)) == []
    made = tuning.study(told)
    assert made.metrics[0] == schemas.StudyMetricSpec(metric="training/hptuning/metric", goal="MINIMIZE")
    assert made.automated_stopping_config.median_automated_stopping_config is not None
    (point,) = search.suggest(Question(config=made, seed=1, first=1, count=1, past=())).points
    words = tuning.arguments(space.told(space.checked(made), point))
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert list(given) == ["--rate", "--layers", "--batch", "--kind"]
    assert float(given["--rate"]) == point["rate"]
    assert int(given["--layers"]) == point["layers"]
    assert given["--batch"] in ("64", "128"), "a trainer may read it with type=int"
    assert given["--kind"] in ("dnn", "linear")


def test_a_grid_of_a_job_has_an_end():
    made = tuning.study(spec(BATCH, KIND, algorithm="GRID_SEARCH"))
    answer = search.suggest(Question(config=made, seed=1, first=1, count=9, past=()))
    assert (len(answer.points), answer.used_up) == (4, True)
