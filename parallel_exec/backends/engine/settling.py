"""How attempts in somebody else's engine begin and end: the half of `runner.py` that is not about handing them over.

    in the engine's thread:  ticket called ──► begin ──► call ──► report
    in the settler:          "it began", from elsewhere ──► begin          done ──► report, or the engine's own error
                             stop ──► cancel, or else abandon ──► settle   recall ──► cancel

Guarantees:
    What the engine calls us with takes none of the scheduler's locks: it may call from inside its own `cancel`.
    A place is released once, when its attempt is settled, whatever the engine still does.
    An attempt that the engine does not let go of is abandoned: settled at once, its place given to the next, what it
    returns dropped. It is counted until the engine says that it has ended.
"""

from __future__ import annotations

import abc
import threading
from concurrent.futures import BrokenExecutor, CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Optional

from parallel_exec._current import current
from parallel_exec._outcome import Failure, Outcome
from parallel_exec._sync.clock import time
from parallel_exec.backends.base import Runner, log_abandoned
from parallel_exec.backends.engine.submission import BEGUN, WITHDRAWN, EngineSlot, Submission
from parallel_exec.events import WorkerDied, logger

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.remote_call import CallResult
    from parallel_exec.backends.engine.serial_thread import SerialThread

    Inner = Future[Optional[CallResult]]


class Settling(Runner):
    """The state of the attempts in an engine. What has no note is changed by any thread, in single atomic calls."""

    _feeder: SerialThread  # both written once, by the first `wake`
    _settler: SerialThread

    name = "?"  # the back end's

    def __init__(self, port: SchedulerPort, limit: int) -> None:
        super().__init__(port, limit)
        self.fates = threading.RLock()  # guards what tickets say it guards
        self._active: set[Submission] = set()  # hold a place: handed over, or live
        self._inside: set[Submission] = set()  # the engine has not done with them
        self._stuck: set[Submission] = set()  # abandoned, and still running
        self._submissions: dict[int, Submission] = {}  # by serial, those inside that have set out
        self._free: list[EngineSlot] = []
        self._sick = False  # whether the engine's failure was told; the settler's own

    @abc.abstractmethod
    def _cancel(self, submission: Submission, inner: Inner) -> None:
        """Have the engine stop a ticket, as far as it can. Called by the settler."""

    def _stops(self, submission: Submission) -> bool:
        """Return whether the engine ends a call that it is told to cancel, or says itself that it does not."""
        return False

    def _recall_travelled(self, submission: Submission) -> bool:
        """Take back what was sent and has not begun, if that is certain. Called with the scheduler's lock held."""
        return False

    def _await_news(self, submission: Submission) -> bool:
        """Wait a moment for "it began", which the engine's "it failed" may have overtaken; return whether it came.

        Only so is a call that cannot be sent told from a result that cannot. Called by the settler.
        """
        return False

    def _overdue(self, submission: Submission) -> None:
        """Act on a ticket whose place's timer is due, and which is not known to have begun. Called by the settler."""

    # ── in the engine's threads ─────────────────────────────────────────────────────────────────────────────────────

    def run_here(self, submission: Submission) -> None:
        """Run an attempt in the calling thread."""
        before = current.running, current.number, current.pool
        current.pool = self.port
        future = submission.future
        try:
            self._begin(submission, threading.current_thread().name, time.monotonic())
            if submission.number and (outcome := submission.call()) is not None:
                self._report(submission, outcome, time.monotonic())
        except BaseException:  # from a callback or a hook: not the engine's business
            logger.exception("a callback of task %r raised", future.id)
        finally:
            current.running, current.number, current.pool = before
            submission.is_here = False
            self._stuck.discard(submission)
            if submission.is_orphan:
                self._feeder.call_soon(self._feed)

    def _done(self, submission: Submission, inner: Inner) -> None:
        """Hear that the engine has done with a ticket; its callback, maybe with the scheduler's lock held."""
        self._inside.discard(submission)
        submission.inner = None  # whose callbacks lead to the ticket
        if submission.is_here:
            submission.is_orphan = True  # cancelled in the engine's books only
        else:
            self._stuck.discard(submission)
        if submission.place is None:
            self._submissions.pop(submission.serial, None)
            self._feeder.call_soon(self._feed)
        else:
            self._settler.call_soon(partial(self._ended, submission, inner))

    def _feed(self) -> None:
        """Hand over what there is room for. Called by the feeder."""
        raise NotImplementedError

    # ── beginning and ending ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, submission: Submission, worker: str, start: float) -> None:
        """Begin an attempt that the caller has claimed."""
        assert submission.place is not None, "it holds its place until it is settled"
        submission.worker, submission.start = worker, start
        submission.number = self.port.begin(submission.future, submission.place, worker, start)
        if not submission.number:  # it has ended already, by a verdict or by a hook of the policy's
            self._release(submission)

    def _report(self, submission: Submission, outcome: Outcome, end: float) -> None:
        """Settle an attempt, unless it is settled."""
        future = submission.known_future
        try:
            if future is not None:
                self.port.report(future, submission.number, outcome, end)
        finally:
            self._release(submission)

    def _release(self, submission: Submission, *, reusable: bool = True) -> None:
        """Let a ticket's place go; harmless when repeated."""
        with self.fates:
            place, submission.place = submission.place, None
        if place is None:
            return
        place.submission = None
        place.timer.disarm()
        self._active.discard(submission)
        if reusable:
            self._free.append(place)

    def _began(self, submission: Submission, worker: str, start: float) -> None:
        """Take note that an attempt began elsewhere. The settler."""
        if submission.claim(BEGUN):
            self._begin(submission, worker, start)
            if not submission.number:
                self._give_up(submission)
        elif submission.unwanted:
            self._let_go(submission)
        elif worker != submission.worker:
            self._restart_clock(submission, worker, start)

    def _restart_clock(self, submission: Submission, worker: str, start: float) -> None:
        """Let the timeout count anew: the engine has lost the worker, and begun the attempt again on another."""
        future = submission.known_future
        with self.port.lock:
            place = submission.place
            if (
                place is None
                or future is None
                or future.slot is not place
                or future.attempt_number != submission.number
            ):
                return
            future.restart_clock(worker, start)
            submission.start, submission.worker = start, worker
            if future.settings.timeout is not None:
                place.timer.arm(start + future.settings.timeout)

    def _ended(self, submission: Submission, inner: Inner) -> None:
        """Settle what the engine has done with, if it is not settled. The settler."""
        failed = inner.cancelled() or inner.exception() is not None
        if failed and submission.fate is None and self._await_news(submission):
            self._settler.call_soon(partial(self._ended, submission, inner))  # behind the news
            return
        self._submissions.pop(submission.serial, None)
        if submission.is_here:
            return
        try:
            error = CancelledError("the engine cancelled the attempt") if inner.cancelled() else inner.exception()
            reply = None if error is not None else inner.result()
            if submission.fate != WITHDRAWN and error is not None:
                self._end_badly(submission, error)
            elif submission.fate != WITHDRAWN and reply is not None:
                self._end_well(submission, reply)
        finally:  # also when a callback raises what is no Exception
            self._release(submission)
            self._feeder.call_soon(self._feed)

    def _end_well(self, submission: Submission, reply: CallResult) -> None:
        """Settle what the engine has run."""
        self._sick = False
        if submission.claim(BEGUN):
            self._begin(submission, reply.worker, time.monotonic() - reply.duration)
        future = submission.known_future
        if submission.number and future is not None:
            self._report(submission, reply.outcome(future), submission.start + reply.duration)

    def _end_badly(self, submission: Submission, error: BaseException) -> None:
        """Settle what the engine failed."""
        now = time.monotonic()
        new = submission.claim(BEGUN)
        if new:
            self._begin(submission, self.name, now)
        if isinstance(error, BrokenExecutor):
            self._tell_sick(error)
        future = submission.known_future
        if submission.number and future is not None:
            self._report(submission, Failure(submission.explain(error, had_begun=not new)), now)

    def _tell_sick(self, error: BaseException) -> None:
        if not self._sick:
            self._sick = True
            logger.warning("%s: the engine failed: %s: %s", self.name, type(error).__name__, error)
            self.port.events.emit(WorkerDied, self.name, f"{type(error).__name__}: {error}")

    def _due(self, place: EngineSlot) -> None:
        """Act on a place's timer. The clock thread."""
        submission = place.submission
        if submission is not None and submission.fate is None:
            self._settler.call_soon(partial(self._overdue, submission))
        elif submission is not None:
            self.port.expire(place, submission.known_future)

    # ── ends from outside ───────────────────────────────────────────────────────────────────────────────────────────

    def recall(self, future: AnyJob) -> bool:
        """Take a future back if it certainly has not begun. Called with the lock held."""
        submission = self._submission_of(future)
        if submission is None or submission.fate is not None:
            return False
        if submission.withdraw() or self._recall_travelled(submission):
            self._settler.call_soon(partial(self._let_withdrawn_go, submission))
            return True
        return False

    def recall_all(self) -> None:
        """Take back what has not begun. Called with the lock held."""
        futures = self.handed_out()
        self.port.give_back([future for future in futures if future.override is None and self.recall(future)])

    def handed_out(self) -> list[AnyJob]:
        """Return what has not begun. Called with the lock held."""
        futures = [submission.known_future for submission in list(self._active) if submission.fate is None]
        return [future for future in futures if future is not None]

    def stop(self, future: AnyJob, number: int, error: BaseException) -> None:
        """Have the settler cancel the attempt in the engine, or else abandon it."""
        with self.port.lock:
            submission = self._submission_of(future)
            if submission is None:
                return
            claimed = self.port.claim(future, number)
        if claimed:
            self._settler.call_soon(partial(self._abandon, submission, error, time.monotonic()))
        else:
            self._settler.call_soon(partial(self._carry_out_verdict, submission))

    def _submission_of(self, future: AnyJob) -> Submission | None:
        place = future.slot
        submission = place.submission if place is not None else None
        return submission if submission is not None and submission.known_future is future else None

    def _abandon(self, submission: Submission, error: BaseException, end: float) -> None:
        self._give_up(submission)
        if submission in self._stuck:
            if not self._stops(submission):
                log_abandoned(error, submission.future.id, submission.number, f"{submission.worker} of the executor")
            self.port.events.emit(WorkerDied, submission.worker, f"abandoned: {error}")
        self._release(submission, reusable=False)  # whoever began it may still be arming its timer
        self._feeder.call_soon(self._feed)
        self.port.settle(submission.future, Failure(error), end)

    def _carry_out_verdict(self, submission: Submission) -> None:
        """End what was aborted while the engine had it and it was not known to have begun: `begin` does so."""
        future = submission.known_future
        if future is not None and future.override is not None and submission.claim(BEGUN):
            self._begin(submission, self.name, time.monotonic())
            self._give_up(submission)
            self._feeder.call_soon(self._feed)

    def _give_up(self, submission: Submission) -> None:
        """Have the engine let go of a ticket; if it does not, the ticket is stuck."""
        submission.unwanted = True
        self._stuck.add(submission)
        self._let_go(submission)
        if submission not in self._inside and not submission.is_here:
            self._stuck.discard(submission)

    def _let_withdrawn_go(self, submission: Submission) -> None:
        """Free the place of what certainly never begins, whatever the engine makes of it."""
        self._let_go(submission)
        self._release(submission)
        self._feeder.call_soon(self._feed)

    def _let_go(self, submission: Submission) -> None:
        inner = submission.inner
        if inner is not None:
            self._cancel(submission, inner)
