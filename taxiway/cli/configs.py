"""A file given by --config: JSON, else YAML."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from taxiway import errors


def read(path: Path, holds: str) -> dict[str, Any]:
    """What is in it, which must be an object that `holds` what it says. Raises InvalidArgument."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidArgument(f"--config: {path} cannot be read: {error}") from error
    try:
        value = json.loads(text)
    except ValueError:
        yaml = importlib.import_module("yaml")  # no other command waits for it
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as wrong:
            raise errors.InvalidArgument(f"--config: {path} is neither JSON nor YAML: {wrong}") from wrong
    if not isinstance(value, dict):
        raise errors.InvalidArgument(f"--config: {path} must hold {holds}.")
    return value
