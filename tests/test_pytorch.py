"""PyTorch: a runtime that is named by a word, that nobody gets without asking for it, and that trains."""

from __future__ import annotations

import json

import msgspec
import pytest
from trainers import FILES, Lab, rides, sdist

from taxiway import errors, plan, receipts, schemas
from taxiway.environments import runtimes

NAME = "pytorch-2.15"

TRAINER = """
import argparse
import json
import os

import fsspec
import torch
import torch.distributed
import torch.multiprocessing
from torch.utils.tensorboard import SummaryWriter

parser = argparse.ArgumentParser()
parser.add_argument("--rides", required=True)
parser.add_argument("--job-dir", required=True)


def rides(path):
    with fsspec.open(path, "r") as file:
        rows = torch.tensor([[float(word) for word in line.split(",")] for line in file])
    east, north = (rows[:, 3] - rows[:, 1]) * 10, (rows[:, 4] - rows[:, 2]) * 10
    return torch.stack([east, north], 1), rows[:, :1] / 10


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))


def train(rank, size, inputs, fares, started, left):
    torch.distributed.init_process_group("gloo", init_method=started, rank=rank, world_size=size)
    model = torch.nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs[rank::size]), fares[rank::size])
        loss.backward()
        optimizer.step()
    together = torch.tensor([loss.item()])
    torch.distributed.all_reduce(together)
    if rank == 0:
        torch.save(model.module.state_dict(), left)
        print("trained by {}: loss {:.4f}".format(size, together.item() / size), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    told = parser.parse_args()
    inputs, fares = rides(told.rides)
    torch.multiprocessing.spawn(train, (2, inputs, fares, "tcp://localhost:29511", "/tmp/model.pt"), nprocs=2)
    with open("/tmp/model.pt", "rb") as here, fsspec.open(told.job_dir + "/model.pt", "wb") as there:
        there.write(here.read())
    model = network()
    with fsspec.open(told.job_dir + "/model.pt", "rb") as file:
        model.load_state_dict(torch.load(file))
    fare = model(torch.tensor([[0.5, 0.5]])).item() * 10
    with SummaryWriter("board") as board:
        board.add_scalar("fare", fare, 1)
    print(json.dumps({"version": torch.__version__, "fare": fare, "board": len(os.listdir("board"))}))
    print(json.dumps(json.loads(os.environ["TF_CONFIG"])["task"]))
"""


@pytest.fixture
def offered():
    if lacks := runtimes.table()[NAME].lacks:
        pytest.skip(f"runtime {NAME} {lacks}")


@pytest.mark.usefixtures("offered")
def test_it_is_chosen_by_its_whole_name_alone():
    choice = runtimes.resolve(NAME, None)
    assert (choice.version, choice.runtime.version) == (NAME, NAME)
    assert (choice.instead(trains=True), choice.as_one) == ("", False)
    assert choice.key.startswith(f"{NAME}-py3.")
    assert runtimes.resolve(choice.version, choice.python_version) == choice
    for near in ("pytorch", "pytorch-2", "pytorch-2.14", "PyTorch-2.15", f" {NAME}"):
        with pytest.raises(errors.InvalidArgument, match=rf"runtimeVersion.*is not offered.*{NAME}"):
            runtimes.resolve(near, None)
    for python in ("3.7", "2.7"):  # no old Python is mapped to it: there was no such runtime on the service
        with pytest.raises(errors.InvalidArgument, match=rf"pythonVersion.*with runtime version {NAME}. Choose: 3\.11"):
            runtimes.resolve(NAME, python)
    assert NAME not in {runtimes.resolve(version, None).runtime.version for version in ("2.16", "2.14", "1.13")}


def test_every_runtime_and_what_it_stands_in_for_gets_a_plan():
    def cluster(version, **told):
        training = schemas.TrainingInput(python_module="trainer.task", runtime_version=version, **told)
        (job,) = plan.training("p", 7, "job_1", training, runtime=version, python="3.11")
        (here, *_) = plan.local(training, project="p", python="3.11")
        tasks = [msgspec.json.decode(each.variables["TF_CONFIG"]) for each in (job, here)]
        assert tasks[0]["task"] == tasks[1]["task"]
        return tasks[0]["task"]

    chief = {"type": "chief", "index": 0}
    assert cluster(NAME) == chief
    for version in runtimes.table():
        assert cluster(version) == {"2.21": chief, NAME: chief, "2.15": {}}.get(version, {"type": "master", "index": 0})
    assert (cluster("2.0"), cluster("2.16"), cluster("2.x")) == ({}, chief, chief)


@pytest.mark.usefixtures("offered")
def test_a_job_is_refused_until_the_runtime_was_asked_for_and_no_version_is_served_by_it(start_server, tmp_path):
    server = start_server(None, TAXIWAY_CACHE=str(tmp_path / "cache"))
    lab = Lab(server.call, server.project, server.address.service_agent)
    refused = lab.post(lab.body("print(1)", runtimeVersion=NAME))
    assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    (fault,) = refused.json()["error"]["details"][0]["fieldViolations"]
    assert fault["field"] == "trainingInput.runtimeVersion"
    assert fault["description"].endswith(f"is built there only by: taxiway runtimes build {NAME}")
    assert "takes about 5.5 GiB" in fault["description"]

    place = f"/v1/projects/{server.project}/models"
    assert server.call("POST", place, json={"name": "m"}).status_code == 200
    body = {"name": "v1", "deploymentUri": "gs://b/m", "runtimeVersion": NAME, "framework": "SCIKIT_LEARN"}
    refused = server.call("POST", f"{place}/m/versions", json=body).json()["error"]
    assert f"not offered with runtime version {NAME}, which has none: it trains only." in json.dumps(refused)


@pytest.mark.runtime
@pytest.mark.torture  # five gigabytes of packages
@pytest.mark.usefixtures("offered")
def test_a_job_trains_with_two_processes_on_gs_and_keeps_its_model_there(server):
    try:
        runtimes.build(runtimes.resolve(NAME, None))
    except (errors.Unavailable, errors.StorageFull) as failure:
        pytest.skip(f"{NAME} cannot be built here: {failure}")
    lab = Lab(server.call, server.project, server.address.service_agent).open()
    package = lab.put("torch/trainer-0.1.tar.gz", sdist({**FILES, "trainer/task.py": TRAINER}))
    job = lab.submit(
        "",
        args=["--rides", lab.put("rides.csv", rides(500))],
        packageUris=[package],
        runtimeVersion=NAME,
        jobDir=f"gs://{lab.bucket}/out",
    )
    ended = lab.ended(job)
    said = lab.said(job)
    assert ended["state"] == "SUCCEEDED", "\n".join(said)
    assert [found.runtime.version for found in map(receipts.parse, said) if found] == [NAME]
    (loss,) = [float(line.rpartition(" ")[2]) for line in said if line.startswith("trained by 2: loss ")]
    assert loss < 0.05
    told, task = [json.loads(line) for line in lab.printed(job) if line.startswith("{")]
    assert told["version"].startswith("2.15.")
    assert told["fare"] == pytest.approx(2.5 + 150 * (0.05**2 + 0.05**2) ** 0.5, abs=3)
    assert told["board"] == 1
    assert task == {"type": "chief", "index": 0}
    assert lab.listed("out/") == ["out/model.pt"]
    assert len(lab.read("out/model.pt")) > 1000
