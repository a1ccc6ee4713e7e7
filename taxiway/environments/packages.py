"""A person's package, as a file and as uv installed it: what it is built with, and whether there is code in it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import io
import json
import re
import shutil
import sys
import tarfile
import urllib.parse
import zipfile
from collections.abc import Sequence
from pathlib import Path

from taxiway import errors

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".whl")  # what uv installs from


def keep(package: Path, folder: Path) -> Path:
    """A copy in the layer's own folder: a path that no other bytes ever had, so uv's cache cannot mistake it."""
    folder.mkdir(parents=True)
    return Path(shutil.copy(package, folder / re.sub(r"[^\w.+!-]", "_", package.name)))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def require_a_kind(package: Path) -> None:
    """Raises FailedPrecondition for a file that by its name is no package."""
    if not package.name.endswith(ARCHIVES):
        expected = f"expected the name of a source package or wheel, ending in one of {' '.join(ARCHIVES)}."
        raise errors.FailedPrecondition(f"{package.name} is no Python package: {expected}")


def build_requires(package: Path) -> list[str]:
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


def must_be_importable(site: Path, packages: Sequence[Path]) -> None:
    """setuptools builds a package of nothing without a word when the folder of the code has no __init__.py."""
    found = list(importlib.metadata.distributions(path=[str(site)]))
    for one in found:
        modules = [Path(str(file)) for file in one.files or [] if file.suffix in (".py", ".so")]
        if any(module.parts[0] != ".." for module in modules):  # `..` leads to bin/, which nobody imports from
            continue
        if one.requires and len(found) > 1:
            continue  # a package that is only a list of requirements, beside the one with the code
        source = _source(one, packages)
        name = source.name if source else one.metadata["Name"]
        raise errors.FailedPrecondition(
            f"{name} holds no module that could be imported. Put an empty __init__.py into the folder of your code "
            f"(trainer/__init__.py), have setup.py say packages=find_packages(), and build the package again."
        )


def uninstalled(site: Path, packages: Sequence[Path]) -> list[Path]:
    """Those of the packages from which nothing in a site-packages folder was installed."""
    sources = {_source(one, packages) for one in importlib.metadata.distributions(path=[str(site)])}
    return [package for package in packages if package not in sources]


def _source(distribution: importlib.metadata.Distribution, packages: Sequence[Path]) -> Path | None:
    """The one of the packages that a distribution was installed from, by PEP 610's direct_url.json.

    They are told apart as `keep` laid them: by the number and the name, whichever way leads to the cache.
    """
    url = urllib.parse.unquote(json.loads(distribution.read_text("direct_url.json") or "{}").get("url", ""))
    return next((package for package in packages if url.endswith("/".join(package.parts[-3:]))), None)
