"""Machine types, scale tiers and accelerators: what a job may ask for, what this host has for it, and what it costs.

The table is machines.toml, beside this file and in the server's home. The rules are those of the service's reference of
TrainingInput: https://cloud.google.com/ai-platform/training/docs/reference/rest/v1/projects.jobs#TrainingInput
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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

SCALED = "A named tier, such as BASIC, runs scaled down."

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
        runs = self._shrunk(told, roles["master"]) if len(roles) == 1 else self._together(told, roles)
        return [*runs, *self._replaced(told, roles), *_disks(told)]

    def roles(self, told: TrainingInput) -> dict[str, Role]:
        """The machines of an input that is without faults, by role, as they were asked for."""
        if told.scale_tier == CUSTOM:
            return {role: made for role in ROLES if (made := self._custom(told, role)).count}
        tier = self.table.tiers[told.scale_tier or "BASIC"]
        split = {role: getattr(tier, role).split() for role in ROLES}
        named = {role: Role(int(words[0]), words[1]) for role, words in split.items() if words}
        master = msgspec.structs.replace(named["master"], accelerator=tier.accelerator, accelerators=tier.count)
        return {**named, "master": master}

    def accelerators(self, told: TrainingInput) -> tuple[str, int]:
        """Which GPUs an input without faults is to have (see `fitting`), and how many in all; ("", 0) for none.

        Of a named tier it says the tier: any GPU does for it if there is none of the right model.
        """
        roles = self.roles(told).values()
        kinds = {role.accelerator for role in roles if role.accelerators and not role.accelerator.startswith("TPU")}
        if not kinds:
            return "", 0
        count = sum(role.count * role.accelerators for role in roles)
        return (kinds.pop() if told.scale_tier == CUSTOM else told.scale_tier or "BASIC"), count

    def fitting(self, wanted: str) -> tuple[int, ...]:
        """The GPUs of this host that would do for an accelerator, or for a tier that has some."""
        tier = self.table.tiers.get(wanted)
        type_ = tier.accelerator if tier else wanted
        return tuple(gpu.index for gpu in self._gpus(type_, any_model=tier is not None))

    def seats(self, told: TrainingInput, gpus: Sequence[Gpu] = ()) -> list[Seat]:
        """One for each replica that runs, the primary first, with what it gets of this host, and of the job's `gpus`,
        which are given to it when its turn has come (see gpus.py).

        CUSTOM runs what it asked for. A named tier keeps at least one of each role, and as many more as there are
        processors for, in its own proportion; where that is less than it says, so in proportion is the memory, which
        the trials that run at one time have among them.
        """
        roles = self.roles(told)
        counts = {role: roles[role].count for role in plan.ROLES if role in roles}
        if told.scale_tier != CUSTOM:
            counts = scaled(counts, int(self.host.cpus))
        machines = {role: self._machine(roles[role].type) for role in counts}
        whole = sum(count * machines[role].memory for role, count in counts.items())
        trials = told.hyperparameters.max_parallel_trials if told.hyperparameters and told.scale_tier != CUSTOM else 1
        part = min(1.0, self.host.memory * (1 - KEPT) / (whole * (trials or 1)))
        seats, free = [], list(gpus)
        for role, count in counts.items():
            for _ in range(count):
                own, free = free[: roles[role].accelerators], free[roles[role].accelerators :]
                cpus, memory = min(machines[role].cpus, self.host.cpus), int(machines[role].memory * part)
                seats.append(Seat(role, cpus, memory, own if self.host.gpus else None))
        return seats

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
        """Whether the machines of CUSTOM fit this host, on which they run together.

        Each must fit by itself. Memory and GPUs are no two machines' at once, so all of them together must fit too.
        Processors are shared: more machines than there are processors for are slower, and no less right.
        """
        kinds = sorted({role.accelerator for role in self.roles(told).values() if role.accelerators})
        if len(kinds) > 1:
            sentence = f"all machines of a job have one kind of accelerator here; these have {' and '.join(kinds)}."
            yield "trainingInput.masterConfig.acceleratorConfig.type", sentence
            return
        memory = 0.0
        wanted: Counter[str] = Counter()
        for role, asked in self.roles(told).items():
            name, machine = CAMEL[role], self.table.machines[asked.type]
            if not self._fits(machine):
                sentence = f"{asked.type} has {machine}, and this host has {self.host}. {self._what_fits(asked.type)}"
                yield f"trainingInput.{name}Type", sentence
                continue
            each = machine.memory * (1 - KERNEL)
            if memory + asked.count * each > self.host.memory:
                yield f"trainingInput.{name}Count", self._too_many(role, asked, int((self.host.memory - memory) / each))
                continue
            memory += asked.count * each
            wanted[asked.accelerator] += asked.count * asked.accelerators
            if asked.accelerators and wanted[asked.accelerator] > len(self._gpus(asked.accelerator)):
                own = machine.accelerator == asked.accelerator
                beside = f"{asked.type} has" if own else "asks for"
                most = wanted[asked.accelerator]
                together = f", {most} together with the machines before it" if most > asked.accelerators else ""
                yield (
                    f"trainingInput.{name}{'Type' if own else 'Config.acceleratorConfig'}",
                    f"{beside} {asked.accelerators} {asked.accelerator}{together}, and {self._accelerators()}. "
                    + ("Choose a machine type without." if own else "Leave it out to run on CPUs."),
                )

    def _too_many(self, role: str, asked: Role, most: int) -> str:
        asks = f"{_counted(asked.count, ROLES[role])} of {asked.type} {'has' if asked.count == 1 else 'have'}"
        needs, here = host.gib(asked.count * self._machine(asked.type).memory), host.gib(self.host.memory)
        fit = f"at most {_counted(most, ROLES[role])} of this type would fit" if most else "none fits beside the others"
        return f"{asks} {needs}; a job's machines run on one host together, and this one has {here}: {fit}. {SCALED}"

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
        return told + SCALED

    def _gpus(self, accelerator: str, *, any_model: bool = False) -> tuple[Gpu, ...]:
        """Those of the host's that would do: of the right model, else (for a named tier) any."""
        if accelerator.startswith("TPU") or accelerator not in self.table.accelerators:
            return ()
        models = self.table.accelerators[accelerator].models
        exact = tuple(gpu for gpu in self.host.gpus if any(word in _model_words(gpu) for word in models))
        return exact or (self.host.gpus if any_model else ())

    def _shrunk(self, told: TrainingInput, asked: Role) -> Iterator[Note]:
        machine, got = self._machine(asked.type), self.seats(told)[0]
        if got.cpus < machine.cpus or got.memory < machine.memory * (1 - KERNEL):
            asks = f"Scale tier {told.scale_tier or 'BASIC'} has a master of {asked.type}, with {machine}"
            gets = f"the job gets at most {host.size(got.cpus, got.memory)}"
            yield "INFO", f"{asks}; this host has {self.host}, and {gets}."

    def _together(self, told: TrainingInput, roles: Mapping[str, Role]) -> Iterator[Note]:
        """How many of each run, with what, where it is less than was asked for; and where processors are shared."""
        seats = self.seats(told)
        run = {role: sum(seat.role == role for seat in seats) for role in plan.ROLES if role in roles}
        named = f"Scale tier {told.scale_tier} has {_listed({role: roles[role].count for role in run})}"
        fewer = any(run[role] < roles[role].count for role in run)
        some = f", of which {_listed(run)} run" if fewer else ""
        gets = ", ".join(
            f"each {ROLES[seat.role]} {host.size(seat.cpus, seat.memory)}"
            for index, seat in enumerate(seats)
            if seat.role not in {other.role for other in seats[:index]}
        )
        sentence = f"{named}{some}. They share this host's {self.host}: at most, {gets}."
        yield "WARNING" if fewer else "INFO", sentence

    def _replaced(self, told: TrainingInput, roles: Mapping[str, Role]) -> Iterator[Note]:
        asked = roles["master"]
        if not asked.accelerators:
            return
        wanted = f"{asked.accelerators} {asked.accelerator}"
        found = self._gpus(asked.accelerator, any_model=told.scale_tier != CUSTOM)
        if not found:
            yield "WARNING", f"Scale tier {told.scale_tier} has {wanted}; {self._accelerators()}: the job runs on CPUs."
            return
        count, models = min(asked.accelerators, len(found)), ", ".join(dict.fromkeys(gpu.model for gpu in found))
        yield "INFO", f"The job asked for {wanted} and gets {count} of this host's GPUs to itself: {models}."

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


def _disks(told: TrainingInput) -> Iterator[Note]:
    configs = (getattr(told, f"{role}_config") for role in ROLES)
    if any(config is not None and config.disk_config is not None for config in configs):
        yield "INFO", "diskConfig has no effect here: the job writes to the disk of this host."


def _listed(counts: Mapping[str, int]) -> str:
    *first, last = [_counted(count, ROLES[role]) for role, count in counts.items()]
    return f"{', '.join(first)} and {last}" if first else last


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _legacy(type_: str) -> bool:
    return "-" not in type_


def _model_words(gpu: Gpu) -> list[str]:
    return gpu.model.replace("-", " ").split()


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
