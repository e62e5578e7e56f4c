"""What a tiny task costs on processes: one at a time, through `map`, and beside a long one."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, STDLIB_POOL, STDLIB_PROCESSES, Settings
from benchmarks.work import nothing, pause, tiny

SLOW = 0.5  # seconds of the long task of "mixed"


def _stdlib_pool(pool: Any, count: int) -> list[Any]:
    return list(pool.map(nothing, range(count), chunksize=1))


def _pebble(pool: Any, count: int) -> list[Any]:
    timeout = _pools.TIMEOUT
    futures = [pool.schedule(nothing, args=(item,), timeout=timeout) for item in range(count)]
    return [future.result() for future in futures]


def _deadpool(pool: Any, count: int) -> list[Any]:
    armed = {"deadpool_timeout": _pools.TIMEOUT, "deadpool_priority": _pools.PRIORITY}
    return [future.result() for future in [pool.submit(nothing, item, **armed) for item in range(count)]]


_SUBMIT: dict[str, _pools.Call] = {
    OURS: _pools.submit_ours,
    STDLIB_PROCESSES: _pools.submit_stdlib,
    STDLIB_POOL: _stdlib_pool,
    "pebble": _pebble,
    "loky": _pools.submit_stdlib,
    "deadpool": _deadpool,
}


@REGISTRY.row(
    "process-submit",
    what="10,000 no-op submit + result on processes; timeout, retry and priority armed",
    goals={STDLIB_PROCESSES: 0.25, STDLIB_POOL: 0.9, "pebble": 0.35, "loky": 0.15, "deadpool": 0.06},
    per="a task",
    title="10,000 no-op tasks, processes",
)
def process_submit(side: str, run: Settings) -> float:
    """Return seconds a task: submit all, then take all results; a peer arms what it has of timeout and priority."""
    count = run.count(10_000, 200)
    with _pools.processes(side, run.workers) as pool:
        return _pools.seconds_each(_SUBMIT[side], pool, list(range(count)))


def _map_joblib(pool: Any, count: int) -> list[Any]:
    delayed = import_module("joblib").delayed
    return list(pool(delayed(tiny)(item) for item in range(count)))


_MAP: dict[str, _pools.Call] = {
    OURS: lambda pool, count: list(pool.map(tiny, range(count))),
    STDLIB_PROCESSES: lambda pool, count: list(pool.map(tiny, range(count), chunksize=256)),
    "joblib": _map_joblib,
    "mpire": lambda pool, count: list(pool.map(tiny, range(count))),
}


@REGISTRY.row(
    "process-map",
    what="100,000 tiny map items on processes, each with its own timeout and retries; the stdlib's with chunksize=256",
    goals={STDLIB_PROCESSES: 1.0, "joblib": 0.4, "mpire": 0.2},
    per="an item",
    title="100,000 tiny items with map, processes",
)
def process_map(side: str, run: Settings) -> float:
    """Return seconds an item. Each pool batches by itself; the stdlib's, which does not, is given a good size."""
    count = run.count(100_000, 2_000)
    with _pools.processes(side, run.workers) as pool:
        return _pools.seconds_each(_MAP[side], pool, list(range(1, count + 1)))


_MAP_BULK: dict[str, _pools.Call] = {
    OURS: _MAP[OURS],
    STDLIB_POOL: lambda pool, count: pool.map(tiny, range(count)),
}


@REGISTRY.row(
    "process-map-bulk",
    what="200,000 tiny map items on processes, each with its own timeout and retries; the pool's with chunks of its own",
    goals={STDLIB_POOL: 3.0},
    per="an item",
    title="200,000 tiny items with map, processes",
)
def process_map_bulk(side: str, run: Settings) -> float:
    """Return seconds an item. The pool cuts what it was given into eight pieces, without a timeout."""
    count = run.count(200_000, 2_000)
    with _pools.processes(side, run.workers) as pool:
        return _pools.seconds_each(_MAP_BULK[side], pool, list(range(1, count + 1)))


@REGISTRY.row(
    "mixed",
    what="one 0.5 s task amid 4,000 no-op ones on processes: time until the no-op ones are done",
    goals={STDLIB_PROCESSES: 0.3},
    title="4,000 no-op tasks beside one of 0.5 s, processes",
)
def mixed(side: str, run: Settings) -> float:
    """Return seconds from the first submit to the last result of a no-op task."""
    half = run.count(2_000, 100)
    with _pools.processes(side, run.workers) as pool:
        start = time.monotonic()
        futures = [pool.submit(nothing) for _ in range(half)]
        slow = pool.submit(pause, SLOW)
        futures += [pool.submit(nothing) for _ in range(half)]
        for future in futures:
            future.result()
        elapsed = time.monotonic() - start
        slow.result()
        return elapsed
