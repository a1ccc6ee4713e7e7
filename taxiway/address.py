"""Where a home's server listens and what its owner holds, as the server wrote it down: `<home>/server.json`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from taxiway import errors, files


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a client on the same machine needs to know. Ports stay the same over restarts while they are free."""

    pid: int
    url: str  # the plain port: http://127.0.0.1:8080
    tls_port: int
    proxy_port: int
    project: str
    project_number: int
    owner: str  # the owner's e-mail
    service_agent: str  # the ML service agent's e-mail: what jobs and versions act as
    access_token: str  # file: an access token of the owner, renewed before it expires
    key: str  # file: a service account's key (owner's rights) with a local token_uri
    boto: str  # file: gsutil's settings
    bundle: str  # file: the system's CAs and the private one
    authority: str = ""  # file: the private CA alone; "" from a server that did not say


def read(home: Path) -> Address:
    """Raises Unavailable if no server ever wrote its address in this home."""
    try:
        return msgspec.json.decode((home / "server.json").read_bytes(), type=Address)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise errors.Unavailable(f"No server has been started in {home} yet. Start one: taxiway up") from error


def write(home: Path, address: Address) -> None:
    """Replace the file in one step: a reader sees the old address or the new one, never half of it."""
    files.replace(home / "server.json", msgspec.json.format(msgspec.json.encode(address), indent=2))
