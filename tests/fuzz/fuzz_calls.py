"""What the tasks of a random program run: a call that does what its plan says, and notes when it begins and ends.

Imports little, as worker processes need it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, Callable, NamedTuple

from parallel_exec import RetryAfter, current_task

RUNS: dict[int, Any] = {}  # the runs of this process, by their numbers
_NAP = 0.002  # seconds


class PlannedError(Exception):
    """What a plan has its attempt raise."""

    def __init__(self, name: str, attempt: int) -> None:
        super().__init__(name, attempt)


class Token:
    """An argument of a call, by which it can be seen whether the call is kept."""

    def __init__(self, name: str) -> None:
        self.name = name


class Begin(NamedTuple):
    """A call has begun.

    Attributes:
        name: the task's.
        attempt: its number.
        at: when, by `time.monotonic()`.
        granted: what it was granted of the limits.
        unwanted: whether nobody waited for it any more.
    """

    name: str
    attempt: int
    at: float
    granted: dict[str, Any]
    unwanted: bool


class End(NamedTuple):
    """A call has ended, by itself.

    Attributes:
        name: the task's.
        attempt: its number.
        at: when.
        how: "returned", or the name of what it raised.
        unwanted: whether nobody waited for it any more.
    """

    name: str
    attempt: int
    at: float
    how: str
    unwanted: bool


class Place(NamedTuple):
    """Where a call notes what it does.

    Attributes:
        run: the run's number.
        path: a file that any process appends to; "": in the run's own list, as it is in this process.
    """

    run: int
    path: str = ""

    def note(self, what: Begin | End) -> None:
        """Note something, whole and at once."""
        if not self.path:
            RUNS[self.run].calls.append(what)
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, f"{what!r}\n".encode())
        finally:
            os.close(descriptor)

    def is_over(self) -> bool:
        """Return whether what hangs is to come to its end."""
        return os.path.exists(f"{self.path}.over") if self.path else RUNS[self.run].over

    def notes(self) -> list[Begin | End]:
        """Return all that was noted."""
        if not self.path:
            return list(RUNS[self.run].calls)
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return [eval(line, {"Begin": Begin, "End": End}) for line in file]


def call(place: Place, name: str, plan: Any, token: Token) -> tuple[str, int]:
    """Do what the plan says for this attempt; returns the task's name and the attempt's number."""
    task = current_task()
    number = task.attempt
    place.note(Begin(name, number, time.monotonic(), dict(task.granted), task.cancelled))
    how = "returned"
    try:
        act = plan.act(number)
        for step in act.steps:
            RUNS[place.run].do(step)
        return _end(place, act, name, number)
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        place.note(End(name, number, time.monotonic(), how, task.cancelled))


def _end(place: Place, act: Any, name: str, number: int) -> Any:
    if act.how in ("hang", "until cancelled"):
        is_patient = act.how == "hang"
        task = current_task()
        while not place.is_over() and (is_patient or not task.cancelled):
            time.sleep(_NAP)
    elif act.seconds:
        time.sleep(act.seconds)
    return _OUTCOMES[act.how](act, name, number)


def _raise(error: BaseException) -> None:
    raise error


_OUTCOMES: dict[str, Callable[[Any, str, int], Any]] = {
    "return": lambda act, name, number: (name, number),
    "hang": lambda act, name, number: (name, number),
    "until cancelled": lambda act, name, number: (name, number),
    "raise": lambda act, name, number: _raise(PlannedError(name, number)),
    "retry after": lambda act, name, number: _raise(RetryAfter(act.seconds)),
    "sys.exit": lambda act, name, number: sys.exit(3),
    "interrupt": lambda act, name, number: _raise(KeyboardInterrupt()),
    "unpicklable": lambda act, name, number: threading.Lock(),
    "os._exit": lambda act, name, number: os._exit(7),
    "kill": lambda act, name, number: os.kill(os.getpid(), signal.SIGKILL),
}
