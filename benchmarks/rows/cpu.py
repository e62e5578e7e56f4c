"""How near real work comes to what the cores can do.

The work is a fixed number of loops. Its bound is measured, not computed from a clock: the same loops in bare processes
without any pool, all cores busy, in turns with ours. One core alone is shown too: where it is much faster, the cores
share something (a clock limit, a hyper-thread), and no pool could reach that figure.
"""

from __future__ import annotations

import os
import time
from functools import cache

from benchmarks import _pools
from benchmarks._harness import REGISTRY, STDLIB_PROCESSES, Settings
from benchmarks.work import spin, spin_bare

CORES_BUSY = "work ÷ cores"
CORE_ALONE = "work ÷ cores, one core busy"


@cache
def loops_for(seconds: float) -> int:
    """Return how many loops of `spin` take `seconds` on one core; measured once a process: both sides run the same."""
    loops = 50_000
    best = min(_timed(loops) for _ in range(9))
    return max(1, int(loops * seconds / best))


def _timed(loops: int) -> float:
    start = time.monotonic()
    spin(loops)
    return time.monotonic() - start


def lanes(workers: int) -> int:
    """Return how many cores can be busy at once with this many workers."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, usable)


def makespan(side: str, run: Settings, count: int, seconds: float) -> float:
    """Return the seconds that `count` tasks of about `seconds` each take on one side."""
    loops = loops_for(seconds)
    cores = lanes(run.workers)
    if side == CORES_BUSY:
        return spin_bare(_pools.context(), loops, count, cores)
    if side == CORE_ALONE:
        return spin_bare(_pools.context(), loops, count, 1) / cores
    with _pools.processes(side, run.workers) as pool:
        start = time.monotonic()
        futures = [pool.submit(spin, loops) for _ in range(count)]
        for future in futures:
            future.result()
        return time.monotonic() - start


@REGISTRY.row(
    "cpu-2ms",
    what="1,000 CPU-bound tasks of 2 ms on processes: makespan",
    goals={CORES_BUSY: 1.15, CORE_ALONE: None, STDLIB_PROCESSES: None},
)
def cpu_2ms(side: str, run: Settings) -> float:
    """Return the makespan in seconds."""
    return makespan(side, run, run.count(1_000, 50), 0.002)


@REGISTRY.row(
    "cpu-10ms",
    what="200 CPU-bound tasks of 10 ms on processes: makespan",
    goals={CORES_BUSY: 1.05, CORE_ALONE: None, STDLIB_PROCESSES: None},
)
def cpu_10ms(side: str, run: Settings) -> float:
    """Return the makespan in seconds."""
    return makespan(side, run, run.count(200, 10), 0.010)
