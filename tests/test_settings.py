"""Settings: read once, each from TAXIWAY_<NAME> or a flag; what nobody reads is an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from taxiway import errors, settings


def test_nothing_need_be_set():
    made = settings.read({})
    assert (made.host, made.port, made.project, made.jobs) == ("127.0.0.1", 8080, "taxiway", 0)
    assert made.home == Path.home() / ".taxiway"


def test_a_variable_sets_and_a_flag_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {"TAXIWAY_PORT": "9090", "TAXIWAY_HOME": "~/else", "TAXIWAY_BODY_MIB": "1", "PATH": "/bin"}
    assert settings.read(told).port == 9090
    assert settings.read(told).body_mib == 1
    assert settings.read(told).home == Path.home() / "else"
    made = settings.read(told, port=0, home=Path("here"), host=None)
    assert (made.port, made.home, made.host) == (0, tmp_path / "here", "127.0.0.1")


def test_an_empty_home_is_none():
    assert settings.read({"TAXIWAY_HOME": ""}).home == Path.home() / ".taxiway"


def test_a_name_that_nobody_reads_is_an_error_that_lists_them_all():
    with pytest.raises(errors.InvalidArgument) as refused:
        settings.read({"TAXIWAY_PROT": "9090"})
    told = str(refused.value)
    assert told.startswith("Field: TAXIWAY_PROT Error: is no setting. There are: ")
    for name in [*settings.OFFERED, *settings.ELSEWHERE]:
        assert name in told


def test_names_that_others_read_are_known():
    settings.read(dict.fromkeys(settings.ELSEWHERE, "x"))


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("TAXIWAY_PORT", "eighty", "is 'eighty', and must be a whole number from 0 to 65535"),
        ("TAXIWAY_PORT", "65536", "from 0 to 65535"),
        ("TAXIWAY_PORT", "-1", "whole number"),
        ("TAXIWAY_PORT", "8²", "whole number"),
        ("TAXIWAY_PORT", "", "whole number"),
        ("TAXIWAY_PORT", "9" * 5000, "whole number"),
        ("TAXIWAY_BODY_MIB", "0", "from 1 to"),
        ("TAXIWAY_JOBS", "many", "whole number"),
        ("TAXIWAY_PROJECT", "My Project", "6 to 30 lower-case letters"),
    ],
)
def test_a_value_that_is_not_of_its_kind_is_an_error(variable, value, match):
    with pytest.raises(errors.InvalidArgument, match=match):
        settings.read({variable: value})


def test_every_fault_is_told_at_once_and_a_flag_by_its_own_name():
    with pytest.raises(errors.InvalidArgument) as refused:
        settings.read({"TAXIWAY_NOPE": "1", "TAXIWAY_JOBS": "x"}, port=70000)
    assert [field for field, _ in refused.value.faults] == ["TAXIWAY_NOPE", "--port", "TAXIWAY_JOBS"]


def test_settings_do_not_change(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.read({}, home=tmp_path).port = 1


def test_every_setting_says_what_it_is_for():
    assert all(each.metadata["help"] for each in settings.OFFERED.values())
