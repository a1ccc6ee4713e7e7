"""Several replicas that train together: who TF_CONFIG says they are, and how they exchange what they have learned.

In a round, the chief gives out an order, with all the numbers that the training has come to. Each replica takes as many
steps as it says, on rides of its own, and the workers send back what the numbers have become. The mean of all is where
the next round begins. A worker keeps nothing that an order does not bring: one that was lost connects again and is
given the order that it missed. A chief that was lost goes on from its checkpoint, as it would alone.
"""

import contextlib
import json
import os
import select
import socket
import struct
import time
from typing import NamedTuple

import numpy as np

from trainer import BadInput

PATIENCE = 600  # seconds for who is not there, or says nothing: a lost replica is started again
HELLO = struct.Struct("!8sI")  # a worker's first words: MAGIC, its rank
MAGIC = b"taxifare"
HEAD = struct.Struct("!QQdQ")  # of every message after that: an Order and how many float32 follow
OVER = 0  # an order of so many steps is the last


class Team(NamedTuple):
    """Who trains together, and who of them this is."""

    names: tuple = ("chief 0",)  # by rank; the first is the chief
    addresses: tuple = ("",)  # host:port, likewise
    rank: int = 0
    idle: str = ""  # the name of a replica that has no part in the training

    @property
    def size(self):
        return len(self.names)


class Order(NamedTuple):
    """What each replica is to do in a round; as an answer, what it did, with the loss in the place of the rate."""

    step: int  # taken before, by all of them together
    steps: int  # to be taken now, by each
    rate: float


def team(variables=os.environ):
    """The team of TF_CONFIG: the chief (or master, or else the first worker) and the workers; alone without it.

    Raises BadInput if TF_CONFIG is not what https://www.tensorflow.org/guide/distributed_training describes.
    """
    try:
        config = json.loads(variables.get("TF_CONFIG") or "{}")
        cluster, task = config.get("cluster") or {}, config.get("task") or {}
        members = [
            (f"{role} {index}", str(address))
            for role in ("chief", "master", "worker")
            for index, address in enumerate(cluster.get(role) or [])
        ]
        if not members or not task:
            return Team()
        name = f"{task['type']} {int(task['index'])}"
        names, addresses = zip(*members, strict=True)
        if name not in names and task["type"] in ("ps", "evaluator"):
            return Team(idle=name)
        for address in addresses:
            host_and_port(address)
        return Team(names, addresses, names.index(name))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"TF_CONFIG is not understood ({error!r}): it needs the cluster's addresses by role, and this task's type "
            f"and index; it is {variables['TF_CONFIG']}"
        ) from error


def host_and_port(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Workers:
    """The chief's side: gives out orders, and waits for the answer of each worker; whoever is lost may come again."""

    def __init__(self, team):
        self.names = team.names
        self.missing = set(range(1, team.size))
        self.links = {}  # by rank, of the workers that are there
        self.order, self.began, self.waited = b"", 0.0, 0.0
        try:
            self.server = socket.create_server(host_and_port(team.addresses[0]))
        except OSError as error:
            raise BadInput(f"{team.addresses[0]}, the chief's address in TF_CONFIG, cannot be had: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in (self.server, *self.links.values()):
            each.close()

    def give(self, order, numbers):
        """Sends the order to every worker that is there; the others get it when they come."""
        began = time.monotonic()
        self.order = packed(order, numbers)
        for rank in list(self.links):
            self._send(rank)
        self.waited += time.monotonic() - began

    def answers(self, interrupted):
        """Returns the workers' answers, each (Order, float32 array), by rank; None if `interrupted` fills meanwhile.

        Raises BadInput if nothing was heard for a long time.
        """
        found, began = {}, time.monotonic()
        heard = began
        while len(found) < len(self.names) - 1:
            waiting = {link: rank for rank, link in self.links.items() if rank not in found}
            ready, _, _ = select.select([self.server, *waiting], [], [], 0.5)
            if interrupted:
                return None
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE:
                missing = ", ".join(name for rank, name in enumerate(self.names) if rank and rank not in found)
                raise BadInput(f"nothing was heard of {missing} for {PATIENCE} s: see what the others' logs say")
            for link in ready:
                if link is self.server:
                    self._welcome(found)
                    continue
                try:
                    found[waiting[link]] = received(link)
                except OSError:
                    self._lose(waiting[link])
        if self.began:
            self.waited += time.monotonic() - began
        else:  # all are there at last: what it takes is measured from now on
            self.began, self.waited = time.monotonic(), 0.0
        return [found[rank] for rank in sorted(found)]  # in one order: so is a sum, to its last bit

    def end(self):
        """Lets the workers go, and says what they cost the chief."""
        self.give(Order(0, OVER, 0.0), np.empty(0))
        if self.began:
            seconds = time.monotonic() - self.began
            print(
                f"Of {seconds:.1f} s, {self.waited / seconds:.0%} went into orders and the wait for answers", flush=True
            )

    def _welcome(self, found):
        link, _ = self.server.accept()
        try:
            link.settimeout(5)
            magic, rank = HELLO.unpack(exactly(link, HELLO.size))
        except OSError:
            magic, rank = b"", 0
        if magic != MAGIC or not 0 < rank < len(self.names):
            link.close()  # whoever it is, it is not one of us
            return
        if rank in self.links:
            self.links[rank].close()
        prepare(link)
        self.links[rank] = link
        print(f"{self.names[rank]} is there", flush=True)
        if rank not in found:
            self._send(rank)

    def _send(self, rank):
        try:
            self.links[rank].sendall(self.order)
        except OSError:
            self._lose(rank)

    def _lose(self, rank):
        print(f"{self.names[rank]} is lost; it may come again", flush=True)
        self.links.pop(rank).close()


class Chief:
    """A worker's side: takes orders and answers them."""

    def __init__(self, team):
        self.team, self.link = team, None

    def orders(self):
        """Yields (Order, float32 array) until the chief says that it is over; a chief that was lost is waited for.

        Raises BadInput if it stays away.
        """
        while True:
            self.link = self._connected()
            with self.link, contextlib.suppress(OSError):
                self.link.sendall(HELLO.pack(MAGIC, self.team.rank))
                while True:
                    order, numbers = received(self.link)
                    if order.steps == OVER:
                        return
                    yield order, numbers
            print("The chief is lost; it may come again", flush=True)

    def answer(self, order, numbers):
        with contextlib.suppress(OSError):  # if it is lost, so is the round
            self.link.sendall(packed(order, numbers))

    def _connected(self):
        host, port = host_and_port(self.team.addresses[0])
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                link = socket.create_connection((host, port), 5)
                if link.getsockname() != link.getpeername():  # TCP may connect a port that nobody has to itself
                    return prepare(link)
                link.close()
            time.sleep(0.1)
        raise BadInput(f"the chief's address, {self.team.addresses[0]}, has not answered for {PATIENCE} s")


def prepare(link):
    link.settimeout(PATIENCE)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def packed(order, numbers):
    return HEAD.pack(*order, len(numbers)) + np.asarray(numbers, "<f4").tobytes()


def received(link):
    """The next message. Raises OSError if the other side is gone."""
    *order, count = HEAD.unpack(exactly(link, HEAD.size))
    return Order(*order), np.frombuffer(exactly(link, 4 * count), "<f4")


def exactly(link, size):
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = link.recv_into(view)
        if not count:
            raise ConnectionError("the other side is gone")
        view = view[count:]
    return data
