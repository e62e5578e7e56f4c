"""Running the items of a part in a worker: as little as possible for each, as there may be a million a second.

    permit ──► journal: started ──► call ──► journal: its value, in the row ──► next
                                        └─ it raised, or its value does not fit: the row is sent, then a frame of its own

A row is of pickles; once a whole row of them was of small whole numbers, or of floats, the next are of these themselves,
until a value is of another type.

Guarantees:
    An item begins only after its permit was acquired, and how it ended is in the journal before the next begins.
"""

from __future__ import annotations

import functools
import pickle
import struct
from typing import TYPE_CHECKING, Any, Callable, Iterable, NamedTuple

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.backends import _pickling
from parallel_exec.backends._outcomes import RETURNED, encode_unreadable
from parallel_exec.backends.process import wire
from parallel_exec.backends.process.child.writer import ENCODER, FLUSH_EVERY

if TYPE_CHECKING:
    from parallel_exec.backends.process.child.reader import WorkerTask
    from parallel_exec.backends.process.child.writer import Outbox

_ATOMS = frozenset((int, float, bool, str, bytes, type(None)))  # what pickles for certain, and can wait to be sent
_TINY = 64  # bytes of a pickled value whose packer is at hand
_NOTHING = (RETURNED, _pickling.Pickled(b"", None))
_MISFIT = object()  # what no row of numbers takes
_LAST_CELL = wire.JOURNAL_SIZE // wire.CELL
_END, _START, _RUNNING = wire.END, wire.START, wire.RUNNING


@functools.cache  # there are few sizes
def _packer(size: int) -> Callable[..., None]:
    """Return what writes a place in a row, for a pickle of so many bytes: in one go, which costs half of two."""
    return struct.Struct(f"<I{size}s").pack_into


_PACKERS = [_packer(size) for size in range(_TINY)]


class _Odd(NamedTuple):
    """How an item ended that has no place in a row."""

    kind: int
    pickled: _pickling.Pickled
    start: float
    end: float


class Unreadable:
    """Stands in for the function of a part that could not be unpickled."""

    def __init__(self, error: BaseException) -> None:
        self.encoded = encode_unreadable(error)


class ItemRunner:
    """Runs the items of parts; the child's main thread's."""

    def __init__(self, outbox: Outbox, acquire: Callable[[bool], bool]) -> None:
        self._outbox = outbox
        self._acquire = acquire
        self._unfit = _NOTHING
        self._kind = wire.EACH  # of the next row
        journal = outbox.journal
        self._numbers: dict[int, tuple[type, Any]] = {
            wire.INTS: (int, journal.ints),
            wire.FLOATS: (float, journal.floats),
        }

    def run(self, task: WorkerTask, fn: Any, columns: list[list[Any]]) -> bool:
        """Run a part, for the first item of which there is a permit; False if there was none for another.

        `columns`: a list for each of the function's arguments, with an element for each item.
        """
        current.running, current.number = _Item(task, self._outbox.journal), task.attempt
        serial, stop = task.serial, task.serial + task.high - task.low
        while True:
            if type(fn) is Unreadable:
                now = time.monotonic()
                odd: _Odd | None = _Odd(*fn.encoded, now, now)
            else:
                run_row = self._run_pickles if self._kind == wire.EACH else self._run_numbers
                low = task.low + serial - task.serial
                serial, odd = run_row(fn, zip(*[column[low : task.high] for column in columns]), serial)
            if odd is not None:
                self._outbox.hand_in(odd.kind, serial, odd.start, odd.end, odd.pickled)
                serial += 1
            if odd is None or serial == stop or not self._acquire(False):
                break
        current.running = None
        return serial == stop

    def _run_numbers(self, fn: Any, items: Iterable[tuple[Any, ...]], serial: int) -> tuple[int, _Odd | None]:
        """Do as `_run_pickles`, in a row of numbers. Not one loop for both: another call for each item would cost as much."""
        outbox, acquire, clock, born = self._outbox, self._acquire, time.monotonic, _forks.generation
        words, times = outbox.journal.words, outbox.journal.times
        wanted, cells = self._numbers[self._kind]
        start = end = clock()
        outbox.open_row(self._kind, serial, end)
        first, cell, flush_at, odd = serial, wire.FIRST_CELL, outbox.flushed + FLUSH_EVERY, None
        for args in items:
            if serial != first and not acquire(False):
                break
            times[_START] = start = end
            words[_RUNNING] = serial
            try:
                value = fn(*args)
            except BaseException as error:  # as there
                odd = _raised(error, start, clock(), born)
                break
            if _forks.generation != born:
                _forks.end()
            end = clock()
            try:
                cells[cell] = value if type(value) is wanted else _MISFIT
            except (TypeError, ValueError):  # of another type, or of more than 8 bytes
                kind, pickled = ENCODER.encode_value(value)
                odd, self._kind = _Odd(kind, pickled, start, end), wire.EACH
                break
            cell += 1
            words[_END] = cell * wire.CELL
            serial += 1
            if end > flush_at or cell == _LAST_CELL:
                outbox.send_row(serial, end)
                outbox.open_row(self._kind, serial, end)
                cell, flush_at = wire.FIRST_CELL, end + FLUSH_EVERY
        outbox.send_row(serial, end)
        return serial, odd

    def _run_pickles(self, fn: Any, items: Iterable[tuple[Any, ...]], serial: int) -> tuple[int, _Odd | None]:
        """Run items up to the first that has no place in a row, and return its serial and its end; (n, None): there was none.

        The first has its permit.
        """
        outbox, acquire, dumps, clock = self._outbox, self._acquire, pickle.dumps, time.monotonic
        area, words, times = outbox.journal.map, outbox.journal.words, outbox.journal.times
        start = end = clock()
        position, first, born, odd = outbox.open_row(wire.EACH, serial, end), serial, _forks.generation, None
        values, plain = [], True
        for args in items:
            if serial != first and not acquire(False):
                break
            times[_START] = start = end
            words[_RUNNING] = serial
            try:
                value = fn(*args)
            except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
                odd = _raised(error, start, clock(), born)
                break
            if _forks.generation != born:
                _forks.end()
            end = clock()
            try:
                data = dumps(value, 3) if type(value) in _ATOMS else b""
            except MemoryError:
                data = b""
            if not data:
                data, plain = self._pickle(value), False
            if not 0 < len(data) <= wire.ROW_VALUE:
                odd = self._misfit(data, start, end)
                break
            size = len(data)
            (_PACKERS[size] if size < _TINY else _packer(size))(area, position, size, data)
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
        return serial, odd

    def _pickle(self, value: Any) -> bytes:
        """Pickle a value; b"" if that failed, or if descriptors go with it: `_misfit` knows then."""
        self._unfit = ENCODER.encode_value(value)
        kind, pickled = self._unfit
        return pickled.data if kind == RETURNED and not pickled.has_descriptors() else b""

    def _misfit(self, data: bytes, start: float, end: float) -> _Odd:
        """Return the end of an item with a value that is too large for the row, or could not be pickled."""
        kind, pickled = (RETURNED, _pickling.Pickled(data, None)) if data else self._unfit
        self._unfit = _NOTHING  # its descriptors are open as long as it is there
        return _Odd(kind, pickled, start, end)


def _raised(error: BaseException, start: float, end: float, born: int) -> _Odd:
    """Return the end of an item that raised, if that was in this process."""
    _forks.end_child(born, error)
    return _Odd(*ENCODER.encode_error(error), start, end)


def _kind_for(types: set[type]) -> int:
    """Return the kind of row that suits values of these types."""
    return wire.INTS if types == {int} else wire.FLOATS if types == {float} else wire.EACH


class _Item:
    """The item that is running; what `current_task()` asks."""

    __slots__ = ("_journal", "_task")

    def __init__(self, task: WorkerTask, journal: wire.Journal) -> None:
        self._task = task
        self._journal = journal

    @property
    def id(self) -> str:
        """The item's id."""
        task = self._task
        return f"{task.name}-{task.number + task.low + self._journal.words[_RUNNING] - task.serial}"

    def view(self, number: int) -> Any:
        """Return what `current_task()` shows."""
        return self._task._replace(name=self.id, number=0, start=self._journal.times[_START]).view(number)
