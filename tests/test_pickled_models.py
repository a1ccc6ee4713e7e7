"""Models of scikit-learn and XGBoost as versions: made by the runtime's own Python, uploaded, deployed, asked."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import saved_models
from trainers import Lab, until

pytestmark = pytest.mark.runtime

MAKE = """
import os, pickle, sys
import joblib
import numpy as np
import xgboost
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.feature_extraction.text import CountVectorizer

def place(name):
    os.makedirs(os.path.join(sys.argv[1], os.path.dirname(name)))
    return os.path.join(sys.argv[1], name)

rows = np.array([[a, b] for a in range(10) for b in range(10)], dtype=float)
fares = 2.5 + 2 * rows[:, 0] + rows[:, 1]
joblib.dump(LinearRegression().fit(rows, fares), place("linear/model.joblib"))
with open(place("words/model.pkl"), "wb") as file:
    words = make_pipeline(CountVectorizer(), LinearRegression())
    pickle.dump(words.fit(["long ride", "short ride"], [20.0, 5.0]), file)
booster = xgboost.train({"max_depth": 6, "eta": 0.5}, xgboost.DMatrix(rows, fares), 60)
booster.save_model(place("booster/model.bst"))
joblib.dump(xgboost.XGBRegressor(n_estimators=60, learning_rate=0.5).fit(rows, fares), place("estimator/model.joblib"))
joblib.dump({"no": "model"}, place("dict/model.joblib"))
with open(place("torn/model.bst"), "wb") as file:
    file.write(b"this is no model")
"""


@pytest.fixture(scope="module")
def folder(runtime_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = subprocess.run([runtime_python, "-c", MAKE, folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def lab(server, folder):
    made = Lab(server.call, server.project, server.address.service_agent).open()
    saved_models.upload(server.call, folder, made.bucket, "models")
    return made


def begin(lab, name, framework, **told):
    """A new model with a version `v`: the model's path, and the answer to the version's creation."""
    model = f"{name}_{uuid.uuid4().hex[:6]}"
    path = f"/v1/projects/{lab.project}/models"
    assert lab.call("POST", path, json={"name": model}).status_code == 200
    body = {"name": "v", "deploymentUri": f"gs://{lab.bucket}/models/{name}", "runtimeVersion": "2.21", **told}
    return f"{path}/{model}", lab.call("POST", f"{path}/{model}/versions", json={**body, "framework": framework})


def done(lab, answer):
    assert answer.status_code == 200, answer.text
    name = answer.json()["name"]
    return until(lambda: (now := lab.call("GET", f"/v1/{name}").json()).get("done") and now, seconds=120)


@pytest.fixture(scope="module")
def deployed(lab):
    """Each is asked as gcloud asks it, and gone afterwards."""
    kinds = {"linear": "SCIKIT_LEARN", "words": "SCIKIT_LEARN", "booster": "XGBOOST", "estimator": "XGBOOST"}
    begun = {name: begin(lab, name, framework) for name, framework in kinds.items()}
    for name, (_, answer) in begun.items():
        ended = done(lab, answer)
        assert ended.get("response", {}).get("framework") == kinds[name], ended
    yield {name: path for name, (path, _) in begun.items()}
    for path, _ in begun.values():
        done(lab, lab.call("DELETE", f"{path}/versions/v"))


def predict(lab, path, instances):
    return lab.call("POST", f"{path}:predict", json={"instances": instances})


@pytest.mark.parametrize("name", ["linear", "booster", "estimator"])
def test_rows_of_numbers_are_answered_in_their_order(lab, deployed, name):
    answer = predict(lab, deployed[name], [[1, 2], [9, 9], [0, 0]])
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == pytest.approx([6.5, 29.5, 2.5], abs=0.2)


def test_a_pipeline_gets_the_words_as_they_came(lab, deployed):
    answer = predict(lab, deployed["words"], ["short ride", "long ride"])
    assert answer.json()["predictions"] == pytest.approx([5.0, 20.0])


def test_many_at_once_each_get_their_own_answer(lab, deployed):
    with ThreadPoolExecutor(8) as pool:
        asked = [[number % 10, number % 7] for number in range(60)]
        answers = list(pool.map(lambda row: predict(lab, deployed["linear"], [row]).json()["predictions"][0], asked))
    assert answers == pytest.approx([2.5 + 2 * a + b for a, b in asked])


@pytest.mark.parametrize("name", ["linear", "booster", "estimator"])
@pytest.mark.parametrize("instances", [[[1, 2, 3]], [["a", "b"]], [[1, 2], [3]], [{"a": 1}], [7]])
def test_rows_that_do_not_fit_are_refused_with_the_models_own_reason(lab, deployed, name, instances):
    answer = predict(lab, deployed[name], instances)
    assert answer.status_code == 400, answer.text
    assert "Invalid inputs: " in answer.text
    assert predict(lab, deployed[name], [[1, 2]]).status_code == 200


@pytest.mark.parametrize(
    ("name", "framework", "words"),
    [
        ("dict", "SCIKIT_LEARN", "What was pickled is a dict, which has no predict()"),
        ("linear", "XGBOOST", "What was pickled is a LinearRegression, no Booster"),
        ("torn", "XGBOOST", "model.bst is no model that this XGBoost reads"),
    ],
)
def test_what_is_no_model_of_the_framework_says_why(lab, name, framework, words):
    _, answer = begin(lab, name, framework)
    assert f"Failed to load model: {words}" in done(lab, answer)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "framework", "told", "words"),
    [
        ("linear", "TENSORFLOW", {}, "Is it a model of SCIKIT_LEARN or XGBOOST? Then say so in version.framework."),
        ("booster", "SCIKIT_LEARN", {}, "has no model.joblib or model.pkl; a model's folder has exactly one of them."),
        ("linear", "SCIKIT_LEARN", {"runtimeVersion": "2.15"}, "SCIKIT_LEARN is not offered with runtime version 2.15"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(lab, name, framework, told, words):
    _, answer = begin(lab, name, framework, **told)
    assert answer.status_code == 400
    assert words in answer.text


def test_it_answers_on_this_machine_without_a_server(folder):
    command = [sys.executable, "-m", "taxiway", "local", "predict", "--model-dir", str(folder / "booster")]
    command += ["--framework", "xgboost", "--json-instances", "-", "--format", "json"]
    asked = subprocess.run(command, input="[1, 2]\n", capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    (fare,) = answer["predictions"] if isinstance(answer, dict) else answer
    assert fare == pytest.approx(6.5, abs=0.2)
