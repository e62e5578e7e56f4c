"""One run: the tasks that one `execute_all` answers for, from the first `add_task` to the last result.

    add_task ──► join ──► ... ──► leave ──► wait() returns when the last has left

Guarantees:
    `join` and `leave` are called under the scheduler's lock, once for each future; a run is over only when all that joined
    have left, so a task added from inside a running task is waited for as well.
"""

from __future__ import annotations

import threading
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TYPE_CHECKING, Any, Callable, Protocol, Sequence

from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.task import TaskResult


class Batch:
    """The futures of one run. Guarded by the scheduler's lock, except the event that `wait` waits for.

    Attributes:
        futures: all that joined, in the order added.
        ended: those that have left, in the order they ended.
        fail_fast: whether the first failure cancels the rest.
        failed: how many of them failed.
        given_up: nobody waits for the rest any more.
    """

    def __init__(self) -> None:
        self.futures: list[AnyJob] = []
        self.ended: list[AnyJob] = []
        self.fail_fast = False
        self.failed = 0
        self.given_up = False
        self._tripped = False  # whether a failure has cancelled the rest
        self._over = threading.Event()
        self._over.set()

    def join(self, future: AnyJob) -> None:
        """Add a future."""
        self.futures.append(future)
        if self._over.is_set():
            self._over.clear()

    def forget(self, future: AnyJob) -> None:
        """Undo `join`, for a future that was not added after all; also if only a part of `join` was done."""
        if future not in self.ended and future in self.futures:
            self.futures.remove(future)
        if len(self.ended) == len(self.futures):
            self._over.set()

    def leave(self, future: AnyJob, success: bool) -> Sequence[AnyJob]:
        """Note that a future has ended; returns those that must be cancelled for it.

        Args:
            future: which.
            success: that it did not fail: a cancelled one has not.
        """
        self.ended.append(future)
        if not success:
            self.failed += 1
        if len(self.ended) == len(self.futures):
            self._over.set()
        return self.trip()

    def trip(self) -> Sequence[AnyJob]:
        """Return those that must be cancelled, if the run fails fast and one has failed; once."""
        if not self.fail_fast or not self.failed or self._tripped:
            return ()
        self._tripped = True
        return self.unended()

    def is_over(self) -> bool:
        """Return whether all that joined have left."""
        return self._over.is_set()

    def finished(self) -> list[TaskResult[Any]]:
        """Return the results of those that have ended, and were not cancelled, in the order added. From any thread."""
        return [future.task_result() for future in list(self.futures) if future.done() and not future.cancelled()]

    def unended(self) -> list[AnyJob]:
        """Return the futures that have not ended."""
        return [future for future in list(self.futures) if not future.done()]

    def wait(self, until: float | None = None, tick: Callable[[], object] | None = None) -> None:
        """Wait until the run is over; Ctrl-C interrupts it. Calls `tick` about ten times a second.

        Args:
            until: give up at this `time.monotonic()`.
            tick: called in the waiting thread.

        Raises:
            concurrent.futures.TimeoutError: `until` has come.
        """
        while True:
            nap = 0.1 if tick is not None else TICK
            if until is not None:
                nap = max(0.0, min(nap, until - time.monotonic()))
            if self._over.wait(nap):
                return
            if tick is not None:
                tick()
            if until is not None and time.monotonic() >= until:
                raise WaitTimeout


class Finished(Protocol):
    """A run, or a stream, as far as `results()` asks."""

    def finished(self) -> list[TaskResult[Any]]:
        """Return the results that it has."""
        ...


class Batches:
    """The run that tasks join now, and the one that `results()` tells of. Guarded by the scheduler's lock.

    Attributes:
        current: the run under way or, between two, the one being staged.
        latest: the run or stream that was begun last (or, before the first, the run being staged).
    """

    def __init__(self) -> None:
        self.current = Batch()
        self.latest: Finished = self.current
        self._ticket: object = None  # of the `execute_all` that is under way

    def begin(self, lock: Any, fail_fast: bool, ticket: object) -> Batch:
        """Start the current run; by its ticket the caller can tell whether it did, whatever was raised meanwhile.

        Raises:
            RuntimeError: it was started already.
        """
        with lock:
            if self._ticket is not None:
                raise RuntimeError("execute_all() is running already in another thread: add_task() joins its run")
            self._ticket = ticket
            self.current.fail_fast = fail_fast
            self.latest = self.current
            return self.current

    def opened(self, stream: Finished) -> None:
        """Let `results()` tell of a stream that begins. One assignment, so without the lock."""
        self.latest = stream

    def is_mine(self, ticket: object) -> bool:
        """Return whether the run under way was begun with this ticket."""
        return self._ticket is ticket

    def give_up(self) -> Batch:
        """Do not wait for the rest of the run under way, as its caller was interrupted; returns the run."""
        self.current.given_up = True
        return self.current

    def end(self, lock: Any, stage: Callable[[], object]) -> None:
        """Let tasks join a new run from now on; waits for what joined at the last moment, unless the run was given up.

        `stage` closes the queue's gate, in the same turn of the lock: what joins the new run must not seem to be running.
        """
        run = self.current
        while not self._end(lock, run, stage):
            run.wait()

    def _end(self, lock: Any, run: Batch, stage: Callable[[], object]) -> bool:
        with lock:
            over = run.is_over() or run.given_up
            if over and self.current is run:
                stage()
                self.current = Batch()
                self._ticket = None
            return over
