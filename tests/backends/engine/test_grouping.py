"""Which attempts wait for those in groups: without an engine."""

from __future__ import annotations

import math
import threading
from typing import Any, cast

from parallel_exec.backends.engine.grouping import Precedence


class FakePort:
    """The scheduler, whose first job has a priority, or there is none.

    Attributes:
        lock: as the scheduler's.
        first: the priority.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.first: int | None = None

    def first_priority(self) -> int | None:
        """Return it."""
        return self.first


class FakeGroup:
    """A group in which something of a priority waits."""

    def __init__(self, waiting: float) -> None:
        self.waiting = waiting

    def waiting_priority(self) -> float:
        """Return it."""
        return self.waiting


def _must_wait(precedence: Precedence, first: int | None, *waiting: float) -> bool:
    port: Any = FakePort()
    port.first = first
    return precedence.must_wait(cast("Any", port), [FakeGroup(each) for each in waiting])


def test_only_a_lower_priority_waits() -> None:
    """What is of the same priority or a higher one begins; and so does everything where nothing waits in a group."""
    precedence = Precedence()
    assert not _must_wait(precedence, -5, 3)  # nothing was put in a group: nobody is asked
    precedence.added(3)
    assert not _must_wait(precedence, None, 3)
    assert not _must_wait(precedence, 4, 3)
    assert not _must_wait(precedence, 3, 3)
    assert _must_wait(precedence, 2, -math.inf, 3, 1)


def test_until_it_has_begun() -> None:
    """A group in which nothing waits any more holds up nothing, and what is added later counts anew."""
    precedence = Precedence()
    precedence.added(3)
    assert _must_wait(precedence, 0, 3)
    assert _must_wait(precedence, 0, 1)
    assert not _must_wait(precedence, 1, 1)
    assert not _must_wait(precedence, 0, -math.inf)
    precedence.added(2)
    assert _must_wait(precedence, 1, 2)
