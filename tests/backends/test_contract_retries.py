"""What every back end does alike: retries as told, and what a task knows of itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tenacity
import work
from backend_kinds import ALL, CONCURRENT, EVERY_START_METHOD, IN_THIS_PROCESS, SPAWN_AND_FORK, over

from parallel_exec import RetryAfter, Task, TaskRetrying, current_task

EVERY = (*ALL, *SPAWN_AND_FORK)


# ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_retried_until_it_succeeds(lab: Any) -> None:
    """A task that fails twice and then returns succeeds, and its result tells of each attempt."""
    executor = lab.executor(retry_count=2)
    executor.add_task(partial(work.flaky, lab.log(), 2))
    (result,) = executor.execute_all()
    assert result.unwrap() == 3
    assert [attempt.number for attempt in result.attempts] == [1, 2, 3]
    assert [str(attempt.error) for attempt in result.attempts] == ["call 1 failed", "call 2 failed", "None"]


@over(ALL)
def test_no_more_than_retry_count_retries(lab: Any) -> None:
    """The last attempt's error is the task's, once the retries are used up."""
    log = lab.log()
    future = lab.executor(retry_count=1).submit(work.flaky, log, 99)
    assert str(future.exception()) == "call 2 failed"
    assert len(log.lines()) == 2


@over(ALL)
def test_a_tasks_own_retry_count(lab: Any) -> None:
    """`Task(retry_count=...)` counts before the executor's."""
    executor = lab.executor(retry_count=0)
    executor.add_task(Task(partial(work.flaky, lab.log(), 3), retry_count=3))
    assert executor.execute_all()[0].result == 4


@over(ALL)
def test_only_the_types_of_retry_on_are_retried(lab: Any) -> None:
    """An exception that is not in `retry_on` is final."""
    log = lab.log()
    future = lab.executor(retry_on=(ValueError,)).submit(work.flaky, log, 1)
    assert isinstance(future.exception(), OSError)
    assert len(log.lines()) == 1


@over(ALL)
def test_an_error_that_says_when_to_try_again(lab: Any) -> None:
    """The wait is what the error says, in place of the backoff; `RetryAfter` need not be in `retry_on`."""
    for error in (RetryAfter(0.02), work.BusyError(0.02)):
        delays: list[float] = []

        def note(event: Any, delays: list[float] = delays) -> None:
            if isinstance(event, TaskRetrying):
                delays.append(event.delay)

        executor = lab.executor(retry_on=(work.BusyError,), backoff=60.0, max_backoff=60.0, on_event=note)
        assert executor.submit(work.busy, lab.log(), 2, error).result() == 3
        assert delays == [0.02, 0.02]


@over(ALL)
def test_a_users_tenacity_object(lab: Any) -> None:
    """A `tenacity.Retrying` decides, and its hooks run here, in the parent."""
    seen: list[int] = []
    retry = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        before_sleep=lambda state: seen.append(state.attempt_number),
    )
    future = lab.executor(retry=retry).submit(work.flaky, lab.log(), 2)
    assert future.result() == 3
    assert seen == [1, 2]


@over(CONCURRENT)
def test_backoff_holds_no_worker(lab: Any) -> None:
    """While a task waits for its next attempt, the only worker runs others."""
    executor = lab.executor(max_concurrency=1, backoff=60.0, max_backoff=60.0)
    failing = executor.submit(work.fail, OSError())
    assert executor.submit(work.double, 4).result() == 8
    work.until(lambda: executor.stats().waiting == 1)
    assert executor.submit(work.double, 5).result() == 10
    assert not failing.done()
    assert not failing.running()
    assert failing.cancel()


# ── from inside ─────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_current_task(lab: Any) -> None:
    """A running task knows its id, attempt number and time left."""
    executor = lab.executor(timeout=20.0)
    executor.add_task(Task(work.describe_current, id="me"))
    (result,) = executor.execute_all()
    seen = result.unwrap()
    assert (seen["id"], seen["attempt"], seen["cancelled"]) == ("me", 1, False)
    assert seen["has_deadline"]
    assert 0 < seen["remaining"] <= 20.0


@over(ALL)
def test_current_task_without_limit(lab: Any) -> None:
    """Without a timeout there is no deadline."""
    seen = lab.executor(timeout=None).submit(work.describe_current).result()
    assert not seen["has_deadline"]
    assert seen["remaining"] is None


@over(IN_THIS_PROCESS)
def test_no_current_task_outside(lab: Any) -> None:
    """`current_task()` outside a task says where it belongs, also after one has run."""
    lab.executor().submit(work.double, 1).result()
    with pytest.raises(RuntimeError, match="as a task of a ParallelExecutor"):
        current_task()


@over(IN_THIS_PROCESS)
def test_tasks_added_from_inside_join_the_run(lab: Any) -> None:
    """A task that a running task adds belongs to the same run, and so does one that that one adds."""
    executor = lab.executor(max_concurrency=2)

    def countdown(left: int) -> int:
        if left:
            executor.add_task(partial(countdown, left - 1))
        return left

    executor.add_task(partial(countdown, 5))
    assert [result.unwrap() for result in executor.execute_all()] == [5, 4, 3, 2, 1, 0]


@over(EVERY_START_METHOD)
def test_many_small_tasks(lab: Any) -> None:
    """A thousand tasks come back right, each once, however they were batched."""
    executor = lab.executor(max_concurrency=2)
    assert list(executor.map(work.double, range(1000))) == [2 * number for number in range(1000)]
