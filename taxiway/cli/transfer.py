"""Bytes up, down and across: checked by CRC32C, resumed where a connection was lost, several at once."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from taxiway import errors
from taxiway.cli import objects, printing
from taxiway.cli.client import Client, parsed, raise_for
from taxiway.cli.objects import Found

SMALL = 8 * 1024 * 1024  # bytes; up to here an upload is one request
PIECE = 1024 * 1024
AT_ONCE = 8
TRIES = 6  # of a resumable upload or a download, each after a longer pause: 6 seconds in all
PART = ".taxiway-part"  # what a download is called until it is whole

Told = Callable[[int], None]


def in_parallel(work: Iterable[Callable[[], None]]) -> None:
    """Do all of it, several at once; the first failure ends it, and what has not begun is left undone."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: set[Future[None]] = {pool.submit(each) for each in work}
        try:
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for future in ended:
            future.result()


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Told]:
    """A bar with bytes, rate and time left on a terminal; nothing elsewhere. Give it the bytes as they move."""
    if not printing.on_terminal():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        lock = threading.Lock()

        def told(count: int) -> None:
            with lock:
                bar.advance(task, count)

        yield told


def upload(client: Client, source: Path, bucket: str, name: str, told: Told) -> None:
    """Write a file as an object; the server refuses it if the bytes that arrive are not those of the file."""
    with source.open("rb") as file:
        if source.stat().st_size <= SMALL:
            content = file.read()
            upload_bytes(client, content, bucket, name)
            told(len(content))
        else:
            _upload_resumably(client, file, bucket, name, told)


def upload_bytes(client: Client, content: bytes, bucket: str, name: str) -> None:
    """Write an object in one request."""
    about = _about(name, google_crc32c.value(content))
    boundary = "taxiway-" + base64.b16encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
    while boundary.encode() in content:
        boundary += "-"
    head = f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(about)}\r\n"
    part = f"--{boundary}\r\nContent-Type: {about['contentType']}\r\n\r\n"
    body = b"".join([head.encode(), part.encode(), content, f"\r\n--{boundary}--\r\n".encode()])
    kind = {"Content-Type": f"multipart/related; boundary={boundary}"}
    query = {"uploadType": "multipart", "name": name}
    client.call("POST", f"/upload{objects.path_of(bucket)}/o", params=query, content=body, headers=kind)


def download(client: Client, found: Found, target: Path, told: Told) -> None:
    """Read an object into a file, which appears only when it is whole and its CRC32C is right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    try:
        with part.open("wb") as file:
            for piece in read(client, found):
                file.write(piece)
                told(len(piece))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read(client: Client, found: Found) -> Iterator[bytes]:
    """An object's bytes, of the generation that was listed; a lost connection is taken up where it broke.

    Raises Aborted at the end if the bytes are not those that the server says it holds.
    """
    row = found.row or {}
    query = {"alt": "media", **({"generation": row["generation"]} if row.get("generation") else {})}
    checksum = at = 0
    for pause in _pauses():
        if row and at >= found.size > 0:
            break
        asked = {"Range": f"bytes={at}-"} if at else {}
        try:
            request = client.http.build_request(
                "GET", objects.path_of(found.bucket, found.name), params=query, headers=asked
            )
            with _streaming(client, request) as answer:
                for piece in answer.iter_raw(PIECE):
                    checksum = google_crc32c.extend(checksum, piece)
                    at += len(piece)
                    yield piece
            break
        except httpx.TransportError as error:
            if pause is None:
                raise errors.Unavailable(f"{found.url}: the connection was lost ({error}).") from error
            time.sleep(pause)
    if row.get("crc32c") and _base64(checksum) != row["crc32c"]:
        raise errors.Aborted(f"{found.url}: the bytes that arrived are not those of the object (CRC32C). Try again.")


def rewrite(client: Client, found: Found, bucket: str, name: str) -> None:
    """Copy an object within the server; no byte comes here."""
    path = f"{objects.path_of(found.bucket, found.name)}/rewriteTo{objects.path_of(bucket, name)[len('/storage/v1') :]}"
    token: dict[str, str] = {}
    while not (answer := client.post(path, {}, **token)).get("done"):
        token = {"rewriteToken": answer["rewriteToken"]}


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The rest of an open file, a MiB at a time."""
    while piece := file.read(PIECE):
        yield piece


@contextlib.contextmanager
def _streaming(client: Client, request: httpx.Request) -> Iterator[httpx.Response]:
    answer = client.http.send(request, stream=True)
    try:
        if answer.status_code >= 400:
            answer.read()
            raise_for(answer)
        yield answer
    finally:
        answer.close()


def _upload_resumably(client: Client, file: BinaryIO, bucket: str, name: str, told: Told) -> None:
    checksum = size = 0
    for piece in pieces(file):
        checksum = google_crc32c.extend(checksum, piece)
        size += len(piece)
    about = _about(name, checksum)
    session = _session(client, bucket, about, size)
    at = 0
    for pause in _pauses():
        try:
            if at < 0:
                at = _received(client, session, size)
            if at >= size or _send(client, session, file, at, size, told):
                return
        except (httpx.TransportError, errors.Unavailable) as error:
            if pause is None:
                raise errors.Unavailable(f"gs://{bucket}/{name}: the connection was lost ({error}).") from error
        time.sleep(pause or 0)
        at = -1
    raise errors.Unavailable(f"gs://{bucket}/{name}: the server did not take the upload. Try again.")


def _session(client: Client, bucket: str, about: dict[str, Any], size: int) -> str:
    """The URL that the bytes go to."""
    kind = {"X-Upload-Content-Type": about["contentType"], "X-Upload-Content-Length": str(size)}
    with client.answering():
        query = {"uploadType": "resumable", "name": about["name"]}
        answer = client.http.post(f"/upload{objects.path_of(bucket)}/o", params=query, json=about, headers=kind)
    raise_for(answer)
    return answer.headers["Location"]


def _received(client: Client, session: str, size: int) -> int:
    """How many bytes of an upload the server holds; all of them once it is complete."""
    answer = client.http.put(session, headers={"Content-Range": f"bytes */{size}"})
    if answer.status_code != 308:
        raise_for(answer)
        return size
    return int(answer.headers.get("Range", "bytes=0--1").rpartition("-")[2]) + 1 if "Range" in answer.headers else 0


def _send(client: Client, session: str, file: BinaryIO, at: int, size: int, told: Told) -> bool:
    """Send the rest of a file from `at`; False if the server wants to be asked how much it holds."""
    file.seek(at)

    def rest() -> Iterator[bytes]:
        for piece in pieces(file):
            yield piece
            told(len(piece))

    ranges = {"Content-Range": f"bytes {at}-{size - 1}/{size}", "Content-Length": str(size - at)}
    answer = client.http.put(session, content=rest(), headers=ranges)
    if answer.status_code == 308 or answer.status_code >= 500:
        return False
    raise_for(answer)
    return bool(parsed(answer))


def _pauses() -> Iterator[float | None]:
    """Seconds to wait after each try; None after the last."""
    yield from (0.2 * 2**turn for turn in range(TRIES - 1))
    yield None


def _about(name: str, checksum: int) -> dict[str, Any]:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"name": name, "contentType": kind, "crc32c": _base64(checksum)}


def _base64(checksum: int) -> str:
    """A CRC32C as Cloud Storage writes it."""
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()
