"""The public names: what people import, and nothing else."""

from __future__ import annotations

import concurrent.futures

import pytest

import parallel_exec
from parallel_exec import futures

PUBLIC = [
    "INHERIT",
    "Adaptive",
    "Attempt",
    "Backend",
    "CapacityExhaustedError",
    "CurrentTask",
    "CurrentWorker",
    "DaskBackend",
    "DeadlineExceededError",
    "Event",
    "ExecutorBackend",
    "ExecutorStats",
    "InlineBackend",
    "Journal",
    "JournalError",
    "LimitStats",
    "ParallelConfig",
    "ParallelExecError",
    "ParallelExecutor",
    "PerKey",
    "ProcessBackend",
    "QueueFullError",
    "Rate",
    "RemoteTaskError",
    "ResultRejectedError",
    "RetryAfter",
    "RunningTask",
    "Shared",
    "SoftTimeoutError",
    "Task",
    "TaskCancelled",
    "TaskEvent",
    "TaskFinished",
    "TaskFuture",
    "TaskGranted",
    "TaskQueue",
    "TaskQueued",
    "TaskResult",
    "TaskRetrying",
    "TaskSerializationError",
    "TaskStarted",
    "TaskTimedOut",
    "TaskTimeoutError",
    "TaskWaiting",
    "ThreadBackend",
    "WorkerCrashedError",
    "WorkerDied",
    "WorkerStartError",
    "WorkerStarted",
    "current_task",
    "current_worker",
    "drain_on_sigterm",
]


DROP_IN = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]


def test_the_public_names() -> None:
    """A name that comes or goes is a decision, taken here."""
    assert parallel_exec.__all__ == PUBLIC


def test_the_drop_in_names() -> None:
    """What stands in for `concurrent.futures` has all the names that it has on every Python we support."""
    assert futures.__all__ == DROP_IN
    assert set(concurrent.futures.__all__) - {"InterpreterPoolExecutor"} <= set(DROP_IN)


def test_the_executor_that_only_newer_pythons_have() -> None:
    """It is handed on where there is one, and missing, with the usual error, where there is none."""
    theirs = getattr(concurrent.futures, "InterpreterPoolExecutor", None)
    assert getattr(futures, "InterpreterPoolExecutor", None) is theirs


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_can_be_had(name: str) -> None:
    """Each public name is there, without any extra, and bears its own name."""
    thing = getattr(parallel_exec, name)
    assert getattr(thing, "__name__", repr(thing)) == name


def test_a_name_that_is_not_there() -> None:
    """A misspelt name is an ordinary `AttributeError`."""
    with pytest.raises(AttributeError, match="has no attribute 'ParalelExecutor'"):
        _ = parallel_exec.ParalelExecutor


def test_dir_shows_them() -> None:
    """`dir()` has all public names, loaded or not."""
    assert set(PUBLIC) <= set(dir(parallel_exec))


def test_it_is_typed() -> None:
    """The package says to type checkers that it has types."""
    from importlib.resources import files

    assert files("parallel_exec").joinpath("py.typed").is_file()
