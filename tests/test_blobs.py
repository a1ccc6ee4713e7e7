"""Blobs: what is finished is whole and durable, what is abandoned is gone, what a crash leaves is swept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os

import google_crc32c
import pytest
import sqlalchemy as sa

from taxiway import errors
from taxiway.db.tables import blobs as table
from taxiway.storage.blobs import BATCH, SMALL, Blobs, disk


@pytest.fixture
def blobs(tmp_path):
    made = Blobs(tmp_path / "blobs")
    yield made
    made.close()


async def written(blobs, data, *, chunk=65536, size=None):
    writer = blobs.writer(size=size)
    for start in range(0, len(data), chunk):
        await writer.write(data[start : start + chunk])
    return await writer.finish()


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, BATCH, 3 * BATCH + 5])
@pytest.mark.parametrize("announced", [True, False])
def test_content_is_hashed_and_at_rest(blobs, size, announced):
    data = os.urandom(size)
    content = asyncio.run(written(blobs, data, size=size if announced else None))
    assert content.size == size
    assert content.md5 == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert content.crc32c == base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    if size <= SMALL:
        assert content.data == data
        assert list(blobs.folder.iterdir()) == []
    else:
        assert blobs.path(content.blob).read_bytes() == data


def test_a_body_shorter_than_announced_takes_no_more_room_than_it_has(blobs):
    content = asyncio.run(written(blobs, bytes(BATCH), size=10 * BATCH))
    assert blobs.path(content.blob).stat().st_size == BATCH


def test_an_abandoned_writer_leaves_nothing(blobs):
    async def give_up():
        writer = blobs.writer(size=100 * BATCH)
        for _ in range(70):
            await writer.write(bytes(65536))
        await writer.abandon()

    asyncio.run(give_up())
    assert list(blobs.folder.iterdir()) == []


def test_a_cancelled_write_loses_no_byte(blobs):
    """Whoever is cancelled while a batch is handed over can go on with what came."""
    data = [os.urandom(65536) for _ in range(200)]

    async def interrupted():
        writer = blobs.writer()
        for chunk in data:
            task = asyncio.ensure_future(writer.write(chunk))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        return await writer.finish()

    content = asyncio.run(interrupted())
    assert blobs.path(content.blob).read_bytes() == b"".join(data)
    assert content.md5 == base64.b64encode(hashlib.md5(b"".join(data)).digest()).decode()


def test_a_session_is_read_again_after_a_restart(blobs, tmp_path):
    data = os.urandom(500_000)

    async def first():
        writer = blobs.writer(blob="session")
        await writer.write(data[:300_000])
        assert await writer.rest() == 300_000
        await writer.write(data[300_000:])
        await writer._hand_over()  # on the disk, and never acknowledged
        await writer.let_go()

    async def second():
        again = Blobs(tmp_path / "blobs")
        writer = again.writer(blob="session")
        writer.reread(300_000)
        await writer.write(data[300_000:])
        content = await writer.finish()
        again.close()
        return content

    asyncio.run(first())
    content = asyncio.run(second())
    assert content.md5 == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert blobs.path("session").read_bytes() == data


def test_parts_are_joined_without_holding_them(blobs):
    big = os.urandom(BATCH + 7)
    content = asyncio.run(written(blobs, big))
    joined = blobs.join([(content.blob, None), ("x", b"tail"), (content.blob, None)])
    assert blobs.path(joined.blob).read_bytes() == big + b"tail" + big
    assert joined.crc32c == base64.b64encode(google_crc32c.value(big + b"tail" + big).to_bytes(4, "big")).decode()
    assert blobs.join([("x", b"a"), ("y", b"b")]).data == b"ab"
    before = set(blobs.folder.iterdir())
    with pytest.raises(FileNotFoundError):
        blobs.join([(content.blob, None), ("gone", None)])
    assert set(blobs.folder.iterdir()) == before


def test_what_no_row_knows_is_swept(blobs, db):
    kept = asyncio.run(written(blobs, bytes(SMALL + 1)))
    asyncio.run(written(blobs, bytes(SMALL + 1)))
    db.write(lambda rows: rows.execute(sa.insert(table), {"id": kept.blob, "size": kept.size}).rowcount)
    assert blobs.sweep(db, now=0) == 1
    assert [each.name for each in blobs.folder.iterdir()] == [kept.blob]


def test_generations_grow_even_if_the_clock_goes_back(blobs):
    assert blobs.generation(10.0) == 10_000_000
    assert blobs.generation(5.0) == 10_000_001


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EDQUOT"])
def test_a_full_or_read_only_disk_is_said_so(number):
    code = getattr(__import__("errno"), number)
    with pytest.raises(errors.StorageFull, match="Free some space"), disk():
        raise OSError(code, os.strerror(code))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_in_the_middle_of_an_upload_leaves_nothing(blobs):
    async def fill():
        writer = blobs.writer()
        writer._file = os.open("/dev/full", os.O_WRONLY)
        try:
            for _ in range(200):
                await writer.write(bytes(65536))
            await writer.finish()
        except errors.StorageFull:
            await writer.abandon()
            raise

    with pytest.raises(errors.StorageFull):
        asyncio.run(fill())
    assert list(blobs.folder.iterdir()) == []
