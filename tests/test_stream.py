"""`executor.stream`: endless input in flat memory, and a clean end however it comes."""

from __future__ import annotations

import gc
import itertools
from functools import partial
from typing import Any, Iterator

import pytest
import work

from parallel_exec import Task, TaskFuture


def test_an_endless_stream_runs_in_flat_memory(lab: Any) -> None:
    """However long the stream, no more futures are alive than the window and a few."""
    executor = lab.executor(max_concurrency=2)
    tasks = (Task(partial(work.double, number)) for number in itertools.count())
    results = executor.stream(tasks, window=5)
    before, most = _futures(), 0
    for number, result in enumerate(results):
        assert result.success
        if number % 100 == 0:
            del result
            most = max(most, _futures() - before)
        if number == 1000:
            break
    results.close()
    assert most <= 5 + 2 + 1  # those in the window, in the hands of the two workers, and in the loop


def _futures() -> int:
    return sum(isinstance(thing, TaskFuture) for thing in gc.get_objects())


def test_the_default_window(lab: Any) -> None:
    """Without a window, four times `max_concurrency` tasks are read ahead."""
    executor = lab.executor(max_concurrency=2)
    read: list[int] = []

    def tasks() -> Iterator[Task[int]]:
        for number in itertools.count():
            read.append(number)
            yield Task(partial(work.double, number))

    results = executor.stream(tasks())
    next(results)
    assert len(read) == 8
    results.close()


def test_bare_callables_are_tasks(lab: Any) -> None:
    """A stream takes callables as `add_task` does."""
    assert [result.unwrap() for result in lab.executor().stream([int, str])] in ([0, ""], ["", 0])


def test_an_empty_stream(lab: Any) -> None:
    """No tasks, no results."""
    assert list(lab.executor().stream([])) == []


def test_failed_tasks_are_results(lab: Any) -> None:
    """A task that fails does not end the stream."""
    tasks = [Task(partial(work.fail_deeply, 1)), Task(partial(work.double, 2))]
    results = list(lab.executor(retry_count=0).stream(tasks, order="submitted"))
    assert [result.success for result in results] == [False, True]


def test_nothing_is_read_before_the_first_result_is_asked_for(lab: Any) -> None:
    """Making a stream reads nothing."""
    read: list[int] = []
    lab.executor().stream(read.append(1) or Task(int) for _ in range(3))  # type: ignore[func-returns-value]
    assert read == []


def test_no_result_is_lost_to_what_is_no_task(lab: Any) -> None:
    """Something in the input that is no task is an error of the input: it comes after the results of what came before."""
    results = lab.executor().stream([Task(partial(work.double, 1)), "no task", Task(int)])
    assert next(results).unwrap() == 2
    with pytest.raises(TypeError, match=r"takes a .*callable"):
        next(results)


def test_a_stream_that_is_dropped_cancels_the_rest(lab: Any) -> None:
    """A stream that is collected half read leaves nothing running for nobody."""
    executor = lab.executor(max_concurrency=1)
    started, gate = lab.event(), lab.event()

    def hold() -> None:
        started.set()
        gate.wait()

    results = executor.stream([Task(int), Task(hold), Task(int), Task(int)], window=4)
    next(results)
    started.wait()
    del results
    gc.collect()
    work.until(lambda: executor.stats().cancelled == 3)


def test_shutdown_during_a_stream(lab: Any) -> None:
    """A stream whose executor is shut down raises what adding to it raises, and does not hang."""
    executor = lab.executor()
    results = executor.stream((Task(int) for _ in itertools.count()), window=2)
    next(results)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(results)


def test_two_streams_side_by_side(lab: Any) -> None:
    """Streams of one executor get each its own results."""
    executor = lab.executor()
    evens = executor.stream((Task(partial(work.double, number)) for number in range(20)), order="submitted")
    odds = executor.stream((Task(partial(work.double, number + 0.5)) for number in range(20)), order="submitted")
    pairs = [(even.unwrap(), odd.unwrap()) for even, odd in zip(evens, odds)]
    assert pairs == [(2 * number, 2 * number + 1) for number in range(20)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"window": 0}, ValueError), ({"window": 2.5}, TypeError), ({"order": "sorted"}, ValueError)],
)
def test_wrong_arguments_are_refused(lab: Any, arguments: Any, error: type[Exception]) -> None:
    """A wrong argument is refused at once, and names itself."""
    with pytest.raises(error, match=next(iter(arguments))):
        lab.executor().stream([], **arguments)


def test_what_is_not_iterable_is_refused(lab: Any) -> None:
    """A single task in place of an iterable is refused at once."""
    with pytest.raises(TypeError, match="iterable"):
        lab.executor().stream(Task(int))
