"""`memory_limit` turns what is too much into a MemoryError of the task."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import work

from parallel_exec import TaskSerializationError

from . import array_tasks

LIMIT = 400 << 20


def test_a_task_that_wants_too_much_gets_memory_error(pool: Any) -> None:
    """Its neighbours, and its worker, do not notice."""
    executor = pool(1, backend={"memory_limit": LIMIT})
    worker = executor.submit(work.pid).result(work.SOON)
    futures = [executor.submit(array_tasks.allocate, size << 20) for size in (10, 2000, 10, 1000, 10)]
    assert [type(future.exception(work.SOON)) for future in futures] == [type(None), MemoryError] * 2 + [type(None)]
    assert executor.submit(work.pid).result(work.SOON) == worker
    why = "it takes more than memory_limit=419430400 bytes allow a worker: raise ProcessBackend(memory_limit=...)"
    assert [str(futures[place].exception()) for place in (1, 3)] == [why, why]
    assert "in allocate" in str(futures[1].exception().__cause__)


def test_a_memory_error_of_the_users_own(pool: Any) -> None:
    """What a task says itself stays as it is, with a limit and without; and without one there is nothing to name."""
    for settings in ({"memory_limit": LIMIT}, {}):
        executor = pool(1, backend=settings)
        assert str(executor.submit(work.fail, MemoryError("mine")).exception(work.SOON)) == "mine"
    assert str(executor.submit(work.fail, MemoryError()).exception(work.SOON)) == ""


def test_an_array_that_is_too_much(pool: Any) -> None:
    """NumPy's own memory error is an ordinary one."""
    error = pool(backend={"memory_limit": LIMIT}).submit(array_tasks.make, 1, 1 << 28).exception(work.SOON)
    assert isinstance(error, MemoryError)


def test_an_argument_that_is_too_much(pool: Any) -> None:
    """A call that does not fit into the worker fails with MemoryError; those beside it run."""
    executor = pool(1, backend={"memory_limit": 200 << 20})
    before = executor.submit(work.same, 1)
    future = executor.submit(len, numpy.ones(500 << 17))
    after = executor.submit(work.same, 2)
    assert isinstance(future.exception(work.SOON), MemoryError)
    assert "memory_limit=209715200" in str(future.exception())
    assert (before.result(work.SOON), after.result(work.SOON)) == (1, 2)


@pytest.mark.parametrize("way", ["memory", "pipe"])
def test_plain_bytes_that_are_too_much(pool: Any, request: pytest.FixtureRequest, way: str) -> None:
    """So does a call without buffers, whichever way it travels: nothing dies, and what comes next in the pipe is not lost."""
    if way == "pipe":
        request.getfixturevalue("no_memory")
    executor = pool(1, backend={"memory_limit": 100 << 20})
    worker = executor.submit(work.pid).result(work.SOON)
    futures = [executor.submit(len, b"x" * size) for size in (10, 150 << 20, 20, 150 << 20, 30)]
    assert [type(future.exception(30)) for future in futures] == [type(None), MemoryError] * 2 + [type(None)]
    assert [futures[place].result() for place in (0, 2, 4)] == [10, 20, 30]
    with pytest.raises(MemoryError, match="memory_limit=104857600"):
        next(executor.map(len, [b"x" * (150 << 20), b"y"]))
    assert executor.submit(work.pid).result(work.SOON) == worker


@pytest.mark.parametrize("way", ["memory", "pipe"])
def test_a_large_value_without_buffers(pool: Any, request: pytest.FixtureRequest, way: str) -> None:
    """A string of many megabytes arrives, there and back; so does a function of the main module beside one."""
    if way == "pipe":
        request.getfixturevalue("no_memory")
    executor = pool(1)
    text = "häßlich" * (1 << 20)
    assert executor.submit(work.same, text).result(work.SOON) == text
    assert list(executor.map(work.same, [text, "", text])) == [text, "", text]


def test_a_result_that_is_too_much(pool: Any) -> None:
    """A result that fits into the worker, but not a second time as pickled bytes, is a MemoryError, too."""
    executor = pool(1, backend={"memory_limit": 200 << 20})
    worker = executor.submit(work.pid).result(work.SOON)
    future = executor.submit(bytes, 120 << 20)
    assert isinstance(future.exception(work.SOON), (MemoryError, TaskSerializationError))
    assert "memory_limit=209715200" in str(future.exception())
    assert executor.submit(work.pid).result(work.SOON) == worker


def test_the_limit_does_not_touch_the_parent(pool: Any) -> None:
    """This process is as free as before."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    pool(backend={"memory_limit": LIMIT, "mp_context": "fork"}).submit(work.pid).result(work.SOON)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
