"""`parallel_exec.ledger`: tasks that wait for their own pool, and would wait for ever, are told."""

from __future__ import annotations

import threading
from concurrent.futures import TimeoutError as WaitTimeout
from typing import Any

import pytest
import work

from parallel_exec import ParallelExecError, TaskFuture

NEVER = 600.0


# ── waiting for one's own pool ──────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_waits_for_its_own_pool_in_vain_is_told(lab: Any) -> None:
    """With every slot taken by a task that waits for another one of the pool, the last to wait gets an error."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    with pytest.raises(ParallelExecError, match=r"would wait for ever .* raise max_concurrency"):
        executor.submit(lambda: executor.submit(int).result()).result()


def test_the_last_of_several_waiters_is_told(lab: Any) -> None:
    """While a slot can still make progress nobody is told, so one of two nested tasks succeeds."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    both = threading.Barrier(2)

    def outer() -> int:
        both.wait(work.PATIENCE)
        return int(executor.submit(work.double, 2).result())

    futures = [executor.submit(outer) for _ in range(2)]
    errors = [future.exception(work.PATIENCE) for future in futures]
    assert sorted(type(error) for error in errors if error) == [ParallelExecError]
    assert [future.result() for future, error in zip(futures, errors) if not error] == [4]


def test_a_wait_with_a_limit_is_let_be(lab: Any) -> None:
    """A task may wait in vain if it waits for a limited time."""
    executor = lab.executor(max_concurrency=1, retry_count=0)

    def outer() -> str:
        try:
            executor.submit(int).result(0.05)
        except WaitTimeout:
            return "gave up"
        return "got it"

    assert executor.submit(outer).result() == "gave up"


def test_nested_tasks_with_room_to_spare(lab: Any) -> None:
    """A task may wait for another of its pool while a slot is free."""
    executor = lab.executor(max_concurrency=2)
    future: TaskFuture[int] = executor.submit(lambda: executor.submit(work.double, 2).result() + 1)
    assert future.result() == 5


def test_waiting_for_what_has_ended_is_no_deadlock(lab: Any) -> None:
    """A task may ask for the result of one that has ended, although every slot is taken."""
    executor = lab.executor(max_concurrency=1)
    first = executor.submit(work.double, 1)
    assert executor.submit(lambda: first.result() + 1).result() == 3


def test_adding_to_a_full_queue_from_inside_in_vain(lab: Any) -> None:
    """A task on the only slot that adds to a full queue is refused instead of hanging."""
    executor = lab.executor(max_concurrency=1, queue_size=1, retry_count=0)

    def outer() -> None:
        for _ in range(3):
            executor.submit(int)

    assert type(executor.submit(outer).exception(work.PATIENCE)).__name__ == "QueueFullError"


def test_adding_to_a_full_queue_from_a_callback(lab: Any) -> None:
    """A callback, which runs in the thread that would have to make room, is refused instead of hanging."""
    executor = lab.executor(max_concurrency=1, queue_size=1)
    gate = lab.event()
    future = executor.submit(gate.wait)
    work.until(lambda: executor.stats().queued == 0)
    outcome: list[str] = []

    def callback(_: Any) -> None:
        try:
            executor.submit(int)
        except Exception as error:
            outcome.append(type(error).__name__)

    future.add_done_callback(callback)
    queued = executor.submit(work.double, 1)
    gate.set()
    assert queued.result(work.PATIENCE) == 2
    assert outcome == ["QueueFullError"]
