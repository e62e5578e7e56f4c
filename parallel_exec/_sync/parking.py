"""One thread that waits to be woken by any other."""

from __future__ import annotations

import threading

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

    def wait(self, seconds: float | None = None) -> None:
        """Wait until `unpark` is called, for up to so many seconds (None: as long as it takes)."""
        if seconds is None:
            self._lock.acquire()
        else:
            self._lock.acquire(True, max(0.0, seconds))
