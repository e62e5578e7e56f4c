"""What every back end does alike: one result for each task, in order, with the task's own error."""

from __future__ import annotations

import traceback
from concurrent.futures import InvalidStateError
from functools import partial
from typing import Any

import pytest
import work
from backend_kinds import ALL, CONCURRENT, EVERY_START_METHOD, SPAWN_AND_FORK, over

from parallel_exec import Task

EVERY = (*ALL, *SPAWN_AND_FORK)


# ── results ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_one_result_for_each_task_in_the_order_added(lab: Any) -> None:
    """Every task ends in exactly one result, and the results are in the order in which the tasks were added."""
    executor = lab.executor(max_concurrency=2)
    for number in range(20):
        executor.add_task(Task(partial(work.double, number), id=f"t{number}", priority=number % 3))
    results = executor.execute_all()
    assert [result.task.id for result in results] == [f"t{number}" for number in range(20)]
    assert [result.unwrap() for result in results] == [2 * number for number in range(20)]


@over(ALL)
def test_nothing_to_do(lab: Any) -> None:
    """A run without tasks has no results."""
    assert lab.executor().execute_all() == []


@over(ALL)
def test_a_second_run(lab: Any) -> None:
    """Each run answers for the tasks added since the one before."""
    executor = lab.executor()
    executor.add_task(partial(work.double, 1))
    assert [result.result for result in executor.execute_all()] == [2]
    executor.add_task(partial(work.double, 2))
    assert [result.result for result in executor.execute_all()] == [4]


@over(ALL)
def test_staged_tasks_wait_for_the_run(lab: Any) -> None:
    """What `add_task` stages does not start by itself."""
    executor = lab.executor()
    log = lab.log()
    future = executor.add_task(partial(work.note, log, "ran"))
    assert executor.stats().queued == 1
    assert log.lines() == []
    executor.execute_all()
    assert future.result() == "ran"


@over(ALL)
def test_submit_starts_what_was_staged(lab: Any) -> None:
    """`submit` opens the gate for staged tasks, too."""
    executor = lab.executor()
    staged = executor.add_task(partial(work.double, 1))
    assert executor.submit(work.double, 2).result() == 4
    assert staged.result() == 2


@over(ALL)
def test_none_is_a_result(lab: Any) -> None:
    """A task that returns None succeeded."""
    executor = lab.executor()
    executor.add_task(Task(partial(work.note, lab.log(), None)))
    (result,) = executor.execute_all()
    assert result.success
    assert result.result is None
    assert result.error is None
    assert result.unwrap() is None


@over(ALL)
def test_an_exception_may_be_a_result(lab: Any) -> None:
    """A task that returns an exception, instead of raising it, succeeded."""
    executor = lab.executor()
    executor.add_task(partial(ValueError, "fine"))
    (result,) = executor.execute_all()
    assert result.success
    assert isinstance(result.unwrap(), ValueError)


@over(ALL)
def test_times_of_a_result(lab: Any) -> None:
    """A result tells how long its task was queued and how long it took, and its attempt when it started."""
    executor = lab.executor(max_concurrency=1)
    future = executor.submit(work.span, lab.log(), 0.05)
    future.result()
    result = future.task_result()
    assert result.duration >= 0.05
    assert result.queued_for >= 0
    (attempt,) = result.attempts
    assert attempt.number == 1
    assert attempt.duration == pytest.approx(result.duration)
    assert attempt.error is None
    assert attempt.worker


@over(CONCURRENT)
def test_no_result_before_the_end(lab: Any) -> None:
    """`task_result()` of a task that has not ended is an error."""
    future = lab.executor().submit(work.hold, lab.latch(), lab.latch())
    with pytest.raises(InvalidStateError, match="has not ended"):
        future.task_result()


@over(EVERY)
def test_arguments_arrive(lab: Any) -> None:
    """`submit` passes all arguments on, whatever their names."""
    future = lab.executor().submit(work.capture, 1, [2], self=3, fn=4, task=5, timeout=6, id=7, key=8, priority=9)
    names = {"self": 3, "fn": 4, "task": 5, "timeout": 6, "id": 7, "key": 8, "priority": 9}
    assert future.result() == ((1, [2]), names)


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_highest_priority_first(lab: Any) -> None:
    """Of the tasks that are ready the one with the highest priority starts next."""
    executor = lab.executor(max_concurrency=1)
    log = lab.log()
    for priority in (0, 5, -3, 9, 2):
        executor.add_task(Task(partial(work.note, log, priority), priority=priority))
    executor.execute_all()
    assert log.lines() == ["9", "5", "2", "0", "-3"]


@over(ALL)
def test_equal_priorities_in_order_of_arrival(lab: Any) -> None:
    """Equal priorities start in the order in which they came."""
    executor = lab.executor(max_concurrency=1)
    log = lab.log()
    for number in range(30):
        executor.add_task(Task(partial(work.note, log, number)))
    executor.execute_all()
    assert log.lines() == [str(number) for number in range(30)]


@over(CONCURRENT)
def test_a_late_task_of_higher_priority_overtakes(lab: Any) -> None:
    """A task of higher priority goes before those that were queued, or even handed to a worker, before it came."""
    executor = lab.executor(max_concurrency=1)
    started, gate, log = lab.latch(), lab.latch(), lab.log()
    executor.submit(work.hold, started, gate)
    low = [executor.submit(work.note, log, f"low{number}") for number in range(10)]
    started.wait()
    high = executor.options(priority=5).submit(work.note, log, "high")
    gate.set()
    assert high.result() == "high"
    assert low[-1].result() == "low9"
    assert log.lines() == ["high", *(f"low{number}" for number in range(10))]


@over(CONCURRENT)
def test_lower_tasks_wait_for_all_higher_ones(lab: Any) -> None:
    """No task starts while one of higher priority has not, also where several may have been sent to one worker."""
    executor = lab.executor(max_concurrency=2)
    started, gate, log = [lab.latch(), lab.latch()], lab.latch(), lab.log()
    for _ in range(5):
        executor.add_task(Task(partial(work.note, log, "high"), priority=2))
    for latch in started:
        executor.add_task(Task(partial(work.hold, latch, gate), priority=1))
    for _ in range(5):
        executor.add_task(Task(partial(work.note, log, "low")))
    runner = lab.thread(executor.execute_all)
    for latch in started:
        latch.wait()
    assert log.lines() == ["high"] * 5
    gate.set()
    runner.join(work.PATIENCE)
    assert log.lines() == ["high"] * 5 + ["low"] * 5


@over(ALL)
def test_results_in_order_of_completion(lab: Any) -> None:
    """`order="completed"` gives the results as the tasks ended."""
    executor = lab.executor(max_concurrency=1)
    for priority in (1, 3, 2):
        executor.add_task(Task(partial(work.double, priority), priority=priority))
    assert [result.result for result in executor.execute_all(order="completed")] == [6, 4, 2]


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_a_task_fails_with_its_own_exception(lab: Any) -> None:
    """The error is the task's, type, arguments and attributes, and the traceback shows where in the worker it came from."""
    executor = lab.executor(retry_count=0)
    executor.add_task(partial(work.fail_deeply, 42))
    (result,) = executor.execute_all()
    assert not result.success
    assert type(result.error) is work.CodedError
    assert result.error.args == (42,)
    assert result.error.code == 42
    error = result.error
    assert "fail_deeply" in "".join(traceback.format_exception(type(error), error, error.__traceback__))


@over(ALL)
def test_unwrap_raises_the_error(lab: Any) -> None:
    """`unwrap()` of a failed result raises what the task raised."""
    executor = lab.executor(retry_count=0)
    executor.add_task(partial(work.fail_deeply, 42))
    (result,) = executor.execute_all()
    with pytest.raises(work.CodedError):
        result.unwrap()


@over(ALL)
def test_the_users_own_timeout_error(lab: Any) -> None:
    """A task that raises `TimeoutError` of its own failed like any other, and nothing timed out."""
    executor = lab.executor(retry_count=0)
    future = executor.submit(work.fail, TimeoutError("mine"))
    assert type(future.exception()) is TimeoutError
    assert executor.stats().timed_out == 0


@over(ALL)
def test_a_falsy_exception(lab: Any) -> None:
    """An exception that is false in a condition is an exception."""
    future = lab.executor(retry_count=0).submit(work.fail, work.FalsyError())
    with pytest.raises(work.FalsyError):
        future.result()


@over(ALL)
@pytest.mark.parametrize("error", [work.SecretiveError, work.PoisonedError])
def test_an_exception_that_raises_when_it_is_looked_at(lab: Any, error: Any) -> None:
    """It ends its task, by itself or by what it raises, and harms nobody else."""
    executor = lab.executor(max_concurrency=1, retry_count=1)
    future = executor.submit(work.fail_oddly, error)
    assert type(future.exception(work.PATIENCE)) in (error, PermissionError)
    assert executor.submit(work.double, 2).result() == 4


@over((*CONCURRENT, *SPAWN_AND_FORK))
@pytest.mark.parametrize(
    ("leave", "error"), [(partial(work.exit_with, 3), SystemExit), (work.interrupt, KeyboardInterrupt)]
)
def test_leaving_in_a_task_is_a_failure_of_the_task(lab: Any, leave: Any, error: type[BaseException]) -> None:
    """`sys.exit()` and `KeyboardInterrupt` in a task fail it, without another attempt, and the next one runs."""
    executor = lab.executor(max_concurrency=1)
    left, after = (executor.add_task(call) for call in (leave, partial(work.double, 1)))
    executor.execute_all()
    assert type(left.exception()) is error
    assert len(left.task_result().attempts) == 1
    assert after.result() == 2


@over(("thread", *EVERY_START_METHOD))
@pytest.mark.parametrize("leave", [partial(work.exit_with, 3), work.interrupt])
def test_a_worker_survives_a_task_that_leaves(lab: Any, leave: Any) -> None:
    """The worker that ran `sys.exit()` or got `KeyboardInterrupt` runs the next task."""
    executor = lab.executor(max_concurrency=1)
    before, _, after = (executor.add_task(call) for call in (work.worker_name, leave, work.worker_name))
    executor.execute_all()
    assert before.result() == after.result()


@over(ALL)
def test_the_exit_status_is_kept(lab: Any) -> None:
    """What `sys.exit` was given is in the error."""
    error = lab.executor().submit(work.exit_with, "status").exception()
    assert isinstance(error, SystemExit)
    assert error.code == "status"
