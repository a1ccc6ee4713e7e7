"""A person's package, looked through before its job is queued: does it unpack safely, and what Python is in it?

Nothing is unpacked to the disk. Memory holds one member's piece, the names of the modules, and a little text, however
large the package is, or says that it is.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import posixpath
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MEMBERS = 50_000  # files and folders in a package
FREE = 128 * MIB  # so much may come of any package, and beyond it
RATIO = 100  # times its own size; what is made of text has 10
WHOLE = 8 * GIB
HEADERS = 2 * MIB  # what is read of a tar for one member, and
LISTED = 4 * MIB  # the list of a zip: larger ones are no package's
NAME = 1024  # characters of a member's path
NAMES = 16 * MIB  # of all folders, each with those that it lies in
SOURCE = 256 * KIB  # a module that is larger is not read
SOURCES = 512 * KIB  # and no more than so much in all
MODULES = 2000  # names that are kept
LINK = 4 * KIB  # the target of a link
SHOWN = 200  # characters of a name that a message repeats
LOOK_S = 5.0  # a package that is too large to be looked through within is let pass
VERIFIED = 16 * MIB  # a zip's members have their checksums verified up to here; a larger one's do not
XZ_MEMORY = 128 * MIB
BINARY = (".so", ".pyd", ".pyc")
TEXTS = ("setup.py", "pyproject.toml", "PKG-INFO")  # at the top of a source package: what it requires

DATA = "Put data into a bucket, and not into the package."
ANEW = "Build the package anew: python setup.py sdist"

DAMAGED = (  # what the readers of archives raise over bytes that are none
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


class Unsafe(Exception):
    """Why a package must not be unpacked; the message goes on after its name."""


class TooLong(Exception):
    """The time is over."""


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(slots=True)
class Contents:
    """What is in a package: the paths of its Python files, and the text of some."""

    whole: bool = True  # else there was not the time, or the room, to see all
    paths: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)  # path -> text, of modules
    texts: dict[str, str] = field(default_factory=dict)  # the same of TEXTS, and of a wheel's METADATA

    def finds(self, module: str) -> str:
        """The path of what `python -m module` would run, in whatever folder it is; "" if there is none."""
        place = module.replace(".", "/")
        ends = (f"/{place}.py", f"/{place}/__main__.py")
        for path in self.paths:
            if f"/{path}".endswith(ends) or (path.endswith(BINARY) and f"/{place}." in f"/{path}"):
                return path
        return ""

    def holds(self, name: str) -> bool:
        """Whether there is a package or a module of a name, in whatever folder."""
        return any(f"/{name}/" in f"/{path}" or f"/{path}".endswith(f"/{name}.py") for path in self.paths)

    def modules(self, top: str) -> list[str]:
        """The modules of a package, by their names."""
        found = (path[f"/{path}".index(f"/{top}/") :] for path in self.paths if f"/{top}/" in f"/{path}")
        plain = (path.removesuffix(".py").replace("/", ".") for path in found if path.endswith(".py"))
        return sorted(name for name in plain if not name.endswith("__init__"))

    def name(self, path: str) -> None:
        """Note a Python file."""
        if path.endswith((".py", *BINARY)):
            if len(self.paths) < MODULES:
                self.paths.append(path)
            else:
                self.whole = False

    def wants(self, path: str, size: int, top: str, kept: int) -> bool:
        """Whether a file's text is one to keep: of the modules of `top`, and of what says what a package requires."""
        if size > SOURCE or kept + size > SOURCES:
            return False
        return _is_text(path) or (
            path.endswith(".py") and (f"/{top}/" in f"/{path}" or f"/{path}".endswith(f"/{top}.py"))
        )

    def keep(self, path: str, source: Readable) -> int:
        """Keep a file's text; how long it is."""
        text = source.read(SOURCE)
        (self.texts if _is_text(path) else self.sources)[path] = text.decode("utf-8", "replace")
        return len(text)


def _is_text(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return "/" not in folder and (name in TEXTS or (name == "METADATA" and folder.endswith(".dist-info")))


def look(name: str, file: IO[bytes], size: int, top: str) -> Contents:
    """What is in a package of so many bytes; text is kept of the modules of its package `top`.

    Raises Unsafe for one that is damaged, is no archive of the kind that its name says, would leave its folder, or is
    made to fill a disk.
    """
    contents, until = Contents(), time.monotonic() + LOOK_S
    zipped = name.endswith((".whl", ".zip"))
    try:
        if zipped:
            _look_into_zip(_Timed(file, until), size, contents, top)
        else:
            _look_into_tar(_Forward(_unzipped(name, _Timed(file, until)), _most(size)), contents, top)
    except TooLong:
        contents.whole = False
    except EOFError as error:
        raise Unsafe("is cut short. Build it and upload it again.") from error
    except DAMAGED as error:
        said = str(error).strip().rstrip(".") or type(error).__name__
        kind = "zip" if zipped else name.rpartition("/")[2].partition(".tar")[2].strip(".") or "gz"
        raise Unsafe(f"is no {kind} archive, or is damaged ({said[:SHOWN]}). Build it and upload it again.") from error
    return contents


class _Timed(io.RawIOBase):
    """A file that is read while there is time, and little of it at once."""

    def __init__(self, file: IO[bytes], until: float) -> None:
        self.file, self.until = file, until

    def read(self, size: int = -1) -> bytes:
        if size > LISTED:
            raise Unsafe(f"has a list of {size:,} bytes, which no package has. {ANEW}")
        if time.monotonic() > self.until:
            raise TooLong
        return self.file.read(LISTED if size < 0 else size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


# --- tar ---


class _Forward:
    """Bytes that are read once, from the first to the last: at most so many in all, and few for each member."""

    def __init__(self, file: Readable, most: int) -> None:
        self.file, self.most, self.position = file, most, 0
        self.left = HEADERS

    def next_member(self) -> None:
        self.left = HEADERS

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise Unsafe(f"has a header of more than {HEADERS // MIB} MiB, which no package has. {ANEW}")
        return self._take(size)

    def seek(self, place: int) -> None:
        if place < self.position:
            raise Unsafe(f"has a member that begins before the end of the one ahead of it. {ANEW}")
        while self.position < place and self._take(min(64 * KIB, place - self.position)):
            pass

    def drain(self) -> None:
        """Read to the end, where the checksum is."""
        while self._take(64 * KIB):
            pass

    def _take(self, size: int) -> bytes:
        data = self.file.read(size)
        self.position += len(data)
        if self.position > self.most:
            raise _swollen(self.position)
        return data

    def tell(self) -> int:
        return self.position


def _unzipped(name: str, file: _Timed) -> Readable:
    if name.endswith((".tar.gz", ".tgz")):
        return gzip.GzipFile(fileobj=file)
    if name.endswith(".tar.bz2"):
        return bz2.BZ2File(file)
    return io.BufferedReader(_Xz(file))


class _Xz(io.RawIOBase):
    """lzma.open, with a limit on the memory that a file may ask for."""

    def __init__(self, file: _Timed) -> None:
        self.file, self.decompressor = file, lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self.decompressor.eof:
            fresh = self.file.read(64 * KIB) if self.decompressor.needs_input else b""
            if self.decompressor.needs_input and not fresh:
                raise EOFError("compressed file ended before the end-of-stream marker was reached")
            data = self.decompressor.decompress(fresh, len(view))
            if data:
                view[: len(data)] = data
                return len(data)
        return 0


def _look_into_tar(file: _Forward, contents: Contents, top: str) -> None:
    tree, kept = Tree(), 0
    with tarfile.open(fileobj=file, mode="r:") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would remember every one,
            archive.pax_headers.clear()  # and what is said of all
            file.next_member()
            path = tree.add(member.name)
            if member.issym() or member.islnk():
                tree.link(member.name, member.linkname, symbolic=member.issym())
            elif member.ischr() or member.isblk() or member.isfifo():
                raise _device(member.name)
            elif member.isfile():
                contents.name(path)
                if contents.wants(path, member.size, top, kept):
                    kept += contents.keep(path, archive.extractfile(member) or io.BytesIO())
    tree.must_hold()
    file.drain()


# --- zip ---


def _look_into_zip(file: _Timed, size: int, contents: Contents, top: str) -> None:
    tree, kept = Tree(), 0
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > _most(size):
            raise _swollen(unpacked)
        if sum(member.compress_size for member in members) > size:
            raise Unsafe("has members that overlap, which is how an archive is made to fill a disk.")
        for member in members:
            path, kind = tree.add(member.filename), stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                with archive.open(member) as opened:
                    tree.link(member.filename, opened.read(LINK).decode("utf-8", "replace"), symbolic=True)
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _device(member.filename)
            elif not member.is_dir():
                contents.name(path)
                if contents.wants(path, member.file_size, top, kept):
                    with archive.open(member) as opened:
                        kept += contents.keep(path, opened)
        tree.must_hold()
        if size <= VERIFIED and (wrong := archive.testzip()):
            raise Unsafe(f"is damaged: {wrong[:SHOWN]!r} is not what its checksum says. Build and upload it again.")


# --- what both must hold ---


class Tree:
    """The members of an archive, as they would lie on the disk."""

    def __init__(self) -> None:
        self.count = self.length = 0
        self.folders: set[str] = set()  # in which members lie
        self.links: set[str] = set()  # the symbolic ones
        self.doubled: set[str] = set()  # what hard links are to

    def add(self, name: str) -> str:
        """A member's path in its plain form. Raises Unsafe if it is outside, or one too many."""
        self.count += 1
        if self.count > MEMBERS:
            raise Unsafe(f"has more than {MEMBERS:,} members. {DATA}")
        if len(name) > NAME:
            raise Unsafe(f"has a member whose path has {len(name):,} characters, {name[:SHOWN]!r}... {ANEW}")
        words = name.replace("\\", "/").split("/")
        if name[:1] in ("/", "\\") or ".." in words or "\0" in name:
            raise Unsafe(f"has {name[:SHOWN]!r}, which lies outside its folder. {ANEW}")
        path = posixpath.normpath("/".join(words))
        self._lies_in(_above(path))
        return path

    def link(self, name: str, target: str, *, symbolic: bool) -> None:
        """A symbolic link counts from its own folder, a hard one from the top. Raises Unsafe if it leads outside."""
        if len(target) > NAME:
            raise Unsafe(f"has the link {name[:SHOWN]!r} to a path of {len(target):,} characters. {ANEW}")
        path = posixpath.normpath(name)
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(path), target) if symbolic else target)
        words = itertools.dropwhile(lambda word: word in ("..", ".", ""), target.split("/"))
        if target.startswith("/") or "\0" in target or whole.split("/")[0] == ".." or ".." in words:
            # Also a/../b: a may be a link itself, and then b is not where it seems to be.
            raise Unsafe(
                f"has the link {name[:SHOWN]!r} to {target[:SHOWN]!r}, which may lead outside its folder. {ANEW}"
            )
        if symbolic:
            self.links.add(path)
        else:
            self.doubled.add(whole)
            self._lies_in(_above(whole))

    def _lies_in(self, folders: Iterator[str]) -> None:
        for folder in folders:
            if folder in self.folders:
                return  # and so are those above it
            self.folders.add(folder)
            self.length += len(folder)
            if self.length > NAMES:
                raise Unsafe(f"has too many folders in one another. {ANEW}")

    def must_hold(self) -> None:
        """Nothing lies beneath a link, where it would be written to wherever that leads; and there is something."""
        if not self.count:
            raise Unsafe(f"is an empty archive: there is nothing in it. {ANEW}")
        if through := self.links & (self.folders | self.doubled):
            raise Unsafe(f"has members beneath {min(through)[:SHOWN]!r}, which is a link. {ANEW}")


def _above(path: str) -> Iterator[str]:
    """Every folder that a path lies in."""
    while path := posixpath.dirname(path):
        yield path


def _most(size: int) -> int:
    """How much may come of a package of so many bytes."""
    return min(WHOLE, max(FREE, RATIO * size))


def _swollen(unpacked: int) -> Unsafe:
    return Unsafe(
        f"unpacks to {unpacked // MIB} MiB or more, which is over {FREE // MIB} MiB and over {RATIO} times its own "
        f"size, or over {WHOLE // GIB} GiB. {DATA}"
    )


def _device(name: str) -> Unsafe:
    return Unsafe(f"has {name[:SHOWN]!r}, which is a device or a pipe; a package has files and folders. {ANEW}")
