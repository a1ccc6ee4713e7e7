"""The metric that a trial of a tuning job reports: found where cloudml-hypertune and TensorBoard's writers leave it, on
the disk of the replica, and told to the server.

    with metrics.reported(folder, work, wire):
        code = child.wait()

What a trial writes into event files on gs:// the server reads itself.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taxiway import errors, handles, summaries
from taxiway.plan import METRIC_FILE, Work
from taxiway.replica.wire import Wire

log = logging.getLogger(__name__)

EVERY_S = 2.0
MOST = 100  # measurements in one report
LARGEST = 64 * 1024 * 1024  # bytes of a file that is read; the newest entries of hypertune's are few


@contextmanager
def reported(folder: Path, work: Work, wire: Wire) -> Iterator[None]:
    """Look every other second, and once more at the end, if there is a metric to look for: its name is the work's."""
    if not work.metric:
        yield
        return
    reporter = _Reporter(folder, work.metric, wire)
    reporter.start()
    try:
        yield
    finally:
        reporter.stop()


class _Reporter:
    def __init__(self, folder: Path, tag: str, wire: Wire) -> None:
        self.folder, self.tag, self.wire = folder, tag, wire
        self._told: set[tuple[int, float]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What was written last counts: it is the metric of a trial that ends now."""
        self._over.set()
        self._thread.join()
        self._report()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._report()

    def _report(self) -> None:
        try:
            new = [each for each in found(self.folder, self.tag) if each not in self._told]
            for start in range(0, len(new), MOST):
                self.wire.measure(new[start : start + MOST])
            self._told.update(new)
        except errors.Error as error:
            log.warning("measurements were not taken: %s", error)
        except Exception:  # noqa: BLE001 - the edge: a file that nobody can read is no reason to end a trial
            log.error("the metric could not be read\n%s", traceback.format_exc())


def found(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of all that was reported under the tag below an attempt's folder, each once, by their steps."""
    seen: dict[tuple[int, float], None] = {}
    for step, value in (*_of_hypertune(folder / METRIC_FILE.lstrip("/"), tag), *_of_events(folder / handles.WORK, tag)):
        if math.isfinite(value):
            seen[step, value] = None
    return sorted(seen)


def _of_hypertune(file: Path, tag: str) -> Iterator[tuple[int, float]]:
    """Its lines are JSON of strings: {"global_step": "10", "timestamp": 1.5, "trial": "1", TAG: "0.93"}."""
    with suppress(OSError):
        if file.is_symlink() or file.stat().st_size > LARGEST:
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, AttributeError):
                told = json.loads(line)
                if tag in told:
                    yield int(float(told.get("global_step") or 0)), float(told[tag])


def _of_events(folder: Path, tag: str) -> Iterator[tuple[int, float]]:
    for file in sorted(folder.rglob("*tfevents*")):
        with suppress(OSError):
            if file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST:
                yield from summaries.scalars(file.read_bytes(), tag)
