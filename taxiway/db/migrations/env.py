"""Alembic's entry: one connection, one transaction, batch mode for SQLite's ALTERs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from taxiway.db import tables

engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url", ""))
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=tables.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
