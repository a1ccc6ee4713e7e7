"""A folder of Python code -> a source package that pip and uv install: the same bytes for the same files.

gcloud runs `setup.py sdist` here. We write the archive ourselves, so that nothing of the person's code runs and nothing
but Python is needed to submit a job.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from taxiway import errors

VERSION = "0.0.0"  # of a package without a setup.py, as gcloud's
# Beside the package, what a setup.py may read: small files of these kinds, by their endings.
BESIDE = (".py", ".cfg", ".toml", ".in", ".txt", ".md", ".rst")
BESIDE_BARE = ("README", "LICENSE", "LICENCE", "NOTICE", "VERSION")
BESIDE_MOST = 1024 * 1024  # bytes; larger than this it is data
LEFT_OUT = ("__pycache__", "build", "dist", "node_modules")


@dataclass(frozen=True)
class Package:
    """A source package: its file name, ending in .tar.gz, and its bytes."""

    file: str
    content: bytes


def build(folder: Path) -> Package:
    """The package whose top-level Python package is `folder`.

    Without a setup.py or pyproject.toml beside the folder one is made for it, which holds its data files too. With one,
    the other packages beside the folder and the small text files go along, for it may name them.

    Raises InvalidArgument if `folder` is no Python package.
    """
    folder = _package_folder(folder)
    if _has_setup(folder.parent):
        # No version in the file's name: uv holds a name to its word, and what a setup.py says only running it tells.
        files = {path: (folder.parent / path).read_bytes() for path in _project_files(folder.parent)}
        return Package(f"{folder.name}.tar.gz", _archive(folder.name, files))
    files = {f"{folder.name}/{path}": (folder / path).read_bytes() for path in _tree(folder)}
    files["setup.py"] = _setup(folder.name, sorted(files)).encode()
    files["PKG-INFO"] = f"Metadata-Version: 1.0\nName: {folder.name}\nVersion: {VERSION}\n".encode()
    stem = f"{folder.name}-{VERSION}"
    return Package(f"{stem}.tar.gz", _archive(stem, files))


def check_module(folder: Path, module: str) -> None:
    """Raises InvalidArgument if `module` belongs to the package in `folder` and is not there."""
    folder = folder.resolve()
    head, *rest = module.split(".")
    if head != folder.name:
        return
    place = folder.joinpath(*rest)
    if rest and (place.with_name(f"{place.name}.py").is_file() or (place / "__main__.py").is_file()):
        return
    if not rest and (folder / "__main__.py").is_file():
        return
    found = ", ".join(f"{head}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__")
    raise errors.InvalidArgument(
        f"--module-name: the package in {folder} has no module {module}. It has: {found or 'none'}."
    )


def _package_folder(given: Path) -> Path:
    folder = given.resolve()
    if not folder.is_dir():
        raise errors.InvalidArgument(f"--package-path: {given} is not a folder. Give the one that holds your modules.")
    if not (folder / "__init__.py").is_file():
        told = f"--package-path: {given} is not a Python package: it has no __init__.py."
        inner = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
        hint = f" Did you mean {given / inner[0]}?" if inner else f" Make one: touch {given}/__init__.py"
        raise errors.InvalidArgument(told + hint)
    if not folder.name.isidentifier():
        raise errors.InvalidArgument(
            f"--package-path: {folder.name!r} is not a name that Python can import. Rename it."
        )
    return folder


def _has_setup(parent: Path) -> bool:
    if (parent / "setup.py").is_file():
        return True
    pyproject = parent / "pyproject.toml"  # one that only holds settings of tools is no reason to leave setup.py out
    return pyproject.is_file() and bool(
        re.search(rb"^\[(project|build-system)\]", pyproject.read_bytes(), re.MULTILINE)
    )


def _project_files(parent: Path) -> Iterator[str]:
    for path in sorted(parent.iterdir()):
        if path.name.startswith("."):
            continue
        if (path / "__init__.py").is_file() and not _left_out(path):
            yield from (f"{path.name}/{file}" for file in _tree(path))
        elif path.name == "src" and path.is_dir():
            yield from (f"src/{file}" for file in _tree(path))
        elif path.is_file() and _goes_along(path):
            yield path.name


def _goes_along(path: Path) -> bool:
    kind = path.name.endswith(BESIDE) or path.name.startswith(BESIDE_BARE)
    return kind and path.name != "PKG-INFO" and path.stat().st_size <= BESIDE_MOST


def _tree(folder: Path) -> Iterator[str]:
    """Every file below `folder` that belongs to the code, by its path from there, in order."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not any(
            _left_out(folder.joinpath(*inner.parts[: i + 1])) for i in range(len(inner.parts))
        ):
            yield inner.as_posix()


def _left_out(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix in (".pyc", ".pyo") or path.name.endswith(".egg-info"):
        return True
    if path.name not in LEFT_OUT:
        return False
    return path.is_dir() and not (path / "__init__.py").is_file()  # a package may well be called build


def _setup(name: str, files: list[str]) -> str:
    """A setup.py that names every package and every data file, for any setuptools of any age."""
    packages = sorted(file.rpartition("/")[0].replace("/", ".") for file in files if file.endswith("/__init__.py"))
    data: dict[str, list[str]] = {}
    for file in files:
        owner = _owner(file, packages)
        if not file.endswith(".py") or file.rpartition("/")[0].replace("/", ".") != owner:
            data.setdefault(owner, []).append(file[len(owner) + 1 :])
    return (
        '"""Made by `taxiway jobs submit training`, as there was none."""\n\n'
        "from setuptools import setup\n\n"
        f"setup(name={name!r}, version={VERSION!r}, packages={packages!r}, package_data={data!r})\n"
    )


def _owner(file: str, packages: list[str]) -> str:
    """The innermost package that a file lies in."""
    dotted = file.replace("/", ".")
    return max((package for package in packages if dotted.startswith(f"{package}.")), key=len)


def _archive(stem: str, files: dict[str, bytes]) -> bytes:
    """A .tar.gz of `files` under the folder `stem`, with no time, owner or mode of this machine in it."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(f"{stem}/{path}")
            entry.size, entry.mode = len(files[path]), 0o644
            archive.addfile(entry, io.BytesIO(files[path]))
    return packed.getvalue()
