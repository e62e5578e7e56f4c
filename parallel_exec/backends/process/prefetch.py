"""How much is sent ahead to a worker, and what is taken back from it before it has begun.

Enough is sent ahead that no worker waits for the parent, and no more than can be taken back without loss. What needs something
of the executor's limits holds that from when it is taken: it is not sent ahead, but alone to a worker that has nothing to do.

What has not begun is taken back because
    - something of higher priority has become ready (`preempt`),
    - it waits behind a call that runs for long, and could be begun elsewhere (`rebalance`, `relieve`),
    - another worker has nothing to do, and nothing else is there to be done (`rebalance`),
    - its worker ends or is to be killed, or it is cancelled (by whoever does that, without a decision of this module's).

Only the I/O thread calls what is here, but for `preempt`; the scheduler's lock guards what is taken back.
"""

from __future__ import annotations

from collections import deque

from parallel_exec._sync.clock import time
from parallel_exec.backends.process.worker_handle import AT_WORK, WorkerState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.assignments import Assignments
    from parallel_exec.backends.process.wire import Running
    from parallel_exec.backends.process.worker_handle import WorkerHandle

AHEAD = 0.002  # seconds of work in a batch: some ten round trips, and hardly felt by a task of higher priority
AHEAD_TINY = 0.010  # the same for tiny tasks: who adds them or takes results may hold the interpreter for 5 ms
OVERHEAD = 15e-6  # seconds that a worker spends on a task beside the call itself; measured on one machine
ITEM_OVERHEAD = 1e-6  # the same for an item of a chunk
LONG = 0.020  # seconds; from here on a round trip is below 1 %, and nothing is sent ahead
TINY = 25e-6  # seconds, overhead included; what takes less is tiny
STUCK = AHEAD / 2  # seconds that a call runs until what waits behind it is stuck
MOST_CALLS = 8192  # calls sent ahead to one worker
MOST_LARGE = 32  # the same while descriptors go with some: a socket holds some 270 messages with them
_LATEST = 8  # calls whose average says how long the next will take; a guess
MOST_BYTES = 1 << 16  # of pickled calls in a batch; what is larger travels alone


class Prefetch:
    """Decides what is where, from how long calls take.

    Attributes:
        depth: how many calls a worker should have, the running one included.
    """

    def __init__(self, assignments: Assignments, can_grow: Callable[[], bool]) -> None:
        """Know nothing yet of how long calls take: as long as that is so, a worker gets one.

        Args:
            assignments: the workers, and what is where.
            can_grow: returns whether another worker may be started.
        """
        self.depth = 1
        self._average: float | None = None
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._assignments = assignments
        self._can_grow = can_grow

    def observe(self, duration: float, overhead: float = OVERHEAD, count: int = 1) -> None:
        """Note how many seconds a call took, or `count` calls on average.

        What counts is the average of the last eight, which one slow call does not spoil for long: short calls after long ones
        are sent in batches once eight of them were seen.
        """
        seen = min(duration, LONG * 1.5) + overhead
        latest = self._latest
        if count == 1:
            latest.append(seen)
        else:
            latest.extend([seen] * min(count, _LATEST))
        self._average = average = sum(latest) / len(latest)
        ahead = AHEAD_TINY if average < TINY else AHEAD
        self.depth = 1 if average >= LONG else max(2, min(MOST_CALLS, int(ahead / average)))

    # ── what is sent ahead ──────────────────────────────────────────────────────────────────────────────────────────

    def want(self, handle: WorkerHandle, backlog: int, workers: int, most_per_child: int | None) -> int:
        """Return how many calls a worker should be given now."""
        if handle.state != WorkerState.READY or handle.pending_kill or handle.process.was_killed:
            return 0
        depth = min(self.depth, MOST_LARGE) if handle.large else self.depth
        has = len(handle.assigned)
        if has * 2 > depth:
            return 0
        count = min(depth - has, max(1, -(-backlog // workers)))
        return count if most_per_child is None else min(count, most_per_child - handle.sent)

    def must_wait(self, port: SchedulerPort) -> bool:
        """Return whether a worker has yet to begin what has a higher priority than what is first in the queue.

        Then nothing of lower priority may begin elsewhere. It is a matter of moments: what a worker was sent are tiny
        tasks, or else it is found to be stuck and they are taken back. Called with the lock held.
        """
        for handle in self._assignments.handles:
            second = handle.assigned.second()
            if second is not None:
                priority = port.first_priority()
                if priority is not None and second.priority > priority:
                    return True
        return False

    # ── what is taken back ──────────────────────────────────────────────────────────────────────────────────────────

    def preempt(self, key: tuple[float, int]) -> None:
        """Take back what comes after `key`. Called with the lock held."""
        worst = self._assignments.worst
        if worst is not None and key < worst:
            self._assignments.take_back_all()

    def rebalance(self, *, nothing_else: bool) -> None:
        """Take back what others may begin at once, as some worker has nothing to do. Called with the lock held.

        Args:
            nothing_else: whether nothing is in the queue.
        """
        now = time.monotonic()
        for handle in self._assignments.handles:
            waiting = len(handle.assigned) - 1
            if waiting > 0 and handle.state in AT_WORK:
                running = handle.running()
                if running.serial and now - running.since > STUCK and not _loads_what_waits(handle, running):
                    self._assignments.take_back(handle)
                elif nothing_else and handle.state == WorkerState.READY and self._pays(waiting):
                    self._assignments.take_back(handle, (waiting + 1) // 2)

    def _pays(self, waiting: int) -> bool:
        """Return whether it pays to split so many calls that are on their way to one worker."""
        return self._average is None or waiting * self._average > STUCK

    def relieve(self, handle: WorkerHandle, running: Running, now: float) -> bool:
        """Take back what waits behind a call if that is stuck, and may be begun elsewhere. Called with the lock held.

        Returns:
            Whether it is stuck.
        """
        if now - running.since < STUCK:
            return False
        if (self.depth > 2 or self._others_may_begin()) and not _loads_what_waits(handle, running):
            self._assignments.take_back(handle)
        return True

    def _others_may_begin(self) -> bool:
        """Return whether a call that waits behind another would be begun elsewhere at once."""
        handles = self._assignments.handles
        return self._can_grow() or any(
            handle.state != WorkerState.STARTING and not handle.assigned for handle in handles
        )


def _loads_what_waits(handle: WorkerHandle, running: Running) -> bool:
    """Return whether a worker loads a chunk, and all that waits is of that chunk: another worker would have to load it again."""
    last = handle.assigned.last()
    return running.loading and last is not None and last[1] is handle.assigned.get(running.serial)


def fitting(jobs: Sequence[AnyJob]) -> int:
    """Return how many of these, from the first on and at least one, may travel in one batch."""
    size = segments = 0
    for place, job in enumerate(jobs):
        payload = job.payload
        size += len(payload.data)
        segments += payload.has_descriptors()
        if place and (size > MOST_BYTES or segments > MOST_LARGE):
            return place
    return len(jobs)
