"""Running the items of a `map` chunk in a worker: as little as possible for each, as there may be a million a second.

    permit ──► journal: started ──► call ──► journal: its value, in the row ──► next
                                        └─ it raised, or its value does not fit: the row is sent, then a frame of its own

A row is of pickles; once a whole row of them was of small whole numbers, or of floats, the next are of these themselves,
until a value is of another type.

A permit for a block of items was tried, instead of one for each: it saved 3 % of what a tiny item costs on both sides, as all
else that is noted of an item costs more, and what waited behind a slow item of its block could not be begun elsewhere.

Guarantees:
    An item begins only after its permit was acquired, and how it ended is in the journal before the next begins.
"""

from __future__ import annotations

import functools
import pickle
import struct

from parallel_exec import _forks
from parallel_exec._sync.clock import time
from parallel_exec.backends._outcomes import RETURNED
from parallel_exec.backends._pickling import Pickled
from parallel_exec.backends._reducers import ATOMS
from parallel_exec.backends.process import wire
from parallel_exec.backends.process.child.writer import ENCODER, FLUSH_EVERY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator, NamedTuple

    from parallel_exec.backends.process.child.reader import WorkerTask
    from parallel_exec.backends.process.child.writer import Outbox
else:
    from parallel_exec._typing import NamedTuple

_READY_SIZES = 64  # bytes of a pickled value whose packer is at hand
_MISFIT = object()  # what no row of numbers takes
_LAST_CELL = wire.JOURNAL_SIZE // wire.CELL
_END, _START, _RUNNING = wire.END, wire.START, wire.RUNNING


@functools.cache  # there are few sizes
def _packer(size: int) -> Callable[..., None]:
    """Return what writes a place in a row, for a pickle of so many bytes: in one go, which costs half of two."""
    return struct.Struct(f"<I{size}s").pack_into


_PACKERS = [_packer(size) for size in range(_READY_SIZES)]


class _OwnFrame(NamedTuple):
    """How an item ended that has no place in a row."""

    kind: int
    pickled: Pickled
    start: float
    end: float


class MapRunner:
    """Runs the items of chunks; the child's main thread's."""

    def __init__(self, outbox: Outbox, acquire: Callable[[bool], bool]) -> None:
        self._outbox = outbox
        self._acquire = acquire
        self._kind = wire.EACH  # of the next row
        journal = outbox.journal
        self._numbers: dict[int, tuple[type, Any]] = {
            wire.INTS: (int, journal.ints),
            wire.FLOATS: (float, journal.floats),
        }

    def run(self, task: WorkerTask, fn: Any, columns: list[list[Any]]) -> bool:
        """Run a chunk, for the first item of which there is a permit; False if there was none for another.

        `columns`: a list for each of the function's arguments, with an element for each item.
        """
        items = zip(*[column[task.low : task.high] for column in columns])
        serial, stop = task.serial, task.serial + task.high - task.low
        while True:
            run_row = self._run_pickles if self._kind == wire.EACH else self._run_numbers
            serial, own = run_row(fn, items, serial)
            if own is None:
                break
            self._outbox.report(own.kind, serial, own.start, own.end, own.pickled)
            del own  # descriptors may be open as long as it is there
            serial += 1
            if serial == stop or not self._acquire(False):
                break
        return serial == stop

    def refuse(self, task: WorkerTask, kind: int, pickled: Pickled) -> bool:
        """End each item of a chunk that could not be unpickled in the same way; else as `run`."""
        now = time.monotonic()
        for serial in range(task.serial, task.serial + task.high - task.low):
            if serial != task.serial and not self._acquire(False):
                return False
            self._outbox.report(kind, serial, now, now, pickled)
        return True

    def _run_numbers(self, fn: Any, items: Iterator[tuple[Any, ...]], serial: int) -> tuple[int, _OwnFrame | None]:
        """Do as `_run_pickles`, in a row of numbers. Not one loop for both: another call for each item would cost as much."""
        outbox, acquire, clock, born = self._outbox, self._acquire, time.monotonic, _forks.generation
        words, times = outbox.journal.words, outbox.journal.times
        wanted, cells = self._numbers[self._kind]
        start = end = clock()
        outbox.open_row(self._kind, serial, end)
        first, cell, flush_at, own = serial, wire.FIRST_CELL, outbox.flushed + FLUSH_EVERY, None
        for args in items:
            if serial != first and not acquire(False):
                break
            times[_START] = start = end
            words[_RUNNING] = serial
            try:
                value = fn(*args)
            except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
                own = _raised(error, start, clock(), born)
                break
            if _forks.generation != born:
                _forks.end()
            end = clock()
            try:
                cells[cell] = value if type(value) is wanted else _MISFIT
            except (TypeError, ValueError):  # of another type, or of more than 8 bytes
                own, self._kind = _OwnFrame(*ENCODER.encode_value(value), start, end), wire.EACH
                break
            cell += 1
            words[_END] = cell * wire.CELL
            serial += 1
            if end > flush_at or cell == _LAST_CELL:
                outbox.send_row(serial, end)
                outbox.open_row(self._kind, serial, end)
                cell, flush_at = wire.FIRST_CELL, end + FLUSH_EVERY
        outbox.send_row(serial, end)
        return serial, own

    def _run_pickles(self, fn: Any, items: Iterator[tuple[Any, ...]], serial: int) -> tuple[int, _OwnFrame | None]:
        """Run items up to the first that has no place in a row; returns its serial number, and how it ended.

        The first item has its permit. None in the second place: all were run that had a permit, and have a place.
        """
        outbox, acquire, dumps, clock = self._outbox, self._acquire, pickle.dumps, time.monotonic
        area, words, times = outbox.journal.map, outbox.journal.words, outbox.journal.times
        start = end = clock()
        position, first, born, own = outbox.open_row(wire.EACH, serial, end), serial, _forks.generation, None
        values, plain = [], True
        for args in items:
            if serial != first and not acquire(False):
                break
            times[_START] = start = end
            words[_RUNNING] = serial
            try:
                value = fn(*args)
            except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
                own = _raised(error, start, clock(), born)
                break
            if _forks.generation != born:
                _forks.end()
            end = clock()
            try:
                data: Any = dumps(value, 3) if type(value) in ATOMS else b""
            except MemoryError:
                data = b""
            if not data:
                data, plain = _encode(value, start, end), False
            if type(data) is _OwnFrame or len(data) > wire.ROW_VALUE:
                own = data if isinstance(data, _OwnFrame) else _OwnFrame(RETURNED, Pickled(data, None), start, end)
                break
            size = len(data)
            (_PACKERS[size] if size < _READY_SIZES else _packer(size))(area, position, size, data)
            position += 4 + size
            words[_END] = position
            serial += 1
            values.append(value)
            if end - outbox.flushed > FLUSH_EVERY or position > wire.ROW_FULL:
                outbox.send_row(serial, end, values if plain else None)
                position, values, plain = outbox.open_row(wire.EACH, serial, end), [], True
        outbox.send_row(serial, end, values if plain else None)
        if plain and values:
            self._kind = _kind_for(set(map(type, values)))
        return serial, own


def _encode(value: Any, start: float, end: float) -> bytes | _OwnFrame:
    """Return the pickle of a value, or the frame of its item: where it has none, or descriptors go with it."""
    kind, pickled = ENCODER.encode_value(value)
    if kind == RETURNED and not pickled.has_descriptors():
        return pickled.data
    return _OwnFrame(kind, pickled, start, end)


def _raised(error: BaseException, start: float, end: float, born: int) -> _OwnFrame:
    """Return the end of an item that raised, if that was in this process."""
    _forks.end_child(born, error)
    return _OwnFrame(*ENCODER.encode_error(error), start, end)


def _kind_for(types: set[type]) -> int:
    """Return the kind of row that suits values of these types."""
    return wire.INTS if types == {int} else wire.FLOATS if types == {float} else wire.EACH
