"""What a person's Python files say, read as a tree and never run: the arguments that they take, what they require.

Runs by itself, `python reading.py`: the arguments of `read` as JSON in, what was found as JSON out. For the parser of
Python may end its process over a file that is made for it, and that process must not be the server.
"""

from __future__ import annotations

import ast
import json
import resource
import sys
import warnings
from collections.abc import Iterator
from typing import TypedDict

SECONDS = 5  # of CPU
MEMORY = 1024**3
# Flags that absl has itself, also without its logging.
ABSL = [
    *("flagfile", "undefok", "help", "helpshort", "helpfull", "helpxml", "verbosity", "v", "log_dir", "logtostderr"),
    *("alsologtostderr", "stderrthreshold", "showprefixforinfo", "only_check_args", "run_with_pdb"),
]


class Found(TypedDict):
    takes: list[str]  # names of long arguments without their dashes
    needs: list[str]  # those that must be given
    closed: bool  # whether these are all: the files read their arguments, and nothing else does
    exact: bool  # whether the beginning of a name does not do for it
    wrong: dict[str, str]  # path -> why it is no Python
    requires: list[str]  # a setup.py's install_requires
    moved: bool  # whether a setup.py says where its packages are


def read(files: dict[str, str], start: str = "") -> Found:
    """What is found in the file `start` and in those of `files` that it imports, all together; and in a setup.py."""
    found = Found(takes=[], needs=[], closed=False, exact=False, wrong={}, requires=[], moved=False)
    for path in (path for path in files if path.rpartition("/")[2] == "setup.py" and path != start):
        if tree := _parsed(path, files[path], found):
            _read_setup(tree, found)
    trees: list[ast.Module] = []
    left, met = [start], {start}
    while left:
        path = left.pop()
        tree = _parsed(path, files[path], found) if path in files else None
        if tree is None:
            continue
        trees.append(tree)
        fresh = set(_imported(path, tree)) & files.keys() - met
        met |= fresh
        left += sorted(fresh)
    opened = bool(found["wrong"]) or _handed_out(trees)
    for tree in trees:
        adds = _other_names(tree)
        for call in _calls(tree):
            opened |= _read_call(call, adds, found)
    found["takes"], found["needs"] = sorted(set(found["takes"])), sorted(set(found["needs"]))
    found["closed"] = found["closed"] and not opened
    return found


def _parsed(path: str, text: str, found: Found) -> ast.Module | None:
    """The tree of a file; None, and noted, if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is the file's own business
            return ast.parse(text)
    except SyntaxError as error:
        found["wrong"][path] = f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        found["wrong"][path] = str(error) or type(error).__name__
    return None


def _imported(path: str, tree: ast.Module) -> Iterator[str]:
    """Where the modules may lie that a file imports, beside it or in the folders above it."""
    here = path.split("/")[:-1]
    for node in ast.walk(tree):
        named: list[list[str]] = []
        if isinstance(node, ast.Import):
            named = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            named = [module, *([*module, alias.name] for alias in node.names)]
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        tops = [here[: len(here) - level + 1]] if level else [here[:depth] for depth in range(len(here) + 1)]
        for top in tops:
            for words in named:
                yield "/".join([*top, *words]) + ".py"
                yield "/".join([*top, *words, "__init__.py"])


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _other_names(tree: ast.Module) -> set[str]:
    """What add_argument is called: add = parser.add_argument"""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _last(node.value) == "add_argument"
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _read_call(call: ast.Call, adds: set[str], found: Found) -> bool:
    """Note what a call says of arguments; whether it lets others be taken, too."""
    name = _last(call.func)
    if name == "ArgumentParser":
        found["closed"] = True
        abbreviates = _keyword(call, "allow_abbrev")
        found["exact"] |= isinstance(abbreviates, ast.Constant) and abbreviates.value is False
        found["takes"] += ["help"]
        return _keyword(call, "parents") is not None or _keyword(call, "fromfile_prefix_chars") is not None
    if name == "add_argument" or (isinstance(call.func, ast.Name) and name in adds):
        names = [_text(each) for each in call.args]
        if None in names or not names:
            return True
        long = [each[2:] for each in names if each and each.startswith("--")]
        found["takes"] += long
        if any(each and each.startswith("-") for each in names) and _true(call, "required"):
            found["needs"] += long[:1]
        return False
    if name.startswith(("DEFINE_", "mark_flag")):
        return _read_flag(call, name, found)
    if name == "run" and isinstance(call.func, ast.Attribute) and _last(call.func.value) == "app":
        root = call.func.value
        while isinstance(root, ast.Attribute):
            root = root.value
        return isinstance(root, ast.Name) and root.id in (
            "tf",
            "tensorflow",
        )  # TensorFlow's lets pass what it knows not
    return name in ("parse_known_args", "parse_known_intermixed_args", "add_subparsers", "Fire") or bool(
        _keyword(call, "known_only")
    )


def _handed_out(trees: list[ast.Module]) -> bool:
    """Whether a parser is given to a function of somebody else, which may add arguments."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    parsers = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and _last(node.value.func) == "ArgumentParser"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return any(
        isinstance(node, ast.Call)
        and _last(node.func) not in defined
        and any(isinstance(each, ast.Name) and each.id in parsers for each in node.args)
        for node in nodes
    )


def _read_flag(call: ast.Call, name: str, found: Found) -> bool:
    """absl's: DEFINE_integer("steps", ...), mark_flag_as_required("steps")."""
    first = call.args[0] if call.args else _keyword(call, "name")
    if name.startswith("mark_flag"):
        each = first.elts if isinstance(first, (ast.List, ast.Tuple)) else [first]
        found["needs"] += [text for one in each if (text := _text(one))]
        return False
    flag = _text(first)
    if flag is None:
        return True
    found["closed"] = found["exact"] = True
    found["takes"] += [flag, *ABSL]
    if name in ("DEFINE_bool", "DEFINE_boolean"):
        found["takes"].append(f"no{flag}")
    if name == "DEFINE_alias":
        return False
    if _true(call, "required"):
        found["needs"].append(flag)
    return False


def _read_setup(tree: ast.Module, found: Found) -> None:
    """setup(install_requires=[...]), also by a name that the file gives to a list."""
    named = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in _calls(tree):
        if _last(call.func) != "setup":
            continue
        found["moved"] |= _keyword(call, "package_dir") is not None
        value = _keyword(call, "install_requires")
        value = named.get(value.id, value) if isinstance(value, ast.Name) else value
        if isinstance(value, (ast.List, ast.Tuple)):
            found["requires"] += [text for each in value.elts if (text := _text(each)) is not None]


def _last(node: ast.AST) -> str:
    """a.b.c -> c"""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def _true(call: ast.Call, name: str) -> bool:
    value = _keyword(call, name)
    return isinstance(value, ast.Constant) and value.value is True


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(read(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
