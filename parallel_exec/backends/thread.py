"""`ThreadBackend`: the settings of a pool of threads, checked; `_thread_pool.py` says how one works."""

from __future__ import annotations

import itertools

from parallel_exec._checks import check_count, check_finalizer, check_initializer, check_seconds, refuse_names
from parallel_exec.backends._thread_pool import ThreadRunner, ThreadSettings
from parallel_exec.backends.base import Backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from typing_extensions import Never

    from parallel_exec.backends.base import SchedulerPort

_backends = itertools.count()


class ThreadBackend(Backend):
    """Runs attempts in threads of this process, started as they are needed.

    They are daemons, and a thread that a task starts is one, too, unless it is made with `daemon=False`. A task runs in a
    copy of its submitter's context, so context variables (and `decimal`'s context) that `initializer` sets do not reach it.

    Args:
        initializer: called with `initargs` in each thread before its first task.
        initargs: its arguments.
        thread_name_prefix: names the threads.
        max_abandoned: how many threads may be stuck in tasks that nobody waits for any more while all slots are kept up;
            each one beyond costs a slot until it ends. The default is a guess: a stuck thread costs some 50 kB, and
            hundreds of them mean that the work belongs into processes.
        finalizer: called in each thread when it ends; what it raises is logged.
        min_workers: how many threads stay, however long they have nothing to do.
        idle_timeout: seconds without work after which the others end; None: all stay.
    """

    name = "thread"
    runs_here = True

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        thread_name_prefix: str = "",
        max_abandoned: int = 256,
        finalizer: Callable[[], object] | None = None,
        min_workers: int = 0,
        idle_timeout: float | None = None,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("ThreadBackend", _misspelt, ThreadBackend.__init__)
        check_initializer(initializer, initargs)
        if not isinstance(thread_name_prefix, str):
            raise TypeError(f"thread_name_prefix takes a string, not {thread_name_prefix!r}")
        check_finalizer(finalizer)
        self._settings = ThreadSettings(
            initializer,
            initargs,
            thread_name_prefix or f"parallel_exec-{next(_backends)}",
            check_count("max_abandoned", max_abandoned, 0),
            finalizer,
            check_count("min_workers", min_workers, 0),
            check_seconds("idle_timeout", idle_timeout),
        )

    def auto_concurrency(self) -> int:
        """Return how many threads suit the CPUs that this process may use."""
        from parallel_exec._cpus import usable_threads  # only who asks for it needs it

        return usable_threads()

    def make_runner(self, port: SchedulerPort, limit: int) -> ThreadRunner:
        """Return a new runner."""
        return ThreadRunner(port, limit, self._settings)
