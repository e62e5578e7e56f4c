"""One clock thread, one deadline heap: timeouts, backoff, anything that is due later.

    any thread ── arm(when) ──► requests (SimpleQueue) ──► clock thread ── heap ──► callback()

A timer that is armed for later than its entry in the heap costs nothing: the entry comes up, sees that the deadline has
moved, and goes back with the new one. So a worker that runs a million short attempts with a 30 s timeout touches the
heap once in 30 s. (Lazy re-arming, as in the timer wheels of Varghese and Lauck, 1987, and asyncio's lazy cancels.)

Guarantees:
    `arm`, `disarm` and `stop` never block, and may be called from signal handlers, callbacks and `__del__`:
    `SimpleQueue.put` is re-entrant. A callback runs in the clock thread, never before its deadline, and must be quick.
    A timer that was cancelled lets its callback go at once, though its place in the heap stays until it comes up.
    There is no thread until the first timer is armed. An idle clock sleeps until the next deadline.

The race between `arm` (writes `deadline`, then reads `_entry`) and the clock (writes `_entry`, then reads `deadline`):
whichever comes second sees the other's write, so one of the two puts the timer in the heap; both doing so is harmless.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import weakref

from parallel_exec._sync.clock import time
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.parking import Parker
from parallel_exec._sync.threads import arrive, launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

NEVER = float("inf")
_LONGEST_SLEEP = 3600.0  # seconds; some platforms refuse longer waits than a few weeks


class Timer:
    """Something that is due once at `deadline`; made by `Timers.timer`."""

    __slots__ = ("_callback", "_entry", "_timers", "deadline")

    def __init__(self, timers: Timers, callback: Callable[[], object]) -> None:
        self._timers = weakref.ref(timers)
        self._callback: Callable[[], object] | None = callback
        self._entry = NEVER  # when the heap's entry for this timer comes up
        self.deadline = NEVER

    def arm(self, when: float) -> None:
        """Make the timer due at `time.monotonic() == when`, instead of any earlier setting."""
        self.deadline = when
        if when < self._entry:
            timers = self._timers()
            if timers is not None:
                timers.request(self)

    def disarm(self) -> None:
        """Make the timer due never."""
        self.deadline = NEVER

    def cancel(self) -> None:
        """Make the timer due never again, and let its callback go; what is left in the heap keeps nothing."""
        self.deadline = NEVER
        self._callback = None

    def fire(self) -> None:
        """Call the callback, unless the timer was cancelled; for the clock."""
        callback = self._callback
        if callback is not None:
            callback()


class Timers:
    """The clock. Thread-safe.

    `_heap` belongs to the clock thread alone; `_thread` is guarded by `_start_lock`.
    """

    def __init__(self, name: str = "parallel_exec-clock") -> None:
        self._name = name
        self._stopped = False
        self.after_fork()

    def after_fork(self) -> None:
        """Be as good as new, in a forked child: the clock thread did not come along, and its locks may be taken."""
        self._requests: queue.SimpleQueue[Timer | None] = queue.SimpleQueue()
        self._parker = Parker()  # unparked after a request is put
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def timer(self, callback: Callable[[], object]) -> Timer:
        """Return a new timer, not armed."""
        return Timer(self, callback)

    def request(self, timer: Timer) -> None:
        """Have the clock look at a timer's deadline; called by `Timer.arm`."""
        self._requests.put(timer)
        self._parker.unpark()
        if self._thread is None:
            self.start()

    def start(self) -> None:
        """Start the clock thread unless it is there. Pools do so when they start to work: at exit no thread can be started."""
        # A signal handler that interrupts a start in its own thread must not wait for it: the thread is coming anyway.
        if not self._start_lock.acquire(blocking=False):
            return
        try:
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    launch(thread)
                finally:  # a signal handler may raise before the thread has come so far as to say it, or there would be two
                    if thread.ident is not None:
                        self._thread = thread
        finally:
            self._start_lock.release()

    def stop(self) -> None:
        """Let the clock thread end; timers that are not due by then never will be. Does not wait."""
        self._stopped = True
        self._requests.put(None)
        self._parker.unpark()

    def is_clock(self) -> bool:
        """Return whether the calling thread is the clock's."""
        return self._thread is threading.current_thread()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the clock thread to end; returns at once in the clock thread itself."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _run(self) -> None:
        self._thread = threading.current_thread()  # before any callback can ask `is_clock`
        arrive()
        while True:
            try:
                timer = self._requests.get_nowait()
            except queue.Empty:
                self._fire_due()
                self._parker.wait(
                    min(self._heap[0][0] - time.monotonic(), _LONGEST_SLEEP) if self._heap else _LONGEST_SLEEP
                )
                continue
            if timer is None:
                self._heap.clear()
                return
            self._push(timer)
            del timer  # a clock that sleeps must keep no task alive

    def _push(self, timer: Timer) -> None:
        timer._entry = timer.deadline
        if timer._entry != NEVER:
            heapq.heappush(self._heap, (timer._entry, next(self._sequence), timer))

    def _fire_due(self) -> None:
        while self._heap and self._heap[0][0] <= time.monotonic():
            entry, _, timer = heapq.heappop(self._heap)
            if timer._entry != entry:
                continue  # an earlier entry of the same timer has taken its place
            timer._entry = NEVER
            deadline = timer.deadline
            if deadline > time.monotonic():
                self._push(timer)
                continue
            timer.deadline = NEVER
            guarded(timer.fire, said="a timer's callback raised")
