"""The command line by itself: words, packages, printing; no server."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperGroup
from typer.main import get_command

from taxiway import errors
from taxiway.address import Address
from taxiway.cli import app, client, copying, host, objects, packaging, policies, predict, printing, tail

HERE = Address(
    pid=1,
    url="http://127.0.0.1:8080",
    tls_port=8443,
    proxy_port=8081,
    project="taxiway",
    project_number=12,
    owner="owner@example.com",
    service_agent="agent@example.com",
    access_token="/h/token",
    key="/h/key.json",
    boto="/h/boto",
    bundle="/h/bundle.pem",
)


def taxiway(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    command = [sys.executable, "-m", "taxiway", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**kept, **environ})


def commands(command, words=()):
    if not isinstance(command, TyperGroup):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands(get_command(app.app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_says_what_it_does_and_shows_an_example(words):
    command = COMMANDS[words]
    assert command.help
    assert f"taxiway {' '.join(words)}" in command.epilog
    for option in command.params:
        assert getattr(option, "help", "") or option.param_type_name == "argument", f"{words}: {option.name}"


def test_help_goes_to_standard_output_and_is_no_error():
    shown = taxiway("jobs", "submit", "training", "--help")
    assert shown.returncode == 0
    assert "--module-name" in shown.stdout
    assert "Example:\n" in shown.stdout


def test_what_is_typed_wrong_ends_with_2_and_no_traceback(tmp_path):
    for words in (
        ["nonsense"],
        ["predict", "--model"],
        ["jobs", "submit", "training", "j"],
        ["storage", "ls", "--what"],
    ):
        ended = taxiway(*words, TAXIWAY_HOME=str(tmp_path))
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "Traceback" not in ended.stderr


def test_without_a_server_a_sentence_says_how_to_start_one(tmp_path):
    ended = taxiway("jobs", "list", TAXIWAY_HOME=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("ERROR: (taxiway.jobs.list) No server has been started")
    assert "taxiway up" in ended.stderr


def test_env_prints_nothing_that_a_shell_could_run_when_no_server_runs(tmp_path):
    ended = taxiway("env", "--home", str(tmp_path / "none"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "taxiway up --home" in ended.stderr


def test_env_never_makes_clients_anonymous_nor_takes_over_the_shell():
    given_to_shell = host.variables(HERE, Path("/h"))
    forbidden = {"STORAGE_EMULATOR_HOST", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
    assert not forbidden & set(given_to_shell)
    assert given_to_shell["CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"] == "http://127.0.0.1:8080/storage/v1/"
    assert given_to_shell["CLOUDSDK_AI_PLATFORM_REGION"] == "global"


def test_run_sends_a_commands_requests_through_the_proxy_and_trusts_the_authority():
    given_to_command = host.interception(HERE)
    assert given_to_command["https_proxy"] == given_to_command["HTTPS_PROXY"] == "http://127.0.0.1:8081"
    assert "127.0.0.1" in given_to_command["no_proxy"]
    assert given_to_command["CURL_CA_BUNDLE"] == given_to_command["SSL_CERT_FILE"] == "/h/bundle.pem"


# --- packages


def unpacked(package: packaging.Package) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(package.content)) as archive:
        return {entry.name.partition("/")[2]: archive.extractfile(entry).read() for entry in archive}


@pytest.fixture
def trainer(tmp_path):
    folder = tmp_path / "code" / "trainer"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "task.py").write_text("print('hi')\n")
    (folder / "data" / "words.txt").write_text("a b\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "task.pyc").touch()
    return folder


def test_a_package_without_setup_py_gets_one_that_names_its_packages_and_data(trainer):
    package = packaging.build(trainer)
    files = unpacked(package)
    assert package.file == "trainer-0.0.0.tar.gz"
    assert set(files) == {"PKG-INFO", "setup.py", "trainer/__init__.py", "trainer/task.py", "trainer/data/words.txt"}
    assert b"packages=['trainer'], package_data={'trainer': ['data/words.txt']}" in files["setup.py"]


def test_the_same_files_make_the_same_bytes(trainer):
    first = packaging.build(trainer)
    os.utime(trainer / "task.py", (1, 1))
    assert packaging.build(trainer) == first


def test_a_setup_py_goes_along_with_what_it_may_read_and_not_with_the_data_beside_it(trainer):
    beside = trainer.parent
    (beside / "setup.py").write_text("from setuptools import setup\nsetup(long_description=open('README.md').read())\n")
    (beside / "README.md").write_text("rides\n")
    (beside / "taxi-train.csv").write_text("1,2\n")
    (beside / ".secret").touch()
    package = packaging.build(trainer)
    names = {"setup.py", "README.md", "trainer/__init__.py", "trainer/task.py", "trainer/data/words.txt"}
    assert set(unpacked(package)) == names
    assert package.file == "trainer.tar.gz"  # without a version: it is for setup.py to say


def test_a_pyproject_that_only_configures_tools_does_not_replace_setup_py(trainer):
    (trainer.parent / "pyproject.toml").write_text("[tool.ruff]\n")
    assert "setup.py" in unpacked(packaging.build(trainer))
    (trainer.parent / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert "setup.py" not in unpacked(packaging.build(trainer))


def test_a_folder_without_init_py_is_refused_and_the_package_inside_is_named(trainer):
    with pytest.raises(errors.InvalidArgument, match=r"no __init__\.py\. Did you mean .*trainer\?"):
        packaging.build(trainer.parent)
    with pytest.raises(errors.InvalidArgument, match="not a folder"):
        packaging.build(trainer / "nothing")


def test_a_module_that_the_package_does_not_have_is_refused_with_those_it_has(trainer):
    packaging.check_module(trainer, "trainer.task")
    packaging.check_module(trainer, "elsewhere.task")  # may come from another package
    with pytest.raises(errors.InvalidArgument, match=r"no module trainer\.tsk\. It has: trainer\.task"):
        packaging.check_module(trainer, "trainer.tsk")


# --- printing


def test_yaml_is_written_as_gcloud_writes_it():
    value = {"state": "FAILED", "count": 3, "version": "2.21", "when": "2030-01-31T00:00:00Z", "empty": {}, "on": "on"}
    value |= {"args": ["--x", "gs://b/o"], "nested": {"flag": True, "rows": [{"a": 1, "b": None}]}, "m": "it's: so"}
    assert printing.yaml(value).splitlines() == [
        "args:",
        "- '--x'",
        "- gs://b/o",
        "count: 3",
        "empty: {}",
        "m: 'it''s: so'",
        "nested:",
        "  flag: true",
        "  rows:",
        "  - a: 1",
        "    b: null",
        "'on': 'on'",
        "state: FAILED",
        "version: '2.21'",
        "when: '2030-01-31T00:00:00Z'",
    ]


def test_a_text_of_several_lines_stays_readable_and_control_characters_are_escaped():
    assert printing.yaml({"e": "Traceback\n  line\nValueError: x"}).splitlines()[:2] == ["e: |-", "  Traceback"]
    assert "\x1b" not in printing.yaml({"e": "\x1b[2J"})


@given(st.text(max_size=30))
def test_a_yaml_string_never_spoils_the_structure_around_it(text):
    lines = printing.yaml({"a": text, "b": 1}).split("\n")
    assert lines[-1] == "b: 1"
    assert lines[0].startswith("a: ")
    assert all(line.startswith("  ") or not line for line in lines[1:-1])


def test_tables_have_upper_case_heads_and_aligned_columns():
    assert printing.table(["name", "n"], [["a_long_one", 1], ["b", None]]) == "NAME        N\na_long_one  1\nb"


def test_predictions_that_are_objects_make_a_table_and_others_one_column():
    rows = [{"fare": [11.05], "class": "a"}, {"fare": [2.0], "class": "b"}]
    assert predict.shown({"predictions": rows}, None) == "CLASS  FARE\na      [11.05]\nb      [2.0]"
    assert predict.shown({"predictions": [[11.05]]}, None) == "PREDICTIONS\n[11.05]"


def test_a_log_line_has_gclouds_columns_and_one_line_for_each_of_its_message():
    line = {
        "severity": "ERROR",
        "timestamp": "2030-01-31T00:00:00.123456789Z",
        "taskName": "master-replica-0",
        "trialId": "3",
        "message": "one\ntwo",
    }
    first, second = tail.lines(line)
    assert re.fullmatch(r"ERROR\t20\d\d-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\tmaster-replica-0\t3\tone", first)
    assert second.endswith("\t3\ttwo")


@given(st.lists(st.text(max_size=9), max_size=6), st.integers(1, 7))
def test_events_are_the_same_however_a_stream_is_cut_and_an_unfinished_one_is_none(texts, size):
    blocks = [f"id: {index}\ndata: {json.dumps([text])}\n\n" for index, text in enumerate(texts)]
    stream = "".join(["retry: 1000\n\n", ":\n\n", *blocks, "event: end\ndata: {}\n\n", "data: [1"]).encode()
    cut = (stream[start : start + size] for start in range(0, len(stream), size))
    *found, last = tail.events(cut)
    assert [(event.kind, event.id, event.data) for event in found] == [
        ("message", str(index), [text]) for index, text in enumerate(texts)
    ]
    assert last == tail.Event("end", "", {})


# --- instances


def test_instances_may_begin_with_a_byte_order_mark_and_an_empty_line_is_named(tmp_path):
    file = tmp_path / "i.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\n')
    assert list(predict._json_lines(str(file))) == [{"a": 1}, {"a": 2}]
    for content, told in [
        ('{"a": 1}\n\n{"a": 2}\n', r"Line 2 of .*i\.json is empty"),
        ('{"a": 1}\n{"a": }\n', r"Line 2 of .*i\.json is not JSON"),
        ("NaN\n", "NaN is no JSON number"),
        ("", "is empty"),
    ]:
        file.write_text(content)
        with pytest.raises(errors.InvalidArgument, match=told):
            list(predict._json_lines(str(file)))


# --- wildcards


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.csv", "a.csv", True),
        ("*.csv", "d/a.csv", False),
        ("**.csv", "d/e/a.csv", True),
        ("d/**", "d/e/f", True),
        ("**/a.csv", "a.csv", True),
        ("**/a.csv", "d/e/a.csv", True),
        ("d/**/a.csv", "d/a.csv", True),
        ("a?c", "a/c", False),
        ("a[0-9].csv", "a7.csv", True),
        ("a[!0-9].csv", "a7.csv", False),
        ("a[.csv", "a[.csv", True),
        ("[?--]", "[?--]", True),
        ("[+--]", "-", True),
        ("[a-]", "-", True),
        ("[a||]", "|", True),
        ("[\\d]", "d", True),
        ("a.csv", "abcsv", False),
    ],
)
def test_one_star_stays_within_a_folder_and_two_do_not(pattern, name, matches):
    assert bool(re.fullmatch(objects._regex(pattern), name)) is matches


@given(st.text(alphabet="ab/.[]!^-\\*?", max_size=12), st.text(alphabet="ab/.[]-\\", max_size=12))
def test_every_pattern_is_a_valid_expression_and_matches_only_what_its_literal_start_lists(pattern, name):
    if re.fullmatch(objects._regex(pattern), name):
        assert name.startswith(objects._literal(pattern)) or "**/" in pattern


def test_a_bucket_cannot_be_a_wildcard_and_a_bad_one_is_named():
    with pytest.raises(errors.InvalidArgument, match="cannot have wildcards"):
        objects.parse("gs://b*/x")
    with pytest.raises(errors.InvalidArgument, match="UPPER"):
        objects.parse("gs://UPPER/x")


def test_an_objects_name_cannot_lead_out_of_the_folder_it_is_copied_to(tmp_path):
    evil = objects.Found("rides", "../../.bashrc", {"name": "../../.bashrc", "size": "1"})
    with pytest.raises(errors.InvalidArgument, match="leads out of"):
        copying._stay_inside(tmp_path / "../../.bashrc", tmp_path, evil)


# --- policies and errors


def test_a_member_is_granted_once_and_taken_back_without_an_empty_binding():
    granted = policies.with_member({"etag": "e", "bindings": []}, "user:a", "roles/x")
    assert policies.with_member(granted, "user:a", "roles/x") == granted
    assert policies.without_member(granted, "user:a", "roles/x") == {"etag": "e", "bindings": []}
    with pytest.raises(errors.NotFound, match="user:b"):
        policies.without_member(granted, "user:b", "roles/x")


def test_every_shape_of_googles_errors_is_read():
    assert client.error_of({"error": {"code": 404, "status": "NOT_FOUND", "message": "m"}}) == ("NOT_FOUND", "m")
    assert client.error_of({"error": {"code": 9, "message": "m"}}) == ("FAILED_PRECONDITION", "m")
    assert client.error_of({"error": "Prediction failed"}) == ("", "Prediction failed")
    assert client.error_of({"done": True}) is None
