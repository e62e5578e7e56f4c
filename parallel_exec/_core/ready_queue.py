"""The jobs that are ready to run, by priority.

    push ──► heap of (-priority, sequence) ──► pop

Guarded by the executor's lock, which every caller holds. Who may take, and who is woken for it, `gate.py` and `idle.py` say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_exec.task_queue import PriorityHeap

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob


class ReadyQueue:
    """The queue of one executor's jobs: highest priority first, equals in the order they were added."""

    def __init__(self) -> None:
        self._heap: PriorityHeap[AnyJob] = PriorityHeap()
        self._extra = 0  # calls, beyond one a job

    def __len__(self) -> int:
        return len(self._heap)

    def calls(self) -> int:
        """Return how many calls the jobs stand for."""
        return len(self._heap) + self._extra

    def push(self, job: AnyJob) -> None:
        """Put a job in, at its own place."""
        if job.weight != 1:
            self._extra += job.weight - 1
        self._heap.push((-job.priority, job.sequence), job)

    def pop(self) -> AnyJob | None:
        """Take the first job out; None if there is none."""
        job = self._heap.pop()
        if job is not None and job.weight != 1:
            self._extra -= job.weight - 1
        return job

    def peek(self) -> AnyJob | None:
        """Return the first job, and leave it in; None if there is none."""
        return self._heap.peek()

    def discard(self, job: AnyJob) -> None:
        """Take out a job that is in."""
        self._extra -= job.weight - 1
        self._heap.discard(job.sequence)

    def jobs(self) -> list[AnyJob]:
        """Return all jobs, in no order."""
        return self._heap.items()

    def holds(self, job: AnyJob) -> bool:
        """Return whether a job is in, whatever its phase says, and count the calls anew; O(n)."""
        jobs = self._heap.items()
        self._extra = sum(each.weight - 1 for each in jobs)  # which `push` and `discard` may have been kept from
        return any(each is job for each in jobs)
