"""Opens each pool the way its own documentation says, with all its workers started.

    with processes("pebble", 2) as pool: ...      the peer's own object: no wrapper of ours stands in the timed path

Every pool has the same number of workers, and, where it lets us choose, the start method that `parallel_exec` takes by
default. Limits that a peer can set (pebble's and deadpool's timeout, deadpool's priority) are armed by the rows, as
ours are.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Callable

from benchmarks._harness import OURS, STDLIB_POOL, STDLIB_POOL_CHUNKS, STDLIB_PROCESSES
from benchmarks.work import nothing, whoami

TIMEOUT = 30.0  # seconds; never reached, only armed
RETRIES = 2
PRIORITY = 1

Hold = Callable[[float], "tuple[int, int]"]
Ask = Callable[[Hold, Sequence[float]], "Iterable[tuple[int, int]]"]
Call = Callable[[Any, int], "list[Any]"]  # takes a pool and how many calls it is to make; returns their results


def start_method() -> str:
    """Return the start method that `parallel_exec` takes by default on this platform."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def context() -> Any:
    """Return the multiprocessing context of `start_method`; Any, as the stubs lack half of what a context has."""
    return multiprocessing.get_context(start_method())


def warm(ask: Ask, workers: int, hold: Hold = whoami, limit: float = 60.0) -> None:
    """Keep all workers busy until each has answered.

    Args:
        ask: runs a function on each item of a sequence, all at once, and returns the results.
        workers: how many different ones must answer.
        hold: what they run; holds a worker for the seconds it is given.
        limit: seconds.

    Raises:
        RuntimeError: fewer answered within `limit`.
    """
    seen: set[tuple[int, int]] = set()
    until = time.monotonic() + limit
    while len(seen) < workers:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(seen)} of {workers} workers answered within {limit:g} s")
        seen.update(ask(hold, [0.02] * workers))


def ask_executor(executor: Executor) -> Ask:
    """Return how to ask whatever has the stdlib's `submit`."""

    def ask(hold: Hold, items: Sequence[float]) -> list[tuple[int, int]]:
        return [future.result() for future in [executor.submit(hold, item) for item in items]]

    return ask


def open_ours(backend: str, workers: int) -> Any:
    """Return a `ParallelExecutor` with timeout and retries armed; a row sets the priority."""
    from parallel_exec import ParallelExecutor  # here, so that --list works without

    return ParallelExecutor(max_concurrency=workers, timeout=TIMEOUT, retry_count=RETRIES, backend=backend)


def seconds_each(call: Call, pool: Any, expected: list[Any]) -> float:
    """Have `call` make as many calls of an open pool as results are expected, and return the seconds that each takes.

    Raises:
        RuntimeError: it returned other results.
    """
    start = time.monotonic()
    results = call(pool, len(expected))
    elapsed = time.monotonic() - start
    if results != expected:
        raise RuntimeError("results are lost or out of order")
    return elapsed / len(expected)


def submit_ours(pool: Any, count: int) -> list[Any]:
    """Submit no-op calls to an executor of ours, with a priority, then take all results."""
    submit = pool.options(priority=PRIORITY).submit
    return [future.result() for future in [submit(nothing, item) for item in range(count)]]


def submit_stdlib(pool: Any, count: int) -> list[Any]:
    """Submit no-op calls to whatever has the stdlib's `submit`, then take all results."""
    return [future.result() for future in [pool.submit(nothing, item) for item in range(count)]]


@contextmanager
def threads(side: str, workers: int) -> Iterator[Any]:
    """Open the thread pool of one side, warmed; `side` is `OURS` or "ThreadPoolExecutor"."""
    with open_ours("thread", workers) if side == OURS else ThreadPoolExecutor(workers) as pool:
        warm(ask_executor(pool), workers)
        yield pool


@contextmanager
def processes(side: str, workers: int, hold: Hold = whoami) -> Iterator[Any]:
    """Open the process pool of one side, warmed with `hold`; closes it and waits for its workers at the end."""
    with _OPENERS[side](workers) as (pool, ask):
        warm(ask, workers, hold)
        yield pool


@contextmanager
def _ours(workers: int) -> Iterator[tuple[Any, Ask]]:
    with open_ours("process", workers) as pool:
        yield pool, ask_executor(pool)


@contextmanager
def _stdlib(workers: int) -> Iterator[tuple[Any, Ask]]:
    with ProcessPoolExecutor(workers, mp_context=context()) as pool:
        yield pool, ask_executor(pool)


@contextmanager
def _stdlib_pool(workers: int) -> Iterator[tuple[Any, Ask]]:
    with context().Pool(workers) as pool:
        yield pool, lambda hold, items: pool.map(hold, items, chunksize=1)
        pool.close()
        pool.join()


@contextmanager
def _pebble(workers: int) -> Iterator[tuple[Any, Ask]]:
    with import_module("pebble").ProcessPool(max_workers=workers, context=context()) as pool:
        yield pool, lambda hold, items: [f.result() for f in [pool.schedule(hold, args=(item,)) for item in items]]


@contextmanager
def _loky(workers: int) -> Iterator[tuple[Any, Ask]]:
    """loky knows only start methods of its own; "loky", its default, is nearest to spawn."""
    pool = import_module("loky").get_reusable_executor(max_workers=workers)
    try:
        yield pool, ask_executor(pool)
    finally:
        pool.shutdown(wait=True)


@contextmanager
def _deadpool(workers: int) -> Iterator[tuple[Any, Ask]]:
    module = import_module("deadpool")
    with module.Deadpool(max_workers=workers, min_workers=workers, mp_context=context()) as pool:
        yield pool, ask_executor(pool)


@contextmanager
def _joblib(workers: int) -> Iterator[tuple[Any, Ask]]:
    """joblib runs on its own copy of loky, which outlives the `with` unless it is told otherwise."""
    joblib = import_module("joblib")
    try:
        with joblib.Parallel(n_jobs=workers) as pool:
            yield pool, lambda hold, items: pool(joblib.delayed(hold)(item) for item in items)
    finally:
        import_module("joblib.externals.loky").get_reusable_executor(reuse=True).shutdown(wait=True)


@contextmanager
def _mpire(workers: int) -> Iterator[tuple[Any, Ask]]:
    """`keep_alive`, without which each `map` starts its workers anew."""
    with import_module("mpire").WorkerPool(workers, start_method=start_method(), keep_alive=True) as pool:
        yield pool, lambda hold, items: pool.map(hold, items, chunk_size=1)
        pool.stop_and_join()


_OPENERS: dict[str, Callable[[int], Any]] = {
    OURS: _ours,
    STDLIB_PROCESSES: _stdlib,
    STDLIB_POOL: _stdlib_pool,
    STDLIB_POOL_CHUNKS: _stdlib_pool,
    "pebble": _pebble,
    "loky": _loky,
    "deadpool": _deadpool,
    "joblib": _joblib,
    "mpire": _mpire,
}
