"""`parallel_exec.backends.process.assigned`: the calls that one worker has, a chunk's items among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bare_jobs import new_chunk, new_job

from parallel_exec.backends.process.assigned import AssignedCalls

if TYPE_CHECKING:
    from parallel_exec._core.map_chunk import MapChunk


@pytest.fixture
def chunk() -> MapChunk:
    """A chunk of ten items."""
    return new_chunk(10)


@pytest.fixture
def assigned(chunk: MapChunk) -> AssignedCalls:
    """A job with number 4, the chunk's items with 5 to 14, and a job with 20."""
    assigned = AssignedCalls()
    assigned.add(4, new_job(1))
    assigned.add(5, chunk)
    assigned.add(20, new_job(2))
    return assigned


def test_each_item_is_a_call(assigned: AssignedCalls, chunk: MapChunk) -> None:
    """It has a number of its own, counts, and its job is the chunk, which is there once."""
    first, _, last = assigned.jobs()
    assert len(assigned) == 12
    found = [assigned.get(serial) for serial in (3, 4, 5, 14, 15, 20)]
    assert found == [None, first, chunk, chunk, None, last]
    assert (assigned.first(), assigned.second(), assigned.last()) == ((4, first), chunk, (20, last))


def test_nothing_is_there() -> None:
    """Then it is false, and empty."""
    assigned = AssignedCalls()
    assert not assigned
    assert (len(assigned), assigned.first(), assigned.second(), assigned.last(), assigned.get(1)) == (0, *[None] * 4)


def test_items_end_by_the_row(assigned: AssignedCalls, chunk: MapChunk) -> None:
    """A row may repeat what was heard of before; the chunk is forgotten with its last item."""
    assigned.plain_ended([4])
    assert assigned.ended(5, 3) == (chunk, 0)
    assert assigned.ended(6, 5) == (chunk, 2)
    assert assigned.ended(5, 6) == (None, 0)
    assert (len(assigned), assigned.get(10), assigned.get(11), assigned.serial_of(chunk)) == (5, None, chunk, 11)
    assert assigned.first() == (5, chunk)
    assert assigned.ended(11, 4) == (chunk, 0)
    assert (len(assigned), assigned.serial_of(chunk), assigned.ended(14)) == (1, 0, (None, 0))


def test_the_second_call_may_be_of_the_same_chunk(assigned: AssignedCalls, chunk: MapChunk) -> None:
    """As long as two of its items are left."""
    (_, _, last) = assigned.jobs()
    assigned.ended(4)
    assert assigned.second() is chunk
    assigned.ended(5, 9)
    assert assigned.second() is last


def test_a_chunk_may_be_cut_while_it_is_there(assigned: AssignedCalls, chunk: MapChunk) -> None:
    """The tail is no more of it."""
    chunk.owner.add_split = lambda tail: None  # type: ignore[method-assign]
    chunk.packed(None)
    chunk.split(4)
    assert (len(assigned), assigned.get(8), assigned.get(9)) == (6, chunk, None)
    assert assigned.ended(5, 4) == (chunk, 0)
    assert chunk not in assigned.jobs()


def test_jobs_are_removed_whole(assigned: AssignedCalls, chunk: MapChunk) -> None:
    """By the number that they stand under."""
    assigned.ended(5, 3)
    assigned.remove(5)
    assigned.remove(20)
    assert (len(assigned), assigned.get(9)) == (1, None)
