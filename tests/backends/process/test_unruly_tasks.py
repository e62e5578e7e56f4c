"""Tasks that do something to their worker: close its descriptors, fork, start processes, send it signals."""

from __future__ import annotations

import os
from typing import Any

import processes
import work

from parallel_exec import WorkerCrashedError


def test_a_worker_that_closes_all_descriptors(pool: Any) -> None:
    """A task that does what daemons do, and closes what is not its own: its end is known all the same; nobody hangs."""
    executor = pool()
    first = executor.submit(work.pid).result(work.SOON)
    assert type(executor.submit(os.closerange, 3, 1000).exception(work.SOON)) in {type(None), WorkerCrashedError}
    assert executor.submit(work.pid).result(work.SOON) != first


def test_a_task_that_forks(pool: Any) -> None:
    """A child that a task forks, and that exits on its own, does not disturb the worker."""
    executor = pool()
    assert executor.submit(work.fork_and_wait, 5).result(work.SOON) == 5
    worker = executor.submit(work.pid).result(work.SOON)
    assert executor.submit(work.fork_and_wait, 6).result(work.SOON) == 6
    assert executor.submit(work.pid).result(work.SOON) == worker


def test_a_task_that_uses_multiprocessing(pool: Any) -> None:
    """A task may start processes of multiprocessing itself: workers are not daemonic."""
    assert pool().submit(work.use_multiprocessing, "fork").result(work.SOON) == 9
    assert pool().submit(work.use_multiprocessing, "spawn").result(work.SOON) == 9


def test_a_signal_to_a_worker(pool: Any, bench: Any) -> None:
    """SIGINT to a worker is a KeyboardInterrupt of its task; the worker lives on."""
    import signal

    executor = pool()
    started = bench.latch()
    future = executor.submit(
        work.hold, started, bench.latch()
    )  # one long sleep may miss a signal that comes just before
    started.wait()
    (worker,) = processes.workers(executor)
    processes.kill(worker, signal.SIGINT)
    assert type(future.exception(work.SOON)) is KeyboardInterrupt
    assert executor.submit(work.pid).result(work.SOON) == worker
