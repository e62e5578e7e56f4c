"""What is ready to run, and who is idle: the queue with its gate.

    push ──► heap ──► take ──► a consumer         idle consumers: a stack, the latest on top

Guarantees:
    A wake-up is never lost: `take` notes a consumer that found nothing under the lock under which `push` looks for one.
    At most one wake-up is under way at a time, and a consumer that takes passes it on while there is more to do: a burst
    of a thousand tasks wakes one thread, not a thousand times one.
    `wake` is called without the lock held, by the thread that took the consumer off the idle (its *debt*). If a signal
    handler raises in the middle of that, the thread's next wake-up is the same one again: one may be woken in vain.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from parallel_exec.task_queue import PriorityHeap

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import Consumer


class ReadyQueue:
    """The queue of futures, open or closed, and the idle consumers. Thread-safe; all of it is guarded by `lock`.

    Attributes:
        heap: the futures that wait for a slot.
        open: whether anything may start at all.
        paused: whether nothing may start for now.
        ended: nothing will ever come: consumers are let go instead of noted.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.heap: PriorityHeap[AnyJob] = PriorityHeap()
        self._extra = 0  # calls, beyond one a future
        self.open = False
        self.paused = False
        self.ended = False
        self._lock: Any = lock
        self._idle: dict[Consumer, None] = {}  # the latest comes last
        self._waking = False  # whether a wake-up is under way, until somebody comes
        self._debts: dict[int, tuple[Consumer, ...]] = {}  # thread → whom it has taken off the idle, and not woken yet

    @property
    def calls(self) -> int:
        """How many calls the waiting futures stand for."""
        return len(self.heap) + self._extra

    def push(self, future: AnyJob) -> tuple[Consumer, ...]:
        """Put a future in, at its own place; returns whom to `wake`. Called with the lock held."""
        future.queued()
        if future.weight != 1:
            self._extra += future.weight - 1
        self.heap.push((-future.priority, future.sequence), future)
        return self._next_idle() if self._idle or self._debts else ()

    def take(self, consumer: Consumer) -> AnyJob | None:
        """Take the first future; else note the consumer as idle."""
        with self._lock:
            future, idle = self.pop(consumer)
            if future is not None:
                future.handed_out()
        if idle:
            self.wake(idle)
        return future

    def take_some(self, consumer: Consumer, calls: int) -> list[AnyJob]:
        """Take the first futures of one priority, for up to so many calls; notes the consumer as idle if none is left."""
        taken: list[AnyJob] = []
        with self._lock:
            while calls > 0:
                if taken and (first := self.heap.peek()) is not None and first.priority != taken[0].priority:
                    break  # what is sent ahead is of one priority, or the lower would be ahead of others' higher
                future, idle = self.pop(consumer)
                if future is None:
                    break
                assert not idle, "who takes some is the only consumer"
                future.handed_out()
                taken.append(future)
                calls -= future.weight
        return taken

    def pop(self, consumer: Consumer) -> tuple[AnyJob | None, tuple[Consumer, ...]]:
        """Take the first future, and return whom to `wake` then; else note the consumer as idle. Called with the lock held."""
        self._waking = False
        future = self.heap.pop() if self.open and not self.paused else None
        if future is not None:
            if future.weight != 1:
                self._extra -= future.weight - 1
            if not self._idle:
                return future, ()
            self._idle.pop(consumer, None)  # it was woken in vain, and finds something after all
            return future, self._next_idle()
        if not self.ended:
            self._idle[consumer] = None
        return None, ()

    def put_back(self, futures: list[AnyJob]) -> None:
        """Put several futures back, at their own places; the caller must `wake_one` then. Called with the lock held."""
        for future in futures:
            future.queued()
            self._extra += future.weight - 1
            self.heap.push((-future.priority, future.sequence), future)

    def discard(self, future: AnyJob) -> None:
        """Take out a future that is in. Called with the lock held."""
        self._extra -= future.weight - 1
        self.heap.discard(future.sequence)

    def holds(self, future: AnyJob) -> bool:
        """Return whether a future is in, whatever its phase says; O(n). Called with the lock held."""
        items = self.heap.items()
        self._extra = sum(item.weight - 1 for item in items)  # which `push` and `discard` may have been kept from
        return any(item is future for item in items)

    def park(self, consumer: Consumer, *, last: bool = False) -> None:
        """Note a consumer as idle, to be woken before all others or, with `last`, after them."""
        with self._lock:
            if not self.ended:
                self._idle = {consumer: None, **self._idle} if last else {**self._idle, consumer: None}
        self.wake_one()

    def unpark(self, consumer: Consumer) -> bool:
        """Forget an idle consumer; returns whether it was idle."""
        with self._lock:
            was_idle = consumer in self._idle
            self._idle.pop(consumer, None)
            return was_idle

    def decline(self) -> None:
        """Wake another consumer: the one that was woken is not going to take."""
        with self._lock:
            self._waking = False
        self.wake_one()

    def wake_one(self) -> None:
        """Wake an idle consumer if there is something for it; also one that this thread was kept from waking."""
        with self._lock:
            idle = self._next_idle()
        if idle:
            self.wake(idle)

    def wake(self, consumers: tuple[Consumer, ...]) -> None:
        """Wake consumers that this thread has taken off the idle. Called without the lock held."""
        me = threading.get_ident()
        try:
            self._debts[me] = ()  # in hand
            for consumer in consumers:
                consumer.wake()
        except BaseException:
            self._debts[me] = (*consumers, *self._debts.get(me, ()))
            raise
        self._debts.pop(me, None)

    def is_waking(self) -> bool:
        """Return whether the calling thread is in the middle of waking somebody, or was kept from it."""
        return threading.get_ident() in self._debts

    def end(self) -> tuple[Consumer, ...]:
        """Nothing will ever come: return all who are idle, or may be, for `wake`. Called with the lock held.

        May be repeated, if a signal handler raised in the middle of it.
        """
        everybody = tuple({**self._idle, **{one: None for debt in list(self._debts.values()) for one in debt}})
        if everybody:
            self._debts[threading.get_ident()] = everybody
        self.ended = True
        self._idle = {}
        return everybody

    def after_fork(self, lock: Any) -> None:
        """Be guarded by a new lock: another thread may have held the old one when the process forked."""
        self._lock = lock
        self._idle = {}

    def _next_idle(self) -> tuple[Consumer, ...]:
        me = threading.get_ident()
        while True:
            debt = self._debts.get(me) if self._debts else ()
            if debt:
                return debt
            if self._waking or not self._idle or not self.open or self.paused or not len(self.heap):
                return ()
            try:
                consumer = next(reversed(self._idle))
            except (StopIteration, RuntimeError):  # just here, a signal handler that submits has taken it
                continue
            debt = self._debts[me] = (consumer,)
            self._waking = True
            self._idle.pop(consumer, None)  # taken just before? It is woken twice then, and waits for our lock
            return debt
