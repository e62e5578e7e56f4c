"""`ParallelExecutor`'s front: the way in, the queue seen from outside, `with`, and what it refuses."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import CancelledError, Executor
from functools import partial
from typing import Any

import pytest
import work

from parallel_exec import ParallelExecutor, Task, TaskQueue, ThreadBackend


def test_it_is_a_stdlib_executor() -> None:
    """Whoever checks for the stdlib's type is content."""
    assert issubclass(ParallelExecutor, Executor)


@pytest.mark.parametrize("method", ["submit", "map"])
def test_a_call_without_a_function(lab: Any, method: str) -> None:
    """Python's own message names the executor's method."""
    with pytest.raises(TypeError, match=rf"^(ParallelExecutor\.)?{method}\(\) missing 1 required"):
        getattr(lab.executor(), method)()


def test_the_example_of_the_documentation(lab: Any) -> None:
    """Adding tasks and running them gives a result for each, in order."""
    with lab.executor(max_concurrency=8, timeout=30, retry_count=2) as executor:
        for number in range(5):
            executor.add_task(Task(partial(work.double, number), id=str(number), priority=number))
        results = executor.execute_all()
    assert [(result.task.id, result.result) for result in results] == [(str(n), 2 * n) for n in range(5)]


def test_a_bare_callable_is_a_task(lab: Any) -> None:
    """`add_task` takes a callable as well as a `Task`."""
    executor = lab.executor()
    future = executor.add_task(int)
    executor.execute_all()
    assert future.result() == 0


@pytest.mark.parametrize("task", [None, 3, "task", work.double(2)])
def test_what_is_no_task_is_refused(lab: Any, task: Any) -> None:
    """The message says what may be added."""
    with pytest.raises(TypeError, match=r"takes a .*callable"):
        lab.executor().add_task(task)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_wrong_size_is_refused(lab: Any, limit: Any, error: type[Exception]) -> None:
    """`resize` checks as the config does."""
    with pytest.raises(error, match="max_concurrency"):
        lab.executor().resize(limit)


def test_it_cannot_be_pickled(lab: Any) -> None:
    """An executor stays in its process, and says what to do instead."""
    with pytest.raises(TypeError, match="make a new one in the process"):
        pickle.dumps(lab.executor())


def test_a_backend_serves_one_executor(lab: Any) -> None:
    """A back end object cannot be shared."""
    backend = ThreadBackend()
    lab.executor(backend=backend)
    with pytest.raises(RuntimeError, match="make a new one for each"):
        ParallelExecutor(backend=backend)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initializer": 3}, TypeError, "initializer takes a callable"),
        ({"max_abandoned": -1}, ValueError, "max_abandoned must be at least 0"),
        ({"max_abandoned": "many"}, TypeError, "max_abandoned takes a whole number"),
    ],
)
def test_wrong_arguments_of_the_thread_backend(arguments: Any, error: type[Exception], message: str) -> None:
    """A back end refuses at once what it cannot use."""
    with pytest.raises(error, match=message):
        ThreadBackend(**arguments)


def test_what_add_rejects_leaves_no_trace(lab: Any) -> None:
    """A task that is refused at the door does not count."""
    executor = lab.executor()
    with pytest.raises(TypeError):
        executor.add_task("no task")
    with pytest.raises(TypeError):
        executor.submit("no callable")
    assert executor.stats().queued == 0
    assert executor.add_task(Task(int)).task.execute is int


# ── with ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_waits_for_what_was_submitted(lab: Any) -> None:
    """Leaving the block waits, as with the stdlib's pools."""
    with lab.executor() as executor:
        future = executor.submit(work.span, lab.log(), 0.05)
    assert future.done()


def test_with_passes_exceptions_on(lab: Any) -> None:
    """An exception in the block is raised, after the tasks have ended."""
    executor = lab.executor()
    future = executor.submit(work.span, lab.log(), 0.05)
    with pytest.raises(ValueError, match="mine"), executor:
        raise ValueError("mine")
    assert future.done()


def test_with_after_an_interrupt_does_not_wait_for_what_is_queued(lab: Any) -> None:
    """`KeyboardInterrupt` in the block cancels what waits and gives up what runs."""
    executor = lab.executor(max_concurrency=1, timeout=None)
    started, gate = lab.event(), lab.event()

    def hold() -> None:
        started.set()
        gate.wait()

    futures = [executor.submit(hold), executor.submit(int)]
    started.wait()
    with pytest.raises(KeyboardInterrupt), executor:
        raise KeyboardInterrupt
    assert [future.cancelled() for future in futures] == [True, True]


# ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_queue_shows_what_waits(lab: Any) -> None:
    """`executor.queue` is a `TaskQueue` of what is staged, highest priority first."""
    executor = lab.executor()
    low, high = Task(int), Task(int, priority=5)
    executor.add_task(low)
    executor.add_task(high)
    queue = executor.queue
    assert isinstance(queue, TaskQueue)
    assert queue.size() == len(queue) == 2
    assert queue.peek() is high
    assert not queue.is_empty()


def test_what_is_enqueued_runs(lab: Any) -> None:
    """`queue.enqueue` adds a task to the run."""
    executor = lab.executor()
    executor.queue.enqueue(Task(partial(work.double, 2)))
    assert [result.result for result in executor.execute_all()] == [4]
    assert executor.queue.is_empty()


def test_what_is_no_task_cannot_be_enqueued(lab: Any) -> None:
    """The live queue is as strict as the other."""
    with pytest.raises(TypeError, match="enqueue takes a Task"):
        lab.executor().queue.enqueue(int)


def test_what_is_dequeued_ends_as_cancelled(lab: Any) -> None:
    """Who takes a task out has it; its future is cancelled, and so is its result."""
    executor = lab.executor()
    first, second = Task(int, priority=1), Task(int)
    future = executor.add_task(first)
    executor.add_task(second)
    assert executor.queue.dequeue() is first
    assert future.cancelled()
    results = executor.execute_all()
    assert [type(result.error) for result in results] == [CancelledError, type(None)]


def test_clear_takes_everything(lab: Any) -> None:
    """`queue.clear` gives the tasks back, first things first, and none of them runs."""
    executor = lab.executor()
    tasks = [Task(int, priority=priority) for priority in (1, 3, 2)]
    for task in tasks:
        executor.add_task(task)
    assert executor.queue.clear() == [tasks[1], tasks[2], tasks[0]]
    assert executor.queue.dequeue() is None
    assert executor.queue.peek() is None
    assert not any(result.success for result in executor.execute_all())


# ── stats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_while_it_runs(lab: Any) -> None:
    """`stats` shows what runs, what waits for a slot and what backs off."""
    executor = lab.executor(max_concurrency=2, backoff=600.0, max_backoff=600.0)
    gate = lab.event()
    executor.submit(work.fail, OSError())
    work.until(lambda: executor.stats().waiting == 1)
    for _ in range(5):
        executor.submit(gate.wait)
    work.until(lambda: executor.stats().running == 2)
    stats = executor.stats()
    assert (stats.running, stats.queued, stats.waiting, stats.retried, stats.workers) == (2, 3, 1, 1, 2)
    executor.shutdown(wait=False, cancel_futures=True)


def test_an_unused_executor_has_no_workers(lab: Any) -> None:
    """Making an executor starts nothing."""
    stats = lab.executor().stats()
    assert (stats.workers, stats.queued, stats.running) == (0, 0, 0)


def test_an_idle_executor_uses_no_time(lab: Any) -> None:
    """An idle pool with all its threads, and a clock, does not wake up."""
    executor = lab.executor(max_concurrency=3)
    latches = [lab.latch() for _ in range(3)]
    for mine in range(3):
        executor.submit(work.meet, latches, mine)
    work.until(lambda: executor.stats().succeeded == 3)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_arguments_of_the_function_that_is_added(lab: Any) -> None:
    """They are the function's, whatever their names; a `Task` has its own."""
    executor = lab.executor()
    task = executor.add_task(dict, [("a", 1)], task=2, id=3, priority="x").task
    with pytest.raises(TypeError, match=r"as a Task has its own: write add_task\(Task\(function, argument"):
        executor.add_task(Task(int), 1)
    with pytest.raises(TypeError, match="a Task has its own"):
        executor.add_task(Task(int), id="a")
    [result] = executor.execute_all()
    assert result.unwrap() == {"a": 1, "task": 2, "id": 3, "priority": "x"}
    assert result.task is task
    assert task.execute() == result.result
