"""Threads: workers pull from the queue and run the calls.

    worker ── begin_next ──► call ──► report_ended ──► begin_next ...        nothing to begin: parked on a lock of its own
      │
      └─ timeout, abort: the thread is *abandoned*; a new thread takes over its slot, and settles the attempt

Guarantees:
    Never more live workers than the limit. Python cannot stop a thread, so an abandoned one goes on; it is counted until
    its call returns, what it returns is dropped, and it ends. What it was granted of the executor's limits it keeps as long.
    The slots of `max_abandoned` of them are refilled: each one beyond costs a slot, and once none is left what waits fails
    with `CapacityExhaustedError` instead of hanging.
    A worker that ends calls the `finalizer`, one that was abandoned when its call has returned at last. Nobody waits for that
    longer than `FINALIZER_LIMIT`: then the worker is abandoned, and its slot free.
    All threads are daemons: an abandoned one never keeps the interpreter alive. (That pending work is finished at exit
    is the executor's business.)
    User code never runs in the clock thread, except when a slot cannot be refilled.
    Wherever Ctrl-C tears `stop` apart, an attempt that was claimed is settled by then, once.
    When the system refuses a thread, the pool goes on with those it has, and tries again. Without any it does so for
    `PATIENCE`; then what waits fails with `WorkerStartError`, and what is added later has its own try.
"""

from __future__ import annotations

import itertools
import math
import threading
from functools import partial

from parallel_exec import _forks
from parallel_exec._current import current
from parallel_exec._dispatcher import logger
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.guarded import guarded
from parallel_exec._sync.locks import call_whole
from parallel_exec._sync.parking import Parker, Waiters
from parallel_exec._sync.threads import arrive, launch, main
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import Upward, weakly
from parallel_exec.backends._call import call
from parallel_exec.backends._cpu_time import LONG, NEVER_ASKED, ask, used_since
from parallel_exec.backends.base import Consumer, Runner, SchedulerPort, log_abandoned, lowest_free
from parallel_exec.errors import CapacityExhaustedError, TaskTimeoutError, copy_of, located, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, NamedTuple

    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.limits.grant import Grant
    from parallel_exec._stacks import Stacks
    from parallel_exec.errors import WorkerStartError
else:
    from parallel_exec._typing import NamedTuple

PAUSE = 0.05  # seconds until the next try once the system has refused a thread; a guess
PATIENCE = 1.0  # seconds for which a pool without a thread tries to start one; a guess
FINALIZER_LIMIT = 2.0  # seconds for which a finalizer is waited for, as long as a worker process has to end; a guess


class _Worker:
    """A thread and its slot.

    Attributes:
        timer: due when the attempt outruns its timeout; not disarmed after it, as the clock need not hear of each attempt.
        index: its number among those at work; written once, with the scheduler's lock held.
        job: what it runs; written by its own thread.
        finalizing_since: when it began to call the finalizer (monotonic); its own thread's, too.
        starter: the thread that starts it.
        port: the scheduler.
        abandoned: whether another thread has its slot now; guarded by the scheduler's lock.
        kept: what an abandoned attempt holds of the executor's limits until its call returns; guarded by that lock, too.
    """

    port = Upward[SchedulerPort]()

    def __init__(self, name: str, port: SchedulerPort) -> None:
        self.name = name
        self.port = port
        self.index = 0
        self.job: AnyJob | None = None
        self.finalizing_since = NEVER
        self.abandoned = False
        self.kept: Grant | None = None
        self.timer = port.timers.timer(weakly(self._time_is_up))
        self.thread: threading.Thread | None = None
        self.starter = threading.get_ident()
        parker = Parker()
        self.wake, self.wait = parker.unpark, parker.wait

    def _time_is_up(self) -> None:
        self.port.expire(self, self.job)

    def stacks(self) -> Stacks | None:
        """Return where its thread is; None if there is none yet."""
        from parallel_exec import _stacks  # only a timeout needs it

        ident = None if self.thread is None else self.thread.ident
        return None if ident is None else _stacks.of_thread(ident, self.name)

    def take_index(self, taken: Iterable[int]) -> None:
        """Have an index from now on. Called with the scheduler's lock held."""
        self.index = lowest_free(taken)

    def begin_finalizer(self, late: Callable[[], object]) -> None:
        """Note that it calls the finalizer from now on; `late` is called if that takes too long. In its own thread."""
        self.finalizing_since = time.monotonic()
        self.timer.cancel()
        self.timer = self.port.timers.timer(late)
        self.timer.arm(self.finalizing_since + FINALIZER_LIMIT)

    def is_overdue(self) -> bool:
        """Return whether it has called the finalizer for so long that nobody waits for it."""
        return time.monotonic() > self.finalizing_since + FINALIZER_LIMIT

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


class ThreadSettings(NamedTuple):
    """The settings of a `ThreadBackend`, checked; `prefix` is its `thread_name_prefix`."""

    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    prefix: str
    max_abandoned: int
    finalizer: Callable[[], object] | None
    min_workers: int
    idle_timeout: float | None


class ThreadRunner(Runner):
    """Runs attempts in threads. What has no note is guarded by the scheduler's lock."""

    def __init__(self, port: SchedulerPort, limit: int, settings: ThreadSettings) -> None:
        super().__init__(port, limit)
        self._settings = settings  # written once, as the next
        self._names = itertools.count()
        self._workers: set[_Worker] = set()
        self._ending: set[_Worker] = set()  # those of them that are too many, until they have left
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
        """Start a worker, which calls `first` before anything else; without room for one `_call_here` does."""
        port = self.port
        worker = _Worker(f"{self._settings.prefix}_{next(self._names)}", port)
        firsts = [] if first is None else [first]  # emptied by the thread, which would keep an abandoned task for good
        thread = threading.Thread(target=self._serve, args=(worker, firsts), name=worker.name, daemon=True)
        try:
            with port.lock:
                room = len(self._workers) < self._room() and (first is not None or not port.drained)
                if room:
                    worker.take_index(other.index for other in self._workers)
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
                    self._call_here(first)
                port.decline(self._spawner)
        finally:
            self._offer()

    def _call_here(self, first: Callable[[], object]) -> None:
        """Call what there is no worker for; not in the main thread, where a signal handler could tear it apart."""
        if threading.get_ident() == main.ident:
            try:
                self.port.timers.timer(first).arm(-math.inf)
                return
            except (RuntimeError, MemoryError):  # there is no clock, and none can be started
                pass
        guarded(first)

    def _room(self) -> int:
        """Return how many workers there may be: slots beyond the cap on abandoned threads are lost."""
        return self._limit - max(0, len(self._stuck) - self._settings.max_abandoned)

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
            self._call_here(first)
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
            for workers in (self._workers, self._ending, self._stuck):
                workers.discard(worker)
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

    def _serve(self, worker: _Worker, firsts: list[Callable[[], object]]) -> None:
        """Be a worker: the body of each thread."""
        current.work_for(self.port, (worker.index, worker.name, {}))
        arrive()
        worker.thread = threading.current_thread()
        try:
            if firsts:
                guarded(firsts.pop())
            if self._initialize():
                self.port.events.emit("WorkerStarted", worker.name)
                self._work(worker, self.port)
                self._finalize(worker)
        finally:
            self._leave(worker)
            del self, worker  # the errors of all attempts lead to this frame, and to that of `_work`

    def _work(self, worker: _Worker, port: SchedulerPort) -> None:
        """Run one attempt after the other, parked until there is one, until it is time to end."""
        job: Any
        asked = NEVER_ASKED  # the clock of the CPU: see `_cpu_time.py`
        # The job that has ended and is still to be counted; in a list, from which the scheduler takes it.
        ended: list[AnyJob | None] = []
        while not worker.abandoned and not (len(self._workers) > self._limit and self._is_surplus(worker)):
            begun = port.begin_next(worker, worker.name, ended)
            if begun is None:
                if port.drained or self._ends_idle(worker):
                    break
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
            start = job.started_at
            if start - asked.at >= LONG:
                asked = ask(start)
            outcome = call(job.settings, job.context, job.fn, job.args, job.kwargs)
            current.end()
            worker.job = None
            end = time.monotonic()
            used = None if end - start < LONG else used_since(asked, start, end)
            ended.append(port.report_ended(job, number, outcome, end, used))
            del begun, job, outcome  # an error's traceback leads to this frame
            if grant is not None:
                worker.end_kept()
                del grant
        last = ended.pop() if ended else None
        if last is not None:
            port.account(last)
        del self, worker, port, last

    def _leave(self, worker: _Worker) -> None:
        with self.port.lock:
            if not worker.abandoned:  # else it may end any time, and nobody waits for it
                self._leaving = [thread for thread in self._leaving if thread.is_alive()]
                self._leaving.append(threading.current_thread())
            self._dismiss(worker)
        worker.end_kept()  # of an attempt that was abandoned just as it began, or ended
        if not self.port.drained:
            self._offer()

    def _initialize(self) -> bool:
        if self._settings.initializer is None:
            return True
        born = _forks.generation
        try:
            self._settings.initializer(*self._settings.initargs)
            _forks.end_child(born)
        except BaseException as error:
            _forks.end_child(born, error)
            why = f"the initializer of the worker threads failed: {type(error).__name__}: {error}"
            failed = start_error("thread", why)
            failed.__cause__ = error
            self.port.fail_all(failed)
            del failed  # the traceback of `error` leads to this frame
            return False
        return True

    def _finalize(self, worker: _Worker) -> None:
        """Call the finalizer, at the end of a worker."""
        if self._settings.finalizer is None:
            return
        worker.begin_finalizer(partial(weakly(self._is_late), worker))
        try:
            _forks.finalize(self._settings.finalizer, f"thread {worker.name}")
        finally:
            worker.timer.cancel()

    def _is_late(self, worker: _Worker) -> None:
        """Abandon a worker whose finalizer takes too long. Called by the clock, which is not to run log handlers."""
        if self._give_up_on(worker):
            guarded(launch, threading.Thread(target=_tell_overdue, args=(worker.name,), daemon=True))

    def _give_up_on(self, worker: _Worker) -> bool:
        """Abandon a worker that calls the finalizer; returns whether it was none."""
        with self.port.lock:
            if worker not in self._workers:
                return False
            worker.abandoned = True
            self._dismiss(worker)
            self._stuck.add(worker)
        if not self.port.drained:
            self._offer()
        return True

    def _ends_idle(self, worker: _Worker) -> bool:
        """Wait until there is something to do; returns whether the worker should end instead."""
        return not worker.wait(self._settings.idle_timeout) and self._is_surplus(worker, idle=True)

    def _is_surplus(self, worker: _Worker, *, idle: bool = False) -> bool:
        """Return whether a worker should end, as the limit was lowered, or as it is idle; says so to no more than are too many.

        One that is idle may have been woken meanwhile: then another is woken in its place.
        """
        with self.port.lock:
            most = self._settings.min_workers if idle else self._room()
            if worker.abandoned or len(self._workers) - len(self._ending) <= most:
                return False
            # And has its slot until it has called the finalizer, as nobody else may have its index.
            self._ending.add(worker)
        self.port.decline(worker)
        return True

    # ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Abandon the thread that runs the attempt, and let the thread that takes over its slot settle it."""
        won: list[None] = []  # not empty: we have claimed it, and nobody has begun to settle it
        try:
            call_whole(self.port.lock, self._abandon, job, number, error, won)
        except BaseException:  # a signal handler's
            if won:
                self._abandon(job, number, error, won)
            raise

    def _abandon(self, job: AnyJob, number: int, error: BaseException, won: list[None]) -> None:
        """Do as `stop`. May be repeated, wherever an exception has torn it apart."""
        port = self.port
        with port.lock:
            worker, end = job.slot, time.monotonic()  # now: from here on another has its place
            was_abandoned = worker is None or worker.abandoned
            if worker is not None:
                worker.abandoned = True  # first: once its attempt is claimed, it must begin no other
            if won:
                job.claimed()
            elif not port.claim(job, number, won):
                if worker is not None:
                    worker.abandoned = was_abandoned
                return
            assert worker is not None  # the attempt is live, or nobody has begun to settle it
            if worker in self._workers or worker in self._stuck:  # else it has ended since this was torn apart
                worker.kept = worker.kept or job.grant
                port.keep_grant(job, error)
                self._stuck.add(worker)
                self._workers.discard(worker)
        stacks = worker.stacks() if type(error) is TaskTimeoutError else None
        self._spawn(partial(self._settle_abandoned, worker, job, number, error, stacks, end, won))

    def _settle_abandoned(
        self,
        worker: _Worker,
        job: AnyJob,
        number: int,
        error: BaseException,
        stacks: Stacks | None,
        end: float,
        won: list[None],
    ) -> None:
        try:
            won.pop()
        except IndexError:  # another thread does so: see `stop`
            return
        error = located(error, stacks, job.fn)
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

        def awaited() -> list[_Worker]:
            return [each for each in tuple(self._workers) if each.thread is not None or each.starter != me]

        self._joining.wait(lambda: all(worker.is_overdue() for worker in awaited()))
        for worker in awaited():
            if self._give_up_on(worker):
                _tell_overdue(worker.name)
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


def _tell_overdue(name: str) -> None:
    arrive()
    logger.warning("the finalizer of thread %s has not ended within %g s: it is left to itself", name, FINALIZER_LIMIT)
