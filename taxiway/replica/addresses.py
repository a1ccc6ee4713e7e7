"""Where a replica of a gang is to listen, and whether somebody else does already."""

from __future__ import annotations

import socket

import msgspec

from taxiway.plan import Work


def own(work: Work) -> tuple[str, int] | None:
    """Its own address, as its TF_CONFIG has it; None for who is alone, and for an evaluator, whom nobody asks."""
    if not work.gang:
        return None
    config = msgspec.json.decode(work.variables["TF_CONFIG"])
    role, number = config["task"]["type"], config["task"]["index"]
    if role not in config["cluster"]:
        return None
    host, _, port = config["cluster"][role][number].rpartition(":")
    return host, int(port)


def taken(work: Work) -> str:
    """What to tell where another program listens at its address; "" where nobody does."""
    address = own(work)
    if address is None:
        return ""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are over hold nothing
        try:
            tried.bind(address)
            tried.listen()
        except OSError as error:
            role, _, index = work.task.partition("-replica-")
            return f"The address {address[0]}:{address[1]} of the replica {role} {index} is not free: {error.strerror}."
    return ""
