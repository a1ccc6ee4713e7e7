"""The built rooms, handed to whoever answers a request."""

from __future__ import annotations

from dataclasses import dataclass

from taxiway.compute.streams import Streams
from taxiway.db.database import Database
from taxiway.iam.access import Access
from taxiway.iam.audit import Audit
from taxiway.iam.keys import Keys
from taxiway.iam.users import Passwords
from taxiway.jobs.line import Line
from taxiway.jobs.machines import Machines
from taxiway.jobs.preflight import Preflight
from taxiway.jobs.suggestions import Suggestions
from taxiway.jobs.worker import Worker
from taxiway.models.deployments import Deployments
from taxiway.settings import Settings
from taxiway.storage.blobs import Blobs


@dataclass(slots=True, kw_only=True)
class House:
    settings: Settings
    db: Database
    keys: Keys
    access: Access
    passwords: Passwords
    audit: Audit
    blobs: Blobs
    deployments: Deployments
    machines: Machines
    preflight: Preflight
    line: Line
    jail: str  # whether code runs in one here, and why not, in a sentence
    worker: Worker
    streams: Streams
    suggestions: Suggestions
