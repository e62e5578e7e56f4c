"""The errors of this library.

    ParallelExecError(Exception)
    ├── TaskTimeoutError(TimeoutError)         one attempt outran its timeout
    ├── DeadlineExceededError(TimeoutError)    the whole run outran its deadline
    ├── WorkerCrashedError(BrokenProcessPool)  a worker died while it ran the task
    ├── WorkerStartError(BrokenExecutor)       workers cannot start; also BrokenProcessPool or BrokenThreadPool
    ├── TaskSerializationError(PicklingError)  something could not be pickled
    ├── RemoteTaskError                        stands in for an exception that could not be rebuilt
    ├── CapacityExhaustedError                 every slot is held by an abandoned thread
    └── QueueFullError(queue.Full)             no room in the queue

Every error pickles, and carries its facts as attributes. `BrokenProcessPool` lives where `multiprocessing` is imported,
so what derives from it is loaded or made when it is first asked for: who uses threads alone never pays for it.
"""

from __future__ import annotations

import functools
import queue
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Literal

try:
    from _pickle import PicklingError  # the same class, without the rest of `pickle`
except ImportError:
    from pickle import PicklingError

if TYPE_CHECKING:
    from parallel_exec._crash_error import WorkerCrashedError as WorkerCrashedError  # noqa: PLC0414  # handed on


def __getattr__(name: str) -> object:
    """Load `WorkerCrashedError` when it is first used (PEP 562)."""
    if name != "WorkerCrashedError":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parallel_exec import _crash_error

    globals()[name] = _crash_error.WorkerCrashedError
    return _crash_error.WorkerCrashedError


Pool = Literal["thread", "process"]


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    """Make an error again from its parts, whatever its `__init__` takes."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class ParallelExecError(Exception):
    """Base of every error that this library raises of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class TaskTimeoutError(ParallelExecError, TimeoutError):
    """One attempt of a task ran longer than its timeout.

    Attributes:
        task_id: the task's id.
        timeout: the limit, in seconds.
        attempt: the attempt's number, from 1.
    """

    def __init__(self, task_id: str, timeout: float, attempt: int) -> None:
        super().__init__(f"Task timeout: attempt {attempt} of task {task_id!r} ran longer than {timeout:g} s")
        self.task_id = task_id
        self.timeout = timeout
        self.attempt = attempt


class DeadlineExceededError(ParallelExecError, TimeoutError):
    """The run's deadline passed before the task was finished.

    Attributes:
        task_id: the task's id.
        deadline: what the run was given, in seconds.
    """

    def __init__(self, task_id: str, deadline: float) -> None:
        super().__init__(f"task {task_id!r} was not finished when the run's deadline of {deadline:g} s passed")
        self.task_id = task_id
        self.deadline = deadline


class WorkerStartError(ParallelExecError, BrokenExecutor):
    """Workers cannot start: the message says why and what to do.

    That of a process pool is a `BrokenProcessPool` as well, that of a thread pool a `BrokenThreadPool`.

    Attributes:
        worker_traceback: the traceback from the worker, "" if it left none.
    """

    _pool: Pool | None = None

    def __init__(self, message: str, worker_traceback: str = "") -> None:
        super().__init__(message + (f"\n\nIn the worker:\n{worker_traceback}" if worker_traceback else ""))
        self.worker_traceback = worker_traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_start_error, (self._pool, self.args, self.__dict__)


def start_error(pool: Pool, message: str, worker_traceback: str = "") -> WorkerStartError:
    """Return a `WorkerStartError` that is also what the standard library's pool of this kind raises once it is broken."""
    return _start_error_type(pool)(message, worker_traceback)


@functools.cache
def _start_error_type(pool: Pool | None) -> type[WorkerStartError]:
    """Return the class for a kind of pool; all go by the one public name."""
    if pool is None:
        return WorkerStartError
    base: type[BrokenExecutor]
    if pool == "thread":
        from concurrent.futures.thread import BrokenThreadPool

        base = BrokenThreadPool
    else:
        from concurrent.futures.process import BrokenProcessPool

        base = BrokenProcessPool
    facts = {"__module__": __name__, "__doc__": WorkerStartError.__doc__, "_pool": pool}
    return type(WorkerStartError.__name__, (WorkerStartError, base), facts)


def _rebuild_start_error(pool: Pool | None, args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    """Make a `WorkerStartError` again: its class cannot be found by its name."""
    return _rebuild(_start_error_type(pool), args, facts)


class TaskSerializationError(ParallelExecError, PicklingError):
    """A task, its result or its exception could not cross to or from a worker.

    Attributes:
        what: a short description of the object.
        direction: "to the worker" or "from the worker".
    """

    def __init__(self, what: str, direction: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{what} cannot be sent {direction}: {reason}" + (f". {hint}" if hint else ""))
        self.what = what
        self.direction = direction


class RemoteTaskError(ParallelExecError):
    """Stands in for an exception of a task that could not be rebuilt in this process.

    Attributes:
        type_name: the exception's qualified type name.
        message: its `str()`.
        worker_traceback: the formatted traceback.
        type_names: the qualified names of the type and all its bases, by which `retry_on` knows it; () if unknown.
        reason: why it could not be rebuilt; "" if unknown.
    """

    def __init__(
        self,
        type_name: str,
        message: str,
        worker_traceback: str = "",
        type_names: tuple[str, ...] = (),
        reason: str = "",
    ) -> None:
        super().__init__(f"{type_name}: {message}" + (f" (this stands in for it: {reason})" if reason else ""))
        self.type_name = type_name
        self.reason = reason
        self.type_names = type_names
        self.message = message
        self.worker_traceback = worker_traceback


class CapacityExhaustedError(ParallelExecError):
    """Every slot is held by an abandoned thread, and no more may be abandoned.

    Attributes:
        abandoned: how many threads are abandoned.
    """

    def __init__(self, abandoned: int) -> None:
        super().__init__(
            f"every slot is held by a thread whose task outran its timeout ({abandoned} abandoned); "
            "let tasks call current_task().check(), raise ThreadBackend(max_abandoned=...), "
            'or use backend="process", whose workers can be killed'
        )
        self.abandoned = abandoned


class QueueFullError(ParallelExecError, queue.Full):
    """The queue holds `queue_size` waiting tasks, and nothing is running that would make room.

    Attributes:
        queue_size: the limit.
    """

    def __init__(self, queue_size: int) -> None:
        super().__init__(
            f"the queue holds queue_size={queue_size} tasks and nothing that could make room is running: "
            "call execute_all(), or raise queue_size"
        )
        self.queue_size = queue_size
