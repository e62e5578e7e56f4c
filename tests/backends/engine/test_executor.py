"""Other people's executors: what the contract suite does not say of every back end. Pools: the next file has them."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Iterator

import care_tasks
import inside
import pytest
import script
import tenacity
import work

from parallel_exec import (
    CapacityExhaustedError,
    ExecutorBackend,
    ParallelExecutor,
    TaskStarted,
    TaskTimeoutError,
)
from parallel_exec.backends.engine import runner
from parallel_exec.backends.engine.submission import Submission

LONG = 600.0


class ManualExecutor(Executor):
    """An executor whose test decides what becomes of each call.

    Attributes:
        calls: what `submit` got, with the futures it returned.
        refusal: what `submit` raises instead.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], object], Future[Any]]] = []
        self.refusal: BaseException | None = None
        self.refused = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Take a call, and do nothing with it."""
        if self.refusal is not None:
            self.refused += 1
            raise self.refusal
        assert not args
        assert not kwargs
        future: Future[Any] = Future()
        self.calls.append((fn, future))
        return future

    def run(self, index: int) -> None:
        """Run a call in the calling thread, as an executor would."""
        fn, future = self.calls[index]
        if future.set_running_or_notify_cancel():
            future.set_result(fn())


class SynchronousExecutor(Executor):
    """An executor that runs each call in its `submit`, as some do for debugging."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a call."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """A thread pool of the stdlib's with two threads."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


# ── handing over ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_inside_than_the_limit(lab: Any) -> None:
    """An executor that does not say how many workers it has holds `max_concurrency` attempts, and gets one for one."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine, max_concurrency=2)
    futures = [executor.submit(work.double, number) for number in range(4)]
    work.until(lambda: len(engine.calls) == 2)
    assert executor.stats().queued == 2
    for index in range(4):
        work.until(lambda index=index: len(engine.calls) > index)
        engine.run(index)
    assert [future.result() for future in futures] == [0, 2, 4, 6]


def test_no_more_inside_than_workers(threads: ThreadPoolExecutor, lab: Any) -> None:
    """What a pool of two threads could not begin at once waits with us, and can be cancelled."""
    gate = lab.event()
    executor = lab.executor(backend=threads, max_concurrency=5)
    running = [executor.submit(gate.wait) for _ in range(2)]
    waiting = [executor.submit(gate.wait) for _ in range(3)]
    work.until(lambda: executor.stats().running == 2)
    assert executor.stats().queued == 3
    assert all(future.cancel() for future in waiting)
    gate.set()
    assert all(future.result() for future in running)


def test_an_index_is_free_with_the_slot(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to the executor as soon as another has ended is not told that it is a worker too many."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine, max_concurrency=1)
    first, others = executor.submit(care_tasks.who), []
    release = runner.EngineRunner._release

    def hold_up(self: Any, submission: Submission, **more: Any) -> None:
        release(self, submission, **more)
        if not others:
            others.append(executor.submit(care_tasks.who))
            executor.resize(1)  # after which it is looked whether there is room
            work.until(lambda: len(engine.calls) == 2)

    monkeypatch.setattr(runner.EngineRunner, "_release", hold_up)
    work.until(lambda: engine.calls)
    engine.run(0)
    engine.run(1)
    assert [future.result()[0] for future in (first, *others)] == [0, 0]


def test_an_index_is_free_when_a_task_is_taken_back(lab: Any) -> None:
    """Also where the executor gives it to a worker all the same, which then does nothing."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine, max_concurrency=1)
    future = executor.submit(care_tasks.who)
    work.until(lambda: engine.calls)
    call, engine_future = engine.calls[0]
    assert engine_future.set_running_or_notify_cancel()  # it is in a queue, on its way to a worker
    executor.pause()
    work.until(lambda: executor.stats().queued == 1)
    executor.resume()
    work.until(lambda: len(engine.calls) == 2)
    engine.run(1)
    engine_future.set_result(call())
    assert future.result()[0] == 0


def test_the_users_context_and_task(threads: ThreadPoolExecutor, lab: Any) -> None:
    """In this process a task runs in a copy of its submitter's context, and knows itself."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    executor = lab.executor(backend=ExecutorBackend(threads))
    assert executor.submit(variable.get).result() == "set"
    assert executor.options(id="me").submit(work.describe_current).result()["id"] == "me"


def test_an_executor_that_runs_calls_on_the_spot(lab: Any) -> None:
    """However many tasks there are, an executor that runs calls in its `submit` causes no deep recursion."""
    executor = lab.executor(backend=SynchronousExecutor())
    depths = list(executor.map(lambda _: len(__import__("inspect").stack()), range(500)))
    assert max(depths) == min(depths)


def test_what_is_taken_back_never_runs(lab: Any) -> None:
    """A call that was cancelled while the executor had it does nothing when the executor runs it after all."""
    engine = ManualExecutor()
    ran: list[int] = []
    executor = lab.executor(backend=engine)
    future = executor.submit(ran.append, 1)
    work.until(lambda: len(engine.calls) == 1)
    assert future.cancel()
    engine.calls[0][0]()
    assert not ran
    assert future.task_result().attempts == ()


def test_pause_takes_back_what_has_not_begun(lab: Any) -> None:
    """`pause` takes what waits in the executor back into the queue, and `resume` hands it over again."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine)
    future = executor.submit(work.double, 4)
    work.until(lambda: len(engine.calls) == 1)
    executor.pause()
    assert executor.stats().queued == 1
    work.until(engine.calls[0][1].cancelled)
    executor.resume()
    work.until(lambda: len(engine.calls) == 2)
    engine.run(1)
    assert future.result() == 8
    assert len(future.task_result().attempts) == 1


def test_aborting_what_waits_in_the_engine(lab: Any) -> None:
    """`abort` of a task that waits in the executor cancels it there."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine)
    future = executor.submit(work.double, 1)
    work.until(lambda: len(engine.calls) == 1)
    assert future.abort()
    with pytest.raises(CancelledError):
        future.result(LONG)
    work.until(engine.calls[0][1].cancelled)


# ── an engine that fails ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_abort_asks_nobody_where_the_call_is(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come from a finalizer, in the middle of anything; and nobody wants to know."""
    monkeypatch.setattr(Submission, "stacks", lambda _: pytest.fail("it was asked"))
    gate = threading.Event()
    with ParallelExecutor(backend=threads) as executor:
        future = executor.submit(gate.wait, LONG)
        work.until(future.running)
        assert future.abort()
        gate.set()


def test_aborting_as_the_attempt_begins(threads: ThreadPoolExecutor, lab: Any) -> None:
    """By the hook that is told of the start: the call is not made any more."""
    calls: list[int] = []

    def abort(event: Any) -> None:
        if type(event) is TaskStarted:
            future.abort()
            work.until(future.done)

    with lab.executor(backend=ExecutorBackend(threads), on_event=abort) as executor:
        executor.pause()
        future = executor.submit(calls.append, 1)
        executor.resume()
        work.until(future.cancelled)
    threads.shutdown()
    assert calls == []


def test_an_executor_whose_workers_do_not_come_along(lab: Any) -> None:
    """In a forked child nothing is given to one that was used, whatever it keeps its workers in."""
    inner = ManualExecutor()
    backend = ExecutorBackend(inner)
    executor = lab.executor(backend=backend)
    assert backend.works_after_fork()
    executor.add_task(lambda: 1)
    running = threading.Thread(target=executor.execute_all)
    running.start()
    work.until(lambda: len(inner.calls) == 1)
    inner.run(0)
    running.join()
    assert not backend.works_after_fork()


def test_an_engine_that_cancels(lab: Any) -> None:
    """An attempt that the executor cancels unasked has failed with `CancelledError`, and the task has ended."""
    engine = ManualExecutor()
    executor = lab.executor(backend=engine)
    future = executor.submit(work.double, 1)
    work.until(lambda: len(engine.calls) == 1)
    engine.calls[0][1].cancel()
    assert isinstance(future.exception(LONG), CancelledError)
    assert executor.stats().running == 0


def test_an_engine_that_was_shut_down(lab: Any) -> None:
    """After the executor's shutdown tasks fail with what its `submit` raises, instead of hanging."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    executor = lab.executor(backend=pool, retry_count=0)
    executor.add_task(partial(work.double, 1))
    (result,) = executor.execute_all()
    assert isinstance(result.error, RuntimeError)
    assert "shutdown" in str(result.error)


def test_a_broken_engine_does_not_spin(lab: Any) -> None:
    """A policy that never gives up and never waits does not keep a broken executor busy for ever."""
    engine = ManualExecutor()
    engine.refusal = BrokenExecutor("for good")
    executor = lab.executor(backend=engine, retry=tenacity.Retrying())
    assert executor.submit(work.double, 1).exception(LONG) is engine.refusal
    assert engine.refused == runner.REFUSALS + 1


def test_an_engine_that_recovers(lab: Any) -> None:
    """A refusal is a failure like any other: the next attempt may succeed."""
    engine = ManualExecutor()
    engine.refusal = OSError("no process can be started")
    executor = lab.executor(backend=engine, retry_count=1, backoff=LONG, max_backoff=LONG)
    failed = executor.submit(work.double, 1)
    work.until(lambda: executor.stats().waiting == 1)
    engine.refusal = None
    future = executor.submit(work.double, 2)
    work.until(lambda: len(engine.calls) == 1)
    engine.run(0)
    assert future.result() == 4
    assert failed.cancel()


def test_an_engine_full_of_stuck_attempts(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When each worker of the executor is stuck, what waits fails after a while; a worker that comes back is used."""
    monkeypatch.setattr(runner, "RECOVERY", 0.05)
    gate, returned = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        executor = lab.executor(backend=pool, retry_count=0)
        stuck = executor.options(timeout=0.05).submit(lambda: returned.append(gate.wait(LONG)))
        waiting = executor.submit(work.double, 1)
        assert isinstance(stuck.exception(LONG), TaskTimeoutError)
        error = waiting.exception(LONG)
        assert isinstance(error, CapacityExhaustedError)
        assert error.abandoned == executor.stats().abandoned == 1
        gate.set()
        work.until(lambda: executor.stats().abandoned == 0)
        assert executor.submit(work.double, 2).result() == 4


def test_a_worker_of_the_engine_that_comes_back_amid_refusals(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is refused only as long as each worker is stuck."""
    monkeypatch.setattr(runner, "RECOVERY", 0.05)
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        executor = lab.executor(backend=pool, retry_count=0)
        refuse = inside.scheduler(executor).reject

        def refuse_slowly(future: Any, error: BaseException) -> None:
            refuse(future, error)
            gate.set()
            work.until(lambda: executor.stats().abandoned == 0)

        monkeypatch.setattr(inside.scheduler(executor), "reject", refuse_slowly)
        executor.options(timeout=0.05).submit(gate.wait, LONG)
        first, second = executor.submit(work.double, 1), executor.submit(work.double, 2)
        assert isinstance(first.exception(LONG), CapacityExhaustedError)
        assert second.result(LONG) == 4


def test_an_attempt_that_the_engine_does_not_stop_is_warned_of(
    threads: ThreadPoolExecutor, lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning says where it still runs, and what to do."""
    executor = lab.executor(backend=threads, timeout=0.05, retry_count=0)
    error = executor.options(id="stuck").submit(lab.event().wait, LONG).exception()
    # (A failure of an earlier test's that nobody looked at may be logged as an error meanwhile.)
    (record,) = (each for each in caplog.records if (each.name, each.levelname) == ("parallel_exec", "WARNING"))
    assert record.getMessage().startswith(f"{error}; its call cannot be stopped")
    assert "attempt 1 of task 'stuck' ran longer than 0.05 s, at " in str(error)
    assert "of the executor while the next attempt, if there is one, starts" in record.getMessage()


def test_shutdown_does_not_wait_for_stuck_attempts(threads: ThreadPoolExecutor, lab: Any) -> None:
    """`shutdown` returns though the executor holds an abandoned attempt, and leaves the executor open."""
    gate = lab.event()
    executor = lab.executor(backend=threads, timeout=0.05, retry_count=0)
    assert isinstance(executor.submit(gate.wait).exception(), TaskTimeoutError)
    executor.shutdown()
    assert executor.stats().abandoned == 1
    assert threads.submit(work.double, 1).result() == 2


# ── one of ours ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_executor_of_ours_does_not_retry_by_itself(lab: Any) -> None:
    """With one ParallelExecutor inside another the outer one's limits hold, and every attempt is counted."""
    inner = lab.executor(timeout=0.05, retry_count=5)
    outer = ParallelExecutor(backend=inner, retry_count=1, backoff=0.0)
    with outer:
        slow = outer.submit(time.sleep, 0.2)
        future = outer.submit(work.flaky, lab.log(), 9)
        assert str(future.exception()) == "call 2 failed"
        assert slow.result() is None


def test_a_process_of_ours_is_killed(lab: Any) -> None:
    """At a timeout the outer executor aborts the inner one's attempt: its process is killed, nothing is abandoned."""
    inner = lab.executor(backend="process", max_concurrency=1)
    with ParallelExecutor(backend=inner, retry_count=0, max_concurrency=1) as outer:
        pid = outer.submit(os.getpid).result()
        future = outer.options(timeout=0.3).submit(work.hold, lab.latch(), lab.latch())
        assert isinstance(future.exception(LONG), TaskTimeoutError)
        assert outer.submit(os.getpid).result() != pid
        work.until(lambda: outer.stats().abandoned == 0)


# ── the executor's own life ─────────────────────────────────────────────────────────────────────────────────────────


def test_it_takes_executors_only() -> None:
    """Anything else is refused at once, and a class is told what it lacks."""
    with pytest.raises(TypeError, match=r"takes a concurrent\.futures\.Executor"):
        ExecutorBackend("thread")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="make an instance"):
        ExecutorBackend(ThreadPoolExecutor)  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_pending_work_is_finished_at_exit(tmp_path: Any, pool: str) -> None:
    """At interpreter exit our pending tasks are finished, though the pool's own exit hook was registered after ours."""
    said = script.run(
        tmp_path,
        f"""
        import concurrent.futures
        executor = ParallelExecutor(backend=concurrent.futures.{pool}(1))
        for number in range(20):
            executor.submit(work.double, number).add_done_callback(lambda future: say(future.result()))
        """,
    )
    assert said.split() == [str(2 * number) for number in range(20)]
