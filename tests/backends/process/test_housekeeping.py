"""What worker processes do beside running calls: their environment, threads of libraries, memory, and leaving when idle."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import care_tasks
import processes
import pytest
import work

from parallel_exec import ParallelExecutor, ProcessBackend, WorkerStartError
from parallel_exec.backends.process.environment import THREADS, thread_variables, threads_of
from parallel_exec.futures import ProcessPoolExecutor

METHODS = ("forkserver", "spawn", "fork")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set some."""
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)


# ── the environment ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_workers_have_variables_of_their_own(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside those that this process has at their start; its own stay as they are."""
    monkeypatch.setenv("CARE_A", "here")
    monkeypatch.setenv("CARE_B", "here")
    backend = ProcessBackend(mp_context=method, env={"CARE_B": "there", "CARE_C": "there"})
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        found = executor.submit(care_tasks.variables, "CARE_A", "CARE_B", "CARE_C").result()
    assert found == ("here", "there", "there")
    assert os.environ["CARE_B"] == "here"
    assert "CARE_C" not in os.environ


def test_workers_of_one_server_have_their_own_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server is shared, and what one executor's workers have is not what another's have."""
    monkeypatch.delenv("CARE_A", raising=False)
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(env={"CARE_A": "1"})) as one:
        assert one.submit(care_tasks.variables, "CARE_A").result() == ("1",)
        with ParallelExecutor(max_concurrency=1, backend="process") as other:
            assert other.submit(care_tasks.variables, "CARE_A").result() == (None,)


@pytest.mark.parametrize("env", [["A=1"], "A=1", {"A": 1}, {1: "A"}])
def test_what_is_no_environment_is_refused(env: Any) -> None:
    """At once, and by its name."""
    with pytest.raises(TypeError, match="env takes"):
        ProcessBackend(env=env)


@pytest.mark.parametrize("env", [{"A=": "1"}, {"": "1"}, {"A": "\0"}])
def test_what_no_process_can_have_is_refused(env: Any) -> None:
    """At once, and not in each worker."""
    with pytest.raises(ValueError, match="env takes variables"):
        ProcessBackend(env=env)


# ── threads of libraries ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"), [("8", 2, 4), ("8", 3, 2), ("2", 5, 1), ("1", 1, 1), ("6", 1, 6)]
)
def test_threads_are_the_cpus_divided_by_the_workers(
    cpus: str, workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at least."""
    monkeypatch.setenv("PYTHON_CPU_COUNT", cpus)
    assert threads_of("auto", workers) == expected


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("set_here", "own", "missing"),
    [
        ({}, {}, set()),
        ({"MKL_NUM_THREADS": "3"}, {}, {"MKL_NUM_THREADS"}),
        ({}, {"BLIS_NUM_THREADS": "3"}, {"BLIS_NUM_THREADS"}),
        ({"OMP_NUM_THREADS": "3"}, {}, set(THREADS) - {"VECLIB_MAXIMUM_THREADS"}),
    ],
)
def test_a_variable_of_the_users_is_left_alone(
    set_here: dict[str, str], own: dict[str, str], missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `OMP_NUM_THREADS`, those of libraries that look there without their own."""
    for name, value in set_here.items():
        monkeypatch.setenv(name, value)
    made = thread_variables(2, own)
    assert set(THREADS) - set(made) == missing
    assert set(made.values()) == {"2"}


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(("wanted", "expected"), [("auto", "3"), (5, "5"), (None, None)])
def test_workers_are_told_how_many_threads(wanted: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all the variables; this process is not."""
    monkeypatch.setenv("PYTHON_CPU_COUNT", "6")
    with ParallelExecutor(max_concurrency=2, backend=ProcessBackend(threads_per_worker=wanted)) as executor:
        assert set(executor.submit(care_tasks.variables, *THREADS).result()) == {expected}
    assert not set(THREADS) & set(os.environ)


@pytest.mark.usefixtures("no_variables")
def test_the_drop_in_leaves_the_environment_alone() -> None:
    """As the standard library's pool does."""
    with ProcessPoolExecutor(1) as executor:
        assert set(executor.submit(care_tasks.variables, *THREADS).result()) == {None}


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_numpy_starts_no_more_threads(method: str) -> None:
    """It reads the variables when it is loaded, which is later."""
    pytest.importorskip("numpy")
    backend = ProcessBackend(mp_context=method, threads_per_worker=1)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        assert executor.submit(care_tasks.threads_of_numpy).result() == 1


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(("set_here", "expected"), [(False, "3"), (True, None)])
def test_what_is_loaded_is_told_by_threadpoolctl(
    set_here: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked worker has NumPy, which reads no variables any more; one that the user has set counts there, too."""
    pytest.importorskip("numpy")
    told = types.ModuleType("threadpoolctl")
    told.threadpool_limits = lambda limits: os.environ.update(TOLD=str(limits))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "threadpoolctl", told)
    monkeypatch.delenv("TOLD", raising=False)
    if set_here:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    backend = ProcessBackend(mp_context="fork", threads_per_worker=3)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        assert executor.submit(care_tasks.variables, "TOLD").result() == (expected,)


@pytest.mark.parametrize("threads", [0, -1, "many", 1.5, True])
def test_what_is_no_number_of_threads_is_refused(threads: Any) -> None:
    """At once, and by its name."""
    with pytest.raises((TypeError, ValueError), match="threads_per_worker"):
        ProcessBackend(threads_per_worker=threads)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_with_too_much_memory_is_replaced() -> None:
    """Between two tasks: each is run once, and no worker goes on beyond its share."""
    size, most = 60 << 20, 200 << 20
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(max_memory_per_child=most)) as executor:
        pids = [future.result() for future in [executor.submit(care_tasks.grow, size) for _ in range(9)]]
    assert len(set(pids)) >= 3
    assert max(map(pids.count, pids)) <= 4
    assert pids == sorted(pids, key=pids.index)


def test_a_worker_with_too_much_memory_finalizes(tmp_path: Path) -> None:
    """It ends as one does that has done its share of tasks; its successor has its index."""
    log = work.Log(tmp_path / "log")
    backend = ProcessBackend(
        initializer=care_tasks.open_log, initargs=(log,), finalizer=care_tasks.close_log, max_memory_per_child=1
    )
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        for number in range(3):  # each takes longer than it takes to be told of the memory
            assert executor.submit(care_tasks.use_log, number).result() == 0
            time.sleep(0.05)
    lines = log.lines()
    assert lines.count("opened 0") == lines.count("closed 0") >= 3
    assert [line for line in lines if line.startswith("used")] == ["used 0", "used 1", "used 2"]


def test_a_map_whose_workers_are_replaced() -> None:
    """Each item has its result, in order."""
    with ParallelExecutor(max_concurrency=2, backend=ProcessBackend(max_memory_per_child=1)) as executor:
        assert list(executor.map(work.double, range(40), chunksize=5)) == [2 * number for number in range(40)]


def test_enough_memory_changes_nothing() -> None:
    """One worker does it all."""
    backend = ProcessBackend(max_memory_per_child=1 << 40)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        assert len({executor.submit(care_tasks.grow, 1).result() for _ in range(5)}) == 1


# ── idle workers ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("least", [0, 1, 2])
def test_idle_workers_leave(least: int) -> None:
    """All beyond `min_workers`; what comes later is run as before, and by workers of the same indexes."""
    backend = ProcessBackend(min_workers=least, idle_timeout=0.1)
    with ParallelExecutor(max_concurrency=3, backend=backend) as executor:
        for _ in range(2):
            futures = [executor.submit(time.sleep, 0.3) for _ in range(3)]
            for future in futures:
                future.result()
            work.until(lambda: executor.stats().workers == least)
        assert executor.submit(care_tasks.who).result()[0] in range(3)


def test_a_worker_that_is_used_now_and_then_stays() -> None:
    """Each call counts, however short."""
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(idle_timeout=2.0)) as executor:
        pids = set()
        for _ in range(6):
            pids.add(executor.submit(care_tasks.who).result()[2])
            time.sleep(0.4)
    assert len(pids) == 1


def test_work_that_comes_as_workers_leave_is_done() -> None:
    """Whichever side comes first, each call is run once."""
    with ParallelExecutor(max_concurrency=2, backend=ProcessBackend(idle_timeout=0.01)) as executor:
        for number in range(30):
            assert executor.submit(work.double, number).result(work.SOON) == 2 * number
            time.sleep(0.001 * (number % 15))


# ── modules that are imported beforehand ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
def test_workers_have_what_is_preloaded(method: str) -> None:
    """Before their first task, and so has who replaces one."""
    backend = ProcessBackend(mp_context=method, preload=["colorsys"])
    with ParallelExecutor(max_concurrency=1, backend=backend, retry_count=0) as executor:
        assert executor.submit(care_tasks.loaded, "colorsys").result()[0]
        executor.submit(os._exit, 1).exception()
        assert executor.submit(care_tasks.loaded, "colorsys").result()[0]


def test_a_server_that_has_preloaded_is_its_pools() -> None:
    """Others have the plain one, and it ends with the pool; the leak fixture would see it."""
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(preload=["colorsys"])) as one:
        has_it, server = one.submit(care_tasks.loaded, "colorsys").result()
        with ParallelExecutor(max_concurrency=1, backend="process") as other:
            has_it_too, plain = other.submit(care_tasks.loaded, "colorsys").result()
        again = one.submit(care_tasks.loaded, "colorsys").result()
    assert (has_it, has_it_too, again) == (True, False, (True, server))
    assert plain != server
    assert not processes.is_alive(server)


def test_a_variable_that_is_read_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python reads it once: so workers with such a variable are forked by a server that was started with it."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    seen = set()
    for _ in range(2):
        with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(env={"PYTHONHASHSEED": "7"})) as executor:
            seen.add(executor.submit(hash, "text").result())
    assert len(seen) == 1


def test_a_module_that_cannot_be_preloaded() -> None:
    """The error says which, with the worker's traceback."""
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(preload=["no_such_module"])) as executor:
        future = executor.submit(care_tasks.who)
        with pytest.raises(WorkerStartError, match="ModuleNotFoundError: No module named 'no_such_module'"):
            future.result()


@pytest.mark.parametrize("method", METHODS)
def test_no_two_workers_have_the_same_random_state(method: str, tmp_path: Path) -> None:
    """Though the server, or this process, had loaded NumPy's generator before it forked them."""
    random = pytest.importorskip("numpy.random")
    random.rand()
    backend = ProcessBackend(mp_context=method, preload=["numpy.random"])
    here, gate = [work.Latch(tmp_path / str(number)) for number in range(2)], work.Latch(tmp_path / "gate")
    with ParallelExecutor(max_concurrency=2, backend=backend) as executor:
        futures = [executor.submit(care_tasks.random_numbers, latch, gate) for latch in here]
        for latch in here:
            latch.wait()
        gate.set()
        numbers = [number for future in futures for number in future.result()]
    assert len(set(numbers)) == 4


@pytest.mark.parametrize("preload", ["numpy", [1], 3])
def test_what_is_no_list_of_modules_is_refused(preload: Any) -> None:
    """At once, and by its name."""
    with pytest.raises(TypeError, match="preload takes"):
        ProcessBackend(preload=preload)
