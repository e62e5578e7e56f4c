"""What a runner sees of somebody else's engine, and the engine of its runner.

EngineRunner ── submit, cancel, recall ──► Engine: an Executor (`executor.py`), a dask cluster (`dask.py`)
             ◄─── run_here, began, wake ──
"""

from __future__ import annotations

import abc
import pickle
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from parallel_exec._dispatcher import logger
from parallel_exec._sync.weak import Upward
from parallel_exec.errors import TaskSerializationError
from parallel_exec.task import describe

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec._core.job import AnyJob
    from parallel_exec._dispatcher import Dispatcher
    from parallel_exec._sync.timers import Timer
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.remote_call import CallResult
    from parallel_exec.backends.engine.submission import Submission

    EngineFuture = Future[Optional[CallResult]]  # None: it did not begin, and never will

_HINT = "Use what the engine's own submit would take, too: for most, functions of modules and arguments that pickle"


class RunnerPort(Protocol):
    """What an engine tells its runner. May be called in any thread."""

    def run_here(self, submission: Submission, place: int) -> None:
        """Run an attempt in the calling thread, unless it was withdrawn."""
        ...

    def submission(self, serial: int) -> Submission | None:
        """Return the attempt of this serial number, if the engine has not done with it."""
        ...

    def began(self, submission: Submission, worker: str, ago: float = 0.0) -> None:
        """Take note that an attempt has begun elsewhere, in `worker`, so many seconds ago; must not block."""
        ...

    def wake(self) -> None:
        """Hand over more: there may be room. Does not block once something was handed over."""
        ...

    def timer(self, due: Callable[[], object]) -> Timer:
        """Return a timer; `due` is called in the clock thread, and must be quick."""
        ...


class Engine(abc.ABC):
    """An engine as its runner sees it: what is different from one kind to the next.

    Attributes:
        name: the back end's.
        must_close: whether `close` must be called even if no attempt was ever taken.
        runner: what it was opened for.
    """

    name = "?"
    must_close = False
    runner = Upward["RunnerPort"]()

    def open(self, runner: RunnerPort) -> None:
        """Connect to the runner, before anything else."""
        self.runner = runner

    @abc.abstractmethod
    def submit(self, submission: Submission) -> EngineFuture:
        """Hand an attempt over: the engine calls `run_here`, or `began` and completes the future. May block.

        Called by the feeder.
        """

    @abc.abstractmethod
    def cancel(self, submission: Submission, engine_future: EngineFuture) -> bool:
        """Have it stop an attempt; False if that may go on, and the engine does not say so itself. Called by the settler."""

    def killing(self, submission: Submission) -> Future[Any] | None:
        """Return what is done once an attempt is dead that `cancel` has had killed, and whose future has ended before.

        None: its future ends when it does. Called by the settler, after `cancel`, once.
        """
        return None

    def has_room(self, limit: int, holding: int) -> bool:
        """Return whether another attempt may be submitted: no more than `limit` may be live at once, and `holding` hold a slot.

        An engine in which attempts wait for each other takes more. Called by the feeder.
        """
        return holding < limit

    def must_wait(self, port: SchedulerPort) -> bool:
        """Return whether what is first in the queue must not begin yet, as something of a higher priority waits in a group.

        Called by the feeder. Whatever ends the wait has an attempt's future completed.
        """
        return False

    def flush(self) -> None:  # noqa: B027  # only one that collects attempts needs it
        """Hand over what was submitted, as no more will come soon. Called by the feeder."""

    def occupied(self, inside: int) -> int:
        """Return how many of its workers are held by the attempts that it has not done with."""
        return inside

    def capacity(self) -> int | None:
        """Return how many workers it has; None if it does not say."""
        return None

    def recall(self, submission: Submission) -> bool:
        """Withdraw what was sent and has not begun, if that is certain. Called with the scheduler's lock held."""
        return False

    def await_start(self, submission: Submission) -> bool:
        """Wait a moment for "it began", which the engine's "it failed" may have overtaken; return whether it came.

        Only so is a call that cannot be sent told from a result that cannot. Called by the settler.
        """
        return False

    def overdue(self, submission: Submission) -> None:  # noqa: B027  # only an engine that may be silent needs it
        """Act on an attempt whose slot's timer is due, and which is not known to have begun. Called by the settler."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what is ours: all is settled, and nothing will come. Called once, by the settler."""


class EngineHealth:
    """Says that an engine fails, once until it has run something again. For one thread."""

    def __init__(self, name: str, events: Dispatcher) -> None:
        self._name = name
        self._events = events
        self._is_told = False

    def works(self) -> None:
        """It has run something."""
        self._is_told = False

    def fails(self, error: BaseException) -> None:
        """It has failed or refused something with this error."""
        if not self._is_told:
            self._is_told = True
            logger.warning("%s: the engine failed: %s: %s", self._name, type(error).__name__, error)
            self._events.emit("WorkerDied", self._name, f"{type(error).__name__}: {error}")


# What is raised for something that cannot be pickled says one of these, if it is no `PicklingError`; the second on 3.13.
_UNPICKLABLE = ("pickle", "get local object", "cross-interpreter data")


def explain(error: BaseException, job: AnyJob, *, had_begun: bool) -> BaseException:
    """Return what to report for an error of the engine's: its own, unless something could not be pickled."""
    unpicklable = isinstance(error, pickle.PicklingError) or (
        isinstance(error, (TypeError, AttributeError)) and any(words in str(error) for words in _UNPICKLABLE)
    )
    if not unpicklable or isinstance(error, TaskSerializationError):  # an executor of ours says it itself
        return error
    from parallel_exec.backends._culprit import WHOLE, find_culprit, parts_of  # only a failure needs it

    what, way = ("the result", "from the worker") if had_begun else ("the call", "to the worker")
    what = f"{what} of task {job.id!r}, {describe(job.fn)},"
    why, hint = f"{type(error).__name__}: {error}", _HINT
    if not had_begun:
        culprit = find_culprit(parts_of(job.fn, job.args, job.kwargs or {}))
        if culprit.what != WHOLE:  # else it is only the engine's own way of pickling that cannot
            what, why, hint = f"{culprit.what} of task {job.id!r}", culprit.why, culprit.hint
    failed = TaskSerializationError(what, way, why, hint)
    failed.__cause__ = error
    return failed
