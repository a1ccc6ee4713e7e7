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

from taxiway import errors, files, handles, summaries
from taxiway.plan import METRIC_FILE, Work
from taxiway.replica.wire import Wire

log = logging.getLogger(__name__)

EVERY_S = 2.0
MOST = 500  # measurements in one report; of more those evenly spaced, and the last
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
        self._read: dict[Path, tuple[int, int]] = {}  # file -> its size and time, as it was read
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
            seen = dict.fromkeys(each for each in self._found() if math.isfinite(each[1]) and each not in self._told)
            if seen:
                self.wire.measure(summaries.thinned(list(seen), MOST))
                self._told.update(seen)
        except errors.Error as error:
            log.warning("measurements were not taken: %s", error)
        except Exception:  # noqa: BLE001 - the edge: a file that nobody can read is no reason to end a trial
            log.error("the metric could not be read\n%s", traceback.format_exc())

    def _found(self) -> Iterator[tuple[int, float]]:
        """(step, value) of all that files say which have changed, in each file's own order."""
        yield from hypertunes(self._changed(self.folder / METRIC_FILE.lstrip("/")), self.tag)
        for file in sorted((self.folder / handles.WORK).rglob("*tfevents*")):
            yield from summaries.scalars(self._changed(file), self.tag)

    def _changed(self, file: Path) -> bytes:
        """What a file holds; nothing if it was read as it is, or cannot be: the code may have made anything of it."""
        try:
            found = file.lstat()
            now = (found.st_size, found.st_mtime_ns)
            if self._read.get(file) == now or file.parent.is_symlink():
                return b""
            data = files.strangers(file, LARGEST)
        except OSError:
            return b""
        self._read[file] = now
        return data


def hypertunes(data: bytes, tag: str) -> Iterator[tuple[int, float]]:
    """(step, value) of cloudml-hypertune's lines, which are JSON of strings.

    >>> list(hypertunes(b'{"global_step": "10", "timestamp": 1.5, "trial": "1", "loss": "0.93"}', "loss"))
    [(10, 0.93)]
    """
    for line in data.decode("utf-8", "replace").splitlines():
        with suppress(ValueError, TypeError, AttributeError):
            told = json.loads(line)
            if tag in told:
                yield int(float(told.get("global_step") or 0)), float(told[tag])
