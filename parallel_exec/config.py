"""`ParallelConfig`: every setting of an executor, checked in one place."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Union

from parallel_exec._checks import (
    RetryOn,
    check_backoff,
    check_count,
    check_flag,
    check_retry_on,
    check_retrying,
    check_seconds,
    check_wait,
)
from parallel_exec._hints import backend_hint, refuse_names
from parallel_exec._lazy import refuse_lazy

if TYPE_CHECKING:
    from tenacity import BaseRetrying
    from typing_extensions import Never, TypedDict, Unpack

    from parallel_exec.backends.base import Backend
    from parallel_exec.events import Event
    from parallel_exec.retry import RetryPolicy

    class Overrides(TypedDict, total=False):
        """The settings as type checkers and editors know them, where any of them may be given by name."""

        max_concurrency: int
        timeout: float | None
        retry_count: int
        backoff: float
        max_backoff: float
        jitter: bool
        retry_on: type[BaseException] | RetryOn
        retry: BaseRetrying | None
        queue_size: int
        backend: BackendLike
        on_event: Callable[[Event], object] | None


BACKENDS = ("thread", "process", "inline")
BackendLike = Union[str, "Backend", Executor, Any]  # Any: a dask Client, which core must not import


@dataclass(frozen=True, init=False)
class ParallelConfig:
    """The settings of a `ParallelExecutor`; frozen, keyword-only, valid once made.

    Args:
        max_concurrency: attempts running at once.
        timeout: seconds for one attempt, counted from when it starts to run; None for no limit.
        retry_count: retries after the first attempt.
        backoff: seconds before the first retry; doubles with each.
        max_backoff: most seconds between two attempts.
        jitter: add a random part of up to `backoff` seconds to each wait, so that tasks which failed together do not come
            back together.
        retry_on: exception types that are worth another attempt, or a function that is given the exception and returns
            whether it is. `KeyboardInterrupt`, `SystemExit` and cancellation never are.
        retry: a `tenacity.Retrying` that replaces the four settings above it and `retry_count`.
        queue_size: most tasks waiting; 0 for no limit.
        backend: "thread", "process", "inline", a back end object, any `concurrent.futures.Executor`, or a dask `Client`.
        on_event: called with each event; see `parallel_exec.events`.

    Raises:
        TypeError: a setting is of the wrong type, or its name is none of the above.
        ValueError: a setting is out of range.
    """

    max_concurrency: int
    timeout: float | None
    retry_count: int
    backoff: float
    max_backoff: float
    jitter: bool
    retry_on: RetryOn
    retry: BaseRetrying | None
    queue_size: int
    backend: BackendLike
    on_event: Callable[[Event], object] | None

    def __init__(
        self,
        *,
        max_concurrency: int = 5,
        timeout: float | None = 30.0,
        retry_count: int = 2,
        backoff: float = 1.0,
        max_backoff: float = 30.0,
        jitter: bool = True,
        retry_on: type[BaseException] | RetryOn = (Exception,),
        retry: BaseRetrying | None = None,
        queue_size: int = 0,
        backend: BackendLike = "thread",
        on_event: Callable[[Event], object] | None = None,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("ParallelExecutor", _misspelt, ParallelConfig.__init__)
        if retry is not None:
            check_retrying(retry)
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event takes a callable that is given each event, not {on_event!r}")
        if on_event is not None:
            refuse_lazy("on_event", on_event)
        checked: dict[str, Any] = {
            "max_concurrency": check_concurrency(max_concurrency),
            "timeout": check_seconds("timeout", timeout),
            "retry_count": check_count("retry_count", retry_count, 0),
            "backoff": check_wait("backoff", backoff),
            "max_backoff": check_wait("max_backoff", max_backoff),
            "jitter": check_flag("jitter", jitter),
            "retry_on": check_retry_on(retry_on),
            "retry": retry,
            "queue_size": check_count("queue_size", queue_size, 0),
            "backend": check_backend(backend),
            "on_event": on_event,
        }
        check_backoff(checked["backoff"], checked["max_backoff"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def with_changes(self, **changes: Unpack[Overrides]) -> ParallelConfig:
        """Return a copy with some settings changed, checked again."""
        given: Any = changes  # a field's type is narrower than what may be given for it
        return replace(self, **given)


class Settings:
    """What of the configuration applies to a task; shared by all tasks without settings of their own.

    Attributes:
        timeout: seconds for one attempt, None for no limit.
        policy: decides about retries.
        allows_lazy: whether a call may return a coroutine or a generator that has not run.
        own: those that the task has for itself, by the names of `Task`'s fields.
    """

    __slots__ = ("allows_lazy", "own", "policy", "timeout")

    def __init__(
        self,
        timeout: float | None,
        policy: RetryPolicy,
        allows_lazy: bool = False,
        own: dict[str, Any] | None = None,
    ) -> None:
        self.timeout = timeout
        self.policy = policy
        self.allows_lazy = allows_lazy
        self.own = own or {}


def check_concurrency(value: int) -> int:
    """Return `value` if it is a number of attempts at once.

    Raises:
        TypeError, ValueError: it is none; what other libraries mean by None, -1 and "auto" is told.
    """
    try:
        return check_count("max_concurrency", value, 1)
    except (TypeError, ValueError) as error:
        given: object = value  # maybe an array, of which no single truth is to be had
        is_all = isinstance(given, (int, str, type(None))) and given in (None, -1, "auto")
        hint = ": os.cpu_count() is one for each CPU" if is_all else ""
        raise type(error)(f"{error}{hint}") from None


def check_backend(value: Any) -> Any:
    """Return `value` if it is a back end's name, a back end, an executor or a dask `Client`.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(value, str):
        if value not in BACKENDS:
            meant = backend_hint(value, BACKENDS)
            raise ValueError(f"backend takes one of {', '.join(map(repr, BACKENDS))}, not {value!r}{meant}")
        return value
    from parallel_exec.backends.base import Backend  # only who brings an object needs it

    if isinstance(value, (Backend, Executor)) or type(value).__module__.partition(".")[0] == "distributed":
        return value
    raise TypeError(
        f"backend takes one of {', '.join(map(repr, BACKENDS))}, a Backend object, a concurrent.futures.Executor "
        f"or a dask Client, not {value!r}" + (": make an instance of it" if isinstance(value, type) else "")
    )
