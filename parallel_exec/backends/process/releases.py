"""What was shared and is gone, until the workers of a pool have been told: they may have it, and would keep it.

the last reference to a content goes, in any thread ──► add ──► the I/O thread ──► each worker, behind what it was sent
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


class Releases:
    """The numbers of contents that are gone. Lock-free, as finalizers add to it.

    Attributes:
        numbers: them.
    """

    def __init__(self) -> None:
        self.numbers: deque[int] = deque()
        self._wakeup: Callable[[], object] | None = None

    def tell(self, wakeup: Callable[[], object]) -> None:
        """Have `wakeup` called when there is something; it must not lead to the pool."""
        self._wakeup = wakeup

    def add(self, number: int) -> None:
        """Note that a content is gone."""
        self.numbers.append(number)
        if self._wakeup is not None:
            self._wakeup()

    def take(self) -> list[int]:
        """Return what was added; for one thread."""
        return [self.numbers.popleft() for _ in range(len(self.numbers))]
