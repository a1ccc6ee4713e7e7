"""Holds a job's own network on this host: makes it ready, hands its ends out, and lives until nobody needs it.

    bwrap --unshare-user --unshare-net ... python -I -S holder.py FD     (FD: one end of a pair of Unix sockets)

Nothing leads out of this network. What listens here was opened here and is answered by whoever was handed it: a socket
belongs to the network that it was made in, whichever process accepts. The standard library only.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

METADATA = "169.254.169.254"  # where a Google machine finds its metadata server
GOOGLE = "127.0.0.2"  # where the names of Google's APIs lead to
PROXY = "127.0.0.3"  # the way to the few other hosts that the admin allows
ENDS = ((GOOGLE, 443), (GOOGLE, 80), (METADATA, 80), (PROXY, 3128))
SET_ADDRESS = 0x8916  # SIOCSIFADDR
BACKLOG = 2048


def main() -> None:
    owner = socket.socket(fileno=int(sys.argv[1]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        # struct ifreq with a sockaddr_in: another address of the loopback interface
        address = struct.pack("16sHH4s8x", b"lo:0", socket.AF_INET, 0, socket.inet_aton(METADATA))
        fcntl.ioctl(control, SET_ADDRESS, address)
    ends = [listening(each) for each in ENDS]
    socket.send_fds(owner, [str(os.getpid()).encode()], [each.fileno() for each in ends])
    for each in ends:  # whoever was handed them may close them, and then nobody is there
        each.close()
    owner.recv(1)  # nothing comes but the end


def listening(where: tuple[str, int]) -> socket.socket:
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind(where)
    end.listen(BACKLOG)
    return end


if __name__ == "__main__":
    main()
