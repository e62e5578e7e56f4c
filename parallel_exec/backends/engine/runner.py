"""Runs an executor's attempts in somebody else's engine: an Executor, a dask cluster.

    wake, room ──► feeder: take ──► Submission ──► Engine.submit ──► begins, in a thread of this process or elsewhere
                                                      │
    stop, recall ──► settler: Engine.cancel, abandon ─┤
                         ▲                            ▼
                         └──── done: a result, the task's error, or the engine's own

Two threads of ours, because each may be held up: the feeder by an engine whose `submit` blocks (or runs the call on the spot),
the settler by the callbacks of the user's futures. Neither makes the other wait.

Guarantees:
    Never more live attempts than the limit, nor, as far as the engine says how many workers it has, more in it than it
    can begin at once: what waits, waits with us, in the order of priority (`grouping.py`), and can be cancelled.
    What the engine calls us with takes none of the scheduler's locks: it may call from inside its own `cancel`.
    An attempt that the engine fails or refuses fails with the engine's own error, and the retry policy has its say.
    After `REFUSALS` in a row what waits is refused at once: a broken engine ends tasks, and nothing spins.
    What has begun by what was heard until its task was aborted counts as an attempt, and as its result if it has returned.
    An attempt that the engine does not let go of is abandoned: settled at once, its slot given to the next, what it returns
    dropped. It is counted until the engine says that it has ended.
    When all workers of the engine are held by abandoned attempts, what waits fails with `CapacityExhaustedError` after
    `RECOVERY`, if not one has come back by then, instead of hanging. (An engine that does not say how many workers it
    has gets what the limit allows, and tasks wait in it: a deadline for the run ends that.)
    Before the first `wake` returns the engine has been given something, or has had `SUBMIT_GRACE` for it: an engine that starts
    its workers with the first call has done so before the interpreter can come to its end, from when on (since Python 3.12)
    no thread and no process can be started. What it refuses then for lack of workers is offered again and again.
    The engine is never shut down. `join` waits until our attempts in it have settled, and not for abandoned ones.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import BrokenExecutor, CancelledError
from functools import partial
from typing import TYPE_CHECKING, Callable

from parallel_exec._current import current
from parallel_exec._dispatcher import logger
from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.parking import Parker
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import apart, weakly
from parallel_exec.backends._call import bound, call
from parallel_exec.backends.base import Runner, SchedulerPort, log_abandoned
from parallel_exec.backends.engine.adapter import Engine, EngineHealth, explain
from parallel_exec.backends.engine.kept_grants import KeptGrants
from parallel_exec.backends.engine.remote_call import CallResult
from parallel_exec.backends.engine.serial_thread import SerialThread
from parallel_exec.backends.engine.submission import EngineSlot, State, Submission, submission_of
from parallel_exec.errors import CapacityExhaustedError, TaskTimeoutError, WorkerStartError, located

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec._outcome import Outcome
    from parallel_exec._sync.timers import Timer
    from parallel_exec.backends.engine.adapter import EngineFuture

REFUSALS = 100  # in a row; a guess: any sensible retry policy has had its say by then
RECOVERY = 5.0  # seconds; a guess: a call that looks at its deadline now and then has come back by then
SUBMIT_GRACE = 0.1  # seconds that we give the engine's `submit` to return; a guess: if that blocks, it may for ever
RESUBMIT = 0.01  # seconds until something is handed over again that the engine refused at interpreter exit


class EngineRunner(Runner):
    """Keeps a bounded number of attempts in an engine.

    An attribute without a comment is changed by any thread, in single atomic calls.
    """

    def __init__(self, engine: Engine, port: SchedulerPort, limit: int) -> None:
        super().__init__(port, limit)
        self._engine = engine
        self._holding: set[Submission] = set()  # hold a slot: handed over, or live
        self._inside: set[Submission] = set()  # the engine has not done with them
        self._abandoned: set[Submission] = set()  # abandoned, and still running
        self._by_serial: dict[int, Submission] = {}  # those that "it began" may yet be heard of
        self._free: list[EngineSlot] = []
        self._settler = SerialThread(f"parallel_exec-{engine.name}-settler", port, self._end_threads)
        self._feeder = SerialThread(f"parallel_exec-{engine.name}-feeder", port, self._settler.wakeup)
        self._kept = KeptGrants(port, self._settler)
        self._exhaustion = port.timers.timer(weakly(self._stay_exhausted))  # due while abandoned attempts hold all
        self._started = False  # written by `wake`, which nobody calls twice at a time
        self._exiting = False  # whether the interpreter has come to its end; written once
        self._has_fed = Parker()  # of whoever starts the feeder
        self._serials = itertools.count(1)  # the feeder's own, as the next two
        self._refusals = 0
        self._handing_over: Submission | None = None
        self._health = EngineHealth(engine.name, port.events)  # the settler's own
        engine.open(self)
        port.park(self)

    # ── taking: the feeder ──────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Have the feeder take; starts our threads the first time."""
        if not self._started:
            if self.port.drained and not self._engine.must_close:
                return
            try:
                self.port.timers.start()
                self._feeder.start()
                self._settler.start()
            except (RuntimeError, MemoryError) as error:  # no more threads to be had, or the interpreter is ending
                self.port.fail_all(WorkerStartError(f"no thread can be started: {error}"))
                return
            self._started = True
            self._feeder.call_soon(self._feed)
            self._has_fed.wait(SUBMIT_GRACE)
        else:
            self._feeder.call_soon(self._feed)

    def _feed(self) -> None:
        """Hand over what there is room for."""
        port = self.port
        port.unpark(self)
        while self._has_room() and not self._engine.must_wait(port):
            if (job := port.take(self)) is None:
                break
            self._hand_over(job)
            del job  # an error of the engine's leads to this frame
            self._has_fed.unpark()
        else:
            port.decline(self)
        self._engine.flush()
        self._has_fed.unpark()

    def _has_room(self) -> bool:
        if not self._engine.has_room(self._limit, len(self._holding)):
            return False
        capacity = self._engine.capacity()
        if capacity is None or self._engine.occupied(len(self._inside)) < capacity:
            self._exhaustion.disarm()
            return True
        if not self._holding and self._exhaustion.deadline == NEVER:
            self._exhaustion.arm(time.monotonic() + RECOVERY)
        return False

    def _stay_exhausted(self) -> None:
        self._feeder.call_soon(self._reject_waiting)

    def _reject_waiting(self) -> None:
        """End what waits, for as long as the engine has not got back a single worker."""
        while not self._holding and (slots := self._engine.capacity()) is not None and len(self._abandoned) >= slots:
            if (job := self.port.take(self)) is None:
                return
            self.port.reject(job, CapacityExhaustedError(len(self._abandoned)))
        self._feed()

    def _hand_over(self, job: AnyJob) -> None:
        slot = self._free.pop() if self._free else EngineSlot(self.port.timers.timer, self._due)
        submission = Submission(job, slot, next(self._serials))
        self._holding.add(submission)
        self._inside.add(submission)
        self._by_serial[submission.serial] = submission
        with self.port.lock:
            job.placed(slot)  # from here on it can be recalled
        self._handing_over = submission
        try:
            engine_future = self._engine.submit(submission)
        except BaseException as error:
            self._refused(submission, error)
            return
        finally:
            self._handing_over = None
            del job  # an error's traceback holds this frame
        self._refusals = 0
        unwanted = submission.accepted(engine_future)
        engine_future.add_done_callback(partial(self._done, submission))
        if unwanted:
            self._settler.call_soon(partial(self._cancel, submission))

    def _refused(self, submission: Submission, error: BaseException) -> None:
        """Fail what the engine's `submit` raised for; unless it has begun nevertheless, and will report by itself."""
        self._inside.discard(submission)
        if submission.leave_engine():
            self._abandoned.discard(submission)
        self._by_serial.pop(submission.serial, None)
        if submission.state == State.WITHDRAWN:
            self._release(submission)
        elif self._exiting and self._refusals < REFUSALS and submission.withdraw():
            self._refusals += 1
            self._release(submission)
            self.port.finish_overridden(self.port.requeue([submission.job]))
            time.sleep(RESUBMIT)
            self._feeder.call_soon(self._feed)
        elif submission.begin(self._engine.name, time.monotonic()):
            self._refusals += 1
            self._settler.call_soon(partial(self._fail, submission, error, for_good=self._refusals > REFUSALS))

    # ── an attempt in a thread of this process ──────────────────────────────────────────────────────────────────────

    def run_here(self, submission: Submission, place: int) -> None:
        """Run an attempt in the calling thread, the worker of this index, unless it was withdrawn."""
        if not submission.begin(threading.current_thread().name, time.monotonic(), here=True):
            return
        job = submission.job
        outer = current.saved()
        current.work_for(self.port, current.borrowed(place, submission.worker))
        try:
            if self._begin(submission) and submission.state == State.RUNNING:  # else it was stopped just now
                current.begin(job, submission.number, submission.granted)
                outcome = apart(call, *bound(job))
                current.end()
                self._report(submission, outcome, time.monotonic())
        except BaseException:  # from a callback or a hook: the engine must not see it
            logger.exception("a callback of task %r raised", job.id)
        finally:
            current.restore(outer)
            self._release(submission)
            engine_is_done = submission.return_here()
            self._abandoned.discard(submission)
            self._kept.gone(submission)
            if engine_is_done:
                self._feeder.call_soon(self._feed)

    # ── an attempt elsewhere ────────────────────────────────────────────────────────────────────────────────────────

    def submission(self, serial: int) -> Submission | None:
        """Return the attempt of this serial number, if the engine has not done with it."""
        return self._by_serial.get(serial)

    def began(self, submission: Submission, worker: str, ago: float = 0.0) -> None:
        """Take note that an attempt has begun elsewhere, so many seconds ago. Takes no lock."""
        self._settler.call_soon(partial(self._began, submission, worker, time.monotonic() - ago))

    def timer(self, due: Callable[[], object]) -> Timer:
        """Return a timer for the engine."""
        return self.port.timers.timer(due)

    def _began(self, submission: Submission, worker: str, start: float) -> None:
        if submission.begin(worker, start):
            self._begin_elsewhere(submission, begun=True)
        elif submission.state == State.ABANDONED:
            self._cancel(submission)  # only now it is known where it runs
        elif submission.state == State.RUNNING and worker != submission.worker:
            self._restart_clock(submission, worker, start)

    def _restart_clock(self, submission: Submission, worker: str, start: float) -> None:
        """Let the timeout count anew: the engine has lost the worker, and begun the attempt again on another."""
        job = submission.known_job
        with self.port.lock:
            slot = submission.slot
            if slot is None or job is None or job.slot is not slot or job.attempt_number != submission.number:
                return
            submission.restart(worker, start)
            job.restart_clock(worker, start)
            if job.settings.timeout is not None:
                slot.timer.arm(start + job.settings.timeout)

    def _done(self, submission: Submission, engine_future: EngineFuture) -> None:
        """Hear that the engine has done with an attempt; its callback, maybe with the scheduler's lock held."""
        self._inside.discard(submission)
        if submission.leave_engine():
            self._abandoned.discard(submission)
        self._kept.gone(submission)
        if submission.slot is None:
            self._by_serial.pop(submission.serial, None)
            self._feeder.call_soon(self._feed)
        else:
            self._settler.call_soon(partial(self._ended, submission, engine_future))

    # ── beginning and ending ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, submission: Submission, *, begun: bool = False, over: bool = False) -> bool:
        """Do as `SchedulerPort.begin`; False if the attempt's task ends instead, aborted or by a hook of the policy's."""
        job, slot = submission.job, submission.slot
        assert slot is not None, "it is held until the attempt is settled"
        return self.port.begin(job, slot, submission.worker, submission.started_at, begun=begun, over=over) > 0

    def _begin_elsewhere(self, submission: Submission, *, begun: bool) -> None:
        """Do as `_begin` for an attempt elsewhere, and have the engine let go of it if its task ends instead."""
        begins, override = False, submission.job.override
        if submission.grant is not None and override is not None:  # its call runs all the same, with what it holds
            self._abandon(submission)
            self._kept.keep(submission, submission.job, override.error, self._engine.killing(submission))
        try:
            begins = self._begin(submission, begun=begun)
        finally:  # also when a callback raises what is no Exception
            if not begins:
                self._abandon(submission)
                self._release(submission)
                self._feeder.call_soon(self._feed)

    def _report(self, submission: Submission, outcome: Outcome, end: float) -> None:
        """Settle an attempt, unless it is settled."""
        job = submission.known_job
        try:
            if job is not None:
                self.port.report(job, submission.number, outcome, end)
        finally:
            self._release(submission)

    def _release(self, submission: Submission, *, reusable: bool = True) -> None:
        """Let an attempt's slot go; harmless when repeated."""
        slot = submission.release()
        if slot is not None:
            self._holding.discard(submission)
            if reusable:
                self._free.append(slot)

    def _ended(self, submission: Submission, engine_future: EngineFuture) -> None:
        """Settle what the engine has done with, if it is not settled. Called by the settler."""
        failed = engine_future.cancelled() or engine_future.exception() is not None
        if failed:
            with self.port.lock:  # which `recall` holds, when it is about to withdraw what it has had cancelled
                pass
        if failed and submission.is_pending and self._engine.await_start(submission):
            self._settler.call_soon(partial(self._ended, submission, engine_future))  # after `_began`
            return
        self._by_serial.pop(submission.serial, None)
        if submission.runs_here:  # only its future was cancelled, and it reports by itself
            return
        try:
            if submission.state == State.WITHDRAWN:
                pass
            elif engine_future.cancelled():
                self._end_badly(submission, CancelledError("the engine cancelled the attempt"))
            elif (error := engine_future.exception()) is not None:
                self._end_badly(submission, error)
            elif (result := engine_future.result()) is not None:
                self._end_well(submission, CallResult(*result))  # which an interpreter passes on as a plain tuple
            else:
                self._requeue(submission)
        finally:  # also when a callback raises what is no Exception
            self._release(submission)
            self._feeder.call_soon(self._feed)

    def _end_well(self, submission: Submission, result: CallResult) -> None:
        """Settle what the engine has run elsewhere."""
        self._health.works()
        is_news = submission.begin(result.worker, time.monotonic() - result.duration)
        begins, job = not is_news or self._begin(submission, begun=True, over=True), submission.known_job
        if begins and submission.state == State.RUNNING and job is not None:
            self._report(submission, result.outcome(job), submission.started_at + result.duration)

    def _requeue(self, submission: Submission) -> None:
        """Put back what the engine has had and will never begin; it is not charged."""
        with self.port.lock:
            job = submission.known_job
            overridden = self.port.requeue([job]) if submission.withdraw_sent() and job is not None else []
        self.port.finish_overridden(overridden)

    def _end_badly(self, submission: Submission, error: BaseException) -> None:
        """Settle what the engine failed."""
        now = time.monotonic()
        had_begun = not submission.begin(self._engine.name, now)
        if isinstance(error, BrokenExecutor):
            self._health.fails(error)
        job = submission.known_job
        if (had_begun or self._begin(submission)) and submission.state == State.RUNNING and job is not None:
            self._report(submission, Failure(explain(error, job, had_begun=had_begun)), now)

    def _fail(self, submission: Submission, error: BaseException, for_good: bool) -> None:
        """Settle what the engine refused. Called by the settler."""
        self._health.fails(error)
        try:
            if for_good:
                self.port.reject(submission.job, error)
            elif self._begin(submission):
                self._report(submission, Failure(explain(error, submission.job, had_begun=False)), time.monotonic())
        finally:  # also when a callback raises what is no Exception
            self._release(submission)
            self._feeder.call_soon(self._feed)

    def _due(self, slot: EngineSlot, submission: Submission) -> None:
        """Act on a slot's timer. Called by the clock thread."""
        if submission.is_pending:
            self._settler.call_soon(partial(self._engine.overdue, submission))
        else:
            self.port.expire(slot, submission.known_job)

    # ── ends from outside ───────────────────────────────────────────────────────────────────────────────────────────

    def recall(self, job: AnyJob) -> bool:
        """Take a job back if it certainly has not begun. Called with the lock held."""
        handed = submission_of(job)
        if handed is None or not handed.is_pending or not (handed.withdraw() or self._engine.recall(handed)):
            return False
        self._settler.call_soon(partial(self._let_withdrawn_go, handed))
        return True

    def recall_all(self) -> None:
        """Take back what has not begun. Called with the lock held."""
        recalled = [job for job in self.handed_out() if job.override is None and self.recall(job)]
        self.port.finish_overridden(self.port.requeue(recalled))

    def handed_out(self) -> list[AnyJob]:
        """Return what has not begun. Called with the lock held."""
        return [job for each in list(self._holding) if each.is_pending and (job := each.known_job) is not None]

    def stop(self, job: AnyJob, number: int, error: BaseException) -> None:
        """Have the settler cancel the attempt in the engine, or else abandon it."""
        stop: Callable[[], object] | None = None
        won: list[None] = []  # not empty: we have claimed it, and the settler does not settle it yet
        if type(error) is TaskTimeoutError and (seen := submission_of(job)) is not None:
            error = located(error, seen.stacks(), job.fn)  # now: its call may end any moment
        try:
            with self.port.lock:
                submission = submission_of(job)
                if submission is None:
                    return
                stop = partial(self._stop, submission, job, error, time.monotonic(), won)
                self.port.claim(job, number, won)
            self._settler.call_soon(stop)
        except BaseException:  # a signal handler's
            if stop is not None:
                self._settler.call_soon(stop)  # maybe once more, which does nothing
            raise

    def _stop(self, submission: Submission, job: AnyJob, error: BaseException, end: float, won: list[None]) -> None:
        """Settle what `stop` has claimed, once; or end what was aborted and is not known to have begun. Called by the settler."""
        if not won:
            if submission.is_pending and self._engine.await_start(submission):
                self._settler.call_soon(partial(self._stop, submission, job, error, end, won))  # after `_began`
            elif job.override is not None and submission.begin(self._engine.name, time.monotonic()):
                self._begin_elsewhere(submission, begun=False)
            return
        won.pop()
        job.claimed()
        stops = self._abandon(submission)
        self._kept.keep(submission, job, error, self._engine.killing(submission))
        if submission.state == State.ABANDONED:
            if not stops:
                log_abandoned(error, job.id, submission.number, f"{submission.worker} of the executor")
            self.port.events.emit("WorkerDied", submission.worker, f"abandoned: {error}")
        self._release(submission, reusable=False)  # whoever began it may still be arming its timer
        self._feeder.call_soon(self._feed)
        self.port.settle(job, Failure(error), end)

    def _abandon(self, submission: Submission) -> bool:
        """Have the engine let go of an attempt, and count it if it does not; returns what `Engine.cancel` does."""
        submission.abandon()
        self._abandoned.add(submission)
        stops = self._cancel(submission)
        if submission.state != State.ABANDONED:
            self._abandoned.discard(submission)
        return stops

    def _let_withdrawn_go(self, submission: Submission) -> None:
        """Free the slot of an attempt that certainly never begins, also if the engine does not cancel its future."""
        self._cancel(submission)
        self._release(submission)
        self._feeder.call_soon(self._feed)

    def _cancel(self, submission: Submission) -> bool:
        engine_future = submission.engine_future
        return engine_future is not None and self._engine.cancel(submission, engine_future)

    # ── the pool ────────────────────────────────────────────────────────────────────────────────────────────────────

    def recheck(self) -> None:
        """Have our threads look whether all is over: they may wait for the engine, and not be noted as idle."""
        if self._started:
            self._feeder.wakeup()
            self._settler.wakeup()

    def _end_threads(self) -> None:
        self._kept.end()
        self._feeder.wakeup()
        self._engine.close()

    def resize(self, limit: int) -> None:
        """Change the limit; running attempts are left alone."""
        self._limit = limit
        if self._started:
            self._feeder.call_soon(self._feed)

    def finish(self) -> None:
        """Finish all that is pending, as the interpreter is about to exit; the engine may start no more workers then."""
        self._exiting = True
        with contextlib.suppress(ReferenceError):  # the executor is gone, and this is kept by somebody else
            self.port.finish_at_exit()

    def join(self) -> None:
        """Wait until all attempts have settled, and our threads have ended."""
        if not self._started:
            return
        self._settler.join()
        while not self._feeder.join(SUBMIT_GRACE):
            # Of an attempt that is settled, as all are: the engine's `submit` does not return.
            if self._handing_over is not None:
                return

    def workers(self) -> int:
        """Return how many attempts may run in the engine; how many workers it has is its own affair."""
        return min(len(self._holding), self._limit)

    def slots(self) -> int:
        """Return how many attempts the engine can run at once, if it says how many workers it has."""
        capacity = self._engine.capacity()
        return self._limit if capacity is None else min(self._limit, capacity - len(self._abandoned))

    def abandoned(self) -> int:
        """Return how many attempts run in the engine that nobody waits for."""
        return len(self._abandoned)
