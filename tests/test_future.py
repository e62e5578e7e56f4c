"""`parallel_exec.future`: all that a `concurrent.futures.Future` does, and what ours adds."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import pickle
import re
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future, InvalidStateError, as_completed, wait
from concurrent.futures import TimeoutError as WaitTimeout
from functools import partial
from typing import Any

import inside
import pytest
import work
from manual_backend import ManualBackend, ManualRunner

from parallel_exec import Task, TaskFuture


@pytest.fixture
def executor(lab: Any) -> Any:
    """An executor that the test drives."""
    executor = lab.executor(backend=ManualBackend(), max_concurrency=5, retry_count=0)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)
    inside.runner(executor).give_up()


@pytest.fixture
def hand(executor: Any) -> ManualRunner:
    """By what the test drives it."""
    return inside.runner(executor)  # type: ignore[no-any-return]


def _settled(executor: Any, hand: ManualRunner, how: str) -> TaskFuture[Any]:
    """Return a future that ended like this."""
    future: TaskFuture[Any] = executor.submit(int)
    if how == "cancelled":
        future.cancel()
    elif how == "succeeded":
        hand.succeed(hand.start(), 42)
    else:
        hand.fail(hand.start(), OSError("failed"))
        future.exception()
    return future


HOW = ("succeeded", "failed", "cancelled")


def test_it_is_a_stdlib_future(executor: Any) -> None:
    """Whoever checks for the stdlib's type is content."""
    assert isinstance(executor.submit(int), Future)


def test_its_task(executor: Any) -> None:
    """`task` is the one that was added, or one made from the call."""
    task = Task(int, id="a")
    assert executor.add_task(task).task is task
    future = executor.submit(work.capture, 1, key=2)
    made = future.task
    assert made.execute() == ((1,), {"key": 2})
    assert future.task is made
    assert executor.submit(int).task.execute is int


def test_the_task_of_a_call_carries_its_options(executor: Any) -> None:
    """Id and priority of `options(...)` are in the task."""
    task = executor.options(priority=3, id="named").submit(int).task
    assert (task.id, task.priority) == ("named", 3)


def test_ids_of_calls_are_unique(executor: Any) -> None:
    """Each submitted call has an id of its own, that stays."""
    futures = [executor.submit(int) for _ in range(100)]
    assert len({future.id for future in futures}) == 100
    assert [future.id for future in futures] == [future.task.id for future in futures]


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["result", "exception"])
def test_waiting_has_a_limit(executor: Any, method: str) -> None:
    """`result(timeout)` and `exception(timeout)` give up when the time has come."""
    with pytest.raises(WaitTimeout):
        getattr(executor.submit(int), method)(timeout=0.01)


@pytest.mark.parametrize("how", HOW)
def test_a_waiter_is_woken(executor: Any, hand: ManualRunner, how: str) -> None:
    """Who waits in `result` before the end learns of it, however the task ends."""
    future = executor.submit(int)
    seen: list[Any] = []
    ready = threading.Event()

    def waiter() -> None:
        ready.set()
        try:
            seen.append(future.result())
        except (CancelledError, OSError) as error:
            seen.append(type(error).__name__)

    thread = threading.Thread(target=waiter)
    thread.start()
    ready.wait()
    if how == "cancelled":
        future.cancel()
    elif how == "succeeded":
        hand.succeed(hand.start(), 42)
    else:
        hand.fail(hand.start(), OSError())
    thread.join(work.PATIENCE)
    assert seen == [{"succeeded": 42, "failed": "OSError", "cancelled": "CancelledError"}[how]]


@pytest.mark.parametrize("how", HOW)
def test_all_waiters_are_woken(executor: Any, hand: ManualRunner, how: str) -> None:
    """However many wait for one future, with a limit and without, all learn of its end."""
    future = executor.submit(int)
    seen: list[bool] = []
    limits = (None, work.PATIENCE, None, work.PATIENCE)
    waiters = [threading.Thread(target=lambda limit=limit: seen.append(_ends(future, limit))) for limit in limits]
    for thread in waiters:
        thread.start()
    work.until(lambda: len(future._parked) == 4)
    if how == "cancelled":
        future.cancel()
    elif how == "succeeded":
        hand.succeed(hand.start(), 42)
    else:
        hand.fail(hand.start(), OSError())
    for thread in waiters:
        thread.join(work.PATIENCE)
    assert seen == [True] * 4


def test_a_wait_that_was_in_vain_leaves_nothing(executor: Any) -> None:
    """A future may be asked again and again whether it ends within a moment."""
    future = executor.submit(int)
    for limit in (0.001, 0.001, 0, -1):
        with pytest.raises(WaitTimeout):
            future.result(limit)
    assert not future._parked
    assert not future._watched


def _ends(future: TaskFuture[Any], limit: float | None) -> bool:
    """Wait for the end; returns whether there was one."""
    with contextlib.suppress(OSError, CancelledError):
        future.exception(limit)
    return future.done()


@pytest.mark.parametrize("limit", [None, work.PATIENCE])
def test_no_waiter_is_missed(lab: Any, limit: float | None) -> None:
    """However waiting and settling interleave, `result` returns."""
    executor = lab.executor(max_concurrency=2)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(2000):
            assert executor.submit(work.double, number).result(limit) == 2 * number
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("how", HOW)
def test_wait_knows_what_has_ended(executor: Any, hand: ManualRunner, how: str) -> None:
    """The stdlib's `wait` sees a future that had ended before anybody looked, beside one that has not."""
    ended = _settled(executor, hand, how)
    pending = executor.submit(int)
    done, not_done = wait([ended, pending], timeout=0.01)
    assert (done, not_done) == ({ended}, {pending})
    assert list(as_completed([ended])) == [ended]


def test_two_waiters_on_mixed_futures_do_not_lock_each_other_out(lab: Any) -> None:
    """Threads that `wait` for the same pending future, each beside a settled one, go on (the stdlib locks by `id`)."""
    executor = lab.executor(max_concurrency=2, timeout=None)
    gate = lab.event()
    settled = sorted((executor.submit(int) for _ in range(50)), key=id)
    wait([executor.submit(int)])
    work.until(lambda: all(future.done() for future in settled))
    futures = [executor.submit(gate.wait) for _ in range(50)]
    pending = min(futures, key=lambda future: abs(id(future) - id(settled[25])))
    sides = [[settled[0], pending], [pending, settled[-1]]]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def wait_often(side: list[TaskFuture[Any]]) -> None:
        for _ in range(1000):
            wait(side, timeout=0)

    threads = [lab.thread(wait_often, side) for side in sides]
    for thread in threads:
        thread.join(work.PATIENCE)
    sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("when", ["before", "after"])
def test_callbacks_are_called_once(executor: Any, hand: ManualRunner, how: str, when: str) -> None:
    """A callback is called once with the future, whether it was added before or after the end."""
    called: list[Any] = []
    if when == "after":
        future = _settled(executor, hand, how)
        future.add_done_callback(called.append)
    else:
        future = executor.submit(int)
        future.add_done_callback(called.append)
        if how == "cancelled":
            future.cancel()
        elif how == "succeeded":
            hand.succeed(hand.start())
        else:
            hand.fail(hand.start(), OSError())
            future.exception()
    assert called == [future]


def test_callbacks_come_in_order_though_one_raises(executor: Any, hand: ManualRunner) -> None:
    """Callbacks are called in the order added, and one that raises does not keep the others from it."""
    called: list[int] = []
    future = executor.submit(int)

    def raising(_: Any) -> None:
        called.append(1)
        raise ValueError("in a callback")

    future.add_done_callback(raising)
    future.add_done_callback(lambda _: called.append(2))
    hand.succeed(hand.start())
    assert called == [1, 2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits_loses_nothing(lab: Any, error: type[BaseException]) -> None:
    """`SystemExit` from callbacks, in workers, keeps neither a run nor a shutdown from ending."""
    executor = lab.executor(max_concurrency=2)

    def callback(_: Any) -> None:
        raise error

    for number in range(10):
        executor.add_task(partial(work.double, number)).add_done_callback(callback)
    assert [result.result for result in executor.execute_all()] == [2 * number for number in range(10)]
    assert executor.stats().succeeded == 10


def test_no_callback_is_missed_or_called_twice(lab: Any) -> None:
    """However adding a callback and settling interleave, it is called once."""
    executor = lab.executor(max_concurrency=2)
    called: list[Any] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(2000):
            executor.submit(int).add_done_callback(called.append)
    finally:
        sys.setswitchinterval(interval)
    executor.shutdown()
    assert len(called) == 2000


# ── how it ended ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("succeeded", "state=finished returned int"),
        ("failed", "state=finished raised OSError"),
        ("cancelled", "state=cancelled"),
    ],
)
def test_how_it_shows(executor: Any, hand: ManualRunner, how: str, state: str) -> None:
    """The stdlib's `repr` works."""
    assert state in repr(_settled(executor, hand, how))


def test_pending_shows_as_pending(executor: Any, hand: ManualRunner) -> None:
    """Before the end the `repr` tells pending from running."""
    future = executor.submit(int)
    assert "state=pending" in repr(future)
    hand.start()
    assert "state=running" in repr(future)


def test_task_result_of_a_cancelled_task(executor: Any, hand: ManualRunner) -> None:
    """A cancelled task has a result: no success, a `CancelledError` that names it, no attempts."""
    result = _settled(executor, hand, "cancelled").task_result()
    assert not result.success
    assert isinstance(result.error, CancelledError)
    assert repr(result.task.id) in str(result.error)
    assert result.attempts == ()


def test_task_result_before_the_end(executor: Any) -> None:
    """A task that has not ended has no result yet."""
    with pytest.raises(InvalidStateError, match="wait for it with result"):
        executor.submit(int).task_result()


# ── what nobody looked at, and what nobody keeps ────────────────────────────────────────────────────────────────────


def _forget(executor: Any, hand: ManualRunner, caplog: pytest.LogCaptureFixture, look: Any) -> None:
    gc.collect()  # not what other tests have left
    caplog.clear()
    future = executor.options(id="forgotten").submit(int)
    hand.fail(hand.start(), OSError("unseen"))
    look(future)


def test_a_failure_nobody_looked_at_is_logged(
    executor: Any, hand: ManualRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """When a failed future is collected unseen, the log has the task's id and the error with its traceback."""
    _forget(executor, hand, caplog, lambda future: None)
    gc.collect()
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "'forgotten'" in record.getMessage()
    assert record.exc_info
    assert str(record.exc_info[1]) == "unseen"


def _ask(future: TaskFuture[Any]) -> None:
    with pytest.raises(OSError, match="unseen"):
        future.result()


@pytest.mark.parametrize(
    "look",
    [
        _ask,
        lambda future: future.exception(),
        lambda future: future.exception(timeout=1),
        lambda future: future.task_result(),
    ],
    ids=["result", "exception", "exception with a limit", "task_result"],
)
def test_a_failure_somebody_looked_at_is_not_logged(
    executor: Any, hand: ManualRunner, caplog: pytest.LogCaptureFixture, look: Any
) -> None:
    """Whoever has asked how the task ended need not read it in the log."""
    _forget(executor, hand, caplog, look)
    gc.collect()
    assert caplog.records == []


def test_a_cancelled_task_is_not_logged(executor: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Cancelling is no failure."""
    gc.collect()
    caplog.clear()
    executor.submit(int).cancel()
    gc.collect()
    assert caplog.records == []


def test_an_ended_task_keeps_nothing_alive(lab: Any) -> None:
    """After the end neither the executor nor its threads hold on to the call, its arguments or its result."""

    class Thing:
        def method(self) -> Thing:
            return self

    executor = lab.executor()
    thing = Thing()
    alive = weakref.ref(thing)
    executor.submit(thing.method).result()
    del thing
    gc.collect()
    work.until(lambda: alive() is None)


def test_a_failed_task_keeps_nothing_alive(lab: Any) -> None:
    """An error that was handed over and dropped is gone, and with it what its traceback's frames held."""

    class Thing:
        pass

    def failing(thing: Thing) -> None:
        raise OSError

    executor = lab.executor(retry_count=1)
    thing = Thing()
    alive = weakref.ref(thing)
    executor.submit(partial(failing, thing)).exception()
    del thing
    work.until(lambda: gc.collect() >= 0 and alive() is None)


def test_completion_shows_what_is_the_holders(lab: Any) -> None:
    """It offers nothing of what the scheduler notes of a task."""
    future = lab.executor().submit(int)
    own = ["abort", "attempts", "id", "task", "task_result"]
    for thing in (future, TaskFuture):  # and so does `help(TaskFuture)`
        assert [name for name in dir(thing) if name not in dir(Future) and name[0] != "_"] == own


def test_its_repr_is_the_standard_librarys(lab: Any) -> None:
    """It says the state and the result's type, whatever that prints."""
    executor = lab.executor(retry_count=0)
    returned, failed = executor.submit(bytes, 10**6), executor.submit(work.fail, OSError())
    assert (len(returned.result()), type(failed.exception())) == (10**6, OSError)
    assert re.fullmatch(r"<TaskFuture at 0x[0-9a-f]+ state=finished returned bytes>", repr(returned))
    assert re.fullmatch(r"<TaskFuture at 0x[0-9a-f]+ state=finished raised OSError>", repr(failed))
    assert (type(returned).__module__, type(returned).__qualname__) == (TaskFuture.__module__, "TaskFuture")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_cannot_be_pickled(executor: Any, protocol: int) -> None:
    """The error is that of the standard library's futures, which name what of them stays in the process."""
    with pytest.raises(TypeError, match=r"cannot pickle '(_thread\.)?RLock' object"):
        pickle.dumps(executor.submit(int), protocol)


def test_a_copy_is_another_future_of_the_same_task(lab: Any) -> None:
    """`copy.copy` makes one, as of a future of the standard library's."""
    future = lab.executor().submit(int)
    future.result()
    twin = copy.copy(future)
    assert (type(twin), twin.task_result().result, twin.id) == (type(future), 0, future.id)
