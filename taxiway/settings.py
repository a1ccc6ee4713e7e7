"""One frozen Settings, read once from TAXIWAY_* and the home folder; an unknown TAXIWAY_ name is an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taxiway import errors

MIB = 1024 * 1024

# Read by other processes or floors than the server's Settings, and so known too.
ELSEWHERE = {
    "TAXIWAY_CACHE": "where runtimes and environments are kept, shared by all homes (default ~/.cache/taxiway)",
    "TAXIWAY_PYTHONS": "folders or interpreters to look for Pythons in, separated by colons",
    "TAXIWAY_WHEELHOUSE": "a folder of wheels: environments are then built from it alone, without a network",
    "TAXIWAY_URL": "the server that the command line talks to (default: the one of the home)",
    "TAXIWAY_TOKEN_FILE": "the file with the access token that the command line sends (default: the home's owner)",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be set, each by an environment variable TAXIWAY_<NAME> or a flag of `taxiway up`."""

    home: Path = field(metadata={"help": "the folder that holds everything"})
    host: str = field(default="127.0.0.1", metadata={"help": "the address that the plain port listens on"})
    port: int = field(default=8080, metadata={"help": "the plain port; 0 takes a free one"})
    project: str = field(default="taxiway", metadata={"help": "the id of the project that a first start makes"})
    jobs: int = field(default=0, metadata={"help": "jobs that run at once; 0: one for every two cores, at least two"})
    body_mib: int = field(default=64, metadata={"help": "the largest JSON request body, in MiB; uploads have no limit"})

    @property
    def database(self) -> Path:
        return self.home / "taxiway.db"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def tls(self) -> Path:
        return self.home / "tls"

    @property
    def credentials(self) -> Path:
        return self.home / "credentials"

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def uploads(self) -> Path:
        return self.home / "uploads"

    @property
    def attempts(self) -> Path:
        return self.home / "attempts"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def address(self) -> Path:
        """The file in which a server says where it listens: see `address.Address`."""
        return self.home / "server.json"


def default_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("TAXIWAY_HOME") or Path.home() / ".taxiway").expanduser().absolute()


def read(environ: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Settings from the environment; a flag that is not None wins.

    Raises InvalidArgument for a TAXIWAY_ name that nobody reads, or a value that is not of its kind.
    """
    environ = os.environ if environ is None else environ
    known = Settings.__dataclass_fields__
    faults: list[tuple[str, str]] = []
    values: dict[str, object] = {"home": default_home(environ)}
    for variable, text in environ.items():
        if not variable.startswith("TAXIWAY_") or variable in ELSEWHERE:
            continue
        name = variable.removeprefix("TAXIWAY_").lower()
        if name not in known:
            offered = ", ".join(sorted([*ELSEWHERE, *(f"TAXIWAY_{each.upper()}" for each in known)]))
            faults.append((variable, f"is no setting. There are: {offered}."))
        elif known[name].type == "int" and not text.isdigit():
            faults.append((variable, f"is {text!r}, and must be a whole number."))
        elif name != "home":
            values[name] = int(text) if known[name].type == "int" else text
    if faults:
        raise errors.InvalidArgument(faults=faults)
    values.update({name: value for name, value in flags.items() if value is not None})
    values["home"] = Path(str(values["home"])).expanduser().absolute()
    return Settings(**values)  # type: ignore[arg-type]
