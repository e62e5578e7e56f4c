"""What the thread that drives an executor had in hand when an exception of a signal handler tore its work apart.

    take ──► begin ──► (the call) ──► claim ──► settle         any of these, in the main thread of a back end without workers
      └────────┴───── recover ◄─────────┴─────────┘

Guarantees:
    What was taken and has not begun goes back to its place in the queue, and so does what was to come back from its backoff.
    An attempt that has begun is settled, once: by the call's outcome, or as failed with the exception, if that came before
    the call has returned.
"""

from __future__ import annotations

from parallel_exec._core.phase import Phase
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import release_leaked
from parallel_exec._sync.timers import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._core.completion import Completion
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._outcome import Outcome
    from parallel_exec.backends.base import SchedulerPort


class Recovery:
    """Puts one executor in order after its driver was interrupted. For the driver."""

    def __init__(self, monitor: Monitor, completion: Completion) -> None:
        self._monitor = monitor
        self._completion = completion
        self._ready = monitor.ready
        self._registry = monitor.registry
        self._lock = monitor.lock

    def recover(
        self, port: SchedulerPort, job: AnyJob | None, outcome: Outcome, won: list[None], was_held: bool
    ) -> None:
        """Do as `SchedulerPort.recover`."""
        if not was_held:
            release_leaked(self._lock)
        with self._lock:
            self._ready.repair(self._monitor.grants())
            overridden = [] if won else port.requeue(self._lost())  # who claims is no driver, or has nothing else
        self._completion.finish_overridden(overridden)
        if job is not None and job in self._registry.unsettled:
            self._settle(port, job, outcome, won, was_held)

    def _lost(self) -> list[AnyJob]:
        """Return what was taken and has not begun, or whose backoff was just over. Called with the lock held."""
        backing_off = self._registry.backing_off
        unsettled = list(self._registry.unsettled)  # in one step: a signal handler may add a job
        due = [
            job
            for job in unsettled
            if job.phase == Phase.BACKING_OFF and (job not in backing_off or job.backoff_timer is None)
        ]
        backing_off.difference_update(due)
        taken = [job for job in unsettled if job.phase in (Phase.QUEUED, Phase.HANDED_OUT)]
        if taken:
            self._ready.holds(taken[0])  # which counts calls anew
            queued = set(self._ready.jobs())
            taken = [job for job in taken if job.phase == Phase.HANDED_OUT or job not in queued]
        return [*taken, *due]

    def _settle(self, port: SchedulerPort, job: AnyJob, outcome: Outcome, won: list[None], was_held: bool) -> None:
        """Settle an attempt that has begun, or was about to, unless another thread does."""
        live = (job, job.attempt_number)
        with self._lock:
            if job.phase == Phase.LIVE and not won:
                self._registry.live.add(live)
        if not won:
            if job.phase == Phase.DONE and job.slot is None:  # it was to end instead of beginning
                self._completion.repair(job, job.override or outcome, was_held=was_held)
            else:
                port.report(job, job.attempt_number, outcome, time.monotonic())
            return
        timer = job.backoff_timer
        if job.phase == Phase.BACKING_OFF and timer is not None:
            with self._lock:
                self._registry.backing_off.add(job)
            if timer.deadline == NEVER:
                timer.arm(time.monotonic())
        elif job.phase in (Phase.LIVE, Phase.SETTLING, Phase.DONE):
            self._completion.repair(job, outcome, was_held=was_held)
