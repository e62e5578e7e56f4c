"""`_checks`: numbers of any kind are taken, and become plain ones; what is no number is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from parallel_exec import ParallelConfig, ParallelExecutor, Task, ThreadBackend


@pytest.fixture(scope="module")
def numpy() -> Any:
    """NumPy, imported before a test's descriptors are counted."""
    return pytest.importorskip("numpy")


def test_numbers_of_numpy(numpy: Any) -> None:
    """NumPy's integers, floats and flags serve wherever Python's do, and nothing of NumPy is kept."""
    config = ParallelConfig(
        max_concurrency=numpy.int64(3),
        timeout=numpy.float32(1.5),
        retry_count=numpy.uint8(1),
        backoff=numpy.int32(1),
        max_backoff=numpy.float64(2),
        jitter=numpy.bool_(False),
        queue_size=numpy.int16(5),
    )
    values = (
        config.max_concurrency,
        config.timeout,
        config.retry_count,
        config.backoff,
        config.jitter,
        config.queue_size,
    )
    assert values == (3, 1.5, 1, 1.0, False, 5)
    assert [type(value) for value in (*values, config.max_backoff)] == [int, float, int, float, bool, int, float]
    task = Task(
        int, priority=numpy.int64(-2), timeout=numpy.int64(3), retry_count=numpy.int64(2), backoff=numpy.float16(1)
    )
    numbers = (task.priority, task.timeout, task.retry_count, task.backoff)
    assert (numbers, [type(number) for number in numbers]) == ((-2, 3.0, 2, 1.0), [int, float, int, float])


def test_numbers_of_numpy_in_calls(numpy: Any) -> None:
    """In calls of an executor, too."""
    two = numpy.int64(2)
    with ParallelExecutor(backend=ThreadBackend(max_abandoned=two)) as executor:
        executor.resize(two)
        assert list(executor.map(abs, [-1], timeout=numpy.float32(9), chunksize=two, buffersize=two)) == [1]
        assert [result.result for result in executor.stream([Task(int)], window=two)] == [0]
        executor.add_task(int)
        [result] = executor.execute_all(deadline=numpy.float32(9), fail_fast=numpy.bool_(True))
        assert result.success
        assert executor.options(priority=two, timeout=two).submit(int).result(numpy.float64(9)) == 0


def test_other_numbers() -> None:
    """Whatever says that it is a real number."""
    assert ParallelConfig(timeout=Fraction(1, 4)).timeout == 0.25


@pytest.mark.parametrize("value", [True, "1", 1j, [1], None])
@pytest.mark.parametrize("setting", ["max_concurrency", "retry_count", "queue_size", "backoff", "max_backoff"])
def test_what_is_no_number(setting: str, value: Any) -> None:
    """It is refused by name."""
    with pytest.raises(TypeError, match=setting):
        ParallelConfig(**{setting: value})


@pytest.mark.parametrize("setting", ["max_concurrency", "timeout", "backoff"])
def test_what_is_no_number_of_numpys(numpy: Any, setting: str) -> None:
    """Neither a flag of NumPy's nor an array is one."""
    for value in (numpy.bool_(True), numpy.array([1, 2])):
        with pytest.raises(TypeError, match=setting):
            ParallelConfig(**{setting: value})


@pytest.mark.parametrize("value", [1, "yes", None])
def test_what_is_no_flag(value: Any) -> None:
    """It is refused by name."""
    with pytest.raises(TypeError, match="jitter takes True or False"):
        ParallelConfig(jitter=value)
