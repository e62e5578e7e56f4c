"""`parallel_exec._core.idle`: whoever waits for work is woken when there is some, one at a time, and never in vain."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest

from parallel_exec._core.monitor import Monitor


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


class Ready:
    """The ready queue and the idle consumers of a bare monitor, with takers as the scheduler has them."""

    def __init__(self) -> None:
        self.monitor = Monitor(4)
        self.gate = self.monitor.gate
        self.idle = self.monitor.idle
        self.gate.open()

    def push(self, *items: Any) -> None:
        """Put items in, one by one, and wake whom that concerns."""
        for item in items:
            with self.monitor.lock:
                self.monitor.ready.push(item)
                consumer = self.idle.choose()
            if consumer is not None:
                self.idle.wake(consumer)

    def take(self, consumer: Any) -> Any:
        """Take the first item, or be listed as idle."""
        with self.monitor.lock:
            item = self.monitor.ready.pop() if self.gate.may_start else None
            other = self.idle.came(consumer, item)
        if other is not None:
            self.idle.wake(other)
        return item


@pytest.fixture
def ready() -> Ready:
    """An open queue."""
    return Ready()


def test_a_consumer_that_found_nothing_is_woken(ready: Ready) -> None:
    """Who asked in vain is woken when something comes, once."""
    consumer = Consumer()
    assert ready.take(consumer) is None
    ready.push(Item(1), Item(2))
    assert consumer.woken == 1


def test_one_wake_up_at_a_time(ready: Ready) -> None:
    """A burst wakes one consumer, and that one passes it on when it takes."""
    consumers = [Consumer(), Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    ready.push(Item(1), Item(2), Item(3))
    assert [consumer.woken for consumer in consumers] == [0, 0, 1]
    ready.take(consumers[2])
    assert [consumer.woken for consumer in consumers] == [0, 1, 1]


def test_nobody_is_woken_for_the_last_item(ready: Ready) -> None:
    """Whoever takes the last item wakes nobody."""
    consumers = [Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    ready.push(Item(1))
    ready.take(consumers[1])
    assert [consumer.woken for consumer in consumers] == [0, 1]


def test_a_consumer_that_will_not_take_passes_it_on(ready: Ready) -> None:
    """`decline` hands the wake-up to the next."""
    consumers = [Consumer(), Consumer()]
    for consumer in consumers:
        ready.take(consumer)
    ready.push(Item(1))
    ready.idle.decline(consumers[1])
    assert [consumer.woken for consumer in consumers] == [1, 1]


@pytest.mark.parametrize("way", ["staged", "paused"])
def test_the_gate(ready: Ready, way: str) -> None:
    """While the gate is not open or paused nothing is given and nobody is woken; then somebody is."""
    gate = ready.gate
    gate.stage() if way == "staged" else gate.pause()
    consumer = Consumer()
    ready.push(Item(1))
    assert ready.take(consumer) is None
    assert consumer.woken == 0
    gate.open() if way == "staged" else gate.resume()
    ready.idle.wake_one()
    assert consumer.woken == 1
    assert ready.take(consumer) is not None


def test_the_last_in_line_is_woken_last(ready: Ready) -> None:
    """`offer(last=True)` is for consumers that cost something, such as threads that are not there yet."""
    spare, usual = Consumer(), Consumer()
    ready.take(usual)
    ready.idle.park(spare, last=True)
    ready.push(Item(1))
    assert (usual.woken, spare.woken) == (1, 0)


def test_offering_while_there_is_work_wakes(ready: Ready) -> None:
    """A consumer that is offered while something waits is woken at once."""
    ready.push(Item(1))
    consumer = Consumer()
    ready.idle.park(consumer)
    assert consumer.woken == 1


def test_a_withdrawn_consumer_is_not_woken(ready: Ready) -> None:
    """`unpark` says whether the consumer was idle, and then it is no longer."""
    consumer = Consumer()
    ready.take(consumer)
    assert ready.idle.unpark(consumer)
    assert not ready.idle.unpark(consumer)
    ready.push(Item(1))
    assert consumer.woken == 0


def test_the_end_lets_everybody_go(ready: Ready) -> None:
    """Once all is drained the idle consumers are woken, once each, and from then on none is listed."""
    consumer, late = Consumer(), Consumer()
    ready.take(consumer)
    ready.gate.drain()
    ready.idle.let_all_go()
    ready.idle.let_all_go()
    assert consumer.woken == 1
    assert ready.take(late) is None
    assert not ready.idle.unpark(late)


class Interrupted(Consumer):
    """A consumer in whose first wake-up a signal handler raises."""

    def wake(self) -> None:
        """Count it."""
        super().wake()
        if self.woken == 1:
            raise KeyboardInterrupt


def test_a_wake_up_that_was_interrupted(ready: Ready) -> None:
    """The thread that was interrupted repeats it with whatever it does next; nobody else is woken meanwhile."""
    other, consumer = Consumer(), Interrupted()
    ready.take(other)
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        ready.push(Item(1))
    assert ready.idle.is_waking()
    ready.push(Item(2))
    assert not ready.idle.is_waking()
    assert (consumer.woken, other.woken) == (2, 0)


def test_a_consumer_that_came_before_it_was_woken_again(ready: Ready) -> None:
    """It is woken in vain, and is idle only once for that."""
    consumer = Interrupted()
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        ready.push(Item(1))
    assert ready.take(consumer) is not None
    assert ready.take(consumer) is None
    ready.idle.wake_one()
    assert consumer.woken == 2
    assert ready.take(consumer) is None
    assert ready.idle.unpark(consumer)
    assert not ready.idle.unpark(consumer)


def test_the_end_after_an_interrupted_wake_up(ready: Ready) -> None:
    """Who may not have been woken is let go with the rest."""
    consumer = Interrupted()
    ready.take(consumer)
    with pytest.raises(KeyboardInterrupt):
        ready.push(Item(1))
    ready.gate.drain()
    ready.idle.let_all_go()
    assert consumer.woken == 2


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
def test_a_signal_handler_that_takes_the_same_consumer(ready: Ready, moment: str, others: int) -> None:
    """A handler that pushes while another push is about to take a consumer off the idle: both wake somebody."""
    consumers = [Consumer() for _ in range(others + 1)]
    for consumer in consumers:
        assert ready.take(consumer) is None

    def handler() -> None:
        ready.push(Item(2))

    if moment == "set":
        ready.idle._chosen = Interrupting(ready.idle._chosen, moment, handler)
    else:
        ready.idle._idle = Interrupting(ready.idle._idle, moment, handler)
    ready.push(Item(1))
    assert consumers[-1].woken >= 1
    assert not ready.idle.is_waking()
    assert ready.take(consumers[-1]) is not None
    assert sum(consumer.woken for consumer in consumers[:-1]) == others  # the wake-up was passed on
    assert ready.take(consumers[0]) is not None


def test_a_handler_that_lets_all_go() -> None:
    """A signal handler may do the same at any point: all are woken."""
    for step in itertools.count(1):
        ready = Ready()
        consumers = [Consumer(), Consumer()]
        for consumer in consumers:
            ready.take(consumer)
        ready.gate.drain()
        left = step

        def trace(frame: Any, event: str, _: Any, idle: Any = ready.idle) -> Any:
            nonlocal left
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    idle.let_all_go()
            return trace

        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # else 3.12 does not believe what is set in `trace`
        sys.settrace(trace)
        try:
            ready.idle.let_all_go()
        finally:
            sys.settrace(before)
        assert all(consumer.woken for consumer in consumers)
        if left > 0:
            break
    assert step > 50
