"""`ParallelExecutor`: the front. What it is told it hands to the scheduler; it decides nothing about tasks itself.

add_task, submit, map, stream ──► Scheduler ──► TaskFuture
                                  execute_all ──► Batch ──► list[TaskResult]
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as WaitTimeout

from parallel_exec import _lifecycle
from parallel_exec._checks import check_count, check_seconds, is_iterable, not_callable, refuse_names
from parallel_exec._core.admission import NotAdmittedError
from parallel_exec._core.batch import Batch, Batches
from parallel_exec._core.completion import CANCELLED
from parallel_exec._core.job import Job
from parallel_exec._core.scheduler import Scheduler
from parallel_exec._dispatcher import Dispatcher
from parallel_exec._lazy import refuse_lazy
from parallel_exec._outcome import Failure, Terminated
from parallel_exec._settings_for import SettingsFor
from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import call_whole
from parallel_exec.backends.registry import make_backend
from parallel_exec.config import ParallelConfig
from parallel_exec.errors import DeadlineExceededError
from parallel_exec.options import Options, Submitter
from parallel_exec.task import INHERIT, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Literal, Mapping, MutableMapping, TypeVar, overload

    from tenacity import BaseRetrying
    from typing_extensions import Never, ParamSpec, Self, Unpack

    from parallel_exec._checks import RetryOn
    from parallel_exec._core.batch import HasCollector
    from parallel_exec._core.job import AnyJob
    from parallel_exec._core.registry import ExecutorStats
    from parallel_exec._core.running import RunningTask
    from parallel_exec._journal.run import JournaledRun
    from parallel_exec.config import Overrides
    from parallel_exec.future import TaskFuture
    from parallel_exec.journal import Journal
    from parallel_exec.limits import LimitSpec
    from parallel_exec.stream import Window
    from parallel_exec.task import Inherited, TaskResult
    from parallel_exec.task_queue import TaskQueue

    P = ParamSpec("P")

    T = TypeVar("T")
    Order = Literal["submitted", "completed"]


class ParallelExecutor(Submitter, Executor):
    """Runs calls in parallel, with priorities, timeouts and retries, and one result for each.

    Thread-safe. A `concurrent.futures.Executor`, for whoever takes one.

    Args:
        config: the settings; default: all defaults.
        **overrides: single settings, by the names of `ParallelConfig`'s fields.

    Raises:
        TypeError, ValueError: a setting is wrong; the message says what to write.
    """

    _allows_lazy = False  # whether calls may return coroutines and generators; a subclass's to say

    def __init__(self, config: ParallelConfig | None = None, **overrides: Unpack[Overrides]) -> None:
        if config is not None and not isinstance(config, ParallelConfig):
            raise TypeError(
                f"config takes a ParallelConfig, not {config!r}: settings go by name, as max_concurrency=5 or backend='process'"
            )
        given: Any = overrides  # `ParallelConfig` checks the names, and says which was meant
        self.config = config.with_changes(**given) if config is not None else ParallelConfig(**given)
        backend = make_backend(self.config.backend)
        if self.config.limits:  # a signal handler may look at them as somebody else is about to import what shows them
            import parallel_exec._limits_view  # noqa: F401
        for name, spec in (self.config.limits or {}).items():
            backend.check_limit(name, spec)
        limit = self.config.max_concurrency
        if limit == "auto":
            limit = backend.auto_concurrency()
        events = Dispatcher(self.config.on_event)
        seed = int.from_bytes(os.urandom(8), "little") if self.config.seed is None else self.config.seed
        scheduler = Scheduler(backend, limit, self.config.queue_size, events, seed)
        self._settings_for = SettingsFor(self.config, scheduler.monitor, allows_lazy=self._allows_lazy)
        super().__init__(scheduler, self._settings_for.plain)
        self._completion = scheduler.completion
        self._batches: Batches[AnyJob] = Batches(scheduler.lock)
        self._let_be = _lifecycle.watch(self, self._scheduler)

    # ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────

    if TYPE_CHECKING:

        @overload
        def add_task(self, task: Task[T], /) -> TaskFuture[T]: ...

        @overload
        def add_task(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

    def add_task(self, task: Any, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Add a task to the next run, or to the one under way.

        Nothing starts until `execute_all` or `submit` is called: until then, to wait for the future without a timeout is an
        error, and to leave the `with` block a `RuntimeWarning`. Blocks while the queue is full and the pool runs.

        Args:
            task: a `Task`, or a function.
            *args: what the function is called with.
            **kwargs: the same; every keyword is the function's.

        Raises:
            TypeError: it is neither a `Task` nor a plain function; or arguments were given for a `Task`, which has its own.
            QueueFullError: the queue is full, and nothing is running that would make room.
            RuntimeError: after `shutdown`; or the `Task` is that of a result whose call was let go.
            ValueError: the run under way has a journal, and the task no id of its own.
        """
        if isinstance(task, Task):
            if args or kwargs:
                raise TypeError(
                    "add_task takes arguments for a function only, as a Task has its own: "
                    "write add_task(Task(function, argument, kwargs={...})) or add_task(function, argument, name=...)"
                )
            job = Job.of_task(self._scheduler, self._settings_for.task(task), task)
        else:
            if not callable(task):
                raise not_callable("add_task", task)
            if not self._settings.allows_lazy:
                refuse_lazy("add_task", task)
            job = Job(self._scheduler, self._settings, task, args, kwargs or None)
        try:
            self._admission.add(job, self._batches, start=False)
        except NotAdmittedError:
            self._add_to_journaled(job)
        return job

    def _add_to_journaled(self, job: AnyJob) -> None:
        """Add a job to a batch that has a journal; or, should that be over by now, to the next."""
        while True:
            journal = self._batches.current.journal
            restored = None if journal is None else journal.admit(job)
            try:
                if restored is None:
                    self._admission.add(job, self._batches, start=False)
                else:
                    self._admission.add_restored(job, self._batches, restored, start=False)
                return
            except NotAdmittedError:
                continue

    def execute_all(
        self,
        *_misplaced: Never,
        deadline: float | None = None,
        fail_fast: bool = False,
        order: Order = "submitted",
        progress: bool = False,
        journal: Journal | str | os.PathLike[str] | None = None,
        **_misspelt: Never,
    ) -> list[TaskResult[Any]]:
        """Run all tasks that were added, and those they add, and return one result for each. Blocks.

        Args:
            deadline: seconds for the whole run, backoff included; what is unfinished then ends as
                `DeadlineExceededError`, running attempts are stopped as far as the back end can.
            fail_fast: cancel the rest at the first final failure.
            order: of the results: as added, or as they ended.
            progress: show a progress bar on standard error (extra `[progress]`).
            journal: a file, or a `Journal`: what ends is recorded there, under the task's id; and what an earlier run with it
                has done, in the same call, is not run again, but comes from there: `resumed` says so.

        Raises:
            KeyboardInterrupt: on Ctrl-C, within 2 s; `results()` has what was finished.
            RuntimeError: a run is under way, or the executor was shut down.
            JournalError: the journal cannot be used. Nothing has begun then, nor after the next.
            ValueError: a task has no id of its own, which a journal needs, or that of another.
        """
        if _misplaced:
            raise TypeError(
                "execute_all() takes no tasks: add_task(task) each of them first, or give them to stream(tasks)"
            )
        if _misspelt:
            refuse_names("execute_all()", _misspelt, ParallelExecutor.execute_all)
        check_seconds("deadline", deadline)
        if order not in ("submitted", "completed"):
            raise ValueError(f'order takes "submitted" or "completed", not {order!r}')
        if self._scheduler.callers.is_called_from_within():
            raise RuntimeError(
                "execute_all() was called from inside a task of the same executor, or a callback or event hook of it: "
                "add_task() joins its run"
            )
        if progress:
            from parallel_exec.progress import quiet_tqdm

            quiet_tqdm()  # without it, this fails now, while nothing has begun
        call = object()
        try:
            self._batches.reserve(call)
            if journal is None:
                batch = self._run(call, None, deadline, fail_fast, progress)
            else:
                batch = self._run_journaled(call, journal, deadline, fail_fast, progress)
        finally:
            self._batches.release(call)
        return [job.task_result() for job in (batch.jobs if order == "submitted" else batch.ended)]

    def _run_journaled(
        self,
        call: object,
        journal: Journal | str | os.PathLike[str],
        deadline: float | None,
        fail_fast: bool,
        progress: bool,
    ) -> Batch[AnyJob]:
        """Run the current batch with a journal; as `_run`."""
        from parallel_exec._journal.run import JournaledRun  # few need it, and sqlite3

        with JournaledRun(journal) as run:
            run.begin(self._batches)
            return self._run(call, run, deadline, fail_fast, progress)

    def _run(
        self, call: object, run: JournaledRun | None, deadline: float | None, fail_fast: bool, progress: bool
    ) -> Batch[AnyJob]:
        """Run the current batch, which `call` has reserved, to its end, and return it; whatever is raised, it is over then."""
        try:
            batch, rest = self._batches.begin(fail_fast)
            until = None if deadline is None else time.monotonic() + deadline
            self._completion.stop_all(rest, lambda job: CANCELLED)
            if run is not None:
                run.resume_done(batch.jobs, self._completion.resume)
            self._admission.start()
            self._drive(batch, until, deadline, progress)
            self._batches.end(self._admission.stage)
        except BaseException as error:
            if run is not None and not (type(error) is Terminated and not error.hurries):
                run.hurry(_lifecycle.INTERRUPT_LIMIT)
            if self._batches.is_mine(call):
                self._batches.current.give_up()
                try:
                    self._interrupt(self._batches.current)
                finally:
                    self._batches.end(self._admission.stage)
            raise
        return batch

    def _drive(self, batch: Batch[AnyJob], until: float | None, deadline: float | None, progress: bool) -> None:
        """Wait for a batch, lending this thread to a back end that wants it, and end what outlasts the deadline."""

        def give_up() -> None:
            override = lambda job: Failure(DeadlineExceededError(job.id, deadline or 0.0))  # noqa: E731
            self._completion.stop_all(batch.unended(), override)

        if self._completion.runs_in_caller:
            alarm = self._scheduler.timers.timer(give_up)
            if until is not None:
                alarm.arm(until)
            self._admission.drive()
            alarm.cancel()
        try:
            self._wait(batch, until, progress)
        except WaitTimeout:
            give_up()
            batch.wait()

    def _wait(self, batch: Batch[AnyJob], until: float | None, progress: bool) -> None:
        if not progress:
            batch.wait(until)
            return
        from parallel_exec.progress import progress_bar

        with progress_bar(len(batch.jobs)) as bar:

            def show() -> None:
                bar.update_to(len(batch.ended), len(batch.jobs), batch.failed)

            batch.wait(until, show)
            show()

    def _interrupt(self, batch: Batch[AnyJob] | None = None) -> None:
        live = self._completion.in_hand if batch is None else batch.unended
        _lifecycle.interrupt([self._scheduler], live, _lifecycle.INTERRUPT_LIMIT)

    def results(self) -> list[TaskResult[Any]]:
        """Return the results of those tasks of the current or last run that have finished, in the order added. Does not block.

        A task has finished once it has returned, has failed for good or was cut off by the run's deadline; one that was
        cancelled, by Ctrl-C, by `fail_fast` or by its future, has not, and is left out.

        A run is an `execute_all` or a `stream`, whichever began last; its results are kept until the next one begins. Of an
        `execute_all` that is what has finished so far or, once it is over, however it ended, all that had finished. Of a
        `stream`, which keeps nothing that it has yielded, it is what it has not yielded: nothing once it has come to its
        end, and what had finished, but for the results that the caller has, where it was closed, or interrupted by Ctrl-C or
        another exception. What is started by `submit` and `map` belongs to no run.
        """
        return self._batches.latest.finished()

    # ── concurrent.futures.Executor ─────────────────────────────────────────────────────────────────────────────────

    def options(
        self,
        *,
        priority: int = 0,
        timeout: float | None | Inherited = INHERIT,
        soft_timeout: float | None | Inherited = INHERIT,
        retry_count: int | Inherited = INHERIT,
        retry: BaseRetrying | None | Inherited = INHERIT,
        retry_on: type[BaseException] | RetryOn | Inherited = INHERIT,
        backoff: float | Inherited = INHERIT,
        id: str | None = None,
        needs: Mapping[str, Any] | None = None,
        **_misspelt: Never,
    ) -> Options:
        """Return a light view of this executor whose `submit` and `map` carry these settings; they mean what `Task`'s do."""
        if _misspelt:
            refuse_names("options()", _misspelt, ParallelExecutor.options)
        checked = Task(
            _nothing,
            id="" if id is None else id,
            priority=priority,
            timeout=timeout,
            soft_timeout=soft_timeout,
            retry_count=retry_count,
            retry=retry,
            retry_on=retry_on,
            backoff=backoff,
            needs=needs,
        )
        return Options(self._scheduler, self._settings_for.task(checked), checked.priority, id)

    def stream(
        self,
        tasks: Iterable[Task[T]],
        *,
        window: int | None = None,
        order: Order = "completed",
        journal: Journal | str | os.PathLike[str] | None = None,
        **_misspelt: Never,
    ) -> Iterator[TaskResult[T]]:
        """Run tasks from an iterable that is read lazily, and yield their results.

        Closing the iterator cancels what is left. An error in `tasks` is raised once all results before it are out.

        Args:
            tasks: the tasks; may be endless.
            window: most tasks read and not yet yielded; default: four times `max_concurrency`, and more while the results are
                taken so fast that workers would wait for tasks.
            order: "completed", or "submitted".
            journal: as for `execute_all`; it is this stream's until that is exhausted or closed.

        Raises:
            JournalError: the journal cannot be used.
        """
        from parallel_exec.stream import MOST, Pace, Window, journaled, stream  # not for a script with a single call

        if _misspelt:
            refuse_names("stream()", _misspelt, ParallelExecutor.stream)
        if not is_iterable(tasks):
            raise TypeError(f"stream takes an iterable of tasks, not {tasks!r}: one task is stream([task])")
        if window is not None:
            window = check_count("window", window, 1)
        if order not in ("submitted", "completed"):
            raise ValueError(f'order takes "submitted" or "completed", not {order!r}')
        size = window or 4 * self._scheduler.monitor.registry.limit
        is_fixed = window is not None or self._completion.runs_in_caller  # where nothing runs but while it is read
        own: Window[T] = Window(Pace(size, size if is_fixed else MOST), in_order=order == "submitted")
        results = stream(self._start_task, iter(tasks), own, self._batches.opened)
        return results if journal is None else journaled(results, own, journal)

    def _start_task(self, task: Any, into: HasCollector) -> Job[Any]:
        """Start a task, which joins a collector; or end it, if the collector's journal has it."""
        if isinstance(task, Task):
            job = Job.of_task(self._scheduler, self._settings_for.task(task), task)
        else:
            if not callable(task):
                Task(task)  # refuses
            refuse_lazy("Task", task)
            job = Job(self._scheduler, self._settings, task)
        journal = into.current.journal
        restored = None if journal is None else journal.admit(job)
        if restored is None:
            self._admission.add(job, into, start=True)
        else:
            self._admission.add_restored(job, into, restored, start=True)
        return job

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, **_misspelt: Never) -> None:
        """Take no more tasks, finish those that were started, and let the workers go.

        Idempotent; may be called from callbacks, signal handlers and finalizers. What is only staged is cancelled.

        Args:
            wait: return when all has ended (never waits inside a thread of this pool, nor for abandoned threads).
            cancel_futures: cancel what waits: queued, or between two attempts.
        """
        if _misspelt:
            refuse_names("shutdown()", _misspelt, ParallelExecutor.shutdown)
        # First: by what `shutdown` wakes the calling thread looks as if it had nobody to wake.
        may_wait = not self._scheduler.callers.must_not_block()
        call_whole(self._scheduler.lock, self._end, cancel_futures, wait and may_wait)

    def _end(self, cancels: bool, waits: bool) -> None:
        self._completion.shutdown(cancel=cancels)
        self._let_be()
        if waits:
            self._completion.join()

    def __enter__(self) -> Self:
        self._scheduler.monitor.gate.check_open("enter")
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        forgotten = ""
        try:
            if exc_type is None:
                forgotten = self._completion.forgotten()  # which takes a moment, if there are a million
            elif issubclass(exc_type, (KeyboardInterrupt, Terminated)):
                self._interrupt()
            self.shutdown(wait=True)
        except (KeyboardInterrupt, Terminated):  # while we looked, or waited
            self._interrupt()
            self.shutdown(wait=True)
            raise
        if forgotten:
            warnings.warn(forgotten, RuntimeWarning, stacklevel=2)

    # ── control ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def queue(self) -> TaskQueue:
        """The tasks that wait for a slot; live."""
        from parallel_exec._queue_view import LiveQueue  # few look at it

        return LiveQueue(self._scheduler.monitor, self._completion, self.add_task)

    @property
    def limits(self) -> MutableMapping[str, LimitSpec]:
        """What tasks need beside a slot, by name; live: what is set here holds from now on, also for what waits."""
        from parallel_exec._limits_view import LiveLimits  # few look at them

        return LiveLimits(self._scheduler, self._settings_for.limits)

    @property
    def _max_workers(self) -> int:
        """The limit, under the name that others look for in an executor: dask, or another of ours that this one serves."""
        return self._scheduler.monitor.registry.limit

    def pause(self) -> None:
        """Start no attempt until `resume`; running ones go on.

        Raises:
            RuntimeError: after `shutdown`, as `resume` and `resize` do, and entering the executor again by `with`.
        """
        self._admission.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._admission.resume()

    def abort_all(self) -> None:
        """End every task that has not ended as cancelled, also what is only staged; what is added later runs as ever.

        What runs is stopped as far as the back end can, as by `TaskFuture.abort`. Does not wait for that. A run under way comes
        to its end by it: `execute_all` returns the results, those of the cancelled among them.
        """
        call_whole(self._scheduler.lock, self._completion.abort_all)

    def resize(self, max_concurrency: int) -> None:
        """Change how many attempts may run at once; running ones are left alone."""
        self._admission.resize(check_count("max_concurrency", max_concurrency, 1))

    def stats(self) -> ExecutorStats:
        """Return what the executor has done and is doing."""
        return self._completion.stats()

    def running(self) -> list[RunningTask]:
        """Return what runs at this moment, the longest first. In processes a task is known to run a few milliseconds later."""
        return self._completion.running()

    if not TYPE_CHECKING:  # or type checkers would believe in every attribute

        def __getattr__(self, name: str) -> Any:  # called for what there is not
            from parallel_exec._hints import no_attribute  # only a mistake needs it

            raise no_attribute(self, name)

    def __reduce__(self) -> Any:
        raise TypeError("a ParallelExecutor cannot be pickled: make a new one in the process where it is needed")


def _nothing() -> None:
    """Stand in for a task's call where only its settings matter."""
