"""Which workers have had nothing to do for so long that they may end. The I/O thread's own.

A worker is idle since the turn in which it was first found free. If it has been given something in between, it was sent more
than then: that counts, as a call may come and go between two turns.
"""

from __future__ import annotations

from parallel_exec.backends.process.worker_handle import WorkerState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

    from parallel_exec.backends.process.worker_handle import WorkerHandle


class IdleWorkers:
    """The free workers of a pool, and since when they are.

    Args:
        least: how many workers stay.
        seconds: how long the others may be idle.

    Attributes:
        next_at: when to look again (monotonic); None: not before something has happened.
    """

    def __init__(self, least: int, seconds: float) -> None:
        self._least = least
        self._seconds = seconds
        self._since: dict[
            WorkerHandle, tuple[int, float]
        ] = {}  # how many calls it had been sent, and when it was found free
        self.next_at: float | None = None

    def ripe(self, handles: Sequence[WorkerHandle], now: float) -> list[WorkerHandle]:
        """Return those that are to end: who has been idle longest comes first."""
        before, self._since = self._since, {}
        staying = 0
        for handle in handles:
            staying += handle.state != WorkerState.CLOSING
            if handle.is_free:
                known = before.get(handle)
                self._since[handle] = known if known is not None and known[0] == handle.sent else (handle.sent, now)
        idle = sorted(self._since, key=lambda handle: self._since[handle][1])[: max(0, staying - self._least)]
        ripe = [handle for handle in idle if self._since[handle][1] + self._seconds <= now]
        rest = idle[len(ripe) :]
        self.next_at = self._since[rest[0]][1] + self._seconds if rest else None
        return ripe
