"""`TaskQueue`: highest priority first, equals in the order they came.

    enqueue ──► queue.PriorityQueue of (-priority, sequence, task) ──► dequeue

Guarantees:
    Thread-safe, and nothing here blocks for longer than another caller's O(log n) step. Tasks are never compared: no two
    sequence numbers in one queue are equal.
"""

from __future__ import annotations

import itertools
import queue
import threading
from heapq import heappop, heappush

from parallel_exec.task import Task


class TaskQueue:
    """A thread-safe priority queue of tasks: the highest `priority` first, equal ones in the order they came.

    Nothing here blocks. Each operation costs O(log n), `size` and `is_empty` O(1).
    """

    def __init__(self) -> None:
        # Used without its mutex, which is not re-entrant: a signal handler may interrupt us, and put something in.
        self._entries: queue.PriorityQueue[tuple[int, int, Task[object]]] = queue.PriorityQueue()
        self._sequence = itertools.count()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        return True  # a queue is a thing, not its length: `if queue:` must not mean "unless empty"

    def enqueue(self, task: Task[object]) -> None:
        """Put a task in.

        Raises:
            TypeError: it is no `Task`.
        """
        if not isinstance(task, Task):
            raise TypeError(f"enqueue takes a Task, not {task!r}: write enqueue(Task(function))")
        with self._lock:
            heappush(self._entries.queue, (-task.priority, next(self._sequence), task))

    def dequeue(self) -> Task[object] | None:
        """Take the first task out; None if there is none."""
        with self._lock:
            return heappop(self._entries.queue)[2] if self._entries.queue else None

    def peek(self) -> Task[object] | None:
        """Return the first task and leave it in; None if there is none."""
        with self._lock:
            return self._entries.queue[0][2] if self._entries.queue else None

    def is_empty(self) -> bool:
        """Return whether no task is waiting."""
        return self.size() == 0

    def size(self) -> int:
        """Return how many tasks are waiting."""
        with self._lock:
            return len(self._entries.queue)

    def clear(self) -> list[Task[object]]:
        """Take all tasks out and return them, first things first."""
        tasks = []
        with self._lock:
            while (task := self.dequeue()) is not None:
                tasks.append(task)
        return tasks
