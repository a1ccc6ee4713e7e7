"""What needs the machine of the server: start it, point a shell or one command at it, its runtimes.

The only file of the command line that knows settings and environments, and that starts the server.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from taxiway import address, errors, settings, tunnel
from taxiway.address import Address
from taxiway.cli import options, printing
from taxiway.cli.printing import say
from taxiway.environments import folders, inventory, progress, pythons, runtimes, wheelhouse
from taxiway.environments.runtimes import Choice, Runtime

Home = Annotated[Path | None, typer.Option(help="The server's folder (default: TAXIWAY_HOME, else ~/.taxiway).")]
MaybeVersion = Annotated[
    str | None, typer.Argument(help="Its runtimeVersion (default: that of a job that names none).")
]
Python = Annotated[str | None, typer.Option(help="The Python, such as 3.11 (default: the runtime's first one here).")]

DAY_S = 86400.0
STANDING: list[printing.Column] = [  # of a folder of the cache
    ("SIZE", lambda row: _size(row)),
    ("LAST USED", lambda row: printing.date(row["lastUsed"])),
]
RUNTIMES = options.group("The runtimes that jobs and versions run in.")


def add_to(app: typer.Typer) -> None:
    """Put these commands into the program."""
    app.command(epilog=options.example("taxiway up", "taxiway up --home /srv/taxiway --port 9090"))(up)
    app.command(epilog=options.example('eval "$(taxiway env)"'))(env)
    run_settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    run_example = options.example("taxiway run -- python -m trainer.task --train_data gs://rides/train.csv")
    app.command(context_settings=run_settings, epilog=run_example)(run)
    app.add_typer(RUNTIMES, name="runtimes")


def up(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="The plain port (default: 8080; 0 takes a free one).")] = None,
) -> None:
    """Start the server; it runs until Ctrl-C or SIGTERM."""
    chosen = settings.read(home=home, host=host, port=port)
    # By name, and here: loading the server takes a second, which no other command should pay for.
    importlib.import_module("taxiway.server").run(chosen, _announcer(chosen.home))


def env(home: Home = None) -> None:
    """Print the variables that point gcloud, gsutil and Google's Python clients in this shell at the server."""
    folder = home_of(home)
    for name, value in variables(running(folder), folder).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def run(command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")], home: Home = None) -> None:
    """Run one command that sees gs:// and *.googleapis.com as a job does: every request goes to the server.

    A local TensorFlow so reads and writes gs:// paths. The exit code is the command's.
    """
    folder = home_of(home)
    here = running(folder)
    _replace_with(command, {**os.environ, **variables(here, folder), **interception(here)})


@RUNTIMES.command("list", epilog=options.example("taxiway runtimes list"))
def list_runtimes(format: options.Format = None) -> None:
    """The runtimes on offer, their Pythons, which of them are built here, and what versions they run in place of.

    SIZE is what one takes of the disk, and about what it would take if it is not built yet. One that is OPT_IN is
    large: no job gets it before `taxiway runtimes build` was asked for it. gsutil is no runtime: jobs that name it find
    it on their PATH.
    """
    every = {**runtimes.table(), **runtimes.tools()}
    rows = [_row(runtime, python) for runtime in every.values() for python in runtime.pythons]
    columns: list[printing.Column] = [
        ("VERSION", lambda row: row["version"]),
        ("PYTHON", lambda row: row["python"]),
        ("STATE", lambda row: row["state"]),
        *STANDING,
        ("ALSO FOR", lambda row: row["alsoFor"]),
        ("SUMMARY", lambda row: row["summary"]),
    ]
    printing.show_list(rows, columns, format)


@RUNTIMES.command(epilog=options.example("taxiway runtimes build 2.21 --python-version 3.11"))
def build(version: MaybeVersion = None, python_version: Python = None) -> None:
    """Build a runtime, so that the first job or version does not wait for it."""
    choice = _chosen(version, python_version)
    version = choice.runtime.version
    if ready := runtimes.ready(choice):
        say(f"Runtime {version} for Python {choice.release} is built already.")
        typer.echo(str(ready))
        return
    typer.echo(str(interpreter_of(choice)))


@RUNTIMES.command(epilog=options.example("$(taxiway runtimes python) -m trainer.task --train_steps 300"))
def python(version: MaybeVersion = None, python_version: Python = None) -> None:
    """Print the path of a runtime's interpreter, and nothing else on stdout; it is built first if nobody has yet."""
    choice = _chosen(version, python_version)
    interpreter = interpreter_of(choice)
    folders.hold(runtimes.path(choice))  # whoever asks for it will use it
    typer.echo(str(interpreter))


@RUNTIMES.command(
    epilog=options.example(
        "taxiway runtimes download wheels 2.21", "TAXIWAY_WHEELHOUSE=wheels taxiway runtimes build 2.21"
    )
)
def download(
    folder: Annotated[Path, typer.Argument(help="Where to: it is made if it is not there, and added to if it is.")],
    version: MaybeVersion = None,
    python_version: Python = None,
) -> None:
    """Fetch all that a runtime is built from, for machines without a network.

    With TAXIWAY_WHEELHOUSE=FOLDER a machine of this kind with the same Python builds the runtime from these files
    alone. What your packages require beside it must be put there too.
    """
    choice = _chosen(version, python_version)
    with building() as told:
        new = wheelhouse.fill(folder.expanduser(), choice, told)
    size = printing.size(sum(each.stat().st_size for each in new))
    say(f"{len(new)} files came, {size}, for runtime {choice.runtime.version} on Python {choice.python}.")
    typer.echo(str(folder))


@RUNTIMES.command(epilog=options.example("taxiway runtimes prune --dry-run", "taxiway runtimes prune --unused-days 7"))
def prune(
    unused_days: Annotated[
        float, typer.Option(min=0, help="Keep what was used in so many days; 0 keeps only what is in use.")
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    format: options.Format = None,
) -> None:
    """Remove runtimes and packages' environments that nothing has used lately, of all homes; no server is needed.

    What a job, a version or a TensorBoard uses now is kept, and so is what it used in the last days. What is removed
    is built again when it is asked for.
    """
    before = inventory.standing()
    going = inventory.unused(before, since=time.time() - unused_days * DAY_S)
    rows = [_entry(each) for each in going]  # as they are now, before they go
    if not dry_run:
        with building() as told:
            removed, freed = inventory.prune(going, told)
        rows = [row for row, each in zip(rows, going, strict=True) if each in removed]
    columns: list[printing.Column] = [
        ("KIND", lambda row: row["kind"]),
        ("HOLDS", lambda row: row["holds"]),
        *STANDING,
        ("NAME", lambda row: row["name"]),
    ]
    printing.show_list(rows, columns, format)
    kept = f"{len(before) - len(rows)} kept: in use, or used in the last {unused_days:g} days."
    if dry_run:
        say(f"{len(rows)} would be removed, to free up to {printing.size(inventory.freed_by(going))}. {kept}")
    else:
        say(f"{len(rows)} removed, {printing.size(freed)} freed. {kept}")


def _chosen(version: str | None, python_version: str | None) -> Choice:
    """The choice of a job or a version, and it is said if that is another than was asked for; or a tool."""
    if tool := runtimes.tools().get(version or ""):
        return runtimes.choose(tool, python_version)
    choice = runtimes.resolve(version, python_version)
    say_instead(choice)
    return choice


def say_instead(choice: Choice, *, trains: bool = False) -> None:
    """Say it if another runtime runs than the one that was asked for."""
    if instead := choice.instead(trains=trains):
        say(instead)


def variables(here: Address, home: Path) -> dict[str, str]:
    """What points clients at a server without breaking the shell: no proxy, no CA, nobody made anonymous.

    Each name and form is what the client was seen to obey: gcloud's endpoint overrides end in a slash, and its region
    is global, for it puts any other one before the host's name.
    """
    url = here.url.rstrip("/")
    return {
        "CLOUDSDK_CORE_PROJECT": here.project,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_ML": f"{url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{url}/storage/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING": f"{url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": f"{url}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM": f"{url}/",
        "CLOUDSDK_STORAGE_GS_XML_ENDPOINT_URL": url,  # where its signed URLs lead
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS": f"{url}/",
        "CLOUDSDK_AI_PLATFORM_REGION": "global",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": here.access_token,
        "GOOGLE_APPLICATION_CREDENTIALS": here.key,
        "GOOGLE_CLOUD_PROJECT": here.project,
        "API_ENDPOINT_OVERRIDE": url,
        "FSSPEC_GCS_ENDPOINT_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "BOTO_CONFIG": here.boto,
        "TAXIWAY_HOME": str(home),
    }


def interception(here: Address) -> dict[str, str]:
    """What sends one command's https requests for Google's names to the server: its proxy, and its authority trusted.

    The proxy tunnels every other host, and the bundle holds the system's authorities too, so the rest of the net works.
    """
    return tunnel.variables(f"http://127.0.0.1:{here.proxy_port}", here.bundle)


def home_of(given: Path | None) -> Path:
    """The folder that --home names, else TAXIWAY_HOME, else ~/.taxiway."""
    return given.expanduser().absolute() if given else settings.default_home(os.environ)


def running(home: Path) -> Address:
    """The address of the home's server. Raises Unavailable if it does not answer there."""
    start = "taxiway up" if home == Path.home() / ".taxiway" else f"taxiway up --home {shlex.quote(str(home))}"
    if not (home / "server.json").exists():
        raise errors.Unavailable(f"No server has been started in {home} yet. Start one: {start}")
    here = address.read(home)
    try:
        httpx.get(f"{here.url}/healthz", timeout=5, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise errors.Unavailable(f"No server answers at {here.url} for {home} ({error}). Start it: {start}") from error
    return here


def interpreter_of(choice: Choice) -> Path:
    """The runtime's interpreter, after building the runtime, and showing how far that is, if nobody has yet."""
    if ready := runtimes.ready(choice):
        return ready
    version = choice.runtime.version
    say(f"Building runtime {version} for Python {choice.release} in {runtimes.path(choice)}")
    with building() as told:
        interpreter = runtimes.build(choice, told)
    say(f"Built runtime {version} for Python {choice.release}.")
    return interpreter


@contextlib.contextmanager
def building() -> Iterator[progress.Say]:
    """Shows a build's progress: a bar that is redrawn on a terminal, else lines as of a log; nothing without news."""
    if not printing.on_terminal():
        yield progress.Lines(say)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)

    def redraw(news: progress.Progress) -> None:
        bar.start()
        total = None if news.fraction is None else 1.0
        bar.update(task, description=news.text[:80], total=total, completed=news.fraction or 0)

    try:
        yield redraw
    finally:
        bar.stop()


def _announcer(home: Path) -> Callable[[Address, str], None]:
    def announce(here: Address, jail: str) -> None:
        elsewhere = home != settings.default_home(os.environ)
        asked = f" --home {shlex.quote(str(home))}" if elsewhere else ""
        say(f"Taxiway listens at {here.url} (home {home}).")
        say(f"Project {here.project}, number {here.project_number}. Ctrl-C ends it.")
        say(jail)
        say(f'Next, in another shell: eval "$(taxiway env{asked})"')

    return announce


def _replace_with(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Become the command; exit 127 if there is none of that name, 126 if it cannot be run, as a shell does."""
    try:
        os.execvpe(command[0], command, environ)
    except FileNotFoundError:
        say(f"ERROR: (taxiway.run) There is no command {command[0]!r} on PATH, nor a file of that name.")
        raise typer.Exit(127) from None
    except OSError as error:
        say(f"ERROR: (taxiway.run) {command[0]!r} cannot be run: {error.strerror}.")
        raise typer.Exit(126) from None


def _row(runtime: Runtime, python: str) -> dict[str, Any]:
    """A runtime with one of its Pythons; `size` and `estimate` are bytes, and the first is null until it is built."""
    state, size, used = "NO_PYTHON", None, None
    if pythons.find(python):
        choice = runtimes.choose(runtime, python)
        state = "OPT_IN" if runtime.opt_in else "NOT_BUILT"
        if runtimes.ready(choice):
            folder = runtimes.path(choice)
            state, size, used = "BUILT", folders.size(folder), _stamp(folders.last_used(folder))
    return {
        "version": runtime.version,
        "python": python,
        "state": state,
        "size": size,
        "estimate": runtime.mib << 20,
        "lastUsed": used,
        "alsoFor": runtime.covered,
        "summary": runtime.summary,
    }


def _size(row: Mapping[str, Any]) -> str:
    if row["size"] is None:
        return f"about {printing.size(row['estimate'])}" if row.get("estimate") else ""
    return printing.size(row["size"])


def _entry(each: inventory.Entry) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "name": each.folder.name,
        "holds": each.holds,
        "size": folders.size(each.folder),
        "lastUsed": _stamp(each.used),
    }


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
