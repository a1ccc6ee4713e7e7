"""The runtimes on offer, and the Pythons of this machine."""

import platform
import sys

import pytest

from taxiway import errors
from taxiway.environments import pythons, runtimes

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_default_runtime_is_offered_and_every_lock_names_no_host():
    assert runtimes.default() in runtimes.table()
    for runtime in [*runtimes.table().values(), *runtimes.tools().values()]:
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


@pytest.mark.usefixtures("every_python")
@pytest.mark.parametrize(
    ("version", "runs"),
    [
        *((version, "1.8") for version in ("1.0", "1.4", "1.7")),
        *((version, "1.15") for version in ("1.9", "1.10", "1.12", "1.13", "1.14")),
        *((version, "2.15") for version in ("2.0", "2.1", "2.3", "2.5", "2.11", "2.14")),
        *((version, "2.21") for version in ("2.16", "2.20")),
    ],
)
@pytest.mark.parametrize("python", [None, "", "2.7", "3.5", "3.8"])
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
    assert not choice.as_one


@pytest.mark.usefixtures("every_python")
@pytest.mark.parametrize("version", ["1.8", "1.15"])
def test_tensorflow_1_itself_runs_where_its_python_is_whatever_python_the_service_had(version):
    choice = runtimes.resolve(version, None)
    assert (choice.runtime.version, choice.instead(trains=True), choice.as_one) == (version, "", False)
    for old in ("2.7", "3.5"):
        choice = runtimes.resolve(version, old)
        assert (choice.runtime.version, choice.python_version) == (version, old)
        assert runtimes.resolve(choice.version, choice.python_version) == choice
        told = choice.instead(trains=True)
        assert told.startswith(f"Python {old} was asked for and {choice.python} runs.")
        assert told.endswith(f"`import tensorflow` gives TensorFlow {version} itself.")


@pytest.mark.usefixtures("every_python")
def test_a_python_that_only_a_farther_runtime_has_chooses_that_one():
    choice = runtimes.resolve("1.15", "3.11")
    assert (choice.runtime.version, choice.version, choice.python_version) == ("2.15", "1.15", "3.11")
    assert choice.as_one
    assert choice.instead().startswith(
        "Runtime version 1.15 is offered with Python 3.7, not with 3.11; 2.15 runs in its place."
    )
    assert runtimes.resolve("1.4", "3.7").runtime.version == "1.8"


def machine_with(folder, monkeypatch, *versions):
    """From now on this machine has these Pythons and no other."""
    for version in versions:
        impostor(folder / f"python{version}", f"{version}.99")
    for name in ("HOME", "PATH", "PYENV_ROOT"):
        monkeypatch.setenv(name, str(folder / "empty"))
    monkeypatch.setattr(sys, "base_prefix", str(folder / "empty"))
    monkeypatch.setenv("TAXIWAY_PYTHONS", str(folder))


def test_without_its_python_tensorflow_1_runs_on_the_next_that_can_and_the_log_says_which(tmp_path, monkeypatch):
    machine_with(tmp_path, monkeypatch, "3.7", "3.11")
    choice = runtimes.resolve("1.8", "2.7")
    assert choice.runtime.version == "1.15"
    told = choice.instead(trains=True)
    assert told.startswith("Runtime version 1.8 needs Python 3.6, which was not found on this machine")
    assert "; 1.15 runs in its place. Python 2.7 was asked for and 3.7 runs." in told
    assert told.endswith("`import tensorflow` gives TensorFlow 1.15 itself.")
    (tmp_path / "python3.7").unlink()
    for version, python in [("1.8", None), ("1.4", "3.5"), ("1.15", "3.7"), ("1.12", "2.7")]:
        choice = runtimes.resolve(version, python)
        assert (choice.runtime.version, choice.as_one) == ("2.15", True)
        assert (choice.version, choice.python_version) == (version, python or "3.11")
        assert runtimes.resolve(choice.version, choice.python_version) == choice
        assert "`import tensorflow` gives tensorflow.compat.v1" in choice.instead(trains=True)


def test_a_runtime_of_another_processor_is_passed_over_and_refused_by_name_where_nothing_stands_in(
    tmp_path, monkeypatch
):
    machine_with(tmp_path, monkeypatch, "3.6", "3.7", "3.11")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    choice = runtimes.resolve("1.8", None)
    assert (choice.runtime.version, choice.as_one) == ("2.15", True)
    assert "Runtime version 1.8 was made for x86_64 alone, and this machine is riscv64; 2.15 runs" in choice.instead()
    with pytest.raises(errors.InvalidArgument, match=r"runtimeVersion.*1\.8 was made for x86_64 alone"):
        runtimes.choose(runtimes.table()["1.8"], None)


@pytest.mark.usefixtures("every_python")
def test_a_stand_in_takes_the_pythons_that_it_has_and_no_nonsense():
    assert runtimes.resolve("2.5", "3.10").python == "3.10"
    for version, python, names in [("2.5", "3.99", "2.15"), ("2.5", "x", "2.15"), ("1.15", "2.6", "1.15")]:
        with pytest.raises(errors.InvalidArgument, match=rf"pythonVersion.*runtime version {names}\."):
            runtimes.resolve(version, python)


@pytest.mark.usefixtures("every_python")
def test_only_a_trainer_that_asked_for_tensorflow_1_and_gets_a_2_is_promised_its_names():
    for version, python, promised in [("1.8", "3.11", True), ("1.8", "2.7", False), ("2.5", "", False)]:
        assert ("tensorflow.compat.v1" in runtimes.resolve(version, python).instead(trains=True)) == promised
        assert "compat" not in runtimes.resolve(version, python).instead()
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
