"""python -m taxiway: the command line."""

from __future__ import annotations

import sys

from taxiway.cli import app


def main() -> None:
    sys.exit(app.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
