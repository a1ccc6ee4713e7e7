"""Studies and trials on a running server: the whole life, by Google's client; what is refused; crowds; kill -9."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import commands
import google_auth_httplib2
import httplib2
import httpx
import people
import psutil
import pytest
from google.oauth2 import service_account
from googleapiclient import discovery
from test_space import LOSS, OPTIMIZER, RATE, SIZE, STEPS

from taxiway import errors, schemas
from taxiway.api import messages
from taxiway.jobs import search, space, studies, suggestions
from taxiway.jobs.space import Question
from taxiway.jobs.studies import Place

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
CONFIG = {"metrics": [LOSS], "parameters": [RATE, OPTIMIZER, STEPS]}
GRID = {"metrics": [LOSS], "parameters": [STEPS, SIZE], "algorithm": "GRID_SEARCH"}
MEDIAN = {**CONFIG, "automatedStoppingConfig": {"medianAutomatedStoppingConfig": {}}}


class Studied:
    """One study of a server, by plain requests as its owner."""

    def __init__(self, server, config=CONFIG, id=None):
        self.server, self.id = server, id or f"s-{uuid.uuid4().hex[:8]}"
        self.all = f"/v1/projects/{server.project}/locations/us-central1/studies"
        self.path = f"{self.all}/{self.id}"
        self.place = Place(server.project, "us-central1", self.id)
        if config:
            self.ok("POST", f"{self.all}?studyId={self.id}", {"studyConfig": config})

    def call(self, verb, path, body=None, headers=None):
        headers = headers or {"Authorization": f"Bearer {self.server.token}"}
        return self.server.http.request(verb, path, json=body, headers=headers)

    def ok(self, verb, path, body=None):
        answer = self.call(verb, path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, verb, path, body=None, *, code=400):
        """The word and the message of an error, and the fields that it names."""
        answer = self.call(verb, path, body)
        assert answer.status_code == code, answer.text
        error = answer.json()["error"]
        fields = [each["field"] for held in error.get("details", []) for each in held.get("fieldViolations", [])]
        return error["status"], error["message"], fields

    def done(self, operation):
        """The response of an operation, once it is done."""
        deadline = time.monotonic() + 60
        while not operation.get("done"):
            assert time.monotonic() < deadline, operation
            time.sleep(0.02)
            operation = self.ok("GET", f"/v1/{operation['name']}")
        assert "error" not in operation, operation
        return operation["response"]

    def suggest(self, client="c", count=1):
        asked = {"clientId": client, "suggestionCount": count}
        return self.done(self.ok("POST", f"{self.path}/trials:suggest", asked))

    def trials(self):
        return self.ok("GET", f"{self.path}/trials").get("trials", [])

    def measure(self, number, loss, step=None):
        told = {"metrics": [{"metric": "loss", "value": loss}], **({} if step is None else {"stepCount": str(step)})}
        return self.ok("POST", f"{self.path}/trials/{number}:addMeasurement", {"measurement": told})

    def complete(self, number, loss=None):
        final = {"finalMeasurement": {"metrics": [{"metric": "loss", "value": loss}]}} if loss is not None else {}
        return self.ok("POST", f"{self.path}/trials/{number}:complete", final)


def numbers_of(trials):
    return [int(each["name"].rpartition("/")[2]) for each in trials]


def points_of(trials):
    read = [messages.read(schemas.Trial, each).parameters for each in trials]
    return [space.values(each) for each in read]


@pytest.fixture
def made(server):
    return Studied(server)


# ---- the whole life -------------------------------------------------------------------------------------------------


def test_the_whole_loop_by_googles_own_client(server):
    credentials = service_account.Credentials.from_service_account_file(server.key, scopes=[SCOPE])
    http = google_auth_httplib2.AuthorizedHttp(credentials, http=httplib2.Http(timeout=60))
    url = f"{server.url}/$discovery/rest?version=v1"
    with discovery.build("ml", "v1", discoveryServiceUrl=url, http=http, cache_discovery=False) as ml:
        locations = ml.projects().locations()
        all_studies, trials = locations.studies(), locations.studies().trials()
        parent, id = f"projects/{server.project}/locations/us-central1", f"loop_{uuid.uuid4().hex[:8]}"
        study = all_studies.create(parent=parent, studyId=id, body={"studyConfig": MEDIAN}).execute()
        assert (study["name"], study["state"]) == (f"{parent}/studies/{id}", "ACTIVE")
        assert all_studies.get(name=study["name"]).execute() == study
        assert study in all_studies.list(parent=parent).execute()["studies"]

        def done(operation):
            while not operation.get("done"):
                operation = locations.operations().get(name=operation["name"]).execute()
            return operation["response"]

        asked = {"clientId": "one", "suggestionCount": 1}
        for turn in range(12):
            (trial,) = done(trials.suggest(parent=study["name"], body=asked).execute())["trials"]
            assert trial["state"] == "ACTIVE"
            assert trial["clientId"] == "one"
            (point,) = points_of([trial])
            for step in (1, 2):
                figure = {"stepCount": step, "metrics": [{"metric": "loss", "value": point["rate"] / step}]}
                trials.addMeasurement(name=trial["name"], body={"measurement": figure}).execute()
            stops = done(trials.checkEarlyStoppingState(name=trial["name"], body={}).execute())
            assert turn > 4 or not stops.get("shouldStop")
            ended = trials.complete(name=trial["name"], body={}).execute()
            assert ended["state"] == "COMPLETED"
            assert ended["finalMeasurement"]["metrics"][0]["value"] == point["rate"] / 2
        kept = trials.list(parent=study["name"]).execute()["trials"]
        assert numbers_of(kept) == list(range(1, 13))
        (best,) = trials.listOptimalTrials(parent=study["name"], body={}).execute()["trials"]
        assert points_of([best])[0]["rate"] == min(each["rate"] for each in points_of(kept))
        own = {"parameters": best["parameters"]}
        mine = trials.create(parent=study["name"], body=own).execute()
        assert mine["state"] == "REQUESTED"
        assert trials.get(name=mine["name"]).execute() == mine
        (given,) = done(trials.suggest(parent=study["name"], body=asked).execute())["trials"]
        assert given["name"] == mine["name"], "what somebody asked for goes before what is chosen"
        assert trials.stop(name=mine["name"], body={}).execute()["state"] == "STOPPING"
        trials.delete(name=mine["name"]).execute()
        all_studies.delete(name=study["name"]).execute()
        assert study not in all_studies.list(parent=parent).execute().get("studies", [])


def test_the_same_client_gets_its_trials_again_and_more_if_it_asks_for_more(made):
    first = made.suggest("a", 2)["trials"]
    assert made.suggest("a", 2)["trials"] == first
    assert made.suggest("a", 1)["trials"] == first[:1]
    more = made.suggest("a", 3)["trials"]
    assert more[:2] == first
    other = made.suggest("b", 1)["trials"]
    assert numbers_of(other) == [4]
    made.complete(1, 0.5)
    assert numbers_of(made.suggest("a", 3)["trials"]) == [2, 3, 5]


def test_a_trial_ends_with_the_best_of_its_measurements_or_with_what_is_sent_or_as_infeasible(made):
    made.suggest("a", 4)
    for step, loss in ((2, 3.0), (1, 2.0), (3, 4.0)):
        trial = made.measure(1, loss, step)
    assert [each["stepCount"] for each in trial["measurements"]] == ["1", "2", "3"]
    assert all(each["elapsedTime"].endswith("s") for each in trial["measurements"])
    assert made.complete(1)["finalMeasurement"]["stepCount"] == "1"
    made.measure(2, 1.0)
    assert made.complete(2, 9.0)["finalMeasurement"]["metrics"] == [{"metric": "loss", "value": 9.0}]
    assert made.refused("POST", f"{made.path}/trials/3:complete", {})[2] == ["finalMeasurement"]
    barred = {"trialInfeasible": True, "infeasibleReason": "out of memory"}
    ended = made.ok("POST", f"{made.path}/trials/3:complete", barred)
    assert (ended["trialInfeasible"], ended["infeasibleReason"]) == (True, "out of memory")
    assert "finalMeasurement" not in ended
    best = made.ok("POST", f"{made.path}/trials:listOptimalTrials", {})["trials"]
    assert numbers_of(best) == [1]


def test_a_hopeless_trial_is_told_to_stop_and_is_stopping(server):
    made = Studied(server, MEDIAN)
    for number in range(1, 7):
        made.suggest("a", 1)
        made.measure(number, 1.0 if number < 6 else 5.0, 1)
        if number < 6:
            made.complete(number)
    response = made.done(made.ok("POST", f"{made.path}/trials/6:checkEarlyStoppingState", {}))
    assert response["shouldStop"] is True
    assert made.trials()[5]["state"] == "STOPPING"
    assert numbers_of(made.suggest("a", 1)["trials"]) == [7], "what should stop is not tried again"
    assert made.complete(6)["state"] == "COMPLETED"


def test_a_grid_is_completed_when_its_last_point_is_given(server):
    made = Studied(server, GRID)
    first = made.suggest("a", 4)
    assert first["studyState"] == "ACTIVE"
    last = made.suggest("b", 9)
    assert (last["studyState"], numbers_of(last["trials"])) == ("COMPLETED", [5, 6])
    assert made.ok("GET", made.path)["state"] == "COMPLETED"
    assert len({frozenset(each.items()) for each in points_of(made.trials())}) == 6
    asked = {"clientId": "c", "suggestionCount": 1}
    word, message, _ = made.refused("POST", f"{made.path}/trials:suggest", asked)
    assert word == "FAILED_PRECONDITION"
    assert "is COMPLETED: nothing is left to try" in message
    assert numbers_of(made.suggest("b", 1)["trials"]) == [5], "who tries some goes on with them"
    assert made.complete(1, 2.0)["state"] == "COMPLETED"
    parameters = made.trials()[0]["parameters"]
    assert made.refused("POST", f"{made.path}/trials", {"parameters": parameters})[0] == "FAILED_PRECONDITION"


def test_trials_of_before_are_added_and_learnt_from(server):
    config = {**CONFIG, "metrics": [LOSS, {"metric": "gain", "goal": "MAXIMIZE"}], "parameters": [RATE]}
    made = Studied(server, config)
    for number in range(1, 5):
        figures = [{"metric": "loss", "value": number % 3}, {"metric": "gain", "value": number % 2}]
        body = {"state": "COMPLETED", "parameters": [{"parameter": "rate", "floatValue": number / 10}]}
        measured = {"measurements": [{"stepCount": 1, "metrics": figures}]} if number % 2 else {}
        final = {} if measured else {"finalMeasurement": {"metrics": figures}}
        assert made.ok("POST", f"{made.path}/trials", {**body, **measured, **final})["state"] == "COMPLETED"
    best = made.ok("POST", f"{made.path}/trials:listOptimalTrials", {})["trials"]
    assert numbers_of(best) == [3], "it has the least loss and the most gain"
    assert numbers_of(made.suggest()["trials"]) == [5]


def test_lists_are_whole_and_paged_for_who_asks(made):
    made.suggest("a", 5)
    assert len(made.trials()) == 5
    page = made.ok("GET", f"{made.path}/trials?pageSize=2")
    assert numbers_of(page["trials"]) == [1, 2]
    rest = made.ok("GET", f"{made.path}/trials?pageSize=9&pageToken={page['nextPageToken']}")
    assert (numbers_of(rest["trials"]), "nextPageToken" in rest) == ([3, 4, 5], False)
    page = made.ok("GET", f"{made.all}?pageSize=1")
    assert len(page["studies"]) == 1


def test_a_gaussian_process_that_is_not_there_is_stood_in_for_and_the_study_says_so(server):
    made = Studied(server, {**CONFIG, "algorithm": "GAUSSIAN_PROCESS_BANDIT"})
    told = made.ok("GET", made.path)
    if "taxiway" in told:
        assert "needs PyTorch and SciPy" in told["taxiway"]["warnings"][0]
        again = Studied(server, None)
        made.ok("POST", f"{made.all}?studyId={again.id}", told)  # as it was read
    assert made.suggest()["trials"]


def test_a_study_takes_its_trials_and_operations_with_it(made):
    operation = made.ok("POST", f"{made.path}/trials:suggest", {"clientId": "a", "suggestionCount": 1})
    made.measure(1, 1.0)
    assert made.ok("DELETE", made.path) == {}
    for path in (made.path, f"{made.path}/trials", f"{made.path}/trials/1", f"/v1/{operation['name']}"):
        assert made.refused("GET", path, code=404)[0] == "NOT_FOUND"
    again = Studied(made.server, CONFIG, made.id)
    assert again.trials() == []


YAML = """\
metrics: [{metric: loss, goal: MINIMIZE}]
parameters:
- {parameter: steps, type: INTEGER, integerValueSpec: {minValue: 1, maxValue: 3}}
- {parameter: kind, type: CATEGORICAL, categoricalValueSpec: {values: [a]}}
algorithm: GRID_SEARCH
"""


def test_the_commands_go_the_whole_way(server, tmp_path):
    file, id = tmp_path / "study.yaml", f"cli-{uuid.uuid4().hex[:8]}"
    file.write_text(YAML)
    with commands.Commands(TAXIWAY_HOME=str(server.home)) as shell:
        run = shell.run
        assert f"Created study [{id}]." in run("studies", "create", id, "--config", str(file))
        assert "ALREADY_EXISTS" in run("studies", "create", id, "--config", str(file), code=1)
        assert id in run("studies", "list")
        assert "algorithm: GRID_SEARCH" in run("studies", "describe", id)
        listed = run("studies", "suggest", id, "--client", "me", "--count", "2").splitlines()
        assert listed[0].split() == ["TRIAL", "STATE", "CLIENT", "PARAMETERS", "FINAL"]
        assert [line.split() for line in listed[1:]] == [
            [str(number), "ACTIVE", "me", f"steps={number},", "kind=a"] for number in (1, 2)
        ]
        assert "stepCount: '5'" in run("studies", "add-measurement", id, "1", "--metric", "loss=0.5", "--step", "5")
        assert run("studies", "check", id, "1").strip() == "false"
        assert "state: COMPLETED" in run("studies", "complete", id, "1")
        assert "state: STOPPING" in run("studies", "stop", id, "2")
        assert "infeasibleReason: no room" in run("studies", "complete", id, "2", "--infeasible", "no room")
        run("studies", "suggest", id, "--client", "me")
        assert "value: 0.25" in run("studies", "complete", id, "3", "--metric", "loss=0.25")
        shown = run("studies", "trials", id)
        assert [line.split()[1] for line in shown.splitlines()[1:]] == ["COMPLETED", "INFEASIBLE", "COMPLETED"]
        assert "loss=0.25" in run("studies", "optimal", id).splitlines()[1]
        assert "nothing is left to try" in run("studies", "suggest", id, "--client", "me", code=1)
        for words, said in (
            (("complete", id, "3"), "it is COMPLETED"),
            (("complete", id, "9"), "does not exist"),
            (("add-measurement", id, "1"), "--metric is required"),
            (("add-measurement", id, "1", "--metric", "loss"), "must be NAME=VALUE"),
            (("add-measurement", id, "1", "--metric", "loss=nan"), "a finite number"),
            (("describe", id, "--region", "mars"), "--region"),
            (("create", "other", "--config", str(tmp_path / "none.yaml")), "none.yaml"),
        ):
            assert said in run("studies", *words, code=1)
        file.write_text("[1, 2")
        assert "neither JSON nor YAML" in run("studies", "create", "other", "--config", str(file), code=1)
        run("studies", "delete", id)
        assert "NOT_FOUND" in run("studies", "describe", id, code=1)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "body", "fields"),
    [
        ("", {"studyConfig": CONFIG}, ["studyId"]),
        ("?studyId=9", {"studyConfig": CONFIG}, ["studyId"]),
        ("?studyId=fresh", {}, ["studyConfig"]),
        ("?studyId=fresh", {"studyConfig": {}}, ["studyConfig.metrics", "studyConfig.parameters"]),
        ("?studyId=fresh", {"studyConfig": {**CONFIG, "algorithm": "MAGIC"}}, ["studyConfig.algorithm"]),
        ("?studyId=fresh", {"studyConfig": {**CONFIG, "algorithm": "GRID_SEARCH"}}, ["studyConfig.algorithm"]),
        ("?studyId=a/b", {"studyConfig": {**CONFIG, "metrics": []}}, ["studyId", "studyConfig.metrics"]),
    ],
)
def test_a_study_that_cannot_be_is_refused_by_its_fields_and_not_kept(server, query, body, fields):
    made = Studied(server, None, "fresh")
    assert made.refused("POST", f"{made.all}{query}", body)[2] == fields
    assert made.refused("GET", made.path, code=404)[0] == "NOT_FOUND"


def test_a_study_is_there_once_and_in_a_region(made):
    body = {"studyConfig": CONFIG}
    assert made.refused("POST", f"{made.all}?studyId={made.id}", body, code=409)[0] == "ALREADY_EXISTS"
    nowhere = made.all.replace("us-central1", "mars-north1")
    assert "The location mars-north1 does not exist" in made.refused("GET", nowhere, code=404)[1]


@pytest.mark.parametrize(
    ("verb", "body", "fields"),
    [
        (":suggest", {}, ["clientId", "suggestionCount"]),
        (":suggest", {"clientId": "a", "suggestionCount": 101}, ["suggestionCount"]),
        (":suggest", {"clientId": "a", "suggestionCount": -1}, ["suggestionCount"]),
        (":suggest", {"clientId": "a" * 257, "suggestionCount": 1}, ["clientId"]),
        ("", {"parameters": []}, ["parameters", "parameters", "parameters"]),
        ("", {"state": "STOPPING", "parameters": []}, ["state", "parameters", "parameters", "parameters"]),
        ("/1:addMeasurement", {}, ["measurement"]),
        ("/1:addMeasurement", {"measurement": {"stepCount": -1}}, ["measurement.stepCount", "measurement.metrics"]),
        (
            "/1:addMeasurement",
            {"measurement": {"metrics": [{"metric": "gain", "value": 1}]}},
            ["measurement.metrics[0].metric"],
        ),
        ("/1:addMeasurement", {"measurement": {"metrics": [{"metric": "loss"}]}}, ["measurement.metrics[0].value"]),
        (
            "/1:addMeasurement",
            {"measurement": {"metrics": [{"metric": "loss", "value": "NaN"}]}},
            ["measurement.metrics[0].value"],
        ),
        (
            "/1:addMeasurement",
            {"measurement": {"metrics": [{"metric": "loss", "value": 1}] * 2}},
            ["measurement.metrics[1].metric"],
        ),
        ("/1:complete", {"infeasibleReason": "why"}, ["infeasibleReason"]),
        ("/1:complete", {"finalMeasurement": {}}, ["finalMeasurement.metrics"]),
        ("/1:complete", {}, ["finalMeasurement"]),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_fields(server, verb, body, fields):
    made = Studied(server)
    made.suggest()
    before = made.trials()
    assert made.refused("POST", f"{made.path}/trials{verb}", body)[2] == fields
    assert made.trials() == before


def test_a_final_measurement_has_every_metric_of_the_study(server):
    config = {"metrics": [LOSS, {"metric": "gain"}], "parameters": [RATE]}
    made = Studied(server, config)
    made.suggest()
    _, message, fields = made.refused(
        "POST",
        f"{made.path}/trials/1:complete",
        {"finalMeasurement": {"metrics": [{"metric": "loss", "value": 1}]}},
    )
    assert fields == ["finalMeasurement.metrics"]
    assert "lacks 'gain'" in message


def test_a_trial_that_has_ended_or_that_nobody_tries_takes_nothing(made):
    parameters = made.suggest()["trials"][0]["parameters"]
    made.complete(1, 1.0)
    made.ok("POST", f"{made.path}/trials", {"parameters": parameters})
    bodies = {
        ":addMeasurement": {"measurement": {"metrics": [{"metric": "loss", "value": 1}]}},
        ":complete": {"finalMeasurement": {"metrics": [{"metric": "loss", "value": 1}]}},
        ":stop": {},
        ":checkEarlyStoppingState": {},
    }
    before = made.trials()
    for number, state in ((1, "COMPLETED"), (2, "REQUESTED")):
        for verb, body in bodies.items():
            word, message, _ = made.refused("POST", f"{made.path}/trials/{number}{verb}", body)
            assert word == "FAILED_PRECONDITION"
            assert f"it is {state}" in message
    assert made.trials() == before
    for number in ("0", "9", "x", "1" * 30, "-1"):
        assert made.refused("GET", f"{made.path}/trials/{number}", code=404)[0] == "NOT_FOUND"


# ---- who may --------------------------------------------------------------------------------------------------------


def test_a_developer_studies_and_a_viewer_reads(server, made):
    made.suggest("a", 2)
    policy = f"/v1/projects/{server.project}"
    before = server.call("POST", f"{policy}:getIamPolicy", json={}).json()
    viewer, developer = (f"user:{word}-{uuid.uuid4().hex[:6]}@example.com" for word in ("viewer", "developer"))
    granted = [
        *before["bindings"],
        {"role": "roles/ml.viewer", "members": [viewer]},
        {"role": "roles/ml.developer", "members": [developer]},
    ]
    server.call("POST", f"{policy}:setIamPolicy", json={"policy": {"bindings": granted}})
    figures = {"metrics": [{"metric": "loss", "value": 1}]}
    asks = [
        ("GET", made.path, None, True),
        ("GET", f"{made.path}/trials", None, True),
        ("POST", f"{made.path}/trials:listOptimalTrials", {}, True),
        ("POST", f"{made.all}?studyId=own-{uuid.uuid4().hex[:6]}", {"studyConfig": CONFIG}, False),
        ("POST", f"{made.path}/trials:suggest", {"clientId": "a", "suggestionCount": 1}, False),
        ("POST", f"{made.path}/trials/1:addMeasurement", {"measurement": figures}, False),
        ("POST", f"{made.path}/trials/1:checkEarlyStoppingState", {}, False),
        ("POST", f"{made.path}/trials/1:stop", {}, False),
        ("POST", f"{made.path}/trials/1:complete", {}, False),
        ("DELETE", f"{made.path}/trials/1", None, False),
        ("DELETE", made.path, None, False),
    ]
    try:
        for member, all_of_it in ((viewer, False), (developer, True)):
            headers = people.bearer(server, member)
            for verb, path, body, reads in asks:
                answer = made.call(verb, path, body, headers)
                assert (answer.status_code == 200) == (reads or all_of_it), (member, verb, path, answer.text)
                assert answer.status_code in (200, 403), answer.text
                if answer.status_code == 403:
                    assert "Grant it: " in answer.json()["error"]["message"]
                    assert "--role=roles/ml.developer" in answer.json()["error"]["message"]
    finally:
        server.call("POST", f"{policy}:setIamPolicy", json={"policy": {"bindings": before["bindings"]}})


# ---- many at once, and the end of servers ---------------------------------------------------------------------------


def test_two_requests_of_one_client_at_once_get_the_same_trials(made):
    with ThreadPoolExecutor(8) as hands:
        found = list(hands.map(lambda _: numbers_of(made.suggest("one", 2)["trials"]), range(8)))
    assert found == [[1, 2]] * 8
    assert numbers_of(made.trials()) == [1, 2]


def test_clients_at_once_get_trials_that_differ(made):
    for number in range(1, 12):
        made.suggest("first")
        made.complete(number, float(number))
    with ThreadPoolExecutor(8) as hands:
        found = list(hands.map(lambda at: made.suggest(f"client-{at}")["trials"][0], range(8)))
    assert sorted(numbers_of(found)) == list(range(12, 20))
    assert len({frozenset(each.items()) for each in points_of(found)}) == 8


def test_a_request_that_is_cancelled_is_not_answered(db):
    place = Place("demo-project", "us-central1", "s")
    rows(db, place)
    asked = suggestions.begin(db, place, "a", 1, id="o1", now=1.0)
    assert suggestions.unfinished(db) == [asked]
    ended = suggestions.cancel(db, *place[:2], "o1")
    assert (ended.done, ended.error["code"]) == (True, 1)
    assert suggestions.unfinished(db) == []
    assert suggestions.cancel(db, *place[:2], "o1") == ended
    with pytest.raises(errors.NotFound):
        suggestions.cancel(db, *place[:2], "o2")


def test_a_study_that_is_not_active_takes_no_request_and_no_trial(db):
    place = Place("demo-project", "us-central1", "s")
    rows(db, place)
    for state in ("INACTIVE", "COMPLETED"):
        db.write(lambda tx, state=state: tx.execute(studies.studies.update().values(state=state)))
        with pytest.raises(errors.FailedPrecondition, match=f"is {state}"):
            suggestions.begin(db, place, "a", 1, id="o", now=1.0)
        with pytest.raises(errors.FailedPrecondition, match=f"is {state}"):
            studies.create_trial(db, place, {"steps": 1}, now=1.0)


def test_a_study_has_so_many_trials_and_no_more(db):
    place = Place("demo-project", "us-central1", "s")
    rows(db, place)
    db.write(lambda tx: tx.execute(studies.studies.update().values(made=studies.MOST_TRIALS - 1)))
    with pytest.raises(errors.FailedPrecondition, match="10000 are the most"):
        suggestions.begin(db, place, "a", 2, id="o", now=1.0)
    assert studies.create_trial(db, place, {"steps": 1}, now=1.0).number == studies.MOST_TRIALS
    given = suggestions.begin(db, place, "a", 2, id="o", now=1.0)
    assert (given.done, given.response["trials"]) == (True, [studies.MOST_TRIALS]), "it goes on with what there is"


def rows(db, place):
    """A project and a study, without a server."""
    project = {"id": place.project, "number": 1, "name": "", "policy": {}, "policy_version": 1, "created": 0.0}
    table = studies.studies.metadata.tables["projects"]
    db.write(lambda tx: tx.execute(table.insert().values(**project)))
    config = messages.read(schemas.StudyConfig, {"metrics": [LOSS], "parameters": [STEPS]})
    return studies.create(db, place, config, seed=1, now=0.0)


def test_a_server_that_is_killed_goes_on_as_if_it_had_not_been(start_server):
    """What was asked for is answered by the next server, with the very trials that this one would have chosen."""
    server = start_server()
    made = Studied(server)
    for number in range(1, 13):
        made.suggest("a")
        made.complete(number, float(number % 5))
    server.kill()
    rows = people.opened(server)
    with rows.read() as look:
        study = studies.read(look, made.place)
        past = studies.past(look, study)
    suggestions.begin(rows, made.place, "b", 3, id="left", now=time.time())
    rows.close()
    wanted = search.suggest(Question(config=study.config, seed=study.seed, first=13, count=3, past=past)).points
    again = start_server(server.home)
    made.server = again
    left = {"name": f"projects/{again.project}/locations/us-central1/operations/left"}
    assert tuple(points_of(made.done(left)["trials"])) == wanted


@pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.torture)])
def test_kill_9_among_many_clients_loses_no_trial_and_gives_none_twice(start_server, rounds):
    server = start_server()
    made = Studied(server)
    home, held, going = server.home, {}, threading.Event()

    def client(name):
        """Suggest and complete, whoever answers; remembers what was acknowledged."""
        while not going.is_set():
            with suppress(httpx.HTTPError, KeyError, AssertionError):
                number = numbers_of(made.suggest(name)["trials"])[0]
                held.setdefault(number, set()).add(name)
                made.complete(number, 1.0)

    for _ in range(rounds):
        going.clear()
        with ThreadPoolExecutor(4) as hands:
            for name in "abcd":
                hands.submit(client, name)
            before, deadline = len(held), time.monotonic() + 30
            while len(held) < before + 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            made.server.kill()
            going.set()
        made.server = start_server(home)
    trials = made.trials()
    assert numbers_of(trials) == list(range(1, len(trials) + 1))
    assert set(held) <= set(numbers_of(trials))
    assert all(len(names) == 1 for names in held.values()), held
    for name in "abcd":
        active = [each for each in made.trials() if (each["clientId"], each["state"]) == (name, "ACTIVE")]
        assert len(active) <= 1
        assert not active or made.suggest(name)["trials"] == active
    assert "Traceback" not in made.server.log


def test_a_server_pays_nothing_for_the_search_before_anybody_asks(start_server):
    server = start_server()
    process = psutil.Process(server.process.pid)
    assert process.children() == []
    made = Studied(server)
    made.ok("GET", made.path)
    assert process.children() == []
    made.suggest()
    (child,) = process.children()
    loaded = {each.path for each in process.memory_maps()}
    assert not any("/numpy/" in path for path in loaded)
    assert server.stop() == 0
    assert not child.is_running()
