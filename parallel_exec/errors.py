"""The errors of this library.

    ParallelExecError(Exception)
    ├── TaskTimeoutError(TimeoutError)         one attempt outran its timeout
    ├── SoftTimeoutError(TimeoutError)         raised in a task at its soft_timeout
    ├── DeadlineExceededError(TimeoutError)    the whole run outran its deadline
    ├── WorkerCrashedError(BrokenProcessPool)  a worker died while it ran the task
    ├── WorkerStartError(BrokenExecutor)       workers cannot start; also BrokenProcessPool or BrokenThreadPool
    ├── TaskSerializationError(PicklingError)  something could not be pickled
    ├── RemoteTaskError                        stands in for an exception that could not be rebuilt
    ├── ResultRejectedError                    the retry policy rejected what the task returned
    ├── RetryAfter                             raised by a task: not now, try again in so many seconds
    ├── CapacityExhaustedError                 every slot is held by an abandoned thread
    ├── JournalError                           a journal cannot be used
    └── QueueFullError(queue.Full)             no room in the queue

Every error pickles, and carries its facts as attributes. `BrokenProcessPool` lives where `multiprocessing` is imported,
and `PicklingError` in `pickle`, so what derives from these is made when it is first asked for: who uses threads alone
never pays for it.
"""

from __future__ import annotations

import functools
import queue
from concurrent.futures import BrokenExecutor

from parallel_exec._names import call_name, short_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool
    from pickle import PicklingError
    from typing import Any, Literal, Sequence

    from parallel_exec._stacks import Stacks

    Pool = Literal["thread", "process"]


def __getattr__(name: str) -> object:
    """Make `WorkerCrashedError` or `TaskSerializationError` when it is first used (PEP 562)."""
    bases: tuple[type, type]
    if name == "WorkerCrashedError":
        bases = _CrashError, broken_type("process")
    elif name == "TaskSerializationError":
        bases = SerializationError, _pickling_error()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, bases, {"__module__": __name__, "__doc__": bases[0].__doc__})
    return globals().setdefault(name, made)  # unless another thread was first


def _pickling_error() -> type[Exception]:
    try:
        from _pickle import PicklingError  # the same class, without the rest of `pickle`
    except ImportError:
        from pickle import PicklingError
    return PicklingError


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    """Make an error again from its parts, whatever its `__init__` takes."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(facts)
    if isinstance(error, LocatedError):
        error.show_stack()
    return error


class ParallelExecError(Exception):
    """Base of every error that this library raises of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def copy_of(error: ParallelExecError) -> ParallelExecError:
    """Return another like it, without a traceback: to raise one that is kept would have it lead to whoever meets it."""
    rebuild, parts = error.__reduce__()
    made: ParallelExecError = rebuild(*parts)
    made.__cause__ = error.__cause__
    return made


class LocatedError(ParallelExecError):
    """What may know where its worker was: in one line, which is in the message, and in full.

    Attributes:
        stack: where each thread of the worker was, the task's last, and of each the most recent call last; "" if unknown.
    """

    def __init__(self, message: str, stacks: Stacks | None) -> None:
        where = "" if stacks is None else stacks.where()
        super().__init__(f"{message}, at {where}" if where else message)
        self.stack = "" if stacks is None else stacks.text()
        self.show_stack()

    def show_stack(self) -> None:
        """Have the stack printed where the error is."""
        if self.stack and self.__cause__ is None:
            from parallel_exec._stacks import WorkerStack  # most never need it

            self.__cause__ = WorkerStack(self.stack)


class TaskTimeoutError(LocatedError, TimeoutError):
    """One attempt of a task ran longer than its timeout.

    Attributes:
        task_id: the task's id.
        timeout: the limit, in seconds.
        attempt: the attempt's number, from 1.
        stack: where the attempt was: each thread of its worker process, or its thread; "" if that is not known.
    """

    def __init__(self, task_id: str, timeout: float, attempt: int, stacks: Stacks | None = None) -> None:
        message = f"Task timeout: attempt {attempt} of task {task_id!r} ran longer than {timeout:g} s"
        super().__init__(message, stacks)
        self.task_id = task_id
        self.timeout = timeout
        self.attempt = attempt


def located(error: BaseException, stacks: Stacks | None, fn: object) -> BaseException:
    """Return the error of an attempt that was stopped: that of a timeout as one which knows where that was, in a call of `fn`."""
    if stacks is None or not stacks.threads or type(error) is not TaskTimeoutError:
        return error
    return TaskTimeoutError(error.task_id, error.timeout, error.attempt, stacks._replace(call=call_name(fn)))


class SoftTimeoutError(ParallelExecError, TimeoutError):
    """Raised in a task that has run for its `soft_timeout`, so that it can save what it has, and end.

    One that lets it pass has failed with it, and is retried by policy.

    Attributes:
        task_id: the task's id.
        soft_timeout: the limit, in seconds.
        attempt: the attempt's number, from 1.
    """

    def __init__(self, task_id: str, soft_timeout: float, attempt: int) -> None:
        super().__init__(f"attempt {attempt} of task {task_id!r} has run for its soft_timeout of {soft_timeout:g} s")
        self.task_id = task_id
        self.soft_timeout = soft_timeout
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


def how_ended(exitcode: int | None) -> str:
    """Say in words how a process ended."""
    if exitcode is None:
        return "exit code unknown"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    import signal  # enum-heavy; only a crash needs it

    try:
        return f"signal {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"signal {-exitcode}"


class _CrashError(LocatedError):
    """A worker process died while it ran the task. Only this task is lost: the pool goes on.

    Attributes:
        pid: the worker's process id.
        exitcode: its exit code, negative for a signal; None if unknown.
        task_id: the task it was running.
        stack: where each thread of the worker was, if a signal ended it that left the time to say so (SIGSEGV, SIGABRT).
    """

    def __init__(
        self, pid: int, exitcode: int | None, task_id: str, stacks: Stacks | None = None, hint: str = ""
    ) -> None:
        message = f"worker process {pid} died ({how_ended(exitcode)}) while it ran task {task_id!r}"
        super().__init__(f"{message}: {hint}" if hint else message, stacks)
        self.pid = pid
        self.exitcode = exitcode
        self.task_id = task_id


if TYPE_CHECKING:

    class WorkerCrashedError(_CrashError, BrokenProcessPool):
        """What `__getattr__` makes."""


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
    facts = {"__module__": __name__, "__doc__": WorkerStartError.__doc__, "_pool": pool}
    return type(WorkerStartError.__name__, (WorkerStartError, broken_type(pool)), facts)


def broken_type(pool: Pool) -> type[BrokenExecutor]:
    """Return what the standard library's pool of this kind raises once it is broken, for our errors to be that, too."""
    try:
        if pool == "thread":
            from concurrent.futures.thread import BrokenThreadPool

            return BrokenThreadPool
        from concurrent.futures.process import BrokenProcessPool

        return BrokenProcessPool
    except RuntimeError:
        # The interpreter is ending, and refuses the exit hook that these modules put in. Then nobody has loaded them, nor
        # can: there is no code that could ask for more than their base.
        return BrokenExecutor


def _rebuild_start_error(pool: Pool | None, args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    """Make a `WorkerStartError` again: its class cannot be found by its name."""
    return _rebuild(_start_error_type(pool), args, facts)


class SerializationError(ParallelExecError):
    """A task, its result or its exception could not cross to or from a worker.

    Attributes:
        what: a short description of the object.
        direction: "to the worker" or "from the worker".
    """

    def __init__(self, what: str, direction: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{what} cannot be sent {direction}: {reason}" + (f". {hint}" if hint else ""))
        self.what = what
        self.direction = direction


if TYPE_CHECKING:

    class TaskSerializationError(SerializationError, PicklingError):
        """What `__getattr__` makes."""


class RemoteTaskError(ParallelExecError):
    """Stands in for an exception of a task that could not be rebuilt in this process.

    Attributes:
        type_name: the exception's qualified type name.
        message: its `str()`.
        worker_traceback: the formatted traceback.
        type_names: the qualified names of the type and all its bases, by which `retry_on` knows it; () if unknown.
        reason: why it could not be rebuilt; "" if unknown.

    Where this process has the exception's class, the stand-in is of that class as well: `except` finds it. It has those
    of the exception's attributes that could be sent.
    """

    _kinds: tuple[type[BaseException], ...] = ()

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

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_stand_in, (self._kinds, self.args, self.__dict__)) if self._kinds else super().__reduce__()


_FACTS = ("type_name", "reason", "type_names", "message", "worker_traceback")
_OBJECTS = ("__setattr__", "__delattr__", "__eq__", "__hash__", "__reduce_ex__")


def _fact(name: str) -> property:
    """Return what finds an attribute of ours, also where another type has something of the same name."""
    return property(lambda self: self.__dict__[name])


def stand_in(
    names: tuple[str, ...],
    message: str,
    worker_traceback: str,
    reason: str,
    kinds: Sequence[type[BaseException]],
    attributes: dict[str, Any],
) -> RemoteTaskError:
    """Return a `RemoteTaskError` that is of other exception types as well, if that goes.

    Args:
        names: for `type_names`.
        message: what the exception said.
        worker_traceback: as text.
        reason: why it could not be rebuilt.
        kinds: the types.
        attributes: what is left of the exception's own, by name.
    """
    error = RemoteTaskError(names[0], message, worker_traceback, names, reason)
    facts = {**{name: value for name, value in attributes.items() if name != "args"}, **error.__dict__}
    try:
        return _rebuild_stand_in(tuple(kinds), error.args, facts)
    except Exception:  # types that do not go together, or with ours: metaclasses, what C keeps of them
        error.__dict__.update(facts)
        return error


@functools.lru_cache(maxsize=256)
def _stand_in_type(kinds: tuple[type[BaseException], ...]) -> type[RemoteTaskError]:
    """Return the class for stand-ins of these types: it behaves as RemoteTaskError does, whatever theirs do."""
    if any("__init_subclass__" in base.__dict__ for kind in kinds for base in kind.__mro__ if base is not object):
        raise TypeError("it is for its own class to say who may derive from it, and it may keep a list of who does")
    kinds = tuple(kind for kind in kinds if not issubclass(RemoteTaskError, kind))
    if not kinds:
        return RemoteTaskError
    base: Any = next(base for base in kinds[0].__mro__ if base.__module__ == "builtins")
    body: dict[str, Any] = {name: _fact(name) for name in _FACTS}
    body.update((name, getattr(object, name)) for name in _OBJECTS)
    body.update((name, getattr(Exception, name)) for name in ("__str__", "__repr__", "__getattribute__"))
    body.update(__module__=__name__, __doc__=RemoteTaskError.__doc__, __qualname__=RemoteTaskError.__qualname__)
    body.update(_kinds=kinds, __new__=base.__new__)
    return type(RemoteTaskError.__name__, (RemoteTaskError, *kinds), body)


def _rebuild_stand_in(
    kinds: tuple[type[BaseException], ...], args: tuple[Any, ...], facts: dict[str, Any]
) -> RemoteTaskError:
    """Make a stand-in again: its class cannot be found by its name."""
    error = _stand_in_type(kinds).__new__(_stand_in_type(kinds))
    error.args = args
    error.__dict__.update(facts)
    return error


class ResultRejectedError(ParallelExecError):
    """A task returned, and its retry policy (tenacity's `retry_if_result`, say) rejected the result until no retry was left.

    Such a task has no exception of its own. A `retry_error_cls` of the user's takes the place of this one.

    Attributes:
        result: what the last attempt returned.
        attempts: how many attempts there were.
    """

    def __init__(self, result: object, attempts: int) -> None:
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"the retry policy rejected what the task returned, {short_repr(result)}, after {times}")
        self.result = result
        self.attempts = attempts


class RetryAfter(ParallelExecError):  # noqa: N818  # it is what the header says, and no error of the task's
    """Raised by a task: whatever it asked is busy, and it wants another attempt in so many seconds.

    It gets one as long as retries are left, whatever `retry_on` says, and that wait takes the place of the backoff.

    Args:
        seconds: until the next attempt.
        limit: the name of a limit of the executor's that grants nothing until then, to any task: that of the service which
            said so. Of a `PerKey` the limit of the task's own key. None: this task alone waits.

    Attributes:
        retry_after: the seconds. Any exception with a number under this name is waited for alike, if it is retried.
        limit: the name.

    Raises:
        TypeError: `seconds` is no number, or `limit` no text.
        ValueError: `seconds` is negative, infinite or NaN.
    """

    def __init__(self, seconds: float, limit: str | None = None) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(
                f"RetryAfter takes seconds as a number, not {seconds!r}: make one of what a header says, a date or text"
            )
        if not 0 <= seconds < float("inf"):
            raise ValueError(
                f"RetryAfter takes 0 seconds or more, not {seconds!r}: max(0.0, ...) for a time that may have passed"
            )
        if limit is not None and not isinstance(limit, str):
            raise TypeError(f"RetryAfter takes the name of a limit, not {limit!r}")
        held = "" if limit is None else f", and nothing that needs the limit {limit!r} before that"
        super().__init__(f"to be tried again in {seconds:g} s{held}")
        self.retry_after = seconds
        self.limit = limit


def retry_after_of(error: BaseException) -> float | None:
    """Return after how many seconds an exception wants its task to be tried again; None if it does not say."""
    try:
        seconds = error.retry_after  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(seconds, bool) and isinstance(seconds, (int, float)) and 0 <= seconds < float("inf"):
            return float(seconds)
    except Exception:  # it has none, or is a user's that cannot say
        pass
    return None


def limit_of(error: BaseException) -> str | None:
    """Return the name of the limit that an exception wants held until then; None if it says none."""
    try:
        name = error.limit  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    except Exception:  # it has none, or is a user's that cannot say
        return None
    return str(name) if isinstance(name, str) else None


class JournalError(ParallelExecError):
    """A journal cannot be used: it is in use, damaged, of a newer version, none of ours, or cannot be read or written.

    Attributes:
        path: the journal's path, as it was given.
        reason: why, and what to do.
        pid: the process whose run has the journal; None if that is not why.
        host: the host on which that is; None if that is not why.
    """

    def __init__(self, path: str, reason: str, pid: int | None = None, host: str | None = None) -> None:
        super().__init__(f"journal {path!r}: {reason}")
        self.path = path
        self.reason = reason
        self.pid = pid
        self.host = host


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
