"""Workers are killed at random, and at every stage of a task: nothing is lost, nothing runs twice, nobody else is charged.

PARALLEL_EXEC_KILLS multiplies the number of kills: 1 is for every day.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from pathlib import Path
from typing import Any, Callable

import inside
import processes
import pytest
import work

from parallel_exec import TaskTimeoutError, WorkerCrashedError, WorkerStartError
from parallel_exec.backends.process import prefetch, segments
from parallel_exec.backends.process.worker_handle import WorkerHandle
from parallel_exec.backends.process.worker_process import WorkerProcess

from . import stdlib_only_tasks

TIMES = float(os.environ.get("PARALLEL_EXEC_KILLS", "1"))
SETTLED_WITHIN = 2.0  # seconds after a kill, that we promise
STALL = 18.0  # seconds that a machine may stand still meanwhile: what is lost is never settled at all


# ── kill roulette ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(60 * max(1.0, TIMES))
def test_kill_roulette(pool: Any, log: Any) -> None:
    """2,000 short tasks while a random one of 8 workers is killed every 100 ms: one result each, only who is hit is charged."""
    executor = pool(8, retry_count=200)
    killed: list[int] = []
    dice = random.Random(1)

    def kill_one() -> None:
        pids = processes.workers(executor)
        if len(killed) < 60 * TIMES and pids and processes.kill(pid := dice.choice(pids)):
            killed.append(pid)

    count = int(2000 * max(1.0, TIMES))
    for number in range(count):
        executor.add_task(_call(stdlib_only_tasks.note_and_nap, log.path, number, 0.004 if number % 3 else 0.0))
    with processes.Every(0.1, kill_one):
        results = executor.execute_all()
    assert [result.unwrap() for result in results] == list(range(count))
    failed = [attempt.error for result in results for attempt in result.attempts if attempt.error is not None]
    assert all(type(error) is WorkerCrashedError for error in failed)
    assert len({error.pid for error in failed}) == len(failed), "one death cost two attempts"
    assert {error.pid for error in failed} <= set(killed)
    assert {error.exitcode for error in failed} <= {-signal.SIGKILL}
    assert len(killed) >= 3
    lines = log.lines()
    assert set(map(int, lines)) == set(range(count))
    assert len(lines) - count <= len(failed), "a task ran again that was not charged"
    futures = [executor.submit(time.sleep, 0.05) for _ in range(64)]
    wait(futures, timeout=work.SOON)
    assert len(processes.handles(executor)) == 8


def _call(function: Any, *args: Any) -> Callable[[], Any]:
    from functools import partial

    return partial(function, *args)


# ── kill in the pipe ────────────────────────────────────────────────────────────────────────────────────────────────


class Killer:
    """Kills workers, so many in all or for so many seconds, and sees that what was submitted ends soon after."""

    def __init__(self, kills: int, seconds: float, seed: int) -> None:
        self.dice = random.Random(seed)
        self.kills = 0
        self.until = time.monotonic() + seconds * TIMES
        self._most = kills * TIMES
        self._patience = SETTLED_WITHIN + STALL

    def goes_on(self) -> bool:
        """Return whether there is more to kill."""
        return self.kills < self._most and time.monotonic() < self.until

    def measure(self, executor: Any) -> None:
        """See how slow this machine is at the moment: on one on which a first task takes long, all takes longer."""
        start = time.monotonic()
        executor.submit(work.pid).result()
        self._patience = max(self._patience, 10 * (time.monotonic() - start))

    def kill_all(self, executor: Any, ready: bool = True) -> int:
        """Kill every worker there is."""
        killed = sum(processes.kill(pid) for pid in processes.workers(executor, ready))
        self.kills += killed
        return killed

    def settle(self, futures: list[Any]) -> None:
        """See that all of them end soon."""
        left = wait(futures, timeout=self._patience).not_done
        assert not left, f"{len(left)} of {len(futures)} futures not settled {self._patience} s after the kill"

    def check(self, futures: list[Any], expected: Any) -> None:
        """See that each has either crashed or the right result."""
        self.settle(futures)
        for future in futures:
            error = future.exception(0)
            assert error is None or type(error) is WorkerCrashedError
            assert error is not None or future.result(0) == expected


def test_kill_while_arguments_are_sent(pool: Any, no_memory: None) -> None:
    """A worker is killed while a large argument is on its way through the pipe: its task is run, or fails as crashed."""
    executor = pool(2)
    argument = os.urandom(8 << 20)
    killer = Killer(20, 6, seed=2)
    killer.measure(executor)
    while killer.goes_on():
        futures = [executor.submit(len, argument) for _ in range(3)]
        time.sleep(killer.dice.random() * 0.03)
        killer.kill_all(executor)
        killer.check(futures, len(argument))
    assert killer.kills >= 2


def test_kill_while_arguments_are_sent_out_of_band(pool: Any) -> None:
    """A worker is killed while shared memory is handed to it: its task is run, or fails as crashed."""
    numpy = pytest.importorskip("numpy")
    executor = pool(2)
    argument = numpy.ones(1 << 20)
    killer = Killer(20, 6, seed=2)
    killer.measure(executor)
    while killer.goes_on():
        futures = [executor.submit(len, argument) for _ in range(6)]
        time.sleep(killer.dice.choice([0, 0, 0.005, 0.02]))
        killer.kill_all(executor)
        futures += [executor.submit(len, argument) for _ in range(3)]
        killer.check(futures, len(argument))
    assert killer.kills >= 2


def test_kill_while_idle(pool: Any) -> None:
    """A worker is killed while it waits; the task that is submitted at that moment runs or is charged, but ends."""
    executor = pool(2)
    killer = Killer(40, 6, seed=3)
    killer.measure(executor)
    while killer.goes_on():
        wait([executor.submit(work.same, 1) for _ in range(2)])
        killer.kill_all(executor)
        time.sleep(killer.dice.choice([0, 0, 0.001, 0.02]))
        killer.check([executor.submit(work.same, 1) for _ in range(5)], 1)
    assert killer.kills >= 5


def test_kill_while_running(pool: Any) -> None:
    """A worker is killed in the middle of tasks of about a millisecond, several of them in each batch."""
    executor = pool(2)
    killer = Killer(40, 6, seed=4)
    killer.measure(executor)
    while killer.goes_on():
        futures = [executor.submit(time.sleep, 0.0005) for _ in range(40)]
        time.sleep(killer.dice.random() * 0.02)
        killed = killer.kill_all(executor)
        killer.check(futures, None)
        assert sum(future.exception(0) is not None for future in futures) <= killed
    assert killer.kills >= 5


@pytest.mark.parametrize("way", ["through the pipe", "out of band"])
def test_kill_while_a_large_result_is_sent(pool: Any, way: str) -> None:
    """A worker is killed while it hands in 10 MB: the result is whole, or its task fails as crashed."""
    executor = pool(2, backend={"initializer": work.refuse_memory} if way == "through the pipe" else {})
    killer = Killer(20, 4, seed=5)
    killer.measure(executor)
    expected = bytearray(10 << 20)
    while killer.goes_on():
        futures = [executor.submit(bytearray, 10 << 20) for _ in range(3)]
        wait(futures, return_when=FIRST_COMPLETED, timeout=killer.dice.random() * 0.03)
        killer.kill_all(executor)
        killer.check(futures, expected)
    assert killer.kills >= 2


def test_kill_in_the_initializer(pool: Any) -> None:
    """Workers are killed before they are ready: tasks run once one gets through, or there is one clear error."""
    killer = Killer(20, 6, seed=6)
    while killer.goes_on():
        executor = pool(2, backend={"initializer": time.sleep, "initargs": (0.05,)})
        futures = [executor.submit(work.same, 1) for _ in range(3)]
        for _ in range(killer.dice.randrange(1, 5)):
            limit = time.monotonic() + 1
            while not killer.kill_all(executor, ready=False) and time.monotonic() < limit:
                time.sleep(0.002)
        killer.settle(futures)
        for future in futures:
            assert isinstance(future.exception(0), (type(None), WorkerStartError, WorkerCrashedError))
        executor.shutdown()
    assert killer.kills >= 3


# ── nothing leaks ───────────────────────────────────────────────────────────────────────────────────────────────────


def _belongings() -> dict[str, int]:
    """Count what this process has: descriptors, threads, children, and pieces of shared memory with and without a name."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(processes.descendants(os.getpid())),
        "semaphores": sum("/sem." in line for line in maps),
        "segments": sum("memfd:parallel_exec" in line for line in maps),
    }


@pytest.mark.timeout(60 * max(1.0, TIMES))
@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_nothing_leaks_over_many_kills(pool: Any, timeout: float | None) -> None:
    """Descriptors, processes, threads, semaphores and segments are as many after the kills as before."""
    executor = pool(2, timeout=timeout)
    killer = Killer(60, 7, seed=7)
    killer.measure(executor)

    def settle() -> None:
        futures = [executor.submit(time.sleep, 0.02) for _ in range(20)]
        wait(futures, timeout=work.SOON)
        work.until(lambda: len(processes.workers(executor)) == 2, work.SOON)

    settle()
    before = _belongings()
    while killer.goes_on():
        futures = [executor.submit(bytearray, 3 << 20), executor.submit(time.sleep, 0.0005)] * 4
        wait(futures, timeout=killer.dice.random() * 0.02)
        killer.kill_all(executor)
        killer.settle(futures)
    del futures
    settle()
    assert killer.kills >= 10
    work.until(lambda: not _more(_belongings(), before), work.SOON)


def _more(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: now[name] - before[name] for name in before if now[name] > before[name]}


# ── a hung call in the middle of a batch ────────────────────────────────────────────────────────────────────────────


def _submit_each(executor: Any, log: Any) -> list[Any]:
    views = [executor.options(timeout=0.7 if number == 100 else 30) for number in range(200)]
    futures = [view.submit(work.note_then_hang_if, log, number, 100) for number, view in enumerate(views)]
    return [future.exception(work.SOON) or future.result() for future in futures]


def _map_all(executor: Any, log: Any) -> list[Any]:
    outcomes: list[Any] = []
    for low, high in ((0, 100), (101, 200), (100, 101)):
        results = executor.map(work.note_then_hang_if, [log] * (high - low), range(low, high), [100] * (high - low))
        try:
            outcomes += list(results)
        except TaskTimeoutError as error:
            outcomes.insert(100, error)
    return outcomes


@pytest.mark.parametrize("workers", [1, 3])
def test_a_hung_call_amid_submitted_tasks(pool: Any, log: Any, workers: int) -> None:
    """One of 200 tiny tasks hangs in C, deaf to signals: 199 results, one timeout, and none was executed twice."""
    executor = pool(workers)
    wait([executor.submit(work.same, number) for number in range(300)])
    outcomes = _submit_each(executor, log)
    assert type(outcomes[100]) is TaskTimeoutError
    assert outcomes[:100] + outcomes[101:] == [*range(100), *range(101, 200)]
    assert sorted(map(int, log.lines())) == list(range(200))


@pytest.mark.parametrize("chunksize", [1, 50])
def test_a_hung_call_amid_mapped_items(pool: Any, log: Any, chunksize: int) -> None:
    """One item of a `map` hangs in C: its neighbours' results come, its own is a timeout, none was executed twice."""
    executor = pool(1, timeout=2)
    wait([executor.submit(work.same, number) for number in range(300)])
    results = executor.map(work.note_then_hang_if, [log] * 200, range(200), [100] * 200, chunksize=chunksize)
    assert [next(results) for _ in range(100)] == list(range(100))
    work.until(lambda: len(log.lines()) == 200, work.SOON)  # those behind it did not wait for the iterator
    with pytest.raises(TaskTimeoutError):
        next(results)
    assert sorted(map(int, log.lines())) == list(range(200))


def test_a_timeout_takes_the_subprocesses_along(pool: Any, bench: Any) -> None:
    """What a task has started is gone when its worker was killed for its timeout."""
    executor = pool(timeout=0.5)
    pids, started = bench.log(), bench.latch()
    error = executor.submit(work.start_child, pids, started, True).exception(work.SOON)
    assert type(error) is TaskTimeoutError
    work.until(lambda: not any(map(processes.is_alive, map(int, pids.lines()))), STALL)


def test_a_kill_that_is_wanted_while_the_journal_is_looked_into(
    pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of the look does not undo that it is to be looked into again."""
    executor = pool()
    started, gate = bench.latch(), bench.latch()
    wanting: list[threading.Thread] = []
    poll_next = WorkerHandle.poll_next

    def want(handle: WorkerHandle) -> None:
        with inside.scheduler(executor).lock:
            handle.kill_when_running(1 << 30, TimeoutError())  # what is about to begin

    def be_slow(handle: WorkerHandle, at: float | None) -> None:
        if at is None and not wanting:
            thread = threading.Thread(target=want, args=(handle,))
            thread.start()
            wanting.append(thread)
            thread.join(0.2)
        poll_next(handle, at)

    monkeypatch.setattr(WorkerHandle, "poll_next", be_slow)
    future = executor.submit(work.hold, started, gate)
    started.wait()
    work.until(lambda: wanting)
    wanting[0].join()
    (handle,) = processes.handles(executor)
    assert handle.poll_at is not None
    handle.ended(1 << 30)
    gate.set()
    assert future.result(work.SOON) == "held"


def test_a_kill_comes_a_moment_late(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody wants ends just then, and what waits behind it is not killed in its place: it begins in another worker."""
    monkeypatch.setattr(prefetch, "STUCK", 60.0)
    executor = pool(1)
    wait([executor.submit(work.same, number) for number in range(300)])  # tiny ones, so that calls are sent ahead
    first, second, gate, end = (bench.latch() for _ in range(4))
    receiver, kill = inside.runner(executor)._receiver, WorkerProcess.kill
    begin = receiver._begin
    unwanted: list[Any] = []
    late: list[Any] = []
    killed: list[Any] = []

    def be_unwanted(handle: WorkerHandle, job: Any, *args: Any, **more: Any) -> int:
        if not late and job in unwanted and handle.assigned.second() is not None:
            return 0
        return int(begin(handle, job, *args, **more))

    def kill_late(process: WorkerProcess) -> None:
        late.append(process)
        gate.set()
        with contextlib.suppress(AssertionError):
            second.wait(0.5)
        kill(process)
        killed.append(process)

    monkeypatch.setattr(receiver, "_begin", be_unwanted)
    monkeypatch.setattr(WorkerProcess, "kill", kill_late)
    with inside.scheduler(executor).lock:
        unwanted.append(executor.submit(work.hold, first, gate))
        future = executor.submit(work.hold, second, end)
    work.until(lambda: killed)
    end.set()
    assert future.result(work.SOON) == "held"
    assert len(future.task_result().attempts) == 1


def test_a_batch_that_cannot_be_sent(pool: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is used no more, but what that was sent before comes to its end."""
    monkeypatch.setattr(prefetch, "STUCK", 60.0)
    executor = pool(1)
    wait([executor.submit(work.same, number) for number in range(300)])  # tiny ones, so that calls are sent ahead
    first, gate, refused, send = bench.latch(), bench.latch(), [], segments.send

    def refuse(*args: Any) -> None:
        if not refused:
            refused.append(args)
            raise OSError(errno.ETOOMANYREFS, "too many references")
        send(*args)

    monkeypatch.setattr(segments, "send", refuse)
    with inside.scheduler(executor).lock:
        running = executor.submit(work.hold, first, gate)
        large = executor.submit(len, bytes(1 << 20))
    first.wait()
    work.until(lambda: refused)
    gate.set()
    assert running.result(work.SOON) == "held"
    assert large.result(work.SOON) == 1 << 20


def test_a_call_that_is_aborted_before_anybody_has_heard_that_it_runs(pool: Any, lab: Any) -> None:
    """It has begun, so it counts as an attempt, as one does that is aborted later."""
    executor = pool(1)
    executor.submit(int).result()
    for _ in range(8):
        begun = lab.latch()
        future = executor.submit(work.begin, begun)
        begun.wait()
        assert future.abort()
        work.until(future.done)
        (attempt,) = future.task_result().attempts
        assert type(attempt.error) is CancelledError
