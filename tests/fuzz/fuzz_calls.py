"""What the tasks of a random program run: a call that does what its plan says, and notes when it begins and ends.

Imports little, as worker processes need it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pickle import PickleBuffer
from typing import Any, Callable, NamedTuple, Union

from parallel_exec import RetryAfter, SoftTimeoutError, current_task, current_worker

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


class Thing:
    """What is shared: its data are large, and travel as a buffer."""

    def __init__(self, name: str, data: Any = None) -> None:
        self.name = name
        self.data = self._right() if data is None else data

    def _right(self) -> bytes:
        return f"{self.name};".encode() * 2000

    def is_whole(self) -> bool:
        """Return whether it is as it was made."""
        return bytes(self.data) == self._right()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Thing, (self.name, PickleBuffer(self.data) if protocol >= 5 else bytes(self.data))


class Begin(NamedTuple):
    """A call has begun.

    Attributes:
        name: the task's.
        attempt: its number.
        at: when, by `time.monotonic()`.
        granted: what it was granted of the limits.
        unwanted: whether nobody waited for it any more.
        seed: the task's.
        worker: index, name and process of who runs it.
    """

    name: str
    attempt: int
    at: float
    granted: dict[str, Any]
    unwanted: bool
    seed: int = 0
    worker: tuple[int, str, int] = (0, "", 0)


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


class Service(NamedTuple):
    """A worker has called its initializer, or its finalizer.

    Attributes:
        what: "initialized" or "finalized".
        worker: its index, name and process.
        at: when.
    """

    what: str
    worker: tuple[int, str, int]
    at: float


Note = Union[Begin, End, Service]


class Place(NamedTuple):
    """Where a call notes what it does.

    Attributes:
        run: the run's number.
        path: a file that any process appends to; "": in the run's own list, as it is in this process.
        prints: whether calls write to standard output, too.
    """

    run: int
    path: str = ""
    prints: bool = False

    def note(self, what: Note) -> None:
        """Note something, whole and at once; nothing once the run is over, as a thread may say that was given up."""
        if not self.path:
            run = RUNS.get(self.run)
            if run is not None:
                run.calls.append(what)
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, f"{what!r}\n".encode())
        finally:
            os.close(descriptor)

    def is_over(self) -> bool:
        """Return whether what hangs is to come to its end."""
        return os.path.exists(f"{self.path}.over") if self.path else RUNS[self.run].over

    def notes(self) -> list[Note]:
        """Return all that was noted."""
        if not self.path:
            return list(RUNS[self.run].calls)
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return [eval(line, {"Begin": Begin, "End": End, "Service": Service}) for line in file]


def written(name: str, attempt: int) -> str:
    """Return what a call writes to standard output, if it does: half of it at its beginning, the rest at its end."""
    return f"[{name} {attempt}| this is it]\n"


def _serving() -> tuple[int, str, int]:
    worker = current_worker()
    return worker.index, worker.name, worker.pid


def initialize(place: Place) -> None:
    """Note that a worker begins."""
    place.note(Service("initialized", _serving(), time.monotonic()))


def finalize(place: Place) -> None:
    """Note that a worker ends."""
    place.note(Service("finalized", _serving(), time.monotonic()))


def call(place: Place, name: str, plan: Any, token: Token, thing: Any = None) -> tuple[str, int]:
    """Do what the plan says for this attempt; returns the task's name and the attempt's number."""
    task = current_task()
    number = task.attempt
    place.note(Begin(name, number, time.monotonic(), dict(task.granted), task.cancelled, task.seed, _serving()))
    how = "returned"
    try:
        if place.prints:
            os.write(1, written(name, number)[:-9].encode())  # as C code does
        if plan.shares:
            _check(place, plan, thing)
        act = plan.act(number)
        for step in act.steps:
            RUNS[place.run].do(step)
        return _end(place, act, name, number)
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        try:
            place.note(End(name, number, time.monotonic(), how, task.cancelled))
        except SoftTimeoutError:  # it may come at any point, but only once
            place.note(End(name, number, time.monotonic(), "SoftTimeoutError", task.cancelled))
            raise


def _check(place: Place, plan: Any, thing: Any) -> None:
    """See whether what arrived is what was shared: the very object, in this process."""
    assert type(thing) is Thing, f"a {type(thing)} arrived in place of what was shared"
    assert thing.name == plan.shares, f"{thing.name} arrived in place of {plan.shares}"
    assert thing.is_whole(), f"{thing.name} is not what was shared"
    assert place.path or thing in RUNS[place.run].things, f"a copy of {thing.name} arrived"


def _end(place: Place, act: Any, name: str, number: int) -> Any:
    if act.how in ("hang", "until cancelled"):
        is_patient = act.how == "hang"
        task = current_task()
        while not place.is_over() and (is_patient or not task.cancelled):
            time.sleep(_NAP)
    elif act.how == "save":
        _hang_until_told(place)
    elif act.seconds:
        time.sleep(act.seconds)
    if place.prints:
        print(written(name, number)[-9:], end="")
    return _OUTCOMES[act.how](act, name, number)


def _hang_until_told(place: Place) -> None:
    """Hang until the soft timeout, if there is one."""
    try:
        while not place.is_over():
            time.sleep(_NAP)
    except SoftTimeoutError:
        pass


def _raise(error: BaseException) -> None:
    raise error


_OUTCOMES: dict[str, Callable[[Any, str, int], Any]] = {
    "return": lambda act, name, number: (name, number),
    "hang": lambda act, name, number: (name, number),
    "until cancelled": lambda act, name, number: (name, number),
    "save": lambda act, name, number: (name, number),
    "raise": lambda act, name, number: _raise(PlannedError(name, number)),
    "retry after": lambda act, name, number: _raise(RetryAfter(act.seconds)),
    "sys.exit": lambda act, name, number: sys.exit(3),
    "interrupt": lambda act, name, number: _raise(KeyboardInterrupt()),
    "unpicklable": lambda act, name, number: threading.Lock(),
    "os._exit": lambda act, name, number: os._exit(7),
    "kill": lambda act, name, number: os.kill(os.getpid(), signal.SIGKILL),
}
