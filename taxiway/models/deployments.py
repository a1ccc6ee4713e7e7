"""The servers of versions: each is started, found ready, kept alive and ended here, and asked for its predictions."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from taxiway import errors, plan
from taxiway.compute import attempts
from taxiway.compute.attempts import Attempt
from taxiway.compute.local import Local
from taxiway.db.database import Database
from taxiway.iam import projects
from taxiway.iam.keys import Keys
from taxiway.models import copies, frames, registry
from taxiway.models.frames import Frames, Reply
from taxiway.models.registry import Version
from taxiway.storage.blobs import Blobs

log = logging.getLogger("taxiway.models")

KIND = "version"
LOAD_S = 1200.0  # how long a server may take to load its model, its environment's build included
ANSWER_S = 120.0  # how long one prediction may take
WAKE_S = 60.0  # how long a request waits for a server that is being started again
IN_FLIGHT = 2048  # requests at one server; more are told to come again
LOOK_S = 0.1
LONGEST_PAUSE_S = 30.0  # between two starts of a server that keeps ending
USED_S = 10.0  # how exact lastUseTime is

P = ParamSpec("P")
T = TypeVar("T")
Key = tuple[str, str, str]  # project, model, version


@dataclass(slots=True)
class Deployed:
    """One version's server as this process knows it."""

    version: Version
    frames: Frames | None = None
    attempt: Attempt | None = None
    trouble: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    used: float = 0.0


class Deployments:
    """Belongs to the event loop; `deploy` and `undeploy` may be called from any thread."""

    def __init__(self, db: Database, keys: Keys, engine: Local, blobs: Blobs) -> None:
        self.db, self.keys, self.engine, self.blobs = db, keys, engine, blobs
        self._deployed: dict[Key, Deployed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._chores: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up where the last server ended: adopt what runs, start what should, finish what was begun."""
        self._loop = asyncio.get_running_loop()
        wanted = await _aside(registry.in_state, self.db, registry.READY, registry.CREATING)
        for version in wanted:
            self._keep(version)
        for version in await _aside(registry.in_state, self.db, registry.DELETING):
            self._chore(self._undeploy(version))

    async def stop(self) -> None:
        """End every server: a model is loaded again faster than an idle process is worth."""
        tasks = [deployed.task for deployed in self._deployed.values() if deployed.task]
        for task in [*tasks, *self._chores]:
            task.cancel()
        await asyncio.gather(*tasks, *self._chores, return_exceptions=True)
        await asyncio.gather(*(self._end(deployed) for deployed in self._deployed.values()))

    def deploy(self, version: Version) -> None:
        """Start the server of a version that was just made."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._keep, version)

    def undeploy(self, version: Version) -> None:
        """End the server of a version that is being deleted, then its bytes and its row."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: self._chore(self._undeploy(version)))

    async def predict(self, version: Version, body: bytes) -> Reply:
        """One request to the version's server, as it came; its reply as it is.

        Raises FailedPrecondition if the version is not READY, ResourceExhausted if too many requests wait there,
        Unavailable if its server is away for longer than a minute, DeadlineExceeded.
        """
        deployed = self._deployed.get((version.project, version.model, version.name))
        if deployed is None or version.state != registry.READY:
            why = f": {version.error}" if version.error else "."
            raise errors.FailedPrecondition(f"The version {version.name} is {version.state}, not READY{why}")
        server = deployed.frames
        if server is None or not server.open:
            server = await self._wake(deployed)
        if server.in_flight >= IN_FLIGHT:
            raise errors.ResourceExhausted(f"{IN_FLIGHT} requests wait at {version.subject} already. Retry in a second.")
        try:
            reply = await asyncio.wait_for(server.ask(frames.PREDICT, body), ANSWER_S)
        except asyncio.TimeoutError as error:
            raise errors.DeadlineExceeded(f"{version.subject} did not answer within {ANSWER_S:.0f} s.") from error
        now = time.time()
        if now - deployed.used > USED_S:
            deployed.used = now
            self._chore(self._note_use(version, now))
        return reply

    async def _wake(self, deployed: Deployed) -> Frames:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(deployed.ready.wait(), WAKE_S)
        if deployed.frames is None:
            trouble = f" Its last end: {deployed.trouble}" if deployed.trouble else ""
            raise errors.Unavailable(f"The server of {deployed.version.subject} is being started again.{trouble}")
        return deployed.frames

    async def _note_use(self, version: Version, now: float) -> None:
        await _aside(lambda: registry.used(self.db, version, now=now))

    def _keep(self, version: Version) -> None:
        deployed = Deployed(version)
        self._deployed[(version.project, version.model, version.name)] = deployed
        deployed.task = asyncio.create_task(self._live(deployed))

    async def _live(self, deployed: Deployed) -> None:
        """A version's server for as long as the version is: started, watched, started again."""
        pause = 0.5
        while True:
            try:
                await self._begin(deployed)
                pause = 0.5
                await self._watch(deployed)
                deployed.trouble = "its process ended."
            except errors.Error as error:
                deployed.trouble = str(error)
            except Exception:  # noqa: BLE001 - the edge: one version's trouble is told and is not another's
                log.error("%s failed inside the service\n%s", deployed.version.subject, traceback.format_exc())
                deployed.trouble = "INTERNAL: the service failed on this version; its log has the traceback."
            deployed.ready.clear()
            deployed.frames = None
            await self._end(deployed)
            if deployed.version.state == registry.CREATING:
                await self._give_up(deployed)
                return
            log.warning("%s: %s Starting it again in %.1f s.", deployed.version.subject, deployed.trouble, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _begin(self, deployed: Deployed) -> None:
        """An attempt (the living one, else a new one), and a socket to it that answers."""
        version = deployed.version
        deployed.attempt = await _aside(self._attempt, version)
        deployed.frames = await self._reach(deployed.attempt, version)
        if version.state == registry.CREATING:
            await _aside(lambda: registry.ready(self.db, version, now=time.time()))
            deployed.version = await _aside(registry.get_version, self.db, version.project, version.model, version.name)
        deployed.ready.set()
        log.info("%s answers", version.subject)

    def _attempt(self, version: Version) -> Attempt:
        with self.db.read() as rows:
            last = attempts.last(rows, version.project, KIND, version.subject)
        if last is None or not last.live or (last.handle and self.engine.poll(last.handle) is not None):
            if last is not None:
                self.engine.stop(last.id, last.handle)
                self.engine.clear(last.id)
            number = projects.get(self.db, version.project).number
            told = version.runtime
            work = plan.serving(
                version.project,
                number,
                version.subject,
                version.folder,
                runtime=told["version"],
                python=told["python"],
                framework=told["framework"],
            )
            agent, now = projects.service_agent(number), time.time()
            last = self.db.write(
                lambda tx: attempts.create(tx, uuid.uuid4().hex, KIND, work, identity=agent, now=now)
            )
        if not last.handle:
            handle = self.engine.start(last, self.keys.replica_token(last.id, now=time.time()))
            attempts.hold(self.db, last.id, handle)
        return attempts.get(self.db, last.id)

    async def _reach(self, attempt: Attempt, version: Version) -> Frames:
        """Raises FailedPrecondition with the reason if the server ends instead, DeadlineExceeded, Cancelled."""
        folder = self.engine.folder / attempt.id
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                server = await frames.connect(folder)
                reply = await asyncio.wait_for(server.ask(frames.PING, b""), LOAD_S)
                if reply.kind == frames.PONG:
                    return server
            found = await _aside(attempts.get, self.db, attempt.id)
            if found.state == "ENDED":
                raise errors.FailedPrecondition(reason(found.error or ""))
            if not found.live or await _aside(self.engine.poll, attempt.handle) is not None:
                raise errors.FailedPrecondition("Its process was killed from outside while it loaded the model.")
            if version.state == registry.CREATING and await _aside(registry.cancel_asked, self.db, version):
                raise errors.Cancelled("The operation was cancelled.")
            await asyncio.sleep(LOOK_S)
        raise errors.DeadlineExceeded(f"The model was not loaded within {LOAD_S:.0f} s.")

    async def _watch(self, deployed: Deployed) -> None:
        """Returns when the server is gone."""
        server = deployed.frames
        while server is not None and server.open:
            await asyncio.sleep(LOOK_S)

    async def _give_up(self, deployed: Deployed) -> None:
        """The version could not be made: its row says why, its copy goes."""
        version = deployed.version
        told = deployed.trouble
        error: errors.Error = errors.FailedPrecondition(f"Create Version failed. {told}")
        if told == "The operation was cancelled.":
            error = errors.Cancelled(told)
        await _aside(lambda: registry.failed(self.db, version, error, now=time.time()))
        await _aside(copies.remove, self.db, self.blobs, version.folder)
        self._deployed.pop((version.project, version.model, version.name), None)

    async def _undeploy(self, version: Version) -> None:
        deployed = self._deployed.pop((version.project, version.model, version.name), None)
        if deployed is not None:
            if deployed.task:
                deployed.task.cancel()
                await asyncio.gather(deployed.task, return_exceptions=True)
            await self._end(deployed)
        await _aside(self._end_attempt, version)
        await _aside(copies.remove, self.db, self.blobs, version.folder)
        await _aside(lambda: registry.deleted(self.db, version, now=time.time()))

    def _end_attempt(self, version: Version) -> None:
        """What an earlier server left running of a version that is being deleted."""
        with self.db.read() as rows:
            last = attempts.last(rows, version.project, KIND, version.subject)
        if last is not None:
            self.db.write(lambda tx: attempts.fence(tx, last.id, now=time.time()))
            self.engine.stop(last.id, last.handle)
            self.engine.clear(last.id)

    async def _end(self, deployed: Deployed) -> None:
        if deployed.frames is not None:
            deployed.frames.close()
            deployed.frames = None
        attempt = deployed.attempt
        if attempt is not None:
            deployed.attempt = None
            await _aside(lambda: self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time())))
            await _aside(self.engine.stop, attempt.id, attempt.handle)
            await _aside(self.engine.clear, attempt.id)

    def _chore(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def reason(error: str) -> str:
    """What the model's runner said last ({"error": ...}), else what the replica said."""
    for line in reversed(error.splitlines()):
        with suppress(ValueError, KeyError, TypeError):
            return f'Bad model detected with error: "{json.loads(line)["error"]}"'
    return error or "The model's server ended without a word."


async def _aside(work: Callable[P, T], *args: P.args, **rest: P.kwargs) -> T:
    """Rows and processes are slow things: off the event loop."""
    return await asyncio.to_thread(work, *args, **rest)
