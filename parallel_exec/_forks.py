"""What becomes of a process that a task forks: it ends when the task's call does, as a process of `multiprocessing` would.

    parent: call ───────────────────────► returns ──► the task's outcome
              └─ os.fork ──► child: ... ──► returns ──► the child's end, with its exit status

The child has a copy of the thread that runs the call, with all that comes after the call: pipes and queues that are the
parent's. So whoever runs a call notes `generation` first, and once it is back, calls `end_child` with it. (Where a call
takes less than a microsecond, `generation` is compared in place.) The same holds, by `end_copy`, for callbacks.

Guarantees:
    No code of ours that follows a call runs in a child: what the parent was to do next is done once.
    A child may use anything meanwhile, new executors among it, whose work is finished before it ends.
    The status is 0 if the call returned, 1 after an exception, whose traceback is on standard error, and n after
    `sys.exit(n)`. Standard streams are flushed; `atexit` handlers, which are the parent's, do not run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from parallel_exec._current import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

generation = 0  # by how many forks this process is away from the one that imported this; changes in a new child only


def _count() -> None:
    global generation  # noqa: PLW0603  # the one place that does, once a process
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


def end_child(born: int, error: BaseException | None = None) -> None:
    """End this process if it was forked since `generation` was `born`; `error` is what the call raised."""
    if generation != born:
        end(error)


def end_copy(born: int, error: BaseException | None = None) -> None:
    """Do as `end_child`, after a callback or a hook in a thread of ours. In anybody else's thread the child goes on."""
    if generation != born and current.pool is not None:
        end(error)


def finalize(finalizer: Callable[[], object], worker: str) -> None:
    """Call a worker's finalizer, and log what it raises; `worker` says whose it is."""
    born = generation
    try:
        finalizer()
        end_child(born)
    except BaseException as error:
        end_child(born, error)
        import logging  # a worker process may do without

        logging.getLogger("parallel_exec").exception("the finalizer of %s raised", worker)


def end(error: BaseException | None = None) -> NoReturn:
    """End this process, which a call has forked, now that the call has ended; `error` is what it raised."""
    status = 1
    try:
        status = _report(error)
        _finish()
    except BaseException as failed:
        status = _report(failed) or 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(status)


def _report(error: BaseException | None) -> int:
    """Say on standard error what a call raised; returns the exit status."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        with contextlib.suppress(BaseException):
            sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    with contextlib.suppress(BaseException):
        sys.stderr.write(f"{error.code}\n")
    return 1


def _finish() -> None:
    """Do what `multiprocessing` does at the end of its processes: wait for what the child has started itself."""
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        known: Any = sys.modules["multiprocessing.process"]
        children = getattr(known, "_children", ())
        known._children = {child for child in children if child._parent_pid == os.getpid()}
        util._exit_function()
    pools: Any = sys.modules.get("concurrent.futures.thread")
    if pools is not None:  # at exit it waits for the threads of its pools: this may be the copy of one
        pools._threads_queues.pop(threading.current_thread(), None)
    threading._shutdown()  # type: ignore[attr-defined]  # also finishes what executors have
