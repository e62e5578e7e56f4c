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
import sys
import threading
from contextvars import Context
from multiprocessing import process, resource_tracker, spawn
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Semaphore, SemLock
from typing import Any, ClassVar

from parallel_exec.backends._descriptors import Descriptor, fill_standard
from parallel_exec.backends._platform import deaf
from parallel_exec.backends.process import fork_server
from parallel_exec.backends.process.child.main import Start, WorkerConfig, main
from parallel_exec.backends.process.fork_warning import no_fork_warning
from parallel_exec.backends.process.inherited import Inherited
from parallel_exec.backends.process.preload import preload

_lock = threading.RLock()  # held while a worker is started
# Held while one is made or let go of: the I/O thread does so, and must not wait for a start.
semaphores = threading.RLock()
_launching: list[
    tuple[int, Descriptor]
] = []  # guarded by `_lock`: the thread that starts a worker, and the worker's pipe
_SPARE = 8 + 12  # descriptors: what `multiprocessing` opens for a start at most, and another worker's pipes meanwhile
_MAIN_KEYS = ("init_main_from_name", "init_main_from_path")
_PATIENCE = 5.0  # seconds that a fork waits for a start to be over; a guess


def _before_fork() -> None:
    # `multiprocessing` has locks of its own for both. What is forked while another thread has one of them could start no
    # process itself.
    for lock in (_lock, semaphores):
        lock.acquire(timeout=_PATIENCE)


def _after_fork_in_parent() -> None:
    for lock in (_lock, semaphores):
        with contextlib.suppress(RuntimeError):  # the time was up
            lock.release()


def _after_fork_in_child() -> None:
    for lock in (_lock, semaphores):
        lock._at_fork_reinit()  # type: ignore[attr-defined]
    _WithoutMain.undo()
    fork_server.after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


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


def make_semaphore(context: Any) -> Any:
    """Return a semaphore of value 0, of which the resource tracker knew before it was there.

    `multiprocessing` tells it afterwards, and one whose maker is killed in between stays in the system. (What makes the
    name is private; where it is called otherwise, the tracker is told afterwards.)
    """
    if forks(context) or not isinstance(context, BaseContext):
        return context.Semaphore(0)  # by forks it is inherited, without a name
    names: list[str] = []

    def make_name() -> str:
        names.append(SemLock._make_name())  # type: ignore[attr-defined]
        resource_tracker.register(names[-1], "semaphore")
        return names[-1]

    semaphore: Any = Semaphore.__new__(Semaphore)
    semaphore._make_name = make_name
    try:
        semaphore.__init__(0, ctx=context.get_context())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (for a semaphore: they lie in /dev/shm)") from error
    finally:
        name = getattr(getattr(semaphore, "_semlock", None), "name", None)
        for vain in set(names) - {name}:
            resource_tracker.unregister(vain, "semaphore")
    del semaphore._make_name
    return semaphore


def forks(context: Any) -> bool:
    """Return whether workers are copies of this process, which have its main module."""
    # Where the default is asked for and not yet settled, asking must not settle it: the first in the list is it.
    return (context.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"


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
        if by_server:
            fork_server.renew(inherited)
            if not fork_server.has_place():  # nowhere can anything be written
                context, by_server = multiprocessing.get_context("spawn"), False
        if by_server:
            preload()
        output = (Descriptor(1), Descriptor(2)) if by_server else ()  # the server's are those of when it was started
        config = config._replace(inherited=inherited, output=output)
        child = context.Process(target=main, args=(Start(config),), name=name)
        _launching.append((threading.get_ident(), config.tasks))
        try:
            # What the server forks is as the server was born.
            with contextlib.nullcontext() if by_server else deaf(), no_fork_warning():
                Context().run(child.start)  # without the filters of this one, `fork_warning.py` says why
        finally:
            _launching.clear()
        # Else every start of any process polls this one, in whatever thread, and takes the news of its end from us.
        getattr(process, "_children", set()).discard(child)
    return child


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
