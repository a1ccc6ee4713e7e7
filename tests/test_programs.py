"""gsutil on a job's PATH: Google's own, as the job's account, for who names it and for nobody else."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile

import pytest
from trainers import FILES, Lab, sdist

from taxiway import plan
from taxiway.environments import folders
from taxiway.replica import programs
from taxiway.schemas import TrainingInput

NAMES_IT = """
import json
import os
import subprocess
import sys
import tempfile

bucket = sys.argv[1]
own = tempfile.mkdtemp()
open(own + "/a", "w").write("by gsutil")
open(own + "/sitecustomize.py", "w").write("raise SystemExit('gsutil ran with what was meant for the job')")
os.environ["PYTHONPATH"] = own
assert os.system("gsutil -q cp {}/a gs://{}/by/a".format(own, bucket)) == 0
listed = subprocess.run(["gsutil", "ls", "gs://{}/by".format(bucket)], stdout=subprocess.PIPE, check=True)
print(json.dumps(listed.stdout.decode().split()))
refused = subprocess.run(["gsutil", "ls", "gs://{}-closed".format(bucket)], stderr=subprocess.PIPE)
print(json.dumps([refused.returncode, refused.stderr.decode().strip()]))
print(json.dumps(subprocess.run("which gsutil python", shell=True, stdout=subprocess.PIPE).stdout.decode().split()))
"""


def opened(server):
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    lab.make(f"{lab.bucket}-closed")
    return lab


def tried(lab, server):
    """A job whose package runs gsutil: what it did as the job's account, and what it was refused."""
    package = lab.put("names/trainer-0.1.tar.gz", sdist({**FILES, "trainer/task.py": NAMES_IT}))
    job = lab.submit("", args=[lab.bucket], packageUris=[package])
    assert lab.ended(job)["state"] == "SUCCEEDED", "\n".join(lab.said(job))
    listed, refused, found = [json.loads(line) for line in lab.printed(job) if line.startswith("[")]
    assert lab.read("by/a") == b"by gsutil"
    assert listed == [f"gs://{lab.bucket}/by/a"]
    assert refused[0] == 1
    assert "403" in refused[1], refused[1]
    assert server.address.service_agent in refused[1]
    assert found[0].endswith("/programs/gsutil")
    assert "/environments/" in found[1]  # the Python is the job's own


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime_python", "gsutil_program")
def test_a_package_that_names_it_runs_it_as_the_job_in_a_jail(server, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    lab = opened(server)
    tried(lab, server)
    job = lab.submit("import shutil; print(shutil.which('gsutil'))")  # who names it in an argument
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert lab.printed(job)[0].endswith("/programs/gsutil")


@pytest.mark.runtime
@pytest.mark.usefixtures("runtime_python", "gsutil_program")
def test_so_it_does_without_a_jail(start_server):
    server = start_server(None, TAXIWAY_JAIL="off")
    tried(opened(server), server)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Asks for the programs of a job with such a file in its package, where nothing is built and nothing can be had."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TAXIWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", str(tmp_path / "empty"))
    said, progress = [], []

    def ask(text, *args, own=False):
        told = TrainingInput(python_module="trainer.task", args=args)
        (work,) = plan.training("p", 7, "job_1", told, runtime="2.21", python="3.11")
        package = tmp_path / "trainer-0.1.tar.gz"
        package.write_bytes(sdist({**FILES, "trainer/task.py": text}))
        bin_ = tmp_path / "environment/bin"
        bin_.mkdir(parents=True, exist_ok=True)
        if own:
            (bin_ / "gsutil").touch()
        found = programs.found(work, [package], bin_ / "python", progress.append, lambda *words: said.append(words))
        return found, said, progress

    return ask


def test_where_it_cannot_be_had_the_log_warns_and_the_job_runs_on(asked):
    found, said, progress = asked("import os; os.system('gsutil ls')")
    assert (dict(found.variables), list(found.read)) == ({}, [])
    ((sentence, severity),) = said
    assert severity == "WARNING"
    assert sentence.startswith("The job names gsutil, which could not be built; ")
    assert "TAXIWAY_WHEELHOUSE" in sentence
    assert progress[0].text == "Building gsutil, which the job's package or arguments name"


def test_nobody_else_pays_for_it_nor_who_brings_a_gsutil(asked):
    for text, args, own in [("print(1)", [], False), ("print('gs util')", ["gs://b/x"], False), ("gsutil", [], True)]:
        found, said, progress = asked(text, *args, own=own)
        assert (found, said, progress) == (programs.Found(), [], [])
    assert not (folders.cache() / "runtimes").exists()


MODES = {"tar.gz": "gz", "tgz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}
PLAIN = b"x" * (programs.PIECE - 3)


@pytest.mark.parametrize("kind", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "zip", "whl"])
@pytest.mark.parametrize(
    ("name", "data", "there"),
    [
        ("task.py", b"import os; os.system('gsutil ls')", True),
        ("large.py", PLAIN + b"gsutil" + PLAIN, True),  # the piece that is read ends within the word
        ("gsutil.py", b"", True),
        ("task.py", b"gs" + PLAIN + b"util", False),
        ("empty.py", b"", False),
    ],
)
def test_a_word_is_found_in_every_kind_of_package(tmp_path, kind, name, data, there):
    path = tmp_path / f"trainer-0.1.{kind}"
    if kind in ("zip", "whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"trainer/{name}", data)
    else:
        with tarfile.open(path, f"w:{MODES[kind]}") as archive:
            member = tarfile.TarInfo(f"trainer-0.1/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert programs.holds(path, b"gsutil") is there


def test_what_lies_behind_the_first_megabytes_of_a_package_is_data(tmp_path):
    path = tmp_path / "trainer-0.1.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("data.bin", "w") as member:
            for _ in range(programs.SEARCHED // programs.PIECE):
                member.write(bytes(programs.PIECE))
        archive.writestr("gsutil.py", "")
    assert not programs.holds(path, b"gsutil")
    path.write_bytes(path.read_bytes()[:100])
    assert not programs.holds(path, b"gsutil")
