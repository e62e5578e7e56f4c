"""The scheduler, step by step: a back end that only does what the test says shows every state change of a task."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import inside
import pytest
import work
from manual_backend import ManualBackend, ManualRunner

from parallel_exec import ParallelExecError, PerKey, TaskTimeoutError
from parallel_exec._core.phase import Phase
from parallel_exec._outcome import Failure, Success

NEVER = 600.0


@pytest.fixture
def executor(lab: Any) -> Any:
    """An executor that the test drives."""
    executor = lab.executor(backend=ManualBackend(), max_concurrency=2, retry_count=2, backoff=0.0)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)
    inside.runner(executor).give_up()


@pytest.fixture
def hand(executor: Any) -> ManualRunner:
    """By what the test drives it."""
    return inside.runner(executor)  # type: ignore[no-any-return]


# ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_states_of_a_task_that_succeeds(executor: Any, hand: ManualRunner) -> None:
    """Queued and taken it is pending, then running, then finished."""
    future = executor.submit(int)
    assert not future.running()
    assert hand.take() is future
    assert not future.running()
    assert hand.begin(future) == 1
    assert future.running()
    hand.succeed(future, 5)
    assert future.done()
    assert future.result() == 5


def test_an_attempt_is_settled_by_one_caller(executor: Any, hand: ManualRunner) -> None:
    """Of several who report the same attempt, the first counts, and the others are told."""
    executor.submit(int)
    future = hand.start()
    assert hand.succeed(future, "first")
    assert not hand.succeed(future, "second")
    assert not hand.fail(future, OSError())
    assert future.result() == "first"


def test_a_report_on_an_earlier_attempt_is_dropped(executor: Any, hand: ManualRunner) -> None:
    """A late report of the first attempt does not settle the second."""
    executor.submit(int)
    future = hand.start()
    hand.fail(future, OSError())
    work.until(lambda: future.phase == Phase.QUEUED)
    hand.start()
    assert not hand.port.report(future, 1, Success("late"), time.monotonic())
    hand.succeed(future, "on time")
    assert future.result() == "on time"


def test_claim_is_had_once_by_many_threads(executor: Any, hand: ManualRunner) -> None:
    """However many threads claim the same attempt at once, one gets it."""
    for _ in range(50):
        executor.submit(int)
        future = hand.start()
        barrier = threading.Barrier(4)
        got: list[bool] = []

        def claim(future: Any = future, barrier: Any = barrier, got: list[bool] = got) -> None:
            barrier.wait()
            got.append(hand.port.claim(future, 1))

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False, False, False, True]
        hand.port.settle(future, Success(None), time.monotonic())


def test_a_retried_task_keeps_its_place(executor: Any, hand: ManualRunner) -> None:
    """A task that comes back from its backoff goes before those that came after it."""
    first, second, third = (executor.submit(int) for _ in range(3))
    assert hand.start() is first
    hand.fail(first, OSError())
    work.until(lambda: first.phase == Phase.QUEUED)
    assert [hand.take(), hand.take(), hand.take()] == [first, second, third]


def test_what_is_requeued_keeps_its_place(executor: Any, hand: ManualRunner) -> None:
    """What was taken and never began goes back to where it was, and is charged no attempt."""
    futures = [executor.submit(int) for _ in range(4)]
    taken = [hand.take() for _ in range(3)]
    hand.out.clear()
    hand.port.finish_overridden(hand.port.requeue([taken[2], taken[0], taken[1]]))
    assert [hand.take() for _ in range(4)] == futures
    assert hand.begin(futures[0]) == 1


def test_what_is_requeued_may_never_be_granted_by_now(lab: Any) -> None:
    """A limit was lowered, or is of another kind, while the back end had the task: it fails, and others go on."""
    executor = lab.executor(backend=ManualBackend(), max_concurrency=4, limits={"db": 3, "host": 1})
    hand = inside.runner(executor)
    futures = [
        executor.options(needs={name: amount}).submit(int) for name, amount in [("db", 3), ("host", 1), ("db", 2)]
    ]
    taken = [hand.take(), hand.take()]
    executor.limits["db"] = 2
    executor.limits["host"] = PerKey(1)
    hand.out.clear()
    hand.port.finish_overridden(hand.port.requeue(taken))
    assert [type(future.exception()) for future in futures[:2]] == [ValueError, ValueError]
    assert hand.take() is futures[2]
    executor.shutdown(wait=False, cancel_futures=True)
    hand.give_up()


def test_the_timeout_is_armed_when_the_attempt_begins(executor: Any, hand: ManualRunner) -> None:
    """The slot's timer is due one timeout after the start."""
    future = executor.options(timeout=7.0).submit(int)
    hand.take()
    assert hand.timer.armed is None
    hand.begin(future)
    assert hand.timer.armed == pytest.approx(future.started_at + 7.0)


def test_a_timer_that_is_early_is_armed_again(executor: Any, hand: ManualRunner) -> None:
    """When the timer of an earlier attempt goes off, the one that runs now keeps its full time."""
    executor.options(timeout=7.0).submit(int)
    future = hand.start()
    hand.timer.armed = None
    hand.port.expire(hand, future)
    assert hand.stopped == []
    assert hand.timer.armed == pytest.approx(future.started_at + 7.0)


def test_an_expired_attempt_is_stopped(executor: Any, hand: ManualRunner) -> None:
    """Past its time the attempt is stopped with a `TaskTimeoutError` of its number."""
    executor.options(timeout=7.0).submit(int)
    future = hand.start()
    future.started_at -= 8.0
    hand.port.expire(hand, future)
    ((stopped, number, error),) = hand.stopped
    assert (stopped, number) == (future, 1)
    assert isinstance(error, TaskTimeoutError)


def test_a_timer_without_an_attempt_does_nothing(executor: Any, hand: ManualRunner) -> None:
    """A timer that goes off between two attempts, or for another slot, stops nothing."""
    hand.port.expire(hand, None)
    executor.options(timeout=7.0).submit(int)
    future = hand.start()
    future.started_at -= 8.0
    hand.port.expire(ManualRunner(hand.port, 1), future)
    hand.succeed(future)
    hand.port.expire(hand, future)
    assert hand.stopped == []


# ── ends from outside ───────────────────────────────────────────────────────────────────────────────────────────────


def test_cancelling_what_can_be_recalled(executor: Any, hand: ManualRunner) -> None:
    """A task that was handed out and can be taken back is cancelled."""
    future = executor.submit(int)
    hand.take()
    assert future.cancel()
    assert future.cancelled()


def test_cancelling_what_cannot_be_recalled(executor: Any, hand: ManualRunner) -> None:
    """A task that was handed out and may have begun is not cancelled, and runs."""
    hand.recalled = False
    future = executor.submit(int)
    hand.take()
    assert not future.cancel()
    assert hand.begin(future) == 1


def test_aborting_what_was_handed_out(executor: Any, hand: ManualRunner) -> None:
    """A task that is aborted between being taken and beginning never begins."""
    hand.recalled = False
    future = executor.submit(int)
    hand.take()
    assert future.abort()
    assert hand.begin(future) == 0
    assert future.cancelled()
    assert future.task_result().attempts == ()


def test_aborting_what_is_requeued(executor: Any, hand: ManualRunner) -> None:
    """A task that is aborted while it is handed out, and requeued then, ends there."""
    hand.recalled = False
    future = executor.submit(int)
    hand.take()
    assert future.abort()
    hand.port.finish_overridden(hand.port.requeue([future]))
    assert future.cancelled()
    assert executor.stats().queued == 0


def test_an_aborted_attempt_is_not_retried(executor: Any, hand: ManualRunner) -> None:
    """The failure of an attempt that was stopped ends the task as cancelled."""
    executor.submit(int)
    future = hand.start()
    assert future.abort()
    ((_, _, error),) = hand.stopped
    assert isinstance(error, CancelledError)
    hand.fail(future, error)
    assert future.cancelled()
    assert len(future.task_result().attempts) == 1


def test_an_attempt_that_finishes_before_it_is_stopped(executor: Any, hand: ManualRunner) -> None:
    """An abort that comes too late to stop the attempt does not undo its success."""
    executor.submit(int)
    future = hand.start()
    assert future.abort()
    hand.succeed(future, "done")
    assert future.result() == "done"


def test_an_override_during_settling_ends_the_backoff(executor: Any, hand: ManualRunner) -> None:
    """A task that is aborted between the end of an attempt and its backoff has no further attempt."""
    executor.submit(int)
    future = hand.start()
    assert hand.port.claim(future, 1)
    assert future.abort()
    hand.port.settle(future, Failure(OSError()), time.monotonic())
    assert future.cancelled()


def test_a_refused_task_fails(executor: Any, hand: ManualRunner) -> None:
    """A task that the back end cannot run ends with the reason, without an attempt."""
    future = executor.submit(int)
    hand.take()
    hand.port.reject(future, ParallelExecError("no way"))
    assert str(future.exception()) == "no way"
    assert future.task_result().attempts == ()


def test_fail_all_ends_what_waits(lab: Any) -> None:
    """When nothing can run any more, tasks that are queued or back off end with the reason, and new ones are refused."""
    executor = lab.executor(backend=ManualBackend(), backoff=NEVER, max_backoff=NEVER)
    hand = inside.runner(executor)
    backing_off = executor.submit(int)
    hand.fail(hand.start(), OSError())
    queued = executor.submit(int)
    hand.port.fail_all(ParallelExecError("broken"))
    assert [str(future.exception()) for future in (backing_off, queued)] == ["broken", "broken"]
    with pytest.raises(ParallelExecError, match="broken"):
        executor.submit(int)
    executor.shutdown()


# ── user code and our lock ──────────────────────────────────────────────────────────────────────────────────────────


def _others_can_use(executor: Any) -> bool:
    other = threading.Thread(target=executor.stats)
    other.start()
    other.join(work.PATIENCE)
    return not other.is_alive()


@pytest.mark.parametrize("how", ["succeed", "fail", "cancel", "reject", "fail_all", "shutdown"])
def test_callbacks_run_without_our_lock(lab: Any, how: str) -> None:
    """However a task ends, its callbacks run while another thread can use the executor."""
    executor = lab.executor(backend=ManualBackend(), retry_count=0)
    hand = inside.runner(executor)
    future = executor.submit(int)
    seen: list[bool] = []
    future.add_done_callback(lambda _: seen.append(_others_can_use(executor)))
    if how in ("succeed", "fail"):
        hand.start()
        hand.succeed(future) if how == "succeed" else hand.fail(future, OSError())
    elif how == "reject":
        hand.take()
        hand.port.reject(future, OSError())
    elif how == "cancel":
        future.cancel()
    elif how == "fail_all":
        hand.port.fail_all(ParallelExecError("broken"))
    else:
        executor.shutdown(wait=False, cancel_futures=True)
    future.exception() if not future.cancelled() else None
    assert seen == [True]


def test_hooks_run_without_our_lock(lab: Any) -> None:
    """Every event is told while another thread can use the executor."""
    seen: list[bool] = []
    executor = lab.executor(backend=ManualBackend(), on_event=lambda _: seen.append(_others_can_use(executor)))
    hand = inside.runner(executor)
    executor.submit(int)
    future = hand.start()
    hand.fail(future, OSError())
    work.until(lambda: future.phase == Phase.QUEUED)
    hand.succeed(hand.start())
    assert seen == [True] * 5
