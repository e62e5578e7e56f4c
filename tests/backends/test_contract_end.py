"""What every back end does alike: the events it tells, the counts it keeps, and how it ends."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterator

import inside
import pytest
import work
from backend_kinds import ALL, CONCURRENT, SPAWN_AND_FORK, over

from parallel_exec import Task
from parallel_exec.events import Event, TaskEvent

EVERY = (*ALL, *SPAWN_AND_FORK)


# ── events and counts ───────────────────────────────────────────────────────────────────────────────────────────────


def _story(events: list[Event], task_id: str) -> list[str]:
    return [type(event).__name__ for event in events if isinstance(event, TaskEvent) and event.task_id == task_id]


@over(ALL)
def test_events_of_a_task(lab: Any) -> None:
    """A task that fails once and then returns tells its story in order, with times that do not go back."""
    events: list[Event] = []
    executor = lab.executor(on_event=events.append, retry_count=1)
    executor.add_task(Task(partial(work.flaky, lab.log(), 1), id="flaky"))
    executor.execute_all()
    names = ["TaskQueued", "TaskStarted", "TaskRetrying", "TaskStarted", "TaskFinished"]
    assert _story(events, "flaky") == names
    mine = [event for event in events if isinstance(event, TaskEvent)]
    assert [event.attempt for event in mine] == [0, 1, 1, 2, 2]
    assert sorted(event.time for event in mine) == [event.time for event in mine]
    assert mine[-1].success


@over(ALL)
def test_what_events_say(lab: Any) -> None:
    """How an attempt or a task ended, how long it took, in which worker, and when by the clock on the wall."""
    events: list[Any] = []
    executor = lab.executor(on_event=events.append, retry_count=1, backoff=0.05, jitter=False)
    before = time.time()
    executor.add_task(work.fail, OSError("gone"))
    [result] = executor.execute_all()
    _, first, retrying, second, finished = [event for event in events if isinstance(event, TaskEvent)]
    assert [event.worker for event in (first, retrying, second, finished)] == [
        attempt.worker for attempt in result.attempts for _ in range(2)
    ]
    assert (retrying.delay, retrying.error, retrying.duration) == (
        0.05,
        result.attempts[0].error,
        result.attempts[0].duration,
    )
    assert (finished.success, finished.error, finished.duration) == (False, result.error, result.duration)
    assert [before <= event.wall_time <= time.time() for event in events] == [True] * len(events)


@over(CONCURRENT)
def test_events_of_a_timeout(lab: Any) -> None:
    """A timeout is told, and then the task's end."""
    events: list[Event] = []
    executor = lab.executor(on_event=events.append, timeout=0.2, retry_count=0)
    executor.add_task(Task(partial(work.hold, lab.latch(), lab.latch()), id="slow"))
    executor.execute_all()
    assert _story(events, "slow") == ["TaskQueued", "TaskStarted", "TaskTimedOut", "TaskFinished"]


@over(ALL)
def test_events_of_a_cancelled_task(lab: Any) -> None:
    """A cancelled task was queued and cancelled, and that is all."""
    events: list[Event] = []
    executor = lab.executor(on_event=events.append)
    executor.add_task(Task(partial(work.double, 1), id="unwanted")).cancel()
    assert _story(events, "unwanted") == ["TaskQueued", "TaskCancelled"]


@over(ALL)
def test_counts(lab: Any) -> None:
    """`stats()` counts how tasks ended."""
    executor = lab.executor(retry_count=1)
    executor.add_task(partial(work.double, 1))
    executor.add_task(partial(work.flaky, lab.log(), 1))
    executor.add_task(partial(work.fail, OSError()))
    executor.add_task(partial(work.double, 1)).cancel()
    executor.execute_all()
    stats = executor.stats()
    assert (stats.succeeded, stats.failed, stats.cancelled, stats.retried, stats.timed_out) == (2, 1, 1, 2, 0)
    assert (stats.queued, stats.running, stats.waiting, stats.abandoned) == (0, 0, 0, 0)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_shutdown_finishes_what_was_submitted(lab: Any) -> None:
    """`shutdown()` waits for what was submitted, and then there are no workers."""
    executor = lab.executor(max_concurrency=2)
    futures = [executor.submit(work.double, number) for number in range(20)]
    executor.shutdown()
    assert [future.result() for future in futures] == [2 * number for number in range(20)]
    assert executor.stats().workers == 0


@over(ALL)
def test_shutdown_may_be_repeated(lab: Any) -> None:
    """A second `shutdown()` changes nothing, nor does one on an executor that was never used."""
    executor = lab.executor()
    executor.submit(work.double, 1)
    for _ in range(3):
        executor.shutdown()
    lab.executor().shutdown()


@over(ALL)
def test_nothing_is_taken_after_shutdown(lab: Any) -> None:
    """After `shutdown()` every way in is refused."""
    executor = lab.executor()
    executor.shutdown()
    for add in (executor.submit, executor.add_task, executor.options().submit):
        with pytest.raises(RuntimeError, match="after shutdown"):
            add(work.worker_name)


@over(ALL)
@pytest.mark.parametrize("what", ["pause", "resume", "resize", "enter"])
def test_nothing_can_be_set_after_shutdown(lab: Any, what: str) -> None:
    """Whoever pauses, resumes, resizes or enters an executor that has ended is told so, and not ignored."""
    executor = lab.executor()
    acts = {"resize": lambda: executor.resize(2), "enter": executor.__enter__}
    executor.shutdown()
    with pytest.raises(RuntimeError, match=f"cannot {what} an executor after shutdown: make a new ParallelExecutor"):
        acts.get(what, getattr(executor, what, None))()


@over(CONCURRENT)
def test_shutdown_with_cancel_futures(lab: Any) -> None:
    """`cancel_futures` cancels what waits and lets what runs finish."""
    executor = lab.executor(max_concurrency=1)
    started, gate, log = lab.latch(), lab.latch(), lab.log()
    running = executor.submit(work.hold, started, gate)
    queued = [executor.submit(work.note, log, number) for number in range(5)]
    started.wait()
    work.until(running.running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    gate.set()
    assert running.result() == "held"
    assert log.lines() == []


@over(ALL)
def test_shutdown_cancels_what_was_only_staged(lab: Any) -> None:
    """What was added and never started is cancelled at the end."""
    executor = lab.executor()
    future = executor.add_task(partial(work.double, 1))
    executor.shutdown()
    with pytest.raises(CancelledError):
        future.result()


@over(ALL)
def test_shutdown_from_a_callback(lab: Any) -> None:
    """A future's callback may shut the executor down: it does not wait there for itself."""
    executor = lab.executor()
    ended = lab.event()
    future = executor.add_task(partial(work.double, 1))

    def callback(_: Any) -> None:
        executor.shutdown(wait=True)
        ended.set()

    future.add_done_callback(callback)
    executor.execute_all()
    assert ended.wait(work.PATIENCE)


@over(CONCURRENT)
def test_shutdown_from_the_callback_of_a_task_that_the_caller_cancels(lab: Any) -> None:
    """Nor does it wait for the task whose callback it is, whatever thread that runs in."""
    executor = lab.executor(max_concurrency=1)
    started, gate, ended = lab.latch(), lab.latch(), lab.event()
    running = executor.submit(work.hold, started, gate)
    queued = executor.submit(work.double, 1)
    queued.add_done_callback(lambda _: (executor.shutdown(wait=True), ended.set()))
    started.wait()
    lab.thread(queued.cancel)
    assert ended.wait(work.PATIENCE)
    gate.set()
    assert running.result(work.PATIENCE) == "held"


@contextmanager
def _before_the_first_wake(executor: Any, interlude: Callable[[], object]) -> Iterator[None]:
    """Have something happen when a task is in and the workers have not been told."""
    idle = inside.monitor(executor).idle
    wake = idle.wake

    def late(consumer: Any) -> None:
        idle.wake = wake
        interlude()
        wake(consumer)

    idle.wake = late
    yield
    assert idle.wake is wake


@over(CONCURRENT)
def test_shutdown_while_another_thread_submits(lab: Any) -> None:
    """What another thread has put in is waited for, though no worker knows of it yet."""
    executor = lab.executor()
    entered, gate, ended = lab.event(), lab.event(), lab.event()
    futures: list[Any] = []
    with _before_the_first_wake(executor, lambda: (entered.set(), gate.wait())):
        submitter = lab.thread(lambda: futures.append(executor.submit(work.double, 4)))
        assert entered.wait(work.PATIENCE)
        lab.thread(lambda: (executor.shutdown(), ended.set()))
        work.until(lambda: inside.monitor(executor).gate.closed)
        assert not ended.wait(0.2)
        gate.set()
        assert ended.wait(work.PATIENCE)
    submitter.join(work.PATIENCE)
    assert futures[0].result(0) == 8


@over(CONCURRENT)
def test_shutdown_from_a_signal_handler_on_top_of_submit(lab: Any) -> None:
    """It does not wait there: the workers could only be told by what it has interrupted. The task runs all the same."""
    executor = lab.executor()
    with _before_the_first_wake(executor, executor.shutdown):
        future = executor.submit(work.double, 4)
    assert future.result(work.PATIENCE) == 8
    executor.shutdown()
