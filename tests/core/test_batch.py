"""`parallel_exec._core.batch` and `execute_all`: a run is over when everything that joined it has left."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as WaitTimeout
from functools import partial
from typing import Any

import pytest
import work

from parallel_exec import Task, TaskSerializationError
from parallel_exec._core.batch import Batch, Batches


class Member:
    """As much of a future as a run looks at."""

    def __init__(self) -> None:
        self.ended = False

    def done(self) -> bool:
        """Return whether it has ended."""
        return self.ended


def _run(members: int) -> tuple[Batch, list[Any]]:
    run = Batch()
    joined: list[Any] = [Member() for _ in range(members)]
    for member in joined:
        run.join(member)
    return run, joined


def test_an_empty_run_is_over() -> None:
    """A run that nothing joined is over."""
    run = Batch()
    assert run.is_over()
    run.wait()


def test_over_when_the_last_has_left() -> None:
    """As long as one is missing the run is not over."""
    run, (first, second) = _run(2)
    run.leave(second, True)
    assert not run.is_over()
    run.leave(first, True)
    assert run.is_over()
    assert run.ended == [second, first]


def test_who_joins_late_is_waited_for() -> None:
    """A member that joins just before the last one leaves keeps the run open."""
    run, (first,) = _run(1)
    late: Any = Member()
    run.join(late)
    run.leave(first, True)
    assert not run.is_over()
    run.leave(late, True)
    assert run.is_over()


def test_waiting_has_a_limit() -> None:
    """`wait(until)` gives up when the time has come."""
    run, _ = _run(1)
    with pytest.raises(WaitTimeout):
        run.wait(time.monotonic() + 0.02)


def test_waiting_ticks() -> None:
    """While it waits, `wait` calls `tick` in the waiting thread."""
    run, (member,) = _run(1)
    ticks: list[str] = []

    def tick() -> None:
        ticks.append(threading.current_thread().name)
        run.leave(member, True)

    run.wait(tick=tick)
    assert ticks == [threading.current_thread().name]


def test_fail_fast_names_the_rest_once() -> None:
    """The first failure of a run that fails fast gives those who are not done, later ones nobody."""
    run, (done, failed, running, queued) = _run(4)
    assert list(run.fail_fast()) == []
    done.ended = True
    run.leave(done, True)
    failed.ended = True
    assert list(run.leave(failed, False)) == [running, queued]
    assert list(run.leave(running, False)) == []


def test_only_one_run_at_a_time() -> None:
    """A run that was begun cannot be begun again before it has ended."""
    batches = Batches(threading.RLock())
    mine, other = object(), object()
    batches.reserve(mine)
    with pytest.raises(RuntimeError, match="joins its run"):
        batches.reserve(other)
    assert not batches.is_mine(mine)
    batch, _ = batches.begin(False)
    assert batches.is_mine(mine)
    assert not batches.is_mine(other)
    batches.end(lambda: None)
    assert not batches.is_mine(mine)
    batches.reserve(other)
    assert batches.begin(False)[0] is not batch


def test_what_was_reserved_can_be_released() -> None:
    """A run that could not begin leaves what is staged to the next; and nobody releases what another has reserved."""
    batches = Batches(threading.RLock())
    mine, other = object(), object()
    staged = batches.current
    batches.reserve(mine)
    batches.release(other)
    with pytest.raises(RuntimeError):
        batches.reserve(other)
    batches.release(mine)
    batches.reserve(other)
    assert batches.begin(False)[0] is staged


# ── execute_all ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_results_during_the_run(lab: Any) -> None:
    """`results()` has what is finished, while the rest still runs."""
    executor = lab.executor(max_concurrency=2)
    gate = lab.event()
    executor.add_task(Task(partial(work.double, 1), id="quick"))
    executor.add_task(Task(gate.wait, id="slow"))
    assert executor.results() == []
    runner = lab.thread(executor.execute_all)
    work.until(lambda: len(executor.results()) == 1)
    assert [result.task.id for result in executor.results()] == ["quick"]
    gate.set()
    runner.join(work.PATIENCE)
    assert [result.task.id for result in executor.results()] == ["quick", "slow"]


def test_results_of_the_last_run_stay(lab: Any) -> None:
    """Between two runs `results()` tells of the last one, also when tasks for the next are staged."""
    executor = lab.executor()
    executor.add_task(Task(int, id="old"))
    executor.execute_all()
    executor.add_task(Task(int, id="new"))
    assert [result.task.id for result in executor.results()] == ["old"]


def test_execute_all_inside_a_task_is_refused(lab: Any) -> None:
    """A task that runs all tasks of its own executor would wait for itself."""
    executor = lab.executor(retry_count=0)
    executor.add_task(executor.execute_all)
    (result,) = executor.execute_all()
    assert isinstance(result.error, RuntimeError)
    assert "from inside a task of the same executor" in str(result.error)


def test_two_runs_at_once_are_refused(lab: Any) -> None:
    """While one thread is in `execute_all`, a second one is told what to do instead."""
    executor = lab.executor()
    started, gate = lab.event(), lab.event()

    def hold() -> None:
        started.set()
        gate.wait()

    executor.add_task(hold)
    lab.thread(executor.execute_all)
    started.wait()
    with pytest.raises(RuntimeError, match=r"add_task\(\) joins its run"):
        executor.execute_all()


def test_a_task_added_from_another_thread_joins_the_run(lab: Any) -> None:
    """`add_task` while `execute_all` runs elsewhere adds to that run."""
    executor = lab.executor()
    started, gate = lab.event(), lab.event()

    def hold() -> str:
        started.set()
        gate.wait()
        return "held"

    executor.add_task(hold)
    results: list[Any] = []
    runner = lab.thread(lambda: results.extend(executor.execute_all()))
    started.wait()
    assert executor.add_task(partial(work.double, 2)).result(work.PATIENCE) == 4
    gate.set()
    runner.join(work.PATIENCE)
    assert [result.result for result in results] == ["held", 4]


def test_staged_tasks_stay_staged_after_a_run(lab: Any) -> None:
    """What is added after a run waits for the next one, as long as nothing was submitted."""
    executor = lab.executor()
    executor.add_task(int)
    executor.execute_all()
    executor.add_task(int)
    assert executor.stats().queued == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"deadline": 0}, ValueError, "deadline must be more than 0"),
        ({"deadline": "10"}, TypeError, "deadline takes seconds"),
        ({"order": "sorted"}, ValueError, 'order takes "submitted" or "completed"'),
    ],
)
def test_wrong_arguments_are_refused(lab: Any, arguments: Any, error: type[Exception], message: str) -> None:
    """A wrong argument is refused before anything runs."""
    executor = lab.executor()
    executor.add_task(int)
    with pytest.raises(error, match=message):
        executor.execute_all(**arguments)
    assert executor.stats().queued == 1


def test_execute_all_after_shutdown_is_refused(lab: Any) -> None:
    """An executor that was shut down runs nothing any more."""
    executor = lab.executor()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.execute_all()


def test_a_second_run_while_submitted_tasks_run(lab: Any) -> None:
    """`execute_all` waits for the tasks that were added, not for what was submitted beside them."""
    executor = lab.executor(max_concurrency=2)
    gate = lab.event()
    submitted = executor.submit(gate.wait)
    executor.add_task(partial(work.double, 1))
    assert [result.result for result in executor.execute_all()] == [2]
    assert not submitted.done()


@pytest.mark.parametrize("way", ["callback", "hook"])
def test_execute_all_in_a_callback_is_refused(lab: Any, way: str) -> None:
    """The thread that calls it would wait for itself."""
    errors: list[str] = []

    def run(_: object) -> None:
        try:
            executor.execute_all()
        except RuntimeError as error:
            errors.append(str(error))

    executor = lab.executor(max_concurrency=1, on_event=(lambda _: errors or run(_)) if way == "hook" else None)
    gate = lab.event()
    future = executor.submit(gate.wait)
    if way == "callback":
        future.add_done_callback(run)
    gate.set()
    work.until(lambda: bool(errors))
    assert "from inside a task of the same executor, or a callback or event hook" in errors[0]


def test_fail_fast_after_a_task_was_cancelled_while_staged(lab: Any) -> None:
    """What ended before the run began does not switch it off."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    executor.add_task(int).cancel()
    executor.add_task(partial(work.fail, ValueError()))
    for _ in range(5):
        executor.add_task(int)
    errors = [type(result.error) for result in executor.execute_all(fail_fast=True)]
    assert errors == [CancelledError, ValueError, *[CancelledError] * 5]


def test_fail_fast_when_one_failed_while_staged(lab: Any) -> None:
    """One that cannot even be sent is the first failure: the rest never runs."""
    executor = lab.executor(backend="process", max_concurrency=1, retry_count=0)
    log = lab.log()
    executor.add_task(partial(work.double, threading.Lock()))
    executor.add_task(partial(work.note, log, "ran"))
    errors = [type(result.error) for result in executor.execute_all(fail_fast=True)]
    assert errors == [TaskSerializationError, CancelledError]
    assert log.lines() == []


def test_fail_fast_takes_no_cancel_for_a_failure(lab: Any) -> None:
    """Who cancels one task of a run means that one."""
    executor = lab.executor(max_concurrency=1)
    gate = lab.event()
    executor.add_task(gate.wait)
    futures = [executor.add_task(int) for _ in range(4)]
    runner = lab.thread(partial(executor.execute_all, fail_fast=True))
    work.until(lambda: executor.stats().running == 1)
    assert futures[1].cancel()
    gate.set()
    runner.join(work.PATIENCE)
    assert [future.cancelled() for future in futures] == [False, True, False, False]


def test_a_bar_that_cannot_be_had_is_asked_for_in_time(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tqdm nothing has begun when the error comes, and nothing is lost."""
    executor = lab.executor()
    executor.add_task(int)
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    with pytest.raises(ModuleNotFoundError, match="tqdm"):
        executor.execute_all(progress=True)
    assert [result.unwrap() for result in executor.execute_all()] == [0]


def test_results_leave_out_what_was_cancelled(lab: Any) -> None:
    """By its future, or because another failed in a run that fails fast: it has not finished."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    for name, task, priority in (("good", int, 3), ("bad", partial(work.fail, OSError()), 2), ("late", int, 1)):
        executor.add_task(Task(task, id=name, priority=priority))
    executor.add_task(Task(int, id="unwanted", priority=4)).cancel()
    results = executor.execute_all(fail_fast=True)
    assert [result.task.id for result in results if result.cancelled] == ["late", "unwanted"]
    assert [result.task.id for result in executor.results()] == ["good", "bad"]


def test_results_after_a_deadline(lab: Any) -> None:
    """What it cut off has a result that says so."""
    executor = lab.executor(max_concurrency=1)
    executor.add_task(Task(int, id="quick", priority=1))
    executor.add_task(Task(lab.event().wait, id="slow"))
    results = executor.execute_all(deadline=0.2)
    assert executor.results() == results
    assert [result.cancelled for result in results] == [False, False]
