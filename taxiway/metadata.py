"""The metadata server that a program on a Google machine finds, for one identity: here a job's service account.

    server = Metadata("proj-a", 1234, "job@proj-a.iam.gserviceaccount.com", SCOPES, token=lambda: ("ya29...", 3599))
    port = server.start()
    environ["GCE_METADATA_HOST"] = environ["GCE_METADATA_IP"] = environ["GCE_METADATA_ROOT"] = f"127.0.0.1:{port}"

It hands out tokens to whoever asks, so it listens on loopback only, beside the job that it belongs to. What Google's
does against being tricked, it does too: a header that no browser form can send, no forwarded requests, known hosts.
The rules are those of https://cloud.google.com/compute/docs/metadata and of what google-auth, oauth2client and
TensorFlow ask for.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TypeAlias
from urllib.parse import parse_qs, unquote

from taxiway import errors

HOSTS = ("127.0.0.1", "localhost", "metadata", "metadata.google.internal", "169.254.169.254")
LINK_LOCAL = re.compile(r"169\.254\.169\.[0-9]{1,3}")  # of a replica beside others, in a network of their own
ROOT = "computeMetadata"
ZONE = "local-a"
UNIVERSE = "googleapis.com"

# oauth2client compares the whole value, so no charset may follow.
JSON = "application/json"
TEXT = "application/text"

Tree: TypeAlias = "dict[str, Value]"
Value: TypeAlias = "str | int | list[str] | Tree"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    status: int
    content_type: str
    body: bytes


class Metadata:
    """The server of one identity.

    `token` returns an access token and the whole seconds that it is still good for; it is called in the thread of
    each request and may raise any error of `errors`: Unavailable becomes 503, upon which clients try again.
    """

    def __init__(
        self,
        project_id: str,
        project_number: int,
        email: str,
        scopes: Sequence[str],
        token: Callable[[], tuple[str, int]],
    ) -> None:
        self._token = token
        account: Tree = {"aliases": ["default"], "email": email, "scopes": list(scopes)}
        self._accounts = {"default": account, email: account}
        self._tree: Tree = {
            "instance": {
                "attributes": {},
                "service-accounts": dict(self._accounts),
                "zone": f"projects/{project_number}/zones/{ZONE}",
            },
            "project": {"attributes": {}, "numeric-project-id": project_number, "project-id": project_id},
            "universe": {"universe-domain": UNIVERSE},
        }
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, host: str = "127.0.0.1", port: int = 0, *, listening: socket.socket | None = None) -> int:
        """Listens and returns the port (a free one if `port` is 0), or answers on a socket that listens already.

        Raises FailedPrecondition if it cannot.
        """
        try:
            self._server = _Server((host, port), self.reply, listening)
        except OSError as e:
            raise errors.FailedPrecondition(
                f"The metadata server could not listen on {host}:{port} ({e.strerror or e}). "
                "Choose another port (0 takes a free one)."
            ) from e
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="metadata", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stops listening; a reply that is under way is left to end by itself."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None

    def reply(self, target: str, headers: Message) -> Reply:
        """The answer to GET `target` (a path and perhaps a query)."""
        host = headers.get("Host") or ""
        name = re.sub(r":[0-9]+$", "", host.lower())
        if name not in HOSTS and not LINK_LOCAL.fullmatch(name):
            return _refusal(
                HTTPStatus.FORBIDDEN, f"This metadata server answers for {', '.join(HOSTS)}, not for {host!r}."
            )
        path, _, question = target.partition("?")
        names = [unquote(name) for name in path.split("/") if name]
        if not names:
            return _text(f"{ROOT}/\n")
        if headers.get("X-Forwarded-For") is not None:
            return _refusal(
                HTTPStatus.FORBIDDEN, "A request with X-Forwarded-For was relayed by somebody and is refused."
            )
        if headers.get("Metadata-Flavor") != "Google":
            return _refusal(HTTPStatus.FORBIDDEN, "Missing Metadata-Flavor:Google header.")
        if names[0] != ROOT:
            return _unknown(path)
        if len(names) == 1:
            return _text("v1/\n")
        if names[1] != "v1":
            return _unknown(path)
        query = {key: values[-1].lower() for key, values in parse_qs(question).items()}
        try:
            return self._value(names[2:], path, recursive=query.get("recursive") == "true", alt=query.get("alt", ""))
        except errors.Error as e:
            return _refusal(e.code, str(e))

    def _value(self, names: list[str], path: str, recursive: bool, alt: str) -> Reply:
        match names:
            case ["instance", "service-accounts", account, "token"] if account in self._accounts:
                token, seconds = self._token()
                return _json({"access_token": token, "expires_in": seconds, "token_type": "Bearer"})
            case ["instance", "service-accounts", account, "identity"] if account in self._accounts:
                raise errors.NotFound(
                    "Taxiway gives out no identity tokens; ask for an access token (.../token) instead."
                )
        value: Value = self._tree
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return _unknown(path)
            value = value[name]
        if recursive or alt == "json":
            return _json(_public(value))
        if isinstance(value, dict):
            account_folder = any(value is account for account in self._accounts.values())
            return _text(_listing(value, also=("identity", "token") if account_folder else ()))
        return _text("".join(f"{line}\n" for line in value) if isinstance(value, list) else str(value))


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's: that one asks the name service for this machine's full name before it serves.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], reply: Callable[[str, Message], Reply], listening: socket.socket | None
    ) -> None:
        self.reply = reply
        super().__init__(address, _Handler, bind_and_activate=listening is None)
        if listening is not None:
            self.socket.close()
            self.socket = listening.dup()
            self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        failure = sys.exc_info()[1]
        if not isinstance(failure, ConnectionError):  # the client went away: its own affair
            _log.error("A metadata request failed.", exc_info=failure)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "Metadata Server for VM"
    sys_version = ""
    timeout = 10.0  # seconds for a client to say what it wants
    wbufsize = -1  # one packet a reply

    def do_GET(self) -> None:
        reply = self.server.reply(self.path, self.headers)
        self.close_connection = True  # a client asks once an hour; no thread waits for its next question
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        self.send_header("Metadata-Flavor", "Google")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: these lines would stand among the job's own words."""


def _listing(folder: Tree, also: Sequence[str] = ()) -> str:
    names = [f"{name}/" if isinstance(value, dict) else name for name, value in folder.items()]
    return "".join(f"{name}\n" for name in sorted([*names, *also]))


def _public(value: Value) -> object:
    """A folder as Google spells it in JSON: service-accounts becomes serviceAccounts, an address stays as it is."""
    if not isinstance(value, dict):
        return value
    return {
        name if "@" in name else re.sub(r"-([a-z])", lambda letter: letter[1].upper(), name): _public(inner)
        for name, inner in value.items()
    }


def _text(text: str) -> Reply:
    return Reply(HTTPStatus.OK, TEXT, text.encode())


def _json(value: object) -> Reply:
    return Reply(HTTPStatus.OK, JSON, json.dumps(value).encode())


def _unknown(path: str) -> Reply:
    return _refusal(HTTPStatus.NOT_FOUND, f"Taxiway's metadata server has nothing at {path}.")


def _refusal(status: int, sentence: str) -> Reply:
    return Reply(status, TEXT, f"{sentence}\n".encode())
