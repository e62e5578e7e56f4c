"""`executor.stream`: endless input in flat memory, and a clean end however it comes."""

from __future__ import annotations

import gc
import itertools
import time
from collections import deque
from functools import partial
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import work

from parallel_exec import Task, TaskFuture
from parallel_exec._core.job import Job
from parallel_exec.stream import AHEAD, MOST, Pace, Window


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
    """Without a window, four times `max_concurrency` tasks are read ahead at first."""
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


def test_the_default_window_grows_while_results_are_taken_fast(lab: Any) -> None:
    """A consumer that takes tiny tasks as fast as they come finds many more of them read ahead."""
    executor = lab.executor(max_concurrency=2)
    read: list[int] = []
    results = executor.stream(read.append(1) or Task(int) for _ in itertools.count())  # type: ignore[func-returns-value]
    for taken in itertools.count():
        next(results)
        if len(read) - taken > 100:
            break
    results.close()


def test_the_default_window_stays_small_for_a_slow_consumer(lab: Any) -> None:
    """Nothing is read far ahead of who takes one result in a while."""
    executor = lab.executor(max_concurrency=2)
    read: list[int] = []
    results = executor.stream(read.append(1) or Task(int) for _ in itertools.count())  # type: ignore[func-returns-value]
    for taken in range(20):
        next(results)
        time.sleep(0.01)
        assert len(read) <= taken + 8
    results.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; its last element is the time."""
    times = [1.0]
    monkeypatch.setattr("parallel_exec.stream.time", SimpleNamespace(monotonic=lambda: times[-1]))
    return times


def _take(pace: Pace, clock: list[float], count: int, seconds: float) -> int:
    """Take so many results, one each so many seconds; returns the size of the window then."""
    for _ in range(count):
        clock.append(clock[-1] + seconds)
        pace.taken()
    return pace.size


def test_a_window_holds_what_is_taken_in_a_moment(clock: list[float]) -> None:
    """It grows with the pace of the consumer, doubling at most, up to what is taken in `AHEAD`."""
    pace = Pace(8)
    assert _take(pace, clock, 1, 10.0) == 8  # workers start
    assert _take(pace, clock, 8, AHEAD / 100) == 16
    assert _take(pace, clock, 1000, AHEAD / 100) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("seconds", [1e-9, 0.0])
def test_a_window_has_a_limit(clock: list[float], seconds: float) -> None:
    """However fast results are taken, and if no time passes at all."""
    assert _take(Pace(8), clock, 10_000, seconds) == MOST


def test_a_window_shrinks_for_a_slow_consumer(clock: list[float]) -> None:
    """It is as small as before once results are taken slowly."""
    pace = Pace(8)
    _take(pace, clock, 1000, AHEAD / 100)
    assert _take(pace, clock, 1000, AHEAD / 20) == pytest.approx(20, abs=1)
    assert _take(pace, clock, 1000, AHEAD) == 8


def test_a_pause_of_the_consumer_does_not_empty_a_window(clock: list[float]) -> None:
    """A long one costs half of it, for a moment."""
    pace = Pace(8)
    full = _take(pace, clock, 1000, AHEAD / 100)
    assert _take(pace, clock, 1, 10.0) in (full, full // 2)
    assert _take(pace, clock, 64, AHEAD / 100) >= full // 2
    assert _take(pace, clock, 200, AHEAD / 100) == pytest.approx(full, abs=1)


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


def _ids(executor: Any) -> list[str]:
    return [result.task.id for result in executor.results()]


@pytest.mark.parametrize("order", ["completed", "submitted"])
def test_results_of_a_stream_that_is_closed(lab: Any, order: str) -> None:
    """They are those that had finished and were not yielded, as long as no other run has begun."""
    executor = lab.executor(max_concurrency=1)
    assert list(executor.stream([Task(int, id="before")]))
    assert _ids(executor) == []
    stuck = Task(lab.event().wait, id="stuck", priority=-1)
    stream = executor.stream([*(Task(int, id=name) for name in "abc"), stuck], window=9, order=order)
    assert next(stream).task.id == "a"
    work.until(lambda: executor.stats().succeeded == 4)
    assert _ids(executor) == ["b", "c"]
    assert next(stream).task.id == "b"
    assert _ids(executor) == ["c"]
    stream.close()
    assert _ids(executor) == ["c"]
    executor.add_task(Task(int, id="next"))
    assert _ids(executor) == ["c"]
    executor.execute_all()
    assert _ids(executor) == ["next"]


@pytest.mark.parametrize("order", ["completed", "submitted"])
@pytest.mark.parametrize("when", ["reading", "waiting", "yielding"])
def test_an_exception_in_the_middle_of_a_stream_loses_nothing(
    lab: Any, order: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the stream reads, while it waits, and while it makes the result that it is about to yield."""
    executor = lab.executor(max_concurrency=1)

    def interrupt(*_: object) -> Any:
        work.until(lambda: executor.stats().succeeded >= 2)
        raise KeyboardInterrupt

    def tasks() -> Iterator[Task[int]]:
        yield Task(int, id="a")
        yield Task(int, id="b")
        if when == "reading":
            interrupt()

    if when == "waiting":
        monkeypatch.setattr("parallel_exec.stream.Window.next", interrupt)
    if when == "yielding":
        monkeypatch.setattr(Job, "task_result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(executor.stream(tasks(), order=order))
    monkeypatch.undo()
    assert _ids(executor) == ["a", "b"]


def test_results_of_an_interrupted_endless_stream_are_few(lab: Any) -> None:
    """No more than the window's are kept."""
    executor = lab.executor(max_concurrency=2)
    gc.collect()
    before = _futures()
    stream = executor.stream((Task(int) for _ in itertools.count()), window=5)
    for _ in range(500):
        next(stream)
    stream.close()
    assert len(executor.results()) <= 4
    gc.collect()
    assert _futures() - before <= 5 + 2  # those in the window, and in the hands of the two workers


def test_the_last_in_line_is_taken_while_it_leaves() -> None:
    """The generator takes a task that has just ended, and the thread that ends it is about to look whether it comes next."""
    job: Any = object()

    class TakenOnceSeen(deque[Any]):
        """Whoever looks finds something, and it is gone."""

        def __bool__(self) -> bool:
            self.clear()
            return True

        def __getitem__(self, index: Any) -> Any:
            self.clear()
            return super().__getitem__(index)

    window: Window[Any] = Window(Pace(1), in_order=True)
    window._line = TakenOnceSeen([job])
    window._is_waiting = True
    assert not window.leave(job, success=True)
