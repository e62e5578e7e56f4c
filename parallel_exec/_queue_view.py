"""`executor.queue`: the tasks that wait for a slot, as a `TaskQueue`.

Guarantees:
    Nothing is lost: a task that is taken out here ends as cancelled for whoever holds its future.
"""

from __future__ import annotations

from parallel_exec._core.completion import CANCELLED
from parallel_exec._core.phase import Phase
from parallel_exec.task import Task
from parallel_exec.task_queue import TaskQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from parallel_exec._core.completion import Completion
    from parallel_exec._core.monitor import Monitor


class LiveQueue(TaskQueue):
    """A view of an executor's queue. Thread-safe."""

    def __init__(self, monitor: Monitor, completion: Completion, add_task: Callable[[Task[Any]], object]) -> None:
        self._lock = monitor.lock
        self._ready = monitor.ready
        self._completion = completion
        self._add_task = add_task

    def enqueue(self, task: Task[Any]) -> None:
        """Put a task in, as `add_task` does."""
        if not isinstance(task, Task):
            raise TypeError(f"enqueue takes a Task, not {task!r}: write enqueue(Task(function))")
        self._add_task(task)

    def dequeue(self) -> Task[Any] | None:
        """Take the first task out; its future ends as cancelled. None if there is none."""
        while True:
            with self._lock:
                job = self._ready.first()
                if job is not None and job.phase == Phase.DONE:  # this call has interrupted what is taking it out
                    waiting = [each for each in self._ready.jobs() if each.phase != Phase.DONE]
                    job = min(waiting, key=lambda each: (-each.priority, each.sequence), default=None)
            if job is None:
                return None
            if self._completion.cancel_waiting(job, CANCELLED):
                return job.task

    def peek(self) -> Task[Any] | None:
        with self._lock:
            job = self._ready.first()
        return None if job is None else job.task

    def size(self) -> int:
        with self._lock:
            return self._ready.calls()

    def clear(self) -> list[Task[Any]]:
        """Take all tasks out and return them, first things first; their futures end as cancelled."""
        tasks: list[Task[Any]] = []
        while True:
            with self._lock:
                jobs = sorted(self._ready.jobs(), key=lambda job: (-job.priority, job.sequence))
            ended = [job.task for job in jobs if self._completion.cancel_waiting(job, CANCELLED)]
            if not ended:
                return tasks
            tasks += ended
