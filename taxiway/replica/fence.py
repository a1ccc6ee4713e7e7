"""The jail as a fence around the building of a package: its setup.py is a stranger's code as its trainer is.

It has no identity and no metadata server there. Where a build must fetch something, the package indexes can be reached,
and what the admin allows to jobs.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from taxiway import cgroups, errors, handles, trees, tunnel
from taxiway.environments import pythons
from taxiway.environments.fences import Entered
from taxiway.handles import Order
from taxiway.plan import Work
from taxiway.replica import disk, family, ground, jail, relay
from taxiway.replica.jail import Seen


@dataclass(frozen=True)
class Fence:
    """The fence of an attempt, within the limits of its work. No fence at all where there can be no jail."""

    order: Order
    folder: Path  # the attempt's
    work: Work

    @contextmanager
    def enter(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        read: Sequence[Path],
        write: Path,
        hosts: Sequence[str],
    ) -> Iterator[Entered]:
        """As environments.fences.Fence says."""
        with jail.wanted(self.order.jail, lambda _why: None) as held, ExitStack() as stack:  # the trainer's start tells
            if held is None:
                yield Entered(command, {**pythons.environ(), **variables})
                return
            for nobody in (held.google, held.plain, held.metadata, *(() if hosts else (held.proxy,))):
                nobody.close()
            proxy = ""
            if hosts:
                allowed = [*hosts, *self.order.allowed]
                stack.enter_context(tunnel.run_in_thread(lambda made: _lead(made, held.proxy, allowed)))
                proxy = relay.proxy_of(held)
            memory = ground.memory_of(self.work)
            name = f"{cgroups.PREFIX}{self.order.attempt}"
            group = cgroups.make(name, memory=memory, cpus=self.work.cpus, processes=ground.PROCESSES)
            stack.callback(group.remove)
            handles.save(self.folder / "group.json", group)  # for whoever comes after us, if we are killed
            own = self.folder / "build"
            stack.callback(trees.remove, own)
            places = {jail.WORK: own / "work", jail.HOME: own / "home", "/tmp": own / "tmp", str(write): write}
            for folder in places.values():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

            def end() -> None:
                group.seal()
                family.end()

            seen = Seen(read, places, Path(self.order.bundle))
            data = 0 if "memory" in group.folders else memory
            with disk.watched(list(places.values()), lambda: 0, self.order.disk, end) as watch:
                yield Entered(
                    held.enter(command, seen, own / "etc", group.procs, data),
                    {
                        **{"PATH": family.SYSTEM, "HOME": jail.HOME, "TMPDIR": "/tmp", "USER": jail.NAME},
                        **{"LANG": "C.UTF-8", handles.MARK: self.order.attempt},
                        **tunnel.variables(proxy, jail.BUNDLE),
                        **variables,
                    },
                    held.passed,
                )
            if watch.told:
                raise errors.FailedPrecondition(f"The job's packages could not be built. {watch.told}")


async def _lead(made: tunnel.Tunnel, listening: socket.socket, hosts: Sequence[str]) -> int:
    return await made.start("", 0, upstream=_nowhere, hold_s=0.0, other_hosts=hosts, listening=listening)


def _nowhere() -> tunnel.Address:
    raise errors.Unavailable("A package is built without this server.")
