"""One attempt in somebody else's engine: `Submission`, which is what is handed over, and `EngineSlot`, which it holds meanwhile.

    the engine calls it ─────► it is in this process: the attempt runs right there
    the engine pickles it ───► what arrives elsewhere is the bare call (`remote_call.py`)

So it does not matter which kind of engine it is, and nobody has to know: what is possible is found out by doing it.

Guarantees:
    A ticket's fate is decided once, by whoever claims it first: to have begun, or to have been withdrawn. After that it
    never begins, though the engine may call or pickle it.
"""

from __future__ import annotations

import pickle
import weakref
from typing import TYPE_CHECKING, Any, Callable, Protocol

from parallel_exec._current import call_name, current
from parallel_exec._sync.weak import apart, weakly
from parallel_exec.backends.thread import call
from parallel_exec.errors import TaskSerializationError
from parallel_exec.task import describe

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec._core.job import AnyJob
    from parallel_exec._outcome import Outcome

BEGUN, WITHDRAWN = "begun", "withdrawn"

_HINT = "Use what the engine's own submit would take, too: for most, functions of modules and arguments that pickle"


class SubmissionOwner(Protocol):
    """What a ticket asks of its back end."""

    fates: Any  # a lock; nothing is called while it is held

    def run_here(self, submission: Submission) -> None:
        """Run a ticket that was claimed, in the calling thread."""
        ...

    def travel(self, submission: Submission) -> Any:
        """Return what the ticket is pickled as."""
        ...


class EngineSlot:
    """Where one ticket at a time is: a slot, of which there are no more than the limit; used again and again.

    (Timers stay in the clock's heap until they are due. One a ticket would keep every ticket that long.)

    Attributes:
        timer: due when the attempt outruns its timeout.
        ticket: who holds it; written by the feeder, and by whoever releases it.
    """

    def __init__(self, make_timer: Callable[[Callable[[], object]], Any], due: Callable[[EngineSlot], object]) -> None:
        self.timer = make_timer(weakly(self._time_is_up))
        self.submission: Submission | None = None
        self._due = weakly(due)

    def _time_is_up(self) -> None:
        self._due(self)


class Submission:
    """One attempt, from being handed to the engine until the engine has done with it.

    It does not keep its future, as the engine, and the frames of what it raises, may keep the ticket. (The scheduler keeps
    what has not ended.)

    Attributes:
        inner: the engine's future; written when the engine's `submit` has returned, None again once that is done.
        place: None once the attempt is settled; guarded by `desk.fates`, as are the next two.
        fate: None, BEGUN or WITHDRAWN.
        travelled: whether it was pickled, so that it may begin elsewhere.
        is_here: whether its call is running in this process.
        is_orphan: whether its own thread must say that it has ended, as the engine will not, or has done so too early.
        unwanted: whether nobody waits for it any more.
        sent: when it set out (monotonic).
        number, start, worker: of the attempt, once it has begun; the number is 0 until then.
    """

    def __init__(self, desk: SubmissionOwner, future: AnyJob, place: EngineSlot, serial: int) -> None:
        self._desk = desk
        self._future = weakref.ref(future)
        self.place: EngineSlot | None = place
        self.serial = serial
        self.next_number = future.attempt_number + 1
        self.inner: Future[Any] | None = None
        self.fate: str | None = None
        self.travelled = False
        self.is_here = False
        self.is_orphan = False
        self.unwanted = False
        self.number = 0
        self.start = self.sent = 0.0
        self.worker = ""
        self.address: Any = None  # where it runs, in the back end's own terms
        self.__name__ = call_name(future.fn)  # dask shows it, and keeps a record for each name
        place.submission = self

    @property
    def future(self) -> AnyJob:
        """The task's future, while that has not ended.

        Raises:
            ReferenceError: it has ended, and is gone.
        """
        future = self._future()
        if future is None:
            raise ReferenceError("the task of this attempt has ended")
        return future

    @property
    def known_future(self) -> AnyJob | None:
        """The task's future; None if that has ended, and is gone."""
        return self._future()

    def claim(self, fate: str) -> bool:
        """Decide the fate; False if it was decided."""
        with self._desk.fates:
            if self.fate is not None:
                return False
            self.fate = fate
            return True

    def withdraw(self) -> bool:
        """Decide that it never begins, if that is ours to say: it has not begun, and is still in this process."""
        with self._desk.fates:
            return not self.travelled and self.claim(WITHDRAWN)

    def set_out(self) -> bool:
        """Note that it leaves the process; False if it was withdrawn."""
        with self._desk.fates:
            self.travelled = True
            return self.fate != WITHDRAWN

    def __call__(self) -> None:
        """Run the attempt: called by the engine."""
        with self._desk.fates:
            if not self.claim(BEGUN):
                return
            self.is_here = True
        self._desk.run_here(self)

    def __reduce__(self) -> Any:
        return self._desk.travel(self)

    def call(self) -> Outcome | None:
        """Run the call in a copy of its context; None if the task has ended meanwhile."""
        future = self.future
        context = future.context
        if context is None:
            return None
        current.running, current.number = future, self.number
        try:
            return apart(call, future.settings, context.copy(), future.fn, future.args, future.kwargs)
        finally:
            current.running = None

    def explain(self, error: BaseException, had_begun: bool) -> BaseException:
        """Return what to report for an error of the engine's: its own, unless something could not be pickled."""
        unpicklable = isinstance(error, pickle.PicklingError) or (
            isinstance(error, (TypeError, AttributeError))
            and ("pickle" in str(error) or "cross-interpreter data" in str(error))
        )
        if not unpicklable or isinstance(error, TaskSerializationError):  # an executor of ours says it itself
            return error
        from parallel_exec.backends._culprit import WHOLE, find_culprit, parts_of  # only a failure needs it

        future = self.future
        what, way = ("the result", "from the worker") if had_begun else ("the call", "to the worker")
        what = f"{what} of task {future.id!r}, {describe(future.fn)},"
        why, hint = f"{type(error).__name__}: {error}", _HINT
        if not had_begun:
            culprit = find_culprit(parts_of(future.fn, future.args, future.kwargs or {}))
            if culprit.what != WHOLE:  # else it is only the engine's own way of pickling that cannot
                what, why, hint = f"{culprit.what} of task {future.id!r}", culprit.why, culprit.hint
        failed = TaskSerializationError(what, way, why, hint)
        failed.__cause__ = error
        return failed
