"""The runtimes on offer, and the Pythons of this machine."""

import sys

import pytest

from taxiway import errors
from taxiway.environments import pythons, runtimes

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_default_runtime_is_offered_and_every_lock_names_no_host():
    assert runtimes.default() in runtimes.table()
    for runtime in runtimes.table().values():
        text = runtime.lock.read_text()
        assert "://" not in text
        assert all(f"\n{needed}==" in text for needed in ("setuptools", "wheel", "packaging"))
        assert all(f"\n{other}==" in text for other in runtime.provides.values())


def test_an_unknown_runtime_is_refused_with_what_is_offered():
    with pytest.raises(errors.InvalidArgument, match=r"runtimeVersion.*'9\.9'.*2\.21") as caught:
        runtimes.resolve("9.9", None)
    assert [name for name, _ in caught.value.faults] == ["runtimeVersion"]


@pytest.mark.parametrize(
    "version", ["9.9", "abc", "1.16", "1.40", "2.22", "2.99", "1", "1.8.0", "01.8", "1.08", "2.-1", "²"]
)
def test_what_never_was_a_version_is_refused_with_what_is_offered_and_what_else_is_taken(version):
    with pytest.raises(
        errors.InvalidArgument, match=r"2\.21, 2\.15.*2\.16 to 2\.20 run on 2\.21; 1\.0 to 1\.15"
    ) as caught:
        runtimes.resolve(version, None)
    assert repr(version) in str(caught.value)


@pytest.fixture
def every_python(tmp_path, monkeypatch):
    """A machine that has all Pythons that a runtime may ask for."""
    for runtime in runtimes.table().values():
        for python in runtime.pythons:
            impostor(tmp_path / f"python{python}", f"{python}.99")
    monkeypatch.setenv("TAXIWAY_PYTHONS", str(tmp_path))


LABS = ["1.4", "1.8", "1.10", "1.12", "1.13", "1.15", "2.1", "2.3", "2.5"]  # what notebooks and courses ask for


@pytest.mark.usefixtures("every_python")
@pytest.mark.parametrize(
    ("version", "runs"),
    [*((version, "2.15") for version in [*LABS, "1.0", "2.0", "2.11", "2.14"]), ("2.16", "2.21"), ("2.20", "2.21")],
)
@pytest.mark.parametrize("python", [None, "", "2.7", "3.5", "3.7"])
def test_a_version_that_labs_ask_for_runs_on_the_nearest_and_stays_what_was_asked(version, python, runs):
    choice = runtimes.resolve(version, python)
    assert choice.runtime.version == runs
    assert choice.python == choice.runtime.pythons[0]
    assert (choice.version, choice.python_version) == (version, python or choice.python)
    assert runtimes.resolve(choice.version, choice.python_version) == choice
    assert choice.key == runtimes.resolve(runs, None).key
    assert choice.instead().startswith(f"Runtime version {version} is not offered here; {runs} is the nearest")
    assert (f"Python {python} was asked for" in choice.instead()) == bool(python)
    assert ("print x" in choice.instead()) == (python == "2.7")


@pytest.mark.usefixtures("every_python")
def test_a_stand_in_takes_the_pythons_that_it_has_and_no_nonsense():
    assert runtimes.resolve("2.5", "3.10").python == "3.10"
    for python in ("3.99", "2.6", "x"):
        with pytest.raises(errors.InvalidArgument, match=r"pythonVersion.*runtime version 2\.15"):
            runtimes.resolve("2.5", python)


@pytest.mark.usefixtures("every_python")
def test_only_a_trainer_that_asked_for_tensorflow_1_is_promised_its_names():
    for version, promised in [("1.8", True), ("2.5", False), ("2.18", False)]:
        assert ("tensorflow.compat.v1" in runtimes.resolve(version, None).instead(trains=True)) == promised
        assert "compat" not in runtimes.resolve(version, None).instead()
    for version in runtimes.table():
        assert runtimes.resolve(version, None).instead(trains=True) == ""


@pytest.mark.parametrize("python", ["2.7", "3", "3.11.7", "x"])
def test_a_python_that_the_runtime_does_not_offer_is_refused_with_those_it_does(python):
    with pytest.raises(errors.InvalidArgument, match=r"pythonVersion.*3\.11, 3\.12") as caught:
        runtimes.resolve("2.21", python)
    assert [name for name, _ in caught.value.faults] == ["pythonVersion"]


def test_a_python_that_this_machine_lacks_is_refused_with_where_to_name_one(tmp_path):
    absent = runtimes.Runtime("0.1", ("3.99",), tmp_path / "lock")
    with pytest.raises(errors.InvalidArgument, match=r"Python 3\.99 was not found.*TAXIWAY_PYTHONS"):
        runtimes.choose(absent, None)


def test_an_unset_python_is_the_first_preferred_one_that_is_here(tmp_path):
    some = runtimes.Runtime("0.1", ("3.99", HERE), tmp_path / "lock")
    assert runtimes.choose(some, None).python == HERE
    assert runtimes.choose(some, "").release == ".".join(map(str, sys.version_info[:3]))


# --- the Pythons of this machine


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No Python but the running one is to be found by chance."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    return tmp_path


def impostor(path, version):
    """A program that says it is a Python of that release."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def test_the_running_python_is_found_whatever_the_home_and_path(nowhere):
    found = pythons.find(HERE)
    assert found is not None
    assert not found.is_relative_to(nowhere)


@pytest.mark.parametrize("given", ["python3.98", "", "bin/..", "versions"])
def test_a_python_is_found_in_what_taxiway_pythons_names(nowhere, monkeypatch, given):
    impostor(nowhere / "python3.98", "3.98.1")
    impostor(nowhere / "bin/python3.98", "3.98.1")
    impostor(nowhere / "versions/3.98.1/bin/python3.98", "3.98.1")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("TAXIWAY_PYTHONS", f"/nonexistent:{nowhere / given}")
    assert pythons.find("3.98") is not None


def test_the_newest_release_of_a_version_folder_is_taken(nowhere):
    for release in ("3.98.9", "3.98.10", "3.98.2"):
        impostor(nowhere / f"versions/{release}/bin/python3.98", release)
    assert pythons.find("3.98") == nowhere / "versions/3.98.10/bin/python3.98"


def test_a_shim_that_does_not_run_is_passed_over(nowhere, monkeypatch):
    shim = impostor(nowhere / "shims/python3.98", "3.98.1")
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    impostor(nowhere / "liar/python3.98", "3.97.0")
    real = impostor(nowhere / "real/python3.98", "3.98.1")
    monkeypatch.setenv("PATH", f"{shim.parent}:{nowhere / 'liar'}:{real.parent}")
    assert pythons.find("3.98") == real
