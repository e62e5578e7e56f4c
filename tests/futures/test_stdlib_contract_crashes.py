"""CPython's own tests of `concurrent.futures` executors, held against ours: what must not hang.

Adapted from Lib/test/test_concurrent_futures (3.13; test_deadlock.py), by the names they have there. Left out is
what pokes at private attributes, and what says how the stdlib's process pool breaks as a whole: ours does not.
Where the original sleeps, ours waits for an event.
"""

from __future__ import annotations

from functools import partial
from pickle import PicklingError
from typing import Any

import crashing_pickles
import pytest
import work
from backend_kinds import over

from parallel_exec import ParallelExecutor, WorkerCrashedError

BOTH = over(("thread", "process"))
EVERY = over(("thread", "process", "spawn", "fork"))
PROCESSES = over(("process", "spawn"))

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def executor(lab: Any) -> ParallelExecutor:
    """An executor as the originals make it: five workers, and no retries as the stdlib has none."""
    return lab.executor(max_concurrency=5, retry_count=0, timeout=None)  # type: ignore[no-any-return]


# ── test_deadlock.py ────────────────────────────────────────────────────────────────────────────────────────────────


@PROCESSES
@pytest.mark.parametrize(
    ("call", "errors"),
    [
        (partial(id, crashing_pickles.ErrorAtPickle()), ("TaskSerializationError", PicklingError)),
        (partial(id, crashing_pickles.ExitAtUnpickle()), ("TaskSerializationError", SystemExit, WorkerCrashedError)),
        (partial(id, crashing_pickles.ErrorAtUnpickle()), ("TaskSerializationError",)),
        (partial(id, crashing_pickles.CrashAtUnpickle()), (WorkerCrashedError,)),
        (crashing_pickles.crash, (WorkerCrashedError,)),
        (partial(work.exit_with, 1), (SystemExit,)),
        (partial(work.fail, RuntimeError()), (RuntimeError,)),
        (crashing_pickles.CrashAtPickle, (WorkerCrashedError,)),
        (crashing_pickles.ExitAtPickle, ("TaskSerializationError", SystemExit)),
        (crashing_pickles.ErrorAtPickle, ("TaskSerializationError",)),
        (crashing_pickles.ErrorAtUnpickle, ("TaskSerializationError",)),
        (crashing_pickles.ExitAtUnpickle, ("TaskSerializationError", SystemExit)),
    ],
    ids=[
        "error_at_task_pickle",
        "exit_at_task_unpickle",
        "error_at_task_unpickle",
        "crash_at_task_unpickle",
        "crash_during_func_exec_on_worker",
        "exit_during_func_exec_on_worker",
        "error_during_func_exec_on_worker",
        "crash_during_result_pickle_on_worker",
        "exit_during_result_pickle_on_worker",
        "error_during_result_pickle_on_worker",
        "error_during_result_unpickle_in_result_handler",
        "exit_during_result_unpickle_in_result_handler",
    ],
)
def test_what_goes_wrong_fails_its_own_task_only(lab: Any, call: Any, errors: tuple[Any, ...]) -> None:
    """Whatever goes wrong, wherever, that task fails, nothing hangs, and the next one runs."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    error = executor.submit(call).exception(work.PATIENCE)
    assert type(error) in errors or type(error).__name__ in errors
    assert executor.submit(pow, 2, 2).result(work.PATIENCE) == 4


@PROCESSES
def test_shutdown_deadlock(lab: Any) -> None:
    """A worker that crashes after `shutdown` was called keeps nobody waiting."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    future = executor.submit(crashing_pickles.crash)
    executor.shutdown(wait=True)
    assert isinstance(future.exception(), WorkerCrashedError)


@PROCESSES
def test_crash_big_data(lab: Any) -> None:
    """Workers that crash while large arguments are on their way cause errors and no deadlock."""
    executor = lab.executor(max_concurrency=2, retry_count=0)
    results = executor.map(crashing_pickles.crash, ["a" * 4_000_000] * 10)
    with pytest.raises(WorkerCrashedError):
        list(results)
    executor.shutdown(wait=True)


@PROCESSES
def test_gh105829_many_small_jobs(lab: Any) -> None:
    """Submitting faster than the pool starts does not block for ever on a full pipe."""
    assert len(list(lab.executor(max_concurrency=2).map(int, range(3000)))) == 3000
