"""`map` over many items in worker processes: a *chunk* is a row of items that travels as one.

    items ──► MapChunk ──► queue ──► split to what a worker should have ──► values, in bulk ──► MapResults ──► iterator
                 │                      │                                      │
                 │                      └─ what was taken back: a new chunk    └─ an item that failed: a job of its own
                 └─ it cannot travel: each item a job of its own

A chunk of what an iterator yields is in the queue from its first item on, and grows until it is taken (`map_feed.py`).

Guarantees:
    An item has its own permit in the worker, its own place in the journal, its own error and timeout: what is taken back,
    lost or stopped is always a number of whole items. One that failed becomes a job of its own, charged with that attempt,
    and is retried by policy.
    Where a chunk cannot be pickled or unpickled, or a worker dies of that, all its items become jobs of their own, and no
    attempt is charged: so only the item that is the cause fails.
    Each item's outcome is stored once: a chunk's row shrinks when it is split, and its tail is a chunk of its own.
    `MapResults` has no lock, so that whoever interrupts its iteration, a signal handler say, may end what it waits for.
    The iterating thread notes the place it waits for, then looks there; a thread that fills a place looks afterwards
    whether it is waited for.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as WaitTimeout

from parallel_exec._core.completion import CANCELLED
from parallel_exec._core.job import Job
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK, Parker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Callable, Iterator, NamedTuple

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.scheduler import Scheduler
    from parallel_exec._core.settings import Settings
    from parallel_exec._outcome import Outcome
else:
    from parallel_exec._typing import NamedTuple

_MISSING = object()  # the place of an item that has not ended


class MapResults:
    """The outcomes of one `map` call, in order.

    Attributes:
        sequence: the place of the first item in the order added; the others follow.
        override: how chunks that are split off, and items that fail, end once nobody iterates any more.
    """

    def __init__(self, owner: Scheduler, sequence: int) -> None:
        self._owner = owner
        self.sequence = sequence
        self.override: Failure | None = None
        # For each item `_MISSING`, a `Failure`, a job that has or will have its outcome, or None: the value is in a row, or
        # was yielded.
        # Written by whoever ends a chunk or an item, each place once, and by the iterator.
        self._places: list[Any] = []
        self._rows: dict[int, list[Any]] = {}  # values, by the place of the first
        self._chunks: dict[MapChunk, None] = {}  # those that have not ended, in the order submitted
        self._news = Parker()
        self._awaited = -1  # the iterator's own

    def reserve(self, count: int) -> int:
        """Make room for so many more items; returns the place of the first."""
        first = len(self._places)
        self._places += [_MISSING] * count
        return first

    def reserve_all(self, count: int) -> None:
        """Make room for so many items at least, all told."""
        self._places += [_MISSING] * (count - len(self._places))

    def trim(self, count: int) -> None:
        """Know that there are no more items than so many, all told."""
        del self._places[count:]

    def misses(self, place: int) -> bool:
        """Return whether an item has not ended."""
        return self._places[place] is _MISSING

    def fill(self, first: int, values: list[Any]) -> None:
        """Store what items in a row returned: the list itself, which the iterator empties."""
        if not values:
            return
        self._rows[first] = values  # first: who finds the place filled looks here
        self._places[first : first + len(values)] = [None] * len(values)
        self._tell(first, first + len(values))

    def put(self, place: int, value: Any) -> None:
        """Store one outcome: a `Failure`, or the job that has or will have it."""
        self._places[place] = value
        self._tell(place, place + 1)

    def _tell(self, first: int, stop: int) -> None:
        if first <= self._awaited < stop:
            self._news.unpark()

    def _wait(self, place: int, until: float | None) -> None:
        self._owner.enter_wait()  # which refuses what would be for ever
        self._awaited = place
        try:
            while self._places[place] is _MISSING:
                left = TICK if until is None else until - time.monotonic()
                if left <= 0:
                    raise WaitTimeout
                self._news.wait(min(left, TICK))  # a wake-up may be late, and meant for an earlier place
        finally:
            self._awaited = -1

    def results(self, until: float | None) -> Iterator[Any]:
        """Yield the values in order, and drop each; cancels what is left when closed or when one raises."""
        places = self._places
        place = 0
        row: list[Any] | None = None
        try:
            while place < len(places):
                if places[place] is _MISSING:
                    self._wait(place, until)
                row = self._rows.pop(place, None)
                if row is not None:
                    place += len(row)
                    row.reverse()
                    while row:  # so that nothing here keeps what it has handed over
                        yield row.pop()
                else:
                    outcome, places[place] = places[place], None
                    place += 1
                    box = [outcome]
                    del outcome
                    yield _take(box, until)
        finally:
            self.cancel(place)
            del self, places, row  # an error's traceback holds this frame

    def join(self, chunk: MapChunk) -> None:
        """Know a chunk, to cancel it."""
        self._chunks[chunk] = None

    def leave(self, chunk: MapChunk) -> None:
        """Forget a chunk that has ended."""
        self._chunks.pop(chunk, None)

    def cancel(self, first: int = 0) -> None:
        """Cancel what has not begun, from a place on: nobody iterates any more."""
        self.override = CANCELLED
        for chunk in list(self._chunks):
            chunk.cancel()
        for value in self._places[first:]:
            if isinstance(value, Job):
                value.cancel()


def _take(box: list[Any], until: float | None) -> Any:
    """Return the value of what is in the box, or raise its error, keeping no reference to either."""
    outcome = box.pop()
    try:
        if type(outcome) is Failure:
            raise outcome.error
        return outcome.result(None if until is None else max(0.0, until - time.monotonic()))
    finally:
        del outcome


class PackedRow(NamedTuple):
    """Items as columns (see `MapChunk`), and what the back end made of them, ready to travel."""

    columns: list[list[Any]]
    payload: Any


class MapChunk(Job[None]):
    """The job of a row of items; seen by nobody but the scheduler, the process pool and its `MapResults`.

    Args:
        owner, settings, fn, priority, id, context: as for a `Job`.
        columns: what the items are made of: for each of the mapped iterables a list, with an element for each item. (A
            tuple for each item would cost more than all the rest that is done here for a tiny one.)
        rows: the items, as indices into them; empty for a chunk that is to `grow`.
        results: takes what becomes of them.
        first: the place there of the item with index 0.

    Attributes:
        low, high: the row, as indices into `columns`.
        growing: while it grows: a list of its items, to which whoever reads them appends; then None.
        grown: how many of these it has got.
        good: how many of them have returned.
        serial: the number under which a worker has the first of them; the others follow.
        next_serial: that of the first that was not heard to have ended.
    """

    owner: Scheduler
    _quiet = True  # what fails is an item, whose own job says so

    def __init__(
        self,
        owner: Scheduler,
        settings: Settings,
        fn: Callable[..., Any],
        columns: list[list[Any]],
        rows: range,
        results: MapResults,
        first: int,
        priority: int,
        id: str,
        context: Context | None = None,
    ) -> None:
        super().__init__(owner, settings, fn, (columns,), None, priority, id, context)
        self.sequence = results.sequence + first + rows.start
        self.columns = columns
        self.low, self.high = rows.start, rows.stop
        self.weight = len(rows)
        self.growing: list[Any] | None = None
        self.grown = 0
        self._unpacked: tuple[list[Any], Callable[[list[Any]], PackedRow]] | None = None  # until it is closed
        self.first = first
        self.good = self.serial = self.next_serial = 0
        self._results = results
        results.join(self)

    # ── while it grows ──────────────────────────────────────────────────────────────────────────────────────────────

    def grow(self, items: list[Any], pack: Callable[[list[Any]], PackedRow]) -> None:
        """Have these items, and those that are appended until it is closed. Before it is queued.

        Args:
            items: at least one.
            pack: makes them ready to travel; called with the lock held, so it runs no user code.
        """
        self.growing = items
        self._unpacked = items, pack

    def size(self) -> int:
        growing = self.growing
        return self.weight if growing is None else len(growing)

    def bind(self, bind: Callable[..., Any], *, here: bool) -> None:
        bound = bind(self.fn, (), None, here)
        if bound is not None:
            self.fn = bound[0]
        for place, column in enumerate(self.columns):
            bound = bind(self.fn, column, None, here)
            if bound is not None:
                self.columns[place] = list(bound[1])

    def close(self) -> None:
        if self._unpacked is None:
            return
        items, pack = self._unpacked
        self.growing = None  # first: who appends later sees that, and asks how many it has got
        self.grown = self.high = self.weight = count = len(items)
        self.columns, self.payload = pack(items[:count])
        self._unpacked = None  # last: what a signal handler has torn apart is done again by whoever takes it

    def handed_out(self) -> None:
        self.close()
        super().handed_out()

    # ── in the process pool: called with the scheduler's lock held ──────────────────────────────────────────────────

    def split(self, at: int) -> MapChunk:
        """Cut off the items from index `at` on, and return them as a chunk that follows this one, counted in."""
        rest = (self.columns, range(at, self.high), self._results, self.first, self.priority, self.id, self.context)
        tail = MapChunk(self.owner, self.settings, self.fn, *rest)
        tail.packed(self.payload)
        tail.added(self._sequence_of(at), self.queued_at, None)
        if self._results.override is not None:
            tail.override_with(self._results.override)
        self.high, self.weight = at, at - self.low
        self.owner.add_split(tail)
        return tail

    def sent(self, serial: int) -> None:
        """A worker has all of it, the first item under this number."""
        self.serial = self.next_serial = serial

    @property
    def left(self) -> int:
        """How many of its items a worker still has."""
        return self.serial + self.high - self.low - self.next_serial

    def ended(self, stop: int) -> bool:
        """Its items before this number have ended; returns whether a worker has none of them any more."""
        self.next_serial = stop
        return not self.left

    def has_unended(self, serial: int) -> bool:
        """Return whether a worker has an item under this number, and was not heard to have ended it."""
        return self.next_serial <= serial < self.serial + self.high - self.low

    def index_of(self, serial: int) -> int:
        """Return the index of the item that the worker has under this number."""
        return self.low + serial - self.serial

    # ── its items: called without the lock ──────────────────────────────────────────────────────────────────────────

    def item_id(self, index: int) -> str:
        """Return an item's id: the map's, and the item's place in it."""
        return f"{self.id}-{self.first + index}"

    def returned(self, index: int, values: list[Any]) -> None:
        """Store the values of items from `index` on."""
        self.good += len(values)
        self._results.fill(self.first + index, values)

    def failed(self, index: int, error: BaseException, start: float, end: float, worker: str) -> None:
        """Make an item that failed a job of its own, after its first attempt."""
        item = self._make_job(index)
        item.packed(self.payload.of_item(index, self.first, self.id))
        item.begin(None, worker, start)
        self.owner.add_failed_item(item, error, end)
        self._cancel_if_closed(item)

    def isolate(self, index: int) -> None:
        """Make an item that has not run a job of its own."""
        item = self._make_job(index)
        if self.payload is not None and self.payload.apart:
            item.packed(self.payload.of_item(index, self.first, self.id))
        self.owner.admission.add_item(item)
        self._cancel_if_closed(item)

    def isolate_all(self) -> None:
        """Make each item a job of its own that has not ended: none is known to have begun."""
        for index in range(self.low, self.high):
            if self._results.misses(self.first + index):
                self.isolate(index)

    def _sequence_of(self, index: int) -> int:
        """Return an item's place in the order added."""
        return self.sequence + index - self.low

    def _make_job(self, index: int) -> AnyJob:
        """Return the job of one item, in the item's place among the results."""
        arguments = tuple([column[index] for column in self.columns])
        item: AnyJob = Job(
            self.owner, self.settings, self.fn, arguments, None, self.priority, self.item_id(index), self.context
        )
        item.added(self._sequence_of(index), self.queued_at, None)
        item.mark_retrieved()  # it is looked at when its turn comes, or the iteration has ended
        self._results.put(self.first + index, item)
        if self._results.override is not None:
            item.override_with(self._results.override)
        return item

    def _cancel_if_closed(self, item: AnyJob) -> None:
        """Cancel an item that was added while the iterator was being closed, as that sets the override, then looks around."""
        if self._results.override is not None:
            item.cancel()

    def settle(self, outcome: Outcome, cancelled: bool) -> None:
        """End the chunk; if it was ended from outside, so are its items, and if it could not be pickled, they go on alone."""
        if self._unpacked is not None:
            with self.owner.lock:
                self.close()
        if self.payload is None and not cancelled and not self.done():
            outcome = Success(None)
            self.isolate_all()
        elif type(outcome) is Failure:
            for index in range(self.low, self.high):
                if self._results.misses(self.first + index):
                    self._results.put(self.first + index, outcome)
        if type(outcome) is Success:
            self.weight = self.good  # the others are jobs of their own, which are counted when they end
        super().settle(outcome, cancelled)
        self.payload = None
        self.columns = []
        self.args = None
        self._results.leave(self)
