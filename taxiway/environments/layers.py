"""A person's packages over a runtime -> an interpreter that sees both; the same packages are installed once.

Their own code, a setup.py and what it calls, runs only while wheels are made of them, behind the caller's fence, where
it may write beside its wheel and nowhere else. The wheels are then installed into an environment in which none of their
code has been, which runs nothing of them; nobody here asks the finished environment's interpreter anything, because it
would run their .pth files first. What is required and comes as source alone goes into a folder of its own, behind the
fence, of which only the names are read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from taxiway import errors, files
from taxiway.environments import folders, indexes, packages, pythons, requirements, runtimes, uv
from taxiway.environments.fences import Fence, Within
from taxiway.environments.folders import normal
from taxiway.environments.progress import Progress, Say, tell
from taxiway.environments.runtimes import Choice

BUILD_S = 900.0  # for a person's packages to be built: some are C++, and some never end
SOURCE = "source"  # below a layer: what comes as source alone
PIN = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,-]*\])? ?(==| @ )\S.*", re.ASCII)
LARGEST = 1024 * 1024  # bytes of pins
# What uv says of a requirement that it may not build and of which there is no wheel.
SOURCE_ONLY = re.compile(r"no usable wheels|[Bb]uilding source distributions? .*disabled|has no wheels")


def ensure(
    choice: Choice, archives: Sequence[Path], say: Say | None = None, *, module: str = "", fence: Fence | None = None
) -> Path:
    """The interpreter that sees the runtime and, before it, the packages (source archives or wheels) installed.

    Without packages it is the runtime's own. A layer is known by the bytes and the names of its packages. Requirements
    that the runtime does not meet are installed too; what the runtime has keeps its version unless a package itself
    asks for another. With a `fence` the packages may be a stranger's.

    Raises FailedPrecondition, with the build's last words, for a package that is at fault, also for source that the
    runtime's Python cannot read among what the `module` to run imports; Unavailable for a network that is at fault;
    else as `runtimes.build`.
    """
    for archive in archives:
        packages.require_a_kind(archive)
    interpreter = runtimes.build(choice, say)
    if not archives:
        return interpreter
    hashes = sorted({(packages.sha256(archive), archive.name): archive for archive in archives}.items())
    names = "".join(f"{digest} {name}\n" for (digest, name), _ in hashes)
    key = hashlib.sha256(f"{choice.key}\n{names}".encode()).hexdigest()[:32]
    folder = folders.cache() / "environments" / key
    folders.once(folder, lambda turn, say: _build(folder, choice, [path for _, path in hashes], turn, say, fence), say)
    if module and (folders.record(folder) or {}).get("unread"):
        packages.must_be_readable(choice.base, folders.site(folder, choice.python), module)
    return folders.interpreter(folder)


def holds(interpreter: Path) -> dict[str, str]:
    """The distributions of an interpreter's layer: normal name -> version; none if it is a runtime's own."""
    about = folders.record(interpreter.parent.parent) or {}
    return dict(about["packages"]) if "runtime" in about else {}


def _build(
    folder: Path, choice: Choice, archives: list[Path], turn: int, say: Say | None, fence: Fence | None
) -> dict[str, Any]:
    interpreter, site = folders.interpreter(folder), folders.site(folder, choice.python)
    names = ", ".join(archive.name for archive in archives)
    made: dict[Path, Path] = {}  # archive -> its wheel
    try:
        uv.venv(folder, choice.base, choice.key, turn)
        within = Within(fence, [folder, *pythons.behind(choice.base), runtimes.path(choice)], folder) if fence else None
        below = folders.site(runtimes.path(choice), choice.python)
        # addsitedir and not a bare path, so that the runtime's own .pth files (setuptools' distutils) count as well.
        _write(site / "_runtime.pth", [f"import site; site.addsitedir({str(below)!r})"])
        tell(say, Progress("build", f"Installing {names}"))
        for index, archive in enumerate(archives):
            place = folder / "packages" / str(index)
            made[archive] = _wheel(choice, interpreter, archive, place, turn, say, within and within.writing(place))
    except uv.Failed as failure:
        raise _told(f"{names} could not be installed.", failure, folder) from None
    said = {archive: packages.unfold(wheel, folder / "said" / wheel.parent.name) for archive, wheel in made.items()}
    packages.must_be_importable(said)
    beside = list(said.values())
    wanted = [
        line for one in importlib.metadata.distributions(path=list(map(str, beside))) for line in one.requires or []
    ]
    lacking = requirements.unmet(interpreter, wanted, choice.runtime.provides, beside=beside)
    alone = folder / SOURCE
    try:
        pins, source = _solved(folder, choice, lacking, beside, turn, say, within and within.writing(alone))
        if source:
            _put_source(folder, choice, pins, turn, say, within and within.writing(alone))
        _put(folder, choice, list(made.values()), [] if source else pins, turn, say)
    except uv.Failed as failure:
        what = f"{names} requires {', '.join(lacking)}, which runtime {choice.runtime.version} does not hold"
        sentence = f"{what} and which could not be installed." if lacking else f"{names} could not be installed."
        raise _told(sentence, failure, folder) from None
    there = {**folders.named(alone / "site"), **folders.installed(site)}
    _must_be_there(archive.name for archive, wheel in made.items() if normal(wheel.name.split("-")[0]) not in there)
    _must_be_there(line for line in pins if normal(line) and normal(line) not in there)
    for leftover in ("packages", "said", f"{SOURCE}/uv"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    folders.settle(folder)
    return {"runtime": choice.key, "packages": there, "unread": packages.uncompiled(site)}


def _wheel(
    choice: Choice, interpreter: Path, archive: Path, place: Path, turn: int, say: Say | None, within: Within | None
) -> Path:
    """A package as a wheel below `place`. It is built with what the runtime holds and without a network, unless it says
    that it needs more."""
    kept = packages.keep(archive, place)
    if kept.suffix == ".whl":
        return kept
    tools = packages.build_requires(kept)
    alone = bool(requirements.unmet(interpreter, tools, choice.runtime.provides))
    how = [] if alone else ["--no-build-isolation"]
    if within is not None:
        within = within.reaching(indexes.hosts() if alone else ())
    build = ["build", "--wheel", *how, "--python", str(interpreter), "--out-dir", str(place), str(kept)]
    try:
        uv.run(build, turn, say, seconds=BUILD_S, within=within)
    except uv.Failed as failure:
        raise type(failure)(str(failure).replace(kept.name, archive.name)) from None
    wheels = [each for each in place.glob("*.whl") if each.is_file() and not each.is_symlink()]
    _must_be_there([] if wheels else [archive.name])
    return wheels[0]


def _solved(
    folder: Path,
    choice: Choice,
    lacking: list[str],
    beside: list[Path],
    turn: int,
    say: Say | None,
    within: Within | None,
) -> tuple[list[str], bool]:
    """What is lacking, and what that requires, as pins that fit the runtime's versions, without what is there already;
    and whether some of it comes as source, whose code must be run.

    uv does not look through a .pth, so it solves with the runtime's packages as constraints and we drop them after.
    """
    if not lacking:
        return [], False
    have = folders.installed(folders.site(runtimes.path(choice), choice.python))
    have |= {name: version for each in beside for name, version in folders.installed(each).items()}
    have |= {name: have[other] for name, other in choice.runtime.provides.items() if other in have}
    asked = {normal(line) for line in lacking}  # a package that asks for another version than the runtime's gets it
    wanted, pins, solved = (folder / name for name in ("unmet.in", "have.txt", f"{SOURCE}/solved.txt"))
    solved.parent.mkdir()
    _write(wanted, lacking)
    _write(pins, [f"{name}=={version}" for name, version in sorted(have.items()) if name not in asked])
    tell(say, Progress("download", f"Also required: {', '.join(lacking)}"))
    solve = ["pip", "compile", "--no-header", "--no-annotate", "--constraints", str(pins), "--output-file", str(solved)]
    solve += ["--python", str(choice.base), str(wanted)]
    source = not all(map(indexes.NAMED.fullmatch, lacking))  # a file or a URL: nothing to be looked at from here
    if not source:
        try:
            uv.run([*solve, "--no-build"], turn, say)
        except uv.Failed as failure:
            if not SOURCE_ONLY.search(str(failure)):
                raise
            source = True
    if source:
        uv.run(solve, turn, say, seconds=BUILD_S, within=within and within.reaching(indexes.hosts()))
    lines = [line for line in files.strangers(solved, LARGEST).decode().splitlines() if line.strip()]
    if not all(map(PIN.fullmatch, lines)):  # behind the fence anybody could have written there
        raise uv.Failed("What is required could not be solved.")
    return [line for line in lines if have.get(normal(line)) != line.partition("==")[2].strip()], source


def _put_source(
    folder: Path, choice: Choice, pins: list[str], turn: int, say: Say | None, within: Within | None
) -> None:
    """Build and install the pins into a folder of their own, which the environment sees between itself and the runtime:
    .pth files count in the order of their names."""
    target = folder / SOURCE / "site"
    _write(folder / "pins.txt", pins)
    put = ["pip", "install", "--no-deps", "--requirements", str(folder / "pins.txt"), "--target", str(target)]
    put += ["--python", str(choice.base), *([] if choice.python == "3.6" else ["--compile-bytecode"])]
    uv.run(put, turn, say, seconds=BUILD_S, within=within and within.reaching(indexes.hosts()))
    _write(folders.site(folder, choice.python) / "_built.pth", [f"import site; site.addsitedir({str(target)!r})"])


def _put(folder: Path, choice: Choice, wheels: list[Path], pins: list[str], turn: int, say: Say | None) -> None:
    """Install the wheels and the pins into the environment, and compile all modules there."""
    _write(folder / "pins.txt", pins)
    put = ["pip", "install", "--no-deps", "--no-build", *map(str, wheels), "--requirements", str(folder / "pins.txt")]
    uv.run([*put, "--python", str(folders.interpreter(folder))], turn, say)
    uv.compiled(choice.base, folders.site(folder, choice.python), turn)


def _write(file: Path, lines: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _must_be_there(missing: Iterable[str]) -> None:
    """uv's word is not enough: one that was killed may look like one that was done."""
    if names := ", ".join(missing):
        raise errors.Unavailable(f"{names} was not installed, although uv ended without an error. Try again.")


def _told(sentence: str, failure: uv.Failed, folder: Path) -> errors.Error:
    words = uv.without(failure, folder)
    if isinstance(failure, uv.Unreachable):
        return errors.Unavailable(
            f"{sentence} Check the network (or TAXIWAY_WHEELHOUSE, a folder of wheels), then try again.\n{words}"
        )
    return errors.FailedPrecondition(f"{sentence}\n{words}")
