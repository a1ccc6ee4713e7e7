"""taxiway predict: instances in, predictions out, printed as gcloud prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from taxiway import errors, names
from taxiway.cli import client, options, printing
from taxiway.cli.client import Refused

Instances = Annotated[
    str | None, typer.Option(help="A file with one JSON instance on each line; - for standard input.")
]
Request = Annotated[str | None, typer.Option(help='A file with a whole request: {"instances": [...]}.')]
Texts = Annotated[str | None, typer.Option(help="A file with one text instance on each line.")]
Signature = Annotated[str | None, typer.Option(help="The signature (default: serving_default).")]


def add_to(app: typer.Typer) -> None:
    """Put the command into the program."""
    app.command(
        epilog=options.example(
            "taxiway predict --model fares --json-instances test.json",
            "echo '{\"dayofweek\": 4}' | taxiway predict --model fares --version v1 --json-instances -",
        )
    )(predict)


def predict(
    model: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[str | None, typer.Option(help="The version's name (default: the model's default one).")] = None,
    json_instances: Instances = None,
    json_request: Request = None,
    text_instances: Texts = None,
    signature_name: Signature = None,
    region: options.Region = None,
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Ask a model for predictions. There is no limit on the number of instances."""
    body = request(json_instances, json_request, text_instances, signature_name)
    server = client.connect(project)
    names.ml_name(model, "model")
    name = names.version_name(server.project, model, version) if version else names.model_name(server.project, model)
    answer = server.post(f"/v1/{name}:predict", body)
    if failed := client.error_of(answer):  # the service also answered so with 200
        raise Refused(400, failed[0] or "INVALID_ARGUMENT", failed[1])
    typer.echo(shown(answer, format))


def request(
    json_instances: str | None, json_request: str | None, text_instances: str | None, signature_name: str | None
) -> dict[str, Any]:
    """The body that the flags ask for, of which exactly one names a file."""
    given = [each for each in (json_instances, json_request, text_instances) if each is not None]
    if len(given) != 1:
        raise typer.BadParameter("give exactly one of --json-instances, --json-request and --text-instances")
    if json_instances is not None:
        body: dict[str, Any] = {"instances": list(_json_lines(json_instances))}
    elif text_instances is not None:
        body = {"instances": [line for _, line in _lines(text_instances)]}
    else:
        body = _request(given[0])
    if signature_name:
        body["signature_name"] = signature_name
    return body


def shown(answer: dict[str, Any], form: options.Form | None) -> str:
    """An answer as text: a table with the sorted keys of the first prediction, or one column; JSON or YAML if asked."""
    predictions = answer.get("predictions")
    if form == options.Form.yaml:
        return printing.yaml(answer)
    if form == options.Form.json or not isinstance(predictions, list):
        return json.dumps(answer, indent=2, ensure_ascii=False)
    if predictions and isinstance(predictions[0], dict):
        keys = sorted(predictions[0])
        return printing.table(keys, [[row.get(key) for key in keys] for row in predictions])
    return printing.table(["PREDICTIONS"], [[row] for row in predictions])


def _json_lines(file: str) -> Iterator[Any]:
    for number, line in _lines(file):
        yield _json(line, f"Line {number} of {_name(file)}")


def _request(file: str) -> dict[str, Any]:
    body = _json(_text(file), _name(file))
    if not isinstance(body, dict) or not isinstance(body.get("instances"), list):
        raise errors.InvalidArgument(f'{_name(file)} must hold one JSON object with a list: {{"instances": [...]}}.')
    return body


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers. Raises InvalidArgument for an empty line, or no line at all."""
    lines = _text(file).split("\n")
    if lines[-1] == "":
        lines.pop()  # the line end of the last line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise errors.InvalidArgument(f"Line {number} of {_name(file)} is empty. Give one instance on each line.")
        yield number, line.rstrip("\r")
    if not lines:
        raise errors.InvalidArgument(f"{_name(file)} is empty. Give one instance on each line.")


def _text(file: str) -> str:
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.InvalidArgument(f"{_name(file)} is not UTF-8 text (byte {error.start}).") from error


def _json(text: str, where: str) -> Any:
    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidArgument(f"{where} is not JSON: {error}.") from error


def _name(file: str) -> str:
    return "standard input" if file == "-" else file
