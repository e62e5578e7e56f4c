"""`ProcessBackend`: the settings of a process pool, checked; the package says how one works."""

from __future__ import annotations

import os
import pickle

from parallel_exec import _sharing
from parallel_exec._checks import (
    check_count,
    check_finalizer,
    check_flag,
    check_initializer,
    check_seconds,
    refuse_names,
)
from parallel_exec.backends import _exceptions, _pickling, _reducers
from parallel_exec.backends.base import Backend
from parallel_exec.backends.process import start_method
from parallel_exec.backends.process.environment import check_environment, check_modules, check_threads
from parallel_exec.backends.process.launcher import Launcher, WorkerCare
from parallel_exec.backends.process.payload import by_value, pack_initializer, unpicklable, why_not_importable
from parallel_exec.backends.process.pool import ProcessPool
from parallel_exec.backends.process.releases import Releases
from parallel_exec.errors import ParallelExecError, start_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal, Mapping, Sequence

    from typing_extensions import Never

    from parallel_exec._core.job import AnyJob
    from parallel_exec.backends._pickling import Pickled
    from parallel_exec.backends.base import SchedulerPort
    from parallel_exec.backends.process.repeats import Repeats


class ProcessBackend(Backend):
    """Runs attempts in worker processes, started as they are needed.

    Args:
        mp_context: a `multiprocessing` context or a start method's name; default: "forkserver", else "spawn".
        initializer: called with `initargs` in each worker before its first task.
        initargs: its arguments.
        max_tasks_per_child: a worker is replaced after so many tasks; None: never.
        memory_limit: bytes of data that a worker may have; a task that wants more gets `MemoryError`. None: no limit.
        startup_timeout: seconds that a worker has to become ready.
        capture_output: whether what a task writes to standard output and error, by C code and subprocesses as well, goes to the
            `output` of its `Attempt`. What belongs to no attempt that anybody can look at (the initializer's, that of the items
            of a `map`) goes to this process's standard error.
        max_memory_per_child: bytes of resident memory, what is shared not counted; a worker that has more after a task is
            replaced. None: never.
        threads_per_worker: how many threads NumPy, and other libraries for linear algebra or with OpenMP, may have in each
            worker; "auto": the CPUs that may be used, divided by the workers; None: as many as they like. It is set by
            environment variables; one that is set already is left as it is.
        env: environment variables of the workers, beside this process's.
        preload: names of modules that are imported before the first task: where there is a fork server, once for all workers.
        min_workers: how many workers stay, however long they have nothing to do.
        idle_timeout: seconds without work after which the others end; None: all stay.
        finalizer: called in each worker when it ends, unless it is killed, within two seconds; what it raises is logged.
    """

    name = "process"
    prefetches = True
    pickles_calls = True
    runs_chunks = True
    reports_in_one_thread = True

    def __init__(
        self,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        memory_limit: int | None = None,
        startup_timeout: float | None = 60.0,
        capture_output: bool = False,
        finalizer: Callable[[], object] | None = None,
        max_memory_per_child: int | None = None,
        threads_per_worker: int | Literal["auto"] | None = "auto",
        env: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
        min_workers: int = 0,
        idle_timeout: float | None = None,
        **_misspelt: Never,
    ) -> None:
        if _misspelt:
            refuse_names("ProcessBackend", _misspelt, ProcessBackend.__init__)
        if os.name != "posix":
            raise NotImplementedError('backend="process" needs POSIX: use ExecutorBackend(ProcessPoolExecutor()) here')
        check_initializer(initializer, initargs)
        context = start_method.get_context(mp_context)
        self._forks = start_method.forks(context)
        check_finalizer(finalizer)
        packed = pack_initializer(initializer, initargs, finalizer, has_main=self._forks)
        self._max_tasks = _count_or_none("max_tasks_per_child", max_tasks_per_child)
        self._least, self._idle_timeout = (
            check_count("min_workers", min_workers, 0),
            check_seconds("idle_timeout", idle_timeout),
        )
        care = WorkerCare(
            check_environment(env),
            check_threads(threads_per_worker),
            check_modules(preload),
            max_memory=_count_or_none("max_memory_per_child", max_memory_per_child),
        )
        # Here and not in the pool, as an unused pool is followed by another one in a forked child. Once its pool has ended it
        # lets go of what goes to workers with their start.
        self._releases = Releases()
        self._repeats: Repeats | None = None  # what large calls there were, once there are any
        self._launcher = Launcher(
            context,
            packed,
            _count_or_none("memory_limit", memory_limit),
            check_seconds("startup_timeout", startup_timeout),
            captures=check_flag("capture_output", capture_output),
            care=care,
        )

    def make_runner(self, port: SchedulerPort, limit: int) -> ProcessPool:
        """Return a new pool, which starts no process yet.

        Raises:
            WorkerStartError: no process can be started from here.
        """
        reason = start_method.forbidden()
        if reason is not None:
            raise start_error("process", reason)
        idle = None
        if self._idle_timeout is not None:
            from parallel_exec.backends.process.idle_workers import IdleWorkers  # few pools need it

            idle = IdleWorkers(self._least, self._idle_timeout)
        return ProcessPool(port, limit, self._launcher, self._max_tasks, self._releases, idle)

    def prepare(self, job: AnyJob) -> Pickled:
        """Return the call, pickled.

        Raises:
            TaskSerializationError: a part of it cannot be pickled.
            WorkerStartError: it lives in a main script that workers cannot import.
        """
        if self._launcher.wants_server:
            self._launcher.start_server()
        if _sharing.bind is None:
            return self._pickle(job)
        with _reducers.noting() as kept:
            pickled = self._pickle(job)
        for content in kept:
            content.used_by(self._releases.add)
        return pickled._replace(kept=kept) if kept else pickled

    def _pickle(self, job: AnyJob) -> Pickled:
        try:
            pickled = _pickling.dumps_call(job.fn, job.args, job.kwargs or {})
        except ParallelExecError:
            raise
        except Exception as error:
            raise unpicklable(job) from _exceptions.detached(error)
        if pickled.segment is not None:
            self._look_at_large(pickled, job.id)
        return by_value(job, pickled) if pickled.may_name_main() and not self._forks else pickled

    def _look_at_large(self, pickled: Pickled, task_id: str) -> None:
        repeats = self._repeats
        if repeats is None:
            from parallel_exec.backends.process.repeats import Repeats  # few calls are large

            repeats = self._repeats = Repeats()
        repeats.look(pickled, task_id)

    def store(self, content: Any) -> None:
        """Put something that is shared in memory, and keep nothing else of it."""
        content.store(has_main=self._forks)

    def check_limit(self, name: str, spec: Any) -> None:
        """Refuse a list of what cannot be pickled, or is of a main module that workers cannot import."""
        from parallel_exec.limits import check_items

        check_items(name, spec, self._dumps_item)

    def _dumps_item(self, item: Any) -> None:
        reason = why_not_importable() if b"main__" in pickle.dumps(item) and not self._forks else ""
        if reason:
            raise TypeError(f"it is of the main module, {reason}")

    def pack_row(self, call: Pickled, columns: list[list[Any]]) -> Pickled:
        """Return the calls of a row of items, as one pickle."""
        return _pickling.dumps_row(call, columns)

    def pack_pickled(self, call: Pickled, payloads: list[Pickled]) -> Pickled:
        """Return the calls of items that were pickled one by one."""
        return _pickling.dumps_pickled(call, payloads)


def _count_or_none(name: str, value: int | None) -> int | None:
    return None if value is None else check_count(name, value, 1)
