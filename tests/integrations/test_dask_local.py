"""dask's local schedulers, unchanged, on an executor of ours."""

from __future__ import annotations

import threading
from operator import add, mul
from typing import Any

import pytest

from parallel_exec import ParallelExecutor

dask = pytest.importorskip("dask")


def _graph() -> Any:
    """Return a delayed sum of squares."""
    squares = [dask.delayed(mul)(number, number) for number in range(10)]
    return dask.delayed(sum)(squares)


def test_as_the_scheduler() -> None:
    """`compute(scheduler=executor)` runs the graph's tasks in our threads."""
    names: set[str] = set()

    def note(value: int) -> int:
        names.add(threading.current_thread().name)
        return value

    with ParallelExecutor(max_concurrency=2) as executor:
        total = dask.delayed(sum)([dask.delayed(note)(number) for number in range(10)])
        assert total.compute(scheduler=executor) == 45
    assert names
    assert all(name.startswith("parallel_exec") for name in names)


def test_as_the_pool() -> None:
    """`dask.config.set(pool=executor)` lets the threaded scheduler use our threads."""
    with ParallelExecutor(max_concurrency=3) as executor, dask.config.set(pool=executor):
        assert _graph().compute(scheduler="threads") == sum(number * number for number in range(10))
        assert executor.stats().succeeded > 0


def test_in_processes() -> None:
    """A graph of importable functions runs in our processes, too."""
    with ParallelExecutor(max_concurrency=2, backend="process") as executor:
        assert dask.delayed(add)(dask.delayed(add)(1, 2), 3).compute(scheduler=executor) == 6


def test_its_errors() -> None:
    """The exception of a task comes out of `compute` as it is."""

    def fail() -> None:
        raise LookupError("mine")

    with ParallelExecutor(retry_count=0) as executor, pytest.raises(LookupError, match="mine"):
        dask.delayed(fail)().compute(scheduler=executor)


def test_retries() -> None:
    """What it gains: a task of the graph that fails is run again, and the graph never knows."""
    runs: list[int] = []

    def flaky() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise OSError("once")
        return 5

    with ParallelExecutor(retry_count=1, backoff=0.0) as executor:
        assert dask.delayed(add)(dask.delayed(flaky)(), 1).compute(scheduler=executor) == 6
    assert len(runs) == 2
