"""`submit` and `map`, of an executor and of `executor.options(...)`, whose calls carry settings of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sized

from parallel_exec._checks import check_count, is_iterable, not_callable, refuse_names, to_float
from parallel_exec._core.job import PLACES, Job
from parallel_exec._lazy import refuse_lazy
from parallel_exec._names import call_name, id_of
from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, TypeVar, overload

    from typing_extensions import Concatenate, Never, ParamSpec

    from parallel_exec._core.map_chunk import MapResults
    from parallel_exec._core.scheduler import Scheduler
    from parallel_exec._core.settings import Settings
    from parallel_exec.future import TaskFuture
    from parallel_exec.shared import Shared

    P = ParamSpec("P")

    A = TypeVar("A")
    T = TypeVar("T")


_MOST_ITEMS = 1024  # items of a `map` that are pickled together; a worker is given as many at a time as suit it
_FIRST = 4  # of them, before it is known how much they weigh
_BYTES = 1 << 13  # that they should come to, as each piece that a worker is given carries all of these; a guess


class Submitter:
    """What calls are given to: an executor, or a view of one whose calls carry settings of their own. Thread-safe."""

    __slots__ = ("_admission", "_id", "_priority", "_scheduler", "_settings")

    def __init__(self, scheduler: Scheduler, settings: Settings, priority: int = 0, id: str | None = None) -> None:
        self._scheduler = scheduler
        self._admission = scheduler.admission
        self._settings = settings
        self._priority = priority
        self._id = id

    if TYPE_CHECKING:

        @overload
        def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

        @overload  # further on among the arguments, a type checker takes a `Shared` by way of a partial
        def submit(
            self, fn: Callable[Concatenate[A, P], T], shared: Shared[A], /, *args: P.args, **kwargs: P.kwargs
        ) -> TaskFuture[T]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Start `fn(*args, **kwargs)` as soon as a slot is free, and return its future.

        Starts the pool, and with it what was staged. Blocks only while the queue is full.

        Raises:
            RuntimeError: after `shutdown`.
        """
        if not callable(fn):
            raise not_callable("submit", fn)
        if not self._settings.allows_lazy:
            refuse_lazy("submit", fn)
        job: Job[Any] = Job(self._scheduler, self._settings, fn, args, kwargs or None, self._priority, self._id)
        self._admission.add(job, None, start=True)
        return job

    if TYPE_CHECKING:

        @overload
        def share(self, value: Shared[T]) -> Shared[T]: ...

        @overload
        def share(self, value: T) -> Shared[T]: ...

    def share(self, value: Any) -> Shared[Any]:
        """Return a handle to an object that many calls are to get: given among a call's arguments it arrives as the object.

        It is pickled once, as it is now, and lies in memory once for all worker processes, large buffers such as a NumPy
        array's mapped and not to be written; each worker makes the object once. Threads get the very object. It is gone when
        the handle is, or was closed, and the tasks that use it have ended. Of a handle it returns another one.

        Raises:
            TaskSerializationError: it cannot be pickled, and the workers are processes.
            OSError: there is no memory for it, or no descriptor left.
            RuntimeError: after `shutdown`.
        """
        from parallel_exec.shared import share  # few programs do

        self._scheduler.monitor.gate.check_open("share with")
        return share(value, self._admission.store)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        **_misspelt: Never,
    ) -> Iterator[T]:
        """Return an iterator over `fn(*items)` for the zipped iterables, in their order.

        Args:
            fn: called once for each tuple of items.
            *iterables: as for the built-in `map`; read at once, or with `buffersize` as results are taken.
            timeout: seconds from now within which each result must be there when it is asked for.
            chunksize: how many items travel together to a worker process; 1 leaves the choice to the pool.
            buffersize: most items that have been submitted and whose results have not been taken.

        Raises:
            TimeoutError: from the iterator: a result was not there in time.
            BaseException: from the iterator: what a call raised; the rest is cancelled.
        """
        if _misspelt:
            refuse_names("map()", _misspelt, Submitter.map)
        _check_mapped(fn, iterables)
        if not self._settings.allows_lazy:
            refuse_lazy("map", fn)
        chunksize, buffersize = _check_sizes(chunksize, buffersize)
        if timeout is not None and (timeout := to_float(given := timeout)) is None:
            raise TypeError(f"timeout takes seconds as a number, not {given!r}")
        if buffersize is None and self._admission.runs_chunks(self._settings):
            until = None if timeout is None else time.monotonic() + timeout
            return self._map_chunks(fn, iterables, chunksize).results(until)
        from parallel_exec.stream import in_order  # a script with a single call needs it no more than what is below

        numbers = itertools.count()

        def start(*args: Any) -> Job[T]:
            task_id = None if self._id is None else f"{self._id}-{next(numbers)}"
            job: Job[T] = Job(self._scheduler, self._settings, fn, args, None, self._priority, task_id)
            self._admission.add(job, None, start=True)
            return job

        return in_order(start, zip(*iterables), timeout, buffersize)

    def _map_chunks(self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], chunksize: int) -> MapResults:
        """Start all calls, in rows that travel together."""
        from parallel_exec._core.map_chunk import MapChunk, MapResults

        results = MapResults(self._scheduler, self._scheduler.next_sequence())
        task_id = self._id or id_of(call_name(fn), results.sequence >> PLACES)
        # An iterator may wait for the results of what it has yielded, so nothing of one may be held back to travel together.
        if chunksize == 1 and not _are_sized(iterables):
            from parallel_exec._core.map_feed import MapFeed

            MapFeed(self._scheduler, self._settings, fn, self._priority, task_id, results).read(iterables)
            return results
        rows = _Rows(iterables, chunksize)
        for columns in rows:
            count = len(columns[0])
            rest = (columns, range(count), results, results.reserve(count), self._priority, task_id)
            chunk = MapChunk(self._scheduler, self._settings, fn, *rest)
            self._admission.add(chunk, None, start=True)
            rows.weigh(chunk.payload, count)
        return results


# As Python's own messages name them: "ParallelExecutor.submit() missing 1 required positional argument: 'fn'".
Submitter.submit.__qualname__, Submitter.map.__qualname__ = "ParallelExecutor.submit", "ParallelExecutor.map"


class Options(Submitter):
    """A light view of an executor, with settings of its own. Frozen, cheap to make, worth keeping for many submits.

    An id gets the item's number appended in `map`.
    """

    __slots__ = ()


def _check_mapped(fn: object, iterables: tuple[Any, ...]) -> None:
    """Refuse what cannot be called, or cannot be iterated over.

    Raises:
        TypeError: it cannot.
    """
    if not callable(fn):
        swapped = ": the function comes first" if any(map(callable, iterables)) else ""
        raise TypeError(f"map takes a callable and iterables, not {fn!r}{swapped}")
    for items in iterables:
        if not is_iterable(items):
            raise TypeError(
                f"map takes iterables of arguments after the function, not {items!r}: "
                "one call is submit(fn, argument), and a fixed argument is functools.partial(fn, argument)"
            )


def _are_sized(iterables: tuple[Iterable[Any], ...]) -> bool:
    for items in iterables:  # noqa: SIM110  # no generator: what a signal handler raises as one closes is lost
        if not isinstance(items, Sized):
            return False
    return True


def _check_sizes(chunksize: int, buffersize: int | None) -> tuple[int, int | None]:
    """Return sizes as plain ints; refuse those that are none, in the standard library's words.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is less than 1.
    """
    try:
        chunksize = check_count("chunksize", chunksize, 1)
    except ValueError:
        raise ValueError("chunksize must be >= 1.") from None
    if buffersize is None:
        return chunksize, None
    try:
        return chunksize, check_count("buffersize", buffersize, 1)
    except TypeError:
        raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}") from None
    except ValueError:
        raise ValueError(f"buffersize must be None or > 0, not {buffersize!r}") from None


class _Rows:
    """Cuts zipped iterables into rows of items that travel together, each as a list for each iterable.

    Args:
        iterables: read as rows are taken.
        chunksize: items of a row; 1: as many as are small enough together.
    """

    def __init__(self, iterables: tuple[Iterable[Any], ...], chunksize: int) -> None:
        self._is_single = len(iterables) == 1
        self._items: Iterator[Any] = iter(iterables[0]) if self._is_single else zip(*iterables)
        self._adapts = chunksize == 1
        self._size = _FIRST if self._adapts else chunksize

    def __iter__(self) -> Iterator[list[list[Any]]]:
        while row := list(itertools.islice(self._items, self._size)):
            yield [row] if self._is_single else list(map(list, zip(*row)))

    def weigh(self, payload: Any, count: int) -> None:
        """Learn from a row of so many items what they come to; None: it has ended already."""
        if self._adapts and payload is not None:
            fitting = 1 if payload.has_descriptors() else _BYTES * count // len(payload.data)
            self._size = max(1, min(_MOST_ITEMS, fitting))
