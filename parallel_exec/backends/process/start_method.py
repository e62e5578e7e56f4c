"""How worker processes are started: by our fork server, or by which method of `multiprocessing`, and why none can be.

The first is what `multiprocessing` calls "forkserver", and stands for that wherever a user asks for it: it is None here, and
needs nothing of `multiprocessing`. Whatever else is wanted is a context of `multiprocessing`'s, or of somebody else's.
"""

from __future__ import annotations

import os
import socket
import sys

from parallel_exec.backends.process import fork_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SERVER = "forkserver"


def current_folder() -> str | None:
    """Return the current folder; None: it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


# The folder in which the program was started, as far as that is known. Noted now: `multiprocessing` notes the one that is
# current at its own import, which may come with the first call only, when the program has gone elsewhere.
ORIGIN: str | None = getattr(sys.modules.get("multiprocessing.process"), "ORIGINAL_DIR", None) or current_folder()


def search_path() -> list[str]:
    """Return `sys.path` for a worker: its empty entry is the folder where the program was started, as for `multiprocessing`."""
    return [each or ORIGIN or "" for each in sys.path]


def get_context(wanted: Any) -> Any:
    """Return a context for a start method's name, a context, or None for the best there is; None: our fork server.

    Raises:
        ValueError: this platform has no such start method.
    """
    if wanted is None or wanted == _SERVER:
        if _has_server():
            return None
        if wanted is None or _is_frozen():
            wanted = "spawn"  # of which freezers know
    import multiprocessing

    if isinstance(wanted, str):
        methods = multiprocessing.get_all_start_methods()
        if wanted not in methods:
            raise ValueError(f"mp_context takes one of {', '.join(map(repr, methods))} or a context, not {wanted!r}")
        return multiprocessing.get_context(wanted)
    if not hasattr(wanted, "Process") or not hasattr(wanted, "Semaphore"):
        hint = ": how many workers is ParallelExecutor(max_concurrency=...)" if isinstance(wanted, int) else ""
        raise TypeError(f"mp_context takes a start method's name or a multiprocessing context, not {wanted!r}{hint}")
    theirs = type(wanted).__module__ in ("multiprocessing.context", "builtins")  # the second: the package itself
    return None if theirs and _method(wanted) == _SERVER and _has_server() else wanted


def _has_server() -> bool:
    """Return whether a fork server can be started: not by a frozen program, which would start itself."""
    return hasattr(os, "posix_spawn") and hasattr(socket, "SCM_RIGHTS") and not _is_frozen()


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def forks(context: Any) -> bool:
    """Return whether workers are copies of this process, which have its main module."""
    return context is not None and _method(context) == "fork"


def _method(context: Any) -> str:
    # Where the default is asked for and not yet settled, asking must not settle it: the first in the list is it.
    method: str | None = context.get_start_method(allow_none=True)
    return method or str(context.get_all_start_methods()[0])


def main_module() -> dict[str, Any]:
    """Return what `multiprocessing.spawn.prepare` needs to import this process's main module: as it would say itself."""
    main = sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None)
    path = getattr(main, "__file__", None)
    folder = current_folder()
    data: dict[str, Any] = {"orig_dir": ORIGIN}
    if folder is not None:
        data["dir"] = folder
    if name is not None:
        data["init_main_from_name"] = name
    elif path is not None:
        data["init_main_from_path"] = os.path.normpath(os.path.join(ORIGIN or "", path))
    return data


def forbidden() -> str | None:
    """Say why no process can be started from here, and what to do; None if one can."""
    # (`current_process` is there, and fails, while another thread is just importing it.)
    this: Any = getattr(sys.modules.get("multiprocessing.process"), "_current_process", None)
    if getattr(this, "_inheriting", False):
        return (
            "worker processes cannot be started while a worker imports this main module: put the code that starts them "
            'under `if __name__ == "__main__":`'
        )
    if _stands_in_for_a_worker():
        return (
            "this program was started to be a worker process, and runs its own code instead, which would "
            "start it again and again: a frozen application must call multiprocessing.freeze_support() first of all under "
            '`if __name__ == "__main__":`, before it makes an executor'
        )
    if this is not None and this.daemon:
        return (
            "a daemonic multiprocessing process may not have children: start it with daemon=False, "
            'or use backend="thread" in it. (Such are the workers of a multiprocessing.Pool, and of Celery\'s prefork pool: '
            "there, start the Celery worker with --pool=threads or --pool=solo)"
        )
    return None


def _stands_in_for_a_worker() -> bool:
    """Return whether `multiprocessing` has started this program where it would start Python, as it does a frozen one.

    So do we for the fork server. It does not know, and so is told in vain what to do. (What knows has the command line of the
    process that started it.)
    """
    words = sys.argv[1:]
    return words[:1] == ["--multiprocessing-fork"] or any(
        option == "-c" and code.startswith(("from multiprocessing.", fork_server.CODE))
        for option, code in zip(words, words[1:])
    )


def lacking(context: Any) -> str | None:
    """Say what there must be before a process can be started, and is not, and what to do; None if nothing lacks."""
    if forks(context):
        return None
    executable: Any = fork_server.executable()
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
