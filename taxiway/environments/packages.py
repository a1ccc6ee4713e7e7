"""A person's package, as a file, as a wheel and installed: what it is built with and made of, and whether there is code
in it that its Python can read."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from taxiway import errors
from taxiway.environments import pythons

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

# How a line looks that only a Python 2 can read.
OLD = re.compile(
    r"^\s*(print|exec)\s+[^\s(=.,]|^\s*except\s+[^(:]+,\s*\w+\s*:|^\s*raise\s+\w+\s*,|<>|\b[uU][rR]['\"]|`"
)
SOURCES = Path(__file__).parent.parent / "runners" / "sources.py"
MIB = 1024 * 1024
WHOLE = 8 * 1024 * MIB  # bytes that one wheel may unpack to, as far as half of the disk's room goes
LONGEST = 64 * MIB  # bytes of what a wheel says of itself
TOLD = ("METADATA", "RECORD")  # of a wheel's dist-info: what it is and requires, and its files
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".whl")  # what uv installs from


def keep(package: Path, folder: Path) -> Path:
    """A copy in the layer's own folder: a path that no other bytes ever had, so uv's cache cannot mistake it.

    Source comes to have a name that says nothing: a person may have called the file what he liked, and uv would hold
    him to it.
    """
    folder.mkdir(parents=True)
    kind = next((each for each in ARCHIVES if package.name.endswith(each)), "")
    return Path(shutil.copy(package, folder / (package.name if kind == ".whl" else f"source{kind}")))


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


def unfold(wheel: Path, folder: Path) -> Path:
    """What a wheel says of itself, as a folder that importlib.metadata reads like site-packages; its code stays in it.

    Raises FailedPrecondition for a file that is no wheel, or that unpacks to more than there should be room for: what a
    build made of a package may be larger than the package was.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            said = [each for each in members if re.fullmatch(r"[^/]+\.dist-info/(METADATA|RECORD)", each.filename)]
            if len(said) != len(TOLD) or sum(each.file_size for each in said) > LONGEST:
                raise zipfile.BadZipFile("it should hold one *.dist-info/METADATA and one *.dist-info/RECORD")
            _must_fit(wheel, sum(each.file_size for each in members))
            for each in said:
                archive.extract(each, folder)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error) as error:
        raise errors.FailedPrecondition(f"{wheel.name} could not be installed.\nIt is no wheel: {error}.") from None
    return folder


def _must_fit(wheel: Path, unpacked: int) -> None:
    room = min(WHOLE, shutil.disk_usage(wheel.parent).free // 2)
    if unpacked > room:
        raise errors.FailedPrecondition(
            f"{wheel.name} could not be installed.\nIt unpacks to {unpacked // MIB} MiB, and there is room for "
            f"{room // MIB} MiB. What your code reads belongs on gs://, and not into its package."
        )


def must_be_importable(packages: Mapping[Path, Path]) -> None:
    """setuptools builds a package of nothing without a word when the folder of the code has no __init__.py.

    `packages`: a person's file -> what its wheel says of itself, as `unfold` laid it.
    """
    found = [
        (file, one) for file, said in packages.items() for one in importlib.metadata.distributions(path=[str(said)])
    ]
    for file, one in found:
        modules = [Path(str(each)) for each in one.files or [] if each.suffix in (".py", ".so")]
        if any(not each.parts[0].endswith(".data") or each.parts[1] in ("purelib", "platlib") for each in modules):
            continue
        if one.requires and len(found) > 1:
            continue  # a package that is only a list of requirements, beside the one with the code
        raise errors.FailedPrecondition(
            f"{file.name} holds no module that could be imported. Put an empty __init__.py into the folder of your "
            f"code (trainer/__init__.py), have setup.py say packages=find_packages(), and build the package again."
        )


def uncompiled(site: Path) -> list[str]:
    """The modules of a site-packages folder that its Python could not compile, below the folder."""
    found = (
        module for module in site.rglob("*.py") if not any((module.parent / "__pycache__").glob(f"{module.stem}.*"))
    )
    return sorted(str(module.relative_to(site)) for module in found)


def must_be_readable(interpreter: Path, site: Path, module: str) -> None:
    """Raises FailedPrecondition for the first module among those that `module` will import that is no Python of today:
    with its file, the line, and what the Python says of it. Nothing of the folder is run (-S: nor its .pth files)."""
    ask = [str(interpreter), "-I", "-S", str(SOURCES), str(site), module]
    answer = subprocess.run(ask, capture_output=True, text=True, env=pythons.environ(), check=False)
    if answer.returncode:
        raise errors.Internal(f"The source of {module} could not be looked at.\n{answer.stderr}")
    told = json.loads(answer.stdout)
    if told is None:
        return
    line = str(told["text"]).strip()
    advice = "Mend it and build the package again."
    if OLD.search(str(told["text"])):
        advice = (
            "That is Python 2, which no runtime here has. Rewrite it for Python 3, of which the tool 2to3 does most."
        )
    where = f"{told['file']}, line {told['line']}" + (f": `{line}`" if line else "")
    raise errors.FailedPrecondition(f"Python {told['python']} cannot read {where} ({told['reason']}). {advice}")
