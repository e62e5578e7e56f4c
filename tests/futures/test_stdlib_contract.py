"""CPython's own tests of `concurrent.futures` executors, held against ours: calls, workers, shutdown.

Adapted from Lib/test/test_concurrent_futures (3.13; executor.py, test_init.py, test_thread_pool.py, test_process_pool.py,
test_shutdown.py), by the names they have there. Left out is
what pokes at private attributes, and what says how the stdlib's process pool breaks as a whole: ours does not.
Where the original sleeps, ours waits for an event.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import traceback
import weakref
from concurrent import futures
from functools import partial
from typing import Any

import crashing_pickles
import pytest
import script
import work
from backend_kinds import over

from parallel_exec import ParallelExecutor, ProcessBackend, ThreadBackend

BOTH = over(("thread", "process"))
EVERY = over(("thread", "process", "spawn", "fork"))
PROCESSES = over(("process", "spawn"))

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def executor(lab: Any) -> ParallelExecutor:
    """An executor as the originals make it: five workers, and no retries as the stdlib has none."""
    return lab.executor(max_concurrency=5, retry_count=0, timeout=None)  # type: ignore[no-any-return]


# ── executor.py ─────────────────────────────────────────────────────────────────────────────────────────────────────


@EVERY
def test_submit(executor: ParallelExecutor) -> None:
    """`submit` returns a future with the result."""
    assert executor.submit(pow, 2, 8).result() == 256


@BOTH
def test_submit_keyword(executor: ParallelExecutor) -> None:
    """Keywords reach the function, also those called `self` and `fn`; the function itself goes by place only."""
    assert executor.submit(work.capture, 2, y=8).result() == ((2,), {"y": 8})
    assert executor.submit(work.capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        executor.submit(fn=work.capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(arg=1)  # type: ignore[call-arg]


@EVERY
def test_map(executor: ParallelExecutor) -> None:
    """`map` equals the built-in, with and without `chunksize`."""
    expected = list(map(pow, range(10), range(10)))
    assert list(executor.map(pow, range(10), range(10))) == expected
    assert list(executor.map(pow, range(10), range(10), chunksize=3)) == expected


@BOTH
def test_map_exception(executor: ParallelExecutor) -> None:
    """Results before the failed one are there, then its exception."""
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


@BOTH
def test_map_timeout(executor: ParallelExecutor, lab: Any) -> None:
    """Results that are there in time come out, then `TimeoutError`."""
    gate = lab.latch()
    gate_calls = [partial(work.double, 0), partial(work.double, 1), gate.wait]
    executor.submit(int).result()  # a worker is there
    results = executor.map(work.call, gate_calls, timeout=2)
    assert [next(results), next(results)] == [0, 2]
    with pytest.raises(futures.TimeoutError):
        next(results)


@BOTH
def test_shutdown_race_issue12456(executor: ParallelExecutor) -> None:
    """`shutdown` right after more calls than workers does not hang."""
    executor.map(str, [2] * 6)
    executor.shutdown()


@BOTH
def test_no_stale_references(executor: ParallelExecutor) -> None:
    """The executor does not hang on to what a task needed once the task is done."""
    thing = crashing_pickles.Thing()
    gone = threading.Event()
    watch = weakref.ref(thing, lambda _: gone.set())
    executor.submit(thing.my_method)
    del thing
    assert gone.wait(work.PATIENCE), watch


@BOTH
def test_free_reference(executor: ParallelExecutor) -> None:
    """The iterator of `map` keeps no reference to the results it has given out."""
    for thing in executor.map(crashing_pickles.make_thing, range(10)):
        alive = weakref.ref(thing)
        del thing
        gc.collect()
        work.until(lambda alive=alive: alive() is None)  # type: ignore[misc]  # who brought it may have it for a moment


@BOTH
def test_swallows_falsey_exceptions(executor: ParallelExecutor) -> None:
    """An exception that is false, or that equals another, is raised all the same."""
    with pytest.raises(work.FalsyError):
        executor.submit(work.fail, work.FalsyError()).result()


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_negative(number: int) -> None:
    """Fewer than one worker is refused."""
    with pytest.raises(ValueError, match="max_concurrency must be at least 1"):
        ParallelExecutor(max_concurrency=number)


# ── test_thread_pool.py, test_process_pool.py ───────────────────────────────────────────────────────────────────────


@BOTH
def test_map_submits_without_iteration(executor: ParallelExecutor, lab: Any) -> None:
    """Every call of `map` runs, whether or not anybody reads the results."""
    log = lab.log()
    executor.map(partial(work.note, log), range(10))
    executor.shutdown(wait=True)
    assert sorted(map(int, log.lines())) == list(range(10))


@BOTH
def test_saturation(lab: Any) -> None:
    """However many calls are submitted, no more workers than allowed are started."""
    executor = lab.executor(max_concurrency=4, timeout=None)
    gate = lab.latch()
    pending = [executor.submit(gate.wait) for _ in range(60)]
    work.until(lambda: executor.stats().workers == 4)
    gate.set()
    futures.wait(pending)
    assert executor.stats().workers == 4


@BOTH
def test_idle_worker_reuse(executor: ParallelExecutor) -> None:
    """Calls that come one after the other share one worker."""
    for number in range(5):
        assert executor.submit(pow, number, 2).result() == number**2
        work.until(lambda number=number: executor.stats().succeeded == number + 1)  # type: ignore[misc]  # it is idle now
    assert executor.stats().workers == 1


def test_executor_map_current_future_cancel(lab: Any) -> None:
    """After `map` ran into its timeout, what had not begun is cancelled."""
    stop = lab.event()
    log: list[str] = []

    def log_n_wait(ident: str) -> None:
        log.append(f"{ident} started")
        stop.wait()
        log.append(f"{ident} stopped")

    with lab.executor(max_concurrency=1, timeout=None) as pool:
        first = pool.submit(log_n_wait, "first")
        try:
            results = pool.map(log_n_wait, ["second", "third"], timeout=0)
            with contextlib.closing(results), pytest.raises(futures.TimeoutError):  # type: ignore[type-var]
                next(results)
        finally:
            stop.set()
        first.result()
    assert log == ["first started", "first stopped"]


@BOTH
@pytest.mark.parametrize("chunksize", [6, 40, 50])
def test_map_chunksize(executor: ParallelExecutor, chunksize: int) -> None:
    """Any chunk size gives the same results; none below 1 is taken."""
    expected = list(map(pow, range(40), range(40)))
    assert list(executor.map(pow, range(40), range(40), chunksize=chunksize)) == expected
    with pytest.raises(ValueError, match="chunksize"):
        list(executor.map(pow, range(40), range(40), chunksize=-1))


@PROCESSES
def test_traceback(executor: ParallelExecutor) -> None:
    """The worker's traceback, source line included, is shown as the cause."""
    with pytest.raises(work.CodedError) as caught:
        executor.submit(work.fail_deeply, 123).result()
    error = caught.value
    assert error.args == (123,)
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "raise CodedError(code)" in shown


@PROCESSES
def test_ressources_gced_in_workers(executor: ParallelExecutor, lab: Any) -> None:
    """A worker drops a task's arguments when the task is done."""
    latch = lab.latch()
    executor.submit(id, crashing_pickles.SaysGoodbye(latch)).result()
    latch.wait()


@PROCESSES
def test_max_tasks_per_child(lab: Any) -> None:
    """A worker is replaced after its share of tasks, and not before."""
    backend = ProcessBackend(mp_context="spawn" if lab.kind.name == "spawn" else None, max_tasks_per_child=3)
    executor = lab.executor(backend=backend, max_concurrency=1)
    pids = [executor.submit(os.getpid).result() for _ in range(4)]
    assert pids[0] == pids[1] == pids[2] != pids[3]


@PROCESSES
def test_max_tasks_early_shutdown(lab: Any) -> None:
    """`shutdown` right after submitting more tasks than the workers may run loses none."""
    backend = ProcessBackend(mp_context="spawn" if lab.kind.name == "spawn" else None, max_tasks_per_child=1)
    executor = lab.executor(backend=backend, max_concurrency=3)
    pending = [executor.submit(work.double, number) for number in range(6)]
    executor.shutdown()
    assert [future.result() for future in pending] == [2 * number for number in range(6)]


# ── test_init.py ────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_initializer(kind: str, function: Any, *arguments: Any) -> Any:
    settings = {"initializer": function, "initargs": arguments}
    return ThreadBackend(**settings) if kind == "thread" else ProcessBackend(mp_context=_method(kind), **settings)


def _method(kind: str) -> str | None:
    return None if kind == "process" else kind


@EVERY
def test_initializer(lab: Any) -> None:
    """The initializer has run in each worker before its first task."""
    backend = _with_initializer(lab.kind.name, work.initialize, "initialized")
    executor = lab.executor(backend=backend, max_concurrency=2)
    assert [executor.submit(work.initialized).result() for _ in range(2)] == ["initialized"] * 2


@EVERY
def test_failing_initializer(lab: Any) -> None:
    """When the initializer fails, what waits fails as broken, and so does what comes after."""
    executor = lab.executor(backend=_with_initializer(lab.kind.name, work.fail, ValueError("error in initializer")))
    with pytest.raises(futures.BrokenExecutor, match="error in initializer"):
        executor.submit(work.initialized).result()
    with pytest.raises(futures.BrokenExecutor):
        executor.submit(work.initialized)


# ── test_shutdown.py ────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_run_after_shutdown(executor: ParallelExecutor) -> None:
    """After `shutdown` calls are refused with `RuntimeError`."""
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures"):
        executor.submit(pow, 2, 5)


@EVERY
def test_hang_issue12364(executor: ParallelExecutor) -> None:
    """`shutdown` waits for everything that was submitted."""
    pending = [executor.submit(time.sleep, 0.002) for _ in range(50)]
    executor.shutdown()
    assert all(future.done() for future in pending)


@BOTH
def test_cancel_futures(executor: ParallelExecutor, lab: Any) -> None:
    """`cancel_futures` cancels what has not begun; the others finish."""
    started, gate = lab.latch(), lab.latch()
    pending = [executor.submit(work.hold, started, gate) for _ in range(50)]
    started.wait()
    closer = lab.thread(partial(executor.shutdown, cancel_futures=True))
    work.until(lambda: sum(future.cancelled() for future in pending) >= 40)
    gate.set()
    closer.join(work.PATIENCE)
    others = [future for future in pending if not future.cancelled()]
    assert others
    assert [future.result() for future in others] == ["held"] * len(others)


@BOTH
def test_hang_gh94440(lab: Any) -> None:
    """`shutdown` does not hang when a call was submitted and cancelled right before it."""
    executor = lab.executor(max_concurrency=1)
    executor.submit(int).result()
    for _ in range(20):
        executor.submit(int).cancel()
    executor.shutdown(wait=True)


@BOTH
@pytest.mark.parametrize("way", ["del", "shutdown"])
def test_results_after_the_executor_is_gone(lab: Any, way: str) -> None:
    """Results of `map` can be read after the executor was dropped, or shut down without waiting."""
    executor = ParallelExecutor(max_concurrency=5, backend=lab.kind.make())
    results = executor.map(abs, range(-5, 5))
    if way == "shutdown":
        executor.shutdown(wait=False)
    del executor
    gc.collect()
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_thread_names_assigned(lab: Any) -> None:
    """The threads bear the prefix."""
    executor = lab.executor(backend=ThreadBackend(thread_name_prefix="SpecialPool"))
    assert executor.submit(threading.current_thread).result().name.startswith("SpecialPool_")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_hang_gh83386(tmp_path: Any, backend: str) -> None:
    """`shutdown(wait=False)` and the end of the program: the work is done, and nothing hangs or complains."""
    body = """
        executor = ParallelExecutor(max_concurrency=3, backend=sys.argv[1])
        executor.submit(work.say_after, 0.2, "apple")
        executor.shutdown(wait=False)
    """
    assert script.run(tmp_path, body, backend) == "apple"


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_cancel_futures_wait_false(tmp_path: Any, backend: str) -> None:
    """The same with `cancel_futures`: the task was begun and says so, or it was cancelled."""
    body = """
        executor = ParallelExecutor(backend=sys.argv[1])
        executor.submit(work.say_after, 0.1, "apple")
        executor.shutdown(wait=False, cancel_futures=True)
    """
    assert script.run(tmp_path, body, backend) in ("", "apple")
