"""The look at a job before it is queued: what would fail minutes later is refused now, what may fail is a warning.

Nothing of the person's code runs. A package is looked through once, and remembered by its generation.
"""

from __future__ import annotations

import difflib
import importlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from packaging.requirements import InvalidRequirement, Requirement

from taxiway import errors, names
from taxiway.db.database import Database
from taxiway.environments import indexes, runtimes
from taxiway.iam import members
from taxiway.jobs import host, preflight_package, preflight_storage, reading
from taxiway.jobs.machines import Machines, Note
from taxiway.jobs.reading import Found
from taxiway.jobs.training import Checked
from taxiway.schemas import TrainingInput
from taxiway.storage import objects
from taxiway.storage.blobs import Blobs
from taxiway.storage.objects import Object

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
log = logging.getLogger("taxiway.jobs")

REMEMBERED = 256  # packages
LOOKS = 2  # at one time
ANSWER_S = 600.0  # for so long an index's answer is remembered,
SILENCE_S = 60.0  # and that it gave none
READ_S = 10.0  # for the process that reads Python
REQUIRED = 500  # requirements of a package that are looked at
LONGEST = 1000  # characters of a requirement
WARNED = 20  # warnings of what is in the packages; whoever mends these is told of more
SHOWN = 8  # names that a sentence lists
Key = tuple[str, str, int, str]  # bucket, object, generation, module


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, a sentence each, and what the job's log is to be told."""

    checks: tuple[str, ...]
    notes: tuple[Note, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(sentence for severity, sentence in self.notes if severity == "WARNING")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look into one package brought."""

    fault: str = ""  # why it must not be unpacked
    whole: bool = True
    path: str = ""  # of the job's module in it
    holds: bool = False  # whether the module's top package is in it
    modules: tuple[str, ...] = ()
    bare: str = ""  # a folder on the way to the module without an __init__.py
    requires: tuple[str, ...] = ()
    found: Found | None = None


class Preflight:
    """Safe to ask from any thread."""

    def __init__(self, db: Database, blobs: Blobs, machines: Machines) -> None:
        self.db, self.blobs, self.machines = db, blobs, machines
        self._seen: OrderedDict[Key, Seen] = OrderedDict()
        self._asked: dict[tuple[str, ...], tuple[list[str] | None, float]] = {}  # what an index said, and until when
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(LOOKS)  # a look takes a processor

    def look(self, job: Checked) -> Report:
        """At a job whose fields are right.

        Raises PermissionDenied or NotFound for what its account cannot read or write, InvalidArgument for packages that
        cannot be unpacked safely, and for a module that is in none.
        """
        told = job.training
        packages = preflight_storage.packages(self.db, job.identity, told)
        seen = [self._see(each, told.python_module) for each in packages]
        faults = [
            (f"trainingInput.packageUris[{index}]", f"{told.package_uris[index]} {each.fault}")
            for index, each in enumerate(seen)
            if each.fault
        ]
        if faults:
            raise errors.InvalidArgument(faults=faults)
        named = [uri.rpartition("/")[2] for uri in told.package_uris]
        warned = [
            *_of_module(told.python_module, seen),
            *_of_requirements(named, seen),
            *self._of_index(told, seen),
            *_of_arguments(told.python_module, [*_varied(told), *told.args], told.job_dir, seen),
        ]
        notes = [
            *self.machines.notes(told),
            *preflight_storage.notes(self.db, job.identity, told),
            *(("WARNING", sentence) for sentence in warned[:WARNED]),
        ]
        return Report(tuple(self._checks(job, named, seen)), tuple(notes))

    def _of_index(self, told: TrainingInput, seen: Sequence[Seen]) -> Iterator[str]:
        """What of the requirements beyond the runtime's no index has, if one can say so quickly."""
        lines = [line for each in seen for line in each.requires if _is_requirement(line)]
        if not lines:
            return
        choice = runtimes.resolve(told.runtime_version, told.python_version)
        beyond = indexes.beyond(choice, lines)
        if not beyond:
            return
        key = (choice.key, *beyond)
        answer, until = self._asked.get(key, (None, 0.0))
        if until < time.monotonic():
            answer = indexes.unavailable(choice, beyond)
            if len(self._asked) >= REMEMBERED:
                self._asked.clear()
            self._asked[key] = (answer, time.monotonic() + (ANSWER_S if answer is not None else SILENCE_S))
        for line in answer or ():
            yield f"A package requires {line}, and no index has such a version for Python {choice.python}."

    def _see(self, package: Object, module: str) -> Seen:
        key = (package.bucket, package.name, package.generation, module)
        if seen := self._remembered(key):
            return seen
        with self._turns:
            if seen := self._remembered(key):  # of many jobs at once the first looks for all
                return seen
            seen = _look_into(package.name, self._open(package), package.size, module)
            with self._lock:
                self._seen[key] = seen
                while len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)
            return seen

    def _remembered(self, key: Key) -> Seen | None:
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
            return self._seen.get(key)

    def _open(self, package: Object) -> IO[bytes]:
        """Raises NotFound if it was replaced meanwhile."""
        found, data = objects.get_with_data(self.db, package.bucket, package.name, generation=package.generation)
        if data is not None:
            return io.BytesIO(data)
        try:
            return os.fdopen(self.blobs.open(found.blob), "rb")
        except FileNotFoundError:
            uri = names.join_gs(package.bucket, package.name)
            raise errors.NotFound(f"{uri} was replaced or deleted while it was looked at. Try again.") from None

    def _checks(self, job: Checked, named: Sequence[str], seen: Sequence[Seen]) -> Iterator[str]:
        told, share = job.training, self.machines.seats(job.training)[0]
        wanted, count = self.machines.accelerators(told)
        count = min(count, len(self.machines.fitting(wanted)))
        gpus = f" and {count} {'GPU' if count == 1 else 'GPUs'}" if count else ""
        yield f"Runtime version {told.runtime_version} with Python {told.python_version} is there."
        gets = host.size(share.cpus, share.memory)
        yield f"Scale tier {told.scale_tier} runs with at most {gets}{gpus} of this host."
        writes = f" and write {told.job_dir}" if told.job_dir else ""
        yield f"{members.of_email(job.identity)} may read the packages{writes}."
        whole = [name for name, each in zip(named, seen, strict=True) if each.whole]
        if whole:
            yield f"{', '.join(whole)} can be unpacked: nothing in it leads outside its folder."
        if large := [name for name in named if name not in whole]:
            yield f"{', '.join(large)} is large, and was not looked through to its end."
        if holder := next((name for name, each in zip(named, seen, strict=True) if each.path), ""):
            yield f"The module {told.python_module} is in {holder}."
        if takes := [f"--{each}" for each in _takes(seen)]:
            yield f"The arguments were compared with those that the code takes: {_listed(takes)}."
        elif told.args:
            yield "What arguments the code takes cannot be told without running it; their names were not checked."
        if lines := [line for each in seen for line in each.requires if _is_requirement(line)]:
            yield f"The requirements can be read: {_listed(lines)}."
        if addresses := preflight_storage.addresses(told.args):
            yield f"The gs:// addresses among the arguments were looked up: {_listed(addresses)}."


def _look_into(name: str, file: IO[bytes], size: int, module: str) -> Seen:
    top = module.partition(".")[0]
    with file:
        try:
            contents = preflight_package.look(name, file, size, top)
        except preflight_package.Unsafe as unsafe:
            return Seen(fault=str(unsafe))
    setup = {path: text for path, text in contents.texts.items() if path.endswith("setup.py")}
    path = contents.finds(module)
    found = _read({**contents.sources, **setup}, path)
    lines = [*(found["requires"] if found else ()), *_declared(contents.texts)]
    return Seen(
        whole=contents.whole,
        path=path,
        holds=contents.holds(top),
        modules=tuple(contents.modules(top)[:100]),
        bare=_bare(path, module, contents.paths) if contents.whole and not name.endswith(".whl") else "",
        requires=tuple(dict.fromkeys(" ".join(line.split()) for line in lines))[:REQUIRED],
        found=found,
    )


def _read(files: dict[str, str], start: str) -> Found | None:
    """What a module and a setup.py say, read by a process of their own; None if it did not end well."""
    if not files:
        return None
    command = [sys.executable, "-I", "-S", str(Path(reading.__file__))]
    try:
        ended = subprocess.run(
            command,
            input=json.dumps({"files": files, "start": start}),
            capture_output=True,
            text=True,
            timeout=READ_S,
            check=True,
            env={},
        )
        return json.loads(ended.stdout)  # type: ignore[no-any-return]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("the files of a package could not be read: %s", error)
        return None


def _declared(texts: dict[str, str]) -> Iterator[str]:
    """The requirements of PKG-INFO, METADATA and pyproject.toml."""
    for path, text in texts.items():
        if path.endswith("pyproject.toml"):
            try:
                project = tomllib.loads(text).get("project", {})
                yield from (line for line in project.get("dependencies", ()) if isinstance(line, str))
            except (tomllib.TOMLDecodeError, AttributeError, TypeError):
                continue  # the build says what is wrong with it
        elif not path.endswith("setup.py"):
            for line in text.partition("\n\n")[0].splitlines():
                field, _, value = line.partition(":")
                wanted = _requirement(value) if field == "Requires-Dist" else None
                if field == "Requires-Dist" and not (wanted and wanted.marker and "extra" in str(wanted.marker)):
                    yield value.strip()


def _bare(path: str, module: str, paths: Sequence[str]) -> str:
    """The outermost folder of a module's packages that has no __init__.py."""
    place = module.replace(".", "/")
    words = module.split(".")
    if path.endswith(f"{place}.py"):
        outside = path.removesuffix(f"{place}.py")
        words.pop()
    elif path.endswith(f"{place}/__main__.py"):
        outside = path.removesuffix(f"{place}/__main__.py")
    else:
        return ""
    for count in range(1, len(words) + 1):
        folder = outside + "/".join(words[:count])
        if f"{folder}/__init__.py" not in paths:
            return "/".join(words[:count])
    return ""


def _of_module(module: str, seen: Sequence[Seen]) -> Iterator[str]:
    """Raises InvalidArgument for a module that no package can have brought; yields what is doubtful of one."""
    top = module.partition(".")[0]
    if not any(each.path for each in seen) and all(each.whole for each in seen):
        moved = any(each.found and each.found["moved"] for each in seen)
        known = [name for each in seen for name in each.modules]
        if moved or (not any(each.holds for each in seen) and any(each.requires for each in seen)):
            yield f"The module {module} is in none of the packages by its name; the job fails if none brings it."
        elif top not in sys.stdlib_module_names:
            near = difflib.get_close_matches(module, known, n=1)
            has = f" They have {_listed(known)}." if known else ""
            hint = f" Did you mean {near[0]}?" if near else ""
            raise errors.InvalidArgument(
                faults=[("trainingInput.pythonModule", f"{module} is in none of the packages.{has}{hint}")]
            )
    for each in seen:
        if each.bare:
            yield (
                f"{each.bare}/ has no __init__.py, and setuptools' find_packages() passes over it. "
                f"Make one: touch {each.bare}/__init__.py"
            )


def _of_requirements(named: Sequence[str], seen: Sequence[Seen]) -> Iterator[str]:
    for name, each in zip(named, seen, strict=True):
        for line in each.requires:
            if not _is_requirement(line):
                yield f"{name} requires {line[:100]!r}, which cannot be read. Expected such as numpy>=1.26."
        for path, why in sorted((each.found or {"wrong": {}})["wrong"].items()):
            yield f"{path} of {name} cannot be read as Python {sys.version_info[0]}: {why[:200]}"


def _is_requirement(line: str) -> bool:
    return len(line) <= LONGEST and _requirement(line) is not None


def _requirement(line: str) -> Requirement | None:
    """None for what is none by PEP 508."""
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _takes(seen: Sequence[Seen]) -> list[str]:
    """The long arguments that the code takes; none if it may take others."""
    found = next((each.found for each in seen if each.path), None)
    return found["takes"] if found and found["closed"] else []


def _varied(told: TrainingInput) -> list[str]:
    """The arguments that a tuning job gives to its trials."""
    return [f"--{each.parameter_name}" for each in told.hyperparameters.params] if told.hyperparameters else []


def _of_arguments(module: str, args: Sequence[str], job_dir: str, seen: Sequence[Seen]) -> Iterator[str]:
    """Arguments that the code does not take, and those that it needs; argparse takes the beginning of a name too."""
    takes = _takes(seen)
    if not takes:
        return
    found = next(each.found for each in seen if each.path)
    exact, needs = (found["exact"], found["needs"]) if found else (False, [])
    words = list(args[: args.index("--")] if "--" in args else args)
    given = [word[2:].partition("=")[0] for word in words if re.match(r"--\w", word)]
    for name in dict.fromkeys(given):
        if name not in takes and (exact or not any(each.startswith(name) for each in takes)):
            near = difflib.get_close_matches(name, takes, n=1)
            hint = f"Did you mean --{near[0]}?" if near else f"It takes {_listed(f'--{each}' for each in takes)}."
            yield f"{module} seems to take no argument --{name[:100]}. {hint}"
    if job_dir and "job-dir" not in takes:
        yield f"jobDir is passed as --job-dir, and {module} seems to take no such argument."
    given += ["job-dir"] if job_dir else []
    for name in needs:
        if name not in given and (exact or not any(name.startswith(each) for each in given if each)):
            yield f"{module} seems to need the argument --{name}, which is not given."


def _listed(names: Iterator[str] | Sequence[str]) -> str:
    whole = list(names)
    more = [f"{len(whole) - SHOWN} more"] if len(whole) > SHOWN else []
    return ", ".join([*whole[:SHOWN], *more])
