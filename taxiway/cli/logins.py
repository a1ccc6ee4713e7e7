"""Who is logged in on this machine, at each server: refresh tokens in the person's own configuration, mode 0600."""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
from pathlib import Path

import msgspec

from taxiway import errors, files


class Login(msgspec.Struct, frozen=True, kw_only=True):
    email: str
    refresh_token: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The logins at one server, the latest last: that one is whom the commands act as."""

    server: str  # a home's folder, or a URL
    logins: tuple[Login, ...] = ()


def read(server: str) -> tuple[Login, ...]:
    """Raises FailedPrecondition if what is kept cannot be read."""
    path = _path(server)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept).logins
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        raise errors.FailedPrecondition(f"The logins in {path} cannot be read ({error}). Remove the file.") from error


def keep(server: str, login: Login) -> None:
    """Add a login, in the place of an earlier one of the same person."""
    _write(server, (*_others(server, login.email), login))


def drop(server: str, email: str) -> None:
    _write(server, _others(server, email))


def ask_password(prompt: str) -> str:
    """A password from the person at the terminal, without an echo; else the first line of what is piped in."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{prompt}: ")
    return sys.stdin.readline().rstrip("\r\n")


def new_password() -> str:
    """A password that is to be set; a person types it twice. Raises InvalidArgument if the two differ."""
    told = ask_password("New password")
    if sys.stdin.isatty() and ask_password("The same again") != told:
        raise errors.InvalidArgument("The two passwords differ. Nothing was changed.")
    return told


def _others(server: str, email: str) -> tuple[Login, ...]:
    return tuple(each for each in read(server) if each.email != email)


def _write(server: str, logins: tuple[Login, ...]) -> None:
    path = _path(server)
    if not logins:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(path, msgspec.json.format(msgspec.json.encode(Kept(server=server, logins=logins)), indent=2))


def _path(server: str) -> Path:
    """XDG_CONFIG_HOME or ~/.config; a server is told apart by its folder or URL, whose hash is the file's name."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "taxiway" / "logins" / f"{hashlib.sha256(server.encode()).hexdigest()[:24]}.json"
