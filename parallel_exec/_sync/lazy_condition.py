"""Waiting for a future that costs nothing until somebody waits.

A plain `concurrent.futures.Future` makes a condition (with its lock and its deque) and two lists, about 1.3 kB and most of
its cost, for waiters that seldom come. A million futures may be queued; ours make these when somebody asks.

Guarantees:
    No waiter is missed: one that finds the future unsettled has made its condition before the settling thread looked
    for one; whoever comes later finds the final state.
    One that waits for a single future, however long, needs no condition: it waits on a lock of its own.

The race in words: whoever asks for the condition first makes it, under the shared `settling_lock`, unless the future has settled
by then; such a late-comer gets `settled`, a condition with nothing to wait for. The settling thread takes the same lock,
and while no condition was made, nobody can be waiting: it writes the state, and that is all. With a condition made, it
settles under that one, exactly as the stdlib does. (`wait()` and `as_completed()` count on states not changing while they
hold a condition; so a state is never written without its condition, if there is one.)

The race between `result()` (lists its lock with the future, then reads the state) and the settling thread (writes the state,
then releases the locks that are listed): whichever comes second sees the other's write. Each is a single step, under no lock.

Nobody ever *holds* the shared lock while asking for another: `wait()` locks the conditions of many futures in the order of
their ids, which can only not deadlock while no two futures share a lock. So `settled` does not lock at all: its future's
state is final.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED

from parallel_exec._sync.locks import renew_after_fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

FINAL = (FINISHED, CANCELLED_AND_NOTIFIED)  # a future's last states
settling_lock = threading.RLock()  # guards nothing but the moment in which a future without waiters settles
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: renew_after_fork(settling_lock))


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


class LazyAttribute:
    """A non-data descriptor: the first look makes the attribute, once, and marks the instance as `_watched`.

    Args:
        make: makes the attribute's value.
        late: what is seen in its place once the instance, a future, is settled, unless it was made before.
    """

    def __init__(self, make: Callable[[], Any], late: Any = None) -> None:
        self._make = make
        self._late = late

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        mine = instance.__dict__
        with settling_lock:
            if self._name not in mine:
                if self._late is not None and mine.get("_state") in FINAL:
                    return self._late
                mine[self._name] = self._make()
                mine["_watched"] = True
            return mine[self._name]
