"""Tasks that fork, and whose child comes back from the call."""

from __future__ import annotations

import multiprocessing
import os
import pty
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Callable

from parallel_exec import ParallelExecutor, current_task


def fork() -> int:
    """Do as `os.fork`, whatever Python says of other threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def come_back(log: str, how: Callable[[], object] = int) -> int:
    """Fork; the child logs and comes back as `how` says; the parent returns the child's exit status."""
    child = fork()
    if not child:
        _write(log)
        how()
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def come_back_for_item(log: str, number: int) -> Any:
    """Do so for one item in ten; a number or a string for each."""
    if number % 10 == 5:
        return come_back(log)
    return number if number < 50 else str(number)


def come_back_from_terminal(log: str) -> int:
    """Do so by `pty.fork`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child, terminal = pty.fork()
    if not child:
        _write(log)
        return -1
    status = os.waitpid(child, 0)[1]
    os.close(terminal)  # not before, as that is a signal to the child
    return os.waitstatus_to_exitcode(status)


def come_back_last(log: str, how: Callable[[], object]) -> None:
    """Do as `come_back`, as a finalizer, of which nobody hears: the parent logs the status."""
    status = come_back(log, how)
    with Path(log).open("a") as file:
        file.write(f"{status}\n")


def _write(log: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()}\n")


def exit_with(code: object) -> None:
    """Exit."""
    sys.exit(code)  # type: ignore[arg-type]


def fail(log: str = "") -> None:
    """Raise; where there is a log, it is standard error from then on."""
    if log:
        sys.stderr = Path(log).open("a")  # noqa: SIM115  # for the rest of this process
    raise ValueError("the child's own")


def use_library(backend: str) -> None:
    """Run tasks in new executors, one of which is still at work when this returns."""
    with ParallelExecutor(max_concurrency=2, backend=backend) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    late = ParallelExecutor(max_concurrency=1)
    late.submit(threading.Event().wait, 0.2).add_done_callback(lambda future: os.write(1, b""))
    assert current_task().id


def fork_by_multiprocessing(log: str) -> int | None:
    """Start a process of `multiprocessing` by fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=_write, args=(log,))
        process.start()
    process.join()
    return process.exitcode


def fork_in_thread(log: str) -> int:
    """Fork in a thread of the task's, whose child comes back from the thread's function."""
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(come_back(log)))
    thread.start()
    thread.join()
    return statuses[0]
