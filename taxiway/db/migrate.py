"""Bring a home's database up to date with Alembic, from nothing or from any earlier version."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from taxiway import errors
from taxiway.db.database import storage_full


def upgrade(database: Path) -> None:
    """All or nothing: a kill between any two steps leaves the database as it was.

    Raises StorageFull if the file cannot be written, FailedPrecondition for one that is no database of this program,
    or of a later version of it.
    """
    try:
        command.upgrade(config(database), "head")
    except CommandError as error:
        raise errors.FailedPrecondition(
            f"{database} was made by a later version of this program ({error}). Start that version, or take another "
            "home with --home DIR."
        ) from error
    except sa.exc.DatabaseError as error:
        told = storage_full(error) or errors.FailedPrecondition(
            f"{database} is damaged, or no database of this program ({error.orig}). Put a copy of it back, or take "
            "another home with --home DIR."
        )
        raise told from error


def config(database: Path) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    made.set_main_option("sqlalchemy.url", f"sqlite:///{database}".replace("%", "%%"))
    return made
