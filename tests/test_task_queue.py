"""`parallel_exec.task_queue`: highest priority first, equals as they came, from any number of threads."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from parallel_exec import Task, TaskQueue


def _filled(*priorities: int) -> TaskQueue:
    tasks = TaskQueue()
    for number, priority in enumerate(priorities):
        tasks.enqueue(Task(int, id=str(number), priority=priority))
    return tasks


def test_highest_priority_first_equals_as_they_came() -> None:
    """Tasks leave by priority, and by arrival where that is equal."""
    tasks = _filled(0, 5, 0, -1, 5)
    assert [task.id for task in iter(tasks.dequeue, None)] == ["1", "4", "0", "2", "3"]


def test_an_empty_queue() -> None:
    """An empty queue gives None, and does not block."""
    tasks = TaskQueue()
    assert tasks.is_empty()
    assert tasks.size() == len(tasks) == 0
    assert tasks.dequeue() is None
    assert tasks.peek() is None
    assert tasks.clear() == []


def test_a_queue_is_true_even_when_empty() -> None:
    """`if queue:` asks whether there is a queue."""
    assert TaskQueue()


def test_peek_leaves_the_task_in() -> None:
    """`peek` shows what `dequeue` would give."""
    tasks = _filled(1, 2)
    first = tasks.peek()
    assert first is not None
    assert first.id == "1"
    assert tasks.size() == 2
    assert tasks.dequeue() is first


def test_clear_gives_everything_back() -> None:
    """`clear` empties the queue and returns the tasks, first things first."""
    tasks = _filled(1, 3, 2)
    assert [task.id for task in tasks.clear()] == ["1", "2", "0"]
    assert tasks.is_empty()


@pytest.mark.parametrize("item", [None, int, (1, 2)])
def test_what_is_no_task_is_refused(item: Any) -> None:
    """A bare callable gets a hint."""
    with pytest.raises(TypeError, match=r"write enqueue\(Task\(function\)\)"):
        TaskQueue().enqueue(item)


def test_tasks_are_never_compared() -> None:
    """Tasks with equal priorities need not be comparable."""

    class Call:
        def __call__(self) -> None: ...

        def __lt__(self, other: object) -> bool:
            raise AssertionError("compared")

        __gt__ = __le__ = __ge__ = __eq__ = __lt__
        __hash__ = None  # type: ignore[assignment]

    tasks = TaskQueue()
    for _ in range(100):
        tasks.enqueue(Task(Call(), id="same"))
    assert len(tasks.clear()) == 100


def test_it_is_built_on_a_priority_queue() -> None:
    """A real `queue.PriorityQueue` holds the entries."""
    assert isinstance(TaskQueue()._entries, queue.PriorityQueue)


def test_many_threads() -> None:
    """What several threads put in, several threads get out, each task once."""
    tasks = TaskQueue()
    taken: list[str] = []
    start = threading.Barrier(6)

    def put(name: int) -> None:
        start.wait()
        for number in range(500):
            tasks.enqueue(Task(int, id=f"{name}-{number}", priority=number % 7))

    def take() -> None:
        start.wait()
        while len(taken) < 1500:
            task = tasks.dequeue()
            if task is not None:
                taken.append(task.id)

    threads = [threading.Thread(target=put, args=(name,)) for name in range(3)]
    threads += [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 1500
