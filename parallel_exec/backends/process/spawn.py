"""Starting a worker process.

Guarantees:
    The child does not import the parent's main module by itself: a worker that only runs library functions starts faster,
    and a script without a `__main__` guard does not start itself again.
    Descriptors go to the child alone, and are closed here once it has them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from contextvars import Context
from multiprocessing import process, spawn
from typing import Any, ClassVar

from parallel_exec._sync.locks import hold_during_forks
from parallel_exec.backends._descriptors import Descriptor, fill_standard
from parallel_exec.backends._platform import without_sigint
from parallel_exec.backends.process import fork_server
from parallel_exec.backends.process.child.main import Start, WorkerConfig, main
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.backends.process.inherited import Inherited
from parallel_exec.backends.process.preload import preload

# Held while a worker is started. Also by forks: what is forked while another thread has one of the locks that
# `multiprocessing` takes then could start no process itself.
_lock = hold_during_forks(threading.RLock())
# The thread that starts a worker, and the worker's end of its pipe for tasks; guarded by the lock.
_launching: list[tuple[int, Descriptor]] = []
_SPARE = 8 + 12  # descriptors: what `multiprocessing` opens for a start at most, and another worker's pipes meanwhile
_MAIN_KEYS = ("init_main_from_name", "init_main_from_path")


def start(context: Any, config: WorkerConfig, name: str) -> Any:
    """Start a worker and return its `multiprocessing.Process`. Blocks for some milliseconds.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made.
    """
    inherited = Inherited.now()
    by_server = context.get_start_method() == "forkserver"
    # Not for a fork, in which a copy of the change would stay in force.
    without_main = contextlib.nullcontext() if context.get_start_method() == "fork" else _WithoutMain()
    with _lock, without_main:
        fill_standard()  # for what `multiprocessing` opens, here and in the child
        _check_descriptors()
        if by_server and not _find_server(inherited):  # nowhere can anything be written
            context, by_server = multiprocessing.get_context("spawn"), False
        output = (Descriptor(1), Descriptor(2)) if by_server else ()  # the server's are those of when it was started
        config = config._replace(inherited=inherited, output=output)
        child = context.Process(target=main, args=(Start(config),), name=name)
        _launching.append((threading.get_ident(), config.tasks))
        try:
            # (A child of the server has the server's signal mask, not this thread's.)
            with contextlib.nullcontext() if by_server else without_sigint(), no_fork_warning():
                Context().run(child.start)  # without the filters of this one, `fork_warning.py` says why
        finally:
            _launching.clear()
        # Else every start of any process polls this one, in whatever thread, and takes the news of its end from us.
        getattr(process, "_children", set()).discard(child)
    return child


def start_server() -> None:
    """Start the fork server, if there is none; the first worker has to wait for it otherwise. Blocks for some milliseconds.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made.
    """
    inherited = Inherited.now()
    with _lock, _WithoutMain():
        fill_standard()
        _check_descriptors()
        if _find_server(inherited):
            fork_server.start()


def _find_server(inherited: Inherited) -> bool:
    """See to it that the fork server, once it is started, serves such workers; False if it cannot be started here."""
    fork_server.renew(inherited)
    if not fork_server.has_place():
        return False
    preload()
    return True


def _check_descriptors() -> None:
    """Fail now rather than half-way, where `multiprocessing` would leave the pipes open that it has made."""
    spare: list[int] = []
    try:
        spare.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE))
    finally:
        for fd in spare:
            os.close(fd)


def is_launching(theirs: list[Descriptor]) -> bool:
    """Return whether this is the child being forked just now that is to have these descriptors."""
    return bool(theirs) and (threading.get_ident(), theirs[0]) in _launching


def main_module() -> dict[str, Any]:
    """Return what `multiprocessing.spawn.prepare` needs to import this process's main module."""
    data = spawn.get_preparation_data("parallel_exec")
    return {key: data[key] for key in (*_MAIN_KEYS, "sys_path", "dir", "orig_dir") if key in data}


class _WithoutMain:
    """While entered, what `multiprocessing` tells a child that *this thread* starts leaves out the main module.

    It has no setting for that; loky copies the whole of its start-up code instead. Other threads' children are told all.
    """

    _original: ClassVar[Any] = None  # what is replaced just now; guarded by `_lock`

    def __enter__(self) -> None:
        original = spawn.get_preparation_data
        type(self)._original = original
        mine = threading.get_ident()

        def preparation_data(name: str) -> dict[str, Any]:
            data: dict[str, Any] = original(name)
            if threading.get_ident() == mine:
                data = {key: value for key, value in data.items() if key not in _MAIN_KEYS}
            return data

        spawn.get_preparation_data = preparation_data

    def __exit__(self, *_: object) -> None:
        self.undo()

    @classmethod
    def undo(cls) -> None:
        """End it; does nothing if it is not in force. Also for a child that another thread forks meanwhile."""
        original, cls._original = cls._original, None
        if original is not None:
            spawn.get_preparation_data = original


os.register_at_fork(after_in_child=_WithoutMain.undo)
