"""The look at a job before it is queued: packages of every bad kind, modules, arguments, requirements; nothing runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import socket
import struct
import tarfile
import textwrap
import time
import uuid
import zipfile
from contextlib import suppress
from pathlib import Path

import people
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainers import Lab, sdist

from taxiway.cli import packaging
from taxiway.environments import indexes, runtimes
from taxiway.jobs import preflight, preflight_package, reading
from taxiway.jobs.preflight_package import MIB, Unsafe

SETUP = "from setuptools import find_packages, setup\nsetup(name='trainer', packages=find_packages())\n"
TASK = """
import argparse

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_steps", type=int, default=10)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--job-dir")
    parser.add_argument("-v", "--verbose", action="store_true")
    print(parser.parse_args())

main()
"""
GOOD = {"setup.py": SETUP, "trainer/__init__.py": "", "trainer/task.py": TASK}


@pytest.fixture(scope="module")
def lab(server):
    return Lab(server.call, server.project, server.address.service_agent).open()


def tar(*members, mode="w:gz"):
    """An archive of (name, what): bytes, or a change of its entry."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, what in members:
            entry = tarfile.TarInfo(name)
            if callable(what):
                what(entry)
                archive.addfile(entry)
            else:
                entry.size = len(what)
                archive.addfile(entry, io.BytesIO(what))
    return made.getvalue()


def link(target, kind=tarfile.SYMTYPE):
    def change(entry):
        entry.type, entry.linkname = kind, target

    return change


def typed(kind):
    def change(entry):
        entry.type = kind

    return change


def zipped(*members):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, *mode in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (mode[0] if mode else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return made.getvalue()


def look(data, name="trainer-0.1.tar.gz", top="trainer"):
    return preflight_package.look(name, io.BytesIO(data), len(data), top)


def zeros(size):
    """A .tar.gz with so many bytes of nothing."""
    entry = tarfile.TarInfo("t-0.1/data")
    entry.size = size
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as file:
        file.write(entry.tobuf())
        for _ in range(size // MIB):
            file.write(bytes(MIB))
        file.write(bytes(1024))
    return made.getvalue()


# --- packages that are good ---


@pytest.mark.parametrize(
    ("ending", "mode"), [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")]
)
def test_a_source_package_of_every_kind_is_looked_into(ending, mode):
    members = [(f"trainer-0.1/{name}", text.encode()) for name, text in GOOD.items()]
    contents = look(tar(*members, mode=mode), f"a/trainer-0.1.{ending}")
    assert contents.whole
    assert contents.finds("trainer.task") == "trainer-0.1/trainer/task.py"
    assert contents.finds("trainer.tusk") == ""
    assert contents.modules("trainer") == ["trainer.task"]
    assert contents.sources["trainer-0.1/trainer/task.py"] == TASK
    assert contents.texts == {"trainer-0.1/setup.py": SETUP}


def test_wheels_and_zips_and_packages_without_a_folder_of_their_own_are_looked_into():
    wheel = zipped(("trainer/task.py", TASK), ("trainer-0.1.dist-info/METADATA", "Name: t\nRequires-Dist: six\n\nx"))
    contents = look(wheel, "trainer-0.1-py3-none-any.whl")
    assert contents.finds("trainer.task") == "trainer/task.py"
    assert list(contents.texts) == ["trainer-0.1.dist-info/METADATA"]
    assert (
        look(zipped(("t-1/src/trainer/__main__.py", "")), "t-1.zip").finds("trainer") == "t-1/src/trainer/__main__.py"
    )
    assert look(tar(("trainer/task.py", b""), ("setup.py", b""))).finds("trainer.task") == "trainer/task.py"
    assert look(tar(("t-1/trainer/task.cpython-311-x86_64-linux-gnu.so", b"elf"))).finds("trainer.task")


def test_links_within_the_package_are_fine():
    contents = look(
        tar(
            ("t/trainer/task.py", b""),
            ("t/trainer/same.py", link("task.py")),
            ("t/up/same.py", link("../trainer/task.py")),
            ("t/hard.py", link("t/trainer/task.py", tarfile.LNKTYPE)),
            ("t/folder", link("trainer")),
        )
    )
    assert contents.finds("trainer.task")


# --- packages that are bad ---


ESCAPES = {
    "an absolute path": (("t/a", b""), ("/etc/cron.d/x", b"")),
    "a path upwards": (("t/../../x", b""),),
    "a path up and down again": (("t/a/../b", b""),),
    "a link to the host": (("t/a", link("/etc/passwd")),),
    "a link upwards": (("t/a", link("../../x")),),
    "a link through a link": (("t/x", link(".")), ("t/y", link("x/../.."))),
    "a link up through what may be one": (("t/y", link("x/..")),),
    "a hard link to the host": (("t/a", link("/etc/passwd", tarfile.LNKTYPE)),),
    "a hard link upwards": (("t/a", link("../x", tarfile.LNKTYPE)),),
    "a file beneath a link": (("t/d", link("sub")), ("t/d/x", b"")),
    "a file beneath what becomes a link": (("t/d/x", b""), ("t/d", link("sub"))),
    "a link that is moved by a hard one": (("t/d/s", link("../../t")), ("h", link("t/d/s", tarfile.LNKTYPE))),
    "a character device": (("t/null", typed(tarfile.CHRTYPE)),),
    "a block device": (("t/sda", typed(tarfile.BLKTYPE)),),
    "a pipe": (("t/pipe", typed(tarfile.FIFOTYPE)),),
}


@pytest.mark.parametrize("members", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_package_that_would_leave_its_folder_is_refused(members):
    with pytest.raises(Unsafe, match=r"outside its folder|is a device or a pipe|beneath"):
        look(tar(*members))


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/x", ""),
        ("../x", ""),
        ("t\\..\\..\\x", ""),
        ("t/l", "/etc/passwd", 0o120777),
        ("t/l", "../../x", 0o120777),
        ("t/null", "", 0o020666),
        ("t/pipe", "", 0o010666),
    ],
)
def test_so_is_a_wheel(member):
    with pytest.raises(Unsafe, match=r"outside its folder|is a device or a pipe"):
        look(zipped(("t/a.py", ""), member), "t-1-py3-none-any.whl")


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar.bz2", "t.tar.xz", "t.zip", "t.whl"])
def test_what_is_no_archive_is_refused_by_its_kind(name):
    for data in (b"", b"no archive at all", os.urandom(100_000), bytes(100_000), gzip.compress(b"no tar" * 1000)):
        with pytest.raises(Unsafe, match=r"is no \w+ archive|is cut short|is an empty archive"):
            look(data, name)


def test_a_package_that_is_cut_short_is_refused():
    whole = tar(("t/trainer/task.py", os.urandom(50_000)))
    for size in (len(whole) // 2, len(whole) - 4):
        with pytest.raises(Unsafe, match="is cut short"):
            look(whole[:size])
    wheel = zipped(("trainer/task.py", os.urandom(50_000)))
    with pytest.raises(Unsafe, match="is no zip archive, or is damaged"):
        look(wheel[: len(wheel) // 2], "t.whl")


def test_a_package_with_a_wrong_byte_is_refused():
    data = bytearray(tar(("t/trainer/data", os.urandom(50_000))))
    data[len(data) // 2] ^= 1
    with pytest.raises(Unsafe, match="is damaged"):
        look(bytes(data))
    wheel = bytearray(zipped(("trainer/data", os.urandom(50_000))))
    wheel[len(wheel) // 2] ^= 1
    with pytest.raises(Unsafe, match="is damaged"):
        look(bytes(wheel), "t.whl")


def test_a_bomb_is_refused_in_flat_memory():
    bomb = zeros(400 * MIB)
    assert len(bomb) < 4 * MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unsafe, match=r"unpacks to \d+ MiB or more"):
        look(bomb)
    lying = zipped(("t/a", bytes(200 * MIB)))
    with pytest.raises(Unsafe, match="unpacks to 200 MiB or more"):
        look(lying, "t.whl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB, of which 200 MiB are ours


def test_what_overlaps_in_a_zip_is_refused():
    data = bytearray(zipped(("t/a", os.urandom(1000)), ("t/b", os.urandom(1000))))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 24] = struct.pack("<I", 1_000_000)  # the size that the list gives to the first
    with pytest.raises(Unsafe, match="overlap"):
        look(bytes(data), "t.zip")


def test_headers_that_are_made_to_fill_memory_or_to_go_in_circles_are_refused():
    def header(size, kind=tarfile.XHDTYPE):
        entry = tarfile.TarInfo("x")
        entry.type, entry.size = kind, size
        return entry.tobuf(format=tarfile.GNU_FORMAT)

    with pytest.raises(Unsafe, match="has a header of"):
        look(gzip.compress(header(2**33) + bytes(4096)))
    with pytest.raises(Unsafe, match=r"begins before|damaged|a header of"):
        look(gzip.compress(header(-(2**20), tarfile.REGTYPE) + bytes(4096)))
    with pytest.raises(Unsafe, match="is no gz archive, or is damaged"):
        look(gzip.compress((header(6) + b"6 a=b\n".ljust(512, b"\0")) * 1000))
    with pytest.raises(Unsafe, match="a header of more than 2 MiB"):
        look(gzip.compress((header(2**20) + b"9 a=b\n".ljust(2**20, b"\0")) * 3))
    sparse = bytearray(header(0, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # its map goes on in the next block, and in the next
    sparse[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(sparse))[0]
    with pytest.raises(Unsafe, match="a header of more than 2 MiB"):
        look(gzip.compress(bytes(sparse) + (b"1".ljust(12, b"\0") * 42 + b"\1").ljust(512, b"\0") * 5000))


def test_names_without_an_end_and_folders_without_a_floor_are_refused(monkeypatch):
    with pytest.raises(Unsafe, match=r"has a member whose path has 3,002 characters"):
        look(tar((f"t/{'a' * 3000}/", b"")))
    with pytest.raises(Unsafe, match=r"to a path of 3,000 characters"):
        look(tar(("t/a", link("a" * 3000))))
    monkeypatch.setattr(preflight_package, "NAMES", 10_000)
    with pytest.raises(Unsafe, match="too many folders"):
        look(tar(*((f"{number}/{'a/' * 300}x", b"") for number in range(2))))


def test_a_gzip_whose_header_never_ends_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(preflight_package, "LOOK_S", 0.5)
    began = time.monotonic()
    assert not look(b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 20 * MIB).whole
    assert time.monotonic() - began < 5


def test_a_package_of_too_many_members_is_refused(monkeypatch):
    monkeypatch.setattr(preflight_package, "MEMBERS", 10)
    with pytest.raises(Unsafe, match="has more than 10 members"):
        look(tar(*((f"t/{number}", b"") for number in range(11))))


def test_a_package_that_takes_too_long_is_let_pass_and_known_to_be_unseen(monkeypatch):
    monkeypatch.setattr(preflight_package, "LOOK_S", -1.0)
    for data, name in ((tar(("t/a.py", b"")), "t.tar.gz"), (zipped(("t/a.py", "")), "t.whl")):
        assert not look(data, name).whole


@given(st.binary(max_size=3000), st.sampled_from(["t.tar.gz", "t.tar.bz2", "t.tar.xz", "t.whl"]))
def test_whatever_bytes_come_they_are_refused_or_read(data, name):
    with suppress(Unsafe):
        look(data, name)
    with suppress(Unsafe):
        look(gzip.compress(data), name)


# --- what the code says, without running it ---


def read(text, path="t/trainer/task.py"):
    return reading.read({path: textwrap.dedent(text)}, path)


def test_the_arguments_of_argparse_are_read():
    found = read(TASK)
    assert found["takes"] == ["help", "job-dir", "output_dir", "train_steps", "verbose"]
    assert found["needs"] == ["output_dir"]
    assert found["closed"]


@pytest.mark.parametrize(
    "line",
    [
        "parser.parse_known_args()",
        "parser.add_argument(NAME)",
        "parser.add_argument(*names)",
        "somebody.adds_more(parser)",
        "parser.add_subparsers()",
        "argparse.ArgumentParser(parents=[theirs])",
        "tf.app.run()",
        "tf.compat.v1.app.run(main)",
    ],
)
def test_code_that_takes_others_is_not_closed(line):
    assert not read(f"import argparse\nparser = argparse.ArgumentParser()\n{line}\n")["closed"]


def test_a_parser_that_stays_within_the_package_is_closed():
    task = "parser = ArgumentParser()\nflags.add_flags(parser)\n"
    files = {
        "t/trainer/flags.py": "def add_flags(parser):\n    parser.add_argument('--x')\n",
        "t/trainer/other.py": "parser = ArgumentParser()\nparser.add_argument('--y', required=True)\n",
    }
    for line in ("from trainer import flags", "from . import flags", "import flags", "import trainer.flags as flags"):
        found = reading.read({**files, "t/trainer/task.py": f"{line}\n{task}"}, "t/trainer/task.py")
        assert found["closed"]
        assert (found["takes"], found["needs"]) == (["help", "x"], [])


def test_the_flags_of_absl_are_read():
    found = read(
        """
        from absl import app, flags
        flags.DEFINE_integer("steps", 5, "Steps.")
        flags.DEFINE_boolean("cached", True, "Cache.")
        flags.DEFINE_string(name="out", default=None, help="Out.", required=True)
        flags.mark_flags_as_required(["steps"])
        app.run(main)
        """
    )
    assert {"steps", "cached", "nocached", "out", "verbosity"} <= set(found["takes"])
    assert found["needs"] == ["out", "steps"]
    assert found["closed"]
    assert not read("sys.argv[1]")["closed"]


def test_another_name_for_add_argument_is_followed_and_names_may_have_to_be_whole():
    found = read(
        """
        parser = argparse.ArgumentParser(allow_abbrev=False)
        add = parser.add_argument
        add("--steps", required=True)
        parser.parse_args()
        """
    )
    assert found["takes"] == ["help", "steps"]
    assert found["needs"] == ["steps"]
    assert found["closed"]
    assert found["exact"]


def test_a_setup_file_is_read_and_what_is_no_python_is_told():
    found = reading.read(
        {
            "t/setup.py": "REQUIRED = ['six>=1', 'numpy']\nsetup(install_requires=REQUIRED, package_dir={'': 'lib'})\n",
            "t/trainer/task.py": "x = 1\nprint 'x'\n",
        },
        "t/trainer/task.py",
    )
    assert found["requires"] == ["six>=1", "numpy"]
    assert found["moved"]
    assert found["wrong"]["t/trainer/task.py"].startswith("line 2: Missing parentheses")


def test_a_file_that_ends_the_parser_ends_not_us():
    deep = {"t/trainer/task.py": f"x = {'+'.join(['1'] * 60_000)}"}
    found = preflight._read(deep, "t/trainer/task.py")
    assert found is None or found["wrong"]


@pytest.mark.parametrize(
    "line",
    [
        "numpy",
        "numpy>=1.26",
        "google-cloud-storage [grpc,x] >= 2, < 3 ; python_version < '3.9'",
        "pandas (==2.2.*)",
        "pandas (>=2)",
        "x @ https://example.com/x.whl",
        "tensorflow==1.15.0+cpu",
        "six~=1.16,!=1.16.1",
    ],
)
def test_requirements_are_read(line):
    assert preflight._is_requirement(line)


@pytest.mark.parametrize("line", ["", "numpy>>1", "numpy 1.2", "-r more.txt", "==1", "a b", "numpy=>1"])
def test_what_is_no_requirement_is_known(line):
    assert not preflight._is_requirement(line)


def test_the_arguments_of_the_taxifare_trainer_are_known():
    made = packaging.build(Path(__file__).parent.parent / "examples/taxifare/trainer")
    contents = look(made.content, made.file)
    found = reading.read(contents.sources, contents.finds("trainer.task"))
    assert {"train_data_paths", "eval_data_paths", "output_dir", "job-dir", "features"} <= set(found["takes"])
    assert found["needs"] == ["eval_data_paths", "output_dir", "train_data_paths"]
    assert found["closed"]


# --- what an index has ---


@pytest.fixture
def choice():
    return runtimes.resolve(None, None)


def test_what_the_runtime_holds_and_what_names_a_url_is_not_asked_for(choice):
    lines = ["numpy>=1", "TensorFlow==2.21", "tiny", "feather >= 2 ; python_version > '3'", "x @ http://10.0.0.1/x.whl"]
    assert indexes.beyond(choice, lines) == ["feather >= 2 ; python_version > '3'", "tiny"]


def test_what_no_index_has_is_known_and_an_index_that_is_away_says_nothing(choice, tmp_path, monkeypatch):
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.5\n"
    wheel = zipped(
        ("tiny.py", ""),
        ("tiny-1.5.dist-info/METADATA", about),
        ("tiny-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("tiny-1.5.dist-info/RECORD", ""),
    )
    (tmp_path / "tiny-1.5-py3-none-any.whl").write_bytes(wheel)
    ran = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "feather-1.0.tar.gz").write_bytes(tar(("feather-1.0/setup.py", ran.encode())))
    monkeypatch.setenv("TAXIWAY_WHEELHOUSE", str(tmp_path))
    assert indexes.unavailable(choice, ["tiny>=1"]) == []
    assert indexes.unavailable(choice, ["tiny>=2", "unobtainium", "tiny<3"]) == ["tiny>=2", "unobtainium"]
    assert indexes.unavailable(choice, ["feather"]) in (None, [])  # its setup.py would have to run
    assert not (tmp_path / "ran").exists()
    monkeypatch.delenv("TAXIWAY_WHEELHOUSE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")  # where nobody listens
    assert indexes.unavailable(choice, ["tiny>=1"]) is None


def test_an_index_that_does_not_answer_is_not_waited_for(choice, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("TAXIWAY_WHEELHOUSE", raising=False)
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setattr(indexes, "SECONDS", 0.5)
        began = time.monotonic()
        assert indexes.unavailable(choice, ["never-asked-before>=1"]) is None
        assert time.monotonic() - began < 5


# --- on the wire ---


def package(lab, files=GOOD, name="trainer-0.1.tar.gz"):
    data = files if isinstance(files, bytes) else sdist(files)
    return lab.put(f"{uuid.uuid4().hex[:8]}/{name}", data)


def validate(lab, code="", **told):
    body = lab.body(code, **{"args": [], **told})
    answer = lab.call("POST", f"/v1/projects/{lab.project}/jobs?validateOnly=true", json=body)
    assert lab.call("GET", f"/v1/projects/{lab.project}/jobs/{body['jobId']}").status_code == 404
    return answer


def warned(lab, *args, files=GOOD, **told):
    answer = validate(lab, packageUris=[package(lab, files)], args=list(args), **told)
    assert answer.status_code == 200, answer.text
    return answer.json()["warnings"]


def test_validate_only_tells_what_it_looked_at_and_queues_nothing(lab):
    out = f"gs://{lab.bucket}/out"
    answer = validate(lab, packageUris=[package(lab)], args=["--output_dir", out], jobDir=out)
    told = answer.json()
    assert told["warnings"] == []
    assert "state" not in told
    assert told["trainingInput"]["runtimeVersion"] == "2.21"
    said = "\n".join(told["checks"])
    for words in (
        "Runtime version 2.21 with Python 3.",
        "Scale tier BASIC runs with at most ",
        f"serviceAccount:{lab.agent} may read the packages and write {out}.",
        "trainer-0.1.tar.gz can be unpacked: nothing in it leads outside its folder.",
        "The module trainer.task is in trainer-0.1.tar.gz.",
        "compared with those that the code takes: --help, --job-dir, --output_dir, --train_steps, --verbose.",
        f"The gs:// addresses among the arguments were looked up: {out}.",
    ):
        assert words in said


def test_validate_only_refuses_what_would_be_refused(lab):
    assert validate(lab, region="mars").status_code == 400
    assert validate(lab, packageUris=[f"gs://{lab.bucket}/none.tar.gz"]).status_code == 404
    path = f"/v1/projects/{lab.project}/jobs"
    refused = lab.call("POST", f"{path}?validateOnly=perhaps", json=lab.body())
    assert refused.status_code == 400
    assert "validateOnly" in refused.json()["error"]["message"]
    job = lab.submit("pass")
    lab.cancel(job)
    taken = lab.call("POST", f"{path}?validateOnly=true", json=lab.body("", job=job))
    assert taken.status_code == 409


@pytest.mark.parametrize("members", [ESCAPES["an absolute path"], ESCAPES["a pipe"]])
def test_a_bad_package_is_refused_by_its_field_and_its_name_and_nothing_is_queued(lab, members):
    uri = package(lab, tar(*members), "evil-0.1.tar.gz")
    body = lab.body("", packageUris=[package(lab), uri])
    answer = lab.post(body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(f"Field: trainingInput.packageUris[1] Error: {uri} has '")
    assert lab.call("GET", f"/v1/projects/{lab.project}/jobs/{body['jobId']}").status_code == 404


def test_a_module_that_is_in_no_package_is_refused_with_those_that_are(lab):
    answer = validate(lab, packageUris=[package(lab)], pythonModule="trainer.tusk")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Field: trainingInput.pythonModule Error: trainer.tusk is in none of the packages. They have trainer.task. "
        "Did you mean trainer.task?"
    )


def test_a_module_that_something_else_may_bring_is_a_warning(lab):
    setup = SETUP.replace("name=", "install_requires=['numpy'], name=")
    (told,) = warned(lab, files={**GOOD, "setup.py": setup}, pythonModule="elsewhere.task")
    assert told.startswith("The module elsewhere.task is in none of the packages")
    moved = {"setup.py": SETUP.replace("name=", "package_dir={'trainer': 'code'}, name="), "code/task.py": ""}
    (told,) = warned(lab, files=moved)
    assert told.startswith("The module trainer.task is in none of the packages")
    assert warned(lab, pythonModule="http.server") == []


@pytest.mark.parametrize(
    ("args", "told", "words"),
    [
        (["--output_dir=x"], {}, []),
        (["--out=x", "--train", "5", "--verb"], {}, []),
        (["--output_dir=x", "--", "--whatever"], {}, []),
        (
            ["--output_dir=x", "--train_step_count=5"],
            {},
            ["take no argument --train_step_count. Did you mean --train_st"],
        ),
        (["--output_dir=x", "--zzz"], {}, ["take no argument --zzz. It takes --help, --job-dir, --output_dir"]),
        ([], {}, ["seems to need the argument --output_dir"]),
    ],
)
def test_arguments_are_compared_with_those_that_the_code_takes(lab, args, told, words):
    found = warned(lab, *args, **told)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_a_parser_that_wants_whole_names_gets_them(lab):
    task = TASK.replace("ArgumentParser()", "ArgumentParser(allow_abbrev=False)")
    assert len(warned(lab, "--output_dir=x", "--train=5", files={**GOOD, "trainer/task.py": task})) == 1


def test_a_job_dir_that_the_code_does_not_take_is_a_warning(lab):
    task = TASK.replace('    parser.add_argument("--job-dir")\n', "")
    (told,) = warned(lab, "--output_dir=x", files={**GOOD, "trainer/task.py": task}, jobDir=f"gs://{lab.bucket}/o")
    assert told == "jobDir is passed as --job-dir, and trainer.task seems to take no such argument."


def test_a_requirement_or_a_file_that_cannot_be_read_and_a_missing_init_are_warnings(lab):
    setup = SETUP.replace("name=", "install_requires=['numpy>>1', 'six'], name=")
    (told,) = warned(lab, "--output_dir=x", files={**GOOD, "setup.py": setup})
    assert told.startswith("trainer-0.1.tar.gz requires 'numpy>>1', which cannot be read.")
    (told,) = warned(lab, files={**GOOD, "trainer/task.py": "print 'x'\n"})
    assert told.startswith("trainer-0.1/trainer/task.py of trainer-0.1.tar.gz cannot be read as Python 3: line 1: ")
    (told,) = warned(lab, "--output_dir=x", files={name: text for name, text in GOOD.items() if "init" not in name})
    assert told.startswith("trainer/ has no __init__.py")


def test_warnings_go_to_the_log_of_a_job_before_it_is_queued_and_into_the_answer(lab):
    out = f"gs://{lab.bucket}/nothing*"
    made = lab.post(lab.body("", packageUris=[package(lab)], args=["--no_such", out], region="europe-west1")).json()
    job = made["jobId"]
    lab.cancel(job)
    entries = lab.entries(job)
    told = [each["jsonPayload"]["message"] for each in entries if each["severity"] == "WARNING"]
    assert [
        words in "\n".join(told) for words in ("matches", "is in US and the job's", "--no_such", "--output_dir")
    ] == [True] * 4
    assert made["taxiway"]["warnings"] == told
    messages = [each["jsonPayload"]["message"] for each in entries]
    assert messages[0] == "Validating job requirements..."
    assert messages.index("Job creation request has been successfully validated.") > messages.index(told[-1])


def test_no_code_of_a_package_runs(lab, tmp_path):
    mark = tmp_path / "ran"
    ran = f"open({str(mark)!r}, 'w').close()\n"
    files = {**GOOD, "setup.py": ran + SETUP, "trainer/__init__.py": ran, "trainer/task.py": ran + TASK}
    assert warned(lab, "--output_dir=x", files=files) == []
    assert not mark.exists()


def test_a_package_is_looked_through_once_and_anew_when_it_is_replaced(lab, server):
    uri = package(lab, name="t.tar.gz")
    name = uri.removeprefix(f"gs://{lab.bucket}/")
    assert validate(lab, packageUris=[uri], args=["--output_dir=x"]).json()["warnings"] == []
    lab.put(name, sdist({**GOOD, "trainer/task.py": TASK.replace("train_steps", "steps")}))
    (told,) = validate(lab, packageUris=[uri], args=["--output_dir=x", "--train_steps=1"]).json()["warnings"]
    assert "take no argument --train_steps" in told
    lab.put(name, b"no archive")
    assert validate(lab, packageUris=[uri]).status_code == 400
    large = package(lab, {**GOOD, "trainer/noise.py": os.urandom(100_000).hex()})
    (blob,) = [path for path in (server.home / "blobs").iterdir() if path.stat().st_size == size_of(lab, large)]
    assert validate(lab, packageUris=[large]).status_code == 200
    blob.unlink()  # it is not read again
    assert validate(lab, packageUris=[large]).status_code == 200
    assert validate(lab, packageUris=[large], pythonModule="trainer.noise").status_code == 404  # another question


def size_of(lab, uri):
    path = uri.removeprefix(f"gs://{lab.bucket}/").replace("/", "%2F")
    return int(lab.call("GET", f"/storage/v1/b/{lab.bucket}/o/{path}").json()["size"])


def test_a_large_package_costs_no_memory_and_little_time(lab, server):
    noise = os.urandom(4 * MIB)
    files = [(f"t/trainer/{each}.bin", noise) for each in range(16)]
    uri = package(lab, tar(("t/trainer/task.py", b""), ("t/setup.py", SETUP.encode()), *files), "large.tar.gz")
    with open(f"/proc/{server.process.pid}/status") as status:
        before = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    began = time.monotonic()
    assert validate(lab, packageUris=[uri]).status_code == 200
    first = time.monotonic() - began
    with open(f"/proc/{server.process.pid}/status") as status:
        after = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert after - before < 40 * 1024
    assert first < 5
    assert json.dumps(validate(lab, packageUris=[uri]).json())


def test_a_wheel_from_which_the_job_runs_is_found(lab):
    wheel = zipped(
        ("trainer/__init__.py", ""),
        ("trainer/task.py", TASK),
        (
            "trainer-0.1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: trainer\nVersion: 0.1\nRequires-Dist: six\n\n",
        ),
    )
    uri = package(lab, wheel, "trainer-0.1-py3-none-any.whl")
    told = validate(lab, packageUris=[package(lab), uri], args=["--output_dir=x"]).json()
    assert told["warnings"] == []
    assert "The requirements can be read: six." in told["checks"]


def test_who_may_not_make_jobs_may_not_validate_them(lab, server):
    stranger = people.bearer(server, "user:nobody@example.com")
    path = f"/v1/projects/{lab.project}/jobs?validateOnly=true"
    assert server.http.post(path, json=lab.body(), headers=stranger).status_code == 403


def test_a_requirement_that_no_index_has_is_a_warning(start_server, tmp_path):
    (tmp_path / "wheels").mkdir()
    running = start_server(TAXIWAY_WHEELHOUSE=str(tmp_path / "wheels"))
    lab = Lab(running.call, running.project, running.address.service_agent).open()
    setup = SETUP.replace("name=", "install_requires=['unobtainium>=7', 'numpy'], name=")
    (told,) = warned(lab, "--output_dir=x", files={**GOOD, "setup.py": setup})
    assert told.startswith("A package requires unobtainium>=7, and no index has such a version for Python 3.")


# --- the command ---


def test_the_command_prints_what_was_checked_and_warns_before_it_queues(cli, lab, tmp_path):
    folder = tmp_path / "trainer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "task.py").write_text(TASK)
    job = f"j_{uuid.uuid4().hex[:8]}"
    words = ["jobs", "submit", "training", job, "--module-name=trainer.task", f"--package-path={folder}"]
    words += [f"--staging-bucket=gs://{lab.bucket}"]
    looked = cli(*words, "--validate-only", "--", "--steps=5")
    assert looked.returncode == 0, looked.stderr
    assert "WARNING: trainer.task seems to take no argument --steps." in looked.stderr
    assert f"Job [{job}] could be submitted; nothing was queued." in looked.stderr
    assert "checks:" in looked.stdout
    assert "warnings:" in looked.stdout
    assert lab.call("GET", f"/v1/projects/{lab.project}/jobs/{job}").status_code == 404
    ended = cli(*words, "--scale-tier=STANDARD_1", "--", "--steps=5", "--output_dir=x")
    lab.cancel(job)
    assert ended.returncode == 0, ended.stderr
    fewer = (os.cpu_count() or 2) < 8
    assert ("WARNING: Scale tier STANDARD_1 has 1 master, 3 parameter servers" in ended.stderr) is fewer
    assert "WARNING: trainer.task seems to take no argument --steps." in ended.stderr
    assert ended.stderr.index("WARNING") < ended.stderr.index(f"Job [{job}] submitted successfully.")


def test_the_command_asks_for_machines_in_gclouds_words(cli, lab):
    job = f"j_{uuid.uuid4().hex[:8]}"
    words = ["jobs", "submit", "training", job, "--module-name=trainer.task", f"--packages={package(lab)}"]
    words += ["--scale-tier=CUSTOM", "--master-machine-type=n1-standard-1", "--worker-machine-type=n1-highcpu-2"]
    looked = cli(*words, "--worker-count=2", "--validate-only", "--", "--output_dir=x")
    assert looked.returncode == 0, looked.stderr
    assert looked.stderr == f"Job [{job}] could be submitted; nothing was queued.\n"
    refused = cli(*words, "--master-accelerator=type=nvidia-tesla-t4,count=99", "--validate-only")
    assert refused.returncode == 1
    assert "asks for 99 NVIDIA_TESLA_T4" in refused.stderr
    assert cli(*words, "--master-accelerator=t4").returncode == 2
