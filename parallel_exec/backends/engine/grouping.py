"""What groups of tiny calls have in common, whatever engine they go to: how an attempt's future ends, pace and priority.

`call_group.py` has the groups of an `Executor`, `dask_group.py` those of a dask cluster.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from concurrent.futures import InvalidStateError
from typing import TYPE_CHECKING, Iterable, Protocol, Sequence

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.remote_call import CallResult

_LATEST = 8  # calls whose average says how long the next will take; a guess


def finish(future: Future[CallResult | None], result: CallResult | None) -> None:
    """Set an attempt's result, unless it was cancelled or has one; None: it did not begin, and never will."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def fail(future: Future[CallResult | None], error: BaseException) -> None:
    """Set an attempt's error, unless it was cancelled or has a result."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


class CallPace:
    """How long calls take, and so how many should travel together. Changed by single atomic calls, from any thread.

    Attributes:
        depth: how many.
    """

    def __init__(self, *, ahead: float, most: int, alone_from: float, overhead: float, longest: float) -> None:
        """Know of no call yet: until one is seen, each goes alone.

        Args:
            ahead: seconds of work that a group should have.
            most: calls in a group.
            alone_from: seconds from which on calls go alone, if they take as long on the average.
            overhead: seconds that each takes beside what `observe` is told.
            longest: seconds that one call counts for at most, so that a long one is forgotten soon.
        """
        self.depth = 1
        self._ahead = ahead
        self._most = most
        self._alone_from = alone_from
        self._overhead = overhead
        self._longest = longest
        self._latest: deque[float] = deque(maxlen=_LATEST)

    def observe(self, seconds: Sequence[float]) -> None:
        """Note how long calls took, the latest last."""
        self._latest.extend([min(each, self._longest) for each in seconds[-_LATEST:]])
        latest = list(self._latest)
        if latest:
            average = sum(latest) / len(latest) + self._overhead
            self.depth = 1 if average >= self._alone_from else min(self._most, int(self._ahead / max(average, 1e-6)))

    def forget(self) -> None:
        """Take calls for long ones, until as many others are seen as it takes."""
        self.observe([self._longest] * _LATEST)


class Group(Protocol):
    """Attempts that travel together, in the order of their priorities."""

    def waiting_priority(self) -> float:
        """Return the highest priority of what has yet to begin behind another attempt; -inf if nothing does."""
        ...


class Precedence:
    """Sees to it that nothing begins elsewhere while something of higher priority waits in a group. The feeder's own.

    It is a matter of moments: what is in a group are tiny calls, or else it is taken back from behind the one that runs long.
    """

    def __init__(self) -> None:
        self._highest = -math.inf  # no group has anything waiting of a higher one

    def added(self, priority: int) -> None:
        """Note that an attempt is put in a group."""
        self._highest = max(self._highest, priority)

    def must_wait(self, port: SchedulerPort, groups: Iterable[Group]) -> bool:
        """Return whether what is first in the queue must not begin yet; `groups`: those that the engine has not done with."""
        if self._highest == -math.inf:
            return False
        with port.lock:
            priority = port.first_priority()
        if priority is None or priority >= self._highest:
            return False
        self._highest = max((group.waiting_priority() for group in groups), default=-math.inf)
        return priority < self._highest
