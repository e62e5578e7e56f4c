"""Who has nothing to do, and who is woken when there is something.

    take finds nothing ──► idle: a stack, the latest on top ──► choose ──► wake ──► it comes, and takes

Guarantees:
    A wake-up is never lost: a consumer that found nothing is listed under the lock under which `choose` looks for one,
    and it stays listed until it comes.
    At most one wake-up is under way at a time, and a consumer that takes passes it on while there is more to do: a burst
    of a thousand jobs wakes one thread, not a thousand times one.
    `wake` is called without the lock held, by the thread that chose the consumer. Where an exception of a signal handler
    keeps it from that, the thread's next choice is the same consumer: one may be woken in vain.
"""

from __future__ import annotations

from threading import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec._core.gate import Gate
    from parallel_exec._core.ready_queue import ReadyQueue
    from parallel_exec.backends.base import Consumer


class IdleConsumers:
    """The idle consumers of one executor. Thread-safe; guarded by its lock."""

    def __init__(self, lock: Any, gate: Gate, ready: ReadyQueue) -> None:
        self._lock = lock
        self._gate = gate
        self._ready = ready
        self._idle: dict[Consumer, None] = {}  # the latest comes last
        self._is_waking = False  # whether a wake-up is under way, until somebody comes
        # By thread: whom it has chosen and not woken yet; None while it is about it. Each entry is its own thread's.
        self._chosen: dict[int, Consumer | None] = {}

    def park(self, consumer: Consumer, *, last: bool = False) -> None:
        """List a consumer as idle, to be woken before all others or, with `last`, after them."""
        with self._lock:
            if not self._gate.drained:
                self._idle = {consumer: None, **self._idle} if last else {**self._idle, consumer: None}
        self.wake_one()

    def unpark(self, consumer: Consumer) -> bool:
        """Forget an idle consumer; returns whether it was idle."""
        with self._lock:
            was_idle = consumer in self._idle
            self._idle.pop(consumer, None)
            return was_idle

    def decline(self, consumer: Consumer) -> None:
        """Wake another consumer: this one was woken, and is not going to take."""
        with self._lock:
            self._idle.pop(consumer, None)
            self._is_waking = False
        self.wake_one()

    def came(self, consumer: Consumer, job: object) -> Consumer | None:
        """Note that a consumer took a job, or found None and is idle; returns whom to `wake` then. Called with the lock held."""
        self._is_waking = False
        if job is None:
            if not self._gate.drained:
                self._idle.pop(consumer, None)
                self._idle[consumer] = None
            return None
        if not self._idle:
            return None
        self._idle.pop(consumer, None)
        return self.choose() if self._ready.heap else None

    def choose(self) -> Consumer | None:
        """Choose whom to `wake`, if there is something for somebody. Called with the lock held.

        (What is in the heap may be discarded, all of it: then one is woken in vain.)
        """
        if self._chosen and (kept_from := self._chosen.get(get_ident())) is not None:
            return kept_from
        ready = self._ready
        while not self._is_waking and self._idle and self._gate.may_start and (ready.heap or ready.aside):
            try:
                consumer = next(reversed(self._idle))
            except (StopIteration, RuntimeError):  # just here, a signal handler has changed it
                continue
            self._chosen[get_ident()] = consumer
            self._is_waking = True
            return consumer
        return None

    def wake(self, consumer: Consumer) -> None:
        """Wake the consumer that this thread has chosen. Called without the lock held."""
        me = get_ident()
        try:
            self._chosen[me] = None
            consumer.wake()
        except BaseException:
            self._chosen[me] = consumer
            raise
        self._chosen.pop(me, None)

    def wake_one(self) -> None:
        """Wake an idle consumer if there is something for it; also one that this thread was kept from waking."""
        with self._lock:
            consumer = self.choose()
        if consumer is not None:
            self.wake(consumer)

    def is_waking(self) -> bool:
        """Return whether the calling thread is in the middle of waking somebody, or was kept from it."""
        return get_ident() in self._chosen

    def let_all_go(self) -> None:
        """Wake all who are idle, once nothing is left to do. Called without the lock held; may be repeated."""
        while self._idle:
            for consumer in list(self._idle):  # in one step: a signal handler may come here, too
                self.wake(consumer)
                self.unpark(consumer)

    def after_fork(self) -> None:
        """Forget the parent's consumers."""
        self._idle = {}
        self._is_waking = False
        self._chosen = {}
