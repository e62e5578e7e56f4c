"""What travels: `Task` goes in, `Attempt` and `TaskResult` come out.

Guarantees:
    All of these are frozen. Two tasks are never compared with each other by anything.
"""

from __future__ import annotations

import itertools
import os
from enum import Enum
from functools import partial

from parallel_exec._checks import (
    check_count,
    check_priority,
    check_retry_on,
    check_retrying,
    check_seconds,
    check_soft_timeout,
    check_wait,
    refuse_names,
)
from parallel_exec._lazy import refuse_lazy
from parallel_exec._names import call_name, id_of, short_repr
from parallel_exec._needs import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass
    from typing import (
        Any,
        Callable,
        Final,
        Generic,
        Literal,
        Mapping,
        NamedTuple,
        NoReturn,
        Protocol,
        TypeVar,
        Union,
    )

    from tenacity import BaseRetrying
    from typing_extensions import Never

    from parallel_exec._checks import RetryOn
    from parallel_exec._needs import Named

    T_co = TypeVar("T_co", covariant=True)
else:
    from parallel_exec._dataclasses import dataclass
    from parallel_exec._typing import Generic, NamedTuple, Protocol


class Inherit(Enum):
    """The type of `INHERIT`: "take the executor's setting"."""

    INHERIT = "INHERIT"

    def __repr__(self) -> str:
        return self.name


INHERIT: Final = Inherit.INHERIT
if TYPE_CHECKING:
    Inherited = Literal[Inherit.INHERIT]

_unnamed = itertools.count(1)  # next() on it is atomic


def describe(fn: object) -> str:
    """Name a callable for a message."""
    name = getattr(fn, "__qualname__", None)
    return f"{getattr(fn, '__module__', '?')}.{name}" if name else repr(fn)


@dataclass(frozen=True, repr=False)
class Task(Generic["T_co"]):
    """One call to run: `execute(*args, **kwargs)`, with an id, a priority and, if wanted, limits of its own.

    Args:
        execute: a callable.
        *args: what it is called with.
        id: names the task in results and events; a path becomes a string. A missing one is the function's name and the
            task's number in the order in which its executor was given tasks: "parse-17". It is unique there, and known once
            the task was added. (A task that is asked for it before is "parse-new-1", counted in this process.)
        priority: higher runs first; equal priorities run in the order they came.
        timeout: seconds for one attempt, None for no limit; default: the executor's.
        soft_timeout: seconds until `SoftTimeoutError` is raised in an attempt; None for never; default: the executor's.
        retry_count: retries after the first attempt; default: the executor's.
        retry: a `tenacity.Retrying` that decides instead of the plain settings, or None for those; default: the executor's.
        retry_on: exception types that are worth another attempt, or a function that is given the exception and returns
            whether it is; default: the executor's.
        backoff: seconds before the first retry, which double with each; default: the executor's.
        needs: what an attempt takes of the executor's limits, all of it before it begins: by the limit's name how much, or
            which key: `{"api": 1, "host": "example.com"}`.
        kwargs: what `execute` is called with by name.

    Attributes:
        execute: the call, as a callable without arguments: a `functools.partial` if there are some.

    Raises:
        TypeError: `execute` is not callable, or an `async def` or generator function; `priority` is no int; `needs` has
            what is neither an amount nor a key.
        ValueError: a limit is not positive, or what is needed of one.
    """

    __slots__ = (
        "__weakref__",
        "_ids",
        "backoff",
        "execute",
        "id",
        "needs",
        "priority",
        "retry",
        "retry_count",
        "retry_on",
        "soft_timeout",
        "timeout",
    )

    execute: Callable[[], T_co]
    id: str
    priority: int
    timeout: float | None | Inherited
    soft_timeout: float | None | Inherited
    retry_count: int | Inherited
    retry: BaseRetrying | None | Inherited
    retry_on: RetryOn | Inherited
    backoff: float | Inherited
    needs: Named | None

    def __init__(
        self,
        execute: Callable[..., T_co],
        *args: Any,
        id: str | os.PathLike[str] | None = None,
        priority: int = 0,
        timeout: float | None | Inherited = INHERIT,
        soft_timeout: float | None | Inherited = INHERIT,
        retry_count: int | Inherited = INHERIT,
        retry: BaseRetrying | None | Inherited = INHERIT,
        retry_on: type[BaseException] | RetryOn | Inherited = INHERIT,
        backoff: float | Inherited = INHERIT,
        needs: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("Task", _misspelt, Task.__init__)
        if not callable(execute):
            raise TypeError(
                f"execute takes a callable, not {execute!r}: pass the function itself and then its arguments, "
                "Task(function, argument, ...), or functools.partial(function, argument, ...)"
            )
        refuse_lazy("Task", execute)
        if id is not None and not isinstance(id, (str, os.PathLike)):
            raise TypeError(f"id takes a string, not {id!r}: write id=str(...)")
        if retry is not INHERIT and retry is not None:
            check_retrying(retry)
        set_field = object.__setattr__  # the way a frozen dataclass sets its own fields
        set_field(self, "execute", partial(execute, *args, **_check_kwargs(kwargs)) if args or kwargs else execute)
        set_field(self, "_ids", [] if id is None else None)
        if id is not None:
            set_field(self, "id", os.fsdecode(id))
        set_field(self, "priority", priority if type(priority) is int else check_priority(priority))
        set_field(self, "timeout", timeout if timeout is INHERIT else check_seconds("timeout", timeout))
        set_field(
            self, "soft_timeout", INHERIT if soft_timeout is INHERIT else check_soft_timeout(soft_timeout, timeout)
        )
        set_field(
            self, "retry_count", INHERIT if retry_count is INHERIT else check_count("retry_count", retry_count, 0)
        )
        set_field(self, "retry", retry)
        set_field(self, "retry_on", INHERIT if retry_on is INHERIT else check_retry_on(retry_on))
        set_field(self, "backoff", INHERIT if backoff is INHERIT else check_wait("backoff", backoff))
        set_field(self, "needs", None if needs is None else named(needs))

    if not TYPE_CHECKING:  # or any name would do for type checkers

        def __getattr__(self, name: str) -> Any:  # called for a slot that is not set
            if name != "id":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if not self._ids:
                name_task(self, f"new-{next(_unnamed)}")
            object.__setattr__(self, "id", id_of(call_name(self.execute), self._ids[0]))
            return self.id

    def __repr__(self) -> str:
        known = [f"id={short_repr(self.id)}"] if is_named(self) else []
        known += [f"priority={self.priority}"] if self.priority else []
        for name in ("timeout", "soft_timeout", "retry_count"):
            known += [] if getattr(self, name) is INHERIT else [f"{name}={getattr(self, name)!r}"]
        known += [] if self.needs is None else [f"needs={self.needs!r}"]
        return f"Task({', '.join([call_name(self.execute)[:60], *known])})"

    def __reduce__(self) -> tuple[Any, ...]:
        names = _TASK_FIELDS
        if type(self) is not Task:  # one of a class of the user's may have more
            from dataclasses import fields

            names = tuple(field.name for field in fields(self))
        return _restore, (type(self), {name: getattr(self, name) for name in names})


def is_named(task: Task[Any]) -> bool:
    """Return whether a task has its id: an executor names what has none when it is added."""
    ids = getattr(task, "_ids", None)  # (asking for the id itself would raise, which takes ten times as long)
    return ids is None or bool(ids)


def lacks_id(task: Task[Any]) -> bool:
    """Return whether the user gave a task no id, so that the one that it has or will have is ours."""
    return getattr(task, "_ids", None) is not None


def name_task(task: Task[Any], number: object) -> str | None:
    """Give a task that has no id one with this number, unless another thread is first. Lock-free.

    Returns:
        None if that is its number: the id itself is made once somebody looks at it. Else its id.
    """
    ids: list[object] | None = getattr(task, "_ids", None)
    if ids is None:
        return task.id
    if not ids:
        ids.append(number)  # atomic: who was first has named it
    return None if ids[0] == number else task.id


_TASK_FIELDS = tuple(Task.__annotations__)


def checked_task(execute: Callable[[], Any], id: str, priority: int, own: Mapping[str, Any]) -> Task[Any]:
    """Return the task of a call that an executor has accepted: what was checked by other rules is not checked again."""
    inherited: dict[str, Any] = dict.fromkeys(_TASK_FIELDS, INHERIT)
    return _restore(Task, {**inherited, "needs": None, **own, "execute": execute, "id": id, "priority": priority})  # type: ignore[no-any-return]


def _check_kwargs(kwargs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if kwargs is None:
        return {}
    if not hasattr(kwargs, "keys") or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs takes the call's arguments by name, as a dict, not {kwargs!r}")
    return kwargs


def _restore(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Rebuild a frozen object with slots from its fields; pickle would set them one by one, and be refused."""
    restored: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(restored, name, value)
    return restored


class LetGo:
    """Stands in for the call of a task that has succeeded, and of which nobody kept the `Task`.

    Attributes:
        id: the task's.
    """

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id

    def __call__(self) -> NoReturn:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"the call of task {self.id!r} and its arguments were let go when it succeeded: "
            "keep the Task yourself to run it again"
        )


class NotKept(LetGo):
    """Stands in for the call of a task whose result was read from a journal, which has no calls.

    Attributes:
        id: the task's.
    """

    __slots__ = ()

    def __call__(self) -> NoReturn:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"the result of task {self.id!r} was read from a journal, which keeps no calls: make the Task anew"
        )


class Used(NamedTuple):
    """What an attempt has written and used, as far as that is known: the last fields of an `Attempt`."""

    output: str = ""
    cpu_time: float | None = None
    peak_memory: int | None = None


class Attempt(NamedTuple):
    """One try at a task.

    Attributes:
        number: from 1.
        started_at: `time.monotonic()` when it began to run, in seconds.
        duration: seconds it ran.
        error: what it raised; None if it succeeded.
        worker: the name of the thread or process that ran it.
        output: the last 64 KB that it wrote to standard output and error, in a `ProcessBackend(capture_output=True)`; else "".
        cpu_time: seconds of CPU that its worker process, or its thread, used. None where that is not known: of an attempt that
            took less than a millisecond, or whose worker was killed.
        peak_memory: the most bytes of its worker process that were resident; None as above, and in threads.
    """

    number: int
    started_at: float
    duration: float
    error: BaseException | None
    worker: str
    output: str = ""
    cpu_time: float | None = None
    peak_memory: int | None = None

    def __repr__(self) -> str:
        how = "returned" if self.error is None else f"raised {short_repr(self.error)}"
        return f"Attempt({self.number}, {how} after {self.duration:.3g} s in {self.worker!r})"


def attempt_of(number: int, start: float, end: float, error: BaseException | None, worker: str, used: Used) -> Attempt:
    """Return an attempt from when it began until when it ended."""
    return Attempt(number, start, end - start, error, worker, *used)


@dataclass(frozen=True, repr=False)
class _TaskResult(Generic["T_co"]):
    """How a task ended. mypy knows by `if result.success:`, pyright by `if result.error is None:`, what `result` is.

    Attributes:
        task: the task.
        success: whether it returned.
        result: what it returned; None if it failed.
        error: the task's own exception, or ours; None if it succeeded.
        attempts: every attempt that was started, in order.
        queued_for: seconds from being given to the executor until the first attempt began (or, without one, until the end).
        duration: seconds from the start of the first attempt until the end, waits between attempts included.
        cancelled: whether it was cancelled or aborted, and so has no result and no error of its own.
        resumed: whether an earlier run had it, and this one has taken it from the journal; then it says how it ended there.
    """

    __slots__ = (
        "_source",
        "attempts",
        "cancelled",
        "duration",
        "error",
        "queued_for",
        "result",
        "resumed",
        "success",
        "task",
    )

    task: Task[T_co]
    success: bool
    result: T_co | None
    error: BaseException | None
    attempts: tuple[Attempt, ...]
    queued_for: float
    duration: float
    cancelled: bool
    resumed: bool

    def __init__(
        self,
        task: Task[T_co],
        success: bool,
        result: T_co | None,
        error: BaseException | None,
        attempts: tuple[Attempt, ...],
        queued_for: float,
        duration: float,
        cancelled: bool = False,
        resumed: bool = False,
    ) -> None:
        given = task, success, result, error, attempts, queued_for, duration, cancelled, resumed
        for name, value in zip(_FIELDS, given):
            object.__setattr__(self, name, value)

    def unwrap(self) -> T_co:
        """Return the result.

        Raises:
            BaseException: the task's error, if it failed.
        """
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # the error's traceback holds this frame
        result: Any = self.result  # of a kind that has one
        return result  # type: ignore[no-any-return]

    if not TYPE_CHECKING:  # or any name would do for type checkers

        def __getattr__(self, name: str) -> Any:  # called for a slot that is not set
            if name not in ("task", "attempts", "cancelled", "resumed"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            value: Any = getattr(self._source, name)
            value = value() if name in ("attempts", "cancelled") else value
            object.__setattr__(self, name, value)
            return value

    def __repr__(self) -> str:
        how = short_repr(self.result) if self.success else "cancelled" if self.cancelled else short_repr(self.error)
        attempts = "1 attempt" if len(self.attempts) == 1 else f"{len(self.attempts)} attempts"
        end = ", resumed)" if self.resumed else ")"
        return f"TaskResult({short_repr(self.task.id)}, {how}, {attempts}, {self.duration:.3g} s{end}"

    def __reduce__(self) -> tuple[Any, ...]:
        return TaskResult, tuple(getattr(self, name) for name in _FIELDS)


_TaskResult.__name__ = _TaskResult.__qualname__ = "TaskResult"
_FIELDS = tuple(_TaskResult.__annotations__)

if TYPE_CHECKING:

    class TaskSuccess(_TaskResult[T_co]):
        """The kind of a task that returned, for type checkers: at run time there is one class, which costs less."""

        success: Literal[True]
        result: T_co
        error: None

    class TaskFailure(_TaskResult[T_co]):
        """The other kind, of a task that failed or was cancelled."""

        success: Literal[False]
        result: None
        error: BaseException

    TaskResult = Union[TaskSuccess[T_co], TaskFailure[T_co]]
else:
    TaskResult = _TaskResult


# What sets a slot: in one step, which `object.__setattr__` is not.
_set_source, _set_success, _set_result, _set_error, _set_queued_for, _set_duration = (
    _TaskResult.__dict__[name].__set__ for name in ("_source", "success", "result", "error", "queued_for", "duration")
)


def result_of(
    source: Source, result: Any, error: BaseException | None, queued_for: float, duration: float
) -> TaskResult[Any]:
    """Return a result that asks `source` for its task and attempts when somebody wants to see them.

    `execute_all` makes a hundred thousand of these, and few are looked at that closely.
    """
    made: Any = _TaskResult.__new__(_TaskResult)
    _set_source(made, source)
    _set_success(made, error is None)
    _set_result(made, result)
    _set_error(made, error)
    _set_queued_for(made, queued_for)
    _set_duration(made, duration)
    return made  # type: ignore[no-any-return]


class Source(Protocol):
    """The future of a `TaskResult`, which asks it for the task and the attempts when somebody looks at them."""

    @property
    def task(self) -> Task[Any]:
        """The task."""
        ...

    @property
    def resumed(self) -> bool:
        """Whether it comes from a journal."""
        ...

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts."""
        ...

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        ...
