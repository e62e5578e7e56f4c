"""How tasks come in, and how back ends take them: the gate, the room, and who is refused.

    add_task, submit ──► pack (pickled, if it must travel) ──► reserve ──► enqueue ──► Ready, and wake somebody

Guarantees:
    What `add` has reserved ends, whatever happens between reserving and enqueueing: a verdict or sentence that falls in
    between is carried out on arrival.
    `add` waits only for room in a full queue, and only if somebody else than the calling thread can make it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_exec._core.completion import CANCELLED, FORKED, Completion
from parallel_exec._core.job import Phase
from parallel_exec._current import current
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import is_mine
from parallel_exec.errors import ParallelExecError, QueueFullError, copy_of
from parallel_exec.events import Dispatcher, TaskQueued

if TYPE_CHECKING:
    from parallel_exec._core.batch import Batches
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import Backend, Consumer
    from parallel_exec.config import Settings


class Admission(Completion):
    """The way in. Thread-safe; what has no note is guarded by `lock`."""

    def __init__(self, backend: Backend, limit: int, queue_size: int, events: Dispatcher) -> None:
        super().__init__(backend, limit, queue_size, events)
        self._reserved: set[AnyJob] = set()  # those that are being added, if there is only so much room
        self._kept_open = False  # `submit` has opened the gate for good
        self._prefetches = backend.prefetches  # written once, as the next two
        self._runs_in_caller = backend.runs_in_caller
        self._pickles_calls = backend.pickles_calls

    def add(self, future: AnyJob, runs: Batches | None, *, start: bool) -> None:
        """Put a future in the queue; with `start`, open the gate. Blocks only while the queue is full and running.

        Raises:
            RuntimeError: after shutdown.
            QueueFullError: the queue is full, and nothing is running that would make room.
            ParallelExecError: workers cannot start, or the process has forked.
        """
        unfit = outcome_instead = None
        was_held = is_mine(self.lock)  # by what this call has interrupted, as a handler's
        if self._pickles_calls:
            self._check_usable()
            unfit = self._pack(future)
        try:
            if self.events.active:
                with self.lock:
                    self._reserve(future, runs, start)
                self.events.emit(TaskQueued, future.id, 0)  # before anybody can take it
                with self.lock:
                    outcome_instead, idle = self._enqueue(future, unfit)
            else:
                with self.lock:
                    self._reserve(future, runs, start)
                    outcome_instead, idle = self._enqueue(future, unfit)
            self._arrive(future, outcome_instead, idle)
        except BaseException:
            self._release_leaked(was_held)
            self._let_go(future, outcome_instead)
            raise
        if self._runs_in_caller:
            self.drive()

    def _arrive(self, future: AnyJob, outcome_instead: Failure | None, idle: tuple[Consumer, ...]) -> None:
        """Do what `_enqueue` said, without the lock."""
        if outcome_instead is not None:
            future.decide()
            self._finish(future, outcome_instead)
        if idle:
            self.ready.wake(idle)

    def _let_go(self, future: AnyJob, outcome_instead: Failure | None) -> None:
        """After a refusal, or when a signal handler raised: a future that is not in has never been, and ends as cancelled."""
        with self.lock:
            self._reserved.discard(future)
            if self._queue_size:
                self._room.notify_all()
            phase = future.phase  # DONE may also be a worker's doing
            is_out = (
                phase == Phase.NEW
                or (phase == Phase.QUEUED and not self.ready.holds(future))
                or outcome_instead is not None
            )
            counted = future in self.ledger.unsettled
            if is_out:
                future.decide()
                future.forget_batch()
        if is_out and counted:
            self._mend(future, outcome_instead or CANCELLED)
        else:
            self.ready.wake_one()

    def _reserve(self, future: AnyJob, runs: Batches | None, start: bool) -> None:
        """Count a future in; from here on nobody forgets it. Called with the lock held."""
        if self._closed or self._broken is not None or self.forked:
            self._reject()
        if start:
            self.ready.open = self._kept_open = True
        if self._queue_size:
            self._await_room()
        if self._queue_size:
            self._reserved.add(future)
        self.ledger.unsettled.add(future)
        future.added(self._sequence, time.monotonic(), None if runs is None else runs.current)

    def _enqueue(self, future: AnyJob, unfit: ParallelExecError | None) -> tuple[Failure | None, tuple[Consumer, ...]]:
        """Put a reserved future in; returns how it ends instead, and whom to `wake`. Called with the lock held."""
        if self._queue_size:
            self._reserved.discard(future)
        outcome_instead = Failure(unfit) if unfit is not None else future.override or self._final_outcome
        if outcome_instead is not None:
            return outcome_instead, ()
        if self._prefetches:
            self.runner.preempt((-future.priority, future.sequence))
        return None, self.ready.push(future)

    def _pack(self, future: AnyJob) -> ParallelExecError | None:
        """Have the back end make the call ready to travel; returns why it cannot."""
        try:
            future.packed(self.backend.prepare(future))
        except ParallelExecError as error:
            return error.with_traceback(None)  # which holds this frame, and the future is to keep the error
        return None

    def _check_usable(self) -> None:
        if self._closed or self._broken is not None or self.forked:
            self._reject()

    def runs_chunks(self, settings: Settings) -> bool:
        """Return whether the items of a `map` may travel together: nobody wants to see, count or judge each by itself."""
        quiet = not self.events.active and not self._queue_size
        return self.backend.runs_chunks and quiet and not settings.policy.asks_on_success

    def _reject(self) -> None:
        if self.forked:
            raise ParallelExecError(FORKED)
        if self._broken is not None:
            raise copy_of(self._broken)  # the one that is kept must not lead to who met it
        raise RuntimeError(f"cannot schedule new futures after {'interpreter ' if self._at_exit else ''}shutdown")

    def check_open(self, what: str) -> None:
        """Refuse to do `what` with an executor that has ended.

        Raises:
            RuntimeError: it was shut down.
            ParallelExecError: the process has forked.
        """
        if self.forked:
            raise ParallelExecError(FORKED)
        if self._closed:
            after = "interpreter shutdown" if self._at_exit else "shutdown: make a new ParallelExecutor"
            raise RuntimeError(f"cannot {what} an executor after {after}")

    def _await_room(self) -> None:
        """Wait until the queue has room; called with the lock held."""
        mine = self._own_attempt()
        while len(self.ready.heap) + len(self._reserved) >= self._queue_size:
            if not self.ready.open or self.backend.runs_in_caller or self._must_not_wait(mine):
                del mine  # the error may become its own
                raise QueueFullError(self._queue_size)
            if mine is not None:
                self.ledger.waiting[mine] = ()
            self._room.wait()
            if mine is not None:
                self.ledger.waiting.pop(mine, None)
            self._check_usable()

    def _must_not_wait(self, mine: AnyJob | None) -> bool:
        """Return whether room can only be made by the calling thread, or by what it has interrupted."""
        if mine is not None:
            return self.ledger.would_deadlock(mine)
        return current.pool is self or self.timers.is_clock()

    def start(self) -> None:
        """Open the gate."""
        with self.lock:
            self._check_usable()
            self.ready.open = True
        self.ready.wake_one()

    def stage(self) -> None:
        """Close the gate, unless `submit` opened it: what is added from now on waits for the next `start`."""
        with self.lock:
            self.ready.open = self._kept_open

    def pause(self) -> None:
        """Start no attempt until `resume`; running ones go on."""
        with self.lock:
            self.check_open("pause")
            self.ready.paused = True
            self.runner.recall_all()

    def resume(self) -> None:
        """Undo `pause`."""
        with self.lock:
            self.check_open("resume")
            self.ready.paused = False
        self.ready.wake_one()
        self.drive()

    def resize(self, limit: int) -> None:
        """Change the most attempts at once."""
        with self.lock:
            self.check_open("resize")
            self.ledger.limit = 1 if self.backend.runs_in_caller else limit
        self.runner.resize(limit)
        self.ready.wake_one()

    def drive(self) -> None:
        """Lend the calling thread to the back end, if it is of that kind and may start something."""
        if self.backend.runs_in_caller and self.ready.open and not self.ready.paused:
            self.runner.drive()

    # ── out, to the back end: what these promise is said in backends/base.py ────────────────────────────────────

    @property
    def drained(self) -> bool:
        """Whether nothing is left to do and nothing can be added."""
        return self.ready.ended

    def park(self, consumer: Consumer, *, last: bool = False) -> None:
        """Note a consumer as idle."""
        self.ready.park(consumer, last=last)

    def unpark(self, consumer: Consumer) -> bool:
        """Forget an idle consumer."""
        return self.ready.unpark(consumer)

    def decline(self) -> None:
        """Wake another consumer than the one that was woken."""
        self.ready.decline()

    def take(self, consumer: Consumer) -> AnyJob | None:
        """Take the first ready future."""
        future = self.ready.take(consumer)
        if self._queue_size and future is not None:
            with self.lock:
                self._room.notify()
        return future

    def take_some(self, consumer: Consumer, calls: int) -> list[AnyJob]:
        """Take the first ready futures, for up to so many calls."""
        futures = self.ready.take_some(consumer, calls)
        if self._queue_size:
            with self.lock:
                self._room.notify_all()
        return futures

    def backlog(self) -> int:
        """Return how many calls may be taken now."""
        ready = self.ready
        return ready.calls if ready.open and not ready.paused else 0

    def first_priority(self) -> int | None:
        """Return the priority of the future that would be taken next. Called with the lock held."""
        first = self.ready.heap.peek() if self.backlog() else None
        return None if first is None else first.priority

    def give_back(self, futures: list[AnyJob]) -> None:
        """Put back what was taken and never began."""
        if futures:
            try:
                self.finish_overridden(self.put_back(futures))
            finally:
                self.ready.wake_one()

    def put_back(self, futures: list[AnyJob]) -> list[AnyJob]:
        """Do the first half of `give_back`."""
        with self.lock:
            overridden = [
                future for future in futures if future.override is not None or self._final_outcome is not None
            ]
            for future in overridden:
                future.decide()
            self.ready.put_back([future for future in futures if future.phase != Phase.DONE])
        return overridden

    def wake_one(self) -> None:
        """Wake an idle consumer if there is something for it."""
        self.ready.wake_one()

    def finish_overridden(self, overridden: list[AnyJob]) -> None:
        """End futures that were given a verdict while a back end had them; raises what a callback of one raised, in the end."""
        raised: BaseException | None = None
        for future in overridden:
            try:
                self._finish(future, future.override or self._final_outcome or CANCELLED)
            except BaseException as error:  # the stdlib's futures let what is no Exception through; the others end, too
                raised = raised or error
        if raised is not None:
            raise raised
