"""The audit log: who asked for what, on which thing, when, whether it was allowed, and the answer's code.

Rows are written and never changed. They wait in memory for a second at most, and one transaction writes all that wait:
whoever notes one waits for nothing, and a kill takes the last second with it. Which of Google's two logs a row stands
in, and whether it is kept at all, follows https://cloud.google.com/logging/docs/audit: admin activity always, reads of
data only if somebody asks for them; writes of data are kept here by default.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from taxiway import errors
from taxiway.db import database
from taxiway.db.database import Database
from taxiway.db.tables import audit, buckets, projects
from taxiway.iam.projects import DOMAIN

log = logging.getLogger("taxiway.audit")

ACTIVITY, DATA_ACCESS = "activity", "data_access"
EVERY_S = 1.0  # how long a row waits
BATCH = 500  # rows in one transaction; as many that wait are written at once
MOST = 50_000  # rows that may wait for a disk that takes no more
SWEEP_S = 3600.0
SWEPT = 1000  # rows in one transaction of the sweep
DAY_S = 24 * 3600.0
LONGEST = 2048  # characters of a name that a stranger made up

BUCKETS = "projects/_/buckets/"  # how Google's log names buckets
READS = ("explain", "get", "getConfig", "getIamPolicy", "list", "predict")  # verbs of permissions that change nothing
READ_PATHS = (":testIamPermissions", ":queryTestablePermissions", "entries:list")  # and the paths of rows without one


class Sort(NamedTuple):
    """What every request of one route has in common."""

    permission: str
    method: str  # Google's name of the method, or the verb and the path
    log: str
    unnamed: bool  # whether the method has no name but the verb and the path
    kept: bool  # whether one that was allowed is kept; one that was refused always is
    read: bool  # whether it is kept where reads are


class Entry(NamedTuple):
    """A row before it is written. An empty `project` is the bucket's, else the home's own."""

    time: float
    project: str
    log: str
    member: str
    address: str
    permission: str
    resource: str
    method: str
    allowed: bool
    code: int


class Kept(NamedTuple):
    """A row. (time, row) is its place in the log."""

    row: int
    time: float
    project: str
    log: str
    member: str
    address: str
    permission: str
    resource: str
    method: str
    allowed: bool
    code: int


def sort_of(permission: str, verb: str, path: str, method: str = "") -> Sort:
    """The sort of a route. `permission` may be one of the words that stand in the place of one (-anyone ...).

    >>> sort_of("storage.objects.create", "POST", "/upload/storage/v1/b/{bucket}/o")[1:]
    ('storage.objects.create', 'data_access', False, True, False)
    """
    if permission.startswith("-"):
        issues = permission == "-anyone" and path.endswith(("token", "revoke"))  # to whoever proves to be somebody
        read = verb in ("GET", "HEAD") or path.endswith(READ_PATHS)
        kept = issues or (permission == "-signed-in" and not read)
        return Sort("", method or f"{verb} {path}", DATA_ACCESS if read else ACTIVITY, not method, kept, read)
    thing, _, word = permission.rpartition(".")
    read = word in READS
    data = read or (thing == "storage.objects" and word != "setIamPolicy")
    return Sort(permission, method or permission, DATA_ACCESS if data else ACTIVITY, False, not read, read)


def resource_of(path: str) -> Callable[[Mapping[str, str]], str]:
    """How the things of a route are named, out of the parts of a request's path.

    >>> resource_of("/v1/projects/{project}/models/{model}/versions")({"project": "p", "model": "m"})
    'projects/p/models/m'
    >>> resource_of("/storage/v1/b/{bucket}/o/{object}")({"bucket": "b", "object": "a/b"})
    'projects/_/buckets/b/objects/a/b'
    """
    if "{bucket}" in path:
        of_objects = "{object" in path
        return lambda parts: f"{BUCKETS}{parts['bucket']}" + (f"/objects/{parts['object']}" if of_objects else "")
    held = re.sub(r"^/(?:\w+/)?v\d+/", "", path.rpartition("}")[0] + "}" if "}" in path else "")
    return re.sub(r":\w+}", "}", held).format_map


def object_of(bucket: str, name: str) -> str:
    return f"{BUCKETS}{bucket}/objects/{name}"


class Audit:
    """Safe to use from any thread; nothing here waits for the disk but its own thread."""

    def __init__(self, db: Database, *, home: str, reads: bool, days: int) -> None:
        """`home` is the project of rows that name none; reads are kept if `reads`; rows go after `days`."""
        self.db, self.home, self.reads, self.days = db, home, reads, days
        self._waiting: deque[Entry] = deque()
        self._lost = 0
        self._places: dict[str, str] = {}  # bucket -> project, also of one that is being deleted
        self._swept = 0.0
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taxiway-audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what waits."""
        self._ending.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._flush()
        except errors.Error as error:
            log.error("%d rows of the audit log are lost: %s", len(self._waiting), error)

    def keeps(self, sort: Sort, *, refused: bool) -> bool:
        """Whether it wants a row of such a request."""
        return refused or sort.kept or (self.reads and sort.read)

    def note(self, entry: Entry) -> None:
        """Write it within a second."""
        waiting = len(self._waiting)
        if waiting >= MOST:
            self._lost += 1
            return
        self._waiting.append(entry)
        if waiting >= BATCH and not self._woken.is_set():
            self._woken.set()

    def learn(self, bucket: str) -> None:
        """Whose a bucket is, before it goes."""
        with self.db.read() as rows:
            self._learn(rows, {bucket})

    def _run(self) -> None:
        while not self._ending.is_set():
            self._woken.wait(EVERY_S)
            self._woken.clear()
            try:
                self._flush()
                self._sweep(time.time())
            except errors.Error as error:
                log.warning("the audit log waits: %s", error)
                self._ending.wait(EVERY_S)
            except Exception:  # the edge: one bad turn is told, and the next one comes
                log.exception("the audit log stumbled")
                self._ending.wait(EVERY_S)

    def _flush(self) -> None:
        """Write what waits now. Raises what the database raises; then everything waits on."""
        left = len(self._waiting)  # and not what comes meanwhile: on a busy server that would never end
        while left:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, left))]
            left -= len(batch)
            try:
                self._write(self._placed(batch))
            except BaseException:
                self._waiting.extendleft(reversed(batch))
                raise
        if self._lost:
            log.error("%d rows of the audit log were lost: the disk took none for too long", self._lost)
            self._lost = 0

    def _write(self, rows: list[tuple[object, ...]]) -> None:
        self.db.write(lambda tx: database.insert(tx, "audit", Entry._fields, rows))

    def _placed(self, batch: Sequence[Entry]) -> list[tuple[object, ...]]:
        """The rows as the table has them: of a project that exists, or of the home's own."""
        with self.db.read() as rows:
            known = {name: row.id for row in rows.execute(_PROJECTS) for name in (row.id, str(row.number))}
            asked = {_bucket(entry) for entry in batch if not entry.project} - {"", *self._places}
            if asked:
                self._learn(rows, asked)
        placed = []
        for entry in batch:
            project = entry.project or self._places.get(_bucket(entry)) or _of_account(entry.member)
            moment, _, name, member, address, permission, resource, *rest = entry
            moment, owner = round(moment * 1e6) / 1e6, known.get(project, self.home)
            placed.append((moment, owner, name, member[:LONGEST], address, permission, resource[:LONGEST], *rest))
        return placed

    def _learn(self, rows: sa.Connection, names: set[str]) -> None:
        if len(self._places) > MOST:
            self._places.clear()
        found = rows.execute(sa.select(buckets.c.name, buckets.c.project).where(buckets.c.name.in_(names)))
        self._places.update({row.name: row.project for row in found})

    def _sweep(self, now: float) -> None:
        """Remove what is too old, a bit at a time: everybody's writes pass through the same thread."""
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        while sweep(self.db, now - self.days * DAY_S) and not self._ending.is_set():
            pass


_PROJECTS = sa.select(projects.c.id, projects.c.number)


def sweep(db: Database, before: float) -> int:
    """Remove up to a thousand rows, the oldest first, that are older than `before`; answers how many there were."""
    oldest = sa.select(audit.c.row).order_by(audit.c.row).limit(SWEPT)
    gone = audit.delete().where(audit.c.row.in_(oldest), audit.c.time < before)
    return db.write(lambda tx: tx.execute(gone).rowcount)


def page(
    db: Database,
    condition: sa.ColumnElement[bool],
    *,
    newest_first: bool = False,
    after: tuple[float, int] | None = None,
    limit: int,
) -> list[Kept]:
    """Up to `limit` rows that fulfil a condition, in time's order, behind a place in the log."""
    place = sa.tuple_(audit.c.time, audit.c.row)
    asked = sa.select(*(audit.c[name] for name in Kept._fields)).where(condition)
    if after is not None:
        asked = asked.where(place < after if newest_first else place > after)
    order = (audit.c.time, audit.c.row)
    asked = asked.order_by(*((each.desc() for each in order) if newest_first else order)).limit(limit)
    with db.read() as rows:
        return [Kept(*row) for row in rows.execute(asked)]


def _bucket(entry: Entry) -> str:
    return entry.resource.removeprefix(BUCKETS).partition("/")[0] if entry.resource.startswith(BUCKETS) else ""


def _of_account(member: str) -> str:
    """The project of a service account, by its e-mail address; "" of others."""
    return member.partition("@")[2].removesuffix(f".iam.{DOMAIN}") if member.endswith(DOMAIN) else ""
