"""How much to send ahead: enough that no worker waits for the parent, no more than can be taken back without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.process.worker_handle import WorkerHandle

AHEAD = 0.002  # seconds of work in a batch: some ten round trips, and hardly felt by a task of higher priority
AHEAD_TINY = 0.010  # the same for tiny tasks: who adds them or takes results may hold the interpreter for 5 ms
OVERHEAD = 15e-6  # seconds that a worker spends on a task beside the call itself; measured on one machine
ITEM_OVERHEAD = 1e-6  # the same for an item of a part
LONG = 0.020  # seconds; from here on a round trip is below 1 %, and nothing is sent ahead
TINY = 25e-6  # seconds, overhead included; what takes less is tiny
MOST = 8192  # calls sent ahead to one worker
MOST_LARGE = 32  # the same while descriptors go with some: a socket holds some 270 messages with them
MOST_BYTES = 1 << 16  # of pickled calls in a batch; what is larger travels alone


class Prefetch:
    """What the I/O thread knows of how long tasks take; its own."""

    def __init__(self) -> None:
        self._average: float | None = None

    def observe(self, duration: float, overhead: float = OVERHEAD, count: int = 1) -> None:
        """Note how many seconds a call took, or `count` calls on average.

        A moving average over some eight, which one slow call does not spoil for long.
        """
        seen = min(duration, LONG * 1.5) + overhead
        share = 1 / 8 if count == 1 else 1 - (7 / 8) ** count
        self._average = seen if self._average is None else self._average + (seen - self._average) * share

    def depth(self) -> int:
        """Return how many calls a worker should have, the running one included."""
        if self._average is None or self._average >= LONG:
            return 1
        ahead = AHEAD_TINY if self._average < TINY else AHEAD
        return max(2, min(MOST, int(ahead / self._average)))

    def want(self, handle: WorkerHandle, backlog: int, assignments: int, most_per_child: int | None) -> int:
        """Return how many calls a worker should be given now."""
        if not handle.ready or handle.closing or handle.draining or handle.pending_kill:
            return 0
        depth = min(self.depth(), MOST_LARGE) if handle.large else self.depth()
        has = len(handle.assigned)
        if has * 2 > depth:
            return 0
        count = min(depth - has, max(1, -(-backlog // assignments)))
        return count if most_per_child is None else min(count, most_per_child - handle.sent)

    def long_enough(self, tasks: int) -> bool:
        """Return whether it pays to share out so many tasks that are on their way to one worker."""
        return self._average is None or tasks * self._average > AHEAD / 2


def fitting(futures: Sequence[AnyJob]) -> int:
    """Return how many of these, from the first on and at least one, may travel in one batch."""
    size = segments = 0
    for place, future in enumerate(futures):
        payload = future.payload
        size += len(payload.data)
        segments += payload.has_descriptors()
        if place and (size > MOST_BYTES or segments > MOST_LARGE):
            return place
    return len(futures)
