"""`taxiway local train` and `local predict`: real processes, the default runtime, and gcloud's own beside them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import psutil
import pytest
import saved_models
import trainers
from conftest import run_cli
from test_runners import Runner
from trainers import FILES, Lab, sdist, until

from taxiway import errors, plan, receipts
from taxiway.environments import folders, runtimes
from taxiway.schemas import TrainingInput

pytestmark = pytest.mark.runtime

SEE = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.path]))"


@pytest.fixture
def project(tmp_path, runtime_python):
    """A folder with the package that runs what --code says."""
    folder = tmp_path / "code"
    for name, text in trainers.FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def environ(tmp_path):
    """A person's shell, with a home that no server was ever started in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    kept |= {name: os.environ[name] for name in ("TAXIWAY_CACHE", "TAXIWAY_PYTHONS") if name in os.environ}
    return {**kept, "TAXIWAY_HOME": str(tmp_path / "home")}


def command(*words):
    return [sys.executable, "-m", "taxiway", "local", *map(str, words)]


def training(project, code, *flags, rest=()):
    flags = ("--module-name", "trainer.task", "--package-path", project / "trainer", *flags)
    return command("train", *flags, "--", "--code", code, *rest)


def train(project, environ, code, *flags, rest=(), **how):
    words = training(project, code, *flags, rest=rest)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, **how)


def runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- one replica ---


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise ValueError('no fare')", 1),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
    ],
)
def test_the_exit_code_is_the_trainers(project, environ, code, expected):
    assert train(project, environ, code).returncode == expected


def test_every_byte_of_its_output_passes_through_and_ours_is_beside_it_on_stderr(project, environ):
    code = r"import os; os.write(1, b'10%\r\xff\x1b[1m\0no end'); os.write(2, b'oops')"
    ended = subprocess.run(training(project, code), env=environ, capture_output=True, timeout=120)
    assert ended.stdout == b"10%\r\xff\x1b[1m\0no end"
    assert ended.stderr.endswith(b"oops")
    assert b"Receipt local-" in ended.stderr


def test_what_it_runs_in_is_in_use_until_it_ends(project, environ):
    """The command becomes the run, which holds what the command had built."""
    code = "import sys; print(sys.prefix, flush=True); input()"
    with subprocess.Popen(
        training(project, code), env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        layer = Path(run.stdout.readline().strip())
        assert layer.parent == folders.cache() / "environments"
        assert folders.in_use(layer)
        run.communicate("\n")
    until(lambda: not folders.in_use(layer), lambda: layer)


def test_code_for_tensorflow_1_gets_its_names_from_the_nearest_runtime_and_hears_of_it(project, environ):
    nearest = runtimes.choose(runtimes.table()["2.15"], None)
    runtimes.build(nearest)
    code = "import tensorflow as tf; print(tf.Session().run(tf.placeholder_with_default(7, [])), tf.__version__[:4])"
    ended = train(project, environ, code, "--runtime-version", "1.8", "--python-version", nearest.python)
    assert ended.stdout == "7 2.15\n", ended.stderr
    assert "; 2.15 runs in its place." in ended.stderr
    assert "`import tensorflow` gives tensorflow.compat.v1" in ended.stderr


def test_it_reads_what_we_are_given(project, environ):
    assert train(project, environ, "print(input()[::-1])", input="abc\n").stdout == "cba\n"


def test_the_job_dir_comes_last_and_the_words_arrive_as_they_were(project, environ):
    words = ["--steps", "5", "a b", "", "--x={y}", "{taxiway.python}", "ü", "--"]
    ended = train(project, environ, SEE, "--job-dir", "out", rest=words)
    assert json.loads(ended.stdout)[0] == ["--code", SEE, *words, "--job-dir", "out"]


def test_it_has_the_callers_variables_but_those_that_would_change_what_runs(project, environ, runtime_python):
    (project / "beside.py").write_text("")
    misleading = {
        "PYTHONPATH": str(project),
        "PYTHONHOME": "/nowhere",
        "VIRTUAL_ENV": "/nowhere",
        "TF_CONFIG": "{}",
        "CLOUD_ML_TRIAL_ID": "7",
    }
    own = {name: value for name, value in misleading.items() if name != "PYTHONHOME"}  # with it we could not start
    code = f"{SEE}\ntry: import beside\nexcept ImportError: print('not there')\nimport trainer; print(trainer.__file__)"
    ended = train(project, {**environ, **own, "MY_KEY": "kept"}, code)
    assert ended.returncode == 0, ended.stderr
    seen, beside, where = ended.stdout.splitlines()
    _, variables, folder, path = json.loads(seen)
    assert variables["MY_KEY"] == "kept"
    assert not (misleading.keys() - {"TF_CONFIG"}) & variables.keys()
    assert folder == str(project)
    assert str(project) not in path
    assert (beside, where.startswith(str(project))) == ("not there", False)
    assert variables["PATH"].split(":")[0] == str(Path(where).parents[4] / "bin")


def test_it_is_told_of_itself_as_a_job_of_one_replica_is(project, environ):
    variables = json.loads(train(project, environ, SEE, rest=["-x"]).stdout)[1]
    task = json.loads(variables["TF_CONFIG"])
    (chief,) = task["cluster"]["chief"]
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", chief)
    assert (task["task"], task["environment"]) == ({"type": "chief", "index": 0}, "cloud")
    assert task["job"] == json.loads(variables["CLOUD_ML_JOB"])
    assert task["job"]["args"] == ["--code", SEE, "-x"]
    assert (task["job"]["pythonModule"], task["job"]["scaleTier"]) == ("trainer.task", "BASIC")
    assert variables["CLOUD_ML_JOB_ID"] == "local"


def test_a_package_is_found_in_the_folder_where_one_stands(project, environ):
    words = command("train", "--module-name", "trainer.task", "--", "--code", "import os; print(os.getcwd())")
    ended = subprocess.run(words, env=environ, capture_output=True, text=True, cwd=project / "trainer", timeout=120)
    assert ended.stdout == f"{project}\n"


def test_a_file_of_the_callers_folder_never_stands_in_for_a_module_of_ours(project, environ):
    for name in ("signal", "msgspec", "taxiway"):
        (project / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    words = ["-P", *training(project, "print('ran')")[1:]] if sys.version_info >= (3, 11) else []
    if not words:
        pytest.skip("this Python imports from where it stands when it is told -m")
    ended = subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True, cwd=project)
    assert ended.stdout == "ran\n", ended.stderr


def test_what_is_typed_wrong_is_told_before_anything_is_built(project, environ):
    for flags, code, words in [
        (["--module-name", "trainer.tusk", "--package-path", project / "trainer"], 1, "has no module trainer.tusk"),
        (["--module-name", "trainer.task", "--package-path", project], 1, "Did you mean"),
        (["--module-name", "trainer/task.py"], 1, "joined by dots"),
        (["--module-name", "trainer.task", "--runtime-version", "1.40"], 1, "'1.40' is not offered"),
        (["--module-name", "trainer.task", "--worker-count", "-1"], 2, "--worker-count"),
        (["--package-path", project / "trainer"], 2, "--module-name"),
    ]:
        ended = subprocess.run(command("train", *flags), env=environ, capture_output=True, text=True, cwd=project)
        assert ended.returncode == code, flags
        assert words in " ".join(ended.stderr.split()), ended.stderr
        assert "Traceback" not in ended.stderr


def test_counts_without_a_cluster_are_said_to_be_ignored(project, environ):
    ended = train(project, environ, "print('ran')", "--worker-count", "3")
    assert "--worker-count is ignored without --distributed" in ended.stderr
    assert ended.stdout == "ran\n"


def test_a_python_that_cannot_be_told_to_leave_the_folder_out_is_not_told():
    told = TrainingInput(scale_tier="BASIC", python_module="trainer.task", runtime_version="2.21")
    flags = {python: plan.local(told, project="p", python=python)[0].command[1:3] for python in ("3.10", "3.11")}
    assert flags == {"3.10": ["-u", "-m"], "3.11": ["-u", "-P"]}


# --- how it ends ---

WAITS = """
import os, signal, sys, time
try:
    print("ready", os.getpid(), flush=True)
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    print("saving", flush=True)
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(7)
"""


def test_ctrl_c_on_a_terminal_reaches_the_trainer_once_and_we_wait_for_it(project, environ):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable, training(project, f"print(sys.stdin.isatty(), sys.stdout.isatty())\n{WAITS}"), environ
        )
    seen = b""
    with os.fdopen(terminal, "r+b", buffering=0) as screen, contextlib.suppress(OSError):  # EIO once it has ended
        interrupted = False
        while piece := screen.read(1000):
            seen += piece
            if b"ready" in seen and not interrupted:
                interrupted = True
                screen.write(b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, seen
    assert b"True True" in seen
    assert seen.count(b"saving") == seen.count(b"saved") == 1
    assert b"Traceback" not in seen


@pytest.fixture
def waiting(project, environ):
    """A run that waits, in a group of its own as a shell would start it: the process, and the trainer's pid."""
    started = subprocess.Popen(
        training(project, WAITS), env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    trainer = int(started.stdout.readline().split()[1])
    yield started, trainer
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def test_an_interrupt_of_the_whole_group_brings_the_trainers_exit_code_back(waiting):
    started, trainer = waiting
    os.killpg(started.pid, signal.SIGINT)
    assert started.communicate(timeout=60)[0].split() == [b"saving", b"saved"]
    assert started.returncode == 7
    assert not runs(trainer)


def test_a_request_to_end_is_passed_on(waiting):
    started, trainer = waiting
    started.terminate()
    assert started.wait(60) == 143
    assert not runs(trainer)


def test_the_trainer_does_not_outlive_us_however_we_end(waiting):
    started, trainer = waiting
    started.kill()
    started.wait()
    until(lambda: not runs(trainer), seconds=10)


def test_what_a_trainer_leaves_behind_ends_with_it(project, environ):
    code = """
        import os, subprocess
        left = subprocess.Popen(["setsid", "sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(left.pid)
    """
    ended = train(project, environ, "\n".join(line.strip() for line in code.splitlines()))
    assert ended.returncode == 0, ended.stderr
    assert not runs(int(ended.stdout))


def test_no_folder_of_a_run_stays_behind(project, environ, tmp_path):
    (tmp_path / "tmp").mkdir()
    train(project, {**environ, "TMPDIR": str(tmp_path / "tmp")}, "pass")
    assert list((tmp_path / "tmp").iterdir()) == []


# --- a cluster ---

# Each replica tells of itself in a file, and waits until all have. Then the primary does what it is told, and the rest
# waits to be ended.
MEET = """
import json, os, sys, time
folder, count = sys.argv[sys.argv.index("--code") + 2:][:2]
task = json.loads(os.environ["TF_CONFIG"])["task"]
name = task["type"] + str(task["index"])
with open(os.path.join(folder, name + ".new"), "w") as file:
    json.dump([os.getpid(), json.loads(os.environ["TF_CONFIG"])], file)
os.rename(os.path.join(folder, name + ".new"), os.path.join(folder, name))
print(name, "is here", flush=True)
open(os.path.join(folder, name + ".here"), "w").close()
while len([each for each in os.listdir(folder) if each.endswith(".here")]) < int(count):
    time.sleep(0.02)
"""
ASKED = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(name, "was asked to end", flush=True)))
"""
STAY = "\nif task['type'] not in ('chief', 'master'): time.sleep(600)\n"


def free_ports(count):
    """The first of a row of ports that nobody has."""
    while True:
        first = random.randint(20000, 32000)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("", port)))
            return first


@pytest.fixture
def meeting(tmp_path):
    folder = tmp_path / "meeting"
    folder.mkdir()
    return folder


def met(folder):
    """What each replica told of itself: its pid, its TF_CONFIG."""
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir() if "." not in path.name}


def test_every_replica_of_a_cluster_knows_its_place_and_all_end_with_the_chief(project, environ, meeting):
    first = free_ports(5)
    words = ("--distributed", "--evaluator-count", "1", "--start-port", first)
    code = f"{ASKED}{MEET}{STAY}print('a line for stderr', file=sys.stderr)\nsys.exit(5)"
    ended = train(project, environ, code, *words, rest=[str(meeting), "6"])
    assert ended.returncode == 5, ended.stderr
    told = met(meeting)
    ports = [f"localhost:{port}" for port in range(first, first + 5)]
    cluster = {"chief": ports[:1], "ps": ports[1:3], "worker": ports[3:]}
    places = {"chief0": ("chief", 0), "ps0": ("ps", 0), "ps1": ("ps", 1), "worker0": ("worker", 0)}
    places |= {"worker1": ("worker", 1), "evaluator0": ("evaluator", 0)}
    assert told.keys() == places.keys()
    for name, (pid, config) in told.items():
        role, index = places[name]
        assert config["cluster"] == cluster
        assert config["task"] == {"type": role, "index": index}
        assert config["job"]["scaleTier"] == "CUSTOM"
        assert (config["job"]["workerCount"], config["job"]["parameterServerCount"]) == (2, 2)
        assert not runs(pid)
    assert sorted(ended.stdout.splitlines()) == [
        "evaluator-replica-0 | evaluator0 is here",
        "evaluator-replica-0 | evaluator0 was asked to end",
        "master-replica-0    | chief0 is here",
        *(
            f"{role}-replica-{index:<{10 - len(role)}} | {role}{index} {what}"
            for role in ("ps", "worker")
            for index in (0, 1)
            for what in ("is here", "was asked to end")
        ),
    ]
    assert "master-replica-0    | a line for stderr" in ended.stderr.splitlines()


def test_the_primary_of_tensorflow_1_is_a_master():
    told = TrainingInput(scale_tier="CUSTOM", python_module="t", runtime_version="1.15", worker_count=1)
    master, worker = plan.local(told, project="p", python="3.7", start_port=27182)
    assert json.loads(master.variables["TF_CONFIG"])["cluster"] == {
        "master": ["localhost:27182"],
        "worker": ["localhost:27183"],
    }
    assert json.loads(master.variables["TF_CONFIG"])["task"] == {"type": "master", "index": 0}
    assert (master.task, worker.task) == ("master-replica-0", "worker-replica-0")


@pytest.mark.parametrize(
    ("runtime", "evaluators", "role"),
    [("1.15", 0, "master"), ("2.15", 0, None), ("2.15", 1, "chief"), ("2.16", 0, "chief"), ("2.21", 0, "chief")],
)
def test_a_lone_estimator_of_tensorflow_2_is_told_of_no_cluster(runtime, evaluators, role):
    """In a cluster of one chief it would train, and leave evaluation and export to somebody who is not there."""
    told = TrainingInput(
        scale_tier="CUSTOM", python_module="t", runtime_version=runtime, worker_count=0, evaluator_count=evaluators
    )
    first = plan.local(told, project="p", python="3.11", start_port=27182)[0]
    task = json.loads(first.variables["TF_CONFIG"])
    assert task["cluster"] == ({role: ["localhost:27182"]} if role else {})
    assert task["task"] == ({"type": role, "index": 0} if role else {})


def test_a_worker_that_fails_is_told_at_once_and_the_run_goes_on(project, environ, meeting):
    words = ("--distributed", "--worker-count", 1, "--parameter-server-count", 0, "--start-port", free_ports(2))
    code = f"""{MEET}
if name == 'worker0': sys.exit(3)
while not os.path.exists(folder + '/go.on'): time.sleep(0.02)
print('done')
"""
    running = subprocess.Popen(
        training(project, code, *words, rest=[str(meeting), "2"]),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in running.stderr if "worker" in line)
    assert line == (
        "The replica worker 0 exited with a non-zero status of 3. The run goes on until its primary ends.\n"
    )
    (meeting / "go.on").touch()
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "master-replica-0 | done" in out.splitlines()


def test_ctrl_c_ends_a_cluster_with_the_chiefs_exit_code(project, environ, meeting):
    words = ("--distributed", "--start-port", free_ports(5))
    code = f"""try:
{textwrap.indent(MEET, " ")}
 time.sleep(600)
except KeyboardInterrupt:
 sys.exit(9 if name == 'chief0' else 8)
"""
    running = subprocess.Popen(
        training(project, code, *words, rest=[str(meeting), "5"]),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(5):
        assert "is here" in running.stdout.readline()
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 9, said
    assert "The run goes on" not in said
    assert not any(runs(pid) for pid, _ in met(meeting).values())


def test_a_port_that_is_taken_is_told_by_its_number_and_nothing_starts(project, environ, meeting):
    first = free_ports(5)
    with socket.create_server(("127.0.0.1", first + 3)):
        ended = train(project, environ, MEET, "--distributed", "--start-port", first, rest=[str(meeting), "5"])
    assert ended.returncode == 1
    assert f"{first + 3} cannot be had (Address already in use)" in ended.stderr
    assert f"--start-port {first + 5}" in ended.stderr
    assert list(meeting.iterdir()) == []
    ended = train(project, environ, MEET, "--distributed", "--start-port", 65534)
    assert ended.returncode == 2
    assert "65535 is the last" in " ".join(ended.stderr.split())


# --- gs:// ---


@pytest.fixture(scope="module")
def lab(server):
    return Lab(server.call, server.project, server.address.service_agent).open()


def test_a_gs_path_without_a_server_is_refused_with_what_to_do(project, environ):
    for flags, rest in ((["--job-dir", "gs://rides/out"], []), ([], ["--data=gs://rides/out"])):
        ended = train(project, environ, "print('ran')", *flags, rest=rest)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("ERROR: (taxiway.local.train) ")
        assert "gs://rides/out" in ended.stderr
        assert "taxiway up" in ended.stderr


def test_with_a_server_a_run_here_reads_and_writes_gs_paths_with_plain_tensorflow(project, environ, server, lab):
    data = lab.put("data/rides.csv", b"1,2,3\n")
    code = """
import tensorflow as tf
data = sys.argv[sys.argv.index("--data") + 1]
print(tf.io.gfile.GFile(data).read().strip())
with tf.io.gfile.GFile(sys.argv[sys.argv.index("--job-dir") + 1] + "/note", "w") as file:
    file.write("written")
"""
    flags = ("--job-dir", f"gs://{lab.bucket}/here")
    ended = train(project, {**environ, "TAXIWAY_HOME": str(server.home)}, code, *flags, rest=["--data", data])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "1,2,3\n"
    assert lab.read("here/note") == b"written"


# --- the same as a job ---


def receipt_of(ended):
    (name,) = re.findall(r"Receipt (local-[0-9a-f]{12}): ", ended.stderr)
    return name


def test_a_run_here_is_made_of_the_same_as_the_queued_one(project, environ, server, lab):
    environ = {**environ, "TAXIWAY_HOME": str(server.home)}
    here = train(project, environ, SEE, "--job-dir", f"gs://{lab.bucket}/out", rest=["--steps", "5"])
    job = f"same_{uuid.uuid4().hex[:8]}"
    submit = ["jobs", "submit", "training", job, "--module-name", "trainer.task", "--stream-logs"]
    submit += ["--package-path", str(project / "trainer"), "--job-dir", f"gs://{lab.bucket}/out"]
    queued = run_cli(server, *submit, "--", "--code", SEE, "--steps", "5")
    assert queued.returncode == 0, queued.stderr
    there = json.loads(lab.printed(job)[0])
    mine = json.loads(here.stdout)
    assert mine[0] == there[0]
    configs = [json.loads(each[1]["TF_CONFIG"]) for each in (mine, there)]
    for config in configs:
        config["cluster"] = {role: len(places) for role, places in config["cluster"].items()}
        for only_there in ("packageUris", "region"):
            config["job"].pop(only_there, None)
    assert configs[0] == configs[1]

    (line,) = [line for line in lab.said(job) if line.startswith("Receipt ")]
    name = receipt_of(here)
    assert receipts.parse(line) == receipts.read(receipts.path(server.home, name))
    same = run_cli(server, "jobs", "diff", job, name)
    assert same.returncode == 0, same.stderr
    assert [line.split()[:2] for line in same.stdout.splitlines()] == [
        ["PART", "STATE"],
        *([part, "SAME"] for part in ("package", "runtime", "args", "environment")),
    ]
    assert same.stderr == f"{job} and {name} were made of the same.\n"

    other = receipt_of(train(project, environ, SEE, "--job-dir", f"gs://{lab.bucket}/out", rest=["--steps", "7"]))
    differ = run_cli(server, "jobs", "diff", job, str(receipts.path(server.home, other)))
    assert differ.returncode == 1
    assert re.search(r"^args +DIFFERENT +--steps 5 \| 7$", differ.stdout, re.MULTILINE), differ.stdout
    assert differ.stdout.count("DIFFERENT") == 1
    assert differ.stderr.endswith(" differ in args.\n")


def test_an_edited_source_is_another_package_and_nothing_else(project, environ):
    before = receipt_of(train(project, environ, "pass"))
    (project / "trainer" / "task.py").write_text(f"# edited\n{trainers.FILES['trainer/task.py']}")
    after = receipt_of(train(project, environ, "pass"))
    told = [sys.executable, "-m", "taxiway", "jobs", "diff", before, after, "--format", "json"]
    ended = subprocess.run(told, env=environ, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    parts = json.loads(ended.stdout)
    assert [part["part"] for part in parts if not part["same"]] == ["package"]
    assert re.fullmatch(r"trainer\.tar\.gz: [0-9a-f]{8}… \| [0-9a-f]{8}…", parts[0]["differences"][0])


def test_a_receipt_that_cannot_be_kept_is_said_and_the_run_goes_on(project, environ, tmp_path):
    (tmp_path / "home").write_text("a file")
    ended = train(project, environ, "print('ran')")
    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert f"The receipt could not be kept in {tmp_path / 'home'}" in ended.stderr


def test_what_has_no_receipt_is_told_apart(environ, server, lab, tmp_path):
    body = lab.body("", packageUris=[lab.put("broken.tar.gz", sdist({**FILES, "setup.py": "1 / 0\n"}))])
    job = lab.post(body).json()["jobId"]
    assert lab.ended(job)["state"] == "FAILED"
    (tmp_path / "other.json").write_text("{}")
    for name, words in [
        (job, f"The job {job} is FAILED and has no receipt"),
        ("no_such_job", "NOT_FOUND"),
        ("local-000000000000", "No receipt local-000000000000"),
        (str(tmp_path / "other.json"), "holds no receipt"),
        (str(tmp_path / "none.json"), "No such file"),
    ]:
        ended = run_cli(server, "jobs", "diff", name, name)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert words in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr
    assert run_cli(server, "jobs", "diff", "one").returncode == 2


# --- predictions ---

MAKER = """
import sys
import tensorflow as tf

FEATURES = ["pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]

class Fares(tf.Module):
    def __init__(self):
        self.weights = tf.Variable([[0.5], [0.25], [-0.5], [0.125], [1.0]])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name) for name in FEATURES])
    def serve(self, *features):
        return {"predictions": tf.stack(features, 1) @ self.weights}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
    def shout(self, words):
        return {"loud": tf.strings.upper(words), "length": tf.strings.length(words)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
    def divide(self, x):
        return {"y": 12 // x}

class Broken(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
    def divide(self, x):
        return {"y": 1 // x}

fares = Fares()
signatures = dict(serving_default=fares.serve, shout=fares.shout, divide=fares.divide)
tf.saved_model.save(fares, sys.argv[1] + "/fares", signatures)
tf.saved_model.save(fares, sys.argv[1] + "/only", dict(predict=fares.serve))
broken = Broken()
tf.saved_model.save(broken, sys.argv[1] + "/broken", dict(serving_default=broken.divide))
"""
RIDES = """\
{"pickuplon": -73.99, "pickuplat": 40.75, "dropofflon": -73.98, "dropofflat": 40.76, "passengers": 2}
{"pickuplon": -73.78, "pickuplat": 40.64, "dropofflon": -73.99, "dropofflat": 40.75, "passengers": 1.0}
"""


@pytest.fixture(scope="module")
def models(runtime_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([runtime_python, "-c", MAKER, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def rides(tmp_path):
    (tmp_path / "rides.json").write_text(RIDES)
    return tmp_path / "rides.json"


def predict(environ, model, *flags, **how):
    words = command("predict", "--model-dir", model, *flags)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120, **how)


def test_a_model_answers_here_as_its_deployed_server_does(environ, models, rides, runtime_python, tmp_path_factory):
    ended = predict(environ, models / "fares", "--json-instances", rides, "--format", "json")
    assert (ended.returncode, ended.stderr) == (0, "")
    place = tmp_path_factory.mktemp("s")
    served = Runner(place, str(runtime_python), str(models / "fares"), "tensorflow")
    try:
        _, body = served.peer().ask({"instances": [json.loads(line) for line in RIDES.splitlines()]})
    finally:
        served.close()
    assert json.loads(ended.stdout) == body
    assert len(body["predictions"]) == 2


def test_instances_come_as_lines_as_a_request_as_text_and_from_standard_input(environ, models, rides, tmp_path):
    table = predict(environ, models / "fares", "--json-instances", rides).stdout
    assert table.splitlines()[0] == "PREDICTIONS"
    assert len(table.splitlines()) == 3
    assert predict(environ, models / "fares", "--json-instances", "-", input=RIDES).stdout == table
    request = {"instances": [json.loads(line) for line in RIDES.splitlines()]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert predict(environ, models / "fares", "--json-request", tmp_path / "request.json").stdout == table
    (tmp_path / "words.txt").write_text("fare\nüber\n")
    words = ("--text-instances", tmp_path / "words.txt", "--signature-name", "shout")
    assert predict(environ, models / "fares", *words).stdout.splitlines() == [
        "LENGTH  LOUD",
        "4       FARE",
        "5       üBER",
    ]


def test_the_only_signature_is_used_whatever_its_name(environ, models, rides):
    named = predict(environ, models / "only", "--json-instances", rides, "--signature-name", "predict")
    assert named.returncode == 0, named.stderr
    assert predict(environ, models / "only", "--json-instances", rides).stdout == named.stdout


@pytest.mark.parametrize(
    ("model", "flags", "given", "words"),
    [
        ("fares", ["--signature-name", "serve"], RIDES, "No signature found for signature key serve. (Error code: 1)"),
        ("fares", [], '{"pickuplon": 1}\n', "was missing in at least one input instance"),
        ("fares", [], '{"fare": 1}\n', "Unexpected tensor name: fare"),
        ("fares", ["--signature-name", "divide"], "0\n", "(Error code: "),
        ("fares", [], "not json\n", "Line 1 of standard input is not JSON"),
        ("fares", [], "", "standard input is empty"),
        ("broken", [], "1\n", "Failed to load model: "),
        ("nothing", [], "1\n", "is not a folder"),
        (".", [], "1\n", "Failed to load model: "),
        (
            "fares",
            ["--framework", "pytorch"],
            "1\n",
            "pytorch is not offered; runtime 2.21 offers tensorflow, scikit-learn",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_and_the_exit_code_1(environ, models, model, flags, given, words):
    ended = predict(environ, models / model, *flags, "--json-instances", "-", input=given)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("ERROR: (taxiway.local.predict) ")
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) <= 2, ended.stderr  # TensorFlow's own may have a second line
    assert "Traceback" not in ended.stderr


def test_instances_must_be_given_in_exactly_one_way(environ, models, rides):
    assert predict(environ, models / "fares").returncode == 2
    assert predict(environ, models / "fares", "--json-instances", rides, "--text-instances", rides).returncode == 2


def test_a_model_in_a_bucket_is_fetched(environ, server, lab, models, rides):
    address = saved_models.upload(lab.call, models / "fares", lab.bucket, "export/1795562513")
    here = predict(environ, models / "fares", "--json-instances", rides)
    environ = {**environ, "TAXIWAY_HOME": str(server.home)}
    for form in (address, f"{address}/"):
        fetched = predict(environ, form, "--json-instances", rides)
        assert fetched.returncode == 0, fetched.stderr
        assert fetched.stdout == here.stdout
    assert "no object below" in predict(environ, f"{address}0", "--json-instances", rides).stderr


# --- gcloud's own, side by side ---

needs_gcloud = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")


def gcloud(tmp_path, python, model, *flags, **how):
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "CLOUDSDK_ML_ENGINE_LOCAL_PYTHON": str(python)}
    words = ["gcloud", "ai-platform", "local", "predict", "--model-dir", model, *flags]
    return subprocess.run(list(map(str, words)), env=environ, capture_output=True, text=True, timeout=200, **how)


def both(tmp_path, environ, python, model, *flags, **how):
    """What gcloud prints and what we print."""
    theirs, ours = gcloud(tmp_path, python, model, *flags, **how), predict(environ, model, *flags, **how)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.returncode == 0, ours.stderr
    return theirs.stdout, ours.stdout


@needs_gcloud
@pytest.mark.parametrize(
    ("model", "flags", "given"),
    [
        ("fares", ["--json-instances", "-"], RIDES),
        ("fares", ["--json-request", "-"], json.dumps({"instances": list(map(json.loads, RIDES.splitlines()))})),
        ("fares", ["--text-instances", "-", "--signature-name", "shout"], "fare\nride\n"),
        (
            "fares",
            ["--json-instances", "-", "--signature-name", "shout"],
            '"fare"\n{"words": "ride"}\n{"b64": "YQ=="}\n',
        ),
        ("fares", ["--json-instances", "-", "--signature-name", "divide"], '{"x": 4}\n5\n'),
        ("only", ["--json-instances", "-"], RIDES),
    ],
)
def test_gcloud_says_the_same(tmp_path, environ, runtime_python, models, model, flags, given):
    theirs, ours = both(tmp_path, environ, runtime_python, models / model, *flags, "--format", "json", input=given)
    assert json.loads(ours) == json.loads(theirs)


@needs_gcloud
def test_gclouds_table_of_a_fare_is_ours(tmp_path, environ, runtime_python, models, rides):
    theirs, ours = both(tmp_path, environ, runtime_python, models / "fares", "--json-instances", rides)
    assert ours == theirs


@needs_gcloud
def test_what_gcloud_refuses_we_refuse_with_its_exit_code(tmp_path, environ, runtime_python, models):
    for flags, given in ((["--signature-name", "serve"], RIDES), ([], '{"fare": 1}\n'), ([], "not json\n"), ([], "")):
        words = (models / "fares", *flags, "--json-instances", "-")
        theirs, ours = gcloud(tmp_path, runtime_python, *words, input=given), predict(environ, *words, input=given)
        assert (theirs.returncode, ours.returncode) == (1, 1)
        assert ours.stdout == theirs.stdout == ""


ESTIMATOR = """
import sys
import tensorflow as tf

FEATURES = ["pickuplon", "pickuplat", "dropofflon", "dropofflat", "passengers"]
columns = [tf.feature_column.numeric_column(name) for name in FEATURES]
estimator = tf.estimator.DNNRegressor([8, 4], columns)

def rides():
    features = {name: [[-73.9 + row / 100.0] for row in range(8)] for name in FEATURES}
    return tf.data.Dataset.from_tensors((features, [[5.0 + row] for row in range(8)])).repeat(5)

estimator.train(rides, steps=5)
v1 = tf.compat.v1

def serving():
    given = {name: v1.placeholder(tf.float32, [None], name) for name in FEATURES}
    features = {name: tf.expand_dims(tensor, -1) for name, tensor in given.items()}
    return tf.estimator.export.ServingInputReceiver(features, given)

print(estimator.export_saved_model(sys.argv[1], serving).decode())
"""


@pytest.mark.torture
@needs_gcloud
def test_gcloud_says_the_same_of_what_an_estimator_of_tensorflow_2_15_exported(tmp_path, environ, rides):
    """An Estimator with raw inputs exports one signature, `predict`, and none that is the default."""
    try:
        choice = runtimes.resolve("2.15", None)
    except errors.InvalidArgument as error:
        pytest.skip(f"no runtime 2.15 here: {error}")
    python = runtimes.build(choice)
    made = subprocess.run([python, "-c", ESTIMATOR, str(tmp_path / "export")], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    model = Path(made.stdout.splitlines()[-1])
    for flags in ([], ["--signature-name", "predict"]):
        given = [model, "--json-instances", rides, *flags]
        theirs = gcloud(tmp_path, python, *given, "--format", "json")
        assert theirs.returncode == 0, theirs.stderr
        for version in ("2.15", "2.21"):
            ours = predict(environ, *given, "--runtime-version", version, "--format", "json")
            assert ours.returncode == 0, ours.stderr
            assert fares_of(ours) == pytest.approx(fares_of(theirs), rel=1e-6)


def fares_of(ended):
    return [row["predictions"][0] for row in json.loads(ended.stdout)["predictions"]]
