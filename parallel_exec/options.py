"""`executor.options(...)`: a view whose `submit` and `map` carry settings of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, TypeVar

from parallel_exec._checks import check_count, to_float
from parallel_exec._core.job import PLACES, Job, snapshot
from parallel_exec._core.map_chunk import MapChunk, MapResults
from parallel_exec._current import call_name, id_of
from parallel_exec._hints import is_iterable, not_callable, refuse_names
from parallel_exec._lazy import refuse_lazy
from parallel_exec._sync.clock import time
from parallel_exec.stream import in_order

if TYPE_CHECKING:
    from typing_extensions import Never, ParamSpec

    from parallel_exec._core.scheduler import Scheduler
    from parallel_exec.config import Settings
    from parallel_exec.future import TaskFuture

    P = ParamSpec("P")

T = TypeVar("T")

_MOST = 1024  # items of a `map` that are pickled together; a worker is given as many of them at a time as suits it
_FIRST = 4  # of them, before it is known how much they weigh
_BYTES = 1 << 13  # that they should come to, as each piece that a worker is given carries all of these; a guess


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
            raise not_callable("submit", fn)
        if not self._settings.allows_lazy:
            refuse_lazy("submit", fn)
        return self._start(self._id, fn, args, kwargs)

    def _start(self, id: str | None, fn: Callable[..., T], args: tuple[Any, ...], kwargs: Any = None) -> Job[T]:
        future: Job[T] = Job(self._scheduler, self._settings, snapshot(), fn, args, kwargs or None)
        if self._priority:
            future.priority = self._priority
        if id is not None:
            future._id = id
        self._scheduler.admission.add(future, None, start=True)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        **_misspelt: Never,
    ) -> Iterator[T]:
        """Do as `ParallelExecutor.map`, with this view's settings; an id gets the item's number appended."""
        if _misspelt:
            refuse_names("map()", _misspelt, Options.map)
        _check_mapped(fn, iterables)
        if not self._settings.allows_lazy:
            refuse_lazy("map", fn)
        chunksize, buffersize = _check_sizes(chunksize, buffersize)
        if timeout is not None and (timeout := to_float(given := timeout)) is None:
            raise TypeError(f"timeout takes seconds as a number, not {given!r}")
        # An iterator may wait for the results of what it has yielded, so nothing of one may be held back to travel together.
        in_parts = chunksize > 1 or all(isinstance(iterable, Sized) for iterable in iterables)
        if in_parts and self._scheduler.admission.runs_chunks(self._settings) and buffersize is None:
            until = None if timeout is None else time.monotonic() + timeout
            return self._map_parts(fn, iterables, chunksize).results(until)
        numbers = itertools.count()

        def start(*args: Any) -> Job[T]:
            return self._start(None if self._id is None else f"{self._id}-{next(numbers)}", fn, args)

        return in_order(start, zip(*iterables), timeout, buffersize)

    def _map_parts(self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], chunksize: int) -> MapResults:
        """Start all calls, in stretches that travel together."""
        mapping = MapResults()
        place = self._scheduler.next_sequence()  # one for the whole map: its items follow one another
        map_id = self._id or id_of(call_name(fn), place >> PLACES)
        stretches = _Stretches(iterables, chunksize)
        for columns in stretches:
            first = mapping.reserve(len(columns[0]))
            context = snapshot()
            part = MapChunk(self._scheduler, self._settings, context, fn, columns, mapping, first, self._make_single)
            part.priority, part._id, part.sequence = self._priority, map_id, place + first
            self._scheduler.admission.add(part, None, start=True)
            stretches.weigh(part.payload, len(columns[0]))
        return mapping

    def _make_single(self, part: MapChunk, index: int) -> Job[Any]:
        """Return the future of a task that runs one item of a part."""
        context: Any = part.context
        single: Job[Any] = Job(self._scheduler, self._settings, context, part.fn, part.arguments(index))
        single.priority, single._id = self._priority, part.item_id(index)
        single.queued_at = part.queued_at
        single.stands_for = part.first + index
        single.mark_retrieved()  # it is looked at when its turn comes, or the others' iteration has ended
        return single


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


class _Stretches:
    """Cuts zipped iterables into stretches of items that travel together, each as a list for each iterable.

    Args:
        iterables: read as stretches are taken.
        chunksize: items of a stretch; 1 for what weighs little enough.
    """

    def __init__(self, iterables: tuple[Iterable[Any], ...], chunksize: int) -> None:
        self._is_single = len(iterables) == 1
        self._items: Iterator[Any] = iter(iterables[0]) if self._is_single else zip(*iterables)
        self._adapts = chunksize == 1
        self._size = _FIRST if self._adapts else chunksize

    def __iter__(self) -> Iterator[list[list[Any]]]:
        while stretch := list(itertools.islice(self._items, self._size)):
            yield [stretch] if self._is_single else list(map(list, zip(*stretch)))

    def weigh(self, payload: Any, count: int) -> None:
        """Learn from a stretch of so many items what they come to; None: it has ended already."""
        if self._adapts and payload is not None:
            fitting = 1 if payload.has_descriptors() else _BYTES * count // len(payload.data)
            self._size = max(1, min(_MOST, fitting))
