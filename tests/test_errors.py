"""`parallel_exec.errors`: each error says what happened, carries its facts, and survives a pickle."""

from __future__ import annotations

import copy
import pickle
import queue
import signal
import traceback
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from parallel_exec import (
    CapacityExhaustedError,
    DeadlineExceededError,
    JournalError,
    ParallelExecError,
    QueueFullError,
    RemoteTaskError,
    ResultRejectedError,
    RetryAfter,
    TaskSerializationError,
    TaskTimeoutError,
    WorkerCrashedError,
    WorkerStartError,
    errors,
)
from parallel_exec.errors import start_error

EXAMPLES = [
    TaskTimeoutError("parse", 2.5, 3),
    DeadlineExceededError("parse", 60.0),
    WorkerCrashedError(123, -signal.SIGSEGV, "parse"),
    WorkerStartError("no workers", "Traceback ..."),
    TaskSerializationError("the argument 'lock'", "to the worker", "locks do not pickle", "Make it there."),
    RemoteTaskError("app.PickyError", "no", "Traceback ..."),
    CapacityExhaustedError(7),
    QueueFullError(10),
    start_error("process", "no workers", "Traceback ..."),
    start_error("thread", "no workers"),
    ResultRejectedError("no good", 3),
    JournalError("run.db", "it is in use", 123, "here"),
    RetryAfter(2.5, limit="api"),
    RetryAfter(0),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_errors_travel(error: ParallelExecError, way: str) -> None:
    """A pickled or copied error has the same type, message and attributes."""
    other = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol: int) -> None:
    """Errors pickle under every protocol."""
    error = pickle.loads(pickle.dumps(EXAMPLES[0], protocol))
    assert (error.task_id, error.timeout, error.attempt) == ("parse", 2.5, 3)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_all_are_of_one_family(error: ParallelExecError) -> None:
    """Whoever catches `ParallelExecError` catches every error of ours."""
    assert isinstance(error, ParallelExecError)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (TaskTimeoutError, TimeoutError),
        (DeadlineExceededError, TimeoutError),
        (WorkerCrashedError, BrokenProcessPool),
        (WorkerStartError, BrokenExecutor),
        (type(start_error("process", "no workers")), BrokenProcessPool),
        (type(start_error("thread", "no workers")), BrokenThreadPool),
        (TaskSerializationError, pickle.PicklingError),
        (QueueFullError, queue.Full),
    ],
)
def test_the_builtin_or_stdlib_kind(error: type[Exception], base: type[Exception]) -> None:
    """Code written for the stdlib's errors catches ours."""
    assert issubclass(error, base)


def test_a_timeout_names_task_limit_and_attempt() -> None:
    """The message says which attempt of which task outran what."""
    assert str(EXAMPLES[0]) == "Task timeout: attempt 3 of task 'parse' ran longer than 2.5 s"


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [(3, "exit code 3"), (-signal.SIGKILL, "signal SIGKILL"), (-250, "signal 250"), (None, "exit code unknown")],
)
def test_a_crash_says_how_the_worker_died(exitcode: int | None, words: str) -> None:
    """The message has the exit code, or the signal's name."""
    error = WorkerCrashedError(123, exitcode, "parse")
    assert str(error) == f"worker process 123 died ({words}) while it ran task 'parse'"
    assert (error.pid, error.exitcode, error.task_id) == (123, exitcode, "parse")


def test_a_start_error_shows_the_workers_traceback() -> None:
    """The traceback from the worker is in the message, if there is one."""
    assert "Traceback ..." in str(EXAMPLES[3])
    assert str(WorkerStartError("no workers")) == "no workers"


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_start_error_goes_by_its_public_name(pool: Any) -> None:
    """Whatever pool it comes from, it shows as what one catches it by."""
    error = start_error(pool, "no workers")
    assert isinstance(error, WorkerStartError)
    shown = traceback.format_exception_only(type(error), error)
    assert shown == ["parallel_exec.errors.WorkerStartError: no workers\n"]


def test_a_crash_error_is_where_the_others_are() -> None:
    """It is loaded when it is asked for, and says that it lives in `parallel_exec.errors`."""
    assert errors.WorkerCrashedError is WorkerCrashedError
    assert WorkerCrashedError.__module__ == "parallel_exec.errors"
    with pytest.raises(AttributeError, match="has no attribute 'WorkerCrashed'"):
        _ = errors.WorkerCrashed


def test_a_serialization_error_says_what_and_which_way() -> None:
    """The message names the object, the direction, the reason and what to do."""
    assert str(EXAMPLES[4]) == ("the argument 'lock' cannot be sent to the worker: locks do not pickle. Make it there.")
    assert (
        str(TaskSerializationError("it", "from the worker", "because")) == "it cannot be sent from the worker: because"
    )


def test_a_remote_error_reads_like_the_one_it_stands_for() -> None:
    """The message is that of the exception that could not be rebuilt."""
    assert str(EXAMPLES[5]) == "app.PickyError: no"


def test_a_remote_error_says_why_it_stands_in() -> None:
    """The reason comes after the message, and is an attribute."""
    error = RemoteTaskError("app.PickyError", "no", reason="it cannot be pickled: TypeError: a lock")
    assert str(error) == "app.PickyError: no (this stands in for it: it cannot be pickled: TypeError: a lock)"
    assert pickle.loads(pickle.dumps(error)).reason == "it cannot be pickled: TypeError: a lock"


@pytest.mark.parametrize("hint", ["check()", "max_abandoned", 'backend="process"'])
def test_exhausted_capacity_says_what_to_do(hint: str) -> None:
    """The message offers the three ways out."""
    assert hint in str(EXAMPLES[6])


def test_a_full_queue_says_what_to_do() -> None:
    """The message has the limit and the ways out."""
    assert "queue_size=10" in str(EXAMPLES[7])
    assert "execute_all()" in str(EXAMPLES[7])


def test_what_retry_after_says() -> None:
    """It carries the seconds and the limit, and says both."""
    error = RetryAfter(2.5, limit="api")
    assert (error.retry_after, error.limit) == (2.5, "api")
    assert str(error) == "to be tried again in 2.5 s, and nothing that needs the limit 'api' before that"
    assert str(RetryAfter(30)) == "to be tried again in 30 s"


@pytest.mark.parametrize("seconds", ["30", None, True, [1]])
def test_retry_after_takes_a_number(seconds: Any) -> None:
    """What a header says is text, and `True` a slip."""
    with pytest.raises(TypeError, match="RetryAfter takes seconds as a number"):
        RetryAfter(seconds)


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf")])
def test_retry_after_takes_a_time_to_come(seconds: float) -> None:
    """A time that has passed, or never comes, is refused."""
    with pytest.raises(ValueError, match="0 seconds or more"):
        RetryAfter(seconds)


def test_retry_after_takes_the_name_of_a_limit() -> None:
    """A limit itself is refused."""
    limit: Any = 3
    with pytest.raises(TypeError, match="the name of a limit, not 3"):
        RetryAfter(1.0, limit)


class _BusyError(Exception):
    def __init__(self, retry_after: Any) -> None:
        super().__init__()
        self.retry_after = retry_after


class _UnsureError(Exception):
    @property
    def retry_after(self) -> float:
        """Fail."""
        raise LookupError


@pytest.mark.parametrize("seconds", [0, 3, 2.5, 1e9])
def test_a_number_called_retry_after(seconds: float) -> None:
    """Any exception may say when it wants to be tried again."""
    assert errors.retry_after_of(_BusyError(seconds)) == seconds
    assert errors.retry_after_of(RetryAfter(seconds)) == seconds


@pytest.mark.parametrize("what", ["3", None, True, -1, float("nan"), float("inf"), object()])
def test_what_is_no_retry_after(what: object) -> None:
    """What is no number, or no time to come, says nothing."""
    assert errors.retry_after_of(_BusyError(what)) is None


def test_a_retry_after_that_raises() -> None:
    """A user's property that fails says nothing, and breaks nothing."""
    assert errors.retry_after_of(_UnsureError()) is None
    assert errors.retry_after_of(OSError()) is None
