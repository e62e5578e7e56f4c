"""How tasks come in: the room in the queue, and who is refused.

    add_task, submit ──► prepare (pickled, if it must travel) ──► reserve ──► enqueue ──► ReadyQueue, and wake somebody

Guarantees:
    What `add` has reserved ends, whatever happens between reserving and enqueueing: an override or a final outcome that
    comes in between is carried out on arrival.
    `add` waits only for room in a full queue, and only if somebody else than the calling thread can make it.
"""

from __future__ import annotations

from parallel_exec import _sharing
from parallel_exec._current import current
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import call_whole, ownership
from parallel_exec._sync.parking import TICK
from parallel_exec.errors import ParallelExecError, QueueFullError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._core.batch import HasCollector
    from parallel_exec._core.completion import Completion
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.journaling import Restored
    from parallel_exec._core.monitor import Monitor
    from parallel_exec._core.settings import Settings
    from parallel_exec._dispatcher import Dispatcher
    from parallel_exec.backends.base import Backend, Consumer


class NotAdmittedError(Exception):
    """A job was to join a batch to whose journal it was not admitted."""


class Admission:
    """The way in to one executor. Thread-safe.

    Attributes:
        pack_row, pack_pickled: the back end's, if it `runs_chunks`.
        store: the back end's.
    """

    def __init__(
        self, monitor: Monitor, completion: Completion, backend: Backend, queue_size: int, events: Dispatcher
    ) -> None:
        self._lock = monitor.lock
        self._is_held = ownership(monitor.lock)  # whether by the calling thread
        self._monitor = monitor
        self._gate = monitor.gate
        self._ready = monitor.ready
        self._idle = monitor.idle
        self._registry = monitor.registry
        self._completion = completion
        self._events = events
        self._queue_size = queue_size
        self._prepare = backend.prepare if backend.pickles_calls else None
        if backend.runs_chunks:
            self.pack_row, self.pack_pickled = backend.pack_row, backend.pack_pickled
        self._prefetches = backend.prefetches
        self._runs_chunks = backend.runs_chunks
        self._runs_in_caller = backend.runs_in_caller
        self._runs_here = backend.runs_here
        self.store = backend.store

    def add(self, job: AnyJob, into: HasCollector | None, *, start: bool) -> None:  # noqa: C901  # a hot path, all of it
        """Put a job in the queue; with `start`, open the gate for good. Blocks only while the queue is full and running.

        Raises:
            RuntimeError: after shutdown.
            ValueError: among the call's arguments is a `Shared` that was closed.
            QueueFullError: the queue is full, and nothing is running that would make room.
            ParallelExecError: workers cannot start, or the process has forked.
            NotAdmittedError: it is to join a batch with a journal, which has not admitted it.
        """
        outcome: Failure | None = None
        consumer: Consumer | None = None
        if _sharing.bind is not None:
            self.bind(job)
        was_held = self._is_held()  # by what this call has interrupted, as a handler's
        gate = self._gate
        try:
            # (What grows is packed when that is over.)
            unfit = None if self._prepare is None or not gate.admits or not job.weight else self.pack(job)
            with self._lock:
                if not gate.admits or (start and not gate.is_kept_open):
                    gate.enter(start)
                if self._queue_size:
                    self._await_room(job)
                collector = None if into is None else into.current
                if collector is not None and collector.journal is not None and not collector.journal.has_admitted(job):
                    raise NotAdmittedError
                self._registry.unsettled.add(job)  # from here on nobody forgets it
                job.added(job.sequence or next(self._monitor.sequence), time.monotonic(), collector)
                if not self._events.active:
                    outcome, consumer = self.enqueue(job, unfit)
            if self._events.active:
                self._tell_queued(job)  # before anybody can take it
                with self._lock:
                    outcome, consumer = self.enqueue(job, unfit)
                self._completion.tell_waits()
            if consumer is not None:
                self._idle.wake(consumer)
            elif outcome is not None:
                job.decide()
                self._completion.finish(job, outcome)
        except NotAdmittedError:  # it is in nowhere, but for the room
            self._give_room_back(job)
            raise
        except BaseException:
            self._completion.repair(job, outcome, was_held=was_held)
            raise
        if self._runs_in_caller:
            self.drive()

    def add_restored(self, job: AnyJob, into: HasCollector, restored: Restored, *, start: bool) -> None:
        """Take in a job that an earlier run has ended: it joins and leaves, and is never in the queue. Raises as `add` does."""
        outcome = None
        was_held = self._is_held()
        try:
            with self._lock:
                self._gate.enter(start)
                collector = into.current
                if collector.journal is None or not collector.journal.has_admitted(job):
                    raise NotAdmittedError
                outcome = restored.outcome  # from here on it ends, whatever is raised
                self._registry.unsettled.add(job)
                job.added(job.sequence or next(self._monitor.sequence), time.monotonic(), collector)
                job.resume(restored)
                job.decide()
            self._tell_queued(job)
            self._completion.finish(job, outcome)
        except NotAdmittedError:
            raise
        except BaseException:
            self._completion.repair(job, outcome, was_held=was_held)
            raise

    def _tell_queued(self, job: AnyJob) -> None:
        """Tell the hook, which must not wait for the executor: that would be for this very task, or for its room."""
        before = current.adding
        current.adding = (*before, self._monitor.callers)
        try:
            self._events.emit("TaskQueued", job.id, 0)
        finally:
            current.adding = before

    def enqueue(self, job: AnyJob, unfit: ParallelExecError | None = None) -> tuple[Failure | None, Consumer | None]:
        """Put a job in the queue, at its place, ahead of what comes after it. Called with the lock held.

        Returns:
            How it must end instead, and whom to wake: what `enqueued` must be given, without the lock.
        """
        if self._queue_size:
            self._registry.reserved.discard(job)
        outcome = Failure(unfit) if unfit is not None else job.override or self._gate.final_outcome
        if outcome is not None:
            return outcome, None
        if job.settings.needs is not None:
            return self._enqueue_needy(job)
        if self._prefetches:
            runner, ready = self._completion.runner, self._ready
            if self._gate.may_start and not ready.heap and not ready.aside and runner.accept(job):
                if self._queue_size:
                    self._monitor.room.notify()  # for its own reservation was let go
                return None, None
            runner.preempt((-job.priority, job.sequence))
        job.queued()
        self._ready.push(job)
        return None, self._idle.choose()

    def _enqueue_needy(self, job: AnyJob) -> tuple[Failure | None, Consumer | None]:
        """Do as `enqueue`, for a job that needs something of the limits."""
        error = self._ready.refusal(job)
        if error is not None:
            return Failure(error), None
        job.queued()
        self._ready.push(job)
        return None, self._idle.choose()

    def enqueued(self, job: AnyJob, outcome: Failure | None, consumer: Consumer | None) -> None:
        """End a job, or wake a consumer, as `enqueue` returned it. Called without the lock."""
        if outcome is not None:
            job.decide()
            self._completion.finish(job, outcome)
        elif consumer is not None:
            self._idle.wake(consumer)
        if self._events.active:
            self._completion.tell_waits()

    def add_item(self, job: AnyJob) -> None:
        """Take in a job that is one item of a chunk, at its place. Also after shutdown: the chunk was added before."""
        unfit = self.pack(job)
        with self._lock:
            self._registry.unsettled.add(job)
            outcome, consumer = self.enqueue(job, unfit)
        self.enqueued(job, outcome, consumer)

    def close(self, job: AnyJob) -> None:
        """Have a job that grows in number of calls grow no more, wherever it is."""
        call_whole(self._lock, self._close, job)  # where a signal handler raises, whoever takes the job does the rest

    def _close(self, job: AnyJob) -> None:
        with self._lock:
            job.close()
            self._ready.grown(job)

    def bind(self, job: AnyJob) -> None:
        """Put what stands for shared objects in their places among the arguments. Before it is packed; may be repeated.

        Raises:
            ValueError: a `Shared` was closed.
        """
        if _sharing.bind is not None:
            job.bind(_sharing.bind, here=self._runs_here)

    def pack(self, job: AnyJob) -> ParallelExecError | None:
        """Have the back end make the call ready to travel, if it must and that was not done; returns why it cannot."""
        if self._prepare is None or job.payload is not None:
            return None
        try:
            job.packed(self._prepare(job))
        except ParallelExecError as error:
            return error.with_traceback(None)  # which holds this frame, and the job is to keep the error
        return None

    def runs_chunks(self, settings: Settings) -> bool:
        """Return whether the items of a `map` may travel together: nobody wants to see, count or judge each by itself."""
        quiet = not self._events.active and not self._queue_size
        return self._runs_chunks and quiet and settings.needs is None and not settings.policy.asks_on_success

    def _await_room(self, job: AnyJob) -> None:
        """Wait until the queue has room, and reserve it; called with the lock held."""
        gate = self._gate
        callers = self._monitor.callers
        while len(self._ready) + len(self._registry.reserved) >= self._queue_size:
            if not gate.is_open or self._runs_in_caller or not callers.enter_queue():
                raise QueueFullError(self._queue_size)
            self._monitor.room.wait(TICK)
            callers.leave_queue()
            if not gate.admits:
                gate.refuse()
        self._registry.reserved.add(job)

    def _give_room_back(self, job: AnyJob) -> None:
        with self._lock:
            self._registry.reserved.discard(job)
            self._monitor.room.notify_all()

    # ── the gate ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Open the gate."""
        with self._lock:
            self._gate.open()
        self._idle.wake_one()

    def stage(self) -> None:
        """Close the gate, unless `submit` opened it: what is added from now on waits for the next `start`."""
        with self._lock:
            self._gate.stage()

    def pause(self) -> None:
        """Start no attempt until `resume`; running ones go on."""
        with self._lock:
            self._gate.pause()
            self._completion.runner.recall_all()

    def resume(self) -> None:
        """Undo `pause`."""
        with self._lock:
            self._gate.resume()
        self._idle.wake_one()
        self.drive()

    def resize(self, limit: int) -> None:
        """Change the most attempts at once."""
        with self._lock:
            self._gate.check_open("resize")
            self._registry.resize(1 if self._runs_in_caller else limit)
        self._completion.runner.resize(limit)
        self._idle.wake_one()

    def drive(self) -> None:
        """Lend the calling thread to the runner, if it is of that kind and may start something."""
        if self._runs_in_caller and self._gate.may_start:
            self._completion.drive()
