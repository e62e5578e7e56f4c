"""What the death of a worker means for the call that it ran: the error, with the place where that was, and a line in the log.

a dead worker ─► how it ended, what it wrote, whether we have killed it, and what for ─► error_of ─► the attempt's error
"""

from __future__ import annotations

import signal
from logging import INFO, WARNING

from parallel_exec._dispatcher import say
from parallel_exec._names import call_name, describe_failure
from parallel_exec.backends.process.oom import OomKills
from parallel_exec.errors import TaskTimeoutError, how_ended, located

TYPE_CHECKING = False
if TYPE_CHECKING:
    from parallel_exec._stacks import Stacks
    from parallel_exec.backends.process.worker_handle import WorkerHandle

_NO_MEMORY = (
    "the kernel killed it because memory ran out. Let fewer run at once (max_concurrency), or set "
    "ProcessBackend(memory_limit=...): a task that takes more gets a MemoryError"
)
_MAYBE_MEMORY = "a process sent it that signal or, if the machine was short of memory, the kernel"
# The interpreter's own fatal errors: it writes where it is to standard error, and turns faulthandler off, before it aborts.
_ON_STDERR = "what it said of that is on its standard error, or with capture_output in Attempt.output"
_ASKED_TO_END = (-signal.SIGTERM, -signal.SIGINT)  # how one ends that had nothing to do when it was told to
_NOT_MEMORY = "a process sent it that signal; the kernel has killed none because memory ran out"


class Deaths:
    """Explains the deaths of one pool's workers; the I/O thread's."""

    def __init__(self) -> None:
        self._oom_kills: OomKills | None = None

    def begin(self) -> None:
        """Count what the kernel kills from now on."""
        self._oom_kills = OomKills()

    def error_of(
        self, handle: WorkerHandle, exitcode: int | None, fn: object, task_id: str, error: BaseException | None
    ) -> BaseException:
        """Return the error of the attempt that a worker ran when it died, and log it.

        Args:
            handle: the worker.
            exitcode: how its process ended.
            fn: what was called.
            task_id: the task.
            error: what it was killed for; None if it was not killed for the sake of this attempt.
        """
        stacks = handle.process.stacks()
        if error is None:
            from parallel_exec.errors import (
                WorkerCrashedError,
            )  # loads the stdlib's process pool; only a crash needs it

            hint = self._hint(handle, exitcode, stacks)
            stacks = None if stacks is None else stacks._replace(call=call_name(fn))
            error = WorkerCrashedError(handle.process.pid, exitcode, task_id, stacks, hint)
            say(WARNING, "%s", error)
        elif type(error) is TaskTimeoutError:
            error = located(error, stacks, fn)
            say(WARNING, "%s; its worker process %d was killed", error, handle.process.pid)
        else:
            why = describe_failure(error)
            say(INFO, "worker process %d was killed while it ran task %r: %s", handle.process.pid, task_id, why)
        return error

    def tell_of_idle(self, handle: WorkerHandle, exitcode: int | None) -> None:
        """Log the death of a worker that was ready, and ran nothing, if a signal has ended it: nobody else tells of that."""
        if exitcode is None or exitcode >= 0 or exitcode in _ASKED_TO_END or handle.process.was_killed:
            return
        stacks = handle.process.stacks()
        hint = self._hint(handle, exitcode, stacks)
        where = "" if stacks is None else stacks.where()
        more = (f": {hint}" if hint else "") + (f", at {where}" if where else "")
        say(
            WARNING, "worker process %d died (%s) while it ran no task%s", handle.process.pid, how_ended(exitcode), more
        )

    def _hint(self, handle: WorkerHandle, exitcode: int | None, stacks: Stacks | None) -> str:
        """Say who has killed a worker, if it was killed and we have not done so; or where one that has aborted says why."""
        if exitcode == -signal.SIGABRT and stacks is None:
            return _ON_STDERR
        if exitcode != -signal.SIGKILL or handle.process.was_killed or self._oom_kills is None:
            return ""
        for_memory = self._oom_kills.explain()
        return _MAYBE_MEMORY if for_memory is None else _NO_MEMORY if for_memory else _NOT_MEMORY
