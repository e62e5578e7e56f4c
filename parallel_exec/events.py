"""What happens in an executor, told to whoever listens.

    scheduler, back ends ──► Dispatcher.emit (`_dispatcher.py`) ──► the user's hook (`on_event`)

They are frozen dataclasses; made, and this module imported, only when somebody listens.
"""

from __future__ import annotations

from parallel_exec._sync.clock import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass, field
else:
    from parallel_exec._dataclasses import dataclass, field

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
class TaskWaiting(TaskEvent):
    """The task has begun to wait for a limit; `attempt` is that of its last attempt.

    Attributes:
        limit: the limit's name; it may wait for others, too, before it is granted all it needs.
    """

    limit: str


@dataclass(frozen=True)
class TaskGranted(TaskEvent):
    """A task that waited for a limit has been granted all it needs, and its attempt is about to begin.

    Attributes:
        limits: their names.
        waited: seconds that it waited.
    """

    limits: tuple[str, ...]
    waited: float


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


KINDS = (
    *(TaskQueued, TaskWaiting, TaskGranted, TaskStarted, TaskRetrying, TaskFinished, TaskTimedOut, TaskCancelled),
    *(WorkerStarted, WorkerDied),
)
