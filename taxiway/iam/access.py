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

Asked = tuple[str, str, str, str | None, str | None, str | None]  # member, scopes, permission, bucket, project, within


class Access:
    """Safe to ask from any thread. The methods named `remembered` never touch the database."""

    def __init__(self, db: Database, keys: Keys) -> None:
        self.db, self.keys = db, keys
        self._callers: dict[str, tuple[Caller, float]] = {}
        self._allowed: dict[Asked, float] = {}
        self.epoch = 0  # grows with every change of a policy: what was allowed before is to be asked again

    def remembered_caller(self, bearer: str) -> Caller | None:
        """The caller of a token that was believed a moment ago."""
        caller, until = self._callers.get(bearer, (None, 0.0))
        return caller if until > time.monotonic() else None

    def caller(self, bearer: str, *, now: float) -> Caller:
        """As `Keys.caller`. A token that dies with an attempt is looked up each time."""
        caller = self.remembered_caller(bearer)
        if caller is None:
            epoch = self.epoch
            caller = self.keys.caller(self.db, bearer, now=now)
            if not caller.attempt and self.epoch == epoch:
                _room(self._callers)
                self._callers[bearer] = (caller, time.monotonic() + REMEMBER_S)
        return caller

    def remembered(
        self, who: Caller, permission: str, *, bucket: str | None, project: str | None, within: str | None = None
    ) -> bool:
        """Whether this was allowed a moment ago."""
        asked = (who.member, who.scopes, permission, bucket, project, within)
        return self._allowed.get(asked, 0.0) > time.monotonic()

    def need(
        self, who: Caller, permission: str, *, bucket: str | None, project: str | None, within: str | None = None
    ) -> bool:
        """As `policies.need`. What an object's own list gives is not remembered, but looked up each time."""
        known = within if bucket is None else None  # what a bucket's policy gives holds for all its objects
        if self.remembered(who, permission, bucket=bucket, project=project, within=known):
            return True
        epoch = self.epoch
        by_policy = policies.need(self.db, who, permission, bucket=bucket, project=project, within=within)
        if by_policy and self.epoch == epoch:  # else it may be an answer of before a change
            _room(self._allowed)
            asked = (who.member, who.scopes, permission, bucket, project, known)
            self._allowed[asked] = time.monotonic() + REMEMBER_S
        return by_policy

    def forget(self) -> None:
        """A policy has changed, or somebody was disabled, deleted or logged out: look again."""
        self.epoch += 1
        self._allowed.clear()
        self._callers.clear()


def _room(remembered: dict[str, tuple[Caller, float]] | dict[Asked, float]) -> None:
    if len(remembered) >= MOST:
        remembered.clear()
