"""What `cp` is to do: sources and a destination -> which file or object becomes which.

As with cp and gsutil: into a destination that is a folder a source goes under its own name; otherwise it becomes the
destination itself. A bucket, or an address that ends in a slash or has objects below it, is a folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from taxiway import errors
from taxiway.cli import objects, printing
from taxiway.cli.client import Client
from taxiway.cli.objects import Found


@dataclass(frozen=True)
class Source:
    """A file or an object, or a folder of them; `name` is what it is called below a destination that is a folder."""

    thing: Path | Found
    name: str

    @property
    def is_folder(self) -> bool:
        return self.thing.is_dir() if isinstance(self.thing, Path) else self.thing.row is None

    @property
    def url(self) -> str:
        return f"file://{self.thing}" if isinstance(self.thing, Path) else self.thing.url


@dataclass(frozen=True)
class Copy:
    """One file or object and what it becomes: a local path, or a bucket and a name."""

    source: Path | Found
    target: Path | tuple[str, str]

    @property
    def size(self) -> int:
        return self.source.stat().st_size if isinstance(self.source, Path) else self.source.size

    def __str__(self) -> str:
        source = f"file://{self.source}" if isinstance(self.source, Path) else self.source.url
        target = f"file://{self.target}" if isinstance(self.target, Path) else f"gs://{self.target[0]}/{self.target[1]}"
        return f"{source} to {target}"


def plan(client: Client, urls: Sequence[str], destination: str, recursive: bool) -> list[Copy]:
    """Every copy that is to be made; nothing is copied yet.

    Raises NotFound for a source that matches nothing, InvalidArgument for what cannot be done as asked.
    """
    sources = [source for url in urls for source in _sources(client, url, recursive)]
    several = len(sources) > 1 or any(source.is_folder for source in sources)
    if objects.is_remote(destination):
        copies = list(_to_objects(client, sources, destination))
    elif all(isinstance(source.thing, Path) for source in sources):
        raise errors.InvalidArgument("Both sides are local. One of them must start with gs://; for local files use cp.")
    else:
        copies = list(_to_files(client, sources, destination, several, recursive))
    _no_two_alike(copies)
    return copies


def _sources(client: Client, url: str, recursive: bool) -> list[Source]:
    if objects.is_remote(url):
        bucket, pattern = objects.parse(url)
        found = list(objects.expand(client, bucket, pattern))
        sources = [Source(each, each.name.rstrip("/").rpartition("/")[2] or bucket) for each in found]
        wild = bool(objects.WILD.search(pattern))
    else:
        wild = not os.path.lexists(url) and glob.has_magic(url)
        paths = sorted(glob.glob(url, recursive=True)) if wild else [url] * os.path.lexists(url)  # noqa: PTH207 - absolute
        sources = [Source(Path(path), _own_name(path)) for path in paths]
    if not sources:
        raise errors.NotFound(f"No URLs matched: {url}")
    if recursive or not any(source.is_folder for source in sources):
        return sources
    kept = [source for source in sources if not source.is_folder]
    if not wild and not kept:
        raise errors.InvalidArgument(f"{url} is a folder. Did you mean: taxiway storage cp -r {url} ...?")
    for source in sources:
        if wild and source.is_folder:
            printing.say(f"Omitting folder {source.url} (give -r to copy it).")
    return kept


def _own_name(path: str) -> str:
    """The name that a path has below another folder; "" for . and .., of which only the contents are meant."""
    name = Path(path).name
    return "" if name == ".." else name


def _to_objects(client: Client, sources: list[Source], destination: str) -> Iterator[Copy]:
    bucket, name = objects.parse(destination)
    if objects.WILD.search(name):
        raise errors.InvalidArgument(f"{destination}: a destination cannot have wildcards.")
    is_folder = not name or name.endswith("/") or len(sources) > 1 or objects.exists_below(client, bucket, f"{name}/")
    above = f"{name.rstrip('/')}/" if name else ""
    for source in sources:
        top = f"{above}{source.name}" if is_folder else name
        if not source.is_folder:
            yield Copy(source.thing, (bucket, top))
            continue
        for inner, thing in _below(client, source):
            yield Copy(thing, (bucket, f"{top}/{inner}" if top and not top.endswith("/") else f"{top}{inner}"))


def _to_files(
    client: Client, sources: list[Source], destination: str, several: bool, recursive: bool
) -> Iterator[Copy]:
    root = Path(destination)
    is_folder = root.is_dir() or destination.endswith("/") or len(sources) > 1
    if several and root.exists() and not root.is_dir():
        raise errors.InvalidArgument(f"{destination} is a file. For several sources it must be a folder.")
    if len(sources) > 1 and not recursive and not root.is_dir() and not destination.endswith("/"):
        raise errors.InvalidArgument(
            f"{destination} is no folder. For several sources make one: mkdir -p {destination}"
        )
    for source in sources:
        top = root / source.name if is_folder else root
        below = _below(client, source) if source.is_folder else [("", source.thing)]
        for inner, thing in below:
            target = top / inner
            if is_folder or inner:
                _stay_inside(target, root, thing)
            if inner.endswith("/") or (source.is_folder and not inner):
                target.mkdir(parents=True, exist_ok=True)  # an object that only stands for a folder
            else:
                yield Copy(thing, target)


def _below(client: Client, source: Source) -> Iterator[tuple[str, Path | Found]]:
    """Everything in a folder, with its path from there."""
    if isinstance(source.thing, Found):
        for found in objects.listing(client, source.thing.bucket, source.thing.name):
            yield found.name[len(source.thing.name) :], found
        return
    for folder, folders, files in os.walk(source.thing):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            if path.is_file():
                yield path.relative_to(source.thing).as_posix(), path
            else:
                printing.say(f"Skipping {path}: it is no regular file.")


def _stay_inside(target: Path, root: Path, thing: Path | Found) -> None:
    """An object may be called ../../.bashrc; it must not come to rest there."""
    if not target.resolve().is_relative_to(root.resolve()):
        named = thing.url if isinstance(thing, Found) else thing
        raise errors.InvalidArgument(f"{named}: its name leads out of {root}. Copy it alone, to a file that you name.")


def _no_two_alike(copies: list[Copy]) -> None:
    seen: dict[object, Copy] = {}
    for copy in copies:
        if (first := seen.setdefault(copy.target, copy)) is not copy:
            raise errors.InvalidArgument(f"Two sources would become one: {first}, and {copy}.")
