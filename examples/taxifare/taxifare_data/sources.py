"""Where rides come from: files of this machine, and any URL that fsspec knows, such as https:, s3: and gs:."""

from __future__ import annotations

import functools
import glob
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from taxifare_data import files

try:
    import fsspec
except ImportError:
    fsspec = None

Item = TypeVar("Item")


def guarded(read: Callable[[str], Iterator[Item]]) -> Callable[[str], Iterator[Item]]:
    """A reader of a source whose errors, from whatever file system, become a BadInput that names the source."""

    @functools.wraps(read)
    def safely(source: str) -> Iterator[Item]:
        try:
            yield from read(source)
        except files.BadInput:
            raise
        except Exception as error:
            raise files.BadInput(f"cannot read {source}: {type(error).__name__}: {error}") from error

    return safely


@guarded
def lines(source: str) -> Iterator[str]:
    """Every line of text of every file that the source names."""
    for _, stream in streams(source):
        yield from text(stream)


def streams(source: str) -> Iterator[tuple[str, io.BufferedReader]]:
    """Yields (name, bytes) of each file that a path or URL names, which may hold *; unpacked if it ends in .gz.

    Raises BadInput if there is none; what goes wrong while bytes are read is whatever the file system raises.
    """
    found = False
    for name, stream in remote(source) if "://" in source else local(source):
        found = True
        with io.BufferedReader(stream) as buffered:
            yield name, buffered
    if not found:
        raise files.BadInput(f"no file matches {source}: check the path")


def local(pattern: str) -> Iterator[tuple[str, BinaryIO]]:
    for path in [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern)):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as stream:
            yield path, stream


def remote(url: str) -> Iterator[tuple[str, BinaryIO]]:
    if fsspec is None:
        raise files.BadInput(f"cannot open {url}: a URL needs fsspec: pip install fsspec pyarrow")
    for file in fsspec.open_files(url, "rb", compression="infer", expand="*" in url):
        with file as stream:
            yield file.full_name, stream


def text(stream: io.BufferedReader) -> Iterator[str]:
    """The lines of a file, whatever bytes stray into them."""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as wrapped:
        yield from wrapped
