"""`parallel_exec._core.ready_queue`: jobs by priority, and how many calls they stand for."""

from __future__ import annotations

import random
from typing import Any

import pytest

from parallel_exec._core.ready_queue import ReadyQueue


class Item:
    """As much of a job as the queue looks at."""

    def __init__(self, sequence: int, priority: int = 0, weight: int = 1) -> None:
        self.sequence = sequence
        self.priority = priority
        self.weight = weight


def _queue(*items: Any) -> ReadyQueue:
    ready = ReadyQueue()
    for item in items:
        ready.push(item)
    return ready


def test_what_is_pushed_again_goes_to_its_place() -> None:
    """Items that are pushed again are taken in the old order."""
    items = [Item(1), Item(2, priority=5), Item(3)]
    ready = _queue(*items)
    taken: list[Any] = [ready.pop() for _ in items]
    assert taken == [items[1], items[0], items[2]]
    for item in reversed(taken):
        ready.push(item)
    assert [ready.pop() for _ in items] == taken
    assert ready.pop() is None


def test_one_of_a_priority_is_taken() -> None:
    """`pop_of` takes the first item if it has that priority, whatever was discarded before it."""
    items: list[Any] = [Item(1, priority=5), Item(2, priority=5), Item(3), *map(Item, range(4, 12))]
    ready = _queue(*items)
    assert ready.pop_of(0) is None
    ready.discard(items[0])
    assert ready.pop_of(0) is None
    assert ready.pop_of(5) is items[1]
    assert ready.pop_of(5) is None
    ready.discard(items[2])
    assert ready.pop_of(0) is items[3]
    assert ReadyQueue().pop_of(0) is None


def test_the_calls_that_items_stand_for() -> None:
    """A chunk counts as many times as it has items, until it is taken or discarded."""
    light, heavy, other = Item(1), Item(2, weight=10), Item(3, weight=5)
    ready = _queue(light, heavy, other)
    assert (len(ready), ready.calls()) == (3, 16)
    ready.discard(heavy)  # type: ignore[arg-type]
    assert (len(ready), ready.calls()) == (2, 6)
    ready.pop()
    assert (len(ready), ready.calls()) == (1, 5)
    assert ready.peek() is other


def test_what_an_exception_kept_from_being_counted() -> None:
    """`holds` looks whether an item is in, and counts anew."""
    heavy = Item(1, weight=10)
    ready = _queue(heavy)
    ready._extra = 0
    assert ready.holds(heavy)  # type: ignore[arg-type]
    assert not ready.holds(Item(2))  # type: ignore[arg-type]
    assert ready.calls() == 10


def test_what_is_discarded_never_comes() -> None:
    """Whatever is discarded, and when, the rest comes in order (against a plain sorted list)."""
    chance = random.Random(7)
    ready = ReadyQueue()
    model: list[Any] = []
    for sequence in range(2000):
        item: Any = Item(sequence, priority=chance.randrange(5))
        ready.push(item)
        model.append(item)
        if chance.random() < 0.4:
            gone = model.pop(chance.randrange(len(model)))
            ready.discard(gone)
        if chance.random() < 0.2 and model:
            first = min(model, key=_place)
            assert ready.peek() is first
            assert ready.pop() is first
            model.remove(first)
        assert len(ready) == len(model)
        assert len(ready._discarded) * 2 <= len(ready.heap)
    assert sorted(ready.jobs(), key=_place) == sorted(model, key=_place)
    assert [ready.pop() for _ in model] == sorted(model, key=_place)


def _place(item: Any) -> tuple[int, int]:
    return -item.priority, item.sequence


def test_discarded_entries_do_not_pile_up() -> None:
    """Discarding almost everything shrinks the queue."""
    items: list[Any] = [Item(sequence) for sequence in range(1000)]
    ready = _queue(*items)
    for item in items[1:]:
        ready.discard(item)
    assert len(ready.heap) <= 2
    assert ready.pop() is items[0]
    assert ready.pop() is None


def test_nothing_that_was_discarded_is_left_alone() -> None:
    """Nobody takes anything out of a queue that is empty, so it goes with the last that was not discarded."""
    items: list[Any] = [Item(sequence) for sequence in range(3)]
    ready = _queue(*items)
    ready.discard(items[2])
    assert [ready.pop(), ready.pop()] == items[:2]
    assert not ready.heap


class GrowingItem(Item):
    """One that stands for more calls all the time."""

    def __init__(self, sequence: int, calls: int) -> None:
        super().__init__(sequence, weight=0)
        self.calls = calls

    def size(self) -> int:
        """Return how many they are by now."""
        return self.calls

    def close(self) -> None:
        """Be of the size that it has."""
        self.weight = self.calls


@pytest.mark.parametrize("way", ["pop", "discard", "grown", "holds"])
def test_the_calls_of_what_grows(way: str) -> None:
    """They are counted as they are when somebody asks, until it is taken, discarded, or grows no more."""
    item, other = GrowingItem(1, 3), Item(2, weight=5)
    ready = _queue(item, other)
    assert (len(ready), ready.calls()) == (2, 8)
    item.calls = 100
    assert ready.calls() == 105
    known: Any = item
    if way == "pop":
        assert ready.pop() is known
        assert (len(ready), ready.calls()) == (1, 5)
    elif way == "discard":
        ready.discard(known)
        assert (len(ready), ready.calls()) == (1, 5)
    elif way == "grown":
        item.close()
        ready.grown(known)
        ready.grown(known)
        assert ready.calls() == 105
        assert ready.pop() is known
        assert ready.calls() == 5
    else:
        ready._extra, ready.growing = 0, {}
        assert ready.holds(known)
        assert ready.calls() == 105
