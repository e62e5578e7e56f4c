"""`parallel_exec._core.callers`: tasks that wait for their own pool, and would wait for ever, are told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitTimeout
from typing import Any

import inside
import pytest
import work

from parallel_exec import ParallelExecError, Task, TaskFuture, ThreadBackend, current_task
from parallel_exec.events import TaskFinished

NEVER = 600.0


# ── waiting for one's own pool ──────────────────────────────────────────────────────────────────────────────────────


def test_a_task_that_waits_for_its_own_pool_in_vain_is_told(lab: Any) -> None:
    """With every slot taken by a task that waits for another one of the pool, the last to wait gets an error."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    with pytest.raises(ParallelExecError, match=r"would wait for ever .* raise max_concurrency"):
        executor.submit(lambda: executor.submit(int).result()).result()


def test_a_task_that_waits_for_itself(lab: Any) -> None:
    """It is told, however many slots are free, and so is one that does so by way of another."""
    executor = lab.executor(max_concurrency=4, retry_count=0)
    futures: list[Any] = []
    given = lab.event()

    def wait(number: int) -> object:
        given.wait(work.PATIENCE)
        if number == 2:
            work.until(lambda: len(inside.monitor(executor).callers.waiting) == 1)
        return futures[(1, 0, 2)[number - 1]].result()

    futures += [executor.submit(wait, 1), executor.submit(wait, 2), executor.submit(wait, 3)]
    given.set()
    assert "which waits for it" in str(futures[1].exception(work.PATIENCE))
    assert futures[0].exception(work.PATIENCE) is futures[1].exception()
    assert "for ever for itself" in str(futures[2].exception(work.PATIENCE))


def test_another_attempt_may_be_waited_for(lab: Any) -> None:
    """An attempt that was given up may wait for its own task, which the next attempt ends."""
    executor = lab.executor(max_concurrency=2, retry_count=1)
    given, results = lab.event(), []

    def wait() -> object:
        if current_task().attempt == 2:
            return "second"
        given.wait(work.PATIENCE)
        work.until(lambda: current_task().cancelled)
        results.append(future.result())
        return "first"

    future = executor.options(timeout=0.05).submit(wait)
    given.set()
    assert future.result(work.PATIENCE) == "second"
    work.until(lambda: results == ["second"])


@pytest.mark.parametrize("limit", [2, 5])
def test_what_counts_are_the_workers_that_there_are(lab: Any, limit: int) -> None:
    """Over an engine with fewer threads than the limit, the last thread that would wait for ever is told, too."""
    with ThreadPoolExecutor(1) as pool:
        executor = lab.executor(backend=pool, max_concurrency=limit, retry_count=0)
        with pytest.raises(ParallelExecError, match=r"would wait for ever .* each of its 1 slots"):
            executor.submit(lambda: executor.submit(int).result()).result(work.PATIENCE)


def test_abandoned_threads_beyond_the_cap_take_slots(lab: Any) -> None:
    """The slots that abandoned threads cost are not there for what a waiting task waits for."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), max_concurrency=2, retry_count=0)
    stuck, gate = lab.event(), lab.event()

    def get_stuck() -> None:
        stuck.set()
        gate.wait(NEVER)

    future = executor.submit(get_stuck)
    stuck.wait(work.PATIENCE)
    future.abort()
    with pytest.raises(ParallelExecError, match=r"would wait for ever .* each of its 1 slots"):
        executor.submit(lambda: executor.submit(int).result()).result(work.PATIENCE)
    gate.set()


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


def test_a_waiter_whose_task_has_ended_does_not_count(lab: Any) -> None:
    """It is about to go on, though its thread has not woken up yet: what takes the free slot meanwhile may wait."""
    for _ in range(30):
        executor = lab.executor(max_concurrency=2, retry_count=0, timeout=None)
        late: list[TaskFuture[int]] = []

        def inner(executor: Any = executor, late: Any = late) -> None:
            executor.submit(int)
            late.append(executor.options(priority=1).submit(lambda: executor.submit(work.double, 2).result()))

        executor.submit(lambda executor=executor, inner=inner: executor.submit(inner).result()).result(work.PATIENCE)
        assert late[0].result(work.PATIENCE) == 4
        executor.shutdown()


def test_a_stream_inside_a_task_in_vain(lab: Any) -> None:
    """On the only slot it is told, as a `result()` is; with another slot it runs."""
    executor = lab.executor(max_concurrency=1, retry_count=0)
    future = executor.submit(lambda: list(executor.stream([Task(int)])))
    assert type(future.exception(work.PATIENCE)) is ParallelExecError
    roomy = lab.executor(max_concurrency=2)
    future = roomy.submit(lambda: [result.unwrap() for result in roomy.stream([Task(int), Task(float)])])
    assert sorted(future.result(work.PATIENCE)) == [0, 0.0]


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("way", ["callback", "hook"])
def test_waiting_in_the_only_thread_that_could_bring_it(lab: Any, backend: str, way: str) -> None:
    """A callback or a hook that waits for another task is told that it would do so for ever."""
    errors: list[BaseException | None] = []

    def wait(_: object) -> None:
        if not errors:
            errors.append(None)
            try:
                executor.submit(int).result()
            except ParallelExecError as error:
                errors[0] = error

    def hook(event: object) -> None:
        if isinstance(event, TaskFinished):
            wait(event)

    on_event = hook if way == "hook" else None
    executor = lab.executor(max_concurrency=1, backend=backend, on_event=on_event)
    gate = lab.latch()
    first = executor.submit(gate.wait)
    if way == "callback":
        first.add_done_callback(wait)
    gate.set()
    work.until(lambda: bool(errors) and errors[0] is not None)
    assert "callback or an event hook" in str(errors[0])


@pytest.mark.parametrize("others", ["callbacks", "tasks"])
def test_waiting_in_the_last_thread_that_does_not(lab: Any, others: str) -> None:
    """A callback that waits is told so if all other threads wait, too, in callbacks or in tasks; these go on then."""
    executor = lab.executor(max_concurrency=3, retry_count=0)
    gate, both, outcomes = lab.event(), threading.Barrier(2), []

    def wait_at_once() -> None:
        both.wait(work.PATIENCE)
        wait()

    def wait(_: object = None) -> None:
        try:
            outcomes.append(executor.submit(int).result())
        except ParallelExecError as error:
            outcomes.append(error)

    def is_known() -> bool:
        callers = inside.monitor(executor).callers
        return len(callers.waiting) + len(callers.calling) == 2

    futures = [executor.submit(gate.wait) for _ in range(3 if others == "callbacks" else 1)]
    if others == "tasks":
        futures += [executor.submit(wait_at_once) for _ in range(2)]
        work.until(is_known)
    for future in futures if others == "callbacks" else futures[:1]:
        future.add_done_callback(wait)
    gate.set()
    work.until(lambda: len(outcomes) == 3)
    told = [each for each in outcomes if each != 0]
    assert [str(each)[:30] for each in told] == ["a callback or an event hook wai"[:30]]
    work.until(lambda: not inside.monitor(executor).callers.calling)


def test_a_callback_that_waits_for_what_can_run(lab: Any) -> None:
    """In a thread of its own, as long as there is one."""
    executor = lab.executor(max_concurrency=2)
    outcomes: list[object] = []
    gate = lab.event()
    executor.submit(gate.wait).add_done_callback(lambda _: outcomes.append(executor.submit(int).result()))
    gate.set()
    work.until(lambda: outcomes == [0])
