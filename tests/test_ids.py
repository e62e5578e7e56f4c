"""Ids that nobody gave: the function's name and the task's number in the order added, the same wherever it is asked for."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pytest
import work
from backend_kinds import ALL, over

from parallel_exec import Task, TaskFuture, current_task
from parallel_exec._names import call_name

if TYPE_CHECKING:
    from conftest import Lab


def own_id(*_: object) -> str:
    """Return the id of the task that this runs in."""
    return current_task().id


class Asker:
    """Asks in a method, and when called."""

    def __call__(self) -> str:
        """Return the id of the task that this runs in."""
        return own_id()

    def method(self) -> str:
        """Return the id of the task that this runs in."""
        return own_id()


class Evasive:
    """Has no name, and says so by an exception of its own."""

    def __call__(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name) if name == "__name__" else AttributeError(name)


@over(ALL)
@pytest.mark.parametrize(
    ("fn", "name"),
    [(own_id, "own_id"), (partial(partial(own_id, 1), 2), "own_id"), (Asker(), "Asker"), (Asker().method, "method")],
)
def test_a_task_knows_the_id_that_its_future_has(lab: Lab, fn: Any, name: str) -> None:
    """In every back end, by its function's name."""
    executor = lab.executor()
    futures = [executor.submit(fn) for _ in range(3)]
    assert [future.result() for future in futures] == [f"{name}-{number}" for number in (1, 2, 3)]
    assert [future.task.id for future in futures] == [f"{name}-{number}" for number in (1, 2, 3)]


@over(ALL)
def test_the_id_of_a_builtin_that_somebody_waited_for(lab: Lab) -> None:
    """It is made of the function's name also once the call was let go."""
    future = lab.executor().submit(math.sqrt, 4.0)
    assert future.result() == 2.0
    assert future.id == "sqrt-1"


def test_numbers_go_by_the_order_added(lab: Lab) -> None:
    """Without gaps, whatever is added and how, and whenever somebody asks."""
    executor = lab.executor()
    futures: list[TaskFuture[Any]] = [
        executor.add_task(int),
        executor.add_task(Task(float)),
        executor.add_task(Task(str, id="mine")),
        executor.submit(lambda: None),
        executor.options(priority=3).submit(work.double, 3),
    ]
    assert futures[-1].task.id == "double-5"
    assert [future.task.id for future in futures] == ["int-1", "float-2", "mine", "lambda-4", "double-5"]
    assert [executor.submit(own_id).result(), *executor.map(own_id, iter("ab"))] == ["own_id-6", "own_id-7", "own_id-8"]


def test_a_task_keeps_the_id_that_it_got_first(lab: Lab) -> None:
    """It is known as soon as the task was added."""
    first, second = lab.executor(), lab.executor()
    task = Task(int)
    second.submit(int).result()
    assert first.add_task(task).task.id == task.id == "int-1"
    assert second.add_task(task).task.id == "int-1"
    assert [result.task.id for executor in (first, second) for result in executor.execute_all()] == ["int-1", "int-1"]


@over(("process", "thread"))
@pytest.mark.parametrize("make", [list, iter])
def test_the_items_of_a_map(lab: Lab, make: Any) -> None:
    """Each has an id of its own, also where they travel together: then it is the map's, and the item's place."""
    executor = lab.executor()
    ids = list(executor.map(own_id, make(range(40))))
    if lab.kind.name == "process":
        assert ids == [f"own_id-1-{place}" for place in range(40)]
    else:
        assert ids == [f"own_id-{number}" for number in range(1, 41)]


@over(("process",))
def test_a_failure_that_is_named_early(lab: Lab) -> None:
    """What cannot be pickled is named before it is in the queue, and has its number then."""
    executor = lab.executor()
    failed = executor.submit(own_id, (n for n in ()))
    assert "own_id-1" in str(failed.exception())
    assert executor.submit(own_id).result() == "own_id-2"


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (len, "len"),
        (dict, "dict"),
        ([].append, "append"),
        (lambda: 0, "lambda"),
        (lru_cache(own_id), "own_id"),
        (Asker.method, "method"),
    ],
)
def test_names(fn: Any, name: str) -> None:
    """Found without running any code of the user's."""
    assert call_name(fn) == name


@over(ALL)
def test_a_callable_that_raises_when_asked_for_its_name(lab: Lab) -> None:
    """It goes by its type's."""
    future = lab.executor().submit(partial(Evasive()))
    assert (future.result(), future.task.id) == (None, "Evasive-1")
