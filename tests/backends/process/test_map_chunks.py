"""Items of a `map` travel together and end apart: what goes wrong with one leaves its neighbours alone."""

from __future__ import annotations

import functools
import operator
import os
import pickle
import signal
import threading
import time
from typing import Any, Iterator

import crashing_pickles
import inside
import processes
import pytest
import work

from parallel_exec import TaskSerializationError, TaskTimeoutError, WorkerCrashedError, current_task
from parallel_exec.backends.process import prefetch, worker_handle

from . import stdlib_only_tasks, unpicklable

COUNT = 40
BAD = 17  # the item that is not like the others


def note_all(executor: Any, log: Any, bad: Any, **how: Any) -> tuple[list[Any], BaseException | None]:
    """Map over some items, one of them bad; returns the results up to it, and what it raised."""
    extras = [0.0] * BAD + [bad] + [0.0] * (COUNT - BAD - 1)
    results = executor.map(stdlib_only_tasks.note_and_nap, [log.path] * COUNT, range(COUNT), extras, **how)
    seen: list[Any] = []
    try:
        seen.extend(iter(results))
    except Exception as error:
        return seen, error
    return seen, None


# ── what cannot travel together ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chunksize", [1, 10])
def test_an_item_that_cannot_be_pickled(pool: Any, log: Any, chunksize: int) -> None:
    """It fails alone, and the error names it; what is before it has its results, and what is after it runs."""
    executor = pool(2)
    seen, error = note_all(executor, log, unpicklable.Locked(), chunksize=chunksize)
    assert seen == list(range(BAD))
    assert type(error) is TaskSerializationError
    assert "argument 2 (Locked <Locked thing>)" in str(error)
    executor.shutdown()
    ran = sorted(map(int, log.lines()))
    assert ran[:BAD] == list(range(BAD))
    assert BAD not in ran and len(ran) == len(set(ran))
    assert executor.stats().succeeded == len(ran)
    assert executor.stats().failed == 1


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (crashing_pickles.ErrorAtUnpickle(), TaskSerializationError),
        (crashing_pickles.ExitAtUnpickle(), TaskSerializationError),
        (crashing_pickles.CrashAtUnpickle(), WorkerCrashedError),
    ],
    ids=["raises", "exits", "crashes"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_item_that_cannot_be_unpickled(pool: Any, log: Any, bad: Any, expected: Any, workers: int) -> None:
    """It fails alone in the worker, too, though there are no retries; each of the others runs once."""
    executor = pool(workers)
    seen, error = note_all(executor, log, bad)
    assert seen == list(range(BAD))
    assert type(error) is expected
    executor.shutdown()
    ran = list(map(int, log.lines()))
    assert BAD not in ran and len(ran) == len(set(ran))
    assert executor.stats().succeeded == len(ran)
    assert (executor.stats().failed, executor.stats().retried) == (1, 0)


def test_a_function_that_the_worker_cannot_find(pool: Any, log: Any) -> None:
    """Every item fails with the error that says so."""
    results = pool().map(unpicklable.OnlyHere(os.getpid()).__class__, [unpicklable.OnlyHere(os.getpid())] * 3)
    with pytest.raises(TaskSerializationError, match="this is not process"):
        next(results)


def test_a_worker_that_is_killed_while_it_loads_a_chunk(pool: Any, bench: Any) -> None:
    """No item has begun, so none is charged: all of them return, though there are no retries."""
    executor = pool(1)
    started, gate = bench.latch(), bench.latch()
    results = executor.map(work.same, [*range(5), work.SlowToRebuild(started, gate), *range(5)])
    started.wait()
    os.kill(processes.workers(executor)[0], signal.SIGKILL)
    gate.set()
    assert list(results) == [*range(5), "held", *range(5)]


@pytest.fixture
def held(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A worker with a chunk of nine items, the first of which waits, and the pool's lock; then all nine return."""
    monkeypatch.setattr(prefetch, "STUCK", 60.0)
    executor = pool(1)
    executor.submit(work.pid).result(work.SOON)
    started, gate = bench.latch(), bench.latch()
    results = executor.map(work.hold, [started] * 9, [gate] * 9, chunksize=9)
    started.wait()
    (handle,) = processes.handles(executor)
    with inside.scheduler(executor).lock:
        yield handle, inside.runner(executor).assignments
    gate.set()
    assert list(results) == ["held"] * 9


def test_the_tail_of_a_chunk_that_workers_die_of(held: tuple[Any, Any]) -> None:
    """It may be the cause of that as well: as many deaths are put down to it."""
    handle, assignments = held
    (chunk,) = handle.assigned.jobs()
    assignments._bad_starts[chunk] = 2
    assignments.take_back(handle)
    (tail,) = assignments.returned
    assert tail is not chunk
    assert assignments._bad_starts[tail] == 2


def test_the_clock_of_an_item_strikes_as_the_next_begins(held: tuple[Any, Any]) -> None:
    """The worker has the permit for that already, which its journal does not say: it is not killed, but looked at again."""
    handle, assignments = held
    assert handle._permits.acquire(False)  # as the worker does
    assignments.stop_item(handle, handle.running().serial, TimeoutError())
    handle._permits.release()
    assert handle.pending_kill is None
    assert not handle.process.was_killed
    assert handle.timer.deadline <= time.monotonic() + worker_handle.POLL_AFTER


# ── their names ─────────────────────────────────────────────────────────────────────────────────────────────────────


def own_id(number: int, bad: int) -> str:
    """Return the id of the task that this is; one of them ends its process."""
    if number == bad:
        os._exit(3)
    return current_task().id


def test_items_are_named_after_the_map(pool: Any) -> None:
    """By their place in all of it, however they travelled, as with threads; without an id of its own the map gets one."""
    executor = pool(2)
    names = [f"mine-{number}" for number in range(600)]
    assert list(executor.options(id="mine").map(own_id, range(600), [-1] * 600)) == names
    assert list(executor.options(id="mine").map(own_id, range(600), [-1] * 600, chunksize=7)) == names
    first, second = ({name.rpartition("-")[0] for name in executor.map(own_id, range(600), [-1] * 600)} for _ in "12")
    assert len(first) == len(second) == 1
    assert first != second


def test_errors_name_the_item(pool: Any) -> None:
    """Not the chunk that it travelled in."""
    executor = pool(1)
    results = executor.options(id="mine").map(own_id, range(600), [300] * 600)
    assert [next(results) for _ in range(300)] == [f"mine-{number}" for number in range(300)]
    with pytest.raises(WorkerCrashedError) as caught:
        next(results)
    assert caught.value.task_id == "mine-300"
    results = executor.options(id="mine", timeout=0.2).map(work.hang_in_c, [None])
    with pytest.raises(TaskTimeoutError) as late:
        next(results)
    assert late.value.task_id == "mine-0"


# ── after the end ───────────────────────────────────────────────────────────────────────────────────────────────────


def fail_once(folder: str, number: int) -> int:
    """Fail the first time that it is called with this number."""
    mark = os.path.join(folder, str(number))
    if number % 7 == 3 and not os.path.exists(mark):
        with open(mark, "w"):
            raise OSError("not yet")
    return number


def test_items_are_retried_after_shutdown(pool: Any, tmp_path: Any) -> None:
    """As anything is that was added before: a `with` block that ends before the results are taken loses nothing."""
    with pool(2, retry_count=1, backoff=0.05) as executor:
        results = executor.map(fail_once, [str(tmp_path)] * 30, range(30))
    assert list(results) == list(range(30))
    assert executor.stats().retried == 4


def hold_then_fail(started: work.Latch | None, gate: work.Latch) -> None:
    """Say that it started, wait, and fail; without a latch to say it by, do nothing."""
    if started is not None:
        started.set()
        gate.wait()
        raise OSError("too late")


def test_items_that_fail_when_nobody_iterates_any_more(pool: Any, bench: Any) -> None:
    """They are not retried."""
    executor = pool(1, retry_count=1, backoff=60.0, max_backoff=60.0)
    started, gate = bench.latch(), bench.latch()
    results: Any = executor.map(hold_then_fail, [None, started], [gate, gate])
    assert next(results) is None
    started.wait()
    results.close()
    gate.set()
    executor.shutdown()  # would wait for a minute
    assert executor.stats().retried == 0


# ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_iterables_are_zipped(pool: Any) -> None:
    """Side by side, up to the end of the shortest, also where two of them are one iterator."""
    executor = pool(2)
    assert list(executor.map(pow, range(600), [2] * 500)) == [number**2 for number in range(500)]
    both = iter(range(1000))
    assert list(executor.map(operator.sub, both, both)) == [-1] * 500
    assert list(executor.map(abs, [])) == [] == list(executor.map(pow, [], [1]))


def failing(count: int) -> Iterator[int]:
    """Yield some numbers, and fail."""
    yield from range(count)
    raise LookupError("no more numbers")


def test_an_iterable_that_raises(pool: Any, log: Any) -> None:
    """Its error is raised by `map` itself; what it had yielded before is done, as with the standard library's pools."""
    executor = pool(1)
    with pytest.raises(LookupError, match="no more numbers"):
        executor.map(stdlib_only_tasks.note_and_nap, [log.path] * 200, failing(100), [0.0] * 200)
    executor.shutdown()
    assert sorted(map(int, log.lines())) == list(range(100))


# ── rows of numbers ─────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = {
    "whole numbers": list(range(-500, 500)),
    "floats": [number / 7 for number in range(1000)],
    "odd floats": [float("inf"), -0.0, 5e-324] * 300,
    "numbers that do not fit": [*range(300), 1 << 62, 1 << 63, -(1 << 63), -(1 << 63) - 1, 1 << 200, *range(300)],
    "of several types": [
        *range(300),
        True,
        None,
        2.5,
        "text",
        7,
        *map(float, range(300)),
        False,
        b"",
        [1],
        *range(300),
    ],
    "in turns": [1, 2.0] * 400,
    "nothing": [None] * 600,
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("chunksize", [1, 7])
def test_values_arrive_as_they_were(pool: Any, name: str, chunksize: int) -> None:
    """Whatever kind of row they travel in, and when the kind changes."""
    executor = pool(2)
    for _ in range(2):
        results = list(executor.map(work.same, VALUES[name], chunksize=chunksize))
        assert list(map(repr, results)) == list(map(repr, VALUES[name]))


@pytest.mark.parametrize("divide", [operator.floordiv, operator.truediv], ids=["whole numbers", "floats"])
def test_errors_amid_numbers(pool: Any, divide: Any) -> None:
    """An item that raises in the middle of a row ends there, and the row goes on behind it."""
    executor = pool(1)
    assert list(executor.map(divide, [8] * 600, [2] * 600)) == [4] * 600
    results = executor.map(divide, [8] * 600, [2] * 300 + [0] + [2] * 299)
    assert [next(results) for _ in range(300)] == [4] * 300
    with pytest.raises(ZeroDivisionError):
        next(results)
    work.until(lambda: executor.stats().running == 0, work.SOON)


@pytest.mark.parametrize("round", range(5))
def test_a_kill_amid_numbers(pool: Any, log: Any, round: int) -> None:
    """What had returned when its worker was shot is not run again: only what was running is, by policy."""
    executor = pool(1, retry_count=1)
    assert list(executor.map(work.same, range(600))) == list(range(600))
    [pid] = processes.workers(executor)
    results = executor.map(stdlib_only_tasks.note_and_nap, [log.path] * 800, range(800), [0.0] * 800)
    work.until(lambda: len(log.lines()) > 100 + 50 * round, work.SOON)
    os.kill(pid, signal.SIGKILL)
    assert list(results) == list(range(800))
    ran = list(map(int, log.lines()))
    assert set(ran) == set(range(800))
    assert len(ran) <= 801


# ── their bytes, and their counts ───────────────────────────────────────────────────────────────────────────────────


def fail_first(mark: str, words: list[str]) -> list[str]:
    """Fail the first time, and return the argument the second time."""
    if not os.path.exists(mark):
        with open(mark, "w"):
            raise OSError("not yet")
    return words


@pytest.mark.parametrize("way", ["submit", "map"])
def test_a_retry_uses_the_same_bytes(pool: Any, tmp_path: Any, way: str) -> None:
    """What becomes of the arguments after the call was added is not seen, with items of a map neither."""
    executor = pool(1, retry_count=1, backoff=0.3, jitter=False)
    words, mark = ["original"], str(tmp_path / "mark")
    if way == "submit":
        future = executor.submit(fail_first, mark, words)
    else:
        results = executor.map(fail_first, [mark], [words])
    work.until(lambda: os.path.exists(mark), work.SOON)
    words[:] = [threading.Lock()]  # type: ignore[list-item]  # now it could not even be pickled
    assert (future.result(work.SOON) if way == "submit" else next(results)) == ["original"]


@pytest.mark.parametrize(("chunksize", "times"), [(1, 3), (50, 15)])  # a chunk of 50 may be split, by halves
def test_heavy_items_are_not_sent_over_and_over(
    pool: Any, monkeypatch: pytest.MonkeyPatch, chunksize: int, times: int
) -> None:
    """What goes through the pipe is a small multiple of what there is to send, though workers get few items at a time."""
    executor = pool(2)
    for _ in range(10):
        executor.submit(work.nap, 0.004).result(work.SOON)
    sent: list[int] = []
    encode = worker_handle.WorkerHandle._encode

    def count(handle: Any, serial: int, jobs: Any) -> Any:
        pieces, large = encode(handle, serial, jobs)
        sent.append(sum(map(len, pieces)))
        return pieces, large

    monkeypatch.setattr(worker_handle.WorkerHandle, "_encode", count)
    items = [[number] * 10_000 for number in range(100)]
    assert list(executor.map(len, items, chunksize=chunksize)) == [10_000] * 100
    assert sum(sent) < times * len(pickle.dumps(items))


def test_stats_count_items(pool: Any, bench: Any) -> None:
    """Whatever they travel in, queued, cancelled or done."""
    executor = pool(1)
    gate = bench.latch()
    executor.submit(gate.wait)
    work.until(lambda: executor.stats().running == 1, work.SOON)
    results: Any = executor.map(work.same, range(1000))
    assert executor.stats().queued == executor.queue.size() == 1000
    gate.set()
    assert next(results) == 0
    results.close()
    executor.shutdown()
    stats = executor.stats()
    assert stats.succeeded + stats.cancelled == 1001


def test_a_partial_travels_in_chunks(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No item of it goes alone."""
    executor = pool(1)
    admission = inside.admission(executor)
    add_item, alone = admission.add_item, []

    def note(item: Any) -> None:
        alone.append(item.id)
        add_item(item)

    monkeypatch.setattr(admission, "add_item", note)
    assert list(executor.map(functools.partial(divmod, 7), range(1, 100))) == [
        divmod(7, each) for each in range(1, 100)
    ]
    assert not alone
