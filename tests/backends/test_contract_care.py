"""What every back end does alike: seeds that belong to tasks, and workers that say who they are."""

from __future__ import annotations

import os
import random
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import care_tasks
import processes
import pytest
import work
from backend_kinds import ALL, CONCURRENT, IN_THIS_PROCESS, OWN, SPAWN_AND_FORK, over

from parallel_exec import (
    ParallelExecutor,
    ProcessBackend,
    Task,
    TaskTimeoutError,
    ThreadBackend,
    current_worker,
)

EVERY = (*ALL, *SPAWN_AND_FORK)
SEED_OF_A = 1674081855184152700  # of the task "a" with seed=7: what a run has in its log must be the same next year


@over(EVERY)
def test_a_seed_is_made_of_the_executors_and_the_id(lab: Any) -> None:
    """It is the same in every back end, in any order of tasks; others have others."""
    executor = lab.executor(seed=7, max_concurrency=2)
    for name in ("b", "a", "c"):
        executor.add_task(Task(care_tasks.seed, id=name))
    seeds = {result.task.id: result.unwrap() for result in executor.execute_all()}
    assert seeds["a"] == SEED_OF_A
    assert len(set(seeds.values())) == 3
    assert all(0 <= seed < 1 << 64 for seed in seeds.values())


@over(EVERY)
def test_every_attempt_has_the_same_seed(lab: Any) -> None:
    """A retry begins as the attempt before it did."""
    log = lab.log()
    executor = lab.executor(seed=7, retry_count=2, backoff=0)
    executor.add_task(Task(partial(care_tasks.seed_of_a_retry, log, 2), id="a"))
    [result] = executor.execute_all()
    assert [*map(int, log.lines()), result.unwrap()] == [SEED_OF_A] * 4


@over(EVERY)
def test_items_of_a_map_have_seeds(lab: Any) -> None:
    """Each its own, and the same in another run."""
    first = list(lab.executor(seed=7).map(care_tasks.seed, range(5)))
    assert len(set(first)) == 5
    assert list(lab.executor(seed=7).map(care_tasks.seed, range(5))) == first


@over(EVERY)
def test_without_a_seed_each_executor_has_its_own(lab: Any) -> None:
    """What is not fixed differs from run to run."""
    assert lab.executor().submit(care_tasks.seed).result() != lab.executor().submit(care_tasks.seed).result()


# ── who runs a task ─────────────────────────────────────────────────────────────────────────────────────────────────


@over((*CONCURRENT, *SPAWN_AND_FORK))
def test_workers_at_work_have_different_indexes(lab: Any) -> None:
    """From 0 to one less than there may be."""
    executor = lab.executor(max_concurrency=3)
    gate, here = lab.latch(), [lab.latch() for _ in range(3)]
    futures = [executor.submit(care_tasks.who_waits, latch, gate) for latch in here]
    for latch in here:
        latch.wait()
    gate.set()
    assert sorted(future.result()[0] for future in futures) == [0, 1, 2]


@over(EVERY)
def test_a_worker_has_a_state_of_its_own(lab: Any) -> None:
    """One task leaves there what the next finds."""
    executor = lab.executor(max_concurrency=1)
    executor.submit(care_tasks.who).result()
    counts = [executor.submit(care_tasks.count).result() for _ in range(3)]
    assert max(counts) >= 2 or lab.kind.name not in OWN


@over(EVERY)
def test_a_worker_has_the_name_that_attempts_have(lab: Any) -> None:
    """And it knows its process."""
    executor = lab.executor(max_concurrency=1)
    future = executor.submit(care_tasks.who)
    index, name, pid = future.result()
    assert index == 0
    assert future.task_result().attempts[0].worker == name
    here = (*IN_THIS_PROCESS, "inline-skip", "interpreter-pool", "dask-executor")
    assert (pid == os.getpid()) == (lab.kind.name in here)


@over(EVERY)
def test_items_of_a_map_know_their_worker(lab: Any) -> None:
    """Those of chunks and groups, too."""
    executor = lab.executor(max_concurrency=2)
    assert {index for index, _, _ in executor.map(care_tasks.who, range(100))} <= {0, 1}


def test_only_a_worker_is_one() -> None:
    """Elsewhere the question has no answer."""
    with pytest.raises(RuntimeError, match="for code that runs in a worker"):
        current_worker()


# ── what opens and closes what a worker has ─────────────────────────────────────────────────────────────────────────


def _backend(method: str, **settings: Any) -> Any:
    return ThreadBackend(**settings) if method == "thread" else ProcessBackend(mp_context=method, **settings)


@pytest.mark.parametrize("method", ["thread", "forkserver", "spawn", "fork"])
def test_a_finalizer_closes_what_the_initializer_opened(method: str, tmp_path: Path) -> None:
    """Each worker calls it once, when all its tasks have ended, and `shutdown` waits for that."""
    log = work.Log(tmp_path / "log")
    backend = _backend(method, initializer=care_tasks.open_log, initargs=(log,), finalizer=care_tasks.close_log)
    with ParallelExecutor(max_concurrency=2, backend=backend) as executor:
        used = set(executor.map(care_tasks.use_log, range(20)))
    lines = log.lines()
    for index in used:
        mine = [line for line in lines if line in (f"opened {index}", f"closed {index}")]
        assert mine == [f"opened {index}", f"closed {index}"]
    assert sum(line.startswith("used") for line in lines) == 20
    opened, closed = (sum(line.startswith(what) for line in lines) for what in ("opened", "closed"))
    assert opened == closed


@pytest.mark.parametrize("method", ["thread", "forkserver", "spawn", "fork"])
def test_what_a_worker_opens_while_the_pool_ends_is_closed(method: str, tmp_path: Path) -> None:
    """It becomes ready first, and then ends in good order."""
    log, begun, gate = work.Log(tmp_path / "log"), work.Latch(tmp_path / "begun"), work.Latch(tmp_path / "gate")
    initargs = (log, begun, gate, 1)
    backend = _backend(method, initializer=care_tasks.open_late, initargs=initargs, finalizer=care_tasks.close_log)
    executor = ParallelExecutor(max_concurrency=2, backend=backend)
    used = [executor.submit(care_tasks.who_comes_after, begun) for _ in range(2)]
    begun.wait()
    assert [future.result()[0] for future in used] == [0, 0]
    executor.shutdown(wait=False)
    time.sleep(0.1)  # in which what ends by force has ended
    gate.set()
    executor.shutdown()
    assert sorted(log.lines()) == ["closed 0", "closed 1", "opened 0", "opened 1"]


@pytest.mark.parametrize("method", ["thread", "forkserver"])
def test_what_a_finalizer_raises_is_logged(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """It harms nobody."""
    with ParallelExecutor(max_concurrency=1, backend=_backend(method, finalizer=care_tasks.fail_to_close)) as executor:
        name = executor.submit(care_tasks.who).result()[1]
    [record] = [record for record in caplog.records if "finalizer" in record.getMessage()]
    assert record.levelname == "ERROR"
    assert name in record.getMessage()
    assert "cannot be closed" in caplog.text


def test_a_process_whose_finalizer_hangs_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """It has as long as any worker that is told to end, and the log says so."""
    caplog.set_level("INFO", "parallel_exec")
    begun = time.monotonic()
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(finalizer=care_tasks.never_close)) as executor:
        _, name, pid = executor.submit(care_tasks.who).result()
    assert time.monotonic() - begun < work.SOON
    assert not processes.is_alive(pid)
    assert f"worker {name} was told to end, and was killed" in caplog.text


def test_a_thread_whose_finalizer_hangs_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread cannot be killed: the warning says which."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.FINALIZER_LIMIT", 0.1)
    gate = threading.Event()
    with ParallelExecutor(max_concurrency=1, backend=ThreadBackend(finalizer=gate.wait)) as executor:
        executor.submit(care_tasks.who).result()
    assert "has not ended within 0.1 s" in caplog.text
    gate.set()


def test_a_thread_whose_finalizer_hangs_holds_no_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for its slot is run by another; it counts as abandoned until it ends, and is told of once."""
    monkeypatch.setattr("parallel_exec.backends._thread_pool.FINALIZER_LIMIT", 0.1)
    gate = threading.Event()
    backend = ThreadBackend(finalizer=gate.wait, idle_timeout=0.05)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        first = executor.submit(care_tasks.who).result()
        work.until(lambda: executor.stats().abandoned == 1)
        second = executor.submit(care_tasks.who).result(work.SOON)
        assert (second[0], second[1] == first[1]) == (0, False)
        work.until(lambda: executor.stats().abandoned == 2)
        gate.set()
        work.until(lambda: executor.stats().abandoned == 0)
    assert caplog.text.count("has not ended within 0.1 s") == 2


def test_an_abandoned_thread_calls_the_finalizer_once_it_ends(tmp_path: Path) -> None:
    """What it had opened is its own."""
    log, gate = work.Log(tmp_path / "log"), threading.Event()
    backend = ThreadBackend(initializer=care_tasks.open_log, initargs=(log,), finalizer=care_tasks.close_log)
    with ParallelExecutor(max_concurrency=1, backend=backend, retry_count=0) as executor:
        stuck = executor.options(timeout=0.05).submit(gate.wait)
        with pytest.raises(TaskTimeoutError):
            stuck.result()
        assert executor.submit(care_tasks.use_log, "next").result() == 0  # its index is the next one's
        gate.set()
        work.until(lambda: log.lines().count("closed 0") == 1)
    assert log.lines().count("closed 0") == 2


@pytest.mark.parametrize("method", ["thread", "forkserver"])
def test_who_takes_a_place_takes_its_index(method: str, tmp_path: Path) -> None:
    """A worker that outran its timeout is replaced by one of the same index."""
    log, gate = work.Log(tmp_path / "log"), work.Latch(tmp_path / "gate")
    with ParallelExecutor(max_concurrency=1, backend=_backend(method), timeout=0.5, backoff=0) as executor:
        indexes = list(executor.map(partial(care_tasks.hang_as, log, gate), [0] * 10))
        gate.set()
    assert indexes == [0] * 10
    assert log.lines() == ["0"]


def test_a_replacement_after_max_tasks_finalizes(tmp_path: Path) -> None:
    """Each worker that has done its share closes what it has; its successor has its index."""
    log = work.Log(tmp_path / "log")
    backend = ProcessBackend(
        initializer=care_tasks.open_log, initargs=(log,), finalizer=care_tasks.close_log, max_tasks_per_child=2
    )
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        for number in range(6):
            assert executor.submit(care_tasks.use_log, number).result() == 0
    lines = log.lines()
    assert lines[:4] == ["opened 0", "used 0", "used 1", "closed 0"]
    assert lines.count("closed 0") == 3


@pytest.mark.parametrize("backend", [ThreadBackend, ProcessBackend])
def test_what_is_no_finalizer_is_refused(backend: Any) -> None:
    """At once, and by its name."""
    with pytest.raises(TypeError, match="finalizer takes a callable, not 3"):
        backend(finalizer=3)


# ── idle threads ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_idle_threads_leave() -> None:
    """All beyond `min_workers`, and work that comes later is done as before."""
    with ParallelExecutor(max_concurrency=4, backend=ThreadBackend(min_workers=1, idle_timeout=0.05)) as executor:
        barrier = threading.Barrier(4)
        for _ in range(3):
            for future in [executor.submit(barrier.wait) for _ in range(4)]:
                future.result()
            assert executor.stats().workers >= 1
            work.until(lambda: executor.stats().workers == 1)
        assert {executor.submit(care_tasks.who).result()[0] for _ in range(9)} <= set(range(4))


def test_who_comes_while_another_closes_what_it_has() -> None:
    """A thread that is about to leave has its index until its finalizer has returned; what comes meanwhile is run then."""
    closing, gate = threading.Event(), threading.Event()

    def finalize() -> None:
        closing.set()
        gate.wait()

    backend = ThreadBackend(idle_timeout=0.01, finalizer=finalize)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        executor.submit(care_tasks.who).result()
        closing.wait()
        future = executor.submit(care_tasks.who)
        time.sleep(0.05)  # nothing to wait for: what is looked for is that nothing happens
        assert not future.done()
        gate.set()
        assert future.result()[0] == 0


def test_work_that_comes_as_threads_leave_is_done() -> None:
    """Neither a wake-up nor a task is lost."""
    with ParallelExecutor(max_concurrency=2, backend=ThreadBackend(idle_timeout=0.001)) as executor:
        for number in range(300):
            assert executor.submit(work.double, number).result(work.SOON) == 2 * number
            time.sleep(random.uniform(0, 0.002))
