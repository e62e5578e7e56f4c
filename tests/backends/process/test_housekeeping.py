"""What worker processes do beside running calls: their environment, threads of libraries, memory, and leaving when idle."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any, Callable

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


@pytest.mark.parametrize("method", METHODS)
def test_a_time_zone_of_their_own(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds, though it is read once only, and was read before."""
    monkeypatch.delenv("TZ", raising=False)
    backend = ProcessBackend(mp_context=method, env={"TZ": "XXX-5"})
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor:
        assert executor.submit(care_tasks.hour_of, 0.0).result() == 5


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


@pytest.mark.usefixtures("no_variables")
def test_what_a_server_has_loaded_knows_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started with the variables, so no worker has to load threadpoolctl; unless they are others by now."""
    pytest.importorskip("numpy")
    (tmp_path / "threadpoolctl.py").write_text(
        "import os\ndef threadpool_limits(limits): os.environ['TOLD'] = str(limits)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHON_CPU_COUNT", "6")
    monkeypatch.delenv("TOLD", raising=False)
    backend = ProcessBackend(preload=["numpy"])
    with ParallelExecutor(max_concurrency=1, backend=backend, retry_count=0) as executor:
        assert executor.submit(care_tasks.variables, "TOLD", THREADS[0]).result() == (None, "6")
        executor.resize(2)
        executor.submit(os._exit, 1).exception()
        assert executor.submit(care_tasks.variables, "TOLD", THREADS[0]).result() == ("3", "3")


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


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make a module of the user's; returns its name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    names = (f"care_{tmp_path.name}_{number}" for number in itertools.count())

    def make(code: str) -> str:
        name = next(names)
        (folder / f"{name}.py").write_text(code)
        return name

    return make


@pytest.mark.parametrize("initializer", [None, print])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("code", "why"), [("1 / 0", "ZeroDivisionError: division by zero"), ("import sys; sys.exit(3)", "SystemExit: 3")]
)
def test_a_module_that_raises(
    make_module: Callable[[str], str], method: str, initializer: Any, code: str, why: str
) -> None:
    """Whatever it is, the error names the module, and not the initializer."""
    name = make_module(code)
    backend = ProcessBackend(mp_context=method, preload=[name], initializer=initializer)
    with ParallelExecutor(max_concurrency=1, backend=backend) as executor, pytest.raises(WorkerStartError) as caught:
        executor.submit(care_tasks.who).result()
    assert str(caught.value).startswith(f"worker processes cannot start: cannot preload {name!r}: {why}\n")


def test_a_module_that_ends_the_server(make_module: Callable[[str], str]) -> None:
    """The error says what it was doing."""
    name = make_module("import os; os._exit(3)")
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(preload=[name])) as executor:
        future = executor.submit(care_tasks.who)
        with pytest.raises(WorkerStartError, match=f"the fork server died as it imported .*: {name}"):
            future.result()


HANGS = """
import os, pathlib, time
file = pathlib.Path({!r})
file.with_suffix(".new").write_text(str(os.getpid()))
file.with_suffix(".new").rename(file)  # whoever sees it can read it
time.sleep(1000)
"""


def test_a_module_that_hangs(make_module: Callable[[str], str], tmp_path: Path) -> None:
    """Its pool gives up after `startup_timeout`; others start workers meanwhile, and can fork; the server is killed."""
    name = make_module(HANGS.format(str(tmp_path / "pid")))
    hanging = ProcessBackend(preload=[name], startup_timeout=3.0)
    with ParallelExecutor(max_concurrency=1, backend=hanging) as executor:
        future = executor.submit(care_tasks.who)
        work.until((tmp_path / "pid").exists)
        with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(mp_context="fork")) as other:
            assert other.submit(work.double, 1).result(work.SOON) == 2
        assert not future.done()
        with pytest.raises(WorkerStartError, match=r"startup_timeout=3 s: does what it preloads, or .*, hang\?"):
            future.result(work.SOON)
    work.until(lambda: not processes.is_alive(int((tmp_path / "pid").read_text())))


def test_a_pool_ends_while_a_module_hangs(make_module: Callable[[str], str], tmp_path: Path) -> None:
    """At once, and the server with it."""
    name = make_module(HANGS.format(str(tmp_path / "pid")))
    hanging = ProcessBackend(preload=[name], startup_timeout=None)
    with ParallelExecutor(max_concurrency=1, backend=hanging) as executor:
        future = executor.submit(care_tasks.who)
        work.until((tmp_path / "pid").exists)
        executor.shutdown(cancel_futures=True)
    assert future.cancelled()
    work.until(lambda: not processes.is_alive(int((tmp_path / "pid").read_text())))


def test_a_program_is_killed_while_a_module_hangs(make_module: Callable[[str], str], tmp_path: Path) -> None:
    """The server goes with it."""
    name = make_module(HANGS.format(str(tmp_path / "pid")))
    code = (
        "from parallel_exec import ParallelExecutor, ProcessBackend\n"
        f"ParallelExecutor(backend=ProcessBackend(preload=[{name!r}])).submit(int).result()"
    )
    environment = processes.environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "modules"), environment.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as program:
        work.until((tmp_path / "pid").exists)
        program.kill()
    work.until(lambda: not processes.is_alive(int((tmp_path / "pid").read_text())))


def test_pools_of_a_kind_share_a_server() -> None:
    """It stays until the last of them has ended, and nobody waits for it before."""
    one, other = (
        ParallelExecutor(max_concurrency=1, backend=ProcessBackend(preload=["colorsys"]), retry_count=0) for _ in "12"
    )
    server = one.submit(os.getppid).result()
    assert other.submit(os.getppid).result() == server
    begun = time.monotonic()
    one.shutdown()
    assert time.monotonic() - begun < 0.9
    other.submit(os._exit, 1).exception()
    assert other.submit(os.getppid).result() == server
    other.shutdown()
    assert not processes.is_alive(server)


PRELOADING = """
import os, sys, time
from parallel_exec import ParallelExecutor, ProcessBackend

if __name__ == "__main__":
    executor = ParallelExecutor(max_concurrency=2, backend=ProcessBackend(preload=[sys.argv[1]]))
    server = executor.submit(os.getppid).result()
    print("done", flush=True)
    begun = time.monotonic()
    executor.shutdown()
    assert time.monotonic() - begun < 0.9
    assert not os.path.exists(f"/proc/{server}")
"""


def test_a_program_that_only_preloads(make_module: Callable[[str], str], tmp_path: Path) -> None:
    """What the module prints is printed once, and its server ends with the pool, also if there was none before."""
    name = make_module("print('imported')")
    (tmp_path / "program.py").write_text(PRELOADING)
    environment = processes.environment()
    environment.pop("PYTHONUNBUFFERED", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "modules"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("imported\ndone\n", "")


@pytest.mark.parametrize("method", METHODS)
def test_variables_that_a_module_sets(make_module: Callable[[str], str], method: str, monkeypatch: Any) -> None:
    """Workers have them, whichever process has imported it."""
    monkeypatch.delenv("CARE_A", raising=False)
    monkeypatch.setenv("CARE_B", "here")
    name = make_module("import os; os.environ['CARE_A'] = 'module'; os.environ.setdefault('CARE_B', 'module')")
    with ParallelExecutor(max_concurrency=1, backend=ProcessBackend(mp_context=method, preload=[name])) as executor:
        assert executor.submit(care_tasks.variables, "CARE_A", "CARE_B").result() == ("module", "here")


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
