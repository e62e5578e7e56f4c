"""Ctrl-C where the calling thread runs the tasks: none is lost, whatever it came between."""

from __future__ import annotations

import itertools
from typing import Any

import inside
import pytest
import work
from interruptions import interrupt, raise_interrupt

from parallel_exec import InlineBackend, ParallelExecutor, PerKey, Rate, RetryAfter, Task

# Python's own word about a call that was torn apart before it began.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine method 'asend':RuntimeWarning")

LIMITS: dict[str, Any] = {"db": 2, "gpu": ["a", "b"], "host": PerKey(1), "api": Rate(1e6, burst=100)}
EVERYTHING: dict[str, Any] = {"db": 2, "gpu": 2, "host": "a", "api": 1}


def check(executor: ParallelExecutor, step: int) -> None:
    """Check that the executor goes on, and has nothing any more."""
    assert executor.options(needs=EVERYTHING).submit(work.double, step).result(work.SOON) == 2 * step
    executor.execute_all()
    stats = executor.stats()
    assert {name: each.in_use for name, each in stats.limits.items() if each.in_use or each.waiting} == {}
    assert (stats.queued, stats.running, stats.waiting) == (0, 0, 0)
    monitor = inside.monitor(executor)
    assert not monitor.registry.unsettled
    assert len(monitor.ready) == 0
    assert monitor.ready.limits is None or not monitor.ready.limits.kept


def test_submit_and_run() -> None:
    """What was submitted ends, or was never in."""
    with ParallelExecutor(backend="inline", limits=LIMITS) as executor:
        futures: list[Any] = []

        def run() -> None:
            futures.append(executor.submit(work.double, 1))
            futures.append(executor.options(needs={"db": 1, "gpu": 1}).submit(work.double, 1))

        for step in itertools.count(1):
            more = interrupt(run, step)
            check(executor, step)
            assert all(future.done() for future in futures)
            if not more:
                break
        assert step > 100
        errors = {type(future.exception()) for future in futures if not future.cancelled()}
        assert errors <= {type(None), KeyboardInterrupt}


@pytest.mark.parametrize("settings", [{}, {"on_event": id}], ids=["plain", "events"])
def test_a_run_with_retries_and_limits(settings: dict[str, Any]) -> None:
    """Each task ends once, by a run that comes after the interrupted one, and is called no more often than it may be."""
    backend = InlineBackend(sleep=lambda seconds: None)
    with ParallelExecutor(backend=backend, limits=LIMITS, retry_count=1, backoff=0.0001, **settings) as executor:
        calls: list[str] = []

        def flaky(name: str) -> None:
            calls.append(name)
            if calls.count(name) == 1:
                raise RetryAfter(0, limit="db")

        def run() -> None:
            executor.add_task(Task(int, needs={"db": 1, "gpu": 2}, priority=2))
            executor.add_task(Task(flaky, "one", needs={"db": 2, "api": 1, "host": "a"}))
            executor.add_task(Task(flaky, "two"))
            executor.execute_all()

        for step in itertools.count(1, 7):
            calls.clear()
            before = executor.stats()
            more = interrupt(run, step)
            check(executor, step)
            assert max(calls.count("one"), calls.count("two")) <= 2
            after = executor.stats()
            ended = (
                after.succeeded + after.failed + after.cancelled - before.succeeded - before.failed - before.cancelled
            )
            assert ended in (1, 2, 3, 4)
            if not more:
                break
        assert ended == 4
        assert step > 300  # every seventh point: all of them would take a minute


def test_a_second_task_of_what_was_interrupted(lab: Any) -> None:
    """A task that was taken and did not begin runs as if it had not been taken: it is charged no attempt."""
    executor = lab.executor(backend="inline")
    port = inside.scheduler(executor)
    numbers: list[int] = []
    take = port.take

    def taken_in_vain(consumer: Any) -> Any:
        take(consumer)
        port.take = take
        raise_interrupt()

    port.take = taken_in_vain
    with pytest.raises(KeyboardInterrupt):
        executor.submit(lambda: numbers.append(1))
    port.take = take
    executor.submit(int)
    assert numbers == [1]
    assert executor.stats().succeeded == 2


def test_an_error_of_the_users_own(lab: Any) -> None:
    """What a signal handler, or a `sleep`, raises is raised in the caller as it is, however its class is made."""

    class OddError(Exception):
        def __init__(self, *, why: str) -> None:
            super().__init__("odd", why)

    def sleep(seconds: float) -> None:
        raise OddError(why="in a sleep")

    executor = lab.executor(backend=InlineBackend(sleep=sleep), retry_count=1, backoff=20.0)
    with pytest.raises(OddError):
        executor.submit(work.fail, OSError())
    port = inside.scheduler(executor)
    begin = port.begin

    def begun_in_vain(*args: Any, **kwargs: Any) -> Any:
        begin(*args, **kwargs)
        port.begin = begin
        raise OddError(why="as it began")

    port.begin = begun_in_vain
    with pytest.raises(OddError):
        executor.options(priority=1).submit(int)
    port.begin = begin
    stats = executor.stats()
    assert (stats.running, stats.waiting, stats.failed) == (0, 1, 1)
    executor.shutdown(wait=False, cancel_futures=True)
