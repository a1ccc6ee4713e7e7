"""What stands in the cache, what of it nobody has used lately, and its removal.

going = inventory.unused(inventory.standing(), since=time.time() - 30 * 86400)
removed, freed = inventory.prune(going)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from taxiway import errors
from taxiway.environments import folders, uv
from taxiway.environments.progress import Progress, Say, tell

KINDS = {"runtimes": "RUNTIME", "environments": "PACKAGES"}
LEFT = "left by a build that died"


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: a runtime, or a layer of packages over one."""

    kind: str  # RUNTIME, PACKAGES
    folder: Path
    holds: str  # for a person: "2.15 for Python 3.11.7", "trainer 0.1"
    used: float  # when somebody last began to use it
    whole: bool
    packages: frozenset[str]  # the names of the distributions in it


def standing() -> list[Entry]:
    """Everything that was built here, whole or not, the layers before the runtimes below them."""
    found = []
    for place in ("environments", "runtimes"):
        for folder in sorted((folders.cache() / place).glob("*/")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(_entry(KINDS[place], folder))
    return found


def unused(entries: Sequence[Entry], *, since: float) -> list[Entry]:
    """Those that nobody uses or builds now, nor has used since that moment; what is not whole, whenever that was."""
    running = _programs()

    def used(folder: Path) -> bool:
        return folders.in_use(folder) or any(program.startswith(f"{folder}/") for program in running)

    return [each for each in entries if (not each.whole or each.used < since) and not used(each.folder)]


def freed_by(entries: Sequence[Entry]) -> int:
    """How many bytes are in these and in nothing else that stands here: what to hope for from their removal."""
    going = {each.folder for each in entries}
    staying = [each.folder for each in standing() if each.folder not in going]
    return folders.size(*going, *staying) - folders.size(*staying)


def prune(entries: Sequence[Entry], say: Say | None = None) -> tuple[list[Entry], int]:
    """Remove them, and what uv keeps of their packages for none that stays; those removed, and the bytes that it freed.

    One that somebody has begun to use meanwhile stays. uv's cache holds the same files by other links, so without that
    half of it nothing would be freed. Raises StorageFull for a cache that cannot be written, Unavailable if uv did not.
    """
    if not entries:
        return [], 0
    with folders.turn(folders.cache() / "prune", say) as ours:
        before = folders.size(*_everything())
        removed = []
        for each in entries:
            tell(say, Progress("remove", f"Removing {each.holds}"))
            if folders.remove(each.folder):
                removed.append(each)
        stay = {name for each in standing() for name in each.packages}
        gone = {name for each in removed for name in each.packages} - stay
        if gone:
            tell(say, Progress("remove", f"Removing what was downloaded for them: {len(gone)} packages"))
            try:
                uv.run(["cache", "clean", *sorted(gone)], ours, None)
            except uv.Failed as failure:
                raise errors.Unavailable(
                    f"{len(removed)} were removed, but what was downloaded for them stays in "
                    f"{folders.cache() / 'uv'}, a folder that may be removed whole while nothing is built.\n{failure}"
                ) from None
        return removed, before - folders.size(*_everything())


def _programs() -> set[str]:
    """What runs on this machine, by the name it was started with: a person may have started an interpreter of ours."""
    words = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return {each[0] for each in words if each}


def _everything() -> list[Path]:
    return [folders.cache() / name for name in (*KINDS, "uv")]


def _entry(kind: str, folder: Path) -> Entry:
    about = folders.record(folder)
    packages = frozenset((about or {}).get("packages", {}))
    if about is None:
        holds = LEFT
    elif kind == "RUNTIME":
        holds = f"{about['version']} for Python {about['release']}"
    else:
        holds = ", ".join(f"{name} {version}" for name, version in sorted(about["packages"].items()))
    return Entry(kind, folder, holds, folders.last_used(folder), about is not None, packages)
