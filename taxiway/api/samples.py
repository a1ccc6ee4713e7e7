"""What a job's replicas used: our own addition to the wire.

    GET /v1/projects/{project}/jobs/{job}:listSamples?taskName=TASK&pageSize=1000&pageToken=T
    {"samples": [{"time", "span", "taskName", "attempt", "cpu", "memoryBytes", "processes", "readBytes", "writtenBytes",
                  "gpu", "gpuMemoryBytes"}], "nextPageToken"}

    GET /v1/projects/{project}/jobs/{job}:summarizeUsage
    {"tasks": [{"taskName", "sampled", "cpuSeconds", "cpu", "peakMemoryBytes", "peakProcesses", "readBytes",
                "writtenBytes", "gpu", "peakGpuMemoryBytes"}]}

`cpu` and `gpu` are how many of them were busy in the mean (1.5: one and a half cores). Bytes are strings, as in all of
Google's JSON; what was read and written counts what the code asked for, whether or not a disk was needed. There is no
word of GPUs where there are none. Whoever may get the job may read it.
"""

from __future__ import annotations

from typing import Any

from taxiway.api import wire
from taxiway.api.call import Call, Route
from taxiway.compute import samples
from taxiway.jobs import queue

MOST = 5000


def list_samples(call: Call) -> dict[str, Any]:
    job = queue.get(call.house.db, call.path["project"], call.path["job"])
    size = wire.page_size(call.query, default=1000, most=MOST)
    key = wire.page_key(call.query, tuple[int])
    task, after = call.query.get("taskName", ""), key[0] if key else 0
    found = samples.page(call.house.db, job.project, job.id, task=task, after=after, limit=size + 1)
    return wire.page("samples", found, size, lambda kept: (kept.row,), _sample)


def summarize_usage(call: Call) -> dict[str, Any]:
    job = queue.get(call.house.db, call.path["project"], call.path["job"])
    return {"tasks": [_use(each) for each in samples.used(call.house.db, job.project, job.id)]}


def _sample(kept: samples.Kept) -> dict[str, Any]:
    told = kept.sample
    return {
        "time": wire.timestamp(told.time),
        "span": wire.duration(round(told.span, 3)),
        "taskName": kept.task,
        "attempt": kept.number,
        "cpu": _mean(told.cpu, told.span),
        "memoryBytes": str(told.memory),
        "processes": told.processes,
        "readBytes": str(told.read),
        "writtenBytes": str(told.written),
        **({} if told.gpu is None else {"gpu": round(told.gpu, 3)}),
        **({} if told.gpu_memory is None else {"gpuMemoryBytes": str(told.gpu_memory)}),
    }


def _use(use: samples.Use) -> dict[str, Any]:
    return {
        "taskName": use.task,
        "sampled": wire.duration(round(use.seconds, 3)),
        "cpuSeconds": round(use.cpu, 3),
        "cpu": _mean(use.cpu, use.seconds),
        "peakMemoryBytes": str(use.memory),
        "peakProcesses": use.processes,
        "readBytes": str(use.read),
        "writtenBytes": str(use.written),
        **({} if use.gpu is None else {"gpu": _mean(use.gpu, use.seconds)}),
        **({} if use.gpu_memory is None else {"peakGpuMemoryBytes": str(use.gpu_memory)}),
    }


def _mean(amount: float, seconds: float) -> float:
    return round(amount / seconds, 3) if seconds else 0.0


ROUTES = [
    Route("GET", "/v1/projects/{project}/jobs/{job}:listSamples", "ml.jobs.get", list_samples),
    Route("GET", "/v1/projects/{project}/jobs/{job}:summarizeUsage", "ml.jobs.get", summarize_usage),
]
