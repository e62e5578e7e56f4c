"""How tasks end, the executor among them: the half of the scheduler that is not about attempts.

    an attempt's last outcome ──┐
    cancel, abort, deadline ────┼──► _finish ──► future, events, run ──► the last one, after shutdown: drained
    shutdown, break_down ───────┘

Guarantees:
    Every future added ends exactly once: one that waits is ended by whoever changes its phase to DONE under the lock.
    One that is in nobody's hands for a moment gets a verdict, and whoever puts it down next carries it out.
    Callbacks and hooks are called while the lock is not held.
    Where a signal handler raises, Ctrl-C for one, what was begun is brought to its end before the exception goes on.
    Once closed and empty it is drained, whatever callbacks raise; then all consumers are let go, and the clock.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Callable, Iterable, Sequence

from parallel_exec._core.job import PLACES, Job, Phase
from parallel_exec._core.ready_queue import ReadyQueue
from parallel_exec._core.registry import IN_CALLBACK, Registry
from parallel_exec._current import current
from parallel_exec._outcome import Failure, Outcome
from parallel_exec._sync.lazy_condition import settling_lock
from parallel_exec._sync.locks import is_mine, release_leaked, renew_after_fork
from parallel_exec._sync.parking import TICK
from parallel_exec._sync.threads import is_coming_up
from parallel_exec._sync.timers import Timers
from parallel_exec.errors import ParallelExecError
from parallel_exec.events import Dispatcher, ExecutorStats, TaskCancelled, TaskFinished

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import Backend, Consumer, Runner

FORKED = "this executor was made before the process forked: make a new one in the child"
CANCELLED = Failure(CancelledError())  # the verdict that makes a future end as cancelled; known by identity


class Completion:
    """The state of one executor's tasks, and their ends. Thread-safe; what has no note is guarded by `lock`.

    Attributes:
        lock: re-entrant, as signal handlers and finalizers may cancel and shut down.
        forked: whether this is the copy in a forked child.
    """

    runner: Runner

    def __init__(self, backend: Backend, limit: int, queue_size: int, events: Dispatcher) -> None:
        self.lock = threading.RLock()
        self.events = events  # written once, as the next four
        self.backend = backend
        self.timers = Timers()
        self.ready = ReadyQueue(self.lock)
        self.ledger = Registry(1 if backend.runs_in_caller else limit)
        self.forked = False
        # In one step, as a signal handler may add a task at any moment; and wide, as the items of a `map` have a place each.
        self._sequence = itertools.count(1 << PLACES, 1 << PLACES)
        self._queue_size = queue_size  # written once
        self._room = threading.Condition(self.lock)
        self._over = threading.Condition(self.lock)  # for those who wait until all is drained
        self._closed = False
        self._at_exit = False  # whether it was the interpreter's end that closed it
        self._drained = False
        self._broken: ParallelExecError | None = None
        self._final_outcome: Failure | None = None  # what becomes of tasks that are added at the last moment

    def next_sequence(self) -> int:
        """Return the next place in the order in which tasks are added."""
        return next(self._sequence)

    def _finish(self, future: AnyJob, outcome: Outcome) -> None:
        """End a task that is DONE, and see whether it was the last."""
        before = current.ending
        try:
            current.ending = (*before, self)  # a callback that shuts down must not wait for this one task
            try:
                self._conclude(future, outcome)
            finally:  # also when a callback raises what is no Exception
                if not future.done():
                    future.settle(outcome, outcome is CANCELLED)
                with self.lock:
                    rest, consumers = self._account(future)
                self._release(rest, consumers)
        finally:
            current.ending = before

    def _conclude(self, future: AnyJob, outcome: Outcome) -> None:
        """Settle the future of a task that is DONE, and tell who listens; `_account` must follow."""
        future.settle(outcome, outcome is CANCELLED)
        if self.events.active:
            self._tell_end(future, outcome)

    def _tell_end(self, future: AnyJob, outcome: Outcome) -> None:
        if outcome is CANCELLED:
            self.events.emit(TaskCancelled, future.id, future.attempt_number)
            return
        error = outcome.error if type(outcome) is Failure else None
        duration = 0.0 if future.first_started_at is None else future.ended_at - future.first_started_at
        self.events.emit(TaskFinished, future.id, future.attempt_number, error is None, error, duration, future.worker)

    def _mend(self, future: AnyJob, outcome: Outcome) -> None:
        """Bring to its end what `_finish` was kept from, or from parts of it."""
        if not future.done():
            future.settle(outcome, outcome is CANCELLED)
        rest: Sequence[AnyJob] = ()
        consumers: tuple[Consumer, ...] = ()
        with self.lock:
            if future in self.ledger.unsettled:
                rest, consumers = self._account(future, again=True)
            else:
                consumers = self._drain_if_over()
        self._release(rest, consumers)
        self.ready.wake_one()

    def _account(self, future: AnyJob, *, again: bool = False) -> tuple[Sequence[AnyJob], tuple[Consumer, ...]]:
        """Count a settled future; returns what must be cancelled for it, and whom to let go. Called with the lock held."""
        rest: Sequence[AnyJob] = future.leave_batch(again=again) if future.batch is not None else ()
        self.ledger.ended(future)  # last: until then it can be seen that this is still to be done
        return rest, self._drain_if_over() if self._closed else ()

    def _release(self, rest: Sequence[AnyJob], consumers: tuple[Consumer, ...]) -> None:
        """Do what `_account` said, without the lock."""
        if rest:
            self.end_all(rest, lambda future: CANCELLED)
        if consumers:
            self.ready.wake(consumers)

    def _drain_if_over(self) -> tuple[Consumer, ...]:
        """Let go of everything once nothing is left and nothing can come; called with the lock held."""
        if not self._closed or self.ledger.unsettled or self._drained:
            return ()
        consumers = self.ready.end()  # first: who is nudged looks at it
        self._over.notify_all()
        self.timers.stop()
        self.runner.recheck()
        self._drained = True  # last: whatever a signal handler raises, the next caller does the rest
        return consumers

    def end(self, future: AnyJob, override: Failure, *, stop: bool) -> bool:
        """End a task with `override` if no attempt is running; with `stop`, end a running one as well.

        Returns:
            Whether it has ended, or will as soon as the attempt is stopped (unless the attempt finishes first).
        """
        if self.forked:
            return False  # it is the parent's business
        mine, was_held = False, is_mine(self.lock)  # by what this call has interrupted
        try:
            with self.lock:
                mine = future.phase in (Phase.QUEUED, Phase.BACKING_OFF)  # from here on it ends, whatever is raised
                waits = self._withdraw(future)
                phase = future.phase
                if waits:
                    mine = True
                    future.decide()
                elif phase == Phase.DONE or not stop:
                    return False
                else:
                    future.override_with(override)
            if waits:
                self._finish(future, override)
        except BaseException:
            self._release_leaked(was_held)
            if mine:
                self._withdraw_again(future)
                self._mend(future, override)
            raise
        if not waits:
            error = CancelledError() if override is CANCELLED else override.error
            self.runner.stop(future, future.attempt_number, error)
        elif self.backend.runs_in_caller:
            self.runner.recheck()
        return True

    def end_all(self, futures: Iterable[AnyJob], override: Callable[[AnyJob], Failure]) -> None:
        """End tasks; those first that wait, or a slot that becomes free would run one of them."""
        running = [future for future in futures if not self.end(future, override(future), stop=False)]
        for future in running:
            self.end(future, override(future), stop=True)

    def _withdraw(self, future: AnyJob) -> bool:
        """Take a task out of wherever it waits; called with the lock held. False if an attempt is running, or it is over."""
        phase = future.phase
        if phase == Phase.QUEUED:
            self.ready.discard(future)
            if self._queue_size:
                self._room.notify()
            return True
        if phase == Phase.BACKING_OFF:
            self.ledger.backing_off.discard(future)
            if future.backoff_timer is not None:
                future.backoff_timer.cancel()
            return True
        return phase == Phase.HANDED_OUT and self.runner.recall(future)

    def _release_leaked(self, was_held: bool) -> None:
        """Release the lock if an exception has left it taken that was not held when the call began; see `release_leaked`."""
        if not was_held:
            release_leaked(self.lock)

    def _withdraw_again(self, future: AnyJob) -> None:
        """Take a task out of wherever `_withdraw` may have left it."""
        with self.lock:
            if self.ready.holds(future):
                self.ready.discard(future)
            self.ledger.backing_off.discard(future)
            future.decide()

    def cancel(self, future: AnyJob) -> bool:
        """Cancel a task that waits; see `TaskFuture.cancel`."""
        return self.end(future, CANCELLED, stop=False) or future.cancelled()

    def abort(self, future: AnyJob) -> bool:
        """Cancel a task, and stop it if it runs; see `TaskFuture.abort`."""
        return self.end(future, CANCELLED, stop=True)

    def _own_attempt(self) -> AnyJob | None:
        """Return what of this executor the calling thread is running."""
        running = current.running
        return running if isinstance(running, Job) and running.owner is self else None

    def enter_wait(self, *futures: AnyJob) -> bool:
        """Note that the calling task, if it is one of ours, waits for any of these.

        Raises:
            ParallelExecError: it would wait for ever.
        """
        if self.forked:
            raise ParallelExecError(FORKED)
        self._check_started(futures)
        mine = self._own_attempt()
        if mine is None:
            if current.pool is self and (self.backend.reports_in_one_thread or self.ledger.limit == 1):
                raise ParallelExecError(IN_CALLBACK)
            return False
        try:
            with self.lock:
                self.ledger.start_waiting(mine, futures)
        finally:
            del self, mine, futures  # what is raised becomes the caller's error, and its traceback holds this frame
        return True

    def _check_started(self, futures: Sequence[AnyJob]) -> None:
        """Refuse to wait for what is only staged. Without the lock: who starts the pool at this very moment has not yet.

        Raises:
            ParallelExecError: nothing runs that would ever start one of them.
        """
        if not self.ready.open and all(future.phase == Phase.QUEUED for future in futures):
            raise ParallelExecError(
                f"task {futures[0].id!r} was added, and nothing runs that would start it: call execute_all() before you wait "
                "for it, or use submit() instead of add_task(), which starts at once"
            )

    def forgotten(self) -> str:
        """Say which tasks nobody has started, and what to call; "" if there are none, or once the pool was shut down."""
        with self.lock:
            waiting = [] if self.ready.open or self._closed or self.forked else self.ready.heap.items()
        if not waiting:
            return ""
        first = min(waiting, key=lambda future: future.sequence)
        count = "1 task was" if len(waiting) == 1 else f"{len(waiting)} tasks were"
        return (
            f"{count} added and never run, {first.id!r} first, and so cancelled: call execute_all() in the with block, or "
            "submit() instead of add_task()"
        )

    def leave_wait(self) -> None:
        """Undo `enter_wait`."""
        mine = self._own_attempt()
        with self.lock:
            if mine is not None:
                self.ledger.waiting.pop(mine, None)

    def fail_all(self, error: ParallelExecError) -> None:
        """Nothing can ever run again: end all that waits with `error`, and refuse what is added."""
        with self.lock:
            self._broken = self._broken or error
            self._final_outcome = Failure(self._broken)
        self.end_waiting(Failure(error))

    def end_waiting(self, override: Failure) -> None:
        """End all tasks that no attempt is running of."""
        with self.lock:
            futures = self.ready.heap.items() + list(self.ledger.backing_off) + self.runner.handed_out()
        for future in futures:
            self.end(future, override, stop=False)

    def shutdown(self, *, cancel: bool, at_exit: bool = False) -> None:
        """Take no more tasks; with `cancel`, or if nothing was ever started, cancel those that wait. Does not wait.

        `at_exit`: because the interpreter ends.
        """
        if self.forked:
            return
        with self.lock:
            self._at_exit = self._at_exit or (at_exit and not self._closed)
            self._closed = True
            staged = not self.ready.open
            if cancel or staged:
                self._final_outcome = self._final_outcome or CANCELLED
            self.ready.paused = False
            self._room.notify_all()
        if cancel or staged:
            self.end_waiting(CANCELLED)
        with self.lock:
            consumers = self._drain_if_over()
        if consumers:
            self.ready.wake(consumers)
        self.ready.wake_one()

    def pending(self) -> bool:
        """Return whether anything is ready to start, or will be after its backoff."""
        with self.lock:
            return bool(self.ready.open and not self.ready.paused and (len(self.ready.heap) or self.ledger.backing_off))

    def in_hand(self) -> list[AnyJob]:
        """Return the futures that a back end has: with a running attempt, or about to have one."""
        with self.lock:
            return [future for future, _ in self.ledger.live] + self.runner.handed_out()

    def is_called_from_within(self) -> bool:
        """Return whether the calling thread works for this pool just now: in a task, a callback, a hook."""
        if current.pool is self or self in current.ending:
            return True
        return self.timers.is_clock() or self._own_attempt() is not None

    def must_not_block(self) -> bool:
        """Return whether the calling thread works for this pool, or has interrupted what holds its lock or is to wake it.

        Such a caller must not wait for the pool: the pool may be waiting for it.
        """
        if is_coming_up() or self.is_called_from_within() or self.ready.is_waking():
            return True  # (first of all if it is coming up: it must not be asked for its `current_thread` yet)
        return is_mine(self.lock) or is_mine(settling_lock)

    def join(self) -> None:
        """Wait until the workers have ended, after `shutdown`; returns at once where waiting could last for ever."""
        if self.forked or self.must_not_block():
            return
        if self.backend.runs_in_caller:
            self.runner.drive()
        else:
            with self._over:
                while not self.ready.ended:  # there may be no worker yet: another thread is about to wake the back end
                    self._over.wait(TICK)
        self.runner.join()
        self.timers.join()

    def after_fork(self) -> bool:
        """Make the copy in a forked child say so, instead of hanging: none of the threads came along.

        Returns:
            Whether it is as good as new instead: nothing had been added to it.
        """
        unused = self.lock.acquire(blocking=False) and not self.ready.open and not self.ledger.unsettled
        renew_after_fork(self.lock)
        if unused and self.backend.works_after_fork():
            self.ready.after_fork(self.lock)
            port: Any = self  # the scheduler
            self.runner = self.backend.start(port, self.ledger.limit)
            return True
        self.forked = True
        self.lock = threading.RLock()
        self._room = threading.Condition(self.lock)
        self._over = threading.Condition(self.lock)
        self.ready.after_fork(self.lock)
        self.runner.after_fork()
        return False

    def stats(self) -> ExecutorStats:
        """Return a snapshot of the counts."""
        with self.lock:
            return self.ledger.stats(self.ready.calls, self.runner.workers(), self.runner.abandoned())
