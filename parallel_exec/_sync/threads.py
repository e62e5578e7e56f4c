"""Starting threads so that an exception of a signal handler, Ctrl-C for one, leaves no doubt whether they run.

A thread that was launched and has not arrived may run a finalizer before it begins with its own work: `is_coming_up` is
true there, and nothing may wait for whoever launches that thread, who waits for it.
"""

from __future__ import annotations

import gc
import operator
import os
import sys
import threading

from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import release_leaked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_START_LIMIT = 1.0  # seconds that a thread may take to say that it runs; a guess
# What the standard library holds while it lists a thread; on 3.9 no lock that knows who has taken it.
_STDLIBS = [lock for lock in [getattr(threading, "_active_limbo_lock", None)] if hasattr(lock, "_is_owned")]
# Whether CPython collects garbage while it holds a lock that what is collected may need, a `threading.local` for one: then
# it stands still for good, with the interpreter (python/cpython#106883, mended in 3.11.9).
_COLLECTS_AS_IT_LOOKS = sys.version_info[:2] == (3, 11)
_call: Any = getattr(operator, "call", None)  # since 3.11
_coming_up: set[threading.Thread] = set()


class _Main:
    """Which thread is the main one.

    Attributes:
        ident: of the main thread; written in a forked child, whose only thread is its main one.
    """

    ident = threading.main_thread().ident


main = _Main()


def _after_fork() -> None:
    _coming_up.clear()
    main.ident = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def launch(thread: threading.Thread) -> None:
    """Start a thread. However this ends, except by the errors below, the thread runs then.

    Raises:
        RuntimeError: no thread can be started; MemoryError likewise.
    """
    handled = sys.exc_info()[1]  # what the caller is in the middle of handling
    is_begun = False
    # `Thread.start` waits for the event that the thread sets, whose lock an interruption may leave taken: so that it can be
    # released, it must be one that knows who has taken it.
    lock = threading.RLock()
    try:
        _coming_up.add(thread)
        started = getattr(thread, "_started", None)
        if started is not None:
            started._cond = threading.Condition(lock)
        is_begun = True
        thread.start()
    except BaseException as error:
        # Interrupted before it was started, or while it was waited for; where the stdlib's own waiting was torn apart,
        # "release unlocked lock" hides that.
        interruption = error.__context__ if isinstance(error, (RuntimeError, MemoryError)) else error
        if interruption is None or interruption is handled:
            _coming_up.discard(thread)
            raise
        release_leaked(lock, *_STDLIBS)
        until = time.monotonic() + (_START_LIMIT if is_begun else 0.0)
        while thread.ident is None and time.monotonic() < until:
            time.sleep(0.001)
        if thread.ident is None:
            thread.start()
        raise interruption from None


def arrive() -> None:
    """Say that the calling thread, which was launched, can be told by its work from now on."""
    _coming_up.discard(threading.current_thread())


def is_coming_up() -> bool:
    """Return whether the calling thread was launched, and has not arrived: whoever launches it may be waiting for it."""
    me = threading.get_ident()
    return any(thread.ident == me for thread in list(_coming_up))


def frame_of(ident: int) -> FrameType | None:
    """Return what a thread of this process is at; None if it has ended."""
    if not (_COLLECTS_AS_IT_LOOKS and gc.isenabled()):
        return sys._current_frames().get(ident)
    # By one instruction, so that no other thread, and no Ctrl-C, finds the collector off.
    _, frames, _ = map(_call, (gc.disable, sys._current_frames, gc.enable))
    return frames.get(ident)  # type: ignore[no-any-return]
