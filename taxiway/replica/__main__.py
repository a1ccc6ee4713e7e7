"""`python -m taxiway.replica FOLDER`: the one replica of the attempt whose order lies in FOLDER."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from pathlib import Path

from taxiway import handles
from taxiway.replica.agent import Agent


def main() -> int:
    folder = Path(sys.argv[1]).absolute()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return handles.TAKEN
    if (folder / "handle.json").exists():
        return handles.TAKEN  # it has lived, and is over
    handles.save(folder / "handle.json", handles.Handle.mine(folder))
    return Agent(folder).run()


if __name__ == "__main__":
    sys.exit(main())
