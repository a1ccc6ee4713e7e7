"""One writer that commits in groups, many readers: what is promised, on a real file."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import disks
import pytest
import sqlalchemy as sa

from taxiway import errors
from taxiway.db import database, migrate
from taxiway.db.database import GROUP, Database
from taxiway.db.tables import blobs


def insert(name, size=0):
    return lambda tx: tx.execute(blobs.insert().values(id=name, size=size))


def names(db):
    with db.read() as rows:
        return set(rows.execute(sa.select(blobs.c.id)).scalars())


class Held:
    """Keeps the writer busy, so that everything that is written meanwhile becomes one group."""

    def __init__(self, db):
        self.go = threading.Event()
        begun = threading.Event()

        def work(tx):
            begun.set()
            self.go.wait(20)

        self.thread = threading.Thread(target=db.write, args=(work,))
        self.thread.start()
        begun.wait(20)

    def end(self):
        self.go.set()
        self.thread.join()


def grouped(db, *works):
    """The futures of works that are committed together."""
    held = Held(db)
    asked = [db._submit(work) for work in works]
    held.end()
    wait(asked)
    return asked


def test_what_was_written_is_read(db):
    assert db.write(lambda tx: tx.execute(blobs.insert().values(id="a", size=1)).rowcount) == 1
    assert names(db) == {"a"}


def test_a_reader_cannot_write(db):
    with pytest.raises(sa.exc.OperationalError, match="readonly"), db.read() as rows:
        insert("a")(rows)
    assert names(db) == set()


def test_a_reader_sees_one_state_however_long_it_looks(db):
    with db.read() as rows:
        before = rows.execute(sa.select(blobs.c.id)).all()
        db.write(insert("a"))
        assert rows.execute(sa.select(blobs.c.id)).all() == before == []
    assert names(db) == {"a"}


@pytest.mark.parametrize("alone", [True, False])
def test_a_work_that_fails_undoes_its_own_rows_and_nobody_elses(db, alone):
    def fails(tx):
        insert("mine")(tx)
        raise errors.NotFound("no such thing")

    others = [] if alone else [insert("before"), insert("after")]
    asked = grouped(db, *others[:1], fails, *others[1:])
    failed = asked[0 if alone else 1]
    assert isinstance(failed.exception(), errors.NotFound)
    assert names(db) == (set() if alone else {"before", "after"})


def test_a_work_that_sqlite_refuses_is_refused_alone(db):
    first, twice, wrong, last = grouped(
        db, insert("a"), insert("a"), lambda tx: tx.exec_driver_sql("select nothing from nowhere"), insert("b")
    )
    assert isinstance(twice.exception(), sa.exc.IntegrityError)
    assert isinstance(wrong.exception(), sa.exc.OperationalError)
    assert first.exception() is last.exception() is None
    assert names(db) == {"a", "b"}


def test_many_writers_and_readers_at_once_lose_nothing(db):
    def work(number):
        db.write(insert(f"{number:04d}"))
        assert f"{number:04d}" in names(db)  # a writer reads what it wrote

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(work, range(400)))
    assert len(names(db)) == 400


def test_a_group_has_its_limit_and_what_is_over_follows(db):
    asked = grouped(db, *(insert(f"{number}") for number in range(GROUP + 10)))
    assert [each.exception() for each in asked] == [None] * (GROUP + 10)
    assert len(names(db)) == GROUP + 10


def test_a_caller_who_leaves_takes_its_work_along_and_the_writer_goes_on(db):
    async def leave():
        held = await asyncio.to_thread(Held, db)
        waiting = asyncio.create_task(db.commit(insert("left")))
        await asyncio.sleep(0)  # it is in the queue now
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(held.end)
        return await db.commit(insert("stayed"))

    asyncio.run(leave())
    assert names(db) == {"stayed"}


def test_a_work_that_was_withdrawn_is_not_run(db):
    held = Held(db)
    withdrawn = db._submit(insert("a"))
    assert withdrawn.cancel()
    held.end()
    with pytest.raises(CancelledError):
        withdrawn.result()
    db.write(insert("b"))
    assert names(db) == {"b"}


def test_close_finishes_what_waits_and_refuses_what_comes(db):
    held = Held(db)
    waiting = [db._submit(insert(f"{number}")) for number in range(5)]
    closing = threading.Thread(target=db.close)
    closing.start()
    held.end()
    closing.join()
    assert all(each.done() and each.exception() is None for each in waiting)
    with pytest.raises(errors.Unavailable, match="shutting down"):
        db.write(insert("late"))
    db.close()  # twice is once
    with sqlite3.connect(db.path) as again:
        assert again.execute("select count(*) from blobs").fetchone() == (5,)
    again.close()


def test_what_was_acknowledged_survives_a_kill(db):
    db.close()
    program = (
        "import sys, pathlib\n"
        "from taxiway.db.database import Database\n"
        "from taxiway.db.tables import blobs\n"
        "db = Database(pathlib.Path(sys.argv[1]))\n"
        "for number in range(10**6):\n"
        "    db.write(lambda tx: tx.execute(blobs.insert().values(id=f'{number}', size=0)))\n"
        "    print(number, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(db.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    acknowledged = [next(child.stdout) for _ in range(50)]
    child.send_signal(signal.SIGKILL)
    acknowledged += list(child.stdout)
    child.stdout.close()
    child.wait()
    again = Database(db.path)
    assert {line.strip() for line in acknowledged if line.endswith("\n")} <= names(again)
    again.close()


def large(name):
    return lambda tx: tx.execute(blobs.insert().values(id=name, size=0, data=os.urandom(100_000)))


@pytest.fixture
def on_small_disk(db, tmp_path):
    """A database on a disk of 2 MiB."""
    db.close()
    with disks.small_disk(tmp_path / "disk") as folder:
        shutil.copy(db.path, folder / "taxiway.db")
        yield folder / "taxiway.db"


@pytest.mark.parametrize("together", [False, True])
def test_a_full_disk_is_told_and_free_space_is_used_again(on_small_disk, together):
    db = Database(on_small_disk)
    db.write(insert("before"))
    filled = disks.fill(on_small_disk.parent)
    for asked in grouped(db, *(large(f"{number}") for number in range(3 if together else 1))):
        assert isinstance(asked.exception(), errors.StorageFull)
        assert "free some space" in str(asked.exception())
    assert names(db) == {"before"}
    filled.unlink()
    db.write(large("after"))
    assert names(db) == {"before", "after"}
    db.close()


def test_a_read_only_disk_is_told(on_small_disk):
    disks.remount(on_small_disk.parent, "ro")
    db = Database(on_small_disk)
    with pytest.raises(errors.StorageFull):
        db.write(insert("a"))
    db.close()
    with pytest.raises(errors.StorageFull, match="takes no more writes"):
        migrate.upgrade(on_small_disk.with_name("another.db"))


# --- who listens ---


def telling(name, topic):
    def work(tx):
        insert(name)(tx)
        database.tell(tx, topic)

    return work


def test_who_listens_hears_of_what_is_on_the_disk_before_its_writer_is_answered(db):
    heard = []
    db.listen(lambda topics: heard.append((topics, names(db))))
    db.write(telling("a", ("log", "x")))
    db.write(insert("b"))
    assert heard == [({("log", "x")}, {"a"})]


def test_a_listener_that_stumbles_takes_nobodys_write_for_undone(db, caplog):
    db.listen(lambda topics: 1 / 0)
    asked = grouped(db, telling("a", ("log", "x")), telling("b", ("log", "y")))
    assert [each.exception() for each in asked] == [None, None]
    assert names(db) == {"a", "b"}
    assert "who listens to the database stumbled" in caplog.text


@pytest.mark.parametrize("count", [0, 1, database.TOGETHER, 2 * database.TOGETHER + 1])
def test_many_rows_go_in_by_few_statements_and_known_ones_once(db, count):
    rows = [(f"{number}", 0) for number in range(count)]

    def work(tx):
        return database.insert(tx, "blobs", ("id", "size"), rows, known="IGNORE")

    assert (db.write(work), db.write(work)) == (count, 0)
    assert len(names(db)) == count
