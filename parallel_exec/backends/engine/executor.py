"""Any `concurrent.futures.Executor` as a back end: the stdlib's pools, loky, dask's executor, another ParallelExecutor.

    feeder ── executor.submit(SubmittedCall) ──► its workers
                                                   │ threads of this process: it is called, and runs the attempt
                                                   │ elsewhere: it arrives as `run_call(fn, args, kwargs, info)`, which
                                                   │ tells when it begins (`remote_call.py`, `start_signal.py`)
    settler ◄── done callback ─────────────────────┘

So it does not matter which kind of executor it is, and nobody has to know: what is possible is found out by doing it.

The executor's `submit` gets one argument: no keyword of the user's function can be taken for one of its
own. What the call pickles to is left to the executor's own pickler: what its `submit` takes, it takes from us. (A pool
of interpreters gets the call and the SubmittedCall side by side, as not all that crosses to an interpreter is pickled.)

Tiny calls go to another process in groups (`call_group.py`), where the executor's futures say when they run.

Guarantees:
    A timeout counts from the moment the attempt begins where it runs, not from the hand-over. (On another machine, from
    where we hear nothing: from `SILENCE` after the executor took it, if it calls it running by then. dask's executor
    never does: use `DaskBackend` there. In a group, if the call keeps its worker's other threads from running: up to twice
    `EXACT` later; and not at all where there is no journal, `group_journal.py`.)
    `cancel` succeeds only for what certainly never begins: what is still in this process, or what the executor says it
    has cancelled. At a timeout and at `abort()` the executor's future is cancelled (aborted, if it is one of ours), or
    else the attempt is abandoned (`runner.py`), and `current_task().cancelled` turns true in it.
    The executor's failure, a worker's death among them, is its own error: `BrokenProcessPool`, `TerminatedWorkerError`.
    The executor stays its maker's: it is never shut down here, and `join` waits for our attempts in it. At interpreter
    exit our pending tasks are finished before it closes.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._checks import refuse_names
from parallel_exec._cpus import usable_threads
from parallel_exec._sync.clock import time
from parallel_exec._sync.timers import NEVER
from parallel_exec._sync.weak import weakly
from parallel_exec.backends.base import Backend, lowest_free
from parallel_exec.backends.engine.adapter import Engine
from parallel_exec.backends.engine.call_group import OVERHEAD, CallGroup, GroupedFuture, make_pace
from parallel_exec.backends.engine.exit_hook import finish_at_exit
from parallel_exec.backends.engine.group_journal import Journals
from parallel_exec.backends.engine.grouping import Precedence
from parallel_exec.backends.engine.remote_call import AttemptInfo, CallResult, run_call, run_nothing, run_shared
from parallel_exec.backends.engine.remote_group import GroupedCall, run_group
from parallel_exec.backends.engine.runner import EngineRunner
from parallel_exec.backends.engine.start_signal import StartListener
from parallel_exec.backends.engine.submission import State
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.future import TaskFuture

if TYPE_CHECKING:
    from typing_extensions import Never

    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.engine.adapter import EngineFuture, RunnerPort
    from parallel_exec.backends.engine.submission import Submission

# Seconds; a guess: a call whose timeout is shorter goes alone, so that its start is told at once. So often we look for calls in
# groups that let no other thread of their worker run, and so tell nothing.
EXACT = 0.1
SILENCE = 30.0  # seconds; a guess: a call that runs and can tell us so has told us by then, however busy its pool is


class ExecutorBackend(Backend):
    """Runs attempts in an executor that somebody else made and will close.

    At most `max_concurrency` calls are in it at a time, and no more than it has workers, if it says how many. A group of
    tiny attempts is one call, of which one attempt runs at a time.

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
        self._engine: ExecutorEngine | None = None  # the runner's

    def make_runner(self, port: SchedulerPort, limit: int) -> EngineRunner:
        """Return a new runner."""
        self._engine = ExecutorEngine(self._executor)
        runner = EngineRunner(self._engine, port, limit)
        finish_at_exit(runner, type(self._executor))
        return runner

    def auto_concurrency(self) -> int:
        """Return how many workers the executor has; if it does not say, how many threads suit the CPUs."""
        return workers_of(self._executor) or usable_threads()

    def works_after_fork(self) -> bool:
        """Return whether the executor was not used yet: its workers did not come along."""
        # Private names, but those by which the stdlib's pools know of theirs.
        has_workers = getattr(self._executor, "_threads", None) or getattr(self._executor, "_processes", None)
        return not has_workers and (self._engine is None or not self._engine.was_used)


def workers_of(executor: Executor) -> int | None:
    """Return how many workers an executor has, if it says so."""
    # A private name, but one that the stdlib's pools, loky's, dask and others agree on.
    workers = getattr(executor, "_max_workers", None)
    return workers if isinstance(workers, int) and workers > 0 else None


class SubmittedCall:
    """What the executor gets: called, it runs the attempt in this process; pickled, it is the bare call elsewhere."""

    def __init__(self, submission: Submission, engine: ExecutorEngine, place: int) -> None:
        self._submission = submission
        self._place = place
        self._engine = engine
        self.__name__ = submission.name  # dask shows it, and keeps a record for each name

    def __call__(self) -> None:
        """Run the attempt."""
        if self._submission.is_pending:  # else its runner may be gone
            self._engine.runner.run_here(self._submission, self._place)

    def __reduce__(self) -> Any:
        return self._engine.pickled(self._submission, self._place)


class SubmittedGroup:
    """What the executor gets for a group: it is pickled, as groups are made only where calls leave this process."""

    def __init__(self, group: CallGroup, engine: ExecutorEngine) -> None:
        self._group = group
        self._engine = engine
        self.__name__ = group.submissions[0].name

    def __call__(self) -> list[None]:
        """Run none of it in this process."""
        return [None] * len(self._group.submissions)

    def __reduce__(self) -> Any:
        journal = self._group.journal
        address = None if journal is None else journal.address
        return partial, (run_group, self._engine.pickled_group(self._group), address)


class ExecutorEngine(Engine):
    """An executor as an engine.

    Attributes:
        was_used: whether it was ever given a call; written by the feeder.
    """

    name = "executor"

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        taker: Any = executor
        # One of ours must not retry by itself, or the attempts would not be counted, and has its own idea of a timeout.
        # (Known by what it offers: the module of ParallelExecutor comes after this one.)
        if hasattr(executor, "execute_all") and hasattr(executor, "options"):
            taker = executor.options(timeout=None, retry_count=0, retry=None)  # pyright: ignore[reportAttributeAccessIssue]
        self._taker = taker
        self.was_used = False
        # Interpreters pass on most things by pickling them, but some in their own way, such as a lambda or a memoryview.
        # To them the call goes unpacked: as what the SubmittedCall pickles to, it would be pickled as a whole.
        interpreter: Any = sys.modules.get("concurrent.futures.interpreter")
        self._shares = interpreter is not None and isinstance(executor, interpreter.InterpreterPoolExecutor)
        self._listener = StartListener(weakly(self._heard), weakly(self._heard_group))
        self._is_ours = taker is not executor
        self._pace = make_pace()  # the threads in which futures complete tell it
        self._journals = Journals()
        # The feeder's own:
        self._filling: CallGroup | None = None
        self._precedence = Precedence()
        # What the executor has not done with; changed by single atomic calls, from any thread.
        self._inside: set[Any] = set()
        self._groups: set[CallGroup] = set()
        # The indexes of the workers that have an attempt alone, or had one that is settled.
        self._places: dict[Submission, int] = {}
        # Whether its futures say so when they run. dask's are pending to the end, and so "cancelled" by a `cancel`
        # that comes while they run. Written by the listening thread.
        self._tells_running = False

    def open(self, runner: RunnerPort) -> None:
        """Have a timer for the groups."""
        super().open(runner)
        self._watch = runner.timer(weakly(self._look_at_groups))  # armed while the executor has groups

    def submit(self, submission: Submission) -> EngineFuture:
        """Submit a call, or put it in the group that is being filled; the executor pickles it if it needs to."""
        self.was_used = True
        timeout = submission.job.settings.timeout
        depth = self._pace.depth if self._tells_running and not (self._shares or self._is_ours) else 1
        if submission.grant is not None:  # it goes alone: what it holds is not to be held while it waits behind others
            depth = 1
        if depth > 1 and (timeout is None or timeout >= EXACT) and submission.send():
            if self._filling is None:
                self._filling = CallGroup(self._journals.lend(), self._free_place())
            grouped = self._filling.add(submission)
            self._precedence.added(submission.job.priority)
            if len(self._filling.submissions) >= depth:
                self.flush()
            return grouped
        if self._filling is not None:  # which has the room: this one waits for the next
            self.flush()
            returned: EngineFuture = Future()
            returned.set_result(None)
            return returned
        self._places[submission] = place = self._free_place()
        try:
            engine_future = self._submit_alone(submission, place)
        except BaseException:
            del self._places[submission]
            raise
        self._track(engine_future, partial(self._ended_alone, submission))
        return engine_future

    def _free_place(self) -> int:
        """Return the index of the worker that is given something now. The feeder's own."""
        taken = [place for submission, place in list(self._places.items()) if not submission.is_over]
        return lowest_free([*taken, *(group.place for group in list(self._groups))])

    def flush(self) -> None:
        """Submit the group that is being filled."""
        group, self._filling = self._filling, None
        if group is None:
            return
        self._groups.add(group)
        if self._watch.deadline == NEVER:
            self._watch.arm(time.monotonic() + EXACT)
        try:
            with no_fork_warning():
                group_future = self._taker.submit(SubmittedGroup(group, self))
        except BaseException as error:
            refused: EngineFuture = Future()
            refused.set_exception(error)
            self._ended_group(group, time.monotonic(), refused)
            return
        group.sent(group_future)
        self._track(group_future, partial(self._ended_group, group, time.monotonic()))

    def _track(self, engine_future: Any, ended: Callable[[Any], None]) -> None:
        """Count a call of the executor's until it has ended; `ended` counts it no more."""
        self._inside.add(engine_future)
        engine_future.add_done_callback(ended)

    def _ended_alone(self, submission: Submission, engine_future: EngineFuture) -> None:
        """Note how long an attempt took; the executor's callback."""
        self._places.pop(submission, None)
        self._inside.discard(engine_future)
        if not engine_future.cancelled() and engine_future.exception() is None:
            result = engine_future.result()
            if isinstance(result, CallResult):
                self._pace.observe([result.duration + OVERHEAD])

    def _ended_group(self, group: CallGroup, sent_at: float, engine_future: Any) -> None:
        """Finish a group; the executor's callback."""
        self._inside.discard(engine_future)
        self._groups.discard(group)
        has_ended = not engine_future.cancelled() and engine_future.exception() is None
        if has_ended and engine_future.result()[0] is not None:  # else no call of it could begin there
            self._pace.observe([(time.monotonic() - sent_at) / len(group.submissions)])
        else:
            self._pace.forget()
        group.end(engine_future, tells_begin=self._journals.are_written)
        if group.journal is not None:
            self._journals.take_back(group.journal, reusable=has_ended)

    def _look_at_groups(self) -> None:
        """Find the calls that run long, and of which no worker tells. Called by the clock thread.

        Either this sees a group, or `flush`, which adds it and then looks whether the timer is armed, sees that it is not.
        """
        groups = list(self._groups)
        if groups:
            self._watch.arm(time.monotonic() + EXACT)
        for group in groups:
            found = group.stop(EXACT)
            if found is not None:
                self._pace.forget()
                with contextlib.suppress(ReferenceError):  # the executor is gone
                    self.runner.began(*found)

    def has_room(self, limit: int, holding: int) -> bool:
        """Return whether a group is being filled, or another call may be submitted; of a group, one attempt is live."""
        if self._filling is not None:
            return True
        groups = list(self._groups)
        grouped = sum(submission.slot is not None for group in groups for submission in group.submissions)
        return holding - grouped + sum(group.is_live() for group in groups) < limit

    def must_wait(self, port: SchedulerPort) -> bool:
        """Look at the groups."""
        filling = [] if self._filling is None else [self._filling]
        return self._precedence.must_wait(port, [*filling, *list(self._groups)])

    def occupied(self, inside: int) -> int:
        """Return how many calls the executor has; a group is one."""
        return len(self._inside)

    def _submit_alone(self, submission: Submission, place: int) -> EngineFuture:
        called = SubmittedCall(submission, self, place)
        with no_fork_warning():  # the first `submit` of a pool may fork, and the threads beside it are ours
            if not self._shares:
                return self._taker.submit(called)  # type: ignore[no-any-return]
            job = submission.job
            try:
                return self._taker.submit(run_shared, job.fn, job.args, job.kwargs or {}, called)  # type: ignore[no-any-return]
            finally:
                del job  # an error's traceback holds this frame

    def cancel(self, submission: Submission, engine_future: EngineFuture) -> bool:
        """Cancel the executor's future, or abort it; tell the call that it is unwanted."""
        if submission.address is not None:
            self._listener.tell_unwanted(submission.address)
        if isinstance(engine_future, TaskFuture):
            engine_future.abort()
            return submission.engine_future is not None
        if not isinstance(engine_future, GroupedFuture):  # a group goes on for the others in it
            engine_future.cancel()
        return False

    def capacity(self) -> int | None:
        """Return how many workers the executor has, if it says so."""
        return workers_of(self._executor)

    def recall(self, submission: Submission) -> bool:
        """Withdraw what is in another process's queue, if the executor says that it has cancelled it."""
        engine_future = submission.engine_future
        if engine_future is None or not (self._tells_running or isinstance(engine_future, TaskFuture)):
            return False
        if isinstance(engine_future, GroupedFuture):
            return engine_future.group.take_back() and submission.withdraw_sent()
        return engine_future.cancel() and submission.withdraw_sent()

    def close(self) -> None:
        """Close the listener, and the journals that are not in use."""
        self._listener.close()
        self._journals.close()

    # ── attempts elsewhere ──────────────────────────────────────────────────────────────────────────────────────────

    def pickled(self, submission: Submission, place: int) -> Any:
        """Return what a submission's call is pickled as. Called by whatever thread of the executor's pickles."""
        job, slot = submission.known_job, submission.slot
        if not submission.send() or job is None:
            return (type(None), ()) if self._shares else (partial, (run_nothing,))
        timeout = job.settings.timeout
        if timeout is not None and slot is not None and submission.is_pending:
            slot.timer.arm(submission.sent_at + timeout)
        port, key = self._listener.port(), self._listener.key(submission.serial)
        granted = b"" if submission.grant is None else pickle.dumps(submission.granted())
        soft = job.settings.soft_timeout
        info = AttemptInfo(job.id, submission.number, timeout, port, key, granted, job.root_seed, place, soft)
        if self._shares:
            return AttemptInfo, tuple(info)
        return partial, (run_call, job.fn, job.args, job.kwargs or {}, info)

    def pickled_group(self, group: CallGroup) -> Any:
        """Return what a group is pickled as, the arguments of `run_group`. Called by whatever thread pickles."""
        calls: list[GroupedCall] = []
        port = self._listener.port()
        for submission in group.submissions:
            job = submission.known_job
            if job is None:  # it was aborted; the others keep their places
                calls.append((run_nothing, (), {}, AttemptInfo("", submission.number, None)))
            else:
                key = self._listener.key(submission.serial)
                timeout, soft, seed = job.settings.timeout, job.settings.soft_timeout, job.root_seed
                info = AttemptInfo(job.id, submission.number, timeout, port, key, b"", seed, group.place, soft)
                calls.append((job.fn, job.args, job.kwargs or {}, info))
        return calls

    def _heard_group(self, serial: int, worker: str, address: Any, report: bytes) -> None:
        """Take note that an attempt in a group runs long. Called by the listening thread."""
        submission = self.runner.submission(serial)
        engine_future = None if submission is None else submission.engine_future
        if submission is None or not isinstance(engine_future, GroupedFuture):
            return
        ran, results = pickle.loads(report)
        self._pace.forget()
        submission.locate(address)
        self.runner.began(submission, worker, ran)
        engine_future.group.finish_before(submission, results)

    def _heard(self, serial: int, worker: str, address: Any) -> None:
        """Take note that an attempt began. Called by the listening thread."""
        submission = self.runner.submission(serial)
        if submission is not None:
            submission.locate(address)
            engine_future = submission.engine_future
            self._tells_running |= engine_future is not None and engine_future.running()
            self.runner.began(submission, worker)

    def await_start(self, submission: Submission) -> bool:
        """Wait until what was sent by now has been heard."""
        if submission.state != State.SENT:
            return False
        self._listener.catch_up()  # also if its address is known: the listening thread may be about to tell the runner
        return submission.address is not None

    def overdue(self, submission: Submission) -> None:
        """Let an attempt begin that the executor calls running, if none is ever heard of; else look again later."""
        engine_future, slot, job = submission.engine_future, submission.slot, submission.known_job
        timeout = None if job is None else job.settings.timeout
        if slot is None or timeout is None or not submission.is_pending:
            return
        now = time.monotonic()
        may_be_heard = self._listener.has_heard or now < submission.sent_at + SILENCE
        if may_be_heard or engine_future is None or not engine_future.running():
            slot.timer.arm(now + max(timeout, 1.0))
        else:
            self.runner.began(submission, self.name)
