"""A thread that waits to be woken by another."""

from __future__ import annotations

import threading
import time

import work

from parallel_exec._sync.parking import Parker


def test_a_wake_up_is_not_lost() -> None:
    """Woken before or while it waits, once or more often, a thread goes on once; a wait of no time is over at once."""
    parker = Parker()
    parker.unpark()
    parker.unpark()
    parker.wait(work.PATIENCE)
    parker.wait(-1)
    waker = threading.Timer(0.05, parker.unpark)
    waker.start()
    start = time.monotonic()
    parker.wait(work.PATIENCE)
    assert time.monotonic() - start < work.PATIENCE
    waker.join()
