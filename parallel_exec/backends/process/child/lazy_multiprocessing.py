"""What `multiprocessing` must know in a worker, told to it when it is imported there: most workers never import it.

Guarantees:
    Whenever a task imports it, `current_process`, `parent_process` and the authentication key are as in a process that it
    has started itself by a fork server, and the resource tracker is the parent's.
"""

from __future__ import annotations

import itertools
import os
import sys

from parallel_exec.backends.process.child.when_imported import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from parallel_exec.backends.process.child.start import Started


def prepare(started: Started, tracked: int, sentinel: int) -> None:
    """Be the process that `started` says, for `multiprocessing` when it is imported.

    Args:
        started: what the parent says.
        tracked: the descriptor by which the parent's resource tracker is told of something.
        sentinel: one that is readable when the parent has ended.
    """

    def adopt(module: Any) -> None:
        _adopt(module, started, sentinel)

    def use_tracker(module: Any) -> None:
        tracker = getattr(module, "_resource_tracker", None)
        if tracker is not None:  # else it starts another one
            tracker._fd = tracked

    sys.path[:] = started.path
    sys.argv[:] = started.argv
    _go_to(started.folder)
    when_imported("multiprocessing", adopt)
    when_imported("multiprocessing.resource_tracker", use_tracker)


def _go_to(folder: str | None) -> None:
    """Have the parent's current folder; also one that this user may not enter, and has from who started the program."""
    try:
        is_there = os.getcwd() == folder
    except OSError:  # where this process is has been removed
        is_there = False
    if folder is not None and not is_there:
        os.chdir(folder)


def _adopt(multiprocessing: Any, started: Started, sentinel: int) -> None:
    """Tell `multiprocessing` what it tells its own processes."""
    process: Any = sys.modules["multiprocessing.process"]
    this = multiprocessing.get_context("forkserver").Process(name=started.name)
    this._identity = started.identity
    this.authkey = started.authkey
    this._parent_pid = started.parent_pid
    process._current_process = this
    process._process_counter = itertools.count(1)
    process._parent_process = process._ParentProcess(started.parent_name, started.parent_pid, sentinel)
    process.ORIGINAL_DIR = started.orig_folder
    multiprocessing.set_start_method("forkserver", force=True)
