"""Locks that are held for moments only, in a program where Ctrl-C, a fork or a contended lock may come at any point."""

from __future__ import annotations

import contextlib
import os
from operator import methodcaller

from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

CALL = methodcaller("__call__")  # calls what it is given; as a function of C's, out of reach of signal handlers
_SPINS = 1000  # a guess; then the holder is held up by something else
_FORK_PATIENCE = 5.0  # seconds that a fork waits for a lock; a guess


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


def ownership(lock: Any) -> Callable[[], bool]:
    """Return what tells whether the calling thread holds a re-entrant lock, as `is_mine` does: for a hot path."""
    return lock._is_owned  # type: ignore[no-any-return]


def release_leaked(*locks: Any) -> None:
    """Release re-entrant locks that the calling thread has only because Ctrl-C tore a `with` apart.

    On CPython 3.14 what a signal handler raises may come between the taking of a lock and the block, on 3.9 between the
    block and the release: then nobody releases it, and all other threads wait for ever. For callers that are not themselves
    inside of such a block.
    """
    for lock in locks:
        while is_mine(lock):
            lock.release()


def call_whole(lock: Any, call: Callable[..., object], *args: Any) -> None:
    """Call what takes a re-entrant lock; if that raises, `release_leaked`, unless the calling thread had the lock before.

    It had if the caller has interrupted what has the lock, as a signal handler or a finalizer.
    """
    was_held = is_mine(lock)
    try:
        call(*args)
    except BaseException:
        if not was_held:
            release_leaked(lock)
        raise


def renew_after_fork(lock: Any) -> None:
    """Make a lock free in a forked child: the thread of the parent that held it did not come along."""
    lock._at_fork_reinit()  # as the stdlib's pools do with theirs


def hold_during_forks(lock: Any) -> Any:
    """Have whoever forks this process hold a re-entrant lock meanwhile, so that what it guards is whole in the child.

    It waits for some seconds, no more. Returns the lock.
    """

    def release() -> None:
        with contextlib.suppress(RuntimeError):  # the time was up
            lock.release()

    os.register_at_fork(
        before=lambda: lock.acquire(timeout=_FORK_PATIENCE),
        after_in_parent=release,
        after_in_child=lambda: renew_after_fork(lock),
    )
    return lock
