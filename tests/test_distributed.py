"""Real frameworks as gangs, with their checkpoints on gs://: whole runs, and runs that lose a replica in the middle."""

from __future__ import annotations

import signal
import uuid

import pytest
import trainers
from conftest import running
from trainers import ESTIMATOR, FILES, Lab, rides, sdist, until

from taxiway import errors
from taxiway.environments import runtimes

pytestmark = pytest.mark.runtime

CLUSTER = {"scaleTier": "CUSTOM", "masterType": "n1-standard-1", "workerType": "n1-standard-1"}
SERVED = {"parameterServerType": "n1-standard-1", "parameterServerCount": "1"}

# Each step is a mean over all replicas: who is missing is missed by all.
MIRRORED = """
import json
import os
import sys
import time

import tensorflow as tf

task = json.loads(os.environ["TF_CONFIG"])["task"]
job_dir, steps = sys.argv[sys.argv.index("--job-dir") + 1], int(sys.argv[sys.argv.index("--steps") + 1])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    weight = tf.Variable(0.0)
    step = tf.Variable(0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
kept = tf.train.Checkpoint(weight=weight, step=step)
lead = task["type"] == "chief"
manager = tf.train.CheckpointManager(kept, job_dir + "/steps" if lead else "steps", max_to_keep=2)
latest = tf.train.latest_checkpoint(job_dir + "/steps")
if latest:
    kept.restore(latest)
print("from", int(step.numpy()), "of", strategy.num_replicas_in_sync, flush=True)


@tf.function
def train():
    def one():
        step.assign_add(1)
        context = tf.distribute.get_replica_context()
        share = context.all_reduce(tf.distribute.ReduceOp.MEAN, 3.0 - weight)
        weight.assign_add(share * 0.1)

    strategy.run(one)


while int(step.numpy()) < steps:
    train()
    time.sleep(0.05)
    if int(step.numpy()) % 10 == 0:
        manager.save()
        print("step", int(step.numpy()), flush=True)
print("done: {} steps, weight {:.2f}".format(int(step.numpy()), float(weight.numpy())), flush=True)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory, runtime_python, jailed):
    if not jailed:
        pytest.skip("no jail can be made here: see README.md")
    with running(tmp_path_factory.mktemp("distributed") / "home", TAXIWAY_JOBS="2") as server:
        lab = Lab(server.call, server.project, server.address.service_agent).open()
        lab.home = server.home
        yield lab


def run(lab, name, trainer, *args, **told):
    package = lab.put(f"{name}/trainer-0.1.tar.gz", sdist({**FILES, "trainer/task.py": trainer}))
    asked = {**CLUSTER, "packageUris": [package], "args": list(args), **told}
    asked.setdefault("jobDir", f"gs://{lab.bucket}/{uuid.uuid4().hex}")
    return lab.submit("", **asked)


def code_of(job, role, number=0):
    """The trainer of a role, below whatever a jail is made of."""
    place = f'"type":"{role}","index":{number}'
    return until(
        lambda: next(
            (
                each
                for each in trainers.processes(job)
                if "trainer.task" in each.cmdline()[:5] and place in each.environ()["TF_CONFIG"]
            ),
            None,
        )
    )


def kill(job, role, number=0):
    code_of(job, role, number).send_signal(signal.SIGKILL)


def starts(lab, job):
    """How often each replica was started."""
    tasks = [each["task"] for each in lab.get(job)["taxiway"]["attempts"]]
    return {task: tasks.count(task) for task in dict.fromkeys(tasks)}


def succeeded(lab, job):
    told = lab.ended(job)
    assert told["state"] == "SUCCEEDED", "\n".join(lab.said(job)[-60:])


def went_on(lab, job):
    """Whether it began again, and not from the beginning."""
    return any(line.startswith("from ") and not line.startswith("from 0") for line in lab.said(job))


def test_mirrored_workers_train_as_one(lab):
    job = run(lab, "mirrored", MIRRORED, "--steps", "60", workerCount="1")
    succeeded(lab, job)
    assert lab.printed(job)[-1].startswith("done: 60 steps")
    assert set(starts(lab, job).values()) == {1}


@pytest.mark.torture
@pytest.mark.parametrize("workers", [1, 2])
def test_mirrored_workers_go_on_from_the_checkpoint_when_one_is_lost(lab, workers):
    job = run(lab, "mirrored", MIRRORED, "--steps", "200", workerCount=str(workers))
    lab.until_said(job, "step 50")
    kill(job, "worker", workers - 1)
    succeeded(lab, job)
    assert went_on(lab, job)


# The chief hands out steps; workers and the parameter server only wait to be asked.
SERVED_BY = """
import json
import os
import sys
import time

import tensorflow as tf

task = json.loads(os.environ["TF_CONFIG"])["task"]
job_dir, steps = sys.argv[sys.argv.index("--job-dir") + 1], int(sys.argv[sys.argv.index("--steps") + 1])
cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
if task["type"] in ("worker", "ps"):
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    spec = cluster.cluster_spec()
    server = tf.distribute.Server(spec, job_name=task["type"], task_index=task["index"], protocol="grpc")
    print("serves", flush=True)
    server.join()
strategy = tf.distribute.ParameterServerStrategy(cluster)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with strategy.scope():
    weight = tf.Variable(0.0)
    step = tf.Variable(0, dtype=tf.int64)
kept = tf.train.Checkpoint(weight=weight, step=step)
manager = tf.train.CheckpointManager(kept, job_dir + "/steps", max_to_keep=2)
if manager.latest_checkpoint:
    kept.restore(manager.latest_checkpoint)
print("from", int(step.numpy()), flush=True)


@tf.function
def train():
    weight.assign_add((3.0 - weight) * 0.1)
    step.assign_add(1)


while int(step.numpy()) < steps:
    for _ in range(10):
        coordinator.schedule(train)
    coordinator.join()
    time.sleep(0.3)
    manager.save()
    print("step", int(step.numpy()), flush=True)
print("done: {} steps, weight {:.2f}".format(int(step.numpy()), float(weight.numpy())), flush=True)
os._exit(0)  # TensorFlow's own end waits for ever for a worker that comes back in this moment
"""


@pytest.mark.torture
def test_a_coordinator_trains_with_workers_and_a_parameter_server_and_goes_on_without_one_of_them(lab):
    job = run(lab, "served", SERVED_BY, "--steps", "80", workerCount="2", **SERVED)
    lab.until_said(job, "step 20")
    kill(job, "worker", 1)
    succeeded(lab, job)
    assert lab.printed(job)[-1].startswith("done: 80 steps")
    assert lab.printed(job).count("from 0") == 1


@pytest.mark.torture
def test_a_coordinator_goes_on_from_its_checkpoint_when_the_parameters_or_itself_are_lost(lab):
    job = run(lab, "served", SERVED_BY, "--steps", "250", workerCount="1", **SERVED)
    lab.until_said(job, "step 50")
    kill(job, "ps")
    until(lambda: [line for line in lab.said(job) if line.startswith("from ")][1:])
    lab.until_said(job, "step 120")
    kill(job, "chief")
    succeeded(lab, job)
    assert lab.printed(job)[-1].startswith("done: 250 steps")


# The recipe of PyTorch's own documentation, found by env://; rank 0 keeps what all go on from.
TORCH = """
import os
import sys
import time

import fsspec
import torch

job_dir, steps = sys.argv[sys.argv.index("--job-dir") + 1], int(sys.argv[sys.argv.index("--steps") + 1])
torch.distributed.init_process_group("gloo")
rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
torch.manual_seed(1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
optimizer = torch.optim.Adam(model.parameters(), 0.05)
files, where = fsspec.core.url_to_fs(job_dir + "/model.pt")
step = 0
if files.exists(where):
    with files.open(where, "rb") as file:
        kept = torch.load(file)
    step = kept["step"]
    model.module.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
print("from", step, "of", size, flush=True)
chance = torch.Generator().manual_seed(rank)
while step < steps:
    inputs = torch.rand(32, 2, generator=chance)
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))
    loss.backward()
    optimizer.step()
    step += 1
    time.sleep(0.05)
    if step % 10 == 0:
        if rank == 0:
            with files.open(where, "wb") as file:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({"step": step, **state}, file)
        print("step", step, flush=True)
torch.distributed.barrier()
print("done: {} steps, loss {:.3f}".format(step, loss.item()), flush=True)
torch.distributed.destroy_process_group()
"""


def built(version):
    try:
        runtimes.build(runtimes.resolve(version, None))
    except (errors.InvalidArgument, errors.Unavailable, errors.StorageFull) as failure:
        pytest.skip(f"{version} cannot be built here: {failure}")


@pytest.mark.torture
@pytest.mark.parametrize("victim", ["worker 1", "chief 0"])
def test_data_parallel_pytorch_goes_on_from_its_checkpoint_when_one_is_lost(lab, victim):
    built("pytorch-2.15")
    job = run(lab, "torch", TORCH, "--steps", "200", workerCount="2", runtimeVersion="pytorch-2.15")
    lab.until_said(job, "step 50")
    role, number = victim.split()
    kill(job, role, int(number))
    succeeded(lab, job)
    assert lab.printed(job)[-1].startswith("done: 200 steps")
    assert went_on(lab, job)


# What TensorFlow 2.15 has left of TensorFlow 1's names.
COMPATIBLE = {
    name: text.replace("import tensorflow as tf\n", "import tensorflow.compat.v1 as tf\n")
    for name, text in ESTIMATOR.items()
}
ALL_BUT_ONE = {"master-replica-0": 1, "ps-replica-0": 1, "worker-replica-0": 1, "worker-replica-1": 2}


def estimator(lab, version, code, steps, **told):
    """A job that loses its second worker, and its primary's checkpoints at the end."""
    built(version)
    package = [lab.put(f"estimator-{version}/trainer-0.1.tar.gz", sdist(code))]
    train, valid = lab.put("rides/train-1.csv", rides(1000)), lab.put("rides/valid.csv", rides(100))
    args = [f"--train_data_paths={train}", f"--eval_data_paths={valid}", f"--train_steps={steps}"]
    args.append(f"--output_dir=gs://{lab.bucket}/out-{version}")
    asked = {**CLUSTER, **SERVED, "workerCount": "2", "packageUris": package, "runtimeVersion": version}
    job = lab.submit("", args=args, **{**asked, **told})
    until(lambda: [line for line in lab.said(job, "worker-replica-1") if "loss = " in line])
    kill(job, "worker", 1)
    succeeded(lab, job)
    names = lab.listed(f"out-{version}/")
    last = max(int(name.split("ckpt-")[1].split(".")[0]) for name in names if "ckpt-" in name)
    assert steps <= last < steps + 10
    return job, names


@pytest.mark.torture
def test_the_estimator_of_2018_goes_on_beside_a_worker_that_was_lost(lab):
    job, names = estimator(lab, "1.15", ESTIMATOR, 4000)
    assert starts(lab, job) == ALL_BUT_ONE  # nobody else began again
    assert [name for name in names if "/export/" in name and name.endswith("saved_model.pb")]


@pytest.mark.torture
def test_an_estimator_of_tensorflow_2_has_a_chief_and_an_evaluator(lab):
    watched = {"evaluatorType": "n1-standard-1", "evaluatorCount": "1"}
    job, _ = estimator(lab, "2.15", COMPATIBLE, 6000, **watched)
    assert starts(lab, job) == {**ALL_BUT_ONE, "evaluator-replica-0": 1}
    assert [line for line in lab.said(job, "evaluator-replica-0") if "Saving dict for global step" in line]
    assert not [line for line in lab.said(job, "master-replica-0") if "Saving dict for global step" in line]


# JAX finds the coordinator by itself, and is told the rest: its initialize() asks no variable for them.
JAX = """
import os

import jax

size, rank = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(num_processes=size, process_id=rank, cluster_detection_method="deactivate")
from jax.experimental import multihost_utils

print("sum", int(multihost_utils.process_allgather(jax.numpy.array([rank + 1])).sum()), flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.torture
def test_processes_of_jax_find_each_other(lab):
    wanted = FILES["setup.py"].replace("packages=", "install_requires=['jax'], packages=")
    files = {**FILES, "setup.py": wanted, "trainer/task.py": JAX}
    package = lab.put("jax/trainer-0.1.tar.gz", sdist(files))
    job = lab.submit("", **{**CLUSTER, "workerCount": "1", "packageUris": [package]})
    succeeded(lab, job)
    assert lab.said(job, "master-replica-0").count("sum 3") == lab.said(job, "worker-replica-0").count("sum 3") == 1
