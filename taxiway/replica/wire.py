"""The replica's side of the wire: reports on its attempt, reads of its identity's objects; patient while the server is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from taxiway import errors
from taxiway.handles import Order

PATIENCE_S = 24 * 3600.0  # how long a replica waits for a server that went away
PAUSE_S = (0.1, 2.0)  # between tries: the first, the longest


class Wire:
    """Calls that are tried again until the server answers. A refusal is final: the attempt was superseded, or must stop."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.given_up = threading.Event()
        self._http = httpx.Client(base_url=order.url, timeout=60, trust_env=False)
        self._identity: tuple[str, float] = ("", 0.0)
        self._renewing = threading.Lock()

    def work(self) -> dict[str, Any]:
        return self._own("GET", "")

    def heartbeat(self, state: str) -> None:
        self._own("POST", ":heartbeat", {"state": state})

    def say(self, lines: list[dict[str, Any]]) -> None:
        self._own("POST", ":log", {"lines": lines})

    def finish(self, code: int, error: str) -> None:
        self._own("POST", ":finish", {"exitCode": code, "error": error})

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
            answer = self._try("GET", f"/storage/v1/b/{bucket}/o", params=query, identity=True).json()
            names += [item["name"] for item in answer.get("items", [])]
            page = answer.get("nextPageToken", "")
            if not page:
                return names

    def download(self, bucket: str, name: str, to: Path) -> None:
        """One object into one file, streamed. Raises what the server said."""
        to.parent.mkdir(parents=True, exist_ok=True)
        url = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"
        for pause in self._pauses():
            try:
                with (
                    self._http.stream("GET", url, headers=self._bearer(identity=True)) as answer,
                    to.open("wb") as file,
                ):
                    if answer.status_code < 500:
                        if answer.status_code >= 400:
                            answer.read()
                            raise refusal(answer)
                        for part in answer.iter_bytes(1 << 20):
                            file.write(part)
                        return
            except httpx.TransportError:
                pass
            self.given_up.wait(pause)
        raise errors.Unavailable("The server did not come back.")

    def _own(self, method: str, verb: str, body: object = None) -> dict[str, Any]:
        answer = self._try(method, f"/taxiway/v1/attempts/{self.order.attempt}{verb}", json=body)
        return answer.json() if answer.content else {}

    def _try(self, method: str, path: str, *, identity: bool = False, **rest: Any) -> httpx.Response:
        for pause in self._pauses():
            try:
                answer = self._http.request(method, path, headers=self._bearer(identity=identity), **rest)
                if answer.status_code < 400:
                    return answer
                if answer.status_code < 500 and answer.status_code != 429:
                    raise refusal(answer)
            except httpx.TransportError:
                pass
            self.given_up.wait(pause)
        raise errors.Unavailable("The server did not come back.")

    def _pauses(self) -> Iterator[float]:
        deadline = time.monotonic() + PATIENCE_S
        pause, longest = PAUSE_S
        while time.monotonic() < deadline and not self.given_up.is_set():
            yield pause
            pause = min(pause * 1.5, longest)

    def _bearer(self, *, identity: bool) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()[0] if identity else self.order.token}"}


def refusal(answer: httpx.Response) -> errors.Error:
    """The server's error, as one of ours, with its message."""
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:500]
    kinds = {401: errors.Unauthenticated, 403: errors.PermissionDenied, 404: errors.NotFound}
    return kinds.get(answer.status_code, errors.FailedPrecondition)(message)
