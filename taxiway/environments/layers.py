"""A person's packages over a runtime -> an interpreter that sees both; the same packages are installed once."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from taxiway import errors
from taxiway.environments import folders, packages, requirements, runtimes, uv
from taxiway.environments.folders import normal
from taxiway.environments.progress import Progress, Say, tell
from taxiway.environments.runtimes import Choice

BUILD_S = 900.0  # for a person's packages to be built: some are C++, and some never end


def ensure(choice: Choice, archives: Sequence[Path], say: Say | None = None, *, module: str = "") -> Path:
    """The interpreter that sees the runtime and, before it, the packages (source archives or wheels) installed.

    Without packages it is the runtime's own. A layer is known by the bytes and the names of its packages. Requirements
    that the runtime does not meet are installed too; what the runtime has keeps its version unless a package itself
    asks for another.

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
    folders.once(folder, lambda turn, say: _build(folder, choice, [path for _, path in hashes], turn, say), say)
    if module and (folders.record(folder) or {}).get("unread"):
        packages.must_be_readable(folders.interpreter(folder), folders.site(folder, choice.python), module)
    return folders.interpreter(folder)


def holds(interpreter: Path) -> dict[str, str]:
    """The distributions of an interpreter's layer: normal name -> version; none if it is a runtime's own."""
    about = folders.record(interpreter.parent.parent) or {}
    return dict(about["packages"]) if "runtime" in about else {}


def _build(folder: Path, choice: Choice, archives: list[Path], turn: int, say: Say | None) -> dict[str, Any]:
    site = folders.site(folder, choice.python)
    names = ", ".join(archive.name for archive in archives)
    try:
        uv.venv(folder, choice.base, choice.key, turn)
        below = folders.site(runtimes.path(choice), choice.python)
        # addsitedir and not a bare path, so that the runtime's own .pth files (setuptools' distutils) count as well.
        (site / "_runtime.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n", encoding="utf-8")
        kept = [packages.keep(archive, folder / "packages" / str(index)) for index, archive in enumerate(archives)]
        tell(say, Progress("build", f"Installing {names}"))
        _install(folder, choice, kept, turn, say)
    except uv.Failed as failure:
        raise _told(f"{names} could not be installed.", failure, folder) from None
    packages.must_be_importable(site, kept)
    wanted = [line for found in importlib.metadata.distributions(path=[str(site)]) for line in found.requires or []]
    if lacking := requirements.unmet(folders.interpreter(folder), wanted, choice.runtime.provides):
        try:
            _add(folder, choice, lacking, turn, say)
        except uv.Failed as failure:
            what = f"{names} requires {', '.join(lacking)}, which runtime {choice.runtime.version} does not hold"
            raise _told(f"{what} and which could not be installed.", failure, folder) from None
    folders.settle(site)
    return {"runtime": choice.key, "packages": folders.installed(site), "unread": packages.uncompiled(site)}


def _install(folder: Path, choice: Choice, archives: list[Path], turn: int, say: Say | None) -> None:
    """The packages alone. Those whose build needs more than the runtime holds come apart from the rest, which are built
    without a network."""
    interpreter, site = folders.interpreter(folder), folders.site(folder, choice.python)
    groups: dict[bool, list[Path]] = {}
    for archive in archives:
        tools = packages.build_requires(archive)
        isolated = bool(requirements.unmet(interpreter, tools, choice.runtime.provides))
        groups.setdefault(isolated, []).append(archive)
    for isolated, group in sorted(groups.items()):
        how = [] if isolated else ["--no-build-isolation"]
        uv.install(interpreter, ["install", "--no-deps", *how, *map(str, group)], turn, say, seconds=BUILD_S)
        _must_be_there(archive.name for archive in packages.uninstalled(site, group))


def _add(folder: Path, choice: Choice, lacking: list[str], turn: int, say: Say | None) -> None:
    """Install what is lacking, and what that requires, against the runtime's versions; nothing that is already there.

    uv does not look through a .pth, so it solves with the runtime's packages as constraints and we drop them after.
    """
    interpreter, site = folders.interpreter(folder), folders.site(folder, choice.python)
    have = folders.installed(folders.site(runtimes.path(choice), choice.python)) | folders.installed(site)
    have |= {name: have[other] for name, other in choice.runtime.provides.items() if other in have}
    asked = {normal(line) for line in lacking}  # a package that asks for another version than the runtime's gets it
    wanted, pins, solved = (folder / name for name in ("unmet.in", "have.txt", "solved.txt"))
    wanted.write_text("".join(f"{line}\n" for line in lacking), encoding="utf-8")
    pins.write_text("".join(f"{n}=={v}\n" for n, v in sorted(have.items()) if n not in asked), encoding="utf-8")
    tell(say, Progress("download", f"Also required: {', '.join(lacking)}"))
    solve = ["pip", "compile", "--no-header", "--no-annotate", "--constraints", str(pins), "--output-file", str(solved)]
    uv.run([*solve, "--python", str(interpreter), str(wanted)], turn, say)
    lines = [line for line in solved.read_text(encoding="utf-8").splitlines() if line.strip()]
    new = [line for line in lines if have.get(normal(line)) != line.partition("==")[2].strip()]
    solved.write_text("".join(f"{line}\n" for line in new), encoding="utf-8")
    uv.install(interpreter, ["install", "--no-deps", "--requirements", str(solved)], turn, say)
    there = folders.installed(site)
    _must_be_there(line for line in new if normal(line) and normal(line) not in there)


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
