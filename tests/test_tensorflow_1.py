"""TensorFlow 1 itself, on its own old Pythons: the lab of 2018 as a job on gs://, and its model served."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from trainers import ESTIMATOR, Lab, rides, sdist, until

from taxiway import errors, receipts
from taxiway.environments import runtimes

pytestmark = [pytest.mark.runtime, pytest.mark.torture]  # two runtimes of their own are built

RIDE = {"pickuplon": -74.0, "pickuplat": 40.7, "dropofflon": -73.95, "dropofflat": 40.75, "passengers": 2}
FARE = 2.5 + 150 * (0.05**2 + 0.05**2) ** 0.5


@pytest.fixture(params=["1.15", "1.8"])
def version(request):
    """A TensorFlow 1 that this machine can run itself, built."""
    runtime = runtimes.table()[request.param]
    try:
        runtimes.build(runtimes.choose(runtime, None))
    except errors.InvalidArgument as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def lab(server):
    made = Lab(server.call, server.project, server.address.service_agent).open()
    made.put("estimator/trainer-0.1.tar.gz", sdist(ESTIMATOR))
    made.put("rides/train-1.csv", rides(1000))
    made.put("rides/train-2.csv", rides(700))
    made.put("rides/valid.csv", rides(300))
    return made


def test_the_lab_of_2018_runs_here_without_a_server_and_its_model_answers(version, tmp_path):
    for name, text in ESTIMATOR.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "train-1.csv").write_bytes(rides(1000))
    (tmp_path / "valid.csv").write_bytes(rides(300))
    environ = {**os.environ, "TAXIWAY_HOME": str(tmp_path / "home")}

    def taxiway(*words, **rest):
        command = [sys.executable, "-m", "taxiway", "local", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, **rest)

    args = ["--train_data_paths=train*.csv", "--eval_data_paths=valid.csv", "--output_dir=out", "--train_steps=400"]
    old = ["--runtime-version", version, "--python-version", "2.7"]
    trained = taxiway("train", "--package-path", "trainer", "--module-name", "trainer.task", *old, "--", *args)
    assert trained.returncode == 0, trained.stderr
    assert f"TensorFlow {version}." in trained.stdout
    assert f"`import tensorflow` gives TensorFlow {version} itself." in trained.stderr
    model = max((tmp_path / "out/export/exporter").iterdir())
    words = ["predict", "--model-dir", str(model), "--json-instances", "-", "--format", "json", *old]
    asked = taxiway(*words, input=json.dumps(RIDE))
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    rows = answer["predictions"] if isinstance(answer, dict) else answer
    assert rows[0]["predictions"][0] == pytest.approx(FARE, abs=2)


def estimator(lab, version, **told):
    args = [
        f"--train_data_paths=gs://{lab.bucket}/rides/train*.csv",
        f"--eval_data_paths=gs://{lab.bucket}/rides/valid.csv",
        f"--output_dir=gs://{lab.bucket}/out-{version}",
        "--train_steps=400",
    ]
    package = [f"gs://{lab.bucket}/estimator/trainer-0.1.tar.gz"]
    return lab.submit("", args=args, packageUris=package, runtimeVersion=version, **told)


def test_the_lab_of_2018_runs_as_a_job_on_gs_and_its_model_is_served(lab, server, version):
    job = estimator(lab, version, pythonVersion="2.7", jobDir=f"gs://{lab.bucket}/out-{version}")
    ended = lab.ended(job)
    said = lab.said(job)
    assert ended["state"] == "SUCCEEDED", "\n".join(said)
    assert any(re.fullmatch(rf"TensorFlow {re.escape(version)}\.\d+ with contrib: True", line) for line in said)
    (instead,) = [line for line in said if line.startswith("Python 2.7 was asked for and 3.")]
    assert instead.endswith(f"`import tensorflow` gives TensorFlow {version} itself.")
    assert [found.runtime.version for found in map(receipts.parse, said) if found] == [version]
    files = lab.listed(f"out-{version}/")
    assert f"out-{version}/model.ckpt-400.index" in files
    saved = max(name for name in files if name.endswith("/saved_model.pb"))
    uri = f"gs://{lab.bucket}/{saved.rpartition('/')[0]}"

    model = f"taxi_{version.replace('.', '_')}"
    place = f"/v1/projects/{server.project}/models"
    assert server.call("POST", place, json={"name": model}).status_code == 200
    body = {"name": "v1", "deploymentUri": uri, "runtimeVersion": version, "pythonVersion": "2.7"}
    begun = server.call("POST", f"{place}/{model}/versions", json=body).json()
    done = until(lambda: (now := server.call("GET", f"/v1/{begun['name']}").json()).get("done") and now, seconds=120)
    assert "error" not in done, done
    answer = server.call("POST", f"{place}/{model}:predict", json={"instances": [RIDE, RIDE]}).json()
    fares = [row["predictions"][0] for row in answer["predictions"]]
    assert fares == pytest.approx([FARE, FARE], abs=2)
    assert server.call("DELETE", f"{place}/{model}/versions/v1").status_code == 200


def test_source_of_python_2_is_refused_by_its_line_before_anything_runs(lab, version):
    files = {**ESTIMATOR, "trainer/model.py": "import tensorflow as tf\n\ndef say(x):\n    print x\n"}
    package = lab.put(f"old-{version}/trainer-0.1.tar.gz", sdist(files))
    job = lab.submit("", args=[], packageUris=[package], runtimeVersion=version, pythonVersion="2.7")
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    assert "cannot read trainer/model.py, line 4: `print x` (" in ended["errorMessage"]
    assert "That is Python 2" in ended["errorMessage"]
    assert not any(line.startswith("Running command") for line in lab.said(job))
