"""The calling thread itself: for debugging, tests, and code that must not start anything.

    submit, execute_all ──► drive: take ──► begin ──► call ──► report ──► take ... until nothing is left

Guarantees:
    Every task runs in the thread that starts the pool, one at a time, highest priority first; a backoff is waited out
    there, or skipped by the user's `sleep`: what is due first runs first in either case. `submit` returns when its task
    has ended, `execute_all` when all have.
    A running attempt cannot be stopped by anybody: one that outruns its timeout runs to its end, and then counts as
    timed out.
    A `KeyboardInterrupt` in a task fails that task, and is raised in the caller as well; so is the exit after SIGTERM. One that
    comes between two tasks leaves none behind that has neither ended nor waits.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

from parallel_exec._checks import refuse_names
from parallel_exec._current import current
from parallel_exec._lazy import refuse_lazy
from parallel_exec._outcome import Failure, Terminated
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import call_whole, is_mine
from parallel_exec._sync.parking import TICK, Parker
from parallel_exec._sync.weak import apart
from parallel_exec.backends._call import call
from parallel_exec.backends._cpu_time import Meter
from parallel_exec.backends.base import Backend, Runner, SchedulerPort
from parallel_exec.errors import TaskTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from typing_extensions import Never

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._outcome import Outcome


class _NoTimer:
    """Stands in for a slot's timer: nobody could act on it while the caller is busy."""

    def arm(self, when: float) -> None:
        """Do nothing."""


class _Hand:
    """What the driver has in hand.

    Attributes:
        job: what it has taken.
        outcome: how the attempt has ended, once its call has.
        won: not empty once the driver has claimed the attempt.
    """

    def __init__(self) -> None:
        self.job: AnyJob | None = None
        self.outcome: Outcome | None = None
        self.won: list[None] = []


def _exit_of(outcome: Outcome) -> Terminated | None:
    """Return the exit of the program that a call was to end with; None if it was not."""
    return outcome.error if type(outcome) is Failure and type(outcome.error) is Terminated else None


class InlineBackend(Backend):
    """Runs attempts in the calling thread.

    Args:
        sleep: called with the seconds until the next attempt is due, when nothing else is to be done, in place of waiting:
            once it returns, that attempt is due, whether time has passed or not. `lambda seconds: None` skips every backoff,
            as a test wants it. What runs stays the same, and in the same order; `timeout`, `deadline` and tenacity's
            `stop_after_delay` count the time that really passes. While it runs, what other threads add waits. Default: wait.
    """

    name = "inline"
    runs_here = True
    runs_in_caller = True

    def __init__(self, sleep: Callable[[float], object] | None = None, **_misspelt: Never) -> None:
        if _misspelt:
            refuse_names("InlineBackend", _misspelt, InlineBackend.__init__)
        if sleep is not None:
            if not callable(sleep):
                raise TypeError(
                    f"sleep takes a callable that is given the seconds to wait, not {sleep!r}: "
                    "InlineBackend(sleep=lambda seconds: None) waits for nothing"
                )
            refuse_lazy("sleep", sleep)
        self._sleep = sleep

    def make_runner(self, port: SchedulerPort, limit: int) -> InlineRunner:
        """Return a new runner."""
        return InlineRunner(port, limit, self._sleep)


class InlineRunner(Runner):
    """Runs attempts in the calling thread: the one consumer, and its own slot.

    Attributes:
        timer: the slot's.
    """

    def __init__(self, port: SchedulerPort, limit: int, sleep: Callable[[float], object] | None) -> None:
        super().__init__(port, limit)
        self._sleep = sleep  # written once
        # What an attempt that was settled while it runs holds of the executor's limits; guarded by the scheduler's lock.
        self._kept: Grant | None = None
        self.timer = _NoTimer()
        self._news = Parker()  # of the one that drives
        self._turn = threading.Lock()  # one driver at a time, whatever thread it is
        self._state: dict[str, Any] = {}  # of the one worker, as tasks see it
        self._meter = Meter()
        port.park(self)

    def wake(self) -> None:
        """Tell the driver, if it waits."""
        self._news.unpark()

    def recheck(self) -> None:
        """Have the driver look again."""
        self._news.unpark()

    def drive(self) -> None:
        """Run all there is, and wait out the backoffs; returns at once inside a task, whose driver will come to it."""
        call_whole(self.port.lock, self._drive)

    def _drive(self) -> None:
        # Once more after each turn: what another thread added while we had it, but did not look any more, is ours.
        while self.port.pending():
            got: list[bool] = []
            try:
                got.extend(map(self._turn.acquire, (False,)))  # one step: a signal is heard before, or after
                if not got[0]:
                    return
                self._run_all()
            finally:
                if got and got[0]:
                    self._turn.release()

    def _run_all(self) -> None:
        was_held = is_mine(self.port.lock)
        outer, ending = current.saved(), current.ending  # a task of another executor may be what drives us
        while self.port.pending():
            hand = _Hand()
            try:
                self.port.unpark(self)
                hand.job = self.port.take(self)
                if hand.job is not None:
                    self._attempt(hand.job, hand)
                elif self.port.pending():
                    self._wait()
            except BaseException as error:  # a signal handler's, or a callback's
                current.restore(outer)
                current.ending = ending
                self._recover(hand, error, was_held)
                raise
            self._raise_interrupt(hand)

    def _recover(self, hand: _Hand, error: BaseException, was_held: bool) -> None:
        """Bring in order what an exception has torn apart."""
        outcome = hand.outcome
        if outcome is None:
            # Another one, as that leads to all that the caller has. (Of a class of the user's it may not be to be had.)
            is_interrupt = isinstance(error, KeyboardInterrupt)
            outcome = Failure(KeyboardInterrupt(*error.args) if is_interrupt else CancelledError())
            if hand.job is not None:
                hand.job.mark_retrieved()  # the caller sees it now
        self.port.recover(hand.job, outcome, hand.won, was_held=was_held)
        self._end_kept()

    def _wait(self) -> None:
        """Wait for the next backoff to be over, or for news, or have the user's `sleep` do so."""
        if self._sleep is None or not self.port.skip_backoff(self._sleep):
            self._news.wait(TICK)

    def _attempt(self, job: AnyJob, hand: _Hand) -> None:
        port = self.port
        context = job.context
        number = port.begin(job, self, threading.current_thread().name, time.monotonic())
        if not number or context is None:
            return
        outer = current.saved()
        current.serve((0, job.worker, self._state))
        granted = None if job.grant is None else job.grant.facts
        asked = self._meter.begin(job.started_at)
        try:
            current.begin(job, number, granted)
            hand.outcome = apart(call, job.settings, context, job.fn, job.args, job.kwargs)
        finally:
            current.restore(outer)
        end = time.monotonic()
        used = self._meter.end(asked, job.started_at, end)
        exits = _exit_of(hand.outcome)
        timeout = job.settings.timeout
        if timeout is not None and end - job.started_at > timeout:
            hand.outcome = Failure(TaskTimeoutError(job.id, timeout, number))
        if exits is None:
            port.report(job, number, hand.outcome, end, used, hand.won)
        else:
            job.abort()  # it has neither returned nor failed
        if granted is not None:
            self._end_kept()
        if exits is not None:
            raise exits

    def _raise_interrupt(self, hand: _Hand) -> None:
        """Raise the `KeyboardInterrupt` that a task has ended with."""
        outcome = hand.outcome
        if type(outcome) is Failure and issubclass(type(outcome.error), KeyboardInterrupt):
            assert hand.job is not None
            hand.job.mark_retrieved()  # the caller sees it now, and may never have seen the future
            # Ctrl-C, most likely: in the caller's own thread it is meant for the caller. Another one, as what is raised comes
            # to lead to all that the caller has, the future among it.
            raise KeyboardInterrupt(*outcome.error.args) from outcome.error

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Settle the attempt at once; the call itself runs on, and what it returns is dropped."""
        won: list[None] = []
        was_held = is_mine(self.port.lock)
        try:
            self._stop(job, number, error, won)
        except BaseException:  # a signal handler's, or a callback's
            if won:
                self._keep(job, error)
                self.port.recover(job, job.override or Failure(error), won, was_held=was_held)
            raise

    def _stop(self, job: AnyJob, number: int, error: BaseException, won: list[None]) -> None:
        with self.port.lock:
            if not self.port.claim(job, number, won):
                return
            self._keep(job, error)
        self.port.settle(job, Failure(error), time.monotonic())

    def _keep(self, job: AnyJob, error: BaseException) -> None:
        """Have the call that runs on keep what it was granted; nothing if it does."""
        with self.port.lock:
            self._kept = self._kept or job.grant
            self.port.keep_grant(job, error)

    def _end_kept(self) -> None:
        """Give back what the call that has just returned still holds, if it was settled before."""
        with self.port.lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            self.port.end_kept(kept)

    def resize(self, limit: int) -> None:
        """Do nothing: there is one calling thread."""

    def join(self) -> None:
        """Return: there are no workers."""

    def slots(self) -> int:
        """Return 1: the caller's thread."""
        return 1

    def workers(self) -> int:
        """Return 0: there are no workers."""
        return 0
