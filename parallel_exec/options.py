"""`executor.options(...)`: a view whose `submit` and `map` carry settings of their own."""

from __future__ import annotations

import itertools
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, TypeVar

from parallel_exec.future import Settings, TaskFuture
from parallel_exec.parts import Mapping, Part
from parallel_exec.stream import in_order
from parallel_exec.task import check_count

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from parallel_exec.scheduler import Scheduler

    P = ParamSpec("P")

T = TypeVar("T")

_STRETCH = 256  # items of a `map` that are pickled together; a worker is given as many of them at a time as suits it


class Options:
    """A light view of an executor. Thread-safe, frozen, cheap to make, worth keeping for many submits."""

    __slots__ = ("_id", "_priority", "_scheduler", "_settings")

    def __init__(self, scheduler: Scheduler, priority: int, settings: Settings, id: str | None) -> None:
        self._scheduler = scheduler
        self._priority = priority
        self._settings = settings
        self._id = id

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Do as `ParallelExecutor.submit`, with this view's settings."""
        if not callable(fn):
            raise TypeError(f"submit takes a callable and its arguments, not {fn!r}")
        return self._start(self._id, fn, args, kwargs)

    def _start(self, id: str | None, fn: Callable[..., T], args: tuple[Any, ...], kwargs: Any = None) -> TaskFuture[T]:
        future: TaskFuture[T] = TaskFuture(self._scheduler, self._settings, copy_context(), fn, args, kwargs or None)
        if self._priority:
            future._priority = self._priority
        if id is not None:
            future._id = id
        self._scheduler.add(future, None, start=True)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Do as `ParallelExecutor.map`, with this view's settings; an id gets the item's number appended."""
        if not callable(fn):
            raise TypeError(f"map takes a callable and iterables, not {fn!r}")
        check_count("chunksize", chunksize, 1)
        if buffersize is not None:
            check_count("buffersize", buffersize, 1)
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise TypeError(f"timeout takes seconds as a number, not {timeout!r}")
        calls = zip(*iterables)
        if self._scheduler.takes_parts(self._settings) and buffersize is None:
            return self._map_parts(fn, calls, None if timeout is None else time.monotonic() + timeout, chunksize)
        numbers = itertools.count()

        def start(*args: Any) -> TaskFuture[T]:
            return self._start(None if self._id is None else f"{self._id}-{next(numbers)}", fn, args)

        return in_order(start, calls, timeout, buffersize)

    def _map_parts(
        self, fn: Callable[..., T], calls: Iterator[tuple[Any, ...]], until: float | None, chunksize: int
    ) -> Iterator[T]:
        """Start all calls, in stretches that travel together."""
        items = list(calls)
        mapping = Mapping(len(items))
        size = chunksize if chunksize > 1 else _STRETCH
        for first in range(0, len(items), size):
            stretch = items[first : first + size]
            part = Part(self._scheduler, self._settings, copy_context(), fn, stretch, mapping, first, self._make_single)
            part._priority, part._id = self._priority, self._id or part._id
            self._scheduler.add(part, None, start=True)
        return mapping.results(until)

    def _make_single(self, part: Part, index: int) -> TaskFuture[Any]:
        """Return the future of a task that runs one item of a part."""
        context: Any = part._context
        single: TaskFuture[Any] = TaskFuture(self._scheduler, self._settings, context, part._fn, part.items[index])
        single._priority, single._id = self._priority, f"{part.id}-{index}"
        single._queued_at = part._queued_at
        single.stands_for = part.first + index
        single.hush()  # it is looked at when its turn comes, or the others' iteration has ended
        return single
