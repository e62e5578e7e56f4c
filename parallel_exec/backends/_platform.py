"""What only some platforms have, in one place: process groups, dying with the parent, memory limits, deaths and dumps.

Linux is what is tested.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading

from parallel_exec.backends._descriptors import lift

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

try:
    import fcntl
    import resource
except ImportError:  # no POSIX
    pass

# Signals by which a worker is asked where it is: all its threads, of which it dies, and then the main thread by itself. Programs
# use SIGUSR1 and SIGUSR2, and hardly any these; a guess. Where there are none, nobody is asked.
_LAST: int = getattr(signal, "SIGRTMAX", 0)
DUMP_ALL, DUMP_MAIN = DUMP_SIGNALS = (_LAST - 7, _LAST - 6) if _LAST else (0, 0)
_TO_THREAD = 1  # PIDFD_SIGNAL_THREAD

_limits: list[int] = []  # what `limit_memory` was told; module state, as the limit is the process's


def lead_group() -> None:
    """Make this process the leader of a new process group: what it starts can be killed with it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


@contextlib.contextmanager
def without_sigint() -> Iterator[None]:
    """Keep Ctrl-C from a process that this thread forks or spawns meanwhile, until that calls `admit_sigint`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def admit_sigint() -> None:
    """Be interrupted by SIGINT from now on, and not by one that came before: it was for the group of the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)


def become_main_thread() -> None:
    """Make a forked process's only thread, a copy of the one that forked it, what the main thread of a new process is.

    The one that forked was a daemon: threads that its copy starts would be daemons, too, and be cut off at the end. And
    signals that come here would be written to the file by which an event loop of the parent's is told of its own.
    """
    this: Any = threading.current_thread()
    this.name = "MainThread"
    this._daemonic = False
    signal.set_wakeup_fd(-1)


def die_with_parent(lifeline: int) -> None:
    """See that this process group is killed once the other end of the pipe `lifeline` is closed.

    On Linux the kernel does it: a pipe can be told to signal a process group when it changes, the signal may be SIGKILL,
    and nothing but its end ever changes this one. It needs no thread here, and works while a C call hangs.
    """
    if _is_signalled(lifeline, -os.getpgrp()):
        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        if poll.poll(0):  # the parent had ended before the kernel was asked
            os.killpg(0, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(lifeline,), name="parallel_exec-lifeline", daemon=True).start()


@contextlib.contextmanager
def dying_with(requests: int) -> Iterator[None]:
    """Have this process killed meanwhile once the other end of the socket `requests` is closed, by which nothing must come."""
    is_signalled = _is_signalled(requests, os.getpid())
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    if poll.poll(0):  # the parent had ended before the kernel was asked
        os._exit(1)
    try:
        yield
    finally:
        if is_signalled:
            fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) & ~os.O_ASYNC)


def _is_signalled(lifeline: int, owner: int) -> bool:
    """Have the kernel kill `owner`, a process or minus a group, when the pipe changes.

    Returns:
        False if it does not do so, or a sandbox refuses.
    """
    if sys.platform != "linux":
        return False
    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, owner)
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        return False
    return True


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def limit_memory(limit: int) -> None:
    """Let allocations beyond `limit` bytes of data fail with MemoryError in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    _limits.append(limit)


def say_limit(wanted: str) -> str:
    """Return what to say of something that wanted more memory than this process may have."""
    if not _limits:
        return f"{wanted} more memory than this worker may have"
    return f"{wanted} more than memory_limit={_limits[-1]} bytes allow a worker: raise ProcessBackend(memory_limit=...)"


def explain_memory(error: BaseException) -> BaseException:
    """Return the interpreter's own MemoryError, or the kernel's, neither of which says why, with the limit that it met."""
    if not _limits or type(error) is not MemoryError:
        return error
    if error.args and not isinstance(error.__cause__, OSError):
        return error
    told = MemoryError(say_limit("it takes"))
    told.__traceback__ = error.__traceback__
    told.__cause__, told.__context__ = error.__cause__, error.__context__
    told.__suppress_context__ = error.__suppress_context__
    return told


def kill_group(pid: int, leader_is_gone: bool = False) -> None:
    """Kill a process and its group; does nothing if they are gone."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if leader_is_gone:
            return
        with contextlib.suppress(ProcessLookupError):  # it does not lead a group yet
            os.kill(pid, signal.SIGKILL)


def ask_for_dump(pid: int) -> bool:
    """Have a process write where it is, and die, also one that was stopped; returns whether it can be asked.

    Its main thread is asked, if the kernel can do that (Linux 6.9): two signals to a process may go to two threads. It is
    stopped until both are there: the handler of the higher runs first then, the main thread's, and it dies of the other.
    (One after the other would not do: it would be dead, or a call of C's would come back, as `sleep` does then.)
    """
    if not DUMP_ALL:
        return False
    try:
        fd = lift(os.pidfd_open(pid))
        try:
            os.kill(pid, signal.SIGSTOP)
            for number in DUMP_SIGNALS:
                signal.pidfd_send_signal(fd, number, None, _TO_THREAD)
        finally:
            os.close(fd)
    except (AttributeError, OSError):  # an old kernel; or it is dead
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, DUMP_ALL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return True


def death_watch(pid: int, sentinel: int) -> tuple[int, bool]:
    """Return a descriptor that becomes readable when the process ends, and whether the caller must close it.

    A `multiprocessing` sentinel is a pipe, which a grandchild may hold open; a pidfd is not.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return lift(os.pidfd_open(pid)), True
        except OSError:  # an old kernel, or it is gone already
            pass
    return sentinel, False
