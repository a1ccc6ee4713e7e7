"""Event files, as TensorBoard's own writer writes them, read without it."""

from __future__ import annotations

import random
import struct
import subprocess
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import summaries


@pytest.fixture(scope="module")
def events(tmp_path_factory, runtime_python):
    """The files of both of TensorFlow's writers, of one tag among others."""
    folder = tmp_path_factory.mktemp("events")
    code = f"""
        import tensorflow as tf
        with tf.summary.create_file_writer({str(folder / "two")!r}).as_default():
            for step in range(5):
                tf.summary.scalar("loss", 1.0 / (step + 1), step=step)
                tf.summary.scalar("other", 7.0, step=step)
                tf.summary.histogram("loss_of_layers", tf.range(100.0), step=step)
                tf.summary.scalar("exact", tf.constant(0.1, tf.float64), step=step)
        with tf.compat.v1.Graph().as_default(), tf.compat.v1.summary.FileWriter({str(folder / "one")!r}) as writer:
            for step in (3, 1 << 40):
                value = tf.compat.v1.Summary.Value(tag="loss", simple_value=0.25 * step % 8)
                writer.add_summary(tf.compat.v1.Summary(value=[value]), step)
    """
    subprocess.run([str(runtime_python), "-c", textwrap.dedent(code)], check=True, capture_output=True)
    return {each.name: next(each.glob("*tfevents*")).read_bytes() for each in folder.iterdir()}


@pytest.mark.runtime
def test_scalars_of_both_writers_are_read_by_their_tag(events):
    assert list(summaries.scalars(events["two"], "loss")) == [
        (step, struct.unpack("<f", struct.pack("<f", 1.0 / (step + 1)))[0]) for step in range(5)
    ]
    assert next(iter(summaries.scalars(events["two"], "exact"))) == (0, pytest.approx(0.1, rel=1e-7))
    assert list(summaries.scalars(events["one"], "loss")) == [(3, 0.75), (1 << 40, 0.0)]
    assert list(summaries.scalars(events["two"], "loss_of_layers")) == []
    assert list(summaries.scalars(events["two"], "los")) == []


@pytest.mark.runtime
def test_a_file_that_is_being_written_gives_what_is_whole(events):
    whole = list(summaries.scalars(events["two"], "loss"))
    for end in range(0, len(events["two"]), 97):
        found = list(summaries.scalars(events["two"][:end], "loss"))
        assert found == whole[: len(found)]


@pytest.mark.runtime
def test_a_broken_file_breaks_nothing(events):
    chance = random.Random(1)
    for _ in range(300):
        broken = bytearray(events["two"])
        for _ in range(5):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        assert all(isinstance(step, int) for step, _ in summaries.scalars(bytes(broken), "loss"))


@given(st.binary(max_size=400))
def test_what_is_no_event_file_has_no_scalars(data):
    record = struct.pack("<Q", len(data)) + b"crcs" + data + b"crcs"
    for found in (summaries.scalars(data, ""), summaries.scalars(record, "")):
        assert all(isinstance(value, float) for _, value in found)
