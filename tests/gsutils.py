"""Google's own gsutil, in a virtual environment of its own: its old libraries would not get along with ours."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from taxiway.environments import folders, uv

LOCK = Path(__file__).parent.parent / "requirements" / "gsutil.lock"


def build() -> Path:
    """The program, built once for all sessions below the cache. Raises uv.Unreachable without a network."""
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = folders.cache() / "tests" / f"gsutil-{key}"

    def install(turn: int, _say: object) -> dict[str, object]:
        uv.venv(folder, Path(sys.executable).resolve(), "gsutil", turn)
        wanted = ["--require-hashes", "--requirements", str(LOCK)]
        uv.run(["pip", "install", "--python", str(folders.interpreter(folder)), *wanted], turn, None)
        return {"packages": folders.installed(next(folder.glob("lib/python*/site-packages")))}

    folders.once(folder, install, None)
    return folder / "bin" / "gsutil"


def run(
    program: Path, boto: Path, home: Path, words: Sequence[str], **rest: object
) -> subprocess.CompletedProcess[str]:
    """One command, with no settings but those of a boto file; what it keeps for itself goes to `home`."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLOUDSDK_", "TAXIWAY_", "BOTO", "PYTHON")) and not name.lower().endswith("_proxy")
    }
    return subprocess.run(
        [str(program), *words],
        capture_output=True,
        text=True,
        env={**environ, "BOTO_CONFIG": str(boto), "HOME": str(home)},
        **{"timeout": 120, **rest},
    )
