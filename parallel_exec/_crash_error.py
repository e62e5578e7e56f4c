"""`WorkerCrashedError`, apart from the other errors as its base brings `multiprocessing` along; see `errors.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_exec.errors import ParallelExecError, broken_type, how_ended

if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool
else:
    BrokenProcessPool = broken_type("process")


class WorkerCrashedError(ParallelExecError, BrokenProcessPool):
    """A worker process died while it ran the task. Only this task is lost: the pool goes on.

    Attributes:
        pid: the worker's process id.
        exitcode: its exit code, negative for a signal; None if unknown.
        task_id: the task it was running.
    """

    __module__ = "parallel_exec.errors"  # where it is to be had

    def __init__(self, pid: int, exitcode: int | None, task_id: str) -> None:
        super().__init__(f"worker process {pid} died ({how_ended(exitcode)}) while it ran task {task_id!r}")
        self.pid = pid
        self.exitcode = exitcode
        self.task_id = task_id
