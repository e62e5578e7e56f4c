"""What these tests run in worker processes, and how they look at processes from outside. Linux only: /proc."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn

import psutil
from work import Latch, Log, double, hold, most_at_once, note, span, until

from parallel_exec import current_task
from parallel_exec.backends.process import segments

__all__ = ["Latch", "Log", "double", "hold", "most_at_once", "note", "span", "until"]

FOREVER = 600.0  # seconds; longer than any test's limit

# ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def pid(*_: object) -> int:
    """Return the worker's process id."""
    return os.getpid()


def own_id() -> str:
    """Return the task's id."""
    return current_task().id


def thread_names() -> list[str]:
    """Return the names of all threads here but this one."""
    return [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]


def describe_thread() -> tuple[str, bool, bool, list[str]]:
    """Return this thread's name, whether it is the main one and whether a thread of its own is a daemon; and all others."""
    this = threading.current_thread()
    handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # an error but in the main thread
    signal.signal(signal.SIGUSR2, handler)
    return this.name, this is threading.main_thread(), threading.Thread().daemon, thread_names()


def note_later(log: Log, seconds: float) -> bool:
    """Leave a thread that writes a line later; returns whether it is a daemon."""

    def note() -> None:
        time.sleep(seconds)
        log.write("later")

    thread = threading.Thread(target=note)
    thread.start()
    return thread.daemon


def same(value: Any) -> Any:
    """Return the argument."""
    return value


def nap(seconds: float) -> int:
    """Take so many seconds, then return the process id."""
    time.sleep(seconds)
    return os.getpid()


def begin(started: Latch, seconds: float = FOREVER) -> None:
    """Say that it started, and sleep."""
    started.set()
    time.sleep(seconds)


def hang_in_c(started: Latch | None = None) -> None:
    """Hang in a C call that holds the interpreter's lock, with every signal blocked that can be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if started is not None:
        started.set()
    ctypes.PyDLL(None).sleep(int(FOREVER))


def note_then_hang_if(log: Log, number: int, hangs: int) -> int:
    """Write the number to a file; one of all the numbers hangs then."""
    log.write(number)
    if number == hangs:
        hang_in_c()
    return number


def note_and_nap(log: Log, number: int, seconds: float) -> int:
    """Write the number to a file, take so many seconds, and return it."""
    log.write(number)
    if seconds:
        time.sleep(seconds)
    return number


def start_child(pids: Log, started: Latch, hang: bool) -> None:
    """Start a subprocess, note its id and ours, and hang: asleep, or in a C call that holds the interpreter's lock."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
    pids.write(child.pid)
    pids.write(os.getpid())
    if hang:
        hang_in_c(started)
    begin(started)


def fail_then_note(calls: Log, log: Log, line: str) -> None:
    """Fail the first time, and write a line the second time."""
    calls.write("call")
    if len(calls.lines()) == 1:
        raise OSError("not yet")
    log.write(line)


class SlowToRebuild:
    """Takes its time to be unpickled: until a gate opens."""

    def __init__(self, started: Latch, gate: Latch) -> None:
        self.latches = started, gate

    def __reduce__(self) -> Any:
        return hold, self.latches


def meet(latches: list[Latch], mine: int) -> int:
    """Return the process id when all have come here."""
    latches[mine].set()
    for latch in latches:
        latch.wait()
    return os.getpid()


def segfault() -> None:
    """Read what is not there."""
    ctypes.string_at(0)


def exit_hard(status: int) -> None:
    """End this process on the spot."""
    os._exit(status)


def die_by(number: int) -> None:
    """End this process by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(FOREVER)


def die_once(log: Log, number: int = signal.SIGKILL) -> int:
    """End this process by a signal the first time, and return the number of the call the second time."""
    log.write("call")
    calls = len(log.lines())
    if calls == 1:
        die_by(number)
    return calls


def leave_thread() -> int:
    """Leave a thread behind that never ends, and that Python would wait for."""
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def fork_and_wait(status: int) -> int:
    """Fork a child that exits at once; return its status."""
    child = os.fork()
    if not child:
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def use_multiprocessing(method: str) -> int:
    """Have a process of multiprocessing's own compute something."""
    import multiprocessing

    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply(square, (3,))


# ── initializers, and tasks that look at what they did ──────────────────────────────────────────────────────────────

_kept: list[Any] = []
BORROWED: list[Any] = []  # a pool of the parent's, in a forked worker


def refuse_memory() -> None:
    """Have no shared memory from here on: an initializer."""

    def refuse(size: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left, for this test")

    segments.create = refuse


def remember(value: object) -> None:
    """Keep something in this module."""
    _kept.append(value)


def remembered() -> Any:
    """Return what was kept last."""
    return _kept[-1]


def note_pid(log: Log) -> int:
    """Write the process id to a file and return it."""
    log.write(os.getpid())
    return os.getpid()


def fail_first(log: Log, failures: int) -> None:
    """Fail in so many processes."""
    log.write(os.getpid())
    if len(log.lines()) <= failures:
        raise OSError("not yet")


def fail_after_first(log: Log) -> None:
    """Fail in every process but the first."""
    log.write(os.getpid())
    if len(log.lines()) > 1:
        raise OSError("no more")


def wait_unless_first(log: Log, gate: Latch) -> None:
    """Wait in every process but the first."""
    log.write(os.getpid())
    if log.lines()[0] != str(os.getpid()):
        gate.wait()


def fail_until_fourth(log: Log) -> int:
    """Fail three times, noting in which process, then return the number of the call."""
    log.write(os.getpid())
    calls = len(log.lines())
    if calls < 4:
        raise OSError("not yet")
    return calls


def square(number: int) -> int:
    """Return the square of a number."""
    return number * number


def use_pool(count: int) -> list[int]:
    """Use a process pool of our own."""
    from parallel_exec import ParallelExecutor

    with ParallelExecutor(max_concurrency=1, backend="process") as executor:
        return list(executor.map(square, range(count)))


def report_pool(pipe: Any) -> None:
    """Send what `use_pool` returns or raises."""
    try:
        pipe.send(str(use_pool(3)))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()


def report_submit(executor: Any, pipe: Any) -> None:
    """Send what a task of this executor returns or raises."""
    try:
        pipe.send(executor.submit(pid).result(9))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()


def fail_with(error: BaseException) -> None:
    """Raise what was given."""
    raise error


def kill_self() -> None:
    """Die as by the system's hand."""
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory(size: int) -> None:
    """Take memory, and say nothing about it."""
    bytearray(size)


def try_borrowed() -> str:
    """Use the parent's pool, and return how that is refused."""
    try:
        BORROWED[0].submit(int)
    except Exception as error:
        return str(error)
    return "it took a task"


# ── processes, seen from outside ────────────────────────────────────────────────────────────────────────────────────


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return a process's children, and theirs."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def handles(executor: Any) -> list[Any]:
    """Return what the pool knows of its workers."""
    scheduler = executor._scheduler
    with scheduler.lock:
        return list(scheduler.backend.io.assignments.handles)


def workers(executor: Any, ready: bool = True) -> list[int]:
    """Return the process ids of the pool's workers; with `ready`, of those only that take tasks."""
    return [handle.pid for handle in handles(executor) if handle.pid and (handle.ready or not ready)]


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Kill one process as anybody might; returns whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def settled(value: Callable[[], Any], seconds: float) -> Any:
    """Return a value once it has not changed for so many seconds."""
    last, since = value(), time.monotonic()
    while time.monotonic() < since + seconds:
        time.sleep(0.002)
        if (now := value()) != last:
            last, since = now, time.monotonic()
    return last


def has_cloudpickle() -> bool:
    """Return whether the extra is installed."""
    return importlib.util.find_spec("cloudpickle") is not None


class Every:
    """Calls a function in a thread of its own again and again, until told to end."""

    def __init__(self, seconds: float, function: Callable[[], object]) -> None:
        self._over = threading.Event()
        self._seconds = seconds
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._function()

    def __enter__(self) -> Every:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Let this process open only so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    free = (fd for fd in itertools.count() if fd not in used)  # what is open beyond the limit stays open
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, spare, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def script(*command: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program that imports what the tests import; it is killed at the end, if it still runs."""
    settings.setdefault("stdin", subprocess.DEVNULL)
    settings.setdefault("env", environment())
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def environment(*folders: Path) -> dict[str, str]:
    """Return an environment in which Python finds these folders first, then all that this process finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, *filter(None, sys.path)]))}
