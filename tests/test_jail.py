"""The jail of a job: what its code cannot see, reach or take, and what it finds all the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import msgspec
import psutil
import pytest
from trainers import FILES, Lab, processes, sdist, trainer, until

from taxiway import cgroups, handles
from taxiway.cgroups import Group
from taxiway.replica import holder, jail

pytestmark = pytest.mark.runtime

MIB = 1024 * 1024
STAYS = "import time; print('here', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def lab(server, runtime_python, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    return Lab(server.call, server.project, server.address.service_agent).open()


def told(lab, code, **more):
    """What a trainer printed as JSON, line by line."""
    job = lab.submit(code, **more)
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    return [json.loads(line) for line in lab.printed(job) if line.startswith(("[", "{", '"'))]


# --- what it cannot see ---


def test_nothing_of_the_hosts_files_is_there_and_nothing_of_the_rest_can_be_written(lab, server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    hidden = [str(server.home), str(tmp_path / "secret"), "/etc/shadow", "/var/log"]
    assert all(Path(each).exists() for each in hidden)
    hidden.append(f"/proc/1/root{tmp_path}/secret")  # the first process in there is the jail's own
    seen, written, mine = told(
        lab,
        f"""
        import json, os
        print(json.dumps([each for each in {hidden!r} if os.path.exists(each)]))
        written = []
        kernel = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger"]
        for place in ["/usr/x", "/etc/x", "/x", "/etc/hosts", os.__file__, *kernel]:
            try:
                open(place, "a").close()
                written.append(place)
            except OSError:
                pass
        print(json.dumps(written))
        for place in ("/tmp/x", "/workspace/x", os.path.expanduser("~/x"), "/dev/shm/x"):
            open(place, "w").write("mine")
        print(json.dumps([os.getuid(), os.getcwd()]))
        """,
    )
    assert seen == []
    assert written == []
    assert mine == [1000, "/workspace"]


def test_it_has_no_capability_no_way_to_a_namespace_and_no_other_process(lab):
    capabilities, answers, pids = told(
        lab,
        """
        import ctypes, errno, json, os
        status = open("/proc/self/status").read()
        print(json.dumps([status.split("CapEff:")[1].split()[0], status.split("NoNewPrivs:")[1].split()[0]]))
        libc = ctypes.CDLL(None, use_errno=True)
        def answer(name, *arguments):
            ctypes.set_errno(0)
            return errno.errorcode[ctypes.get_errno()] if getattr(libc, name)(*arguments) < 0 else "ALLOWED"
        print(json.dumps([
            answer("unshare", 0x10000000), answer("unshare", 0x20000), answer("setns", 0, 0),
            answer("mount", None, b"/tmp", b"tmpfs", 0, None), answer("chroot", b"/tmp"),
            answer("sethostname", b"x", 1), answer("reboot", 0),
        ]))
        print(json.dumps(sorted(int(each) for each in os.listdir("/proc") if each.isdigit())))
        """,
    )
    assert capabilities == ["0" * 16, "1"]
    assert set(answers) == {"EPERM"}
    assert len(pids) <= 3


def test_nothing_can_be_reached_but_this_server(lab, server):
    port = int(server.address.url.rpartition(":")[2])
    with socket.create_server(("0.0.0.0", 0)) as other:
        here = other.getsockname()[1]
        (answers,) = told(
            lab,
            f"""
            import json, socket
            answers = []
            places = [("127.0.0.1", {port}), ("127.0.0.1", {here}), ("8.8.8.8", 53), ("127.0.0.3", 3128)]
            for where in [*places, ("pypi.org", 443)]:
                try:
                    link = socket.create_connection(where, timeout=5)
                    link.sendall(b"CONNECT localhost:{here} HTTP/1.1\\r\\n\\r\\n")
                    answers.append(link.recv(1000).decode().split("\\r\\n")[0])
                except OSError as error:
                    answers.append(type(error).__name__)
            print(json.dumps(answers))
            """,
        )
    assert answers[:3] == ["ConnectionRefusedError", "ConnectionRefusedError", "OSError"]
    assert answers[3:] == ["HTTP/1.1 403 Forbidden", "gaierror"]


AUTHORITIES = 'open(os.environ["SSL_CERT_FILE"]).read().count("BEGIN CERTIFICATE")'


def test_it_trusts_this_server_alone_as_it_can_reach_nobody_else(lab):
    """The system's authorities would be read anew for each request that TensorFlow makes."""
    (trusted,) = told(lab, f"import json, os; print(json.dumps([{AUTHORITIES}]))")
    assert trusted == [1]


def test_two_jobs_at_once_see_nothing_of_each_other(lab):
    listens = """
        import socket, time
        open("/tmp/mark", "w").close()
        listening = socket.create_server(("127.0.0.1", 4321))
        print("listens", flush=True)
        time.sleep(600)
    """
    job = lab.submit(listens)
    lab.until_said(job, "listens")
    (answers,) = told(
        lab,
        """
        import json, os, socket
        try:
            socket.create_connection(("127.0.0.1", 4321), timeout=5)
            reached = True
        except OSError:
            reached = False
        print(json.dumps([reached, os.path.exists("/tmp/mark")]))
        """,
    )
    assert answers == [False, False]
    lab.cancel(job)


# --- what it finds ---


def test_googles_clients_find_the_jobs_own_identity_without_a_variable(lab, server):
    answers = told(
        lab,
        f"""
        import json, os, subprocess, urllib.request
        for name in list(os.environ):
            if name.startswith(("GOOGLE_", "CLOUDSDK_", "GCE_", "CLOUD_ML_")):
                del os.environ[name]
        import google.auth, google.auth.transport.requests
        credentials, project = google.auth.default()
        credentials.refresh(google.auth.transport.requests.Request())
        print(json.dumps([credentials.service_account_email, project]))
        from google.cloud import storage
        storage.Client().bucket({lab.bucket!r}).blob("by/client").upload_from_string("c")
        import tensorflow as tf
        tf.io.gfile.makedirs("gs://{lab.bucket}/by")
        with tf.io.gfile.GFile("gs://{lab.bucket}/by/tensorflow", "w") as file:
            file.write("t")
        print(json.dumps(sorted(tf.io.gfile.listdir("gs://{lab.bucket}/by"))))
        ask = urllib.request.Request("http://metadata.google.internal/computeMetadata/v1/project/project-id",
            headers={{"Metadata-Flavor": "Google"}})
        print(json.dumps([urllib.request.urlopen(ask).read().decode()]))
        """,
    )
    assert answers == [
        [server.address.service_agent, server.project],
        ["client", "tensorflow"],
        [server.project],
    ]


def test_gcsfs_and_oauth2client_do_as_well(lab, server):
    setup = FILES["setup.py"].replace("())", "(), install_requires=['gcsfs', 'oauth2client'])")
    lab.put("clients.tar.gz", sdist({**FILES, "setup.py": setup}))
    answers = told(
        lab,
        f"""
        import json
        from oauth2client.client import GoogleCredentials
        credentials = GoogleCredentials.get_application_default()
        print(json.dumps([type(credentials).__name__, bool(credentials.get_access_token().access_token)]))
        import gcsfs
        files = gcsfs.GCSFileSystem()
        with files.open("{lab.bucket}/fs/one", "wb") as file:
            file.write(b"1")
        print(json.dumps(files.ls("{lab.bucket}/fs")))
        """,
        packageUris=[f"gs://{lab.bucket}/clients.tar.gz"],
    )
    assert answers == [["AppAssertionCredentials", True], [f"{lab.bucket}/fs/one"]]


def test_a_host_that_the_admin_allows_can_be_reached_and_no_other(start_server, runtime_python, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    server = start_server(None, TAXIWAY_JAIL_HOSTS="localhost, *.example.com")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    with socket.create_server(("127.0.0.1", 0)) as there:
        threading.Thread(target=lambda: there.accept()[0].close(), daemon=True).start()
        (answers,) = told(
            lab,
            f"""
            import json, os, socket
            answers = [os.environ["https_proxy"]]
            for host in ("localhost:{there.getsockname()[1]}", "127.0.0.1:{there.getsockname()[1]}"):
                link = socket.create_connection(("127.0.0.3", 3128))
                link.sendall(f"CONNECT {{host}} HTTP/1.1\\r\\n\\r\\n".encode())
                answers.append(link.makefile("rb").readline().decode().strip())
            print(json.dumps([*answers, {AUTHORITIES} > 1]))
            """,
        )
    assert answers == ["http://127.0.0.3:3128", "HTTP/1.1 200 Connection established", "HTTP/1.1 403 Forbidden", True]


# --- how it ends ---


def test_it_is_told_to_end_by_sigterm_and_may_still_write(lab):
    job = lab.submit("""
        import signal, sys, time
        def last(*_):
            print("saved", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, last)
        print("here", flush=True)
        time.sleep(600)
    """)
    lab.until_said(job, "here")
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    lab.until_said(job, "saved")


def test_when_its_agent_is_killed_everything_in_it_dies_at_once(lab, server):
    job = lab.submit("""
        import os, subprocess, time
        os.environ.clear()
        subprocess.Popen(["setsid", "sleep", "601"])
        print("here", flush=True)
        time.sleep(601)
    """)
    lab.until_said(job, "here")
    agent = next(each for each in trainer(job).parents() if "taxiway.replica" in each.cmdline())
    family = agent.children(recursive=True)
    assert any("sleep" in each.name() for each in family)
    agent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    lab.cancel(job)
    lab.ended(job)


def test_a_trainer_that_eats_memory_is_ended_alone_and_its_job_says_so(lab, server):
    given = cgroups.make("taxiway-asked", memory=64 * MIB, cpus=0, processes=0)
    given.remove()
    if not given.folders:
        pytest.skip("the kernel gives us no groups of memory here")
    job = lab.submit("""
        import os, time
        print("here", flush=True)
        while not os.path.exists("/tmp/go"):
            time.sleep(0.05)
        held = bytearray(1 << 30)
    """)
    lab.until_said(job, "here")
    folder = server.home / "attempts" / trainer(job).environ()[handles.MARK]
    group = msgspec.json.decode((folder / "group.json").read_bytes(), type=Group)
    assert "memory" in group.folders
    memory = Path(group.folders["memory"])
    limit = next(each for each in (memory / "memory.max", memory / "memory.limit_in_bytes") if each.exists())
    limit.write_text(str(256 * MIB))
    (folder / "tmp/go").touch()
    until(lambda: any("restart 1 of 5" in line for line in lab.said(job)), lambda: lab.said(job))
    (why,) = [line for line in lab.said(job) if "restart 1 of 5" in line]
    assert "was killed by SIGKILL" in why
    assert "It used more memory than" in why
    lab.cancel(job)
    assert lab.ended(job)["taxiway"]["attempts"][0]["reason"] == "OOM"
    assert not memory.exists()
    assert server.process.poll() is None


def test_nothing_of_a_jail_is_left_when_its_job_has_ended(lab, server):
    job = lab.submit(STAYS)
    lab.until_said(job, "here")
    inside = trainer(job)
    agent = next(each for each in inside.parents() if "taxiway.replica" in each.cmdline())
    family = agent.children(recursive=True)
    assert any(holder.__file__ in each.cmdline() for each in family)
    group = msgspec.json.decode(
        (server.home / "attempts" / inside.environ()[handles.MARK] / "group.json").read_bytes(), type=Group
    )
    assert all(Path(each).exists() for each in group.procs)
    lab.cancel(job)
    lab.ended(job)
    until(lambda: not agent.is_running())
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert not [each for each in group.folders.values() if Path(each).exists()]
    assert processes(job) == []


# --- where there is none ---


def test_without_bubblewrap_a_job_runs_all_the_same_and_its_log_says_so(start_server, runtime_python, tmp_path):
    for tool in ("sh", "env", "ls"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    server = start_server(None, PATH=str(tmp_path / "bin"))
    assert (
        "Jobs run without a jail, beside the server's own files: bwrap and nsenter cannot be found. Try: make"
        in server.log
    )
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit("print('ran')")
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    (warned,) = [each for each in lab.entries(job) if "without a jail" in each["jsonPayload"]["message"]]
    assert "apt install bubblewrap" in warned["jsonPayload"]["message"]
    assert warned["severity"] == "WARNING"


# bubblewrap as it is on a machine that allows the network of one's own and refuses the jail inside of it.
REFUSES = """#!/bin/sh
for each in "$@"; do [ "$each" = --unshare-pid ] && { echo "bwrap: Creating new namespace failed" >&2; exit 1; }; done
exec %s "$@"
"""


def refusing(folder):
    folder.mkdir()
    (folder / "bwrap").write_text(REFUSES % shutil.which("bwrap"))
    (folder / "bwrap").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_machine_that_refuses_the_jail_within_its_network_is_found_out_before(jailed, tmp_path, monkeypatch):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    with jail.opened() as held:
        assert held.filter is None or os.lseek(held.filter, 0, os.SEEK_CUR) == 0  # for whoever enters it
    monkeypatch.setenv("PATH", refusing(tmp_path / "bin"))
    with pytest.raises(jail.Lacking, match=r"a jail within .*Creating new namespace failed"), jail.opened():
        pass


def test_where_the_jail_is_refused_a_job_runs_all_the_same_and_its_log_says_so(
    start_server, runtime_python, jailed, tmp_path
):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    server = start_server(None, PATH=refusing(tmp_path / "bin"))
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit("print('ran')")
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    (warned,) = [each for each in lab.entries(job) if "without a jail" in each["jsonPayload"]["message"]]
    assert "Creating new namespace failed" in warned["jsonPayload"]["message"]


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1."),
        (
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "or an AppArmor profile that gives bwrap",
        ),
        ("proc/sys/user/max_user_namespaces", "0", "setting user.max_user_namespaces is 0"),
        (".dockerenv", "", "This is a container: .*seccomp=unconfined"),
    ],
)
def test_a_refusal_names_what_stands_in_the_way_and_what_helps(tmp_path, file, value, words):
    assert jail.in_the_way(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{value}\n")
    (told,) = jail.in_the_way(tmp_path)
    assert re.search(words, told)
    if value:
        (tmp_path / file).write_text("1000\n")
        assert jail.in_the_way(tmp_path) == []


def test_where_jails_are_required_and_cannot_be_no_server_starts(start_server, tmp_path):
    (tmp_path / "bin").mkdir()
    with pytest.raises(
        AssertionError, match=r"TAXIWAY_JAIL=require.*, and there can be none: bwrap and nsenter cannot be"
    ):
        start_server(None, PATH=str(tmp_path / "bin"), TAXIWAY_JAIL="require")
    assert not (tmp_path / "home" / "taxiway.db").exists()


def test_where_jails_are_required_and_can_be_no_more_a_job_fails_before_its_code_runs(
    start_server, runtime_python, jailed, tmp_path
):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    server = start_server(None, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", TAXIWAY_JAIL="require")
    assert "Jobs run in a jail." in server.log
    refusing(tmp_path / "bin")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    job = lab.submit("print('ran')")
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    assert "TAXIWAY_JAIL=require" in ended["errorMessage"]
    assert "ran" not in lab.said(job)
