"""The server as the command line sees it: where it is, whose token is sent, JSON in and out, pages, errors."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

# httpx has a command line of its own, which it can do without, and which would cost every command of ours 0.2 s.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

import httpx  # noqa: E402

from taxiway import address, errors  # noqa: E402
from taxiway.cli import logins  # noqa: E402
from taxiway.cli.logins import Login  # noqa: E402

TIMEOUT = httpx.Timeout(60, connect=5, read=300)  # seconds; a prediction or a rewrite of a large object takes its time

T = TypeVar("T")

ATTEMPTS = 5  # at a change that somebody else was quicker with
EARLY_S = 300  # a login's token is made anew before it expires
NAMED = "It is the one that TAXIWAY_URL names."

_WORDS = {
    1: "CANCELLED",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}  # google.rpc.Code, as an operation's error carries it
_BY_NUMBER = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}  # HTTP's number, for the storage API, whose errors carry no word


class Refused(errors.Error):
    """What the server said no to, in its own words; `code` is HTTP's number, `status` Google's word."""

    def __init__(self, code: int, status: str, message: str) -> None:
        self.code = code
        self.status = status
        super().__init__(message)


def unless_overtaken(attempt: Callable[[], T], what: str) -> T:
    """What an attempt answers that reads, changes and writes; made again if somebody else wrote in between.

    Raises Aborted if that happens every time.
    """
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except Refused as error:  # noqa: PERF203 (an attempt is a request)
            if error.code not in (409, 412):  # what was read has another etag by now
                raise
    raise errors.Aborted(f"{what} is changed by others all the time. Try again.")


class Client:
    """A server, a token and a project. Safe to use from several threads.

    Every method raises Refused for an answer that is an error, Unavailable where no server answers.
    """

    def __init__(self, url: str, token: Path | Login | None, project: str, hint: str, name: str = "") -> None:
        """`token` is a file with an access token, or a login that makes them; `name` is what logins are kept under."""
        self.url = url.rstrip("/")
        self.name = name or self.url
        self.token = token
        self._made, self._until, self._making = "", 0.0, threading.Lock()
        self._project = project
        self._hint = hint
        # On plain HTTP nothing is verified, and reading the system's authorities would cost every command 30 ms.
        verify = ssl.create_default_context() if self.url.startswith("https:") else ssl.SSLContext()
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
        # Not trust_env: a proxy variable of this shell must not come between a command and its own server.
        self.http = httpx.Client(
            base_url=self.url, auth=self._sign, timeout=TIMEOUT, verify=verify, limits=limits, trust_env=False
        )

    @property
    def acting(self) -> str:
        """The address of who is logged in; else of the home's owner, "" with a token of somebody's."""
        if isinstance(self.token, Login):
            return self.token.email
        return owner() if not os.environ.get("TAXIWAY_TOKEN_FILE") else ""

    @property
    def project(self) -> str:
        if not self._project:
            raise errors.InvalidArgument("No project is named. Give --project, or set CLOUDSDK_CORE_PROJECT.")
        return self._project

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        return self.call("GET", path, params=query)

    def post(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
        return self.call("POST", path, json=body, params=query)

    def put(self, path: str, body: Any, **query: Any) -> dict[str, Any]:
        return self.call("PUT", path, json=body, params=query)

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        return self.call("DELETE", path, params=query)

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every page of a list."""
        token = ""
        while True:
            page = self.get(path, **query, **({"pageToken": token} if token else {}))
            yield page
            token = page.get("nextPageToken", "")
            if not token:
                return

    def items(self, path: str, key: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list: what its pages hold under `key`."""
        for page in self.pages(path, **query):
            yield from page.get(key, [])

    def form(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        """Send a form, as nobody, to one of OAuth's endpoints."""
        return self.call("POST", path, data=form, auth=None)

    def access_token(self) -> str:
        """What the requests carry. Raises Unauthenticated for a file that cannot be read, or a login that has ended."""
        if isinstance(self.token, Login):
            return self._fresh(self.token)
        if self.token is None:
            told = f"Nobody is logged in at {self.url}. Log in: taxiway auth login EMAIL"
            raise errors.Unauthenticated(f"{told}; or set TAXIWAY_TOKEN_FILE to a file with an access token.")
        # Read for each request: the server renews the file, and a command may run for days.
        try:
            return self.token.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            told = f"The access token in {self.token} cannot be read ({error})."
            raise errors.Unauthenticated(f"{told} Set TAXIWAY_TOKEN_FILE, or start the server.") from error

    def _fresh(self, login: Login) -> str:
        with self._making:
            if time.monotonic() >= self._until:
                form = {"grant_type": "refresh_token", "refresh_token": login.refresh_token}
                try:
                    answer = self.form("/token", form)
                except Refused as error:
                    raise errors.Unauthenticated(f"{login.email}: {error} taxiway auth login {login.email}") from error
                self._made = answer["access_token"]
                self._until = time.monotonic() + answer["expires_in"] - EARLY_S
            return self._made

    def call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """One request and its JSON answer; {} for an empty one."""
        with self.answering():
            answer = self.http.request(method, path, **request)
        raise_for(answer)
        return parsed(answer)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """A lost or refused connection within is Unavailable, and says how to start a server."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise errors.Unavailable(f"The server at {self.url} took too long to answer ({error}).") from error
        except httpx.ConnectError as error:
            raise errors.Unavailable(f"No server answers at {self.url}. {self._hint}") from error
        except httpx.TransportError as error:
            raise errors.Unavailable(f"The connection to {self.url} was lost ({error}). Try again.") from error

    def _sign(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self.access_token()}"
        return request


def connect(project: str | None = None) -> Client:
    """The server that TAXIWAY_URL names, or the one of the home.

    The token is that of TAXIWAY_TOKEN_FILE, else that of who is logged in there (`taxiway auth login`), else of the
    home's owner.
    The project is the given one, else CLOUDSDK_CORE_PROJECT, else the home's. Raises Unavailable without a server.
    """
    url, token = os.environ.get("TAXIWAY_URL", ""), os.environ.get("TAXIWAY_TOKEN_FILE", "")
    project = project or os.environ.get("CLOUDSDK_CORE_PROJECT", "")
    if url and not url.startswith(("http://", "https://")):
        raise errors.InvalidArgument(f"TAXIWAY_URL must start with http:// or https://. It is {url!r}.")
    name = url.rstrip("/") or str(home())
    held: Path | Login | None = Path(token) if token else next(reversed(logins.read(name)), None)
    if url and held and project:
        return Client(url, held, project, NAMED, name)
    try:
        here = address.read(home())
    except errors.Unavailable:
        if not url:
            raise
        return Client(url, held, project, NAMED, name)
    hint = NAMED if url else f"Start it: {start_command()}"
    return Client(url or here.url, held or Path(here.access_token), project or here.project, hint, name)


def owner() -> str:
    """The address of the home's owner; "" if no server was ever started there."""
    try:
        return address.read(home()).owner
    except errors.Unavailable:
        return ""


def url() -> str:
    """The URL of the server that `connect` would ask. Raises Unavailable without one."""
    return os.environ.get("TAXIWAY_URL") or address.read(home()).url


def key_file(given: Path | None) -> Path:
    """A service account's key: the given one, else GOOGLE_APPLICATION_CREDENTIALS, else the home's owner's."""
    return given or Path(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or address.read(home()).key)


def home() -> Path:
    """TAXIWAY_HOME, or ~/.taxiway."""
    return Path(os.environ.get("TAXIWAY_HOME") or Path.home() / ".taxiway").expanduser().absolute()


def start_command() -> str:
    return f"taxiway up --home {home()}" if os.environ.get("TAXIWAY_HOME") else "taxiway up"


def raise_for(answer: httpx.Response) -> None:
    """Raises Refused for an answer of 400 or more; the body must have been read."""
    if answer.status_code < 400:
        return
    fallback = _BY_NUMBER.get(answer.status_code, "INTERNAL")
    found = error_of(parsed(answer))
    if found is None:
        told = answer.text.strip()[:2000] or f"The server answered {answer.status_code} {answer.reason_phrase}."
        raise Refused(answer.status_code, fallback, told)
    status, message = found
    raise Refused(answer.status_code, status or fallback, message)


def parsed(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; {} if it is empty or no object."""
    try:
        value = answer.json() if answer.content else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def error_of(body: dict[str, Any]) -> tuple[str, str] | None:
    """(Google's word or "", message) of an error body or a failed operation; None where there is no error.

    Both of Google's shapes are read, and the bare {"error": "message"} of a prediction.
    """
    error = body.get("error")
    if not error:
        return None
    if not isinstance(error, dict):
        word = "UNAUTHENTICATED" if error == "invalid_grant" else ""  # OAuth's words
        return word, str(body.get("error_description") or error)
    status = str(error.get("status") or _WORDS.get(error.get("code", 0), ""))
    return status, str(error.get("message") or error)
