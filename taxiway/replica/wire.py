"""The replica's side of the wire: reports on its attempt, and reads of its identity's objects.

The standard library's HTTP client, and a connection for each call: a replica says little, it must start quickly (a
bigger client costs 0.3 s of imports), and a server that was restarted never meets a connection of the one before.
"""

from __future__ import annotations

import http.client
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from taxiway import errors
from taxiway.handles import Exit, Order, Sample

log = logging.getLogger(__name__)

T = TypeVar("T")
PATIENCE_S = 24 * 3600.0  # how long a replica waits for a server that went away
BROKEN_S = 600.0  # how long it asks one that answers "my own failure" again and again
PAUSE_S = (0.05, 2.0)  # between tries: the first, the longest
ANSWER_S = 60.0
KINDS = {401: errors.Unauthenticated, 403: errors.PermissionDenied, 404: errors.NotFound}


class Wire:
    """Calls that are tried again until the server answers. A refusal is final: the attempt was superseded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.order = Order.read(folder)
        self.given_up = threading.Event()
        self._identity: tuple[str, float] = ("", 0.0)
        self._renewing = threading.Lock()

    def work(self) -> dict[str, Any]:
        return self._own("GET", "")

    def heartbeat(self, state: str) -> None:
        self._own("POST", ":heartbeat", msgspec.json.encode({"state": state}))

    def say(self, lines: list[bytes]) -> None:
        """Lines of output, each a `handles.Said` as JSON."""
        self._own("POST", ":log", b'{"lines":[' + b",".join(lines) + b"]}")

    def sample(self, taken: list[Sample]) -> None:
        self._own("POST", ":sample", msgspec.json.encode({"samples": taken}))

    def measure(self, measured: list[tuple[int, float]]) -> None:
        """(step, value) of a trial's metric."""
        self._own("POST", ":measure", msgspec.json.encode({"measurements": measured}))

    def finish(self, ended: Exit) -> None:
        told = {"exitCode": ended.code, "error": ended.error, "reason": ended.reason}
        self._own("POST", ":finish", msgspec.json.encode(told))

    def token(self) -> tuple[str, int]:
        """An access token of the attempt's identity, and the seconds that it still holds (at least five minutes)."""
        with self._renewing:
            token, until = self._identity
            if until - time.time() < 300:
                answer = self._own("POST", ":token")
                token, until = answer["access_token"], time.time() + answer["expires_in"]
                self._identity = (token, until)
            return token, int(until - time.time())

    def list(self, bucket: str, prefix: str) -> list[str]:
        """The names of all objects below a prefix. Raises what the server said."""
        names: list[str] = []
        page = ""
        while True:
            query = {"prefix": prefix, "fields": "items/name,nextPageToken", **({"pageToken": page} if page else {})}
            answer = self._json("GET", f"/storage/v1/b/{bucket}/o?{urlencode(query)}", self.token()[0])
            names += [item["name"] for item in answer.get("items", [])]
            page = answer.get("nextPageToken", "")
            if not page:
                return names

    def download(self, bucket: str, name: str, to: Path) -> None:
        """One object into one file, streamed. Raises what the server said."""
        to.parent.mkdir(parents=True, exist_ok=True)
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"

        def keep(answer: http.client.HTTPResponse) -> None:
            with to.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
                size = answer.getheader("Content-Length")
                if size is not None and file.tell() != int(size):  # http.client takes a cut-off body for a whole one
                    raise http.client.IncompleteRead(b"")

        self._try("GET", path, self.token()[0], None, keep)

    def _own(self, method: str, verb: str, body: bytes | None = None) -> dict[str, Any]:
        return self._json(method, f"/taxiway/v1/attempts/{self.order.attempt}{verb}", self.order.token, body)

    def _json(self, method: str, path: str, token: str, body: bytes | None = None) -> dict[str, Any]:
        def parse(answer: http.client.HTTPResponse) -> dict[str, Any]:
            return dict(json.loads(answer.read() or b"{}"))

        return self._try(method, path, token, body, parse)

    def _try(
        self,
        method: str,
        path: str,
        token: str,
        body: bytes | None,
        read: Callable[[http.client.HTTPResponse], T],
    ) -> T:
        broken_since: float | None = None
        for pause in self._pauses():
            try:
                with closing(self._connection()) as connection:
                    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                    connection.request(method, path, body, headers)
                    answer = connection.getresponse()
                    if answer.status < 300:
                        return read(answer)
                    raw = answer.read()
                told = refusal(answer.status, raw)
                refused = answer.status < 500 and answer.status != 429
                if refused and self._is_ours(answer.status, raw):
                    raise told
                if refused:
                    self._look_for_the_server()
                if refused or answer.status == 500:
                    broken_since = broken_since or time.monotonic()
                    if time.monotonic() - broken_since > BROKEN_S:
                        raise told
            except (OSError, http.client.HTTPException, ValueError):
                self._look_for_the_server()
            self.given_up.wait(pause)
        raise errors.Unavailable("The server did not come back.")

    def _is_ours(self, status: int, body: bytes) -> bool:
        """Whether our server refuses. Until it is back, on another port perhaps, another program may listen on its own.

        A second server of our kind does not know this attempt's token, and so cannot tell whose it was.
        """
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return False
        return status != 401 or self.order.attempt in message

    def _look_for_the_server(self) -> None:
        """One that came back on another port has written it into the order. Raises FailedPrecondition without order."""
        try:
            self.order = Order.read(self.folder)
        except FileNotFoundError as error:
            raise errors.FailedPrecondition(
                f"The folder {self.folder} was cleared away: the attempt is over."
            ) from error

    def _connection(self) -> http.client.HTTPConnection:
        where = urlsplit(self.order.url)
        return http.client.HTTPConnection(str(where.hostname), where.port, timeout=ANSWER_S)

    def _pauses(self) -> Iterator[float]:
        deadline = time.monotonic() + PATIENCE_S
        pause, longest = PAUSE_S
        while time.monotonic() < deadline and not self.given_up.is_set():
            yield pause
            pause = min(pause * 1.5, longest)


def refusal(status: int, body: bytes) -> errors.Error:
    """The server's error, as one of ours, with its message."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:500].decode("utf-8", "replace")
    return KINDS.get(status, errors.FailedPrecondition)(message)
