"""The log: lines are kept once, in order, and never behind somebody's cursor; Logging's filters find them."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway import errors
from taxiway.compute import filters, logs
from taxiway.handles import Said

PROJECT = "rides-1"
NOW = 1_800_000_000.0


def line(seq, message="", severity="INFO", at=NOW, task="master-replica-0", number=1):
    return logs.line(number, task, Said(seq, at, severity, message or f"line {seq}"))


def page(db, text="", **rest):
    return logs.page(db, [PROJECT], filters.sql(text), **{"limit": 100_000, **rest})


def messages(db, text="", **rest):
    return [entry.message for entry in page(db, text, **rest)]


def test_a_line_that_is_sent_again_is_kept_once(db):
    for batch in ([1, 2], [2, 3], [1, 2, 3, 4]):
        logs.append(db, PROJECT, "j", [line(seq) for seq in batch], now=NOW)
    assert messages(db) == ["line 1", "line 2", "line 3", "line 4"]


def test_each_job_task_and_attempt_counts_its_own_lines(db):
    logs.append(db, PROJECT, "j", [line(1, "first")], now=NOW)
    logs.append(db, PROJECT, "k", [line(1, "other job")], now=NOW)
    logs.append(db, PROJECT, "j", [line(1, "other task", task="worker-replica-0")], now=NOW)
    logs.append(db, PROJECT, "j", [line(1, "second attempt", number=2)], now=NOW)
    assert messages(db, 'resource.labels.job_id="j"') == ["first", "other task", "second attempt"]


def test_a_trials_lines_bear_its_number_and_can_be_asked_for(db):
    for trial in ("1", "2"):
        said = logs.line(1, "master-replica-0", Said(int(trial), NOW, "INFO", f"trial {trial}"), trial)
        logs.append(db, PROJECT, "j", [said], now=NOW)
    assert [entry.trial for entry in page(db)] == ["1", "2"]
    assert messages(db, 'labels."ml.googleapis.com/trial_id"="2"') == ["trial 2"]


def test_stamps_have_nine_digits_and_grow_within_one_moment(db):
    logs.append(db, PROJECT, "j", [line(seq) for seq in range(1, 50)], now=NOW)
    stamps = [entry.timestamp for entry in page(db)]
    assert all(len(stamp) == len("2027-01-15T08:00:00.000000000Z") for stamp in stamps)
    assert stamps == sorted(set(stamps))


def test_a_line_of_a_while_ago_is_stamped_with_its_arrival_and_keeps_when_it_was_written(db):
    logs.append(db, PROJECT, "j", [line(1, at=NOW - 60)], now=NOW)
    (entry,) = page(db)
    assert (entry.timestamp, entry.created) == (logs.stamp(round(NOW * 1e9)), NOW - 60)


def test_what_piled_up_while_the_server_was_away_stays_in_order(db):
    # Some of these are late and are stamped anew, the others are not: the late ones were written before them.
    piled = [line(seq, at=NOW - 8 + seq / 10) for seq in range(1, 80)]
    for at in range(0, 80, 30):
        logs.append(db, PROJECT, "j", piled[at : at + 30], now=NOW + at / 100)
    assert messages(db) == [f"line {seq}" for seq in range(1, 80)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(-20, 2), st.floats(-3, 10), st.sampled_from(["service", "a", "b"])), max_size=12))
def test_no_line_ever_appears_behind_the_last_one_that_was_seen(db, arrivals):
    """Whatever the clocks do: what arrives later stands later, so a cursor that follows misses nothing."""
    subject = f"j{time.time_ns()}"
    cursor, now = ("", ""), NOW
    for seq, (written, pause, task) in enumerate(arrivals, 1):
        now += pause
        logs.append(db, PROJECT, subject, [line(seq, at=now + written, task=task)], now=now)
        fresh = page(db, f'resource.labels.job_id="{subject}"', after=cursor)
        assert [entry.message for entry in fresh] == [f"line {seq}"]
        cursor = (fresh[-1].timestamp, fresh[-1].insert_id)


def test_twenty_thousand_lines_go_in_by_batches_and_come_out_by_pages(db):
    for first in range(0, 20_000, 1000):
        logs.append(db, PROJECT, "j", [line(seq, at=NOW) for seq in range(first, first + 1000)], now=NOW)
    found, after = [], None
    while entries := page(db, 'resource.labels.job_id="j"', after=after, limit=1000):
        found += [entry.message for entry in entries]
        after = (entries[-1].timestamp, entries[-1].insert_id)
    assert found == [f"line {seq}" for seq in range(20_000)]


def test_pages_go_backwards_too(db):
    logs.append(db, PROJECT, "j", [line(seq) for seq in range(1, 6)], now=NOW)
    first = page(db, newest_first=True, limit=2)
    rest = page(db, newest_first=True, after=(first[-1].timestamp, first[-1].insert_id))
    assert [entry.message for entry in first + rest] == ["line 5", "line 4", "line 3", "line 2", "line 1"]


def test_gclouds_way_of_following_sees_every_line_once_while_they_are_written(db):
    """Its very filter and its very bookkeeping (command_lib/logs/stream.py), without its five seconds' wait."""
    written = 600

    def write():
        for seq in range(1, written + 1):
            logs.append(db, PROJECT, "j", [line(seq, at=time.time())], now=time.time())

    writer = threading.Thread(target=write)
    writer.start()
    low, position, seen = 'timestamp>="1970-01-01T01:00:00.000000000Z"', ("1970-01-01T01:00:00.000000000Z", ""), []
    base = '(resource.type="ml_job" OR resource.type="cloudml_job") AND resource.labels.job_id="j"'
    while True:
        last_round = not writer.is_alive()
        for entry in page(db, f'{base} AND {low} AND timestamp<"2099-01-01T00:00:00.000000+00:00"', limit=1000):
            if (entry.timestamp, entry.insert_id) > position:
                seen.append(entry.message)
                position = (entry.timestamp, entry.insert_id)
        low = f'((timestamp="{position[0]}" AND insertId>"{position[1]}") OR timestamp>"{position[0]}")'
        if last_round:
            break
    assert seen == [f"line {seq}" for seq in range(1, written + 1)]


@pytest.fixture
def some(db):
    logs.append(db, PROJECT, "j", [line(1, "starts", "INFO", NOW), line(2, "hm (a)", "WARNING", NOW + 1)], now=NOW + 1)
    logs.append(db, PROJECT, "j", [line(1, "is queued", task="service", number=0, at=NOW + 2)], now=NOW + 2)
    logs.append(db, PROJECT, "k", [line(1, 'said "no" 100%', "ERROR", NOW + 3)], now=NOW + 3)
    return db


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["starts", "hm (a)", "is queued", 'said "no" 100%']),
        ('(resource.type="ml_job" OR resource.type="cloudml_job") AND resource.labels.job_id="k"', ['said "no" 100%']),
        (
            (
                '(resource.type="ml_job" OR resource.type="cloudml_job") AND resource.labels.job_id="j"'
                ' AND (resource.labels.task_name="service" OR labels.task_name="service")'
                ' AND timestamp>="1970-01-01T01:00:00.000000000Z" AND timestamp<"2027-01-15T08:00:10.000000+00:00"'
            ),
            ["is queued"],
        ),
        ('resource.type="gce_instance"', []),
        ('resource.type:"ml"', ["starts", "hm (a)", "is queued", 'said "no" 100%']),
        ("severity>=WARNING", ["hm (a)", 'said "no" 100%']),
        ("severity=info resource.labels.job_id=j", ["starts", "is queued"]),
        ('jsonPayload.message:"(a)"', ["hm (a)"]),
        ('textPayload:"100%"', ['said "no" 100%']),
        ('jsonPayload.message:"%s"', []),
        (r'jsonPayload.message="said \"no\" 100%"', ['said "no" 100%']),
        ('NOT resource.labels.job_id="j"', ['said "no" 100%']),
        ('-resource.labels.job_id="j"', ['said "no" 100%']),
        ('labels."ml.googleapis.com/job_id"="k"', ['said "no" 100%']),
        ('resource.labels.job_id="k" OR (severity=WARNING AND insertId>"0")', ["hm (a)", 'said "no" 100%']),
        ('resource.labels.job_id="k" OR resource.labels.job_id="j" AND severity=WARNING', ["hm (a)"]),
        ('severity=WARNING resource.labels.job_id="j" OR resource.labels.job_id="k"', ["hm (a)"]),
        ('timestamp="2027-01-15T08:00:01Z"', ["hm (a)"]),
        ('timestamp>"2027-01-15T10:00:01+02:00" AND timestamp<="2027-01-15T08:00:02.0Z"', ["is queued"]),
        ('timestamp<"2027-01-15"', []),
    ],
)
def test_filters_find_what_they_say(some, text, expected):
    assert messages(some, text) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("resource.labels.job_id=", "expected a value"),
        ("resource.labels.job_id", "expected a comparison after resource.labels.job_id"),
        ('(severity="INFO"', r"expected \)"),
        ('severity="LOUD"', "LOUD is no severity; there are DEFAULT"),
        ("resource.labels.jobid=a", "resource.labels.jobid is no field that can be asked for"),
        ('a="b" AND', "a is no field"),
        ('severity="INFO" AND', "expected a field"),
        ('timestamp>"yesterday"', "yesterday is no time"),
        ('timestamp>"2027-13-01T00:00:00Z"', "is no time"),
        ('severity="INFO', "cannot be read"),
        ("(" * 1000, "goes deeper than 50"),
        ("severity=INFO OR " * 999 + "severity=INFO", "more than 300 comparisons"),
        ("a" * 20_001, "20000 characters at most"),
    ],
)
def test_a_filter_that_is_not_understood_is_refused_with_the_place(text, word):
    with pytest.raises(errors.InvalidArgument, match=f"Field: filter Error: .*{word}"):
        filters.sql(text)


@given(st.text(alphabet='ab=<>:()|-"\\ .ORNTAD1', max_size=60))
def test_any_text_is_a_filter_or_is_refused(text):
    try:
        filters.sql(text)
    except errors.InvalidArgument as error:
        fault = error.faults[0]
    else:
        fault = ("filter", "")
    assert fault[0] == "filter"


def test_the_longest_filter_is_not_too_much_for_the_database(some):
    assert len(messages(some, " OR ".join(["severity=INFO"] * 300))) == 2
