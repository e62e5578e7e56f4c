"""When something else goes wrong: no descriptors left, callbacks that raise, a user's policy that raises, odd moments."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import SemLock
from typing import Any, Iterator

import processes
import pytest
import work

from parallel_exec import ParallelExecutor, WorkerCrashedError, WorkerStartError
from parallel_exec.backends.process import spawn, supervisor

from . import stdlib_only_tasks


@pytest.mark.parametrize("spare", range(0, 36, 3))
def test_no_descriptors_for_the_first_worker(pool: Any, spare: int) -> None:
    """However few descriptors are left: the task runs, or there is one clear error; no hang, and nothing leaks."""
    pool().submit(work.pid).result(8)  # multiprocessing's own services are there
    executor = pool(2)
    with processes.few_descriptors(spare):
        error = executor.submit(work.same, 1).exception(9)
    assert error is None or isinstance(error, WorkerStartError)


@pytest.mark.parametrize("spare", range(0, 48, 3))
def test_no_descriptors_for_another_worker(pool: Any, bench: Any, spare: int) -> None:
    """A pool that has a worker goes on with what it has."""
    executor = pool(3)
    executor.submit(work.pid).result(8)
    with processes.few_descriptors(spare):
        futures = [
            executor.submit(stdlib_only_tasks.note_and_nap, bench.log().path, number, 0.005) for number in range(60)
        ]
        wait(futures, timeout=9)
        assert [future.exception(0) for future in futures] == [None] * 60


@contextlib.contextmanager
def no_starts() -> Iterator[list[str]]:
    """Let no worker start meanwhile; gives the names of those that were tried."""
    tried: list[str] = []

    def fail(context: Any, setup: Any, name: str) -> Any:
        tried.append(name)
        raise OSError(errno.EMFILE, "no descriptors left, for this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "start", fail)
        yield tried


def test_a_failed_start_leaves_no_semaphore_to_the_collector(pool: Any, bench: Any) -> None:
    """That might come while the resource tracker is at work, in the same thread, and wait for it for ever."""
    gc.collect()
    before = _count(SemLock)
    gc.disable()
    try:
        executor = pool(3)
        first, gate = busy(executor, bench)
        with no_starts() as tried:
            futures = [executor.submit(work.pid) for _ in range(60)]
            work.until(lambda: len(tried) >= 2, 8)
            gate.set()
            wait([first, *futures], timeout=9)
            executor.shutdown()
        assert _count(SemLock) == before
    finally:
        gc.enable()


def _count(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


def busy(executor: Any, bench: Any) -> tuple[Any, Any]:
    """Occupy the only worker; returns the future, and what lets it end."""
    entered, gate = bench.latch(), bench.latch()
    future = executor.submit(work.hold, entered, gate)
    entered.wait()
    return future, gate


def test_a_pool_that_cannot_have_another_worker(pool: Any, bench: Any, caplog: Any) -> None:
    """It does not break while it has one, and does not try all the time to have more."""
    executor = pool(3)
    first, gate = busy(executor, bench)
    with no_starts() as tried:
        futures = [executor.submit(work.pid) for _ in range(60)]
        work.until(lambda: "goes on with fewer workers" in caplog.text, 8)
        gate.set()
        (worker,) = {future.result(8) for future in futures}
    assert first.result(8) == "held"
    assert processes.workers(executor) == [worker]
    assert len(tried) in {3, 4}  # the fourth was under way when the third failed


def test_a_pool_whose_only_worker_ends_when_no_other_starts(pool: Any, bench: Any, caplog: Any) -> None:
    """Then it is broken: one clear error, at once."""
    executor = pool(2)
    first, _ = busy(executor, bench)
    with no_starts() as tried:
        second = executor.submit(work.pid)
        work.until(lambda: "goes on with fewer workers" in caplog.text, 8)
        first.abort()
        assert isinstance(second.exception(8), WorkerStartError)
    assert len(tried) == 6


def test_a_pool_that_can_have_workers_again(
    pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It finds out by itself, while its only worker is busy."""
    monkeypatch.setattr(supervisor, "_START_AGAIN", 0.2)
    executor = pool(2)
    first, _ = busy(executor, bench)
    with no_starts():
        second = executor.submit(work.same, 2)
        work.until(lambda: "goes on with fewer workers" in caplog.text, 8)
    assert second.result(8) == 2
    assert not first.done()


def test_no_descriptor_for_a_large_result(pool: Any) -> None:
    """A result whose segment cannot be received fails its task, no other."""
    executor = pool()
    executor.submit(work.pid).result(8)
    with processes.few_descriptors(0):
        large = executor.submit(bytearray, 3 << 20)
        small = [executor.submit(work.same, number) for number in range(50)]
        assert [future.result(8) for future in small] == list(range(50))
        large.exception(8)
    assert executor.submit(bytearray, 3 << 20).result(8) == bytearray(3 << 20)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_callbacks_that_raise(pool: Any, error: type[BaseException]) -> None:
    """Callbacks of a whole batch raise: every future settles, and the pool goes on."""

    def fail(_: object) -> None:
        raise error

    executor = pool()
    wait([executor.submit(work.same, number) for number in range(200)])
    executor.pause()
    futures = [executor.submit(work.same, number) for number in range(200)]
    for future in futures:
        future.add_done_callback(fail)
    executor.resume()
    assert not wait(futures, timeout=8).not_done
    assert [future.result(0) for future in futures] == list(range(200))
    assert executor.submit(work.same, 1).result(8) == 1


def test_callbacks_that_raise_when_a_worker_dies(pool: Any) -> None:
    """The same while a dead worker is buried: its place is taken by another."""

    def fail(_: object) -> None:
        raise SystemExit

    executor = pool(1)
    for _ in range(3):
        executor.pause()
        future = executor.submit(work.die, 1)
        future.add_done_callback(fail)
        executor.resume()
        assert type(future.exception(8)) is WorkerCrashedError
    assert executor.submit(work.same, 1).result(8) == 1
    assert len(processes.handles(executor)) == 1


def test_a_callback_may_submit(pool: Any) -> None:
    """From inside a callback the pool takes further tasks."""
    executor = pool()
    chain: list[Any] = []
    over = threading.Event()

    def go_on(future: Any) -> None:
        chain.append(future.result(0))
        if len(chain) == 20:
            over.set()
        else:
            executor.submit(work.same, len(chain)).add_done_callback(go_on)

    executor.submit(work.same, 0).add_done_callback(go_on)
    assert over.wait(8)
    assert chain == list(range(20))


def test_a_callback_may_shut_down(pool: Any) -> None:
    """`shutdown(wait=True)` from a callback does not wait for the thread that it runs in."""
    executor = pool()
    over = threading.Event()
    future = executor.submit(work.nap, 0.05)
    future.add_done_callback(lambda _: (executor.shutdown(), over.set()))
    assert over.wait(8)
    executor.shutdown()


def test_a_hook_that_raises(pool: Any) -> None:
    """`on_event` may raise on every event, of workers, too."""

    def fail(_: object) -> None:
        raise ValueError

    executor = pool(2, on_event=fail)
    futures = [executor.submit(work.die, 1) if number % 5 == 0 else executor.submit(work.pid) for number in range(20)]
    assert not wait(futures, timeout=8).not_done


def test_a_collected_executor_ends_its_workers(pool: Any) -> None:
    """An executor that nobody shuts down finishes its tasks and lets its workers go when it is collected."""
    executor = ParallelExecutor(max_concurrency=2, backend="process")
    worker = executor.submit(work.pid).result(8)
    last = executor.submit(work.nap, 0.1)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert last.result(8)
    work.until(lambda: not processes.is_alive(worker), 8)


@pytest.mark.parametrize("switch", [1e-6, 0.005])
def test_threads_that_submit_and_shut_down_at_once(pool: Any, switch: float) -> None:
    """Many short-lived pools whose first submit races with their shutdown: everything ends, nothing is lost."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(switch)
    try:
        for round in range(8):
            executor = pool(2)
            futures: list[Any] = []

            def submit(executor: Any = executor, futures: list[Any] = futures) -> None:
                with contextlib.suppress(RuntimeError):  # after shutdown
                    futures.extend(executor.submit(int) for _ in range(5))

            thread = threading.Thread(target=submit)
            thread.start()
            time.sleep(round * 0.0003)
            executor.shutdown()
            thread.join()
            assert [future.result(5) for future in futures] == [0] * len(futures)
    finally:
        sys.setswitchinterval(before)


def test_many_pools_at_once(pool: Any) -> None:
    """Pools share nothing: ten of them start, work and end side by side."""
    executors = [pool(2) for _ in range(6)]
    futures = [executor.submit(work.same, number) for number in range(20) for executor in executors]
    assert not wait(futures, timeout=9).not_done
    threads = [threading.Thread(target=executor.shutdown) for executor in executors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(8)
        assert not thread.is_alive()


def test_a_worker_that_closes_all_descriptors(pool: Any) -> None:
    """A task that does what daemons do, and closes what is not its own: its end is known all the same; nobody hangs."""
    executor = pool()
    first = executor.submit(work.pid).result(8)
    assert type(executor.submit(os.closerange, 3, 1000).exception(8)) in {type(None), WorkerCrashedError}
    assert executor.submit(work.pid).result(8) != first


def test_a_task_that_forks(pool: Any) -> None:
    """A child that a task forks, and that exits on its own, does not disturb the worker."""
    executor = pool()
    assert executor.submit(work.fork_and_wait, 5).result(8) == 5
    worker = executor.submit(work.pid).result(8)
    assert executor.submit(work.fork_and_wait, 6).result(8) == 6
    assert executor.submit(work.pid).result(8) == worker


def test_a_task_that_uses_multiprocessing(pool: Any) -> None:
    """A task may start processes of multiprocessing itself: workers are not daemonic."""
    assert pool().submit(work.use_multiprocessing, "fork").result(8) == 9
    assert pool().submit(work.use_multiprocessing, "spawn").result(9) == 9


def test_a_signal_to_a_worker(pool: Any, bench: Any) -> None:
    """SIGINT to a worker is a KeyboardInterrupt of its task; the worker lives on."""
    import signal

    executor = pool()
    started = bench.latch()
    future = executor.submit(
        work.hold, started, bench.latch()
    )  # one long sleep may miss a signal that comes just before
    started.wait()
    (worker,) = processes.workers(executor)
    processes.kill(worker, signal.SIGINT)
    assert type(future.exception(8)) is KeyboardInterrupt
    assert executor.submit(work.pid).result(8) == worker


@pytest.mark.parametrize("refused", ["parallel_exec-io", "parallel_exec-clock"])
def test_no_thread_to_be_had(pool: Any, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """When the system refuses a thread that the pool needs, what waits and what comes is refused with one clear error."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    executor = pool(2)
    future = executor.submit(work.same, 1)
    assert isinstance(future.exception(8), BrokenProcessPool)
    assert "can't start new thread" in str(future.exception())
    with pytest.raises(BrokenProcessPool):
        executor.submit(work.same, 2)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_no_thread_for_a_start(pool: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """When the system refuses only the thread that starts a worker, whatever it says, the worker is started without."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "parallel_exec-start":
            raise error("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert pool(2).submit(work.same, 1).result(8) == 1
