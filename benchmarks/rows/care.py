"""What it brings that a worker's libraries start no more threads than it has CPUs."""

from __future__ import annotations

import os
import time

from benchmarks import _pools
from benchmarks._harness import OURS, REGISTRY, Settings
from benchmarks.work import multiply, whoami_with_numpy

UNLIMITED = "threads_per_worker=None"
SIZE = 400  # rows of a matrix
TASKS, PRODUCTS = 40, 10


@REGISTRY.row(
    "matmul",
    what="40 tasks of 10 matrix products each, in twice as many workers as cores; as many threads as OpenBLAS likes",
    goals={UNLIMITED: 0.8},
    needs=("numpy",),
    title="NumPy's matrix products, in twice as many workers as cores",
)
def matmul(side: str, run: Settings) -> float:
    """Return the makespan in seconds."""
    from parallel_exec import ParallelExecutor, ProcessBackend  # here, so that --list works without

    os.environ.pop("OPENBLAS_CORETYPE", None)  # which chooses slow kernels, where it is set
    workers = 2 * run.workers
    backend = ProcessBackend(threads_per_worker="auto" if side == OURS else None)
    with ParallelExecutor(max_concurrency=workers, timeout=_pools.TIMEOUT, backend=backend) as pool:
        _pools.warm(_pools.ask_executor(pool), workers, whoami_with_numpy)
        start = time.monotonic()
        futures = [pool.submit(multiply, SIZE, run.count(PRODUCTS, 1)) for _ in range(run.count(TASKS, 8))]
        for future in futures:
            future.result()
        return time.monotonic() - start
