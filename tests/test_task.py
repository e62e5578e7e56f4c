"""`parallel_exec.task`: tasks refuse what cannot run, results unwrap, and nothing of it changes."""

from __future__ import annotations

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
