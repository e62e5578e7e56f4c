"""Any `concurrent.futures.Executor` as a back end: the stdlib's pools, loky, dask's executor, another ParallelExecutor.

    feeder ── executor.submit(ticket) ──► its workers
                                            │ threads of this process: the ticket runs the attempt (`settling.py`)
                                            │ elsewhere: it arrives as `run_call(fn, args, kwargs, note)`; a Line tells
    settler ◄── done callback ──────────────┘ when that begins (`remote_call.py`)

The executor's `submit` gets one argument, the ticket: no keyword of the user's function can be taken for one of its
own. What the call pickles to is left to the executor's own pickler: what its `submit` takes, it takes from us. (A pool
of interpreters gets the call and its ticket side by side, as not all that crosses to an interpreter is pickled.)

Guarantees:
    A timeout counts from the moment the attempt begins where it runs, not from the hand-over. (On another machine, from
    where we hear nothing: from `SILENCE` after the executor took it, if it calls it running by then. dask's executor
    never does: use `DaskBackend` there.)
    `cancel` succeeds only for what certainly never begins: what is still in this process, or what the executor says it
    has cancelled. At a timeout and at `abort()` the executor's future is cancelled (aborted, if it is one of ours), or
    else the attempt is abandoned (`runner.py`), and `current_task().cancelled` turns true in it.
    The executor's failure, a worker's death among them, is its own error: `BrokenProcessPool`, `TerminatedWorkerError`.
    The executor stays its maker's: it is never shut down here, and `join` waits for our attempts in it. At interpreter
    exit our pending tasks are finished before it closes.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import weakref
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

from parallel_exec._hints import refuse_names
from parallel_exec._sync.clock import time
from parallel_exec._sync.weak import weakly
from parallel_exec.backends.base import Backend
from parallel_exec.backends.engine.remote_call import (
    AttemptInfo,
    CallResult,
    run_call,
    run_nothing,
    run_shared,
)
from parallel_exec.backends.engine.runner import EngineRunner
from parallel_exec.backends.engine.start_signal import StartListener
from parallel_exec.backends.engine.submission import WITHDRAWN
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.future import TaskFuture

if TYPE_CHECKING:
    from typing_extensions import Never

    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.submission import Submission

SILENCE = 30.0  # seconds; a guess: a call that runs and can tell us so has told us by then, however busy its pool is

# Alive in this process, the newest last; and the types whose modules' exit hooks come after ours. Module state, as the
# interpreter's exit is the process's.
_runners: list[weakref.ref[ExecutorRunner]] = []
_hooked: set[type] = set()


class ExecutorBackend(Backend):
    """Runs attempts in an executor that somebody else made and will close.

    At most `max_concurrency` attempts are in it at a time, and no more than it has workers, if it says how many.

    Args:
        executor: any `concurrent.futures.Executor`.

    Raises:
        TypeError: it is none.
    """

    name = "executor"
    reports_in_one_thread = True

    def __init__(self, executor: Executor, **_misspelt: Never) -> None:
        if _misspelt:
            refuse_names("ExecutorBackend", _misspelt, ExecutorBackend.__init__)
        taker: Any = executor
        if not isinstance(taker, Executor):
            hint = ": make an instance of it" if isinstance(executor, type) else ""
            raise TypeError(f"ExecutorBackend takes a concurrent.futures.Executor, not {executor!r}{hint}")
        self._executor = executor

    def make_runner(self, port: SchedulerPort, limit: int) -> ExecutorRunner:
        """Return a new runner."""
        return ExecutorRunner(port, limit, self._executor)

    def works_after_fork(self) -> bool:
        """Return whether the executor was not used yet: its workers did not come along."""
        # Private names, but those by which the stdlib's pools know of theirs.
        return not (getattr(self._executor, "_threads", None) or getattr(self._executor, "_processes", None))


class ExecutorRunner(EngineRunner):
    """Runs attempts in an executor."""

    name = "executor"

    def __init__(self, port: SchedulerPort, limit: int, executor: Executor) -> None:
        super().__init__(port, limit)
        self._executor = executor
        taker: Any = executor
        # One of ours must not retry by itself, or the attempts would not be counted, and has its own idea of a timeout.
        # (Known by what it offers: the module of ParallelExecutor comes after this one.)
        if hasattr(executor, "execute_all") and hasattr(executor, "options"):
            taker = executor.options(timeout=None, retry_count=0, retry=None)  # pyright: ignore[reportAttributeAccessIssue]
        self._taker = taker
        # Interpreters pass on most things by pickling them, but some in their own way, such as a lambda or a memoryview.
        # To them the call goes unpacked: as what the ticket pickles to, it would be pickled as a whole.
        interpreter: Any = sys.modules.get("concurrent.futures.interpreter")
        self._shares = interpreter is not None and isinstance(executor, interpreter.InterpreterPoolExecutor)
        self._listener = StartListener(weakly(self._heard))
        # Whether its futures say so when they run. dask's are pending to the end, and so "cancelled" by a `cancel`
        # that comes while they run. Written by the line's thread.
        self._tells_running = False
        _watch(self)

    def _submit(self, submission: Submission) -> Future[CallResult | None]:
        future = submission.future
        with no_fork_warning():  # the first `submit` of a pool may fork, and the threads beside it are ours
            if self._shares:
                return self._taker.submit(run_shared, future.fn, future.args, future.kwargs or {}, submission)  # type: ignore[no-any-return]
            return self._taker.submit(submission)  # type: ignore[no-any-return]

    def _capacity(self) -> int | None:
        # A private name, but one that the stdlib's pools, loky's, dask and others agree on.
        workers = getattr(self._executor, "_max_workers", None)
        return workers if isinstance(workers, int) and workers > 0 else None

    def _cancel(self, submission: Submission, inner: Future[CallResult | None]) -> None:
        if submission.address is not None:
            self._listener.tell_unwanted(submission.address)
        if isinstance(inner, TaskFuture):
            inner.abort()
        else:
            inner.cancel()

    def _stops(self, submission: Submission) -> bool:
        return isinstance(submission.inner, TaskFuture)

    def _recall_travelled(self, submission: Submission) -> bool:
        """Take back what is in another process's queue; called with the scheduler's lock held."""
        inner = submission.inner
        certain = self._tells_running or isinstance(inner, TaskFuture)
        return certain and inner is not None and inner.cancel() and submission.claim(WITHDRAWN)

    # ── attempts elsewhere ──────────────────────────────────────────────────────────────────────────────────────────

    def travel(self, submission: Submission) -> Any:
        """Return what a ticket is pickled as. Called by whatever thread of the executor's pickles."""
        future, place = submission.known_future, submission.place
        if not submission.set_out() or future is None:
            return (type(None), ()) if self._shares else (partial, (run_nothing,))
        timeout = future.settings.timeout
        self._submissions[submission.serial] = submission
        if timeout is not None and place is not None and submission.fate is None:
            submission.sent = time.monotonic()
            place.timer.arm(submission.sent + timeout)
        note = AttemptInfo(
            future.id, submission.next_number, timeout, self._listener.port(), self._listener.key(submission.serial)
        )
        if self._shares:
            return AttemptInfo, tuple(note)
        return partial, (run_call, future.fn, future.args, future.kwargs or {}, note)

    def _heard(self, serial: int, worker: str, address: Any) -> None:
        """Pass on what the line says: an attempt began. The line's thread."""
        submission = self._submissions.get(serial)
        if submission is not None:
            submission.address = address
            inner = submission.inner
            self._tells_running |= inner is not None and inner.running()
            self._settler.call_soon(partial(self._began, submission, worker, time.monotonic()))

    def _await_news(self, submission: Submission) -> bool:
        if not submission.travelled:
            return False
        self._listener.catch_up()  # also if its address is known: the line's thread may be about to tell the settler
        return submission.address is not None

    def _end_well(self, submission: Submission, reply: CallResult) -> None:
        super()._end_well(submission, CallResult(*reply))  # from an interpreter it comes as a plain tuple

    def _overdue(self, submission: Submission) -> None:
        """Let an attempt begin that the executor calls running, if none is ever heard of; else look again later."""
        inner, place, future = submission.inner, submission.place, submission.known_future
        timeout = None if future is None else future.settings.timeout
        if place is None or timeout is None or submission.fate is not None:
            return
        now = time.monotonic()
        if self._listener.has_heard or inner is None or not inner.running() or now < submission.sent + SILENCE:
            place.timer.arm(now + max(timeout, 1.0))
        else:
            self._began(submission, self.name, now)

    def _ending(self) -> None:
        self._listener.close()


# ── at exit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _watch(runner: ExecutorRunner) -> None:
    """See that our pending work is finished at interpreter exit while the executor still takes it.

    Hooks are called last in, first out, and an executor's module has its own since it was imported: so ours is put in
    again for each new type of executor that is seen.
    """
    _runners[:] = [*(other for other in _runners if other() is not None), weakref.ref(runner)]
    kind = type(runner._executor)
    if kind not in _hooked:
        _hooked.add(kind)
        getattr(threading, "_register_atexit", atexit.register)(_at_exit)


def _at_exit() -> None:
    # One that was made later may use an earlier one as its engine, not the other way round.
    for reference in reversed(_runners):
        runner = reference()
        if runner is not None:
            runner.exiting = True
            with contextlib.suppress(ReferenceError):  # its executor is gone, and it is kept by somebody else
                scheduler: Any = runner.port
                scheduler.shutdown(cancel=False, at_exit=True)
                scheduler.join()
