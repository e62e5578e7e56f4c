"""Starting threads so that an exception of a signal handler, Ctrl-C for one, leaves no doubt whether they run.

A thread that comes up may be given a finalizer to run before it has begun with its own work: `is_coming_up` tells then.
"""

from __future__ import annotations

import os
import sys
import threading

from parallel_exec._sync.clock import time

_PATIENCE = 1.0  # seconds that a thread may take to say that it runs; a guess
_coming_up: set[threading.Thread] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_coming_up.clear)  # the thread that forks is the child's main one


def launch(thread: threading.Thread) -> None:
    """Start a thread. However this ends, except by the errors below, the thread runs then.

    Raises:
        RuntimeError: no thread can be started; MemoryError likewise.
    """
    handled = sys.exc_info()[1]  # what the caller is in the middle of handling
    _coming_up.add(thread)
    try:
        thread.start()
    except BaseException as error:
        # Interrupted before it was started, or while it was waited for; where the stdlib's own waiting was torn apart,
        # "release unlocked lock" hides that.
        interruption = error.__context__ if isinstance(error, (RuntimeError, MemoryError)) else error
        if interruption is None or interruption is handled:
            _coming_up.discard(thread)
            raise
        until = time.monotonic() + _PATIENCE
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
