"""`parallel_exec._core.grants`: what attempts held is given back once, and each kind of limit is told how they ended."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any, Callable

import pytest
import tenacity
import work

from parallel_exec import Adaptive, InlineBackend, RetryAfter, Task, TaskGranted, TaskWaiting
from parallel_exec._core.limits.kinds import Count

Ends = list[tuple[str, float]]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """How attempts ended that held something of a count, and after how many seconds, as it was told."""
    told: Ends = []
    give_back = Count.give_back

    def noting(self: Count, held: Any, now: float, seconds: float, ending: Any) -> None:
        told.append((ending, seconds))
        give_back(self, held, now, seconds, ending)

    monkeypatch.setattr(Count, "give_back", noting)
    return told


def returned(executor: Any) -> None:
    """A call that returns."""
    executor.options(needs={"db": 1}).submit(work.nap, 0.01).result()


def returned_to_a_callback(executor: Any) -> None:
    """One that somebody has asked to be called back for, so that it settles in another way."""
    future = executor.add_task(Task(partial(work.nap, 0.01), needs={"db": 1}))
    future.add_done_callback(lambda _: None)
    executor.execute_all()


def returned_to_a_policy(executor: Any) -> None:
    """One whose result a tenacity object is shown."""
    executor.options(needs={"db": 1}, retry=tenacity.Retrying()).submit(work.nap, 0.01).result()


def raised(executor: Any) -> None:
    """A call that raises."""
    executor.options(needs={"db": 1}).submit(work.fail, OSError()).exception()


def raised_retry_after(executor: Any) -> None:
    """One that says when it wants to be tried again."""
    executor.options(needs={"db": 1}).submit(work.fail, RetryAfter(0.0)).exception()


def raised_with_a_number(executor: Any) -> None:
    """One of another library that does."""
    executor.options(needs={"db": 1}).submit(work.fail, work.BusyError(0.0)).exception()


def outran_its_timeout(executor: Any) -> None:
    """A call that is abandoned, and returns later."""
    executor.options(needs={"db": 1}, timeout=0.02).submit(work.nap, 0.1).exception()


def was_aborted(executor: Any) -> None:
    """One that is abandoned as nobody wants it any more."""
    future = executor.options(needs={"db": 1}).submit(work.nap, 0.1)
    work.until(future.running)
    future.abort()


WAYS = [
    (returned, "succeeded"),
    (returned_to_a_callback, "succeeded"),
    (returned_to_a_policy, "succeeded"),
    (raised, "failed"),
    (raised_retry_after, "overloaded"),
    (raised_with_a_number, "overloaded"),
    (outran_its_timeout, "overloaded"),
    (was_aborted, "failed"),
]


@pytest.mark.parametrize(("way", "ending"), WAYS, ids=lambda value: getattr(value, "__name__", value))
def test_how_an_attempt_ended(lab: Any, ends: Ends, way: Callable[[Any], None], ending: str) -> None:
    """Each end is told once, with how long the attempt really ran."""
    executor = lab.executor(backend="thread", limits={"db": 1}, retry_count=0)
    way(executor)
    work.until(lambda: ends)
    assert [told for told, _ in ends] == [ending]
    assert (ends[0][1] >= 0.01) == (not way.__name__.startswith("raised"))
    assert executor.stats().limits["db"].in_use == 0


def test_a_late_call_is_told_once_it_has_ended(lab: Any, ends: Ends) -> None:
    """What an abandoned attempt holds is given back when its call returns, after all that time."""
    executor = lab.executor(backend="thread", limits={"db": 1}, retry_count=0)
    gate = threading.Event()
    executor.options(needs={"db": 1}, timeout=0.02).submit(gate.wait).exception()
    time.sleep(0.05)
    assert ends == []
    gate.set()
    work.until(lambda: ends)
    assert [ending for ending, _ in ends] == ["overloaded"]
    assert ends[0][1] >= 0.06


def test_what_never_began_is_unused(lab: Any, ends: Ends) -> None:
    """A worker's job that is taken back before it began has used nothing."""
    executor = lab.executor(backend="process", max_concurrency=1, limits={"db": 1})
    executor.submit(work.double, 1).result()
    future = executor.options(needs={"db": 1}).submit(work.double, 2)
    for _ in range(50):
        executor.pause()
        executor.resume()
    assert future.result() == 4
    work.until(lambda: executor.stats().limits["db"].in_use == 0)
    assert {ending for ending, _ in ends} <= {"unused", "succeeded"}
    assert [ending for ending, _ in ends].count("succeeded") == 1
    assert executor.stats().limits["db"].granted == 1


def test_an_adaptive_limit_is_told_of_overload(lab: Any) -> None:
    """A service that says it is busy has its bound lowered."""
    executor = lab.executor(backend="thread", limits={"llm": Adaptive(max=16, initial=16)}, retry_count=0)
    for _ in range(5):
        executor.options(needs={"llm": 1}).submit(work.fail, RetryAfter(0.0)).exception()
        time.sleep(0.01)
    assert executor.stats().limits["llm"].limit < 16


def test_a_task_inside_a_task_has_its_own(lab: Any) -> None:
    """What is granted belongs to the call that runs: another executor's task in between has what it was granted itself."""
    inner = lab.executor(backend=InlineBackend(), limits={"db": 3})

    def outer() -> list[Any]:
        return [
            work.granted(),
            inner.submit(work.granted).result(),
            inner.options(needs={"db": 2}).submit(work.granted).result(),
            work.granted(),
        ]

    executor = lab.executor(backend="thread", limits={"gpu": ["cuda:0"]})
    mine = {"gpu": ("cuda:0",)}
    assert executor.options(needs={"gpu": 1}).submit(outer).result() == [mine, {}, {"db": 2}, mine]
    assert executor.submit(work.granted).result() == {}


@pytest.mark.parametrize("backend", ["thread", "process", "inline"])
def test_events_of_a_wait(lab: Any, backend: str) -> None:
    """Who has to wait for a limit is told of, once, and when that is over; an attempt that need not wait is not."""
    seen: list[Any] = []
    executor = lab.executor(backend=backend, max_concurrency=2, limits={"db": 1}, on_event=seen.append, retry_count=0)
    for number in range(3):
        executor.add_task(Task(partial(work.nap, 0.02), id=f"task-{number}", needs={"db": 1}))
    executor.execute_all()
    waiting = [event for event in seen if isinstance(event, TaskWaiting)]
    granted = [event for event in seen if isinstance(event, TaskGranted)]
    assert len({event.task_id for event in waiting}) == len(waiting)
    assert {event.limit for event in waiting} <= {"db"}
    assert {event.task_id for event in granted} == {event.task_id for event in waiting}
    assert all(event.limits == ("db",) and event.waited >= 0 for event in granted)
    if backend != "inline":
        assert {"task-1", "task-2"} <= {event.task_id for event in waiting}


def test_of_several_limits_only_the_one_that_is_named_is_overloaded(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`RetryAfter(limit=...)` says which; without a name it may be any."""
    told: dict[Any, list[str]] = {}
    give_back = Count.give_back

    def noting(self: Count, held: Any, now: float, seconds: float, ending: Any) -> None:
        told.setdefault(held.need, []).append(ending)
        give_back(self, held, now, seconds, ending)

    monkeypatch.setattr(Count, "give_back", noting)
    executor = lab.executor(limits={"one": 9, "two": 9}, retry_count=0)
    needing = executor.options(needs={"one": 1, "two": 2})
    for name in ("two", "one", None):
        needing.submit(work.fail, RetryAfter(0.0, limit=name)).exception(work.SOON)
    assert told == {1: ["failed", "overloaded", "overloaded"], 2: ["overloaded", "failed", "overloaded"]}
