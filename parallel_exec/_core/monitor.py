"""One executor's state, and the lock that guards it.

    Monitor ─► gate         whether tasks may be added, and whether attempts may begin
            ─► ready        the jobs that wait for a slot, and for the limits
            ─► idle         the consumers that wait for a job
            ─► registry     where all other jobs are, and the counts
            ─► callers      what the calling thread may wait for

`Completion`, `Admission` and `Scheduler` act on it; it knows none of them.
"""

from __future__ import annotations

import itertools
import threading

from parallel_exec._core.callers import Callers
from parallel_exec._core.gate import Gate
from parallel_exec._core.idle import IdleConsumers
from parallel_exec._core.job import PLACES
from parallel_exec._core.ready_queue import ReadyQueue
from parallel_exec._core.registry import Registry
from parallel_exec._sync.locks import renew_after_fork
from parallel_exec._sync.parking import Waiters
from parallel_exec._sync.timers import Timers
from parallel_exec._sync.weak import weakly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.limits.limits import Limits
    from parallel_exec._sync.timers import Timer


class Monitor:
    """The state of one executor.

    Attributes:
        lock: re-entrant, as signal handlers and finalizers may cancel and shut down. Held for moments only, and never while
            user code runs.
        room: notified when the queue has room.
        drained: who waits until all has ended.
        timers: the executor's clock; has a lock of its own.
        sequence: the places in the order in which tasks are added. Each is taken in one step, as a signal handler may add a
            task at any moment; and it is wide, as the items of a `map` have a place each.

    Args:
        limit: the most attempts at once.
        in_one_thread: whether one thread reports all outcomes: if that waits for one, it waits for ever.
    """

    def __init__(self, limit: int, *, in_one_thread: bool = False) -> None:
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self.drained = Waiters()
        self.timers = Timers()
        self.sequence = itertools.count(1 << PLACES, 1 << PLACES)
        self.gate = Gate()
        self.ready = ReadyQueue()
        self.registry = Registry(limit)
        self.idle = IdleConsumers(self.lock, self.gate, self.ready)
        self.callers = Callers(self.lock, self.gate, self.ready, self.idle, self.registry, self.timers, in_one_thread)

    def use_limits(self, limits: Mapping[str, Any], ageing: float | None, *, tells: bool) -> Limits:
        """Have limits from now on, unless there are some; returns them.

        Args:
            limits: by name, as `check_limits` has returned them.
            ageing: seconds after which a task that waits for one counts as of one priority higher; None: never.
            tells: whether anybody wants to know what waits.
        """
        from parallel_exec._core.limits.limits import Limits  # few need them

        with self.lock:
            if self.ready.limits is None:
                made = Limits(self._limits_timer(), ageing, tells=tells)
                for name, spec in limits.items():
                    made.put(name, spec, self.grants)
                self.ready.use(made)
            assert self.ready.limits is not None
            return self.ready.limits

    def _limits_timer(self) -> Timer:
        return self.timers.timer(weakly(self._pass_time))

    def _pass_time(self) -> None:
        """Let begin what time alone has brought; for the clock."""
        limits = self.ready.limits
        if limits is not None:
            with self.lock:
                self.ready.change(limits.pass_time)
            self.idle.wake_one()

    def grants(self) -> list[Grant]:
        """Return all that is held of the limits. Called with the lock held."""
        limits = self.ready.limits
        kept = [] if limits is None else limits.kept
        unsettled = list(self.registry.unsettled)  # in one step: a signal handler or a finalizer may add a job
        held = [job.grant for job in unsettled if job.grant is not None]
        return list(dict.fromkeys([*held, *kept]))  # one that was about to be kept may be among both

    def is_unused(self) -> bool:
        """Return whether nothing is under way or staged. For a forked child: a thread of the parent's may hold the lock."""
        return self.lock.acquire(blocking=False) and not self.gate.is_open and not self.registry.unsettled

    def after_fork(self) -> None:
        """Be the copy in a forked child: another thread may have held the lock, and no consumer came along."""
        renew_after_fork(self.lock)
        self.idle.after_fork()
        self.timers.after_fork()
        if self.ready.limits is not None:
            self.ready.limits.use(self._limits_timer())
