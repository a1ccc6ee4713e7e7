"""Environments: real uv, real builds of tiny packages. All but the last test work without a network, from a wheelhouse
that is packed here: the runtime of these tests holds setuptools and packaging as this interpreter has them."""

import csv
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from taxiway import errors, plan
from taxiway.environments import folders, inventory, layers, packages, progress, pythons, runtimes, uv
from taxiway.handles import Order
from taxiway.replica.fence import Fence

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
LOOKED = "','.join(sorted(__import__('os').listdir('/')))"  # of a setup.py: what it finds where it runs
NO_INIT = "Put an empty __init__.py"


def wheel(folder, name, version, files, requires=()):
    """Write a wheel by hand, without a build; return its path."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    everything = {
        **files,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    csv.writer(record).writerows([(path, "", "") for path in [*everything, f"{info}/RECORD"]])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in {**everything, f"{info}/RECORD": record.getvalue()}.items():
            archive.writestr(inside, content)
    return path


def repack(folder, name):
    """A wheel of a distribution that this interpreter has."""
    found = importlib.metadata.distribution(name)
    files = {str(f): f.locate().read_bytes() for f in found.files if f.suffix != ".pyc" and ".dist-info" not in str(f)}
    info = {str(f): f.locate().read_bytes() for f in found.files if f.name == "entry_points.txt" and ".." not in str(f)}
    return wheel(folder, name, found.version, {**files, **info})


def sdist(folder, name="trainer", setup="packages=find_packages()", files=None, version="0.1"):
    """Write a source archive; `setup` is what its setup.py says beside name and version."""
    files = (
        {"trainer/__init__.py": "", "trainer/task.py": "import tiny\nprint(tiny.WORD)\n"} if files is None else files
    )
    program = f"from setuptools import find_packages, setup\nsetup(name={name!r}, version={version!r}, {setup})\n"
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, content in {"setup.py": program, **files}.items():
            member = tarfile.TarInfo(f"{name}-{version}/{inside}")
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return path


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheelhouse")
    repack(folder, "setuptools")
    repack(folder, "packaging")
    wheel(folder, "tiny", "1.0", {"tiny.py": "WORD = 'tiny 1.0'\n"})
    wheel(folder, "tiny", "2.0", {"tiny.py": "WORD = 'tiny 2.0'\n"})
    wheel(folder, "wings", "3.0", {"wings.py": "import feather\n"}, requires=["tiny", "feather>=1; python_version>'3'"])
    wheel(folder, "feather", "1.5", {"feather.py": ""})
    sdist(folder, "stone", f"py_modules=['stone'], description={LOOKED}", {"stone.py": "WORD = 'stone'\n"})
    return folder


@pytest.fixture(scope="module")
def runtime(wheelhouse, tmp_path_factory):
    lock = tmp_path_factory.mktemp("lock") / "tiny.lock"
    rows = []
    for path in sorted(wheelhouse.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if name in ("setuptools", "packaging") or (name, version) == ("tiny", "1.0"):
            rows.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    lock.write_text("".join(rows))
    return runtimes.Runtime("0.1", (HERE,), lock, provides={"giant": "tiny"})


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def choice(runtime, wheelhouse, shared_cache, monkeypatch):
    """The tiny runtime on this Python, in a cache that the tests of this file share, without a network."""
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", str(wheelhouse))
    monkeypatch.setenv("TAXIWAY_CACHE", str(shared_cache))
    return runtimes.choose(runtime, HERE)


@pytest.fixture
def fresh(choice, tmp_path, monkeypatch):
    """As `choice`, in a cache of the test's own."""
    monkeypatch.setenv("TAXIWAY_CACHE", str(tmp_path / "cache"))
    return choice


def run(python, code):
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


# --- building once


def test_a_runtime_is_built_with_its_lock_and_then_is_there(fresh):
    told = []
    assert runtimes.ready(fresh) is None
    assert runtimes.built() == []
    python = runtimes.build(fresh, told.append)
    assert run(python, "import tiny, setuptools; print(tiny.WORD)") == "tiny 1.0"
    assert {"install", "compile"} <= {progress.stage for progress in told}
    assert runtimes.ready(fresh) == python
    assert runtimes.built() == [runtimes.Built("0.1", HERE, fresh.release, python)]
    told.clear()
    assert runtimes.build(fresh, told.append) == python
    assert told == []


BUILDER = """
import os, signal, sys
from pathlib import Path
from taxiway.environments import layers, runtimes

def say(progress):
    print(progress.stage, flush=True)
    if progress.stage == how:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == f"wait for me at {progress.stage}":
        sys.stdin.read()

python, lock, how, *packages = sys.argv[1:]
runtime = runtimes.Runtime("0.1", (python,), Path(lock), provides={"giant": "tiny"})
layers.ensure(runtimes.choose(runtime, None), [Path(package) for package in packages], say)
print("done", flush=True)
if how == "stay":
    sys.stdin.read()
"""


def builder(choice, *packages, how=""):
    """A process that builds, and tells each stage. `how`: the stage in which it is killed, "wait for me at" a stage for
    one that goes on from there when its input ends, or "stay" for one that uses what it built until then."""
    argv = [sys.executable, "-c", BUILDER, HERE, str(choice.runtime.lock), how, *map(str, packages)]
    ours = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(argv, text=True, cwd=Path(__file__).parent.parent, **ours)


def test_a_runtime_that_is_opt_in_is_for_jobs_once_somebody_has_built_it(fresh):
    assert runtimes.unasked(fresh) == ""
    large = dataclasses.replace(fresh, runtime=dataclasses.replace(fresh.runtime, opt_in=True, mib=2560))
    assert runtimes.unasked(large) == (
        f"Runtime version 0.1 for Python {HERE} takes about 2.5 GiB of the server's disk and is built there only by: "
        "taxiway runtimes build 0.1"
    )
    runtimes.build(large)
    assert runtimes.unasked(large) == ""


def test_two_processes_that_want_the_same_runtime_build_it_once(fresh):
    both = [builder(fresh), builder(fresh)]
    said = [process.communicate()[0].split() for process in both]
    assert [lines[-1] for lines in said] == ["done", "done"]
    assert sum("compile" in lines for lines in said) == 1
    assert runtimes.ready(fresh)


def test_a_builder_that_is_killed_leaves_nothing_that_the_next_one_trusts(fresh):
    killed = builder(fresh, how="install")
    assert "done" not in killed.communicate()[0]
    assert runtimes.ready(fresh) is None
    python = runtimes.build(fresh)
    assert run(python, "import tiny; print(tiny.WORD)") == "tiny 1.0"


def test_a_half_built_folder_is_built_anew(fresh):
    folder = runtimes.path(fresh)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / "left.txt").write_text("by somebody who died")
    (folder / "complete.json.draft").write_text("{")
    runtimes.build(fresh)
    assert not (folder / "left.txt").exists()


def test_a_runtime_whose_python_was_removed_is_built_anew(fresh):
    python = runtimes.build(fresh)
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert runtimes.ready(fresh) is None
    assert run(runtimes.build(fresh), "print(1)") == "1"


def test_a_builder_says_that_it_waits_for_another(fresh):
    told = []
    folder = runtimes.path(fresh)
    folder.parent.mkdir(parents=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(progress):
            told.append(progress.stage)
            if progress.stage == "wait":
                fcntl.flock(lock, fcntl.LOCK_UN)

        runtimes.build(fresh, say)
    assert told[0] == "wait"


def test_one_who_waits_hears_how_far_the_builder_is(fresh):
    """The builder stands still in the middle until the other has heard of it."""
    with builder(fresh, how="wait for me at install") as first:
        assert "install\n" in iter(first.stdout.readline, "")
        told = []

        def say(news):
            told.append(news)
            if news.text == "Installing":
                first.stdin.close()

        assert runtimes.build(fresh, say) == runtimes.ready(fresh)
        assert first.stdout.read().split()[-1] == "done"
    assert first.returncode == 0
    assert "Waiting for another process that is building 0.1-py" in told[0].text
    assert {news.stage for news in told} == {"wait"}
    assert "Installing" in [news.text for news in told]


def test_what_a_dead_builder_noted_is_not_heard_again(fresh):
    killed = builder(fresh, how="install")
    killed.communicate()
    lock = runtimes.path(fresh).parent / f".{runtimes.path(fresh).name}.lock"
    assert "Installing" in lock.read_text()
    with folders.turn(runtimes.path(fresh), None):
        assert lock.read_text() == ""


def test_a_runtime_that_cannot_be_fetched_is_unavailable_and_says_what_was_missing(fresh, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", str(empty))
    with pytest.raises(errors.Unavailable, match=r"(?s)Runtime 0\.1 .*TAXIWAY_WHEELHOUSE.*packaging"):
        runtimes.build(fresh)
    assert not runtimes.path(fresh).exists()


@pytest.fixture
def liar(tmp_path, monkeypatch):
    """A uv that makes environments and says that it installed, and did not."""
    program = tmp_path / "uv"
    program.write_text(f'#!/bin/sh\n[ "$1" = pip ] || exec {uv.find_uv_bin()} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(program))


@pytest.mark.usefixtures("liar")
def test_a_runtime_that_lacks_what_its_lock_pins_is_not_taken_for_whole(fresh):
    with pytest.raises(errors.Unavailable, match=r"not installed whole: packaging==.* is missing"):
        runtimes.build(fresh)
    assert not runtimes.path(fresh).exists()


def test_a_layer_that_lacks_its_package_is_not_taken_for_whole(choice, tmp_path, request):
    runtimes.build(choice)
    request.getfixturevalue("liar")
    package = sdist(tmp_path, name="forgotten")
    with pytest.raises(errors.Unavailable, match=r"forgotten-0\.1\.tar\.gz was not installed, although"):
        layers.ensure(choice, [package])
    with pytest.raises(errors.Unavailable, match="was not installed"):
        layers.ensure(choice, [package])


def test_a_wheelhouse_that_is_not_there_is_named(fresh, monkeypatch):
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", "/nonexistent/wheels")
    with pytest.raises(errors.FailedPrecondition, match="TAXIWAY_WHEELHOUSE names /nonexistent/wheels"):
        runtimes.build(fresh)


def test_a_cache_that_cannot_be_written_is_named(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAXIWAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(errors.StorageFull, match=r"file cannot be written.*TAXIWAY_CACHE"):
        runtimes.build(fresh)


def test_progress_is_read_from_what_uv_draws_and_a_name_cut_in_two_is_not_another():
    sizes = {}
    drawn = "\x1b[2K⠹ Preparing... (11/54)  numpy  ---------- 4.00 MiB/16.00 MiB  keras  -- 512.00 KiB/2.00 MiB"
    assert progress.read(drawn, sizes) == progress.Progress("download", "Downloading numpy: 4 of 18 MiB", 0.25)
    cut = "py    ---------- 8.00 MiB/16.00 MiB"
    assert progress.read(cut, sizes) is None
    assert progress.read("\r\nInstalled 2 packages in 3ms\r\n", sizes).stage == "compile"


def test_a_log_hears_of_each_stage_once_and_of_a_download_only_when_there_is_something_to_say():
    said, now = [], [0.0]
    tell = progress.Lines(said.append, clock=lambda: now[0])
    tell(progress.Progress("download", "Downloading pillow: 0 of 7 MiB", 0.0))
    for done in range(1, 7):
        tell(progress.Progress("download", f"Downloading pillow: {done} of 7 MiB", done / 7))
    now[0] = progress.PACE_S
    tell(progress.Progress("download", "Downloading keras: 300 of 640 MiB", 0.5))
    for _ in range(3):
        tell(progress.Progress("install", "Installing"))
    assert said == ["Downloading what is not in the cache yet", "Downloading keras: 300 of 640 MiB", "Installing"]


# --- layers


def test_without_packages_the_runtime_itself_is_the_environment(choice):
    assert layers.ensure(choice, []) == runtimes.build(choice)


def test_a_layer_sees_the_package_and_the_runtime_below_it(choice, tmp_path):
    python = layers.ensure(choice, [sdist(tmp_path)])
    assert run(python, "import trainer.task") == "tiny 1.0"
    assert python != layers.ensure(choice, [])
    site = next((python.parent.parent / "lib").glob("*/site-packages"))
    assert list(site.glob("trainer/__pycache__/task.*.pyc"))


def test_the_same_packages_are_installed_once_and_other_bytes_of_the_same_name_again(choice, tmp_path):
    told = []
    first = layers.ensure(choice, [sdist(tmp_path)])
    assert layers.ensure(choice, [tmp_path / "trainer-0.1.tar.gz"] * 2, told.append) == first
    assert told == []
    changed = sdist(tmp_path, files={"trainer/__init__.py": "", "trainer/task.py": "print('changed')\n"})
    second = layers.ensure(choice, [changed])
    assert run(second, "import trainer.task") == "changed"
    assert run(first, "import trainer.task") == "tiny 1.0"


def test_wheels_and_source_packages_of_one_name_in_two_folders_are_installed_together(choice, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    extra = wheel(tmp_path, "extra", "0.1", {"extra.py": "WORD = 'extra'\n"})
    one = sdist(tmp_path / "a").rename(tmp_path / "a/package.tar.gz")
    two = sdist(tmp_path / "b", name="second", files={"second/__init__.py": ""}).rename(tmp_path / "b/package.tar.gz")
    python = layers.ensure(choice, [one, two, extra])
    assert run(python, "import trainer, second, extra; print(extra.WORD)") == "extra"


def test_a_setup_that_never_ends_is_ended_with_all_that_it_started_and_told(choice, tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "BUILD_S", 3.0)
    setup = "x=__import__('subprocess').Popen(['sleep', '603']).wait()"
    package = sdist(tmp_path, setup=setup)
    with pytest.raises(errors.FailedPrecondition, match=r"could not be installed.\nIt did not end with"):
        layers.ensure(choice, [package])
    gone = [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "603"]]
    assert not [each for each in gone if each.status() != psutil.STATUS_ZOMBIE]


def test_a_setup_that_raises_is_the_users_failure_with_its_last_words(choice, tmp_path):
    broken = sdist(tmp_path, setup="packages=1/0")
    with pytest.raises(errors.FailedPrecondition) as caught:
        layers.ensure(choice, [broken])
    assert str(caught.value).startswith("trainer-0.1.tar.gz could not be installed.\n")
    assert "ZeroDivisionError" in str(caught.value)
    assert str(folders.cache()) not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_file_that_is_no_archive_is_the_users_failure(choice, tmp_path):
    (tmp_path / "trainer-0.1.tar.gz").write_text("not an archive")
    with pytest.raises(errors.FailedPrecondition, match=r"trainer-0\.1\.tar\.gz could not be installed"):
        layers.ensure(choice, [tmp_path / "trainer-0.1.tar.gz"])
    (tmp_path / "trainer.py").write_text("")
    with pytest.raises(errors.FailedPrecondition, match=r"trainer\.py is no Python package: expected .*\.whl"):
        layers.ensure(choice, [tmp_path / "trainer.py"])


@pytest.mark.parametrize(
    "setup", ["packages=find_packages()", "packages=find_packages(), install_requires=['feather']"]
)
def test_a_package_without_init_py_is_named_with_what_to_add(choice, tmp_path, setup):
    empty = sdist(tmp_path, setup=setup, files={"trainer/task.py": "print(1)\n"})
    with pytest.raises(errors.FailedPrecondition, match=rf"trainer-0\.1\.tar\.gz holds no module.*{NO_INIT}"):
        layers.ensure(choice, [empty])


def test_an_empty_package_beside_a_good_one_is_the_one_that_is_named(choice, tmp_path):
    empty = sdist(tmp_path, name="hollow", files={"hollow/task.py": ""})
    with pytest.raises(errors.FailedPrecondition, match=r"^hollow-0\.1\.tar\.gz holds no module"):
        layers.ensure(choice, [sdist(tmp_path), empty])


def test_a_package_that_is_only_requirements_may_stand_beside_the_code(choice, tmp_path):
    needs = wheel(tmp_path, "needs", "1.0", {}, requires=["feather"])
    assert run(layers.ensure(choice, [sdist(tmp_path), needs]), "import feather, trainer; print(1)") == "1"


PRINT = "import tiny\n\ndef say(x):\n    print x\n"  # what a Python 2 alone can read


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"trainer/task.py": PRINT}, "trainer/task.py, line 4: `print x`"),
        ({"trainer/__init__.py": PRINT}, "trainer/__init__.py, line 4: `print x`"),
        ({"trainer/task.py": "from . import model\n", "trainer/model.py": PRINT}, "trainer/model.py, line 4: "),
        ({"trainer/task.py": "from trainer.model import x\n", "trainer/model.py": PRINT}, "trainer/model.py, line 4: "),
        ({"trainer/task.py": "try:\n  1/0\nexcept ValueError, e:\n  pass\n"}, "trainer/task.py, line 3: `except Valu"),
    ],
)
def test_source_of_python_2_is_refused_by_its_line(choice, tmp_path, files, where):
    package = sdist(tmp_path, files={"trainer/__init__.py": "", **files})
    for _ in range(2):  # while it is built, and when it stands
        with pytest.raises(
            errors.FailedPrecondition, match=rf"Python {HERE}\.\d+ cannot read {re.escape(where)}.*2to3"
        ):
            layers.ensure(choice, [package], module="trainer.task")


def test_other_source_that_cannot_be_read_is_told_without_a_guess_at_its_age(choice, tmp_path):
    package = sdist(tmp_path, files={"trainer/__init__.py": "", "trainer/task.py": "def f(:\n"})
    with pytest.raises(errors.FailedPrecondition, match=r"trainer/task\.py, line 1: `def f\(:`.*Mend it") as caught:
        layers.ensure(choice, [package], module="trainer.task")
    assert "Python 2" not in str(caught.value)


@pytest.mark.parametrize(
    "task",
    ["", "try:\n    from trainer import old\nexcept Exception:\n    pass\n", "if 0:\n    import trainer.old\n"],
)
def test_source_of_python_2_that_may_never_be_imported_harms_nobody(choice, tmp_path, task):
    files = {"trainer/__init__.py": "", "trainer/task.py": f"{task}print('ran')\n", "trainer/old.py": PRINT}
    python = layers.ensure(choice, [sdist(tmp_path, files=files)], module="trainer.task")
    assert run(python, "import trainer.task") == "ran"


def test_two_processes_that_want_the_same_layer_build_it_once(fresh, tmp_path):
    runtimes.build(fresh)
    package = sdist(tmp_path)
    both = [builder(fresh, package), builder(fresh, package)]
    said = [process.communicate()[0].split() for process in both]
    assert [lines[-1] for lines in said] == ["done", "done"]
    assert sum("build" in lines for lines in said) == 1
    assert run(layers.ensure(fresh, [package]), "import trainer.task") == "tiny 1.0"


def test_a_builder_of_a_layer_that_is_killed_leaves_nothing_that_the_next_one_trusts(fresh, tmp_path):
    package = sdist(tmp_path)
    assert "done" not in builder(fresh, package, how="build").communicate()[0]
    (layer,) = [each for each in inventory.standing() if each.kind == "PACKAGES"]
    assert (layer.whole, layer.holds) == (False, "left by a build that died")
    assert run(layers.ensure(fresh, [package]), "import trainer.task") == "tiny 1.0"


# --- what nobody has used lately


@pytest.fixture
def stood(fresh, tmp_path):
    """A runtime and a layer over it, built by a process that has ended."""
    assert "done" in builder(fresh, sdist(tmp_path)).communicate()[0]
    layer, runtime = inventory.standing()
    return layer, runtime


def unused(since=float("inf")):
    return inventory.unused(inventory.standing(), since=since)


def downloaded(file):
    """Whether uv's cache holds the file of a package."""
    return any((folders.cache() / "uv").rglob(file))


def test_what_stands_is_told_with_what_it_holds(fresh, stood):
    layer, runtime = stood
    assert (layer.kind, layer.holds, layer.packages) == ("PACKAGES", "trainer 0.1", {"trainer"})
    assert (runtime.kind, runtime.holds) == ("RUNTIME", f"0.1 for Python {fresh.release}")
    assert runtime.packages == {"setuptools", "packaging", "tiny"}
    assert runtime.folder == runtimes.path(fresh)
    assert 0 <= layer.used - runtime.used < 60
    assert time.time() - layer.used < 60


def test_what_is_removed_frees_its_room_and_is_built_anew_when_it_is_asked_for(fresh, stood):
    going = unused()
    assert going == list(stood)
    assert downloaded("tiny.py")
    before, hoped = folders.size(folders.cache()), inventory.freed_by(going)
    told = []
    removed, freed = inventory.prune(going, told.append)
    assert removed == going
    assert not any(each.folder.exists() for each in going)
    assert before - folders.size(folders.cache()) == pytest.approx(freed, abs=65536)
    assert freed >= hoped > 0
    assert not downloaded("tiny.py")
    assert "Removing trainer 0.1" in [news.text for news in told]
    assert inventory.standing() == []
    assert run(runtimes.build(fresh), "import tiny; print(tiny.WORD)") == "tiny 1.0"


def age(*entries):
    """They were last used long ago."""
    for each in entries:
        os.utime(each.folder.parent / f".{each.folder.name}.used", (1, 1))


def test_what_stays_keeps_what_was_downloaded_for_it(stood):
    layer, runtime = stood
    age(layer)
    assert downloaded("trainer/task.py")
    assert [each.folder for each in unused(since=2)] == [layer.folder]
    inventory.prune(unused(since=2))
    assert inventory.standing() == [runtime]
    assert downloaded("tiny.py")
    assert not downloaded("trainer/task.py")


def test_what_a_process_uses_stays_until_it_has_ended(fresh, stood, tmp_path):
    going = unused()
    user = builder(fresh, tmp_path / "trainer-0.1.tar.gz", how="stay")
    assert user.stdout.readline() == "done\n"
    assert unused() == []
    assert inventory.prune(going)[0] == []  # it began after we had looked
    assert all(folders.record(each.folder) for each in going)
    user.communicate()
    assert [each.folder for each in unused()] == [each.folder for each in going]


def test_what_is_used_again_is_new_again(fresh, stood):
    layer, runtime = stood
    age(layer, runtime)
    assert "done" in builder(fresh).communicate()[0]
    assert [each.folder for each in unused(since=2)] == [layer.folder]
    assert folders.last_used(runtime.folder) >= runtime.used


def test_an_interpreter_that_a_person_started_is_in_use(stood):
    layer, runtime = stood
    started = [str(folders.interpreter(runtime.folder)), "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as person:
        assert person.stdout.readline() == "1\n"
        assert [each.folder for each in unused()] == [layer.folder]
        person.communicate("\n")
    assert len(unused()) == 2


def test_a_folder_that_was_never_finished_goes_at_once_but_not_while_it_is_built(stood):
    layer, _ = stood
    (layer.folder / "complete.json").unlink()
    lock = layer.folder.parent / f".{layer.folder.name}.lock"
    with lock.open("a") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        assert unused(since=0) == []
    (left,) = unused(since=0)
    assert (left.folder, left.whole) == (layer.folder, False)
    assert inventory.prune([left])[0] == [left]
    assert not layer.folder.exists()


def test_what_was_built_before_use_was_noted_was_last_used_when_it_was_built(stood):
    layer, _ = stood
    (layer.folder.parent / f".{layer.folder.name}.used").unlink()
    os.utime(layer.folder / "complete.json", (5, 5))
    assert folders.last_used(layer.folder) == 5
    assert not folders.in_use(layer.folder)
    assert folders.last_used(layer.folder) == 5  # to look is not to use


def taxiway(*words, **environ):
    argv = [sys.executable, "-m", "taxiway", "runtimes", *words]
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environ}, check=False)


def test_the_command_removes_what_it_said_it_would_and_needs_no_server(stood, tmp_path):
    layer, runtime = stood
    kept = taxiway("prune", "--format", "json", TAXIWAY_HOME=str(tmp_path / "nowhere"))
    assert json.loads(kept.stdout) == []
    assert "0 removed, 0B freed. 2 kept: in use, or used in the last 30 days." in kept.stderr
    words = ("prune", "--unused-days", "0")
    dry = taxiway(*words, "--dry-run", "--format", "json")
    rows = json.loads(dry.stdout)
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("PACKAGES", layer.folder.name),
        ("RUNTIME", runtime.folder.name),
    ]
    assert "2 would be removed, to free up to " in dry.stderr
    assert len(inventory.standing()) == 2
    done = taxiway(*words, "--format", "json")
    assert (json.loads(done.stdout), done.returncode) == (rows, 0)
    assert "2 removed, " in done.stderr
    assert inventory.standing() == []
    assert "Listed 0 items." in taxiway(*words).stderr


def test_the_command_lists_every_runtime_with_what_it_also_runs(fresh):
    rows = json.loads(taxiway("list", "--format", "json").stdout)
    assert {row["version"] for row in rows} == {*runtimes.table(), *runtimes.tools()}
    assert {row["state"] for row in rows} <= {"NOT_BUILT", "NO_PYTHON", "OPT_IN"}  # in this cache
    opted = {row["version"] for row in rows if row["state"] == "OPT_IN"}
    assert opted == {name for name, each in runtimes.table().items() if each.opt_in and not each.lacks}
    assert {row["size"] for row in rows} == {None}
    assert all(500 << 20 < row["estimate"] < 16 << 30 for row in rows if row["version"] in runtimes.table())
    assert "about 1.2GiB" in taxiway("list").stdout
    assert ("2.15", "1.0 to 1.15, 2.0 to 2.14") in {(row["version"], row["alsoFor"]) for row in rows}
    assert ("1.8", "1.0 to 1.7") in {(row["version"], row["alsoFor"]) for row in rows}
    assert "1.0 to 1.15" in taxiway("list").stdout


@pytest.mark.usefixtures("fresh")
def test_the_command_says_of_an_old_version_what_runs_and_where_nothing_can_be_fetched_why(tmp_path):
    (tmp_path / "empty").mkdir()
    for word in ("python", "build"):
        failed = taxiway(word, "2.18", TAXIWAY_WHEELHOUSE=str(tmp_path / "empty"))
        assert (failed.stdout, failed.returncode) == ("", 1)
        assert "Runtime version 2.18 is not offered here; 2.21 is the nearest" in failed.stderr
        assert "Building runtime 2.21 for Python 3.1" in failed.stderr
        assert "could not be built" in failed.stderr
        assert "TAXIWAY_WHEELHOUSE" in failed.stderr
        assert "Traceback" not in failed.stderr


# --- what a package requires


def installed(python):
    record = json.loads((python.parent.parent / "complete.json").read_text())
    return record["packages"]


def test_what_the_runtime_meets_is_not_installed_again(choice, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", str(tmp_path / "empty"))  # where nothing can be found
    met = "packages=find_packages(), install_requires=['tiny>=1', 'giant<2', 'absent; python_version<\"3\"']"
    python = layers.ensure(choice, [sdist(tmp_path, setup=met)])
    assert installed(python) == {"trainer": "0.1"}


def test_what_is_unmet_is_installed_with_what_it_requires_and_the_runtime_keeps_its_versions(choice, tmp_path):
    unmet = sdist(tmp_path, setup="packages=find_packages(), install_requires=['wings[any]', 'tiny']")
    python = layers.ensure(choice, [unmet])
    assert installed(python) == {"trainer": "0.1", "wings": "3.0", "feather": "1.5"}
    assert run(python, "import wings, tiny; print(tiny.WORD)") == "tiny 1.0"


def test_an_extra_of_what_is_there_counts(choice, tmp_path):
    base = wheel(tmp_path, "base", "1.0", {"base.py": ""}, requires=["feather; extra == 'fly'"])
    plain = layers.ensure(choice, [base])
    assert installed(plain) == {"base": "1.0"}
    asks = sdist(tmp_path, setup="packages=find_packages(), install_requires=['wings; extra == \"x\"', 'tiny>1']")
    assert installed(layers.ensure(choice, [base, asks]))["tiny"] == "2.0"


def test_a_package_that_asks_for_another_version_than_the_runtimes_gets_it_in_its_layer_only(choice, tmp_path):
    newer = sdist(tmp_path, setup="packages=find_packages(), install_requires=['tiny>=2']")
    assert run(layers.ensure(choice, [newer]), "import trainer.task") == "tiny 2.0"
    assert run(runtimes.build(choice), "import tiny; print(tiny.WORD)") == "tiny 1.0"


@pytest.mark.parametrize("fenced", [False, True])
def test_what_is_required_and_comes_as_source_alone_is_built_behind_the_fence_if_there_is_one(
    fresh, tmp_path, fenced, jailed
):
    if fenced and not jailed:
        pytest.skip("no jail can be made here: see README.md")
    (tmp_path / "bundle.crt").write_text("")
    (tmp_path / "attempt").mkdir()
    order = Order("a1", "", "", 0, str(tmp_path / "bundle.crt"))
    work = plan.predicting("model", runtime="2.21", python=HERE, framework="TENSORFLOW")
    around = Fence(order, tmp_path / "attempt", work) if fenced else None
    wants = sdist(tmp_path, setup="packages=find_packages(), install_requires=['stone', 'feather']")
    python = layers.ensure(fresh, [wants], fence=around)
    assert installed(python) == {"trainer": "0.1", "stone": "0.1", "feather": "1.5"}
    seen = run(python, "import importlib.metadata as m, stone; print(m.metadata('stone')['Summary'])").split(",")
    assert ("workspace" in seen) is fenced
    assert not (python.parent.parent / "uv").exists()


def test_a_wheel_that_swells_when_it_is_unpacked_is_refused_before_it_is(choice, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "WHOLE", 1 << 20)
    swollen = wheel(tmp_path, "swollen", "1.0", {"swollen.py": "#" * (3 << 20)})
    with pytest.raises(
        errors.FailedPrecondition, match=r"It unpacks to 3 MiB, and there is room for 1 MiB\. What your"
    ):
        layers.ensure(choice, [swollen])
    fits = wheel(tmp_path, "fits", "1.0", {"fits.py": "#" * 1000})
    assert installed(layers.ensure(choice, [fits])) == {"fits": "1.0"}


def test_a_requirement_that_cannot_be_had_is_named(choice, tmp_path):
    wants = sdist(tmp_path, setup="packages=find_packages(), install_requires=['unobtainium>=7']")
    with pytest.raises(errors.FailedPrecondition, match=r"trainer-0\.1\.tar\.gz requires unobtainium>=7, .* 0\.1"):
        layers.ensure(choice, [wants])


@pytest.mark.parametrize("tool", ["setuptools", "unknown-tool"])
def test_a_network_that_is_away_is_not_the_users_fault(choice, tmp_path, monkeypatch, tool):
    runtimes.build(choice)
    monkeypatch.delenv("TAXIWAY_WHEELHOUSE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")  # where nobody listens
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    pyproject = f'[build-system]\nrequires = ["{tool}"]\nbuild-backend = "setuptools.build_meta"\n'
    files = {"pyproject.toml": pyproject, "trainer/__init__.py": ""}
    wants = sdist(tmp_path, setup="packages=find_packages(), install_requires=['unobtainium']", files=files)
    with pytest.raises(
        errors.Unavailable, match=r"(?s)could not be installed\. Check the network .*Connection refused"
    ):
        layers.ensure(choice, [wants])


def test_a_package_that_is_built_with_another_tool_than_setuptools_gets_that_tool(choice, tmp_path):
    pyproject = textwrap.dedent("""
        [build-system]
        requires = ["unknown-tool"]
        build-backend = "unknown_tool"
    """)
    other = sdist(tmp_path, files={"pyproject.toml": pyproject, "trainer/__init__.py": ""})
    with pytest.raises(errors.FailedPrecondition, match="unknown-tool"):
        layers.ensure(choice, [other])


def test_a_build_hears_nothing_of_ours(choice, tmp_path, monkeypatch):
    monkeypatch.setenv("TAXIWAY_TOKEN_FILE", "/secret")
    monkeypatch.setenv("PYTHONPATH", "/misleading")
    nosy = (
        "packages=find_packages(), keywords=[k for k in __import__('os').environ if k[:8] in ('TAXIWAY_', 'PYTHONPA')]"
    )
    python = layers.ensure(choice, [sdist(tmp_path, setup=nosy)])
    assert run(python, "import importlib.metadata as m; print(m.metadata('trainer')['Keywords'])") == "None"


@pytest.mark.runtime
def test_the_default_runtime_has_what_trainers_import(tmp_path):
    choice = runtimes.resolve(None, None)
    python = runtimes.build(choice)
    code = f"""
        import google.cloud.storage, hypertune, msgspec, pkg_resources, sklearn, tensorboard, xgboost
        import tensorflow as tf
        with tf.summary.create_file_writer({str(tmp_path)!r}).as_default():
            tf.summary.scalar("loss", 1.0, step=1)
        print(tf.__version__)
    """
    assert run(python, f"import warnings; warnings.simplefilter('ignore')\n{textwrap.dedent(code)}") == "2.21.0"
    assert [name for name in os.listdir(tmp_path) if name.startswith("events")]


@pytest.mark.runtime
@pytest.mark.torture
def test_a_machine_without_a_network_builds_a_runtime_from_what_another_one_downloaded(tmp_path):
    if pythons.find("3.6") is None:
        pytest.skip("Python 3.6 is not on this machine")
    wheels = tmp_path / "wheels"
    done = taxiway("download", str(wheels), "1.8")
    assert (done.stdout, done.returncode) == (f"{wheels}\n", 0), done.stderr
    assert {folders.normal(line) for line in runtimes.pins(runtimes.table()["1.8"].lock)} == {
        folders.normal(re.split(r"-\d", each.name)[0]) for each in wheels.iterdir()
    }
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")  # nobody listens
    nowhere |= {"UV_HTTP_RETRIES": "0", "TAXIWAY_CACHE": str(tmp_path / "cache")}
    failed = taxiway("build", "1.8", **nowhere)
    assert (failed.returncode, "Check the network" in failed.stderr) == (1, True)
    built = taxiway("python", "1.8", TAXIWAY_WHEELHOUSE=str(wheels), **nowhere)
    assert built.returncode == 0, built.stderr
    assert run(built.stdout.strip(), "import tensorflow; print(tensorflow.__version__)") == "1.8.0"


@pytest.mark.usefixtures("fresh")
def test_a_wheelhouse_that_cannot_be_made_or_filled_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    refused = taxiway("download", str(tmp_path / "file"))
    assert (refused.stdout, refused.returncode) == ("", 1)
    assert f"The folder {tmp_path / 'file'} cannot be made" in refused.stderr
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "UV_HTTP_RETRIES": "0"}
    failed = taxiway("download", str(tmp_path / "wheels"), **nowhere)
    assert (failed.stdout, failed.returncode) == ("", 1)
    assert "could not all be fetched into" in failed.stderr
    assert "Traceback" not in failed.stderr
