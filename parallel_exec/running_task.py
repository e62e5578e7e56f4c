"""`current_task()`: what a running task may know of itself."""

from __future__ import annotations

from concurrent.futures import CancelledError

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec.errors import TaskTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


class CurrentTask:
    """What a running task may know of itself; made by `current_task()`.

    Attributes:
        id: the task's id.
        attempt: the number of this attempt, from 1.
        deadline: `time.monotonic()` at which this attempt must end, None for no limit.
        granted: what it has of the executor's limits, by their names: of a list a tuple of its items, else the amount.
    """

    __slots__ = ("_is_cancelled", "_root_seed", "_timeout", "attempt", "deadline", "granted", "id")

    def __init__(
        self,
        id: str,
        attempt: int,
        deadline: float | None,
        timeout: float | None,
        is_cancelled: Callable[[], bool],
        granted: dict[str, Any],
        root_seed: int,
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.deadline = deadline
        self.granted = granted
        self._timeout = timeout
        self._is_cancelled = is_cancelled
        self._root_seed = root_seed

    @property
    def seed(self) -> int:
        """A whole number of 64 bits, made of the executor's `seed` and the task's id alone.

        It is the same in every back end, attempt and order of tasks, and in every run if `seed` is given; different tasks have
        different ones. For `random.Random(seed)`, or `numpy.random.default_rng(seed)`.
        """
        from hashlib import blake2b  # few ask

        named = f"{self._root_seed}:{self.id}".encode(errors="surrogatepass")
        return int.from_bytes(blake2b(named, digest_size=8).digest(), "little")

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this attempt any more: it was aborted, timed out or given up."""
        return self._is_cancelled()

    def remaining(self) -> float | None:
        """Return the seconds left until `deadline`, never negative; None for no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise if this attempt should stop; call it now and then in a long task.

        Raises:
            TaskTimeoutError: the attempt is past its deadline.
            concurrent.futures.CancelledError: the attempt was aborted or given up.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise TaskTimeoutError(self.id, self._timeout or 0.0, self.attempt)
        if self.cancelled:
            raise CancelledError(f"task {self.id!r} was cancelled")


def current_task() -> CurrentTask:
    """Return a view of the task that the calling thread is running.

    Never blocks; cheap. Works in every back end. A thread that a task starts by itself has no current task.

    Raises:
        RuntimeError: the calling thread is not running a task.
    """
    call, number, granted = current.under_way()
    if call is None:
        raise RuntimeError(
            "current_task() is for code that runs as a task of a ParallelExecutor, in the task's own thread"
        )
    timeout = call.timeout
    deadline = None if timeout is None else call.started_at + timeout
    has = {} if granted is None else granted()
    return CurrentTask(call.id, number, deadline, timeout, call.unwanted(number), has, call.root_seed)
