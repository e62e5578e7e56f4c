"""Tells the user's hook (`on_event`) what happens in an executor, by the names of `events.py`; and the library's logger.

What is logged in the middle of something that must be done goes by `say`: whatever a log handler raises, that is done.

Guarantees:
    An event is made only when somebody listens. The hook is called while none of our locks is held, in the thread in
    which the thing happened. A hook that raises is logged and dropped: it never harms a task. Ctrl-C, which ends a hook in the
    main thread, is for whoever had called us there, and goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._sync.clock import time
from parallel_exec._sync.threads import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal

    from parallel_exec.events import Event

    TaskKind = Literal["TaskQueued", "TaskStarted", "TaskRetrying", "TaskFinished", "TaskTimedOut", "TaskCancelled"]
    LimitKind = Literal["TaskWaiting", "TaskGranted"]
    Kind = Literal[TaskKind, LimitKind, "WorkerStarted", "WorkerDied"]

logger = logging.getLogger("parallel_exec")


def say(level: int, message: str, *args: object) -> None:
    """Log a line; what a handler, or the `str` of an argument, raises is dropped."""
    with contextlib.suppress(Exception):
        logger.log(level, message, *args)


class Dispatcher:
    """Makes events and hands them to the hook. Thread-safe: it has no state that changes.

    Attributes:
        active: whether anybody listens; callers on a hot path look at it first.
    """

    __slots__ = ("_events", "_hook", "active")

    def __init__(self, hook: Callable[[Event], object] | None) -> None:
        self._hook = hook
        self.active = hook is not None
        if hook is not None:  # now, as a signal handler may be the first to have one made
            from parallel_exec import events
            from parallel_exec._dataclasses import make_real

            make_real(*events.KINDS)
            self._events = vars(events)

    def emit_amid(self, job: Any, kind: TaskKind | LimitKind, *facts: Any) -> None:
        """Do as `emit`, of a task that goes on only after that: the hook must not wait for it, and is told so."""
        before = current.telling
        current.telling = (*before, job)
        try:
            self.emit(kind, job.id, job.attempt_number, *facts)
        finally:
            current.telling = before

    def emit(self, kind: Kind, *facts: Any) -> None:
        """Call the hook, if there is one, with a new event of this kind, which happened now."""
        if self._hook is None:
            return
        born = _forks.generation
        try:
            self._hook(self._events[kind](time.monotonic(), *facts))
            _forks.end_copy(born)
        except BaseException as error:  # a hook that calls sys.exit() must not take a worker with it
            _forks.end_copy(born, error)
            if isinstance(error, KeyboardInterrupt) and threading.get_ident() == main.ident:
                raise
            logger.exception("the on_event hook raised on %s; the event is dropped", kind)
