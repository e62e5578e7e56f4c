"""Locks that are contended, leaked, or held by a thread that did not come along with a fork."""

from __future__ import annotations

import threading
import time

import work

from parallel_exec._sync.locks import acquire_yielding, is_mine, release_leaked, renew_after_fork


def _held_elsewhere(lock: threading.RLock) -> threading.Event:
    """Have another thread hold a lock; returns what ends that."""
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            enough.wait(work.PATIENCE)

    threading.Thread(target=hold).start()
    assert held.wait(work.PATIENCE)
    return enough


def test_a_contended_lock_is_had_in_the_end() -> None:
    """However long another thread holds it."""
    lock = threading.RLock()
    enough = _held_elsewhere(lock)
    threading.Timer(0.05, enough.set).start()
    start = time.monotonic()
    acquire_yielding(lock)
    assert time.monotonic() - start < work.PATIENCE
    assert is_mine(lock)
    lock.release()


def test_a_leaked_lock_is_released_as_often_as_it_was_taken() -> None:
    """And one that another thread holds is left alone."""
    mine, others = threading.RLock(), threading.RLock()
    enough = _held_elsewhere(others)
    mine.acquire()
    mine.acquire()
    release_leaked(mine, others)
    assert not is_mine(mine)
    assert not others.acquire(blocking=False)
    enough.set()


def test_a_lock_is_free_in_a_forked_child() -> None:
    """Whoever held it."""
    lock = threading.RLock()
    enough = _held_elsewhere(lock)
    enough.set()
    work.until(lambda: lock.acquire(blocking=False))
    renew_after_fork(lock)
    assert not is_mine(lock)
    with lock:
        assert is_mine(lock)
