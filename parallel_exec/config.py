"""`ParallelConfig`: every setting of an executor, checked in one place; and which retry policy a task has by it."""

from __future__ import annotations

from concurrent.futures import Executor

from parallel_exec._checks import (
    check_backoff,
    check_count,
    check_flag,
    check_int,
    check_retry_on,
    check_retrying,
    check_seconds,
    check_soft_timeout,
    check_wait,
    refuse_names,
)
from parallel_exec._lazy import refuse_lazy
from parallel_exec.retry import PlainPolicy, RetryPolicy, TenacityPolicy
from parallel_exec.task import INHERIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass
    from typing import Any, Callable, Literal, Mapping, Union

    from tenacity import BaseRetrying
    from typing_extensions import Never, TypedDict, Unpack

    from parallel_exec._checks import RetryOn
    from parallel_exec.backends.base import Backend
    from parallel_exec.events import Event
    from parallel_exec.limits import LimitSpec
    from parallel_exec.task import Inherited

    BackendLike = Union[str, "Backend", Executor, Any]  # Any: a dask Client, which core must not import

    class Overrides(TypedDict, total=False):
        """The settings as type checkers and editors know them, where any of them may be given by name."""

        max_concurrency: int | Literal["auto"]
        timeout: float | None
        soft_timeout: float | None
        retry_count: int
        backoff: float
        max_backoff: float
        jitter: bool
        retry_on: type[BaseException] | RetryOn
        retry: BaseRetrying | None
        queue_size: int
        backend: BackendLike
        on_event: Callable[[Event], object] | None
        limits: Mapping[str, LimitSpec] | None
        priority_ageing: float | None
        seed: int | None

else:
    from parallel_exec._dataclasses import dataclass


BACKENDS = ("thread", "process", "inline")


@dataclass(frozen=True, init=False)
class ParallelConfig:
    """The settings of a `ParallelExecutor`; frozen, keyword-only, valid once made.

    Args:
        max_concurrency: attempts running at once; "auto": as many as there are CPUs that this process may use, by affinity and
            cgroup quota; in threads four more, at most 32; in an executor as many as it has workers.
        timeout: seconds for one attempt, counted from when it starts to run; None for no limit.
        soft_timeout: seconds after which `SoftTimeoutError` is raised in an attempt, so that it can save what it has before
            `timeout` ends it, and so less than that; None for never.
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
        limits: what tasks need beside a slot, by name: a count, a `Rate`, a list of what is handed out, a `PerKey`, or an
            `Adaptive`. A task says by `needs` what it takes of them, and waits in the queue until it can have that.
        priority_ageing: seconds after which a task that waits for a limit counts as of one priority higher, and so on; None:
            never.
        seed: fixes `current_task().seed` for each task id; None: another one for each executor.

    Raises:
        TypeError: a setting is of the wrong type, or its name is none of the above.
        ValueError: a setting is out of range.
    """

    max_concurrency: int | Literal["auto"]
    timeout: float | None
    soft_timeout: float | None
    retry_count: int
    backoff: float
    max_backoff: float
    jitter: bool
    retry_on: RetryOn
    retry: BaseRetrying | None
    queue_size: int
    backend: BackendLike
    on_event: Callable[[Event], object] | None
    limits: Mapping[str, LimitSpec] | None
    priority_ageing: float | None
    seed: int | None

    def __init__(
        self,
        *,
        max_concurrency: int | Literal["auto"] = 5,
        timeout: float | None = 30.0,
        soft_timeout: float | None = None,
        retry_count: int = 2,
        backoff: float = 1.0,
        max_backoff: float = 30.0,
        jitter: bool = True,
        retry_on: type[BaseException] | RetryOn = (Exception,),
        retry: BaseRetrying | None = None,
        queue_size: int = 0,
        backend: BackendLike = "thread",
        on_event: Callable[[Event], object] | None = None,
        limits: Mapping[str, LimitSpec] | None = None,
        priority_ageing: float | None = None,
        seed: int | None = None,
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
            "soft_timeout": check_soft_timeout(soft_timeout, timeout),
            "retry_count": check_count("retry_count", retry_count, 0),
            "backoff": check_wait("backoff", backoff),
            "max_backoff": check_wait("max_backoff", max_backoff),
            "jitter": check_flag("jitter", jitter),
            "retry_on": check_retry_on(retry_on),
            "retry": retry,
            "queue_size": check_count("queue_size", queue_size, 0),
            "backend": check_backend(backend),
            "on_event": on_event,
            "limits": None if limits is None else _check_limits(limits),
            "priority_ageing": check_seconds("priority_ageing", priority_ageing),
            "seed": None if seed is None else check_int("seed", seed),
        }
        check_backoff(checked["backoff"], checked["max_backoff"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def with_changes(self, **changes: Unpack[Overrides]) -> ParallelConfig:
        """Return a copy with some settings changed, checked again."""
        return ParallelConfig(**{**vars(self), **changes})


def _check_limits(limits: Any) -> dict[str, Any]:
    from parallel_exec.limits import check_limits  # few need them

    return check_limits(limits)


def policy_for(
    config: ParallelConfig,
    retry_count: int | Inherited = INHERIT,
    retry: BaseRetrying | Inherited | None = INHERIT,
    retry_on: RetryOn | Inherited = INHERIT,
    backoff: float | Inherited = INHERIT,
) -> RetryPolicy:
    """Return the policy of a task with these settings of its own; the result may be kept and shared.

    A `Retrying` replaces the plain settings, so the nearest one that was said wins: the task's `retry`, then the task's
    plain settings (with the config's others, even where the config has a `retry`, which they could not be put into), then
    the config's `retry`, then its plain settings.

    `retry=None` asks for the plain settings.

    Raises:
        ValueError: the task's `backoff` is more than the config's `max_backoff`.
    """
    if retry is INHERIT:
        retry = config.retry if retry_count is retry_on is backoff is INHERIT else None
    if retry is not None:
        return TenacityPolicy(retry)
    if backoff is not INHERIT:
        check_backoff(backoff, config.max_backoff)
    return PlainPolicy(
        config.retry_count if retry_count is INHERIT else retry_count,
        config.backoff if backoff is INHERIT else backoff,
        config.max_backoff,
        config.jitter,
        config.retry_on if retry_on is INHERIT else retry_on,
    )


def check_concurrency(value: int | Literal["auto"]) -> int | Literal["auto"]:
    """Return `value` if it is a number of attempts at once, or "auto".

    Raises:
        TypeError, ValueError: it is neither; what other libraries mean by None and -1 is told.
    """
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        return check_count("max_concurrency", value, 1)
    except (TypeError, ValueError) as error:
        given: object = value  # maybe an array, of which no single truth is to be had
        is_all = isinstance(given, (int, type(None))) and given in (None, -1)
        hint = ': "auto" is one for each CPU' if is_all else ""
        raise type(error)(f"{error}{hint}") from None


def check_backend(value: Any) -> Any:
    """Return `value` if it is a back end's name, a back end, an executor or a dask `Client`.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(value, str):
        if value not in BACKENDS:
            from parallel_exec._hints import backend_hint  # only a mistake needs it

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
