"""Run calls in parallel, with priorities, timeouts and retries, and get exactly one result for each.

The names below are all there is to import. They are loaded when they are first used: a program that only might run
something in parallel, and each worker process, pays for what it uses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._core.registry import ExecutorStats
    from parallel_exec._core.running import RunningTask
    from parallel_exec.backends.base import Backend
    from parallel_exec.backends.engine.dask import DaskBackend
    from parallel_exec.backends.engine.executor import ExecutorBackend
    from parallel_exec.backends.inline import InlineBackend
    from parallel_exec.backends.process.backend import ProcessBackend
    from parallel_exec.backends.thread import ThreadBackend
    from parallel_exec.config import ParallelConfig
    from parallel_exec.errors import (
        CapacityExhaustedError,
        DeadlineExceededError,
        JournalError,
        ParallelExecError,
        QueueFullError,
        RemoteTaskError,
        ResultRejectedError,
        RetryAfter,
        SoftTimeoutError,
        TaskSerializationError,
        TaskTimeoutError,
        WorkerCrashedError,
        WorkerStartError,
    )
    from parallel_exec.events import (
        Event,
        TaskCancelled,
        TaskEvent,
        TaskFinished,
        TaskGranted,
        TaskQueued,
        TaskRetrying,
        TaskStarted,
        TaskTimedOut,
        TaskWaiting,
        WorkerDied,
        WorkerStarted,
    )
    from parallel_exec.executor import ParallelExecutor
    from parallel_exec.future import TaskFuture
    from parallel_exec.journal import Journal
    from parallel_exec.limits import Adaptive, LimitStats, PerKey, Rate
    from parallel_exec.running_task import CurrentTask, current_task
    from parallel_exec.shared import Shared
    from parallel_exec.sigterm import drain_on_sigterm
    from parallel_exec.task import INHERIT, Attempt, Task, TaskResult
    from parallel_exec.task_queue import TaskQueue
    from parallel_exec.worker import CurrentWorker, current_worker

__version__ = "0.1.0"  # the one place: the build reads it here

_HOMES = {
    "_core.registry": ("ExecutorStats",),
    "_core.running": ("RunningTask",),
    "backends.base": ("Backend",),
    "backends.engine.dask": ("DaskBackend",),
    "backends.engine.executor": ("ExecutorBackend",),
    "backends.inline": ("InlineBackend",),
    "backends.process.backend": ("ProcessBackend",),
    "backends.thread": ("ThreadBackend",),
    "config": ("ParallelConfig",),
    "errors": (
        "CapacityExhaustedError",
        "DeadlineExceededError",
        "JournalError",
        "ParallelExecError",
        "QueueFullError",
        "RemoteTaskError",
        "ResultRejectedError",
        "RetryAfter",
        "SoftTimeoutError",
        "TaskSerializationError",
        "TaskTimeoutError",
        "WorkerCrashedError",
        "WorkerStartError",
    ),
    "events": (
        "Event",
        "TaskCancelled",
        "TaskEvent",
        "TaskFinished",
        "TaskGranted",
        "TaskQueued",
        "TaskRetrying",
        "TaskStarted",
        "TaskTimedOut",
        "TaskWaiting",
        "WorkerDied",
        "WorkerStarted",
    ),
    "executor": ("ParallelExecutor",),
    "future": ("TaskFuture",),
    "journal": ("Journal",),
    "limits": ("Adaptive", "LimitStats", "PerKey", "Rate"),
    "running_task": ("CurrentTask", "current_task"),
    "shared": ("Shared",),
    "sigterm": ("drain_on_sigterm",),
    "task": ("INHERIT", "Attempt", "Task", "TaskResult"),
    "task_queue": ("TaskQueue",),
    "worker": ("CurrentWorker", "current_worker"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "INHERIT",
    "Adaptive",
    "Attempt",
    "Backend",
    "CapacityExhaustedError",
    "CurrentTask",
    "CurrentWorker",
    "DaskBackend",
    "DeadlineExceededError",
    "Event",
    "ExecutorBackend",
    "ExecutorStats",
    "InlineBackend",
    "Journal",
    "JournalError",
    "LimitStats",
    "ParallelConfig",
    "ParallelExecError",
    "ParallelExecutor",
    "PerKey",
    "ProcessBackend",
    "QueueFullError",
    "Rate",
    "RemoteTaskError",
    "ResultRejectedError",
    "RetryAfter",
    "RunningTask",
    "Shared",
    "SoftTimeoutError",
    "Task",
    "TaskCancelled",
    "TaskEvent",
    "TaskFinished",
    "TaskFuture",
    "TaskGranted",
    "TaskQueue",
    "TaskQueued",
    "TaskResult",
    "TaskRetrying",
    "TaskSerializationError",
    "TaskStarted",
    "TaskTimedOut",
    "TaskTimeoutError",
    "TaskWaiting",
    "ThreadBackend",
    "WorkerCrashedError",
    "WorkerDied",
    "WorkerStartError",
    "WorkerStarted",
    "current_task",
    "current_worker",
    "drain_on_sigterm",
]


def __getattr__(name: str) -> object:
    """Load a name when it is first used (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(__import__(f"{__name__}.{home}", fromlist=[name]), name)  # `importlib` costs an import
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
