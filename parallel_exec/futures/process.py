"""`ProcessPoolExecutor`, with the standard library's constructor and errors."""

from __future__ import annotations

import concurrent.futures.process
import operator
from concurrent.futures.process import BrokenProcessPool

from parallel_exec._outcome import Failure
from parallel_exec.backends.process import start_method
from parallel_exec.backends.process.backend import ProcessBackend
from parallel_exec.futures.pool import Pool, check_initializer, check_max_workers, cpu_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]


class ProcessPoolExecutor(Pool, concurrent.futures.ProcessPoolExecutor):
    """Runs calls in processes: the standard library's `ProcessPoolExecutor`, and all that a `ParallelExecutor` has.

    Args:
        max_workers: most processes; default: as many as there are CPUs.
        mp_context: a `multiprocessing` context, or a start method's name; default: "forkserver" where there is one, else
            "spawn", on every Python.
        initializer: called with `initargs` in each process before its first call. If it raises, the pool is broken: what
            waits, and what is submitted then, raises `BrokenProcessPool`.
        initargs: its arguments.
        max_tasks_per_child: a process is replaced after so many calls; None: never.

    Raises:
        TypeError, ValueError: as the standard library's does.
        BrokenProcessPool: no process can be started from here.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = cpu_count()
        check_max_workers(max_workers)
        check_initializer(initializer)
        context = start_method.get_context(mp_context)
        if max_tasks_per_child is not None:
            _check_max_tasks(max_tasks_per_child, context)
        # The environment of its processes is this one's, as in the standard library's.
        backend = ProcessBackend(context, initializer, tuple(initargs), max_tasks_per_child, threads_per_worker=None)
        Pool.__init__(self, operator.index(max_workers), backend)

    def terminate_workers(self) -> None:
        """End the pool now: cancel what waits, and send each worker SIGTERM. Does not wait.

        What runs ends with `BrokenProcessPool`, unless it handles the signal and returns.
        """
        self.shutdown(wait=False, cancel_futures=True)
        self._completion.runner.terminate()

    def kill_workers(self) -> None:
        """End the pool now: cancel what waits, and kill each worker with what it started. Does not wait.

        What runs ends with `BrokenProcessPool`.
        """
        self.shutdown(wait=False, cancel_futures=True)
        why = "the task was running when kill_workers() ended the pool"
        self._completion.stop_all(self._completion.in_hand(), lambda future: Failure(BrokenProcessPool(why)))


def _check_max_tasks(count: object, context: Any) -> None:
    """Refuse what the standard library refuses, in its words."""
    if not isinstance(count, int):
        raise TypeError("max_tasks_per_child must be an integer")
    if count <= 0:
        raise ValueError("max_tasks_per_child must be >= 1")
    if start_method.forks(context):
        raise ValueError(
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; supply a different mp_context."
        )
