"""Locks that are held for moments only, in a program where Ctrl-C, a fork or a contended lock may come at any point."""

from __future__ import annotations

from typing import Any

from parallel_exec._sync.clock import time

_SPINS = 1000  # a guess; then the holder is held up by something else


def acquire_yielding(lock: Any) -> None:
    """Acquire a lock that is held for moments only, without queueing for it, if possible.

    A thread that queues is given the lock while another has the interpreter's; that one, when it wants the lock again, must
    queue in turn, and so each turn costs two switches of threads from then on (a *lock convoy*). So give way, and try again.

    Not for the main thread, where Ctrl-C may raise between this and the `try` that follows; `with` does not let it.
    """
    for _ in range(_SPINS):
        if lock.acquire(False):
            return
        time.sleep(0)
    lock.acquire()


def is_mine(lock: Any) -> bool:
    """Return whether the calling thread holds a re-entrant lock."""
    return bool(lock._is_owned())  # as Condition asks


def release_leaked(*locks: Any) -> None:
    """Release re-entrant locks that the calling thread has only because Ctrl-C tore a `with` apart.

    On CPython 3.14 what a signal handler raises may come between the taking of a lock and the block, on 3.9 between the
    block and the release: then nobody releases it, and all other threads wait for ever. For callers that are not themselves
    inside of such a block.
    """
    for lock in locks:
        while is_mine(lock):
            lock.release()


def renew_after_fork(lock: Any) -> None:
    """Make a lock free in a forked child: the thread of the parent that held it did not come along."""
    lock._at_fork_reinit()  # as the stdlib's pools do with theirs
