"""Threads: workers pull from the queue and run the calls.

    worker ── begin_next ──► call ──► report_ended ──► begin_next ...        nothing to begin: parked on a lock of its own
      │
      └─ timeout, abort: the thread is *abandoned*; a new thread takes over its slot, and settles the attempt

Guarantees:
    Never more live workers than the limit. Python cannot stop a thread, so an abandoned one goes on; it is counted until
    its call returns, what it returns is dropped, and it ends. What it was granted of the executor's limits it keeps as long.
    The slots of `max_abandoned` of them are refilled: each one beyond costs a slot, and once none is left what waits fails
    with `CapacityExhaustedError` instead of hanging.
    All threads are daemons: an abandoned one never keeps the interpreter alive. (That pending work is finished at exit
    is the executor's business.)
    User code never runs in the clock thread, except when a slot cannot be refilled.
    When the system refuses a thread, the pool goes on with those it has, and tries again. Without any it does so for
    `PATIENCE`; then what waits fails with `WorkerStartError`, and what is added later has its own try.
"""

from __future__ import annotations

import itertools
import math
import threading
from _contextvars import copy_context  # `contextvars` is this, and one module more
from functools import partial

from parallel_exec import _forks
from parallel_exec._checks import check_count, check_initializer, refuse_names
from parallel_exec._current import current
from parallel_exec._lazy import LAZY, lazy_result
from parallel_exec._outcome import Failure, succeeded
from parallel_exec._sync.clock import time
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.parking import Parker, Waiters
from parallel_exec._sync.threads import arrive, launch
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward, weakly
from parallel_exec.backends.base import Backend, Consumer, Runner, SchedulerPort, log_abandoned
from parallel_exec.errors import CapacityExhaustedError, copy_of, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Callable

    from typing_extensions import Never

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._core.settings import Settings
    from parallel_exec._outcome import Outcome
    from parallel_exec.errors import WorkerStartError

PAUSE = 0.05  # seconds until the next try once the system has refused a thread; a guess
PATIENCE = 1.0  # seconds for which a pool without a thread tries to start one; a guess
_backends = itertools.count()


class _Worker:
    """A thread and its slot.

    Attributes:
        timer: due when the attempt outruns its timeout; not disarmed after it, as the clock need not hear of each attempt.
        job: what it runs; written by its own thread.
        starter: the thread that starts it.
        port: the scheduler.
        abandoned: whether another thread has its slot now; guarded by the scheduler's lock.
        kept: what an abandoned attempt holds of the executor's limits until its call returns; guarded by that lock, too.
    """

    port = Upward[SchedulerPort]()

    def __init__(self, name: str, port: SchedulerPort) -> None:
        self.name = name
        self.port = port
        self.job: AnyJob | None = None
        self.abandoned = False
        self.kept: Grant | None = None
        self.timer = port.timers.timer(weakly(self._time_is_up))
        self.thread: threading.Thread | None = None
        self.starter = threading.get_ident()
        parker = Parker()
        self.wake, self.wait = parker.unpark, parker.wait

    def _time_is_up(self) -> None:
        self.port.expire(self, self.job)

    def end_kept(self) -> None:
        """Give back what an abandoned attempt still holds, now that its call has returned."""
        with self.port.lock:
            kept, self.kept = self.kept, None
        if kept is not None:
            self.port.end_kept(kept)


class _IdleCallback:
    """An idle consumer that calls something when it is woken: what starts a worker, or what refuses all there is."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.wake = weakly(callback)


def call(
    settings: Settings,
    context: Context | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
) -> Outcome:
    """Run a call in a context: a fresh copy of its submitter's, as an abandoned attempt may still be in the last one.

    A function of its own, because an exception's traceback keeps its frames: nothing here leads to the job. Nor may
    what is left of the frames that called it, which a frame keeps, too: callers drop what they had, or call `apart`.
    """
    born = _forks.generation
    try:
        context = copy_context() if context is None else context.copy()  # None: it has just ended, and this is dropped
        value = context.run(fn, *args, **kwargs) if kwargs else context.run(fn, *args)
        if _forks.generation != born:
            _forks.end()
        if type(value) in LAZY and not settings.allows_lazy:
            return Failure(lazy_result(value))
        return succeeded((value,))
    except BaseException as error:  # sys.exit() and KeyboardInterrupt in a task are failures of the task
        _forks.end_child(born, error)
        del context, fn, args, kwargs
        return Failure(error)


class ThreadBackend(Backend):
    """Runs attempts in threads of this process, started as they are needed.

    They are daemons, and a thread that a task starts is one, too, unless it is made with `daemon=False`. A task runs in a
    copy of its submitter's context, so context variables (and `decimal`'s context) that `initializer` sets do not reach it.

    Args:
        initializer: called with `initargs` in each thread before its first task.
        initargs: its arguments.
        thread_name_prefix: names the threads.
        max_abandoned: how many threads may be stuck in tasks that nobody waits for any more while all slots are kept up;
            each one beyond costs a slot until it ends. The default is a guess: a stuck thread costs some 50 kB, and
            hundreds of them mean that the work belongs into processes.
    """

    name = "thread"

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        thread_name_prefix: str = "",
        max_abandoned: int = 256,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("ThreadBackend", _misspelt, ThreadBackend.__init__)
        check_initializer(initializer, initargs)
        if not isinstance(thread_name_prefix, str):
            raise TypeError(f"thread_name_prefix takes a string, not {thread_name_prefix!r}")
        self._initializer = initializer
        self._initargs = initargs
        self._prefix = thread_name_prefix or f"parallel_exec-{next(_backends)}"
        self._max_abandoned = check_count("max_abandoned", max_abandoned, 0)

    def make_runner(self, port: SchedulerPort, limit: int) -> ThreadRunner:
        """Return a new runner."""
        return ThreadRunner(port, limit, self._initializer, self._initargs, self._prefix, self._max_abandoned)


class ThreadRunner(Runner):
    """Runs attempts in threads. What has no note is guarded by the scheduler's lock."""

    def __init__(
        self,
        port: SchedulerPort,
        limit: int,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        prefix: str,
        max_abandoned: int,
    ) -> None:
        super().__init__(port, limit)
        self._initializer = initializer  # written once, as the next four
        self._initargs = initargs
        self._prefix = prefix
        self._max_abandoned = max_abandoned
        self._names = itertools.count()
        self._workers: set[_Worker] = set()
        self._stuck: set[_Worker] = set()
        self._leaving: list[threading.Thread] = []  # at the very end of their bodies
        self._joining = Waiters()  # woken when a worker has left
        self._spawner = _IdleCallback(self._spawn)
        self._refuser: Consumer = _IdleCallback(self._refuse_all)
        self._next_try = port.timers.timer(weakly(self._offer))  # armed when the system has refused a thread
        self._refused_since = -math.inf  # since when it does so while there is no thread
        self._refused_at = -math.inf  # when it did so last
        port.park(self._spawner)

    # ── starting and ending threads ─────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, first: Callable[[], object] | None = None) -> None:
        """Start a worker, which calls `first` before anything else; without room for one that is called here."""
        port = self.port
        worker = _Worker(f"{self._prefix}_{next(self._names)}", port)
        firsts = [first]  # taken out by the thread, whose arguments would keep an abandoned task as long as it lives
        thread = threading.Thread(target=self._serve, args=(worker, firsts), name=worker.name, daemon=True)
        try:
            with port.lock:
                room = len(self._workers) < self._room() and (first is not None or not port.drained)
                if room:
                    self._workers.add(worker)
            if room:
                port.timers.start()
                launch(thread)
                self._refused_at = -math.inf
        except (RuntimeError, MemoryError) as error:  # no more threads to be had, or the interpreter is ending
            self._start_failed(worker, first, error)
            return
        except BaseException:  # a signal handler's
            if worker in self._workers and thread.ident is None:
                launch(thread)
            self._offer()
            raise
        try:
            if not room:
                if first is not None:
                    guarded(first)
                port.decline(self._spawner)
        finally:
            self._offer()

    def _room(self) -> int:
        """Return how many workers there may be: slots beyond the cap on abandoned threads are lost."""
        return self._limit - max(0, len(self._stuck) - self._max_abandoned)

    def _offer(self) -> None:
        """Be woken when there is work, to start a worker if there is room, or to end the work if there is no slot at all.

        Called without the lock held.
        """
        port = self.port
        port.unpark(self._spawner)
        port.unpark(self._refuser)
        if len(self._workers) < self._room():
            port.park(self._spawner, last=True)
        elif not self._workers:
            port.park(self._refuser)

    def _start_failed(self, worker: _Worker, first: Callable[[], object] | None, error: Exception) -> None:
        self._dismiss(worker)
        if first is not None:
            guarded(first)
        now = time.monotonic()
        with self.port.lock:
            if self._workers or now - self._refused_at > PATIENCE:  # or there was nothing to do meanwhile
                self._refused_since = now
            since, self._refused_at = self._refused_since, now
        self.port.unpark(self._spawner)
        try:
            self.port.timers.start()
        except (RuntimeError, MemoryError):  # then there is nothing that could try again
            since = now - PATIENCE
        if self._workers or now - since < PATIENCE:
            self._next_try.arm(now + PAUSE)
            self.port.decline(self._spawner)
        else:
            self._reject_waiting(start_error("thread", f"no thread can be started: {error}"))

    def _reject_waiting(self, error: WorkerStartError) -> None:
        """End what waits, and start afresh with what is added from now on."""
        self._refused_at = -math.inf
        for _ in range(self.port.waiting()):  # not what callbacks add meanwhile
            job = self.port.take(self._spawner)
            if job is None:
                break
            self.port.reject(job, copy_of(error))
        self._offer()

    def _dismiss(self, worker: _Worker) -> None:
        """Forget a worker, and wake who joins."""
        with self.port.lock:
            self._workers.discard(worker)
            self._stuck.discard(worker)
            self._joining.wake_all()

    def _refuse_all(self) -> None:
        """End what waits, for as long as there is no slot, nor room for one."""
        while self._room() <= 0:
            job = self.port.take(self._refuser)
            if job is None:
                return
            self.port.reject(job, CapacityExhaustedError(len(self._stuck)))
        self.port.decline(self._refuser)
        self._offer()  # last: it may list the refuser anew

    def _serve(self, worker: _Worker, firsts: list[Callable[[], object] | None]) -> None:
        """Be a worker: the body of each thread."""
        current.work_for(self.port)
        arrive()
        worker.thread = threading.current_thread()
        try:
            first = firsts.pop()
            if first is not None:
                guarded(first)
            del first
            if self._initialize():
                self.port.events.emit("WorkerStarted", worker.name)
                self._work(worker, self.port)
        finally:
            self._leave(worker)
            del self, worker  # the errors of all attempts lead to this frame, and to that of `_work`

    def _work(self, worker: _Worker, port: SchedulerPort) -> None:
        """Run one attempt after the other, parked until there is one, until it is time to end."""
        job: Any
        # The job that has ended and is still to be counted; in a list, from which the scheduler takes it.
        ended: list[AnyJob | None] = []
        while not worker.abandoned and not (len(self._workers) > self._limit and self._is_surplus(worker)):
            begun = port.begin_next(worker, worker.name, ended)
            if begun is None:
                if port.drained:
                    break
                worker.wait()
                continue
            worker.job, number = begun
            job = worker.job
            if worker.timer.deadline == NEVER and job.settings.timeout is not None:
                worker.timer.arm(job.started_at + job.settings.timeout)  # it was due before it could know for whom
            grant = job.grant
            if grant is None and job.settings.needs is not None:
                with port.lock:  # it was abandoned meanwhile, and its call begins all the same
                    grant = worker.kept
            current.begin(job, number, None if grant is None else grant.facts)
            outcome = call(job.settings, job.context, job.fn, job.args, job.kwargs)
            current.end()
            worker.job = None
            ended.append(port.report_ended(job, number, outcome, time.monotonic()))
            del begun, job, outcome  # an error's traceback leads to this frame
            if grant is not None:
                worker.end_kept()
                del grant
        last = ended.pop() if ended else None
        if last is not None:
            port.account(last)
        del self, worker, port, last

    def _leave(self, worker: _Worker) -> None:
        worker.end_kept()  # of an attempt that was abandoned just as it began, or ended
        with self.port.lock:
            if worker in self._workers:  # an abandoned thread may end any time, and nobody waits for it
                self._leaving = [thread for thread in self._leaving if thread.is_alive()]
                self._leaving.append(threading.current_thread())
            self._dismiss(worker)
        if not self.port.drained:
            self._offer()

    def _initialize(self) -> bool:
        if self._initializer is None:
            return True
        born = _forks.generation
        try:
            self._initializer(*self._initargs)
            _forks.end_child(born)
        except BaseException as error:
            _forks.end_child(born, error)
            why = f"the initializer of the worker threads failed: {type(error).__name__}: {error}"
            failed = start_error("thread", why)
            failed.__cause__ = error
            self.port.fail_all(failed)
            return False
        return True

    def _is_surplus(self, worker: _Worker) -> bool:
        """Return whether a worker should end, as the limit was lowered; says so to no more than there are."""
        with self.port.lock:
            if len(self._workers) <= self._room():
                return False
            self._workers.discard(worker)
        self.port.decline(worker)
        return True

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Abandon the thread that runs the attempt, and let the thread that takes over its slot settle it."""
        port = self.port
        with port.lock:
            worker = job.slot
            if not port.claim(job, number):
                return
            worker.abandoned = True
            worker.kept = port.keep_grant(job, error)
            self._workers.discard(worker)
            self._stuck.add(worker)
        first = partial(self._settle_abandoned, worker, job, number, error, time.monotonic())
        self._spawn(first)

    def _settle_abandoned(self, worker: _Worker, job: AnyJob, number: int, error: BaseException, end: float) -> None:
        if worker in self._stuck:  # else it has ended meanwhile, as one does that looks at its deadline
            log_abandoned(error, job.id, number, f"thread {worker.name}")
        self.port.events.emit("WorkerDied", worker.name, f"abandoned: {error}")
        self.port.settle(job, Failure(error), end)

    def resize(self, limit: int) -> None:
        """Change the limit; workers beyond it end when they are free."""
        with self.port.lock:
            self._limit = limit
            surplus = len(self._workers) - self._room()
            parked = [worker for worker in self._workers if surplus > 0 and self.port.unpark(worker)]
        for worker in parked:
            worker.wake()
        self._offer()

    def join(self) -> None:
        """Wait for the workers, not for abandoned threads: one that is abandoned meanwhile leaves the workers."""
        me = threading.get_ident()  # a signal handler may have interrupted the start of a worker right here
        self._joining.wait(
            lambda: not any(worker.thread is not None or worker.starter != me for worker in tuple(self._workers))
        )
        for thread in self._leaving:
            thread.join()

    def workers(self) -> int:
        """Return how many workers there are."""
        return len(self._workers)

    def slots(self) -> int:
        """Return for how many workers there is room."""
        return self._room()

    def abandoned(self) -> int:
        """Return how many threads are stuck."""
        return len(self._stuck)
