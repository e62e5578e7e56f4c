"""Limits on a dask cluster: a task is sent once it holds what it needs, in no group, and gives it back however it ends."""

from __future__ import annotations

from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest
import work

from parallel_exec import DaskBackend, Rate, RetryAfter, Task, TaskTimeoutError, WorkerCrashedError

from .test_dask import client, no_leaks

__all__ = ["client", "no_leaks"]  # fixtures

LONG = 600.0


def test_a_count_on_the_cluster(client: Any, lab: Any) -> None:
    """No more attempts run at once than the limit allows, tiny ones of others among them or not."""
    executor = lab.executor(backend=client, max_concurrency=4, limits={"db": 1})
    log = lab.log()
    for number in range(60):
        if number % 4:
            executor.add_task(partial(work.double, number))
        else:
            executor.add_task(Task(partial(work.span, log, 0.002), needs={"db": 1}))
    assert all(result.success for result in executor.execute_all())
    assert work.most_at_once(log) == 1
    stats = executor.stats().limits["db"]
    assert (stats.in_use, stats.granted) == (0, 15)


def test_what_a_task_on_the_cluster_was_granted(client: Any, lab: Any) -> None:
    """`current_task().granted` is there, in each attempt; an item must be fit to travel."""
    executor = lab.executor(backend=client, limits={"gpu": ["cuda:0"], "api": Rate(1000)}, retry_count=1)
    needy = executor.options(needs={"gpu": 1, "api": 2})
    assert needy.submit(work.granted_then_fail, lab.log(), 1).result() == {"gpu": ("cuda:0",), "api": 2}
    assert executor.submit(work.granted).result() == {}
    with pytest.raises(TypeError, match="cannot be sent to a worker process"):
        lab.executor(backend=DaskBackend(client), limits={"gpu": [(number for number in range(3))]})


def test_ends_on_the_cluster_give_back(client: Any, lab: Any) -> None:
    """A timeout, an abort and a crash each let the next task have what was held."""
    executor = lab.executor(backend=client, max_concurrency=2, limits={"gpu": ["cuda:0"]}, retry_count=0)
    needs = {"gpu": 1}
    needy = executor.options(needs=needs)
    late = executor.options(needs=needs, timeout=0.2).submit(work.hold, lab.latch(), lab.latch())
    assert isinstance(late.exception(LONG), TaskTimeoutError)
    assert needy.submit(work.double, 1).result(work.PATIENCE) == 2
    started = lab.latch()
    aborted = needy.submit(work.hold, started, lab.latch())
    started.wait()
    assert aborted.abort()
    with pytest.raises(CancelledError):
        aborted.result(LONG)
    assert needy.submit(work.double, 2).result(work.PATIENCE) == 4
    assert isinstance(needy.submit(work.die).exception(LONG), WorkerCrashedError)
    assert needy.submit(work.double, 3).result(work.PATIENCE) == 6
    work.until(lambda: executor.stats().limits["gpu"].in_use == 0)


def test_retry_after_on_the_cluster(client: Any, lab: Any) -> None:
    """The error travels with its facts, and holds the limit."""
    executor = lab.executor(backend=client, limits={"api": 2}, retry_count=1)
    busy = executor.options(needs={"api": 1}).submit(work.busy, lab.log(), 1, RetryAfter(60.0, limit="api"))
    work.until(lambda: executor.stats().waiting == 1)
    held = executor.options(needs={"api": 1}).submit(work.double, 1)
    assert executor.submit(work.double, 2).result(work.PATIENCE) == 4
    assert not held.done()
    assert busy.cancel()
    assert held.cancel()
