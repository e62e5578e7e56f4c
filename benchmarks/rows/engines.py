"""What a tiny task costs in somebody else's engine, against the engine by itself."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Iterator

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, STDLIB_PROCESSES, Settings
from benchmarks.work import nothing

DASK = "Client.map + gather"

MANY = 64  # the limit of a user who thinks of it as a window


@contextmanager
def _on_processes(side: str, workers: int, limit: int) -> Iterator[Any]:
    """Open the stdlib's pool, or an executor of ours on it, warmed."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context) as pool:
        _pools.warm(_pools.ask_executor(pool), workers)
        if side == OURS:
            with _pools.open_ours(pool, limit) as ours:
                ours.submit(nothing, 0).result()
                yield ours
        else:
            yield pool


def _processes_sample(side: str, run: Settings, limit: int) -> float:
    count = run.count(3_000, 50)
    submit = _pools.submit_ours if side == OURS else _pools.submit_stdlib
    with _on_processes(side, run.workers, limit) as pool:
        return _pools.seconds_each(submit, pool, list(range(count)))


@REGISTRY.row(
    "engine-submit",
    what="3,000 no-op submit + result through `ExecutorBackend(ProcessPoolExecutor)`; timeout, retry and priority armed",
    goals={STDLIB_PROCESSES: 1.5},
    per="a task",
    title="3,000 no-op tasks in a ProcessPoolExecutor",
)
def engine_submit(side: str, run: Settings) -> float:
    """Return seconds a task: submit all, then take all results; the limit is the number of workers."""
    return _processes_sample(side, run, run.workers)


@REGISTRY.row(
    "engine-submit-64",
    what="the same with `max_concurrency=64`",
    goals={STDLIB_PROCESSES: 1.5},
    per="a task",
)
def engine_submit_64(side: str, run: Settings) -> float:
    """Return seconds a task."""
    return _processes_sample(side, run, MANY)


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """Start a local dask cluster, one thread in each of its processes, and return a client of it."""
    distributed = import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs="ERROR"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def _on_dask(side: str, workers: int) -> Iterator[Any]:
    """Open the client, or an executor of ours on it, warmed."""
    with _cluster(workers) as client:
        client.gather(client.map(nothing, range(workers), pure=False))
        if side == OURS:
            with _pools.open_ours(client, workers) as pool:
                _pools.warm(_pools.ask_executor(pool), workers)
                yield pool
        else:
            yield client


def _client(client: Any, count: int) -> list[Any]:
    results: list[Any] = client.gather(client.map(nothing, range(count), pure=False))
    return results


def _map(pool: Any, count: int) -> list[Any]:
    return list(pool.map(nothing, range(count)))


def _dask_sample(side: str, run: Settings, ours: _pools.Call) -> float:
    count = run.count(2_000, 20)
    with _on_dask(side, run.workers) as pool:
        return _pools.seconds_each(ours if side == OURS else _client, pool, list(range(count)))


@REGISTRY.row(
    "dask-submit",
    what="2,000 no-op submit + result on a local dask cluster; timeout, retry and priority armed",
    goals={DASK: 1.0},
    per="a task",
    needs=("distributed",),
    title="2,000 no-op tasks, a local dask cluster",
)
def dask_submit(side: str, run: Settings) -> float:
    """Return seconds a task: submit all, then take all results."""
    return _dask_sample(side, run, _pools.submit_ours)


@REGISTRY.row(
    "dask-map",
    what="2,000 no-op map items on a local dask cluster, each with its own timeout and retries",
    goals={DASK: 0.7},
    per="an item",
    needs=("distributed",),
    title="2,000 no-op items with map, a local dask cluster",
)
def dask_map(side: str, run: Settings) -> float:
    """Return seconds an item."""
    return _dask_sample(side, run, _map)
