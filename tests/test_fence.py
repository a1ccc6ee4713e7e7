"""A package's own code while it is built: behind the fence that a replica puts up, as a trainer is in its jail."""

import json
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest
import trainers
from conftest import running
from trainers import Lab

from taxiway import plan
from taxiway.handles import Order
from taxiway.replica import fence

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def lab(server, runtime_python, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    return Lab(server.call, server.project, server.address.service_agent).open()


@pytest.fixture
def around(jailed, tmp_path):
    """A fence of an attempt's whose folder is `tmp_path`."""
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    bundle = tmp_path / "bundle.crt"
    bundle.write_text("")
    work = plan.predicting("model", runtime="2.21", python="3.11", framework="TENSORFLOW")
    (tmp_path / "attempt").mkdir()
    return fence.Fence(Order(uuid.uuid4().hex, "", "", 0, str(bundle)), tmp_path / "attempt", work)


def run(around, code, tmp_path, hosts=()):
    """What Python code prints behind a fence, as JSON."""
    (tmp_path / "own").mkdir()
    command = ["/usr/bin/env", "python3", "-c", code]
    with around.enter(command, {}, read=[], write=tmp_path / "own", hosts=hosts) as entered:
        told = subprocess.run(
            entered.command,
            env=dict(entered.variables),
            pass_fds=entered.passed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


SYSTEM = shutil.which("python3", path="/usr/bin:/bin")
needs_python = pytest.mark.skipif(SYSTEM is None, reason="the system has no Python of its own")

LOOKS = """
import os, setuptools, socket, urllib.request

def tried(what):
    try:
        return str(what())
    except Exception as error:
        return type(error).__name__

seen = [
    tried(lambda: os.listdir({home!r})),
    tried(lambda: socket.create_connection(("127.0.0.1", {port}), 5)),
    tried(lambda: socket.create_connection(("169.254.169.254", 80), 5)),
    tried(lambda: socket.create_connection(("127.0.0.2", 443), 5)),
    tried(lambda: socket.create_connection(("127.0.0.3", 3128), 5)),
    tried(lambda: socket.getaddrinfo("pypi.org", 443)),
    sorted(each for each in os.environ if each.startswith(("TAXIWAY", "GOOGLE"))),
    os.listdir(os.path.expanduser("~")),
]
with open("trainer/seen.py", "w") as file:
    print("SEEN =", seen, file=file)
with open("marks.pth", "w") as file:
    print("import pathlib; pathlib.Path({mark!r}).touch()", file=file)
setuptools.setup(
    name="trainer", version="0.1", packages=["trainer"],
    data_files=[("lib/python%d.%d/site-packages" % __import__("sys").version_info[:2], ["marks.pth"])],
)
"""


def test_a_setup_py_finds_no_file_of_the_host_no_identity_and_no_network(lab, server, tmp_path):
    """And what it leaves for the environment's interpreter to run first is run in the jail alone."""
    mark = f"/tmp/{uuid.uuid4().hex}"
    port = int(server.address.url.rpartition(":")[2])
    looks = LOOKS.format(home=str(server.home), port=port, mark=mark)
    uri = lab.put("looks-0.1.tar.gz", trainers.sdist({**trainers.FILES, "setup.py": looks}))
    code = f"import json, os, trainer.seen; print(json.dumps([trainer.seen.SEEN, os.path.exists({mark!r})]))"
    job = lab.submit(code, packageUris=[uri])
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    seen, marked = json.loads(lab.printed(job)[0])
    refused = "ConnectionRefusedError"
    assert seen == ["FileNotFoundError", refused, refused, refused, refused, "gaierror", [], []]
    assert marked  # the file was there, and its line ran, where the trainer is
    assert not Path(mark).exists()


PLANTS = """
import os, pathlib, setuptools, sys
own = pathlib.Path(os.environ["UV_CACHE_DIR"]).parent  # where its wheel will lie
layer = own.parent.parent
(own / "trainer-0.1.dist-info").symlink_to({victim!r})
planted = []
for place in (pathlib.Path(sys.prefix), layer, layer / "lib", own.parent):
    for name in ("unmet.in", "pins.txt", "have.txt", "marks.pth", "solved.txt"):
        try:
            (place / name).symlink_to({victim!r} + "/" + name)
            planted.append(str(place / name))
        except OSError:
            pass
try:
    pathlib.Path(sys.executable).unlink()
    planted.append("python")
except OSError:
    pass
with open("trainer/seen.py", "w") as file:
    print("SEEN =", planted, file=file)
setuptools.setup(name="trainer", version="0.1", packages=["trainer"], install_requires=["docopt==0.6.2"])
"""


def test_a_setup_py_plants_nothing_that_is_run_or_written_through_outside(lab, tmp_path):
    """Its environment is made around what it built, and it can change no file of that."""
    victim = tmp_path / "victim"
    victim.mkdir()
    plants = PLANTS.format(victim=str(victim))
    uri = lab.put("plants-0.1.tar.gz", trainers.sdist({**trainers.FILES, "setup.py": plants}))
    job = lab.submit("import json, docopt, trainer.seen; print(json.dumps(trainer.seen.SEEN))", packageUris=[uri])
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert lab.printed(job) == ["[]"]
    assert list(victim.iterdir()) == []


@needs_python
def test_it_may_change_its_own_folder_and_nothing_that_it_is_shown(around, tmp_path):
    told = run(
        around,
        f"""
import json, os
open({str(tmp_path / "own" / "made")!r}, "w").write("made")
def refused(place):
    try:
        open(place, "w")
    except OSError as error:
        return type(error).__name__
refused({str(tmp_path / "x")!r})  # which is below a /tmp of its own
print(json.dumps([refused(each) for each in ("/usr/x", "/x", "/etc/x")]))
""",
        tmp_path,
    )
    assert (tmp_path / "own/made").read_text() == "made"
    assert set(told) <= {"OSError", "PermissionError"}
    assert not (tmp_path / "x").exists()
    assert sorted(each.name for each in (tmp_path / "attempt").iterdir()) in ([], ["group.json"])


ASKS = """
import json, socket
said = []
for host in {hosts!r}:
    with socket.create_connection(("127.0.0.3", 3128), 20) as way:
        way.sendall(b"CONNECT %s:443 HTTP/1.1\\r\\n\\r\\n" % host.encode())
        said.append(way.recv(1000).split()[1].decode())
print(json.dumps(said))
"""


@needs_python
def test_where_a_build_must_fetch_something_it_reaches_the_indexes_and_nothing_else(around, tmp_path):
    with socket.create_server(("127.0.0.1", 0)):
        asked = ["index.invalid", "pypi.org.example.com", "storage.googleapis.com", "localhost", "169.254.169.254"]
        told = run(around, ASKS.format(hosts=asked), tmp_path, hosts=["index.invalid"])
    assert told == [
        "502",
        "403",
        "502",
        "403",
        "403",
    ]  # the first has no such host behind it; Google's names lead nowhere


def test_a_build_that_fills_the_disk_is_ended_and_says_so(tmp_path_factory, runtime_python, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    fills = "while True:\n    open('/tmp/more', 'ab').write(bytes(1 << 20))\n"
    with running(tmp_path_factory.mktemp("fills") / "home", TAXIWAY_JOB_DISK_MIB="64") as small:
        lab = Lab(small.call, small.project, small.address.service_agent).open()
        job = lab.submit(
            "", packageUris=[lab.put("fills-0.1.tar.gz", trainers.sdist({**trainers.FILES, "setup.py": fills}))]
        )
        ended = lab.ended(job)
        assert ended["state"] == "FAILED"
        assert "could not be built" in ended["errorMessage"]
        assert "TAXIWAY_JOB_DISK_MIB" in ended["errorMessage"]
        assert list((small.home / "attempts").iterdir()) == []
