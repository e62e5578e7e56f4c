"""Starting threads so that an exception of a signal handler, Ctrl-C for one, leaves no doubt whether they run."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

_PATIENCE = 1.0  # seconds that a thread may take to say that it runs; a guess


def launch(thread: threading.Thread) -> None:
    """Start a thread. However this ends, except by the errors below, the thread runs then.

    Raises:
        RuntimeError: no thread can be started; MemoryError likewise.
    """
    handled = sys.exc_info()[1]  # what the caller is in the middle of handling
    try:
        thread.start()
    except BaseException as error:
        # Interrupted before it was started, or while it was waited for; where the stdlib's own waiting was torn apart,
        # "release unlocked lock" hides that.
        interruption = error.__context__ if isinstance(error, (RuntimeError, MemoryError)) else error
        if interruption is None or interruption is handled:
            raise
        until = time.monotonic() + _PATIENCE
        while thread.ident is None and time.monotonic() < until:
            time.sleep(0.001)
        if thread.ident is None:
            thread.start()
        raise interruption from None
