"""`parallel_exec.task`: tasks refuse what cannot run, results unwrap, and nothing of it changes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tenacity
import work

from parallel_exec import INHERIT, Attempt, Task, TaskResult


def test_a_task_from_a_callable() -> None:
    """A callable is all a task needs; the rest is inherited."""
    task = Task(int)
    assert task.execute is int
    assert task.priority == 0
    assert task.timeout is task.retry_count is task.retry is INHERIT


def test_everything_by_name() -> None:
    """All fields may be given by name."""
    task = Task(id="a", priority=3, execute=int, timeout=1, retry_count=0, retry=None)
    assert (task.id, task.priority, task.timeout, task.retry_count, task.retry) == ("a", 3, 1.0, 0, None)


def test_missing_ids_are_unique() -> None:
    """Each task without an id gets one that no other has."""
    assert len({Task(int).id for _ in range(1000)}) == 1000


def test_a_task_is_frozen() -> None:
    """A task cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Task(int).priority = 3  # type: ignore[misc]


@pytest.mark.parametrize("callable_", [None, 3, "f", work.double(2)])
def test_what_is_not_callable_is_refused(callable_: Any) -> None:
    """The result of a call, given for the function, is refused with a hint."""
    with pytest.raises(TypeError, match=r"execute takes a callable.*functools.partial"):
        Task(callable_)


@pytest.mark.parametrize("priority", [1.5, "high", None])
def test_a_priority_that_is_no_int_is_refused(priority: Any) -> None:
    """Only ints can be compared with each other safely."""
    with pytest.raises(TypeError, match="priority takes an int"):
        Task(int, priority=priority)


@pytest.mark.parametrize("id", [3, b"a"])
def test_an_id_that_is_no_string_is_refused(id: Any) -> None:
    """The message says how to write it."""
    with pytest.raises(TypeError, match=r"write id=str\(...\)"):
        Task(int, id=id)


@pytest.mark.parametrize("timeout", [0, -1, 0.0, float("nan")])
def test_a_limit_that_is_none_is_refused(timeout: float) -> None:
    """A timeout must be more than nothing; None is how to have none."""
    with pytest.raises(ValueError, match="None means no limit"):
        Task(int, timeout=timeout)


@pytest.mark.parametrize("timeout", ["3", True, [1]])
def test_a_timeout_that_is_no_number_is_refused(timeout: Any) -> None:
    """Seconds are numbers."""
    with pytest.raises(TypeError, match="timeout takes seconds as a number"):
        Task(int, timeout=timeout)


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)])
def test_a_wrong_retry_count_is_refused(count: Any, error: type[Exception]) -> None:
    """Retries are counted in whole numbers from 0."""
    with pytest.raises(error, match="retry_count"):
        Task(int, retry_count=count)


@pytest.mark.parametrize("retry", [3, tenacity.Retrying, tenacity.stop_after_attempt(3), int])
def test_what_is_no_retrying_is_refused(retry: Any) -> None:
    """`retry` takes a `tenacity.Retrying` object, neither its class nor a part of one."""
    with pytest.raises(TypeError, match=r"retry takes a tenacity.Retrying\(...\) object"):
        Task(int, retry=retry)


def test_asynchronous_retrying_is_refused() -> None:
    """Tasks are plain calls, so tenacity's asynchronous kind is no use."""
    with pytest.raises(TypeError, match="tasks are plain calls"):
        Task(int, retry=tenacity.AsyncRetrying())


def test_tasks_pickle() -> None:
    """A task whose function pickles, pickles, and inherits as before."""
    task = pickle.loads(pickle.dumps(Task(partial(work.double, 2), id="a", priority=2)))
    assert (task.id, task.priority, task.execute()) == ("a", 2, 4)
    assert task.timeout is INHERIT


def test_inherit_has_a_name() -> None:
    """`INHERIT` shows as itself in signatures and messages."""
    assert repr(INHERIT) == "INHERIT"


def _result(**changes: Any) -> TaskResult[Any]:
    facts: dict[str, Any] = {
        "task": Task(int, id="a"),
        "success": True,
        "result": 5,
        "error": None,
        "attempts": (Attempt(1, 10.0, 0.5, None, "w"),),
        "queued_for": 0.1,
        "duration": 0.5,
    }
    return TaskResult(**{**facts, **changes})


def test_unwrap_of_a_success() -> None:
    """`unwrap()` returns the result."""
    assert _result().unwrap() == 5


def test_unwrap_of_a_failure() -> None:
    """`unwrap()` raises the error, the very one."""
    error = work.FalsyError()
    with pytest.raises(work.FalsyError) as caught:
        _result(success=False, result=None, error=error).unwrap()
    assert caught.value is error


def test_a_result_is_frozen() -> None:
    """A result cannot be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        _result().result = 6  # type: ignore[misc]


def test_an_id_may_be_a_path() -> None:
    """It becomes a string, as in the first example of the documentation."""
    assert Task(int, id=Path("folder") / "file").id == os.path.join("folder", "file")


def test_a_subclass_of_the_asynchronous_kind_is_refused() -> None:
    """Whatever its name: its predicates would be coroutines, which are always true."""

    class Patient(tenacity.AsyncRetrying):
        """Says nothing of what it is."""

    with pytest.raises(TypeError, match=r"retry takes a tenacity\.Retrying"):
        Task(int, retry=Patient())


def test_a_limit_beyond_all_numbers() -> None:
    """It is refused like any other wrong limit."""
    with pytest.raises(ValueError, match="timeout is too large"):
        Task(int, timeout=10**400)


def test_arguments_of_the_call() -> None:
    """What follows the function is the call's, and `execute` is always a callable without arguments."""
    task = Task(work.double, 4, id="a", kwargs={})
    assert task.execute() == 8
    assert Task(dict, kwargs={"id": 1, "priority": 2}).execute() == {"id": 1, "priority": 2}
    assert dataclasses.replace(task, priority=3).execute() == 8


@pytest.mark.parametrize("kwargs", [[("a", 1)], {1: 2}, "ab"])
def test_arguments_by_name_that_are_no_dict_are_refused(kwargs: Any) -> None:
    """The message says what to write."""
    with pytest.raises(TypeError, match="kwargs takes the call's arguments by name, as a dict"):
        Task(dict, kwargs=kwargs)


def test_a_task_that_was_never_added_has_an_id_when_asked() -> None:
    """It keeps that one, also in a copy, and no executor gives the same to another."""
    task = Task(partial(work.double, 2))
    assert task.id == task.id == pickle.loads(pickle.dumps(task)).id
    assert task.id.startswith("double-new-")


def test_true_is_no_priority() -> None:
    """A flag is a mistake where a number is meant."""
    priority: Any = True
    with pytest.raises(TypeError, match="priority takes an int"):
        Task(int, priority=priority)


def test_retries_of_a_task() -> None:
    """Exception types, a predicate, seconds: checked as the executor's settings are."""
    task = Task(int, retry_on=OSError, backoff=1)
    assert (task.retry_on, task.backoff) == ((OSError,), 1.0)
    worth: Any = Task(int, retry_on=lambda error: error.errno == 5).retry_on
    assert worth(OSError(5, "io"))
    with pytest.raises(TypeError, match="retry_on takes exception types such as"):
        Task(int, retry_on=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backoff must be 0 seconds or more"):
        Task(int, backoff=-1)


class _Loud:
    """Says more than fits a line, or raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __call__(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("number", range(6))
def test_reprs_fit_a_line_and_never_raise(number: int) -> None:
    """Whatever a task was given, returned or raised."""
    values: list[Any] = [_Loud(), "x\n" * 10**6, [_Loud()] * 10**5, b"x" * 10**6, 10**5000, {1: _Loud()}]
    value = values[number]
    task = Task(_Loud(), value, id="i" * 10**6)
    failed = _result(task=task, success=False, result=None, error=ValueError(value, value))
    for shown in (
        task,
        Task(_Loud()),
        _result(task=task, result=value),
        failed,
        Attempt(1, 0.0, 1.0, failed.error, "w"),
    ):
        assert len(repr(shown)) < 200
        assert "\n" not in repr(shown)


def test_reprs_say_what_is_worth_knowing() -> None:
    """The id, how it ended, how often it was tried."""
    assert repr(Task(work.double, 3)) == "Task(double)"
    assert repr(Task(work.double, 3, id="a", priority=2, timeout=5)) == "Task(double, id='a', priority=2, timeout=5.0)"
    assert repr(_result()) == "TaskResult('a', 5, 1 attempt, 0.5 s)"
    failed = _result(success=False, result=None, error=OSError("gone"), attempts=())
    assert repr(failed) == "TaskResult('a', OSError('gone'), 0 attempts, 0.5 s)"
    assert repr(_result(success=False, cancelled=True)) == "TaskResult('a', cancelled, 1 attempt, 0.5 s)"
    assert repr(Attempt(2, 1.0, 0.25, OSError("gone"), "w")) == "Attempt(2, raised OSError('gone') after 0.25 s in 'w')"


def test_results_pickle() -> None:
    """With all that they know."""
    result = pickle.loads(pickle.dumps(_result(success=False, result=None, error=OSError("gone"), cancelled=True)))
    assert isinstance(result, TaskResult)
    assert (result.task.id, result.cancelled, str(result.error)) == ("a", True, "gone")


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Sourced(Task[Any]):
    """A task with a field of the user's."""

    source: str = ""


def test_a_task_with_a_field_of_the_users_is_copied_whole() -> None:
    """Also by pickle."""
    task = Sourced(work.double, 3)
    object.__setattr__(task, "source", "here")
    assert copy.copy(task).source == pickle.loads(pickle.dumps(task)).source == "here"
