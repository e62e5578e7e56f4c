"""A dask cluster: attempts in processes of its workers, killed, lost and found again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import forking_tasks
import inside
import psutil
import pytest
import shared_tasks
import tracked
import work

from parallel_exec import (
    DaskBackend,
    DeadlineExceededError,
    RemoteTaskError,
    TaskSerializationError,
    TaskTimeoutError,
    WorkerCrashedError,
)
from parallel_exec.backends.engine import dask_worker
from parallel_exec.backends.engine.dask_worker import RemoteJob, dismiss, run_on_worker
from parallel_exec.backends.engine.remote_call import AttemptInfo

from .dask_tasks import (
    die_at_first,
    hold_with_pids,
    log_and_die_at_first,
    log_and_hold,
    log_and_hold_with_parent,
    raise_unreadable,
)

distributed = pytest.importorskip("distributed")

LONG = 600.0


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of a cluster of two processes, with a thread for tasks in each."""
    with (
        mock.patch.dict(os.environ),  # in which its nannies set things for good
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.gather(client.map(work.double, range(10)))
        yield client


@pytest.fixture(autouse=True)
def no_leaks(client: Any) -> Iterator[None]:
    """Fail a test that leaves a thread or a process of ours; the rest comes and goes as dask pleases."""
    yield

    def left() -> list[str]:
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("parallel_exec")]
        return threads + [str(pid) for pid in map(attrgetter("pid"), psutil.Process().children(True)) if is_ours(pid)]

    work.until(lambda: not left())


def is_alive(pid: int) -> bool:
    """Return whether a process exists, and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_ours(pid: int) -> bool:
    """Return whether it is a process that dask's workers keep for us."""
    try:
        return "backends.engine.dask_worker" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:  # it has ended
        return False


def pids_of(log: work.Log) -> tuple[int, int]:
    """Return the last attempt's process and its worker's, as soon as there is one."""
    work.until(log.lines)
    pid, parent = map(int, log.lines()[-1].split())
    return pid, parent


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_is_a_backend_and_stays_open(client: Any, lab: Any) -> None:
    """`backend=client` uses the client, and leaves it open."""
    executor = lab.executor(backend=client)
    assert executor.submit(work.double, 2).result() == 4
    executor.shutdown()
    assert client.submit(work.double, 3).result() == 6


def test_an_address_is_connected_to_and_let_go(client: Any, lab: Any) -> None:
    """Given the scheduler's address, a client is made, and closed at the end."""
    executor = lab.executor(backend=DaskBackend(client.scheduler.address))
    own = inside.runner(executor)._engine._client
    assert executor.submit(work.double, 2).result() == 4
    executor.shutdown()
    assert own.status == "closed"
    assert client.status == "running"


def test_a_client_that_was_made_for_nothing_is_closed(client: Any, lab: Any) -> None:
    """A client of our own is closed, though nothing was ever run."""
    executor = lab.executor(backend=DaskBackend(client.scheduler.address))
    executor.shutdown()
    work.until(lambda: inside.runner(executor)._engine._client.status == "closed")


def test_what_it_takes() -> None:
    """Anything but a client or an address is refused."""
    with pytest.raises(TypeError, match=r"takes a distributed\.Client"):
        DaskBackend(5)


def test_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says how to get it."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "parallel_exec\[dask\]"'):
        DaskBackend("tcp://127.0.0.1:8786")


def test_what_dask_is_told(client: Any, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's priority is dask's, and no call is taken for one that was made before."""
    told: list[dict[str, Any]] = []
    submit = client.submit

    def spy(function: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(kwargs)
        return submit(function, *args, **kwargs)

    monkeypatch.setattr(client, "submit", spy)
    executor = lab.executor(backend=client)
    executor.options(priority=7).submit(work.double, 1).result()
    assert (told[0]["priority"], told[0]["pure"]) == (7, False)


def test_nothing_overtakes_what_waits_in_a_group(client: Any, lab: Any) -> None:
    """While one of higher priority waits behind another that runs long, one of lower does not begin on another worker."""
    executor = lab.executor(backend=client, max_concurrency=2)
    started, gate, log = [lab.latch(), lab.latch()], lab.latch(), lab.log()
    assert list(executor.map(work.double, range(100))) == list(range(0, 200, 2))  # tiny calls: from now on in groups
    executor.pause()
    high = [executor.options(priority=1).submit(work.hold, latch, gate) for latch in started]
    low = [executor.submit(work.note, log, "low") for _ in range(5)]
    executor.resume()
    for latch in started:
        latch.wait()
    assert log.lines() == []
    gate.set()
    assert [future.result() for future in high + low] == ["held"] * 2 + ["low"] * 5


def test_no_keyword_of_the_users_is_dasks(client: Any, lab: Any) -> None:
    """Keywords that dask's own `submit` has go to the user's function."""
    names = {"key": 1, "workers": 2, "pure": 3, "priority": 4, "retries": 5, "resources": 6, "fifo_timeout": 7}
    assert lab.executor(backend=client).submit(work.capture, **names).result() == ((), names)


# ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_attempt_knows_and_returns(client: Any, lab: Any) -> None:
    """A task knows itself, in a process that is not dask's; its error is its own, with the traceback."""
    executor = lab.executor(backend=client, retry_count=0)
    seen = executor.options(id="me").submit(work.describe_current).result()
    assert (seen["id"], seen["attempt"], seen["cancelled"]) == ("me", 1, False)
    assert 0 < seen["remaining"] <= 30
    assert executor.submit(os.getpid).result() not in client.run(os.getpid).values()
    error = executor.submit(work.fail_deeply, 42).exception()
    assert isinstance(error, work.CodedError)
    assert error.code == 42
    assert "fail_deeply" in str(error.__cause__)
    assert executor.submit(lambda: "by value").result() == "by value"


def test_times_are_the_workers(client: Any, lab: Any) -> None:
    """An attempt's duration is that of the call, and it says where it ran."""
    executor, log = lab.executor(backend=client), lab.log()
    start = time.monotonic()
    future = executor.submit(work.span, log, 0.2)
    future.result()
    (attempt,) = future.task_result().attempts
    began, ended = map(float, log.lines()[0].split())
    assert ended - began <= attempt.duration < time.monotonic() - start
    assert attempt.worker.startswith("process ")


def test_what_cannot_travel(client: Any, lab: Any) -> None:
    """What cannot be pickled is named, on the way there and on the way back; what cannot be rebuilt is described."""
    executor = lab.executor(backend=client)
    error = executor.submit(work.capture, threading.Lock()).exception()
    assert isinstance(error, TaskSerializationError)
    assert "argument 0" in error.what
    assert error.direction == "to the worker"
    reading, writing = multiprocessing.Pipe(False)
    with reading, writing:
        error = executor.submit(work.capture, writing).exception()
    assert isinstance(error, TaskSerializationError)
    assert "means something in this process only" in str(error)
    error = executor.submit(threading.Lock).exception()
    assert isinstance(error, TaskSerializationError)
    assert error.direction == "from the worker"
    assert isinstance(executor.options(retry_count=0).submit(raise_unreadable).exception(), RemoteTaskError)


def test_a_task_that_forks(client: Any, lab: Any, tmp_path: Path) -> None:
    """The child that comes back from the call ends as a process does."""
    executor = lab.executor(backend=client, retry_count=0)
    for how, status in ((int, 0), (forking_tasks.fail, 1)):
        assert executor.submit(forking_tasks.come_back, str(tmp_path / "children"), how).result() == status
    assert len((tmp_path / "children").read_text().split()) == 2


def test_processes_are_used_again_and_dismissed(client: Any, lab: Any) -> None:
    """An attempt finds a process that an earlier one has left, and after the shutdown there is none."""
    executor = lab.executor(backend=client, max_concurrency=1)
    pids = {executor.submit(os.getpid).result() for _ in range(6)}
    assert len(pids) <= 2  # one for each worker
    executor.shutdown()
    work.until(lambda: not any(map(is_alive, pids)))


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_kills_the_process(client: Any, lab: Any) -> None:
    """At its timeout the attempt's process is killed on its worker, and what runs beside it goes on."""
    executor = lab.executor(backend=client, max_concurrency=2, retry_count=0)
    gate, log = lab.latch(), lab.log()
    neighbour = executor.submit(work.hold, lab.latch(), gate, "unharmed")
    stuck = executor.options(timeout=2, id="stuck").submit(hold_with_pids, log, lab.latch())
    error = stuck.exception(LONG)
    assert isinstance(error, TaskTimeoutError)
    assert (error.task_id, error.timeout, error.attempt) == ("stuck", 2, 1)
    work.until(lambda: not is_alive(pids_of(log)[0]))
    gate.set()
    assert neighbour.result() == "unharmed"
    assert executor.stats().timed_out == 1
    assert executor.submit(work.double, 1).result() == 2


def test_a_timeout_kills_though_the_client_sleeps(client: Any, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker keeps the time by itself: with the client's timer unarmed the attempt times out all the same."""
    executor = lab.executor(backend=client, timeout=2, retry_count=0)
    monkeypatch.setattr(inside.scheduler(executor), "expire", lambda *_: None)
    log = lab.log()
    assert isinstance(executor.submit(hold_with_pids, log, lab.latch()).exception(LONG), TaskTimeoutError)
    work.until(lambda: not is_alive(pids_of(log)[0]))


def test_abort_kills_the_process(client: Any, lab: Any) -> None:
    """`abort()` of a running attempt kills its process."""
    executor = lab.executor(backend=client)
    log = lab.log()
    future = executor.submit(hold_with_pids, log, lab.latch())
    pid, _ = pids_of(log)
    work.until(future.running)
    assert future.abort()
    with pytest.raises(CancelledError):
        future.result(LONG)
    work.until(lambda: not is_alive(pid))


def test_the_deadline_kills(client: Any, lab: Any) -> None:
    """At the run's deadline what runs is killed, and what waits in the cluster ends as well."""
    executor = lab.executor(backend=client, max_concurrency=4)
    gate, logs = lab.latch(), [lab.latch() for _ in range(4)]
    for latch in logs:
        executor.add_task(partial(work.hold, latch, gate))
    results = executor.execute_all(deadline=2.0)
    assert [type(result.error) for result in results] == [DeadlineExceededError] * 4
    assert executor.stats().running == 0


def _tasks_of_scheduler(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _tasks_of_worker(dask_worker: Any) -> int:
    return len(dask_worker.state.tasks)


def test_aborting_what_waits_in_the_cluster(client: Any, lab: Any) -> None:
    """What dask has and has not begun can be aborted: it is not charged, and does not run."""
    executor = lab.executor(backend=client, max_concurrency=3)
    gate = lab.latch()
    running = [executor.submit(work.hold, lab.latch(), gate) for _ in range(2)]
    work.until(lambda: executor.stats().running == 2)
    never = lab.latch()
    waiting = executor.submit(work.hold, never, gate)
    work.until(lambda: client.run_on_scheduler(_tasks_of_scheduler) == 3)
    assert waiting.abort()
    with pytest.raises(CancelledError):
        waiting.result(LONG)
    assert waiting.task_result().attempts == ()
    # A slot that becomes free before dask has heard of it would begin it, and then it would be killed.
    work.until(lambda: client.run_on_scheduler(_tasks_of_scheduler) == 2)
    work.until(lambda: sum(client.run(_tasks_of_worker).values()) == 2)
    gate.set()
    assert [future.result() for future in running] == ["held", "held"]
    executor.shutdown()
    assert not never.is_set()


def test_waiting_in_the_cluster_is_not_counted(client: Any, lab: Any) -> None:
    """The time that a call waits for a worker of dask's does not count towards its timeout."""
    executor = lab.executor(backend=client, max_concurrency=3, retry_count=0)
    gate = lab.latch()
    running = [executor.submit(work.hold, lab.latch(), gate) for _ in range(2)]
    work.until(lambda: executor.stats().running == 2)
    waiting = executor.options(timeout=2).submit(work.double, 1)
    work.until(lambda: executor.stats().workers == 3)
    threading.Event().wait(2.5)  # more than the timeout
    gate.set()
    assert waiting.result() == 2
    assert [future.result() for future in running] == ["held", "held"]


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Return what makes an executor's engine send groups of ten, however long calls take, once workers were greeted."""

    def prepare(executor: Any) -> Any:
        engine = inside.runner(executor)._engine
        assert executor.submit(work.double, 1).result() == 2
        work.until(lambda: engine._workers_take_groups)
        monkeypatch.setattr(engine._pace, "depth", 10)
        monkeypatch.setattr(engine._pace, "observe", lambda durations: None)
        return engine

    return prepare


def numbers(log: work.Log) -> list[int]:
    """Return the first number of each line."""
    return [int(line.split()[0]) for line in log.lines()]


def test_tiny_tasks_travel_together(client: Any, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once calls are known to be tiny, dask has far fewer tasks than there are calls; each keeps its own result."""
    told: list[str] = []
    submit = client.submit
    monkeypatch.setattr(client, "submit", lambda *args, **kwargs: told.append(kwargs["key"]) or submit(*args, **kwargs))
    executor = lab.executor(backend=client, max_concurrency=2, retry_count=1)
    futures = [executor.submit(work.double, number) for number in range(300)]
    failing = executor.submit(work.fail_deeply, 42)
    futures += [executor.submit(work.double, number) for number in range(300, 600)]
    assert [future.result() for future in futures] == [2 * number for number in range(600)]
    assert isinstance(failing.exception(), work.CodedError)
    assert len(failing.task_result().attempts) == 2
    assert len(told) < 300
    assert executor.stats().workers <= 2
    assert all(len(future.task_result().attempts) == 1 for future in futures)


def test_what_waits_behind_a_long_call_goes_elsewhere(client: Any, lab: Any, engine_of: Any) -> None:
    """What is in a group behind a call that runs long is given back, runs once, and is charged once."""
    executor = lab.executor(backend=client, max_concurrency=2)
    engine_of(executor)
    log, gate = lab.log(), lab.latch()
    executor.pause()
    futures = [executor.submit(log_and_hold, log, gate, index, 3) for index in range(10)]
    executor.resume()
    rest = [future for index, future in enumerate(futures) if index != 3]
    assert [future.result(LONG) for future in rest] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    work.until(futures[3].running)
    gate.set()
    assert futures[3].result(LONG) == 3
    assert sorted(numbers(log)) == list(range(10))
    assert all(len(future.task_result().attempts) == 1 for future in futures)


def test_a_timeout_in_a_group(client: Any, lab: Any, engine_of: Any) -> None:
    """The timeout of one in a group touches no other."""
    executor = lab.executor(backend=client, max_concurrency=1, retry_count=0)
    engine_of(executor)
    log = lab.log()
    executor.pause()
    futures = [executor.options(timeout=2).submit(log_and_hold, log, lab.latch(), index, 3) for index in range(10)]
    executor.resume()
    assert isinstance(futures[3].exception(LONG), TaskTimeoutError)
    del futures[3]
    assert [future.result(LONG) for future in futures] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sorted(numbers(log)) == list(range(10))


def test_a_death_in_a_group(client: Any, lab: Any, engine_of: Any) -> None:
    """When a process dies, the attempt that it ran is run again as the same attempt, and no other is."""
    executor = lab.executor(backend=client, max_concurrency=1, retry_count=0)
    engine_of(executor)
    log = lab.log()
    executor.pause()
    futures = [executor.submit(log_and_die_at_first, log, index, 3) for index in range(10)]
    executor.resume()
    assert [future.result(LONG) for future in futures] == list(range(10))
    assert sorted(numbers(log)) == sorted([*range(10), 3])
    assert all(len(future.task_result().attempts) == 1 for future in futures)


def test_aborting_in_a_group(client: Any, lab: Any, engine_of: Any) -> None:
    """What is aborted in a group that waits in the cluster never runs; the others do."""
    executor = lab.executor(backend=client, max_concurrency=3)
    engine = engine_of(executor)
    gate, log = lab.latch(), lab.log()
    engine._pace.depth = 1
    running = [executor.submit(work.hold, lab.latch(), gate) for _ in range(2)]
    work.until(lambda: executor.stats().running == 2)
    engine._pace.depth = 10
    executor.pause()
    futures = [executor.submit(log_and_hold, log, gate, index, -1) for index in range(10)]
    executor.resume()
    work.until(lambda: client.run_on_scheduler(_tasks_of_scheduler) == 3)
    for index in (2, 7):
        assert futures[index].abort()
        with pytest.raises(CancelledError):
            futures[index].result(LONG)
        assert futures[index].task_result().attempts == ()
    client.run(_tasks_of_worker)  # after what the workers were told
    gate.set()
    assert [future.result(LONG) for future in running] == ["held", "held"]
    assert [futures[index].result(LONG) for index in (0, 1, 3, 4, 5, 6, 8, 9)] == [0, 1, 3, 4, 5, 6, 8, 9]
    executor.shutdown()
    assert sorted(numbers(log)) == [0, 1, 3, 4, 5, 6, 8, 9]


def test_a_group_whose_worker_is_lost(client: Any, lab: Any, engine_of: Any) -> None:
    """When a group's worker is lost, what has been given back is not run once more by the one that runs it again."""
    executor = lab.executor(backend=client, max_concurrency=2)
    engine_of(executor)
    log, gate = lab.log(), lab.latch()
    executor.pause()
    futures = [executor.submit(log_and_hold_with_parent, log, gate, index, 3) for index in range(10)]
    executor.resume()
    assert [future.result(LONG) for future in futures[4:]] == [4, 5, 6, 7, 8, 9]
    (worker,) = {int(line.split()[1]) for line in log.lines() if line.startswith("3 ")}
    os.kill(worker, signal.SIGKILL)
    work.until(lambda: numbers(log).count(3) == 2)
    gate.set()
    assert [future.result(LONG) for future in futures] == list(range(10))
    assert sorted(number for number in numbers(log) if number > 3) == [4, 5, 6, 7, 8, 9]
    assert all(len(future.task_result().attempts) == 1 for future in futures)
    client.wait_for_workers(2)


@pytest.mark.parametrize("error", [asyncio.CancelledError, OSError])
def test_a_group_that_dask_fails(
    client: Any, lab: Any, engine_of: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """What dask fails or cancels by itself as a group goes back, and is not charged."""
    executor = lab.executor(backend=client, max_concurrency=2, retry_count=0)
    engine = engine_of(executor)
    run, failed = engine._run, []

    async def fail_once(jobs: list[RemoteJob], key: str, priority: int) -> Any:
        if len(jobs) > 1 and not failed:
            failed.append(len(jobs))
            raise error
        return await run(jobs, key, priority)

    monkeypatch.setattr(engine, "_run", fail_once)
    executor.pause()
    futures = [executor.submit(work.double, number) for number in range(30)]
    executor.resume()
    assert [future.result(LONG) for future in futures] == [2 * number for number in range(30)]
    assert all(len(future.task_result().attempts) == 1 for future in futures)
    assert failed


def test_a_worker_that_was_not_greeted_takes_no_group(client: Any, lab: Any, engine_of: Any) -> None:
    """A worker that has just joined gives a group back, is greeted, and takes the next."""
    executor = lab.executor(backend=client, max_concurrency=2)
    engine = engine_of(executor)
    client.run(_forget_greeting, engine._topic)
    executor.pause()
    futures = [executor.submit(work.double, number) for number in range(100)]
    executor.resume()
    assert [future.result(LONG) for future in futures] == [2 * number for number in range(100)]
    assert engine._workers_take_groups
    assert any(client.run(_was_greeted, engine._topic).values())


def _forget_greeting(topic: str) -> None:
    dask_worker._pools.pop(topic).dismiss()


def _was_greeted(topic: str) -> bool:
    return topic in dask_worker._pools and dask_worker._pools[topic].may_take(10**9)


# ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_dies_is_replaced(client: Any, lab: Any) -> None:
    """An attempt whose process dies is run again, as the same attempt."""
    future = lab.executor(backend=client, retry_count=0).submit(die_at_first, lab.log(), 2)
    assert future.result() == 3
    assert len(future.task_result().attempts) == 1


def test_a_process_that_always_dies(client: Any, lab: Any) -> None:
    """After as many deaths as dask would allow its workers the attempt has failed, and says how the process ended."""
    log = lab.log()
    error = lab.executor(backend=client, retry_count=0).submit(die_at_first, log, 99).exception(LONG)
    assert isinstance(error, WorkerCrashedError)
    assert error.exitcode == 7
    assert len(log.lines()) == 4  # dask's default: three failures are allowed


def test_a_lost_worker(client: Any, lab: Any) -> None:
    """When a worker is killed, its attempt dies with it, and is run again on another, as the same attempt."""
    gate, log = lab.latch(), lab.log()
    future = lab.executor(backend=client, retry_count=0).submit(hold_with_pids, log, gate)
    pid, worker = pids_of(log)
    os.kill(worker, signal.SIGKILL)
    work.until(lambda: len(log.lines()) == 2)
    work.until(lambda: not is_alive(pid))
    gate.set()
    assert future.result(LONG) == 1
    assert len(future.task_result().attempts) == 1
    client.wait_for_workers(2)


def test_a_client_that_is_closed(client: Any, lab: Any) -> None:
    """When somebody closes the client, what was in the cluster fails instead of hanging, and so does what waits."""
    own = distributed.Client(client.scheduler.address, set_as_default=False)
    backend = DaskBackend(own)
    executor = lab.executor(backend=backend, max_concurrency=1, retry_count=0)
    log = lab.log()
    running = executor.submit(hold_with_pids, log, lab.latch())
    waiting = executor.submit(work.double, 1)
    pids_of(log)
    own.close()
    assert running.exception(LONG) is not None
    assert waiting.exception(LONG) is not None
    client.run(dismiss, inside.runner(executor)._engine._topic)  # what else would end by itself after a while


def test_an_attempt_that_comes_after_the_end(client: Any) -> None:
    """What dask begins when its executor has ended runs nothing, and leaves no process."""
    topic, payload = "parallel_exec-test-late", pickle.dumps((work.die, (), {}))
    client.run(dismiss, topic)
    order = RemoteJob(1, AttemptInfo("late", 1, None), payload)
    (reply,) = client.submit(run_on_worker, topic, pickle.dumps([order]), pure=False).result()
    assert type(reply.outcome(order.info).error) is CancelledError


# ── what is shared ──────────────────────────────────────────────────────────────────────────────────────────────────


def _blobs(client: Any) -> list[str]:
    """Return the keys of what is scattered."""
    return [key for key in client.who_has() if str(key).startswith("SharedBlob")]


def test_what_is_shared_is_scattered_once(lab: Any, client: Any) -> None:
    """Each worker has it in memory of its own, which its children map; and lets go of it with the handle."""
    executor = lab.executor(backend=client, max_concurrency=2)
    shared = executor.share([1, 2, 3])
    assert executor.submit(shared_tasks.add, shared, 1).result() == 7
    assert list(executor.map(partial(shared_tasks.add, shared), range(20))) == [6 + n for n in range(20)]
    assert executor.submit(shared_tasks.value_of, [shared]).result() == ("Shared", [1, 2, 3])
    assert len(_blobs(client)) == 1
    address = executor.submit(shared_tasks.address_of, [shared]).result()
    assert int(address.split("/")[2]) in client.run(os.getpid).values()
    del shared
    assert tracked.wait_until(lambda: not _blobs(client))


def test_a_class_of_a_session_is_shared_by_value(lab: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As calls are: the children have no main module."""
    monkeypatch.setattr(shared_tasks.Plain, "__module__", "__main__")
    monkeypatch.setattr("__main__.Plain", shared_tasks.Plain, raising=False)
    executor = lab.executor(backend=client, max_concurrency=1)
    assert executor.submit(getattr, executor.share(shared_tasks.Plain()), "x").result() == 3


def test_what_the_cluster_has_lost_is_scattered_again(lab: Any, client: Any) -> None:
    """The client still has it."""
    executor = lab.executor(backend=client, max_concurrency=1)
    shared = executor.share([1, 2, 3])
    assert executor.submit(shared_tasks.add, shared).result() == 6
    (scattering,) = inside.runner(executor)._engine._scattered._scattering.values()
    client.cancel([scattering.result()], force=True)
    assert tracked.wait_until(lambda: not _blobs(client))
    assert executor.submit(shared_tasks.add, shared, 1).result() == 7
