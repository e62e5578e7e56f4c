"""Jobs between two attempts: each has a timer, and no worker.

    settle ─► start ─► Timers ─► due ─► Admission.enqueue: ready again, at its old place

A back end that runs in the caller's thread waits there, for the first of them or for what a limit lets in: `skip`.
"""

from __future__ import annotations

from functools import partial
from logging import INFO

from parallel_exec._core.phase import Phase
from parallel_exec._dispatcher import logger, say
from parallel_exec._names import describe_failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec.errors import LocatedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from parallel_exec._core.admission import Admission
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._dispatcher import Dispatcher
    from parallel_exec._outcome import Failure
    from parallel_exec._sync.timers import Timer


class Backoff:
    """The backoffs of one executor. Thread-safe."""

    def __init__(self, monitor: Monitor, admission: Admission, events: Dispatcher) -> None:
        self._lock = monitor.lock
        self._gate = monitor.gate
        self._ready = monitor.ready
        self._registry = monitor.registry
        self._timers = monitor.timers
        self._admission = admission
        self._events = events

    def start(self, job: AnyJob, delay: float, error: BaseException | None) -> Failure | None:
        """Let a job wait for its next attempt; or return how it must end instead.

        Args:
            job: one whose attempt was claimed.
            delay: seconds.
            error: how the attempt failed; None if the policy rejected what it returned.
        """
        with self._lock:
            instead = job.override or self._gate.final_outcome
            if instead is None:
                job.back_off(self._timers.timer(partial(self._due, job, job.attempt_number)))
                self._registry.back_off(job)
        if instead is not None:
            return instead
        if self._events.active:
            ran = job.ended_at - job.started_at
            self._events.emit_amid(job, "TaskRetrying", delay, error, ran, job.worker)
        if logger.isEnabledFor(INFO):
            say(
                INFO,
                "attempt %d of task %r %s: the next one is in %.3g s",
                job.attempt_number,
                job.id,
                _said(error),
                delay,
            )
        timer = job.backoff_timer
        if timer is not None:  # else it was cancelled meanwhile
            timer.arm(time.monotonic() + delay)
        return None

    def pending(self) -> bool:
        """Return whether anything is ready to start, or will be when time has passed: see `SchedulerPort`."""
        with self._lock:
            limits = self._ready.limits
            if limits is not None and limits.busy:
                return False  # this call has interrupted a change that the driver makes, which goes on with it
            return self._gate.may_start and bool(len(self._ready) or self._registry.backing_off)

    def skip(self, sleep: Callable[[float], object]) -> bool:
        """Let the first backoff be over, or a limit let something in, once `sleep` has returned; the others wait so much less."""
        limits = self._ready.limits
        with self._lock:
            due = min((timer.deadline for _, timer in self._waiting()), default=NEVER)
            if limits is not None:
                due = min(due, limits.due())
        if due == NEVER:
            return False
        seconds = due - time.monotonic()
        if seconds > 0:
            sleep(seconds)
        with self._lock:
            seconds = max(0.0, due - time.monotonic())
            waiting = self._waiting()
            over = [(job, job.attempt_number) for job, timer in waiting if timer.deadline <= due]
            for _, timer in waiting:
                if timer.deadline > due:
                    timer.arm(timer.deadline - seconds)
            if limits is not None:
                self._ready.change(limits.skip, seconds)
        for job, number in over:
            self._due(job, number)
        return True

    def _waiting(self) -> list[tuple[AnyJob, Timer]]:
        """Return the jobs in backoff, with their timers; not those that are just coming up. Called with the lock held."""
        timers = [(job, job.backoff_timer) for job in self._registry.backing_off]
        return [(job, timer) for job, timer in timers if timer is not None and timer.deadline != NEVER]

    def _due(self, job: AnyJob, number: int) -> None:
        """End the backoff after attempt `number`, unless that was done already."""
        with self._lock:
            if job.phase != Phase.BACKING_OFF or job.attempt_number != number:
                return
            if self._gate.final_outcome is not None:
                return  # whoever has set that ends it, and in another thread than the clock's
            self._registry.backing_off.discard(job)
            job.backoff_over()
            outcome, consumer = self._admission.enqueue(job)
        self._admission.enqueued(job, outcome, consumer)


def _said(error: BaseException | None) -> str:
    """Say how an attempt ended that is not the last."""
    if error is None:
        return "returned what the retry policy rejects"
    if isinstance(error, LocatedError):  # all of it was said when it happened
        return f"failed ({type(error).__name__})"
    return f"failed ({describe_failure(error)})"
