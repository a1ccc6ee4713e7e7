"""The look at a job before it is queued: what would fail minutes later is refused now, what may fail is a warning.

Nothing of the person's code runs, and all of it takes a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from taxiway.db.database import Database
from taxiway.jobs import preflight_storage
from taxiway.jobs.machines import Machines, Note
from taxiway.jobs.training import Checked


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, a sentence each, and what the job's log is to be told."""

    checked: tuple[str, ...]
    notes: tuple[Note, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(sentence for severity, sentence in self.notes if severity == "WARNING")


class Preflight:
    """Safe to ask from any thread."""

    def __init__(self, db: Database, machines: Machines) -> None:
        self.db, self.machines = db, machines

    def look(self, job: Checked) -> Report:
        """At a job whose fields are right. Raises PermissionDenied, NotFound."""
        told = job.training
        preflight_storage.packages(self.db, job.identity, told)
        notes = [*self.machines.notes(told), *preflight_storage.notes(self.db, job.identity, told)]
        return Report((), tuple(notes))
