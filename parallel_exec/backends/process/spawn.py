"""Starting a worker process, by the fork server or by `multiprocessing`.

Guarantees:
    Descriptors go to the child alone, and are closed here once it has them.
    The fork server is started before `multiprocessing` is imported, if the program has not done so.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading

from parallel_exec._sync.clock import time
from parallel_exec._sync.locks import hold_during_forks
from parallel_exec.backends._descriptors import Descriptor, fill_standard
from parallel_exec.backends.process import fork_server, start_method
from parallel_exec.backends.process.inherited import Inherited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from parallel_exec.backends.process.child.start import Started, WorkerConfig

# Held while a worker is started. Also by forks: what is forked while another thread has one of the locks that
# `multiprocessing` takes then, or is importing what a start needs, could start no process itself.
lock = hold_during_forks(threading.RLock())
# The thread that starts a worker, and the worker's end of its pipe for tasks; guarded by the lock.
_launching: list[tuple[int, Descriptor]] = []
_LAST_START = 1.0  # seconds that the exit of the interpreter waits for a start under way; a guess
_LOOK = 0.002  # seconds between two looks whether the fork server is ready, if it has much to import; a guess
_SPARE = 8 + 12  # descriptors: what is opened for a start at most, and another worker's pipes meanwhile


def start(
    context: Any, config: WorkerConfig, name: str, kind: fork_server.Kind, is_wanted: Callable[[], bool]
) -> tuple[Any, Any]:
    """Start a worker; returns its process, and the semaphore of its permits if that was made with it.

    Blocks for some milliseconds; and, without the lock, while the fork server imports modules of the user's.

    Args:
        context: a `multiprocessing` context; None: by the fork server.
        config: what the worker is told, less what only a start knows.
        name: the worker's.
        kind: of the fork server.
        is_wanted: says whether to go on waiting for the fork server; one that is not ready then is killed.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made; or it is not wanted any more.
    """
    inherited = Inherited.now()
    config = config._replace(inherited=inherited)
    while (made := _make(context, config, inherited, name, kind)) is None:
        if not is_wanted():
            with lock:
                if not fork_server.is_ready(kind):
                    fork_server.leave(kind)
            raise TimeoutError("the fork server is not ready, as it still imports what is to be preloaded")
        time.sleep(_LOOK)
    return made


def _make(
    context: Any, config: WorkerConfig, inherited: Inherited, name: str, kind: fork_server.Kind
) -> tuple[Any, Any] | None:
    """Make a worker, as `start`; returns None if the fork server still imports modules of the user's."""
    with lock:
        fill_standard()  # for what is opened, here and in the child
        _check_descriptors()
        _launching.append((threading.get_ident(), config.tasks))
        try:
            if context is None:
                fork_server.renew(inherited, kind)
                fork_server.start(inherited, kind)  # before the next lines import anything
                if not fork_server.is_ready(kind):
                    return None
                told = config._replace(output=(Descriptor(1), Descriptor(2)), started=_started(name))
                return fork_server.fork(told, inherited, kind)
            from parallel_exec.backends.process import mp_process

            return mp_process.start(context, config, name), None
        finally:
            _launching.clear()


def start_server(kind: fork_server.Kind) -> None:
    """Start the fork server of that kind, if there is none; the first worker has to wait for it otherwise.

    Blocks for some milliseconds.

    Raises:
        OSError: there are not enough descriptors left, or no process can be made.
    """
    inherited = Inherited.now()
    with lock:
        fill_standard()
        _check_descriptors()
        fork_server.renew(inherited, kind)
        fork_server.start(inherited, kind)


def leave_server(kind: fork_server.Kind) -> None:
    """Leave the fork server of a special kind, as a pool that has used it has ended, unless another one uses it."""
    with lock:
        if fork_server.servers.part(kind):
            fork_server.leave_and_wait(kind)


def _started(name: str) -> Started:
    """Return what a worker is told of where it comes from."""
    from multiprocessing import process

    from parallel_exec.backends.process.child.start import Started

    this: Any = process.current_process()
    numbers: Any = process._process_counter  # type: ignore[attr-defined]
    return Started(
        name,
        (*this._identity, next(numbers)),
        this.name,
        os.getpid(),
        bytes(this.authkey),
        start_method.search_path(),
        list(sys.argv),
        start_method.current_folder(),
        start_method.ORIGIN,
    )


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


def _at_exit() -> None:
    """Leave the fork server; the pools have ended by now, but a start may be under way in a thread that cannot be joined.

    That is waited for: a child that finds nobody to tell it what to do prints a traceback.
    """
    if lock.acquire(timeout=_LAST_START):
        try:
            fork_server.leave_all()
        finally:
            lock.release()


atexit.register(_at_exit)
