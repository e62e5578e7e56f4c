"""`parallel_exec._core.map_chunk`: what becomes of each item of a row that travels as one."""

from __future__ import annotations

from typing import Any

import pytest
import work

from parallel_exec._core.completion import CANCELLED
from parallel_exec._core.map_chunk import MapChunk, MapResults
from parallel_exec._core.phase import Phase
from parallel_exec._core.settings import Settings
from parallel_exec._outcome import Failure, Success
from parallel_exec.config import ParallelConfig, policy_for


class Payload:
    """Knows which items it was asked for."""

    apart = False

    def of_item(self, index: int, first: int, map_id: str) -> tuple[int, int, str]:
        """Return what it was asked for."""
        return index, first, map_id


class Owner:
    """As much of a scheduler as a chunk asks; what it was given is in lists."""

    def __init__(self) -> None:
        self.admission = self
        self.items: list[Any] = []
        self.failed: list[Any] = []
        self.split: list[Any] = []

    def add_item(self, job: Any) -> None:
        """Note it."""
        self.items.append(job)

    def add_failed_item(self, job: Any, error: BaseException, end: float) -> None:
        """Note it."""
        self.failed.append((job, error, end))

    def add_split(self, tail: Any) -> None:
        """Note it."""
        self.split.append(tail)

    def cancel(self, job: Any) -> bool:
        """Refuse, as of one that runs."""
        return False


@pytest.fixture
def owner() -> Owner:
    """An owner."""
    return Owner()


@pytest.fixture
def results(owner: Owner) -> MapResults:
    """The results of a map whose first item has place 100."""
    known: Any = owner
    return MapResults(known, 100)


@pytest.fixture
def chunk(owner: Owner, results: MapResults) -> MapChunk:
    """A chunk of ten items, the second of its map."""
    results.reserve(10)
    config = ParallelConfig()
    settings = Settings(None, policy_for(config), False)
    known: Any = owner
    chunk = MapChunk(known, settings, work.double, [list(range(10))], range(10), results, results.reserve(10), 3, "map")
    chunk.packed(Payload())
    chunk.added(chunk.sequence, 7.0, None)
    return chunk


def test_items_follow_one_another(chunk: MapChunk) -> None:
    """A chunk has the place of its first item in the order added."""
    assert (chunk.sequence, chunk.weight, chunk.item_id(2)) == (110, 10, "map-12")


def test_a_split_chunk(owner: Owner, chunk: MapChunk) -> None:
    """The tail has the rest, its own place in the order, and all else that the chunk has; it is counted in."""
    chunk.sent(51)
    tail = chunk.split(4)
    assert owner.split == [tail]
    assert (chunk.low, chunk.high, chunk.weight) == (0, 4, 4)
    assert (tail.low, tail.high, tail.weight, tail.sequence) == (4, 10, 6, 114)
    assert (tail.priority, tail.id, tail.payload, tail.queued_at) == (3, "map", chunk.payload, 7.0)
    assert chunk.left == 4
    assert not chunk.ended(54)
    assert [chunk.has_unended(serial) for serial in (53, 54, 55)] == [False, True, False]
    assert chunk.ended(55)


def test_a_worker_knows_items_by_numbers_in_a_row(chunk: MapChunk) -> None:
    """The first has the chunk's serial, also of a tail."""
    tail = chunk.split(4)
    tail.sent(51)
    assert [tail.index_of(serial) for serial in (51, 56)] == [4, 9]


def test_an_item_that_failed(owner: Owner, chunk: MapChunk, results: MapResults) -> None:
    """It becomes a job of its own, with one attempt, at its place."""
    error = OSError()
    chunk.failed(5, error, 8.0, 9.0, "worker")
    ((item, raised, end),) = owner.failed
    assert (raised, end) == (error, 9.0)
    assert (item.attempt_number, item.started_at, item.worker, item.phase) == (1, 8.0, "worker", Phase.LIVE)
    assert (item.id, item.args, item.priority, item.sequence, item.queued_at) == ("map-15", (5,), 3, 115, 7.0)
    assert item.payload == (5, 10, "map")
    assert not results.misses(15)


def test_a_chunk_that_cannot_travel(owner: Owner, chunk: MapChunk) -> None:
    """Each of its items goes alone; the chunk itself counts for nothing."""
    chunk.packed(None)
    chunk.decide()
    chunk.settle(Failure(TypeError()), False)
    assert [item.args for item in owner.items] == [(number,) for number in range(10)]
    assert (chunk.exception(), chunk.weight) == (None, 0)


def test_items_that_were_pickled_one_by_one(owner: Owner, chunk: MapChunk) -> None:
    """One that goes alone takes its own bytes along: its arguments may have changed."""
    chunk.payload.apart = True
    chunk.isolate_all()
    assert [item.payload for item in owner.items] == [(number, 10, "map") for number in range(10)]


def test_a_chunk_counts_for_what_has_returned(chunk: MapChunk) -> None:
    """Items that failed are counted as jobs of their own."""
    chunk.begin(None, "worker", 8.0)
    chunk.returned(0, [0, 2, 4])
    chunk.failed(3, OSError(), 8.0, 9.0, "worker")
    chunk.decide(9.0)
    chunk.settle(Success(None), False)
    assert chunk.weight == 3


def test_what_comes_after_the_iterator_was_closed(owner: Owner, chunk: MapChunk, results: MapResults) -> None:
    """Nobody wants it: an item that fails is not retried, and a tail ends as cancelled."""
    results.cancel()
    chunk.failed(5, OSError(), 8.0, 9.0, "worker")
    assert owner.failed[0][0].override is CANCELLED
    assert chunk.split(4).override is CANCELLED
