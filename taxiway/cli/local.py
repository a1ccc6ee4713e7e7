"""taxiway local: train and predict on this machine as the service does, without it; and how two runs differ.

What runs is what a job runs: the same archive, the same environment, the plan's command and variables, started by the
replica's own code (`python -m taxiway.replica.local`). A prediction asks the model server of a version for one reply.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from taxiway import errors, files, names, plan, receipts
from taxiway.cli import client, host, jobs, objects, options, packaging, predict, printing, tail, transfer
from taxiway.cli.client import Client
from taxiway.cli.printing import say
from taxiway.environments import folders, layers, runtimes
from taxiway.environments.runtimes import Choice
from taxiway.plan import Run, Work
from taxiway.receipts import Receipt
from taxiway.schemas import TrainingInput

PORT = 27182  # gcloud's
COUNT = 2  # of parameter servers and of workers, gcloud's too
LINES = 20  # of what a model's process said last

RUN = "A job's id, a local-... name, or the path of a receipt."
RuntimeVersion = Annotated[str | None, typer.Option(help="See: taxiway runtimes list")]
PythonVersion = Annotated[str | None, typer.Option(help="Such as 3.11 (default: the runtime's).")]
Count = Annotated[int | None, typer.Option(min=0, help=f"With --distributed (default: {COUNT}).")]

app = options.group("Try it on this machine, as the service would do it; no server is needed.")


@app.command(
    cls=options.WithRest,
    epilog=options.example(
        "taxiway local train --module-name trainer.task --package-path trainer -- --train_steps 100",
        "taxiway local train --module-name trainer.task --package-path trainer --distributed --worker-count 3",
    ),
)
def train(
    context: typer.Context,
    module_name: Annotated[str, typer.Option(help="The module to run, such as trainer.task.")],
    package_path: Annotated[
        Path | None, typer.Option(help="Your package: the folder with the __init__.py (default: this folder).")
    ] = None,
    job_dir: Annotated[str | None, typer.Option(help="A folder, local or gs://; passed as --job-dir.")] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Run a cluster: a chief, parameter servers and workers.")
    ] = False,
    worker_count: Count = None,
    parameter_server_count: Count = None,
    evaluator_count: Annotated[int | None, typer.Option(min=0, help="With --distributed (default: none).")] = None,
    start_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The first of the cluster's ports, which are in a row.")
    ] = PORT,
    runtime_version: RuntimeVersion = None,
    python_version: PythonVersion = None,
) -> None:
    """Train here as a job would: your package, installed over the runtime. Words after -- go to your module.

    It runs in the folder above your package. gs:// paths among the words need the server: taxiway up. The exit code is
    the trainer's, 128 and the signal for one that was killed.
    """
    names.python_module(module_name, "--module-name")
    choice = runtimes.resolve(runtime_version, python_version)
    host.say_instead(choice, trains=True)
    folder = package_path or Path()
    package = packaging.build(folder)
    packaging.check_module(folder, module_name)
    counts = {
        "worker_count": worker_count,
        "parameter_server_count": parameter_server_count,
        "evaluator_count": evaluator_count,
    }
    if not distributed:
        _say_ignored(counts)
    told = TrainingInput(
        scale_tier="CUSTOM" if distributed else "BASIC",
        python_module=module_name,
        args=tuple(context.meta[options.REST]),
        job_dir=job_dir or "",
        runtime_version=choice.version,
        python_version=choice.python_version,
        **(_cluster(counts) if distributed else {}),
    )
    variables = _google([*told.args, told.job_dir])
    project = variables.get("GOOGLE_CLOUD_PROJECT") or os.environ.get("CLOUDSDK_CORE_PROJECT") or "local"
    works = plan.local(told, project=project, python=choice.python, start_port=start_port)
    if distributed:
        _refuse_taken(range(start_port, start_port + len(works) - (told.evaluator_count or 0)))
    host.interpreter_of(choice)
    interpreter, receipt = _installed(works[0], choice, package)
    place = folder.resolve().parent
    if "-P" not in works[0].command[:3]:
        say(f"Python {choice.python} imports from {place} first: the source there runs, not the installed copy of it.")
    _keep(receipt)
    run = Run(works=works, python=str(interpreter), folder=str(place), variables=variables)
    _become(run)


@app.command(
    "predict",
    epilog=options.example(
        "taxiway local predict --model-dir taxi_trained/export/exporter/1795562513 --json-instances test.json",
        "echo '{\"dayofweek\": 4}' | taxiway local predict --model-dir model --json-instances -",
    ),
)
def predict_here(
    model_dir: Annotated[str, typer.Option(help="The folder of the model, local or gs://.")],
    framework: Annotated[str, typer.Option(help="tensorflow, scikit-learn or xgboost.")] = "tensorflow",
    json_instances: predict.Instances = None,
    json_request: predict.Request = None,
    text_instances: predict.Texts = None,
    signature_name: predict.Signature = None,
    runtime_version: RuntimeVersion = None,
    python_version: PythonVersion = None,
    format: options.Format = None,
) -> None:
    """Ask a model for predictions without deploying it: the model server of a version answers, once."""
    choice = runtimes.resolve(runtime_version, python_version)
    host.say_instead(choice)
    offered = [each.lower().replace("_", "-") for each in choice.runtime.frameworks]
    if framework.lower().replace("_", "-") not in offered:
        told = f"runtime {choice.runtime.version} offers {', '.join(offered) or choice.runtime.served}"
        raise errors.InvalidArgument(f"--framework: {framework} is not offered; {told}.")
    body = predict.request(json_instances, json_request, text_instances, signature_name)
    with tempfile.TemporaryDirectory(prefix="taxiway-") as fetched:
        model = _model(model_dir, Path(fetched))
        interpreter = host.interpreter_of(choice)
        work = plan.predicting(
            str(model),
            runtime=choice.runtime.version,
            python=choice.python,
            framework=framework.lower().replace("-", "_"),
        )
        run = Run(works=[work], python=str(interpreter), folder=str(Path.cwd()), variables={})
        ended = subprocess.run(
            _replica(ordered := _ordered(run)),
            input=json.dumps(body).encode(),
            capture_output=True,
            cwd=ordered,
            check=False,
        )
    typer.echo(predict.shown(_answer(ended), format))


@jobs.app.command(epilog=options.example("taxiway jobs diff fares_1 local-3f2a9c01d4e7"))
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=RUN)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other, likewise.")],
    project: options.Project = None,
    format: options.Format = None,
) -> None:
    """Show in which parts two runs differ: package, runtime, args, environment. Exit code 1 if they do."""
    one, two = (_receipt(each, project) for each in (a, b))
    parts = receipts.compare(one, two)
    rows = [{"part": part.name, "same": not part.differences, "differences": part.differences} for part in parts]
    columns: list[printing.Column] = [
        ("PART", lambda row: row["part"]),
        ("STATE", lambda row: "SAME" if row["same"] else "DIFFERENT"),
        ("FIRST DIFFERENCE", lambda row: _first(row["differences"])),
    ]
    printing.show_list(rows, columns, format)
    if different := [part.name for part in parts if part.differences]:
        say(f"{a} and {b} differ in {_and(different)}.")
        raise typer.Exit(1)
    say(f"{a} and {b} were made of the same.")


def _cluster(counts: dict[str, int | None]) -> dict[str, Any]:
    """gcloud's numbers for those that were not given."""
    usual = {"worker_count": COUNT, "parameter_server_count": COUNT, "evaluator_count": 0}
    return {name: usual[name] if count is None else count for name, count in counts.items()}


def _say_ignored(counts: dict[str, int | None]) -> None:
    for name in (name for name, count in counts.items() if count):
        say(f"--{name.replace('_', '-')} is ignored without --distributed. Did you mean to run a cluster?")


def _google(words: Sequence[str]) -> dict[str, str]:
    """What leads a trainer's gs:// paths to the home's server; nothing if it was given none. Raises Unavailable."""
    word = next((word for word in words if "gs://" in word), None)
    if word is None:
        return {}
    try:
        here = host.running(client.home())
    except errors.Unavailable as error:
        raise errors.Unavailable(f"{word} is for the server to read or write. {error}") from error
    return {**host.variables(here, client.home()), **host.interception(here)}


def _refuse_taken(ports: range) -> None:
    """Raises FailedPrecondition if somebody listens on one of a cluster's ports."""
    if ports[-1] > 65535:
        raise typer.BadParameter(
            f"--start-port: the cluster needs the ports {ports[0]} to {ports[-1]}; 65535 is the last"
        )
    for port in ports:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as TensorFlow's own: past its last closing
            try:
                tried.bind(("", port))
            except OSError as error:
                wanted = f"The cluster's ports are {ports[0]} to {ports[-1]}, and {port} cannot be had"
                raise errors.FailedPrecondition(
                    f"{wanted} ({error.strerror}). Choose others: --start-port {ports[-1] + 1}"
                ) from error


def _installed(work: Work, choice: Choice, package: packaging.Package) -> tuple[Path, Receipt]:
    """The interpreter that sees the package, built if nobody has yet, and what the run is made of."""
    with tempfile.TemporaryDirectory(prefix="taxiway-") as folder, host.building() as told:
        archive = Path(folder) / package.file
        archive.write_bytes(package.content)
        module = work.command[work.command.index("-m") + 1]
        interpreter = layers.ensure(choice, [archive], told, module=module)
        return interpreter, receipts.of(work, choice, [archive], interpreter)


def _keep(receipt: Receipt) -> None:
    say(f"Receipt {receipts.name(receipt)}: {receipts.words(receipt)}")
    try:
        receipts.keep(client.home(), receipt)
    except OSError as error:
        say(f"The receipt could not be kept in {client.home()} ({error.strerror}); the run goes on.")


def _ordered(run: Run) -> Path:
    """A folder with what the replica is to do, which it clears away."""
    folder = Path(tempfile.mkdtemp(prefix="taxiway-"))
    files.replace(folder / "run.json", msgspec.json.encode(run))
    return folder


def _become(run: Run) -> NoReturn:
    """The replica in place of this process: it has the terminal, and its exit code is the caller's."""
    folder = _ordered(run)
    for descriptor in folders.held():
        os.set_inheritable(descriptor, True)
    # What is signalled meanwhile waits until the replica can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    os.chdir(folder)
    os.execv(sys.executable, _replica(folder))


def _replica(folder: Path) -> list[str]:
    """Its command, to be run in that folder: `-m` would import what lies in the caller's."""
    return [sys.executable, "-m", "taxiway.replica.local", str(folder)]


def _model(given: str, fetched: Path) -> Path:
    """The model's folder on this machine."""
    if not objects.is_remote(given):
        if not Path(given).is_dir():
            raise errors.InvalidArgument(f"--model-dir: {given} is not a folder. Give the one with the saved_model.pb.")
        return Path(given).absolute()
    server = client.connect()
    bucket, prefix = names.gs(given, "--model-dir")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    found = [each for each in objects.listing(server, bucket, prefix) if not each.name.endswith("/")]
    if not found:
        raise errors.NotFound(f"--model-dir: there is no object below {given}.")
    with transfer.progress(sum(each.size for each in found), "Downloading") as told:
        transfer.in_parallel(
            functools.partial(transfer.download, server, each, _inside(fetched, each.name[len(prefix) :]), told)
            for each in found
        )
    return fetched


def _inside(folder: Path, name: str) -> Path:
    place = (folder / name).resolve()
    if folder.resolve() not in place.parents:
        raise errors.FailedPrecondition(f"--model-dir: the object {name} would lie outside of its folder.")
    return place


def _answer(ended: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The reply of a model's process. Raises FailedPrecondition with what it or the process said."""
    said = ended.stderr.decode("utf-8", "replace").splitlines()
    for told in (ended.stdout, said[-1].encode() if said else b""):
        try:
            answer = dict(json.loads(told))
        except (ValueError, TypeError):
            continue
        if ended.returncode == 0:
            return answer
        if "error" in answer:
            raise errors.FailedPrecondition(str(answer["error"]))
    last = "\n".join(said[-LINES:])
    raise errors.FailedPrecondition(f"The model's process ended with exit code {ended.returncode}.\n{last}")


def _receipt(run: str, project: str | None) -> Receipt:
    """By a path, the name of a local run, or a job's id."""
    if "/" in run or run.endswith(".json"):
        return receipts.read(Path(run))
    if not run.startswith("local-"):
        return _receipt_of_job(client.connect(project), run)
    try:
        return receipts.read(receipts.path(client.home(), run))
    except FileNotFoundError:
        raise errors.NotFound(f"No receipt {run} is in {client.home() / 'receipts'}.") from None


def _receipt_of_job(server: Client, job: str) -> Receipt:
    state = server.get(f"/v1/{names.job_name(server.project, names.ml_name(job, 'jobId'))}").get("state")
    for message in tail.messages(server, job, "Receipt "):
        if receipt := receipts.parse(message):
            return receipt
    raise errors.FailedPrecondition(
        f"The job {job} is {state} and has no receipt: it gets one when its environment is built, before it runs."
    )


def _first(differences: Sequence[str]) -> str:
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return f"{differences[0]}{more}" if differences else ""


def _and(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
