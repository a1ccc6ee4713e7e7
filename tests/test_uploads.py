"""Resumable sessions, whichever way the bytes are cut: the object is always what was sent."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taxiway import errors
from taxiway.iam import projects
from taxiway.storage import buckets, objects, uploads
from taxiway.storage.blobs import Blobs
from taxiway.storage.objects import Metadata
from taxiway.storage.uploads import Checksums, ContentRange, Intent

OWNER = "user:ann@example.com"
DATA = os.urandom(150_000)


@pytest.fixture
def house(db, tmp_path):
    db.write(lambda rows: projects.create(rows, "rides-project", owners=[OWNER], now=1))
    buckets.insert(db, "rides-project", "rides", now=1)
    blobs = Blobs(tmp_path / "blobs")
    yield db, blobs
    blobs.close()


async def pieces(data, size=65536):
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def cut(data):
    yield data
    raise ConnectionError("the client is gone")


def begin(db, **rest):
    intent = Intent(metadata=Metadata(), **rest)
    return uploads.begin(db, "rides", "o", intent, owner=OWNER, size=None, now=1)


def receive(db, blobs, session, body, said):
    return uploads.receive(db, blobs, session, body, said, checksums=Checksums(), now=2)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, len(DATA)), max_size=5).map(sorted),
    overlap=st.integers(0, 70_000),
    restart=st.booleans(),
    broken=st.booleans(),
)
def test_any_sequence_of_chunks_gives_the_whole(house, tmp_path, cuts, overlap, restart, broken):
    db, _ = house
    blobs = Blobs(tmp_path / "blobs")

    async def go():
        nonlocal blobs
        session, received = await begin(db, may_replace=True), 0
        for end in cuts:
            first = max(received - overlap, 0)
            if end <= first:
                continue
            body = DATA[first:end]
            if broken:
                with pytest.raises(ConnectionError):
                    await receive(db, blobs, session, cut(body), ContentRange(first, len(DATA) - 1, len(DATA)))
            else:
                received = await receive(db, blobs, session, pieces(body), ContentRange(first, end - 1, None))
            if restart:
                blobs.close()
                blobs = Blobs(tmp_path / "blobs")
            received = await receive(db, blobs, session, pieces(b""), ContentRange(None, None, None))
            assert received == uploads.find(db, session).received == max(received, end)
        last = ContentRange(received, len(DATA) - 1, len(DATA))
        if received == len(DATA):
            last = ContentRange(None, None, len(DATA))
        made = await receive(db, blobs, session, pieces(DATA[received:]), last)
        assert await receive(db, blobs, session, pieces(b""), last) == made
        return made

    made = asyncio.run(go())
    assert made.size == len(DATA)
    assert blobs.path(made.blob).read_bytes() == DATA
    assert objects.get(db, "rides", "o") == made
    blobs.close()


def test_a_gap_or_another_total_is_refused_and_the_session_goes_on(house):
    db, blobs = house

    async def go():
        session = await begin(db)
        await receive(db, blobs, session, pieces(DATA[:10]), ContentRange(0, 9, None))
        with pytest.raises(errors.InvalidArgument, match="next byte to send is 10"):
            await receive(db, blobs, session, pieces(DATA[20:30]), ContentRange(20, 29, None))
        with pytest.raises(errors.InvalidArgument, match="10 bytes have arrived"):
            await receive(db, blobs, session, pieces(b""), ContentRange(None, None, 5))
        return await receive(db, blobs, session, pieces(DATA[10:20]), ContentRange(10, 19, 20))

    assert asyncio.run(go()).size == 20


def test_a_writer_without_delete_does_not_replace(house):
    db, blobs = house

    async def go():
        for expected in (None, errors.PermissionDenied):
            session = await begin(db)
            if expected is None:
                await receive(db, blobs, session, pieces(b"1"), None)
                continue
            with pytest.raises(expected, match="add-iam-policy-binding"):
                await receive(db, blobs, session, pieces(b"2"), None)
            with pytest.raises(errors.NotFound):
                uploads.find(db, session)

    asyncio.run(go())


def test_a_cancelled_or_unknown_session_is_not_found(house):
    db, blobs = house

    async def go():
        session = await begin(db)
        await receive(db, blobs, session, pieces(DATA), ContentRange(0, len(DATA) - 1, None))
        await uploads.cancel(db, blobs, session)
        assert list(blobs.folder.iterdir()) == []
        for gone in (session, "never"):
            with pytest.raises(errors.NotFound, match="Start the upload again"):
                await receive(db, blobs, gone, pieces(b""), None)

    asyncio.run(go())


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes 1-0/5", "bytes 0-5/5", "bytes -1/5", "items 0-1/2", "bytes 0-1", "bytes a-b/c"]
)
def test_a_malformed_content_range_is_told(text):
    with pytest.raises(errors.InvalidArgument, match="Content-Range"):
        uploads.content_range(text)


def test_a_session_of_last_week_is_swept(house):
    db, blobs = house

    async def go():
        session = await begin(db)
        await receive(db, blobs, session, pieces(DATA), ContentRange(0, len(DATA) - 1, None))
        return session

    session = asyncio.run(go())
    assert blobs.sweep(db, now=2) == 0
    assert blobs.sweep(db, now=8 * 86_400) == 1
    with pytest.raises(errors.NotFound):
        uploads.find(db, session)
