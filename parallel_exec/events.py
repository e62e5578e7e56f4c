"""What happens in an executor, told to whoever listens.

    scheduler, back ends ──► Dispatcher.emit ──► the user's hook (`on_event`)

Guarantees:
    An event is made only when somebody listens. The hook is called while none of our locks is held, in the thread in
    which the thing happened. A hook that raises is logged and dropped: it never harms a task.
"""

from __future__ import annotations

import logging

from parallel_exec import _forks
from parallel_exec._dataclasses import make_real
from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass, field
    from typing import Any, Callable
else:
    from parallel_exec._dataclasses import dataclass, field

logger = logging.getLogger("parallel_exec")
_wall_time = time.time


@dataclass(frozen=True)
class Event:
    """Base of all events.

    Attributes:
        time: `time.monotonic()` when it happened, in seconds.
        wall_time: `time.time()` when it happened, in seconds since the epoch; of no account when events are compared.
    """

    time: float
    wall_time: float = field(init=False, compare=False, default_factory=_wall_time)


@dataclass(frozen=True)
class TaskEvent(Event):
    """Base of the events of one task.

    Attributes:
        task_id: the task's id.
        attempt: the attempt's number, from 1; 0 before the first.
    """

    task_id: str
    attempt: int


@dataclass(frozen=True)
class TaskQueued(TaskEvent):
    """The task was put in the queue."""


@dataclass(frozen=True)
class TaskStarted(TaskEvent):
    """An attempt began to run.

    Attributes:
        worker: the name of the thread or process that runs it.
    """

    worker: str = ""


@dataclass(frozen=True)
class TaskRetrying(TaskEvent):
    """An attempt failed, and there will be another.

    Attributes:
        delay: seconds until then.
        error: how the attempt failed; None if it returned, and the retry policy rejected the result.
        duration: seconds that the attempt ran.
        worker: the name of the thread or process that ran it.
    """

    delay: float
    error: BaseException | None = None
    duration: float = 0.0
    worker: str = ""


@dataclass(frozen=True)
class TaskFinished(TaskEvent):
    """The task has its final result.

    Attributes:
        success: whether it returned.
        error: how it failed; None if it returned.
        duration: seconds from the start of the first attempt until the end, waits between attempts included.
        worker: the name of the thread or process that ran the last attempt; "" if there was none.
    """

    success: bool
    error: BaseException | None = None
    duration: float = 0.0
    worker: str = ""


@dataclass(frozen=True)
class TaskTimedOut(TaskEvent):
    """An attempt outran its timeout."""


@dataclass(frozen=True)
class TaskCancelled(TaskEvent):
    """The task was cancelled or aborted."""


@dataclass(frozen=True)
class WorkerStarted(Event):
    """A worker is ready.

    Attributes:
        worker: its name.
    """

    worker: str


@dataclass(frozen=True)
class WorkerDied(Event):
    """A worker ended other than by our wish, or was abandoned or killed.

    Attributes:
        worker: its name.
        reason: why, in words.
    """

    worker: str
    reason: str


@dataclass(frozen=True)
class ExecutorStats:
    """What an executor has done and is doing; a snapshot.

    Attributes:
        queued: tasks waiting for a free slot.
        running: attempts that have a slot now.
        waiting: tasks in backoff.
        succeeded: tasks that returned.
        failed: tasks whose last attempt failed.
        cancelled: tasks that were cancelled or aborted.
        retried: attempts beyond the first.
        timed_out: attempts that outran their timeout.
        abandoned: threads that still run an attempt nobody waits for.
        workers: workers alive now, the abandoned not among them.
    """

    queued: int = 0
    running: int = 0
    waiting: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    timed_out: int = 0
    abandoned: int = 0
    workers: int = 0

    def __init__(  # a signal handler may be the first to have one made: see `_dataclasses`
        self,
        queued: int = 0,
        running: int = 0,
        waiting: int = 0,
        succeeded: int = 0,
        failed: int = 0,
        cancelled: int = 0,
        retried: int = 0,
        timed_out: int = 0,
        abandoned: int = 0,
        workers: int = 0,
    ) -> None:
        counts = dict(locals())
        del counts["self"]
        vars(self).update(counts)


_EVENTS = (TaskQueued, TaskStarted, TaskRetrying, TaskFinished, TaskTimedOut, TaskCancelled, WorkerStarted, WorkerDied)


class Dispatcher:
    """Makes events and hands them to the hook. Thread-safe: it has no state that changes.

    Attributes:
        active: whether anybody listens; callers on a hot path look at it first.
    """

    __slots__ = ("_hook", "active")

    def __init__(self, hook: Callable[[Event], object] | None) -> None:
        self._hook = hook
        self.active = hook is not None
        if hook is not None:
            make_real(*_EVENTS)  # a signal handler may be the first to have one made

    def emit(self, kind: type[Event], *facts: Any) -> None:
        """Call the hook, if there is one, with a new `kind(now, *facts)`."""
        if self._hook is None:
            return
        born = _forks.generation
        try:
            self._hook(kind(time.monotonic(), *facts))
            _forks.end_copy(born)
        except BaseException as error:  # a hook that calls sys.exit() must not take a worker with it
            _forks.end_copy(born, error)
            logger.exception("the on_event hook raised on %s; the event is dropped", kind.__name__)
