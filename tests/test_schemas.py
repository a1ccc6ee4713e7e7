import json

import msgspec
import pytest

from taxiway import schemas
from taxiway.api import messages, shapes

EVERY = sorted(schemas.MESSAGES.values(), key=schemas.wire_id)


@pytest.mark.parametrize("kind", EVERY, ids=schemas.wire_id)
def test_a_message_can_be_made_of_nothing_and_then_says_nothing(kind):
    assert messages.write(kind()) == {}
    assert msgspec.json.encode(kind()) == b"{}"


@pytest.mark.parametrize("kind", EVERY, ids=schemas.wire_id)
def test_every_field_is_described_in_a_short_sentence_of_one_line(kind):
    assert kind.__doc__
    for member in shapes.members(kind):
        assert 3 <= len(member.description) <= 100, f"{kind.__name__}.{member.name}"
        assert "\n" not in member.description


def test_a_schema_s_name_is_that_of_google_s_document():
    assert schemas.wire_id(schemas.Job) == "GoogleCloudMlV1__Job"
    assert schemas.wire_id(schemas.StudyMetricSpec) == "GoogleCloudMlV1_StudyConfig_MetricSpec"
    assert schemas.wire_id(schemas.Policy) == "GoogleIamV1__Policy"
    assert len(schemas.MESSAGES) == 86


def test_a_message_does_not_change_and_takes_no_positions():
    job = schemas.Job(job_id="train_1")
    with pytest.raises(AttributeError):
        job.job_id = "train_2"
    with pytest.raises(TypeError):
        schemas.Job("train_1")


def test_a_message_rests_as_json_and_comes_back_the_same():
    job = schemas.Job(
        job_id="train_1",
        create_time=1793525400.25,
        etag=b"\x00\x01",
        labels={"owner": "ann"},
        training_input=schemas.TrainingInput(
            worker_count=2**62, args=("--epochs", "3"), scheduling=schemas.Scheduling(max_running_time=7200.0)
        ),
    )
    rested = msgspec.json.encode(job)
    assert msgspec.json.decode(rested, type=schemas.Job) == job
    assert json.loads(rested)["trainingInput"]["workerCount"] == 2**62
