"""Which source cannot be read: a module and all that it will surely import, from one folder, by this very Python.

    python sources.py SITE trainer.task    # null, or the first fault as JSON: file, line, text, reason, python

A fault counts if the module's own first lines lead to it: what stands in a function, a `try` or an `if` may never be
imported.
"""

import ast
import json
import os
import sys


def first_fault(site, module):
    """The first module that cannot be read, in the order of the imports; None if there is none such."""
    seen, waiting = set(), [module, module + ".__main__"]
    while waiting:
        for name, path in files(site, waiting.pop(0)):
            if path in seen:
                continue
            seen.add(path)
            try:
                with open(path, "rb") as file:
                    tree = ast.parse(file.read(), path)
            except SyntaxError as error:
                return told(site, path, error)
            except (OSError, ValueError):  # it is gone, or holds null bytes: whoever imports it will tell
                continue
            is_package = os.path.basename(path) == "__init__.py"
            package = name if is_package else name.rpartition(".")[0]
            waiting.extend(imported(tree, package))
    return None


def files(site, name):
    """What an import of the name runs of the folder, as (module, file), in its order; nothing if it is not there."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        place = os.path.join(site, *parts[:end])
        for path in (os.path.join(place, "__init__.py"), place + ".py"):
            if os.path.isfile(path):
                yield ".".join(parts[:end]), path
                break


def imported(tree, package):
    """The names that a module surely imports when it is imported itself."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1] if node.level else []
            name = ".".join(base + [node.module] if node.module else base)
            for each in node.names:  # it may be a module of that package, or a name in it
                yield name + "." + each.name if name else each.name


def told(site, path, error):
    return {
        "file": os.path.relpath(error.filename or path, site),
        "line": error.lineno or 0,
        "text": (error.text or "").rstrip("\n"),
        "reason": error.msg,
        "python": "%d.%d.%d" % sys.version_info[:3],
    }


if __name__ == "__main__":
    print(json.dumps(first_fault(*sys.argv[1:])))
