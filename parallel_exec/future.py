"""`TaskFuture`: a `concurrent.futures.Future` that knows its task: what the task's holder may do.

Executors make a `Job` (`_core/job.py`) of each task, which is its future and the scheduler's record of it in one object.

Guarantees:
    A future settles exactly once (its scheduler sees to that), and no waiter is missed (`_sync/lazy_condition.py` says how).
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as WaitTimeout
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING

from parallel_exec._dispatcher import logger
from parallel_exec._sync.clock import time
from parallel_exec._sync.lazy_condition import FINAL, LazyAttribute, settled
from parallel_exec._sync.parking import TICK
from parallel_exec._sync.threads import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeVar

    from parallel_exec._outcome import Outcome
    from parallel_exec.task import Attempt, Task, TaskResult

    T = TypeVar("T")
else:
    from parallel_exec._typing import Protocol


class FutureOwner(Protocol):
    """What a future asks of the scheduler that owns it.

    Attributes:
        callers: what the calling thread may wait for; one for each executor.
        seed: the executor's.
    """

    callers: Any
    seed: int

    def cancel(self, job: Any) -> bool:
        """Cancel it unless an attempt is running."""
        ...

    def abort(self, job: Any) -> bool:
        """Cancel it, and stop a running attempt."""
        ...

    def give_back(self, job: Any, outcome: Outcome) -> None:
        """Take back what its attempt holds of the executor's limits, which has ended so, and let others have it."""
        ...

    def enter_wait(self, *jobs: Any) -> bool:
        """Note that the calling task waits for any of them; False if it is none of the pool's tasks. Raises if in vain."""
        ...

    def leave_wait(self) -> None:
        """Note that the calling task waits no more."""
        ...

    def next_sequence(self) -> int:
        """Return the next place in the order in which tasks are added."""
        ...


class Unretrieved:
    """Stands for a failure that nobody has looked at; says so when it is collected."""

    __slots__ = ("error", "id")

    def __init__(self, id: str, error: BaseException) -> None:
        self.id = id
        self.error: BaseException | None = error

    def __del__(self) -> None:
        error = getattr(self, "error", None)  # Ctrl-C may keep `__init__` from setting it
        if error is not None:
            logger.error("task %r failed, and nobody looked at its result", self.id, exc_info=error)


# What its holder is offered for completion; the rest of a `Job` is the scheduler's.
_OFFERED = frozenset((*dir(Future), "abort", "attempts", "id", "task", "task_result"))


class TaskFuture(Future["T"]):
    """The future of one task: all that a `concurrent.futures.Future` does, and `task`, `task_result()` and `abort()`.

    Made by executors only. Thread-safe.
    """

    # Defaults live on the class, so that an instance holds only what differs from them.
    owner: FutureOwner
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _condition: Any = LazyAttribute(threading.Condition, late=settled)
    _waiters: Any = LazyAttribute(list)
    _done_callbacks: Any = LazyAttribute(list)

    _watched = False  # whether any of the last three was made; guarded by `lazy_condition.settling_lock`
    _parked: Any = ()  # taken locks, one for each thread that waits; a list once there is one
    _unretrieved: Unretrieved | None = None

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name[:1] == "_" or name in _OFFERED]

    @property
    def id(self) -> str:
        """The task's id."""
        raise NotImplementedError

    @property
    def task(self) -> Task[T]:
        """The task; for `submit` and `map`, one made from the call.

        Once it has succeeded its call is let go. Then this is the very `Task` that was added if somebody still has it, and
        else one of the same id, priority and settings whose `execute` raises a `RuntimeError`.
        """
        raise NotImplementedError

    def task_result(self) -> TaskResult[T]:
        """Return how the task ended. Does not block.

        Raises:
            InvalidStateError: it has not ended.
        """
        raise NotImplementedError

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts so far that have ended, in order."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Cancel the task if no attempt is running: queued, or backing off between two attempts.

        Does not block.

        Returns:
            Whether it is cancelled now; then it never runs (again), and its callbacks have been called.
        """
        return self.owner.cancel(self)

    def abort(self) -> bool:
        """Cancel the task, and stop a running attempt as far as the back end can.

        A process is killed; a thread is abandoned, and `current_task().cancelled` turns true in it. Does not wait
        for the attempt's end.

        Returns:
            False if the task had ended already. Else True: the future ends as cancelled, unless the attempt
            finishes first.
        """
        return self.owner.abort(self)

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result, waiting for it up to `timeout` seconds (None: as long as it takes).

        Raises:
            CancelledError: the task was cancelled.
            concurrent.futures.TimeoutError: it was not finished in time.
            ParallelExecError: the wait could never end: the task was only added, and nothing runs that would start it; or
                the caller is a task of the same pool, and all slots wait; or the process has forked.
            BaseException: what the task raised.
        """
        try:
            if self._state is not FINISHED:
                self._wait(timeout)
            if self._exception is None:
                return self._result  # type: ignore[no-any-return]
            self._retrieved()
            raise self._exception
        finally:
            del self  # the error's traceback holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None, waiting for its end as `result` does."""
        try:
            if self._state is not FINISHED:
                self._wait(timeout)
            self._retrieved()
            return self._exception
        finally:
            del self

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end; raises if the task was cancelled, or has not ended in time."""
        entered = False
        try:
            if self._state not in FINAL:
                if timeout is None:
                    entered = self.owner.enter_wait(self)
                    self._park(entered)
                elif timeout > 0:
                    self._park_until(time.monotonic() + timeout)
            if self._state is not FINISHED:
                raise WaitTimeout if self._state not in FINAL else CancelledError
        finally:
            if entered:
                self.owner.leave_wait()
            del self

    def _park(self, is_nested: bool) -> None:
        """Wait for the end, however long that takes, on a lock of the calling thread's own.

        Raises:
            ParallelExecError: the caller is a task of the same executor, and would wait for ever, by now.
        """
        lock = self._listed()
        tick = TICK if is_nested or threading.get_ident() == main.ident else -1
        try:
            while self._state not in FINAL:
                if not lock.acquire(True, tick) and is_nested:
                    self.owner.enter_wait(self)
        finally:
            del self

    def _park_until(self, until: float) -> None:
        """Wait for the end, or until it is so late by `time.monotonic()`.

        Not as the standard library does, on a condition: Ctrl-C may leave that taken, and who settles would wait for ever.
        """
        lock = self._listed()
        tick = TICK if threading.get_ident() == main.ident else threading.TIMEOUT_MAX
        try:
            while self._state not in FINAL:
                left = until - time.monotonic()
                if left <= 0:
                    break
                lock.acquire(True, min(left, tick))
        finally:
            self._parked.remove(lock)  # or one that is asked again and again would have ever more
            del self

    def _listed(self) -> Any:
        """Return a taken lock that is released once it has ended."""
        lock = allocate_lock()
        lock.acquire()
        self.__dict__.setdefault("_parked", []).append(lock)  # before the state is looked at: see `lazy_condition`
        return lock

    def done(self) -> bool:
        """Return whether the task has ended, or was cancelled."""
        return self._state in FINAL

    def running(self) -> bool:
        """Return whether an attempt is running."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        return self._state == CANCELLED_AND_NOTIFIED

    def _retrieved(self) -> None:
        if self._unretrieved is not None:
            self._unretrieved.error = None
