"""Ten thousand tasks of every kind at once: exactly one right result each, and never more running than allowed."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from typing import Any, Callable

import pytest
import work
from backend_kinds import over

from parallel_exec import Task, TaskTimeoutError, WorkerCrashedError

Call = Callable[[], Any]
Check = Callable[[Any], bool]

STUCK = 0.2  # seconds that a stuck one is given


def _good(number: int, log: work.Log) -> tuple[Call, Check]:
    return partial(work.double, number), lambda result: bool(result.success) and result.result == 2 * number


def _timed(number: int, log: work.Log) -> tuple[Call, Check]:
    return partial(work.span, log), lambda result: bool(result.success)


def _raising(number: int, log: work.Log) -> tuple[Call, Check]:
    def right(result: Any) -> bool:
        return type(result.error) is work.CodedError and result.error.code == number

    return partial(work.fail_deeply, number), right


def _leaving(number: int, log: work.Log) -> tuple[Call, Check]:
    return partial(work.exit_with, number), lambda result: getattr(result.error, "code", None) == number


def _exiting(number: int, log: work.Log) -> tuple[Call, Check]:
    def right(result: Any) -> bool:
        return isinstance(result.error, WorkerCrashedError) and result.error.exitcode == 3

    return partial(work.die, 3), right


def _killed(number: int, log: work.Log) -> tuple[Call, Check]:
    sign = (signal.SIGSEGV, signal.SIGKILL)[number % 2]

    def right(result: Any) -> bool:
        return isinstance(result.error, WorkerCrashedError) and result.error.exitcode == -sign

    return partial(work.kill_self, sign), right


def _mixture(kinds: dict[Callable[..., tuple[Call, Check]], int], log: work.Log) -> list[tuple[Call, Check]]:
    """Return so many of each, well shuffled."""
    makers = [make for make, count in kinds.items() for _ in range(count)]
    random.Random(17).shuffle(makers)
    return [make(number, log) for number, make in enumerate(makers)]


def _run(executor: Any, mixture: list[tuple[Call, Check]], settings: Callable[[int], Any]) -> list[Any]:
    chance = random.Random(18)
    for number, (call, _) in enumerate(mixture):
        executor.add_task(Task(call, id=str(number), priority=chance.randrange(5), **settings(number)))
    results = executor.execute_all()
    assert [result.task.id for result in results] == [str(number) for number in range(len(mixture))]
    wrong = [result for result, (_, right) in zip(results, mixture) if not right(result)]
    assert wrong == []
    return list(results)


@over(("thread",))
def test_ten_thousand_tasks_in_threads(lab: Any) -> None:
    """Returning, raising, leaving, stuck and flaky tasks end each as they should, on two threads."""
    gate, log = lab.event(), lab.log()

    def stuck(number: int, log: work.Log) -> tuple[Call, Check]:
        return gate.wait, lambda result: isinstance(result.error, TaskTimeoutError)

    def flaky(number: int, log: work.Log) -> tuple[Call, Check]:
        calls = iter([OSError("the first"), number])

        def call() -> int:
            outcome = next(calls)
            if isinstance(outcome, OSError):
                raise outcome
            return outcome

        return call, lambda result: result.result == number and len(result.attempts) == 2

    mixture = _mixture({_good: 5500, _timed: 500, _raising: 1900, _leaving: 1000, flaky: 1080, stuck: 20}, log)
    executor = lab.executor(max_concurrency=2, retry_count=1)

    def settings(number: int) -> dict[str, Any]:
        return {"timeout": STUCK, "retry_count": 0} if mixture[number][0] == gate.wait else {}

    _run(executor, mixture, settings)
    assert work.most_at_once(log) <= 2
    stats = executor.stats()
    assert (stats.succeeded, stats.failed, stats.timed_out) == (7080, 2920, 20)
    assert (stats.queued, stats.running, stats.waiting) == (0, 0, 0)


@over(("process",))
def test_ten_thousand_tasks_in_processes(lab: Any) -> None:
    """Returning, raising, leaving, stuck, exiting and killed tasks end each as they should, on two processes."""
    log, started, never = lab.log(), lab.latch(), lab.latch()

    def stuck(number: int, log: work.Log) -> tuple[Call, Check]:
        return partial(work.hold, started, never), lambda result: isinstance(result.error, TaskTimeoutError)

    mixture = _mixture(
        {_good: 7470, _timed: 500, _raising: 1000, _leaving: 1000, _exiting: 10, _killed: 10, stuck: 10}, log
    )
    executor = lab.executor(max_concurrency=2, retry_count=0)

    def settings(number: int) -> dict[str, Any]:
        call = mixture[number][0]
        return {"timeout": STUCK} if isinstance(call, partial) and call.func is work.hold else {}

    _run(executor, mixture, settings)
    assert work.most_at_once(log) <= 2
    stats = executor.stats()
    assert (stats.succeeded, stats.failed, stats.timed_out) == (7970, 2030, 10)


@over(("process", "spawn", "fork"))
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_few_of_each_with_every_start_method(lab: Any) -> None:
    """The same mixture, small, whatever the start method; what crashed was tried again as told."""
    log = lab.log()
    mixture = _mixture({_good: 200, _raising: 20, _leaving: 20, _exiting: 3, _killed: 2}, log)
    results = _run(lab.executor(max_concurrency=2, retry_count=1), mixture, lambda number: {})
    crashed = [result for result in results if isinstance(result.error, WorkerCrashedError)]
    assert [len(result.attempts) for result in crashed] == [2] * 5
    assert len({attempt.error.pid for result in crashed for attempt in result.attempts}) == 10


@over(("process",))
def test_workers_that_are_shot_from_outside(lab: Any) -> None:
    """While somebody kills workers at random, every task still ends right, retried where it was hit."""
    executor = lab.executor(max_concurrency=2, retry_count=50)
    log = lab.log()
    futures = [executor.submit(work.note_pid, log, 0.001) for _ in range(1000)]

    def shoot() -> None:
        for _ in range(10):
            before = len(log.lines())
            work.until(lambda before=before: len(log.lines()) > before + 20 or all(map(_done, futures)))  # type: ignore[misc]
            try:
                os.kill(int(log.lines()[-1]), signal.SIGKILL)
            except (OSError, IndexError):
                continue

    shooter = lab.thread(shoot)
    assert {str(future.result()) for future in futures} <= set(log.lines())
    shooter.join(work.PATIENCE)


def _done(future: Any) -> bool:
    return bool(future.done())
