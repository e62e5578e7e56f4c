"""The worker processes of one executor, as its scheduler sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallel_exec.backends.base import Runner, SchedulerPort
from parallel_exec.backends.process.io_loop import IoLoop

if TYPE_CHECKING:
    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends.process.launcher import Launcher


class ProcessPool(Runner):
    """Runs attempts in worker processes.

    Attributes:
        io: the thread that serves the workers.
    """

    def __init__(self, port: SchedulerPort, limit: int, launcher: Launcher, max_tasks: int | None) -> None:
        super().__init__(port, limit)
        self.io = IoLoop(port, limit, launcher, max_tasks)

    def preempt(self, key: tuple[int, int]) -> None:
        """Take back what comes after `key`. Called with the lock held."""
        self.io.assignments.preempt(key)

    def recall_all(self) -> None:
        """Take back everything that has not begun. Called with the lock held."""
        self.io.assignments.take_back_all()

    def recall(self, future: AnyJob) -> bool:
        """Take a future back if it has not begun. Called with the lock held."""
        return self.io.assignments.recall(future)

    def handed_out(self) -> list[AnyJob]:
        """Return what has not been begun. Called with the lock held."""
        return self.io.assignments.handed_out()

    def stop(self, future: AnyJob, number: int, error: BaseException) -> None:
        """Kill the worker that runs the attempt; what the worker has not begun goes back first."""
        self.io.assignments.stop(future, number, error)

    def terminate(self) -> None:
        """Send each worker SIGTERM; a task that it ends fails like one whose worker crashed. Not those that still start."""
        with self.port.lock:
            for handle in self.io.assignments.handles:
                if handle.ready:
                    handle.terminate()

    def recheck(self) -> None:
        """Have the I/O thread look whether it is time to end."""
        self.io.recheck()

    def resize(self, limit: int) -> None:
        """Change the limit; workers beyond it end when they are free."""
        self.io.resize(limit)

    def join(self) -> None:
        """Wait until all workers have ended."""
        self.io.join()

    def workers(self) -> int:
        """Return how many workers there are."""
        return sum(handle.ready for handle in self.io.assignments.handles)

    def after_fork(self) -> None:
        """Close the copies of the workers' pipes, in a forked child."""
        self.io.after_fork()
