"""What one `submit(f).result()` takes when nothing else is under way, on warm workers."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from benchmarks import _pools
from benchmarks._harness import REGISTRY, STDLIB_POOL, STDLIB_PROCESSES, STDLIB_THREADS, Settings
from benchmarks.work import nothing


def _durations(pool: Any, count: int) -> list[float]:
    """Return, in order of length, the seconds of `count` calls, each made when the one before is back."""
    call = partial(pool.apply, nothing) if hasattr(pool, "apply") else lambda: pool.submit(nothing).result()
    seconds: list[float] = []
    clock = time.perf_counter
    for _ in range(count):
        start = clock()
        call()
        seconds.append(clock() - start)
    return sorted(seconds)


def _threads(side: str, run: Settings, share: float) -> float:
    with _pools.threads(side, run.workers) as pool:
        seconds = _durations(pool, run.count(5_000, 200))
        return seconds[int(share * len(seconds))]


def _processes(side: str, run: Settings, share: float, workers: int = 0) -> float:
    with _pools.processes(side, workers or run.workers) as pool:
        seconds = _durations(pool, run.count(2_000, 50))
        return seconds[int(share * len(seconds))]


@REGISTRY.row(
    "lone-threads",
    what="a lone submit(f).result() on warm threads, one after the other, all armed; the median call",
    goals={STDLIB_THREADS: 1.2},
    per="a call",
    title="One call at a time, threads",
)
def lone_threads(side: str, run: Settings) -> float:
    """Return the seconds of the median call."""
    return _threads(side, run, 0.5)


@REGISTRY.row(
    "lone-threads-p99",
    what="the same; the call that 99 of 100 are faster than, median of the samples",
    goals={STDLIB_THREADS: 1.2},
    per="a call",
    pick="median",
)
def lone_threads_p99(side: str, run: Settings) -> float:
    """Return the seconds of the 99th of 100 calls."""
    return _threads(side, run, 0.99)


@REGISTRY.row(
    "lone-process",
    what="a lone submit(f).result() on warm processes, one after the other, all armed; the median call",
    goals={STDLIB_POOL: 1.2, STDLIB_PROCESSES: None},
    per="a call",
    title="One call at a time, processes",
)
def lone_process(side: str, run: Settings) -> float:
    """Return the seconds of the median call; `Pool.apply` where the peer is that pool."""
    return _processes(side, run, 0.5)


@REGISTRY.row(
    "lone-process-p99",
    what="the same; the call that 99 of 100 are faster than, median of the samples",
    goals={STDLIB_POOL: 1.2, STDLIB_PROCESSES: None},
    per="a call",
    pick="median",
)
def lone_process_p99(side: str, run: Settings) -> float:
    """Return the seconds of the 99th of 100 calls."""
    return _processes(side, run, 0.99)


@REGISTRY.row(
    "lone-process-100",
    what="the same, one after the other with a hundred warm workers; the median call",
    goals={STDLIB_POOL: 1.2, STDLIB_PROCESSES: None},
    per="a call",
)
def lone_process_100(side: str, run: Settings) -> float:
    """Return the seconds of the median call in a pool of which nearly all workers have nothing to do."""
    return _processes(side, run, 0.5, run.count(100, 8))
