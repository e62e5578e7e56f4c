"""How worker processes are started: by which method of `multiprocessing`, and why none can be."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import process, spawn
from typing import Any


def get_context(wanted: Any) -> Any:
    """Return a `multiprocessing` context for a start method's name, a context, or None for the best there is.

    Raises:
        ValueError: this platform has no such start method.
    """
    if wanted is None:
        methods = multiprocessing.get_all_start_methods()
        return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if isinstance(wanted, str):
        methods = multiprocessing.get_all_start_methods()
        if wanted not in methods:
            raise ValueError(f"mp_context takes one of {', '.join(map(repr, methods))} or a context, not {wanted!r}")
        return multiprocessing.get_context(wanted)
    if not hasattr(wanted, "Process") or not hasattr(wanted, "Semaphore"):
        hint = ": how many workers is ParallelExecutor(max_concurrency=...)" if isinstance(wanted, int) else ""
        raise TypeError(f"mp_context takes a start method's name or a multiprocessing context, not {wanted!r}{hint}")
    return wanted


def forks(context: Any) -> bool:
    """Return whether workers are copies of this process, which have its main module."""
    return _method(context) == "fork"


def has_server(context: Any) -> bool:
    """Return whether workers are forked by the fork server."""
    return _method(context) == "forkserver"


def _method(context: Any) -> str:
    # Where the default is asked for and not yet settled, asking must not settle it: the first in the list is it.
    method: str | None = context.get_start_method(allow_none=True)
    return method or multiprocessing.get_all_start_methods()[0]


def forbidden() -> str | None:
    """Say why no process can be started from here, and what to do; None if one can."""
    this: Any = process.current_process()
    if getattr(this, "_inheriting", False):
        return (
            "worker processes cannot be started while a worker imports this main module: put the code that starts them "
            'under `if __name__ == "__main__":`'
        )
    if _stands_in_for_a_worker():
        return (
            "this program was started by multiprocessing to be a worker process, and runs its own code instead, which would "
            "start it again and again: a frozen application must call multiprocessing.freeze_support() first of all under "
            '`if __name__ == "__main__":`, before it makes an executor'
        )
    if this.daemon:
        return (
            "a daemonic multiprocessing process may not have children: start it with daemon=False, "
            'or use backend="thread" in it. (Such are the workers of a multiprocessing.Pool, and of Celery\'s prefork pool: '
            "there, start the Celery worker with --pool=threads or --pool=solo)"
        )
    return None


def _stands_in_for_a_worker() -> bool:
    """Return whether `multiprocessing` has started this program where it would start Python, as it does a frozen one.

    It does not know, and so is told in vain what to do. (What knows has the command line of the process that started it.)
    """
    words = sys.argv[1:]
    return words[:1] == ["--multiprocessing-fork"] or any(
        option == "-c" and code.startswith("from multiprocessing.") for option, code in zip(words, words[1:])
    )


def lacking(context: Any) -> str | None:
    """Say what there must be before a process can be started, and is not, and what to do; None if nothing lacks."""
    if forks(context):
        return None
    executable: Any = spawn.get_executable()
    if not executable:
        return (
            "no worker process can be started: there is no sys.executable, as in a program that embeds Python. "
            'Name an interpreter by multiprocessing.set_executable(), or use mp_context="fork" or backend="thread"'
        )
    if not os.access(executable, os.X_OK):
        return (
            f"no worker process can be started: {os.fsdecode(executable)}, which sys.executable or "
            "multiprocessing.set_executable() names, is not there or cannot be run"
        )
    return None
