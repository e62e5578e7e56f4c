"""A thread that does what it is told, in order: back ends put into its hands what may block or run user code."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Callable

from parallel_exec._current import current
from parallel_exec._sync.threads import arrive, launch
from parallel_exec._sync.weak import Upward, weakly
from parallel_exec.events import logger

if TYPE_CHECKING:
    from parallel_exec.backends.base import SchedulerPort


class SerialThread:
    """A thread and its orders. It ends once the scheduler is drained and nothing is left to do.

    Args:
        name: the thread's.
        source: the scheduler.
        farewell: called last.
    """

    _source = Upward["SchedulerPort"]()

    def __init__(self, name: str, source: SchedulerPort, farewell: Callable[[], object]) -> None:
        self._name = name
        self._source = source
        self._farewell = weakly(farewell)
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # written by `start`
        self._over = False  # whether nothing is done any more

    def start(self) -> None:
        """Start it; does nothing if that was done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        if self._thread.ident is None:
            launch(self._thread)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, once it was started."""
        if self._thread is not None:
            self._thread.join(timeout)

    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._thread is not None and self._thread.is_alive()

    def do(self, order: Callable[[], object]) -> None:
        """Have something done. Never blocks; may be called from anywhere."""
        self._orders.put(order)
        if self._over:  # an attempt that was abandoned has ended, say
            self._drop_orders()

    def wakeup(self) -> None:
        """Have it look whether the scheduler is drained; if the caller holds the lock, once that is let go."""
        self.do(self._await_lock)

    def _drop_orders(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._orders.get_nowait()

    def _await_lock(self) -> None:
        with self._source.lock:
            pass

    def _work(self) -> None:
        current.pool = self._source
        arrive()
        while not (self._source.drained and self._orders.empty()):
            self._carry_out(self._orders.get())
        self._carry_out(self._farewell)
        self._over = True  # first: who gives another order looks at this then
        self._drop_orders()

    def _carry_out(self, order: Callable[[], object]) -> None:
        try:
            order()
        except BaseException:  # from a callback: the stdlib's futures let what is no Exception through
            logger.exception("a callback raised")
