"""Lazy ways through the pool: `stream` for tasks, `in_order` for `map`.

    iterable ──► at most `window` futures ──► results

Guarantees:
    No more than `window` tasks are alive at once, so that an endless iterable runs in flat memory. Closing the generator
    cancels what waits, and stops what runs where the back end can. An error in the iterable, or in starting a task, after
    a shutdown say, is raised after all results of what came before it.
    A result is the caller's once the generator has yielded it, and in the window until then: where an exception comes in
    between, Ctrl-C's for one, it is found there. (So `handed` is set right before the `yield`, and a task leaves the window
    when the caller comes back: between the two no signal is heard.)
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TYPE_CHECKING, Any, Callable, Generic, Iterator, TypeVar

from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK
from parallel_exec.task import Task, TaskResult

if TYPE_CHECKING:
    from parallel_exec._core.job import Job

T = TypeVar("T")


class Window(Generic[T]):
    """The tasks of a stream that were started and whose results were not yielded. Written by the generator's thread.

    Attributes:
        futures: theirs, in the order read; and the one below.
        handed: the one whose result was yielded last, until the next is asked for.
    """

    def __init__(self) -> None:
        self.futures: deque[Job[T]] = deque()
        self.handed: Job[T] | None = None

    def finished(self) -> list[TaskResult[T]]:
        """Return the results of those that have ended, and were not cancelled. From any thread."""
        futures = [future for future in list(self.futures) if future is not self.handed]
        return [future.task_result() for future in futures if future.done() and not future.cancelled()]

    def drop_handed(self) -> None:
        """Forget the one that the caller has."""
        if self.handed is not None:
            self.futures.remove(self.handed)
            self.handed = None

    def close(self) -> None:
        """Cancel what waits, and stop what runs; what has ended stays."""
        self.drop_handed()
        running = [future for future in self.futures if not future.cancel()]  # first what waits, or it would run now
        for future in running:
            future.abort()


def stream(
    start: Callable[[Task[T]], Job[T]],
    tasks: Iterator[Task[T]],
    size: int,
    order: str,
    opened: Callable[[Window[T]], object],
) -> Iterator[TaskResult[T]]:
    """Yield the results of tasks that are started as the window has room; `opened` is told of the window first."""
    window: Window[T] = Window()
    alive = window.futures
    ended: queue.SimpleQueue[Job[T]] = queue.SimpleQueue()
    source = _Source(tasks, start)
    opened(window)
    try:
        while True:
            while len(alive) < size and (future := source.start_next()) is not None:
                alive.append(future)
                future.add_done_callback(ended.put)  # type: ignore[arg-type]  # it is called with the future
            if not alive:
                break
            future = _next_of(ended, alive)
            if order == "completed":
                result = future.task_result()
                window.handed = future
                yield result
                window.drop_handed()
                del result
            while order == "submitted" and alive and alive[0].done():
                result = alive[0].task_result()
                window.handed = alive[0]
                yield result
                window.drop_handed()
                del result
            del future
        source.raise_error()
    finally:
        window.close()


class _Source(Generic[T]):
    """Reads tasks and starts them, until there are no more, or until one of the two raises."""

    def __init__(self, tasks: Iterator[Task[T] | Callable[[], T]], start: Callable[[Task[T]], Job[T]]) -> None:
        self._tasks = tasks
        self._start = start
        self._over = False
        self._error: BaseException | None = None

    def raise_error(self) -> None:
        """Raise what starting a task has raised, if anything has."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del self, error  # the error's traceback holds this frame

    def start_next(self) -> Job[T] | None:
        """Return the next task's future, None if there is none."""
        if self._over:
            return None
        try:
            task = next(self._tasks)
            return self._start(task if isinstance(task, Task) else Task(task))
        except StopIteration:
            self._over = True
        except Exception as error:
            self._over, self._error = True, error
        return None


def _next_of(ended: queue.SimpleQueue[Job[T]], alive: deque[Job[T]]) -> Job[T]:
    with contextlib.suppress(queue.Empty):
        return ended.get_nowait()
    owner = alive[0].owner
    entered = owner.enter_wait(*alive)
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                return ended.get(timeout=TICK)
    finally:
        if entered:
            owner.leave_wait()


def in_order(
    start: Callable[..., Job[T]], calls: Iterator[tuple[Any, ...]], timeout: float | None, buffersize: int | None
) -> Iterator[T]:
    """Return an iterator over the results of `start(*call)`, in order; the calls are started before it returns."""
    until = None if timeout is None else time.monotonic() + timeout
    futures: deque[Job[T]] = deque()
    for call in calls:
        futures.append(start(*call))
        if len(futures) == buffersize:
            break
    return _results(start, calls, futures, until, buffersize)


def _results(
    start: Callable[..., Job[T]],
    calls: Iterator[tuple[Any, ...]],
    futures: deque[Job[T]],
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
        _turn_away(futures)
        del start, calls, futures  # an error's traceback holds this frame


def _turn_away(futures: deque[Job[T]]) -> None:
    """Cancel what is left, of which nobody wants to know."""
    for future in futures:
        future.cancel()
        future.mark_retrieved()


def _take(futures: deque[Job[T]], until: float | None) -> T:
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
