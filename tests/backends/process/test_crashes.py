"""A worker that dies costs the task it was running one attempt, and nobody else anything."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import BrokenExecutor, wait
from typing import Any

import processes
import pytest
import work

from parallel_exec import Task, WorkerCrashedError
from parallel_exec.backends.process import fork_server

KINDS = {
    "segfault": (work.segfault, (), -signal.SIGSEGV),
    "os._exit": (work.die, (7,), 7),
    "os._exit(0)": (work.die, (0,), 0),
    "os.abort": (os.abort, (), -signal.SIGABRT),
    "SIGTERM": (work.kill_self, (signal.SIGTERM,), -signal.SIGTERM),
    "SIGKILL": (work.kill_self, (signal.SIGKILL,), -signal.SIGKILL),
}


@pytest.mark.parametrize("way", KINDS)
def test_a_crash_fails_the_task_with_how_its_worker_died(pool: Any, way: str) -> None:
    """The error is a WorkerCrashedError that tells the exit code or signal of the worker, and the task."""
    function, args, exitcode = KINDS[way]
    executor = pool()
    worker = executor.submit(work.pid).result()
    future = executor.options(id="bad").submit(function, *args)
    error = future.exception(work.SOON)
    assert type(error) is WorkerCrashedError
    assert (error.pid, error.exitcode, error.task_id) == (worker, exitcode, "bad")


def test_a_crash_is_a_broken_executor_and_pickles(pool: Any) -> None:
    """Code that expects the stdlib's error catches ours; it survives a pickle with its facts."""
    error = pool().submit(work.die, 3).exception(work.SOON)
    assert isinstance(error, BrokenExecutor)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_pool_works_on_after_a_crash(pool: Any) -> None:
    """The dead worker is replaced by another process."""
    executor = pool()
    before = executor.submit(work.pid).result()
    assert executor.submit(work.segfault).exception(work.SOON) is not None
    assert executor.submit(work.pid).result(work.SOON) != before


def test_a_crash_is_retried_by_policy(pool: Any, log: Any) -> None:
    """A crashed attempt is followed by another one, and the first is on record."""
    executor = pool(retry_count=1)
    executor.add_task(lambda_free(work.die_once, log))
    (result,) = executor.execute_all()
    assert result.unwrap() == 2
    assert [type(attempt.error) for attempt in result.attempts] == [WorkerCrashedError, type(None)]


def lambda_free(function: Any, *args: Any) -> Task[Any]:
    """Return a task for a call."""
    from functools import partial

    return Task(partial(function, *args))


def test_a_crash_that_repeats_uses_up_the_retries(pool: Any) -> None:
    """After the last attempt the crash is the task's error."""
    executor = pool(retry_count=2)
    executor.add_task(lambda_free(work.die, 9))
    (result,) = executor.execute_all()
    assert isinstance(result.error, WorkerCrashedError)
    assert [attempt.error.exitcode for attempt in result.attempts] == [9, 9, 9]
    assert len({attempt.error.pid for attempt in result.attempts}) == 3


def test_a_kill_from_outside_hits_the_running_task(pool: Any, latch: Any) -> None:
    """SIGKILL by somebody else is a crash as well."""
    executor = pool()
    future = executor.submit(work.begin, latch)
    latch.wait()
    (worker,) = processes.workers(executor)
    processes.kill(worker)
    error = future.exception(work.SOON)
    assert isinstance(error, WorkerCrashedError)
    assert (error.pid, error.exitcode) == (worker, -signal.SIGKILL)


def test_a_stopped_worker_that_is_killed_counts_as_crashed(pool: Any, latch: Any) -> None:
    """A worker may be stopped (SIGSTOP) when it is killed."""
    executor = pool()
    future = executor.submit(work.begin, latch)
    latch.wait()
    (worker,) = processes.workers(executor)
    processes.kill(worker, signal.SIGSTOP)
    processes.kill(worker)
    assert isinstance(future.exception(work.SOON), WorkerCrashedError)


def test_neighbours_do_not_notice(pool: Any, bench: Any) -> None:
    """A task that runs in another worker meanwhile goes on in the same process."""
    executor = pool(2)
    started, gate = bench.latch(), bench.latch()
    neighbour = executor.submit(work.hold, started, gate, "fine")
    started.wait()
    for _ in range(3):
        assert isinstance(executor.submit(work.segfault).exception(work.SOON), WorkerCrashedError)
    gate.set()
    assert neighbour.result(work.SOON) == "fine"


def test_what_was_sent_ahead_is_not_charged(pool: Any, bench: Any) -> None:
    """Tasks behind the one that crashed, in the same batch, run elsewhere, at their first attempt."""
    executor = pool()
    wait([executor.submit(work.same, number) for number in range(200)])  # tasks are known to be tiny now
    log = bench.log()
    executor.pause()
    futures = [executor.submit(work.note, log, number) for number in range(50)]
    futures[25:25] = [executor.options(priority=-1).submit(work.die, 4)]
    futures += [executor.options(priority=-2).submit(work.note, log, number) for number in range(50, 100)]
    executor.resume()
    wait(futures, timeout=work.SOON)
    bad = futures.pop(25)
    assert isinstance(bad.exception(0), WorkerCrashedError)
    assert [future.result(0) for future in futures] == list(range(100))
    assert all(len(future.task_result().attempts) == 1 for future in futures)
    assert sorted(map(int, log.lines())) == list(range(100))


def test_what_was_finished_before_a_crash_stays_finished(pool: Any, log: Any) -> None:
    """Results that were not in the pipe yet when the worker died are read from its journal."""
    executor = pool()
    wait([executor.submit(work.same, number) for number in range(200)])
    for round in range(20):
        executor.pause()
        futures = [executor.submit(work.note, log, f"{round}-{number}") for number in range(40)]
        last = executor.submit(work.die, 1)
        executor.resume()
        assert isinstance(last.exception(work.SOON), WorkerCrashedError)
        assert [future.result(work.SOON) for future in futures] == [f"{round}-{number}" for number in range(40)]
    assert len(log.lines()) == len(set(log.lines())) == 20 * 40


def test_the_subprocesses_of_a_task_die_with_its_worker(pool: Any, bench: Any) -> None:
    """What a task has started is gone when its worker was killed from outside."""
    executor = pool()
    pids, started = bench.log(), bench.latch()
    future = executor.submit(work.start_child, pids, started, False)
    started.wait()
    child, worker = map(int, pids.lines())
    processes.kill(worker)
    assert isinstance(future.exception(work.SOON), WorkerCrashedError)
    work.until(lambda: not processes.is_alive(child), work.SOON)


def test_an_idle_worker_that_dies_costs_nothing(pool: Any) -> None:
    """Nobody is charged for a worker that died without a task; the next task finds another."""
    executor = pool()
    for _ in range(5):
        worker = executor.submit(work.pid).result(work.SOON)
        processes.kill(worker)
        result = executor.submit(work.pid)
        assert result.result(work.SOON) != worker
        assert len(result.task_result().attempts) == 1


def test_the_end_of_the_fork_server_is_survived(pool: Any) -> None:
    """It may be killed: the workers that are there serve on, and new ones come."""
    executor = pool(2)
    first = executor.submit(work.pid).result()
    server = fork_server.servers.current
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    assert executor.submit(work.pid).result(work.SOON) == first
    processes.kill(first)
    work.until(lambda: not processes.is_alive(first))
    assert executor.submit(work.pid).result(work.SOON) != first


def test_a_crash_is_still_a_crash(pool: Any) -> None:
    """An item that ends its worker is charged with that."""
    results = pool(1).map(work.die, [3])
    with pytest.raises(WorkerCrashedError):
        next(results)
