"""Resumable uploads: sessions that outlive a cut connection and a restart of the server.

Rules from https://cloud.google.com/storage/docs/performing-resumable-uploads. The bytes of a session rest in the blobs
folder under the session's id, and stay there when it becomes an object. What a caller was told is durable.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable

import msgspec
import sqlalchemy as sa

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.db.tables import uploads as table
from taxiway.storage import objects
from taxiway.storage.blobs import Blobs, Content, Writer, new_id
from taxiway.storage.conditions import ALWAYS, Conditions
from taxiway.storage.objects import Metadata, Object

TOGETHER = 100  # sessions that one transaction forgets
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


class BadDigest(errors.InvalidArgument):
    """Bytes that are not those that the sender hashed."""


class Checksums(msgspec.Struct, frozen=True):
    """What the sender says the bytes hash to, in base64; None: not said."""

    md5: str | None = None
    crc32c: str | None = None

    def check(self, name: str, content: Content) -> None:
        """Raises BadDigest that names both values."""
        for word, told, found in (("MD5", self.md5, content.md5), ("CRC32C", self.crc32c, content.crc32c)):
            if told is not None and told != found:
                raise BadDigest(
                    f"Provided {word} hash {told!r} doesn't match calculated {word} hash {found!r} of {name!r}: the "
                    "bytes were damaged on their way, or the hash is of other bytes. Nothing was stored; send it again."
                )


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What the finished object is to be, as the session's first request said."""

    metadata: Metadata
    conditions: Conditions = ALWAYS
    checksums: Checksums = Checksums()
    may_replace: bool = False


class Session(msgspec.Struct, frozen=True):
    """A session as it is now; `received` bytes are durable, `result` is the object once it is finished."""

    id: str
    bucket: str
    name: str
    owner: str
    size: int | None
    received: int
    intent: Intent
    result: Object | None


class ContentRange(msgspec.Struct, frozen=True):
    """bytes FIRST-LAST/TOTAL; no FIRST and LAST: a question (or an empty end); no TOTAL: not known yet."""

    first: int | None
    last: int | None
    total: int | None


def content_range(text: str) -> ContentRange:
    """
    >>> content_range("bytes 0-524287/*")
    ContentRange(first=0, last=524287, total=None)
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise errors.InvalidArgument(
            f"Content-Range: expected 'bytes FIRST-LAST/TOTAL', 'bytes FIRST-LAST/*' or 'bytes */TOTAL'; got {text!r}."
        )
    first, last, total = (int(word) if word and word != "*" else None for word in match.groups())
    if first is not None and last is not None and (last < first or (total is not None and last >= total)):
        raise errors.InvalidArgument(f"Content-Range: {text!r} ends before it begins, or past its total.")
    return ContentRange(first, last, total)


async def begin(
    db: Database, bucket: str, name: str, intent: Intent, *, owner: str, size: int | None, now: float
) -> str:
    """A new session's id. Raises NotFound for a bucket that does not exist."""
    names.object_name(name, "name")
    session = new_id()

    def work(rows: sa.Connection) -> None:
        try:
            rows.execute(
                sa.insert(table),
                {
                    "id": session,
                    "bucket": bucket,
                    "name": name,
                    "owner": owner,
                    "size": size,
                    "received": 0,
                    "intent": msgspec.to_builtins(intent),
                    "created": now,  # `result` is left out: a None would be stored as the JSON text null
                },
            )
        except sa.exc.IntegrityError as error:
            raise errors.NotFound(f"The bucket gs://{bucket} does not exist.") from error

    await db.commit(work)
    return session


def find(db: Database, session: str) -> Session:
    """Raises NotFound for a session that was cancelled, expired or never was."""
    with db.read() as rows:
        row = rows.execute(_SELECT, {"session": session}).first()
    if row is None:
        raise errors.NotFound(
            "This resumable upload is not known: it was cancelled, a week has passed, or its URL is incomplete. "
            "Start the upload again."
        )
    return Session(
        id=row.id,
        bucket=row.bucket,
        name=row.name,
        owner=row.owner,
        size=row.size,
        received=row.received,
        intent=msgspec.convert(row.intent, Intent),
        result=None if row.result is None else msgspec.convert(row.result, Object),
    )


async def receive(
    db: Database,
    blobs: Blobs,
    session: str,
    body: AsyncIterator[bytes],
    said: ContentRange | None,
    *,
    checksums: Checksums,
    now: float,
) -> Object | int:
    """Take what a request brings: the object if that was all of it, else how many bytes are durable so far.

    Bytes that are here already are skipped. `said` None: the body is the whole content. A newer request ends an older
    one of the same session, whose connection may be dead without our knowing. A body that is cut off keeps what came.
    Raises NotFound, InvalidArgument (a gap, another total, a wrong checksum), Aborted (a newer request took over),
    ConditionNotMet, StorageFull.
    """
    writer = _writer(db, blobs, session)
    async with writer.turn:
        held = find(db, session)
        if held.result is not None:
            return held.result
        if blobs.open_uploads.get(session) is not writer:
            raise errors.Aborted("Another request ended this upload meanwhile; ask for its state and go on.")
        if writer.size != held.received:
            await _taken_up(db, blobs, held, writer)
        try:
            return await _received(db, blobs, held, writer, body, said, checksums, now)
        except errors.StorageFull:
            blobs.open_uploads.pop(session, None)
            await writer.let_go()
            await asyncio.to_thread(blobs.cut, session, held.received)  # what was not acknowledged takes no room
            raise


async def cancel(db: Database, blobs: Blobs, session: str) -> None:
    """Forget a session and its bytes. Raises NotFound."""
    writer = _writer(db, blobs, session)
    async with writer.turn:
        await _drop(db, blobs, session, writer)


def forget(blobs: Blobs, sessions: Iterable[str]) -> None:
    """Remove the bytes of sessions whose rows are gone with their bucket."""
    for session in sessions:
        blobs.open_uploads.pop(session, None)
        blobs.remove([session])


def unfinished(db: Database) -> list[tuple[str, str, str, float]]:
    """(session, bucket, name, created) of all that were begun and did not become an object."""
    asked = sa.select(table.c.id, table.c.bucket, table.c.name, table.c.created).where(table.c.result.is_(None))
    with db.read() as rows:
        return [(each.id, each.bucket, each.name, each.created) for each in rows.execute(asked)]


def forget_finished(db: Database, *, until: float) -> int:
    """Forget some sessions that became objects and were begun by then; answers how many. 0: there were none."""
    some = sa.select(table.c.id).where(table.c.created <= until, table.c.result.is_not(None)).limit(TOGETHER)
    with db.read() as rows:
        if rows.execute(some.limit(1)).first() is None:
            return 0
    return db.write(lambda rows: rows.execute(sa.delete(table).where(table.c.id.in_(some))).rowcount)


_SELECT = sa.select(
    *(table.c[name] for name in ("id", "bucket", "name", "owner", "size", "received", "intent", "result"))
).where(table.c.id == sa.bindparam("session"))


def _writer(db: Database, blobs: Blobs, session: str) -> Writer:
    """The session's writer; whoever reads a body into it now is stopped."""
    writer = blobs.open_uploads.get(session)
    if writer is None:
        writer = blobs.writer(size=find(db, session).size, blob=session)
        blobs.open_uploads[session] = writer
    elif writer.reading is not None:
        writer.reading.cancel()
    return writer


async def _taken_up(db: Database, blobs: Blobs, held: Session, writer: Writer) -> None:
    """Read again what another process, or a writer that failed, made durable."""
    try:
        await asyncio.to_thread(writer.reread, held.received)
    except FileNotFoundError as error:
        await _drop(db, blobs, held.id, writer)
        raise errors.NotFound("The bytes of this resumable upload are gone. Start the upload again.") from error


async def _received(
    db: Database,
    blobs: Blobs,
    held: Session,
    writer: Writer,
    body: AsyncIterator[bytes],
    said: ContentRange | None,
    checksums: Checksums,
    now: float,
) -> Object | int:
    first, most, total = _expected(held, said)
    try:
        came = await _pour(writer, body, first, most)
    except errors.StorageFull:
        raise
    except BaseException:
        await asyncio.shield(_keep(db, writer))
        raise
    if said is None:
        if came < writer.size:
            raise errors.InvalidArgument(
                f"Without Content-Range the body is the whole content, and it has {came} bytes where {writer.size} "
                "have arrived already. Ask with 'Content-Range: bytes */*', and go on from there."
            )
        total = writer.size if held.size is None else held.size
    if total is None or writer.size != total:
        return await _keep(db, writer)
    return await _finish(db, blobs, held, writer, checksums, now)


def _expected(held: Session, said: ContentRange | None) -> tuple[int, int | None, int | None]:
    """(where the body begins, how many bytes it may have, the total if it is known)."""
    if said is None:
        return 0, held.size, held.size
    total = held.size if said.total is None else said.total
    if held.size is not None and total != held.size:
        raise errors.InvalidArgument(
            f"Content-Range: this upload was announced with {held.size} bytes in all, and now says {total}."
        )
    if said.first is None or said.last is None:
        if total is not None and total < held.received:
            raise errors.InvalidArgument(
                f"Content-Range: {held.received} bytes have arrived already, more than the total of {total}."
            )
        return held.received, 0, total
    if said.first > held.received:
        raise errors.InvalidArgument(
            f"Content-Range: the next byte to send is {held.received}, and this starts at {said.first}. Ask with "
            "'Content-Range: bytes */*', and go on from there."
        )
    return said.first, said.last - said.first + 1, total


async def _pour(writer: Writer, body: AsyncIterator[bytes], first: int, most: int | None) -> int:
    """Write the body in a task of its own, so that a newer request can stop it; how many bytes it has."""
    reading = writer.reading = asyncio.ensure_future(_read(writer, body, first, most))
    try:
        await asyncio.wait({reading})
        if reading.cancelled():
            raise errors.Aborted("A newer request of the same upload took over.")
        return reading.result()
    finally:
        writer.reading = None
        if reading.cancel():
            await asyncio.wait({reading})


async def _read(writer: Writer, body: AsyncIterator[bytes], first: int, most: int | None) -> int:
    skip, came = writer.size - first, 0
    async for chunk in body:
        came += len(chunk)
        if most is not None and came > most:
            raise errors.InvalidArgument(
                f"The body has more bytes than it announced: {most} were expected. Check Content-Range and "
                "X-Upload-Content-Length."
            )
        fresh = chunk[skip:] if skip > 0 else chunk
        skip -= min(skip, len(chunk)) if skip > 0 else 0
        if fresh:
            await writer.write(fresh)
    return came


async def _keep(db: Database, writer: Writer) -> int:
    """Make durable what came, and note how much it is."""
    received = await writer.rest()
    await db.commit(
        lambda rows: rows.execute(sa.update(table).where(table.c.id == writer.blob).values(received=received)).rowcount
    )
    return received


async def _finish(
    db: Database, blobs: Blobs, held: Session, writer: Writer, checksums: Checksums, now: float
) -> Object:
    def note(rows: sa.Connection, made: Object) -> None:
        done = sa.update(table).where(table.c.id == held.id).values(result=msgspec.to_builtins(made))
        if rows.execute(done).rowcount == 0:
            raise errors.NotFound("This resumable upload was cancelled meanwhile.")

    def replacing() -> None:
        if not held.intent.may_replace:
            raise errors.PermissionDenied(
                f"{held.owner} does not have storage.objects.delete on gs://{held.bucket}, which replacing "
                f"{held.name!r} takes. Grant it: taxiway storage buckets add-iam-policy-binding gs://{held.bucket} "
                f"--member={held.owner} --role=roles/storage.objectAdmin"
            )

    content = await writer.finish()
    try:
        held.intent.checksums.check(held.name, content)
        checksums.check(held.name, content)
        made = await objects.insert(
            db,
            blobs,
            held.bucket,
            held.name,
            content,
            held.intent.metadata,
            owner=held.owner,
            now=now,
            conditions=held.intent.conditions,
            replacing=replacing,
            also=note,
        )
    except errors.Error:
        await _drop(db, blobs, held.id, writer)
        raise
    blobs.open_uploads.pop(held.id, None)
    return made


async def _drop(db: Database, blobs: Blobs, session: str, writer: Writer) -> None:
    blobs.open_uploads.pop(session, None)
    gone = sa.delete(table).where(table.c.id == session, table.c.result.is_(None))
    if await db.commit(lambda rows: rows.execute(gone).rowcount):
        await writer.abandon()
