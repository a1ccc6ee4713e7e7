"""The servers that benchmarks run side by side: ours, the emulators of others, nginx, Ray.

Each is started on a folder of its own and says how it is asked: those of storage the same two requests, in their own
words. The emulators and Ray come from a package registry into an environment of their own; nginx is the machine's, if
it has one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from taxiway import address
from taxiway.environments import folders, uv
from taxiway.environments.progress import Say

LOCK = Path(__file__).parent.parent / "requirements" / "peers.lock"
BUCKET = "benchmark-bucket"
MIB = 1024 * 1024
START_S = 60

NGINX = """
{modules}user root; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {folder}/body;
  server {{
    listen 127.0.0.1:{port}; root {folder}/data;
    location / {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
"""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A running server. `put` and `get` make the request for an object of a name."""

    name: str
    url: str
    pid: int
    put: Callable[[str], Request]
    get: Callable[[str], Request]

    def resident(self, *, peak: bool = False) -> int:
        """Bytes of memory of the server and its children, now or at most so far."""
        word = "VmHWM:" if peak else "VmRSS:"
        family = [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]
        return sum(_status(pid, word) for pid in family)


def _status(pid: int, word: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


@contextmanager
def taxiway(folder: Path) -> Iterator[Peer]:
    home = folder / "home"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAXIWAY_")}
    command = [sys.executable, "-m", "taxiway", "up", "--home", str(home), "--port", "0"]
    with _running(command, folder, environ) as server:
        located = _until(lambda: _located(home, server.pid))
        bearer = {"Authorization": f"Bearer {Path(located.access_token).read_text().strip()}"}
        made = httpx.post(
            f"{located.url}/storage/v1/b?project={located.project}", json={"name": BUCKET}, headers=bearer
        )
        if made.status_code != httpx.codes.CONFLICT:  # there since an earlier start on this folder
            made.raise_for_status()
        yield Peer("Taxiway", located.url, server.pid, *_json_api(bearer))


def _located(home: Path, pid: int) -> address.Address | None:
    located = address.read(home)
    return located if located.pid == pid and httpx.get(f"{located.url}/healthz").status_code == 200 else None


def _json_api(headers: dict[str, str]) -> tuple[Callable[[str], Request], Callable[[str], Request]]:
    """The Cloud Storage JSON API; names here need no escape but that of the slash."""
    upload = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name="
    told = {**headers, "Content-Type": "application/octet-stream"}
    return (
        lambda name: Request("POST", upload + name.replace("/", "%2F"), told),
        lambda name: Request("GET", f"/storage/v1/b/{BUCKET}/o/{name.replace('/', '%2F')}?alt=media", headers),
    )


@contextmanager
def emulator(folder: Path, *, memory: bool) -> Iterator[Peer]:
    """gcp-storage-emulator."""
    port = _free_port()
    program = str(_environment() / "bin" / "gcp-storage-emulator")
    words = ["start", "--host", "127.0.0.1", "--port", str(port), "--default-bucket", BUCKET, "--quiet"]
    environ = {**os.environ, "STORAGE_BASE": str(folder), "STORAGE_DIR": "emulated"}
    with _running([program, *words, *(["--in-memory"] if memory else [])], folder, environ) as server:
        url = f"http://127.0.0.1:{port}"
        _until(lambda: httpx.get(f"{url}/storage/v1/b/{BUCKET}").status_code == 200)
        name = f"gcp-storage-emulator {'in memory' if memory else 'on disk'}"
        yield Peer(name, url, server.pid, *_json_api({}))


@contextmanager
def moto(folder: Path) -> Iterator[Peer]:
    """moto's S3."""
    port = _free_port()
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, Signature=b"}
    command = [str(_environment() / "bin" / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder, dict(os.environ)) as server:
        url = f"http://127.0.0.1:{port}"
        _until(lambda: httpx.put(f"{url}/{BUCKET}", headers=signed).status_code == 200)
        put = {**signed, "Content-Type": "application/octet-stream"}
        yield Peer(
            "moto, S3 in memory",
            url,
            server.pid,
            lambda name: Request("PUT", f"/{BUCKET}/{name}", put),
            lambda name: Request("GET", f"/{BUCKET}/{name}", signed),
        )


@contextmanager
def nginx(folder: Path) -> Iterator[Peer]:
    """nginx with WebDAV: it does not flush, hash, or ask who you are."""
    port = _free_port()
    for name in ("data", "body"):
        (folder / name).mkdir()
    dynamic = Path("/usr/lib/nginx/modules/ngx_http_dav_module.so")
    modules = f"load_module {dynamic};\n" if dynamic.exists() else ""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, modules=modules))
    with _running(["nginx", "-c", str(folder / "nginx.conf")], folder, dict(os.environ)) as server:
        url = f"http://127.0.0.1:{port}"
        _until(lambda: httpx.get(url).status_code)
        yield Peer(
            "nginx, WebDAV",
            url,
            server.pid,
            lambda name: Request("PUT", f"/{name}", {}),
            lambda name: Request("GET", f"/{name}", {}),
        )


@dataclass(frozen=True)
class Ray:
    """A running head node: where it takes jobs, and what its own commands need to reach it."""

    url: str
    headers: dict[str, str]
    program: Path
    environ: dict[str, str]


@contextmanager
def ray(folder: Path) -> Iterator[Ray]:
    """Ray alone on this machine, with an environment and a token of its own.

    `ray stop` would end every Ray of the machine; this one ends by its group of processes.
    """
    program, token = _environment() / "bin" / "ray", secrets.token_hex(32)
    environ = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    port = _free_port()
    words = ["--node-ip-address", "127.0.0.1", "--port", "0", "--dashboard-host", "127.0.0.1", "--dashboard-port", port]
    words += ["--dashboard-agent-listen-port", _free_port(), "--ray-client-server-port", _free_port()]
    words += ["--min-worker-port", 0, "--max-worker-port", 0]  # any: by default they take ten thousand, ours perhaps
    words += ["--temp-dir", folder / "ray", "--disable-usage-stats"]
    command = [str(program), "start", "--head", "--block", *map(str, words)]
    with (folder / "server.log").open("wb") as log:
        head = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        found = Ray(f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}, program, environ)
        _until(lambda: httpx.get(f"{found.url}/api/jobs/", headers=found.headers).status_code == 200)
        yield found
    finally:
        others = psutil.Process(head.pid).children(recursive=True)  # its workers have groups of their own
        os.killpg(head.pid, signal.SIGKILL)
        for process in others:
            with suppress(psutil.Error):
                process.kill()
        head.wait()


def missing_nginx() -> str:
    return "" if shutil.which("nginx") else "nginx is not installed (Debian: apt install nginx-light)"


def missing_emulators() -> str:
    """Why the emulators cannot be had, if they cannot."""
    return _unfetched("the emulators")


def missing_ray() -> str:
    return _unfetched("Ray")


def _unfetched(what: str) -> str:
    try:
        _environment()
    except uv.Failed as error:  # also that a Python or a machine has no such package
        return f"{what} could not be fetched: {error}"
    return ""


def _environment() -> Path:
    """The packages of the emulators and Ray, installed once below the cache. Raises uv.Failed without a network."""
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = folders.cache() / "benchmarks" / f"peers-{key}"

    def install(turn: int, say: Say | None) -> dict[str, object]:
        uv.venv(folder, Path(sys.executable).resolve(), "peers", turn)
        uv.install(folders.interpreter(folder), ["install", "--require-hashes", "--requirements", str(LOCK)], turn, say)
        return {"packages": folders.installed(next(folder.glob("lib/python*/site-packages")))}

    folders.once(folder, install, None)
    return folder


@contextmanager
def _running(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
    try:
        yield server
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            with suppress(psutil.NoSuchProcess):  # some go with their parents
                process.terminate()
        server.wait(30)


def _until(answer: Callable[[], object]) -> object:
    """What a server answers once it does."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if found := answer():
                return found
        except Exception:  # whatever is not there yet
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError("a server did not start")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
