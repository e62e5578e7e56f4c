"""`parallel_exec._typing`: classes are at run time what they would be with `typing`, which nobody has imported."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Generic, Optional, TypeVar

import pytest

from parallel_exec import Attempt, ParallelExecutor, Task, TaskFuture, TaskResult

T = TypeVar("T")


class Named(Task[T], Generic[T]):
    """A task of the user's own, generic as ours."""


@pytest.mark.parametrize("made", [Task, TaskFuture, TaskResult])
def test_what_is_generic_can_be_written_with_its_type(made: Any) -> None:
    """Also inside of other types, where a variable's place is taken by a type."""
    assert made[int].__origin__ is made
    assert Optional[made[T]][int] == Optional[made[int]]
    assert made[T].__parameters__ == (T,)


def test_a_task_of_a_type_is_a_task() -> None:
    """What is called with its type written makes the same."""
    with ParallelExecutor(max_concurrency=1) as executor:
        assert type(Task[int](int)) is Task
        assert executor.add_task(Task[int](int, "3")).task.execute() == 3
        assert [result.unwrap() for result in executor.execute_all()] == [3]


def test_a_class_of_the_users_may_be_generic_as_well() -> None:
    """It takes types as `typing.Generic` has them, and is a task."""
    task = Named[str](str)
    assert type(task) is Named
    assert isinstance(task, Task)
    assert Named[int].__args__ == (int,)


def test_an_attempt_is_a_named_tuple() -> None:
    """With its fields, its own text, and a place that pickle finds."""
    attempt = Attempt(1, 2.0, 3.0, None, "w")
    assert attempt == (1, 2.0, 3.0, None, "w", "", None, None)
    assert attempt._replace(number=2) == Attempt(number=2, started_at=2.0, duration=3.0, error=None, worker="w")
    assert Attempt._fields == tuple(inspect.signature(Attempt).parameters) == tuple(Attempt.__annotations__)
    assert repr(attempt) == "Attempt(1, returned after 3 s in 'w')"
    assert pickle.loads(pickle.dumps(attempt)) == attempt
    assert str(Attempt.__doc__).startswith("One try at a task.")
