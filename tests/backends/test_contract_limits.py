"""What every back end does alike: timeouts, cancelling, aborting, deadlines, and never more attempts than allowed."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, wait
from functools import partial
from typing import Any

import pytest
import work
from backend_kinds import ALL, CONCURRENT, OWN, PROCESSES, SPAWN_AND_FORK, THREADS, over

from parallel_exec import DeadlineExceededError, Task, TaskTimeoutError

LONG = 600.0  # seconds; nothing here may take so long


# ── timeouts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@over((*CONCURRENT, *SPAWN_AND_FORK))
def test_a_timeout_ends_the_task(lab: Any) -> None:
    """An attempt that outruns its timeout ends as `TaskTimeoutError`, which says what was outrun by whom."""
    executor = lab.executor(timeout=0.2, retry_count=0)
    executor.add_task(Task(partial(work.hold, lab.latch(), lab.latch()), id="slow"))
    (result,) = executor.execute_all()
    assert isinstance(result.error, TaskTimeoutError)
    assert (result.error.task_id, result.error.timeout, result.error.attempt) == ("slow", 0.2, 1)
    assert "Task timeout" in str(result.error)
    assert executor.stats().timed_out == 1


@over(CONCURRENT)
def test_a_timeout_is_retried(lab: Any) -> None:
    """A timeout is a failure like any other: the next attempt may succeed."""
    executor = lab.executor(timeout=0.6, retry_count=5)  # a fresh worker must import within it
    future = executor.submit(work.hold_once, lab.latch(), lab.latch())
    assert future.result() == "second time"
    *failed, last = (attempt.error for attempt in future.task_result().attempts)
    assert failed and last is None  # one failed, or more if the machine stalls
    assert all(isinstance(error, TaskTimeoutError) for error in failed)


@over(CONCURRENT)
def test_a_timeout_frees_the_slot(lab: Any) -> None:
    """With the only slot taken by a stuck task, the next task runs as soon as that one has timed out."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    stuck = executor.options(timeout=0.2).submit(work.hold, lab.latch(), lab.latch())
    assert executor.submit(work.double, 3).result(LONG) == 6
    assert isinstance(stuck.exception(), TaskTimeoutError)


@over(CONCURRENT)
def test_a_timeout_leaves_neighbours_alone(lab: Any) -> None:
    """While one task times out, one that is running beside it goes on."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    gate = lab.latch()
    neighbour = executor.submit(work.hold, lab.latch(), gate, "unharmed")
    stuck = executor.options(timeout=0.2).submit(work.hold, lab.latch(), lab.latch())
    assert isinstance(stuck.exception(), TaskTimeoutError)
    gate.set()
    assert neighbour.result() == "unharmed"
    assert len(neighbour.task_result().attempts) == 1


@over(CONCURRENT)
def test_the_clock_starts_with_the_attempt(lab: Any) -> None:
    """The time a task is queued does not count towards its timeout."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    log = lab.log()
    first = executor.options(timeout=LONG).submit(work.span, log, 2.2)
    second = executor.options(timeout=2).submit(work.double, 1)
    assert second.result() == 2
    assert first.done()


@over(ALL)
def test_no_timeout(lab: Any) -> None:
    """`timeout=None` on a task lifts the executor's limit."""
    executor = lab.executor(timeout=0.05, retry_count=0)
    executor.add_task(Task(partial(work.span, lab.log(), 0.2), timeout=None))
    assert executor.execute_all()[0].success


@over((*THREADS, *PROCESSES))
def test_a_task_may_stop_itself(lab: Any) -> None:
    """`current_task().check()` raises in a task that nobody waits for any more, so that it can end."""
    executor = lab.executor(timeout=0.2, retry_count=0)
    started = lab.latch()
    future = executor.submit(work.check_until_stopped, started)
    assert isinstance(future.exception(), TaskTimeoutError)
    work.until(lambda: executor.stats().abandoned == 0)


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_cancelling_a_staged_task(lab: Any) -> None:
    """A task that is cancelled before the run never runs, and has a result that says so."""
    executor = lab.executor()
    log = lab.log()
    futures = [executor.add_task(partial(work.note, log, number)) for number in range(3)]
    assert futures[1].cancel()
    results = executor.execute_all()
    assert [result.success for result in results] == [True, False, True]
    assert isinstance(results[1].error, CancelledError)
    assert results[1].attempts == ()
    assert sorted(log.lines()) == ["0", "2"]


@over(CONCURRENT)
def test_cancelling_a_queued_task(lab: Any) -> None:
    """A task that waits for a slot, even one handed to a worker ahead of time, can be cancelled and never runs."""
    executor = lab.executor(max_concurrency=1)
    started, gate, log = lab.latch(), lab.latch(), lab.log()
    running = executor.submit(work.hold, started, gate)
    queued = [executor.submit(work.note, log, number) for number in range(5)]
    started.wait()
    assert queued[0].cancel()
    assert queued[3].cancel()
    assert queued[3].cancelled()
    gate.set()
    assert queued[4].result() == 4
    assert running.result() == "held"
    assert log.lines() == ["1", "2", "4"]
    with pytest.raises(CancelledError):
        queued[0].result()


@over(CONCURRENT)
def test_a_running_task_cannot_be_cancelled(lab: Any) -> None:
    """`cancel()` is for what waits: a running attempt goes on."""
    started, gate = lab.latch(), lab.latch()
    future = lab.executor().submit(work.hold, started, gate)
    started.wait()
    work.until(future.running)
    assert not future.cancel()
    gate.set()
    assert future.result() == "held"
    assert not future.cancel()


@over(CONCURRENT)
def test_cancelling_a_task_in_backoff(lab: Any) -> None:
    """A task between two attempts can be cancelled; the first attempt stays in its result."""
    executor = lab.executor(backoff=LONG, max_backoff=LONG)
    future = executor.submit(work.fail, OSError("once"))
    work.until(lambda: executor.stats().waiting == 1)
    assert future.cancel()
    result = future.task_result()
    assert isinstance(result.error, CancelledError)
    assert [str(attempt.error) for attempt in result.attempts] == ["once"]
    assert executor.stats().cancelled == 1


@over(ALL)
def test_cancelling_twice(lab: Any) -> None:
    """`cancel()` of a cancelled task says that it is cancelled."""
    future = lab.executor().add_task(partial(work.double, 1))
    assert future.cancel()
    assert future.cancel()


# ── abort ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(CONCURRENT)
def test_aborting_a_running_task(lab: Any) -> None:
    """`abort()` of a running attempt ends the task as cancelled, without a retry, and frees its slot."""
    executor = lab.executor(max_concurrency=1)
    started = lab.latch()
    future = executor.submit(work.hold, started, lab.latch())
    started.wait()
    work.until(future.running)
    assert future.abort()
    with pytest.raises(CancelledError):
        future.result(LONG)
    assert len(future.task_result().attempts) == 1
    assert executor.submit(work.double, 1).result(LONG) == 2


@over(ALL)
def test_aborting_what_has_ended(lab: Any) -> None:
    """`abort()` of a task that has ended changes nothing."""
    future = lab.executor().submit(work.double, 2)
    assert future.result() == 4
    assert not future.abort()
    assert future.result() == 4


@over(ALL)
def test_aborting_what_waits(lab: Any) -> None:
    """`abort()` of a task that waits cancels it."""
    future = lab.executor().add_task(partial(work.double, 1))
    assert future.abort()
    assert future.cancelled()


@over(CONCURRENT)
def test_aborting_all(lab: Any) -> None:
    """`abort_all()` cancels what runs, what backs off, what is queued and what is staged; what is added later runs."""
    executor = lab.executor(max_concurrency=2, retry_count=1, backoff=work.FOREVER, max_backoff=work.FOREVER)
    started = lab.latch()
    running = executor.submit(work.hold, started, lab.latch())
    failing = executor.submit(work.fail, OSError("once"))
    work.until(lambda: executor.stats().waiting == 1)
    started.wait()
    others = [executor.submit(work.hold, lab.latch(), lab.latch()) for _ in range(4)]
    work.until(others[0].running)
    executor.abort_all()
    ended = [running, failing, *others]
    wait(ended, LONG)
    assert [future.cancelled() for future in ended] == [True] * 6
    assert [len(future.task_result().attempts) for future in ended] == [1, 1, 1, 0, 0, 0]
    assert executor.submit(work.double, 1).result(LONG) == 2


@over(CONCURRENT)
def test_aborting_all_ends_a_run(lab: Any) -> None:
    """`execute_all` returns a result for each task then, in order; `results()` has those that had finished."""
    executor = lab.executor(max_concurrency=1)
    started = lab.latch()
    executor.add_task(Task(partial(work.double, 1), priority=1))
    executor.add_task(partial(work.hold, started, lab.latch()))
    executor.add_task(partial(work.double, 2))
    aborts = threading.Thread(target=lambda: (started.wait(), executor.abort_all()))
    aborts.start()
    results = executor.execute_all()
    aborts.join()
    assert [(result.result, result.cancelled) for result in results] == [(2, False), (None, True), (None, True)]
    assert [result.result for result in executor.results()] == [2]
    executor.add_task(partial(work.double, 3))
    assert [result.result for result in executor.execute_all()] == [6]


@over(ALL)
def test_aborting_all_that_is_staged(lab: Any) -> None:
    """What was only added ends as cancelled, and the next run has its result; with nothing to end it does nothing."""
    executor = lab.executor()
    executor.abort_all()
    future = executor.add_task(partial(work.double, 1))
    executor.abort_all()
    assert future.cancelled()
    assert [result.cancelled for result in executor.execute_all()] == [True]


@over(("thread", "process"))
def test_aborting_all_ends_a_map(lab: Any) -> None:
    """A `map` whose items are under way raises `CancelledError`, as `cancel()` of them would have it."""
    executor = lab.executor(max_concurrency=2)
    started = lab.latch()
    results = executor.map(partial(work.hold, started), [lab.latch() for _ in range(50)])
    started.wait()
    executor.abort_all()
    with pytest.raises(CancelledError):
        next(results)
    assert executor.stats().queued == 0


# ── runs that end early ─────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_fail_fast_cancels_the_rest(lab: Any) -> None:
    """With `fail_fast` the first final failure cancels what has not begun, and every task has a result."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    log = lab.log()
    executor.add_task(Task(partial(work.note, log, "first"), priority=2))
    executor.add_task(Task(partial(work.fail_deeply, 1), priority=1))
    for _ in range(20):  # a process may begin one or two of them before it hears that the others were cancelled
        executor.add_task(partial(work.note_pid, log, 0.05))
    results = executor.execute_all(fail_fast=True)
    assert [type(result.error) for result in results[:2]] == [type(None), work.CodedError]
    begun = len(log.lines()) - 1
    assert begun <= 2
    assert all(result.success or isinstance(result.error, CancelledError) for result in results[2:])
    assert sum(result.success for result in results[2:]) <= begun  # one that had begun was stopped


@over(ALL)
def test_fail_fast_lets_retries_be(lab: Any) -> None:
    """A failure that is retried is not final, and cancels nothing."""
    executor = lab.executor(max_concurrency=1, retry_count=1)
    executor.add_task(Task(partial(work.flaky, lab.log(), 1), priority=1))
    executor.add_task(partial(work.double, 1))
    assert [result.result for result in executor.execute_all(fail_fast=True)] == [2, 2]


@over(CONCURRENT)
def test_fail_fast_stops_what_runs(lab: Any) -> None:
    """With `fail_fast` a running attempt is stopped, too, and its slot is not used again."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    started, log = lab.latch(), lab.log()
    executor.add_task(partial(work.hold, started, lab.latch()))
    executor.add_task(partial(work.fail_after, started))
    for number in range(5):
        executor.add_task(partial(work.note, log, number))
    results = executor.execute_all(fail_fast=True)
    assert [type(result.error) for result in results] == [CancelledError, work.CodedError, *[CancelledError] * 5]
    assert log.lines() == []


@over(CONCURRENT)
def test_the_deadline_ends_everything(lab: Any) -> None:
    """At the run's deadline what runs and what waits ends as `DeadlineExceededError`, and nothing starts any more."""
    executor = lab.executor(max_concurrency=1)
    log = lab.log()
    executor.add_task(Task(partial(work.hold, lab.latch(), lab.latch()), id="running"))
    for number in range(5):
        executor.add_task(partial(work.note, log, number))
    results = executor.execute_all(deadline=0.5)
    assert [type(result.error) for result in results] == [DeadlineExceededError] * 6
    assert (results[0].error.task_id, results[0].error.deadline) == ("running", 0.5)
    assert [result.attempts for result in results[1:]] == [()] * 5
    assert log.lines() == []
    assert executor.results() == results


@over(OWN)
def test_the_deadline_ends_a_backoff(lab: Any) -> None:
    """The deadline does not wait for the next attempt of a task."""
    executor = lab.executor(backoff=LONG, max_backoff=LONG)
    executor.add_task(partial(work.fail, OSError("once")))
    (result,) = executor.execute_all(deadline=0.5)
    assert isinstance(result.error, DeadlineExceededError)
    assert len(result.attempts) <= 1


@over(OWN)
def test_a_deadline_that_is_not_reached(lab: Any) -> None:
    """A run that is over before its deadline ends then, and the deadline does not haunt the next run."""
    executor = lab.executor()
    executor.add_task(partial(work.double, 1))
    assert executor.execute_all(deadline=LONG)[0].unwrap() == 2
    executor.add_task(partial(work.double, 2))
    assert executor.execute_all()[0].unwrap() == 4


# ── concurrency ─────────────────────────────────────────────────────────────────────────────────────────────────────


@over((*ALL, *SPAWN_AND_FORK))
def test_never_more_attempts_than_allowed(lab: Any) -> None:
    """However many tasks there are, no more than `max_concurrency` of them run at once."""
    executor = lab.executor(max_concurrency=2)
    log = lab.log()
    for _ in range(40):
        executor.add_task(partial(work.span, log, 0.005))
    executor.execute_all()
    assert len(log.lines()) == 40
    assert work.most_at_once(log) <= 2


@over(CONCURRENT)
def test_all_slots_are_used(lab: Any) -> None:
    """`max_concurrency` tasks that wait for each other run at once."""
    executor = lab.executor(max_concurrency=3)
    latches = [lab.latch() for _ in range(3)]
    futures = [executor.submit(work.meet, latches, mine) for mine in range(3)]
    assert [future.result(LONG) for future in futures] == [0, 1, 2]
