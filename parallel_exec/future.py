"""`TaskFuture`: a `concurrent.futures.Future` that knows its task; also the scheduler's record of that task.

One object serves as future and as record, because a million of them may be queued.

Guarantees:
    A future settles exactly once (its scheduler sees to that), and no waiter is missed (`lazy_condition.py` says how).
    Once its task has succeeded a future lets the call go, so that a list of results keeps no arguments; a `Task` that is
    the user's own is remembered weakly. One that failed keeps its call, so that it can be added again.
    An ended future leads neither to its run nor to itself: it is freed with the last reference.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as WaitTimeout
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import Context, copy_context
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Callable, Generic, Protocol, TypeVar
from weakref import ref

from parallel_exec import _forks
from parallel_exec._current import call_name, has_own_name, id_of
from parallel_exec._outcome import Failure, Outcome, Success
from parallel_exec._sync.lazy_condition import TICK, LazyAttribute, acquire_yielding, lock, main, settled
from parallel_exec.events import logger
from parallel_exec.task import Attempt, CurrentTask, LetGo, Task, TaskResult, checked_task, result_of

if TYPE_CHECKING:
    from parallel_exec.config import Settings

T = TypeVar("T")

PLACES = 32  # bits of a place in the order: a task's number, then the place of an item of a `map` in it
_FINAL = (FINISHED, CANCELLED_AND_NOTIFIED)
_EMPTY = Context()


def snapshot() -> Context:
    """Return a copy of the calling thread's context for a future: attempts run in copies of this one again.

    All whose context is empty share one: a million futures are that much less for the garbage collector to look at.
    """
    return copy_context() or _EMPTY


class FutureOwner(Protocol):
    """What a future asks of the scheduler that owns it."""

    def cancel(self, future: TaskFuture[Any]) -> bool:
        """Cancel it unless an attempt is running."""
        ...

    def abort(self, future: TaskFuture[Any]) -> bool:
        """Cancel it, and stop a running attempt."""
        ...

    def enter_wait(self, *futures: TaskFuture[Any]) -> bool:
        """Note that the calling task waits for any of them; False if it is none of the pool's tasks. Raises if in vain."""
        ...

    def leave_wait(self) -> None:
        """Note that the calling task waits no more."""
        ...

    def next_sequence(self) -> int:
        """Return the next place in the order in which tasks are added."""
        ...


class Phase:
    """Where a task is. Written by the scheduler alone, under its lock."""

    NEW = 0  # not in the queue yet
    QUEUED = 1  # in the queue
    HANDED_OUT = 2  # a back end has it, and no attempt has started
    LIVE = 3  # an attempt is running
    SETTLING = 4  # an attempt has ended, and one thread has claimed the right to say what follows
    BACKING_OFF = 5  # parked until the next attempt
    DONE = 6  # the outcome is decided


class _Unretrieved:
    """Stands for a failure that nobody has looked at; says so when it is collected."""

    __slots__ = ("error", "id")

    def __init__(self, id: str, error: BaseException) -> None:
        self.id = id
        self.error: BaseException | None = error

    def __del__(self) -> None:
        if self.error is not None:
            logger.error("task %r failed, and nobody looked at its result", self.id, exc_info=self.error)


def _name_source(fn: Any) -> Any:
    """Return what `call_name` finds the name of a callable in, if that is a function which keeps nothing; else the name."""
    while type(fn) is partial:
        fn = fn.func
    if type(fn) is MethodType:
        fn = fn.__func__
    return fn if type(fn) is FunctionType and fn.__closure__ is None else call_name(fn)


# What its holder is offered for completion; the rest is the scheduler's record of the task.
_OFFERED = frozenset((*dir(Future), "abort", "attempts", "id", "task", "task_result"))


class TaskFuture(Future, Generic[T]):  # type: ignore[type-arg]  # Future[T] as a base costs a second __class_getitem__
    """The future of one task: all that a `concurrent.futures.Future` does, and `task`, `task_result()` and `abort()`.

    Made by executors only. Thread-safe.
    """

    # Defaults live on the class, so that an instance holds only what differs from them.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _condition: Any = LazyAttribute(threading.Condition, late=settled)
    _waiters: Any = LazyAttribute(list)
    _done_callbacks: Any = LazyAttribute(list)

    _watched = False  # whether any of the last three was made; guarded by `_lock`

    # The scheduler's record, written under its lock.
    phase = Phase.NEW
    sequence = 0  # its place in the order added; 0: it has none yet
    attempt_number = 0  # of the current or last attempt
    slot: Any = None  # where the back end runs it
    backoff_timer: Any = None  # while backing off
    bad_starts = 0  # workers that died with it in hand and nothing begun; the process pool's
    override: Failure | None = None  # how it must end instead of another attempt

    # Written by the one thread that starts, or has claimed, the attempt.
    past: tuple[Attempt, ...] = ()
    first_started_at: float | None = None
    started_at = 0.0
    ended_at = 0.0
    worker = ""
    retry_state: Any = None
    _unretrieved: _Unretrieved | None = None
    _quiet = False  # whether nobody is going to look at an error, and need not

    # Written once before the task is queued.
    weight = 1  # how many calls it stands for
    stands_for: int | None = None  # the place of the item of a `map` that it runs again
    stretch: tuple[int, int, int, str] | None = None  # where it is in the payload: low, high, first, map's name
    queued_at = 0.0
    payload: Any = None  # what the back end made of the call
    batch: Any = None  # the run that collects it
    priority = 0
    _id: str | None = (
        None  # None, as long as nobody has asked for the one that is made of the function's name and the number
    )
    _task: Task[T] | ref[Task[T]] | None = None  # a weak one once the call was let go

    def __init__(
        self,
        owner: FutureOwner,
        settings: Settings,
        context: Context,
        fn: Callable[..., T],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.owner = owner
        self.settings = settings
        self.context: Context | None = context
        self.fn: Any = fn  # once the call was let go, what the id is made of: a function that keeps nothing, or a name
        self.args: Any = args  # None once the call was let go
        self.kwargs = kwargs

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name[:1] == "_" or name in _OFFERED]

    @property
    def id(self) -> str:
        """The task's id."""
        if self._id is None:
            name = self.fn if type(self.fn) is str else call_name(self.fn)
            self._id = id_of(name, self.number())  # the same, should another thread be here
        return self._id

    def name(self) -> str | int:
        """Return the id, or the task's number, if a worker process can make the id of that and the function it is given."""
        return self.number() if self._id is None and has_own_name(self.fn) else self.id

    def number(self) -> int:
        """Return the task's number in the order added, from 1; it takes its place now, should it have none."""
        if not self.sequence:
            self.__dict__.setdefault("sequence", self.owner.next_sequence())  # unless another thread was first
        return self.sequence >> PLACES

    @property
    def task(self) -> Task[T]:
        """The task; for `submit` and `map`, one made from the call.

        Once it has succeeded its call is let go. Then this is the very `Task` that was added if somebody still has it, and
        else one of the same id, priority and settings whose `execute` raises a `RuntimeError`.
        """
        return self._known_task() or self._make_task()

    def _known_task(self) -> Task[T] | None:
        task = self._task
        return task() if isinstance(task, ref) else task

    def _make_task(self) -> Task[T]:
        fn, kwargs, args = self.fn, self.kwargs, self.args  # `_args` last, as they are the first to be let go
        if args is None:
            fn = LetGo(self.id)
        elif args or kwargs:
            fn = partial(fn, *args, **(kwargs or {}))
        made: Task[T] = checked_task(fn, self.id, self.priority, self.settings.own)
        with lock:
            known = self._known_task()  # another thread may have been first
            if known is not None:
                return known
            self._task = made
        if self.args is None:  # or `let_call_go` came before it could see what we made
            self._task = ref(made)
        return made

    def cancel(self) -> bool:
        """Cancel the task if no attempt is running: queued, or backing off between two attempts.

        Does not block.

        Returns:
            Whether it is cancelled now; then it never runs (again), and its callbacks have been called.
        """
        return self.owner.cancel(self)

    def abort(self) -> bool:
        """Cancel the task, and stop a running attempt as far as the back end can.

        A process is killed; a thread is abandoned, and `current_task().cancelled` turns true in it. Does not wait
        for the attempt's end.

        Returns:
            False if the task had ended already. Else True: the future ends as cancelled, unless the attempt
            finishes first.
        """
        return self.owner.abort(self)

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result, waiting for it up to `timeout` seconds (None: as long as it takes).

        Raises:
            CancelledError: the task was cancelled.
            concurrent.futures.TimeoutError: it was not finished in time.
            ParallelExecError: the wait could never end: the task was only added, and nothing runs that would start it; or
                the caller is a task of the same pool, and all slots wait; or the process has forked.
            BaseException: what the task raised.
        """
        try:
            if self._state is not FINISHED:
                self._wait(timeout)
            if self._exception is None:
                return self._result  # type: ignore[no-any-return]
            self._retrieved()
            raise self._exception
        finally:
            del self  # the error's traceback holds this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None, waiting for its end as `result` does."""
        try:
            if self._state is not FINISHED:
                self._wait(timeout)
            self._retrieved()
            return self._exception
        finally:
            del self

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end; raises if the task was cancelled."""
        entered = False
        try:
            entered = timeout is None and not self.done() and self.owner.enter_wait(self)
            while timeout is None and not self.done() and threading.get_ident() == main.ident:
                with contextlib.suppress(WaitTimeout):
                    super().exception(TICK)
            super().exception(timeout)
        finally:
            if entered:
                self.owner.leave_wait()
            del self

    def mark_retrieved(self) -> None:
        """Do not log a failure that nobody looks at: whoever started the task has turned away from it."""
        self._quiet = True
        self._retrieved()

    def _retrieved(self) -> None:
        if self._unretrieved is not None:
            self._unretrieved.error = None

    def task_result(self) -> TaskResult[T]:
        """Return how the task ended. Does not block.

        Raises:
            InvalidStateError: it has not ended.
        """
        if self._state is FINISHED and self._exception is None:
            outcome: Outcome = Success(self._result)
        else:
            self._retrieved()
            outcome = self._failure()
        first, end = self.first_started_at, self.ended_at
        if first is None:
            return result_of(self, outcome, end - self.queued_at, 0.0)
        return result_of(self, outcome, first - self.queued_at, end - first)

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts so far that have ended, in order."""
        past = self.past
        if self._state is FINISHED and self._exception is None and len(past) < self.attempt_number:
            past += (Attempt(self.attempt_number, self.started_at, self.ended_at - self.started_at, None, self.worker),)
        return past

    def _failure(self) -> Failure:
        if self._state == CANCELLED_AND_NOTIFIED:
            return Failure(CancelledError(f"task {self.id!r} was cancelled"))
        if self._exception is None:
            raise InvalidStateError(f"task {self.id!r} has not ended: wait for it with result() or execute_all()")
        return Failure(self._exception)

    def done(self) -> bool:
        """Return whether the task has ended, or was cancelled."""
        return self._state in _FINAL

    def running(self) -> bool:
        """Return whether an attempt is running."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        return self._state == CANCELLED_AND_NOTIFIED

    def view(self, number: int) -> CurrentTask:
        """Return what `current_task()` shows in attempt `number`."""
        timeout = self.settings.timeout
        deadline = None if timeout is None else self.started_at + timeout

        weakly_self = ref(self)  # the frames of a task that fails may have the view, and the future keeps its error

        def is_cancelled() -> bool:
            future = weakly_self()
            if future is None or future.phase != Phase.LIVE:
                return True
            return future.attempt_number != number or future.override is not None

        return CurrentTask(self.id, number, deadline, timeout, is_cancelled)

    def settle(self, outcome: Outcome, cancelled: bool) -> None:
        """Set the result, wake who waits and call the callbacks; for the scheduler, once."""
        if type(outcome) is Success:
            self.let_call_go()
        else:
            self._let_run_go()
        if type(outcome) is Failure and not cancelled and not self._quiet:
            self._unretrieved = _Unretrieved(self.id, outcome.error)
        if not self._store_unwatched(outcome, cancelled):
            try:
                with self._condition:
                    try:
                        self._store(outcome, cancelled)
                        self._tell_waiters()
                    finally:  # also if a signal handler raises
                        if self._state in _FINAL:
                            self._condition.notify_all()
            finally:
                if self._state in _FINAL:
                    self._call_back()

    def _call_back(self) -> None:
        """Call the callbacks, and let them go: they may lead back to this future."""
        born = _forks.generation
        try:
            self._invoke_callbacks()  # type: ignore[attr-defined]
        except BaseException as error:
            _forks.end_copy(born, error)
            raise
        finally:
            self.__dict__.pop("_done_callbacks", None)
        _forks.end_copy(born)

    def let_call_go(self) -> None:
        """Keep nothing but the outcome: the task has succeeded. Runs finalizers; for the scheduler."""
        self._let_run_go()
        self.args = None  # first: see `_make_task`
        if self.kwargs is not None:
            self.kwargs = None
        if type(self.fn) is not FunctionType or self.fn.__closure__ is not None:
            self.fn = None if self._id is not None else _name_source(self.fn)
        task = self._task  # read once: `_make_task` may put a reference in its place
        if type(task) is Task:  # one of a class of the user's may carry what only it knows
            self._task = ref(task)

    def _let_run_go(self) -> None:
        """Drop what is only needed to run the task."""
        self.context = self.slot = None
        if self.payload is not None or self.retry_state is not None or self.backoff_timer is not None:
            self.payload = self.retry_state = self.backoff_timer = None

    def _store_unwatched(self, outcome: Outcome, cancelled: bool) -> bool:
        """Store the outcome unless somebody may be waiting for it; returns whether it was stored."""
        if threading.get_ident() == main.ident:
            with lock:
                if not self._watched:
                    self._store(outcome, cancelled)
                return not self._watched
        acquire_yielding(lock)
        try:
            if not self._watched:
                self._store(outcome, cancelled)
            return not self._watched
        finally:
            lock.release()

    def _store(self, outcome: Outcome, cancelled: bool) -> None:
        if cancelled:
            self._state = CANCELLED_AND_NOTIFIED
            return
        if type(outcome) is Success:
            self._result = outcome.value
        else:
            self._exception = outcome[0]
        self._state = FINISHED  # last: who sees it may read the result without a lock

    def _tell_waiters(self) -> None:
        for waiter in self._waiters:
            if self._state == CANCELLED_AND_NOTIFIED:
                waiter.add_cancelled(self)
            elif self._exception is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)
