"""How tasks end, the executor among them.

    an attempt's last outcome ──┐
    cancel, abort, deadline ────┼──► finish ──► future, events, batch ──► the last one, after shutdown: drained
    shutdown, fail_all ─────────┘

Guarantees:
    Every job added ends exactly once: one that waits is ended by whoever changes its phase to DONE under the lock.
    One that a back end has in hand is given an override, and ends as that says instead of beginning, or being retried.
    Callbacks and hooks are called while the lock is not held.
    Where a signal handler raises, Ctrl-C for one, `repair` ends what was begun before the exception goes on.
    Once closed and empty the executor is drained, whatever callbacks raise; then all consumers are let go, and the clock.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

from parallel_exec._core.phase import Phase
from parallel_exec._current import current
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import is_mine, release_leaked
from parallel_exec.errors import copy_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterable, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.journaling import Restored
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._core.registry import ExecutorStats
    from parallel_exec._core.running import RunningTask
    from parallel_exec._dispatcher import Dispatcher
    from parallel_exec._outcome import Outcome
    from parallel_exec.backends.base import Runner
    from parallel_exec.errors import ParallelExecError

CANCELLED = Failure(CancelledError())  # the override that makes a job end as cancelled; known by identity


def error_of(override: Failure) -> BaseException:
    """Return what an attempt ends with that is stopped for an override."""
    return CancelledError() if override is CANCELLED else override.error


class Completion:
    """The ends of one executor's jobs, and its own. Thread-safe.

    Attributes:
        runner: what runs the attempts; written by `use`.
        runs_in_caller: whether it needs the caller's thread.
    """

    runner: Runner

    def __init__(self, monitor: Monitor, events: Dispatcher, *, runs_in_caller: bool) -> None:
        self.runs_in_caller = runs_in_caller
        self._lock = monitor.lock
        self._monitor = monitor
        self._gate = monitor.gate
        self._ready = monitor.ready
        self._registry = monitor.registry
        self._idle = monitor.idle
        self._events = events
        self._is_over = False  # whether all who wait for the end were told

    def use(self, runner: Runner) -> None:
        """Run attempts by this runner: called before anything is added, and in a forked child that goes on with the executor."""
        self.runner = runner
        self._monitor.callers.use(runner)

    # ── one job ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def finish(self, job: AnyJob, outcome: Outcome) -> None:
        """End a job that is DONE, and see whether it was the last."""
        before = current.ending
        try:
            # Before anything of the user's runs: a callback that shuts down must not wait for this one task.
            current.ending = (*before, self._monitor.callers)
            try:
                job.settle(outcome, outcome is CANCELLED)
                if self._events.active:
                    self.tell_end(job, outcome)
            finally:  # also when a callback raises what is no Exception
                if not job.done():
                    job.settle(outcome, outcome is CANCELLED)
                job.wake_parked()  # which a signal handler may have kept `settle` from
                held = job.grant is not None
                with self._lock:
                    if held:
                        self._ready.end(job)
                    rest = self._registry.account(job)
                self.follow_up(rest)
                if held:
                    self._idle.wake_one()
        finally:
            current.ending = before

    def tell_end(self, job: AnyJob, outcome: Outcome) -> None:
        """Tell the hook how a job ended."""
        if outcome is CANCELLED:
            self._events.emit("TaskCancelled", job.id, job.attempt_number)
            return
        error = outcome.error if type(outcome) is Failure else None
        duration = 0.0 if job.first_started_at is None else job.ended_at - job.first_started_at
        self._events.emit("TaskFinished", job.id, job.attempt_number, error is None, error, duration, job.worker)

    def tell_waits(self) -> None:
        """Tell the hook which tasks have begun to wait for a limit."""
        limits = self._ready.limits
        while limits is not None and limits.news:
            try:
                job, name = limits.news.popleft()
            except IndexError:  # another thread has told of it
                break
            self._events.emit("TaskWaiting", job.id, job.attempt_number, name)

    def follow_up(self, rest: Sequence[AnyJob] = ()) -> None:
        """Cancel what `Registry.account` returned, and see whether all is over. Called without the lock held."""
        if rest:
            self.stop_all(rest, lambda job: CANCELLED)
        gate = self._gate
        if not gate.closed or self._registry.unsettled:
            return
        with self._lock:
            if self._registry.unsettled:
                return
            if not self._is_over:
                gate.drain()  # first: who is told looks at it
                self._monitor.drained.wake_all()
                self._monitor.timers.stop()
                self.runner.recheck()
                self._is_over = True  # last: whatever a signal handler raises, the next caller does the rest
        self._idle.let_all_go()

    def resume(self, job: AnyJob, restored: Restored) -> bool:
        """End a job as an earlier run has, unless an attempt is running; returns whether this has ended it."""
        return self.cancel_waiting(job, restored.outcome, restored)

    def cancel_waiting(self, job: AnyJob, override: Outcome, restored: Restored | None = None) -> bool:
        """End a job with `override` unless an attempt is running; returns whether this has ended it.

        With `restored` it is that end, of an earlier run.
        """
        if self._gate.forked:
            return False  # it is the parent's business
        mine, was_held = False, is_mine(self._lock)  # by what this call has interrupted
        try:
            with self._lock:
                mine = job.phase in (Phase.QUEUED, Phase.BACKING_OFF)  # from here on it ends, whatever is raised
                if not mine:
                    mine = job.phase == Phase.HANDED_OUT and self.runner.recall(job)
                if not mine or not self._withdraw(job):
                    return False
                if restored is not None:
                    job.resume(restored)
            self.finish(job, override)
        except BaseException:
            self.repair(job, override if mine else None, was_held=was_held)
            raise
        if self.runs_in_caller:
            self.runner.recheck()
        if job.settings.needs is not None:
            self._idle.wake_one()  # what was behind it may have what it needs
            self.tell_waits()
        return True

    def _withdraw(self, job: AnyJob) -> bool:
        """Take a job out of wherever it waits; False if a signal handler has ended it. Called with the lock held."""
        phase = job.withdrawn()
        if phase == Phase.QUEUED:
            self._ready.discard(job)
            self._monitor.room.notify()
        elif phase == Phase.BACKING_OFF:
            self._registry.backing_off.discard(job)
            if job.backoff_timer is not None:
                job.backoff_timer.cancel()
        return phase != Phase.DONE

    def stop(self, job: AnyJob, override: Failure) -> bool:
        """End a job with `override`, also if an attempt is running.

        Returns:
            Whether it has ended, or will as soon as the attempt is stopped (unless the attempt finishes first).
        """
        while not self.cancel_waiting(job, override):
            was_held = is_mine(self._lock)
            try:
                with self._lock:
                    if job.phase == Phase.DONE or self._gate.forked:
                        return False
                    if job.phase in (Phase.QUEUED, Phase.BACKING_OFF):
                        continue  # it has come back from the back end meanwhile
                    job.override_with(override)
                self.runner.stop(job, job.attempt_number, error_of(override))
            except BaseException:
                self.repair(job, None, was_held=was_held)
                raise
            break
        return True

    def cancel(self, job: AnyJob) -> bool:
        """Cancel a task that waits; see `TaskFuture.cancel`."""
        return self.cancel_waiting(job, CANCELLED) or job.cancelled()

    def abort(self, job: AnyJob) -> bool:
        """Cancel a task, and stop it if it runs; see `TaskFuture.abort`."""
        return self.stop(job, CANCELLED)

    def repair(self, job: AnyJob, outcome: Outcome | None, *, was_held: bool) -> None:
        """Bring the executor in order after a call about `job` that an exception has torn apart, wherever that was.

        The job's phase says where it belongs. One that is not in the queue though its phase says so, or is NEW, was never in,
        and ends as cancelled; one that the call was ending is taken out of wherever it is, settled and counted. Then the
        wake-up that may be due is repeated. Each step is left out that was done already.

        Args:
            job: which.
            outcome: how the call was ending it; None: it was not.
            was_held: whether the thread held the lock when the call began; else it is released, as an exception may come
                between a `with` and its lock.
        """
        registry = self._registry
        if not was_held:
            release_leaked(self._lock)
        with self._lock:
            registry.reserved.discard(job)
            is_queued = job.phase != Phase.NEW and self._ready.holds(job)
            counted = job in registry.unsettled
            if outcome is None and (job.phase == Phase.NEW or (job.phase == Phase.QUEUED and not is_queued)):
                outcome = CANCELLED
                job.forget_batch()
            if outcome is not None:
                job.decide()
                registry.backing_off.discard(job)
                if is_queued:
                    self._ready.discard(job)
            self._ready.repair(self._monitor.grants())
            self._monitor.room.notify_all()
        rest: Sequence[AnyJob] = ()
        if outcome is not None and counted:
            if not job.done():
                job.settle(outcome, outcome is CANCELLED)
            with self._lock:
                if job.batch is not None and job in job.batch.ended:
                    job.forget_batch()
                self._ready.end(job)
                if job in registry.unsettled:
                    rest = registry.account(job)
        self.follow_up(rest)
        self._idle.wake_one()

    def repair_limits(self, *, was_held: bool) -> None:
        """Bring the limits in order after a change that an exception has torn apart; `was_held` as for `repair`."""
        if not was_held:
            release_leaked(self._lock)
        with self._lock:
            self._ready.repair(self._monitor.grants())
        self._idle.wake_one()

    # ── several ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop_all(self, jobs: Iterable[AnyJob], override: Callable[[AnyJob], Failure]) -> None:
        """End jobs; those first that wait, or a slot that becomes free would run one of them."""
        running = [job for job in jobs if not self.cancel_waiting(job, override(job))]
        for job in running:
            self.stop(job, override(job))

    def abort_all(self) -> None:
        """Cancel all that has not ended, the first in the queue first, and stop what runs; see `ParallelExecutor.abort_all`."""
        with self._lock:
            jobs = sorted(self._registry.unsettled, key=lambda job: (-job.priority, job.sequence))
        self.stop_all(jobs, lambda job: CANCELLED)

    def cancel_all_waiting(self, override: Failure) -> None:
        """End all jobs that no attempt is running of."""
        with self._lock:
            jobs = [*self._ready.jobs(), *self._registry.backing_off, *self.runner.handed_out()]
        for job in jobs:
            self.cancel_waiting(job, override)

    def finish_overridden(self, overridden: Iterable[AnyJob]) -> None:
        """End those that were given an override while a back end had them, as `Scheduler.requeue` returned them, and wake.

        Raises:
            BaseException: what is no Exception, and the callback of one raised; once the others have ended, too.
        """
        raised: BaseException | None = None
        for job in overridden:
            try:
                self.finish(job, job.override or self._gate.final_outcome or CANCELLED)
            except BaseException as error:  # the stdlib's futures let what is no Exception through
                raised = raised or error
        self._idle.wake_one()
        if self._events.active:
            self.tell_waits()
        if raised is not None:
            raise raised

    def in_hand(self) -> list[AnyJob]:
        """Return the jobs that a back end has: with a running attempt, or about to have one."""
        with self._lock:
            return [*[job for job, _ in self._registry.live], *self.runner.handed_out()]

    # ── the executor ────────────────────────────────────────────────────────────────────────────────────────────────

    def fail_all(self, error: ParallelExecError) -> None:
        """Nothing can ever run again: end all that waits with such an error, and refuse what is added."""
        with self._lock:
            self._gate.fail(error)
        self.cancel_all_waiting(Failure(copy_of(error)))  # which is raised, and then leads to who asks for a result

    def stop_starting(self) -> None:
        """Let no attempt begin any more, for good; running ones go on, and what waits goes on waiting."""
        with self._lock:
            self._gate.stop()
            self.runner.recall_all()

    def is_busy(self) -> bool:
        """Return whether anything runs, or has just ended, and who is called back for it has not returned.

        After `stop_starting`: what waits for a task that will never begin comes no further.
        """
        with self._lock:
            vain = self._monitor.callers.waiting_in_vain()
            ending = (Phase.SETTLING, Phase.DONE)
            going_on = any(job not in vain for job in self.in_hand())
            return going_on or any(job.phase in ending for job in list(self._registry.unsettled))

    def shutdown(self, *, cancel: bool, at_exit: bool = False) -> None:
        """Take no more tasks; with `cancel`, or if nothing was ever started, cancel those that wait. Does not wait.

        `at_exit`: because the interpreter ends.
        """
        if self._gate.forked:
            return
        gate = self._gate
        with self._lock:
            gate.close(CANCELLED if cancel or not gate.is_open else None, at_exit=at_exit)
            self._monitor.room.notify_all()
        if gate.final_outcome is not None:  # also where an exception kept an earlier call from it
            self.cancel_all_waiting(gate.final_outcome)
        self.follow_up()
        self._idle.wake_one()

    def drive(self) -> None:
        """Lend the calling thread to the runner; its callbacks must not wait for what only this thread can run."""
        before = current.driving
        current.driving = (*before, self._monitor.callers)
        try:
            self.runner.drive()
        finally:
            current.driving = before

    def join(self) -> None:
        """Wait until the workers have ended, after `shutdown`; returns at once where waiting could last for ever."""
        if self._gate.forked or self._monitor.callers.must_not_block():
            return
        if self.runs_in_caller:
            self.drive()
            if self._monitor.callers in current.driving:  # in a hook: the rest is up to what it has interrupted
                return
        # (Maybe there is no worker yet: another thread is about to wake the back end. Or it drives.)
        self._monitor.drained.wait(lambda: self._gate.drained)
        self.runner.join()
        self._monitor.timers.join()

    def forgotten(self) -> str:
        """Say which tasks nobody has started, and what to call; "" if there are none, or once the executor was shut down."""
        gate = self._gate
        with self._lock:
            waiting = [] if gate.is_open or gate.closed or gate.forked else self._ready.jobs()
        if not waiting:
            return ""
        first = min(waiting, key=lambda job: job.sequence)
        count = "1 task was" if len(waiting) == 1 else f"{len(waiting)} tasks were"
        return (
            f"{count} added and never run, {first.id!r} first, and so cancelled: call execute_all() in the with block, or "
            "submit() instead of add_task()"
        )

    def running(self) -> list[RunningTask]:
        """Return what runs, the longest first."""
        with self._lock:
            found = [(self.runner.at_work(job), number, job.worker) for job, number in self._registry.live.copy()]
        from parallel_exec._core.running import RunningTask  # few ask for it

        now = time.monotonic()
        known = [(work, number, worker) for work, number, worker in found if work is not None]
        running = [RunningTask(work[0], number, worker, now - work[1]) for work, number, worker in known]
        return sorted(running, key=lambda task: -task.seconds)

    def stats(self) -> ExecutorStats:
        """Return a snapshot of the counts."""
        with self._lock:
            limits = None if self._ready.limits is None else self._ready.limits.stats()
            return self._registry.stats(self._ready.calls(), self.runner.workers(), self.runner.abandoned(), limits)
