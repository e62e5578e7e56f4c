"""Tiny calls travel to a process pool in groups; each keeps its own outcome, timeout and place."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Iterator, Sequence

import pytest
from work import Latch, hold

from parallel_exec import ParallelExecutor
from parallel_exec.backends.engine.grouping import CallPace
from parallel_exec.errors import TaskSerializationError, TaskTimeoutError

if TYPE_CHECKING:
    from pathlib import Path


def _same(number: int) -> int:
    return number


def _fail(number: int) -> None:
    raise ValueError(number)


def _hold(length: int) -> None:
    re.match("(a+)+$", "a" * length + "b")  # lets no other thread run, for seconds


def _start_no_thread() -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = start  # type: ignore[method-assign]


def _unpicklable(number: int) -> Any:
    import threading

    return threading.Lock()


def _count(path: str, number: int, gate: Latch | None = None) -> int:
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
    if gate is not None:
        gate.wait()
    return number


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    """A process pool of two."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool:
        yield pool


def _warm(executor: Any) -> None:
    """Have it see that calls are tiny."""
    assert [future.result() for future in [executor.submit(_same, n) for n in range(100)]] == list(range(100))


def test_each_has_its_own_outcome(pool: ProcessPoolExecutor) -> None:
    """A result, an error and a result that cannot be pickled, side by side."""
    with ParallelExecutor(backend=pool, max_concurrency=2) as executor:
        _warm(executor)
        calls = {0: _same, 1: _fail, 2: _unpicklable}
        futures = [executor.submit(calls[n % 3 if n % 20 < 3 else 0], n) for n in range(300)]
        for n, future in enumerate(futures):
            kind = calls[n % 3 if n % 20 < 3 else 0]
            error = future.exception(30)
            if kind is _same:
                assert future.result() == n
            elif kind is _fail:
                assert isinstance(error, ValueError) and error.args == (n,)
            else:
                assert isinstance(error, TaskSerializationError)


def test_a_call_that_cannot_be_sent_fails_alone(pool: ProcessPoolExecutor) -> None:
    """Its neighbours in the group are sent again, each alone."""
    with ParallelExecutor(backend=pool, max_concurrency=2) as executor:
        _warm(executor)
        futures = [executor.submit(_same, n) for n in range(50)]
        bad = executor.submit(lambda: None)
        futures += [executor.submit(_same, n) for n in range(50, 100)]
        assert [future.result(30) for future in futures] == list(range(100))
        assert isinstance(bad.exception(30), TaskSerializationError)


def test_a_long_call_holds_up_none_and_each_runs_once(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Results before it come at once, and the rest goes elsewhere."""
    log = str(tmp_path / "log")
    with ParallelExecutor(backend=pool, max_concurrency=2) as executor:
        _warm(executor)
        gate = Latch(tmp_path / "gate")
        futures = [executor.submit(_count, log, n, gate if n == 70 else None) for n in range(300)]
        others = [future.result(20) for n, future in enumerate(futures) if n != 70]
        assert not futures[70].done()
        gate.set()
        assert futures[70].result(30) == 70
    assert others == [n for n in range(300) if n != 70]
    with open(log) as file:
        runs = Counter(int(line) for line in file)
    assert set(runs) == set(range(300))
    assert set(runs.values()) == {1}


class PacedInPairs(CallPace):
    """A pace by which calls travel two by two, however long they take."""

    def __init__(self) -> None:
        self.depth = 2

    def observe(self, seconds: Sequence[float]) -> None:
        """Learn nothing."""

    def forget(self) -> None:
        """Forget nothing."""


def test_nothing_overtakes_what_waits_in_a_group(
    pool: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one of higher priority waits behind another that runs long, one of lower does not begin in another worker."""
    monkeypatch.setattr("parallel_exec.backends.engine.executor.make_pace", PacedInPairs)
    started, gate, log = (
        [Latch(tmp_path / "first"), Latch(tmp_path / "second")],
        Latch(tmp_path / "gate"),
        tmp_path / "log",
    )
    with ParallelExecutor(backend=pool, max_concurrency=2) as executor:
        _warm(executor)
        executor.pause()
        high = [executor.options(priority=1).submit(hold, latch, gate) for latch in started]
        low = [executor.submit(_count, str(log), number) for number in range(4)]
        executor.resume()
        for latch in started:
            latch.wait()
        assert not log.exists()
        gate.set()
        assert [future.result(30) for future in high + low] == ["held", "held", 0, 1, 2, 3]


def test_a_timeout_touches_its_own_task_only(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Its clock starts with the call, not with the group."""
    gate = Latch(tmp_path / "gate")
    with ParallelExecutor(backend=pool, max_concurrency=2, timeout=2.0, retry_count=0) as executor:
        _warm(executor)
        futures = [executor.submit(_count, os.devnull, n, gate if n == 70 else None) for n in range(300)]
        assert isinstance(futures[70].exception(20), TaskTimeoutError)
        assert futures[70].task_result().attempts[0].duration >= 2.0
        assert executor.stats().abandoned == 1  # it has not ended
        gate.set()
        assert [future.result(30) for n, future in enumerate(futures) if n != 70] == [n for n in range(300) if n != 70]


def test_a_worker_that_dies_fails_what_it_has(pool: ProcessPoolExecutor) -> None:
    """Each task ends, with a result or the pool's own error."""
    with ParallelExecutor(backend=pool, max_concurrency=2) as executor:
        _warm(executor)
        futures = [executor.submit(os._exit, 1) if n == 70 else executor.submit(_same, n) for n in range(100)]
        assert all(future.exception(30) is None or "Broken" in type(future.exception()).__name__ for future in futures)
        assert futures[70].exception() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="a worker finds the journal through /proc")
def test_a_call_that_lets_no_thread_run_is_timed_and_holds_up_none(pool: ProcessPoolExecutor) -> None:
    """The worker's watching thread cannot tell of it."""
    with ParallelExecutor(backend=pool, max_concurrency=2, retry_count=0) as executor:
        _warm(executor)
        limited = executor.options(timeout=0.5)
        futures = [limited.submit(_hold, 26) if n == 70 else executor.submit(_same, n) for n in range(300)]
        assert isinstance(futures[70].exception(30), TaskTimeoutError)
        assert futures[70].task_result().attempts[0].duration >= 0.5
        assert executor.stats().abandoned == 1  # it has not ended
        assert [future.result(30) for n, future in enumerate(futures) if n != 70] == [n for n in range(300) if n != 70]


def test_a_worker_that_starts_no_thread_runs_each_alone() -> None:
    """None of a group begins there."""
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPoolExecutor(2, context, initializer=_start_no_thread) as pool,
        ParallelExecutor(backend=pool, max_concurrency=2) as executor,
    ):
        _warm(executor)
        _warm(executor)
