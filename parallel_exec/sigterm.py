"""SIGTERM, as whatever runs a service sends it some time before SIGKILL: what runs may end, and then the program does.

    SIGTERM ──► handler ──► Drain, in a thread: nothing begins any more; waits until nothing runs, at most for the grace
                   ▲           │
                   └── again ──┘ once the main thread is waiting, or the grace is over: `Terminated` is raised there,
                                 and what is left is stopped

Guarantees:
    The handler raises or starts the thread, and takes no lock: what it has interrupted may have it.
    What waits stays in the queue until the main thread is told to end. Were it cancelled before, a `result()` there would raise
    `CancelledError`, and the program would fail instead of end.
    Before the grace is over the main thread is told only where it waits, for a task that will never run or for something else:
    its own code, which may be writing results or reading the input, has the grace, too. If it comes to its end in that time,
    the exit status is SIGTERM's all the same.
    A task that waits for one that will never run has no grace, as it comes no further.
    A second SIGTERM ends the program at once, unless it comes together with the first; one more does what it did before
    `drain_on_sigterm`. So it does in a forked child, and once all the executors have been shut down.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import weakref

from parallel_exec import _lifecycle
from parallel_exec._checks import check_seconds
from parallel_exec._core.completion import CANCELLED
from parallel_exec._dispatcher import logger
from parallel_exec._outcome import TERMINATED, TWIN, Terminated
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import frame_of, main
from parallel_exec.executor import ParallelExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable

    from parallel_exec._core.scheduler import Scheduler

_POLL = 0.01  # seconds
_STILL = 10  # polls for which the main thread must stay where it waits: one that was woken has not run yet; a guess
_AGAIN = 0.5  # seconds until the main thread is told once more, where it has not noticed; a guess
# Where the main thread waits, if that is the module it is in: for a thread, a queue, a future, an event loop, a process.
_WAITING = {"threading", "queue", "selectors", "concurrent", "asyncio", "subprocess", "multiprocessing"}


def drain_on_sigterm(executor: ParallelExecutor, grace: float | None = 8.0) -> None:
    """Have SIGTERM end this program in order, as long as the executor is not shut down. To be called in the main thread.

    At SIGTERM no attempt begins any more, and those that run have `grace` seconds to end. Then, or as soon as nothing runs,
    `SystemExit(143)` is raised in the main thread, where it waits for the executor or, at the latest when the grace is over,
    wherever it is; and what still runs is stopped, as far as the back end can. `results()` and a journal have all that had
    ended. A second SIGTERM, half a second later or more, does that at once.

    It takes the place of the program's own handler for SIGTERM. In a forked child, and after `shutdown`, that one is called.

    Args:
        executor: whose tasks. For several executors call it for each: the longest grace counts.
        grace: seconds; None: as long as it takes. Whoever sends SIGTERM sends SIGKILL later, `docker stop` after 10 s: it should
            be a little less than that.

    Raises:
        ValueError: it is called in another thread than the main one; or the grace is not positive.
    """
    if not isinstance(executor, ParallelExecutor):
        raise TypeError(f"drain_on_sigterm takes a ParallelExecutor, not {executor!r}")
    _terminator.serve(_lifecycle.scheduler_of(executor), check_seconds("grace", grace))


class _Terminator:
    """What SIGTERM does in this process. Written by the main thread alone, which calls the handler, too."""

    def __init__(self) -> None:
        self._graces: list[tuple[weakref.ref[Scheduler], float | None]] = []  # replaced as a whole
        self._before: list[Any] = []  # what handled SIGTERM, each time that this took its place
        self._asking: list[FrameType | None] = []  # where signals came that one of those is answering
        self._process = 0  # whose handler this is
        self._drain: _Drain | None = None

    def serve(self, scheduler: Scheduler, grace: float | None) -> None:
        """Drain this one, too."""
        current = signal.getsignal(signal.SIGTERM)
        if current != self.handle:
            signal.signal(signal.SIGTERM, self.handle)
            self._before.append(current)
        if self._process != os.getpid():
            self._process, self._drain = os.getpid(), None
            atexit.register(self._exit)
        others = [(ref, other) for ref, other in self._graces if ref() not in (None, scheduler)]
        self._graces = [*others, (weakref.ref(scheduler), grace)]
        if self._drain is not None:
            scheduler.completion.stop_starting()
            if self._drain.has_told:  # nobody else would end what waits
                scheduler.monitor.gate.give_up(CANCELLED)

    def served(self) -> list[Scheduler]:
        """Return those that are to be drained and have not ended. From any thread."""
        return [scheduler for scheduler, _ in self._served()]

    def _served(self) -> list[tuple[Scheduler, float | None]]:
        alive = [(ref(), grace) for ref, grace in self._graces]
        return [(each, grace) for each, grace in alive if each is not None and each.monitor.gate.is_in_use()]

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Answer SIGTERM."""
        drain, served = self._drain, self._served()
        if os.getpid() != self._process or (drain is None and not served):
            self._as_before(number, frame)
        elif drain is None:
            self._drain = drain = _Drain(self.served, [grace for _, grace in served])
            drain.start()
        elif not drain.is_calling and drain.is_new():
            pass
        elif not drain.has_told:
            self._end(drain)
        elif not drain.is_calling:
            self._as_before(number, frame)

    def _end(self, drain: _Drain) -> None:
        """End the main thread, as the drain has called, or somebody who has no patience."""
        for scheduler in self.served():
            scheduler.monitor.gate.give_up(CANCELLED)
        drain.has_told = True
        if not _lifecycle.is_over():  # else there is nothing to end but the waiting, which comes to its end now
            drain.has_raised = True
            raise Terminated(hurries=not drain.is_calling)

    def _as_before(self, number: int, frame: FrameType | None) -> None:
        """Do what would have been done without us."""
        depth = self._asking.count(frame)  # the one before may call this in turn, for the same signal
        before = self._before[-1 - depth] if depth < len(self._before) else signal.SIG_DFL
        if callable(before):
            self._asking.append(frame)
            try:
                before(number, frame)
            finally:
                self._asking.pop()
        elif before != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _exit(self) -> None:
        """Have the program end as one that SIGTERM has ended, though it has come to its end by itself meanwhile."""
        drain = self._drain
        if drain is not None and not drain.has_raised and os.getpid() == self._process:
            sys.__dict__["__parallel_exec_status__"] = _Status()


class _Status:
    """Ends the process as SIGTERM would have, when the interpreter lets go of it: in `sys`, which that empties last of all.

    By then the exit functions of others are through, and files are written.
    """

    def __del__(self, end: Callable[[int], object] = os._exit, status: int = TERMINATED) -> None:
        end(status)


class _Drain:
    """What the first SIGTERM sets going.

    Attributes:
        is_calling: whether a signal may come that the drain has sent; the drain's own.
        has_told: whether the main thread knows that it is to end, from the drain or from somebody else.
        has_raised: whether that was raised there. The main thread's own, as the last one.
    """

    def __init__(self, served: Callable[[], list[Scheduler]], graces: list[float | None]) -> None:
        self.is_calling = False
        self.has_told = False
        self.has_raised = False
        self._served = served
        limits = [float("inf") if grace is None else grace for grace in graces]
        self._grace = max(limits)
        self._began = time.monotonic()
        self._until = self._began + self._grace

    def start(self) -> None:
        """Begin, in a thread of its own; or, at the interpreter's end, where there is no thread to be had, in this one."""
        try:
            _thread.start_new_thread(self._run, ())  # `Thread.start` takes locks, which the handler's caller may have
        except RuntimeError:
            self._run()

    def is_new(self) -> bool:
        """Return whether it has only just begun: what comes now is the same request, once more."""
        return time.monotonic() < self._began + TWIN

    def _run(self) -> None:
        for scheduler in self._served():
            scheduler.completion.stop_starting()
        time_left = "as long as they take" if self._grace == float("inf") else f"{self._grace:g} s"
        logger.info("SIGTERM: no task begins any more, and those that run have %s to end", time_left)
        while not self._is_due() and any(scheduler.completion.is_busy() for scheduler in self._served()):
            time.sleep(_POLL)
        still, before = 0, None
        while not self._is_due() and still < _STILL:
            place = _waits_at(self._is_left)
            still = still + 1 if place is not None and place == before else 0
            before = place
            time.sleep(_POLL)
        self._call()
        for scheduler in self._served():
            scheduler.completion.abort_all()
        while not self.has_told:  # it is in C code, or the system has lost the signal
            self._call()
        time.sleep(_AGAIN)
        self.is_calling = False

    def _is_left(self) -> bool:
        """Return whether there is a task that will never run."""
        return any(scheduler.monitor.registry.unsettled for scheduler in self._served())

    def _is_due(self) -> bool:
        return self.has_told or time.monotonic() >= self._until

    def _call(self) -> None:
        """Have the main thread call the handler, and wait until it has, but not for long."""
        until = time.monotonic() + _AGAIN
        if not self.has_told and main.ident is not None:
            self.is_calling = True
            signal.pthread_kill(main.ident, signal.SIGTERM)
        while not self.has_told and time.monotonic() < until:
            time.sleep(_POLL)


def _waits_at(is_left: Callable[[], bool]) -> tuple[int, int] | None:
    """Return where the main thread waits: in this library, for what `is_left`; or in the standard library, for its own code."""
    innermost = frame = frame_of(main.ident or 0)
    if innermost is None:
        return None
    while frame is not None and _package(frame) in _WAITING:
        frame = frame.f_back
    waits_for_us = frame is not None and _package(frame) == "parallel_exec"
    if not (is_left() if waits_for_us else _package(innermost) in _WAITING):
        return None
    return id(innermost.f_code), innermost.f_lasti


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


_terminator = _Terminator()
