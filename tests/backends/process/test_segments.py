"""Large buffers travel out of band, in shared memory, and leave nothing behind."""

from __future__ import annotations

import os
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import processes
import pytest
import work

from parallel_exec import TaskTimeoutError, WorkerCrashedError

from . import array_tasks

numpy = pytest.importorskip("numpy")

LARGE = 1 << 18  # numbers of 8 bytes: twice the size from which buffers go out of band
SMALL = 1 << 10


def segments(pid: int) -> int:
    """Return how many pieces of memory without a name a process has open or mapped, journals included."""
    root = Path(f"/proc/{pid}")
    mapped = sum("memfd:parallel_exec" in line for line in (root / "maps").read_text().splitlines())
    opened = 0
    for link in (root / "fd").iterdir():
        try:
            opened += "memfd:parallel_exec" in os.readlink(link)
        except OSError:
            continue  # closed meanwhile
    return mapped + opened


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [SMALL, (1 << 17) - 1, 1 << 17, LARGE, 1 << 22])
def test_an_array_comes_back_intact(pool: Any, size: int) -> None:
    """Below and above the threshold, up to 32 MB."""
    array = numpy.random.default_rng(1).random(size)
    assert (pool().submit(work.same, array).result(work.SOON) == array).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_arrays_are_writable_on_both_sides(pool: Any, size: int) -> None:
    """A task may change its argument in place, and the caller the result."""
    array = numpy.zeros(size)
    result = pool().submit(array_tasks.add_in_place, array, 1).result(work.SOON)
    result += 1
    assert (result == 2).all()
    assert (array == 0).all()


def test_a_retry_sees_the_original(pool: Any, log: Any) -> None:
    """What an attempt changes in its argument, the next attempt does not see."""
    executor = pool(retry_count=2)
    assert executor.submit(array_tasks.spoil_then_sum, numpy.ones(LARGE), log).result(work.SOON) == LARGE
    assert log.lines() == [str(float(LARGE))] * 3


def test_a_retry_in_another_worker_sees_the_original(pool: Any, log: Any) -> None:
    """Also when the first worker died of it."""
    executor = pool(retry_count=1)
    assert executor.submit(array_tasks.spoil_and_die_once, numpy.ones(LARGE), log).result(work.SOON) == LARGE


def test_arguments_are_a_snapshot(pool: Any) -> None:
    """What the caller writes into an array after `submit` changes nothing."""
    executor = pool()
    executor.pause()
    array = numpy.ones(LARGE)
    future = executor.submit(array_tasks.total, array)
    array[:] = 5
    executor.resume()
    assert future.result(work.SOON) == LARGE


def test_several_arrays_in_one_call(pool: Any) -> None:
    """Of different sizes, kinds and orders of memory, large and small mixed."""
    made = [
        numpy.arange(LARGE),
        numpy.zeros((300, 1000), order="F") + numpy.arange(1000),
        numpy.ones(SMALL, dtype="uint8"),
        numpy.arange(2 * LARGE)[::2],
        numpy.ones((0, 5)),
        numpy.full(LARGE, "abc"),
    ]
    result = pool().submit(work.same, made).result(work.SOON)
    assert all((one == other).all() and one.dtype == other.dtype for one, other in zip(made, result))


def test_a_read_only_array_and_a_bytearray(pool: Any) -> None:
    """Buffers of all kinds arrive as what they were."""
    array = numpy.arange(LARGE)
    array.flags.writeable = False
    executor = pool()
    assert (executor.submit(work.same, array).result(work.SOON) == array).all()
    assert executor.submit(work.same, bytearray(b"x" * 3_000_000)).result(work.SOON) == b"x" * 3_000_000
    assert executor.submit(work.same, b"y" * 3_000_000).result(work.SOON) == b"y" * 3_000_000


def test_arrays_of_many_tasks_are_not_mixed_up(pool: Any) -> None:
    """Large and small arguments and results of hundreds of tasks, in batches: each has its own."""
    executor = pool(2)
    wait([executor.submit(work.same, number) for number in range(300)])
    futures = []
    for number in range(120):
        size = LARGE if number % 3 else SMALL
        futures.append(executor.submit(work.same, numpy.full(size, number)))
        futures.append(executor.submit(array_tasks.make, number, SMALL if number % 2 else LARGE))
        futures.append(executor.submit(work.same, number))
    results = [future.result(work.SOON) for future in futures]
    assert [float(numpy.min(result)) for result in results] == [float(number // 3) for number in range(360)]
    assert [float(numpy.max(result)) for result in results] == [float(number // 3) for number in range(360)]


def test_arrays_of_mapped_items_are_not_mixed_up(pool: Any) -> None:
    """The same for `map`, beside plain tasks."""
    executor = pool(2)
    items = [numpy.full(LARGE if number % 3 else SMALL, number) for number in range(60)]
    plain = [executor.submit(array_tasks.make, number, LARGE) for number in range(30)]
    mapped = list(executor.map(work.same, items))
    assert all((one == other).all() for one, other in zip(mapped, items))
    assert [float(future.result(work.SOON)[-1]) for future in plain] == list(range(30))


def test_a_cancelled_array_is_never_sent(pool: Any, bench: Any) -> None:
    """Arrays that were sent ahead and taken back do not shift those of later tasks."""
    executor = pool(1)
    wait([executor.submit(work.same, number) for number in range(300)])
    for _ in range(5):
        started, gate = bench.latch(), bench.latch()
        executor.pause()
        futures = [executor.submit(work.hold, started, gate)]
        futures += [executor.submit(work.same, numpy.full(LARGE, number)) for number in range(20)]
        executor.resume()
        started.wait()
        kept = [future for number, future in enumerate(futures) if number % 2 == 0 or not future.cancel()]
        gate.set()
        values = [future.result(work.SOON) for future in kept]
        assert [float(value.min()) for value in values[1:]] == [float(number) for number in range(1, 20, 2)]


def test_more_arrays_than_descriptors(pool: Any, bench: Any) -> None:
    """A queue full of large arrays does not use up this process's descriptors."""
    executor = pool(1)
    started, gate = bench.latch(), bench.latch()
    executor.submit(work.hold, started, gate)
    started.wait()
    with processes.few_descriptors(100):
        array = numpy.ones(1 << 17)
        futures = [executor.submit(array_tasks.total, array) for _ in range(150)]
        Path(os.devnull).read_bytes()  # others still can open a file
        gate.set()
        assert [future.result(work.SOON) for future in futures] == [1 << 17] * 150


def test_more_results_than_descriptors(pool: Any) -> None:
    """Large results that are kept do not use up this process's descriptors, however few it has."""
    executor = pool(1)
    executor.submit(work.pid).result(work.SOON)
    with processes.few_descriptors(30):
        results = [executor.submit(array_tasks.make, number, 1 << 17).result(work.SOON) for number in range(100)]
        Path(os.devnull).read_bytes()  # others still can open a file
    assert [float(result[-1]) for result in results] == list(range(100))


def test_many_arrays_behind_a_hung_task(pool: Any, bench: Any) -> None:
    """Hundreds of arrays that wait behind a task that never ends hold up neither its timeout nor themselves."""
    executor = pool(1)
    assert list(executor.map(work.same, range(5000))) == list(range(5000))  # tiny: much is sent ahead from now on
    started, gate = bench.latch(), bench.latch()
    stuck = executor.options(timeout=1.0).submit(work.hold, started, gate)
    array = numpy.ones(1 << 17)
    futures = [executor.submit(array_tasks.total, array) for _ in range(300)]
    assert type(stuck.exception(work.SOON)) is TaskTimeoutError
    assert {future.result(20) for future in futures} == {1 << 17}


# ── nothing left behind ─────────────────────────────────────────────────────────────────────────────────────────────


def test_no_segment_is_left_after_results_are_dropped(pool: Any) -> None:
    """Neither side keeps memory of tasks that are over."""
    executor = pool(1)
    worker = executor.submit(work.pid).result(work.SOON)
    before = segments(os.getpid()), segments(worker)
    for number in range(20):
        executor.submit(array_tasks.make, number, LARGE).result(work.SOON)
        executor.submit(array_tasks.total, numpy.ones(LARGE)).result(work.SOON)
    work.until(lambda: (segments(os.getpid()), segments(worker)) == before, work.SOON)


def test_no_segment_is_left_after_kills(pool: Any) -> None:
    """Nor after workers were killed amid arrays in both directions."""
    executor = pool(2)
    executor.submit(work.pid).result(work.SOON)
    for _ in range(10):
        futures = [executor.submit(work.same, numpy.ones(LARGE)) for _ in range(8)]
        wait(futures[:1], timeout=work.SOON)
        for pid in processes.workers(executor):
            processes.kill(pid)
        wait(futures, timeout=work.SOON)
        assert {type(future.exception(0)) for future in futures} <= {type(None), WorkerCrashedError}
    del futures
    executor.shutdown()
    work.until(lambda: segments(os.getpid()) == 0, work.SOON)


def test_cancelled_arrays_are_freed(pool: Any) -> None:
    """A task that never ran does not keep its argument's memory."""
    executor = pool(1)
    executor.pause()
    before = segments(os.getpid())
    futures = [executor.submit(array_tasks.total, numpy.ones(LARGE)) for _ in range(10)]
    for future in futures:
        assert future.cancel()
    work.until(lambda: segments(os.getpid()) == before, work.SOON)


# ── without shared memory ───────────────────────────────────────────────────────────────────────────────────────────


def test_buffers_fall_back_to_the_pipe(pool: Any, no_memory: None, caplog: pytest.LogCaptureFixture) -> None:
    """Arguments go through the pipe, which is said once."""
    executor = pool(1)
    array = numpy.arange(LARGE)
    for _ in range(3):
        assert (executor.submit(work.same, array).result(work.SOON) == array).all()
    said = [record for record in caplog.records if "no shared memory" in record.getMessage()]
    assert [record.levelname for record in said if record.process == os.getpid()] == ["WARNING"]


def test_a_worker_falls_back_to_the_pipe(pool: Any) -> None:
    """So does a worker for its results."""
    executor = pool(1, backend={"initializer": work.refuse_memory})
    for number in range(3):
        result = executor.submit(array_tasks.make, number, LARGE).result(work.SOON)
        result += 1
        assert (result == number + 1).all()


def test_journals_without_memfd(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without memfd_create an unlinked file does."""
    monkeypatch.delattr(os, "memfd_create")
    executor = pool(1)
    array = numpy.arange(LARGE)
    assert (executor.submit(work.same, array).result(work.SOON) == array).all()
