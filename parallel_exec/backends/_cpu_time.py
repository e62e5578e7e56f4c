"""What an attempt in a thread of this process has used of the CPU.

The clock of a thread costs as much as a tenth of a tiny attempt. So only what took a millisecond is measured, at its end; and
where the CPU stood before it was asked a millisecond ago at most. What was done since then is taken to have used the CPU.
"""

from __future__ import annotations

import math
import threading

from parallel_exec._sync.clock import time

LONG = 0.001  # seconds from which on an attempt is measured


class Asked:
    """What the clock said, and when that was, by `time.monotonic()`; written once."""

    __slots__ = ("at", "cpu")

    def __init__(self, cpu: float, at: float) -> None:
        self.cpu = cpu
        self.at = at


NEVER_ASKED = Asked(0.0, -math.inf)


def ask(now: float) -> Asked:
    """Ask the clock of the calling thread."""
    return Asked(time.thread_time(), now)


def used_since(asked: Asked, start: float, end: float) -> float:
    """Return the seconds of CPU that the calling thread has used between these times, the first soon after it was asked."""
    return max(0.0, min(end - start, time.thread_time() - asked.cpu - (start - asked.at)))


class Meter(threading.local):
    """Measures attempts in whatever thread calls it, also one within the other."""

    _asked = NEVER_ASKED

    def begin(self, start: float) -> Asked:
        """Return what the clock says at the beginning of an attempt, or has said just before."""
        if start - self._asked.at >= LONG:
            self._asked = ask(start)
        return self._asked

    @staticmethod
    def end(asked: Asked, start: float, end: float) -> float | None:
        """Return what the attempt has used; None if it was too short."""
        return None if end - start < LONG else used_since(asked, start, end)
