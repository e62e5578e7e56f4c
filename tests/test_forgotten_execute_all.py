"""A forgotten `execute_all`: who waits for what nothing runs is told so, and so is who leaves the `with` block."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as WaitTimeout
from typing import TYPE_CHECKING, Any, Callable

import inside
import pytest
import script
import work
from backend_kinds import CONCURRENT, OWN, over

from parallel_exec import ParallelExecError, ParallelExecutor, Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Lab


@over(OWN)
def test_waiting_for_what_is_only_added(lab: Lab) -> None:
    """It raises at once, says what to call, and changes nothing."""
    executor = lab.executor()
    future = executor.add_task(int)
    for wait in (future.result, future.exception):
        with pytest.raises(
            ParallelExecError, match=r"task 'int-1' was added, and nothing runs .* call execute_all\(\)"
        ):
            wait()
    with pytest.raises(WaitTimeout):
        future.result(timeout=0.01)
    assert [result.unwrap() for result in executor.execute_all()] == [0]
    assert future.result() == 0
    with pytest.raises(ParallelExecError, match="'float-2' was added"):
        executor.add_task(float).result()


@over(CONCURRENT)
def test_waiting_for_what_is_about_to_run(lab: Lab) -> None:
    """Once the pool runs, by `submit` or in another thread's run, or was paused while it ran, a wait is a wait."""
    executor = lab.executor()
    future = executor.add_task(int)
    executor.submit(int).result()
    assert future.result() == 0
    executor.pause()
    late = executor.add_task(int)
    lab.thread(executor.resume)
    assert late.result() == 0


def test_waiting_in_another_thread_during_a_run(lab: Lab) -> None:
    """A task that joined a run under way is waited for."""
    executor = lab.executor()
    latch, seen = lab.event(), []

    def add_and_wait() -> None:
        seen.append(executor.add_task(int).result())

    executor.add_task(latch.wait)
    run = lab.thread(executor.execute_all)
    while not executor.stats().running:
        pass
    waiter = lab.thread(add_and_wait)
    waiter.join(work.SOON)
    latch.set()
    run.join(work.SOON)
    assert seen == [0]


@over(CONCURRENT)
def test_adding_and_waiting_at_the_end_of_a_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another thread adds when the run has just ended is staged for the next one, and its wait is refused."""
    executor = lab.executor()
    seen: list[object] = []
    threads = []

    def add_and_wait() -> None:
        try:
            seen.append(executor.add_task(int).result())
        except ParallelExecError as error:
            seen.append(error)

    def stage(close: Callable[[], object] = inside.admission(executor).stage) -> None:
        executor.pause()  # no worker is quick enough to save it
        threads.append(lab.thread(add_and_wait))
        threads[0].join(0.2)
        close()
        executor.resume()

    monkeypatch.setattr(inside.admission(executor), "stage", stage)
    executor.add_task(int)
    executor.execute_all()
    threads[0].join(work.SOON)
    assert [type(one) for one in seen] == [ParallelExecError]
    monkeypatch.undo()
    assert [result.unwrap() for result in executor.execute_all()] == [0]


def _line_of(function: Callable[..., Any], text: str) -> int:
    import inspect

    lines, first = inspect.getsourcelines(function)
    return first + next(place for place, line in enumerate(lines) if text in line)


def _leave(executor: ParallelExecutor, *, then: Callable[[], object] = lambda: None) -> Any:
    with executor:
        future = executor.add_task(Task(int, id="first"))
        executor.add_task(Task(int, id="second", priority=1))
        then()
    return future


@over(OWN)
def test_leaving_what_was_never_run(lab: Lab) -> None:
    """The warning says how many and which, at the line of the `with`; their futures end as cancelled."""
    with pytest.warns(
        RuntimeWarning, match=r"2 tasks were added and never run, 'first' first.* execute_all\(\)"
    ) as heard:
        future = _leave(lab.executor())
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result()
    line = _line_of(
        _leave, "with executor:" if sys.version_info >= (3, 10) else "    then()"
    )  # where 3.9 says a block ends
    assert [(warning.filename, warning.lineno) for warning in heard] == [(__file__, line)]


def test_a_warning_that_is_an_error_leaves_nothing_open(lab: Lab) -> None:
    """The executor is shut down first."""
    executor = lab.executor()
    with pytest.raises(RuntimeWarning, match="never run"):
        _leave(executor)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(int)


def test_ctrl_c_while_it_looks_leaves_nothing_open(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor is shut down before the exception goes on."""

    def interrupt() -> str:
        raise KeyboardInterrupt

    executor = lab.executor()
    monkeypatch.setattr(inside.completion(executor), "forgotten", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _leave(executor)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(int)


def test_nothing_is_said_of_what_was_taken_back_or_run(lab: Lab) -> None:
    """Cancelled, taken from the queue, ended by hand, started: none of it was forgotten."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for take in (
            lambda executor: executor.execute_all(),
            lambda executor: executor.submit(int),
            lambda executor: executor.queue.clear(),
            lambda executor: executor.shutdown(cancel_futures=True),
            lambda executor: executor.shutdown(wait=False),
        ):
            executor = lab.executor()
            _leave(executor, then=lambda: take(executor))  # noqa: B023  # called at once
        with lab.executor() as executor:
            executor.add_task(int).cancel()


def test_nothing_is_said_while_an_exception_is_on_its_way() -> None:
    """That is what to look at first."""
    with pytest.raises(ZeroDivisionError):
        _leave(ParallelExecutor(), then=lambda: 1 // 0)


def test_an_executor_that_is_dropped_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Without a `with` block there is no line to point at: a record of the logger tells."""
    executor = ParallelExecutor()
    future = executor.add_task(Task(int, id="first"))
    del executor
    assert future.cancelled()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("parallel_exec", "WARNING")
    assert record.getMessage().startswith("1 task was added and never run, 'first' first")


@pytest.mark.parametrize(
    ("ending", "told"), [("pass", 1), ("executor.execute_all()", 0), ("executor.shutdown()", 0), ("1 // 0", 0)]
)
def test_a_program_that_ends_says_so(ending: str, told: int, tmp_path: Path) -> None:
    """At its end, too, unless the tasks were run or given up, or an error is what ended it."""
    body = f"""
    global executor
    executor = ParallelExecutor()
    executor.add_task(int)
    {ending}
    """
    _, err = script.finish(script.start(tmp_path, body))
    assert err.count("1 task was added and never run") == told
