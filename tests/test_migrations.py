"""The tables that the migrations make are the tables that are drawn."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from taxiway import errors
from taxiway.compute import logs
from taxiway.db import migrate, tables


def made(path):
    with closing(sqlite3.connect(path)) as rows:
        return {name for (name,) in rows.execute("select name from sqlite_master where type = 'table'")}


def test_the_migrated_tables_are_those_that_are_drawn(tmp_path):
    path = tmp_path / "taxiway.db"
    migrate.upgrade(path)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as rows:
        context = MigrationContext.configure(rows, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()
    assert made(path) == {*tables.metadata.tables, "alembic_version"}


def test_a_second_upgrade_changes_nothing(tmp_path):
    path = tmp_path / "100% taxi #1.db"
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as rows:
        rows.execute("insert into blobs (id, size) values ('kept', 1)")
        rows.commit()
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as rows:
        assert rows.execute("select id from blobs").fetchall() == [("kept",)]


def test_an_upgrade_that_breaks_off_leaves_the_database_as_it_was(tmp_path):
    path = tmp_path / "taxiway.db"
    with closing(sqlite3.connect(path)) as rows:
        rows.execute("create table versions (stands_in_the_way)")
    with pytest.raises(errors.FailedPrecondition, match="already exists"):
        migrate.upgrade(path)
    assert made(path) == {"versions"}


def test_a_database_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "taxiway.db"
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as rows:
        rows.execute("update alembic_version set version_num = '9999'")
        rows.commit()
    with pytest.raises(errors.FailedPrecondition, match="later version"):
        migrate.upgrade(path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "taxiway.db"
    path.write_bytes(b"this is not SQLite's\n" * 1000)
    with pytest.raises(errors.FailedPrecondition, match="no database of this program"):
        migrate.upgrade(path)


def test_lines_that_an_earlier_version_kept_are_counted_in_their_logs_book(tmp_path):
    path = tmp_path / "taxiway.db"
    command.upgrade(migrate.config(path), "0001")
    with closing(sqlite3.connect(path)) as rows:
        line = "insert into logs (project, subject, insert_id, timestamp, severity, task, message, created)"
        rows.executemany(
            f"{line} values ('p', ?, ?, ?, 'INFO', 't', 'four', 0)", [("j", 1, "a"), ("j", 2, "b"), ("k", 1, "c")]
        )
        rows.commit()
    migrate.upgrade(path)
    with closing(sqlite3.connect(path)) as rows:
        kept = rows.execute(
            "select subject, lines, bytes, oldest, newest, cut from logbooks order by subject"
        ).fetchall()
        trials = rows.execute("select distinct trial from logs").fetchall()
    size = len("four") + logs.OVERHEAD
    assert kept == [("j", 2, 2 * size, "a", "b", 0), ("k", 1, size, "c", "c", 0)]
    assert trials == [("",)]
