"""Batches with permits: what was sent ahead and has not begun can be had back, exactly once, whatever it waits behind."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import CancelledError, wait
from typing import Any

import processes
import pytest
import work

from parallel_exec import TaskTimeoutError, WorkerCrashedError

from . import stdlib_only_tasks


def warm(executor: Any, count: int = 300) -> None:
    """Have the pool know that tasks are tiny, so that it sends many ahead."""
    wait([executor.submit(work.same, number) for number in range(count)], timeout=work.SOON)


def sent_ahead(executor: Any) -> int:
    """Return how many tasks are with workers."""
    return sum(len(handle.assigned) for handle in processes.handles(executor))


# ── behind a slow task ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_waits_behind_a_slow_task_goes_to_another_worker(pool: Any, bench: Any) -> None:
    """One worker is held up in the middle of a batch; all that was sent with it is done by the other."""
    executor = pool(2)
    warm(executor)
    started, gate = bench.latch(), bench.latch()
    futures = [executor.submit(work.same, number) for number in range(100)]
    slow = executor.submit(work.hold, started, gate)
    futures += [executor.submit(work.same, number) for number in range(100, 300)]
    assert [future.result(work.SOON) for future in futures] == list(range(300))
    assert not slow.done()


def test_what_waits_behind_a_slow_task_gets_a_worker_of_its_own(pool: Any, bench: Any) -> None:
    """The same while only one worker was ever needed: another one is started."""
    executor = pool(2)
    for _ in range(40):
        executor.submit(work.same, 1).result(work.SOON)
    assert executor.stats().workers == 1
    started, gate = bench.latch(), bench.latch()
    slow = executor.submit(work.hold, started, gate)
    quick = [executor.submit(work.same, number) for number in range(50)]
    assert [future.result(work.SOON) for future in quick] == list(range(50))
    assert not slow.done()


def test_the_same_for_tasks_of_some_milliseconds(pool: Any, bench: Any) -> None:
    """Also where only one task is sent ahead."""
    executor = pool(2)
    for _ in range(20):
        executor.submit(work.nap, 0.006).result(work.SOON)
    started, gate = bench.latch(), bench.latch()
    slow = executor.submit(work.hold, started, gate)
    started.wait()
    assert executor.submit(work.nap, 0.001).result(work.SOON)
    assert not slow.done()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_while_an_argument_is_unpickled(pool: Any, bench: Any, workers: int) -> None:
    """A task that is stuck in unpickling its argument holds up nobody else, however many workers were needed so far."""
    executor = pool(2)
    if workers == 1:
        for _ in range(60):
            executor.submit(work.same, 1).result(work.SOON)
    else:
        warm(executor)
    started, gate = bench.latch(), bench.latch()
    slow = executor.submit(work.same, work.SlowToRebuild(started, gate))
    quick = [executor.submit(work.same, number) for number in range(50)]
    assert [future.result(work.SOON) for future in quick] == list(range(50))
    assert not slow.done()


def test_one_worker_keeps_what_nobody_else_can_do(pool: Any, bench: Any) -> None:
    """With a single worker, what waits behind a slow task waits, and is done after it, in order."""
    executor = pool(1)
    warm(executor)
    started, gate, log = bench.latch(), bench.latch(), bench.log()
    slow = executor.submit(work.hold, started, gate)
    futures = [executor.submit(work.note, log, number) for number in range(50)]
    started.wait()
    assert log.lines() == []
    gate.set()
    wait([slow, *futures], timeout=work.SOON)
    assert log.lines() == list(map(str, range(50)))


# ── priorities ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_higher_priority_overtakes_what_was_sent_ahead(pool: Any, bench: Any) -> None:
    """It runs next, although lower ones were with the worker already."""
    executor = pool(1)
    warm(executor)
    started, gate, log = bench.latch(), bench.latch(), bench.log()
    executor.pause()
    executor.submit(work.hold, started, gate)
    futures = [executor.submit(work.note, log, number) for number in range(20)]
    executor.resume()
    started.wait()
    futures += [executor.options(priority=1).submit(work.note, log, "first")]
    gate.set()
    wait(futures, timeout=work.SOON)
    assert log.lines() == ["first", *map(str, range(20))]


def test_many_priorities_arriving_out_of_order(pool: Any, bench: Any) -> None:
    """Behind one running task, all that arrives runs by priority, and in the order of arrival among equals."""
    executor = pool(1)
    warm(executor)
    started, gate, log = bench.latch(), bench.latch(), bench.log()
    executor.submit(work.hold, started, gate)
    started.wait()
    dice = random.Random(1)
    tasks = [(dice.randrange(5), number) for number in range(200)]
    futures = [executor.options(priority=rank).submit(work.note, log, number) for rank, number in tasks]
    gate.set()
    wait(futures, timeout=work.SOON)
    assert log.lines() == [str(number) for _, number in sorted(tasks, key=lambda task: (-task[0], task[1]))]


def test_a_retry_comes_back_to_its_old_place(pool: Any, bench: Any) -> None:
    """A task that is retried goes before those that were added after it, sent ahead or not."""
    executor = pool(1, retry_count=1)
    warm(executor)
    log, calls = bench.log(), bench.log()
    executor.pause()
    futures = [executor.submit(work.fail_then_note, calls, log, "again")]
    futures += [executor.submit(work.note_and_nap, log, number, 0.02) for number in range(100)]
    executor.resume()
    wait(futures, timeout=work.SOON)
    assert log.lines().index("again") < 50


# ── cancel, pause, resize ───────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_of_what_was_sent_ahead(pool: Any, bench: Any) -> None:
    """A task that is with a worker and has not begun can be cancelled, and never runs; the others do."""
    executor = pool(1)
    warm(executor)
    started, gate, log = bench.latch(), bench.latch(), bench.log()
    executor.pause()
    slow = executor.submit(work.hold, started, gate)
    futures = [executor.submit(work.note, log, number) for number in range(40)]
    executor.resume()
    started.wait()
    some = futures[::3]
    assert all(future.cancel() for future in some)
    assert all(future.cancelled() for future in some)
    assert not slow.cancel()
    gate.set()
    wait(futures, timeout=work.SOON)
    assert log.lines() == [str(number) for number in range(40) if number % 3]


def test_cancel_says_no_only_if_the_task_has_run(pool: Any, log: Any) -> None:
    """Whatever the moment: a cancelled task was never run, and one that could not be cancelled was, once."""
    executor = pool(2)
    warm(executor)
    for _ in range(15):
        futures = [executor.submit(work.note, log, "x") for _ in range(60)]
        cancelled = sum(future.cancel() for future in reversed(futures))
        wait(futures, timeout=work.SOON)
        assert sum(future.cancelled() for future in futures) == cancelled
    ran = 15 * 60 - executor.stats().cancelled
    assert len(log.lines()) == ran


def test_pause_takes_back_what_was_sent_ahead(pool: Any, bench: Any) -> None:
    """After `pause()` nothing begins, not even what a worker has in hand; after `resume()` everything does."""
    executor = pool(1)
    warm(executor)
    log = bench.log()
    futures = [executor.submit(work.note_and_nap, log, number, 0.001) for number in range(300)]
    work.until(lambda: len(log.lines()) > 5)
    executor.pause()
    running = len(log.lines()) + 1
    executor.submit(work.same, 1)  # something for the I/O thread to think about
    settled = processes.settled(lambda: len(log.lines()), 0.1)
    assert settled <= running
    work.until(lambda: sent_ahead(executor) <= 1)
    executor.resume()
    wait(futures, timeout=work.SOON)
    assert sorted(map(int, log.lines())) == list(range(300))


def test_pause_and_resume_in_quick_succession(pool: Any, log: Any) -> None:
    """Nothing is lost or run twice, however often what was sent ahead is taken back."""
    executor = pool(2)
    warm(executor)
    futures = [executor.submit(stdlib_only_tasks.note_and_nap, log.path, number, 0.0005) for number in range(1000)]
    while not all(future.done() for future in futures[:900]):
        executor.pause()
        executor.resume()
        time.sleep(0.0005)
    wait(futures, timeout=work.SOON)
    assert sorted(map(int, log.lines())) == list(range(1000))


def test_growing_while_running(pool: Any, bench: Any) -> None:
    """After `resize` to more, more tasks run at once."""
    executor = pool(1)
    latches = [bench.latch() for _ in range(3)]
    futures = [executor.submit(work.meet_by_pid, latches, mine) for mine in range(3)]
    latches[0].wait()
    executor.resize(3)
    assert len({future.result(work.SOON) for future in futures}) == 3


def test_shrinking_while_running(pool: Any, bench: Any) -> None:
    """After `resize` to less, what runs goes on, and no more than that many are started."""
    executor = pool(3)
    latches = [bench.latch() for _ in range(3)]
    wait([executor.submit(work.meet_by_pid, latches, mine) for mine in range(3)], timeout=work.SOON)
    started = [bench.latch() for _ in range(3)]
    gate = bench.latch()
    running = [executor.submit(work.hold, latch, gate) for latch in started]
    for latch in started:
        latch.wait()
    executor.resize(1)
    assert not any(future.done() for future in running)
    gate.set()
    wait(running, timeout=work.SOON)
    work.until(lambda: len(processes.handles(executor)) == 1, work.SOON)
    spans = bench.log()
    wait([executor.submit(work.span, spans, 0.002) for _ in range(20)], timeout=work.SOON)
    assert work.most_at_once(spans) == 1


def test_shrinking_takes_back_what_was_sent_ahead(pool: Any, log: Any) -> None:
    """Workers that must go return what they have not begun; nothing is lost, nothing runs twice."""
    executor = pool(4)
    warm(executor)
    futures = [executor.submit(stdlib_only_tasks.note_and_nap, log.path, number, 0.001) for number in range(600)]
    for size in (1, 4, 2, 3, 1, 4):
        executor.resize(size)
        time.sleep(0.02)
    wait(futures, timeout=work.SOON)
    assert sorted(map(int, log.lines())) == list(range(600))


def test_abort_of_a_running_task_spares_the_batch(pool: Any, bench: Any) -> None:
    """The worker is killed for one task; those behind it run elsewhere, at their first attempt."""
    executor = pool(1)
    warm(executor)
    started, log = bench.latch(), bench.log()
    slow = executor.submit(work.begin, started)
    futures = [executor.submit(work.note, log, number) for number in range(50)]
    started.wait()
    assert slow.abort()
    wait([slow, *futures], timeout=work.SOON)
    with pytest.raises(CancelledError):
        slow.result(0)
    assert sorted(map(int, log.lines())) == list(range(50))
    assert {len(future.task_result().attempts) for future in futures} == {1}


def test_shutdown_cancels_what_was_sent_ahead(pool: Any, bench: Any) -> None:
    """`shutdown(cancel_futures=True)` reaches tasks that are with a worker and have not begun."""
    executor = pool(1)
    warm(executor)
    started, gate, log = bench.latch(), bench.latch(), bench.log()
    executor.pause()
    slow = executor.submit(work.hold, started, gate)
    futures = [executor.submit(work.note, log, number) for number in range(40)]
    executor.resume()
    started.wait()
    executor.shutdown(wait=False, cancel_futures=True)
    wait(futures, timeout=work.SOON)  # those that were on their way back are cancelled by the thread that has them
    assert all(future.cancelled() for future in futures)
    gate.set()
    assert slow.result(work.SOON) == "held"
    assert log.lines() == []


def test_never_more_at_once_than_the_limit(pool: Any, log: Any) -> None:
    """With timeouts and crashes going on, live attempts never outnumber `max_concurrency`."""
    executor = pool(3, retry_count=0)
    futures = []
    for number in range(90):
        if number % 30 == 7:
            futures.append(executor.options(timeout=0.3).submit(work.hang_in_c))
        elif number % 30 == 20:
            futures.append(executor.submit(work.die, 1))
        else:
            futures.append(executor.submit(work.span, log, 0.003))
    wait(futures, timeout=work.SOON)
    kinds = [type(future.exception(0)) for future in futures]
    assert (kinds.count(TaskTimeoutError), kinds.count(WorkerCrashedError)) == (3, 3)
    assert work.most_at_once(log) <= 3


# ── under stress ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_exactly_once_whatever_is_taken_back(pool: Any, log: Any, seed: int) -> None:
    """Cancels, priorities, pauses and resizes at random while 1,500 tasks run: none twice, none lost, none cancelled in vain."""
    executor = pool(3)
    dice = random.Random(seed)
    futures: list[Any] = []
    over = threading.Event()

    def disturb() -> None:
        chaos = random.Random(-seed)
        while not over.is_set():
            deed = chaos.randrange(6)
            if deed == 0:
                executor.pause()
                executor.resume()
            elif deed == 1:
                executor.resize(chaos.randrange(1, 5))
            elif futures:
                futures[chaos.randrange(len(futures))].cancel()
            time.sleep(chaos.random() * 0.002)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for number in range(1500):
            rank = dice.choice([0, 0, 0, 1, 2])
            nap = dice.choice([0.0, 0.0, 0.0005, 0.003])
            futures.append(
                executor.options(priority=rank).submit(stdlib_only_tasks.note_and_nap, log.path, number, nap)
            )
            if not number % 100:
                time.sleep(0.005)
        left = wait(futures, timeout=work.SOON).not_done
    finally:
        over.set()
        thread.join()
    assert not left
    ran = sorted(map(int, log.lines()))
    assert ran == [number for number, future in enumerate(futures) if not future.cancelled()]
    assert all(future.cancelled() or future.result(0) == number for number, future in enumerate(futures))


def test_bursts_one_after_the_other(pool: Any) -> None:
    """Whenever a burst of tasks finds the workers, all of it is done soon: no wake-up is lost between two bursts."""
    executor = pool(2)
    for _ in range(25):
        futures = [executor.submit(work.nap, 0.002) for _ in range(30)]
        assert not wait(futures, timeout=work.SOON).not_done
