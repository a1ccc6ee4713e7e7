"""Alembic's entry: one connection, one transaction (SQLite's DDL included), batch mode for SQLite's ALTERs."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa
from alembic import context

from taxiway.db import tables

engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url", ""))


@sa.event.listens_for(engine, "connect")
def leave_transactions_to_us(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin one only before an INSERT: too late for CREATE TABLE


@sa.event.listens_for(engine, "begin")
def begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


try:
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=tables.metadata, render_as_batch=True, transactional_ddl=True
        )
        with context.begin_transaction():
            context.run_migrations()
finally:
    engine.dispose()
