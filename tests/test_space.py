"""What a study may say it searches, and what is a point of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taxiway import errors, schemas
from taxiway.api import messages
from taxiway.jobs import space

LOSS = {"metric": "loss", "goal": "MINIMIZE"}
RATE = {"parameter": "rate", "type": "DOUBLE", "doubleValueSpec": {"minValue": 0.001, "maxValue": 1}}
STEPS = {"parameter": "steps", "type": "INTEGER", "integerValueSpec": {"minValue": 1, "maxValue": 3}}
SIZE = {"parameter": "size", "type": "DISCRETE", "discreteValueSpec": {"values": [8, 16]}}
MOMENTUM = {**RATE, "parameter": "momentum", "parentCategoricalValues": {"values": ["sgd"]}}
OPTIMIZER = {
    "parameter": "optimizer",
    "type": "CATEGORICAL",
    "categoricalValueSpec": {"values": ["adam", "sgd"]},
    "childParameterSpecs": [MOMENTUM],
}


def config(*parameters, metrics=(LOSS,), **rest):
    return messages.read(
        schemas.StudyConfig, {"metrics": list(metrics), "parameters": list(parameters), **rest}, "studyConfig"
    )


def faults(*parameters, **rest):
    with pytest.raises(errors.InvalidArgument) as refused:
        space.checked(config(*parameters, **rest))
    return refused.value.faults


def numbers(type, least, most, **rest):
    spec = {"DOUBLE": "doubleValueSpec", "INTEGER": "integerValueSpec"}[type]
    return {"parameter": "p", "type": type, spec: {"minValue": least, "maxValue": most}, **rest}


def words(*values, **rest):
    return {"parameter": "p", "type": "CATEGORICAL", "categoricalValueSpec": {"values": list(values)}, **rest}


def points_of(*values, **rest):
    return {"parameter": "p", "type": "DISCRETE", "discreteValueSpec": {"values": list(values)}, **rest}


def under(parent, **rest):
    """The parent with a child of these fields."""
    return {**parent, "childParameterSpecs": [{**RATE, **rest}]}


AT = "studyConfig.parameters[0]"


@pytest.mark.parametrize(
    ("parameter", "field", "said"),
    [
        (numbers("DOUBLE", 2, 1), "doubleValueSpec.minValue", "must not be over maxValue; 2.0 is over 1.0"),
        (numbers("INTEGER", 2, 1), "integerValueSpec.minValue", "must not be over maxValue"),
        (numbers("INTEGER", 0, 2**60), "integerValueSpec.maxValue", "must be from"),
        (numbers("DOUBLE", -1e308, 1e308), "doubleValueSpec", "too wide"),
        (
            {"parameter": "p", "type": "DOUBLE", "doubleValueSpec": {"minValue": 0}},
            "doubleValueSpec.maxValue",
            "is req",
        ),
        ({"parameter": "p", "type": "DOUBLE"}, "doubleValueSpec", "is required for a DOUBLE"),
        ({"parameter": "p"}, "type", "is required: one of DOUBLE, INTEGER, CATEGORICAL, DISCRETE"),
        ({**numbers("DOUBLE", 1, 2), "parameter": ""}, "parameter", "is required: a name"),
        ({**numbers("DOUBLE", 1, 2), "type": "INTEGER"}, "doubleValueSpec", "is for DOUBLE; a INTEGER has"),
        (numbers("DOUBLE", 0, 1, scaleType="UNIT_LOG_SCALE"), "scaleType", "above 0; the least is 0"),
        (numbers("INTEGER", -1, 1, scaleType="UNIT_REVERSE_LOG_SCALE"), "scaleType", "the least is -1"),
        (points_of(-1, 1, scaleType="UNIT_LOG_SCALE"), "scaleType", "above 0"),
        (words("a", scaleType="UNIT_LINEAR_SCALE"), "scaleType", "Words have no scale"),
        (words(), "categoricalValueSpec.values", "must have 1 to 1000 values; these are 0"),
        (words("a", "a"), "categoricalValueSpec.values", "the same word twice"),
        (words("a", ""), "categoricalValueSpec.values", "an empty word"),
        (points_of(), "discreteValueSpec.values", "these are 0"),
        (points_of(1, 1), "discreteValueSpec.values", "must be strictly increasing"),
        (points_of(2, 1), "discreteValueSpec.values", "must be strictly increasing"),
        (points_of(*range(1001)), "discreteValueSpec.values", "these are 1001"),
        (under(numbers("DOUBLE", 1, 2)), "childParameterSpecs", "A DOUBLE parameter has no values"),
        (under(words("a")), "childParameterSpecs[0].parentCategoricalValues.values", "is required: under which values"),
        (
            under(words("a"), parentCategoricalValues={"values": ["b"]}),
            "childParameterSpecs[0].parentCategoricalValues.values",
            "'b' is no value of the parent 'p'",
        ),
        (
            under(numbers("INTEGER", 1, 3), parentIntValues={"values": [4]}),
            "childParameterSpecs[0].parentIntValues.values",
            "4 is no value of the parent",
        ),
        (
            under(words("a"), parentIntValues={"values": [1]}),
            "childParameterSpecs[0].parentIntValues",
            "for the children of a parameter that is INTEGER; this one's parent is CATEGORICAL",
        ),
        ({**RATE, "parentIntValues": {"values": [1]}}, "parentIntValues", "this one's parent is none"),
        (
            under(words("a"), parameter="p", parentCategoricalValues={"values": ["a"]}),
            "childParameterSpecs[0].parameter",
            "'p' is named twice",
        ),
    ],
)
def test_a_parameter_that_cannot_be_searched_is_refused_by_its_field(parameter, field, said):
    found = dict(faults(parameter))
    assert said in found[f"{AT}.{field}"], found


@pytest.mark.parametrize(
    ("rest", "field", "said"),
    [
        ({"metrics": []}, "studyConfig.metrics", "at least one metric"),
        ({"metrics": [LOSS, LOSS]}, "studyConfig.metrics[1].metric", "'loss' is named twice"),
        ({"metrics": [{"goal": "MAXIMIZE"}]}, "studyConfig.metrics[0].metric", "is required"),
        ({"algorithm": "GRID_SEARCH"}, "studyConfig.algorithm", "there is a DOUBLE"),
        (
            {"metrics": [LOSS, {"metric": "time"}], "automatedStoppingConfig": {"medianAutomatedStoppingConfig": {}}},
            "studyConfig.automatedStoppingConfig",
            "needs a single metric",
        ),
        (
            {"automatedStoppingConfig": {"medianAutomatedStoppingConfig": {}, "decayCurveStoppingConfig": {}}},
            "studyConfig.automatedStoppingConfig",
            "not both",
        ),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_by_its_field(rest, field, said):
    assert said in dict(faults(RATE, **rest))[field]


def test_every_fault_is_told_at_once():
    assert [field for field, _ in faults(words(), numbers("DOUBLE", 2, 1), metrics=[])] == [
        "studyConfig.metrics",
        "studyConfig.parameters[0].categoricalValueSpec.values",
        "studyConfig.parameters[1].parameter",
        "studyConfig.parameters[1].doubleValueSpec.minValue",
    ]


def test_a_study_without_parameters_is_refused():
    assert dict(faults()) == {"studyConfig.parameters": "is required: at least one parameter to search."}


def test_a_grid_with_more_points_than_can_be_is_refused_with_their_number():
    many = [{**numbers("INTEGER", 1, 1001), "parameter": name} for name in "ab"]
    ((field, said),) = faults(*many, algorithm="GRID_SEARCH")
    assert (field, "1002001 points" in said) == ("studyConfig.algorithm", True)


def test_two_children_of_one_name_stand_under_different_values_of_their_parent():
    one = {**RATE, "parentCategoricalValues": {"values": ["adam"]}}
    other = {**numbers("DOUBLE", 5, 6), "parameter": "rate", "parentCategoricalValues": {"values": ["sgd"]}}
    parent = {**OPTIMIZER, "childParameterSpecs": [one, other]}
    held = space.checked(config(parent))
    rates = {value: held.parameters[0].active(value)[0].high for value in ("adam", "sgd")}
    assert rates == {"adam": 1, "sgd": 6}
    twice = {**parent, "childParameterSpecs": [one, one]}
    assert "named twice under the same value of 'optimizer'" in faults(twice)[0][1]


def test_the_points_of_a_countable_space_are_counted_and_walked_with_their_conditions():
    parent = {**OPTIMIZER, "childParameterSpecs": [{**SIZE, "parentCategoricalValues": {"values": ["sgd"]}}]}
    held = space.checked(config(STEPS, parent, algorithm="GRID_SEARCH"))
    found = list(held.points())
    assert len(found) == held.size() == 3 * (1 + 2)
    assert found[:4] == [
        {"steps": 1, "optimizer": "adam"},
        {"steps": 1, "optimizer": "sgd", "size": 8},
        {"steps": 1, "optimizer": "sgd", "size": 16},
        {"steps": 2, "optimizer": "adam"},
    ]
    assert space.unused(held, found[:8], 5) == found[8:]
    assert space.read(config(RATE)).size() == 0


@pytest.mark.parametrize(
    ("told", "field", "said"),
    [
        ([], "parameters", "lacks a value for the parameter 'rate'"),
        ([{"parameter": "rate", "floatValue": 2}], "parameters[0].floatValue", "a number from 0.001 to 1"),
        ([{"parameter": "rate", "intValue": "1"}], "parameters[0].floatValue", "must be a number"),
        ([{"parameter": "rate", "floatValue": 1, "stringValue": "x"}], "parameters[0].floatValue", "must be a number"),
        ([{"parameter": "rate", "floatValue": 1}] * 2, "parameters[1].parameter", "given twice"),
    ],
)
def test_a_point_outside_the_space_is_refused_by_its_field(told, field, said):
    held = space.checked(config(RATE))
    read = messages.read(schemas.Trial, {"parameters": told}).parameters
    with pytest.raises(errors.InvalidArgument) as refused:
        space.point(held, read, "parameters")
    assert said in dict(refused.value.faults)[field]


def test_a_child_is_needed_under_its_values_and_refused_under_others():
    held = space.checked(config(OPTIMIZER))
    momentum = schemas.TrialParameter(parameter="momentum", float_value=0.5)
    adam, sgd = (schemas.TrialParameter(parameter="optimizer", string_value=each) for each in ("adam", "sgd"))
    assert space.point(held, [momentum, sgd], "p") == {"optimizer": "sgd", "momentum": 0.5}
    with pytest.raises(errors.InvalidArgument, match="lacks a value for the parameter 'momentum'"):
        space.point(held, [sgd], "p")
    with pytest.raises(errors.InvalidArgument, match="'momentum' is no parameter of the study under these values"):
        space.point(held, [momentum, adam], "p")


def trees(depth=2):
    """Parameters with children; names are made unique afterwards."""
    listed = st.lists(st.integers(-5, 5), min_size=1, max_size=3, unique=True).map(sorted)
    kinds = st.one_of(
        st.tuples(st.just("DISCRETE"), listed),
        st.tuples(st.just("INTEGER"), listed),
        st.tuples(st.just("CATEGORICAL"), listed),
    )
    below = st.lists(trees(depth - 1), max_size=2) if depth else st.just([])
    return st.tuples(kinds, below, st.integers(0, 2))


def spelled(tree, number, parent=None):
    (kind, values), below, which = tree
    name = next(number)
    spec = {"parameter": f"p{name}", "type": kind}
    if kind == "DISCRETE":
        spec["discreteValueSpec"] = {"values": values}
    elif kind == "CATEGORICAL":
        values = [str(each) for each in values]
        spec["categoricalValueSpec"] = {"values": values}
    else:
        spec["integerValueSpec"] = {"minValue": values[0], "maxValue": values[-1]}
    if parent:
        field = {"INTEGER": "parentIntValues", "CATEGORICAL": "parentCategoricalValues"}
        own = parent[1][which % len(parent[1]) :]
        spec[field.get(parent[0], "parentDiscreteValues")] = {"values": own}
    children = [spelled(each, number, (kind, values)) for each in below]
    return {**spec, **({"childParameterSpecs": children} if children else {})}


@settings(max_examples=60, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_point_of_any_space_is_told_and_read_back_and_none_is_there_twice(made):
    number = iter(range(1000))
    asked = config(*(spelled(each, number) for each in made), algorithm="RANDOM_SEARCH")
    held = space.checked(asked)
    found = [point for _, point in zip(range(300), held.points(), strict=False)]
    assert len(found) == min(300, held.size())
    assert len({frozenset(each.items()) for each in found}) == len(found)
    for each in found:
        told = space.told(held, each)
        assert space.point(held, told, "p") == each == space.values(told)
