"""Machine types, tiers and accelerators: what may be asked for, and what a host gives for it."""

from __future__ import annotations

import msgspec
import pytest

from taxiway import errors, plan
from taxiway.jobs import host, machines
from taxiway.jobs.host import GIB, Gpu, Host
from taxiway.schemas import AcceleratorConfig, DiskConfig, ReplicaConfig, ScaleTier, TrainingInput

SMALL = Host(2, 8 * GIB)
LARGE = Host(64, 512 * GIB)
WITH_GPUS = Host(64, 512 * GIB, (Gpu(0, "NVIDIA A100-SXM4-40GB"), Gpu(1, "Tesla T4"), Gpu(2, "Tesla T4")))
T4 = AcceleratorConfig(type="NVIDIA_TESLA_T4", count=1)


def on(found):
    return machines.read(on=found)


def custom(master="n1-standard-4", **told):
    return TrainingInput(scale_tier="CUSTOM", master_type=master, **told)


def faults(told, found=LARGE):
    return dict(on(found).faults(told))


def notes(told, found=LARGE):
    return on(found).notes(told)


def share(made, told):
    """The processors and bytes that the master gets."""
    return made.seats(told)[0][1:3]


# --- what may be asked for ---


@pytest.mark.parametrize("tier", ScaleTier.__args__[:-1])
def test_every_named_tier_is_taken_on_every_host(tier):
    told = TrainingInput(scale_tier=tier)
    for found in (SMALL, LARGE, WITH_GPUS):
        assert faults(told, found) == {}
        share = on(found).seats(told)[0]
        assert 0 < share.cpus <= found.cpus
        assert 0 < share.memory < found.memory


def test_a_named_tier_that_fits_gets_its_machine_and_nothing_is_said():
    assert share(on(LARGE), TrainingInput()) == (4, 15 * GIB)
    assert notes(TrainingInput(scale_tier="BASIC")) == []


def test_a_named_tier_that_does_not_fit_runs_scaled_down_and_says_so():
    told = TrainingInput(scale_tier="BASIC")
    assert share(on(SMALL), told) == (2, 7 * GIB)
    ((severity, sentence),) = notes(told, SMALL)
    assert severity == "INFO"
    assert sentence == (
        "Scale tier BASIC has a master of n1-standard-4, with 4 CPUs and 15 GiB; this host has 2 CPUs and 8 GiB, "
        "and the job gets at most 2 CPUs and 7 GiB."
    )


@pytest.mark.parametrize(
    ("told", "here", "said"),
    [
        (
            TrainingInput(scale_tier="STANDARD_1"),
            Host(2, 8 * GIB),
            "3 parameter servers and 4 workers, of which 1 master, 1 parameter server and 1 worker run. They share",
        ),
        (
            TrainingInput(scale_tier="STANDARD_1"),
            Host(64, 512 * GIB),
            "at most, each master 8 CPUs and 7.2 GiB, each parameter server 4 CPUs and 15 GiB, each worker 8 CPUs",
        ),
        (
            custom(worker_type="n1-standard-8", worker_count=1),
            Host(8, 64 * GIB),
            "has 1 master and 1 worker. They share this host's 8 CPUs and 64 GiB: at most, each master 4 CPUs and 15",
        ),
    ],
)
def test_of_several_machines_the_log_says_how_many_run_and_with_what(told, here, said):
    assert faults(told, here) == {}
    ((severity, sentence),) = machines.read(on=here).notes(told)
    assert severity == ("WARNING" if "of which" in sentence else "INFO")
    assert sentence.startswith(f"Scale tier {told.scale_tier} has 1 master")
    assert said in sentence


def test_custom_gives_what_its_machine_has():
    assert share(on(LARGE), custom("n1-highmem-8")) == (8, 52 * GIB)
    assert share(on(LARGE), custom("complex_model_s")) == (8, int(7.2 * GIB))


@pytest.mark.parametrize(
    ("told", "field", "words"),
    [
        (TrainingInput(scale_tier="CUSTOM"), "masterType", "is required with scaleTier CUSTOM, such as n1-standard-4"),
        (custom("n1-standard-5"), "masterType", "is no machine type. Did you mean n1-standard-"),
        (custom(worker_count=3), "workerType", "is required: workerCount is 3"),
        (custom(parameter_server_count=1), "parameterServerType", "is required: parameterServerCount is 1"),
        (custom(evaluator_count=1), "evaluatorType", "is required: evaluatorCount is 1"),
        (custom(worker_count=-1, worker_type="n1-standard-4"), "workerCount", "0 or more; it is -1"),
        (
            custom(worker_type="large_model", worker_count=1),
            "workerType",
            "cannot be mixed: masterType is n1-standard-4",
        ),
        (custom("standard", evaluator_type="n1-highmem-2", evaluator_count=1), "evaluatorType", "cannot be mixed"),
        (
            custom("standard", master_config=ReplicaConfig(accelerator_config=T4)),
            "masterConfig.acceleratorConfig",
            "is for Compute Engine machine types, such as n1-standard-4; masterType is standard",
        ),
        (
            custom(master_config=ReplicaConfig(accelerator_config=AcceleratorConfig(count=1))),
            "masterConfig.acceleratorConfig.type",
            "is required, one of NVIDIA_TESLA_K80",
        ),
        (
            custom(worker_config=ReplicaConfig(accelerator_config=AcceleratorConfig(type="NVIDIA_TESLA_T4"))),
            "workerConfig.acceleratorConfig.count",
            "must be 1 or more",
        ),
        (
            TrainingInput(scale_tier="BASIC", worker_count=3),
            "workerCount",
            "is for scaleTier CUSTOM, and scaleTier is B",
        ),
        (TrainingInput(master_type="n1-standard-4"), "masterType", "is for scaleTier CUSTOM"),
        (
            TrainingInput(master_config=ReplicaConfig(accelerator_config=T4)),
            "masterConfig.acceleratorConfig",
            "is for scaleTier CUSTOM with a Compute Engine machine type",
        ),
        (
            TrainingInput(master_config=ReplicaConfig(disk_config=DiskConfig(boot_disk_type="floppy"))),
            "masterConfig.diskConfig.bootDiskType",
            "must be pd-ssd or pd-standard; it is 'floppy'",
        ),
        (
            TrainingInput(worker_config=ReplicaConfig(disk_config=DiskConfig(boot_disk_size_gb=-1))),
            "workerConfig.diskConfig.bootDiskSizeGb",
            "must be 0 or more",
        ),
        (
            TrainingInput(master_config=ReplicaConfig(image_uri="gcr.io/a/b")),
            "masterConfig.imageUri",
            "custom containers, which are not run here; leave it out, and say what to run by packageUris",
        ),
        (
            TrainingInput(worker_config=ReplicaConfig(container_command=("sh",))),
            "workerConfig.containerCommand",
            "custom containers",
        ),
        (
            TrainingInput(evaluator_config=ReplicaConfig(container_args=("-x",))),
            "evaluatorConfig.containerArgs",
            "custom containers",
        ),
        (
            TrainingInput(parameter_server_config=ReplicaConfig(tpu_tf_version="2.1")),
            "parameterServerConfig.tpuTfVersion",
            "custom containers",
        ),
    ],
)
def test_what_contradicts_itself_is_told_by_its_field(told, field, words):
    found = faults(told)
    assert list(found) == [f"trainingInput.{field}"]
    assert words in found[f"trainingInput.{field}"]


def test_a_machine_that_does_not_fit_is_refused_with_those_that_do():
    sentence = faults(custom("n1-standard-8"), SMALL)["trainingInput.masterType"]
    assert sentence == (
        "n1-standard-8 has 8 CPUs and 30 GiB, and this host has 2 CPUs and 8 GiB. What fits: n1-standard-2, "
        "n1-highcpu-2, n1-standard-1. A named tier, such as BASIC, runs scaled down."
    )
    assert "None of the machine types fits" in faults(custom(), Host(0.5, GIB))["trainingInput.masterType"]


TOGETHER = "a job's machines run on one host together, and this one has"


def gang(types, counts, accelerators=()):
    """CUSTOM with machines beside the master, by role."""
    told = {f"{role}_type": type_ for role, type_ in types.items()}
    told |= {f"{role}_count": count for role, count in counts.items()}
    for role, type_, count in accelerators:
        told[f"{role}_config"] = ReplicaConfig(accelerator_config=AcceleratorConfig(type=type_, count=count))
    return custom(**told)


@pytest.mark.parametrize(
    ("told", "found", "field", "words"),
    [
        (
            gang({"worker": "n1-standard-8"}, {"worker": 2}),
            Host(4, 64 * GIB),
            "workerType",
            "n1-standard-8 has 8 CPUs and 30 GiB, and this host has 4 CPUs and 64 GiB. What fits: n1-",
        ),
        (
            gang({"worker": "n1-standard-4", "evaluator": "n1-standard-4"}, {"worker": 4, "evaluator": 1}),
            Host(4, 64 * GIB),
            "workerCount",
            f"4 workers of n1-standard-4 have 60 GiB; {TOGETHER} 64 GiB: at most 3 workers of this type would fit. A n",
        ),
        (
            gang({"worker": "n1-standard-4", "parameter_server": "n1-highmem-4"}, {"worker": 3, "parameter_server": 1}),
            Host(4, 64 * GIB),
            "parameterServerCount",
            f"1 parameter server of n1-highmem-4 has 26 GiB; {TOGETHER} 64 GiB: none fits beside the others.",
        ),
        (
            gang({"worker": "n1-standard-4"}, {"worker": 3}, [("worker", "NVIDIA_TESLA_T4", 1)]),
            WITH_GPUS,
            "workerConfig.acceleratorConfig",
            "asks for 1 NVIDIA_TESLA_T4, 3 together with the machines before it, and this host has 1 NVIDIA A100",
        ),
        (
            gang(
                {"worker": "n1-standard-4"},
                {"worker": 1},
                [("master", "NVIDIA_TESLA_T4", 2), ("worker", "NVIDIA_TESLA_T4", 1)],
            ),
            WITH_GPUS,
            "workerConfig.acceleratorConfig",
            "asks for 1 NVIDIA_TESLA_T4, 3 together",
        ),
        (
            gang({"evaluator": "n1-standard-4"}, {"evaluator": 1}, [("evaluator", "TPU_V2", 8)]),
            WITH_GPUS,
            "evaluatorConfig.acceleratorConfig",
            "asks for 8 TPU_V2, and this host has",
        ),
        (
            msgspec.structs.replace(gang({"worker": "standard_gpu"}, {"worker": 1}), master_type="standard"),
            WITH_GPUS,
            "workerType",
            "standard_gpu has 1 NVIDIA_TESLA_K80, and this host has",
        ),
    ],
)
def test_the_machines_of_custom_must_fit_together(told, found, field, words):
    sentences = faults(told, found)
    assert list(sentences) == [f"trainingInput.{field}"]
    assert sentences[f"trainingInput.{field}"].startswith(words)


def test_machines_share_the_hosts_processors_and_each_has_its_own_gpus():
    assert faults(gang({"worker": "n1-standard-4"}, {"worker": 3}), Host(4, 64 * GIB)) == {}
    spread = [("master", "NVIDIA_TESLA_T4", 1), ("worker", "NVIDIA_TESLA_T4", 1)]
    told = gang({"worker": "n1-standard-4"}, {"worker": 1}, spread)
    assert faults(told, WITH_GPUS) == {}
    made = machines.read(on=WITH_GPUS)
    assert made.accelerators(told) == ("NVIDIA_TESLA_T4", 2)
    given = [gpu for gpu in WITH_GPUS.gpus if gpu.index in made.fitting("NVIDIA_TESLA_T4")][:2]
    assert [list(seat.gpus) for seat in made.seats(told, given)] == [given[:1], given[1:]]
    mixed = gang({"worker": "n1-standard-4"}, {"worker": 1}, [*spread[:1], ("worker", "NVIDIA_TESLA_A100", 1)])
    (fault,) = faults(mixed, WITH_GPUS).values()
    assert fault.startswith("all machines of a job have one kind of accelerator here; these have NVIDIA_TESLA_A100 and")


def test_a_machine_as_large_as_the_host_fits_and_leaves_the_server_some_memory():
    nominal = Host(4, int(14.6 * GIB))  # what a machine with 15 GiB has for its programs
    assert faults(custom(), nominal) == {}
    assert on(nominal).seats(custom())[0].memory < nominal.memory


# --- accelerators ---


def test_accelerators_are_matched_to_the_hosts_gpus():
    told = custom(master_config=ReplicaConfig(accelerator_config=msgspec.structs.replace(T4, count=2)))
    assert faults(told, WITH_GPUS) == {}
    assert on(WITH_GPUS).accelerators(told) == ("NVIDIA_TESLA_T4", 2)
    assert on(WITH_GPUS).fitting("NVIDIA_TESLA_T4") == (1, 2)
    (note,) = notes(told, WITH_GPUS)
    assert note == ("INFO", "The job asked for 2 NVIDIA_TESLA_T4 and gets 2 of this host's GPUs to itself: Tesla T4.")


@pytest.mark.parametrize(
    ("told", "found", "field", "words"),
    [
        (T4, LARGE, "masterConfig.acceleratorConfig", "asks for 1 NVIDIA_TESLA_T4, and this host has no GPU"),
        (
            AcceleratorConfig(type="NVIDIA_TESLA_V100", count=1),
            WITH_GPUS,
            "masterConfig.acceleratorConfig",
            "and this host has 1 NVIDIA A100-SXM4-40GB, 2 Tesla T4. Leave it out to run on CPUs.",
        ),
        (msgspec.structs.replace(T4, count=3), WITH_GPUS, "masterConfig.acceleratorConfig", "asks for 3"),
        (AcceleratorConfig(type="TPU_V2", count=8), WITH_GPUS, "masterConfig.acceleratorConfig", "asks for 8 TPU_V2"),
        ("standard_gpu", WITH_GPUS, "masterType", "standard_gpu has 1 NVIDIA_TESLA_K80, and this host has"),
        ("cloud_tpu", LARGE, "masterType", "and no TPU. Choose a machine type without."),
    ],
)
def test_accelerators_that_the_host_has_not_are_refused_with_what_it_has(told, found, field, words):
    asked = custom(told) if isinstance(told, str) else custom(master_config=ReplicaConfig(accelerator_config=told))
    sentences = faults(asked, found)
    assert list(sentences) == [f"trainingInput.{field}"]
    assert words in sentences[f"trainingInput.{field}"]


def test_a_named_tier_takes_any_gpu_and_without_one_runs_on_cpus_with_a_warning():
    told = TrainingInput(scale_tier="BASIC_GPU")
    assert on(WITH_GPUS).accelerators(told) == ("BASIC_GPU", 1)
    assert on(WITH_GPUS).fitting("BASIC_GPU") == (0, 1, 2)
    models = "NVIDIA A100-SXM4-40GB, Tesla T4."
    assert notes(told, WITH_GPUS)[0][1].endswith(f"gets 1 of this host's GPUs to itself: {models}")
    assert on(LARGE).fitting("BASIC_GPU") == ()
    ((severity, sentence),) = notes(told, LARGE)
    assert severity == "WARNING"
    assert sentence.startswith("Scale tier BASIC_GPU has 1 NVIDIA_TESLA_K80; this host has no GPU")
    assert "runs on CPUs" in notes(TrainingInput(scale_tier="BASIC_TPU"), WITH_GPUS)[0][1]


def test_a_disk_is_taken_and_the_log_says_that_it_has_no_effect():
    told = custom(master_config=ReplicaConfig(disk_config=DiskConfig(boot_disk_type="pd-ssd", boot_disk_size_gb=200)))
    assert faults(told) == {}
    assert notes(told) == [("INFO", "diskConfig has no effect here: the job writes to the disk of this host.")]


# --- the work that comes of it ---


def test_the_masters_work_is_told_its_share_and_that_it_is_alone():
    told = custom(
        worker_type="n1-standard-4",
        worker_count=2,
        evaluator_type="n1-standard-4",
        evaluator_count=1,
        python_module="t.task",
    )
    given = (Gpu(1, "Tesla T4", "GPU-11-aa", 5), Gpu(2, "Tesla T4"))
    seat = plan.Seat(cpus=2.0, memory=GIB, gpus=given)
    (work,) = plan.training("p", 1, "j", told, runtime="2.15", python="3.11", seats=[seat])
    assert (work.cpus, work.memory, work.gpus, work.devices) == (2.0, GIB, [1, 2], ["nvidia5", "nvidia2"])
    assert work.variables["CUDA_VISIBLE_DEVICES"] == "GPU-11-aa,2"
    assert work.variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    config = msgspec.json.decode(work.variables["TF_CONFIG"])
    assert (config["cluster"], config["task"]) == ({}, {})  # nobody is beside it who would evaluate
    assert config["job"]["workerCount"] == 2
    (without,) = plan.training("p", 1, "j", told, runtime="2.21", python="3.11", seats=[plan.Seat(gpus=())])
    assert without.variables["CUDA_VISIBLE_DEVICES"] == ""
    (left,) = plan.training("p", 1, "j", told, runtime="2.21", python="3.11")
    assert (left.cpus, left.memory, "CUDA_VISIBLE_DEVICES" in left.variables) == (0.0, 0, False)


# --- units ---


@pytest.mark.parametrize(
    ("told", "units"),
    [
        (TrainingInput(), 0.3878),
        (TrainingInput(scale_tier="STANDARD_1"), 4.0571),
        (custom("n1-standard-8"), 0.7755),
        (custom("standard", worker_type="large_model", worker_count=2), 0.3878 + 2 * 0.9665),
        (custom("n1-standard-8", master_config=ReplicaConfig(accelerator_config=T4)), 0.7755 + 0.7143),
        (custom("standard_gpu"), 1.6939),
        (custom("gone-since"), 0.0),
    ],
)
def test_units_follow_the_machines_that_were_asked_for(told, units):
    assert on(LARGE).units(told) == pytest.approx(units)


def test_the_tiers_of_several_machines_cost_what_their_machines_do():
    table = on(LARGE).table
    for tier in ("STANDARD_1", "PREMIUM_1"):
        roles = on(LARGE).roles(TrainingInput(scale_tier=tier)).values()
        total = sum(role.count * table.machines[role.type].units for role in roles)
        assert total == pytest.approx(table.tiers[tier].units, rel=1e-3)


# --- an admin's own table ---


def test_a_home_adds_rows_and_replaces_them(tmp_path):
    (tmp_path / "machines.toml").write_text(
        "[machines]\n"
        "n1-standard-4 = { cpus = 1.5, memory_gib = 2, units = 1 }\n"
        "desk-1 = { cpus = 1, memory_gib = 1, units = 0.5 }\n"
        "[accelerators]\n"
        'NVIDIA_TESLA_V100 = { units = 1, models = ["H100"] }\n'
    )
    made = machines.read(tmp_path, on=Host(64, 512 * GIB, (Gpu(0, "NVIDIA H100 80GB HBM3"),)))
    assert share(made, TrainingInput()) == (1.5, 2 * GIB)
    assert share(made, custom("desk-1")) == (1, GIB)
    assert made.seats(custom("n1-highmem-8"))[0].cpus == 8  # the others stay
    v100 = AcceleratorConfig(type="NVIDIA_TESLA_V100", count=1)
    assert made.fitting(made.accelerators(custom(master_config=ReplicaConfig(accelerator_config=v100)))[0]) == (0,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[machines", "cannot be read"),
        ("machine = {}\n", "unknown field `machine`"),
        ("machines = 3\n", "Expected `object`"),
        ("[machines]\nx = { cpus = 1 }\n", "missing required field `memory_gib`"),
        ("[machines]\nx = { cpus = 1, memory_gib = 1, units = 1, gpus = 2 }\n", "unknown field `gpus`"),
        ("[machines]\nx = { cpus = 0, memory_gib = 1, units = 1 }\n", "machines.x: cpus and memory_gib must be more"),
        ('[tiers]\nBASIC = { master = "1 none", units = 1 }\n', "tiers.BASIC.master must be a count and a machine"),
        ('[tiers]\nBASIC = { master = "1 standard", accelerator = "X", units = 1 }\n', "there is no accelerators.X"),
    ],
)
def test_a_wrong_row_is_told_with_its_file(tmp_path, text, words):
    (tmp_path / "machines.toml").write_text(text)
    with pytest.raises(errors.InvalidArgument) as refused:
        machines.read(tmp_path, on=SMALL)
    assert words in str(refused.value)
    assert str(tmp_path / "machines.toml") in str(refused.value)


# --- the host ---


def test_this_host_has_what_it_has():
    found = host.this()
    assert found.cpus > 0
    assert found.memory > GIB // 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "2147483648\n"}, (1.5, 2 * GIB)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, (float("inf"), float("inf"))),
        (
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(GIB),
            },
            (0.5, GIB),
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (float("inf"), float("inf"))),
        ({}, (float("inf"), float("inf"))),
    ],
)
def test_the_limits_of_a_container_count(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.limits(tmp_path) == expected


def test_gpus_are_those_of_nvidia_smi_else_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = tmp_path / "driver"
    assert host.gpus(tmp_path / "none") == ()
    for bus, model, minor, uuid in (
        ("0000:3B:00.0", "Tesla T4", 3, "GPU-????????-????-????-????-????????????"),
        ("0000:af:00.0", "NVIDIA A100-SXM4-40GB", 1, "GPU-6f00af5e-1234"),
    ):
        (driver / bus).mkdir(parents=True)
        told = f"Model: \t\t {model}\nIRQ:   \t\t 44\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        (driver / bus / "information").write_text(told)
    by_driver = (Gpu(0, "Tesla T4", "", 3), Gpu(1, "NVIDIA A100-SXM4-40GB", "GPU-6f00af5e-1234", 1))
    assert host.gpus(driver) == by_driver
    program = tmp_path / "nvidia-smi"
    row = "NVIDIA H100 80GB HBM3, GPU-{}, 00000000:{}:00.0"
    program.write_text(f"#!/bin/sh\necho '0, {row.format('aa', '3B')}'\necho '1, {row.format('bb', 'C2')}'\n")
    program.chmod(0o755)
    first, second = host.gpus(driver)
    assert first == Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-aa", 3)
    assert (second.uuid, second.minor) == ("GPU-bb", None)  # its driver says nothing of it
    assert [(each.word, each.device) for each in (first, second)] == [("GPU-aa", "nvidia3"), ("GPU-bb", "nvidia1")]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert host.gpus(driver) == by_driver
