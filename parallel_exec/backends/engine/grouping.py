"""What groups of tiny calls have in common, whatever engine they go to: how an attempt's future ends, and the pace.

`call_group.py` has the groups of an `Executor`, `dask_group.py` those of a dask cluster.
"""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import InvalidStateError
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from concurrent.futures import Future

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
