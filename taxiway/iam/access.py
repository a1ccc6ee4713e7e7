"""Who may, remembered: a thousand small requests of one caller cost one look at the rows.

Only a yes is remembered, for a second, and `forget` (after a change of a policy) ends it at once: a new grant works
immediately, a grant that was taken back holds for a second at most, and only on another server.
"""

from __future__ import annotations

import time

from taxiway.db.database import Database
from taxiway.iam import policies
from taxiway.iam.keys import Keys
from taxiway.iam.members import Caller

REMEMBER_S = 1.0
MOST = 10_000

Asked = tuple[str, str, str | None, str | None]  # member, permission, bucket, project


class Access:
    """Safe to ask from any thread. The methods named `remembered` never touch the database."""

    def __init__(self, db: Database, keys: Keys) -> None:
        self.db, self.keys = db, keys
        self._callers: dict[str, tuple[Caller, float]] = {}
        self._allowed: dict[Asked, float] = {}

    def remembered_caller(self, bearer: str) -> Caller | None:
        """The caller of a token that was believed a moment ago."""
        caller, until = self._callers.get(bearer, (None, 0.0))
        return caller if until > time.monotonic() else None

    def caller(self, bearer: str, *, now: float) -> Caller:
        """As `Keys.caller`. A token that dies with an attempt is looked up each time."""
        caller = self.remembered_caller(bearer)
        if caller is None:
            caller = self.keys.caller(self.db, bearer, now=now)
            if not caller.attempt:
                _room(self._callers)
                self._callers[bearer] = (caller, time.monotonic() + REMEMBER_S)
        return caller

    def remembered(self, who: Caller, permission: str, *, bucket: str | None, project: str | None) -> bool:
        """Whether this was allowed a moment ago."""
        asked = (who.member, permission, bucket, project)
        return self._allowed.get(asked, 0.0) > time.monotonic()

    def need(self, who: Caller, permission: str, *, bucket: str | None, project: str | None) -> None:
        """As `policies.need`."""
        if self.remembered(who, permission, bucket=bucket, project=project):
            return
        policies.need(self.db, who, permission, bucket=bucket, project=project)
        _room(self._allowed)
        self._allowed[(who.member, permission, bucket, project)] = time.monotonic() + REMEMBER_S

    def forget(self) -> None:
        """A policy has changed: look again."""
        self._allowed.clear()


def _room(remembered: dict[str, tuple[Caller, float]] | dict[Asked, float]) -> None:
    if len(remembered) >= MOST:
        remembered.clear()
