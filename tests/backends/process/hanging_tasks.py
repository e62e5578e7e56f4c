"""Tasks that hang, or take their worker with them, each in its own way. Imports the standard library only."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time
from pathlib import Path


def nap() -> None:
    """Sleep."""
    time.sleep(100)


def hold_the_interpreter() -> None:
    """Sleep in a C call that keeps the GIL."""
    ctypes.PyDLL(None).sleep(100)


def sleep_in_c() -> None:
    """Sleep in a C call that lets the GIL go."""
    ctypes.CDLL(None).sleep(100)


def wait_for_a_lock() -> None:
    """Acquire a lock twice."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def compute() -> None:
    """Never come to an end."""
    while True:
        sum(range(1000))


def nap_beside_threads(count: int) -> None:
    """Sleep, and have so many threads sleep."""
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    time.sleep(100)


def nap_stopped() -> None:
    """Be stopped, as by Ctrl-Z."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100)


def nap_deaf() -> None:
    """Sleep without hearing any signal that can be blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(100)


def nap_with_handlers(numbers: tuple[int, ...]) -> None:
    """Sleep, with handlers of the task's own for the signals by which a worker is asked where it is."""
    for number in numbers:
        signal.signal(number, lambda *_: None)
    while True:
        time.sleep(100)


def nap_without_faulthandler() -> None:
    """Sleep, with faulthandler writing somewhere else."""
    faulthandler.disable()
    for number in range(signal.SIGRTMIN, signal.SIGRTMAX):
        faulthandler.unregister(number)
    time.sleep(100)


def nap_with_children(folder: Path) -> None:
    """Sleep, beside a process that was forked and ignores what it can."""
    if os.fork() == 0:
        for number in range(signal.SIGRTMIN, signal.SIGRTMAX):
            signal.signal(number, signal.SIG_IGN)
        (folder / str(os.getpid())).touch()
        time.sleep(100)
    time.sleep(100)


def block_and_return(seconds: float) -> int:
    """Return in time, having blocked all signals for good."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(seconds)
    return 1


def read_nowhere() -> None:
    """Read memory that is not there."""
    ctypes.string_at(0)


def abort() -> None:
    """Abort."""
    os.abort()


def fail_fatally() -> None:
    """Have the interpreter find that something is wrong with itself."""
    ctypes.pythonapi.Py_FatalError(b"so it is")


def read_nowhere_in_a_thread() -> None:
    """Have another thread read memory that is not there."""
    thread = threading.Thread(target=read_nowhere, name="reader")
    thread.start()
    thread.join()


def read_nowhere_in_a_child() -> int:
    """Have a forked process read memory that is not there; then be killed from outside."""
    pid = os.fork()
    if pid == 0:
        read_nowhere()
    status = os.waitpid(pid, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGSEGV
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def use_memory() -> None:
    """Take all that there is."""
    taken = []
    while True:
        taken.append(b"x" * (16 << 20))
