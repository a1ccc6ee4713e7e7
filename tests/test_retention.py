"""Old lines go, some at a time: of what has ended first, and of a running job only where it alone is too much."""

from __future__ import annotations

import time

import sqlalchemy as sa
from trainers import until

from taxiway.compute import filters, logs
from taxiway.compute.retention import Retention
from taxiway.db import migrate
from taxiway.db.database import Database
from taxiway.db.tables import logbooks
from taxiway.db.tables import logs as lines
from taxiway.handles import Said
from taxiway.settings import MIB

PROJECT = "rides-1"
NOW = 1_800_000_000.0
DAY = 86400
BIG = "x" * (MIB // 100 - logs.OVERHEAD)  # a hundredth of a MiB with all that belongs to it


def fill(db, subject, count, *, at=NOW, first=1, message=BIG):
    said = [Said(seq, at, "INFO", f"{message}") for seq in range(first, first + count)]
    logs.append(db, PROJECT, subject, [logs.line(1, "master-replica-0", each) for each in said], now=at)


def keeping(db, *going, days=30, mib=1):
    return Retention(db, days=days, mib=mib, going=lambda rows: {(PROJECT, each) for each in going})


def numbers(db, subject):
    """The numbers of the lines that are left; the service's own are named."""
    found = logs.page(db, [PROJECT], filters.sql(f'resource.labels.job_id="{subject}"'), limit=10_000)
    return [entry.message if entry.task == "service" else int(entry.insert_id[-12:]) for entry in found]


def books(db):
    """What is written down of each log, once it was compared with what there is."""
    with db.read() as rows:
        counted = sa.select(
            lines.c.subject,
            sa.func.count(),
            sa.func.sum(sa.func.length(lines.c.message) + logs.OVERHEAD),
            sa.func.min(lines.c.timestamp),
        ).group_by(lines.c.subject)
        told = sa.select(logbooks.c.subject, logbooks.c.lines, logbooks.c.bytes, logbooks.c.oldest)
        kept = {tuple(row) for row in rows.execute(told)}
        assert kept == {tuple(row) for row in rows.execute(counted)}
        return {subject: size for subject, _, size, _ in kept}


def test_a_logs_book_says_what_it_holds_and_a_line_that_is_sent_again_is_not_counted_again(db):
    for first in (1, 3, 5, 3):
        fill(db, "j", 5, first=first, message=f"{first}ü")
    fill(db, "k", 3)
    assert books(db).keys() == {"j", "k"}
    assert numbers(db, "j") == list(range(1, 10))


def test_where_nothing_is_too_old_or_too_much_nothing_goes(db):
    assert keeping(db).sweep(NOW) == 0
    fill(db, "j", 100)
    assert keeping(db).sweep(NOW + 29 * DAY) == 0
    assert numbers(db, "j") == list(range(1, 101))


def test_old_lines_of_what_has_ended_go_and_those_of_a_running_job_stay(db):
    fill(db, "old", 5, at=NOW - 40 * DAY, message="x")
    fill(db, "runs", 5, at=NOW - 40 * DAY, message="x")
    fill(db, "young", 5, at=NOW - 31 * DAY, message="x")
    fill(db, "young", 5, at=NOW - 29 * DAY, first=6, message="x")
    assert keeping(db, "runs").sweep(NOW) == 10
    assert (numbers(db, "old"), numbers(db, "young")) == ([], [6, 7, 8, 9, 10])
    assert numbers(db, "runs") == [1, 2, 3, 4, 5]
    assert set(books(db)) == {"runs", "young"}


def test_of_too_much_the_oldest_lines_of_what_has_ended_go_and_no_more_than_must(db):
    fill(db, "first", 60, at=NOW - 300)
    fill(db, "runs", 40, at=NOW - 200)
    fill(db, "last", 30, at=NOW - 100)
    assert keeping(db, "runs").sweep(NOW) == 30
    assert numbers(db, "first") == list(range(31, 61))
    assert (len(numbers(db, "runs")), len(numbers(db, "last"))) == (40, 30)
    assert sum(books(db).values()) <= MIB
    fill(db, "runs", 60, first=41)
    keeping(db, "runs").sweep(NOW)
    assert (numbers(db, "first"), numbers(db, "last")) == ([], [])
    assert len(numbers(db, "runs")) == 100  # it has just what all may have


def test_a_running_job_that_is_too_much_alone_loses_its_oldest_and_says_so_once(db):
    fill(db, "runs", 250)
    fill(db, "other", 10)
    keeper = keeping(db, "runs", "other")
    assert keeper.sweep(NOW) > 150
    told = "This log alone has more than TAXIWAY_LOG_MIB=1: its oldest lines are removed."
    left = numbers(db, "runs")
    assert left[-1] == told
    assert left[:-1] == list(range(250 - len(left) + 2, 251))
    assert len(numbers(db, "other")) == 10  # together they are still too much; neither is alone
    fill(db, "runs", 50, first=251, at=NOW + 1)
    assert keeper.sweep(NOW + 1) == 50
    left = numbers(db, "runs")
    assert left.count(told) == 1
    assert left[-50:] == list(range(251, 301))
    assert books(db)["runs"] <= MIB


def test_a_reader_goes_on_behind_lines_that_are_gone(db):
    """What comes later still stands later, even where everything before it was removed."""
    fill(db, "runs", 120, at=NOW)
    seen = logs.page(db, [PROJECT], filters.sql(""), limit=1, newest_first=True)[0].timestamp
    keeping(db, "runs").sweep(NOW)
    fill(db, "runs", 3, first=121, at=NOW - 10, message="late")
    fresh = logs.page(db, [PROJECT], filters.sql(f'timestamp>"{seen}" AND textPayload="late"'), limit=10)
    assert len(fresh) == 3


def test_thousands_of_lines_go_and_their_book_with_them(db):
    fill(db, "old", 2500, at=NOW - 40 * DAY, message="x")
    fill(db, "last", 1, at=NOW)
    assert keeping(db).sweep(NOW) == 2500
    assert set(books(db)) == {"last"}


def test_a_server_keeps_to_its_settings(start_server, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    migrate.upgrade(home / "taxiway.db")
    rows = Database(home / "taxiway.db")
    fill(rows, "old", 5, at=time.time() - 3 * DAY)
    fill(rows, "young", 5, at=time.time() - 1 * DAY)
    try:
        running = start_server(home, TAXIWAY_LOG_DAYS="2")
        until(lambda: numbers(rows, "old") == [])
        assert numbers(rows, "young") == [1, 2, 3, 4, 5]
        assert "5 old lines of logs were removed" in running.log
    finally:
        rows.close()
