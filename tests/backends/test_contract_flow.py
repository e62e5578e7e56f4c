"""What every back end does alike: how tasks flow in and results out; limits on the queue, `map`, `stream`."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import as_completed, wait
from functools import partial
from typing import Any, Iterator

import pytest
import work
from backend_kinds import ALL, CONCURRENT, OWN, SPAWN_AND_FORK, over

from parallel_exec import QueueFullError, Task

EVERY = (*ALL, *SPAWN_AND_FORK)


# ── the queue's limit ───────────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_a_full_queue_refuses_while_nothing_runs(lab: Any) -> None:
    """More than `queue_size` staged tasks are refused, since nothing would make room, and the others still run."""
    executor = lab.executor(queue_size=2)
    executor.add_task(partial(work.double, 1))
    executor.add_task(partial(work.double, 2))
    with pytest.raises(QueueFullError, match="queue_size=2") as caught:
        executor.add_task(partial(work.double, 3))
    assert caught.value.queue_size == 2
    assert [result.result for result in executor.execute_all()] == [2, 4]


@over(CONCURRENT)
def test_a_full_queue_blocks_the_adder_while_tasks_run(lab: Any) -> None:
    """With a full queue `submit` waits until a running task makes room."""
    executor = lab.executor(max_concurrency=1, queue_size=1)
    started, gate, order = lab.latch(), lab.latch(), []
    executor.submit(work.hold, started, gate)
    started.wait()
    work.until(lambda: executor.stats().queued == 0)

    def submit_three() -> None:
        for number in range(3):
            executor.submit(work.double, number)
            order.append(number)

    submitter = lab.thread(submit_three)
    submitter.join(0.1)
    assert submitter.is_alive()
    order.append("opened")
    gate.set()
    submitter.join(work.PATIENCE)
    assert order.index("opened") < order.index(2)
    assert not submitter.is_alive()


@over(ALL)
def test_a_limited_queue_lets_everything_through(lab: Any) -> None:
    """A small queue slows the adder down and loses nothing."""
    executor = lab.executor(max_concurrency=2, queue_size=3)
    futures = [executor.submit(work.double, number) for number in range(50)]
    assert [future.result() for future in futures] == [2 * number for number in range(50)]


# ── pause, resume, resize ───────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_pause_holds_tasks_back_until_resume(lab: Any) -> None:
    """While the executor is paused nothing starts."""
    executor = lab.executor()
    executor.pause()
    log = lab.log()
    future = executor.submit(work.note, log, "ran")
    assert executor.stats().queued == 1
    assert log.lines() == []
    executor.resume()
    assert future.result() == "ran"


@over(CONCURRENT)
def test_pause_lets_running_tasks_end(lab: Any) -> None:
    """What was running when the executor was paused goes on, and what was queued waits."""
    executor = lab.executor(max_concurrency=1)
    started, gate = lab.latch(), lab.latch()
    running = executor.submit(work.hold, started, gate)
    started.wait()
    executor.pause()
    queued = executor.submit(work.double, 1)
    gate.set()
    assert running.result() == "held"
    assert executor.stats().queued == 1
    executor.resume()
    assert queued.result() == 2


@over(CONCURRENT)
def test_resize_upwards(lab: Any) -> None:
    """After `resize` to more, what waited for a slot starts."""
    executor = lab.executor(max_concurrency=1)
    started = [lab.latch(), lab.latch()]
    gate = lab.latch()
    futures = [executor.submit(work.hold, latch, gate) for latch in started]
    started[0].wait()
    assert not started[1].is_set()
    executor.resize(2)
    started[1].wait()
    gate.set()
    assert [future.result() for future in futures] == ["held", "held"]


@over(CONCURRENT)
def test_resize_downwards(lab: Any) -> None:
    """After `resize` to fewer, running attempts are left alone, and then no more run than allowed."""
    executor = lab.executor(max_concurrency=3)
    started, gate, log = [lab.latch() for _ in range(3)], lab.latch(), lab.log()
    held = [executor.submit(work.hold, latch, gate) for latch in started]
    for latch in started:
        latch.wait()
    executor.resize(1)
    rest = [executor.submit(work.span, log, 0.005) for _ in range(10)]
    gate.set()
    wait(held + rest)
    assert [future.result() for future in held] == ["held"] * 3
    assert len(log.lines()) == 10
    assert work.most_at_once(log) == 1


# ── map ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_map_gives_results_in_order(lab: Any) -> None:
    """`map` zips its iterables and yields results in the order of the items."""
    assert list(lab.executor(max_concurrency=2).map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))


@over(ALL)
def test_map_raises_what_a_call_raised(lab: Any) -> None:
    """The results before a failed one are there, then its exception is raised."""
    results = lab.executor(retry_count=0).map(divmod, [1, 1, 1], [2, 0, 3])
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


@over(ALL)
@pytest.mark.parametrize("chunksize", [3, 100])
def test_map_in_chunks(lab: Any, chunksize: int) -> None:
    """`chunksize` changes nothing in the results."""
    assert list(lab.executor().map(work.double, range(20), chunksize=chunksize)) == [2 * item for item in range(20)]


@over(ALL)
def test_map_reads_lazily_with_buffersize(lab: Any) -> None:
    """With `buffersize` no more items are read than that ahead of the results taken."""
    read: list[int] = []
    results = lab.executor().map(work.double, _noting(itertools.count(), read), buffersize=4)
    for taken in range(10):
        assert next(results) == 2 * taken
        assert len(read) <= taken + 1 + 4
    results.close()


def _noting(items: Iterator[int], read: list[int]) -> Iterator[int]:
    for item in items:
        read.append(item)
        yield item


# ── stream ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@over(EVERY)
def test_stream_yields_every_result(lab: Any) -> None:
    """Each task of the stream comes out once."""
    tasks = (Task(partial(work.double, number)) for number in range(30))
    assert sorted(result.unwrap() for result in lab.executor().stream(tasks)) == [2 * number for number in range(30)]


@over(ALL)
def test_stream_in_the_order_submitted(lab: Any) -> None:
    """`order="submitted"` yields the results in the order of the input."""
    tasks = (Task(partial(work.double, number)) for number in range(30))
    results = lab.executor(max_concurrency=2).stream(tasks, order="submitted")
    assert [result.unwrap() for result in results] == [2 * number for number in range(30)]


@over(ALL)
def test_stream_reads_no_further_than_its_window(lab: Any) -> None:
    """An endless input is read only as far as the window allows."""
    read: list[int] = []
    tasks = (Task(partial(work.double, number)) for number in _noting(itertools.count(), read))
    results = lab.executor().stream(tasks, window=3)
    for taken in range(10):
        next(results)
        assert len(read) <= taken + 3
    results.close()


@over(CONCURRENT)
def test_stream_starts_what_was_read_before_it_reads_more(lab: Any) -> None:
    """An input may wait for what it has yielded, however large the window is: nothing is held back to go together."""
    waits = [lab.latch() for _ in range(10)]

    def tasks() -> Iterator[Task[Any]]:
        for latch in waits:
            yield Task(latch.set)
            latch.wait()

    assert all(result.success for result in lab.executor().stream(tasks(), window=100))


@over(ALL)
def test_stream_raises_the_inputs_error_after_all_results(lab: Any) -> None:
    """An exception in the input iterable comes after the results of all tasks before it."""

    def tasks() -> Iterator[Task[int]]:
        yield Task(partial(work.double, 1))
        yield Task(partial(work.double, 2))
        raise ValueError("no more input")

    results = lab.executor().stream(tasks())
    assert {next(results).unwrap(), next(results).unwrap()} == {2, 4}
    with pytest.raises(ValueError, match="no more input"):
        next(results)


@over(CONCURRENT)
def test_closing_a_stream_cancels_the_rest(lab: Any) -> None:
    """After `close()` what waited never runs, and what ran was stopped."""
    executor = lab.executor(max_concurrency=1)
    started, log = lab.latch(), lab.log()
    calls = [partial(work.double, 1), partial(work.hold, started, lab.latch()), partial(work.note, log, "ran")]
    results = executor.stream(map(Task, calls), window=3)
    assert next(results).unwrap() == 2
    started.wait()
    results.close()
    executor.shutdown()
    assert log.lines() == []
    assert executor.stats().cancelled == 2


# ── others who take futures ─────────────────────────────────────────────────────────────────────────────────────────


@over(ALL)
def test_wait_and_as_completed(lab: Any) -> None:
    """The stdlib's `wait` and `as_completed` take our futures."""
    executor = lab.executor()
    futures = [executor.submit(work.double, number) for number in range(10)]
    assert {future.result() for future in as_completed(futures)} == {2 * number for number in range(10)}
    assert wait(futures).not_done == set()


@over(OWN)
def test_asyncio(lab: Any) -> None:
    """`asyncio.wrap_future` and `run_in_executor` serve."""
    executor = lab.executor()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return [
            await asyncio.wrap_future(executor.submit(work.double, 1)),
            await loop.run_in_executor(executor, work.double, 2),
        ]

    assert asyncio.run(main()) == [2, 4]
