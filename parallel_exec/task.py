"""What travels: `Task` goes in, `Attempt` and `TaskResult` come out; `current_task()` is the view from inside.

Guarantees:
    All of these are frozen. Two tasks are never compared with each other by anything.
"""

from __future__ import annotations

import itertools
import operator
import os
from concurrent.futures import CancelledError
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Callable, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

from parallel_exec._clock import time
from parallel_exec._current import current, id_of
from parallel_exec._hints import refuse_names
from parallel_exec.errors import TaskTimeoutError
from parallel_exec.outcome import Outcome, Success

if TYPE_CHECKING:
    from tenacity import BaseRetrying
    from typing_extensions import Never

T_co = TypeVar("T_co", covariant=True)


class Inherit(Enum):
    """The type of `INHERIT`: "take the executor's setting"."""

    INHERIT = "INHERIT"

    def __repr__(self) -> str:
        return self.name


INHERIT: Final = Inherit.INHERIT
Inherited = Literal[Inherit.INHERIT]

_numbers = itertools.count(1)  # next() on it is atomic


def new_number() -> int:
    """Return a number for `id_of` that no other task of this process was given."""
    return next(_numbers)


def new_id() -> str:
    """Return an id that no other task of this process was given by us."""
    return id_of(new_number())


def check_seconds(name: str, value: float | None) -> float | None:
    """Return `value` as a limit in seconds; None means no limit.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} takes seconds as a number, or None for no limit, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds (None means no limit), not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a number of seconds; None means no limit") from None


def check_count(name: str, value: int, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return value


def check_initializer(initializer: object, initargs: object) -> None:
    """Refuse what cannot be called as `initializer(*initargs)`.

    Raises:
        TypeError: it cannot.
    """
    if initializer is not None and not callable(initializer):
        hint = ": how many workers is ParallelExecutor(max_concurrency=...)" if isinstance(initializer, int) else ""
        raise TypeError(f"initializer takes a callable, not {initializer!r}{hint}")
    if not isinstance(initargs, (tuple, list)):
        raise TypeError(f"initargs takes a tuple of arguments, not {initargs!r}: one argument is (argument,)")


def check_priority(value: int) -> int:
    """Return `value` as a plain int.

    Raises:
        TypeError: it is no int. (An int only: an order that mixes types could fail inside the queue.)
    """
    if not isinstance(value, int):
        raise TypeError(f"priority takes an int (higher runs first), not {value!r}")
    return operator.index(value)


def describe(fn: object) -> str:
    """Name a callable for a message."""
    name = getattr(fn, "__qualname__", None)
    return f"{getattr(fn, '__module__', '?')}.{name}" if name else repr(fn)


@dataclass(frozen=True)
class Task(Generic[T_co]):
    """One call to run: `execute()`, with an id, a priority and, if wanted, limits of its own.

    Args:
        execute: a callable without arguments; bind some with `functools.partial`.
        id: names the task in results and events; a path becomes a string, a missing one becomes unique.
        priority: higher runs first; equal priorities run in the order they came.
        timeout: seconds for one attempt, None for no limit; default: the executor's.
        retry_count: retries after the first attempt; default: the executor's.
        retry: a `tenacity.Retrying` that decides instead of the plain settings, or None for those; default: the executor's.

    Raises:
        TypeError: `execute` is not callable, or `priority` no int.
        ValueError: a limit is not positive.
    """

    __slots__ = ("execute", "id", "priority", "retry", "retry_count", "timeout")

    execute: Callable[[], T_co]
    id: str
    priority: int
    timeout: float | None | Inherited
    retry_count: int | Inherited
    retry: BaseRetrying | None | Inherited

    def __init__(
        self,
        execute: Callable[[], T_co],
        *,
        id: str | os.PathLike[str] | None = None,
        priority: int = 0,
        timeout: float | None | Inherited = INHERIT,
        retry_count: int | Inherited = INHERIT,
        retry: BaseRetrying | None | Inherited = INHERIT,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("Task", _misspelt, Task.__init__)
        if not callable(execute):
            raise TypeError(
                f"execute takes a callable without arguments, not {execute!r}: "
                "pass the function itself, or functools.partial(function, argument, ...)"
            )
        if id is not None and not isinstance(id, (str, os.PathLike)):
            raise TypeError(f"id takes a string, not {id!r}: write id=str(...)")
        if timeout is not INHERIT:
            timeout = check_seconds("timeout", timeout)
        if retry_count is not INHERIT:
            check_count("retry_count", retry_count, 0)
        if retry is not INHERIT and retry is not None:
            check_retrying(retry)
        set_field = object.__setattr__  # the way a frozen dataclass sets its own fields
        set_field(self, "execute", execute)
        set_field(self, "id", new_id() if id is None else os.fsdecode(id))
        set_field(self, "priority", priority if type(priority) is int else check_priority(priority))
        set_field(self, "timeout", timeout)
        set_field(self, "retry_count", retry_count)
        set_field(self, "retry", retry)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), tuple(getattr(self, name) for name in self.__slots__))


def _restore(cls: type[Any], values: tuple[Any, ...]) -> Any:
    """Rebuild a frozen object with slots from the values of its slots; pickle would set them one by one, and be refused."""
    restored: Any = object.__new__(cls)
    for name, value in zip(cls.__slots__, values):
        object.__setattr__(restored, name, value)
    return restored


def check_retrying(retry: object) -> None:
    """Refuse what is not a tenacity `Retrying` object, without importing tenacity.

    Raises:
        TypeError: it lacks tenacity's parts, or it is the asynchronous kind.
    """
    if isinstance(retry, type) or not all(hasattr(retry, part) for part in ("stop", "wait", "retry", "before_sleep")):
        hint = f": retry_count={retry!r} is a number of retries" if isinstance(retry, int) else ""
        raise TypeError(f"retry takes a tenacity.Retrying(...) object, not {retry!r}{hint}")
    if any("Async" in base.__name__ for base in type(retry).__mro__):
        raise TypeError(f"retry takes a tenacity.Retrying(...), not {type(retry).__name__}: tasks are plain calls")


class Attempt(NamedTuple):
    """One try at a task.

    Attributes:
        number: from 1.
        started_at: `time.monotonic()` when it began to run, in seconds.
        duration: seconds it ran.
        error: what it raised; None if it succeeded.
        worker: the name of the thread or process that ran it.
    """

    number: int
    started_at: float
    duration: float
    error: BaseException | None
    worker: str


@dataclass(frozen=True)
class TaskResult(Generic[T_co]):
    """How a task ended.

    Attributes:
        task: the task.
        success: whether it returned.
        result: what it returned; None if it failed.
        error: the task's own exception, or ours; None if it succeeded.
        attempts: every attempt that was started, in order.
        queued_for: seconds from being given to the executor until the first attempt began (or, without one, until the end).
        duration: seconds from the start of the first attempt until the end, waits between attempts included.
    """

    __slots__ = ("_source", "attempts", "duration", "error", "queued_for", "result", "success", "task")

    task: Task[T_co]
    success: bool
    result: T_co | None
    error: BaseException | None
    attempts: tuple[Attempt, ...]
    queued_for: float
    duration: float

    def unwrap(self) -> T_co:
        """Return the result.

        Raises:
            BaseException: the task's error, if it failed.
        """
        if self.error is not None:
            raise self.error
        return cast("T_co", self.result)

    @classmethod
    def of(cls, source: Source, outcome: Outcome, queued_for: float, duration: float) -> TaskResult[Any]:
        """Return a result that asks `source` for its task and attempts when somebody wants to see them.

        `execute_all` makes a hundred thousand of these, and few are looked at that closely.
        """
        made: TaskResult[Any] = cls.__new__(cls)
        set_field = object.__setattr__
        set_field(made, "_source", source)
        success = type(outcome) is Success
        set_field(made, "success", success)
        set_field(made, "result", outcome[0] if success else None)
        set_field(made, "error", None if success else outcome[0])
        set_field(made, "queued_for", queued_for)
        set_field(made, "duration", duration)
        return made

    def __getattr__(self, name: str) -> Any:  # called for a slot that is not set
        if name not in ("task", "attempts"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value: object = self._source.task if name == "task" else self._source.attempts()
        object.__setattr__(self, name, value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskResult, tuple(getattr(self, field.name) for field in fields(self))


class Source(Protocol):
    """What a `TaskResult` asks for what it was not told."""

    @property
    def task(self) -> Task[Any]:
        """The task."""
        ...

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts."""
        ...


class CurrentTask:
    """What a running task may know of itself; made by `current_task()`.

    Attributes:
        id: the task's id.
        attempt: the number of this attempt, from 1.
        deadline: `time.monotonic()` at which this attempt must end, None for no limit.
    """

    __slots__ = ("_is_cancelled", "_timeout", "attempt", "deadline", "id")

    def __init__(
        self, id: str, attempt: int, deadline: float | None, timeout: float | None, is_cancelled: Callable[[], bool]
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.deadline = deadline
        self._timeout = timeout
        self._is_cancelled = is_cancelled

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
            raise TaskTimeoutError(self.id, cast("float", self._timeout), self.attempt)
        if self.cancelled:
            raise CancelledError(f"task {self.id!r} was cancelled")


def current_task() -> CurrentTask:
    """Return a view of the task that the calling thread is running.

    Never blocks; cheap. Works in every back end. A thread that a task starts by itself has no current task.

    Raises:
        RuntimeError: the calling thread is not running a task.
    """
    if current.running is None:
        raise RuntimeError(
            "current_task() is for code that runs as a task of a ParallelExecutor, in the task's own thread"
        )
    return current.running.view(current.number)
