"""The queue: highest priority first, equals in the order they came.

    enqueue ──► queue.PriorityQueue of (-priority, sequence, item) ──► dequeue

Guarantees:
    `TaskQueue` is thread-safe, and nothing here blocks for longer than another caller's O(log n) step. Items are never
    compared: no two sequence numbers in one queue are equal.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from typing import Generic, TypeVar

from parallel_exec.task import Task

T = TypeVar("T")
Key = tuple[int, int]  # (-priority, sequence): the smaller goes first


class PriorityHeap(Generic[T]):
    """A heap of items, in a real `queue.PriorityQueue`, from which any item can be struck out.

    Not locked: the owner's lock guards it. It calls what the queue itself calls once it has its mutex, because that
    mutex is not re-entrant, and a signal handler that interrupts a `put` must be able to cancel or to shut down.

    Striking out is lazy: the entry stays until it comes up, or until more than half of all entries are struck out and are
    thrown away together. What such a handler puts in meanwhile is put aside, and goes in afterwards.
    """

    def __init__(self) -> None:
        self._entries: queue.PriorityQueue[tuple[int, int, T]] = queue.PriorityQueue()
        self._struck: set[int] = set()  # sequence numbers
        self._tidying = False
        self._aside: list[tuple[int, int, T]] = []

    def __len__(self) -> int:
        return max(0, self._entries._qsize() + len(self._aside) - len(self._struck))  # less than 0: amid a `_tidy`

    def push(self, key: Key, item: T) -> None:
        """Put an item in; O(log n)."""
        entry = (key[0], key[1], item)
        if self._tidying:
            self._aside.append(entry)
        else:
            self._entries._put(entry)

    def pop(self) -> T | None:
        """Take the first item out, or return None; O(log n)."""
        while self._entries.queue:
            _, sequence, item = self._entries._get()
            if not self._struck or sequence not in self._struck:
                return item
            self._struck.discard(sequence)
        return None

    def peek(self) -> T | None:
        """Return the first item without taking it out, or None."""
        while self._entries.queue:
            _, sequence, item = self._entries.queue[0]
            if sequence not in self._struck:
                return item
            entry = self._entries._get()
            if entry[1] in self._struck:
                self._struck.discard(entry[1])
            else:  # a signal handler has put something else in front
                self._entries._put(entry)
        return None

    def discard(self, sequence: int) -> None:
        """Strike out the entry with this sequence number, which must be in; O(1) on average."""
        self._struck.add(sequence)
        if len(self._struck) * 2 > self._entries._qsize() and not self._tidying:
            more = True
            while more:
                self._tidying = True
                try:
                    self._tidy()
                finally:
                    self._tidying = False
                more = bool(self._aside)

    def _tidy(self) -> None:
        # Not all that is struck: some of it may be aside.
        gone = {entry[1] for entry in self._entries.queue if entry[1] in self._struck}
        kept = [entry for entry in self._entries.queue if entry[1] not in gone]
        heapq.heapify(kept)
        self._entries.queue[:] = kept
        self._struck.difference_update(gone)
        while self._aside:
            self._entries._put(self._aside.pop())

    def items(self) -> list[T]:
        """Return all items, in no order, and leave them in."""
        return [item for _, sequence, item in self._entries.queue if sequence not in self._struck]

    def drain(self) -> list[T]:
        """Take everything out, first things first; O(n log n)."""
        items = []
        while (item := self.pop()) is not None:
            items.append(item)
        return items


class TaskQueue:
    """A thread-safe priority queue of tasks: the highest `priority` first, equal ones in the order they came.

    Nothing here blocks. Each operation costs O(log n), `size` and `is_empty` O(1).
    """

    def __init__(self) -> None:
        self._heap: PriorityHeap[Task[object]] = PriorityHeap()
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
            self._heap.push((-task.priority, next(self._sequence)), task)

    def dequeue(self) -> Task[object] | None:
        """Take the first task out; None if there is none."""
        with self._lock:
            return self._heap.pop()

    def peek(self) -> Task[object] | None:
        """Return the first task and leave it in; None if there is none."""
        with self._lock:
            return self._heap.peek()

    def is_empty(self) -> bool:
        """Return whether no task is waiting."""
        return self.size() == 0

    def size(self) -> int:
        """Return how many tasks are waiting."""
        with self._lock:
            return len(self._heap)

    def clear(self) -> list[Task[object]]:
        """Take all tasks out and return them, first things first."""
        with self._lock:
            return self._heap.drain()
