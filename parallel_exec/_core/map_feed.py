"""`map` over iterators in worker processes: each item is on its way before the next is asked for.

    next item ──► the chunk that grows ──► full: the next chunk
                      │
                      └─ in the queue since its first item: whoever has nothing to do takes it as it is

So items travel one by one to a pool that waits for them, and by the hundred to one that is busy. What makes no difference
to that is how long the iterator takes for an item: it may wait for the results of what it has yielded.

Guarantees:
    What an iterator has yielded is in the queue when it is asked for more: it may be stuck from then on.
    An item is as it was when it was yielded. In a chunk that grows are only values that cannot change, and are pickled
    without user code, as that is done by the I/O thread. Every other item is pickled at once, as a job of its own.

The race of the thread that reads items (appends one, then looks whether the chunk still grows) with the one that takes the
chunk (closes it, then counts its items): an item that the first finds left out goes into the next chunk. Which it is, the
lock tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from parallel_exec._core.job import Job
from parallel_exec._core.map_chunk import MapChunk, MapResults, PackedRow

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.scheduler import Scheduler
    from parallel_exec._core.settings import Settings

_NUMBERS = frozenset((int, float, bool, type(None)))
_NUMBER = 8  # bytes that one of them comes to
_ROW = 1 << 13  # bytes that the items of a chunk come to; a guess: each piece that a worker is given carries all of it
_LARGE = _ROW // 4  # bytes from which an item goes alone
_ALONE = _ROW  # what the size of an item that goes alone is put at: no chunk has room for it
_WIDE = 16  # elements of a tuple that is looked into


class MapFeed:
    """What reads the items of one `map`, in the thread that calls it."""

    def __init__(
        self,
        owner: Scheduler,
        settings: Settings,
        fn: Callable[..., Any],
        priority: int,
        map_id: str,
        results: MapResults,
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._fn = fn
        self._priority = priority
        self._id = map_id
        self._results = results
        call = Job[Any](owner, settings, fn, (), None, priority, map_id)
        can_travel = owner.admission.pack(call) is None and call.payload.is_light()
        self._call: Any = call.payload if can_travel else None  # without arguments; None: all items go alone

    def read(self, iterables: tuple[Iterable[Any], ...]) -> None:
        """Read all items, and start their calls."""
        is_single = len(iterables) == 1
        items: Iterator[Any] = iter(iterables[0]) if is_single else zip(*iterables)
        pack = self._pack_column if is_single else self._pack_tuples
        number, size_of = (_NUMBER, _size_of) if self._call is not None else (_ALONE, _alone)
        gate = self._owner.monitor.gate
        chunk: MapChunk | None = None
        row: list[Any] = []
        room = place = 0
        for item in items:
            size = number if type(item) in _NUMBERS else size_of(item)
            room -= size
            if chunk is not None and room > 0 and gate.admits:
                row.append(item)
                if chunk.growing is not None or self._end(chunk) == len(row):
                    continue
            if chunk is not None:
                place = chunk.first + self._end(chunk)
            if size < _ALONE:
                row = [item]
                chunk, room = self._open(row, place, pack), _ROW - size
            else:
                self._start_alone((item,) if is_single else item, place)
                chunk, place = None, place + 1
        self._results.trim(place if chunk is None else chunk.first + self._end(chunk))

    def _open(self, row: list[Any], place: int, pack: Callable[[list[Any]], PackedRow]) -> MapChunk:
        """Return a new chunk, in the queue, that has this first item."""
        results = self._results
        results.reserve_all(place + _ROW // _NUMBER)
        chunk = MapChunk(self._owner, self._settings, self._fn, [], range(0), results, place, self._priority, self._id)
        chunk.grow(row, pack)
        self._owner.admission.add(chunk, None, start=True)
        return chunk

    def _end(self, chunk: MapChunk) -> int:
        """Have a chunk grow no more; returns how many items it has got."""
        self._owner.admission.close(chunk)
        return chunk.grown

    def _start_alone(self, arguments: tuple[Any, ...], place: int) -> None:
        """Start the call of an item as a job of its own."""
        results = self._results
        results.reserve_all(place + 1)
        job: AnyJob = Job(self._owner, self._settings, self._fn, arguments, None, self._priority, f"{self._id}-{place}")
        job.added(results.sequence + place, 0.0, None)
        job.mark_retrieved()  # it is looked at when its turn comes, or the iteration has ended
        results.put(place, job)
        self._owner.admission.add(job, None, start=True)

    def _pack_column(self, items: list[Any]) -> PackedRow:
        columns = [items]
        return PackedRow(columns, self._owner.admission.pack_row(self._call, columns))

    def _pack_tuples(self, items: list[Any]) -> PackedRow:
        columns = list(map(list, zip(*items)))
        return PackedRow(columns, self._owner.admission.pack_row(self._call, columns))


def _size_of(value: Any) -> int:
    """Return about how many bytes a value comes to; of one that may change, or is not plain, that it goes alone."""
    kind = type(value)
    if kind is str or kind is bytes:
        return _NUMBER + len(value) if len(value) < _LARGE else _ALONE
    if kind is not tuple or len(value) > _WIDE:
        return _ALONE
    size = _NUMBER
    for part in value:
        kind = type(part)
        if kind in _NUMBERS:
            size += _NUMBER
        elif kind is str or kind is bytes:
            size += _NUMBER + len(part)
        else:
            return _ALONE
    return size if size < _LARGE else _ALONE


def _alone(value: Any) -> int:
    """Say that a value goes alone."""
    return _ALONE
