"""Google's own gsutil, in the environment that jobs are given it from: its old libraries would not go with ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from taxiway.environments import runtimes


def build() -> Path:
    """The program, built once for all sessions and for jobs. Raises Unavailable without a network."""
    return runtimes.build(runtimes.choose(runtimes.tools()["gsutil"], None)).parent / "gsutil"


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
