"""`map` over many items in worker processes: a *part* is a stretch of items that travels as one.

    items ──► Part ──► queue ──► split to what a worker should have ──► values, in bulk ──► Mapping ──► iterator
               │                        │                                  │
               │                        └─ what was taken back: a new part └─ an item that failed: a task of its own
               └─ it cannot travel: each item a task of its own

Guarantees:
    An item has its own permit in the worker, its own place in the journal, its own error and timeout: what is taken back,
    lost or stopped is always a number of whole items. One that failed becomes a task of its own, with that attempt on its
    account, and is retried by policy.
    Where a part cannot be pickled or unpickled, or a worker dies of that, all its items become tasks of their own, with
    nothing on their account: so only the item that is the cause fails.
    Each item's outcome is stored once: a part's stretch shrinks when it is split, and its tail is a part of its own.
    `MapResults` has no lock, so that whoever interrupts its iteration, a signal handler say, may end what it waits for. The
    iterator says which place it waits for, then looks there; who fills a place looks then whether it is waited for.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as WaitTimeout
from typing import TYPE_CHECKING, Any, Callable, Iterator

from parallel_exec._core.completion import CANCELLED
from parallel_exec._core.job import Job
from parallel_exec._outcome import Failure, Outcome, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK, Parker

if TYPE_CHECKING:
    from contextvars import Context

    from parallel_exec._core.job import AnyJob
    from parallel_exec.config import Settings
    from parallel_exec.future import FutureOwner

_MISSING = object()  # the place of an item that has not ended


class _Raise:
    """In the place of an item's value: what to raise for it."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class MapResults:
    """The outcomes of one `map` call, in order.

    Attributes:
        places: for each item `_MISSING`, a `_Raise`, the future of a task that will tell, or None: its value is in a stretch,
            or was yielded. Written by whoever ends a part or an item, each place once, and by the iterator.
        parts: those that have not ended, as submitted; the tails of split ones are added.
        verdict: what becomes of parts that are split off, and of items that fail, once nobody iterates any more.
    """

    def __init__(self) -> None:
        self.places: list[Any] = []
        self.parts: dict[AnyJob, None] = {}  # in order
        self.override: Failure | None = None
        self._stretches: dict[int, list[Any]] = {}  # values in a row, by the place of the first
        self._news = Parker()
        self._awaited = -1  # the iterator's own

    def reserve(self, count: int) -> int:
        """Make room for so many more items; returns the place of the first."""
        first = len(self.places)
        self.places += [_MISSING] * count
        return first

    def fill(self, first: int, values: list[Any]) -> None:
        """Store what a stretch of items returned: the list itself, which the iterator empties."""
        if not values:
            return
        self._stretches[first] = values  # first: who finds the place filled looks here
        self.places[first : first + len(values)] = [None] * len(values)
        self._tell(first, first + len(values))

    def put(self, place: int, value: Any) -> None:
        """Store one outcome: a value, a `_Raise`, or the future of a task that will tell."""
        self.places[place] = value
        self._tell(place, place + 1)

    def _tell(self, first: int, stop: int) -> None:
        if first <= self._awaited < stop:
            self._news.unpark()

    def _wait(self, place: int, until: float | None) -> None:
        self._awaited = place
        try:
            while self.places[place] is _MISSING:
                left = TICK if until is None else until - time.monotonic()
                if left <= 0:
                    raise WaitTimeout
                self._news.wait(min(left, TICK))  # it may also be a late word of an earlier place
        finally:
            self._awaited = -1

    def results(self, until: float | None) -> Iterator[Any]:
        """Yield the values in order, and drop each; cancels what is left when closed or when one raises."""
        places = self.places
        place = 0
        stretch: list[Any] | None = None
        try:
            while place < len(places):
                if places[place] is _MISSING:
                    self._wait(place, until)
                stretch = self._stretches.pop(place, None)
                if stretch is not None:
                    place += len(stretch)
                    stretch.reverse()
                    while stretch:  # so that nothing here keeps what it has handed over
                        yield stretch.pop()
                else:
                    outcome, places[place] = places[place], None
                    place += 1
                    box = [outcome]
                    del outcome
                    yield _take(box, until)
        finally:
            self.cancel()
            del self, places, stretch  # an error's traceback holds this frame

    def leave(self, part: AnyJob) -> None:
        """Forget a part that has ended."""
        self.parts.pop(part, None)

    def cancel(self) -> None:
        """Cancel what has not begun: nobody iterates any more."""
        self.override = CANCELLED
        for part in list(self.parts):
            part.cancel()
        for value in self.places:
            if isinstance(value, Job) and value.stands_for is not None:
                value.cancel()


def _take(box: list[Any], until: float | None) -> Any:
    """Return the value of what is in the box, or raise its error, keeping no reference to either."""
    outcome = box.pop()
    try:
        if type(outcome) is _Raise:
            raise outcome.error
        return outcome.result(None if until is None else max(0.0, until - time.monotonic()))
    finally:
        del outcome


class MapChunk(Job[None]):
    """The future of a stretch of items; seen by nobody but the scheduler, the process pool and its `MapResults`.

    Attributes:
        columns: what the items are made of: for each of the mapped iterables a list, with an element for each item. (A
            tuple for each item would cost more than all the rest that is done here for a tiny one.)
        low, high: the stretch, as indices into them.
        left: how many of them a worker still has; of the I/O thread, changed under the scheduler's lock.
        good: how many have returned.
        serial: the number under which a worker has the first of them.
    """

    weight = 1  # set in __init__; the class's is a plain task's
    _quiet = True  # its items tell

    def __init__(
        self,
        owner: FutureOwner,
        settings: Settings,
        context: Context,
        fn: Callable[..., Any],
        columns: list[list[Any]],
        mapping: MapResults,
        first: int,
        make_single: Callable[[MapChunk, int], AnyJob],
    ) -> None:
        super().__init__(owner, settings, context, fn, (columns,))
        self.columns = columns
        self.low, self.high = 0, len(columns[0])
        self.weight = self.high
        self.left = 0
        self.good = 0
        self.serial = 0
        self.mapping = mapping
        self.first = first
        self.make_single = make_single
        mapping.parts[self] = None

    def split(self, at: int) -> MapChunk:
        """Cut off the items from index `at` on, and return them as a part that follows this one. Under the lock."""
        context: Any = self.context
        tail = MapChunk(
            self.owner, self.settings, context, self.fn, self.columns, self.mapping, self.first, self.make_single
        )
        tail.payload = self.payload
        tail.priority, tail._id = self.priority, self._id
        tail.queued_at = self.queued_at
        tail.override = self.mapping.override
        tail.sequence = self.sequence + (at - self.low)
        tail.low, tail.high = at, self.high
        tail.weight = tail.high - tail.low
        self.high, self.weight = at, at - self.low
        return tail

    def index_of(self, serial: int) -> int:
        """Return the index of the item that the worker has under this number."""
        return self.low + serial - self.serial

    def item_id(self, index: int) -> str:
        """Return an item's id: the map's, and the item's place in it."""
        return f"{self.id}-{self.first + index}"

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Return what an item's call is given."""
        return tuple([column[index] for column in self.columns])

    def returned(self, index: int, values: list[Any]) -> None:
        """Store the values of items from `index` on."""
        self.good += len(values)
        self.mapping.fill(self.first + index, values)

    def failed(self, index: int, error: BaseException, start: float, end: float, worker: str) -> None:
        """Make an item that failed a task of its own, after its first attempt."""
        single = self._single(index)
        single.started_at = single.first_started_at = start
        single.worker = worker
        single.attempt_number = 1
        single.payload = self.payload  # the same bytes, of which it is one item
        single.stretch = (index, index + 1, self.first, self.id)
        owner: Any = self.owner
        owner.add_failed_item(single, error, end)
        self._cancel_if_closed(single)

    def isolate(self, index: int) -> None:
        """Make an item that has not run a task of its own."""
        single = self._single(index)
        owner: Any = self.owner
        owner.admission.add_item(single)
        self._cancel_if_closed(single)

    def set_all_apart(self) -> None:
        """Make each item a task of its own that has not ended: none is known to have begun."""
        self.weight = 0  # what they stand for is counted when they end
        for index in range(self.low, self.high):
            if self.mapping.places[self.first + index] is _MISSING:
                self.isolate(index)

    def _single(self, index: int) -> AnyJob:
        single = self.make_single(self, index)
        single.sequence = self.sequence + index - self.low
        self.mapping.put(self.first + index, single)
        single.override = self.mapping.override
        return single

    def _cancel_if_closed(self, single: AnyJob) -> None:
        """Cancel what was adopted while the iterator was being closed: who closes it sets the verdict, then looks around."""
        if self.mapping.override is not None:
            single.cancel()

    def settle(self, outcome: Outcome, cancelled: bool) -> None:
        """End the part; if it was ended from outside, so are its items, and if it could not be pickled, they go on alone."""
        if self.payload is None and not cancelled and not self.done():
            outcome = Success(None)
            self.set_all_apart()
        elif type(outcome) is Failure:
            for index in range(self.low, self.high):
                if self.mapping.places[self.first + index] is _MISSING:
                    self.mapping.put(self.first + index, _Raise(outcome[0]))
        super().settle(outcome, cancelled)
        self.payload = None
        self.columns = []
        self.args = None
        self.mapping.leave(self)
