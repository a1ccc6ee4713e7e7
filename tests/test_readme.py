"""The README is true: its map is the disk, its settings are the settings, its commands and flags exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from taxiway import settings
from taxiway.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = re.search(r"## Where things are\n.*?```text\n(.*?)```", README, re.DOTALL)


def rows() -> dict[str, str]:
    assert MAP, "README.md has no map of files"
    split = (line.split(None, 1) for line in MAP[1].splitlines() if line.strip())
    return {words[0]: words[1] if len(words) > 1 else "" for words in split}


def files() -> list[str]:
    """What git has, or would have if it were added."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [name for name in found if name and (ROOT / name).exists()]


def test_every_file_is_on_the_map() -> None:
    known = rows()
    folders = tuple(name for name in known if name.endswith("/"))
    missing = [name for name in files() if name not in known and not name.startswith(folders)]
    assert not missing, f"README.md's map lacks {missing}"


def test_everything_on_the_map_is_there_and_is_described() -> None:
    for name, words in rows().items():
        assert (ROOT / name).exists(), f"README.md's map has {name}, which is gone"
        assert (ROOT / name).is_dir() == name.endswith("/"), name
        assert words, f"README.md's map says nothing of {name}"


def test_every_setting_is_in_the_table() -> None:
    fields = {f"TAXIWAY_{name.upper()}" for name in settings.Settings.__dataclass_fields__}
    told = set(re.findall(r"`(TAXIWAY_[A-Z_]+)`", README.partition("## Settings")[2]))
    assert told == fields | set(settings.ELSEWHERE)


def commands() -> list[list[str]]:
    """The words of every call of `taxiway` in the README's shell blocks, up to the trainer's own arguments."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        text = re.sub(r"\\\n\s*", " ", block)
        for call in re.findall(r"(?:^|[\s($])(?:\.venv/bin/)?taxiway ([^|()\n#]*)", text):
            words = shlex.split(call.replace('"', ""))
            found.append(words[: words.index("--")] if "--" in words else words)
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_and_flag_exists(words: list[str]) -> None:
    command = get_command(app.app)
    while hasattr(command, "commands"):
        word = words.pop(0)
        assert word in command.commands, f"there is no command {word!r}"
        command = command.commands[word]
    offered = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in offered, f"{command.name} has no {word}"
