"""Lazy ways through the pool: `stream` for tasks, `in_order` for `map`.

    iterable ──► at most `window` futures ──► results

Guarantees:
    No more than `window` tasks are alive at once, so that an endless iterable runs in flat memory. Closing the generator
    cancels what waits, and stops what runs where the back end can. An error in the iterable, or in starting a task, after
    a shutdown say, is raised after all results of what came before it.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, TypeVar

from parallel_exec._clock import time
from parallel_exec._waiting import TICK
from parallel_exec.task import Task, TaskResult

if TYPE_CHECKING:
    from parallel_exec.future import TaskFuture

T = TypeVar("T")


def stream(
    start: Callable[[Task[T]], TaskFuture[T]], tasks: Iterator[Task[T]], window: int, order: str
) -> Iterator[TaskResult[T]]:
    """Yield the results of tasks that are started as the window has room."""
    alive: deque[TaskFuture[T]] = deque()
    ended: queue.SimpleQueue[TaskFuture[T]] = queue.SimpleQueue()
    source = _Source(tasks, start)
    try:
        while True:
            while len(alive) < window and (future := source.start_next()) is not None:
                alive.append(future)
                future.add_done_callback(ended.put)  # type: ignore[arg-type]  # it is called with the future
            if not alive:
                break
            future = _next_of(ended, alive)
            if order == "completed":
                alive.remove(future)
                yield future.task_result()
            while order == "submitted" and alive and alive[0].done():
                yield alive.popleft().task_result()
            del future
        if source.error is not None:
            raise source.error
    finally:
        for future in [future for future in alive if not future.cancel()]:  # first what waits, or it would run now
            future.abort()


class _Source(Generic[T]):
    """Reads tasks and starts them, until there are no more, or until one of the two raises.

    Attributes:
        error: what was raised.
    """

    def __init__(self, tasks: Iterator[Task[T] | Callable[[], T]], start: Callable[[Task[T]], TaskFuture[T]]) -> None:
        self._tasks = tasks
        self._start = start
        self._over = False
        self.error: BaseException | None = None

    def start_next(self) -> TaskFuture[T] | None:
        """Return the next task's future, None if there is none."""
        if self._over:
            return None
        try:
            task = next(self._tasks)
            return self._start(task if isinstance(task, Task) else Task(task))
        except StopIteration:
            self._over = True
        except Exception as error:
            self._over, self.error = True, error
        return None


def _next_of(ended: queue.SimpleQueue[TaskFuture[T]], alive: deque[TaskFuture[T]]) -> TaskFuture[T]:
    with contextlib.suppress(queue.Empty):
        return ended.get_nowait()
    owner = alive[0]._owner
    entered = owner.enter_wait(*alive)
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                return ended.get(timeout=TICK)
    finally:
        if entered:
            owner.leave_wait()


def in_order(
    start: Callable[..., TaskFuture[T]], calls: Iterator[tuple[Any, ...]], timeout: float | None, buffersize: int | None
) -> Iterator[T]:
    """Return an iterator over the results of `start(*call)`, in order; the calls are started before it returns."""
    until = None if timeout is None else time.monotonic() + timeout
    futures: deque[TaskFuture[T]] = deque()
    for call in calls:
        futures.append(start(*call))
        if len(futures) == buffersize:
            break
    return _results(start, calls, futures, until, buffersize)


def _results(
    start: Callable[..., TaskFuture[T]],
    calls: Iterator[tuple[Any, ...]],
    futures: deque[TaskFuture[T]],
    until: float | None,
    buffersize: int | None,
) -> Iterator[T]:
    try:
        futures.reverse()  # so that a result is dropped as soon as it is taken
        while futures:
            if buffersize is not None:
                call = next(calls, None)
                if call is not None:
                    futures.appendleft(start(*call))
            yield _take(futures, until)
    finally:
        for future in futures:
            future.cancel()
            future.hush()


def _take(futures: deque[TaskFuture[T]], until: float | None) -> T:
    """Return the result of the next future, keeping no reference to either."""
    future = futures.pop()
    try:
        return future.result(None if until is None else until - time.monotonic())
    except WaitTimeout:
        if not future.done():
            future.cancel()
        raise
    finally:
        del future
