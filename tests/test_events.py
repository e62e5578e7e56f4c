"""`parallel_exec.events`: hooks hear everything and can harm nothing."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import work

from parallel_exec import ParallelExecError, QueueFullError, current_task
from parallel_exec._dispatcher import Dispatcher
from parallel_exec.events import Event, TaskCancelled, TaskFinished, TaskQueued, TaskRetrying, TaskStarted, WorkerDied

if TYPE_CHECKING:
    from parallel_exec import ParallelExecutor


def test_without_a_hook_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher without a hook is inactive and makes no event."""
    dispatcher = Dispatcher(None)
    assert not dispatcher.active

    class Unwanted:
        def __init__(self, *_: object) -> None:
            raise AssertionError("made")

    monkeypatch.setattr("parallel_exec.events.TaskQueued", Unwanted)
    dispatcher.emit("TaskQueued", "a", 0)


def test_the_hook_gets_the_event_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event carries the monotonic time and its facts."""
    monkeypatch.setattr("parallel_exec._dispatcher.time.monotonic", lambda: 12.5)
    heard: list[Any] = []
    Dispatcher(heard.append).emit("TaskFinished", "a", 2, True)
    assert heard == [TaskFinished(time=12.5, task_id="a", attempt=2, success=True)]


def test_events_may_be_made_by_position() -> None:
    """What was added to them later comes last, and may be left out: hooks are tested with events made by hand."""
    assert TaskFinished(1.0, "a", 2, True) == TaskFinished(time=1.0, task_id="a", attempt=2, success=True, error=None)
    assert TaskStarted(1.0, "a", 1).worker == ""
    assert TaskRetrying(1.0, "a", 1, 0.5).error is None
    assert abs(WorkerDied(1.0, "w", "why").wall_time - time.time()) < 60


def test_events_are_frozen() -> None:
    """A hook cannot change what the next reader sees."""
    event = WorkerDied(1.0, "w", "why")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.reason = "because"  # type: ignore[misc]


def test_a_hook_that_raises_is_logged_and_dropped(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks run as ever when the hook raises each time, and the log says so."""

    def hook(event: object) -> None:
        raise ValueError("in the hook")

    executor = lab.executor(on_event=hook, retry_count=1, max_concurrency=1)
    future = executor.submit(work.flaky, lab.log(), 1)
    assert future.result() == 2
    executor.shutdown()
    records = [record for record in caplog.records if record.name == "parallel_exec"]
    assert len(records) == 6  # queued, a worker started, started, retrying, started, finished
    assert all(record.levelno == logging.ERROR and "on_event hook raised" in record.getMessage() for record in records)
    assert all("in the hook" in str(record.exc_info) for record in records)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_hook_that_exits_harms_no_task(lab: Any, error: type[BaseException]) -> None:
    """Not even `SystemExit` from a hook, in a worker, loses a task or a worker."""
    raised: list[object] = []

    def hook(event: object) -> None:
        if not isinstance(event, TaskQueued):  # that one is told in the caller's thread, whom it may end
            raised.append(event)
            raise error

    executor = lab.executor(on_event=hook, max_concurrency=1)
    futures = [executor.submit(work.double, number) for number in range(5)]
    assert [future.result(work.PATIENCE) for future in futures] == [0, 2, 4, 6, 8]
    executor.shutdown()
    assert raised


@pytest.mark.parametrize("told", [TaskQueued, TaskCancelled])
def test_ctrl_c_in_a_hook_is_the_callers(lab: Any, told: type[Event]) -> None:
    """It comes while a hook runs in the main thread, and ends what was called there; the executor stays whole."""
    pressed: list[Event] = []

    def hook(event: Event) -> None:
        if type(event) is told and not pressed:
            pressed.append(event)
            signal.raise_signal(signal.SIGINT)

    gate = lab.latch()
    executor = lab.executor(on_event=hook, max_concurrency=1)

    def give_and_cancel() -> None:
        executor.submit(gate.wait)
        executor.submit(int).cancel()

    with pytest.raises(KeyboardInterrupt):
        give_and_cancel()
    gate.set()
    assert executor.submit(work.double, 1).result(work.PATIENCE) == 2
    executor.shutdown()
    stats = executor.stats()
    assert stats.queued == stats.running == 0


def test_a_hook_may_use_the_executor(lab: Any) -> None:
    """A hook may ask for the counts and submit more."""
    more: list[Any] = []

    def hook(event: object) -> None:
        if isinstance(event, TaskFinished) and not more:
            executor.stats()
            more.append(executor.submit(work.double, 2))

    executor: ParallelExecutor = lab.executor(on_event=hook, max_concurrency=1)
    executor.submit(work.double, 1).result()
    work.until(lambda: more)
    assert more[0].result() == 4


@pytest.mark.parametrize("name", ["TaskStarted", "TaskTimedOut", "TaskRetrying"])
def test_a_hook_that_waits_for_the_task_that_it_is_told_of(lab: Any, name: str) -> None:
    """That goes on when the hook returns, so the hook is told, however many slots are free."""
    futures: list[Any] = []
    told: list[str] = []

    def hook(event: object) -> None:
        if type(event).__name__ == name and not told:
            work.until(lambda: futures)
            with pytest.raises(ParallelExecError, match="waits for the task that it is told of") as raised:
                futures[0].result()
            told.append(str(raised.value))

    executor: ParallelExecutor = lab.executor(on_event=hook, max_concurrency=2, retry_count=1, timeout=0.2)
    futures.append(executor.submit(lambda: current_task().attempt == 1 and time.sleep(0.5)))
    assert futures[0].result(work.PATIENCE) is False
    assert told


def test_a_hook_that_is_told_of_a_task_before_that_is_queued(lab: Any) -> None:
    """It must not wait for the executor, which would be for the very task: it is refused, or returns at once."""
    raised: list[Any] = []

    def hook(event: object) -> None:
        if isinstance(event, TaskQueued) and not raised:
            raised.append(None)
            for call in (lambda: executor.submit(int), executor.execute_all):
                try:
                    call()
                except (QueueFullError, RuntimeError) as error:
                    raised.append(type(error))
            executor.shutdown()

    executor: ParallelExecutor = lab.executor(on_event=hook, max_concurrency=1, queue_size=1)
    future = executor.submit(work.double, 1)
    assert future.result(work.PATIENCE) == 2
    assert raised == [None, QueueFullError, RuntimeError]
