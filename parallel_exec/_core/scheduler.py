"""Owns every state change of a task: queue ► back end ► retry ► future.

`admission.py` says how tasks come in, `completion.py` how they end; here is what is between.

    add ──► Ready ──► take ──► begin ──► claim ──► settle ──► end ──► future
              ▲         │                            │
              │         └── give_back (never began)  └─ Delay: parked in Timers, holds no worker
              └──────────────────────────────────────────────┘ due again, with its old place in the queue

Guarantees:
    1. A live attempt is settled by the one caller whose `claim` changes its phase to SETTLING.
    2. No user code runs while the lock is held: policies, hooks and callbacks are called between `claim` and the end.
    3. What has ended never runs again, and what never began is never charged an attempt.
    4. The lock is re-entrant, and no section leaves the state half changed at a point where a signal handler or a
       finalizer that cancels or shuts down could do harm. Nothing but a full queue is waited for while it is held.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from parallel_exec._core.admission import Admission
from parallel_exec._core.job import Phase, settle_unwatched
from parallel_exec._outcome import Failure, Outcome, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import acquire_yielding
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import apart
from parallel_exec.errors import TaskTimeoutError
from parallel_exec.events import Dispatcher, TaskRetrying, TaskStarted, TaskTimedOut, logger
from parallel_exec.retry import Delay, RetryPolicy

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._sync.timers import Timer
    from parallel_exec.backends.base import Backend, Slot, WorkerSlot


class Scheduler(Admission):
    """The state of one executor's tasks: the whole of it. Thread-safe; what has no note is guarded by `lock`."""

    def __init__(self, backend: Backend, limit: int, queue_size: int, events: Dispatcher) -> None:
        super().__init__(backend, limit, queue_size, events)
        self.runner = backend.start(self, limit)

    # ── to the back end and back: what these promise is said in backends/base.py ────────────────────────────────────

    def begin(self, future: AnyJob, slot: Slot, worker: str, start: float, *, over: bool = False) -> int:
        """Start an attempt."""
        number = 0
        with self.lock:
            override = future.override
            if override is None:
                number = future.begin(slot, worker, start)
                self.ledger.live.add((future, number))
            else:
                future.decide()
        if override is not None:
            self._finish(future, override)
            return 0
        return self._announce(future, None if over else slot, number)

    def begin_next(self, slot: WorkerSlot, worker: str, ended: AnyJob | None) -> tuple[AnyJob, int] | None:
        """Count what ended, take, and begin at once, all under one lock: for back ends that run what they take."""
        while True:
            number = 0
            acquire_yielding(self.lock)
            try:
                rest, consumers = self._account(ended) if ended is not None else ((), ())
                future, idle = self.ready.pop(slot)
                if future is not None:
                    number = future.begin(slot, worker, time.monotonic())
                    self.ledger.live.add((future, number))
                    if self._queue_size:
                        self._room.notify()
            finally:
                self.lock.release()
            if rest or consumers:
                self._release(rest, consumers)
            if future is None:
                return None
            if idle:
                self.ready.wake(idle)
            if self._announce(future, slot, number):
                return future, number
            ended = None

    def _announce(self, future: AnyJob, slot: Slot | None, number: int) -> int:
        """Do what belongs to the start of an attempt and must not be done under the lock; 0 if it ended the task."""
        settings = future.settings
        if settings.policy.asks_on_success and not self._call_before(future, number):
            return 0
        if settings.timeout is not None and slot is not None:
            slot.timer.arm(future.started_at + settings.timeout)
        if self.events.active:
            self.events.emit(TaskStarted, future.id, number, future.worker)
        return number

    def _call_before(self, future: AnyJob, number: int) -> bool:
        """Call the policy's `before`; what it raises ends the task, as it does in tenacity."""
        policy = future.settings.policy
        try:
            if number == 1:
                future.judged_by(policy.begin(future.fn, future.args, future.kwargs or {}))
            failure = apart(_call_before, policy, future.retry_state, number)
        except BaseException as error:
            failure = Failure(error)
        if failure is not None and self.claim(future, number):
            self._end(future, failure)
        return failure is None

    def claim(self, future: AnyJob, number: int) -> bool:
        """Return whether the caller may settle this attempt.

        Without the lock: every attempt is claimed once, and a thread that is suspended while it holds a contended lock
        makes all the others queue behind it, for the interpreter's switch interval.
        """
        try:
            self.ledger.live.remove((future, number))
        except KeyError:
            return False
        future.claimed()
        if self.ledger.waiting:
            self.ledger.waiting.pop(future, None)
        return True

    def report(self, future: AnyJob, number: int, outcome: Outcome, end: float) -> bool:
        """Claim, then settle."""
        if not self.claim(future, number):
            return False
        self.settle(future, outcome, end)
        return True

    def report_ended(self, future: AnyJob, number: int, outcome: Outcome, end: float) -> AnyJob | None:
        """Do as `report`, but leave the counting to `begin_next`, if the task has ended: returns what to give it."""
        if not self.claim(future, number):
            return None
        if type(outcome) is Success and not future.settings.policy.asks_on_success:
            future.decide(end)
            try:
                self._conclude(future, outcome)
            except BaseException:  # from a callback: the stdlib's futures let what is no Exception through
                logger.exception("a callback of task %r raised", future.id)
            return future
        self.settle(future, outcome, end)
        return None

    def report_ran(self, slot: Slot, worker: str, ran: list[tuple[AnyJob, float, Outcome, float]]) -> None:
        """Begin and report attempts of which only now anything is heard, in two turns of the lock for all of them."""
        ended, rest = [], []
        with self.lock:
            for attempt in ran:
                future, start, outcome, end = attempt
                if self._is_simple(future, outcome):
                    if future.phase == Phase.HANDED_OUT:
                        future.begin(slot, worker, start)
                    else:
                        self.ledger.live.discard((future, future.attempt_number))
                    future.decide(end)
                    ended.append((future, outcome))
                else:
                    rest.append(attempt)
        for future, outcome in settle_unwatched(ended):
            try:
                future.settle(outcome, False)
            except BaseException:  # from a callback: the stdlib's futures let what is no Exception through
                logger.exception("a callback of task %r raised", future.id)
        with self.lock:
            accounts = [self._account(future) for future, _ in ended]
        for others, consumers in accounts:
            self._release(others, consumers)
        for future, start, outcome, end in rest:
            try:
                fresh = future.phase == Phase.HANDED_OUT
                number = self.begin(future, slot, worker, start, over=True) if fresh else future.attempt_number
                if number:
                    self.report(future, number, outcome, end)
            except BaseException:  # as above
                logger.exception("a callback of task %r raised", future.id)

    def _is_simple(self, future: AnyJob, outcome: Outcome) -> bool:
        """Return whether an attempt that ran is the end of its task, and nobody has to be told of its start."""
        if type(outcome) is not Success or future.settings.policy.asks_on_success or self.events.active:
            return False
        if future.phase == Phase.LIVE:
            return (future, future.attempt_number) in self.ledger.live
        return future.phase == Phase.HANDED_OUT and future.override is None

    def account(self, ended: AnyJob) -> None:
        """Count what ended: for a worker that does not `begin_next` any more."""
        with self.lock:
            rest, consumers = self._account(ended)
        self._release(rest, consumers)

    def settle(self, future: AnyJob, outcome: Outcome, end: float) -> None:
        """Say how a claimed attempt ended, and what follows from it."""
        policy = future.settings.policy
        if type(outcome) is Success and not policy.asks_on_success:
            future.decide(end)
            self._finish(future, outcome)
            return
        error = outcome.error if type(outcome) is Failure else None
        future.end_attempt(error, end)
        if type(error) is TaskTimeoutError and error.task_id == future.id:
            with self.lock:
                self.ledger.timed_out += 1
            self.events.emit(TaskTimedOut, future.id, future.attempt_number)
        if future.override is not None and error is not None:
            self._end(future, future.override)
            return
        try:
            decision = policy.decide(future.retry_state, future.attempt_number, outcome)
        except BaseException as failed:
            decision = Failure(failed)
        if type(decision) is Delay:
            self._park(future, decision.seconds, error)
        else:
            self._end(future, decision)  # type: ignore[arg-type]

    def add_item(self, future: AnyJob) -> None:
        """Take in a future that comes from a part, at its place. Also after shutdown: the part was added before."""
        unfit = self._pack(future)
        with self.lock:
            self.ledger.unsettled.add(future)
            outcome_instead, idle = self._enqueue(future, unfit)
        self._arrive(future, outcome_instead, idle)

    def add_failed_item(self, future: AnyJob, error: BaseException, end: float) -> None:
        """Do the same with one whose first attempt has ended elsewhere, and which has its payload."""
        with self.lock:
            future.claimed()
            self.ledger.unsettled.add(future)
        self.settle(future, Failure(error), end)

    def add_split(self, tail: AnyJob) -> None:
        """Count a future in that was split off another. Called with the lock held."""
        self.ledger.unsettled.add(tail)

    def expire(self, slot: Slot, future: AnyJob | None) -> None:
        """Stop what outran its timeout; the timer may be early, or late for another attempt."""
        with self.lock:
            if future is None or future.phase != Phase.LIVE or future.slot is not slot:
                return
            timeout = future.settings.timeout
            number = future.attempt_number
            if timeout is None:
                return
            if time.monotonic() < future.started_at + timeout:
                slot.timer.arm(future.started_at + timeout)
                return
        self.runner.stop(future, number, TaskTimeoutError(future.id, timeout, number))

    # ── what follows an attempt ─────────────────────────────────────────────────────────────────────────────────────

    def _park(self, future: AnyJob, delay: float, error: BaseException | None) -> None:
        with self.lock:
            parked = (
                future.override is None and self._final_outcome is None
            )  # what is broken or cancelled retries nothing
            if parked:
                future.back_off(self.timers.timer(partial(self._due, future, future.attempt_number)))
                self.ledger.retried += 1
                self.ledger.backing_off.add(future)
        if not parked:
            self._end(future, future.override or self._final_outcome)  # type: ignore[arg-type]
            return
        if self.events.active:
            ran = future.ended_at - future.started_at
            self.events.emit(TaskRetrying, future.id, future.attempt_number, delay, error, ran, future.worker)
        timer = future.backoff_timer
        if timer is not None:  # else it was cancelled meanwhile
            timer.arm(time.monotonic() + delay)

    def next_due(self) -> float | None:
        """Return when the first backoff will be over (monotonic)."""
        with self.lock:
            return min((timer.deadline for _, timer in self._parked()), default=None)

    def skip_to(self, due: float) -> None:
        """Let backoffs that last until `due` (monotonic) be over now, and the others last so much less."""
        with self.lock:
            seconds = max(0.0, due - time.monotonic())
            parked = self._parked()
            over = [(future, future.attempt_number) for future, timer in parked if timer.deadline <= due]
            for _, timer in parked:
                if timer.deadline > due:
                    timer.arm(timer.deadline - seconds)
        for future, number in over:
            self._due(future, number)

    def _parked(self) -> list[tuple[AnyJob, Timer]]:
        """Return the futures in backoff, with their timers; not those that are just coming up. Called with the lock held."""
        timers = [(future, future.backoff_timer) for future in self.ledger.backing_off]
        return [(future, timer) for future, timer in timers if timer is not None and timer.deadline != NEVER]

    def _due(self, future: AnyJob, number: int) -> None:
        """End the backoff after attempt `number`, unless that was done already."""
        with self.lock:
            if future.phase != Phase.BACKING_OFF or future.attempt_number != number:
                return
            self.ledger.backing_off.discard(future)
            future.backoff_over()
            if self._prefetches:
                self.runner.preempt((-future.priority, future.sequence))
            idle = self.ready.push(future)
        if idle:
            self.ready.wake(idle)

    def reject(self, future: AnyJob, error: BaseException) -> None:
        """End a future that was taken and cannot be run."""
        with self.lock:
            if future.phase != Phase.HANDED_OUT:
                return
            future.claimed()
        self._end(future, Failure(error))

    def _end(self, future: AnyJob, outcome: Outcome) -> None:
        """End a claimed future."""
        future.decide()
        self._finish(future, outcome)


def _call_before(policy: RetryPolicy, state: Any, number: int) -> Failure | None:
    """Call a policy's `before`; returns what it raised."""
    try:
        policy.before(state, number)
    except BaseException as error:
        return Failure(error)
    return None
