"""What attempts hold of the executor's limits, from their end to when others may have it.

    settle ─► ended ──────────────────────────► ReadyQueue.give_back ─► who waits for it is shown, and a consumer woken
    an attempt goes on that was settled ─► keep ─► end_kept ─┘
    RetryAfter(limit=...) ─► the limit is held until then: before anything is given back

What a task holds that ends by its first success, or never began, is given back with the turn of the lock that counts it, or
puts it back in the queue (`Completion.finish`, `Scheduler.begin_next`, `report_ran`, `account`, `requeue`).

Guarantees:
    Each grant is given back once: whoever does it takes it off the job, or out of the kept ones, under the lock.
    A callback of a task finds given back what that held: it may wait for another that needs the same.
"""

from __future__ import annotations

from parallel_exec._dispatcher import logger
from parallel_exec._outcome import Success
from parallel_exec._sync.clock import time
from parallel_exec.errors import RetryAfter, TaskTimeoutError, limit_of, retry_after_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.limits.kind import Ending
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._outcome import Outcome


class Grants:
    """The grants of one executor. Thread-safe."""

    def __init__(self, monitor: Monitor) -> None:
        self._lock = monitor.lock
        self._ready = monitor.ready
        self._idle = monitor.idle
        self._unknown: set[str] = set()  # names of limits that errors wanted held, and that there are none of

    def keep(self, job: AnyJob, error: BaseException) -> Grant | None:
        """Do as `SchedulerPort.keep_grant`."""
        with self._lock:
            grant, limits = job.grant, self._ready.limits
            if grant is not None and limits is not None:
                grant.keep(job.started_at, "overloaded" if type(error) is TaskTimeoutError else "failed")
                limits.kept.add(grant)  # first: whatever a signal handler raises, it is known to be held
                job.surrender()
        return grant

    def end_kept(self, grant: Grant) -> None:
        """Do as `SchedulerPort.end_kept`."""
        seconds = time.monotonic() - grant.since
        with self._lock:
            if self._ready.limits is not None:
                self._ready.limits.kept.discard(grant)
                self._ready.give_back(grant, grant.ending, seconds)
        self._idle.wake_one()

    def give_back(self, job: AnyJob, outcome: Outcome) -> None:
        """Give back what a job holds that is about to settle."""
        with self._lock:
            self._ready.end(job, "succeeded" if type(outcome) is Success else "failed")
        self._idle.wake_one()

    def attempt_ended(self, job: AnyJob, error: BaseException | None) -> None:
        """Give back what a claimed attempt held, which has ended; and hold the limit that its error says is to be held."""
        seconds = None if error is None else retry_after_of(error)
        if job.grant is None and seconds is None:
            return
        name = None if error is None or seconds is None else limit_of(error)
        ending: Ending = "succeeded" if error is None else "failed"
        if seconds is not None or (type(error) is TaskTimeoutError and error.task_id == job.id):
            ending = "overloaded"
        is_held = False
        with self._lock:
            limits = self._ready.limits
            if seconds is not None and name is not None and limits is not None and name in limits.specs():
                self._ready.hold(name, job.settings.needs, time.monotonic() + seconds)
                is_held = True
            if job.grant is not None:
                job.grant.blame(name)
            self._ready.end(job, ending)
        if name is not None and not is_held and isinstance(error, RetryAfter):
            self._warn(job, name)
        self._idle.wake_one()

    def _warn(self, job: AnyJob, name: str) -> None:
        """Say that a task wanted a limit held that there is none of, once for each name."""
        if name not in self._unknown:
            self._unknown.add(name)
            limits = self._ready.limits
            known = [] if limits is None else list(limits.specs())
            from parallel_exec._hints import did_you_mean  # only a mistake needs it

            hint = did_you_mean(name, known) or f"its limits are {', '.join(map(repr, known)) or 'none'}"
            logger.warning(
                "task %r raised RetryAfter(limit=%r), and this executor has no such limit: nothing is held, and only the task "
                "itself waits; %s",
                job.id,
                name,
                hint,
            )
