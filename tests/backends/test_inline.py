"""The inline back end: everything happens in the calling thread, one thing after the other."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import inside
import pytest
import tenacity
import work
from backend_kinds import over

from parallel_exec import DeadlineExceededError, InlineBackend, ParallelExecError, Task, TaskTimeoutError, current_task
from parallel_exec.events import TaskRetrying, TaskStarted

pytestmark = over(("inline",))


def test_tasks_run_in_the_calling_thread(lab: Any) -> None:
    """`submit` returns once the task has run, in the caller's own thread."""
    future = lab.executor().submit(threading.current_thread)
    assert future.done()
    assert future.result() is threading.current_thread()


def test_no_thread_is_started(lab: Any) -> None:
    """Without backoff and deadline there is no thread but the caller's."""
    before = threading.active_count()
    executor = lab.executor(timeout=5.0)
    executor.add_task(threading.active_count)
    assert executor.execute_all()[0].unwrap() == before


def test_an_overdue_attempt_counts_as_timed_out(lab: Any) -> None:
    """An attempt that outruns its timeout runs to its end, and then is a timeout all the same."""
    log = lab.log()
    future = lab.executor(timeout=0.05, retry_count=0).submit(work.span, log, 0.1)
    assert isinstance(future.exception(), TaskTimeoutError)
    assert len(log.lines()) == 1


def test_a_task_may_stop_itself_in_time(lab: Any) -> None:
    """`current_task().check()` raises at the deadline of the attempt."""
    future = lab.executor(timeout=0.1, retry_count=0).submit(work.check_until_stopped, lab.latch())
    assert isinstance(future.exception(), TaskTimeoutError)


def test_backoff_is_waited_out_by_the_caller(lab: Any) -> None:
    """The next attempt comes after its backoff, in the calling thread, and others run in between."""
    executor = lab.executor(backoff=1.0, jitter=False, retry_count=1)
    log = lab.log()
    executor.add_task(Task(partial(work.flaky, log, 1), priority=1))
    executor.add_task(partial(work.note, log, "between"))
    begun = time.monotonic()
    executor.execute_all()
    assert log.lines() == ["call", "between", "call"]
    assert time.monotonic() - begun >= 1.0


def test_a_task_that_submits_and_waits_is_told(lab: Any) -> None:
    """A task that waits for another one of the same executor, which could never run, gets an error at once."""
    executor = lab.executor()

    def outer() -> int:
        return int(executor.submit(work.double, 1).result())

    with pytest.raises(ParallelExecError, match=r"would wait for ever|inline"):
        executor.options(retry_count=0).submit(outer).result()


def test_a_task_that_submits_and_goes_on(lab: Any) -> None:
    """What a task submits runs after it."""
    executor = lab.executor()
    order: list[str] = []

    def outer() -> Any:
        future = executor.submit(order.append, "inner")
        order.append("outer")
        return future

    executor.submit(outer).result().result()
    assert order == ["outer", "inner"]


def test_two_executors_may_be_nested(lab: Any) -> None:
    """A task may use another inline executor and wait for it."""
    inner, outer = lab.executor(), lab.executor()
    assert outer.submit(lambda: inner.submit(work.double, 2).result()).result(work.PATIENCE) == 4


def test_current_task_after_a_nested_one(lab: Any) -> None:
    """After a task has used another inline executor, `current_task()` is the outer task again."""
    inner, outer = lab.executor(), lab.executor()

    def task() -> str:
        assert inner.submit(work.double, 1).result(work.PATIENCE) == 2
        return current_task().id

    assert outer.options(id="outer").submit(task).result() == "outer"


def test_another_thread_may_lend_itself(lab: Any) -> None:
    """While one thread drives the executor, a second one can submit, and its task runs."""
    executor = lab.executor()
    started, gate = lab.event(), lab.event()

    def hold() -> None:
        started.set()
        gate.wait()

    lab.thread(executor.submit, hold)
    started.wait()
    future = executor.submit(work.double, 1)
    assert not future.done()
    gate.set()
    assert future.result(work.PATIENCE) == 2


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
def test_a_backoff_can_be_ended_from_another_thread(lab: Any, how: str) -> None:
    """The caller who waits out a backoff is let go when the task is cancelled meanwhile."""
    executor = lab.executor(backoff=600.0, max_backoff=600.0)
    future = executor.add_task(partial(work.fail, OSError()))

    def end_it() -> None:
        work.until(lambda: executor.stats().waiting == 1)
        future.cancel() if how == "cancel" else executor.shutdown(wait=False, cancel_futures=True)

    lab.thread(end_it)
    (result,) = executor.execute_all()
    assert isinstance(result.error, CancelledError)


def test_a_deadline_passes_while_a_task_runs(lab: Any) -> None:
    """A task that is running at the deadline runs on, its result is dropped, and nothing starts after it."""
    executor = lab.executor()
    log = lab.log()
    executor.add_task(lambda: (work.until(lambda: current_task().cancelled), log.write("late")))
    executor.add_task(partial(work.note, log, "never"))
    results = executor.execute_all(deadline=1.0)
    assert [type(result.error) for result in results] == [DeadlineExceededError] * 2
    assert log.lines() == ["late"]


def test_an_interrupt_ends_the_run(lab: Any) -> None:
    """`KeyboardInterrupt` in a task is the caller's as well: it is raised, the rest is cancelled, and results are kept."""
    executor = lab.executor(retry_count=0)
    executor.add_task(Task(partial(work.double, 1), priority=2))
    executor.add_task(Task(work.interrupt, priority=1))
    executor.add_task(partial(work.double, 2))
    with pytest.raises(KeyboardInterrupt):
        executor.execute_all()
    assert [type(result.error) for result in executor.results()] == [type(None), KeyboardInterrupt]


def test_an_interrupt_is_not_logged_as_well(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C in the middle of `submit` leaves nobody who could look at the future; that is no failure to be told of."""
    executor = lab.executor(retry_count=0)
    with pytest.raises(KeyboardInterrupt):
        executor.submit(work.interrupt)
    executor.shutdown()
    del executor
    gc.collect()
    assert "nobody looked" not in caplog.text


def test_sys_exit_is_a_failure_of_the_task(lab: Any) -> None:
    """`sys.exit()` in a task does not leave the caller."""
    assert isinstance(lab.executor().submit(work.exit_with, 3).exception(), SystemExit)


def test_an_error_can_be_raised_again(lab: Any) -> None:
    """A failed task's error can be raised again and again, with the traceback of the task."""
    future = lab.executor(retry_count=0).submit(work.fail_deeply, 1)
    for _ in range(2):
        with pytest.raises(work.CodedError):
            future.result()


def test_what_another_thread_adds_at_the_last_moment_is_run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that has just found nothing left, and has not given up its turn, looks once more."""
    executor = lab.executor()
    scheduler = inside.scheduler(executor)
    pending, found_none, added = scheduler.pending, threading.Event(), threading.Event()

    def look() -> bool:
        found: bool = pending()
        if not found and threading.current_thread() is driver and not found_none.is_set():
            found_none.set()
            added.wait(work.PATIENCE)
        return found

    monkeypatch.setattr(scheduler, "pending", look)
    driver = threading.Thread(target=executor.submit, args=(int,))
    driver.start()
    found_none.wait(work.PATIENCE)
    future = executor.submit(work.double, 2)  # it cannot have the turn
    added.set()
    driver.join(work.PATIENCE)
    assert future.result(work.PATIENCE) == 4


# ── sleep ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Sleeper:
    """Takes the seconds to wait, and waits for a moment or not at all."""

    def __init__(self, *, really: bool = False) -> None:
        self.naps: list[float] = []
        self._really = really

    def __call__(self, seconds: float) -> None:
        """Be called with the seconds."""
        self.naps.append(seconds)
        if self._really:
            time.sleep(seconds)


def test_backoff_can_be_skipped(lab: Any) -> None:
    """Three retries with a minute between them take no time, and the seconds that were skipped are told."""
    sleeper = Sleeper()
    backend = InlineBackend(sleep=sleeper)
    executor = lab.executor(backend=backend, backoff=60, max_backoff=600, jitter=False, retry_count=3)
    begun = time.monotonic()
    executor.add_task(partial(work.flaky, lab.log(), 3))
    (result,) = executor.execute_all()
    assert result.success and len(result.attempts) == 4
    assert time.monotonic() - begun < work.SOON
    assert sleeper.naps == pytest.approx([60, 120, 240], abs=1)
    assert executor.submit(work.double, 1).result() == 2


@pytest.mark.parametrize("really", [False, True])
def test_what_is_due_first_runs_first(lab: Any, really: bool) -> None:
    """Attempts come in the order in which their backoffs end, whatever their priorities, skipped or waited out."""
    sleeper = Sleeper(really=really)
    executor = lab.executor(backend=InlineBackend(sleep=sleeper), jitter=False, retry_count=2, max_backoff=600.0)
    order: list[str] = []

    def fail(name: str) -> None:
        order.append(name)
        raise OSError

    unit = 1.0 if really else 100.0  # seconds
    executor.add_task(Task(fail, "slow", backoff=unit, priority=9))
    executor.add_task(Task(fail, "quick", backoff=0.4 * unit))
    executor.execute_all()  # slow at 0, 1 and 3; quick at 0, 0.4 and 1.2
    assert order == ["slow", "quick", "quick", "slow", "quick", "slow"]
    if not really:  # else each is less by as long as all before it have taken
        assert sleeper.naps == pytest.approx([0.4 * unit, 0.6 * unit, 0.2 * unit, 1.8 * unit], abs=0.1 * unit)


def test_equals_come_in_order_after_a_skip(lab: Any) -> None:
    """What is due at one moment starts by priority."""
    executor = lab.executor(backend=InlineBackend(sleep=Sleeper()), backoff=5.0, jitter=False, retry_count=1)
    order: list[int] = []

    def fail(number: int) -> None:
        order.append(number)
        raise OSError

    for number in (1, 3, 2):
        executor.add_task(Task(fail, number, priority=number))
    executor.execute_all()
    assert order == [3, 2, 1, 3, 2, 1]


def test_a_deadline_counts_real_time(lab: Any) -> None:
    """Skipped seconds are none, so a minute of backoff fits into a deadline of a few seconds."""
    executor = lab.executor(backend=InlineBackend(sleep=Sleeper()), backoff=20.0, retry_count=3)
    executor.add_task(partial(work.flaky, lab.log(), 3))
    (result,) = executor.execute_all(deadline=20)
    assert result.success


def test_a_deadline_in_a_sleep(lab: Any) -> None:
    """A deadline that passes while `sleep` sleeps ends the tasks then, and nothing runs after it."""
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        work.until(futures[0].done)

    executor = lab.executor(backend=InlineBackend(sleep=sleep), backoff=600.0, max_backoff=600.0)
    futures = [executor.add_task(partial(work.fail, OSError()))]
    (result,) = executor.execute_all(deadline=0.2)
    assert isinstance(result.error, DeadlineExceededError)
    assert len(naps) == len(result.attempts) == 1


def test_what_is_added_during_a_sleep(lab: Any) -> None:
    """A task that another thread adds meanwhile runs once the sleep is over, in its place."""
    order: list[str] = []

    def sleep(seconds: float) -> None:
        lab.thread(executor.submit, order.append, "added").join()

    def fail() -> None:
        order.append("task")
        raise OSError

    executor = lab.executor(backend=InlineBackend(sleep=sleep), backoff=600.0, max_backoff=600.0, retry_count=1)
    executor.add_task(Task(fail, priority=1))
    executor.execute_all()
    assert order == ["task", "task", "added"]


def test_a_task_that_is_cancelled_during_a_sleep(lab: Any) -> None:
    """It does not come back when the sleep is over."""
    log = lab.log()
    executor = lab.executor(
        backend=InlineBackend(sleep=lambda seconds: future.cancel()), backoff=600.0, max_backoff=600.0
    )
    future = executor.add_task(partial(work.flaky, log, 9))
    (result,) = executor.execute_all()
    assert isinstance(result.error, CancelledError)
    assert log.lines() == ["call"]


def test_a_sleep_that_raises(lab: Any) -> None:
    """Ctrl-C in a sleep is raised in the caller, and the executor is as after any Ctrl-C."""

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    executor = lab.executor(backend=InlineBackend(sleep=sleep), backoff=5.0)
    future = executor.add_task(partial(work.fail, OSError()))
    with pytest.raises(KeyboardInterrupt):
        executor.execute_all()
    assert future.cancelled()
    assert executor.results() == []
    assert executor.submit(work.double, 2).result() == 4


def test_callbacks_and_hooks_that_wait(lab: Any) -> None:
    """What a callback or a hook waits for could only be run by the thread that it is called in, so it is told."""
    told: list[str] = []

    def wait(*_: object) -> None:
        if len(told) < 2:
            with pytest.raises(ParallelExecError, match="a callback or an event hook waits") as raised:
                list(executor.stream([Task(int)])) if told else executor.submit(int).result()
            told.append(str(raised.value))

    executor = lab.executor(on_event=lambda event: isinstance(event, TaskRetrying) and wait(), retry_count=1)
    future = executor.add_task(partial(work.flaky, lab.log(), 1))
    future.add_done_callback(wait)
    executor.execute_all()
    assert len(told) == 2
    assert executor.submit(work.double, 1).result() == 2


def test_a_hook_that_shuts_down_does_not_wait_for_what_it_has_interrupted(lab: Any) -> None:
    """Also where the clock runs, as between two attempts."""
    heard: list[object] = []

    def hook(event: object) -> None:
        if isinstance(event, TaskStarted) and event.attempt == 2:
            heard.append(executor.shutdown())

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(0.01))
    executor = lab.executor(backend="inline", on_event=hook, retry=policy)
    executor.submit(work.fail_first, lab.log(), 1).result()
    assert heard == [None]


def test_shutdown_waits_for_another_thread(lab: Any) -> None:
    """Which runs what there is."""
    executor = lab.executor(backend="inline")
    begun, gate, ends = lab.event(), lab.event(), []
    runs = threading.Thread(target=lambda: executor.submit(lambda: (begun.set(), gate.wait(work.PATIENCE))))
    runs.start()
    begun.wait(work.PATIENCE)

    def shut_down() -> None:
        executor.shutdown()
        ends.append(executor.stats().succeeded)

    waits = threading.Thread(target=shut_down)
    waits.start()
    waits.join(0.1)
    assert ends == []
    gate.set()
    waits.join(work.PATIENCE)
    runs.join(work.PATIENCE)
    assert ends == [1]
