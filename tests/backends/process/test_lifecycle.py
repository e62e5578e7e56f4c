"""Pools that end while others use them, when nobody holds them any more, and many side by side."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from concurrent.futures import wait
from typing import Any

import processes
import pytest
import work

from parallel_exec import ParallelExecutor


def test_a_collected_executor_ends_its_workers(pool: Any) -> None:
    """An executor that nobody shuts down finishes its tasks and lets its workers go when it is collected."""
    executor = ParallelExecutor(max_concurrency=2, backend="process")
    worker = executor.submit(work.pid).result(work.SOON)
    last = executor.submit(work.nap, 0.1)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert last.result(work.SOON)
    work.until(lambda: not processes.is_alive(worker), work.SOON)


@pytest.mark.parametrize("switch", [1e-6, 0.005])
def test_threads_that_submit_and_shut_down_at_once(pool: Any, switch: float) -> None:
    """Many short-lived pools whose first submit races with their shutdown: everything ends, nothing is lost."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(switch)
    try:
        for round in range(8):
            executor = pool(2)
            futures: list[Any] = []

            def submit(executor: Any = executor, futures: list[Any] = futures) -> None:
                with contextlib.suppress(RuntimeError):  # after shutdown
                    futures.extend(executor.submit(int) for _ in range(5))

            thread = threading.Thread(target=submit)
            thread.start()
            time.sleep(round * 0.0003)
            executor.shutdown()
            thread.join()
            assert [future.result(work.SOON) for future in futures] == [0] * len(futures)
    finally:
        sys.setswitchinterval(before)


def test_many_pools_at_once(pool: Any) -> None:
    """Pools share nothing: ten of them start, work and end side by side."""
    executors = [pool(2) for _ in range(6)]
    futures = [executor.submit(work.same, number) for number in range(20) for executor in executors]
    assert not wait(futures, timeout=work.SOON).not_done
    threads = [threading.Thread(target=executor.shutdown) for executor in executors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(work.SOON)
        assert not thread.is_alive()
