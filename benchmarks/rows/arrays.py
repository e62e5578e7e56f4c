"""What it costs to bring a 100 MB numpy array to a worker, and back."""

from __future__ import annotations

import time
from importlib import import_module

from benchmarks import _pools
from benchmarks._harness import REGISTRY, STDLIB_PROCESSES, Settings
from benchmarks.work import array_in, array_in_out, whoami_with_numpy

FULL, QUICK = 100_000_000, 4_000_000  # bytes
TRIPS = 3  # of each sample; the first may pay for memory that is not mapped yet, as it would for a user


@REGISTRY.row(
    "array-in",
    what="a 100 MB numpy array to a worker, which reads every page of it",
    goals={STDLIB_PROCESSES: 0.3},
    per="a trip",
    needs=("numpy",),
    title="a 100 MB array to a process",
)
def array_there(side: str, run: Settings) -> float:
    """Return seconds a trip."""
    array = import_module("numpy").ones(run.count(FULL, QUICK) // 8)
    expected = array_in(array)
    with _pools.processes(side, run.workers, hold=whoami_with_numpy) as pool:
        start = time.monotonic()
        for _ in range(TRIPS):
            if pool.submit(array_in, array).result() != expected:
                raise RuntimeError("the array did not arrive as it was sent")
        return (time.monotonic() - start) / TRIPS


@REGISTRY.row(
    "array-in-out",
    what="a 100 MB numpy array to a worker, which writes to every page and returns it",
    goals={STDLIB_PROCESSES: 0.35},
    per="a trip",
    needs=("numpy",),
    title="a 100 MB array to a process and back",
)
def array_there_and_back(side: str, run: Settings) -> float:
    """Return seconds a trip, after which the caller has read every page of what came back."""
    array = import_module("numpy").ones(run.count(FULL, QUICK) // 8)
    expected = 2 * array_in(array)
    with _pools.processes(side, run.workers, hold=whoami_with_numpy) as pool:
        start = time.monotonic()
        for _ in range(TRIPS):
            if array_in(pool.submit(array_in_out, array).result()) != expected:
                raise RuntimeError("the array did not come back as it was written")
        return (time.monotonic() - start) / TRIPS
