"""Which names mean this server: what a request's Host header must say before anything is looked at.

A page of somebody else's, open in a browser on this machine, can have its own name resolve to 127.0.0.1 and then send
requests here (DNS rebinding). The browser takes them for its own site's, but they still carry that site's name.
"""

from __future__ import annotations

import ipaddress
import socket

GOOGLE = ".googleapis.com"
OURS = frozenset({"localhost", "accounts.google.com"})
KNOWN = 1000  # names that are remembered


class Hosts:
    """The names of one server. Asking again for a name that is one costs one look into a dictionary."""

    def __init__(self, host: str, more: str = "") -> None:
        """`host` is what the server listens on; `more` is the setting TAXIWAY_HOSTS."""
        told = {each.strip().lower() for each in more.split(",")} - {""}
        self._names = OURS | {host.lower()} | {each for each in told if not each.startswith(("*.", "."))}
        self._below = (GOOGLE, *(each.lstrip("*") for each in told if each.startswith(("*.", "."))))
        if not _is_loopback(host):
            self._names |= {socket.gethostname().lower()}
        self._known: dict[bytes, str] = {}

    def named(self, header: bytes, here: str) -> str | None:
        """The name in a Host header, lower case and without its port, if it means this server.

        `here` is the address that the connection came in on: a client that was told an address of this machine says
        that. A header that says nothing is "": no browser sends that.
        """
        known = self._known.get(header)
        if known is not None:
            return known
        name = name_in(header.decode("latin-1"))
        if not self._means_us(name, here):
            return None
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[header] = name
        return name

    def _means_us(self, name: str, here: str) -> bool:
        if not name or name in self._names or name.endswith(self._below):
            return True
        return _is_loopback(name) or _same(name, here)


def name_in(header: str) -> str:
    """The host of a Host header: without its port, in lower case, an IPv6 address without its brackets.

    >>> name_in("[::1]:8080")
    '::1'
    """
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def refusal(header: bytes) -> str:
    """The sentence for a name that is not one of ours."""
    name = name_in(header.decode("latin-1"))[:254]
    return (
        f"{name!r} is not one of the names of this server. If it is meant to be one, start the server with "
        f"TAXIWAY_HOSTS={name} (names separated by commas)."
    )


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def _same(name: str, here: str) -> bool:
    address = _address(name)
    return address is not None and address == _address(here)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
