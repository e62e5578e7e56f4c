"""Waiting for a future that costs nothing until somebody waits.

A plain `concurrent.futures.Future` makes a condition (with its lock and its deque) and two lists, about 1.3 kB and most of
its cost, for waiters that seldom come. A million futures may be queued; ours make these when somebody asks.

Guarantees:
    No waiter is missed: one that finds the future unsettled has made its condition before the settling thread looked
    for one; whoever comes later finds the final state.

The race in words: whoever asks for the condition first makes it, under the shared `lock`, unless the future has settled
by then; such a late-comer gets `settled`, a condition with nothing to wait for. The settling thread takes the same lock,
and while no condition was made, nobody can be waiting: it writes the state, and that is all. With a condition made, it
settles under that one, exactly as the stdlib does. (`wait()` and `as_completed()` count on states not changing while they
hold a condition; so a state is never written without its condition, if there is one.)

Nobody ever *holds* the shared lock while asking for another: `wait()` locks the conditions of many futures in the order of
their ids, which can only not deadlock while no two futures share a lock. So `settled` does not lock at all: its future's
state is final.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Callable

from parallel_exec._sync.clock import time

TICK = 0.5  # seconds that anybody waits at a time: Python does not hear a signal that comes just before an endless wait
_TRIES = 1000  # a guess; then the holder is held up by something else
lock = threading.RLock()  # guards nothing but the moment in which a future without waiters settles


def acquire_yielding(lock: Any) -> None:
    """Acquire a lock that is held for moments only, without queueing for it, if possible.

    A thread that queues is given the lock while another has the interpreter's; that one, when it wants the lock again, must
    queue in turn, and so each turn costs two switches of threads from then on (a *lock convoy*). So give way, and try again.

    Not for the main thread, where Ctrl-C may raise between this and the `try` that follows; `with` does not let it.
    """
    for _ in range(_TRIES):
        if lock.acquire(False):
            return
        time.sleep(0)
    lock.acquire()


def release_leaked(*locks: Any) -> None:
    """Release re-entrant locks that the calling thread has only because Ctrl-C tore a `with` apart.

    On CPython 3.14 what a signal handler raises may come between the taking of a lock and the block, on 3.9 between the
    block and the release: then nobody releases it, and all other threads wait for ever. For callers that are not themselves
    inside of such a block.
    """
    for lock in locks:
        while lock._is_owned():  # as Condition asks
            lock.release()


class Parker:
    """Wakes one thread that waits, or is about to. Thread-safe; `unpark` is re-entrant.

    In place of `SimpleQueue.get(timeout)`, which may wait for ever before 3.13, if the time is up while it begins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def unpark(self) -> None:
        """Wake it, or keep it from waiting once."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it rings, for up to so many seconds (None: as long as it takes)."""
        self._lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds))


class _Settled:
    """The condition of a future that settled before anybody waited: its state is final."""

    def acquire(self) -> bool:
        """Do nothing."""
        return True

    def release(self) -> None:
        """Do nothing."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    def notify_all(self) -> None:
        """Do nothing: nobody can be waiting."""


settled = _Settled()


class _Main:
    """Which thread is the main one.

    Attributes:
        ident: of the main thread; written in a forked child, whose only thread is its main one.
    """

    ident = threading.main_thread().ident


main = _Main()


def _after_fork() -> None:
    # Another thread of the parent may have held the lock when it forked. (The stdlib's pools do the same with theirs.)
    lock._at_fork_reinit()  # type: ignore[attr-defined]
    main.ident = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LazyAttribute:
    """A non-data descriptor: the first look makes the attribute, once, whoever looks at the same time."""

    def __init__(self, make: Callable[[], Any], late: Any = None) -> None:
        self._make = make
        self._late = late  # what those get who come after the end

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        mine = instance.__dict__
        with lock:
            if self._name not in mine:
                if self._late is not None and instance.done():
                    return self._late
                mine[self._name] = self._make()
                instance._watched = True
            return mine[self._name]
