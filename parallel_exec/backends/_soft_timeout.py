"""`soft_timeout` in threads: an exception that is raised in the thread of a call, from another thread.

    the executor's clock ───────────────────────────┐
    a thread of its own, where there is no executor ─┴─► SoftCall.fire ──► CPython: "raise this in that thread" ──► the task

CPython does so between two bytecodes of that thread: a call of C's, `time.sleep` for one, returns first.

Guarantees:
    The exception is raised once, and in the call itself, never in our code: whoever claims it first, `fire` in the clock's thread
    or the end of the call, has it. If that is the end, nothing will be raised. If it is `fire`, the end waits until the exception
    was sent and has arrived. What the call returned before that counts.
    It is never taken back: CPython before 3.13 would look for it for ever, in all threads, and 3.11 freeze those in which a
    debugger or a coverage tool traces calls.
    It is not raised in the middle of an import, but right after it: torn apart there, importlib may keep its lock for all imports
    for good. (`fire` looks just before it sends the exception, so a moment is left in which an import may begin.)

Imported only where there is a soft timeout, as it needs `ctypes`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from functools import partial

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec._sync.weak import weakly
from parallel_exec.errors import SoftTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from parallel_exec._core.settings import Settings
    from parallel_exec._sync.timers import Timers

_AGAIN = 0.01  # seconds until an alarm is repeated that came before its call had begun; a guess
_END = object()  # stands for the end of a call
_ROUNDS = 10  # of a loop; CPython looks for what was sent in each
# Whether a thread that is traced stands still while what was sent to another has not arrived: it may be in C code, for long.
_FREEZES_TRACED = sys.version_info[:2] == (3, 11)
_send = ctypes.pythonapi.PyThreadState_SetAsyncExc


class _NoticedError(BaseException):
    """Sent by a thread to itself, so that CPython does not look for what was sent to another before that runs again."""


class SoftCall:
    """A call in which `SoftTimeoutError` is raised when `fire` is called; to be called once, by the thread that made it.

    Args:
        fn: the function, which is let go with the call.
        seconds: the soft timeout.
        task_id, attempt: what it is a call of.
    """

    def __init__(self, fn: Callable[..., Any], seconds: float, task_id: str, attempt: int) -> None:
        self._fn: Callable[..., Any] | None = fn
        self._facts = task_id, seconds, attempt
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._claim: dict[str, object] = {}  # who has claimed the exception: one, in one step
        self._has_begun = self._is_sent = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        fn, self._fn = self._fn, None
        assert fn is not None, "it is called once"
        has_returned, value = False, None
        self._has_begun = True
        try:
            value = fn(*args, **kwargs)
            has_returned = True
            self._end()
        except BaseException as error:
            self._end()
            if not (has_returned and isinstance(error, SoftTimeoutError)):
                raise
        return value

    def _end(self) -> None:
        """See that nothing is raised any more. May be repeated."""
        if self._claim.setdefault("by", _END) is _END:
            return
        try:
            while not self._is_sent:
                time.sleep(0)
            for _ in range(_ROUNDS):
                pass
        except SoftTimeoutError:  # it was on its way
            pass

    def _is_importing(self) -> bool:
        """Return whether the call is in the middle of an import."""
        frame = sys._current_frames().get(self._thread.value)
        while frame is not None and frame.f_code is not _BODY:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False

    def fire(self) -> bool:
        """Raise the exception in the call, unless that is over. In another thread.

        Returns:
            False: it has not begun, or imports something, so try again.
        """
        if not self._has_begun or self._is_importing():
            return False
        me = object()
        if self._claim.setdefault("by", me) is not me:
            return True
        exception = ctypes.py_object(_maker(SoftTimeoutError(*self._facts)))
        noticed, here = ctypes.py_object(_NoticedError), ctypes.c_ulong(threading.get_ident())
        try:
            _send(self._thread, exception)
            self._is_sent = True
            if _FREEZES_TRACED:
                _send(here, noticed)
                for _ in range(_ROUNDS):
                    pass
        except _NoticedError:
            pass
        return True


_BODY = SoftCall.__call__.__code__  # of the frame that is below those of a call


def _maker(error: SoftTimeoutError) -> type[SoftTimeoutError]:
    """Return a class that makes this exception: CPython takes a class only, and calls it in the other thread."""
    body = {"__new__": staticmethod(lambda *_: error)}
    kind: type[SoftTimeoutError] = type("SoftTimeoutError", (SoftTimeoutError,), body)
    return kind


# ── where an executor's clock is at hand ──────────────────────────────────────────────────────────────────────────────


class _Alarm:
    """Fires the calls of one thread, one after the other, when it is time.

    (A timer for each call would stay in the clock's heap until it is due, however soon its call has ended.)
    """

    def __init__(self, timers: Timers) -> None:
        self._timers = weakref.ref(timers)
        self._timer = timers.timer(weakly(self._time_is_up))
        self._due: tuple[SoftCall, float] | None = None  # written by the thread, read by the clock's, each in one step

    def is_of(self, timers: Timers) -> bool:
        """Return whether this is its clock."""
        return self._timers() is timers

    def set(self, call: SoftCall, when: float) -> None:
        """Fire a call at `when` (monotonic), and none that was set before: it is over."""
        self._due = call, when
        self._timer.arm(when)

    def _time_is_up(self) -> None:
        if self._due is None:
            return
        call, when = self._due
        if time.monotonic() < when:  # it was another call's time
            self._timer.arm(when)
        elif not call.fire():
            self._timer.arm(time.monotonic() + _AGAIN)


class _Mine(threading.local):
    """The calling thread's alarm."""

    alarm: _Alarm | None = None

    def of(self, timers: Timers) -> _Alarm:
        """Return it; another one for another executor's clock."""
        if self.alarm is None or not self.alarm.is_of(timers):
            self.alarm = _Alarm(timers)
        return self.alarm


_mine = _Mine()


def softened(settings: Settings, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function to be called in place of `fn`, as the attempt that the calling thread has begun."""
    running, attempt, _ = current.under_way()
    seconds, timers = settings.soft_timeout, settings.timers
    assert running is not None, "it has begun"
    assert seconds is not None, "there is one"
    assert timers is not None, "they come together"
    soft = SoftCall(fn, seconds, running.id, attempt)
    _mine.of(timers).set(soft, running.started_at + seconds)
    return soft


# ── where there is none ───────────────────────────────────────────────────────────────────────────────────────────────


def alarmed(fn: Callable[..., Any], seconds: float, task_id: str, attempt: int) -> Callable[..., Any]:
    """Return a function that calls another, once, with a soft timeout, and a thread of its own to watch it."""
    return partial(_call_alarmed, SoftCall(fn, seconds, task_id, attempt), seconds)


def _call_alarmed(call: SoftCall, seconds: float, /, *args: Any, **kwargs: Any) -> Any:
    over = threading.Event()
    watch = partial(threading.Thread, target=_watch, args=(call, seconds, over), name="parallel_exec-soft-timeout")
    try:
        watching = watch(daemon=True)
    except RuntimeError:  # an interpreter beside the main one may have none
        watching = watch(daemon=False)
    watching.start()
    try:
        return call(*args, **kwargs)
    finally:
        over.set()


def _watch(call: SoftCall, seconds: float, over: threading.Event) -> None:
    while not over.wait(seconds) and not call.fire():
        seconds = _AGAIN
