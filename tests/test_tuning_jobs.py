"""Jobs that tune: real trials of a real trainer, chosen by Optuna, judged by what they report."""

from __future__ import annotations

import json
import textwrap
import uuid
from pathlib import Path

import pytest
import trainers
from conftest import run_cli, running
from trainers import Lab, until

from taxiway.cli import packaging

EXAMPLE = Path(__file__).parent.parent / "examples/taxifare"
RATE = {"parameterName": "rate", "type": "DOUBLE", "minValue": 0.0, "maxValue": 1.0, "scaleType": "UNIT_LINEAR_SCALE"}
UNITS = {"parameterName": "units", "type": "DISCRETE", "discreteValues": [1, 2, 4]}
# The farther from a rate of 0.3, the worse. As cloudml-hypertune writes it; it is in the runtime.
REPORTS = """
    import argparse, hypertune, json, os, sys, time
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--units", type=int, default=1)
    parser.add_argument("--job-dir", default="")
    told, _ = parser.parse_known_args()

    def report(value, step=1, tag="loss"):
        hypertune.HyperTune().report_hyperparameter_tuning_metric(tag, metric_value=value, global_step=step)

    def loss():
        return (told.rate - 0.3) ** 2 + told.units / 1000
"""


def tuning(*params, **rest):
    told = {"goal": "MINIMIZE", "hyperparameterMetricTag": "loss", "params": list(params or [RATE]), **rest}
    return {"hyperparameters": told}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("tuning") / "home", TAXIWAY_JOBS="4") as started:
        yield started


@pytest.fixture(scope="module")
def lab(server, runtime_python):
    return Lab(server.call, server.project, server.address.service_agent).open()


def trials(lab, job):
    return lab.get(job)["trainingOutput"]["trials"]


def test_trials_run_with_their_values_and_are_listed_by_what_they_reported(lab):
    code = REPORTS + "    print(json.dumps([told.rate, told.units, told.job_dir]))\n    report(loss())\n"
    job = lab.submit(code, **tuning(RATE, UNITS, maxTrials=6, maxParallelTrials=3), jobDir=f"gs://{lab.bucket}/out/")
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", lab.said(job)
    output = ended["trainingOutput"]
    assert (output["completedTrialCount"], output["isHyperparameterTuningJob"]) == ("6", True)
    assert output["hyperparameterMetricTag"] == "loss"
    found = output["trials"]
    assert sorted(int(each["trialId"]) for each in found) == [1, 2, 3, 4, 5, 6]
    figures = [each["finalMetric"]["objectiveValue"] for each in found]
    assert figures == sorted(figures)
    for each in found:
        assert each["state"] == "SUCCEEDED"
        assert each["startTime"] <= each["endTime"]
        rate, units = (float(each["hyperparameters"][name]) for name in ("rate", "units"))
        assert each["finalMetric"]["objectiveValue"] == pytest.approx((rate - 0.3) ** 2 + units / 1000)
    printed = [entry for entry in lab.entries(job) if entry["jsonPayload"]["message"].startswith("[")]
    by_trial = {entry["labels"]["ml.googleapis.com/trial_id"]: entry["jsonPayload"]["message"] for entry in printed}
    for each in found:
        rate, units, folder = json.loads(by_trial[each["trialId"]])
        assert (str(rate), str(units)) == (each["hyperparameters"]["rate"], each["hyperparameters"]["units"])
        assert folder == f"gs://{lab.bucket}/out/{each['trialId']}"
    assert any(
        line.startswith(f"The best of 6 trials is trial {found[0]['trialId']}: loss = ") for line in lab.said(job)
    )


def test_a_trial_is_told_who_it_is_and_reports_by_event_files_as_well(lab):
    code = (
        REPORTS
        + """
    import tensorflow as tf
    assert json.loads(os.environ["TF_CONFIG"])["task"]["trial"] == os.environ["CLOUD_ML_TRIAL_ID"]
    assert os.environ["CLOUD_ML_HP_METRIC_TAG"] == "loss"
    where = told.job_dir if os.environ["CLOUD_ML_TRIAL_ID"] == "1" else "logs"
    with tf.summary.create_file_writer(where + "/train").as_default():
        for step in range(1, 3000):
            tf.summary.scalar("loss", 5.0 + step, step=step)
        tf.summary.scalar("other", 0.0, step=3001)
        tf.summary.scalar("loss", loss(), step=3000)
    """
    )
    job = lab.submit(code, **tuning(maxTrials=2, maxParallelTrials=2), jobDir=f"gs://{lab.bucket}/events")
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    for each in trials(lab, job):
        value = (float(each["hyperparameters"]["rate"]) - 0.3) ** 2 + 1 / 1000
        assert each["finalMetric"] == {"trainingStep": "3000", "objectiveValue": pytest.approx(value, rel=1e-5)}


def test_a_trial_that_fails_is_one_and_too_many_of_them_are_the_jobs_end(lab):
    code = REPORTS + "    sys.exit(3 if told.units == 2 else report(loss()))\n"
    job = lab.submit(code, **tuning(UNITS, algorithm="GRID_SEARCH", maxTrials=3))
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    states = {each["hyperparameters"]["units"]: each["state"] for each in trials(lab, job)}
    assert states == {"1": "SUCCEEDED", "2": "FAILED", "4": "SUCCEEDED"}
    job = lab.submit(code, **tuning(UNITS, algorithm="GRID_SEARCH", maxTrials=3, maxFailedTrials=2))
    assert lab.ended(job)["state"] == "SUCCEEDED"
    job = lab.submit(code, **tuning(UNITS, algorithm="GRID_SEARCH", maxTrials=3, maxFailedTrials=1))
    assert lab.ended(job)["state"] == "FAILED"
    assert sorted(each["hyperparameters"]["units"] for each in trials(lab, job)) == ["1", "2"]  # and 4 was not begun
    job = lab.submit(REPORTS + "    sys.exit(3)\n", **tuning(maxTrials=20))
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    assert ended["errorMessage"].startswith("3 trials failed, which ends the job. The last was trial 3: ")
    assert "exited with a non-zero status of 3" in ended["errorMessage"]


PIPE = "where = os.environ['CLOUD_ML_HP_METRIC_FILE']; os.makedirs(os.path.dirname(where)); os.mkfifo(where)"


@pytest.mark.parametrize("reported", ["report(loss(), tag='elsewhere')", "report(float('nan'))", "pass", PIPE])
def test_a_metric_that_never_comes_is_told(lab, reported):
    job = lab.submit(f"{REPORTS}    {reported}\n", **tuning(maxTrials=1))
    ended = lab.ended(job)
    assert ended["state"] == "FAILED"
    (trial,) = trials(lab, job)
    assert (trial["state"], "finalMetric" in trial) == ("FAILED", False)
    assert any("ended without a metric. It reported no 'loss': report it by" in line for line in lab.said(job))


def test_a_grid_ends_with_its_last_point(lab):
    code = REPORTS + "    report(loss())\n"
    job = lab.submit(code, **tuning(UNITS, algorithm="GRID_SEARCH", maxTrials=50, maxParallelTrials=4))
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert sorted(each["hyperparameters"]["units"] for each in trials(lab, job)) == ["1", "2", "4"]


def test_a_job_goes_on_where_another_one_ended(lab):
    code = REPORTS + "    report(loss())\n"
    spec = {"algorithm": "GRID_SEARCH", "maxTrials": 2}
    first = lab.submit(code, **tuning(UNITS, **spec))
    lab.ended(first)
    second = lab.submit(code, **tuning(UNITS, **spec, resumePreviousJobId=first))
    assert lab.ended(second)["state"] == "SUCCEEDED", lab.said(second)
    assert sorted(each["hyperparameters"]["units"] for job in (first, second) for each in trials(lab, job)) == [
        "1",
        "2",
        "4",
    ]
    for name, why in (("nowhere", "there is no job"), (first, "must vary the same")):
        answer = lab.post(lab.body(code, **tuning(RATE, resumePreviousJobId=name)))
        assert answer.status_code == 400
        assert why in answer.text


def test_a_hopeless_trial_is_stopped_and_keeps_what_it_reported(lab):
    """Five good ones first, so that the median is known; then one that would run for ten minutes."""
    code = (
        REPORTS
        + """
    number = int(os.environ["CLOUD_ML_TRIAL_ID"])
    for step in range(1, 4 if number < 6 else 6000):
        report(number if number < 6 else 1000.0, step=step)
        time.sleep(0.1)
    """
    )
    job = lab.submit(code, **tuning(maxTrials=6, enableTrialEarlyStopping=True))
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    last = next(each for each in trials(lab, job) if each["trialId"] == "6")
    assert (last["isTrialStoppedEarly"], last["finalMetric"]["objectiveValue"]) == (True, 1000)
    assert not any(each.get("isTrialStoppedEarly") for each in trials(lab, job) if each["trialId"] != "6")
    assert trainers.processes(job) == []


def test_a_server_that_is_killed_loses_no_trial_and_repeats_none(start_server, runtime_python):
    server = start_server()
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    code = REPORTS + "    time.sleep(0.3)\n    print('trial', os.environ['CLOUD_ML_TRIAL_ID'])\n    report(loss())\n"
    job = lab.submit(code, **tuning(RATE, maxTrials=6, maxParallelTrials=2, algorithm="RANDOM_SEARCH"))
    for least in (1, 3, 5):
        until(lambda least=least: len(lab.get(job)["trainingOutput"].get("trials", [])) >= least)
        server.process.kill()
        server.process.wait()
        server = start_server(server.home)
        lab.call = server.call
    ended = lab.ended(job)
    assert ended["state"] == "SUCCEEDED", lab.said(job)
    found = ended["trainingOutput"]["trials"]
    assert sorted(int(each["trialId"]) for each in found) == [1, 2, 3, 4, 5, 6]
    assert len({each["hyperparameters"]["rate"] for each in found}) == 6
    assert {each["attempt"] for each in ended["taxiway"]["attempts"] if each["attempt"] > 6} == set()
    begun = [line for line in lab.said(job) if line.startswith("trial ")]
    assert sorted(begun) == [f"trial {number}" for number in range(1, 7)]
    assert list((server.home / "attempts").iterdir()) == []


def test_a_tuning_job_is_cancelled_with_all_its_trials(lab):
    job = lab.submit(REPORTS + "    time.sleep(600)\n", **tuning(maxTrials=4, maxParallelTrials=2))
    lab.until_state(job, "RUNNING")
    until(lambda: len(trials(lab, job)) == 2)
    lab.cancel(job)
    assert lab.ended(job)["state"] == "CANCELLED"
    assert {each["state"] for each in trials(lab, job)} == {"CANCELLED"}
    assert trainers.processes(job) == []


def test_the_command_takes_a_job_from_a_file_and_its_flags_go_before_it(server, lab, tmp_path):
    (tmp_path / "tune.yaml").write_text(
        "labels: {owner: ann}\n"
        "trainingInput:\n  scaleTier: BASIC\n  pythonModule: trainer.other\n  region: us-east1\n"
        f"  packageUris: [gs://{lab.bucket}/trainer-0.1.tar.gz]\n  scheduling: {{priority: 7, maxRunningTime: 60s}}\n"
        "  hyperparameters:\n    goal: MINIMIZE\n    hyperparameterMetricTag: loss\n    maxTrials: 2\n"
        "    params: [{parameterName: units, type: DISCRETE, discreteValues: [1, 2]}]\n"
    )
    job = f"tune_{uuid.uuid4().hex[:8]}"
    words = ["jobs", "submit", "training", job, "--config", str(tmp_path / "tune.yaml")]
    words += ["--module-name=trainer.task", "--max-running-time=120s", "--labels=phase=try"]
    code = textwrap.dedent(REPORTS) + "\nreport(loss())\n"
    ended = run_cli(server, *words, "--format=json", "--stream-logs", "--", "--code", code)
    assert ended.returncode == 0, ended.stderr
    assert "The best of 2 trials is trial " in ended.stderr
    told = lab.get(job)
    assert (told["state"], told["labels"]) == ("SUCCEEDED", {"owner": "ann", "phase": "try"})
    asked = told["trainingInput"]
    assert (asked["pythonModule"], asked["region"]) == ("trainer.task", "us-east1")
    assert asked["scheduling"] == {"priority": 7, "maxRunningTime": "120s"}
    shown = json.loads(run_cli(server, "jobs", "describe", job, "--format=json").stdout)
    assert [each["hyperparameters"]["units"] for each in shown["trainingOutput"]["trials"]] == ["1", "2"]
    for text, why in (
        ("[1]", "must hold a job"),
        ("a: [", "is neither JSON nor YAML"),
        ("{}", "A job must have packages"),
    ):
        (tmp_path / "wrong.yaml").write_text(text)
        wrong = run_cli(
            server, "jobs", "submit", "training", job, f"--config={tmp_path}/wrong.yaml", "--module-name=t.t"
        )
        assert wrong.returncode == 1
        assert why in wrong.stderr


def test_a_trial_of_several_replicas_is_reported_by_its_primary(lab):
    code = (
        REPORTS
        + """
    role = json.loads(os.environ["TF_CONFIG"])["task"]["type"]
    report(loss() if role == "chief" else -5.0)
    print(role, "of trial", os.environ["CLOUD_ML_TRIAL_ID"])
    time.sleep(600 if role == "ps" else 0)
    """
    )
    several = {"masterType": "n1-standard-1", "parameterServerType": "n1-standard-1", "parameterServerCount": "1"}
    job = lab.submit(code, **tuning(maxTrials=2, maxParallelTrials=2), scaleTier="CUSTOM", **several)
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    assert all(each["finalMetric"]["objectiveValue"] > 0 for each in trials(lab, job))
    assert {f"{role} of trial {number}" for role in ("chief", "ps") for number in (1, 2)} <= set(lab.said(job))


@pytest.mark.runtime
def test_the_example_is_tuned_and_each_trial_keeps_its_own_model(server, lab, tmp_path):
    (tmp_path / "rides.csv").write_bytes(trainers.rides(2000).replace(b"\n", b",key\n"))
    lab.put("rides.csv", (tmp_path / "rides.csv").read_bytes())
    package = packaging.build(EXAMPLE / "trainer")
    rate = {"parameterName": "learning_rate", "type": "DISCRETE", "discreteValues": [0.0001, 0.01]}
    told = tuning(rate, algorithm="GRID_SEARCH", maxTrials=2, maxParallelTrials=2, hyperparameterMetricTag="eval_rmse")
    where = f"gs://{lab.bucket}"
    args = [f"--train_data_paths={where}/rides.csv", f"--eval_data_paths={where}/rides.csv", "--train_steps=300"]
    job = lab.submit(
        "",
        **told,
        packageUris=[lab.put(package.file, package.content)],
        args=[*args, f"--output_dir={where}/tuned"],
        jobDir=f"{where}/tuned",
    )
    assert lab.ended(job)["state"] == "SUCCEEDED", lab.said(job)
    best, worst = trials(lab, job)
    assert [best["hyperparameters"]["learning_rate"], worst["hyperparameters"]["learning_rate"]] == ["0.01", "0.0001"]
    assert 0 < best["finalMetric"]["objectiveValue"] < worst["finalMetric"]["objectiveValue"]
    assert best["finalMetric"]["trainingStep"] == "300"
    for trial in ("1", "2"):
        assert any(name.endswith("saved_model.pb") for name in lab.listed(f"tuned/{trial}/export/"))
