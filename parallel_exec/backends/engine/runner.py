"""The common part of back ends whose attempts run in somebody else's engine: an Executor, a dask cluster.

    wake, room ──► feeder: take ──► Ticket ──► engine ──► begins, in this process or elsewhere
                                                 │
    stop, recall ──► settler: cancel, give up ───┤
                         ▲                       ▼
                         └──── done: a result, the task's error, or the engine's own

Two threads of ours, because each may be held up: the feeder by an engine whose `submit` blocks (or runs the call on the
spot), the settler by the callbacks of the user's futures. Neither makes the other wait.

Guarantees:
    Never more live attempts than the limit, nor, as far as the engine says how many workers it has, more in it than it
    can begin at once: what waits, waits with us, in the order of priority, and can be cancelled.
    An attempt that the engine fails or refuses fails with the engine's own error, and the retry policy has its say.
    After `TRIES` refusals in a row what waits is refused at once: a broken engine ends tasks, and nothing spins.
    When all workers of the engine are held by abandoned attempts, what waits fails with `CapacityExhaustedError` after
    `PATIENCE`, if not one has come back by then, instead of hanging. (An engine that does not say how many workers it
    has gets what the limit allows, and tasks wait in it: a deadline for the run ends that.)
    Before the first `wake` returns the engine has been given something, or has had `GRACE` for it: an engine that starts
    its workers with the first call has done so before the interpreter can come to its end, from when on (since Python 3.12)
    no thread and no process can be started. What it refuses then for lack of workers is offered again and again.
    The engine is never shut down. `join` waits until our attempts in it have settled, and not for abandoned ones.
"""

from __future__ import annotations

import abc
import itertools
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from parallel_exec._outcome import Failure
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import weakly
from parallel_exec.backends.engine.serial_thread import SerialThread
from parallel_exec.backends.engine.settling import Settling
from parallel_exec.backends.engine.submission import BEGUN, WITHDRAWN, EngineSlot, Submission
from parallel_exec.errors import CapacityExhaustedError, WorkerStartError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.remote_call import CallResult

TRIES = 100  # refusals in a row; a guess: any sensible retry policy has had its say by then
PATIENCE = 5.0  # seconds; a guess: a call that looks at its deadline now and then has come back by then
GRACE = 0.1  # seconds that we give the engine's `submit` to return; a guess: if that blocks, it may for ever
BREATHER = 0.01  # seconds until something is handed over again that the engine refused at interpreter exit


class EngineRunner(Settling):
    """Keeps a bounded number of attempts in an engine; what kind of engine, subclasses know."""

    has_ending = False  # whether `_ending` must be called even if nothing was ever taken

    def __init__(self, port: SchedulerPort, limit: int) -> None:
        super().__init__(port, limit)
        self._started = False  # written by `wake`, which nobody calls twice at a time
        self._serials = itertools.count(1)
        self.exiting = False  # whether the interpreter has come to its end; written once
        self._fed = threading.Event()  # whether the feeder has fed once
        # The feeder's own:
        self._refusals = 0
        self._handing_over: Submission | None = None
        self._settler = SerialThread(f"parallel_exec-{self.name}-settler", port, self._end_threads)
        self._feeder = SerialThread(f"parallel_exec-{self.name}-feeder", port, self._settler.wakeup)
        self._patience = port.timers.timer(weakly(self._lose_patience))
        port.park(self)

    @abc.abstractmethod
    def _submit(self, submission: Submission) -> Future[CallResult | None]:
        """Hand a ticket over. Called by the feeder; may block."""

    def travel(self, submission: Submission) -> Any:
        """Return what a ticket is pickled as; for engines that pickle it. Called in any thread."""
        raise TypeError(f"a {type(submission).__name__} does not go to the engine of a {type(self).__name__}")

    def _capacity(self) -> int | None:
        """Return how many workers the engine has; None if it does not say."""
        return None

    def _ending(self) -> None:
        """Let go of what the back end holds: all is settled, and nothing will come. Called once, by the settler."""

    # ── taking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Have the feeder take; starts our threads the first time."""
        if not self._started:
            if self.port.drained and not self.has_ending:
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
            self._fed.wait(GRACE)
        else:
            self._feeder.call_soon(self._feed)

    def _feed(self) -> None:
        port = self.port
        port.unpark(self)
        while self._has_room():
            future = port.take(self)
            if future is None:
                break
            self._hand_over(future)
            del future  # an error of the engine's leads to this frame
            self._fed.set()
        else:
            port.decline()
        self._fed.set()

    def _has_room(self) -> bool:
        if len(self._active) >= self._limit:
            return False
        capacity = self._capacity()
        if capacity is None or len(self._inside) < capacity:
            self._patience.disarm()
            return True
        if not self._active and self._patience.deadline == NEVER:
            self._patience.arm(time.monotonic() + PATIENCE)
        return False

    def _lose_patience(self) -> None:
        self._feeder.call_soon(self._refuse_all)

    def _refuse_all(self) -> None:
        """End what waits, for as long as the engine has not got back a single worker."""
        while self._is_lost():
            future = self.port.take(self)
            if future is None:
                return
            self.port.reject(future, CapacityExhaustedError(len(self._stuck)))
        self._feed()

    def _is_lost(self) -> bool:
        capacity = self._capacity()
        return not self._active and capacity is not None and len(self._stuck) >= capacity

    # ── handing over ────────────────────────────────────────────────────────────────────────────────────────────────

    def _hand_over(self, future: AnyJob) -> None:
        place = self._free.pop() if self._free else EngineSlot(self.port.timers.timer, self._due)
        submission = Submission(self, future, place, next(self._serials))
        self._active.add(submission)
        self._inside.add(submission)
        with self.port.lock:
            future.placed(place)  # from here on it can be recalled
        self._handing_over = submission
        try:
            inner = self._submit(submission)
        except BaseException as error:
            self._refused(submission, error)
            return
        finally:
            self._handing_over = None
            del future  # an error's traceback holds this frame
        self._refusals = 0
        submission.inner = inner
        inner.add_done_callback(partial(self._done, submission))
        if submission.fate == WITHDRAWN or submission.unwanted:  # since when there was nothing yet to cancel
            self._settler.call_soon(partial(self._let_go, submission))

    def _refused(self, submission: Submission, error: BaseException) -> None:
        """Fail what the engine's `submit` raised for; unless it has begun nevertheless, and will report by itself."""
        submission.is_orphan = True
        self._inside.discard(submission)
        if submission.fate == WITHDRAWN:
            self._release(submission)
        elif self.exiting and self._refusals < TRIES and submission.withdraw():
            self._refusals += 1
            self._release(submission)
            self.port.give_back([submission.future])
            time.sleep(BREATHER)
            self._feeder.call_soon(self._feed)
        elif submission.claim(BEGUN):
            self._refusals += 1
            self._settler.call_soon(partial(self._fail, submission, error, for_good=self._refusals > TRIES))

    def _fail(self, submission: Submission, error: BaseException, for_good: bool) -> None:
        self._tell_sick(error)
        if for_good:
            self._release(submission)
            self.port.reject(submission.future, error)
        else:
            now = time.monotonic()
            self._begin(submission, self.name, now)
            if submission.number:
                self._report(submission, Failure(submission.explain(error, had_begun=False)), now)
        self._feeder.call_soon(self._feed)

    # ── the pool ────────────────────────────────────────────────────────────────────────────────────────────────────

    def recheck(self) -> None:
        """Have our threads look whether all is over: they may wait for the engine, and not be noted as idle."""
        if self._started:
            self._feeder.wakeup()
            self._settler.wakeup()

    def _end_threads(self) -> None:
        self._feeder.wakeup()
        self._ending()

    def resize(self, limit: int) -> None:
        """Change the limit; running attempts are left alone."""
        self._limit = limit
        if self._started:
            self._feeder.call_soon(self._feed)

    def join(self) -> None:
        """Wait until all attempts have settled, and our threads have ended."""
        if not self._started:
            return
        self._settler.join()
        while not self._feeder.join(GRACE):
            if self._handing_over is not None:  # something that is settled, as all is: it is the engine that holds us
                return

    def workers(self) -> int:
        """Return how many attempts are in the engine; how many workers it has is its own affair."""
        return len(self._active)

    def abandoned(self) -> int:
        """Return how many attempts run in the engine that nobody waits for."""
        return len(self._stuck)
