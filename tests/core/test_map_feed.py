"""`parallel_exec._core.map_feed`: what an iterator yields is on its way before it is asked for more."""

from __future__ import annotations

import itertools
import pickle
import sys
import threading
import time
from types import FrameType
from typing import Any, Callable, Iterator

import pytest
import work

from parallel_exec._core import map_feed
from parallel_exec._core.job import PLACES
from parallel_exec._core.map_chunk import MapChunk, MapResults
from parallel_exec._core.map_feed import MapFeed
from parallel_exec._core.ready_queue import ReadyQueue
from parallel_exec._core.settings import Settings


class Payload:
    """What the back end makes of a call."""

    def __init__(self, job: Any, *, light: bool = True) -> None:
        self.data = pickle.dumps((job.fn, job.args))
        self._light = light

    def has_descriptors(self) -> bool:
        """Return whether some go with it."""
        return False

    def is_light(self) -> bool:
        """Return whether it is."""
        return self._light


class Owner:
    """As much of a scheduler as is asked for; who takes jobs finds them in a queue."""

    def __init__(self, *, light: bool = True) -> None:
        self.admission = self.monitor = self.gate = self
        self.lock = threading.RLock()
        self.admits = True
        self.ready = ReadyQueue()
        self.next_sequence = itertools.count(1 << PLACES, 1 << PLACES).__next__
        self._light = light
        self.on_add: Callable[[], object] = lambda: None

    def bind(self, job: Any) -> None:
        """Nothing is shared."""

    def pack(self, job: Any) -> None:
        """Make a call ready to travel."""
        job.packed(Payload(job, light=self._light))

    def pack_row(self, call: Payload, columns: list[list[Any]]) -> list[Any]:
        """Return what travels: a copy."""
        return [list(column) for column in columns]

    def pack_pickled(self, call: Payload, payloads: list[Payload]) -> list[Any]:
        """Return what travels."""
        assert call is not None
        return list(map(list, zip(*[pickle.loads(payload.data)[1] for payload in payloads])))

    def add(self, job: Any, batches: None, *, start: bool) -> None:
        """Put a job in the queue, unless nothing is admitted."""
        if not self.admits:
            raise RuntimeError("after shutdown")
        with self.lock:
            if job.weight:
                self.pack(job)
            job.added(job.sequence, 7.0, None)
            job.queued()
            self.ready.push(job)
        self.on_add()

    def close(self, job: Any) -> None:
        """Have it grow no more."""
        with self.lock:
            job.close()
            self.ready.grown(job)

    def take(self) -> tuple[int, list[Any]] | None:
        """Take a job; returns the place of its first item, and its items, or None."""
        with self.lock:
            job: Any = self.ready.pop()
            if job is None:
                return None
            job.handed_out()
            if type(job) is not MapChunk:
                return int(job.id.rpartition("-")[2]), [job.args]
            assert len(job.columns[0]) == job.weight == job.high == job.size()
            assert [list(column) for column in job.columns] == job.payload
            return job.first, list(zip(*job.columns))


PLACE_0 = 100


def feed(owner: Owner, *iterables: Any) -> MapResults:
    """Read them all."""
    known: Any = owner
    policy: Any = None
    results = MapResults(known, PLACE_0)
    MapFeed(known, Settings(None, policy), work.double, 3, "map", results).read(iterables)
    return results


def take_all(owner: Owner) -> list[tuple[int, list[Any]]]:
    """Take what is in the queue."""
    return list(iter(owner.take, None))


def test_what_nobody_takes_travels_together() -> None:
    """The queue counts the items as they come."""
    owner = Owner()

    def read() -> Iterator[int]:
        for number in range(500):
            assert owner.ready.calls() == number
            yield number

    results = feed(owner, read())
    assert take_all(owner) == [(0, [(number,) for number in range(500)])]
    assert owner.ready.calls() == 0
    assert results.misses(499)
    with pytest.raises(IndexError):
        results.misses(500)


def test_what_is_taken_at_once_travels_alone() -> None:
    """What was yielded is in the queue by the time that the next item is asked for."""
    owner = Owner()
    taken: list[Any] = []

    def read() -> Iterator[int]:
        for number in range(5):
            yield number
            taken.append(owner.take())

    feed(owner, read())
    assert taken == [(number, [(number,)]) for number in range(5)]
    assert owner.take() is None


def test_a_chunk_is_closed_when_it_is_full() -> None:
    """Each piece that a worker is given carries all of it."""
    owner = Owner()
    feed(owner, iter(range(3000)))
    assert owner.ready.calls() == 3000
    taken = take_all(owner)
    assert [first for first, _ in taken] == [0, *itertools.accumulate(len(items) for _, items in taken[:-1])]
    assert [number for _, items in taken for (number,) in items] == list(range(3000))
    assert max(len(items) for _, items in taken) <= 1024
    feed(owner, iter(["x" * 1000] * 20))
    assert 3 <= len(take_all(owner)) <= 5


class Number(int):
    """A type of its own."""


PICKLED = {
    "what may change": [1],
    "what has something that may change": (1, [2]),
    "what has a type of its own": Number(7),
    "what is wide": tuple(range(100)),
}


@pytest.mark.parametrize("what", PICKLED)
def test_what_is_pickled_at_once(what: str) -> None:
    """It travels with others of that kind, and with what comes after it; what comes before it is ahead."""
    owner = Owner()
    odd = PICKLED[what]
    feed(owner, iter([1, 2, odd, 3, odd, 4]))
    assert take_all(owner) == [(0, [(1,), (2,)]), (2, [(odd,), (3,), (odd,), (4,)])]


def test_what_is_pickled_is_as_it_was() -> None:
    """Whatever becomes of it afterwards."""
    owner = Owner()
    only: list[int] = []

    def read() -> Iterator[list[int]]:
        for number in range(3):
            only[:] = [number]
            yield only

    feed(owner, read())
    with owner.lock:
        chunk: Any = owner.ready.pop()
        chunk.handed_out()
    assert chunk.payload == [[[0], [1], [2]]]


def test_what_is_large_goes_alone() -> None:
    """Others travel together again once one is small."""
    owner = Owner()
    large: Any = ["x" * map_feed._ROW]
    feed(owner, iter([[1], [2], large, large, "y" * map_feed._ROW, [3], [4], [5], 6]))
    taken = [(first, len(items)) for first, items in take_all(owner)]
    assert taken == [(0, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 3)]


def test_a_chunk_of_what_was_pickled_is_closed_when_it_is_full() -> None:
    """As one of what is plain."""
    owner = Owner()
    feed(owner, ([number] for number in range(3000)))
    taken = take_all(owner)
    assert [number for _, items in taken for ((number,),) in items] == list(range(3000))
    assert 10 < len(taken) < 100


def test_a_function_that_is_heavy() -> None:
    """It does not travel with each piece."""
    owner = Owner(light=False)
    feed(owner, iter(range(3)))
    assert take_all(owner) == [(0, [(0,)]), (1, [(1,)]), (2, [(2,)])]


@pytest.mark.parametrize("rest", [[1, 2], [[1], [2]], ["x" * map_feed._ROW]], ids=["plain", "pickled", "large"])
def test_what_others_have_added_meanwhile_comes_first(rest: list[Any]) -> None:
    """What begins a chunk, or goes alone, is behind that, though it is of a `map` that came before."""
    owner = Owner()
    places = []

    def read() -> Iterator[Any]:
        yield 0
        places.append(owner.ready.peek().sequence)  # type: ignore[union-attr]
        assert owner.take() == (0, [(0,)])
        places.append(owner.next_sequence())  # as whoever adds a task does
        yield from rest

    feed(owner, read())
    places.append(owner.ready.peek().sequence)  # type: ignore[union-attr]
    assert places == sorted(places)
    assert take_all(owner)[0][0] == 1


def test_several_iterables() -> None:
    """They are zipped."""
    owner = Owner()
    feed(owner, iter("abcd"), range(3))
    assert take_all(owner) == [(0, [("a", 0), ("b", 1), ("c", 2)])]


def test_nothing() -> None:
    """No items, no chunk."""
    owner = Owner()
    results = feed(owner, iter(()))
    assert owner.take() is None
    with pytest.raises(IndexError):
        results.misses(0)


def test_after_shutdown_nothing_is_added_to_what_is_queued() -> None:
    """The item is refused as any call is, and what was there before is not touched."""
    owner = Owner()

    def read() -> Iterator[int]:
        yield 0
        yield 1
        owner.admits = False
        yield 2

    with pytest.raises(RuntimeError, match="after shutdown"):
        feed(owner, read())
    assert take_all(owner) == [(0, [(0,), (1,)])]


def items_of(taken: list[tuple[int, list[Any]]]) -> list[tuple[int, Any]]:
    """Return each item's place, and the item."""
    return [(first + place, item) for first, items in taken for place, (item,) in enumerate(items)]


@pytest.mark.parametrize("item", [int, Number])
def test_a_chunk_is_taken_at_any_point(item: type[int]) -> None:
    """Each item is in one chunk, at its place, wherever in the reading of items that happens."""
    places = {MapFeed.read.__code__, MapFeed._add_pickled.__code__}

    def reads_until(point: int) -> Iterator[Any]:
        """Read items, and take after so many steps; yields what was taken, then what was left."""
        owner = Owner()
        steps = itertools.count()
        taken: list[Any] = []

        def trace(frame: FrameType, event: str, _: object) -> Any:
            frame.f_trace_opcodes = frame.f_code in places
            if event == "opcode" and next(steps) == point:
                taken.extend(take_all(owner))
            return trace

        sys._getframe().f_trace_opcodes = True  # else 3.12 does not believe what is set in `trace`
        sys.settrace(trace)
        try:
            feed(owner, map(item, range(4)))
        finally:
            sys.settrace(None)
        yield taken
        yield take_all(owner)
        yield next(steps)

    point, steps = 0, 1
    ways = set()
    while point < steps:
        taken, left, steps = reads_until(point)
        assert items_of(taken + left) == [(number, number) for number in range(4)]
        ways.add(len(items_of(taken)))
        point += 1
    assert ways == {0, 1, 2, 3, 4}


def test_one_thread_takes_while_another_reads() -> None:
    """Each item is in one chunk, at its place."""
    owner = Owner()
    taken: list[Any] = []
    over = threading.Event()

    def take() -> None:
        while not over.is_set():
            taken.extend(take_all(owner))

    def read() -> Iterator[int]:
        for number in range(20_000):
            if number % 100 == 0:
                time.sleep(0)
            yield number

    taker = threading.Thread(target=take)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        taker.start()
        feed(owner, read())
    finally:
        sys.setswitchinterval(interval)
        over.set()
        taker.join()
    assert items_of(taken + take_all(owner)) == [(number, number) for number in range(20_000)]
