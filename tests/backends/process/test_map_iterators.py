"""`map` over what can only be iterated over: each item is on its way before the next is asked for."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Iterator

import crashing_pickles
import inside
import pytest
import work

from parallel_exec import ParallelExecError, TaskSerializationError, WorkerCrashedError

from . import stdlib_only_tasks, unpicklable


def test_an_iterator_that_waits_for_what_it_has_yielded(pool: Any, log: Any) -> None:
    """It does so after one, two, three items and so on, while workers are idle and while they are not."""
    executor = pool(2)

    def read() -> Iterator[int]:
        number = 0
        for count in range(1, 30):
            for _ in range(count):
                yield number
                number += 1
            work.until(lambda there=number: len(log.lines()) == there)

    numbers = range(29 * 30 // 2)
    paths = iter([log.path] * len(numbers))
    assert list(executor.map(stdlib_only_tasks.note_and_nap, paths, read(), iter([0.0] * len(numbers)))) == [*numbers]


def hold_by_path(item: tuple[str, str, int]) -> object:
    """Do as `work.hold`, with the paths of the latches."""
    started, gate, value = item
    return work.hold(work.Latch(Path(started)), work.Latch(Path(gate)), value)


@pytest.mark.parametrize("limit", [1, 2])
def test_items_begin_while_the_iterator_is_stuck(pool: Any, bench: Any, limit: int) -> None:
    """Also those that came while all workers were busy."""
    executor = pool(limit)
    gates, started = [bench.latch() for _ in range(4)], [bench.latch() for _ in range(4)]

    def read() -> Iterator[tuple[str, str, int]]:
        for number in range(4):
            yield started[number].path, gates[number].path, number
            if number < limit:
                started[number].wait()
            else:
                assert inside.monitor(executor).ready.calls() == number + 1 - limit
        for number in range(4):
            gates[number].set()
            started[min(3, number + limit)].wait()

    assert list(executor.map(hold_by_path, read())) == list(range(4))


def test_items_are_as_they_were_when_they_were_yielded(pool: Any) -> None:
    """The iterator may use one object for all of them."""
    only: list[int] = []

    def read() -> Iterator[list[int]]:
        for number in range(100):
            only[:] = [number]
            yield only

    assert list(pool(2).map(sum, read())) == list(range(100))


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (unpicklable.Locked(), TaskSerializationError),
        (crashing_pickles.ErrorAtUnpickle(), TaskSerializationError),
        (crashing_pickles.ExitAtUnpickle(), TaskSerializationError),
        (crashing_pickles.CrashAtUnpickle(), WorkerCrashedError),
    ],
    ids=["cannot be pickled", "raises", "exits", "crashes"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_item_that_cannot_travel(pool: Any, bad: Any, expected: Any, workers: int) -> None:
    """It fails alone, without retries; the others run once, as they were when they were yielded."""
    executor = pool(workers)
    only: list[Any] = []

    def read() -> Iterator[list[Any]]:
        for number in range(40):
            only[:] = [bad if number == 17 else number]
            yield only

    results = executor.map(work.same, read())
    assert [next(results) for _ in range(17)] == [[number] for number in range(17)]
    with pytest.raises(expected):
        next(results)
    executor.shutdown()
    assert (executor.stats().failed, executor.stats().retried) == (1, 0)


@pytest.mark.parametrize("way", ["isolated", "failed"])
def test_what_goes_on_alone_has_its_own_bytes(pool: Any, tmp_path: Any, way: str) -> None:
    """Whether another item has kept its chunk from being loaded, or it is retried."""
    executor = pool(1, retry_count=1)
    only: list[Any] = []

    def read() -> Iterator[list[Any]]:
        for number in range(40):
            only[:] = [number, str(tmp_path) if way == "failed" else NoneOnce(tmp_path / "mark")]
            yield only

    assert list(executor.map(fail_once, read())) == list(range(40))


class NoneOnce:
    """Cannot be unpickled the first time, and is None then."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return rebuild_once, (str(self.mark),)


def rebuild_once(mark: str) -> None:
    """Fail the first time."""
    if not os.path.exists(mark):
        Path(mark).touch()
        raise OSError("not yet")


def fail_once(item: list[Any]) -> int:
    """Return the number; some fail the first time, if there is a folder to note that in."""
    number, folder = item
    mark = Path(folder or "/", str(number))
    if folder and number % 7 == 3 and not mark.exists():
        mark.touch()
        raise OSError("not yet")
    return int(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_by_value(pool: Any, workers: int) -> None:
    """It travels with each chunk, not with each item."""
    bound = 3
    results = pool(workers).map(lambda item: item[0] + bound, ([number] for number in range(2000)))
    assert list(results) == [number + 3 for number in range(2000)]


VALUES: list[Any] = [
    1,
    2.5,
    None,
    True,
    "text",
    b"bytes",
    (1, "x"),
    [2],
    {"a": 3},
    ((4, 5), 6),
    1 << 80,
    {7},
    *range(50),
]


@pytest.mark.parametrize("count", [1, 40])
def test_values_of_all_kinds(pool: Any, count: int) -> None:
    """In turns, and at their places."""
    values = VALUES * count
    assert list(map(repr, pool(2).map(work.same, iter(values)))) == list(map(repr, values))


def test_what_is_cancelled_while_the_iterator_is_read(pool: Any, bench: Any) -> None:
    """All of it ends, is counted, and what comes later is refused."""
    executor = pool(1)
    started, gate = bench.latch(), bench.latch()
    held = executor.submit(work.hold, started, gate)
    started.wait()

    def read() -> Iterator[int]:
        yield from range(50)
        executor.shutdown(wait=False, cancel_futures=True)
        yield 50

    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(work.same, read())
    gate.set()
    assert held.result(work.SOON) == "held"
    executor.shutdown()
    stats = executor.stats()
    assert (stats.succeeded, stats.cancelled, stats.queued) == (1, 50, 0)


def test_the_results_of_what_was_cancelled(pool: Any, bench: Any) -> None:
    """Who iterates is told."""
    executor = pool(1)
    started, gate = bench.latch(), bench.latch()
    executor.submit(work.hold, started, gate)
    started.wait()
    results = executor.map(work.same, iter(range(50)))
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        next(results)
    gate.set()


@pytest.mark.parametrize("items", [range(50), iter(range(50))], ids=["a sequence", "an iterator"])
def test_results_are_not_waited_for_in_a_callback(pool: Any, items: Any) -> None:
    """It is called by the thread that would bring them."""
    executor = pool(1)
    errors: list[BaseException] = []
    over = threading.Event()

    def call_back(future: Any) -> None:
        try:
            list(executor.map(work.same, items))
        except ParallelExecError as error:
            errors.append(error)
        over.set()

    executor.submit(work.same, 1).add_done_callback(call_back)
    assert over.wait(work.SOON)
    assert "a callback or an event hook waits" in str(errors)


def test_a_function_that_cannot_be_pickled(pool: Any) -> None:
    """Each item is refused, as it is in a `submit`."""
    executor = pool()
    results = executor.map(functools.partial(work.double, threading.Lock()), iter(range(3)))
    with pytest.raises(TaskSerializationError, match="lock"):
        next(results)
    assert executor.stats().failed == 3


@pytest.mark.parametrize("items", [(2, 3), ([2], [3])], ids=["numbers", "lists"])
def test_a_partial_over_an_iterator(pool: Any, items: tuple[Any, ...]) -> None:
    """The arguments that it has come first."""
    executor = pool(1)
    assert list(executor.map(functools.partial(divmod, 7), iter((2, 3)))) == [(3, 1), (2, 1)]
    pairs = executor.map(functools.partial(functools.partial(pair, None), 1), iter(items))
    assert list(pairs) == [((None, 1, item), {}) for item in items]
    named = executor.map(functools.partial(pair, 1, by="name"), iter(items))
    assert list(named) == [((1, item), {"by": "name"}) for item in items]


def pair(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return what it was given."""
    return args, kwargs


class Counted:
    """Counts how often it is pickled."""

    def __init__(self, size: int) -> None:
        self.text = "x" * size
        self.pickled = 0

    def __reduce__(self) -> Any:
        self.pickled += 1
        return str, (self.text,)


def test_an_item_is_pickled_once(pool: Any) -> None:
    """Be it small, and travel with others, or large, and travel alone."""
    sizes = [1, 10, 10_000, 20_000, 1, 2, 2_000_000, 3]
    items = [Counted(size) for size in sizes]
    assert list(pool(2).map(len, iter(items))) == sizes
    assert [item.pickled for item in items] == [1] * len(sizes)
