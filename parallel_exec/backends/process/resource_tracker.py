"""What `multiprocessing`'s resource tracker is told by, before it runs: a pipe that the fork server has somebody read.

    make_read ──► the fork server's end, which it has read once there is something     fd ──► what the tracker, and workers, have

Guarantees:
    No process is made for the tracker as long as nobody tells it anything, if the plain fork server was the first.
    The lock that starts hold guards all of it.
"""

from __future__ import annotations

import os
import select
import sys
from functools import partial

from parallel_exec.backends._descriptors import pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Unused:
    """The writing end of the pipe, until the tracker has it; -1: it has one of its own."""

    def __init__(self) -> None:
        self._end = -1

    def take(self) -> int:
        """Return it, and know of none."""
        end, self._end = self._end, -1
        return end

    def put(self, end: int) -> None:
        """Have that; what there was, of a server that has been killed, is closed."""
        before, self._end = self._end, end
        if before >= 0:
            os.close(before)


_unused = _Unused()
os.register_at_fork(after_in_child=lambda: _unused.put(-1))


def make_read(*, only_kept: bool) -> int:
    """Return the end of a pipe that a fork server is to have read for the tracker; -1 if that has one already.

    `only_kept`: the server ends before this process does, and so is not to: the plain one's pipe is there, or the tracker
    starts itself.
    """
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    if tracker is not None and tracker._fd is not None:
        if not _is_unread(tracker._fd):
            return -1
        with tracker._lock:  # the server that was to see to that has been killed
            unread, tracker._fd = tracker._fd, None
        os.close(unread)
    if only_kept:
        return -1
    reading, writing = pipe()
    _unused.put(writing)
    return reading


def _is_unread(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def fd() -> int:
    """Return the descriptor by which the resource tracker is told of something, by this process and by all workers.

    It need not run yet: the server sees to that.
    """
    from multiprocessing import resource_tracker

    tracker: Any = getattr(resource_tracker, "_resource_tracker", None)
    unused = -1 if tracker is None else _unused.take()
    if tracker is not None and unused >= 0:
        with tracker._lock:
            if tracker._fd is None:
                tracker._fd, unused = unused, -1
                tracker._stop = partial(_stop, tracker)
    if unused >= 0:  # another thread has started it meanwhile
        os.close(unused)
    known: int | None = getattr(tracker, "_fd", None)
    return int(resource_tracker.getfd()) if known is None else known  # type: ignore[arg-type]


def _stop(tracker: Any, *how: Any, close: Any = os.close, **named: Any) -> None:
    """Do as `ResourceTracker._stop`, which waits for its child in some versions, also where the tracker is none of ours.

    Called by its `__del__` as well, when a module's globals may be gone.
    """
    if tracker._pid is not None:
        type(tracker)._stop(tracker, *how, **named)
    elif tracker._fd is not None:
        fd, tracker._fd = tracker._fd, None
        close(fd)
