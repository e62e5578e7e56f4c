"""Threads that wait to be woken by any other.

Ctrl-C may come at any point of a wait in the main thread. An event, a condition and a semaphore have a lock of their own, which
it may leave taken, so that whoever wakes waits for ever; or it gives that back twice, and the error is another. These have none.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

TICK = 0.5  # seconds that anybody waits in one go: Python does not hear a signal that comes just before an endless wait


class Parker:
    """Wakes one thread that waits, or is about to. Thread-safe; `unpark` is re-entrant.

    In place of `SimpleQueue.get(timeout)`, which may wait for ever before 3.13, if the time is up while it begins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def unpark(self) -> None:
        """Wake it, or keep it from waiting once."""
        try:  # noqa: SIM105  # `suppress` would be three calls more, each time a thread is woken
            self._lock.release()
        except RuntimeError:  # it is being woken already
            pass

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until `unpark` is called, for up to so many seconds (None: as long as it takes); returns whether it was."""
        return self._lock.acquire() if seconds is None else self._lock.acquire(True, max(0.0, seconds))


class Waiters:
    """Several threads that wait for something to come true. Thread-safe; `wake_all` is re-entrant.

    No waiter is missed: it is listed before it looks, and who makes it come true does so before it wakes those that are listed.
    """

    def __init__(self) -> None:
        self._parkers: list[Parker] = []

    def wake_all(self) -> None:
        """Have all who wait look again."""
        for parker in tuple(self._parkers):
            parker.unpark()

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` returns true; it is called often, and under no lock."""
        parker = Parker()
        self._parkers.append(parker)
        try:
            while not holds():
                parker.wait(TICK)
        finally:
            self._parkers.remove(parker)
