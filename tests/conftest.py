"""Real servers for every test that needs one, each on a home of its own; nothing is faked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import gsutils
import httpx
import psutil
import pytest
import trainers

from taxiway import address, errors
from taxiway.address import Address
from taxiway.db import migrate
from taxiway.db.database import Database
from taxiway.environments import runtimes
from taxiway.replica import jail

ROOT = Path(__file__).parent.parent
START_S = 60


@dataclass
class Server:
    """A running server and what a client needs to know of it."""

    home: Path
    address: Address
    process: subprocess.Popen[bytes]
    http: httpx.Client = field(repr=False)

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def project(self) -> str:
        return self.address.project

    @property
    def key(self) -> Path:
        return Path(self.address.key)

    @property
    def token(self) -> str:
        return Path(self.address.access_token).read_text()

    @property
    def log(self) -> str:
        return (self.home.parent / f"{self.home.name}.log").read_text()

    def call(self, method: str, path: str, **rest: object) -> httpx.Response:
        """A request as the owner."""
        return self.http.request(method, path, headers={"Authorization": f"Bearer {self.token}"}, **rest)

    def kill(self) -> None:
        """kill -9, as an out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


StartServer = Callable[..., Server]


def start(home: Path, *flags: str, **variables: str) -> Server:
    """`taxiway up` on a home, once it answers."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log = (home.parent / f"{home.name}.log").open("ab")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAXIWAY_")}
    environ |= {name: os.environ[name] for name in ("TAXIWAY_CACHE", "TAXIWAY_PYTHONS") if name in os.environ}
    environ |= variables
    command = [sys.executable, "-m", "taxiway", "up", "--home", str(home), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    log.close()
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            found = address.read(home)
            if found.pid == process.pid and httpx.get(f"{found.url}/healthz").status_code == 200:
                return Server(home, found, process, httpx.Client(base_url=found.url, timeout=120, trust_env=False))
        except Exception:  # noqa: BLE001 - whatever is not there yet
            pass
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise AssertionError(f"the server did not start: {(home.parent / f'{home.name}.log').read_text()}")


def end_replicas(home: Path) -> None:
    """What a failed test left running: a replica goes on without its server, and would wait for it for a day."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(home) in " ".join(process.cmdline()):
                process.kill()


@contextmanager
def running(home: Path, **variables: str) -> Iterator[Server]:
    """A server for several tests, which ends as it should and without a traceback in its log."""
    started = start(home, **variables)
    yield started
    started.http.close()
    ended = started.stop()
    end_replicas(home)
    assert ended == 0, started.log
    assert "Traceback" not in started.log, started.log


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only use it."""
    with running(tmp_path_factory.mktemp("server") / "home") as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test's jobs end with it."""
    if call.when == "call" and call.excinfo is not None:
        lab = getattr(item, "funcargs", {}).get("lab")
        if isinstance(lab, trainers.Lab):
            with suppress(httpx.HTTPError):
                lab.give_way()
    return (yield)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Servers of this test alone; `start_server(home)` again on the same home is the restart."""
    started: list[Server] = []

    def begin(home: Path | None = None, *flags: str, **variables: str) -> Server:
        started.append(start(home or tmp_path / "home", *flags, **variables))
        return started[-1]

    yield begin
    for each in started:
        each.http.close()
        if each.process.poll() is None:
            each.stop()
        end_replicas(each.home)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """An empty database, made by the migrations."""
    migrate.upgrade(tmp_path / "taxiway.db")
    opened = Database(tmp_path / "taxiway.db")
    yield opened
    opened.close()


@pytest.fixture
def cli(server: Server) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, as the owner of the shared server."""
    return lambda *words, **rest: run_cli(server, *words, **rest)


def run_cli(server: Server, *words: str, **rest: object) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
    environ |= {name: os.environ[name] for name in ("TAXIWAY_CACHE", "TAXIWAY_PYTHONS") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "taxiway", *words],
        capture_output=True,
        text=True,
        env={**environ, "TAXIWAY_HOME": str(server.home)},
        **{"timeout": 280, **rest},
    )


@pytest.fixture(scope="session")
def runtime_python() -> Path:
    """The interpreter of the default runtime (TensorFlow); built once, `make setup` does it beforehand."""
    return runtimes.build(runtimes.resolve(None, None))


@pytest.fixture(scope="session")
def jailed() -> bool:
    """Whether a job on this machine runs in a jail."""
    try:
        with jail.opened():
            return True
    except jail.Lacking:
        return False


@pytest.fixture(scope="session")
def gsutil_program() -> Path:
    """The program itself; the first test that asks for it builds it, and is skipped where there is no network."""
    try:
        return gsutils.build()
    except errors.Unavailable as failure:
        pytest.skip(f"gsutil could not be fetched: {failure}")


@pytest.fixture
def gsutil(server: Server, gsutil_program: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Google's own gsutil, as the shared server's owner: `gsutil("ls", "gs://b")`; `boto=FILE` is somebody else."""
    own = tmp_path / "gsutil"
    own.mkdir()

    def run(*words: str, boto: Path | None = None, **rest: object) -> subprocess.CompletedProcess[str]:
        return gsutils.run(gsutil_program, boto or Path(server.address.boto), own, words, **rest)

    return run
