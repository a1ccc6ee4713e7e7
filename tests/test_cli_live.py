"""The command line against a running server: the lab's path by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest


@pytest.fixture
def bucket(cli):
    name = f"gs://rides-{uuid.uuid4().hex[:8]}"
    assert cli("storage", "mb", name, "--location", "us-central1").returncode == 0
    return name


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.csv").write_text("1,2\n" * 1000)
    (folder / "sub" / "ü b.csv").write_text("3\n")
    (folder / "empty").touch()
    (folder / "big.bin").write_bytes(os.urandom(9 * 1024 * 1024))
    return folder


def lines(ended):
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_a_folder_comes_back_as_it_went(cli, bucket, data, tmp_path):
    lines(cli("storage", "cp", "-r", str(data), bucket))
    assert lines(cli("storage", "ls", f"{bucket}/data")) == [
        f"{bucket}/data/a.csv",
        f"{bucket}/data/big.bin",
        f"{bucket}/data/empty",
        f"{bucket}/data/sub/",
    ]
    (tmp_path / "back").mkdir()
    lines(cli("storage", "cp", "-r", f"{bucket}/data", str(tmp_path / "back")))
    for path in filter(lambda each: each.is_file(), data.rglob("*")):
        assert (tmp_path / "back" / "data" / path.relative_to(data)).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "back").rglob("*.taxiway-part"))


def test_wildcards_are_understood_on_both_sides(cli, bucket, data, tmp_path):
    lines(cli("storage", "cp", f"{data}/*.csv", f"{data}/sub/*.csv", bucket))
    assert lines(cli("storage", "ls", f"{bucket}/*.csv")) == [f"{bucket}/a.csv", f"{bucket}/ü b.csv"]
    lines(cli("storage", "cp", f"{bucket}/a.csv", f"{bucket}/deep/er/a.csv"))
    assert lines(cli("storage", "ls", f"{bucket}/**/a.csv")) == [f"{bucket}/a.csv", f"{bucket}/deep/er/a.csv"]
    assert lines(cli("storage", "ls", f"{bucket}/d*/er")) == [f"{bucket}/deep/er/a.csv"]
    (tmp_path / "out").mkdir()
    lines(cli("storage", "cp", f"{bucket}/*.csv", str(tmp_path / "out")))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "ü b.csv"]


def test_a_file_becomes_the_name_that_is_given_or_goes_into_the_folder(cli, bucket, data):
    lines(cli("storage", "cp", str(data / "a.csv"), f"{bucket}/x"))
    lines(cli("storage", "cp", str(data / "a.csv"), f"{bucket}/folder/"))
    lines(cli("storage", "cp", str(data / "empty"), f"{bucket}/folder"))
    assert lines(cli("storage", "ls", f"{bucket}/**")) == [
        f"{bucket}/folder/a.csv",
        f"{bucket}/folder/empty",
        f"{bucket}/x",
    ]
    assert cli("storage", "cat", f"{bucket}/x").stdout == (data / "a.csv").read_text()


def test_ls_shows_sizes_and_everything_below(cli, bucket, data):
    lines(cli("storage", "cp", "-r", str(data / "sub"), str(data / "a.csv"), bucket))
    assert lines(cli("storage", "ls", "-r", bucket)) == [
        f"{bucket}/:",
        f"{bucket}/a.csv",
        f"{bucket}/sub/",
        "",
        f"{bucket}/sub/:",
        f"{bucket}/sub/ü b.csv",
    ]
    *_, total = lines(cli("storage", "ls", "-l", bucket))
    assert total == "TOTAL: 1 objects, 4000 bytes (3.9kiB)"
    assert f"{bucket}/" in lines(cli("storage", "ls"))


def test_rm_takes_what_matches_and_nothing_matched_is_an_error(cli, bucket, data):
    lines(cli("storage", "cp", "-r", str(data), bucket))
    ended = cli("storage", "rm", f"{bucket}/data/nothing*")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ERROR: (taxiway.storage.rm) No URLs matched" in ended.stderr
    assert "give -r" in cli("storage", "rm", f"{bucket}/data").stderr
    lines(cli("storage", "rm", f"{bucket}/data/*.csv"))
    assert f"{bucket}/data/a.csv" not in lines(cli("storage", "ls", f"{bucket}/data"))
    lines(cli("storage", "rm", "-r", bucket))
    assert f"{bucket}/" not in lines(cli("storage", "ls"))


def test_a_copy_that_cannot_be_made_is_refused_before_anything_is_copied(cli, bucket, data, tmp_path):
    for words, told in [
        ([str(data), bucket], "Did you mean: taxiway storage cp -r"),
        ([str(tmp_path / "none"), bucket], "No URLs matched"),
        ([str(data / "a.csv"), str(tmp_path)], "Both sides are local"),
        ([str(data / "a.csv"), "gs://no-such-bucket-here/x/"], "does not exist"),
    ]:
        ended = cli("storage", "cp", *words)
        assert ended.returncode == 1
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr
    assert lines(cli("storage", "ls", bucket)) == []


def test_a_grant_is_printed_and_can_be_taken_back(cli, bucket):
    agent = json.loads(cli("projects", "get-config", "--format", "json").stdout)["serviceAccount"]
    words = [bucket, f"--member=serviceAccount:{agent}", "--role=roles/storage.objectAdmin"]
    granted = cli("storage", "buckets", "add-iam-policy-binding", *words)
    assert f"  - serviceAccount:{agent}" in lines(granted)
    assert granted.stdout == cli("storage", "buckets", "get-iam-policy", bucket).stdout
    assert agent not in cli("storage", "buckets", "remove-iam-policy-binding", *words).stdout
    again = cli("storage", "buckets", "remove-iam-policy-binding", *words)
    assert again.returncode == 1
    assert "not found" in again.stderr


def test_the_project_tells_its_number(cli, server):
    shown = lines(cli("projects", "describe"))
    assert f"projectId: {server.project}" in shown
    assert f"projectNumber: '{server.address.project_number}'" in shown


def test_env_can_be_evaluated_by_a_shell(cli, server):
    script = cli("env").stdout + "echo $CLOUDSDK_CORE_PROJECT $API_ENDPOINT_OVERRIDE $TAXIWAY_HOME"
    told = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == [server.project, server.url, str(server.home)]


def test_run_passes_the_commands_exit_code_and_reaches_the_server_as_google(cli, bucket):
    assert cli("run", "--", "sh", "-c", "exit 7").returncode == 7
    missing = cli("run", "--", "no-such-command-here")
    assert missing.returncode == 127
    assert "no-such-command-here" in missing.stderr
    program = (
        "import urllib.request\n"
        "r = urllib.request.urlopen('https://www.googleapis.com/$discovery/rest?version=v1', timeout=20)\n"
        "print(r.status)\n"
    )
    assert lines(cli("run", "--", sys.executable, "-c", program)) == ["200"]


def test_a_second_server_on_the_home_is_refused_in_a_sentence(cli, server):
    ended = cli("up", "--home", str(server.home), "--port", "0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("ERROR: (taxiway.up) ")
    assert "Traceback" not in ended.stderr


def test_a_forged_token_is_refused_in_a_sentence(server, tmp_path):
    (tmp_path / "token").write_text("forged")
    environ = {**os.environ, "TAXIWAY_URL": server.url, "TAXIWAY_TOKEN_FILE": str(tmp_path / "token")}
    command = [sys.executable, "-m", "taxiway", "jobs", "list", "--project", server.project]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)
    assert ended.returncode == 1
    assert "(taxiway.jobs.list) UNAUTHENTICATED: " in ended.stderr


TASK = """
import sys
print("rides", sys.argv[1:])
if "--fail" in sys.argv:
    raise ValueError("no rides")
"""


@pytest.fixture
def trainer(tmp_path):
    folder = tmp_path / "trainer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "task.py").write_text(TASK)
    return folder


def submit(cli, bucket, trainer, job, *more):
    return cli(
        *("jobs", "submit", "training", job, "--module-name", "trainer.task", "--package-path", str(trainer)),
        *("--staging-bucket", bucket, "--job-dir", f"{bucket}/{job}", "--region=us-central1", *more),
    )


@pytest.fixture
def granted(cli, bucket, server):
    member = f"serviceAccount:{server.address.service_agent}"
    for role in ("roles/storage.objectAdmin", "roles/storage.legacyBucketReader"):
        lines(cli("storage", "buckets", "add-iam-policy-binding", bucket, "--member", member, "--role", role))
    return bucket


@pytest.mark.runtime
def test_a_job_is_submitted_streamed_listed_and_described(cli, granted, trainer, runtime_python):
    job = f"j_{uuid.uuid4().hex[:8]}"
    ended = submit(cli, granted, trainer, job, "--stream-logs", "--", "--steps", "3")
    assert ended.returncode == 0, ended.stderr
    assert f"Job [{job}] submitted successfully." in ended.stderr
    assert f"\tmaster-replica-0\t\trides ['--steps', '3', '--job-dir', '{granted}/{job}']" in ended.stderr
    assert "state: SUCCEEDED" in ended.stdout.splitlines()
    assert any(line.split()[:2] == [job, "SUCCEEDED"] for line in lines(cli("jobs", "list")))
    streamed = cli("jobs", "stream-logs", job, "--task-name", "master-replica-0")
    assert streamed.returncode == 0
    assert all(line.split("\t")[2] == "master-replica-0" for line in streamed.stdout.splitlines())
    taken = submit(cli, granted, trainer, job)
    assert taken.returncode == 1
    assert "ALREADY_EXISTS" in taken.stderr


@pytest.mark.runtime
def test_a_trainer_that_raises_ends_the_stream_with_1_and_its_last_words(cli, granted, trainer, runtime_python):
    job = f"j_{uuid.uuid4().hex[:8]}"
    ended = submit(cli, granted, trainer, job, "--stream-logs", "--", "--fail")
    assert ended.returncode == 1
    assert "ValueError: no rides" in ended.stderr
    assert f"Job [{job}] ended as FAILED." in ended.stderr
    assert "ValueError: no rides" in cli("jobs", "describe", job).stdout


def test_a_job_that_cannot_be_is_refused_before_anything_is_uploaded(cli, bucket, trainer):
    for words, told in [
        (["1job"], "A name must start with a letter"),
        (["job", "--scale-tier", "HUGE"], "HUGE"),
        (["job", "--runtime-version", "9.9"], "9.9"),
        (["job", "--region", "mars"], "mars"),
        (["job", "--package-path", str(trainer.parent)], "no __init__.py"),
        (["job", "--module-name", "trainer.nope"], "no module trainer.nope"),
        (["job", "--job-dir", "file:///tmp"], "gs://BUCKET/OBJECT"),
    ]:
        ended = submit(cli, bucket, trainer, *words)
        assert ended.returncode == 1, words
        assert told in ended.stderr
        assert "Traceback" not in ended.stderr
    nowhere = cli("jobs", "submit", "training", "job", "--module-name=trainer.task", f"--package-path={trainer}")
    assert "Give --staging-bucket or --job-dir" in nowhere.stderr


def test_a_job_or_model_that_is_not_there_is_named(cli):
    for words in [
        ["jobs", "describe", "nope"],
        ["jobs", "stream-logs", "nope"],
        ["models", "describe", "nope"],
        ["versions", "describe", "v", "--model", "nope"],
        ["operations", "describe", "nope"],
        ["versions", "create", "v", "--model", "nope", "--origin", "gs://rides/x"],
    ]:
        ended = cli(*words)
        assert ended.returncode == 1
        assert "NOT_FOUND: " in ended.stderr
        assert "nope" in ended.stderr


def test_a_model_is_made_listed_described_and_deleted(cli):
    name = f"m_{uuid.uuid4().hex[:8]}"
    lines(cli("models", "create", name, "--regions", "us-central1", "--description", "fares"))
    assert any(line.split() == [name] for line in lines(cli("models", "list")))
    assert "description: fares" in lines(cli("models", "describe", name))
    assert json.loads(cli("models", "list", "--format", "json").stdout)
    deleted = cli("models", "delete", name)
    assert deleted.returncode == 0
    assert f"Deleting model [{name}]...done." in deleted.stderr


SAVED_MODEL = """
import sys, tensorflow as tf
class Fares(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name) for name in ("a", "b")])
    def serve(self, a, b):
        return {"fare": tf.reshape(a + b, [-1, 1])}
fares = Fares()
tf.saved_model.save(fares, sys.argv[1], signatures={"serving_default": fares.serve})
"""


@pytest.mark.runtime
def test_a_local_model_is_deployed_and_predicts(cli, bucket, granted, tmp_path, runtime_python):
    model, saved = f"m_{uuid.uuid4().hex[:8]}", tmp_path / "saved"
    subprocess.run([str(runtime_python), "-c", SAVED_MODEL, str(saved)], check=True, capture_output=True)
    lines(cli("models", "create", model, "--regions=us-central1"))
    missing = cli("versions", "create", "v0", "--model", model, "--origin", f"{bucket}/nothing")
    assert missing.returncode == 1
    assert "ERROR: (taxiway.versions.create) " in missing.stderr
    made = cli("versions", "create", "v1", "--model", model, "--origin", str(saved), "--staging-bucket", bucket)
    assert made.returncode == 0, made.stderr
    assert "Creating version (this might take a few minutes)...done." in made.stderr
    rows = "".join(f'{{"a": {row}, "b": 0.5}}\n' for row in range(250))
    answer = cli("predict", "--model", model, "--json-instances", "-", input=rows)
    assert lines(answer)[:3] == ["FARE", "[0.5]", "[1.5]"]
    assert len(lines(answer)) == 251
    refused = cli("predict", "--model", model, "--version=v1", "--json-instances", "-", input='{"a": 1}\n')
    assert refused.returncode == 1
    assert "ERROR: (taxiway.predict) " in refused.stderr
    assert [line.split()[0] for line in lines(cli("versions", "list", "--model", model))] == ["NAME", "v1"]
    lines(cli("versions", "delete", "v1", "--model", model))
    lines(cli("models", "delete", model))
