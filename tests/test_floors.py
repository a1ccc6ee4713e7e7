"""The floors: imports go downwards only, neighbours on one floor do not know each other, nothing goes in circles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "taxiway"

FLOORS = [  # from the ground up; rooms that share a floor are neighbours
    {
        "errors",
        "names",
        "settings",
        "schemas",
        "plan",
        "receipts",
        "files",
        "environments",
        "address",
        "hosts",
        "cgroups",
        "handles",
        "summaries",
        "trees",
        "tunnel",
        "metadata",
        "authority",
        "listeners",
    },
    {"db"},
    {"storage", "iam", "compute"},
    {"models"},
    {"jobs"},
    {"house", "household"},
    {"api"},
    {"server"},
]
GROUND = FLOORS[0]
# Other processes, and what they may import.
APART = {"replica": GROUND, "runners": set(), "cli": {"errors", "names", "address"}}
EXCEPT = {
    "cli/host.py": GROUND | {"server"},
    "cli/tensorboards.py": APART["cli"] | {"environments", "handles"},
    "cli/local.py": GROUND,
    "cli/logins.py": APART["cli"] | {"files"},
    "cli/iam.py": APART["cli"] | {"files"},
    "__main__.py": {"cli"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module of taxiway that a file imports, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("taxiway."):
                yield name.removeprefix("taxiway.")


def allowed(path: Path) -> set[str]:
    room = room_of(path)
    name = str(path.relative_to(PACKAGE))
    if name in EXCEPT:
        return EXCEPT[name] | {room}
    if room in APART:
        return APART[room] | {room}
    for height, floor in enumerate(FLOORS):
        if room in floor:
            below = set().union(*FLOORS[:height])
            return below | ({room} if floor is not GROUND else GROUND)
    raise AssertionError(f"{path} is in no room of the floor plan")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert not list(imported(path))
        return
    rooms = {name.partition(".")[0] for name in imported(path)}
    assert rooms <= allowed(path), f"{path.name} may not import {rooms - allowed(path)}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_an_init_holds_a_docstring_and_nothing_else(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.Module(body, []))


@pytest.mark.parametrize("path", sorted((PACKAGE / "runners").rglob("*.py")), ids=lambda path: path.name)
def test_a_runner_needs_the_standard_library_alone(path: Path) -> None:
    """At import; what a framework's file loads is the user's environment's. serve.py names their folder for them."""
    frameworks = {"tensorflow", "sklearn", "xgboost", "joblib", "numpy", "msgspec", "orjson", "taxiway_runners"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names | frameworks, f"{path.name} imports {name}"


def test_modules_do_not_import_in_circles() -> None:
    known = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in FILES}
    seen: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert seen.get(name) != 1, f"a circle: {' -> '.join([*way, name])}"
        if seen.get(name) == 2:
            return
        seen[name] = 1
        for target in imported(known[name]):
            found = target if target in known else target.rpartition(".")[0]
            if found in known and found != name:
                visit(found, (*way, name))
        seen[name] = 2

    for name in known:
        visit(name, ())
