"""gcloud as it is, with the settings that `taxiway env` prints: the lab's commands for models and predictions."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import saved_models
from trainers import Lab

EXAMPLE = Path(__file__).parent.parent / "examples" / "taxifare"

pytestmark = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed here")


@pytest.fixture(scope="module")
def gcloud(server, tmp_path_factory):
    """Runs one gcloud command in a shell that has evaluated `taxiway env`; answers its stdout."""
    told = subprocess.run(
        [sys.executable, "-m", "taxiway", "env", "--home", str(server.home)], capture_output=True, text=True, check=True
    ).stdout
    exported = dict(shlex.split(line)[1].partition("=")[::2] for line in told.splitlines())
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **exported,
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }

    def run(*words, ok=True):
        ended = subprocess.run(["gcloud", *words], capture_output=True, text=True, env=environ, timeout=200)
        assert (ended.returncode == 0) == ok, ended.stderr
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stdout if ok else ended.stderr

    return run


def named(listed):
    return [each["name"].rpartition("/")[2] for each in json.loads(listed)]


def test_the_project_is_the_servers(gcloud, server):
    told = json.loads(gcloud("projects", "describe", server.project, "--format=json"))
    assert told["projectId"] == server.project
    assert told["projectNumber"] == str(server.address.project_number)
    assert gcloud("config", "get-value", "project").strip() == server.project
    assert gcloud("auth", "print-access-token").strip() == server.token


def test_the_labs_settings_can_be_set(gcloud, server):
    gcloud("config", "set", "project", server.project)
    gcloud("config", "set", "compute/region", "us-central1")


def test_refusals_are_told_as_gcloud_tells_them(gcloud):
    assert "NOT_FOUND" in gcloud("ai-platform", "models", "describe", "no_such_model", ok=False)
    told = gcloud("ai-platform", "models", "create", "9to5", "--regions=us-central1", ok=False)
    assert "INVALID_ARGUMENT" in told
    assert "model.name" in told


def test_jobs_are_listed(gcloud, server):
    held = server.call("GET", f"/v1/projects/{server.project}/jobs?pageSize=100").json().get("jobs", [])
    assert named_jobs(json.loads(gcloud("ai-platform", "jobs", "list", "--format=json"))) == named_jobs(held)


def named_jobs(jobs):
    return [each["jobId"] for each in jobs]


@pytest.mark.runtime
def test_a_model_goes_its_whole_way(gcloud, server, runtime_python, tmp_path, tmp_path_factory):
    folder = saved_models.fares(runtime_python, tmp_path_factory.getbasetemp())
    mark = uuid.uuid4().hex[:8]
    model, bucket = f"taxi_{mark}", f"gs://gcloud-{mark}"
    agent = f"serviceAccount:{server.address.service_agent}"
    gcloud("storage", "buckets", "create", bucket, "--location=us-central1")
    role = "--role=roles/storage.objectViewer"
    gcloud("storage", "buckets", "add-iam-policy-binding", bucket, f"--member={agent}", role)
    gcloud("storage", "cp", "-r", str(folder / "one"), str(folder / "two"), bucket)

    gcloud("ai-platform", "models", "create", model, "--regions=us-central1")
    assert model in named(gcloud("ai-platform", "models", "list", "--format=json"))
    of_model = f"--model={model}"
    common = ("--runtime-version=2.21", "--framework=tensorflow", "--python-version=3.11")
    gcloud("ai-platform", "versions", "create", "v1", of_model, f"--origin={bucket}/one", *common)
    gcloud("ai-platform", "versions", "create", "v2", of_model, f"--origin={bucket}/two/", *common)
    told = json.loads(gcloud("ai-platform", "versions", "describe", "v1", of_model, "--format=json"))
    assert (told["state"], told["isDefault"], told["runtimeVersion"]) == ("READY", True, "2.21")
    assert named(gcloud("ai-platform", "versions", "list", of_model, "--format=json")) == ["v1", "v2"]

    rides = tmp_path / "rides.json"
    rides.write_text('{"miles": 3, "passengers": 1}\n{"miles": 10.0, "passengers": 2}\n')

    def fares(*words):
        words = ("ai-platform", "predict", of_model, f"--json-instances={rides}", *words, "--format=json")
        return [round(each["fare"], 3) for each in json.loads(gcloud(*words))["predictions"]]

    assert fares() == [5.5, 12.5]
    assert fares("--version=v2") == [8.5, 22.5]
    gcloud("ai-platform", "versions", "set-default", "v2", of_model)
    assert fares() == [8.5, 22.5]
    table = gcloud("ai-platform", "predict", of_model, f"--json-instances={rides}")
    assert table.split() == ["FARE", "8.5", "22.5"]

    described = json.loads(gcloud("ai-platform", "models", "describe", model, "--format=json"))
    assert described["defaultVersion"]["name"].endswith("/versions/v2")
    operations = json.loads(gcloud("ai-platform", "operations", "list", "--format=json"))
    assert {"CREATE_VERSION"} <= {each["metadata"]["operationType"] for each in operations}
    gcloud("ai-platform", "operations", "describe", operations[0]["name"].rpartition("/")[2])

    gcloud("ai-platform", "versions", "delete", "v1", of_model)
    gcloud("ai-platform", "versions", "delete", "v2", of_model)
    gcloud("ai-platform", "models", "delete", model)
    assert model not in named(gcloud("ai-platform", "models", "list", "--format=json"))


@pytest.mark.runtime
def test_gcloud_alone_goes_the_whole_way_from_a_package_to_a_fare(gcloud, server, runtime_python, tmp_path):
    """The lab of 2018, by the commands that it used."""
    maker = [sys.executable, "-m", "taxifare_data", "make", "--rows", "2000", "--output", str(tmp_path)]
    subprocess.run(maker, cwd=EXAMPLE, check=True, capture_output=True)
    bucket, job, model = (
        f"gs://lab-{uuid.uuid4().hex[:8]}",
        f"fares_{uuid.uuid4().hex[:8]}",
        f"m_{uuid.uuid4().hex[:8]}",
    )
    gcloud("storage", "buckets", "create", bucket, "--location=us-central1")
    gcloud("storage", "cp", f"{tmp_path}/taxi-train.csv", f"{tmp_path}/taxi-valid.csv", f"{bucket}/data/")
    submit = [
        *("ai-platform", "jobs", "submit", "training", job, "--region=us-central1", "--scale-tier=BASIC"),
        *("--module-name=trainer.task", f"--package-path={EXAMPLE / 'trainer'}", "--runtime-version=2.21"),
        *("--python-version=3.11", f"--job-dir={bucket}/{job}", f"--staging-bucket={bucket}", "--"),
        *(f"--train_data_paths={bucket}/data/taxi-train*", f"--eval_data_paths={bucket}/data/taxi-valid*"),
        *(f"--output_dir={bucket}/{job}", "--train_steps=300"),
    ]
    assert "add-iam-policy-binding" in gcloud(*submit, ok=False)
    for role in ("roles/storage.objectAdmin", "roles/storage.legacyBucketReader"):
        member = f"--member=serviceAccount:{server.address.service_agent}"
        gcloud("storage", "buckets", "add-iam-policy-binding", bucket, member, f"--role={role}")
    gcloud(*submit)
    lines = gcloud("ai-platform", "jobs", "stream-logs", job, "--polling-interval=1")
    assert "step 300/300" in lines
    assert json.loads(gcloud("ai-platform", "jobs", "describe", job, "--format=json"))["state"] == "SUCCEEDED"
    origin = gcloud("storage", "ls", f"{bucket}/{job}/export/exporter/").split()[-1]
    gcloud("ai-platform", "models", "create", model, "--regions=us-central1")
    version = ("ai-platform", "versions", "create", "v1", f"--model={model}", f"--origin={origin}")
    gcloud(*version, "--runtime-version=2.21", "--python-version=3.11", "--framework=tensorflow")
    asked = ("ai-platform", "predict", f"--model={model}", f"--json-instances={EXAMPLE / 'test.json'}")
    ((fare,),) = [each["predictions"] for each in json.loads(gcloud(*asked, "--format=json"))["predictions"]]
    assert 5 < fare < 100
    gcloud("ai-platform", "versions", "delete", "v1", f"--model={model}")
    gcloud("ai-platform", "models", "delete", model)


TUNES = """
trainingInput:
  hyperparameters:
    goal: MINIMIZE
    hyperparameterMetricTag: loss
    maxTrials: 2
    params:
    - {parameterName: rate, type: DOUBLE, minValue: 0.0, maxValue: 1.0, scaleType: UNIT_LINEAR_SCALE}
"""


@pytest.mark.runtime
def test_gcloud_tunes(gcloud, server, runtime_python, tmp_path):
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    (tmp_path / "tune.yaml").write_text(TUNES)
    job = f"tune_{uuid.uuid4().hex[:8]}"
    code = (
        "import hypertune, sys; rate = float(sys.argv[sys.argv.index('--rate') + 1]); print('the rate is', rate);"
        "hypertune.HyperTune().report_hyperparameter_tuning_metric('loss', rate)"
    )
    submit = [
        *("ai-platform", "jobs", "submit", "training", job, "--region=us-central1", f"--config={tmp_path}/tune.yaml"),
        *("--module-name=trainer.task", f"--packages=gs://{lab.bucket}/trainer-0.1.tar.gz", "--runtime-version=2.21"),
        *("--python-version=3.11", "--", "--code", code),
    ]
    gcloud(*submit)
    lines = gcloud("ai-platform", "jobs", "stream-logs", job, "--polling-interval=1")
    assert "The best of 2 trials is trial " in lines
    told = json.loads(gcloud("ai-platform", "jobs", "describe", job, "--format=json"))
    assert told["state"] == "SUCCEEDED"
    rates = [float(each["hyperparameters"]["rate"]) for each in told["trainingOutput"]["trials"]]
    assert rates == sorted(rates)
    for each in told["trainingOutput"]["trials"]:
        assert f"the rate is {each['hyperparameters']['rate']}" in lines
        assert each["finalMetric"]["objectiveValue"] == float(each["hyperparameters"]["rate"])


@pytest.mark.runtime
def test_gcloud_asks_for_machines_and_an_account_of_its_own(gcloud, server, runtime_python):
    account = server.call(
        "POST", f"/v1/projects/{server.project}/serviceAccounts", json={"accountId": f"acc-{uuid.uuid4().hex[:8]}"}
    ).json()["email"]
    lab = Lab(server.call, server.project, account).open()
    job = f"custom_{uuid.uuid4().hex[:8]}"
    submit = [
        *("ai-platform", "jobs", "submit", "training", job, "--region=us-central1", "--scale-tier=CUSTOM"),
        *("--module-name=trainer.task", f"--packages=gs://{lab.bucket}/trainer-0.1.tar.gz", "--runtime-version=2.21"),
        *("--python-version=3.11", f"--service-account={account}", "--master-machine-type=n1-standard-1"),
        *("--worker-machine-type=n1-highcpu-2", "--worker-count=2", "--parameter-server-machine-type=n1-highcpu-2"),
        "--parameter-server-count=1",
    ]
    refused = gcloud(*submit, "--master-accelerator=type=nvidia-tesla-t4,count=64", ok=False)
    assert "asks for 64 NVIDIA_TESLA_T4, and this host has" in refused
    gcloud(*submit, "--", "--code", "print('by itself')")
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert lab.printed(job) == ["by itself"]
    told = json.loads(gcloud("ai-platform", "jobs", "describe", job, "--format=json"))["trainingInput"]
    assert told["serviceAccount"] == account
    assert (told["masterType"], told["workerCount"], told["parameterServerCount"]) == ("n1-standard-1", "2", "1")
