"""Upkeep: every so often, what lifecycle rules ask for is done, and what has had its time is removed.

All of it goes in small transactions between other people's writes, and each looks again before it acts: an object that
was replaced meanwhile is another one.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress

import sqlalchemy as sa

from taxiway import errors
from taxiway.db.database import Database
from taxiway.db.tables import buckets, noncurrent
from taxiway.db.tables import objects as live
from taxiway.storage import lifecycle, listings, objects, uploads
from taxiway.storage import noncurrent as soft_deleted
from taxiway.storage.blobs import SESSION_DAYS, Blobs
from taxiway.storage.lifecycle import DAY, Rule, Thing
from taxiway.storage.listings import Of
from taxiway.storage.objects import Object

log = logging.getLogger("taxiway.storage")

FIRST_S = 60.0  # after the start, at the latest: let everybody come up first
TOGETHER = 50  # objects that one transaction may change: some ten milliseconds of everybody's writer

Key = tuple[str, int]  # name, generation


class Upkeep:
    """Rounds of it, `every_s` seconds apart, from `run` until `stop`."""

    def __init__(self, db: Database, blobs: Blobs, *, every_s: float) -> None:
        self.db, self.blobs, self.every_s = db, blobs, every_s
        self._ending = asyncio.Event()

    async def run(self) -> None:
        wait = min(self.every_s, FIRST_S)
        while not self._ending.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ending.wait(), wait)
                return
            try:
                await self.round(time.time())
            except Exception:  # noqa: BLE001 - the edge: one bad round is told, and the next one comes
                log.error("upkeep stumbled\n%s", traceback.format_exc())
            wait = self.every_s

    def stop(self) -> None:
        """A round that is under way ends after its present transaction."""
        self._ending.set()

    async def round(self, now: float) -> None:
        """Everything that is due, once."""
        for session in await asyncio.to_thread(self._due_uploads, now):
            with suppress(errors.NotFound):
                await uploads.cancel(self.db, self.blobs, session)
        await asyncio.to_thread(self._rows, now)

    def _due_uploads(self, now: float) -> list[str]:
        """Sessions that are older than a week, or than their bucket's rules let them become."""
        due = []
        ruled = {bucket: lifecycle.rules(kept) for bucket, kept in self._ruled()}
        for session, bucket, name, created in uploads.unfinished(self.db):
            upload = Thing(name, created)
            if created <= now - SESSION_DAYS * DAY or lifecycle.abandons(ruled.get(bucket, ()), upload, now=now):
                due.append(session)
        return due

    def _rows(self, now: float) -> None:
        while not self._ending.is_set() and uploads.forget_finished(self.db, until=now - SESSION_DAYS * DAY):
            pass
        while not self._ending.is_set() and soft_deleted.expire(self.db, self.blobs, now=now):
            pass
        for bucket, kept in self._ruled():
            with suppress(errors.NotFound):  # it was deleted meanwhile
                self._rule(bucket, lifecycle.rules(kept), now)

    def _ruled(self) -> list[tuple[str, object]]:
        with self.db.read() as rows:
            found = rows.execute(sa.select(buckets.c.name, buckets.c.lifecycle).where(buckets.c.lifecycle.is_not(None)))
            return [(name, kept) for name, kept in found]

    def _rule(self, bucket: str, of: Sequence[Rule], now: float) -> None:
        """Look at every object of a bucket, and act on those whose time has come."""
        due: list[Key] = []
        done = 0
        for found, newer in self._objects(bucket, counted=lifecycle.counts_versions(of)):
            if lifecycle.decide(of, _thing(found, newer), now=now) is not None:
                due.append((found.name, found.generation))
            if len(due) >= TOGETHER:
                done += self._act(bucket, due, now)
                due = []
            if self._ending.is_set():
                return
        done += self._act(bucket, due, now)
        if done:
            log.info("lifecycle: gs://%s: %d objects were deleted or have another class", bucket, done)

    def _objects(self, bucket: str, *, counted: bool) -> Iterator[tuple[Object, int]]:
        """Every live and noncurrent object, with how many newer ones there are of its name, if they are counted."""
        name, left = "", 0
        for page in listings.pages(self.db, bucket, of=Of.VERSIONS):
            for found in page.items:
                if counted and found.name != name and found.deleted is not None:
                    with self.db.read() as rows:
                        left = _newer(rows, found) + 1
                left = left - 1 if found.deleted is not None else 0
                name = found.name
                yield found, left

    def _act(self, bucket: str, due: Sequence[Key], now: float) -> int:
        """Decide again, with the rows held still, and act. Answers how many objects that were."""
        if not due:
            return 0

        def work(rows: sa.Connection) -> tuple[int, list[str]]:
            done, gone = 0, []
            kept = rows.execute(sa.select(buckets.c.lifecycle).where(buckets.c.name == bucket)).scalar()
            of = lifecycle.rules(kept)
            for name, generation in due:
                with suppress(errors.NotFound):
                    found = objects.find(rows, bucket, name, generation)
                    action = lifecycle.decide(of, _thing(found, _newer(rows, found)), now=now)
                    if action is None:
                        continue
                    done += 1
                    if action.type == lifecycle.DELETE:
                        gone += objects.retire(rows, found, now=now)
                    else:
                        objects.change(rows, found, {"storage_class": action.storage_class}, now=now)
            return done, gone

        done, gone = self.db.write(work)
        self.blobs.remove(gone)
        return done


def _thing(found: Object, newer: int) -> Thing:
    return Thing(found.name, found.created, found.storage_class, found.deleted, newer)


def _newer(rows: sa.Connection, found: Object) -> int:
    """How many generations of the same name came after a noncurrent one."""
    if found.deleted is None:
        return 0
    counted = 0
    for its in (live, noncurrent):
        query = sa.select(sa.func.count()).where(
            its.c.bucket == found.bucket, its.c.name == found.name, its.c.generation > found.generation
        )
        if its is noncurrent:
            query = query.where(noncurrent.c.kept_until.is_(None))
        counted += rows.execute(query).scalar_one()
    return counted
