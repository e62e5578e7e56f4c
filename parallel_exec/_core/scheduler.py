"""How attempts begin, and what follows from their ends: the port that back ends see, and the retries.

`_core/__init__.py` draws the way of a task. One that backs off holds no worker, and keeps its place in the queue.

Guarantees:
    1. A live attempt is settled by the one caller whose `claim` changes its phase to SETTLING.
    2. No user code runs while the lock is held: policies, hooks and callbacks are called between `claim` and the end.
    3. What has ended never runs again, and what never began is never charged an attempt.
    4. The lock is re-entrant, and no section leaves the state half changed at a point where a signal handler or a
       finalizer that cancels or shuts down could do harm. Nothing but a full queue is waited for while it is held.
"""

from __future__ import annotations

from parallel_exec._core.admission import Admission
from parallel_exec._core.backoff import Backoff
from parallel_exec._core.completion import Completion, error_of
from parallel_exec._core.grants import Grants
from parallel_exec._core.job import settle_unwatched
from parallel_exec._core.monitor import Monitor
from parallel_exec._core.phase import Phase
from parallel_exec._core.recovery import Recovery
from parallel_exec._dispatcher import Dispatcher, logger
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.locks import acquire_yielding
from parallel_exec._sync.weak import apart
from parallel_exec.errors import TaskTimeoutError
from parallel_exec.retry import Delay, RetryPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

    from parallel_exec._core.job import AnyJob
    from parallel_exec._outcome import Outcome
    from parallel_exec.backends.base import Backend, Consumer, Slot, WorkerSlot

_RAISED = "a callback of task %r raised"


class Scheduler:
    """One executor's scheduler, and the port of its runner. Thread-safe.

    Attributes:
        monitor: the state.
        completion: how jobs end.
        admission: how they come in.
        callers: what the calling thread may wait for.
        lock: the monitor's.
        timers: the executor's clock.
        events: tells the hook.
        seed: of which, with their ids, the tasks' seeds are made.
    """

    def __init__(self, backend: Backend, limit: int, queue_size: int, events: Dispatcher, seed: int) -> None:
        self.monitor = monitor = Monitor(
            1 if backend.runs_in_caller else limit, in_one_thread=backend.reports_in_one_thread
        )
        self.completion = Completion(monitor, events, runs_in_caller=backend.runs_in_caller)
        self.admission = Admission(monitor, self.completion, backend, queue_size, events)
        self._backoff = Backoff(monitor, self.admission, events)
        self._grants = Grants(monitor)
        self._recovery = Recovery(monitor, self.completion)
        self.callers = monitor.callers
        self.lock = monitor.lock
        self.timers = monitor.timers
        self.events = events
        self.seed = seed
        self._backend = backend
        self._bounded = queue_size > 0
        self._gate = monitor.gate
        self._ready = monitor.ready
        self._idle = monitor.idle
        self._registry = monitor.registry
        # Methods of the port, and those that jobs call, of the objects below:
        self.park, self.unpark, self.decline = monitor.idle.park, monitor.idle.unpark, monitor.idle.decline
        self.fail_all, self.finish_overridden = self.completion.fail_all, self.completion.finish_overridden
        self.cancel, self.abort = self.completion.cancel, self.completion.abort
        self.enter_wait, self.leave_wait = monitor.callers.enter_wait, monitor.callers.leave_wait
        self.pending, self.skip_backoff = self._backoff.pending, self._backoff.skip
        self.keep_grant, self.end_kept, self.give_back = (
            self._grants.keep,
            self._grants.end_kept,
            self._grants.give_back,
        )
        self.check_limit = backend.check_limit
        self.next_sequence = monitor.sequence.__next__
        self._start(limit)

    def _start(self, limit: int) -> None:
        runner = self._backend.start(self, limit)
        self.completion.use(runner)
        if self._backend.prefetches:
            self._ready.preempt_by(runner.preempt)

    def after_fork(self) -> bool:
        """Make the copy in a forked child say so, instead of hanging: none of the threads came along.

        Returns:
            Whether it is as good as new instead: nothing had been added to it, or all of it had ended.
        """
        unused = self.monitor.is_unused()
        self.monitor.after_fork()
        self.completion.runner.after_fork()
        if unused and self._backend.works_after_fork():
            self._start(self._registry.limit)
            return True
        self._gate.fork()
        return False

    # ── the port: what these promise is said in backends/base.py ────────────────────────────────────────────────────

    @property
    def drained(self) -> bool:
        return self._gate.drained

    def take(self, consumer: Consumer) -> AnyJob | None:
        with self.lock:
            job = self._ready.pop() if self._gate.may_start else None
            if job is not None:
                job.handed_out()
                if self._bounded:
                    self.monitor.room.notify()
            idle = self._idle.came(consumer, job)
        if idle is not None:
            self._idle.wake(idle)
        if self.events.active:
            self.completion.tell_waits()
        return job

    def take_many(self, consumer: Consumer, calls: int) -> list[AnyJob]:
        taken: list[AnyJob] = []
        with self.lock:
            while calls > 0:
                job = None
                if self._gate.may_start:
                    job = self._ready.pop_of(taken[0].priority) if taken else self._ready.pop()
                if job is None and taken and self.first_priority() is not None:
                    break  # what is sent ahead is of one priority, or the lower would be ahead of others' higher
                if job is None or not taken:
                    idle = self._idle.came(consumer, job)
                    assert idle is None, "who takes many is the only consumer"
                if job is None:
                    break
                job.handed_out()
                taken.append(job)
                calls -= job.weight
                if job.settings.needs is not None:
                    break  # it goes alone
            if self._bounded:
                self.monitor.room.notify_all()
        if self.events.active:
            self.completion.tell_waits()
        return taken

    def backlog(self) -> int:
        return self._ready.startable() if self._gate.may_start else 0

    def waiting(self) -> int:
        return self._ready.calls() if self._gate.may_start else 0

    def first_priority(self) -> int | None:
        first = self._ready.peek() if self._gate.may_start else None
        return None if first is None else first.priority

    def first_is_limited(self) -> bool:
        if self._ready.limits is None or not self._gate.may_start:
            return False
        first = self._ready.peek()
        return first is not None and first.settings.needs is not None

    def requeue(self, jobs: Sequence[AnyJob]) -> list[AnyJob]:
        overridden = []
        with self.lock:
            for job in jobs:
                if job.grant is not None and job.phase != Phase.DONE:
                    error = self._ready.refusal(job)
                    if error is not None:
                        job.override_with(Failure(error))
                if job.override is not None or self._gate.final_outcome is not None:
                    job.decide()
                    overridden.append(job)
                elif job.phase != Phase.DONE:
                    job.queued()
                    if job.grant is not None:
                        self._ready.end(job)
                    self._ready.push(job)
        return overridden

    def begin(
        self, job: AnyJob, slot: Slot, worker: str, start: float, *, over: bool = False, begun: bool = False
    ) -> int:
        number = 0
        with self.lock:
            override = job.override
            if override is None or begun:
                number = job.begin(slot, worker, start)
                self._registry.live.add((job, number))
            else:
                job.decide()
        if override is not None and not begun:
            self.completion.finish(job, override)
            return 0
        number = self._announce(job, number)
        if number and override is not None and not over:
            self.report(job, number, Failure(error_of(override)), time.monotonic())
            return 0
        if number and not over and job.settings.timeout is not None:
            slot.timer.arm(start + job.settings.timeout)
        return number

    def _acquire_to_count(self, ended: AnyJob | None) -> None:
        """Take the lock; if somebody has it, wake first who waits for what ended, as they may be the same."""
        if not self.lock.acquire(False):
            if ended is not None:
                ended.wake_parked()
            acquire_yielding(self.lock)

    def begin_next(  # noqa: C901  # a hot path, all of it
        self, slot: WorkerSlot, worker: str, ended: list[AnyJob | None]
    ) -> tuple[AnyJob, int] | None:
        """Count what ended, take, and begin at once, all under one lock: for back ends that run what they take.

        Who waits for what ended is woken after that: a thread that wakes up wants the interpreter and then the lock, too. But it
        may have the lock, if a finalizer or a signal handler waits that has interrupted it there.
        """
        while True:
            number = 0
            last = ended.pop() if ended else None
            self._acquire_to_count(last)
            try:
                job = None
                if last is not None and last.grant is not None:
                    job = self._ready.exchange(last, self._gate.may_start)
                rest = self._registry.account(last) if last is not None else ()
                if job is None and self._ready.heap and self._gate.may_start:
                    job = self._ready.pop()
                idle = self._idle.came(slot, job)
                if job is not None:
                    number = job.begin(slot, worker, time.monotonic())
                    self._registry.live.add((job, number))
                    if self._bounded:
                        self.monitor.room.notify()
            finally:
                self.lock.release()
            if last is not None:
                last.wake_parked()
                if rest or self._gate.closed:
                    self.completion.follow_up(rest)
                last = None  # nothing keeps it while a thread is started below
            if job is None:
                return None
            if idle is not None:
                self._idle.wake(idle)
            settings = job.settings
            if not (settings.policy.asks_on_success or self.events.active) or self._announce(job, number):
                if settings.timeout is not None:
                    slot.timer.arm(job.started_at + settings.timeout)
                return job, number

    def _announce(self, job: AnyJob, number: int) -> int:
        """Do what belongs to the start of an attempt and must not be done under the lock; 0 if it ended the task."""
        if job.settings.policy.asks_on_success and not self._call_before(job, number):
            return 0
        if self.events.active:
            self.completion.tell_waits()
            grant = job.grant
            if grant is not None and grant.waited is not None:
                self.events.emit_amid(job, "TaskGranted", tuple(grant.facts()), grant.waited)
            self.events.emit_amid(job, "TaskStarted", job.worker)
        return number

    def _call_before(self, job: AnyJob, number: int) -> bool:
        """Call the policy's `before`; what it raises ends the task, as it does in tenacity."""
        policy = job.settings.policy
        try:
            if number == 1:
                job.judged_by(policy.begin(job.fn, job.args, job.kwargs or {}))
            failure = apart(_call_before, policy, job.retry_state, number)
        except BaseException as error:
            failure = Failure(error)
        if failure is not None and self.claim(job, number):
            self._end(job, failure)
        return failure is None

    def claim(self, job: AnyJob, number: int, won: list[None] | None = None) -> bool:
        """Return whether the caller may settle this attempt; `won` as in `SchedulerPort.claim`.

        Without the lock: every attempt is claimed once, and a thread that is suspended while it holds a contended lock
        makes all the others queue behind it, for the interpreter's switch interval.
        """
        try:
            if won is None:
                self._registry.live.remove((job, number))
            else:
                # One step: a signal is heard before, or after.
                won.extend(map(self._registry.live.remove, ((job, number),)))
        except KeyError:
            return False
        job.claimed()
        if self.callers.waiting:
            self.callers.waiting.pop(job, None)
        return True

    def report(
        self,
        job: AnyJob,
        number: int,
        outcome: Outcome,
        end: float,
        cpu_time: float | None = None,
        won: list[None] | None = None,
    ) -> bool:
        if not self.claim(job, number, won):
            return False
        if cpu_time is not None:
            job.has_used(cpu_time=cpu_time)
        self.settle(job, outcome, end)
        return True

    def recover(self, job: AnyJob | None, outcome: Outcome, won: list[None], *, was_held: bool) -> None:
        self._recovery.recover(self, job, outcome, won, was_held)

    def report_ended(
        self, job: AnyJob, number: int, outcome: Outcome, end: float, cpu_time: float | None = None
    ) -> AnyJob | None:
        """Do as `report`, but leave the counting to `begin_next`, if the task has ended: returns what to give it."""
        if type(outcome) is not Success or job.settings.policy.asks_on_success:
            guarded(self.report, job, number, outcome, end, cpu_time, said=_RAISED, owner=job)
            return None
        try:
            self._registry.live.remove((job, number))  # as `claim` does; who waited in it has returned
        except KeyError:
            return None
        if cpu_time is not None:
            job.has_used(cpu_time=cpu_time)
        try:
            job.conclude(outcome, False, end)
        except BaseException:
            logger.exception(_RAISED, job.id)
        if self.events.active:
            job.wake_parked()
            self.completion.tell_end(job, outcome)
        return job

    def report_ran(self, slot: Slot, worker: str, ran: list[tuple[AnyJob, float, Outcome, float]]) -> None:
        """Begin and report attempts of which only now anything is heard, in two turns of the lock for all of them."""
        ended, rest = [], []
        with self.lock:
            for attempt in ran:
                job, start, outcome, end = attempt
                if self._is_simple(job, outcome):
                    if job.phase == Phase.HANDED_OUT:
                        job.begin(slot, worker, start)
                    else:
                        self._registry.live.discard((job, job.attempt_number))
                    job.decide(end)
                    ended.append((job, outcome))
                else:
                    rest.append(attempt)
        for job, outcome in settle_unwatched(ended):
            guarded(job.settle, outcome, False, said=_RAISED, owner=job)
        others: list[AnyJob] = []
        held = any(job.grant is not None for job, _ in ended)
        with self.lock:
            for job, _ in ended:
                others += self._count(job)
        for job, _ in ended:
            job.wake_parked()
        if held:
            self._idle.wake_one()
        if others or self._gate.closed:
            self.completion.follow_up(others)
        for job, start, outcome, end in rest:
            guarded(self._report_ran, slot, worker, job, start, outcome, end, said=_RAISED, owner=job)

    def _report_ran(self, slot: Slot, worker: str, job: AnyJob, start: float, outcome: Outcome, end: float) -> None:
        fresh = job.phase == Phase.HANDED_OUT
        number = self.begin(job, slot, worker, start, over=True, begun=True) if fresh else job.attempt_number
        if number:
            self.report(job, number, outcome, end)

    def _is_simple(self, job: AnyJob, outcome: Outcome) -> bool:
        """Return whether an attempt that ran is the end of its task, and nobody has to be told of its start."""
        if type(outcome) is not Success or job.settings.policy.asks_on_success or self.events.active:
            return False
        if job.phase == Phase.LIVE:
            return (job, job.attempt_number) in self._registry.live
        return job.phase == Phase.HANDED_OUT and job.override is None

    def _count(self, job: AnyJob) -> Sequence[AnyJob]:
        """Count a settled job, and take back what it holds, as `Registry.account`. Called with the lock held."""
        if job.grant is not None:
            self._ready.end(job)
        return self._registry.account(job)

    def account(self, ended: AnyJob) -> None:
        ended.wake_parked()  # first, as who waits may have the lock: see `begin_next`
        with self.lock:
            held = ended.grant is not None
            rest = self._count(ended)
        self.completion.follow_up(rest)
        if held:
            self._idle.wake_one()

    def settle(self, job: AnyJob, outcome: Outcome, end: float) -> None:
        """Decide what follows from a claimed attempt: the end of its task, or a backoff."""
        policy = job.settings.policy
        if type(outcome) is Success and not policy.asks_on_success:
            job.decide(end)
            self.completion.finish(job, outcome)
            return
        error = outcome.error if type(outcome) is Failure else None
        job.end_attempt(error, end)
        if job.grant is not None or error is not None:
            self._grants.attempt_ended(job, error)
        if type(error) is TaskTimeoutError and error.task_id == job.id:
            with self.lock:
                self._registry.count_timeout()
            self.events.emit_amid(job, "TaskTimedOut")
        if job.override is not None and error is not None:
            self._end(job, job.override)
            return
        try:
            decision = policy.decide(job.retry_state, job.attempt_number, outcome)
        except BaseException as failed:
            decision = Failure(failed)
        if type(decision) is Delay:
            instead = self._backoff.start(job, decision.seconds, error)
            if instead is not None:
                self._end(job, instead)
        else:
            self._end(job, decision)  # type: ignore[arg-type]

    def add_failed_item(self, job: AnyJob, error: BaseException, end: float) -> None:
        """Settle an item of a chunk as a job of its own: its first attempt has failed in a worker, with that error."""
        with self.lock:
            job.claimed()
            self._registry.unsettled.add(job)
        self.settle(job, Failure(error), end)

    def add_split(self, tail: AnyJob) -> None:
        """Count a chunk in that was split off another. Called with the lock held."""
        self._registry.unsettled.add(tail)

    def expire(self, slot: Slot, job: AnyJob | None) -> None:
        """Stop what outran its timeout; the timer may be early, or late for another attempt."""
        with self.lock:
            if job is None or job.phase != Phase.LIVE or job.slot is not slot:
                return
            timeout = job.settings.timeout
            number = job.attempt_number
            if timeout is None:
                return
            if time.monotonic() < job.started_at + timeout:
                slot.timer.arm(job.started_at + timeout)
                return
        self.completion.runner.stop(job, number, TaskTimeoutError(job.id, timeout, number))

    def finish_at_exit(self) -> None:
        self.completion.shutdown(cancel=False, at_exit=True)
        self.completion.join()

    # ── what follows an attempt ─────────────────────────────────────────────────────────────────────────────────────

    def reject(self, job: AnyJob, error: BaseException) -> None:
        with self.lock:
            if job.phase != Phase.HANDED_OUT:
                return
            job.claimed()
        self._end(job, Failure(error))

    def _end(self, job: AnyJob, outcome: Outcome) -> None:
        """End a claimed job."""
        job.decide()
        self.completion.finish(job, outcome)


def _call_before(policy: RetryPolicy, state: Any, number: int) -> Failure | None:
    """Call a policy's `before`; returns what it raised."""
    try:
        policy.before(state, number)
    except BaseException as error:
        return Failure(error)
    return None
