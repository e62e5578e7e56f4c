"""`soft_timeout` in a worker: a signal of the kernel's clock, in whose handler the exception is raised.

So it comes in the main thread, where tasks run, between two bytecodes; what waits in the kernel, as `time.sleep` and the locks
of `threading` do, is interrupted. It is SIGALRM: a task that uses that itself has no soft timeout. A signal that comes while
the thread is in our code, which the task has called to log something for one, is repeated a moment later.

From CPython 3.13 on, a process that was forked by a thread which is not the main one, as `fork` has it, sees signals only when
they interrupt something. So there it is raised as in threads, and then a signal is sent, which interrupts what waits.

Guarantees:
    It is raised once, and in the call: what the handler finds over by then it leaves alone.

Imported only where there is a soft timeout.
"""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial

from parallel_exec._current import current
from parallel_exec.backends._interruptible import is_interruptible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_IS_DEAF = sys.version_info >= (3, 13)  # as a copy of another process
_AGAIN = 0.0005  # seconds until the signal is repeated; a guess


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
        # It stays: the signal may come when the call has just ended. What is raised in this thread is raised in there, too.
        signal.signal(signal.SIGALRM, lambda *_: None)
        self._interrupt = partial(signal.pthread_kill, threading.get_ident(), signal.SIGALRM)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        from parallel_exec.backends._soft_timeout import alarmed  # for this rare case

        running, attempt, _ = current.under_way()
        task_id = "" if running is None else running.id
        return alarmed(self._fn, self._seconds, task_id, attempt, self._interrupt)(*args, **kwargs)


class _SoftCall:
    """Raises it in a signal's handler."""

    def __init__(self, fn: Callable[..., Any], seconds: float) -> None:
        from parallel_exec.errors import SoftTimeoutError  # now, and not in a handler

        self._error = SoftTimeoutError
        self._fn = fn
        self._seconds = seconds
        self._frame = 0  # the `id` of the call's own frame; 0: it is over, or not to be interrupted any more
        self._running: Any = None
        self._attempt = 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # as it may be in a program that waits for it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        self._running, self._attempt, _ = current.under_way()
        before = signal.signal(signal.SIGALRM, self._raise)
        try:
            self._frame = id(sys._getframe())
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
            try:
                return self._fn(*args, **kwargs)
            finally:
                self._frame = 0
        finally:  # the handler may have raised in the middle of the other, and will not do so again
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)

    def _raise(self, number: int, frame: Any) -> None:
        """Raise the exception; the handler of the signal."""
        running = self._running
        if not self._frame or running is None:
            return
        if not is_interruptible(frame, self._frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        self._frame = 0
        raise self._error(running.id, self._seconds, self._attempt)
