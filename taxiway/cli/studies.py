"""taxiway studies: searches for good parameters, trial by trial, whoever tries them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from taxiway import errors, names
from taxiway.cli import client, configs, options, printing
from taxiway.cli.client import Client
from taxiway.cli.models import wait_for
from taxiway.cli.printing import say

Study = Annotated[str, typer.Argument(metavar="STUDY", help="The study's id.")]
Trial = Annotated[int, typer.Argument(metavar="TRIAL", min=1, help="The trial's number.")]
Region = Annotated[str, typer.Option(help="The study's location.")]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="NAME=VALUE; again for each metric.")]
Step = Annotated[int | None, typer.Option(min=0, help="How many steps were trained.")]

DEFAULT_REGION = "us-central1"

app = options.group("Studies: searches for good parameters, trial by trial.")


@app.command("create", epilog=options.example("taxiway studies create rates --config study.yaml"))
def create(
    study: Study,
    config: Annotated[
        Path, typer.Option(help="A YAML or JSON file: the study's configuration (metrics, parameters, algorithm ...).")
    ],
    region: Region = DEFAULT_REGION,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Begin a study; clients then ask it what to try."""
    server = client.connect(project)
    names.study_id(study, "STUDY")
    told = configs.read(config, "a study's configuration: metrics and parameters")
    body = told if "studyConfig" in told or "study_config" in told else {"studyConfig": told}
    made = server.post(_studies(server, region), body, studyId=study)
    for warning in made.get("taxiway", {}).get("warnings", []):
        say(f"WARNING: {warning}")
    say(f"Created study [{study}].")
    if format:
        printing.show(made, format)


@app.command("list", epilog=options.example("taxiway studies list"))
def list_studies(
    region: Region = DEFAULT_REGION, project: options.Project = None, format: options.Format = None
) -> None:
    """List the studies of a location."""
    server = client.connect(project)
    rows = list(server.items(_studies(server, region), "studies", pageSize=100))
    columns: list[printing.Column] = [
        ("STUDY", lambda row: printing.last_part(row["name"])),
        ("STATE", lambda row: row["state"]),
        ("ALGORITHM", lambda row: row["studyConfig"].get("algorithm", "")),
        ("METRICS", lambda row: ", ".join(each["metric"] for each in row["studyConfig"]["metrics"])),
        ("CREATED", lambda row: printing.date(row["createTime"])),
    ]
    printing.show_list(rows, columns, format)


@app.command("describe", epilog=options.example("taxiway studies describe rates"))
def describe(
    study: Study, region: Region = DEFAULT_REGION, project: options.Project = None, format: options.Format = None
) -> None:
    """Print all that is known of a study."""
    server = client.connect(project)
    printing.show(server.get(_study(server, region, study)), format)


@app.command("delete", epilog=options.example("taxiway studies delete rates"))
def delete(study: Study, region: Region = DEFAULT_REGION, project: options.Project = None) -> None:
    """Delete a study with its trials."""
    server = client.connect(project)
    server.delete(_study(server, region, study))
    say(f"Deleted study [{study}].")


@app.command("trials", epilog=options.example("taxiway studies trials rates"))
def list_trials(
    study: Study, region: Region = DEFAULT_REGION, project: options.Project = None, format: options.Format = None
) -> None:
    """List a study's trials: what each tries, and what came of it."""
    server = client.connect(project)
    rows = list(server.items(f"{_study(server, region, study)}/trials", "trials", pageSize=100))
    printing.show_list(rows, COLUMNS, format)


@app.command("suggest", epilog=options.example("taxiway studies suggest rates --client notebook --count 2"))
def suggest(
    study: Study,
    client_id: Annotated[
        str, typer.Option("--client", help="Who tries them; the same one gets its pending trials again.")
    ],
    count: Annotated[int, typer.Option(min=1, max=100, help="How many trials.")] = 1,
    region: Region = DEFAULT_REGION,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Ask for trials to try, and print them."""
    server = client.connect(project)
    body = {"clientId": client_id, "suggestionCount": count}
    asked = server.post(f"{_study(server, region, study)}/trials:suggest", body)
    found = _answer(server, asked, "Choosing trials")
    if found.get("studyState") == "COMPLETED":
        say("The study is COMPLETED: nothing is left to try after these.")
    printing.show_list(found.get("trials", []), COLUMNS, format)


@app.command("add-measurement", epilog=options.example("taxiway studies add-measurement rates 3 --metric loss=0.31"))
def add_measurement(
    study: Study,
    trial: Trial,
    metric: Metric = None,
    step: Step = None,
    region: Region = DEFAULT_REGION,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Tell the figures of a trial while it is tried."""
    server = client.connect(project)
    body = {"measurement": _measurement(metric, step)}
    printing.show(server.post(f"{_trial(server, region, study, trial)}:addMeasurement", body), format)


@app.command(
    "complete",
    epilog=options.example(
        "taxiway studies complete rates 3",
        "taxiway studies complete rates 4 --metric loss=0.29",
        'taxiway studies complete rates 5 --infeasible "out of memory"',
    ),
)
def complete(
    study: Study,
    trial: Trial,
    metric: Metric = None,
    step: Step = None,
    infeasible: Annotated[str | None, typer.Option(help="Why these parameters cannot be tried at all.")] = None,
    region: Region = DEFAULT_REGION,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """End a trial: with these figures, or with the best that it measured."""
    server = client.connect(project)
    body: dict[str, Any] = {"finalMeasurement": _measurement(metric, step)} if metric else {}
    if infeasible is not None:
        body |= {"trialInfeasible": True, "infeasibleReason": infeasible}
    printing.show(server.post(f"{_trial(server, region, study, trial)}:complete", body), format)


@app.command("stop", epilog=options.example("taxiway studies stop rates 3"))
def stop(
    study: Study,
    trial: Trial,
    region: Region = DEFAULT_REGION,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Say that a trial should end early; whoever tries it completes it."""
    server = client.connect(project)
    printing.show(server.post(f"{_trial(server, region, study, trial)}:stop", {}), format)


@app.command("check", epilog=options.example("taxiway studies check rates 3"))
def check(study: Study, trial: Trial, region: Region = DEFAULT_REGION, project: options.Project = None) -> None:
    """Find out whether a trial should end early: prints true or false."""
    server = client.connect(project)
    asked = server.post(f"{_trial(server, region, study, trial)}:checkEarlyStoppingState", {})
    found = _answer(server, asked, f"Checking trial [{trial}]")
    typer.echo(json.dumps(found.get("shouldStop", False)))


@app.command("optimal", epilog=options.example("taxiway studies optimal rates"))
def optimal(
    study: Study, region: Region = DEFAULT_REGION, project: options.Project = None, format: options.Format = None
) -> None:
    """List the trials that no other beats: the best, or of several metrics the Pareto front."""
    server = client.connect(project)
    found = server.post(f"{_study(server, region, study)}/trials:listOptimalTrials", {})
    printing.show_list(found.get("trials", []), COLUMNS, format)


def _measurement(metrics: list[str] | None, step: int | None) -> dict[str, Any]:
    if not metrics:
        raise errors.InvalidArgument("--metric is required: NAME=VALUE, such as loss=0.31.")
    figures = []
    for each in metrics:
        name, _, value = each.rpartition("=")
        try:
            figures.append({"metric": name, "value": float(value)})
        except ValueError as error:
            raise errors.InvalidArgument(f"--metric must be NAME=VALUE, such as loss=0.31. It is {each!r}.") from error
        if not name or value.strip().lower() in ("nan", "inf", "-inf", "infinity", "-infinity"):
            raise errors.InvalidArgument(f"--metric must have a name and a finite number. It is {each!r}.")
    return {"metrics": figures, **({"stepCount": str(step)} if step is not None else {})}


def _answer(server: Client, operation: dict[str, Any], message: str) -> dict[str, Any]:
    """What an operation brings; a line of talk only if it takes its time."""
    done = operation if operation.get("done") and "error" not in operation else wait_for(server, operation, message)
    response: dict[str, Any] = done.get("response", {})
    return response


def _studies(server: Client, region: str) -> str:
    return f"/v1/{names.project_name(server.project)}/locations/{names.region(region, '--region')}/studies"


def _study(server: Client, region: str, study: str) -> str:
    return f"{_studies(server, region)}/{names.study_id(study, 'STUDY')}"


def _trial(server: Client, region: str, study: str, trial: int) -> str:
    return f"{_study(server, region, study)}/trials/{trial}"


def _figures(measurement: dict[str, Any]) -> str:
    return ", ".join(f"{each['metric']}={each.get('value', 0):g}" for each in measurement.get("metrics", []))


def _parameters(row: Any) -> str:
    shown = []
    for each in row.get("parameters", []):
        value = each.get("stringValue", each.get("intValue", each.get("floatValue")))
        shown.append(f"{each['parameter']}={value:.6g}" if isinstance(value, float) else f"{each['parameter']}={value}")
    return ", ".join(shown)


COLUMNS: list[printing.Column] = [
    ("TRIAL", lambda row: printing.last_part(row["name"])),
    ("STATE", lambda row: "INFEASIBLE" if row.get("trialInfeasible") else row["state"]),
    ("CLIENT", lambda row: row.get("clientId", "")),
    ("PARAMETERS", _parameters),
    ("FINAL", lambda row: _figures(row.get("finalMeasurement", {}))),
]
