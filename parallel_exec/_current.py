"""What the calling thread is running, and how things are named: the link between back ends and `current_task()`.

Imports nothing of ours, as worker processes need it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from parallel_exec.task import CurrentTask


class Running(Protocol):
    """What a back end puts into `current`: something that can describe the attempt under way."""

    def view(self, number: int) -> CurrentTask:
        """Return the view of attempt `number`."""
        ...


class _Current(threading.local):
    """What each worker thread is running; set by back ends before an attempt, cleared after it.

    Attributes:
        running: whose attempt it is.
        number: the attempt's number.
        pool: the scheduler that the thread works for, if it is a worker's own thread.
        ending: the schedulers of which the thread is just ending a task.
    """

    running: Running | None = None
    number = 0
    pool: object = None
    ending: tuple[object, ...] = ()


current = _Current()


def type_name(kind: type) -> str:
    """Return a type's qualified name: a builtin's without its module, and one of the main module as the parent knows it."""
    return name_of(kind.__module__, kind.__qualname__)


def name_of(module: str, qualname: str) -> str:
    """Return the name of a type, as `type_name` does."""
    return {"builtins": "", "__mp_main__": "__main__."}.get(module, f"{module}.") + qualname


def id_of(number: int) -> str:
    """Return the id of a task to which nobody gave one: most are never looked at, and a number costs less."""
    return f"task-{number}"
