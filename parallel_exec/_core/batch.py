"""A batch: the tasks that one `execute_all` answers for, from the first `add_task` to the last result.

    add_task ──► join ──► ... ──► leave ──► wait() returns when the last has left

Guarantees:
    `join` and `leave` are called under the executor's lock, once for each job; a batch is over only when all that joined
    have left, so a task added from inside a running task is waited for as well.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as WaitTimeout

from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import TICK, Parker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any, Callable, Container, Generic, Protocol, Sequence, TypeVar

    from parallel_exec._core.journaling import RunJournal
    from parallel_exec.future import TaskFuture
    from parallel_exec.task import TaskResult

    J = TypeVar("J", bound="TaskFuture[Any]")  # a `Job`: its module imports this one
else:
    from parallel_exec._typing import Generic, Protocol


class Collector(Protocol):
    """What a job joins when it is added, and leaves when it has ended, as `Batch` says: a batch, or a stream's window.

    Attributes:
        journal: what admits jobs before they join, and is told when they leave; or None.
    """

    journal: RunJournal | None

    @property
    def ended(self) -> Container[Any]:
        """Those that have left, if the collector has not passed them on."""
        ...

    def join(self, job: Any) -> None:
        """Add a job."""
        ...

    def forget(self, job: Any) -> None:
        """Undo `join`, for a job that was not added after all; also if only a part of `join` was done."""
        ...

    def leave(self, job: Any, success: bool) -> Sequence[Any]:
        """Note that a job has ended; returns those that must be cancelled for it."""
        ...


class HasCollector(Protocol):
    """Where the collector is that is to be joined: it is asked with the executor's lock held."""

    @property
    def current(self) -> Collector:
        """The collector."""
        ...


class Batch(Generic["J"]):
    """The jobs of one `execute_all`. Guarded by the executor's lock, except for the wait.

    Attributes:
        jobs: all that joined, in the order added.
        ended: those that have left, in the order they ended.
        failed: how many of them failed.
        journal: what is told of those that leave; None, unless `execute_all` has one.
    """

    def __init__(self) -> None:
        self.journal: RunJournal | None = None
        self.jobs: list[J] = []
        self.ended: list[J] = []
        self.failed = 0
        self._fails_fast = False  # whether the first failure cancels the rest
        self._has_cancelled = False  # whether it has
        self._is_given_up = False  # whether nobody waits for the rest any more
        # No event, whose lock Ctrl-C in `wait` may leave taken: whoever ends a job would wait for that for ever.
        self._over = True
        self._parker = Parker()  # of the one that waits; unparked after `_over` is set

    def join(self, job: J) -> None:
        """Add a job."""
        self.jobs.append(job)
        self._over = False

    def forget(self, job: J) -> None:
        """Undo `join`, for a job that was not added after all; also if only a part of `join` was done."""
        if job not in self.ended and job in self.jobs:
            self.jobs.remove(job)
        if len(self.ended) == len(self.jobs):
            self._over = True
            self._parker.unpark()

    def leave(self, job: J, success: bool) -> Sequence[J]:
        """Note that a job has ended; returns those that must be cancelled for it.

        Args:
            job: which.
            success: that it did not fail: a cancelled one has not.
        """
        if self.journal is not None:
            self.journal.note(job)  # first, as it may be repeated: a signal handler may raise in between
        self.ended.append(job)
        if not success:
            self.failed += 1
        if len(self.ended) == len(self.jobs):
            self._over = True
            self._parker.unpark()
        return self._cancelled_by_failure()

    def record_in(self, journal: RunJournal) -> list[J]:
        """Have the journal told of the ends; returns those that it must admit first, and then this must be called again."""
        left = [job for job in self.jobs if not journal.has_admitted(job) and not job.cancelled()]
        if not left:
            self.journal = journal
            for job in self.ended:  # before the run began: the pool was started by others
                journal.note(job)
        return left

    def fail_fast(self) -> Sequence[J]:
        """Let the first failure cancel the rest; returns those that must be cancelled, as one may have failed already."""
        self._fails_fast = True
        return self._cancelled_by_failure()

    def _cancelled_by_failure(self) -> Sequence[J]:
        """Return those that must be cancelled, if the batch fails fast and one has failed; once."""
        if not self._fails_fast or not self.failed or self._has_cancelled:
            return ()
        self._has_cancelled = True
        return self.unended()

    def give_up(self) -> None:
        """Note that nobody waits for the rest any more. One assignment, so without the lock."""
        self._is_given_up = True

    def is_over(self) -> bool:
        """Return whether all that joined have left, or nobody waits for them."""
        return self._is_given_up or self._over

    def finished(self) -> list[TaskResult[Any]]:
        """Return the results of those that have ended, and were not cancelled, in the order added. From any thread."""
        return [job.task_result() for job in list(self.jobs) if job.done() and not job.cancelled()]

    def unended(self) -> list[J]:
        """Return the jobs that have not ended."""
        return [job for job in list(self.jobs) if not job.done()]

    def wait(self, until: float | None = None, tick: Callable[[], object] | None = None) -> None:
        """Wait until all have left; Ctrl-C interrupts it. Calls `tick` about ten times a second.

        Args:
            until: give up at this `time.monotonic()`.
            tick: called in the waiting thread.

        Raises:
            concurrent.futures.TimeoutError: `until` has come.
        """
        while not self._over:
            nap = 0.1 if tick is not None else TICK
            if until is not None:
                nap = min(nap, until - time.monotonic())
                if nap <= 0:
                    raise WaitTimeout
            self._parker.wait(nap)
            if tick is not None:
                tick()


class Finished(Protocol):
    """A batch, or a stream, as far as `results()` asks."""

    def finished(self) -> list[TaskResult[Any]]:
        """Return the results that it has."""
        ...


class Batches(Generic["J"]):
    """The batch that tasks join now, and the one that `results()` tells of. Guarded by the executor's lock.

    Attributes:
        current: the batch under way or, between two, the one being staged.
        latest: the batch or stream that was begun last (or, before the first, the batch being staged).
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.current: Batch[J] = Batch()
        self.latest: Finished = self.current
        self._lock = lock
        self._call: object = None  # stands for the call of `execute_all` that is under way
        self._has_begun = False  # whether that has started the current batch

    def reserve(self, call: object) -> None:
        """Let nobody else start the current batch than this call, which an object of its own stands for.

        Raises:
            RuntimeError: somebody else has reserved it.
        """
        with self._lock:
            if self._call is not None:
                raise RuntimeError("execute_all() is running already in another thread: add_task() joins its run")
            self._call = call

    def release(self, call: object) -> None:
        """Undo `reserve` and `record_in`, if it was this call's; what was not started stays staged."""
        with self._lock:
            if self._call is call:
                self._call = None
                self.current.journal = None

    def record_in(self, journal: RunJournal) -> list[J]:
        """Have the current batch tell a journal of its ends; returns as `Batch.record_in`."""
        with self._lock:
            return self.current.record_in(journal)

    def begin(self, fail_fast: bool) -> tuple[Batch[J], Sequence[J]]:
        """Start the current batch, which is reserved; returns it, and what must be cancelled, as one may have failed already."""
        with self._lock:
            self._has_begun = True
            self.latest = batch = self.current
            return batch, batch.fail_fast() if fail_fast else ()

    def opened(self, stream: Finished) -> None:
        """Let `results()` tell of a stream that begins. One assignment, so without the lock."""
        self.latest = stream

    def is_mine(self, call: object) -> bool:
        """Return whether a batch is under way that this call has started."""
        return self._call is call and self._has_begun

    def end(self, stage: Callable[[], object]) -> None:
        """Let tasks join a new batch from now on; waits for what joined at the last moment, unless it was given up.

        `stage` closes the gate, in the same turn of the lock: what joins the new batch must not seem to be running.
        """
        batch = self.current
        while not self._end(batch, stage):
            batch.wait()

    def _end(self, batch: Batch[J], stage: Callable[[], object]) -> bool:
        with self._lock:
            is_over = batch.is_over()
            if is_over and self.current is batch:
                stage()
                self.current = Batch()
                self._has_begun = False
                self._call = None
            return is_over
