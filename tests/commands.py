"""Commands of `taxiway` one after another in a process of their own: each costs its work, and not a start of Python.

Run as a program it reads {"words", "piped"} a line and answers {"code", "out", "err"} a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys

from taxiway.cli import app


class Commands:
    """A context: `run("projects", "list", piped="...", code=1)` answers stdout, or stderr if it is to fail."""

    def __init__(self, **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TAXIWAY_", "CLOUDSDK_"))}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, __file__], env={**kept, **variables}, text=True, **pipes)

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate("", timeout=30)

    def run(self, *words: str, piped: str = "", code: int = 0) -> str:
        print(json.dumps({"words": words, "piped": piped}), file=self.process.stdin, flush=True)
        told = json.loads(self.process.stdout.readline())
        assert told["code"] == code, told["err"]
        assert "Traceback" not in told["err"]
        return told["out"] if code == 0 and told["out"] else told["err"]


def main() -> None:
    asked = sys.stdin
    for line in asked:
        told = json.loads(line)
        sys.stdin = io.StringIO(told["piped"])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = app.main(told["words"])
        print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)


if __name__ == "__main__":
    main()
