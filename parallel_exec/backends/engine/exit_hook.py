"""What is pending in other people's executors, at interpreter exit.

    our hook: finish ──► pools' own hooks: close ──► threads are joined

Hooks are called last in, first out, and an executor's module has its own since it was imported: so ours is put in again for
each new type of executor that is seen.

An exit hook that raises is the last one that is called, and what the others were to finish is lost. The one of the standard
library's process pools does, before Python 3.14, if a pool closes itself meanwhile:

    hook: _global_shutdown = True           manager thread of a pool: a call has ended, or the pool was collected
    hook: the pipe is not closed yet        manager: nothing is pending, and the interpreter is ending
                                            manager: closes the pipe, with the pool's lock held
    hook: writes to the pipe, for the manager to wake up: EBADF

Guarantees:
    Our pending work is finished while the executor still takes it.
    Process pools are woken up with their lock held, as their own `submit` does it: the pipe is open, or nothing is written.
    They close when they would anyway: whoever uses one at exit, between our hook and theirs, still can.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from parallel_exec.backends.engine.runner import EngineRunner

# Alive in this process, the newest last; and the types whose modules' exit hooks come after ours. Module state, as the
# interpreter's exit is the process's.
_runners: list[weakref.ref[EngineRunner]] = []
_hooked: set[type] = set()


def finish_at_exit(runner: EngineRunner, kind: type[Executor]) -> None:
    """See that our pending work is finished at interpreter exit while the executor, of this type, still takes it."""
    _runners[:] = [*(other for other in _runners if other() is not None), weakref.ref(runner)]
    if kind not in _hooked:
        _hooked.add(kind)
        getattr(threading, "_register_atexit", atexit.register)(_at_exit)


def _at_exit() -> None:
    try:
        # One that was made later may use an earlier one as its engine, not the other way round.
        for reference in reversed(_runners):
            runner = reference()
            if runner is not None:
                runner.finish()
    finally:
        _lock_wakeups()


def _lock_wakeups() -> None:
    """Have the exit hook of the standard library's process pools take their locks; harmless when repeated."""
    pools: Any = sys.modules.get("concurrent.futures.process")
    if sys.version_info >= (3, 14) or pools is None:
        return
    wakeups = pools._threads_wakeups
    for manager, wakeup in list(wakeups.items()):
        if not isinstance(wakeup, _LockedWakeup):
            wakeups[manager] = _LockedWakeup(manager, wakeup)


class _LockedWakeup:
    """What a pool's manager thread is woken up by, with the pool's lock held."""

    def __init__(self, manager: Any, wakeup: Any) -> None:
        self._manager = weakref.ref(manager)
        self._inner = wakeup

    def wakeup(self) -> None:
        """Wake the manager thread up, unless it has ended, or this is a forked child, which has none."""
        manager = self._manager()
        if manager is None or not manager.is_alive():  # in the child the lock may be held for ever
            return
        pool = manager.executor_reference()  # kept: what collects it, maybe this thread, takes the lock, too
        with manager.shutdown_lock:
            self._inner.wakeup()
        del pool
