"""Limits as their user sees them: what may be needed, what is refused, what is told, and what may be changed."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest
import work

from parallel_exec import (
    Adaptive,
    InlineBackend,
    LimitStats,
    ParallelConfig,
    ParallelExecutor,
    PerKey,
    Rate,
    Task,
    TaskGranted,
    TaskQueued,
    TaskStarted,
    TaskWaiting,
)

# ── what may be needed ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("needs", "error", "said"),
    [
        ({"dbb": 1}, ValueError, "did you mean 'db'"),
        ({"nothing": 1}, ValueError, "there are 'db', 'gpu', 'host', 'api'"),
        ({"db": 3}, ValueError, "no more than 2"),
        ({"gpu": 3}, ValueError, "2 items"),
        ({"gpu": 0.5}, ValueError, "whole number"),
        ({"api": 5}, ValueError, "burst"),
        ({"db": "key"}, ValueError, "no keys"),
        ({"host": 1}, ValueError, "str"),
        ({"db": 0}, ValueError, "more than 0"),
        ({"db": -1}, ValueError, "more than 0"),
        ({"db": float("nan")}, ValueError, "more than 0"),
        ({"db": float("inf")}, ValueError, "finite"),
        ({"db": True}, TypeError, "number"),
        ({"host": None}, TypeError, "text"),
        ({"host": ["a"]}, TypeError, "hashable"),
        ({1: 1}, TypeError, "text"),
        ("db", TypeError, "{'db': 1}"),
        (["db"], TypeError, "dict"),
    ],
)
def test_what_can_never_be_is_refused_when_it_is_added(needs: Any, error: type[Exception], said: str) -> None:
    """With what to write; and nothing else is lost."""
    limits = {"db": 2, "gpu": ["a", "b"], "host": PerKey(1), "api": Rate(10, burst=2)}
    with ParallelExecutor(limits=limits) as executor:
        executor.add_task(Task(int, needs={"db": 1}))
        with pytest.raises(error, match=said):
            executor.add_task(Task(int, needs=needs))
        with pytest.raises(error, match=said):
            executor.options(needs=needs)
        assert [result.result for result in executor.execute_all()] == [0]


def test_an_executor_without_limits_says_how_it_would_have_some() -> None:
    """Whoever needs one is told where it is to be written."""
    with ParallelExecutor() as executor:
        with pytest.raises(ValueError, match=r"limits=\{'db': \.\.\.\}"):
            executor.options(needs={"db": 1})
        assert dict(executor.limits) == {}
        assert executor.stats().limits == {}
        executor.limits["db"] = 1
        assert executor.options(needs={"db": 1}).submit(int).result(work.PATIENCE) == 0


def test_no_needs_are_none() -> None:
    """An empty dict asks for nothing, of an executor without limits, too."""
    with ParallelExecutor() as executor:
        assert Task(int, needs={}).needs is None
        assert executor.options(needs={}).submit(int).result(work.PATIENCE) == 0


def test_tasks_with_the_same_needs_share_them() -> None:
    """A million tasks keep one record; nobody can change it for the others."""
    one, two = Task(int, needs={"a": 1, "b": "k"}), Task(int, needs={"b": "k", "a": 1.0})
    assert one.needs == two.needs == {"a": 1, "b": "k"}
    assert one.needs is Task(int, needs={"b": "k", "a": 1}).needs
    assert "needs={'a': 1, 'b': 'k'}" in repr(one)
    with pytest.raises(TypeError, match="another Task"):
        one.needs["a"] = 2  # type: ignore[index]


def test_the_task_of_a_result_has_its_needs() -> None:
    """It can be added again."""
    with ParallelExecutor(limits={"db": 1}) as executor:
        future = executor.options(needs={"db": 1}, retry_count=0).submit(int, "x")
        assert isinstance(future.exception(work.PATIENCE), ValueError)
        assert future.task.needs == {"db": 1}
        again = Task(int, needs={"db": 1})
        executor.add_task(again)
        (result,) = executor.execute_all()
        assert result.task.needs == {"db": 1}


@pytest.mark.parametrize(
    "limits", [5, {"db": 0}, {"db": -1}, {"db": "two"}, {"": 1}, {1: 1}, {"gpu": []}, {"host": PerKey}, {"db": None}]
)
def test_what_is_no_limit_is_refused(limits: Any) -> None:
    """When the executor is made, and when it is set."""
    with pytest.raises((TypeError, ValueError)):
        ParallelConfig(limits=limits)


@pytest.mark.parametrize("ageing", [0, -1, "1", True])
def test_an_ageing_is_a_number_of_seconds(ageing: Any) -> None:
    """More than 0, or None for never."""
    with pytest.raises((TypeError, ValueError), match="priority_ageing"):
        ParallelExecutor(priority_ageing=ageing)


# ── who goes first ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_those_that_need_nothing_pass(lab: Any) -> None:
    """Who waits for a limit holds no worker."""
    executor, gate = lab.executor(max_concurrency=2, limits={"db": 1}), lab.event()
    waiting = [executor.options(needs={"db": 1}).submit(gate.wait) for _ in range(5)]
    assert executor.submit(int).result(work.PATIENCE) == 0
    stats = executor.stats()
    assert (stats.queued, stats.running, stats.limits["db"].waiting, stats.limits["db"].in_use) == (4, 1, 4, 1)
    gate.set()
    assert all(future.result(work.PATIENCE) for future in waiting)


def test_the_highest_priority_first(lab: Any) -> None:
    """Among those that wait for one limit, and among equals the one that was added first."""
    executor, gate, order = lab.executor(limits={"db": 1}), lab.event(), []
    executor.options(needs={"db": 1}).submit(gate.wait)
    futures = [
        executor.options(needs={"db": 1}, priority=priority).submit(order.append, (priority, number))
        for number, priority in enumerate([0, 2, 1, 2, 0])
    ]
    gate.set()
    for future in futures:
        future.result(work.PATIENCE)
    assert order == [(2, 1), (2, 3), (1, 2), (0, 0), (0, 4)]


def test_a_low_priority_is_not_starved_where_tasks_age(lab: Any) -> None:
    """While higher ones come all the time, one that has waited goes before those that have just come."""
    executor = lab.executor(max_concurrency=2, limits={"db": 1}, priority_ageing=0.05)
    gate = lab.event()
    order: list[int] = []
    executor.options(needs={"db": 1}).submit(gate.wait)
    executor.options(needs={"db": 1}).submit(order.append, 0)
    time.sleep(0.11)
    executor.options(needs={"db": 1}, priority=1).submit(order.append, 1)
    gate.set()
    work.until(lambda: len(order) == 2)
    assert order == [0, 1]


def test_a_rate_spaces_starts() -> None:
    """Without a worker that sleeps: one thread runs the others meanwhile."""
    with ParallelExecutor(max_concurrency=1, limits={"api": Rate(4, burst=1)}) as executor:
        begun: list[float] = []
        futures = [executor.options(needs={"api": 1}).submit(lambda: begun.append(time.monotonic())) for _ in range(6)]
        assert executor.submit(int).result(work.PATIENCE) == 0
        assert len(begun) < 6
        for future in futures:
            future.result(work.PATIENCE)
    assert begun[-1] - begun[0] >= 0.5  # and not 1.25: the first may begin long after it was let in


def test_a_rate_whose_waits_are_skipped() -> None:
    """An inline executor's `sleep` stands for the time until a limit lets the next one in."""
    slept: list[float] = []
    with ParallelExecutor(backend=InlineBackend(slept.append), limits={"api": Rate(1, per=3600, burst=1)}) as executor:
        for number in range(4):
            executor.add_task(Task(work.double, number, needs={"api": 1}))
        assert [result.result for result in executor.execute_all()] == [0, 2, 4, 6]
    assert [round(seconds) for seconds in slept] == [3600] * 3


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_waiting_and_granted_are_told_once(lab: Any) -> None:
    """A task that waits for a limit is heard of when it begins to, and when it has what it needs."""
    events: list[Any] = []
    executor, gate = lab.executor(limits={"db": 1, "mem": 2.5}, on_event=events.append), lab.event()
    first = executor.options(needs={"db": 1}, id="first").submit(gate.wait)
    work.until(first.running)
    second = executor.options(needs={"db": 1, "mem": 2}, id="second").submit(int)
    work.until(lambda: any(isinstance(event, TaskWaiting) for event in events))
    time.sleep(0.02)
    gate.set()
    second.result(work.PATIENCE)
    told = [event for event in events if getattr(event, "task_id", "") == "second"][:4]
    assert [type(event) for event in told] == [TaskQueued, TaskWaiting, TaskGranted, TaskStarted]
    assert told[1].limit == "db"
    assert told[2].limits == ("db", "mem")
    assert told[2].waited > 0.015
    assert not [event for event in events if isinstance(event, TaskGranted) and event.task_id == "first"]


def test_stats_of_each_limit(lab: Any) -> None:
    """What is in use, what waits, what was granted, and when time alone lets the next one in."""
    limits = {"db": 3.5, "host": PerKey(1), "api": Rate(1, per=60, burst=1), "llm": Adaptive(max=4)}
    executor, gate = lab.executor(limits=limits), lab.event()
    futures = [executor.options(needs={"db": 1.5, "host": "a"}).submit(gate.wait) for _ in range(2)]
    futures += [executor.options(needs={"api": 1}).submit(gate.wait) for _ in range(2)]
    work.until(lambda: executor.stats().running == 2)
    stats = executor.stats().limits
    assert stats["db"] == LimitStats("db", in_use=1.5, waiting=0, granted=1, limit=3.5)
    assert (stats["host"].in_use, stats["host"].waiting, stats["host"].keys["a"].waiting) == (1, 1, 1)
    assert stats["api"].waiting == 1
    assert 50 < stats["api"].next_grant <= 60
    assert stats["llm"].limit == 4
    futures[-1].cancel()
    gate.set()
    for future in futures[:-1]:
        future.result(work.PATIENCE)
    work.until(lambda: executor.stats().limits["host"].in_use == 0)
    assert executor.stats().limits["host"].keys == {}


def test_the_queue_has_what_waits_for_limits(lab: Any) -> None:
    """`executor.queue` shows it, in order, and takes it out."""
    executor, gate = lab.executor(max_concurrency=1, limits={"db": 1}), lab.event()
    executor.options(needs={"db": 1}).submit(gate.wait)
    work.until(lambda: executor.stats().running)
    futures = [executor.options(needs={"db": 1}, priority=priority).submit(int) for priority in (0, 1)]
    futures.append(executor.submit(int))
    assert executor.queue.size() == 3
    assert executor.queue.peek() is futures[1].task
    assert executor.queue.dequeue() is futures[1].task
    assert executor.queue.clear() == [futures[0].task, futures[2].task]
    assert all(future.cancelled() for future in futures)
    assert executor.stats().limits["db"].waiting == 0


def test_a_full_queue_counts_what_waits_for_limits(lab: Any) -> None:
    """`queue_size` is of all that waits."""
    executor, gate = lab.executor(limits={"db": 1}, queue_size=2), lab.event()
    options = executor.options(needs={"db": 1})
    options.submit(gate.wait)
    work.until(lambda: executor.stats().running)
    futures = [options.submit(int) for _ in range(2)]
    adder = lab.thread(lambda: futures.append(options.submit(int)))
    adder.join(0.05)
    assert adder.is_alive()
    gate.set()
    adder.join(work.PATIENCE)
    assert [future.result(work.PATIENCE) for future in futures] == [0, 0, 0]


# ── what is changed ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_that_grows_lets_more_in_at_once(lab: Any) -> None:
    """What waits begins when the limit is set, not when the next task ends."""
    executor, gate = lab.executor(limits={"db": 1}), lab.event()
    futures = [executor.options(needs={"db": 1}).submit(gate.wait) for _ in range(3)]
    work.until(lambda: executor.stats().running == 1)
    executor.limits["db"] = 3
    work.until(lambda: executor.stats().running == 3)
    assert executor.limits["db"] == 3
    executor.limits["db"] = 1
    futures += [executor.options(needs={"db": 1}).submit(gate.wait) for _ in range(3)]
    assert executor.stats().limits["db"].in_use == 3
    gate.set()
    assert all(future.result(work.PATIENCE) for future in futures)


def test_what_is_held_of_a_limit_of_another_kind_counts(lab: Any) -> None:
    """A list in the place of a count: what runs keeps what it has."""
    executor, gate = lab.executor(limits={"gpu": 2}), lab.event()
    futures = [executor.options(needs={"gpu": 1}).submit(gate.wait) for _ in range(3)]
    work.until(lambda: executor.stats().running == 2)
    executor.limits["gpu"] = ["a", "b"]
    futures.append(executor.options(needs={"gpu": 2}).submit(work.granted))
    gate.set()
    assert futures[-1].result(work.PATIENCE) in ({"gpu": ("a", "b")}, {"gpu": ("b", "a")})
    work.until(lambda: executor.stats().limits["gpu"].in_use == 0)


def test_what_can_never_be_granted_any_more_fails(lab: Any) -> None:
    """With the error that says why; what else waits goes on."""
    executor, gate = lab.executor(limits={"mem": 4}), lab.event()
    executor.options(needs={"mem": 4}).submit(gate.wait)
    large = executor.options(needs={"mem": 3}).submit(int)
    small = executor.options(needs={"mem": 1}).submit(int)
    options = executor.options(needs={"mem": 3})
    executor.limits["mem"] = 2
    with pytest.raises(ValueError, match="no more than 2"):
        large.result(work.PATIENCE)
    with pytest.raises(ValueError, match="no more than 2"):
        options.submit(int).result(work.PATIENCE)
    gate.set()
    assert small.result(work.PATIENCE) == 0


def test_a_limit_can_be_removed_when_nobody_needs_it(lab: Any) -> None:
    """Not before."""
    executor, gate = lab.executor(limits={"db": 1, "other": 2}), lab.event()
    future = executor.options(needs={"db": 1}).submit(gate.wait)
    with pytest.raises(ValueError, match="cannot be removed"):
        del executor.limits["db"]
    with pytest.raises(KeyError):
        del executor.limits["nothing"]
    del executor.limits["other"]
    gate.set()
    future.result(work.PATIENCE)
    work.until(lambda: not executor.stats().limits["db"].in_use)
    work.until(lambda: _removed(executor, "db"))
    assert list(executor.limits) == []
    with pytest.raises(ValueError, match="no such limit"):
        executor.options(needs={"db": 1})


def _removed(executor: Any, name: str) -> bool:
    """Remove a limit, and return whether that was possible: a task that has returned may not have been counted."""
    try:
        del executor.limits[name]
    except ValueError:
        return False
    return True


def test_a_cancelled_task_that_others_wait_behind(lab: Any) -> None:
    """They go on at once."""
    executor, gate = lab.executor(limits={"mem": 4}), lab.event()
    executor.options(needs={"mem": 3}).submit(gate.wait)
    work.until(lambda: executor.stats().running)
    large = executor.options(needs={"mem": 4}).submit(int)
    small = executor.options(needs={"mem": 1}).submit(int)
    time.sleep(0.01)
    assert not small.done()
    assert large.cancel()
    assert small.result(work.PATIENCE) == 0
    with pytest.raises(CancelledError):
        large.result()


def test_paused_nothing_is_granted(lab: Any) -> None:
    """And then all that can be."""
    executor = lab.executor(limits={"db": 2})
    executor.pause()
    futures = [executor.options(needs={"db": 1}).submit(int) for _ in range(4)]
    assert executor.stats().limits["db"].granted == 0
    executor.resume()
    assert [future.result(work.PATIENCE) for future in futures] == [0] * 4


def test_retries_take_the_limit_again(lab: Any) -> None:
    """Between two attempts nothing is held."""
    executor = lab.executor(limits={"db": 1}, retry_count=1, backoff=3600, max_backoff=3600)
    failing = executor.options(needs={"db": 1}).submit(int, "x")
    work.until(lambda: executor.stats().waiting == 1)
    assert executor.options(needs={"db": 1}).submit(int).result(work.PATIENCE) == 0
    assert failing.cancel()
    assert executor.stats().limits["db"].granted == 2


def test_shutdown_cancels_what_waits(lab: Any) -> None:
    """With `cancel_futures`; and without it waits for it."""
    executor, gate = lab.executor(limits={"db": 1}), lab.event()
    running, waiting = [executor.options(needs={"db": 1}).submit(gate.wait) for _ in range(2)]
    work.until(running.running)
    executor.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    gate.set()
    assert running.result(work.PATIENCE)


def test_what_shows_the_limits_is_imported_with_the_executor() -> None:
    """A signal handler that looks at them must not come in the middle of that import."""
    code = (
        "import sys; from parallel_exec import ParallelExecutor; before = 'parallel_exec._limits_view' in sys.modules; "
        "ParallelExecutor(limits={'db': 1}); print(before, 'parallel_exec._limits_view' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
