"""Threads: abandoned when they are stuck, counted and capped, and never the reason for a hang."""

from __future__ import annotations

import itertools
import math
import threading
import time
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any

import inside
import pytest
import work

from parallel_exec import (
    CapacityExhaustedError,
    ParallelExecutor,
    Task,
    TaskStarted,
    TaskTimeoutError,
    ThreadBackend,
    WorkerStartError,
    current_task,
)
from parallel_exec._sync.timers import NEVER
from parallel_exec.backends import _thread_pool

# ── abandoned threads ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_abandoned_thread_is_counted_until_it_ends(lab: Any) -> None:
    """`stats().abandoned` counts a thread from the timeout of its task until the task's function returns."""
    executor = lab.executor(timeout=0.1, retry_count=0)
    gate = lab.event()
    future = executor.submit(gate.wait)
    assert isinstance(future.exception(), TaskTimeoutError)
    assert executor.stats().abandoned == 1
    gate.set()
    work.until(lambda: executor.stats().abandoned == 0)


def test_a_call_that_is_abandoned_as_it_begins_knows_what_it_holds(lab: Any) -> None:
    """An attempt that is aborted just before its call: the call cannot be kept back, and holds what it was granted."""
    gate = lab.event()
    seen: list[Any] = []

    def call() -> None:
        seen.append(current_task().granted)
        gate.wait()

    def abort(event: Any) -> None:
        if isinstance(event, TaskStarted) and event.task_id == "aborted":
            future.abort()

    executor = lab.executor(limits={"gpu": ["a"]}, on_event=abort)
    executor.pause()
    future = executor.options(id="aborted", needs={"gpu": 1}).submit(call)
    other = executor.options(needs={"gpu": 1}).submit(int)
    executor.resume()
    work.until(lambda: bool(seen))
    assert seen == [{"gpu": ("a",)}]
    assert executor.stats().limits["gpu"].in_use == 1
    assert not other.done()
    gate.set()
    assert other.result() == 0


def test_an_abandoned_thread_is_warned_of(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """At each timeout a warning names task, attempt, limit and thread, says that the call goes on beside the next attempt,
    and what to do.
    """
    executor = lab.executor(timeout=0.1, retry_count=1, backoff=0.0)
    gate = lab.event()
    started: list[str] = []

    def hang() -> None:
        started.append(threading.current_thread().name)
        gate.wait()

    future = executor.options(id="fetch").submit(hang)
    assert isinstance(future.exception(), TaskTimeoutError)
    assert len(started) == 2
    errors = [attempt.error for attempt in future.task_result().attempts]
    said = [record for record in caplog.records if record.name == "parallel_exec"]
    assert [record.levelname for record in said] == ["WARNING", "WARNING"]
    for number, (record, thread, error) in enumerate(zip(said, started, errors), 1):
        message = record.getMessage()
        assert message.startswith(f"{error}; its call ")
        assert f"attempt {number} of task 'fetch' ran longer than 0.1 s, at " in str(error)
        assert str(error).endswith(" in hang")
        assert f"still runs in thread {thread} while the next attempt, if there is one, starts" in message
        for remedy in ("retry_count=0", 'backend="process"', "current_task().check()"):
            assert remedy in message


def test_an_abort_is_not_warned_of(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is aborted on purpose is no warning: whoever did it knows."""
    executor = lab.executor(timeout=None)
    started, gate = lab.event(), lab.event()
    future = executor.submit(lambda: (started.set(), gate.wait()))
    started.wait()
    caplog.set_level("INFO", "parallel_exec")
    assert future.abort()
    work.until(future.done)
    (record,) = (record for record in caplog.records if record.name == "parallel_exec")
    assert record.levelname == "INFO"
    assert "was cancelled, and its call still runs in thread" in record.getMessage()


def test_a_deadline_warns_of_what_it_leaves(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A call that is running when the run's deadline passes goes on; nothing is said of a next attempt."""
    executor = lab.executor(timeout=None)
    executor.add_task(Task(lab.event().wait, id="slow"))
    executor.execute_all(deadline=0.1)
    (record,) = (record for record in caplog.records if record.name == "parallel_exec")
    assert record.getMessage().startswith(
        "task 'slow' was not finished when the run's deadline of 0.1 s passed; its call "
    )
    assert "next attempt" not in record.getMessage()


def test_what_an_abandoned_thread_returns_is_dropped(lab: Any) -> None:
    """The late result of an attempt that timed out changes nothing."""
    executor = lab.executor(timeout=0.1, retry_count=0)
    gate, returned = lab.event(), lab.event()

    def late() -> str:
        gate.wait()
        returned.set()
        return "late"

    future = executor.submit(late)
    error = future.exception()
    gate.set()
    returned.wait()
    work.until(lambda: executor.stats().abandoned == 0)
    assert future.exception() is error
    assert executor.stats().succeeded == 0


def test_the_slot_of_an_abandoned_thread_is_refilled(lab: Any) -> None:
    """With more stuck tasks than slots, the others still run, on new threads."""
    executor = lab.executor(max_concurrency=2, timeout=0.1, retry_count=0)
    gate = lab.event()
    stuck = [executor.submit(gate.wait) for _ in range(6)]
    quick = [executor.options(timeout=None).submit(work.double, number) for number in range(10)]
    assert [future.result() for future in quick] == [2 * number for number in range(10)]
    assert all(isinstance(future.exception(), TaskTimeoutError) for future in stuck)
    assert executor.stats().abandoned == 6


def test_an_abandoned_task_sees_that_it_is_cancelled(lab: Any) -> None:
    """`current_task().cancelled` turns true when the task was aborted, and `check()` raises."""
    executor = lab.executor()
    started, checked = lab.event(), lab.event()
    seen: list[object] = []

    def task() -> None:
        view = current_task()
        seen.append(view.cancelled)
        started.set()
        work.until(lambda: view.cancelled)
        try:
            view.check()
        except BaseException as error:
            seen.append(type(error).__name__)
        checked.set()

    future = executor.submit(task)
    started.wait()
    assert future.abort()
    assert checked.wait(work.PATIENCE)
    assert seen == [False, "CancelledError"]


def test_a_later_attempt_is_not_seen_by_an_earlier_one(lab: Any) -> None:
    """An attempt that timed out stays cancelled while the next attempt of the same task runs."""
    executor = lab.executor(max_concurrency=1, timeout=1.0, retry_count=1)
    first: list[Any] = []
    gate = lab.event()

    def task() -> bool:
        view = current_task()
        if view.attempt == 1:
            first.append(view)
            gate.wait()
        return first[0].cancelled and not view.cancelled

    assert executor.submit(task).result()


def test_shutdown_does_not_wait_for_abandoned_threads(lab: Any) -> None:
    """`shutdown()` returns although a thread is stuck, also one that is abandoned only while `shutdown()` waits."""
    executor = lab.executor(timeout=0.2, retry_count=0)
    future = executor.submit(lab.event().wait)
    executor.shutdown(wait=True)
    assert isinstance(future.exception(), TaskTimeoutError)
    assert executor.stats().abandoned == 1


def test_the_cap_on_abandoned_threads(lab: Any) -> None:
    """Once the cap is reached and no slot is left, what waits fails with `CapacityExhaustedError` instead of hanging."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=1), max_concurrency=2, timeout=0.1, retry_count=0)
    gate = lab.event()
    stuck = [executor.submit(gate.wait) for _ in range(3)]
    waiting = executor.submit(work.double, 1)
    assert [type(future.exception()) for future in stuck] == [TaskTimeoutError] * 3
    error = waiting.exception(work.PATIENCE)
    assert isinstance(error, CapacityExhaustedError)
    assert error.abandoned == 3


def test_what_comes_after_the_cap_fails_at_once(lab: Any) -> None:
    """A task that is submitted when every slot is lost fails, too."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), max_concurrency=1, timeout=0.1, retry_count=0)
    executor.submit(lab.event().wait).exception()
    assert isinstance(executor.submit(work.double, 1).exception(work.PATIENCE), CapacityExhaustedError)


def test_a_slot_lost_to_the_cap_comes_back(lab: Any) -> None:
    """When an abandoned thread ends, its slot serves again."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), max_concurrency=1, timeout=0.1, retry_count=0)
    gate = lab.event()
    executor.submit(gate.wait).exception()
    gate.set()
    work.until(lambda: executor.stats().abandoned == 0)
    assert executor.options(timeout=None).submit(work.double, 1).result(work.PATIENCE) == 2


def test_a_slot_that_comes_back_while_one_looks_for_room(lab: Any) -> None:
    """Whoever saw no room, and says so late, does not keep the pool closed."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), retry_count=0)
    runner = inside.runner(executor)
    runner.port.park(runner._refuser)  # on top of the one that would start a thread
    assert executor.submit(work.double, 2).result(work.PATIENCE) == 4


def test_a_slot_that_comes_back_and_goes_again(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever refuses what waits, and sees a slot for a moment, goes on refusing."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), retry_count=0)
    runner = inside.runner(executor)
    rooms = itertools.chain([1], itertools.repeat(0))
    monkeypatch.setattr(runner, "_room", lambda: next(rooms))
    runner._refuse_all()
    assert isinstance(executor.submit(int).exception(work.PATIENCE), CapacityExhaustedError)


def test_a_timer_that_rings_before_it_can_know_for_whom(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is held up between arming its timer and noting what it runs: the attempt times out all the same."""
    executor = lab.executor(max_concurrency=1, timeout=0.1, retry_count=0)
    begin_next = inside.scheduler(executor).begin_next

    def begin_late(slot: Any, *args: Any) -> Any:
        begun = begin_next(slot, *args)
        if begun is not None:
            work.until(lambda: slot.timer.deadline == NEVER)
        return begun

    monkeypatch.setattr(inside.scheduler(executor), "begin_next", begin_late)
    assert isinstance(executor.submit(lab.event().wait).exception(work.PATIENCE), TaskTimeoutError)


def test_a_wait_that_has_interrupted_who_holds_the_lock(lab: Any) -> None:
    """A finalizer, which may run at any point, waits for a task that runs already: its end needs no lock to be seen."""
    executor = lab.executor(max_concurrency=2)
    began, gate, results = lab.event(), lab.event(), []

    def run() -> int:
        began.set()
        gate.wait(work.PATIENCE)
        return 1

    future = executor.submit(run)
    assert began.wait(work.PATIENCE)

    def wait() -> None:
        with inside.scheduler(executor).lock:
            threading.Timer(0.1, gate.set).start()
            results.append(future.result())

    lab.thread(wait).join(work.PATIENCE)
    assert results == [1]


def test_callbacks_of_refused_tasks_run_without_our_lock(lab: Any) -> None:
    """While the callback of a task that was refused for want of a slot runs, other threads may use the executor."""
    executor = lab.executor(backend=ThreadBackend(max_abandoned=0), max_concurrency=1, timeout=0.1, retry_count=0)
    executor.submit(lab.event().wait)
    waiting = executor.add_task(partial(work.double, 1))
    could_be_used: list[bool] = []

    def callback(_: Any) -> None:
        other = lab.thread(executor.stats)
        other.join(work.PATIENCE)
        could_be_used.append(not other.is_alive())

    waiting.add_done_callback(callback)
    assert isinstance(waiting.exception(), CapacityExhaustedError)
    work.until(lambda: could_be_used)
    assert could_be_used == [True]


@pytest.mark.parametrize("cap", [0, 256])
def test_a_callback_that_exits_harms_no_worker(lab: Any, cap: int, caplog: pytest.LogCaptureFixture) -> None:
    """`SystemExit` from the callback of a timed-out task ends neither the thread that took over nor the clock."""
    executor = lab.executor(
        backend=ThreadBackend(max_abandoned=cap), max_concurrency=2, timeout=0.1, retry_count=0, backoff=0.01
    )
    gates = [lab.event(), lab.event()]
    stuck = [executor.add_task(gate.wait) for gate in gates]
    called: list[int] = []

    def callback(_: Any) -> None:
        called.append(1)
        raise SystemExit(3)

    for future in stuck:
        future.add_done_callback(callback)
    executor.execute_all()
    for gate in gates:
        gate.set()
    work.until(lambda: executor.stats().abandoned == 0 and len(called) == 2)
    latches = [lab.latch() for _ in range(2)]
    meeting = [executor.options(timeout=None).submit(work.meet, latches, mine) for mine in range(2)]
    assert [future.result(work.PATIENCE) for future in meeting] == [0, 1]
    again = executor.options(timeout=0.1, retry_count=0).submit(lab.event().wait)
    assert isinstance(again.exception(work.PATIENCE), TaskTimeoutError)
    caplog.clear()  # that it raised was logged


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_are_started_as_needed(lab: Any) -> None:
    """Tasks that come one after another run on one thread, whatever the limit."""
    executor = lab.executor(max_concurrency=8)
    names = set()
    for number in range(20):
        names.add(executor.submit(work.worker_name).result())
        work.until(lambda number=number: executor.stats().succeeded == number + 1)  # type: ignore[misc]  # it is idle now
    assert len(names) == 1


def test_threads_are_daemons_with_telling_names(lab: Any) -> None:
    """The threads bear the prefix that was asked for, and never keep the interpreter alive."""
    executor = lab.executor(backend=ThreadBackend(thread_name_prefix="kitchen"))
    thread = executor.submit(threading.current_thread).result()
    assert thread.name == "kitchen_0"
    assert thread.daemon


def test_the_initializer_runs_once_in_each_thread(lab: Any) -> None:
    """`initializer(*initargs)` has run in a thread before its first task does."""
    local = threading.local()

    def prepare(value: str) -> None:
        assert not hasattr(local, "value")
        local.value = value

    executor = lab.executor(backend=ThreadBackend(initializer=prepare, initargs=("ready",)), max_concurrency=2)
    latches = [lab.latch(), lab.latch()]

    def task(mine: int) -> str:
        work.meet(latches, mine)
        return str(local.value)

    futures = [executor.submit(task, mine) for mine in range(2)]
    assert [future.result() for future in futures] == ["ready", "ready"]


def test_a_failing_initializer_breaks_the_executor(lab: Any) -> None:
    """What waits ends as `WorkerStartError`, which names the initializer's exception, and more is refused."""
    executor = lab.executor(backend=ThreadBackend(initializer=work.fail, initargs=(ValueError("no oven"),)))
    futures = [executor.add_task(partial(work.double, number)) for number in range(5)]
    executor.execute_all()
    errors = [future.exception() for future in futures]
    assert all(isinstance(error, WorkerStartError) and isinstance(error, BrokenThreadPool) for error in errors)
    assert "ValueError: no oven" in str(errors[0])
    assert isinstance(errors[0].__cause__, ValueError)
    with pytest.raises(WorkerStartError, match="no oven"):
        executor.submit(work.double, 1)


def test_no_thread_to_be_had(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses the first thread, what waits fails with an error that says so."""
    executor = lab.executor(timeout=None)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel_exec"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    future = executor.submit(work.double, 1)
    assert isinstance(future.exception(work.PATIENCE), WorkerStartError)
    assert "can't start new thread" in str(future.exception())


def test_no_thread_for_what_waits_for_a_limit(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a limit fails with the rest, not one after another."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1})
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel_exec") and "clock" not in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    futures = [executor.options(needs={"db": 1}).submit(int) for _ in range(50)]
    errors = [future.exception(work.PATIENCE) for future in futures]
    assert all(isinstance(error, WorkerStartError) for error in errors)


def test_no_second_thread_to_be_had(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses further threads, the pool goes on with those it has."""
    executor = lab.executor(max_concurrency=4, timeout=None)
    executor.submit(work.double, 1).result()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel_exec"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    futures = [executor.submit(work.double, number) for number in range(20)]
    assert [future.result(work.PATIENCE) for future in futures] == [2 * number for number in range(20)]


class Refusal:
    """A system that refuses the next `count` threads of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0.0
        start = threading.Thread.start

        def may_refuse(thread: threading.Thread) -> None:
            if self.count > 0 and thread.name.startswith("parallel_exec") and "clock" not in thread.name:
                self.count -= 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", may_refuse)


def test_a_slot_that_cannot_be_refilled_at_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses the thread for an abandoned one's slot, what waits has it a moment later."""
    executor = lab.executor(max_concurrency=1, timeout=None, retry_count=0)
    started, gate = lab.latch(), lab.latch()
    stuck = executor.submit(work.hold, started, gate)
    started.wait()
    waiting = executor.submit(work.double, 1)
    refusal = Refusal(monkeypatch)
    refusal.count = 2
    assert stuck.abort()
    assert waiting.result(work.PATIENCE) == 2
    assert executor.submit(work.double, 2).result(work.PATIENCE) == 4
    assert refusal.count == 0


def test_threads_can_be_had_again(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits fails when no thread can be had for long; what is added once they can runs."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.PATIENCE", 0.1)
    executor = lab.executor(max_concurrency=2, timeout=None, retry_count=0)
    refusal = Refusal(monkeypatch)
    refusal.count = math.inf
    futures = [executor.submit(work.double, number) for number in range(3)]
    assert {type(future.exception(work.PATIENCE)).__name__ for future in futures} == {"WorkerStartError"}
    refusal.count = 0
    assert executor.submit(work.double, 2).result(work.PATIENCE) == 4


def test_patience_begins_when_there_is_no_thread(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago the system has refused one that was not needed as much."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.PATIENCE", 0.5)
    executor = lab.executor(max_concurrency=2, timeout=None, retry_count=0)
    started, gate = lab.latch(), lab.latch()
    stuck = executor.submit(work.hold, started, gate)
    started.wait()
    refusal = Refusal(monkeypatch)
    refusal.count = math.inf
    waiting = executor.submit(work.double, 1)
    time.sleep(0.7)
    assert not waiting.done()
    refusal.count = 4
    assert stuck.abort()
    assert waiting.result(work.PATIENCE) == 2


def test_patience_begins_anew(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused long ago does not count, if there was nothing to do since."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.PATIENCE", 0.5)
    executor = lab.executor(max_concurrency=1, timeout=None, retry_count=0)
    refusal = Refusal(monkeypatch)
    refusal.count = math.inf
    assert executor.submit(work.double, 1).cancel()
    time.sleep(0.7)
    future = executor.submit(work.double, 2)
    refusal.count = 2
    assert future.result(work.PATIENCE) == 4


def test_a_second_thread_comes_later(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that was refused its second thread has one soon: what waits behind a long call runs."""
    executor = lab.executor(max_concurrency=2, timeout=None, retry_count=0)
    started, gate = lab.latch(), lab.latch()
    long = executor.submit(work.hold, started, gate)
    started.wait()
    refusal = Refusal(monkeypatch)
    refusal.count = 1
    assert executor.submit(work.double, 1).result(work.PATIENCE) == 2
    gate.set()
    assert long.result(work.PATIENCE) == "held"


def test_shutdown_while_a_thread_is_being_started(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shutdown()` that comes between the making and the start of a thread waits for its task like for any other."""
    executor = lab.executor()
    start = threading.Thread.start
    starting, go = lab.event(), lab.event()

    def slowly(thread: threading.Thread) -> None:
        if thread.name.startswith("parallel_exec") and "clock" not in thread.name:
            starting.set()
            go.wait()
        start(thread)

    futures: list[Any] = []
    submitter = threading.Thread(target=lambda: futures.append(executor.submit(work.double, 1)))
    monkeypatch.setattr(threading.Thread, "start", slowly)
    submitter.start()
    starting.wait()
    failed: list[BaseException] = []

    def shut_down() -> None:
        try:
            executor.shutdown(wait=True)
        except BaseException as error:
            failed.append(error)

    closer = lab.thread(shut_down)
    closer.join(0.1)
    go.set()
    submitter.join(work.PATIENCE)
    closer.join(work.PATIENCE)
    assert failed == []
    assert futures[0].result() == 2
    assert executor.stats().workers == 0


def test_an_abandoned_attempt_has_ended_when_its_slot_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is not the later moment in which it is known where its thread was: by then another may have its index."""
    stacks = _thread_pool._Worker.stacks

    def slow(worker: Any) -> Any:
        time.sleep(0.4)
        return stacks(worker)

    monkeypatch.setattr(_thread_pool._Worker, "stacks", slow)
    gate = threading.Event()
    with ParallelExecutor(timeout=0.05, retry_count=0) as executor:
        future = executor.submit(gate.wait)
        assert isinstance(future.exception(), TaskTimeoutError)
        (attempt,) = future.task_result().attempts
        gate.set()
    assert attempt.duration < 0.3
