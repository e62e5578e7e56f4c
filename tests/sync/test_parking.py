"""A thread that waits to be woken by another."""

from __future__ import annotations

import threading
import time

import work

from parallel_exec._sync.parking import Parker, Waiters


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


def test_several_that_wait_for_one_thing() -> None:
    """All who wait go on when it has come true, and not before; who comes later does not wait."""
    waiters, is_so = Waiters(), threading.Event()
    threads = [threading.Thread(target=waiters.wait, args=(is_so.is_set,), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    work.until(lambda: len(waiters._parkers) == 3)
    waiters.wake_all()
    assert all(thread.is_alive() for thread in threads)
    is_so.set()
    waiters.wake_all()
    for thread in threads:
        thread.join(work.PATIENCE)
        assert not thread.is_alive()
    waiters.wait(is_so.is_set)
    assert not waiters._parkers
