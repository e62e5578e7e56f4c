"""`Phase`: where a task is; `_core/__init__.py` has the table."""

from __future__ import annotations


class Phase:
    """Where a task is; changed by the methods of `Job` alone."""

    NEW = 0  # not in the queue yet
    QUEUED = 1  # in the queue
    HANDED_OUT = 2  # a back end has it, and no attempt has started
    LIVE = 3  # an attempt is running
    SETTLING = 4  # an attempt has ended, and one thread has claimed the right to say what follows
    BACKING_OFF = 5  # it waits for the next attempt's time
    DONE = 6  # the outcome is decided
