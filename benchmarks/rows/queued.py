"""What tasks cost by being many: time with a million of them queued, and the memory that each holds.

Each sample of the memory is a fresh interpreter. `tracemalloc` counts what Python allocated, so neither the allocator's
rounding nor what else is loaded plays a part.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc

from benchmarks import _pools
from benchmarks._fresh import run_fresh
from benchmarks._harness import OURS, REGISTRY, STDLIB_THREADS, Settings
from benchmarks.work import nothing


@REGISTRY.row(
    "queue-scale",
    what="cost a no-op task with 1,000,000 queued, against 1,000 queued",
    goals={"1,000 queued": 1.5},
    per="a task",
)
def queue_scale(side: str, run: Settings) -> float:
    """Return seconds a task from `add_task` to the result, with many queued (`OURS`) or 1,000 (the peer).

    Both ends of the ratio are ours. 1,000 tasks pass too quickly to be timed once, so they pass many times.
    """
    many = side == OURS
    count = run.count(1_000_000, 20_000) if many else 1_000
    rounds = 1 if many else run.count(100, 5)
    with _pools.threads(OURS, run.workers) as pool:
        start = time.monotonic()
        for _ in range(rounds):
            for _ in range(count):
                pool.add_task(nothing)
            if len(pool.execute_all()) != count:
                raise RuntimeError(f"other than {count} results of {count} tasks")
        return (time.monotonic() - start) / (count * rounds)


@REGISTRY.row(
    "memory",
    what="memory of a queued task on threads, its future included",
    goals={STDLIB_THREADS: 0.8},
    unit="B",
    per="a task",
)
def memory(side: str, run: Settings) -> float:
    """Return bytes a queued task, 100,000 of them queued."""
    count = run.count(100_000, 5_000)
    code = f"from benchmarks.rows.queued import queued_bytes; print(queued_bytes({side!r}, {run.workers}, {count}))"
    return float(run_fresh(code)[1])


def queued_bytes(side: str, workers: int, count: int) -> float:
    """Return the bytes that each of `count` tasks holds while it waits behind busy workers. Called in the child."""
    release = threading.Event()
    busy = threading.Barrier(workers + 1)

    def block() -> None:
        busy.wait()
        release.wait()

    with _pools.threads(side, workers) as pool:
        blocked = [pool.submit(block) for _ in range(workers)]
        busy.wait()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        futures = [pool.submit(nothing) for _ in range(count)]
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        release.set()
        for future in blocked + futures:
            future.result()
    return held / count
