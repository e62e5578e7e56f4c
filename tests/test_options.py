"""`executor.options(...)` and `map`: settings for some calls, and what is refused."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from concurrent.futures import TimeoutError as WaitTimeout
from typing import Any

import pytest
import tenacity
import work

from parallel_exec import Task, TaskFuture, TaskRetrying, TaskTimeoutError


def test_a_priority(lab: Any) -> None:
    """Calls of a view with a higher priority go first."""
    executor = lab.executor(max_concurrency=1)
    executor.pause()
    order: list[str] = []
    executor.submit(order.append, "low")
    executor.options(priority=1).submit(order.append, "high")
    executor.resume()
    executor.shutdown()
    assert order == ["high", "low"]


def test_a_timeout(lab: Any) -> None:
    """A view's timeout counts for its calls alone."""
    executor = lab.executor(retry_count=0, max_concurrency=2)
    gate = lab.event()
    patient = executor.submit(gate.wait)
    assert isinstance(executor.options(timeout=0.05).submit(lab.event().wait).exception(), TaskTimeoutError)
    gate.set()
    assert patient.result()


def test_a_retry_count(lab: Any) -> None:
    """A view's retry count counts for its calls alone."""
    executor = lab.executor(retry_count=0)
    assert executor.options(retry_count=1).submit(work.flaky, lab.log(), 1).result() == 2
    assert executor.submit(work.flaky, lab.log(), 1).exception() is not None


def test_a_tenacity_object(lab: Any) -> None:
    """A view may bring a `tenacity.Retrying`."""
    retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
    assert lab.executor(retry_count=0).options(retry=retry).submit(work.flaky, lab.log(), 1).result() == 2


def test_an_id(lab: Any) -> None:
    """A view's id names its calls, those of `map` with their number."""
    view = lab.executor().options(id="page")
    assert view.submit(work.describe_current).result()["id"] == "page"
    seen = view.map(lambda _: work.describe_current()["id"], range(3))
    assert list(seen) == ["page-0", "page-1", "page-2"]


def test_map_carries_the_settings(lab: Any) -> None:
    """`map` of a view runs under the view's settings."""
    results = lab.executor(retry_count=0).options(retry_count=2).map(work.flaky, [lab.log()], [2])
    assert list(results) == [3]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"priority": 1.5}, TypeError, "priority takes an int"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0"),
        ({"retry_count": -1}, ValueError, "retry_count must be at least 0"),
        ({"retry": 3}, TypeError, "retry takes a tenacity"),
        ({"id": 0}, TypeError, "id takes a string"),
        ({"id": 7}, TypeError, "id takes a string"),
        ({"prioritty": 1}, TypeError, "prioritty"),
    ],
)
def test_wrong_settings_are_refused(lab: Any, settings: Any, error: type[Exception], message: str) -> None:
    """What `Task` would refuse is refused when the view is made."""
    with pytest.raises(error, match=message):
        lab.executor().options(**settings)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("method", ["submit", "map"])
def test_what_is_not_callable_is_refused(lab: Any, view: bool, method: str) -> None:
    """The message says what goes there."""
    executor = lab.executor()
    with pytest.raises(TypeError, match=f"{method} takes a callable"):
        getattr(executor.options() if view else executor, method)(None, [])


def test_submit_takes_its_function_by_place_only(lab: Any) -> None:
    """`fn=` is the user's: a call without a positional function is refused."""
    with pytest.raises(TypeError):
        lab.executor().submit(fn=work.double, number=1)


# ── map ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": -1}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_wrong_arguments_of_map_are_refused(lab: Any, arguments: Any, error: type[Exception]) -> None:
    """A wrong argument is refused at once, not when results are taken, and names itself."""
    with pytest.raises(error, match=next(iter(arguments))):
        lab.executor().map(work.double, [1], **arguments)


def test_map_starts_before_it_is_read(lab: Any) -> None:
    """Without `buffersize` all calls are started at once."""
    executor = lab.executor()
    seen: list[int] = []
    executor.map(seen.append, range(10))
    executor.shutdown()
    assert sorted(seen) == list(range(10))


def test_map_over_nothing(lab: Any) -> None:
    """No items, no results."""
    assert list(lab.executor().map(work.double, [])) == []


def test_map_stops_at_the_shortest(lab: Any) -> None:
    """Like the built-in, `map` ends with its shortest iterable."""
    assert list(lab.executor().map(pow, [2, 3, 4], [2, 2])) == [4, 9]


def test_the_limit_of_map_counts_from_the_call(lab: Any) -> None:
    """A result that is not there within `timeout` seconds of the call raises `TimeoutError`; those before it are there."""
    results = lab.executor().map(lambda wait: wait() if callable(wait) else wait, [1, 2, lab.event().wait], timeout=2)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(WaitTimeout):
        next(results)


def test_a_failed_map_cancels_the_rest(lab: Any) -> None:
    """After a call has raised, those that wait are cancelled."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    started, gate, log = lab.event(), lab.event(), lab.log()

    def call(item: int) -> None:
        if item == 0:
            work.fail_deeply(1)
        if item == 1:
            started.set()
            gate.wait()
        log.write(item)

    results = executor.map(call, range(5))
    started.wait()
    with pytest.raises(work.CodedError):
        next(results)
    gate.set()
    executor.shutdown()
    assert log.lines() == ["1"]


def test_map_drops_results_as_they_are_taken(lab: Any) -> None:
    """An iterator of `map` holds no result that it has given out (nor much of what comes)."""

    class Thing:
        pass

    for thing in lab.executor().map(lambda _: Thing(), range(10)):
        alive = weakref.ref(thing)
        del thing
        gc.collect()
        work.until(lambda alive=alive: alive() is None)  # type: ignore[misc]  # who brought it may have it for a moment


def test_an_endless_map_with_a_buffer(lab: Any) -> None:
    """With `buffersize` the input may be endless, and reading it waits for nobody."""
    begun = time.monotonic()
    results = lab.executor().map(work.double, itertools.count(), buffersize=5)
    assert list(itertools.islice(results, 100)) == [2 * number for number in range(100)]
    results.close()
    assert time.monotonic() - begun < work.PATIENCE


def test_a_predicate_says_what_is_worth_it(lab: Any) -> None:
    """It is asked with the exception, for the executor, an `options` view or one task, and never with what is final."""
    asked: list[BaseException] = []

    def is_worth_it(error: BaseException) -> bool:
        asked.append(error)
        return isinstance(error, OSError)

    executor = lab.executor(retry_count=1, retry_on=is_worth_it)
    assert _attempts(executor.submit(_raise, OSError("x"))) == 2
    assert _attempts(executor.submit(_raise, ValueError("x"))) == 1
    assert [type(error) for error in asked] == [OSError, ValueError]
    assert _attempts(executor.submit(_raise, SystemExit(1))) == 1
    assert len(asked) == 2
    assert _attempts(executor.options(retry_on=ValueError).submit(_raise, ValueError("x"))) == 2
    assert (
        _attempts(executor.add_task(Task(_raise, ValueError("x"), retry_on=lambda _: True, retry_count=3)), executor)
        == 4
    )


def test_a_predicate_that_raises(lab: Any) -> None:
    """What it raises is how the task failed, as it is with tenacity's."""

    def leave(error: BaseException) -> bool:
        raise SystemExit(3)

    future = lab.executor(retry_on=leave).submit(_raise, OSError("x"))
    assert isinstance(future.exception(), SystemExit)


def test_a_backoff_of_its_own(lab: Any) -> None:
    """It replaces the executor's, also where that has a tenacity object."""
    delays: list[float] = []
    listen = lambda event: delays.append(event.delay) if isinstance(event, TaskRetrying) else None  # noqa: E731
    executor = lab.executor(backoff=30.0, jitter=False, retry_count=2, on_event=listen)
    executor.options(backoff=0.001).submit(_raise, OSError("x")).exception()
    executor.add_task(Task(_raise, OSError("x"), backoff=0.002))
    executor.execute_all()
    assert delays == [0.001, 0.002, 0.002, 0.004]


def _raise(error: BaseException) -> None:
    raise error


def _attempts(future: TaskFuture[Any], executor: Any = None) -> int:
    if executor is not None:
        executor.execute_all()
    future.exception()
    return len(future.attempts())
