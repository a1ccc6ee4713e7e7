"""The space that a study searches: its parameters, those that exist only under some values of others, and what is a
point of it. Pure; knows no rows and no search library.

What a configuration may say follows the descriptions of StudyConfig in Google's discovery document of ML v1. Of two
parameters of one name, which it allows under different values of their parent, the tree keeps both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import msgspec

from taxiway import errors
from taxiway.schemas import StudyConfig, StudyParameterSpec, TrialParameter

Value = float | int | str
Point = dict[str, Value]  # by the parameters' names
Fault = tuple[str, str]  # field, sentence

MOST_PARAMETERS = 1000
MOST_VALUES = 1000  # of one parameter: Google's limit for DISCRETE
MOST_POINTS = 1_000_000  # of a grid
LONGEST = 256  # characters of a name
EXACT = 2**53  # up to here every whole number is a double too

DOUBLE, INTEGER, CATEGORICAL, DISCRETE = "DOUBLE", "INTEGER", "CATEGORICAL", "DISCRETE"
GRID, RANDOM, GAUSSIAN = "GRID_SEARCH", "RANDOM_SEARCH", "GAUSSIAN_PROCESS_BANDIT"
GAUSSIAN_NEEDS = ("torch", "scipy")  # packages; without them Parzen estimators answer in its place
LOG, REVERSE_LOG = "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"
MAXIMIZE, MINIMIZE = "MAXIMIZE", "MINIMIZE"
SPECS = {  # the field that has a type's values
    DOUBLE: "doubleValueSpec",
    INTEGER: "integerValueSpec",
    CATEGORICAL: "categoricalValueSpec",
    DISCRETE: "discreteValueSpec",
}
PARENTS = {INTEGER: "parentIntValues", CATEGORICAL: "parentCategoricalValues", DISCRETE: "parentDiscreteValues"}
HOLDS = {DOUBLE: "floatValue", INTEGER: "intValue", CATEGORICAL: "stringValue", DISCRETE: "floatValue"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter, by `key` unlike all others (two may share a name), and its children."""

    key: str
    name: str
    type: str
    low: float | int
    high: float | int
    values: tuple[Value, ...]  # of a CATEGORICAL or DISCRETE one
    scale: str
    under: tuple[Value, ...]  # the values of its parent under which it exists; () for one without a parent
    children: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """How many values it has; 0 for those that nobody can count."""
        if self.type == DOUBLE:
            return int(self.low == self.high)
        return len(self.values) or int(self.high) - int(self.low) + 1

    def active(self, value: Value) -> tuple[Parameter, ...]:
        """The children that exist under a value."""
        return tuple(child for child in self.children if value in child.under)

    def holds(self, value: object) -> bool:
        if self.values:
            return value in self.values
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Space:
    parameters: tuple[Parameter, ...]

    @property
    def conditional(self) -> bool:
        return any(parameter.children for parameter in self.parameters)

    def points(self) -> Iterator[Point]:
        """Every point in its order, the last parameter going fastest; only for a space that `size` can count."""
        return _points(self.parameters)

    def size(self) -> int:
        """How many points there are; 0 if nobody can count them."""
        return _product(self.parameters)

    def holds(self, point: Mapping[str, Value]) -> bool:
        """Whether it is a point of this space, with all its values and no other."""
        path = list(self.path(point))
        lacking = any(child.name not in point for parameter, value in path for child in parameter.active(value))
        lacking |= any(parameter.name not in point for parameter in self.parameters)
        return len(path) == len(point) and not lacking and all(parameter.holds(value) for parameter, value in path)

    def path(self, point: Mapping[str, Value]) -> Iterator[tuple[Parameter, Value]]:
        """The parameters that exist at a point, parents before their children, each with its value.

        Ends where the point lacks a value; raises nothing.
        """
        left = list(reversed(self.parameters))
        while left:
            parameter = left.pop()
            if parameter.name in point:
                value = point[parameter.name]
                yield parameter, value
                left.extend(reversed(parameter.active(value)))


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A trial as the search sees it."""

    point: Point
    values: tuple[float, ...] = ()  # one for each metric, in their order, once it is completed
    infeasible: bool = False  # its point is not to be tried again


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which points to try next? `first` is the number of the first trial that will try one."""

    config: StudyConfig
    seed: int
    first: int
    count: int
    past: tuple[Past, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """As many points as were asked for, unless nothing is left to try after them; or why there are none."""

    points: tuple[Point, ...] = ()
    used_up: bool = False
    failure: str = ""  # a traceback


def metrics(config: StudyConfig) -> dict[str, str]:
    """The goal of each metric, in their order; Google's default is to maximize."""
    return {each.metric: MINIMIZE if each.goal == MINIMIZE else MAXIMIZE for each in config.metrics}


def checked(config: StudyConfig, field: str = "studyConfig") -> Space:
    """The space of a configuration that can be searched. Raises InvalidArgument with every fault of it."""
    faults: list[Fault] = [*_metric_faults(config, field)]
    reader = _Reader(faults)
    parameters = reader.parameters(config.parameters, f"{field}.parameters", None)
    if not config.parameters:
        faults.append((f"{field}.parameters", "is required: at least one parameter to search."))
    if reader.count > MOST_PARAMETERS:
        faults.append((f"{field}.parameters", f"At most {MOST_PARAMETERS} are allowed; these are {reader.count}."))
    found = Space(parameters)
    if not faults and config.algorithm == GRID:
        faults += _grid_faults(found, f"{field}.algorithm")
    if faults:
        raise errors.InvalidArgument(faults=faults[:20])
    return found


def read(config: StudyConfig) -> Space:
    """The space of a configuration that was checked before."""
    return Space(_Reader([]).parameters(config.parameters, "", None))


def point(space: Space, told: Sequence[TrialParameter], field: str) -> Point:
    """The point that a caller chose. Raises InvalidArgument with every value that is missing, too much or outside."""
    faults: list[Fault] = []
    given: dict[str, tuple[str, TrialParameter]] = {}
    for index, each in enumerate(told):
        at = f"{field}[{index}]"
        if each.parameter in given:
            faults.append((f"{at}.parameter", f"{each.parameter[:LONGEST]!r} is given twice."))
        given.setdefault(each.parameter, (at, each))
    found: Point = {}
    left = list(space.parameters)
    while left:
        parameter = left.pop(0)
        at, own = given.pop(parameter.name, ("", None))
        if own is None:
            faults.append((field, f"lacks a value for the parameter {parameter.name!r}."))
            continue
        value = _value(parameter, own)
        if value is None or not parameter.holds(value):
            faults.append((f"{at}.{HOLDS[parameter.type]}", f"must be {_allowed(parameter)} for {parameter.name!r}."))
            continue
        found[parameter.name] = value
        left += parameter.active(value)
    if not faults:  # else a child may be missing only because its parent is wrong
        for name, (at, _) in given.items():
            faults.append((f"{at}.parameter", f"{name[:LONGEST]!r} is no parameter of the study under these values."))
    if faults:
        raise errors.InvalidArgument(faults=faults[:20])
    return found


def told(space: Space, point: Mapping[str, Value]) -> tuple[TrialParameter, ...]:
    """A point as the wire has it."""
    return tuple(_told(parameter, value) for parameter, value in space.path(point))


def values(told: Sequence[TrialParameter]) -> Point:
    """A point as it was told, whatever space it is from."""
    return {each.parameter: _any_value(each) for each in told}


def unused(space: Space, used: Sequence[Mapping[str, Value]], count: int) -> list[Point]:
    """The first points of a countable space that nobody has used; fewer than `count` if there are no more."""
    taken = {_key(each) for each in used}
    return list(islice((each for each in space.points() if _key(each) not in taken), count))


def same(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    return _key(one) == _key(other)


def _key(point: Mapping[str, Value]) -> frozenset[tuple[str, Value]]:
    return frozenset(point.items())


def _points(parameters: Sequence[Parameter]) -> Iterator[Point]:
    if not parameters:
        yield {}
        return
    first, *rest = parameters
    for head in _subtree(first):
        for tail in _points(rest):
            yield {**head, **tail}


def _subtree(parameter: Parameter) -> Iterator[Point]:
    for value in _each(parameter):
        for below in _points(parameter.active(value)):
            yield {parameter.name: value, **below}


def _each(parameter: Parameter) -> Sequence[Value]:
    if parameter.type == DOUBLE:
        return (parameter.low,)  # counted only if it is the only one
    return parameter.values or range(int(parameter.low), int(parameter.high) + 1)


def _product(parameters: Sequence[Parameter]) -> int:
    return math.prod(_size(each) for each in parameters)


def _size(parameter: Parameter) -> int:
    """The points of a parameter with its children; 0 if they cannot be counted."""
    below = {value: _product(parameter.active(value)) for child in parameter.children for value in child.under}
    if not parameter.size or 0 in below.values():
        return 0
    return parameter.size - len(below) + sum(below.values())


def _told(parameter: Parameter, value: Value) -> TrialParameter:
    if parameter.type == CATEGORICAL:
        return TrialParameter(parameter=parameter.name, string_value=str(value))
    if parameter.type == INTEGER:
        return TrialParameter(parameter=parameter.name, int_value=int(value))
    return TrialParameter(parameter=parameter.name, float_value=float(value))


def _value(parameter: Parameter, told: TrialParameter) -> Value | None:
    """What is told in the field that the type has; None if it is in another, or in none."""
    if parameter.type == CATEGORICAL:
        return told.string_value if told.int_value is None and told.float_value is None else None
    if told.string_value:
        return None
    if parameter.type == INTEGER:
        return told.int_value if told.float_value is None else None
    return told.float_value if told.int_value is None else None


def _any_value(told: TrialParameter) -> Value:
    if told.float_value is not None:
        return told.float_value
    return told.int_value if told.int_value is not None else told.string_value


def _allowed(parameter: Parameter) -> str:
    if parameter.values:
        shown = ", ".join(repr(each) if isinstance(each, str) else f"{each:g}" for each in parameter.values[:8])
        return f"one of {shown}{', ...' if len(parameter.values) > 8 else ''}"
    whole = "a whole number" if parameter.type == INTEGER else "a number"
    return f"{whole} from {parameter.low} to {parameter.high}"


# ---- what may be said -----------------------------------------------------------------------------------------------


def _metric_faults(config: StudyConfig, field: str) -> Iterator[Fault]:
    if not config.metrics:
        yield f"{field}.metrics", "is required: at least one metric, and whether to MAXIMIZE or MINIMIZE it."
    seen: set[str] = set()
    for index, each in enumerate(config.metrics):
        at = f"{field}.metrics[{index}].metric"
        if not 0 < len(each.metric) <= LONGEST:
            yield at, f"is required: a name of {LONGEST} characters at most."
        elif each.metric in seen:
            yield at, f"{each.metric!r} is named twice."
        seen.add(each.metric)
    stopping = config.automated_stopping_config
    if stopping is not None:
        at = f"{field}.automatedStoppingConfig"
        if stopping.decay_curve_stopping_config and stopping.median_automated_stopping_config:
            yield at, "must be one of decayCurveStoppingConfig and medianAutomatedStoppingConfig, not both."
        if len(config.metrics) > 1:
            yield at, "needs a single metric: of several, none says alone whether a trial is hopeless."


def _grid_faults(space: Space, field: str) -> Iterator[Fault]:
    if any(parameter.type == DOUBLE for parameter in _every(space.parameters)):
        yield field, "GRID_SEARCH needs parameters that are INTEGER, CATEGORICAL or DISCRETE; there is a DOUBLE."
    elif space.size() > MOST_POINTS:
        told = f"This grid has {space.size()} points, and GRID_SEARCH takes {MOST_POINTS} at most"
        yield field, f"{told}; have fewer values, or use RANDOM_SEARCH."


def _every(parameters: Sequence[Parameter]) -> Iterator[Parameter]:
    for parameter in parameters:
        yield parameter
        yield from _every(parameter.children)


class _Reader:
    """Walks the specifications, and remembers every fault."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        self.count = 0
        self._names: dict[str, str] = {}  # name -> where its first one stands

    def parameters(
        self, specs: Sequence[StudyParameterSpec], at: str, parent: StudyParameterSpec | None
    ) -> tuple[Parameter, ...]:
        made: list[Parameter] = []
        for index, spec in enumerate(specs):
            here = f"{at}[{index}]"
            self._name(spec, here, at, made, parent)
            made.append(self._parameter(spec, here, parent))
        return tuple(made)

    def _name(
        self,
        spec: StudyParameterSpec,
        here: str,
        at: str,
        before: Sequence[Parameter],
        parent: StudyParameterSpec | None,
    ) -> None:
        """A name is used once; twice only by children of one parameter, under different values of it."""
        if not 0 < len(spec.parameter) <= LONGEST:
            self.faults.append((f"{here}.parameter", f"is required: a name of {LONGEST} characters at most."))
            return
        first = self._names.setdefault(spec.parameter, at)
        if first == at and not any(each.name == spec.parameter for each in before):
            return
        mine = set(_under(spec, parent))
        if first != at or parent is None:
            self.faults.append((f"{here}.parameter", f"{spec.parameter!r} is named twice; a name must be unique."))
        elif any(mine & set(each.under) for each in before if each.name == spec.parameter):
            told = f"{spec.parameter!r} is named twice under the same value of {parent.parameter!r}."
            self.faults.append((f"{here}.parameter", told))

    def _parameter(self, spec: StudyParameterSpec, here: str, parent: StudyParameterSpec | None) -> Parameter:
        self.count += 1
        key, kind = str(self.count), str(spec.type)
        before = len(self.faults)
        self._values(spec, kind, here)
        self._parent(spec, here, parent)
        low, high, found = _range(spec, kind) if len(self.faults) == before else (0.0, 0.0, ())
        if len(self.faults) == before:
            self._scale(spec, kind, low, here)
        if kind == DOUBLE and spec.child_parameter_specs:
            told = "A DOUBLE parameter has no values that children could be under."
            self.faults.append((f"{here}.childParameterSpecs", told))
        children = self.parameters(spec.child_parameter_specs, f"{here}.childParameterSpecs", spec)
        return Parameter(
            key, spec.parameter, kind, low, high, found, spec.scale_type or "", _under(spec, parent), children
        )

    def _values(self, spec: StudyParameterSpec, kind: str, here: str) -> None:
        """Exactly the specification that the type has, and something in it."""
        if kind not in SPECS:
            self.faults.append((f"{here}.type", f"is required: one of {', '.join(SPECS)}."))
            return
        given = {
            DOUBLE: spec.double_value_spec,
            INTEGER: spec.integer_value_spec,
            CATEGORICAL: spec.categorical_value_spec,
            DISCRETE: spec.discrete_value_spec,
        }
        for other, held in given.items():
            if held is not None and other != kind:
                self.faults.append((f"{here}.{SPECS[other]}", f"is for {other}; a {kind} has a {SPECS[kind]}."))
        at = f"{here}.{SPECS[kind]}"
        if given[kind] is None:
            self.faults.append((at, f"is required for a {kind}."))
        elif kind in (DOUBLE, INTEGER):
            self._bounds(spec, kind, at)
        else:
            self._listed(spec, kind, at)

    def _bounds(self, spec: StudyParameterSpec, kind: str, at: str) -> None:
        held = spec.double_value_spec if kind == DOUBLE else spec.integer_value_spec
        assert held is not None
        for name, value in (("minValue", held.min_value), ("maxValue", held.max_value)):
            if value is None:
                self.faults.append((f"{at}.{name}", "is required."))
            elif kind == INTEGER and abs(value) > EXACT:
                self.faults.append((f"{at}.{name}", f"must be from -{EXACT} to {EXACT}."))
        if held.min_value is not None and held.max_value is not None and held.min_value > held.max_value:
            told = f"must not be over maxValue; {held.min_value} is over {held.max_value}."
            self.faults.append((f"{at}.minValue", told))
        elif kind == DOUBLE and math.isinf((held.max_value or 0.0) - (held.min_value or 0.0)):
            self.faults.append((at, "The range from minValue to maxValue is too wide for a double."))

    def _listed(self, spec: StudyParameterSpec, kind: str, at: str) -> None:
        held = spec.categorical_value_spec if kind == CATEGORICAL else spec.discrete_value_spec
        found: tuple[Value, ...] = held.values if held is not None else ()
        if not 0 < len(found) <= MOST_VALUES:
            self.faults.append((f"{at}.values", f"must have 1 to {MOST_VALUES} values; these are {len(found)}."))
        elif kind == CATEGORICAL and len(set(found)) < len(found):
            self.faults.append((f"{at}.values", "has the same word twice."))
        elif kind == CATEGORICAL and "" in found:
            self.faults.append((f"{at}.values", "has an empty word, which a trial could not tell from none."))
        elif kind == DISCRETE and any(one >= other for one, other in pairwise(found)):  # type: ignore[operator]
            self.faults.append((f"{at}.values", "must be strictly increasing."))

    def _scale(self, spec: StudyParameterSpec, kind: str, low: float, here: str) -> None:
        if spec.scale_type in (None, "SCALE_TYPE_UNSPECIFIED"):
            return
        if kind == CATEGORICAL:
            self.faults.append((f"{here}.scaleType", "Words have no scale; leave it out."))
        elif spec.scale_type in (LOG, REVERSE_LOG) and low <= 0:
            told = f"{spec.scale_type} needs values that are all above 0; the least is {low:g}."
            self.faults.append((f"{here}.scaleType", told))

    def _parent(self, spec: StudyParameterSpec, here: str, parent: StudyParameterSpec | None) -> None:
        given = {
            INTEGER: spec.parent_int_values,
            CATEGORICAL: spec.parent_categorical_values,
            DISCRETE: spec.parent_discrete_values,
        }
        kind = str(parent.type) if parent is not None else ""
        for other, held in given.items():
            if held is not None and other != kind:
                told = f"{PARENTS[other]} is for the children of a parameter that is {other}"
                self.faults.append((f"{here}.{PARENTS[other]}", f"{told}; this one's parent is {kind or 'none'}."))
        if parent is None or kind not in given:
            return
        at = f"{here}.{PARENTS[kind]}.values"
        under = _under(spec, parent)
        if not under:
            told = f"is required: under which values of {parent.parameter!r} this parameter exists."
            self.faults.append((at, told))
        for value in under:
            if not _has(parent, value):
                self.faults.append((at, f"{value!r} is no value of the parent {parent.parameter!r}."))


def _under(spec: StudyParameterSpec, parent: StudyParameterSpec | None) -> tuple[Value, ...]:
    kind = parent.type if parent is not None else None
    if kind == INTEGER and spec.parent_int_values:
        return tuple(spec.parent_int_values.values)
    if kind == CATEGORICAL and spec.parent_categorical_values:
        return tuple(spec.parent_categorical_values.values)
    if kind == DISCRETE and spec.parent_discrete_values:
        return tuple(spec.parent_discrete_values.values)
    return ()


def _has(parent: StudyParameterSpec, value: Value) -> bool:
    if parent.categorical_value_spec and parent.type == CATEGORICAL:
        return value in parent.categorical_value_spec.values
    if parent.discrete_value_spec and parent.type == DISCRETE:
        return value in parent.discrete_value_spec.values
    held = parent.integer_value_spec
    if held is None or held.min_value is None or held.max_value is None:
        return True  # which is a fault of its own
    return isinstance(value, int) and held.min_value <= value <= held.max_value


def _range(spec: StudyParameterSpec, kind: str) -> tuple[float | int, float | int, tuple[Value, ...]]:
    """Least and greatest value, and all of them where they are listed."""
    if kind == DOUBLE and spec.double_value_spec:
        return spec.double_value_spec.min_value or 0.0, spec.double_value_spec.max_value or 0.0, ()
    if kind == INTEGER and spec.integer_value_spec:
        return spec.integer_value_spec.min_value or 0, spec.integer_value_spec.max_value or 0, ()
    if kind == DISCRETE and spec.discrete_value_spec:
        found = spec.discrete_value_spec.values
        return found[0], found[-1], found
    return 0.0, 0.0, spec.categorical_value_spec.values if spec.categorical_value_spec else ()
