"""The public API as users write it, for type checkers to read; never run."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, Hashable, Iterator, Mapping, MutableMapping, Optional

import tenacity
from typing_extensions import assert_type

from parallel_exec import (
    INHERIT,
    Adaptive,
    Attempt,
    Backend,
    CapacityExhaustedError,
    CurrentTask,
    CurrentWorker,
    DaskBackend,
    DeadlineExceededError,
    Event,
    ExecutorBackend,
    ExecutorStats,
    InlineBackend,
    Journal,
    JournalError,
    LimitStats,
    ParallelConfig,
    ParallelExecError,
    ParallelExecutor,
    PerKey,
    ProcessBackend,
    QueueFullError,
    Rate,
    RemoteTaskError,
    ResultRejectedError,
    RetryAfter,
    RunningTask,
    Shared,
    Task,
    TaskCancelled,
    TaskEvent,
    TaskFinished,
    TaskFuture,
    TaskGranted,
    TaskQueue,
    TaskQueued,
    TaskResult,
    TaskRetrying,
    TaskSerializationError,
    TaskStarted,
    TaskTimedOut,
    TaskTimeoutError,
    TaskWaiting,
    ThreadBackend,
    WorkerCrashedError,
    WorkerDied,
    WorkerStarted,
    WorkerStartError,
    current_task,
    current_worker,
    drain_on_sigterm,
    futures,
)
from parallel_exec.futures import ProcessPoolExecutor as DropInProcesses
from parallel_exec.futures import ThreadPoolExecutor as DropInThreads
from parallel_exec.journal import JournalRun, JournalSummary
from parallel_exec.limits import LimitSpec


def add(left: int, right: int = 0, *, x: int = 0) -> int:
    """Return a sum."""
    return left + right + x


def name() -> str:
    """Return a name."""
    return "name"


def tasks() -> Iterator[Task[str]]:
    """Yield tasks for ever."""
    while True:
        yield Task(name, id="a", priority=3, timeout=None, retry_count=0)


def listen(event: Event) -> None:
    """Take an event."""
    assert_type(event.time, float)
    assert_type(event.wall_time, float)
    if isinstance(event, TaskFinished):
        assert_type(event.success, bool)
        assert_type(event.error, Optional[BaseException])
        assert_type(event.duration, float)
    elif isinstance(event, TaskRetrying):
        assert_type(event.delay, float)
        assert_type(event.error, Optional[BaseException])
    elif isinstance(event, TaskWaiting):
        assert_type(event.limit, str)
    elif isinstance(event, TaskGranted):
        assert_type(event.waited, float)
        print(", ".join(event.limits))
    elif isinstance(event, (TaskQueued, TaskStarted, TaskTimedOut, TaskCancelled)):
        assert_type(event.attempt, int)
    elif isinstance(event, TaskEvent):
        assert_type(event.task_id, str)
    elif isinstance(event, WorkerStarted):
        assert_type(event.worker, str)
    elif isinstance(event, WorkerDied):
        assert_type(event.reason, str)


def narrow(result: TaskResult[int]) -> str:
    """Tell a result that is there from one that is not. (pyright narrows by what is compared, not by what is true.)"""
    assert_type(result.cancelled, bool)
    assert_type(result.unwrap(), int)
    if result.error is None:
        assert_type(result.result, int)
    else:
        assert_type(result.error, BaseException)
    if result.success is True:
        assert_type(result.result, int)
    else:
        assert_type(result.error, BaseException)
    if result.success:
        return str(result.result + 1)  # pyright: ignore[reportOptionalOperand]
    result.misspelt  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnusedExpression]  # noqa: B018
    return str(result.error.args)  # pyright: ignore[reportOptionalMemberAccess]


def is_worth_it(error: BaseException) -> bool:
    """Say whether another attempt helps."""
    return isinstance(error, OSError)


def explain(error: ParallelExecError) -> str:
    """Return the facts of an error."""
    if isinstance(error, TaskTimeoutError):
        return f"{error.task_id}, {error.timeout}, {error.attempt}"
    if isinstance(error, (DeadlineExceededError, WorkerCrashedError)):
        return f"{error.task_id}, {error.deadline if isinstance(error, DeadlineExceededError) else error.exitcode}"
    if isinstance(error, (WorkerStartError, RemoteTaskError)):
        return error.worker_traceback
    if isinstance(error, ResultRejectedError):
        assert_type(error.attempts, int)
    if isinstance(error, RetryAfter):
        print(error.retry_after + 0.5)
        assert_type(error.limit, Optional[str])
    if isinstance(error, TaskSerializationError):
        return error.what + error.direction
    return str(error.abandoned if isinstance(error, CapacityExhaustedError) else isinstance(error, QueueFullError))


async def from_asyncio(executor: ParallelExecutor) -> None:
    """Wait for tasks in a coroutine."""
    print(await asyncio.wrap_future(executor.submit(add, 1)))
    assert_type(await asyncio.get_running_loop().run_in_executor(executor, name), str)


with (
    DropInThreads(4, "t", add, (1,)) as threads,
    DropInProcesses(4, None, add, (1,), max_tasks_per_child=3) as processes,
):
    stdlibs: ThreadPoolExecutor = threads
    stdlibs_too: ProcessPoolExecutor = processes
    assert_type(threads.submit(add, 1), TaskFuture[int])
    assert_type(list(processes.map(add, [1], chunksize=2)), "list[int]")
    assert_type(processes.options(priority=1).submit(add, 1), TaskFuture[int])
    processes.kill_workers()
    processes.terminate_workers()
    waited = futures.wait([threads.submit(add, 1)], return_when=futures.FIRST_COMPLETED)
    print(len(waited.done))
    for completed in futures.as_completed([threads.submit(add, 1)]):
        assert_type(completed.result(), int)

config = ParallelConfig(max_concurrency=8, timeout=30, retry_count=2, backend="process", on_event=listen)
retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))

with ParallelExecutor(config, backoff=0.1, retry=retrying) as executor:
    plain: Executor = executor
    assert_type(executor.add_task(Task(partial(add, 1))), TaskFuture[int])
    assert_type(executor.add_task(name), TaskFuture[str])
    assert_type(executor.add_task(add, 1, x=2), TaskFuture[int])
    executor.add_task(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.add_task(Task(name), 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    for result in executor.execute_all(deadline=60, fail_fast=True, order="completed", progress=True):
        attempt: Attempt = result.attempts[0]
        print(result.task.id, result.success, result.error, attempt.worker, attempt.duration, result.queued_for)

    future = executor.submit(add, 1, x=2)
    assert_type(future, TaskFuture[int])
    assert_type(future.result(timeout=1), int)
    assert_type(future.task_result(), TaskResult[int])
    assert_type(future.task_result().result, Optional[int])
    assert_type(future.task_result().unwrap(), int)
    assert_type(future.task.execute(), int)
    assert_type(future.abort(), bool)

    view = executor.options(priority=5, timeout=1, retry_count=0, retry=None, id="x")
    executor.options(retry_on=OSError, backoff=0)
    assert_type(view.submit(add, 1, x=2), TaskFuture[int])
    assert_type(list(executor.map(add, [1], [2], timeout=1, chunksize=10, buffersize=3)), "list[int]")
    assert_type(list(view.map(add, [1])), "list[int]")
    view.submit(add, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    executor.submit(add, 1, y=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    with executor.share(3) as shared:
        assert_type(shared, Shared[int])
        assert_type(shared.value, int)
        assert_type(executor.submit(add, shared, 1, x=2), TaskFuture[int])
        assert_type(executor.submit(partial(add, shared.value), 1), TaskFuture[int])
        assert_type(executor.add_task(Task(add, shared)), TaskFuture[int])
    executor.submit(add, executor.share("text"), 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

    for done in as_completed([future]):
        assert_type(done.result(), int)

    for streamed in executor.stream(tasks(), window=10, order="submitted"):
        assert_type(streamed, TaskResult[str])

    journal = Journal("run.db", retry_failed=False, version="2", encode=json.dumps, decode=json.loads)
    assert_type(journal.path, str)
    assert_type(executor.execute_all(journal=journal)[0].resumed, bool)
    for streamed in executor.stream(tasks(), journal="run.db"):
        assert_type(streamed, TaskResult[str])
    try:
        for read in [*journal, *journal.results(), *journal.failed()]:
            print(read.task.id, read.success, read.result, read.error)
    except JournalError as error:
        print(error.path, error.reason, error.pid, error.host)
    summary = journal.summary()
    assert_type(summary, JournalSummary)
    run = summary.runs[0]
    assert_type(run, JournalRun)
    print(summary, summary.succeeded, summary.failed, summary.valueless, run.how, run.ended_at)
    Journal("run.db", encode=json.dumps, decode=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    executor.pause()
    executor.resume()
    executor.resize(3)
    executor.abort_all()
    drain_on_sigterm(executor, grace=8)
    drain_on_sigterm("executor")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(executor.stats(), ExecutorStats)
    assert_type(executor.running()[0], RunningTask)
    assert_type(executor.results()[0].success, bool)
    queue: TaskQueue = executor.queue
    queue.enqueue(Task(name))
    print(queue.dequeue(), queue.peek(), queue.is_empty(), queue.size(), len(queue), queue.clear())
    executor.shutdown(wait=False, cancel_futures=True)

ParallelConfig(timeouts=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
inherited: Task[int] = Task(partial(add, 1), timeout=INHERIT, retry_count=INHERIT, retry=INHERIT)
wider: Task[object] = inherited
assert_type(inherited.execute(), int)

called: Task[int] = Task(add, 1, id="a", kwargs={"x": 2}, retry_on=is_worth_it, backoff=0.5)
assert_type(called.execute(), int)

ParallelExecutor(max_concurency=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
ParallelExecutor(timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ParallelExecutor(config, retry_on=(OSError,), jitter=False).config.with_changes(backoff="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ParallelConfig(retry_on=is_worth_it)

backends: list[Backend] = [InlineBackend(), DaskBackend("tcp://scheduler:8786")]
ParallelExecutor(backend=ThreadBackend(initializer=add, initargs=(1,), thread_name_prefix="t", max_abandoned=3))
ParallelExecutor(backend=ProcessBackend("spawn", max_tasks_per_child=3, memory_limit=10**9, startup_timeout=5.0))
ParallelExecutor(backend=ThreadBackend(finalizer=print, min_workers=1, idle_timeout=60))
ParallelExecutor(backend=ProcessBackend(finalizer=print, min_workers=1, idle_timeout=60, max_memory_per_child=1 << 30))
ParallelExecutor(backend=ProcessBackend(env={"A": "1"}, preload=["json"], threads_per_worker="auto"))
ParallelExecutor(max_concurrency="auto", seed=7, backend=ProcessBackend(threads_per_worker=2))
ParallelExecutor(backend=ExecutorBackend(ThreadPoolExecutor()))
ParallelExecutor(backend=ThreadPoolExecutor())

me: CurrentTask = current_task()
me.check()
assert_type(me.remaining(), Optional[float])
assert_type(me.cancelled, bool)
print(me.id, me.attempt, me.deadline)
granted: dict[str, Any] = me.granted
assert_type(me.seed, int)
here: CurrentWorker = current_worker()
print(here.index + here.pid, here.name.upper(), here.state.get("connection"))

with ParallelExecutor(
    limits={
        "db": 4,
        "mem": 16.0,
        "api": Rate(10, per=1.0, burst=10),
        "gpu": ["cuda:0", "cuda:1"],
        "host": PerKey(Rate(2)),
        "llm": Adaptive(min=1, max=64, initial=4),
    },
    priority_ageing=60,
) as limited:
    assert_type(limited.limits, MutableMapping[str, LimitSpec])
    limited.limits["api"] = Rate(5)
    limited.limits["gpu"] = ("cuda:0",)
    del limited.limits["llm"]
    limited.add_task(Task(add, 1, needs={"api": 1, "mem": 3.5, "host": ("example.com", 80)}))
    assert_type(limited.options(needs={"db": 1}).submit(add, 1), TaskFuture[int])
    usage = limited.stats().limits["host"]
    assert_type(usage, LimitStats)
    assert_type(usage.in_use, float)
    assert_type(usage.waiting, int)
    assert_type(usage.next_grant, Optional[float])
    assert_type(usage.keys, Mapping[Hashable, LimitStats])

ParallelConfig(limits={"db": 4}, priority_ageing=None).with_changes(limits={"api": Rate(3)})
ParallelExecutor(limits={"db": "4"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
ParallelExecutor(limits=["db"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Rate("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Adaptive(64)  # type: ignore[misc]  # pyright: ignore[reportCallIssue]
Task(name, needs=["db"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Task(name, needs={3: 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
