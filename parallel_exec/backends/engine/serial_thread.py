"""A thread that calls callbacks in order: those that may block, or run user code."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Callable

from parallel_exec._current import current
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.threads import arrive, launch
from parallel_exec._sync.weak import Upward, weakly

if TYPE_CHECKING:
    from parallel_exec.backends.base import SchedulerPort


class SerialThread:
    """A thread and the callbacks it is given. It ends once the scheduler is drained and none is left.

    Attributes:
        has_ended: whether no callback is called any more; then `at_end` is called.

    Args:
        name: the thread's.
        port: the scheduler.
        at_end: called last.
    """

    _port = Upward["SchedulerPort"]()

    def __init__(self, name: str, port: SchedulerPort, at_end: Callable[[], object]) -> None:
        self._name = name
        self._port = port
        self._at_end = weakly(at_end)
        self._callbacks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # written by `start`
        self.has_ended = False

    def start(self) -> None:
        """Start it; does nothing if that was done.

        Raises:
            RuntimeError: no thread can be started; MemoryError likewise.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        if self._thread.ident is None:
            launch(self._thread)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, if it was started; returns whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Have it call something. Never blocks; may be called from anywhere."""
        self._callbacks.put(callback)
        if self.has_ended:  # the engine has ended an abandoned attempt only now, for example
            self._drop_callbacks()

    def wakeup(self) -> None:
        """Have it look whether the scheduler is drained; if the caller holds the lock, once that is released."""
        self.call_soon(self._await_lock)

    def _await_lock(self) -> None:
        with self._port.lock:
            pass

    def _run(self) -> None:
        current.work_for(self._port)
        arrive()
        while not (self._port.drained and self._callbacks.empty()):
            guarded(self._callbacks.get())
        self.has_ended = True  # before the queue is emptied: `call_soon` looks at it after it has put something in
        guarded(self._at_end)
        self._drop_callbacks()

    def _drop_callbacks(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._callbacks.get_nowait()
