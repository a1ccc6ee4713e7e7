"""The servers of versions: each is started, found ready, kept alive and ended here, and asked for its predictions."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa

from taxiway import errors, handles, plan
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
THREADS = 8  # versions that start or end at once
LOAD_S = 1200.0  # how long a server may take to load its model, its environment's build included
ANSWER_S = 120.0  # how long one prediction may take
WAKE_S = 60.0  # how long a request waits for a server that is being started again
WAITING = 2048  # requests at one version; more are told to come again
LOOK_S = 0.1
PAUSE_S = (0.5, 30.0)  # between two starts of a server that keeps ending: the first, the longest
USED_S = 10.0  # how exact lastUseTime is

T = TypeVar("T")
Key = tuple[str, str, str]  # project, model, version


@dataclass(slots=True)
class Deployed:
    """One version's server as this process knows it."""

    version: Version
    frames: Frames | None = None
    attempt: Attempt | None = None
    trouble: str = ""  # why its last server ended
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    waiting: int = 0  # requests that have no answer yet
    used: float = 0.0


class Deployments:
    """Belongs to the event loop; `deploy`, `undeploy` and `changed` may be called from any thread.

    `epoch` grows whenever another version may have to answer: what was looked up before is to be looked up again.
    """

    def __init__(self, db: Database, keys: Keys, engine: Local, blobs: Blobs) -> None:
        self.db, self.keys, self.engine, self.blobs = db, keys, engine, blobs
        self.epoch = 0
        self._deployed: dict[Key, Deployed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(THREADS, "taxiway-models")
        self._chores: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up where the last server ended: adopt what runs, start what should, finish what was begun.

        Everything else waits until this returns.
        """
        self._loop = asyncio.get_running_loop()
        wanted = await self._aside(lambda: registry.in_state(self.db, registry.READY, registry.CREATING))
        leaving = await self._aside(lambda: registry.in_state(self.db, registry.DELETING))
        folders = {version.folder for version in [*wanted, *leaving]}
        await self._aside(lambda: copies.sweep(self.db, self.blobs, folders, now=time.time()))
        for version in wanted:
            self._keep(version)
        for version in leaving:
            self._chore(self._undeploy(version))

    async def stop(self) -> None:
        """End every server: a model is loaded again faster than an idle process is worth."""
        tasks = [*self._chores, *(deployed.task for deployed in self._deployed.values() if deployed.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown()

    def deploy(self, version: Version) -> None:
        """Start the server of a version that was just made."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._keep, version)

    def undeploy(self, version: Version) -> None:
        """End the server of a version that is being deleted, then its bytes and its row."""
        assert self._loop is not None
        self.changed()
        self._loop.call_soon_threadsafe(lambda: self._chore(self._undeploy(version)))

    def changed(self) -> None:
        self.epoch += 1

    async def predict(self, version: Version, body: bytes) -> Reply:
        """One request to the version's server, as it came; its reply as it is.

        Raises FailedPrecondition if the version is not READY, ResourceExhausted if too many requests wait there,
        Unavailable if its server is away for longer than a minute, DeadlineExceeded.
        """
        deployed = self._deployed.get((version.project, version.model, version.name))
        if deployed is None or version.state != registry.READY:
            raise errors.FailedPrecondition(_not_ready(version))
        if deployed.waiting >= WAITING:
            raise errors.ResourceExhausted(f"{WAITING} requests wait at {version.subject} already. Retry in a second.")
        deployed.waiting += 1
        try:
            server = deployed.frames
            if server is None or not server.open:
                server = await self._woken(deployed)
            reply = await asyncio.wait_for(server.ask(frames.PREDICT, body), ANSWER_S)
        except asyncio.TimeoutError as error:
            raise errors.DeadlineExceeded(f"{version.subject} did not answer within {ANSWER_S:.0f} s.") from error
        finally:
            deployed.waiting -= 1
        now = time.time()
        if now - deployed.used > USED_S:
            deployed.used = now
            self._chore(self._note_use(version, now))
        return reply

    async def _woken(self, deployed: Deployed) -> Frames:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(deployed.ready.wait(), WAKE_S)
        if deployed.frames is None:
            trouble = f" Its last end: {deployed.trouble}" if deployed.trouble else ""
            raise errors.Unavailable(f"The server of {deployed.version.subject} is being started again.{trouble}")
        return deployed.frames

    async def _note_use(self, version: Version, now: float) -> None:
        await self._aside(lambda: registry.used(self.db, version, now=now))

    # --- the life of one server ---

    def _keep(self, version: Version) -> None:
        deployed = Deployed(version)
        self._deployed[(version.project, version.model, version.name)] = deployed
        deployed.task = asyncio.create_task(self._live(deployed))

    async def _live(self, deployed: Deployed) -> None:
        """A version's server for as long as the version is: started, watched, started again."""
        pause, longest = PAUSE_S
        while True:
            why = await self._once(deployed)
            if deployed.version.state == registry.CREATING:
                await self._give_up(deployed.version, why)
                return
            deployed.trouble = str(why)
            if isinstance(why, Ended):
                pause = PAUSE_S[0]
            log.warning("%s: %s Starting it again in %.1f s.", deployed.version.subject, why, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _once(self, deployed: Deployed) -> errors.Error:
        """From the start of a server to its end; answers why it ended. Nothing of it is left, cancelled or not."""
        try:
            try:
                server = await self._begin(deployed)
                await server.gone.wait()
                return Ended("Its process ended.")
            finally:
                deployed.ready.clear()
                await self._end(deployed)
        except errors.Error as error:
            return error
        except Exception:  # noqa: BLE001 - the edge: one version's trouble is told and is not another's
            log.error("%s failed inside the service\n%s", deployed.version.subject, traceback.format_exc())
            return errors.Internal("The service failed on this version; its log has the traceback.")

    async def _begin(self, deployed: Deployed) -> Frames:
        """An attempt (the living one, else a new one), and a socket to the server that it is."""
        await self._aside(lambda: self._start(deployed))
        server = deployed.frames = await self._reach(deployed)
        version = deployed.version
        if version.state == registry.CREATING:
            deployed.version = await self._aside(lambda: registry.ready(self.db, version, now=time.time()))
            self.changed()
        deployed.ready.set()
        log.info("%s answers", version.subject)
        return server

    def _start(self, deployed: Deployed) -> None:
        version = deployed.version
        with self.db.read() as rows:
            last = attempts.last(rows, version.project, KIND, version.subject)
        if last is None or not last.live or (last.handle and self.engine.poll(last.handle) is not None):
            if last is not None:
                self._clear(last)
            last = self.db.write(lambda tx: self._attempt(tx, version))
        deployed.attempt = last
        if not last.handle:
            handle = self.engine.start(last, self.keys.replica_token(last.id, now=time.time()))
            attempts.hold(self.db, last.id, handle)
            deployed.attempt = attempts.get(self.db, last.id)

    def _attempt(self, tx: sa.Connection, version: Version) -> Attempt:
        project, told = projects.read(tx, version.project), version.runtime
        work = plan.serving(
            version.project,
            project.number,
            version.subject,
            version.folder,
            runtime=told["version"],
            python=told["python"],
            framework=told["framework"],
        )
        identity = projects.service_agent(project.number)
        return attempts.create(tx, uuid.uuid4().hex, KIND, work, identity=identity, now=time.time())

    async def _reach(self, deployed: Deployed) -> Frames:
        """A socket to the server, which listens once it has loaded its model and predicted with it.

        Raises FailedPrecondition with the reason if it ends instead, DeadlineExceeded, Cancelled.
        """
        attempt, version = deployed.attempt, deployed.version
        assert attempt is not None
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                return await frames.connect(self.engine.folder / attempt.id / handles.WORK)
            await self._aside(lambda: self._must_run(attempt))
            if version.state == registry.CREATING and await self._aside(
                lambda: registry.cancel_asked(self.db, version)
            ):
                raise errors.Cancelled("The operation was cancelled.")
            await asyncio.sleep(LOOK_S)
        raise errors.DeadlineExceeded(f"The model was not loaded within {LOAD_S:.0f} s.")

    def _must_run(self, attempt: Attempt) -> None:
        """Raises FailedPrecondition with what a server that has ended said last."""
        ended = self.engine.poll(attempt.handle)
        found = attempts.get(self.db, attempt.id)  # later: a report comes before the process goes
        if found.state == "ENDED":
            raise errors.FailedPrecondition(reason(found.error or ""))
        if ended is not None and ended.code != handles.LOST:
            raise errors.FailedPrecondition(reason(ended.error))
        if ended is not None or not found.live:
            raise errors.FailedPrecondition("Its process was killed from outside while it loaded the model.")

    async def _give_up(self, version: Version, why: errors.Error) -> None:
        """The version could not be made: its row says why, its copy goes."""
        told = why if isinstance(why, errors.Cancelled) else type(why)(f"Create Version failed. {why}")
        await self._insist(lambda: registry.failed(self.db, version, told, now=time.time()))
        self._deployed.pop((version.project, version.model, version.name), None)
        await self._insist(lambda: copies.remove(self.db, self.blobs, version.folder, now=time.time()))

    async def _undeploy(self, version: Version) -> None:
        deployed = self._deployed.pop((version.project, version.model, version.name), None)
        if deployed is not None and deployed.task is not None:
            deployed.task.cancel()
            await asyncio.gather(deployed.task, return_exceptions=True)
        await self._insist(lambda: self._end_last(version))
        await self._insist(lambda: copies.remove(self.db, self.blobs, version.folder, now=time.time()))
        await self._insist(lambda: registry.deleted(self.db, version, now=time.time()))

    def _end_last(self, version: Version) -> None:
        """What an earlier server left running of a version that is being deleted."""
        with self.db.read() as rows:
            last = attempts.last(rows, version.project, KIND, version.subject)
        if last is not None:
            self._clear(last)

    async def _end(self, deployed: Deployed) -> None:
        if deployed.frames is not None:
            deployed.frames.close()
            deployed.frames = None
        attempt, deployed.attempt = deployed.attempt, None
        if attempt is not None:
            await self._aside(lambda: self._clear(attempt))

    def _clear(self, attempt: Attempt) -> None:
        """Nothing that it says counts from here on, and nothing of it is left."""
        self.db.write(lambda tx: attempts.fence(tx, attempt.id, now=time.time()))
        self.engine.stop(attempt.id, attempt.handle)
        self.engine.clear(attempt.id)

    # --- threads and chores ---

    async def _aside(self, work: Callable[[], T]) -> T:
        """Rows and processes are slow things: off the event loop. Who is cancelled waits for the end of its work."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.gather(running, return_exceptions=True)
            raise

    async def _insist(self, work: Callable[[], object]) -> None:
        """Do what has to be done, however long the disk is full or a process will not end."""
        pause, longest = PAUSE_S
        while True:
            try:
                await self._aside(work)
                return
            except errors.Error as error:
                log.warning("%s Trying again in %.1f s.", error, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _chore(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a chore failed", exc_info=error)


class Ended(errors.Unavailable):
    """A server that answered has gone."""


def reason(error: str) -> str:
    """What the model's runner said last ({"error": ...}), else what the replica said."""
    for line in reversed(error.splitlines()):
        with suppress(ValueError, KeyError, TypeError):
            return f'Bad model detected with error: "{json.loads(line)["error"]}"'
    return error or "The model's server ended without a word."


def _not_ready(version: Version) -> str:
    if version.state == registry.READY:
        return f"The version {version.name} is being deleted."
    return f"The version {version.name} is {version.state}, not READY{f': {version.error}' if version.error else '.'}"
