"""`parallel_exec._core.job`: a task's record, transition by transition, without a scheduler."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

import pytest
import work
from bare_jobs import live_job, new_job

from parallel_exec._core.batch import Batch
from parallel_exec._core.job import PLACES, settle_unwatched
from parallel_exec._core.phase import Phase
from parallel_exec._outcome import Failure, Success


def test_the_way_to_a_success() -> None:
    """Each step is one call; the attempt's number, its worker and its times are those of the step."""
    job = new_job()
    assert job.phase == Phase.NEW
    job.added(3 << PLACES, 9.0, None)
    job.queued()
    assert (job.phase, job.number(), job.queued_at, job.id) == (Phase.QUEUED, 3, 9.0, "double-3")
    job.handed_out()
    assert (job.phase, job.running(), job.done()) == (Phase.HANDED_OUT, False, False)
    assert job.begin("slot", "w1", 10.0) == 1
    assert (job.phase, job.running(), job.slot) == (Phase.LIVE, True, "slot")
    job.claimed()
    assert job.phase == Phase.SETTLING
    job.decide(12.0)
    assert (job.phase, job.done()) == (Phase.DONE, False)  # decided, and not told yet
    job.settle(Success(2), False)
    assert (job.result(0), job.succeeded(), job.cancelled()) == (2, True, False)
    result = job.task_result()
    assert (result.queued_for, result.duration) == (1.0, 2.0)
    [attempt] = job.attempts()
    assert (attempt.number, attempt.started_at, attempt.duration, attempt.worker) == (1, 10.0, 2.0, "w1")


def test_an_attempt_that_is_tried_again() -> None:
    """It waits, and is not running; the first start counts for how long the task took, the last worker for who did it."""
    job = live_job()
    error = OSError("not yet")
    job.claimed()
    job.end_attempt(error, 11.0)
    timer: Any = object()
    job.back_off(timer)
    assert (job.phase, job.running(), job.slot, job.backoff_timer) == (Phase.BACKING_OFF, False, None, timer)
    job.backoff_over()
    job.queued()
    job.handed_out()
    assert job.begin("other", "w2", 20.0) == 2
    job.decide(23.0)
    job.settle(Success(2), False)
    first, second = job.attempts()
    assert (first.error, first.duration, first.worker) == (error, 1.0, "w1")
    assert (second.error, second.duration, second.worker) == (None, 3.0, "w2")
    assert job.task_result().duration == 13.0


def test_a_clock_that_starts_anew() -> None:
    """An attempt that was lost and begun again is the same attempt, with less time behind it."""
    job = live_job()
    job.restart_clock("w2", 15.0)
    job.decide(16.0)
    job.settle(Success(2), False)
    [attempt] = job.attempts()
    assert (attempt.number, attempt.started_at, attempt.worker) == (1, 15.0, "w2")


def test_a_failure() -> None:
    """It is the result, and what was tried is told."""
    job = live_job()
    error = work.CodedError(1)
    job.claimed()
    job.end_attempt(error, 11.0)
    job.decide()
    job.settle(Failure(error), False)
    assert job.exception(0) is error
    assert not job.succeeded()
    assert [attempt.error for attempt in job.attempts()] == [error]
    assert job.task_result().error is error


def test_the_first_word_on_its_end_counts() -> None:
    """Who aborts what has timed out changes nothing."""
    job = live_job()
    first = Failure(TimeoutError())
    job.override_with(first)
    job.override_with(Failure(CancelledError()))
    assert job.override is first


def test_a_task_that_is_told_to_end_sees_it() -> None:
    """As it does when its attempt is over, or another one runs."""
    job = live_job()
    is_unwanted, another_is = job.unwanted(1), job.unwanted(2)
    assert not is_unwanted()
    assert another_is()
    job.override_with(Failure(CancelledError()))
    assert is_unwanted()


def test_a_cancelled_one_is_told_so() -> None:
    """It has no result; who waits for it as for any future hears of it."""
    job = new_job()
    heard: list[Future[Any]] = []
    job.add_done_callback(heard.append)
    job.queued()
    job.decide()
    job.settle(Failure(CancelledError()), True)
    assert (heard, job.cancelled(), job.attempts()) == ([job], True, ())
    with pytest.raises(CancelledError):
        job.result(0)


def test_one_that_has_not_ended_has_no_result() -> None:
    """It says so."""
    with pytest.raises(InvalidStateError, match="has not ended"):
        live_job().task_result()


def test_a_batch_is_joined_and_left_once() -> None:
    """When it ends, or when it is not in after all."""
    batch = Batch()
    job, other = new_job(), new_job()
    for each in (job, other):
        each.added(1 << PLACES, 9.0, batch)
    other.forget_batch()
    other.forget_batch()
    assert not batch.is_over()
    job.decide()
    job.settle(Success(2), False)
    assert list(job.leave_batch()) == []
    assert list(job.leave_batch()) == []
    assert batch.is_over()
    assert (batch.ended, job.batch, other.batch) == ([job], None, None)


def test_a_place_is_taken_once() -> None:
    """Whoever asks first for the number of one that has none gives it the next place."""
    job = new_job()
    assert (job.number(), job.number(), job.id, job.sequence) == (1, 1, "double-1", 1 << PLACES)


def test_success_lets_the_call_go_and_failure_keeps_it() -> None:
    """What has succeeded keeps no arguments; what has failed can be added again."""
    good, bad = live_job(), live_job()
    for job in (good, bad):
        job.packed(b"payload")
        job.decide(11.0)
    good.settle(Success(2), False)
    bad.settle(Failure(OSError()), False)
    assert (good.args, good.payload, good.context, good.slot) == (None, None, None, None)
    assert bad.args == (1,)
    assert bad.payload is None
    assert isinstance(bad.exception(0), OSError)
    assert bad.task.execute() == 2
    with pytest.raises(RuntimeError):
        good.task.execute()


def test_settling_many_at_once() -> None:
    """Those for which somebody waits are left for `settle`, each by itself."""
    alone, watched = live_job(), live_job()
    watched.add_done_callback(print)
    for job in (alone, watched):
        job.decide(11.0)
    left = settle_unwatched([(alone, Success(2)), (watched, Success(3))])
    assert left == [(watched, Success(3))]
    assert (alone.result(0), watched.done()) == (2, False)


def test_who_waits_for_what_is_settled_in_bulk() -> None:
    """A thread that waits on a lock of its own goes on when the future has settled and it is told so."""
    job = live_job()
    job.owner.enter_wait = lambda _: False  # type: ignore[method-assign]
    thread = threading.Thread(target=job.result)
    thread.start()
    work.until(lambda: job._parked)
    job.decide(11.0)
    assert settle_unwatched([(job, Success(2))]) == []
    job.wake_parked()
    job.wake_parked()
    thread.join(work.PATIENCE)
    assert not thread.is_alive()
