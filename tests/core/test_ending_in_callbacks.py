"""Callers that end a task or a pool while they are in the middle of something else: callbacks, errors being handled."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import work

from parallel_exec import ParallelExecutor, ThreadBackend
from parallel_exec._sync.threads import launch


def test_a_caller_that_drains_the_pool_waits_for_it_afterwards() -> None:
    """Cancelling the last task of a closed pool does not make the caller's own later `shutdown` return early."""
    gate, cancelled, over = threading.Event(), threading.Event(), threading.Event()
    executor = ParallelExecutor(max_concurrency=1, backend=ThreadBackend(initializer=gate.wait))

    def end() -> None:
        future = executor.submit(int)
        executor.shutdown(wait=False)
        assert future.cancel()
        cancelled.set()
        executor.shutdown()
        over.set()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    assert cancelled.wait(work.PATIENCE)
    assert not over.wait(0.2)
    gate.set()
    assert over.wait(work.PATIENCE)
    assert executor.stats().workers == 0


def test_a_worker_that_ends_another_pools_task() -> None:
    """Within the callback of that task it is still known as the worker that it is, and does not wait for itself."""
    over = threading.Event()
    with ParallelExecutor(max_concurrency=1) as first, ParallelExecutor(max_concurrency=1) as second:
        first.pause()
        waiting = first.submit(int)
        waiting.add_done_callback(lambda _: (second.shutdown(wait=True), over.set()))
        gate = threading.Event()
        second.submit(gate.wait).add_done_callback(lambda _: waiting.cancel())
        gate.set()
        assert over.wait(work.PATIENCE)


def test_a_callback_in_the_callers_thread_may_wait_for_room() -> None:
    """A callback that the caller's `cancel` calls may submit to a full queue: the workers make room."""
    with ParallelExecutor(max_concurrency=1, queue_size=1) as executor:
        entered, gate = threading.Event(), threading.Event()
        executor.submit(lambda: (entered.set(), gate.wait()))
        assert entered.wait(work.PATIENCE)
        queued = executor.submit(int)
        futures: list[Any] = []

        def submit_two(_: object) -> None:
            futures.append(executor.submit(work.double, 1))
            gate.set()
            futures.append(executor.submit(work.double, 2))

        queued.add_done_callback(submit_two)
        assert queued.cancel()
        assert [future.result(work.PATIENCE) for future in futures] == [2, 4]


class Unstartable(threading.Thread):
    """A thread for which the system has no room."""

    def start(self) -> None:
        """Fail as `Thread.start` does."""
        raise RuntimeError("can't start new thread")


def test_no_thread_while_an_error_is_handled() -> None:
    """The error of the start is told, at once, not the one that is being handled."""
    try:
        raise ValueError
    except ValueError:
        with pytest.raises(RuntimeError, match="new thread"):
            launch(Unstartable())
