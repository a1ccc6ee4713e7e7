"""A receipt: what a run was made of, so that a run here and a queued one can be told apart, or told to be the same.

    receipt = receipts.of(work, choice, [archive], interpreter)
    receipts.line(receipt)                # what a job's log holds: words for a person, JSON for `jobs diff`
    receipts.compare(receipt, other)      # part by part

Nothing in it only names the run: no job, project, port or folder of the service's own.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from taxiway import errors, files
from taxiway.environments import layers, packages
from taxiway.environments.runtimes import Choice
from taxiway.plan import Work

NOTHING = "-"  # what a difference shows for the side that lacks a thing


class Runtime(msgspec.Struct, frozen=True):
    """A runtime of the table: its version, the release of its Python, the SHA-256 of its lock."""

    version: str
    python: str
    lock: str


class Environment(msgspec.Struct, frozen=True):
    """What the packages brought along, over the runtime; the cluster; the kind of machine."""

    packages: dict[str, str]  # distribution -> version
    roles: dict[str, int]  # chief, worker, ... -> how many
    platform: str  # linux-x86_64


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was made of."""

    package: dict[str, str]  # file -> SHA-256
    runtime: Runtime
    module: str
    args: list[str]  # --job-dir is the last
    environment: Environment


class Part(NamedTuple):
    """One part of two receipts, and how they differ in it: `--train_steps 3000 | 300`."""

    name: str
    differences: list[str]


def of(work: Work, choice: Choice, archives: Sequence[Path], interpreter: Path) -> Receipt:
    """The receipt of any one replica of a training run; all of them have the same."""
    task = msgspec.json.decode(work.variables["TF_CONFIG"])
    roles = {role: len(places) for role, places in task["cluster"].items()}
    if evaluators := int(task["job"].get("evaluatorCount", 0)):  # they are in no cluster
        roles["evaluator"] = evaluators
    at = work.command.index("-m") + 1
    return Receipt(
        package=_named(archives),
        runtime=Runtime(_ran(choice), choice.release, packages.sha256(choice.runtime.lock)),
        module=work.command[at],
        args=work.command[at + 1 :],
        environment=Environment(layers.holds(interpreter), roles, sysconfig.get_platform()),
    )


def digest(receipt: Receipt) -> str:
    """Twelve hexadecimal digits that stand for the whole receipt."""
    return _digest(receipt)[:12]


def words(receipt: Receipt) -> str:
    """The receipt for a person: enough to see at a glance which part of two differs."""
    parts = {name: f"{_digest(value)[:4]}…" for name, value in _parts(receipt).items()}
    parts["runtime"] = f"{receipt.runtime.version} on Python {receipt.runtime.python}"
    return ", ".join(f"{name} {shown}" for name, shown in parts.items())


def line(receipt: Receipt) -> str:
    """The line of a job's log that carries its receipt."""
    return f"Receipt {digest(receipt)}: {words(receipt)} {_canonical(receipt).decode()}"


def parse(message: str) -> Receipt | None:
    """The receipt that a line of a log carries, if it does."""
    head, brace, rest = message.partition("{")
    if not head.startswith("Receipt ") or not brace:
        return None
    try:
        return msgspec.json.decode(brace + rest, type=Receipt)
    except msgspec.DecodeError:
        return None


def name(receipt: Receipt) -> str:
    """What the receipt of a run on this machine is called."""
    return f"local-{digest(receipt)}"


def path(home: Path, called: str) -> Path:
    """Where a home keeps the receipt of that name."""
    return home / "receipts" / f"{called}.json"


def keep(home: Path, receipt: Receipt) -> None:
    """Put a local run's receipt into the home, for its owner alone. Raises OSError."""
    to = path(home, name(receipt))
    for folder in (home, to.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(to, msgspec.json.format(_canonical(receipt)) + b"\n")


def read(file: Path) -> Receipt:
    """The receipt in a file. Raises OSError without one, InvalidArgument if it holds something else."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Receipt)
    except msgspec.DecodeError as error:
        raise errors.InvalidArgument(f"{file} holds no receipt of a run: {error}.") from error


def compare(one: Receipt, two: Receipt) -> list[Part]:
    """Every part, in the order of a run's making, with the differences in it."""
    roles = _differing(one.environment.roles, two.environment.roles, "{}s: ")
    return [
        Part("package", list(_differing(one.package, two.package, "{}: "))),
        Part("runtime", list(_differing(msgspec.to_builtins(one.runtime), msgspec.to_builtins(two.runtime), "{} "))),
        Part("args", [*_pair("module ", one.module, two.module), *_arguments(one.args, two.args)]),
        Part(
            "environment",
            [
                *_differing(one.environment.packages, two.environment.packages, "{} "),
                *roles,
                *_pair("platform ", one.environment.platform, two.environment.platform),
            ],
        ),
    ]


def _ran(choice: Choice) -> str:
    """The version that ran, whichever one it stood in for."""
    return f"{choice.runtime.version} as TensorFlow 1" if choice.as_one else choice.runtime.version


def _named(archives: Sequence[Path]) -> dict[str, str]:
    """File -> SHA-256; a second file of one name gets a number."""
    found: dict[str, str] = {}
    for archive in archives:
        again = sum(each.partition(" ")[0] == archive.name for each in found)
        found[f"{archive.name} ({again + 1})" if again else archive.name] = packages.sha256(archive)
    return found


def _parts(receipt: Receipt) -> dict[str, object]:
    return {
        "package": receipt.package,
        "runtime": receipt.runtime,
        "args": [receipt.module, *receipt.args],
        "environment": receipt.environment,
    }


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _digest(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _arguments(one: Sequence[str], two: Sequence[str]) -> Iterator[str]:
    """The options in which two lists of arguments differ: `--train_steps 3000 | 300`."""
    before, after = _options(one), _options(two)
    for _, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        for was, now in itertools.zip_longest(before[a:b], after[c:d], fillvalue=("", NOTHING)):
            flag = was[0] if was[0] == now[0] else ""
            if was != now:
                yield f"{flag}{was[1]} | {now[1]}" if flag else f"{''.join(was)} | {''.join(now)}"


def _options(args: Sequence[str]) -> list[tuple[str, str]]:
    """Arguments as (flag with what sets its value off, value), so that a difference shows whose value it is."""
    found: list[tuple[str, str]] = []
    for word in args:
        if word.startswith("-"):
            flag, equals, value = word.partition("=")
            found.append((flag + equals, value))
        elif found and found[-1][0].startswith("-") and not found[-1][0].endswith(("=", " ")):
            found[-1] = (f"{found[-1][0]} ", word)
        else:
            found.append(("", word))
    return found


def _differing(one: Mapping[str, object], two: Mapping[str, object], label: str) -> Iterator[str]:
    for key in sorted({*one, *two}):
        yield from _pair(label.format(key), str(one.get(key, NOTHING)), str(two.get(key, NOTHING)))


def _pair(label: str, one: str, two: str) -> Iterator[str]:
    if one != two:
        yield f"{label}{_short(one)} | {_short(two)}"


def _short(value: str) -> str:
    """A SHA-256 by its first digits, anything else as it is."""
    return f"{value[:8]}…" if len(value) == 64 and not set(value) - set("0123456789abcdef") else value
