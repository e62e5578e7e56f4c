"""Processes: each worker has its own pipes and permits, and one thread in the parent serves them all.

                    ┌── pump: take ──► hand_out ──► worker 1..n
    I/O thread ─────┤── frames ──► begin, report
    (a selector)    ├── peek: what is running? stuck? ──► take back
                    └── a death: frames, journal, the culprit ──► replacement

Tiny tasks go over in batches, so that a worker need not wait for the parent between two; permits (`worker_handle.py`) make it
possible to take back what has not begun: when another worker is idle, when something of higher priority comes, when a
task is cancelled, or when a batch turns out to be stuck behind a long task.

Guarantees:
    Workers share nothing: no lock, no queue, no pipe. Killing one touches only the task it was running; what it had
    finished counts, what it had not begun goes back uncharged.

The parts: `launcher.py` starts workers, `preload.py` makes that fast, `worker_handle.py` is one of them seen from here,
`io_loop.py` the thread, `prefetch.py` says how much to send ahead, `payload.py` and `_pickling.py` what it is made of,
`wire.py` how it is laid out, `segments.py` how large buffers travel, `child/main.py` what runs in the child.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

from parallel_exec._checks import check_count, check_initializer, check_seconds
from parallel_exec._hints import refuse_names
from parallel_exec.backends import _pickling
from parallel_exec.backends.base import Backend, SchedulerPort
from parallel_exec.backends.process import spawn
from parallel_exec.backends.process.io_loop import IoLoop
from parallel_exec.backends.process.launcher import Launcher
from parallel_exec.backends.process.payload import pack, pack_initializer
from parallel_exec.errors import start_error

if TYPE_CHECKING:
    from typing_extensions import Never

    from parallel_exec._core.job import AnyJob


class ProcessBackend(Backend):
    """Runs attempts in worker processes, started as they are needed.

    Args:
        mp_context: a `multiprocessing` context or a start method's name; default: "forkserver", else "spawn".
        initializer: called with `initargs` in each worker before its first task.
        initargs: its arguments.
        max_tasks_per_child: a worker is replaced after so many tasks; None: never.
        memory_limit: bytes of data that a worker may have; a task that wants more gets `MemoryError`. None: no limit.
        startup_timeout: seconds that a worker has to become ready.
    """

    name = "process"
    can_kill = True
    prefetches = True
    pickles_calls = True
    runs_chunks = True
    has_one_servant = True

    def __init__(
        self,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        memory_limit: int | None = None,
        startup_timeout: float | None = 60.0,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("ProcessBackend", _misspelt, ProcessBackend.__init__)
        if os.name != "posix":
            raise NotImplementedError('backend="process" needs POSIX: use ExecutorBackend(ProcessPoolExecutor()) here')
        check_initializer(initializer, initargs)
        self._context = spawn.get_context(mp_context)
        self._forks = spawn.forks(self._context)
        self._initializer = (
            None if initializer is None else pack_initializer(initializer, initargs, has_main=self._forks)
        )
        self._max_tasks = (
            None if max_tasks_per_child is None else check_count("max_tasks_per_child", max_tasks_per_child, 1)
        )
        self._memory_limit = None if memory_limit is None else check_count("memory_limit", memory_limit, 1)
        self._startup_timeout = check_seconds("startup_timeout", startup_timeout)
        self._pickler = _pickling.CallPickler()
        self._io: IoLoop | None = None  # written once, by `bind`

    def bind(self, source: SchedulerPort, limit: int) -> None:
        """Connect to the scheduler.

        Raises:
            WorkerStartError: no process can be started from here.
        """
        reason = spawn.forbidden()
        if reason is not None:
            raise start_error("process", reason)
        super().bind(source, limit)
        launcher = Launcher(self._context, self._initializer, self._memory_limit, self._startup_timeout)
        self._initializer = None  # it is the pool's now, which ends before this does
        self._io = IoLoop(source, limit, launcher, self._max_tasks)

    @property
    def io(self) -> IoLoop:
        """The thread that serves the workers."""
        assert self._io is not None, "bind() comes first"
        return self._io

    def prepare(self, future: AnyJob) -> None:
        """Pickle the call."""
        future.payload = pack(future, self._pickler, has_main=self._forks)

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
        with self.source.lock:
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

    def renew(self) -> bool:
        """Do nothing: what was not used has opened nothing."""
        return True

    def after_fork(self) -> None:
        """Close the copies of the workers' pipes, in a forked child."""
        self.io.after_fork()
