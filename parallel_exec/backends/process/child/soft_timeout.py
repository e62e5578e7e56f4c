"""`soft_timeout` in a worker: a signal of the kernel's clock, in whose handler the exception is raised.

So it comes in the main thread, where tasks run, between two bytecodes; what waits in the kernel, as `time.sleep` and the locks
of `threading` do, is interrupted. It is SIGALRM: a task that uses that itself has no soft timeout.

From CPython 3.13 on, a process that was forked by a thread which is not the main one, as `fork` has it, does not see signals
between two bytecodes: there it is raised as in threads.

Guarantees:
    It is raised once, and in the call: what the handler finds over by then it leaves alone.

Imported only where there is a soft timeout.
"""

from __future__ import annotations

import signal
import sys

from parallel_exec._current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_IS_DEAF = sys.version_info >= (3, 13)  # as a copy of another process


def softened(fn: Callable[..., Any], seconds: float, *, is_copy: bool) -> Callable[..., Any]:
    """Return a function, each call of which has a soft timeout.

    Args:
        fn: what it calls.
        seconds: the soft timeout.
        is_copy: whether this process was forked with the parent's objects.
    """
    return _Alarmed(fn, seconds) if is_copy and _IS_DEAF else _SoftCall(fn, seconds)


class _Alarmed:
    """Raises it as in threads."""

    def __init__(self, fn: Callable[..., Any], seconds: float) -> None:
        self._fn = fn
        self._seconds = seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        from parallel_exec.backends._soft_timeout import alarmed  # for this rare case

        running, attempt, _ = current.under_way()
        return alarmed(self._fn, self._seconds, "" if running is None else running.id, attempt)(*args, **kwargs)


class _SoftCall:
    """Raises it in a signal's handler."""

    def __init__(self, fn: Callable[..., Any], seconds: float) -> None:
        from parallel_exec.errors import SoftTimeoutError  # now, and not in a handler

        self._error = SoftTimeoutError
        self._fn = fn
        self._seconds = seconds
        self._is_under_way = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        before = signal.signal(signal.SIGALRM, self._raise)
        try:
            self._is_under_way = True
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            try:
                return self._fn(*args, **kwargs)
            finally:
                self._is_under_way = False
        finally:  # the handler may have raised in the middle of the other, and will not do so again
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)

    def _raise(self, number: int, frame: object) -> None:
        """Raise the exception; the handler of the signal."""
        running, attempt, _ = current.under_way()
        if self._is_under_way and running is not None:
            self._is_under_way = False
            raise self._error(running.id, self._seconds, attempt)
