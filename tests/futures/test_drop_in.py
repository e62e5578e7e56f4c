"""`parallel_exec.futures` in place of `concurrent.futures`: constructors, defaults, errors, and what it has beyond that."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, Callable

import inside
import pytest
import work

from parallel_exec import TaskTimeoutError, WorkerCrashedError
from parallel_exec import futures as ours

POOLS = ("ThreadPoolExecutor", "ProcessPoolExecutor")
both = pytest.mark.parametrize("pool", POOLS)
FORK = multiprocessing.get_context("fork")


def make(pool: str, *args: Any, **kwargs: Any) -> Any:
    """Make an executor of ours by its name."""
    return getattr(ours, pool)(*args, **kwargs)


def raised_by(call: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[type, str]:
    """Return the type and message of what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
        call(*args, **kwargs)
    return type(caught.value), str(caught.value)


# ── constructors ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pool", "wrong"),
    [
        *itertools.product(POOLS, [{"max_workers": 0}, {"max_workers": -1}, {"initializer": 7}]),
        ("ThreadPoolExecutor", {"max_workers": "4"}),
    ],
)
def test_a_wrong_argument_is_refused_in_the_same_words(pool: str, wrong: dict[str, Any]) -> None:
    """Type and message are those of this Python's own executor."""
    assert raised_by(getattr(ours, pool), **wrong) == raised_by(getattr(concurrent.futures, pool), **wrong)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"max_tasks_per_child": "3"}, TypeError, "max_tasks_per_child must be an integer"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": 1, "mp_context": FORK}, ValueError, "incompatible with the 'fork' multiprocessing"),
        ({"max_workers": 1.5}, TypeError, "integer"),
    ],
)
def test_a_wrong_number_of_tasks_per_child(wrong: dict[str, Any], error: type[Exception], words: str) -> None:
    """The standard library's rules, which it has had since 3.11, hold on every Python."""
    with pytest.raises(error, match=words):
        ours.ProcessPoolExecutor(**wrong)


@both
def test_the_default_number_of_workers(pool: str) -> None:
    """It is what this Python's own executor takes."""
    with make(pool) as executor, getattr(concurrent.futures, pool)() as theirs:
        assert executor._max_workers == theirs._max_workers


def test_a_fraction_of_a_thread() -> None:
    """Half of an odd number of CPUs is taken, and rounded up, as the standard library does by its comparison."""
    with ours.ThreadPoolExecutor(1.5) as executor:  # type: ignore[arg-type]
        assert executor._max_workers == 2


@both
def test_arguments_by_position(pool: str) -> None:
    """They have the places that they have there; `initargs` may be any iterable."""
    second = "names" if pool == "ThreadPoolExecutor" else multiprocessing.get_context("spawn")
    with make(pool, 1, second, work.initialize, ["here"]) as executor:
        assert executor.submit(work.initialized).result() == "here"


@both
def test_it_is_one_of_theirs(pool: str) -> None:
    """Whoever asks for the standard library's class takes it; there is no time limit, and no retry."""
    with make(pool, 1) as executor:
        assert isinstance(executor, getattr(concurrent.futures, pool))
        assert (executor.config.timeout, executor.config.retry_count) == (None, 0)


@pytest.mark.parametrize(("prefix", "name"), [("", "ThreadPoolExecutor-"), (None, "ThreadPoolExecutor-"), ("x", "x_0")])
def test_thread_names(prefix: Any, name: str) -> None:
    """Threads bear the standard library's names, or the prefix."""
    with ours.ThreadPoolExecutor(1, prefix) as executor:
        assert executor.submit(threading.current_thread).result().name.startswith(name)


def test_the_rest_is_handed_on() -> None:
    """Functions, constants and errors are the standard library's own; the executors come when they are asked for."""
    for name in set(ours.__all__) - set(POOLS):
        assert getattr(ours, name) is getattr(concurrent.futures, name)
    assert set(POOLS) <= set(dir(ours))
    with pytest.raises(AttributeError, match="has no attribute 'PoolExecutor'"):
        _ = ours.PoolExecutor


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_costs_one_task() -> None:
    """Code that catches `BrokenProcessPool` catches it, and the pool goes on."""
    with ours.ProcessPoolExecutor(1) as executor:
        with pytest.raises(BrokenProcessPool) as caught:
            executor.submit(work.kill_self).result()
        assert isinstance(caught.value, WorkerCrashedError)
        assert executor.submit(work.double, 4).result() == 8


def test_what_does_not_pickle() -> None:
    """Code that catches `PicklingError` catches it."""
    with ours.ProcessPoolExecutor(1) as executor, pytest.raises(pickle.PicklingError):
        executor.submit(work.call, threading.Lock()).result()


@pytest.mark.parametrize(("pool", "broken"), list(zip(POOLS, [BrokenThreadPool, BrokenProcessPool])))
def test_a_failing_initializer(lab: Any, pool: str, broken: type[Exception]) -> None:
    """All that waits and all that comes raises what the standard library's pool raises."""
    gate = lab.latch()
    with make(pool, 2, initializer=work.fail_after, initargs=(gate,)) as executor:
        pending = [executor.submit(work.double, number) for number in range(4)]
        gate.set()
        for future in pending:
            with pytest.raises(broken, match=r"the initializer .*failed"):
                future.result(work.PATIENCE)
        with pytest.raises(broken):
            executor.submit(work.double, 4)
        with pytest.raises(broken):
            executor.map(work.double, [4])


@both
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"buffersize": "1"}, TypeError, "buffersize must be an integer or None"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
    ],
)
def test_a_wrong_size_in_map(pool: str, wrong: dict[str, Any], error: type[Exception], words: str) -> None:
    """The words are the standard library's."""
    with make(pool, 1) as executor, pytest.raises(error, match=words):
        executor.map(work.double, [1], **wrong)


@both
def test_after_shutdown(pool: str) -> None:
    """The words are the standard library's."""
    executor = make(pool, 1)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)


# ── ending the workers ──────────────────────────────────────────────────────────────────────────────────────────────

every_way = pytest.mark.parametrize("way", ["kill_workers", "terminate_workers"])


def _handle_sigterm(started: work.Latch) -> str:
    """Wait until SIGTERM comes, and say so."""
    arrived: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    started.set()
    work.until(lambda: bool(arrived))
    return "saved"


@every_way
def test_ending_the_workers(lab: Any, way: str) -> None:
    """What runs is broken, what waits is cancelled, nothing more is taken, no process is left, and nobody waits long."""
    started = [lab.latch() for _ in range(2)]
    executor = ours.ProcessPoolExecutor(2)
    running = [executor.submit(work.hold, latch, lab.latch()) for latch in started]
    waiting = executor.submit(int)
    for latch in started:
        latch.wait()
    begun = time.monotonic()
    getattr(executor, way)()
    for future in running:
        with pytest.raises(BrokenProcessPool):
            future.result(work.PATIENCE)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError):
        executor.submit(int)
    executor.shutdown()
    assert time.monotonic() - begun < work.SOON


@every_way
def test_ending_the_workers_of_a_map(lab: Any, way: str) -> None:
    """The iterator raises for the item that was running."""
    started = lab.latch()
    with ours.ProcessPoolExecutor(1) as executor:
        results = executor.map(work.hold, [started] * 3, [lab.latch()] * 3)
        started.wait()
        getattr(executor, way)()
        with pytest.raises(BrokenProcessPool):
            next(results)


@every_way
@pytest.mark.parametrize("used", [False, True])
def test_ending_workers_that_are_idle(way: str, used: bool) -> None:
    """That is a shutdown; also for the second time."""
    with ours.ProcessPoolExecutor(1) as executor:
        if used:
            executor.submit(int).result()
        getattr(executor, way)()
        getattr(executor, way)()


def _outlive_sigterm(started: work.Latch, gate: work.Latch) -> None:
    """Run on, whatever SIGTERM says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    work.hold(started, gate)


def test_terminating_workers_that_are_starting(lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are not taken for workers that cannot start, and end with the pool."""
    started, gate = lab.latch(), lab.latch()
    with ours.ProcessPoolExecutor(4, initializer=time.sleep, initargs=(0.5,)) as executor:
        executor.submit(_outlive_sigterm, started, gate)
        started.wait()
        for _ in range(3):
            executor.submit(int)
        work.until(lambda: sum(handle.process.pid > 0 for handle in inside.runner(executor).assignments.handles) == 4)
        executor.terminate_workers()
        work.until(lambda: executor.stats().workers == 4)
        gate.set()
    assert "cannot start" not in caplog.text


def test_terminated_workers_may_save(lab: Any) -> None:
    """A task that handles SIGTERM has its result."""
    started = lab.latch()
    with ours.ProcessPoolExecutor(1) as executor:
        future = executor.submit(_handle_sigterm, started)
        started.wait()
        executor.terminate_workers()
    assert future.result() == "saved"


def test_a_wrong_chunksize_in_processes() -> None:
    """The words are the standard library's."""
    with ours.ProcessPoolExecutor(1) as executor, pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
        executor.map(work.double, [1], chunksize=0)


@pytest.mark.parametrize("chunksize", [0, 0.5, None])
def test_any_chunksize_in_threads(chunksize: Any) -> None:
    """It means nothing there, and is not looked at: `len(items) // 4` is 0 for a short input."""
    for executors in (concurrent.futures, ours):
        with executors.ThreadPoolExecutor(2) as executor:
            assert list(executor.map(work.double, [1, 2], chunksize=chunksize)) == [2, 4]


# ── beyond ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both
def test_what_it_has_beyond(pool: str, lab: Any) -> None:
    """Settings for some calls, counts, and a way to stop a running call."""
    started, gate = lab.latch(), lab.latch()
    with make(pool, 1) as executor:
        running = executor.submit(work.hold, started, gate)
        started.wait()
        low, high = executor.submit(time.monotonic), executor.options(priority=1).submit(time.monotonic)
        assert running.abort()
        assert high.result() < low.result()
        assert executor.stats().cancelled == 1
        with pytest.raises(TaskTimeoutError):
            executor.options(timeout=0.05).submit(work.hold, lab.latch(), lab.latch()).result()


class _Counting(ours.ThreadPoolExecutor):
    """Counts what is submitted, as pools of users' do."""

    submitted = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count, and submit."""
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


def test_map_goes_through_a_submit_of_the_users() -> None:
    """As in the standard library, a subclass that has a `submit` of its own sees each call of `map`."""
    with _Counting(2) as executor:
        assert list(executor.map(work.double, range(3), timeout=work.PATIENCE)) == [0, 2, 4]
        assert executor.submitted == 3


@both
def test_asyncio(pool: str) -> None:
    """A loop takes it for a call; and the one for threads as its default executor, which `to_thread` uses."""

    async def use(executor: Any) -> list[Any]:
        loop = asyncio.get_running_loop()
        results = [await loop.run_in_executor(executor, work.double, 2)]
        if pool == "ThreadPoolExecutor":
            loop.set_default_executor(executor)
            results.append(await asyncio.to_thread(work.double, 3))
            results.append(await loop.run_in_executor(None, work.double, 4))
        return results

    with make(pool, 2) as executor:
        assert asyncio.run(use(executor)) == ([4, 6, 8] if pool == "ThreadPoolExecutor" else [4])
        succeeded = 3 if pool == "ThreadPoolExecutor" else 1
        work.until(lambda: executor.stats().succeeded == succeeded)  # counted a moment after its result is there


def test_workers_are_not_forked_from_this_process() -> None:
    """Without `mp_context` no worker is a copy of this process, whatever the standard library does on this Python."""
    with ours.ProcessPoolExecutor(1) as executor:
        assert (
            executor.submit(os.getppid).result() != os.getpid() or "fork" not in multiprocessing.get_all_start_methods()
        )
