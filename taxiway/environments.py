"""A runtime and a person's packages -> an interpreter that has both: built by uv, cached by hash, shared by all homes.

    choice = environments.resolve("2.21", "3.11")                   # what is offered, and a Python of this machine
    environments.build_runtime(choice, say=print)                   # once a machine: TensorFlow and its friends
    python = environments.ensure(choice, [Path("trainer.tar.gz")])  # once a package: a layer over the runtime

In the cache folder (TAXIWAY_CACHE):

    runtimes/2.21-py3.11-<hash>/   a virtual environment that holds the runtime's lock, exactly
    environments/<hash>/           a layer: the person's packages, what else they require, and a .pth to the runtime
    uv/                            uv's own cache, on the same disk so that files are linked and not copied

Such a folder is whole when it holds `complete.json`, which is written last; without it the folder is what somebody who
died left behind, and is built anew. Builders of one folder take turns by an flock that their children inherit: it is
free only when the last process that could still write there has ended. Nothing here knows a database row.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import termios
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uv

from taxiway import errors

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

RECIPE = 1  # counts the ways in which an environment was ever built; a new one makes every folder of the old one stale
COMPLETE = "complete.json"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".whl")  # what uv installs from


@dataclass(frozen=True)
class Runtime:
    """A row of runtimes.toml: what a runtimeVersion means."""

    version: str
    pythons: tuple[str, ...]  # "3.11", the preferred first
    lock: Path
    summary: str = ""
    frameworks: tuple[str, ...] = ()
    provides: Mapping[str, str] = field(default_factory=dict, hash=False)  # asked for -> what stands in for it


@dataclass(frozen=True)
class Choice:
    """A runtime together with one Python of this machine."""

    runtime: Runtime
    python: str  # "3.11"
    release: str  # "3.11.7"
    base: Path  # the interpreter that environments are made from

    @functools.cached_property
    def key(self) -> str:
        """The name of the runtime's folder; it changes with the lock, the Python's release and our way of building."""
        digest = hashlib.sha256(f"{RECIPE} {self.release} {self.base}\n".encode() + self.runtime.lock.read_bytes())
        return f"{self.runtime.version}-py{self.python}-{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Progress:
    """What a build is at: a stage (wait, download, install, compile, build), a line for a person, how much of the stage
    is done (0 to 1, or None where nobody knows)."""

    stage: str
    text: str
    fraction: float | None = None


Say = Callable[[Progress], None]


@dataclass(frozen=True)
class Built:
    """A runtime that stands in the cache."""

    version: str
    python: str
    release: str
    interpreter: Path


# --- what is offered -------------------------------------------------------------------------------------------------


@functools.cache
def _file() -> dict[str, Any]:
    return dict(tomllib.loads(Path(__file__).with_name("runtimes.toml").read_text(encoding="utf-8")))


@functools.cache
def table() -> dict[str, Runtime]:
    """Every runtime on offer, by its version."""
    folder = Path(__file__).with_name("runtimes")
    return {
        version: Runtime(
            version=version,
            pythons=tuple(row["pythons"]),
            lock=folder / row["lock"],
            summary=row["summary"],
            frameworks=tuple(row["frameworks"]),
            provides=row.get("provides", {}),
        )
        for version, row in _file()["runtimes"].items()
    }


def default() -> str:
    """The runtimeVersion of one who names none."""
    return str(_file()["default"])


def resolve(version: str | None, python_version: str | None) -> Choice:
    """The runtime and the Python that a runtimeVersion and a pythonVersion mean here; None or "" leaves one to us.

    Raises InvalidArgument with the field's name and what is offered.
    """
    runtime = table().get(version or default())
    if runtime is None:
        fault = f"Runtime version {version!r} is not offered. Choose one of: {', '.join(table())}."
        raise errors.InvalidArgument(faults=[("runtimeVersion", fault)])
    return choose(runtime, python_version)


def choose(runtime: Runtime, python_version: str | None) -> Choice:
    """As `resolve`, for a runtime in hand: the first of its Pythons that this machine has, unless one is named."""
    if python_version and python_version not in runtime.pythons:
        offered = ", ".join(runtime.pythons)
        fault = f"Python {python_version!r} is not offered with runtime version {runtime.version}. Choose: {offered}."
        raise errors.InvalidArgument(faults=[("pythonVersion", fault)])
    wanted = [python_version] if python_version else runtime.pythons
    for python in wanted:
        if base := find_python(python):
            return Choice(runtime, python, _release(base, base.stat().st_mtime_ns), base)
    names = " or ".join(wanted)
    fault = f"Python {names} was not found on this machine. Install it, or name its folder in TAXIWAY_PYTHONS."
    raise errors.InvalidArgument(faults=[("pythonVersion", fault)])


# --- the Pythons of this machine -------------------------------------------------------------------------------------


def find_python(version: str) -> Path | None:
    """An interpreter of "3.11" that runs, or None. None is ever downloaded.

    Looked for in TAXIWAY_PYTHONS (folders or interpreters, colon separated), behind the running interpreter, among
    pyenv's and uv's versions by their real paths, then on PATH, where a pyenv shim may exist and yet not run.
    """
    for candidate in _candidates(version):
        with contextlib.suppress(OSError):
            if _release(candidate, candidate.stat().st_mtime_ns).rpartition(".")[0] == version:
                return candidate.resolve()  # one Python, one runtime, by whichever link it was found
    return None


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for entry in filter(None, os.environ.get("TAXIWAY_PYTHONS", "").split(":")):
        given = Path(entry).expanduser().absolute()
        yield from [given] if given.is_file() else [given / name, given / "bin" / name, *_versions(given, name)]
    yield Path(sys.base_prefix) / "bin" / name
    for folder in _version_folders():
        yield from _versions(folder, name)
    for entry in os.get_exec_path():
        yield Path(entry).absolute() / name


def _version_folders() -> list[Path]:
    """Where version managers keep their Pythons. HOME may be a fresh one while the running interpreter is pyenv's."""
    beside = Path(sys.base_prefix).parent
    folders = [beside] if beside.name == "versions" else []
    if root := os.environ.get("PYENV_ROOT"):
        folders.append(Path(root) / "versions")
    return [*folders, Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]


def _versions(folder: Path, name: str) -> list[Path]:
    """folder/*/bin/name, the newest release first."""

    def release(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", path.parent.parent.name)]

    return sorted(folder.glob(f"*/bin/{name}"), key=release, reverse=True)


@functools.lru_cache(maxsize=256)
def _release(interpreter: Path, changed: int) -> str:
    """The release "3.11.7" that an interpreter says it is, or "" if it does not run; asked once until it changes."""
    ask = [str(interpreter), "-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, env=_environ(), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


# --- runtimes --------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """TAXIWAY_CACHE, or ~/.cache/taxiway."""
    return Path(os.environ.get("TAXIWAY_CACHE") or Path.home() / ".cache/taxiway").expanduser().absolute()


def runtime_path(choice: Choice) -> Path:
    """Where the runtime's environment stands, or would."""
    return cache_dir() / "runtimes" / choice.key


def ready(choice: Choice) -> Path | None:
    """The runtime's interpreter, or None if it is yet to be built."""
    return _interpreter(runtime_path(choice)) if _record(runtime_path(choice)) else None


def built() -> list[Built]:
    """Every runtime that stands in the cache, by name."""
    folders = sorted((cache_dir() / "runtimes").glob("*/"))
    records = ((folder, _record(folder)) for folder in folders)
    return [Built(r["version"], r["python"], r["release"], _interpreter(folder)) for folder, r in records if r]


def build_runtime(choice: Choice, say: Say | None = None) -> Path:
    """The runtime's interpreter, after building the runtime if nobody has yet. Others who want it wait for one builder.

    Raises Unavailable with uv's last words if it cannot be built, StorageFull if the cache cannot be written.
    """
    folder = runtime_path(choice)

    def build(turn: int) -> dict[str, Any]:
        try:
            _venv(folder, choice, turn)
            lock = str(choice.runtime.lock)
            # What has no wheel is built with the setuptools of the lock, by hash, not with the newest there is.
            install = ["pip", "sync", "--require-hashes", "--build-constraints", lock, "--compile-bytecode", lock]
            _uv([*install, "--python", str(_interpreter(folder))], turn, say)
        except _Failed as failure:
            raise errors.Unavailable(
                f"Runtime {choice.runtime.version} for Python {choice.release} could not be built in {folder}. "
                f"Check the network (or TAXIWAY_WHEELHOUSE, a folder of wheels), then try again.\n{failure}"
            ) from None
        os.sync()  # `complete` must not reach the disk before what it speaks of
        about = {"version": choice.runtime.version, "python": choice.python, "release": choice.release}
        return {**about, "packages": _packages(_site(folder, choice))}

    _once(folder, build, say)
    return _interpreter(folder)


# --- layers ----------------------------------------------------------------------------------------------------------


def ensure(choice: Choice, packages: Sequence[Path], say: Say | None = None) -> Path:
    """The interpreter that sees the runtime and, before it, the packages (source archives or wheels) installed.

    Without packages it is the runtime's own. A layer is known by the bytes and the names of its packages, so the same
    packages never are installed twice. Requirements that the runtime does not meet are installed too; what the runtime
    has keeps its version unless a package itself asks for another.

    Raises FailedPrecondition, with the build's last words, for a package that is at fault; else as `build_runtime`.
    """
    for package in packages:
        if not package.name.endswith(ARCHIVES):
            expected = f"expected the name of a source package or wheel, ending in one of {' '.join(ARCHIVES)}."
            raise errors.FailedPrecondition(f"{package.name} is no Python package: {expected}")
    interpreter = build_runtime(choice, say)
    if not packages:
        return interpreter
    hashes = sorted({(_sha256(package), package.name): package for package in packages}.items())
    names = "".join(f"{digest} {name}\n" for (digest, name), _ in hashes)
    key = hashlib.sha256(f"{choice.key}\n{names}".encode()).hexdigest()[:32]
    folder = cache_dir() / "environments" / key
    _once(folder, lambda turn: _layer(folder, choice, [path for _, path in hashes], turn, say), say)
    return _interpreter(folder)


def _layer(folder: Path, choice: Choice, packages: list[Path], turn: int, say: Say | None) -> dict[str, Any]:
    interpreter = _interpreter(folder)
    names = ", ".join(package.name for package in packages)
    try:
        _venv(folder, choice, turn)
        site = _site(folder, choice)
        below = _site(runtime_path(choice), choice)
        # addsitedir and not a bare path, so that the runtime's own .pth files (setuptools' distutils) count as well.
        (site / "_runtime.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n", encoding="utf-8")
        kept = [_keep(package, folder / "packages" / str(index)) for index, package in enumerate(packages)]
        _tell(say, Progress("build", f"Installing {names}"))
        for isolated, group in _by_isolation(kept, choice, interpreter):
            how = [] if isolated else ["--no-build-isolation"]
            install = ["pip", "install", "--no-deps", "--compile-bytecode", *how, "--python", str(interpreter)]
            _uv([*install, *map(str, group)], turn, say)
    except _Failed as failure:
        raise errors.FailedPrecondition(f"{names} could not be installed.\n{_without(failure, folder)}") from None
    _must_be_importable(site, kept)
    wanted = [line for found in importlib.metadata.distributions(path=[str(site)]) for line in found.requires or []]
    if unmet := _unmet(interpreter, choice, wanted):
        try:
            _require(folder, choice, unmet, turn, say)
        except _Failed as failure:
            unmet_here = f"{names} requires {', '.join(unmet)}, which runtime {choice.runtime.version} does not hold"
            raise errors.FailedPrecondition(
                f"{unmet_here} and which could not be installed.\n{_without(failure, folder)}"
            ) from None
    _settle(site)
    return {"runtime": choice.key, "packages": _packages(site)}


def _keep(package: Path, folder: Path) -> Path:
    """A copy in the layer's own folder: a path that no other bytes ever had, so uv's cache cannot mistake it."""
    folder.mkdir(parents=True)
    return Path(shutil.copy(package, folder / re.sub(r"[^\w.+!-]", "_", package.name)))


def _by_isolation(packages: list[Path], choice: Choice, interpreter: Path) -> list[tuple[bool, list[Path]]]:
    """Packages whose build needs more than the runtime holds apart from the rest, which are built without a network."""
    groups: dict[bool, list[Path]] = {}
    for package in packages:
        tools = _build_requires(package)
        groups.setdefault(bool(tools and _unmet(interpreter, choice, tools)), []).append(package)
    return sorted(groups.items())


def _build_requires(package: Path) -> list[str]:
    """What a source archive's pyproject.toml says it is built with; nothing for a wheel or a bare setup.py."""
    try:
        text = _read_member(package, "pyproject.toml")
        return list(tomllib.loads(text).get("build-system", {}).get("requires", []))
    except (tomllib.TOMLDecodeError, tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, UnicodeDecodeError):
        return []  # uv will say what is wrong with it, in better words


def _read_member(package: Path, name: str) -> str:
    """The text of top/name in an archive, "" if it has none."""
    if package.suffix == ".whl":
        return ""
    if package.suffix == ".zip":
        with zipfile.ZipFile(package) as archive:
            inside = [each for each in archive.namelist() if each.count("/") == 1 and each.endswith(f"/{name}")]
            return archive.read(inside[0]).decode() if inside else ""
    with tarfile.open(package) as tar:
        for member in tar:
            if member.isfile() and member.name.removeprefix("./").count("/") == 1 and member.name.endswith(f"/{name}"):
                return io.TextIOWrapper(tar.extractfile(member) or io.BytesIO(), encoding="utf-8").read()
    return ""


def _must_be_importable(site: Path, packages: list[Path]) -> None:
    """setuptools builds a package of nothing without a word when the folder of the code has no __init__.py."""
    found = list(importlib.metadata.distributions(path=[str(site)]))
    for one in found:
        modules = [Path(str(file)) for file in one.files or [] if file.suffix in (".py", ".so")]
        if any(module.parts[0] != ".." for module in modules):  # `..` leads to bin/, which nobody imports from
            continue
        if one.requires and len(found) > 1:
            continue  # a package that is only a list of requirements, beside the one with the code
        source = _source_of(one, packages)
        raise errors.FailedPrecondition(
            f"{source} holds no module that could be imported. Put an empty __init__.py into the folder of your code "
            f"(trainer/__init__.py), have setup.py say packages=find_packages(), and build the package again."
        )


def _source_of(distribution: importlib.metadata.Distribution, packages: list[Path]) -> str:
    """The file that a distribution was installed from, by PEP 610's direct_url.json."""
    url = urllib.parse.unquote(json.loads(distribution.read_text("direct_url.json") or "{}").get("url", ""))
    here = [package.name for package in packages if url.endswith(str(package))]
    return here[0] if here else str(distribution.metadata["Name"])


# Which of the requirements the environment does not meet; run inside it, where markers mean what they will mean to the
# job. "foo[bar]" is met when foo is there and all that its extra `bar` adds is met.
UNMET = """
import json, sys
from importlib import metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ask = json.load(sys.stdin)
seen = set()

def met(line, extras):
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return False
    if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
        return True
    name = canonicalize_name(wanted.name)
    try:
        have = metadata.distribution(ask["provides"].get(name, name))
    except metadata.PackageNotFoundError:
        return False
    if not wanted.specifier.contains(have.version, prereleases=True):
        return False
    new = [extra for extra in wanted.extras if (name, extra) not in seen]
    seen.update((name, extra) for extra in new)
    return not new or all(met(each, new) for each in have.requires or [] if "extra" in each.partition(";")[2])

print(json.dumps([line for line in ask["lines"] if not met(line, [""])]))
"""


def _unmet(interpreter: Path, choice: Choice, lines: list[str]) -> list[str]:
    if not lines:
        return []
    ask = json.dumps({"lines": lines, "provides": dict(choice.runtime.provides)})
    run = [str(interpreter), "-I", "-c", UNMET]
    answer = subprocess.run(run, input=ask, capture_output=True, text=True, env=_environ(), check=False)
    if answer.returncode:
        raise errors.Internal(f"The requirements could not be checked in {interpreter}.\n{answer.stderr}")
    return [str(line) for line in json.loads(answer.stdout)]


def _require(folder: Path, choice: Choice, unmet: list[str], turn: int, say: Say | None) -> None:
    """Install what is unmet, and what that requires, against the runtime's versions; nothing that is already there.

    uv does not look through a .pth, so it solves with the runtime's packages as constraints and we drop them after.
    """
    have = {**_record_of(runtime_path(choice))["packages"], **_packages(_site(folder, choice))}
    have |= {name: have[other] for name, other in choice.runtime.provides.items() if other in have}
    asked = {_normal(line) for line in unmet}  # a package that asks for another version than the runtime's gets it
    wanted, pins, solved = (folder / name for name in ("unmet.in", "have.txt", "solved.txt"))
    wanted.write_text("".join(f"{line}\n" for line in unmet), encoding="utf-8")
    pins.write_text("".join(f"{n}=={v}\n" for n, v in sorted(have.items()) if n not in asked), encoding="utf-8")
    _tell(say, Progress("download", f"Also required: {', '.join(unmet)}"))
    solve = ["pip", "compile", "--no-header", "--no-annotate", "--constraints", str(pins), "--output-file", str(solved)]
    _uv([*solve, "--python", str(_interpreter(folder)), str(wanted)], turn, say)
    lines = [line for line in solved.read_text(encoding="utf-8").splitlines() if line.strip()]
    new = [line for line in lines if have.get(_normal(line)) != line.partition("==")[2].strip()]
    solved.write_text("".join(f"{line}\n" for line in new), encoding="utf-8")
    install = ["pip", "install", "--no-deps", "--compile-bytecode", "--requirements", str(solved)]
    _uv([*install, "--python", str(_interpreter(folder))], turn, say)


def _normal(requirement: str) -> str:
    """The name that a requirement begins with, as PEP 503 spells it."""
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


# --- a folder that is built once -------------------------------------------------------------------------------------


def _once(folder: Path, build: Callable[[int], dict[str, Any]], say: Say | None) -> None:
    """See that the folder is complete: by `build`, unless it is or another process completes it while we wait."""
    if _record(folder):
        return
    with _cannot_write(), _turn(folder, say) as turn:
        if _record(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            record = build(turn)
            _complete(folder, record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _turn(folder: Path, say: Say | None) -> Iterator[int]:
    """Our turn to write a folder, as the descriptor of its lock, for our children to inherit."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell(say, Progress("wait", f"Waiting for another process that is building {folder.name}"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


@contextlib.contextmanager
def _cannot_write() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise _full(str(error)) from error


def _full(reason: str) -> errors.StorageFull:
    advice = "Free some space, or set TAXIWAY_CACHE to another folder."
    return errors.StorageFull(f"The cache {cache_dir()} cannot be written: {reason}. {advice}")


def _complete(folder: Path, record: dict[str, Any]) -> None:
    """Write the mark that the folder is whole, in one step and to the disk."""
    draft = folder / f"{COMPLETE}.draft"
    with draft.open("w", encoding="utf-8") as out:
        json.dump(record, out)
        out.flush()
        os.fsync(out.fileno())
    draft.rename(folder / COMPLETE)
    where = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(where)
    finally:
        os.close(where)


def _settle(folder: Path) -> None:
    """See every file of a layer on the disk before its mark; for a runtime's thousands os.sync() is quicker."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _record(folder: Path) -> dict[str, Any] | None:
    """What `_complete` wrote; None if it did not, or if the Python that the folder was made from is gone."""
    try:
        return _record_of(folder) if _interpreter(folder).exists() else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / COMPLETE).read_text(encoding="utf-8")))


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def _site(folder: Path, choice: Choice) -> Path:
    return folder / "lib" / f"python{choice.python}" / "site-packages"


def _packages(site: Path) -> dict[str, str]:
    """The distributions of a site-packages folder: normal name -> version."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {_normal(one.metadata["Name"]): one.version for one in found}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _tell(say: Say | None, progress: Progress) -> None:
    if say:
        say(progress)


# --- uv --------------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """uv did not do it; the message is what it said last."""


def _venv(folder: Path, choice: Choice, turn: int) -> None:
    _uv(["venv", "--allow-existing", "--prompt", choice.key, "--python", str(choice.base), str(folder)], turn, None)


def _environ() -> dict[str, str]:
    """A child's environment. Nothing of ours is in it: the setup.py of a stranger's package reads it too."""
    misleading = (
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "UV_PYTHON",
        "UV_CONSTRAINT",
    )
    kept = {k: v for k, v in os.environ.items() if k not in misleading and not k.startswith("TAXIWAY_")}
    ours = {"UV_CACHE_DIR": str(cache_dir() / "uv"), "UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}
    return {**kept, **ours, "NO_COLOR": "1", "TERM": "xterm"}


def _uv(arguments: list[str], turn: int, say: Say | None) -> None:
    """Run uv on a terminal of its own: only there does it tell how far its downloads are. Raises _Failed."""
    wheelhouse = os.environ.get("TAXIWAY_WHEELHOUSE")
    if wheelhouse and not Path(wheelhouse).expanduser().is_dir():
        raise errors.FailedPrecondition(f"TAXIWAY_WHEELHOUSE names {wheelhouse}, which is not a folder here.")
    if wheelhouse and arguments[0] == "pip":
        arguments = [*arguments, "--no-index", "--find-links", str(Path(wheelhouse).expanduser().absolute())]
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 400, 0, 0))
    with io.FileIO(screen, "rb") as output:
        try:
            process = subprocess.Popen(
                [uv.find_uv_bin(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                cwd=cache_dir(),  # not the caller's folder: its pyproject.toml could tell uv things
                env=_environ(),
                pass_fds=[turn],
            )
        finally:
            os.close(terminal)
        try:
            text = "".join(_watch(output, say))
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code and (full := re.search(r"(No space left on device|Disk quota exceeded|Read-only file system)", text)):
        raise _full(full.group())
    if code:
        raise _Failed(_last_words(text))


def _watch(output: io.FileIO, say: Say | None) -> Iterator[str]:
    """What the terminal shows, piece by piece, while `say` hears of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sizes: dict[str, tuple[float, float]] = {}
    while True:
        try:
            piece = output.read(65536)
        except OSError:  # EIO: the last process that held the terminal has ended
            return
        if not piece:
            return
        text = decoder.decode(piece)
        if say and (progress := _progress(text, sizes)):
            say(progress)
        yield text


UNITS = {"B": 1.0 / (1 << 20), "KiB": 1.0 / (1 << 10), "MiB": 1.0, "GiB": float(1 << 10)}
# The name begins after a space, so one that a piece cuts in two is not taken for another.
BAR = re.compile(r"(?<=\s)([\w.-]+) +-+ +([\d.]+) ([KMG]?i?B)/([\d.]+) ([KMG]?i?B)")


def _progress(text: str, sizes: dict[str, tuple[float, float]]) -> Progress | None:
    """The news in a piece of uv's output; `sizes` remembers what every package has and will have, in MiB."""
    for name, have, unit, whole, of in BAR.findall(text):
        sizes[name] = (float(have) * UNITS[unit], float(whole) * UNITS[of])
    if "Installed " in text:
        return Progress("compile", "Compiling, so that imports are fast")
    if "Prepared " in text:
        return Progress("install", "Installing")
    if not BAR.search(text):
        return None
    done, total = (sum(column) for column in zip(*sizes.values(), strict=True))
    largest = max(sizes, key=lambda name: sizes[name][1] - sizes[name][0])
    return Progress("download", f"Downloading {largest}: {done:.0f} of {total:.0f} MiB", min(1.0, done / (total or 1)))


def _last_words(text: str, lines: int = 30) -> str:
    """The end of what a terminal shows after all that was drawn and drawn over, without its control codes."""
    shown = (re.split(r"\x1b\[2K|\r", line.rstrip("\r"))[-1] for line in text.split("\n"))
    plain = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line).rstrip() for line in shown]
    said = [line for line in plain if line and not line.startswith("Using Python ")]
    return "\n".join(said[-lines:])


def _without(failure: _Failed, folder: Path) -> str:
    """uv's words, with the names of files in place of where we keep them."""
    mine = rf"(file://)?{re.escape(str(folder))}/(packages/\d+/)?"
    return re.sub(rf"{mine}|[^\s\"]*/site-packages/", "", str(failure))
