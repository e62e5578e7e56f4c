"""`parallel_exec._core.ready_queue`: whoever waits for work is woken when there is some, one at a time, and never in vain."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from parallel_exec._core.ready_queue import ReadyQueue


class Consumer:
    """Counts its wake-ups."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        """Count."""
        self.woken += 1


class Item:
    """As much of a job as the queue looks at."""

    weight = 1

    def __init__(self, sequence: int, priority: int = 0) -> None:
        self.sequence = sequence
        self.priority = priority

    def queued(self) -> None:
        """Note nothing."""

    def handed_out(self) -> None:
        """Note nothing."""


@pytest.fixture
def ready() -> ReadyQueue:
    """An open queue."""
    ready = ReadyQueue(threading.RLock())
    ready.open = True
    return ready


def _push(ready: ReadyQueue, *items: Any) -> None:
    for item in items:
        with ready._lock:
            idle = ready.push(item)
        ready.wake(idle)


def test_a_consumer_that_found_nothing_is_woken(ready: ReadyQueue) -> None:
    """Who asked in vain is woken when something comes, once."""
    consumer = Consumer()
    assert ready.take(consumer) is None
    _push(ready, Item(1), Item(2))
    assert consumer.woken == 1


def test_one_wake_up_at_a_time(ready: ReadyQueue) -> None:
    """A burst wakes one consumer, and that one passes it on when it takes."""
    consumers = [Consumer(), Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    _push(ready, Item(1), Item(2), Item(3))
    assert [consumer.woken for consumer in consumers] == [0, 0, 1]
    ready.take(consumers[2])
    assert [consumer.woken for consumer in consumers] == [0, 1, 1]


def test_nobody_is_woken_for_the_last_item(ready: ReadyQueue) -> None:
    """Whoever takes the last item wakes nobody."""
    consumers = [Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    _push(ready, Item(1))
    ready.take(consumers[1])
    assert [consumer.woken for consumer in consumers] == [0, 1]


def test_a_consumer_that_will_not_take_passes_it_on(ready: ReadyQueue) -> None:
    """`decline` hands the wake-up to the next."""
    consumers = [Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    _push(ready, Item(1))
    ready.decline()
    assert [consumer.woken for consumer in consumers] == [1, 1]


@pytest.mark.parametrize("gate", ["open", "paused"])
def test_the_gate(ready: ReadyQueue, gate: str) -> None:
    """While the queue is closed or paused nothing is given and nobody is woken; then somebody is."""
    setattr(ready, gate, gate == "paused")
    consumer = Consumer()
    _push(ready, Item(1))
    assert ready.take(consumer) is None
    assert consumer.woken == 0
    setattr(ready, gate, gate == "open")
    ready.wake_one()
    assert consumer.woken == 1
    assert ready.take(consumer) is not None


def test_the_last_in_line_is_woken_last(ready: ReadyQueue) -> None:
    """`offer(last=True)` is for consumers that cost something, such as threads that are not there yet."""
    spare, usual = Consumer(), Consumer()
    ready.take(usual)
    ready.park(spare, last=True)
    _push(ready, Item(1))
    assert (usual.woken, spare.woken) == (1, 0)


def test_offering_while_there_is_work_wakes(ready: ReadyQueue) -> None:
    """A consumer that is offered while something waits is woken at once."""
    _push(ready, Item(1))
    consumer = Consumer()
    ready.park(consumer)
    assert consumer.woken == 1


def test_a_withdrawn_consumer_is_not_woken(ready: ReadyQueue) -> None:
    """`unpark` says whether the consumer was idle, and then it is no longer."""
    consumer = Consumer()
    ready.take(consumer)
    assert ready.unpark(consumer)
    assert not ready.unpark(consumer)
    _push(ready, Item(1))
    assert consumer.woken == 0


def test_what_is_put_back_goes_to_its_place(ready: ReadyQueue) -> None:
    """Items that are put back are taken in the old order."""
    items = [Item(1), Item(2, priority=5), Item(3)]
    _push(ready, *items)
    consumer = Consumer()
    taken: list[Any] = [ready.take(consumer) for _ in range(3)]
    assert taken == [items[1], items[0], items[2]]
    with ready._lock:
        ready.put_back(taken[::-1])
    assert [ready.take(consumer) for _ in range(3)] == taken


def test_the_end_lets_everybody_go(ready: ReadyQueue) -> None:
    """`end` gives the idle consumers, and from then on none is noted."""
    consumer, late = Consumer(), Consumer()
    ready.take(consumer)
    with ready._lock:
        assert ready.end() == (consumer,)
    assert ready.take(late) is None
    assert not ready.unpark(late)


class Interrupted(Consumer):
    """A consumer in whose first wake-up a signal handler raises."""

    def wake(self) -> None:
        """Count it."""
        super().wake()
        if self.woken == 1:
            raise KeyboardInterrupt


def test_a_wake_up_that_was_interrupted(ready: ReadyQueue) -> None:
    """The thread that was interrupted repeats it with whatever it does next; nobody else is woken meanwhile."""
    other, consumer = Consumer(), Interrupted()
    ready.take(other)
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        _push(ready, Item(1))
    assert ready.is_waking()
    _push(ready, Item(2))
    assert not ready.is_waking()
    assert (consumer.woken, other.woken) == (2, 0)


def test_a_consumer_that_came_before_it_was_woken_again(ready: ReadyQueue) -> None:
    """It is woken in vain, and is idle only once for that."""
    consumer = Interrupted()
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        _push(ready, Item(1))
    assert ready.take(consumer) is not None
    assert ready.take(consumer) is None
    ready.wake_one()
    assert consumer.woken == 2
    assert ready.take(consumer) is None
    assert ready.unpark(consumer)
    assert not ready.unpark(consumer)


def test_the_end_after_an_interrupted_wake_up(ready: ReadyQueue) -> None:
    """Who may not have been woken is let go with the rest."""
    consumer = Interrupted()
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        _push(ready, Item(1))
    with ready._lock:
        assert ready.end() == (consumer,)


class Interrupting(dict):  # type: ignore[type-arg]
    """A dict in which a signal handler comes, once, before something is done with it."""

    def __init__(self, content: Any, method: str, handler: Any) -> None:
        super().__init__(content)
        self._method, self._handler = method, handler

    def _interrupt(self, method: str) -> None:
        handler, self._handler = self._handler, None
        if method == self._method and handler is not None:
            handler()
        else:
            self._handler = handler

    def __reversed__(self) -> Any:
        self._interrupt("before")
        found = super().__reversed__()
        self._interrupt("amid")
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._interrupt("set")
        super().__setitem__(key, value)


@pytest.mark.parametrize("moment", ["before", "amid", "set"])
@pytest.mark.parametrize("others", [0, 1])
def test_a_signal_handler_that_takes_the_same_consumer(ready: ReadyQueue, moment: str, others: int) -> None:
    """A handler that pushes while another push is about to take a consumer off the idle: both wake somebody."""
    consumers = [Consumer() for _ in range(others + 1)]
    for consumer in consumers:
        assert ready.take(consumer) is None

    def handler() -> None:
        _push(ready, Item(2))

    if moment == "set":
        ready._debts = Interrupting(ready._debts, moment, handler)
    else:
        ready._idle = Interrupting(ready._idle, moment, handler)
    _push(ready, Item(1))
    assert consumers[-1].woken >= 1
    assert not ready.is_waking()
    assert ready.take(consumers[-1]) is not None
    assert sum(consumer.woken for consumer in consumers[:-1]) == others  # the wake-up was passed on
    assert ready.take(consumers[0]) is not None
