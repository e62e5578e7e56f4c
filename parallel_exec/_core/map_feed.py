"""`map` over iterators in worker processes: each item is on its way before the next is asked for.

    next item ──► the chunk that grows ──► full: the next chunk
                      │
                      └─ in the queue since its first item: whoever has nothing to do takes it as it is

So items travel one by one to a pool that waits for them, and by the hundred to one that is busy. What makes no difference
to that is how long the iterator takes for an item: it may wait for the results of what it has yielded.

Guarantees:
    What an iterator has yielded is in the queue when it is asked for more: it may be stuck from then on.
    Of equal priority it starts behind what others had added when its chunk was begun; it may start ahead of what was added
    while that grew.
    An item is as it was when it was yielded. A chunk that grows is pickled by whoever takes it, the I/O thread: so it has
    either values that cannot change, and are pickled without user code, or items that were pickled when they came. A large
    item is a job of its own.

The race of the thread that reads items (appends one, then looks whether the chunk still grows) with the one that takes the
chunk (closes it, then counts its items): an item that the first finds left out goes into the next chunk. Which it is, the
lock tells.
"""

from __future__ import annotations

from parallel_exec._core.job import Job
from parallel_exec._core.map_chunk import MapChunk, MapResults, PackedRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.scheduler import Scheduler
    from parallel_exec._core.settings import Settings

_NUMBERS = frozenset((int, float, bool, type(None)))
_NUMBER = 8  # bytes that one of them comes to
_ROW = 1 << 13  # bytes that the items of a chunk come to; a guess: each piece that a worker is given carries all of it
_LARGE = _ROW // 4  # bytes from which an item goes alone
_NO_ROOM = _ROW  # what the size of an item is put at that is to be pickled at once
_SHORT = 256  # bytes of a call without arguments that is repeated for each item; a guess: most are less than 100
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
        self._admission = owner.admission
        self._gate = owner.monitor.gate
        self._settings = settings
        self._fn = fn
        self._priority = priority
        self._id = map_id
        self._results = results
        self._place = 0  # of the chunk's first item, or of the next, if there is no chunk
        self._chunk: MapChunk | None = None
        self._row: list[Any] = []  # its items
        self._room = 0  # bytes, if it is of pickled items
        call: Any = self._pickle(fn, ())
        # Whether the next item that may change may well travel with others; none does with a call that is too large to repeat.
        self._are_small = call is not None and call.is_light()
        self._call = call if self._are_small else None
        # Whether items are pickled as calls of the function, which may go alone as they are; else as calls of `len`.
        self._are_calls = call is not None and self._are_small and len(call.data) < _SHORT

    def read(self, iterables: tuple[Iterable[Any], ...]) -> None:
        """Read all items, and start their calls."""
        is_single = len(iterables) == 1
        items: Iterator[Any] = iter(iterables[0]) if is_single else zip(*iterables)
        pack = self._pack_column if is_single else self._pack_tuples
        number, size_of = (_NUMBER, _size_of) if self._call is not None else (_NO_ROOM, _too_large)
        gate, chunk, row, room = self._gate, self._chunk, self._row, 0
        for item in items:
            size = number if type(item) in _NUMBERS else size_of(item)
            room -= size
            if chunk is not None and room > 0 and gate.admits:
                row.append(item)
                if chunk.growing is not None or self._was_in_time():
                    continue
            if size == _NO_ROOM or self._room > 0:
                self._add_pickled((item,) if is_single else item)
                chunk = None
            else:
                chunk, row, room = self._open(item, pack), self._row, _ROW - size
        self._close()
        self._results.trim(self._place)

    def _open(self, item: Any, pack: Callable[[list[Any]], PackedRow]) -> MapChunk:
        """Put a chunk in the queue that has this item, and grows."""
        self._close()
        results = self._results
        results.reserve_all(self._place + _ROW // _NUMBER)
        start = (results, self._place, self._priority, self._id)
        self._chunk = chunk = MapChunk(self._owner, self._settings, self._fn, [], range(0), *start)
        self._row = [item]
        chunk.added(self._sequence(), 0.0, None)
        chunk.grow(self._row, pack)
        self._admission.add(chunk, None, start=True)
        return chunk

    def _sequence(self) -> int:
        """Return the place in the order added of what begins with the next item: behind what others have added meanwhile."""
        return self._owner.next_sequence() if self._place else self._results.sequence

    def _close(self) -> None:
        """Have the chunk grow no more."""
        chunk, self._chunk = self._chunk, None
        self._room = 0
        if chunk is not None:
            self._admission.close(chunk)
            self._place += chunk.grown

    def _was_in_time(self) -> bool:
        """Return whether the chunk, which somebody has taken, has got the latest of its items."""
        assert self._chunk is not None
        self._admission.close(self._chunk)  # it was; but the other thread may be about it
        return self._chunk.grown == len(self._row)

    def _add_pickled(self, arguments: tuple[Any, ...]) -> None:
        """Start the call of an item that is pickled now, with others of that kind unless it is large."""
        payload = self._pickle(self._fn if self._are_calls else len, arguments) if self._are_small else None
        if payload is None or not self._is_small(payload):
            self._start_alone(arguments, payload if self._are_calls else None)
            return
        item, size = (arguments, payload), len(payload.data)
        self._room -= size
        if self._chunk is not None and self._room > 0 and self._gate.admits:
            self._row.append(item)
            if self._chunk.growing is not None or self._was_in_time():
                return
        self._open(item, self._pack_pickled)
        self._room = _ROW - size

    def _pickle(self, fn: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Return a call, ready to travel; None if it cannot."""
        job: AnyJob = Job(self._owner, self._settings, fn, arguments, None, self._priority, self._id)
        self._admission.bind(job)
        self._admission.pack(job)
        return job.payload

    def _is_small(self, payload: Any) -> bool:
        return not payload.has_descriptors() and len(payload.data) < _LARGE

    def _start_alone(self, arguments: tuple[Any, ...], payload: Any) -> None:
        """Start the call of an item as a job of its own; None: it was not pickled yet."""
        self._close()
        results, place = self._results, self._place
        results.reserve_all(place + 1)
        sequence = self._sequence()
        self._place += 1
        name = f"{self._id}-{place}"
        job: AnyJob = Job(self._owner, self._settings, self._fn, arguments, None, self._priority, name)
        job.added(sequence, 0.0, None)
        job.packed(payload)
        job.mark_retrieved()  # it is looked at when its turn comes, or the iteration has ended
        results.put(place, job)
        self._admission.add(job, None, start=True)
        payload = job.payload
        self._are_small = self._call is not None and payload is not None and self._is_small(payload)

    # ── called with the lock held ───────────────────────────────────────────────────────────────────────────────────

    def _pack_column(self, items: list[Any]) -> PackedRow:
        columns = [items]
        return PackedRow(columns, self._admission.pack_row(self._call, columns))

    def _pack_tuples(self, items: list[Any]) -> PackedRow:
        columns = list(map(list, zip(*items)))
        return PackedRow(columns, self._admission.pack_row(self._call, columns))

    def _pack_pickled(self, items: list[tuple[tuple[Any, ...], Any]]) -> PackedRow:
        columns = list(map(list, zip(*[arguments for arguments, _ in items])))
        return PackedRow(columns, self._admission.pack_pickled(self._call, [payload for _, payload in items]))


def _size_of(value: Any) -> int:
    """Return about how many bytes a value comes to; `_NO_ROOM` if it is large, may change, or runs code to be pickled."""
    kind = type(value)
    if kind is str or kind is bytes:
        return _NUMBER + len(value) if len(value) < _LARGE else _NO_ROOM
    if kind is not tuple or len(value) > _WIDE:
        return _NO_ROOM
    size = _NUMBER
    for part in value:
        kind = type(part)
        if kind in _NUMBERS:
            size += _NUMBER
        elif kind is str or kind is bytes:
            size += _NUMBER + len(part)
        else:
            return _NO_ROOM
    return size if size < _LARGE else _NO_ROOM


def _too_large(value: Any) -> int:
    """Say that a value is to be pickled at once."""
    return _NO_ROOM
