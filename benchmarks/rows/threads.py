"""What a no-op task costs on threads, against the stdlib's pool."""

from __future__ import annotations

import time

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, STDLIB_THREADS, Settings
from benchmarks.work import nothing


@REGISTRY.row(
    "threads-submit",
    what="20,000 no-op submit + result on threads; timeout, retry and priority armed",
    goals={STDLIB_THREADS: 1.0},
    per="a task",
    title="20,000 no-op tasks, threads",
)
def threads_submit(side: str, run: Settings) -> float:
    """Return seconds a task: submit all, then take all results."""
    count = run.count(20_000, 500)
    with _pools.threads(side, run.workers) as pool:
        submit = pool.options(priority=_pools.PRIORITY).submit if side == OURS else pool.submit
        start = time.monotonic()
        futures = [submit(nothing) for _ in range(count)]
        for future in futures:
            future.result()
        return (time.monotonic() - start) / count


@REGISTRY.row(
    "threads-execute-all",
    what="100,000 no-op add_task, then execute_all, on threads; against submit + result",
    goals={STDLIB_THREADS: 0.8},
    per="a task",
    title="100,000 no-op tasks with execute_all, threads",
)
def threads_execute_all(side: str, run: Settings) -> float:
    """Return seconds a task: stage (or submit) all, then take all results."""
    count = run.count(100_000, 1_000)
    with _pools.threads(side, run.workers) as pool:
        start = time.monotonic()
        if side == OURS:
            for _ in range(count):
                pool.add_task(nothing)
            results = pool.execute_all()
        else:
            futures = [pool.submit(nothing) for _ in range(count)]
            results = [future.result() for future in futures]
        elapsed = time.monotonic() - start
        if len(results) != count:
            raise RuntimeError(f"{len(results)} results of {count} tasks")
        return elapsed / count
