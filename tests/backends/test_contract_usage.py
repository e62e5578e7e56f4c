"""What attempts say of what they have used."""

from __future__ import annotations

import mmap
import sys
import time
from typing import Any

import pytest
import work
from backend_kinds import EVERY_START_METHOD, over

MIB = 1 << 20
QUICK = 200  # tasks that are too short to be measured


def burn(seconds: float) -> None:
    """Use the CPU of this thread for so many seconds."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def fill(mib: int, seconds: float = 0.01) -> int:
    """Have so much memory for a moment, which the process did not have before; `malloc` may have kept some."""
    with mmap.mmap(-1, mib * MIB) as filled:
        filled[:: mmap.PAGESIZE] = b"x" * (mib * MIB // mmap.PAGESIZE)
        time.sleep(seconds)
        return len(filled)


def burn_and_fail(seconds: float) -> None:
    """Use the CPU, and fail."""
    burn(seconds)
    raise OSError("failed")


def cpu_times(future: Any) -> list[float | None]:
    """Return what the attempts of a task have used."""
    future.exception()
    return [attempt.cpu_time for attempt in future.task_result().attempts]


@over(("thread", "inline", *EVERY_START_METHOD))
def test_what_computes_has_used_the_cpu(lab: Any) -> None:
    """`cpu_time` is what an attempt has used of the CPU: a wait uses nothing."""
    executor = lab.executor(max_concurrency=1)
    (computed,) = cpu_times(executor.submit(burn, 0.1))
    (waited,) = cpu_times(executor.submit(time.sleep, 0.1))
    assert computed == pytest.approx(0.1, abs=0.05)
    assert waited == pytest.approx(0.0, abs=0.05)


@over(("thread", "inline", "process"))
def test_each_attempt_has_its_own(lab: Any) -> None:
    """What failed has used something, too."""
    executor = lab.executor(max_concurrency=1, retry_count=1)
    first, second = cpu_times(executor.submit(burn_and_fail, 0.05))
    assert first == pytest.approx(0.05, abs=0.04)
    assert second == pytest.approx(0.05, abs=0.04)


@over(("thread", "inline", "process"))
def test_what_is_tiny_is_not_measured(lab: Any) -> None:
    """Of what takes less than a millisecond, nothing is said: to ask would cost more than it is worth."""
    executor = lab.executor(max_concurrency=1)
    futures = [executor.submit(work.double, number) for number in range(QUICK)]
    known = [cpu_times(future) for future in futures]
    assert known.count([None]) > QUICK * 0.9  # a machine may stop in the middle of one


@over(("thread", *EVERY_START_METHOD))
def test_a_long_task_behind_tiny_ones(lab: Any) -> None:
    """What tiny tasks of the same worker have used before is not counted with a longer one."""
    executor = lab.executor(max_concurrency=1)
    gate = lab.latch()
    held = executor.submit(work.hold, lab.latch(), gate)
    tiny = [executor.submit(work.double, number) for number in range(QUICK)]
    long = executor.submit(burn, 0.05)
    gate.set()
    assert held.result() == "held"
    assert [future.result() for future in tiny] == [2 * number for number in range(QUICK)]
    assert cpu_times(long)[0] == pytest.approx(0.05, abs=0.03)


@over(("thread", "inline"))
def test_threads_share_their_memory(lab: Any) -> None:
    """What one thread has of the process's memory cannot be said."""
    future = lab.executor().submit(fill, 10)
    future.result()
    assert [attempt.peak_memory for attempt in future.task_result().attempts] == [None]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel's note cannot be set back")
@over(EVERY_START_METHOD)
def test_the_most_memory_of_each_attempt(lab: Any) -> None:
    """`peak_memory` is an attempt's own, also where one before it in the same worker has had more."""
    executor = lab.executor(max_concurrency=1)
    peaks = []
    for mib in (1, 100, 1, 60, 1):
        future = executor.submit(fill, mib)
        assert future.result() == mib * MIB
        peaks.append(future.task_result().attempts[0].peak_memory)
    if lab.kind.name == "spawn" and peaks[0] is None:
        pytest.skip("the process that has started it had more memory: what the kernel notes is about that")
    first, second, third, fourth, fifth = (peak / MIB for peak in peaks)
    assert second - first == pytest.approx(99, abs=8)
    assert fourth - first == pytest.approx(59, abs=8)
    assert third - first == pytest.approx(0, abs=8)
    assert fifth - first == pytest.approx(0, abs=8)


@over(("process",))
def test_what_was_killed_says_nothing(lab: Any) -> None:
    """Of an attempt whose worker was killed, nothing is known."""
    executor = lab.executor(timeout=0.2, retry_count=0)
    future = executor.submit(work.nap, 60.0)
    future.exception()
    (attempt,) = future.task_result().attempts
    assert (attempt.output, attempt.cpu_time, attempt.peak_memory) == ("", None, None)
