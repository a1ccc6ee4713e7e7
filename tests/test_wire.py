import json
from dataclasses import dataclass
from typing import Annotated

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway import errors, schemas
from taxiway.api import messages, shapes, wire

EVERY = sorted(schemas.MESSAGES.values(), key=schemas.wire_id)
TIERS = ("BASIC", "STANDARD_1", "PREMIUM_1", "BASIC_GPU", "BASIC_TPU", "CUSTOM")
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def of_type(held, depth):
    """Values of a field's type; None or empty instead of a message that would lie too deep."""
    if held.message is not None:
        return of_kind(held.message, depth + 1) if depth < 3 else st.none()
    if held.word == "array":
        most = 0 if held.item.message is not None and depth >= 3 else 2
        return st.lists(of_type(held.item, depth), max_size=most).map(held.make)
    if held.word == "map":
        return st.dictionaries(text, of_type(held.item, depth), max_size=2)
    if held.enum:
        return st.sampled_from(held.enum)
    return {
        "any": st.none() | st.booleans() | text,
        "google-datetime": st.integers(0, 4 * 10**15).map(lambda micros: micros / 1e6),
        "google-duration": st.integers(0, 10**9).map(float),
        "byte": st.binary(max_size=8),
        "int32": st.integers(-(2**31), 2**31 - 1),
        "int64": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
    }.get(held.format or held.word, text)


def of_kind(kind, depth=0):
    fields = {
        member.attribute: st.just(member.default) | of_type(member.type, depth) for member in shapes.members(kind)
    }
    return st.builds(kind, **fields)


def faults_of(kind, body, field=""):
    with pytest.raises(errors.InvalidArgument) as caught:
        messages.read(kind, json.dumps(body).encode() if not isinstance(body, bytes) else body, field)
    return list(caught.value.faults)


def fields_of(*arguments):
    return [field for field, _ in faults_of(*arguments)]


def taken_or_refused(kind, body):
    """Whether a body gives a message, or the faults that it has; whatever else is raised is our own fault."""
    try:
        return isinstance(messages.read(kind, body), kind)
    except errors.InvalidArgument as error:
        return len(error.faults) > 0


# ---- bodies ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(EVERY).flatmap(of_kind))
def test_every_message_that_is_written_is_read_back_the_same(message):
    assert messages.read(type(message), msgspec.json.encode(messages.write(message))) == message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.data(), st.sampled_from(EVERY))
def test_any_json_is_read_or_refused_but_never_more_than_that(data, kind):
    known = [member.name for member in shapes.members(kind)]
    keys = st.sampled_from(known) if known else text
    body = data.draw(st.dictionaries(keys, json_values, max_size=5) | json_values)
    assert taken_or_refused(kind, json.dumps(body).encode())


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_but_never_more_than_that(body):
    assert taken_or_refused(schemas.Job, body)


def test_every_fault_of_a_body_is_told_at_once_by_its_dotted_name():
    body = {
        "traningInput": {},
        "training_input": {
            "scaleTier": "basic",
            "workerCount": "many",
            "args": ["a", 1, None],
            "packageUris": "gs://a/b",
            "hyperparameters": {"params": [{"maxValue": True, "typ": "DOUBLE"}]},
            "scheduling": {"max_wait_time": "7200"},
        },
        "labels": {"colour": 1},
        "etag": "?",
        "createTime": "yesterday",
    }
    assert faults_of(schemas.Job, body) == [
        ("traningInput", "Unknown field of a Job. Did you mean trainingInput?"),
        (
            "trainingInput.scaleTier",
            f'Expected one of {", ".join(TIERS)}. Did you mean BASIC? Got "basic".',
        ),
        ("trainingInput.workerCount", 'Expected a whole number. Got "many".'),
        ("trainingInput.args[1]", "Expected a string. Got 1."),
        ("trainingInput.args[2]", "Expected a string; got null."),
        ("trainingInput.packageUris", 'Expected a list of strings; got "gs://a/b".'),
        ("trainingInput.hyperparameters.params[0].typ", "Unknown field of a ParameterSpec. Did you mean type?"),
        ("trainingInput.hyperparameters.params[0].maxValue", "Expected a number. Got true."),
        ("trainingInput.scheduling.maxWaitTime", 'Expected a duration in seconds such as 7200s. Got "7200".'),
        ("labels.colour", "Expected a string. Got 1."),
        ("etag", 'Expected bytes as a base64 string. Got "?".'),
        ("createTime", 'Expected a time such as 2026-11-01T09:30:00Z. Got "yesterday".'),
    ]


def test_fields_are_named_from_where_the_body_stands():
    assert fields_of(schemas.TrainingInput, {"regoin": "x"}, "job.trainingInput") == ["job.trainingInput.regoin"]


def test_a_name_that_is_like_none_is_told_which_are_known():
    assert "Known are maxNodes, metrics, minNodes." in faults_of(schemas.AutoScaling, {"zzz": 1})[0][1]
    assert faults_of(schemas.CancelJobRequest, {"a": 1}) == [
        ("a", "Unknown field of a CancelJobRequest. It has no fields.")
    ]


def test_a_name_may_be_spelled_either_way_but_not_both_at_once():
    assert messages.read(schemas.Job, b'{"job_id": "a"}') == messages.read(schemas.Job, b'{"jobId": "a"}')
    assert messages.read(schemas.TrainingOutput, b'{"consumedMLUnits": 1}').consumed_ml_units == 1.0
    assert fields_of(schemas.Job, {"jobId": "a", "job_id": "b"}) == ["job_id"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "The request has no body. Send a JSON object, a Job, with etag, jobId, labels, predictionInput"),
        (b" \n", "The request has no body."),
        (b'{"jobId": ', "The body is not JSON: it ends too early, after 10 bytes."),
        (b"{'jobId': 1}", "(byte 1)"),
        (b'{"jobId": NaN}', "(byte 10)"),
        (b"\xff\xfe{}", "(byte 0)"),
        (b"{} {}", "trailing characters"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"jobPosition": ' + b"9" * 5000 + b"}", "The body is not JSON"),
        (b"[]", "Expected a JSON object, a Job; got a list."),
        (b'"job"', 'Expected a JSON object, a Job; got "job".'),
        (b"null", "Expected a JSON object, a Job; got null."),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_with_the_place(body, told):
    ((field, sentence),) = faults_of(schemas.Job, body)
    assert field == "body"
    assert told in sentence


def test_a_message_without_fields_needs_no_body():
    assert messages.read(schemas.CancelJobRequest, b"") == schemas.CancelJobRequest()


@pytest.mark.parametrize("value", [3, "3", 3.0])
def test_a_whole_number_comes_as_a_number_or_a_string(value):
    assert messages.read(schemas.TrainingInput, {"workerCount": value}).worker_count == 3
    assert messages.read(schemas.ManualScaling, {"nodes": value}).nodes == 3


@pytest.mark.parametrize("value", [3.5, "3.5", "", " 3", "٣", True, [], {}, 2**63, str(2**63), -(2**63) - 1, 1e300])
def test_what_is_no_64_bit_number_is_refused(value):
    assert fields_of(schemas.TrainingInput, {"workerCount": value}) == ["workerCount"]


def test_a_32_bit_number_is_held_to_its_range():
    assert messages.read(schemas.ManualScaling, {"nodes": 2**31 - 1}).nodes == 2**31 - 1
    assert "from -2147483648 to 2147483647" in faults_of(schemas.ManualScaling, {"nodes": 2**31})[0][1]


@pytest.mark.parametrize("value", [True, "", "one", "NaN", "Infinity", "1_000", "0x1", b"1e999", "1e999"])
def test_what_is_no_finite_number_is_refused(value):
    body = b'{"minValue": 1e999}' if isinstance(value, bytes) else {"minValue": value}
    assert len(faults_of(schemas.ParameterSpec, body)) == 1


def test_null_is_silence_but_not_inside_a_list():
    assert messages.read(schemas.Job, b'{"jobId": null, "trainingInput": null}') == schemas.Job()
    assert fields_of(schemas.Job, {"labels": {"a": None}}) == ["labels.a"]


def test_nul_is_refused_since_no_database_keeps_it():
    assert fields_of(schemas.Job, {"jobId": "a\0"}) == ["jobId"]
    assert fields_of(schemas.Job, {"labels": {"a\0": "b"}}) == ["labels"]


def test_a_body_is_read_down_to_a_hundred_levels_and_no_further():
    def nested(levels):
        return b'{"parameters":[' + b'{"childParameterSpecs":[' * levels + b"]}" * levels + b"]}"

    assert messages.read(schemas.StudyConfig, nested(99)).parameters
    ((_, told),) = faults_of(schemas.StudyConfig, nested(100))
    assert "nested more than 100 levels" in told


def test_a_body_of_nothing_but_faults_is_told_twenty():
    assert len(faults_of(schemas.Job, {f"k{index}": 0 for index in range(10_000)})) == 20
    assert len(faults_of(schemas.TrainingInput, {"args": list(range(10_000))})) == 20
    assert len(faults_of(schemas.Job, {"labels": {f"k{index}": 0 for index in range(10_000)}})) == 20


def test_a_message_is_written_in_google_s_way():
    version = schemas.Version(
        name="v1",
        create_time=0,
        is_default=False,
        etag=b"\xfb\xff",
        accelerator_config=schemas.AcceleratorConfig(count=0, type="NVIDIA_TESLA_K80"),
        auto_scaling=schemas.AutoScaling(min_nodes=0),
        container=schemas.ContainerSpec(),
    )
    assert messages.write(version) == {
        "acceleratorConfig": {"count": "0", "type": "NVIDIA_TESLA_K80"},
        "autoScaling": {"minNodes": 0},
        "container": {},
        "createTime": "1970-01-01T00:00:00.000000Z",
        "etag": "+/8=",
        "name": "v1",
    }


def test_numbers_that_json_cannot_say_are_written_as_words():
    values = [float("nan"), float("inf"), float("-inf"), 0.0]
    written = [messages.write(schemas.MeasurementMetric(value=value)) for value in values]
    assert [told["value"] for told in written] == ["NaN", "Infinity", "-Infinity", 0.0]


def test_a_message_in_an_any_says_what_it_is():
    told = messages.packed(schemas.OperationMetadata(project_number=7), "google.cloud.ml.v1.OperationMetadata")
    assert told == {"@type": "type.googleapis.com/google.cloud.ml.v1.OperationMetadata", "projectNumber": "7"}


class Shelf(msgspec.Struct, rename="camel"):
    """A Struct that is none of ML v1's."""

    shelf_name: Annotated[str, msgspec.Meta(description="Its name.")]
    books: list[str] = msgspec.field(default_factory=list)
    height: int | msgspec.UnsetType = msgspec.UNSET


def test_any_struct_is_read_and_written_and_its_required_fields_are_asked_for():
    assert faults_of(Shelf, {"books": []}) == [("shelfName", "This field is required: Its name.")]
    shelf = messages.read(Shelf, {"shelf_name": "a", "books": ["b"]})
    assert shelf == Shelf("a", ["b"])
    assert messages.write(shelf) == {"shelfName": "a", "books": ["b"]}
    assert messages.write(Shelf("a", height=2)) == {"shelfName": "a", "books": [], "height": "2"}


# ---- times ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4 * 10**15))
def test_a_time_goes_to_text_and_back_and_texts_sort_as_times(micros):
    told = wire.timestamp(micros / 1e6)
    assert len(told) == 27
    assert wire.parse_timestamp(told) == micros / 1e6
    assert told < wire.timestamp((micros + 1) / 1e6)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T01:00:00.000000000Z", 3600.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01t00:00:00.5z", 0.5),
        ("1970-01-01T00:00:00.123456789Z", 0.123456),
    ],
)
def test_these_are_times(told, seconds):
    assert wire.parse_timestamp(told) == seconds


@pytest.mark.parametrize(
    "told", ["", "now", "2026-11-01", "2026-13-01T00:00:00Z", "2026-11-01T00:00:00", "0", "٢" * 20]
)
def test_these_are_not_times(told):
    with pytest.raises(ValueError, match=r"^Expected a time such as"):
        wire.parse_timestamp(told)


@pytest.mark.parametrize(
    ("seconds", "told"), [(7200, "7200s"), (1.5, "1.5s"), (0, "0s"), (-0.0, "0s"), (1e-9, "0.000000001s")]
)
def test_a_duration_goes_to_text_and_back(seconds, told):
    assert wire.duration(seconds) == told
    assert wire.parse_duration(told) == seconds


@pytest.mark.parametrize("told", ["", "7200", "s", "2h", "1.s", "1e3s", "infs", " 1s"])
def test_these_are_not_durations(told):
    with pytest.raises(ValueError, match=r"^Expected a duration"):
        wire.parse_duration(told)


# ---- pages ----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    created: float
    name: str


@given(st.lists(st.tuples(st.floats(0, 1e9), text), unique=True, max_size=30).map(sorted), st.integers(1, 7))
def test_pages_show_every_row_once_and_in_order(keys, size):
    rows, shown, query = [Row(*key) for key in keys], [], {"pageSize": str(size)}
    while True:
        after = wire.page_key(query, tuple[float, str])
        rest = [row for row in rows if after is None or (row.created, row.name) > after]
        limit = wire.page_size(query)
        page = wire.page("jobs", rest[: limit + 1], limit, lambda row: (row.created, row.name), lambda row: row.name)
        shown += page.get("jobs", [])
        if "nextPageToken" not in page:
            break
        assert set(page["nextPageToken"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        query = {**query, "pageToken": page["nextPageToken"]}
    assert shown == [row.name for row in rows]


def test_a_list_of_nothing_is_an_empty_object():
    assert wire.page("jobs", [], 20, lambda row: (row,), str) == {}


@pytest.mark.parametrize(("told", "size"), [(None, 20), ("", 20), ("0", 20), ("7", 7), ("100", 100), ("5000", 100)])
def test_a_page_is_as_large_as_asked_up_to_a_hundred(told, size):
    assert wire.page_size({} if told is None else {"pageSize": told}) == size


@pytest.mark.parametrize("told", ["-1", "many", "1.5", " 1", "9" * 30])
def test_a_page_size_that_is_none_is_refused(told):
    with pytest.raises(errors.InvalidArgument, match="Field: pageSize Error: Expected a whole number from 1 to 100"):
        wire.page_size({"pageSize": told})


@pytest.mark.parametrize("token", ["x", "!!!", "e30", "WzFd", "WzEsMl0", "ü", wire.page_token(("a", "b"))])
def test_a_page_token_that_we_never_gave_is_refused(token):
    with pytest.raises(errors.InvalidArgument, match="Field: pageToken Error: Expected the nextPageToken"):
        wire.page_key({"pageToken": token}, tuple[float, str])


# ---- masks ----------------------------------------------------------------------------------------------------------

ALLOWED = ("description", "defaultVersion.name", "autoScaling.minNodes", "labels")


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("description", ("description",)),
        ("default_version.name,labels", ("defaultVersion.name", "labels")),
        ("autoScaling.minNodes, auto_scaling.min_nodes,", ("autoScaling.minNodes",)),
    ],
)
def test_a_mask_is_spelled_either_way(told, named):
    assert wire.mask(told, ALLOWED) == named


@pytest.mark.parametrize("told", ["", ",", " "])
def test_a_mask_says_something(told):
    with pytest.raises(errors.InvalidArgument, match="Say which fields to update"):
        wire.mask(told, ALLOWED)


def test_a_mask_names_what_may_be_updated_only():
    with pytest.raises(errors.InvalidArgument) as caught:
        wire.mask("name,labels,default_version", ALLOWED)
    offered = "Can be updated: autoScaling.minNodes, defaultVersion.name, description, labels."
    assert caught.value.faults == (
        ("updateMask", f'"name" cannot be updated. {offered}'),
        ("updateMask", f'"default_version" cannot be updated. {offered}'),
    )


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_is_told_as_google_rpc_tells_it():
    assert wire.ml_body(errors.NotFound("No job train_1.")) == {
        "error": {"code": 404, "message": "No job train_1.", "status": "NOT_FOUND"}
    }
    assert wire.ml_body(errors.InvalidArgument(faults=[("jobId", "Taken."), ("labels", "Too many.")])) == {
        "error": {
            "code": 400,
            "message": "Field: jobId Error: Taken. Field: labels Error: Too many.",
            "status": "INVALID_ARGUMENT",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.BadRequest",
                    "fieldViolations": [
                        {"field": "jobId", "description": "Taken."},
                        {"field": "labels", "description": "Too many."},
                    ],
                }
            ],
        }
    }


def test_the_same_error_is_told_as_cloud_storage_tells_it():
    assert wire.storage_body(errors.NotFound("No bucket b.")) == {
        "error": {
            "code": 404,
            "message": "No bucket b.",
            "errors": [{"domain": "global", "reason": "notFound", "message": "No bucket b."}],
        }
    }
