"""A folder of packages from which runtimes are built without a network: filled where there is one, carried, used.

wheelhouse.fill(Path("wheels"), choice, say=print)      # then TAXIWAY_WHEELHOUSE=wheels, on any machine of this kind
"""

from __future__ import annotations

import re
from pathlib import Path

from taxiway import errors
from taxiway.environments import folders, runtimes, uv
from taxiway.environments.progress import Progress, Say
from taxiway.environments.runtimes import Choice

COLLECTING = re.compile(r"^Collecting ([\w.-]+)", re.MULTILINE)


def fill(folder: Path, choice: Choice, say: Say | None = None) -> list[Path]:
    """Put every file of the runtime's lock, for this machine and its Python, into the folder; those that are new.

    What is there already is checked and kept. Raises FailedPrecondition for a folder that cannot be made, Unavailable
    with the last words if not all could be fetched, StorageFull for a cache that cannot be written.
    """
    lock = choice.runtime.lock
    names = {folders.normal(line) for line in runtimes.pins(lock)}
    found: set[str] = set()

    def read(text: str) -> Progress | None:
        news = [name for name in map(folders.normal, COLLECTING.findall(text)) if name in names]
        found.update(news)
        if not news:
            return None
        return Progress("download", f"Fetching {news[-1]}: {len(found)} of {len(names)}", len(found) / len(names))

    # pip and not uv, which downloads only to install. It is the runtime's Python's, so it takes the files for that one;
    # an old one looks at source packages with the setuptools that is beside it.
    tools = ["--from", "pip", "--with", "setuptools", "--with", "wheel"]
    pip = ["tool", "run", "--python", str(choice.base), *tools, "pip", "--disable-pip-version-check"]
    download = ["download", "--no-deps", "--require-hashes", "--progress-bar", "off", "--requirement", str(lock)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.FailedPrecondition(f"The folder {folder} cannot be made: {error.strerror}.") from error
    with folders.writing(), folders.turn(folders.cache() / "download", say) as ours:
        before = {each.name for each in folder.iterdir()}
        try:
            uv.run([*pip, *download, "--dest", str(folder.absolute())], ours, say, read)
        except uv.Failed as failure:
            raise errors.Unavailable(
                f"The packages of runtime {choice.runtime.version} could not all be fetched into {folder}. "
                f"Check the network, then try again.\n{failure}"
            ) from None
        return sorted(each for each in folder.iterdir() if each.name not in before)
