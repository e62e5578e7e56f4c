"""What every back end says of the tasks that it runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import work
from backend_kinds import ALL, CONCURRENT, over

from parallel_exec import RunningTask, Task


@over(CONCURRENT)
def test_what_runs(lab: Any) -> None:
    """`running()` has each task that runs, with its attempt, its worker and how long it has run; and no other."""
    executor = lab.executor(max_concurrency=1)
    started, gate = lab.latch(), lab.latch()
    held = executor.options(id="held").submit(work.hold, started, gate)
    waiting = executor.options(id="waiting").submit(work.double, 1)
    started.wait()
    work.until(executor.running)
    (task,) = executor.running()
    assert isinstance(task, RunningTask)
    assert (task.id, task.attempt) == ("held", 1)
    assert task.worker
    assert 0 <= task.seconds < work.PATIENCE
    assert executor.running()[0].seconds >= task.seconds
    gate.set()
    assert held.result() == "held"
    assert waiting.result() == 2
    work.until(lambda: not executor.running())
    (attempt,) = held.task_result().attempts
    assert attempt.worker == task.worker


@over(ALL)
def test_nothing_runs(lab: Any) -> None:
    """Before the first task and after the last one there is nothing."""
    executor = lab.executor()
    assert executor.running() == []
    executor.add_task(Task(work.double, 1))
    executor.execute_all()
    assert executor.running() == []


def fail_once_then_hold(log: work.Log, started: work.Latch, gate: work.Latch) -> object:
    """Fail the first time, and get stuck the second."""
    work.flaky(log, 1)
    return work.hold(started, gate)


@over(CONCURRENT)
def test_the_attempt_of_what_runs(lab: Any) -> None:
    """A retry is told by its number."""
    executor = lab.executor(retry_count=1)
    started, gate = lab.latch(), lab.latch()
    future = executor.submit(fail_once_then_hold, lab.log(), started, gate)
    started.wait()
    work.until(lambda: [task.attempt for task in executor.running()] == [2])
    gate.set()
    assert future.result() == "held"


@over(("process",))
def test_an_item_of_a_map(lab: Any) -> None:
    """Of a `map` it is the item that runs, not the row of them that a worker has."""
    executor = lab.executor(max_concurrency=1)
    started, gate = lab.latch(), lab.latch()
    results = executor.options(id="m").map(work.call, [tuple, partial(work.hold, started, gate), tuple])
    started.wait()
    work.until(executor.running)
    assert [task.id for task in executor.running()] == ["m-1"]
    gate.set()
    assert list(results) == [(), "held", ()]
