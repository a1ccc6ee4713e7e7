"""Machine types, scale tiers and accelerators: what a job may ask for, what this host has for it, and what it costs.

The table is machines.toml, beside this file and in the server's home. The rules are those of the service's reference of
TrainingInput: https://cloud.google.com/ai-platform/training/docs/reference/rest/v1/projects.jobs#TrainingInput
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from taxiway import errors, plan
from taxiway.jobs import host
from taxiway.jobs.host import Gpu, Host
from taxiway.plan import Seat
from taxiway.schemas import DiskConfig, ReplicaConfig, TrainingInput

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

OWN = "machines.toml"  # of the package, and of a home
CUSTOM = "CUSTOM"
ROLES = {"master": "master", "worker": "worker", "parameter_server": "parameter server", "evaluator": "evaluator"}
CAMEL = {"master": "master", "worker": "worker", "parameter_server": "parameterServer", "evaluator": "evaluator"}
DISKS = ("", "pd-ssd", "pd-standard")
KERNEL = 1 / 16  # of a machine's memory, which never reaches its programs; the service's machines were no different
KEPT = 1 / 8  # of the host's memory, for the server: a job that eats all it may is ended before the server is
NAMED = 6  # machine types that a refusal suggests
CONTAINERS = ("image_uri", "container_command", "container_args", "tpu_tf_version")

Fault = tuple[str, str]  # field, sentence
Note = tuple[str, str]  # severity, sentence: what a job's log is told


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of [machines]."""

    cpus: float
    memory_gib: float
    units: float
    accelerator: str = ""
    count: int = 0

    @property
    def memory(self) -> int:
        return int(self.memory_gib * host.GIB)

    def __str__(self) -> str:
        return host.size(self.cpus, self.memory)


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of [tiers]; a role is "COUNT TYPE"."""

    master: str
    units: float
    worker: str = ""
    parameter_server: str = ""
    evaluator: str = ""
    accelerator: str = ""
    count: int = 0


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of [accelerators]."""

    units: float
    models: tuple[str, ...] = ()


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """machines.toml."""

    machines: dict[str, Machine] = {}
    tiers: dict[str, Tier] = {}
    accelerators: dict[str, Accelerator] = {}


class Role(msgspec.Struct, frozen=True):
    """How many of a machine a job has in a role, and the accelerators of each."""

    count: int
    type: str
    accelerator: str = ""
    accelerators: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a replica gets of the host: at most so many CPUs and bytes, and these of its GPUs."""

    cpus: float
    memory: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Machines:
    """The table, and the host that it is laid on."""

    table: Table
    host: Host

    def faults(self, told: TrainingInput) -> Iterator[Fault]:
        """(field, sentence) of everything in the machines that a job asks for that cannot be had here."""
        yield from _faults_of_configs(told)
        if told.scale_tier != CUSTOM:
            yield from _faults_of_named(told)
            return
        if not told.master_type:
            yield "trainingInput.masterType", f"is required with scaleTier CUSTOM, such as {self._usual()}."
        faults = [fault for role in ROLES for fault in self._faults_of_role(told, role)]
        yield from faults
        if told.master_type in self.table.machines and not faults:
            yield from self._faults_of_size(told)

    def notes(self, told: TrainingInput) -> list[Note]:
        """What the job's log is told of what it gets in place of what it asked for."""
        roles = self.roles(told)
        return [*self._shrunk(told, roles["master"]), *_alone(told, roles), *self._replaced(told, roles), *_disks(told)]

    def roles(self, told: TrainingInput) -> dict[str, Role]:
        """The machines of an input that is without faults, by role, as they were asked for."""
        if told.scale_tier == CUSTOM:
            return {role: made for role in ROLES if (made := self._custom(told, role)).count}
        tier = self.table.tiers[told.scale_tier or "BASIC"]
        split = {role: getattr(tier, role).split() for role in ROLES}
        named = {role: Role(int(words[0]), words[1]) for role, words in split.items() if words}
        master = msgspec.structs.replace(named["master"], accelerator=tier.accelerator, accelerators=tier.count)
        return {**named, "master": master}

    def share(self, told: TrainingInput, busy: Mapping[int, int] | None = None) -> Share:
        """The master's. Of the GPUs that would do it gets those that the fewest others use, by `busy`."""
        asked = self.roles(told)["master"]
        machine = self._machine(asked.type)
        cpus, memory = min(machine.cpus, self.host.cpus), min(machine.memory, int(self.host.memory * (1 - KEPT)))
        used = Counter(busy or {})
        gpus = sorted(self._gpus(told, asked), key=lambda gpu: (used[gpu.index], gpu.index))[: asked.accelerators]
        return Share(cpus, memory, tuple(sorted(gpu.index for gpu in gpus)))

    def seats(self, told: TrainingInput, busy: Mapping[int, int] | None = None) -> list[Seat]:
        """One for each replica that runs, the primary first, with what it gets of this host.

        CUSTOM runs what it asked for. A named tier keeps at least one of each role, and as many more as there are
        processors for, in its own proportion; the machines' memory is what the host has, in that of theirs.
        """
        roles = self.roles(told)
        counts = {role: roles[role].count for role in plan.ROLES if role in roles}
        if told.scale_tier != CUSTOM:
            counts = scaled(counts, int(self.host.cpus))
        machines = {role: self._machine(roles[role].type) for role in counts}
        whole = sum(count * machines[role].memory for role, count in counts.items())
        part = min(1.0, self.host.memory * (1 - KEPT) / whole)
        seats = [
            Seat(role, min(machines[role].cpus, self.host.cpus), int(machines[role].memory * part))
            for role, count in counts.items()
            for _ in range(count)
        ]
        gpus = self.share(told, busy).gpus if self.host.gpus else None
        return [seats[0]._replace(gpus=gpus), *(seat._replace(gpus=None if gpus is None else ()) for seat in seats[1:])]

    def units(self, told: TrainingInput) -> float:
        """ML units of an hour of all the machines that were asked for."""
        if told.scale_tier != CUSTOM:
            return self.table.tiers[told.scale_tier or "BASIC"].units
        total = 0.0
        for role in self.roles(told).values():
            machine = self._machine(role.type)
            beside = 0 if machine.accelerator else role.accelerators
            total += role.count * machine.units
            total += role.count * beside * self.table.accelerators[role.accelerator].units if beside else 0.0
        return total

    def _machine(self, type_: str) -> Machine:
        """A job may wait longer than an admin's table stays as it was."""
        lost = Machine(cpus=self.host.cpus, memory_gib=self.host.memory / host.GIB, units=0.0)
        return self.table.machines.get(type_, lost)

    def _custom(self, told: TrainingInput, role: str) -> Role:
        count = 1 if role == "master" else getattr(told, f"{role}_count") or 0
        type_ = getattr(told, f"{role}_type")
        machine = self.table.machines.get(type_)
        if machine is not None and machine.accelerator:
            return Role(count, type_, machine.accelerator, machine.count)
        config: ReplicaConfig | None = getattr(told, f"{role}_config")
        wanted = config.accelerator_config if config else None
        if wanted is None or not wanted.type:
            return Role(count, type_)
        return Role(count, type_, wanted.type, wanted.count or 0)

    def _faults_of_role(self, told: TrainingInput, role: str) -> Iterator[Fault]:
        name, type_ = CAMEL[role], getattr(told, f"{role}_type")
        count = 1 if role == "master" else getattr(told, f"{role}_count") or 0
        if count < 0:
            yield f"trainingInput.{name}Count", f"must be 0 or more; it is {count}."
        if count > 0 and not type_ and role != "master":
            yield f"trainingInput.{name}Type", f"is required: {name}Count is {count}."
        if type_ and type_ not in self.table.machines:
            near = difflib.get_close_matches(type_, self.table.machines, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"trainingInput.{name}Type", f"{type_[:100]!r} is no machine type.{hint} {self._offered()}"
        elif type_ and told.master_type in self.table.machines and _legacy(type_) != _legacy(told.master_type):
            families = "legacy and Compute Engine machine types cannot be mixed"
            yield f"trainingInput.{name}Type", f"{families}: masterType is {told.master_type}, and this is {type_}."
        config: ReplicaConfig | None = getattr(told, f"{role}_config")
        wanted = config.accelerator_config if config else None
        if wanted is None:
            return
        field = f"trainingInput.{name}Config.acceleratorConfig"
        if type_ and _legacy(type_):
            yield field, f"is for Compute Engine machine types, such as n1-standard-4; {name}Type is {type_}."
        if wanted.type is None or wanted.type not in self.table.accelerators:
            yield f"{field}.type", f"is required, one of {', '.join(self.table.accelerators)}."
        if (wanted.count or 0) < 1:
            yield f"{field}.count", "must be 1 or more."

    def _faults_of_size(self, told: TrainingInput) -> Iterator[Fault]:
        """Whether the master fits; the others do not run here."""
        asked = self._custom(told, "master")
        machine = self.table.machines[asked.type]
        if not self._fits(machine):
            yield (
                "trainingInput.masterType",
                f"{asked.type} has {machine}, and this host has {self.host}. {self._what_fits(asked.type)}",
            )
        if asked.accelerators > len(self._gpus(told, asked)):
            own = machine.accelerator == asked.accelerator
            field = "masterType" if own else "masterConfig.acceleratorConfig"
            beside = f"{asked.type} has" if own else "asks for"
            yield (
                f"trainingInput.{field}",
                f"{beside} {asked.accelerators} {asked.accelerator}, and {self._accelerators()}. "
                + ("Choose a machine type without." if own else "Leave it out to run on CPUs."),
            )

    def _fits(self, machine: Machine) -> bool:
        return machine.cpus <= self.host.cpus and machine.memory * (1 - KERNEL) <= self.host.memory

    def _what_fits(self, type_: str) -> str:
        fit = [name for name, machine in self.table.machines.items() if self._fits(machine) and not machine.accelerator]
        best = sorted(
            fit,
            key=lambda name: (
                _legacy(name) != _legacy(type_),
                -self.table.machines[name].cpus,
                -self.table.machines[name].memory_gib,
            ),
        )
        told = f"What fits: {', '.join(best[:NAMED])}. " if best else "None of the machine types fits. "
        return told + "A named tier, such as BASIC, runs scaled down."

    def _gpus(self, told: TrainingInput, asked: Role) -> tuple[Gpu, ...]:
        """Those of the host's that would do: of a named tier the right model if there is one, else any."""
        if not asked.accelerators or asked.accelerator.startswith("TPU"):
            return ()
        models = self.table.accelerators[asked.accelerator].models
        exact = tuple(gpu for gpu in self.host.gpus if any(word in _model_words(gpu) for word in models))
        return exact or (() if told.scale_tier == CUSTOM else self.host.gpus)

    def _shrunk(self, told: TrainingInput, asked: Role) -> Iterator[Note]:
        machine, got = self._machine(asked.type), self.share(told)
        if got.cpus < machine.cpus or got.memory < machine.memory * (1 - KERNEL):
            asks = f"Scale tier {told.scale_tier or 'BASIC'} has a master of {asked.type}, with {machine}"
            gets = f"the job gets at most {host.size(got.cpus, got.memory)}"
            yield "INFO", f"{asks}; this host has {self.host}, and {gets}."

    def _replaced(self, told: TrainingInput, roles: Mapping[str, Role]) -> Iterator[Note]:
        asked = roles["master"]
        if not asked.accelerators:
            return
        wanted = f"{asked.accelerators} {asked.accelerator}"
        found = self._gpus(told, asked)[: asked.accelerators]
        if not found:
            yield "WARNING", f"Scale tier {told.scale_tier} has {wanted}; {self._accelerators()}: the job runs on CPUs."
            return
        models = ", ".join(dict.fromkeys(gpu.model for gpu in found))
        yield "INFO", f"The job asked for {wanted} and gets {len(found)} of this host's GPUs: {models}."

    def _accelerators(self) -> str:
        if not self.host.gpus:
            return "this host has no GPU (neither nvidia-smi nor NVIDIA's driver tells of one) and no TPU"
        counted = Counter(gpu.model for gpu in self.host.gpus)
        return f"this host has {', '.join(f'{count} {model}' for model, count in counted.items())}"

    def _usual(self) -> str:
        fit = [name for name in ("n1-standard-4", "n1-standard-2", "n1-standard-1") if self._knows_and_fits(name)]
        return fit[0] if fit else "n1-standard-4"

    def _knows_and_fits(self, name: str) -> bool:
        machine = self.table.machines.get(name)
        return machine is not None and self._fits(machine)

    def _offered(self) -> str:
        return f"There are: {', '.join(self.table.machines)}."


def scaled(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """At most so many replicas in all, in about the proportion of `counts`, and at least one of each role.

    >>> scaled({"master": 1, "parameter_server": 3, "worker": 4}, 4)
    {'master': 1, 'parameter_server': 1, 'worker': 2}
    >>> scaled({"master": 1, "parameter_server": 3, "worker": 4}, 64)
    {'master': 1, 'parameter_server': 3, 'worker': 4}
    """
    got = {role: min(count, 1) for role, count in counts.items()}
    while sum(got.values()) < min(most, sum(counts.values())):
        shortest = min((role for role in counts if got[role] < counts[role]), key=lambda role: got[role] / counts[role])
        got[shortest] += 1
    return got


def read(home: Path | None = None, *, on: Host | None = None) -> Machines:
    """The package's table with a home's rows over it, on this host. Raises InvalidArgument for a row that is wrong."""
    rows = _rows(Path(__file__).with_name(OWN))
    own = home / OWN if home else None
    if own is not None and own.exists():
        for name, table in _rows(own).items():
            rows[name] = {**rows.get(name, {}), **(table if isinstance(table, dict) else {"": table})}
    try:
        table = msgspec.convert(rows, Table)
        _must_hold_together(table)
    except (msgspec.ValidationError, ValueError) as error:
        told = f"{own or OWN}: {error}. What its rows hold is told in {Path(__file__).with_name(OWN)}."
        raise errors.InvalidArgument(told) from error
    return Machines(table, on or host.this())


def _rows(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise errors.InvalidArgument(f"{path} cannot be read: {error}") from error


def _must_hold_together(table: Table) -> None:
    """Raises ValueError for a row that names what is not there, or that is less than nothing."""
    for name, machine in table.machines.items():
        if machine.cpus <= 0 or machine.memory_gib <= 0:
            raise ValueError(f"machines.{name}: cpus and memory_gib must be more than 0")
        if machine.accelerator and machine.accelerator not in table.accelerators:
            raise ValueError(f"machines.{name}: there is no accelerators.{machine.accelerator}")
    for name, tier in table.tiers.items():
        for role in ROLES:
            count, _, type_ = getattr(tier, role).partition(" ")
            if getattr(tier, role) and not (count.isdigit() and type_ in table.machines):
                raise ValueError(f'tiers.{name}.{role} must be a count and a machine, such as "1 n1-standard-4"')
        if tier.accelerator and tier.accelerator not in table.accelerators:
            raise ValueError(f"tiers.{name}: there is no accelerators.{tier.accelerator}")


def _faults_of_configs(told: TrainingInput) -> Iterator[Fault]:
    for role, name in CAMEL.items():
        config: ReplicaConfig | None = getattr(told, f"{role}_config")
        if config is None:
            continue
        for field in CONTAINERS:
            if getattr(config, field):
                yield f"trainingInput.{name}Config.{_camel(field)}", CONTAINER
        yield from _faults_of_disk(config.disk_config, f"trainingInput.{name}Config.diskConfig")
    if told.use_chief_in_tf_config:
        yield "trainingInput.useChiefInTfConfig", CONTAINER


CONTAINER = (
    "is for custom containers, which are not run here; leave it out, and say what to run by packageUris, pythonModule, "
    "args and runtimeVersion."
)


def _faults_of_disk(disk: DiskConfig | None, field: str) -> Iterator[Fault]:
    if disk is None:
        return
    if disk.boot_disk_type not in DISKS:
        yield f"{field}.bootDiskType", f"must be pd-ssd or pd-standard; it is {disk.boot_disk_type[:100]!r}."
    if (disk.boot_disk_size_gb or 0) < 0:
        yield f"{field}.bootDiskSizeGb", f"must be 0 or more; it is {disk.boot_disk_size_gb}."


def _faults_of_named(told: TrainingInput) -> Iterator[Fault]:
    """What only CUSTOM may say."""
    tier = told.scale_tier or "BASIC"
    for role, name in CAMEL.items():
        for what in ("type", "count"):
            if getattr(told, f"{role}_{what}", None):
                yield (
                    f"trainingInput.{name}{what.title()}",
                    f"is for scaleTier CUSTOM, and scaleTier is {tier}. Set scaleTier to CUSTOM, or leave it out.",
                )
        config: ReplicaConfig | None = getattr(told, f"{role}_config")
        if config is not None and config.accelerator_config is not None:
            yield (
                f"trainingInput.{name}Config.acceleratorConfig",
                f"is for scaleTier CUSTOM with a Compute Engine machine type, and scaleTier is {tier}.",
            )


def _alone(told: TrainingInput, roles: Mapping[str, Role]) -> Iterator[Note]:
    others = [_counted(role.count, ROLES[name]) for name, role in roles.items() if name != "master"]
    if others:
        beside = f"Scale tier {told.scale_tier} has {' and '.join(others)} beside the master."
        yield "WARNING", f"{beside} Distributed training is not offered yet: the master runs alone."


def _disks(told: TrainingInput) -> Iterator[Note]:
    configs = (getattr(told, f"{role}_config") for role in ROLES)
    if any(config is not None and config.disk_config is not None for config in configs):
        yield "INFO", "diskConfig has no effect here: the job writes to the disk of this host."


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _legacy(type_: str) -> bool:
    return "-" not in type_


def _model_words(gpu: Gpu) -> list[str]:
    return gpu.model.replace("-", " ").split()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
