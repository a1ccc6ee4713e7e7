"""Holds a network of a job's own on this host: makes it ready, hands its ends out, and lives until nobody needs it.

    bwrap --unshare-user --unshare-net ... python -I -S holder.py FD         FD: one end of a pair of Unix sockets
    bwrap --unshare-user --unshare-net ... python -I -S holder.py FD gang    FD: a Unix socket that listens

Nothing leads out of this network. What listens here was opened here and is answered by whoever was handed it: a socket
belongs to the network that it was made in, whichever process accepts. Each replica of a gang asks for the ends of its
own place, at addresses of its own, so that none depends on another's agent. The standard library only.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys

METADATA = "169.254.169.254"  # where a Google machine finds its metadata server
PLACES = 200  # replicas of one gang
SET_ADDRESS = 0x8916  # SIOCSIFADDR
BACKLOG = 2048
FIRST_S = 30.0  # for the first of a gang to ask


def google(place: int = 0) -> str:
    """Where the names of Google's APIs lead to, for the replica of a place in its gang."""
    return f"127.0.{place}.2"


def proxy(place: int = 0) -> str:
    """The way to the few other hosts that the admin allows."""
    return f"127.0.{place}.3"


def metadata(place: int = 0) -> str:
    """Where its metadata server is: at Google's own address for the first, beside it for the others."""
    return f"169.254.169.{254 - place}" if place else METADATA


def ends(place: int = 0) -> tuple[tuple[str, int], ...]:
    return (google(place), 443), (google(place), 80), (metadata(place), 80), (proxy(place), 3128)


ENDS = len(ends())


def main() -> None:
    owner = socket.socket(fileno=int(sys.argv[1]))
    if sys.argv[2:] == ["gang"]:
        hold(owner)
        return
    hand_out(owner, 0)
    owner.recv(1)  # nothing comes but the end


def hold(listening: socket.socket) -> None:
    """Until the last of those who came has gone."""
    clients: list[socket.socket] = []
    while True:
        ready, _, _ = select.select([listening, *clients], [], [], None if clients else FIRST_S)
        if listening in ready:
            clients.append(listening.accept()[0])
        for client in [each for each in clients if each in ready]:
            try:
                asked = client.recv(16)
                if asked:
                    hand_out(client, int(asked))
                    continue
            except (OSError, ValueError):
                pass
            client.close()
            clients.remove(client)
        if not clients:
            return


def hand_out(owner: socket.socket, place: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # struct ifreq with a sockaddr_in: another address of the loopback interface
        where = socket.inet_aton(metadata(place))
        address = struct.pack("16sHH4s8x", f"lo:{place}".encode(), socket.AF_INET, 0, where)
        fcntl.ioctl(control, SET_ADDRESS, address)
    opened = [listening(each) for each in ends(place)]
    socket.send_fds(owner, [str(os.getpid()).encode()], [each.fileno() for each in opened])
    for each in opened:  # whoever was handed them may close them, and then nobody is there
        each.close()


def listening(where: tuple[str, int]) -> socket.socket:
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind(where)
    end.listen(BACKLOG)
    return end


if __name__ == "__main__":
    main()
