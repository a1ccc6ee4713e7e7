"""Training jobs on a real server, from the request to the last line: real packages and processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time

import people
import psutil
import pytest
import trainers
from trainers import Lab, processes, sdist, until

from taxiway import handles, receipts
from taxiway.cli import printing
from taxiway.compute import attempts, local
from taxiway.environments import runtimes

pytestmark = pytest.mark.runtime

HERE = ("Installing ", "Waiting for another", "Scale tier BASIC has a master of ")  # said or not, as the host is
OLD = "the_first_job"  # gcloud shows no line of the last five seconds: one that is older by then


@pytest.fixture(scope="module")
def lab(server, runtime_python):
    made = Lab(server.call, server.project, server.address.service_agent).open()
    made.submit("for number in range(3): print('line', number)", job=OLD)
    return made


def attempt_of(server, job):
    """The id of the attempt that runs for a job: the folder whose order was given."""
    for folder in (server.home / "attempts").iterdir():
        for process in local.strays(folder.name):
            if process.environ().get("CLOUD_ML_JOB_ID") == job:
                return folder.name
    return None


def error_of(answer):
    told = answer.json()["error"]
    assert told["code"] == answer.status_code
    return answer.status_code, told["status"], told["message"]


# --- what a trainer sees ---


def test_a_job_goes_from_the_queue_to_success_with_the_services_lines_in_order(lab, server):
    job = lab.submit("print('one'); print('two')", jobDir=f"gs://{lab.bucket}/out")
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", ended
    assert ended["createTime"] <= ended["startTime"] <= ended["endTime"]
    assert "errorMessage" not in ended
    said = [line for line in lab.said(job) if not line.startswith(HERE)]
    running = next(index for index, line in enumerate(said) if line.startswith("Running command: "))
    receipt, command = said[running - 1 : running + 1]
    assert said[:5] + said[running + 1 :] == [  # between them stands how its environment was built, or waited for
        "Validating job requirements...",
        "Job creation request has been successfully validated.",
        f"Job {job} is queued.",
        "Waiting for job to be provisioned.",
        "Waiting for training program to start.",
        "one",
        "two",
        "Module completed; cleaning up.",
        "Clean up finished.",
        "Finished tearing down training program.",
        "Job completed successfully.",
    ]
    assert receipts.parse(receipt).args[-2:] == ["--job-dir", f"gs://{lab.bucket}/out"]
    assert command.startswith("Running command: python3 -m trainer.task --code ")
    assert command.endswith(f"--job-dir gs://{lab.bucket}/out")
    assert not (server.home / "attempts").exists() or attempt_of(server, job) is None


def test_a_trainer_sees_its_arguments_its_place_and_its_task_and_nothing_of_the_server(lab, server, jailed):
    see = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.version_info[:2]]))"
    rest = ["--steps", "5", "--name", "a b", "", "--x={y}", "{taxiway.python}", "ü"]
    job = lab.submit("", args=["--code", see, *rest], jobDir=f"gs://{lab.bucket}/out")
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    arguments, environ, folder, python = json.loads(lab.printed(job)[0])
    assert arguments == ["--code", see, *rest, "--job-dir", f"gs://{lab.bucket}/out"]

    task = json.loads(environ["TF_CONFIG"])
    (chief,) = task["cluster"]["chief"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", chief)
    assert (task["task"], task["environment"]) == ({"type": "chief", "index": 0}, "cloud")
    assert task["job"] == json.loads(environ["CLOUD_ML_JOB"])
    assert task["job"]["args"] == arguments[:-2]
    assert (task["job"]["pythonModule"], task["job"]["scaleTier"]) == ("trainer.task", "BASIC")
    assert task["job"]["pythonVersion"] == ".".join(map(str, python))
    assert environ["CLOUD_ML_JOB_ID"] == job
    assert environ["CLOUD_ML_PROJECT_ID"] == environ["GOOGLE_CLOUD_PROJECT"] == server.project
    assert environ["CLOUD_ML_REGION"] == "us-central1"

    known = {"HOME", "LANG", "LC_CTYPE", "PATH", "PYTHONUNBUFFERED", "TF_CONFIG", "TMPDIR"}
    known |= {"CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPLIB2_CA_CERTS"}
    known |= {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "GOOGLE_CLOUD_PROJECT"}
    if jailed:
        assert (folder, environ["HOME"], environ["TMPDIR"]) == ("/workspace", "/home/taxiway", "/tmp")
        known |= {"USER", "PWD", "OLDPWD"}
    else:
        attempt = os.path.dirname(folder)
        assert os.path.dirname(attempt) == str(server.home / "attempts")
        assert (environ["HOME"], environ["TMPDIR"]) == (f"{attempt}/home", f"{attempt}/tmp")
        known |= {"https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "FSSPEC_GCS_ENDPOINT_URL"}
        known |= {"GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"}
    assert {name for name in environ if not name.startswith(("CLOUD_ML_", "CLOUDSDK_CORE_"))} <= known
    assert server.token not in str(environ)


def test_googles_storage_client_acts_as_the_service_agent_and_may_what_that_may(lab, server):
    closed = f"closed-{lab.bucket}"
    lab.make(closed)
    job = lab.submit(f"""
        import google.auth, google.auth.transport.requests
        from google.cloud import storage
        credentials, project = google.auth.default()
        credentials.refresh(google.auth.transport.requests.Request())
        print(credentials.service_account_email, project)
        client = storage.Client()
        bucket = client.bucket({lab.bucket!r})
        bucket.blob("client/a").upload_from_string("written")
        bucket.blob("client/big").upload_from_string(b"x" * 9_000_000)
        big = bucket.blob("client/big").download_as_bytes()
        print(bucket.blob("client/a").download_as_text(), big == b"x" * 9_000_000)
        print([each.name for each in client.list_blobs(bucket, prefix="client/")])
        try:
            client.bucket({closed!r}).blob("a").upload_from_string("x")
        except Exception as error:
            print(type(error).__name__, {server.address.service_agent!r} in str(error))
    """)
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert [line for line in lab.printed(job) if "Warning" not in line] == [
        f"{server.address.service_agent} {server.project}",
        "written True",
        "['client/a', 'client/big']",
        "Forbidden True",
    ]
    assert lab.read("client/a") == b"written"


def test_a_job_acts_as_the_service_account_that_it_names(lab, server):
    made = lab.call("POST", f"/v1/projects/{lab.project}/serviceAccounts", json={"accountId": "of-a-job"})
    email = made.json()["email"]
    own = Lab(server.call, server.project, email).open()  # which the service agent may not read
    code = f"""
        import google.auth, google.auth.transport.requests
        from google.cloud import storage
        credentials, _ = google.auth.default()
        credentials.refresh(google.auth.transport.requests.Request())
        print(credentials.service_account_email)
        storage.Client().bucket({own.bucket!r}).blob("a").upload_from_string("mine")
        try:
            storage.Client().bucket({lab.bucket!r}).blob("b").upload_from_string("not mine")
        except Exception as error:
            print(type(error).__name__)
    """
    job = own.submit(code, serviceAccount=email)
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", lab.said(job)
    assert ended["trainingInput"]["serviceAccount"] == email
    assert [line for line in lab.printed(job) if "Warning" not in line] == [email, "Forbidden"]
    assert own.read("a") == b"mine"


def test_tensorflow_reads_and_writes_gs(lab):
    job = lab.submit(f"""
        import tensorflow as tf
        folder = "gs://{lab.bucket}/tf"
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(folder + "/a.txt", "w") as file:
            file.write("one\\ntwo\\n")
        print("read", [line.numpy().decode() for line in tf.data.TextLineDataset(folder + "/a.txt")])
        print("listed", tf.io.gfile.glob(folder + "/*.txt") == [folder + "/a.txt"], tf.io.gfile.exists(folder + "/b"))
    """)
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert [line for line in lab.printed(job) if line.startswith(("read", "listed"))] == [
        "read ['one', 'two']",
        "listed True False",
    ]
    assert lab.read("tf/a.txt") == b"one\ntwo\n"


# --- what it says ---


def test_every_line_is_kept_in_order_whatever_it_is(lab):
    job = lab.submit(r"""
        import logging, sys, warnings
        out = sys.stdout.buffer
        out.write(b"\xff\x00binary\n" + b"y" * 70_000 + b"\n\n10%\r99%\r100%\n")
        out.flush()
        for number in range(20_000):
            print(number)
        sys.stdout.write("no line end")
    """)
    began = time.monotonic()
    assert lab.ended(job)["state"] == "SUCCEEDED"
    junk, cut, empty, progress, *numbers, last = lab.printed(job)
    assert (junk, empty, progress, last) == ("�binary", "", "100%", "no line end")
    assert cut == "y" * 65536 + " ... (cut: the line had 70000 bytes)"
    assert numbers == [str(number) for number in range(20_000)]
    assert time.monotonic() - began < 30


def test_lines_bear_the_severity_that_they_name(lab):
    job = lab.submit("""
        import logging, sys
        logging.basicConfig(level=logging.DEBUG)
        logging.warning("careful"); logging.error("broken"); logging.debug("fine")
        print("W0000 00:00:1700000000.000001 1 x.cc:1] from C", file=sys.stderr)
        print("plain")
    """)
    lab.ended(job)
    severities = {entry["jsonPayload"]["message"]: entry["severity"] for entry in lab.entries(job)}
    assert severities["WARNING:root:careful"] == "WARNING"
    assert severities["ERROR:root:broken"] == "ERROR"
    assert severities["DEBUG:root:fine"] == "DEBUG"
    assert severities["W0000 00:00:1700000000.000001 1 x.cc:1] from C"] == "WARNING"
    assert severities["plain"] == "INFO"


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_streams_the_whole_log(lab, server, tmp_path):
    lab.ended(OLD)
    until(lambda: time.time() - lab.entries(OLD)[-1]["jsonPayload"]["created"] > 5.5)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_PROJECT": server.project,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": server.address.access_token,
        "CLOUDSDK_AI_PLATFORM_REGION": "global",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_ML": f"{server.url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING": f"{server.url}/",
    }
    command = ["gcloud", "ai-platform", "jobs", "stream-logs", OLD, "--polling-interval", "2"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[-1] for line in done.stdout.splitlines()] == lab.said(OLD)
    last = done.stdout.splitlines()[-1].split("\t")
    assert (last[0], last[2]) == ("INFO", "service")


# --- how it ends ---


def test_a_trainer_that_raises_fails_with_its_last_traceback(lab):
    job = lab.submit("""
        import traceback
        try:
            raise KeyError("caught")
        except KeyError:
            traceback.print_exc()
        raise ValueError("the fare is negative\\nreally")
    """)
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    assert ended["startTime"]
    head, *lines = ended["errorMessage"].splitlines()
    assert head == "The replica master 0 exited with a non-zero status of 1. Termination reason: Error."
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == ["ValueError: the fare is negative", "really"]
    assert "caught" not in ended["errorMessage"]
    last = lab.said(job, "service")[-3:]
    assert last == [ended["errorMessage"], "Finished tearing down training program.", "Job failed."]
    severities = {each["jsonPayload"]["message"]: each["severity"] for each in lab.entries(job)}
    assert severities["ValueError: the fare is negative"] == severities[ended["errorMessage"]] == "ERROR"
    assert severities["Job failed."] == severities["Waiting for job to be provisioned."] == "INFO"


def test_a_wrong_argument_fails_with_what_argparse_says(lab):
    job = lab.submit("""
        import argparse
        parser = argparse.ArgumentParser(prog="task.py")
        parser.add_argument("--steps", type=int)
        parser.parse_args()
    """)
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    assert "non-zero status of 2" in ended["errorMessage"]
    assert "task.py: error: unrecognized arguments: --code" in ended["errorMessage"]


def test_a_daemon_that_a_trainer_leaves_behind_dies_with_the_job(lab):
    job = lab.submit("""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print("daemon", os.getpid(), flush=True)
                while True:
                    time.sleep(60)
            os._exit(0)
        os.wait()
        time.sleep(2)
    """)
    until(lambda: any(line.startswith("daemon") for line in lab.said(job)))
    family = processes(job)
    assert len(family) >= 2
    assert lab.ended(job)["state"] == "SUCCEEDED"
    assert not [each for each in family if runs(each.pid)]


def test_a_package_without_an_init_file_fails_with_what_to_do(lab):
    setup = trainers.FILES["setup.py"].replace("'trainer'", "'bare'")
    uri = lab.put("bare-0.1.tar.gz", sdist({"setup.py": setup, "trainer/task.py": "print('hi')\n"}))
    ended = lab.ended(lab.submit("", packageUris=[uri]))
    assert ended["state"] == "FAILED"
    assert any(line.startswith("trainer/ has no __init__.py") for line in lab.said(ended["jobId"]))
    assert "bare-0.1.tar.gz holds no module that could be imported" in ended["errorMessage"]
    assert "trainer/__init__.py" in ended["errorMessage"]


def test_a_module_that_setup_does_not_bring_after_all_fails_by_its_name(lab):
    setup = (
        "from setuptools import setup\nsetup(name='trainer', package_dir={'trainer': 'code'}, packages=['trainer'])\n"
    )
    uri = lab.put("trainer.tar.gz", sdist({"setup.py": setup, "code/__init__.py": ""}))
    ended = lab.ended(lab.submit("", pythonModule="trainer.tusk", packageUris=[uri]))
    assert ended["state"] == "FAILED"
    assert "No module named trainer.tusk" in ended["errorMessage"]


def test_a_package_that_cannot_be_built_fails_with_the_installers_words(lab):
    files = {**trainers.FILES, "setup.py": "raise SystemExit('no such thing')\n"}
    ended = lab.ended(lab.submit("", packageUris=[lab.put("junk-0.1.tar.gz", sdist(files))]))
    assert ended["state"] == "FAILED"
    assert "junk-0.1.tar.gz could not be installed" in ended["errorMessage"]
    assert "startTime" not in ended


# --- cancelling ---

STAYS = """
import subprocess, time
subprocess.Popen(["setsid", "sleep", "600"])
print("running", flush=True)
time.sleep(600)
"""


def test_a_running_job_is_cancelled_and_nothing_of_it_runs_on(lab, server):
    job = lab.submit("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAYS)
    lab.until_said(job, "running")
    lab.until_state(job, "RUNNING")
    attempt = attempt_of(server, job)
    assert lab.cancel(job).json() == {}
    ended = lab.ended(job)
    assert (ended["state"], ended.get("errorMessage")) == ("CANCELLED", None)
    assert lab.said(job)[-2:] == ["Job cancel requested; stopping its replicas.", "Job cancelled."]
    assert local.strays(attempt) == []
    assert not (server.home / "attempts" / attempt).exists()
    code, status, message = error_of(lab.cancel(job))
    assert (code, status) == (400, "FAILED_PRECONDITION")
    assert f"The job {job} has ended (CANCELLED)" in message


def test_a_job_is_cancelled_while_its_environment_is_built_and_nobody_takes_that_for_done(lab, server):
    uri = lab.put(
        "slow-0.1.tar.gz", sdist({**trainers.FILES, "setup.py": f"import subprocess\nsubprocess.run({SLOW})\n"})
    )
    for _ in range(2):
        job = lab.submit("", packageUris=[uri])
        until(builders)
        lab.until_said(job, "Installing slow-0.1.tar.gz.")
        assert lab.get(job)["state"] == "PREPARING"
        lab.cancel(job)
        assert lab.ended(job)["state"] == "CANCELLED", lab.said(job)
        assert not builders()
        assert attempt_of(server, job) is None


SLOW = ["sleep", "607.5"]


def builders():
    """What runs on this host of the package's build."""
    found = [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == SLOW]
    return [each for each in found if runs(each.pid)]


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_queued_job_is_cancelled_at_once_and_never_runs(lab):
    busy = [lab.submit(STAYS) for _ in range(max(2, (os.cpu_count() or 2) // 2))]
    for each in busy:
        lab.until_state(each, "PREPARING", "RUNNING")  # the room of what was cancelled before is free a moment later
    job = lab.submit("print('never')")
    queued = lab.get(job)
    assert (queued["state"], queued.get("jobPosition", "0")) == ("QUEUED", "0")
    for each in [job, *busy]:
        assert lab.cancel(each).status_code == 200
    assert lab.get(job)["state"] == "CANCELLED"
    assert lab.said(job)[-1] == "Job cancelled."
    for each in busy:
        assert lab.ended(each)["state"] == "CANCELLED"
    assert lab.get(job)["state"] == "CANCELLED"
    assert "startTime" not in lab.get(job)


# --- fencing ---


def test_a_replica_has_no_more_to_say_once_its_attempt_is_over(lab, server):
    job = lab.submit(STAYS)
    lab.until_said(job, "running")
    attempt = attempt_of(server, job)
    order = handles.Order.read(server.home / "attempts" / attempt)
    own = {"Authorization": f"Bearer {order.token}"}
    path = f"/taxiway/v1/attempts/{attempt}"
    agent = {"Authorization": f"Bearer {server.http.post(f'{path}:token', headers=own).json()['access_token']}"}
    upload = f"/upload/storage/v1/b/{lab.bucket}/o?uploadType=media&name=fenced"
    assert server.http.post(upload, headers=agent, content=b"x").status_code == 200
    assert server.http.post(upload, headers=own, content=b"x").status_code in (401, 403)  # it is nobody in storage
    assert lab.call("POST", f"{path}:finish", json={"exitCode": 0, "error": ""}).status_code == 403
    lab.cancel(job)
    lab.ended(job)
    before = lab.said(job)
    for verb, body in (
        (":heartbeat", {"state": "RUNNING"}),
        (":log", {"lines": [{"seq": 99, "time": time.time(), "severity": "INFO", "message": "from the dead"}]}),
        (":finish", {"exitCode": 0, "error": ""}),
        (":token", None),
    ):
        assert server.http.post(f"{path}{verb}", headers=own, json=body).status_code in (400, 401, 403), verb
    assert server.http.post(upload, headers=agent, content=b"later").status_code == 401
    assert server.http.get(f"/storage/v1/b/{lab.bucket}/o/fenced", headers=agent).status_code == 401
    assert lab.read("fenced") == b"x"
    assert lab.said(job) == before
    assert lab.get(job)["state"] == "CANCELLED"


# --- tiers and machines ---


@pytest.mark.parametrize(
    ("told", "units"),
    [
        ({"scaleTier": "STANDARD_1"}, 4.0571),
        (
            {
                "scaleTier": "CUSTOM",
                "masterType": "n1-standard-1",
                "workerType": "n1-highcpu-2",
                "workerCount": "2",
                "parameterServerType": "n1-highcpu-2",
                "parameterServerCount": "1",
            },
            0.097 + 3 * 0.1447,
        ),
    ],
)
def test_a_tier_of_many_machines_runs_several_and_its_log_says_how_many(lab, told, units):
    job = lab.submit("import os; print(os.environ['TF_CONFIG'])", **told)
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", ended
    assert {name: ended["trainingInput"][name] for name in told} == told
    cluster = json.loads(lab.printed(job)[0])["cluster"]
    counts = {role: len(addresses) for role, addresses in cluster.items()}
    (line,) = [line for line in lab.said(job) if line.startswith(f"Scale tier {told['scaleTier']} has 1 master")]
    assert "They share this host's" in line
    if told["scaleTier"] == "CUSTOM":
        assert counts == {"chief": 1, "worker": 2, "ps": 1}
    else:
        assert set(counts) == {"chief", "worker", "ps"}
    hours = (printing.moment(ended["endTime"]) - printing.moment(ended["startTime"])).total_seconds() / 3600
    assert ended["trainingOutput"].get("consumedMLUnits", 0) == pytest.approx(hours * units, abs=0.01)


def test_a_masters_work_says_what_it_gets_of_the_host(lab, server):
    job = lab.submit("pass", scaleTier="CUSTOM", masterType="n1-standard-1")
    assert lab.ended(job)["state"] == "SUCCEEDED"
    opened = people.opened(server)
    with opened.read() as rows:
        work = attempts.last(rows, server.project, "job", job).work
    opened.close()
    assert (work["cpus"], work["memory"]) == (1.0, int(3.75 * 1024**3))


# --- a version that others run in the place of ---


OLD_TRAINER = """
import argparse, subprocess, sys
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import ops

parser = argparse.ArgumentParser()
parser.add_argument("--code")
parser.add_argument("--job-dir")
folder = parser.parse_args().job_dir

x = tf.placeholder(tf.float32, [None, 1])
y = tf.placeholder(tf.float32, [None, 1])
slope = tf.get_variable("slope", [1, 1])
loss = tf.losses.mean_squared_error(y, tf.matmul(x, slope))
step = tf.train.get_or_create_global_step()
train = tf.train.GradientDescentOptimizer(0.5).minimize(loss, global_step=step)
points = np.linspace(-1, 1, 64, dtype=np.float32).reshape(-1, 1)
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    for _ in range(100):
        session.run(train, {x: points, y: 3 * points})
    print("slope %.3f after %d steps" % (session.run(slope).item(), session.run(step)))
    tf.train.Saver().save(session, folder + "/model.ckpt", global_step=step)
print("saved", tf.gfile.Exists(folder + "/model.ckpt-100.index"), hasattr(tf, "contrib"))
child = "import tensorflow as tf; print('a child has', tf.Session.__name__, tf.executing_eagerly())"
print(subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE).stdout.decode().strip())
tf.contrib.layers
"""


def test_a_trainer_for_tensorflow_1_runs_on_a_2_that_has_the_python_asked_for_and_its_log_says_so(lab):
    nearest = runtimes.choose(runtimes.table()["2.15"], None)
    runtimes.build(nearest)
    asked = {"runtimeVersion": "1.8", "pythonVersion": nearest.python}
    job = lab.submit(OLD_TRAINER, jobDir=f"gs://{lab.bucket}/old", **asked)
    ended = lab.ended(job)
    told = ended["trainingInput"]
    assert {name: told[name] for name in asked} == asked
    said = lab.said(job)
    (instead,) = [line for line in said if line.startswith("Runtime version 1.8 ")]
    assert "; 2.15 runs in its place." in instead
    assert "`import tensorflow` gives tensorflow.compat.v1" in instead
    assert [line for line in said if line.startswith(("slope", "saved", "a child"))] == [
        "slope 3.000 after 100 steps",
        "saved True False",
        "a child has Session False",
    ]
    assert ended["state"] == "FAILED"
    assert "AttributeError: tf.contrib is not there: this is TensorFlow 2.15" in ended["errorMessage"]
    (receipt,) = [found for found in map(receipts.parse, said) if found]
    assert receipt.runtime.version == "2.15 as TensorFlow 1"


# --- bad input: told by its field, and nothing queued ---


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"pythonModule": "trainer/task.py"}, ["trainingInput.pythonModule", "such as trainer.task", "Leave out"]),
        ({"pythonModule": ""}, ["trainingInput.pythonModule", "is required"]),
        ({"packageUris": []}, ["trainingInput.packageUris", "1 to 100 packages"]),
        ({"packageUris": ["/local/a.tar.gz"]}, ["trainingInput.packageUris[0]", "must be gs://BUCKET/OBJECT"]),
        ({"packageUris": ["s3://b/a.tar.gz"]}, ["trainingInput.packageUris[0]", "must be gs://BUCKET/OBJECT"]),
        ({"packageUris": ["gs://abc/a.exe"]}, ["trainingInput.packageUris[0]", "no Python package", ".tar.gz", ".whl"]),
        ({"runtimeVersion": "1.40"}, ["trainingInput.runtimeVersion", "'1.40' is not offered", "2.21"]),
        ({"pythonVersion": "2.7"}, ["trainingInput.pythonVersion", "'2.7' is not offered"]),
        ({"region": "us-centrall"}, ["trainingInput.region", "us-central1", "Did you mean us-central1?"]),
        ({"region": ""}, ["trainingInput.region", "is required"]),
        ({"scaleTier": "CUSTOM"}, ["trainingInput.masterType", "is required with scaleTier CUSTOM"]),
        ({"scaleTier": "CUSTOM", "masterType": "n1-highmem-96"}, ["trainingInput.masterType", "has 96 CPUs", "BASIC"]),
        ({"masterConfig": {"imageUri": "gcr.io/a/b"}}, ["trainingInput.masterConfig.imageUri", "packageUris"]),
        ({"scaleTier": "HUGE"}, ["trainingInput.scaleTier", "HUGE"]),
        ({"jobDir": "out"}, ["trainingInput.jobDir", "must be gs://BUCKET/OBJECT"]),
        ({"args": "--steps 5"}, ["trainingInput.args"]),
        ({"hyperparameters": {"goal": "MAXIMIZE", "params": []}}, ["trainingInput.hyperparameters.params", "required"]),
        ({"workerCount": "3"}, ["trainingInput.workerCount", "is for scaleTier CUSTOM"]),
        ({"network": "projects/1/global/networks/x"}, ["trainingInput.network", "not offered yet"]),
        ({"pythonModul": "x"}, ["pythonModul", "pythonModule"]),
    ],
)
def test_a_wrong_field_is_told_and_nothing_is_queued(lab, told, words):
    body = lab.body("", **told)
    code, status, message = error_of(lab.post(body))
    assert (code, status) == (400, "INVALID_ARGUMENT"), message
    assert [word for word in words if word not in message] == [], message
    assert lab.call("GET", f"/v1/projects/{lab.project}/jobs/{body['jobId']}").status_code == 404


@pytest.mark.parametrize("job", ["1st", "a-b", "", "a" * 129, "a b", "ü"])
def test_a_malformed_job_id_is_told(lab, job):
    code, _, message = error_of(lab.post({**lab.body(), "jobId": job}))
    assert code == 400
    assert "Field: jobId Error: A name must start with a letter" in message


def test_several_faults_are_told_at_once(lab):
    body = lab.body("", region="mars", pythonModule="a b", runtimeVersion="9.9", packageUris=["x"], jobDir="y")
    _, _, message = error_of(lab.post({**body, "jobId": "1"}))
    for field in (
        "jobId",
        *(f"trainingInput.{name}" for name in ("region", "pythonModule", "runtimeVersion", "jobDir")),
    ):
        assert f"Field: {field} " in message
    assert "Field: trainingInput.packageUris[0] " in message


def test_batch_prediction_and_an_empty_job_are_refused_by_their_fields(lab):
    predict = {"dataFormat": "JSON", "inputPaths": ["gs://abc/x"], "outputPath": "gs://abc/y", "region": "us-central1"}
    _, _, message = error_of(lab.post({"jobId": "a", "predictionInput": predict}))
    assert "Field: predictionInput Error: batch prediction is not offered yet" in message
    _, _, message = error_of(lab.post({**lab.body(), "predictionInput": predict}))
    assert "Field: predictionInput" in message
    _, _, message = error_of(lab.post({"jobId": "a"}))
    assert "Field: trainingInput Error: is required" in message


def test_an_id_that_is_taken_is_a_conflict(lab):
    job = lab.submit("raise SystemExit(1)")
    code, status, message = error_of(lab.post(lab.body("", job=job)))
    assert (code, status) == (409, "ALREADY_EXISTS")
    assert f"{job!r} exists already" in message
    assert lab.ended(job)["state"] == "FAILED"
    assert lab.post(lab.body("", job=job)).status_code == 409


def test_an_unknown_project_is_not_found(lab):
    for project in ("no-such-project", "NO_PROJECT"):
        code, status, message = error_of(lab.call("POST", f"/v1/projects/{project}/jobs", json=lab.body()))
        assert (code, status) in ((404, "NOT_FOUND"), (400, "INVALID_ARGUMENT"))
        assert project in message


def test_a_package_that_is_not_there_is_not_found(lab):
    uri = f"gs://{lab.bucket}/nothing-0.1.tar.gz"
    code, _, message = error_of(lab.post(lab.body("", packageUris=[uri])))
    assert code == 404
    assert "nothing-0.1.tar.gz" in message
    code, _, message = error_of(lab.post(lab.body("", packageUris=["gs://no-such-bucket-here/a.tar.gz"])))
    assert code == 404
    assert "gs://no-such-bucket-here does not exist" in message


def test_missing_grants_are_told_all_at_once_with_the_commands_that_give_them(lab, server):
    first, second = f"r-{lab.bucket}", f"w-{lab.bucket}"
    for bucket in (first, second):
        lab.make(bucket)
    lab.call("POST", f"/upload/storage/v1/b/{first}/o?uploadType=media&name=t.tar.gz", content=sdist())
    body = lab.body("", packageUris=[f"gs://{first}/t.tar.gz"], jobDir=f"gs://{second}/out")
    code, status, message = error_of(lab.post(body))
    assert (code, status) == (403, "PERMISSION_DENIED")
    member = f"serviceAccount:{server.address.service_agent}"
    reads, writes = message.splitlines()
    assert reads.startswith(f"{member} does not have storage.objects.get on gs://{first}. Grant it: taxiway storage ")
    assert "storage.objects.create" in writes
    assert f"add-iam-policy-binding gs://{second} --member={member} --role=roles/storage." in writes
    assert lab.call("GET", f"/v1/projects/{lab.project}/jobs/{body['jobId']}").status_code == 404


def test_the_log_is_asked_for_by_its_project_and_its_words(lab, server):
    path = "/v2/entries:list"
    for body, word in (
        ({}, "resourceNames"),
        ({"resourceNames": ["folders/1"]}, "resourceNames"),
        ({"resourceNames": [f"projects/{lab.project}"], "filter": "x="}, "filter"),
        ({"resourceNames": [f"projects/{lab.project}"], "orderBy": "size"}, "orderBy"),
        ({"resourceNames": [f"projects/{lab.project}"], "pageSize": -1}, "pageSize"),
        ({"resourceNames": [f"projects/{lab.project}"], "pageToken": "x"}, "pageToken"),
        ({"resourceNames": [f"projects/{lab.project}"], "filtr": "x"}, "filtr"),
    ):
        code, _, message = error_of(lab.call("POST", path, json=body))
        assert code == 400
        assert word in message
    body = {"resourceNames": [f"projects/{lab.project}"]}
    assert server.http.post(path, json=body).status_code == 401
    assert lab.call("POST", path, json={**body, "pageSize": 1}).json()["nextPageToken"]


def test_when_all_is_over_no_folder_of_an_attempt_is_left(lab, server):
    folder = server.home / "attempts"
    job = lab.submit("pass")
    lab.ended(job)
    until(lambda: not folder.exists() or not any(folder.iterdir()), lambda: list(folder.iterdir()))
