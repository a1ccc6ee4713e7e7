"""The filter of jobs.list: what it finds, and what it refuses by its place."""

from __future__ import annotations

import pytest

from taxiway import errors
from taxiway.api import wire
from taxiway.iam import projects
from taxiway.jobs import queue, selection
from taxiway.jobs.states import State
from taxiway.schemas import TrainingInput

PROJECT = "rides-1"
JOBS = {
    "rnn_1": ({"owner": "ann"}, State.FAILED),
    "rnn_2": ({"owner": "bob", "phase": ""}, State.SUCCEEDED),
    "RNN_3": ({}, State.QUEUED),
    "dnn": ({"owner": "ann", "schöne-größe": "x"}, State.CANCELLED),
}
FIRST = 1_800_000_000.1234567


@pytest.fixture
def db(db):
    db.write(lambda tx: projects.create(tx, PROJECT, owners=["user:o@x.org"], now=0))
    for hour, (job, (labels, state)) in enumerate(JOBS.items()):
        told = TrainingInput(python_module="trainer.task")
        queue.create(db, PROJECT, job, told, labels, creator="user:o", now=FIRST + 3600 * hour)
        for to in {State.QUEUED: (), State.CANCELLED: (State.CANCELLED,)}.get(state, (State.PREPARING, "run", state)):
            change = {"started": FIRST + 7200.0} if to == "run" else {}
            to = State.RUNNING if to == "run" else to
            db.write(lambda tx, job=job, to=to, change=change: queue.move(tx, PROJECT, job, to, **change))
    return db


def found(db, text):
    return {job.id for job in queue.newest(db, PROJECT, limit=9, having=selection.sql(text))}


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        ("", set(JOBS)),
        ("jobId:rnn* AND state:FAILED", {"rnn_1"}),
        ("jobId:rnn*", {"rnn_1", "rnn_2"}),  # ids differ by case
        ("jobId:rnn", set()),  # a whole id, or a * says that there is more
        ("jobId=*_*", {"rnn_1", "rnn_2", "RNN_3"}),
        ("jobId:*nn*", {"rnn_1", "rnn_2", "dnn"}),
        ("jobId:rnn_?", set()),  # only * stands for anything
        ("jobId:[rd]nn*", set()),
        ("jobId!=rnn*", {"RNN_3", "dnn"}),
        ('jobId="dnn"', {"dnn"}),
        ("state=failed OR state=QUEUED", {"rnn_1", "RNN_3"}),
        ("state!=FAILED", {"rnn_2", "RNN_3", "dnn"}),
        ("state:*ED", {"rnn_1", "rnn_2", "RNN_3", "dnn"}),
        ("NOT (state:FAILED OR state:SUCCEEDED)", {"RNN_3", "dnn"}),
        ("-state:FAILED labels.owner:ann", {"dnn"}),  # side by side: both
        ("labels.owner=ann", {"rnn_1", "dnn"}),
        ("labels.owner!=ann", {"rnn_2", "RNN_3"}),  # who has none is not ann
        ("NOT labels.owner=ann", {"rnn_2", "RNN_3"}),
        ("labels.owner:*", {"rnn_1", "rnn_2", "dnn"}),
        ("NOT labels.owner:*", {"RNN_3"}),
        ("labels.phase:*", {"rnn_2"}),
        ('labels.phase=""', {"rnn_2"}),
        ("labels.schöne-größe=x", {"dnn"}),
        ('labels."owner"=bob', {"rnn_2"}),
        ("labels.none.of.them=x", set()),
        (f'createTime<="{wire.timestamp(FIRST)}"', {"rnn_1"}),
        (f'createTime="{wire.timestamp(FIRST + 3600)}"', {"rnn_2"}),
        (f'createTime>"{wire.timestamp(FIRST)}"', {"rnn_2", "RNN_3", "dnn"}),
        ('startTime>"2027-01-15"', {"rnn_1", "rnn_2"}),
        ('NOT startTime>"2027-01-15"', {"RNN_3", "dnn"}),  # those never started
        ('endTime>"2020-01-01T00:00:00+02:00"', set()),
    ],
)
def test_a_filter_finds_the_jobs_that_it_describes(db, text, jobs):
    assert found(db, text) == jobs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobId", ["expected a comparison after jobId", "at character 6"]),
        ("= x", ["expected a field, such as jobId", "at character 1"]),
        ("jobId:a AND", ["expected a field, such as jobId", "at character 12"]),
        ("(jobId:a", ["expected )"]),
        ("name:a", ["name is no field that can be asked for", "jobId, state, createTime", "labels.KEY"]),
        ("labels.:a", ["labels. is no field"]),
        ("state:FAILD", ["FAILD is no state of a job", "FAILED"]),
        ("jobId>a", ["jobId is compared by : = !=, and not by >"]),
        ("createTime>yesterday", ["yesterday is no time", '"2026-01-31T12:00:00Z"']),
        ("createTime>2026-01-31T12:00:00Z", ["2026-01-31T12 is no time", "in quotes"]),
        ("jobId:a " * 301, ["more than 300 comparisons"]),
        ("NOT " * 60 + "jobId:a", ["deeper than 50"]),
        ("x" * 20_001, ["20000 characters"]),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_by_its_place(text, words):
    with pytest.raises(errors.InvalidArgument) as refused:
        selection.sql(text)
    ((field, sentence),) = refused.value.faults
    assert field == "filter"
    assert [word for word in words if word not in sentence] == [], sentence


def test_pages_of_a_filter_go_on_where_the_last_one_ended(db):
    having = selection.sql("labels.owner:*")
    first = queue.newest(db, PROJECT, limit=2, having=having)
    rest = queue.newest(db, PROJECT, limit=2, before=first[-1].position, having=having)
    assert ([job.id for job in first], [job.id for job in rest]) == (["dnn", "rnn_2"], ["rnn_1"])
