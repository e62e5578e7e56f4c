"""`Job`: one task from the moment it is added: its future, and the scheduler's record of it.

One object serves as both, because a million of them may be queued.

Guarantees:
    Once its task has succeeded a job lets the call go, so that a list of results keeps no arguments; a `Task` that is
    the user's own is remembered weakly. One that failed keeps its call, so that it can be added again.
    An ended job leads neither to its batch nor to itself: it is freed with the last reference.
"""

from __future__ import annotations

import threading
from _contextvars import Context, copy_context  # `contextvars` is these, and one module more
from concurrent.futures import CancelledError, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from types import FunctionType
from weakref import ref

from parallel_exec import _forks, _sharing
from parallel_exec._core.phase import Phase
from parallel_exec._names import call_name, id_of, is_of_module, name_source
from parallel_exec._outcome import Failure, Success
from parallel_exec._sync.clock import time
from parallel_exec._sync.lazy_condition import FINAL, settling_lock
from parallel_exec._sync.locks import acquire_yielding
from parallel_exec._sync.threads import main
from parallel_exec.future import FutureOwner, TaskFuture, Unretrieved
from parallel_exec.task import LetGo, Task, TaskResult, Used, attempt_of, checked_task, lacks_id, name_task, result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence, TypeVar

    from typing_extensions import TypeAlias

    from parallel_exec._core.batch import Collector
    from parallel_exec._core.journaling import Restored
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.settings import Settings
    from parallel_exec._outcome import Outcome
    from parallel_exec._sync.timers import Timer
    from parallel_exec.task import Attempt

    T = TypeVar("T")
    AnyJob: TypeAlias = "Job[Any]"

PLACES = 32  # bits of a place in the order: a task's number, then the place of an item of a `map` in it
_EMPTY = Context()  # shared by all whose context is empty: that much less for the garbage collector to look at


class Job(TaskFuture["T"]):
    """One task's future and record. Its holder knows it as `TaskFuture`; the rest is the scheduler's.

    Args:
        owner, settings: the scheduler, and the settings of its attempts.
        fn, args, kwargs, priority: the call, and what comes first, as a `Task`'s.
        id: its id; None for one that is made of the function's name and the job's number once somebody asks.
        context: attempts run in copies of it; None: of a copy of the calling thread's.
    """

    # Defaults live on the class, so that an instance holds only what differs from them.
    # Changed under the executor's lock.
    phase = Phase.NEW
    sequence = 0  # its place in the order added; 0: it has none yet
    attempt_number = 0  # of the current or last attempt
    slot: Any = None  # where the back end runs it
    backoff_timer: Any = None  # while backing off
    override: Failure | None = None  # how it must end instead of another attempt

    # Changed by the one thread that starts, or has claimed, the attempt.
    past: tuple[Attempt, ...] = ()
    first_started_at: float | None = None
    started_at = 0.0
    ended_at = 0.0
    worker = ""
    retry_state: Any = None
    _used = Used()  # what the current or last attempt has written and used
    _quiet = False  # whether nobody is going to look at an error, and need not

    # Written once before the task is queued.
    weight = 1  # how many calls it stands for; 0: they still grow in number
    queued_at = 0.0
    payload: Any = None  # what the back end made of the call
    grant: Grant | None = None  # what the attempt, or the one that is about to begin, holds of the executor's limits
    batch: Collector | None = None  # what collects it
    resumed = False  # whether it has ended in an earlier run, and never runs in this one
    priority = 0
    _id: str | None = None  # None for the one that is made of the function's name and the number
    _task: Task[T] | ref[Task[T]] | None = None  # a weak one once the call was let go

    def __init__(
        self,
        owner: FutureOwner,
        settings: Settings,
        fn: Callable[..., T],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        priority: int = 0,
        id: str | None = None,
        context: Context | None = None,
    ) -> None:
        self.owner = owner
        self.settings = settings
        self.context: Context | None = (copy_context() or _EMPTY) if context is None else context
        self.fn: Any = fn  # once the call was let go: a function that keeps nothing alive, or a name, for the id
        self.args: Any = args  # None once the call was let go
        self.kwargs = kwargs
        if priority:
            self.priority = priority
        if id is not None:
            self._id = id

    @classmethod
    def of_task(cls, owner: FutureOwner, settings: Settings, task: Task[T]) -> Job[T]:
        """Return the job of a `Task` of the user's, which is given an id if it has none.

        Raises:
            RuntimeError: it is that of a result whose call was let go, or was read from a journal.
        """
        if isinstance(task.execute, LetGo):
            task.execute()  # refuses: now, and not once an attempt after the other
        job = cls(owner, settings, task.execute, (), None, task.priority)
        job.sequence = owner.next_sequence()
        job._id = name_task(task, job.sequence >> PLACES)
        job._task = task
        return job

    def __reduce__(self) -> Any:
        # For `copy.copy`. `pickle` finds that the owner cannot be pickled, instead of stumbling over the name of the class.
        return _blank, (), self.__dict__

    @property
    def id(self) -> str:
        if self._id is not None:
            return self._id
        return id_of(self.fn if type(self.fn) is str else call_name(self.fn), self.number())

    def has_own_id(self) -> bool:
        """Return whether its id is the user's own."""
        task = self._known_task()
        return self._id is not None and (task is None or not lacks_id(task))

    def id_parts(self) -> tuple[str, int]:
        """Return what its id is made of, a name and a number, once it was added; the number is 0 if the name is all of it."""
        if self._id is not None:
            return self._id, 0
        return self.fn if type(self.fn) is str else call_name(self.fn), self.sequence >> PLACES

    def number(self) -> int:
        """Return the task's number in the order added, from 1; it takes its place now, should it have none."""
        if not self.sequence:
            self.__dict__.setdefault("sequence", self.owner.next_sequence())  # unless another thread was first
        return self.sequence >> PLACES

    @property
    def task(self) -> Task[T]:
        return self._known_task() or self._make_task()

    def _known_task(self) -> Task[T] | None:
        task = self._task
        return task() if isinstance(task, ref) else task

    def _make_task(self) -> Task[T]:
        fn, kwargs, args = self.fn, self.kwargs, self.args  # `args` last, as they are the first to be let go
        fn = LetGo(self.id) if args is None else _sharing.shown(fn, args, kwargs)
        made: Task[T] = checked_task(fn, self.id, self.priority, self.settings.own)
        with settling_lock:
            known = self._known_task()  # another thread may have been first
            if known is not None:
                return known
            self._task = made
        if self.args is None:  # or `let_go` came before it could see what we made
            self._task = ref(made)
        return made

    def mark_retrieved(self) -> None:
        """Do not log a failure that nobody looks at: whoever started the task has turned away from it."""
        self._quiet = True
        self._retrieved()

    def task_result(self) -> TaskResult[T]:
        error = None
        if self._state is not FINISHED or self._exception is not None:
            self._retrieved()
            error = self._failure().error
        end = self.ended_at
        first = end if self.first_started_at is None else self.first_started_at
        return result_of(self, self._result, error, first - self.queued_at, end - first)

    def attempts(self) -> tuple[Attempt, ...]:
        past = self.past
        if len(past) < self.attempt_number and self.succeeded():  # whose last attempt is noted in no other way
            past += (attempt_of(self.attempt_number, self.started_at, self.ended_at, None, self.worker, self._used),)
        return past

    def _failure(self) -> Failure:
        if self._state == CANCELLED_AND_NOTIFIED:
            return Failure(CancelledError(f"task {self.id!r} was cancelled"))
        if self._exception is None:
            raise InvalidStateError(f"task {self.id!r} has not ended: wait for it with result() or execute_all()")
        return Failure(self._exception)

    def succeeded(self) -> bool:
        """Return whether it has ended, and well."""
        return self._state is FINISHED and self._exception is None

    @property
    def timeout(self) -> float | None:
        return self.settings.timeout

    @property
    def root_seed(self) -> int:
        return self.owner.seed

    def unwanted(self, number: int) -> Callable[[], bool]:
        weakly_self = ref(self)  # the frames of a task that fails may have it, and the job keeps its error

        def is_unwanted() -> bool:
            job = weakly_self()
            return job is None or job.phase != Phase.LIVE or job.attempt_number != number or job.override is not None

        return is_unwanted

    def size(self) -> int:
        """Return how many calls it stands for just now."""
        return self.weight

    def close(self) -> None:
        """Stand for no more calls than it does now, if they still grow in number. Called with the lock held."""

    # ── its way through the executor: called with the executor's lock held, unless a docstring says otherwise ───────

    def added(self, sequence: int, at: float, batch: Collector | None) -> None:
        """It has its place in the order, and a batch that collects it, if one is to."""
        self.sequence = sequence
        self.queued_at = at
        if batch is not None:
            self.batch = batch
            batch.join(self)

    def bind(self, bind: Callable[..., Any], *, here: bool) -> None:
        """Put what stands for shared objects in their places in the call, as `_sharing.bind` does. Before it is added."""
        call = self.fn, self.args, self.kwargs
        self.fn, self.args, self.kwargs = bind(*call, here) or call

    def packed(self, payload: Any) -> None:
        """Keep what the back end made of the call, to be sent with each attempt. Before it is queued, without the lock."""
        self.payload = payload

    def resume(self, restored: Restored) -> None:
        """It ends, or is about to end, as it did in an earlier run."""
        self.resumed, self.past = True, restored.attempts
        first = time.monotonic()
        if self.past:
            first, last = self.past[0].started_at, self.past[-1]
            self.first_started_at, self.ended_at = first, first + restored.duration
            self.attempt_number, self.started_at, self.worker = len(self.past), last.started_at, last.worker
        self.queued_at = first - restored.queued_for

    def queued(self) -> None:
        """It waits in the queue."""
        self.phase = Phase.QUEUED

    def hold(self, grant: Grant) -> None:
        """It has been granted what it needs for its next attempt."""
        self.grant = grant

    def surrender(self) -> Grant | None:
        """It holds nothing any more; returns what is to be given back, or kept by what goes on with the attempt."""
        grant, self.grant = self.grant, None
        return grant

    def handed_out(self) -> None:
        """A back end has taken it."""
        self.phase = Phase.HANDED_OUT

    def placed(self, slot: Any) -> None:
        """The back end has found a slot for it."""
        self.slot = slot

    def begin(self, slot: Any, worker: str, at: float) -> int:
        """An attempt began; returns its number."""
        self.phase, self._state = Phase.LIVE, RUNNING
        self.slot, self.worker, self.started_at = slot, worker, at
        self.attempt_number = number = self.attempt_number + 1
        if number == 1:
            self.first_started_at = at
        return number

    def restart_clock(self, worker: str, at: float) -> None:
        """The attempt begins again, on another worker: its time counts anew."""
        self.worker, self.started_at = worker, at

    def claimed(self) -> None:
        """An attempt has ended, or cannot begin: the calling thread alone says what follows. With or without the lock."""
        self.phase = Phase.SETTLING

    def judged_by(self, retry_state: Any) -> None:
        """Keep what the retry policy remembers of the attempts. By the thread that starts the first, without the lock."""
        self.retry_state = retry_state

    def has_used(self, **facts: Any) -> None:
        """Note fields of `Used` of the attempt. By the thread that has claimed it, or alone can, without the lock."""
        self._used = self._used._replace(**facts)

    def end_attempt(self, error: BaseException | None, at: float) -> None:
        """Note how the attempt ended. By the thread that has claimed it, without the lock."""
        self.ended_at = at
        self.past += (attempt_of(self.attempt_number, self.started_at, at, error, self.worker, self._used),)
        self.__dict__.pop("_used", None)

    def back_off(self, timer: Timer) -> None:
        """Wait for the next attempt, which is due when the timer is."""
        self.phase, self._state = Phase.BACKING_OFF, PENDING
        self.slot = None
        self.backoff_timer = timer

    def backoff_over(self) -> None:
        """The next attempt is due."""
        self.backoff_timer = None

    def override_with(self, outcome: Failure) -> None:
        """Let it end like this instead of by another attempt; the first call counts."""
        if self.override is None:
            self.override = outcome

    def decide(self, at: float | None = None) -> None:
        """The outcome is decided, and the calling thread must `settle` it.

        Called with the lock held, or by the thread that has claimed the attempt.

        Args:
            at: when the attempt ended that decided it; None: it is no attempt's outcome.
        """
        if at is not None:
            self.ended_at = at
        self.phase = Phase.DONE

    def withdrawn(self) -> int:
        """It ends as it waits; returns its phase before, DONE if it has ended. In one step: a signal handler may end it, too."""
        before, self.phase = self.phase, Phase.DONE
        return before

    def leave_batch(self) -> Sequence[AnyJob]:
        """Tell its batch, if it has one, that it has ended; returns what must be cancelled for it."""
        batch = self.batch
        if batch is None:
            return ()
        rest = batch.leave(self, self._exception is None)
        self.batch = None  # the batch keeps its jobs, and they do not keep it
        return rest

    def forget_batch(self) -> None:
        """Undo what `added` did, for a job that is not in after all; also if it did only a part."""
        if self.batch is not None:
            self.batch.forget(self)
            self.batch = None

    # ── its end: called without the lock ────────────────────────────────────────────────────────────────────────────

    def settle(self, outcome: Outcome, cancelled: bool) -> None:
        """Set the result, wake who waits and call the callbacks; once it is decided, by who decided it. Runs users' code."""
        try:
            self.conclude(outcome, cancelled)
        finally:  # also if a callback raises
            if self._parked and self._state in FINAL:
                self.wake_parked()

    def conclude(self, outcome: Outcome, cancelled: bool, at: float | None = None) -> None:
        """Do as `settle`, but leave it to the caller to `wake_parked`, once it has done what else must be done.

        With `at`, when the attempt ended that decides it, this does what `decide` does, too.
        """
        if at is not None:
            self.ended_at = at
            self.phase = Phase.DONE
        if self.override is not None or not self.attempt_number or self.ended_at == 0.0:
            self.ended_at = time.monotonic()
        self.let_go(outcome)
        if type(outcome) is Failure and not (cancelled or self._quiet or isinstance(outcome.error, CancelledError)):
            self._unretrieved = Unretrieved(self.id, outcome.error)
        if threading.get_ident() == main.ident:
            with settling_lock:
                watched = self._watched
                if not watched:
                    self._store(outcome, cancelled)
        else:
            if not settling_lock.acquire(False):
                acquire_yielding(settling_lock)
            try:
                watched = self._watched
                if not watched:
                    self._store(outcome, cancelled)
            finally:
                settling_lock.release()
        if watched:
            self._settle_watched(outcome, cancelled)

    def _settle_watched(self, outcome: Outcome, cancelled: bool) -> None:
        """Settle under the condition that somebody has asked for."""
        if self.grant is not None:
            self.owner.give_back(self, outcome)  # first: a callback may wait for what needs the same
        try:
            with self._condition:
                try:
                    self._store(outcome, cancelled)
                    if "_waiters" in self.__dict__:
                        self._tell_waiters()
                finally:  # also if a signal handler raises
                    if self._state in FINAL:
                        self._condition.notify_all()
                        self.wake_parked()
        finally:
            if self._state in FINAL and "_done_callbacks" in self.__dict__:
                self._call_back()

    def wake_parked(self) -> None:
        """Wake the threads that wait on locks of their own, once it has settled. May be repeated."""
        for lock in tuple(self._parked):  # those whose time is up leave it
            if lock.locked():
                lock.release()

    def _call_back(self) -> None:
        """Call the callbacks, and let them go: they may lead back to this job."""
        born = _forks.generation
        try:
            self._invoke_callbacks()  # type: ignore[attr-defined]
        except BaseException as error:
            _forks.end_copy(born, error)
            raise
        finally:
            self.__dict__.pop("_done_callbacks", None)
        _forks.end_copy(born)

    def let_go(self, outcome: Outcome) -> None:
        """Drop what is only needed to run the task and, if that has succeeded, its call. Runs finalizers. May be repeated."""
        self.context = self.slot = None
        if self.payload is not None or self.retry_state is not None or self.backoff_timer is not None:
            self.payload = self.retry_state = self.backoff_timer = None
        if type(outcome) is not Success:
            return
        self.args = self.kwargs = None  # the first of them first: see `_make_task`
        fn = self.fn
        if not (fn.__closure__ is None if type(fn) is FunctionType else is_of_module(fn)):
            self.fn = None if self._id is not None else name_source(fn)
        task = self._task  # read once: `_make_task` may put a reference in its place
        if type(task) is Task:  # one of a class of the user's may carry what only it knows
            self._task = ref(task)

    def _store(self, outcome: Outcome, cancelled: bool) -> None:
        """Store the outcome: under the lock of unwatched futures, or under the condition."""
        if cancelled:
            self._state = CANCELLED_AND_NOTIFIED
            return
        if type(outcome) is Success:
            self._result = outcome[0]
        else:
            self._exception = outcome[0]
        self._state = FINISHED  # last: who sees it may read the result without a lock

    def _tell_waiters(self) -> None:
        told = "add_result" if self._exception is None else "add_exception"
        for waiter in self._waiters:
            getattr(waiter, "add_cancelled" if self._state == CANCELLED_AND_NOTIFIED else told)(self)


# Its holder sees the name of what it is to him: in its repr, in messages.
Job.__module__, Job.__name__, Job.__qualname__ = TaskFuture.__module__, TaskFuture.__name__, TaskFuture.__qualname__


def _blank() -> AnyJob:
    return Job.__new__(Job)


def settle_unwatched(ended: list[tuple[Job[Any], Outcome]]) -> list[tuple[AnyJob, Outcome]]:
    """Settle, in one turn of the lock, those jobs whose condition nobody has asked for; returns the others, which need `settle`.

    The caller must `wake_parked` for those that it has settled. For jobs that have succeeded, and not for the main thread,
    as `acquire_yielding` is not.
    """
    for job, outcome in ended:
        if not job._watched:  # else `settle` does so
            job.let_go(outcome)  # not under the lock: finalizers may run
    watched = []
    acquire_yielding(settling_lock)
    try:
        for each in ended:
            job, outcome = each
            if job._watched:
                watched.append(each)
            else:
                job._store(outcome, False)
    finally:
        settling_lock.release()
    return watched
