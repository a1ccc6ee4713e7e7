"""One frozen Settings, read once from TAXIWAY_* and the home folder; an unknown TAXIWAY_ name is an error."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path

from taxiway import errors, names

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
    port: int = field(default=8080, metadata={"help": "the plain port; 0 takes a free one", "most": 65535})
    hosts: str = field(
        default="",
        metadata={"help": "more names that clients use for it, separated by commas; *.example.com: all below it"},
    )
    project: str = field(default="taxiway", metadata={"help": "the id of the project that a first start makes"})
    jobs: int = field(default=0, metadata={"help": "jobs that run at once; 0: one for every two cores, at least two"})
    jail: str = field(
        default="auto", metadata={"help": "jobs run in a jail: auto (where there can be one), require, or off"}
    )
    jail_hosts: str = field(
        default="",
        metadata={"help": "hosts that jobs in a jail may reach (by https), separated by commas; *.example.com"},
    )
    job_disk_mib: int = field(
        default=0,
        metadata={"help": "how much one job may have on the disk and in its log, in MiB; 0: no limit of its own"},
    )
    restart_ms: int = field(
        default=500,
        metadata={"help": "milliseconds before a lost or killed replica starts again; each further time twice as many"},
    )
    body_mib: int = field(
        default=64, metadata={"help": "the largest JSON request body, in MiB; uploads have no limit", "least": 1}
    )
    upkeep_s: int = field(
        default=3600,
        metadata={"help": "seconds between two rounds of lifecycle rules and of what has expired", "least": 1},
    )
    audit_reads: int = field(
        default=0, metadata={"help": "1: the audit log keeps reads and predictions too, not only changes", "most": 1}
    )
    audit_days: int = field(
        default=400, metadata={"help": "how many days the audit log keeps a row", "least": 1, "most": 36500}
    )
    log_days: int = field(
        default=400, metadata={"help": "how many days a line of a job's log is kept", "least": 1, "most": 36500}
    )
    log_mib: int = field(
        default=4096,
        metadata={"help": "how much all logs may take, in MiB; the oldest lines of ended jobs go first", "least": 1},
    )

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
    def attempts(self) -> Path:
        return self.home / "attempts"


def default_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("TAXIWAY_HOME") or Path.home() / ".taxiway").expanduser().absolute()


def read(environ: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """Settings from the environment; a flag that is not None wins.

    Raises InvalidArgument for a TAXIWAY_ name that nobody reads, or a value that is not of its kind; all at once.
    """
    environ = os.environ if environ is None else environ
    told = {name: value for name, value in environ.items() if name.startswith("TAXIWAY_") and name not in ELSEWHERE}
    known = ", ".join(sorted([*OFFERED, *ELSEWHERE]))
    faults = [(name, f"is no setting. There are: {known}.") for name in told if name not in OFFERED]
    values: dict[str, object] = {}
    for variable, setting in OFFERED.items():
        flag = flags.get(setting.name)
        value = told.get(variable) if flag is None else flag
        if value is not None:
            try:
                values[setting.name] = _valid(setting, value)
            except ValueError as error:
                faults.append(
                    (variable if flag is None else f"--{setting.name}", f"is {value!r}, and must be {error}.")
                )
    if faults:
        raise errors.InvalidArgument(faults=faults)
    home = Path(str(values.pop("home", "") or default_home(environ))).expanduser().absolute()
    return Settings(home=home, **values)  # type: ignore[arg-type]


def _valid(setting: Field[object], value: object) -> object:
    """The value as its setting's kind. Raises ValueError with what was expected."""
    text = str(value)
    if setting.type == "int":
        least, most = setting.metadata.get("least", 0), setting.metadata.get("most", 10**6)
        if not re.fullmatch("[0-9]{1,7}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)
    if setting.name == "jail" and text not in ("auto", "require", "off"):
        raise ValueError("auto, require or off")
    if setting.name.endswith("hosts") and not re.fullmatch(r"[A-Za-z0-9.:*_, -]*", text):
        raise ValueError("names of hosts, separated by commas, such as train.example.com or *.example.com")
    if setting.name == "project":
        try:
            return names.project_id(text, "project")
        except errors.InvalidArgument as error:
            raise ValueError("6 to 30 lower-case letters, digits and hyphens, and begin with a letter") from error
    return text


OFFERED = {f"TAXIWAY_{each.name.upper()}": each for each in fields(Settings)}
