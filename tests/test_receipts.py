"""Receipts: what is in one, how it is carried and kept, and how two of them are told apart."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors, plan, receipts
from taxiway.environments import runtimes
from taxiway.receipts import Environment, Receipt, Runtime
from taxiway.schemas import TrainingInput

ONE = Receipt(
    package={"trainer-0.0.0.tar.gz": "3f2a" + "0" * 60},
    runtime=Runtime("2.21", "3.11.7", "aa" * 32),
    module="trainer.task",
    args=["--train_steps", "3000", "--job-dir", "gs://rides/out"],
    environment=Environment({"trainer": "0.0.0", "numpy": "2.1.0"}, {"chief": 1}, "linux-x86_64"),
)
arguments = st.lists(st.text(max_size=8), max_size=6)


def changed(**fields):
    return msgspec.structs.replace(ONE, **fields)


def differences(one, two):
    return {part.name: part.differences for part in receipts.compare(one, two) if part.differences}


def test_a_line_of_a_log_carries_words_and_the_whole_receipt():
    line = receipts.line(ONE)
    assert line.startswith(f"Receipt {receipts.digest(ONE)}: package ")
    assert "runtime 2.21 on Python 3.11.7" in line
    assert receipts.parse(line) == ONE


@given(arguments)
def test_whatever_the_arguments_are_the_line_is_read_back(args):
    receipt = changed(args=args)
    assert receipts.parse(receipts.line(receipt)) == receipt


@pytest.mark.parametrize("line", ["", "Receipt", "Receipt of 12 fares: {}", "a receipt {", "{}", 'Receipt x: {"a": 1}'])
def test_other_lines_carry_none(line):
    assert receipts.parse(line) is None


def test_the_digest_is_of_the_canonical_json_and_of_nothing_else():
    again = msgspec.json.decode(json.dumps(json.loads(msgspec.json.encode(ONE)), sort_keys=True), type=Receipt)
    assert receipts.digest(again) == receipts.digest(ONE)
    turned = changed(package=dict(reversed([*ONE.package.items(), ("more.whl", "b" * 64)])))
    assert receipts.digest(turned) == receipts.digest(changed(package={**ONE.package, "more.whl": "b" * 64}))
    assert receipts.digest(changed(args=["--train_steps", "300"])) != receipts.digest(ONE)


def test_a_kept_receipt_is_its_owners_alone_and_is_found_by_its_name(tmp_path):
    home = tmp_path / "home"
    receipts.keep(home, ONE)
    file = receipts.path(home, f"local-{receipts.digest(ONE)}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert receipts.read(file) == ONE


def test_a_file_that_holds_none_is_named(tmp_path):
    (tmp_path / "other.json").write_text('{"instances": []}')
    with pytest.raises(errors.InvalidArgument, match=r"other\.json holds no receipt"):
        receipts.read(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("two", "expected"),
    [
        (ONE, {}),
        (
            changed(args=["--train_steps", "300", "--job-dir", "gs://rides/out"]),
            {"args": ["--train_steps 3000 | 300"]},
        ),
        (changed(args=["--train_steps", "3000"]), {"args": ["--job-dir gs://rides/out | -"]}),
        (changed(args=["--fast", *ONE.args]), {"args": ["- | --fast"]}),
        (changed(args=["--train_steps=3000", *ONE.args[2:]]), {"args": ["--train_steps 3000 | --train_steps=3000"]}),
        (changed(module="trainer.other"), {"args": ["module trainer.task | trainer.other"]}),
        (
            changed(package={"trainer-0.0.0.tar.gz": "77aa" + "0" * 60}),
            {"package": ["trainer-0.0.0.tar.gz: 3f2a0000… | 77aa0000…"]},
        ),
        (
            changed(package={**ONE.package, "more.whl": "b" * 64}),
            {"package": ["more.whl: - | bbbbbbbb…"]},
        ),
        (
            changed(runtime=Runtime("2.15", "3.10.13", "bb" * 32)),
            {"runtime": ["lock aaaaaaaa… | bbbbbbbb…", "python 3.11.7 | 3.10.13", "version 2.21 | 2.15"]},
        ),
        (
            changed(environment=Environment({"numpy": "2.2.0"}, {"chief": 1, "worker": 2}, "linux-aarch64")),
            {
                "environment": [
                    "numpy 2.1.0 | 2.2.0",
                    "trainer 0.0.0 | -",
                    "workers: - | 2",
                    "platform linux-x86_64 | linux-aarch64",
                ]
            },
        ),
    ],
)
def test_a_difference_names_the_thing_and_shows_both_sides(two, expected):
    assert differences(ONE, two) == expected
    assert list(differences(two, ONE)) == list(expected)


@given(arguments, arguments)
def test_receipts_are_the_same_exactly_if_no_part_differs(one, two):
    assert (differences(changed(args=one), changed(args=two)) == {}) == (one == two)


def test_a_receipt_holds_nothing_that_only_names_the_run(tmp_path):
    told = TrainingInput(scale_tier="BASIC", python_module="trainer.task", args=("-x",), runtime_version="2.21")
    archive = tmp_path / "trainer.tar.gz"
    archive.write_bytes(b"code")
    made = [
        receipts.of(work, runtimes.resolve("2.21", None), [archive], Path("/nowhere/bin/python"))
        for work in (
            *plan.training("first", 1, "job_1", told, runtime="2.21", python="3.11"),
            *plan.training("second", 2, "job_2", told, runtime="2.21", python="3.11"),
            *plan.local(told, project="third", python="3.11"),
        )
    ]
    assert made[0] == made[1] == made[2]
    assert made[0].environment.roles == {"chief": 1}
    assert made[0].args == ["-x"]


def test_every_replica_of_a_cluster_has_the_same_receipt(tmp_path):
    told = TrainingInput(
        scale_tier="CUSTOM",
        python_module="trainer.task",
        runtime_version="2.21",
        parameter_server_count=1,
        worker_count=2,
        evaluator_count=1,
    )
    archives = [tmp_path / str(number) / "trainer.tar.gz" for number in range(2)]
    for archive in archives:
        archive.parent.mkdir()
        archive.write_bytes(b"code")
    works = plan.local(told, project="p", python="3.11", start_port=5000)
    choice = runtimes.resolve("2.21", None)
    first, *rest = [receipts.of(work, choice, archives, Path("/nowhere/bin/python")) for work in works]
    assert rest == [first] * 4
    assert first.environment.roles == {"chief": 1, "ps": 1, "worker": 2, "evaluator": 1}
    assert list(first.package) == ["trainer.tar.gz", "trainer.tar.gz (2)"]
    assert receipts.digest(first) == receipts.digest(
        receipts.of(
            plan.local(told, project="q", python="3.11", start_port=6000)[2],
            choice,
            archives,
            Path("/nowhere/bin/python"),
        )
    )
