"""`soft_timeout` in threads: an exception that is raised in the thread of a call, from another thread.

    the executor's clock ───────────────────────────┐
    a thread of its own, where there is no executor ─┴─► SoftCall.fire ──► CPython: "raise this in that thread" ──► the task

CPython does so between two bytecodes of that thread: a call of C's, `time.sleep` for one, returns first. As long as the thread
is in our code, which the task has called, it is not raised (`_interruptible.py`): `fire` is called again a moment later.

Guarantees:
    The exception is raised once, and in the call itself: whoever claims it first, `fire` in the clock's thread or the end of the
    call, has it. If that is the end, nothing will be raised. If it is `fire`, the end waits until the exception was sent and has
    arrived. What the call returned before that counts.
    It is never taken back: CPython before 3.13 would look for it for ever, in all threads, and 3.11 freeze those in which a
    debugger or a coverage tool traces calls.

Imported only where there is a soft timeout, as it needs `ctypes`.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import weakref
from functools import partial

from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import frame_of
from parallel_exec._sync.weak import weakly
from parallel_exec.backends._interruptible import is_interruptible
from parallel_exec.errors import SoftTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from parallel_exec._core.settings import Settings
    from parallel_exec._sync.timers import Timers

_AGAIN = 0.002  # seconds until an alarm is repeated that came while nothing could be raised; a guess
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
        arm: is given this as the call begins, and sees that `fire` is called; let go with the call, too.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        seconds: float,
        task_id: str,
        attempt: int,
        arm: Callable[[SoftCall], object] | None = None,
    ) -> None:
        self._fn: Callable[..., Any] | None = fn
        self._arm = arm
        self._facts = task_id, seconds, attempt
        self._thread = threading.get_ident()
        self._claim: dict[str, object] = {}  # who has claimed the exception: one, in one step
        self._frame = 0  # the `id` of the call's own frame, once that is there
        self._is_sent = False
        self._kind: type[SoftTimeoutError] | None = None  # what is raised; `fire` makes it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        fn, self._fn = self._fn, None
        arm, self._arm = self._arm, None
        assert fn is not None, "it is called once"
        has_returned, value = False, None
        try:
            self._frame = id(sys._getframe())
            if arm is not None:
                arm(self)
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

    def fire(self) -> bool:
        """Raise the exception in the call, unless that is over; False: it cannot be just now, so try again. In another thread."""
        if self._kind is None:
            self._kind = _maker(SoftTimeoutError(*self._facts))
        exception, thread = ctypes.py_object(self._kind), ctypes.c_ulong(self._thread)
        noticed, here = ctypes.py_object(_NoticedError), ctypes.c_ulong(threading.get_ident())
        # From here on this thread keeps the interpreter, which it has just got: what the other is at stays so.
        if not (self._claim or is_interruptible(frame_of(self._thread), self._frame)):
            return False
        me = object()
        if self._claim.setdefault("by", me) is not me:
            return True
        self._kind = None  # it leads to the error, which leads here
        try:
            _send(thread, exception)
            self._is_sent = True
            if _FREEZES_TRACED:
                _send(here, noticed)
                for _ in range(_ROUNDS):
                    pass
        except _NoticedError:
            pass
        return True


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
        self._timer = timers.timer(weakly(self._time_is_up))
        self._due: tuple[SoftCall, float] | None = None  # written by the thread, read by the clock's, each in one step

    def set(self, when: float, call: SoftCall) -> None:
        """Fire a call at `when` (monotonic), and none that was set before: it is over."""
        self._due = call, when
        with contextlib.suppress(RuntimeError):  # at interpreter exit no clock can be started
            self._timer.arm(when)

    def _time_is_up(self) -> None:
        due = None
        while due is not self._due and self._due is not None:  # again, if the thread has set another meanwhile
            due = self._due
            call, when = due
            if time.monotonic() < when:  # it was another call's time
                self._timer.arm(when)
            elif not call.fire():
                self._timer.arm(time.monotonic() + _AGAIN)


class _Mine(threading.local):
    """The calling thread's alarms."""

    def __init__(self) -> None:
        # One for each clock: a call may run another executor's in its own thread.
        self._alarms: weakref.WeakKeyDictionary[Timers, _Alarm] = weakref.WeakKeyDictionary()

    def of(self, timers: Timers) -> _Alarm:
        """Return that of an executor's clock."""
        alarm = self._alarms.get(timers)
        if alarm is None:
            alarm = self._alarms[timers] = _Alarm(timers)
        return alarm


_mine = _Mine()


def softened(settings: Settings, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function to be called in place of `fn`, as the attempt that the calling thread has begun."""
    running, attempt, _ = current.under_way()
    seconds, timers = settings.soft_timeout, settings.timers
    assert running is not None, "it has begun"
    assert seconds is not None, "there is one"
    assert timers is not None, "they come together"
    arm = partial(_mine.of(timers).set, running.started_at + seconds)
    return SoftCall(fn, seconds, running.id, attempt, arm)


# ── where there is none ───────────────────────────────────────────────────────────────────────────────────────────────


def alarmed(
    fn: Callable[..., Any], seconds: float, task_id: str, attempt: int, then: Callable[[], object] | None = None
) -> Callable[..., Any]:
    """Return a function that calls another, once, with a soft timeout, and a thread of its own to watch it.

    `then`: called by that thread once the exception is on its way.
    """
    return partial(_call_alarmed, SoftCall(fn, seconds, task_id, attempt), seconds, then)


def _call_alarmed(
    call: SoftCall, seconds: float, then: Callable[[], object] | None, /, *args: Any, **kwargs: Any
) -> Any:
    over = threading.Event()
    watch = partial(
        threading.Thread, target=_watch, args=(call, seconds, over, then), name="parallel_exec-soft-timeout"
    )
    try:
        watching = watch(daemon=True)
    except RuntimeError:  # an interpreter beside the main one may have none
        watching = watch(daemon=False)
    watching.start()
    try:
        return call(*args, **kwargs)
    finally:
        over.set()


def _watch(call: SoftCall, seconds: float, over: threading.Event, then: Callable[[], object] | None) -> None:
    while not over.wait(seconds):
        if call.fire():
            if then is not None:
                then()
            return
        seconds = _AGAIN
