"""Which requirements an environment does not meet."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from taxiway import errors
from taxiway.environments import pythons

# Run inside the environment, where markers mean what they will mean to the job. "foo[bar]" is met when foo is there and
# all that its extra `bar` adds is met. Where `packaging` is missing nobody can tell, and nothing counts as met.
UNMET = """
import json, sys

ask = json.load(sys.stdin)
sys.path[:0] = ask["beside"]
try:
    try:
        from importlib import metadata
    except ImportError:  # before Python 3.8; the runtimes of such a Python hold its forerunner
        import importlib_metadata as metadata
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name
except ImportError:
    print(json.dumps(ask["lines"]))
    sys.exit()
seen = set()

def met(line, extras):
    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return False
    if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
        return True
    name = canonicalize_name(wanted.name)
    try:
        have = metadata.distribution(ask["provides"].get(name, name))
    except metadata.PackageNotFoundError:
        return False
    if not wanted.specifier.contains(have.version, prereleases=True):
        return False
    new = [extra for extra in wanted.extras if (name, extra) not in seen]
    seen.update((name, extra) for extra in new)
    return not new or all(met(each, new) for each in have.requires or [] if "extra" in each.partition(";")[2])

print(json.dumps([line for line in ask["lines"] if not met(line, [""])]))
"""


def unmet(
    interpreter: Path, lines: Sequence[str], provides: Mapping[str, str], *, beside: Sequence[Path] = ()
) -> list[str]:
    """Those of the requirements that the interpreter's environment does not meet, markers and extras considered.

    `provides` says what stands in for what: asked for -> the distribution that is there. `beside` are folders with the
    metadata of distributions that will be there too.
    """
    if not lines:
        return []
    ask = json.dumps({"lines": list(lines), "provides": dict(provides), "beside": list(map(str, beside))})
    run = [str(interpreter), "-I", "-c", UNMET]
    answer = subprocess.run(run, input=ask, capture_output=True, text=True, env=pythons.environ(), check=False)
    if answer.returncode:
        raise errors.Internal(f"The requirements could not be checked in {interpreter}.\n{answer.stderr}")
    return [str(line) for line in json.loads(answer.stdout)]
