"""Running a call in a thread of this process, as an attempt of a task: its outcome, whatever it raises or returns."""

from __future__ import annotations

from _contextvars import copy_context  # `contextvars` is this, and one module more

from parallel_exec import _forks, _sharing
from parallel_exec._lazy import LAZY, lazy_result
from parallel_exec._outcome import Failure, succeeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Callable

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.settings import Settings
    from parallel_exec._outcome import Outcome


def call(
    settings: Settings,
    context: Context | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
) -> Outcome:
    """Run a call in a context: a fresh copy of its submitter's, as an abandoned attempt may still be in the last one.

    A function of its own, because an exception's traceback keeps its frames: nothing here leads to the job. Nor may
    what is left of the frames that called it, which a frame keeps, too: callers drop what they had, or call `apart`.
    """
    born = _forks.generation
    try:
        if settings.soft_timeout is not None:
            fn = _softened(settings, fn)
        context = copy_context() if context is None else context.copy()  # None: it has just ended, and this is dropped
        value = context.run(fn, *args, **kwargs) if kwargs else context.run(fn, *args)
        if _forks.generation != born:
            _forks.end()
        if type(value) in LAZY and not settings.allows_lazy:
            return Failure(lazy_result(value))
        return succeeded((value,))
    except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
        _forks.end_child(born, error)
        del context, fn, args, kwargs
        return Failure(error)


def bound(job: AnyJob) -> tuple[Settings, Context | None, Callable[..., Any], tuple[Any, ...], dict[str, Any] | None]:
    """Return the arguments of `call` for a job that was to leave this process, and does not: it gets what was shared itself."""
    bind, settings = _sharing.bind, job.settings
    if bind is None:
        return settings, job.context, job.fn, job.args, job.kwargs
    return settings.unsoftened(), job.context, _call_bound, (bind, settings, job.fn, job.args, job.kwargs), None


def _call_bound(
    bind: Callable[..., Any],
    settings: Settings,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
) -> Any:
    """Put the objects in their places, which may fail, as all in an attempt may; then have the function called.

    In this order, as a soft timeout takes ours for the library at work if it is between the wrapper and the function.
    """
    fn, args, kwargs = bind(fn, args, kwargs, True) or (fn, args, kwargs)
    if settings.soft_timeout is not None:
        fn = _softened(settings, fn)
    return fn(*args, **(kwargs or {}))


def _softened(settings: Settings, fn: Callable[..., Any]) -> Callable[..., Any]:
    from parallel_exec.backends._soft_timeout import softened  # few need it, and `ctypes`

    return softened(settings, fn)
