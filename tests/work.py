"""What the tests run as tasks: functions that pickle, and files through which tasks in any process talk to a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from parallel_exec import current_task

PATIENCE = 30.0  # seconds after which whoever waits in vain gives up
SOON = 20.0  # seconds within which is done what takes a moment, however busy the machine; what hangs takes PATIENCE at least
FOREVER = 600.0  # seconds; longer than any test's limit
POLL = 0.002


class Latch:
    """An event that works across processes: it is set when its file is there."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def set(self) -> None:
        """Set it, for good."""
        Path(self.path).touch()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return os.path.exists(self.path)

    def wait(self, timeout: float = PATIENCE) -> None:
        """Wait until it is set."""
        until = time.monotonic() + timeout
        while not self.is_set():
            if time.monotonic() > until:
                raise AssertionError(f"nobody set {self.path} within {timeout} s")
            time.sleep(POLL)


class Log:
    """Lines in a file, to which any process appends."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, line: object) -> None:
        """Append a line, at once and whole."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def lines(self) -> list[str]:
        """Return what was written so far."""
        return Path(self.path).read_text().splitlines() if os.path.exists(self.path) else []


class CodedError(Exception):
    """A user's exception with a fact of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class FalsyError(Exception):
    """An exception that is false."""

    def __bool__(self) -> bool:
        return False


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments."""
    return args, kwargs


class SecretiveError(Exception):
    """An exception whose `args` raise."""

    @property
    def args(self) -> tuple[Any, ...]:  # type: ignore[override]
        """Raise."""
        raise PermissionError("args")


class PoisonedError(Exception):
    """An exception that raises whatever it is asked."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise PermissionError(name)


def fail_oddly(kind: type[BaseException]) -> NoReturn:
    """Raise an exception of a kind, as one of them can be made in its own process only."""
    raise kind


def note(log: Log, line: object) -> object:
    """Write a line and return it."""
    log.write(line)
    return line


def fail(error: BaseException) -> NoReturn:
    """Raise an exception."""
    raise error


def fail_deeply(code: int) -> NoReturn:
    """Raise from a function with a name that tracebacks show."""
    raise CodedError(code)


def hold(started: Latch, gate: Latch, value: object = "held") -> object:
    """Say that it started, and return when the gate opens."""
    started.set()
    gate.wait()
    return value


def stubborn(started: Latch, gate: Latch) -> None:
    """Get stuck for good, whatever is raised meanwhile."""
    while not gate.is_set():
        try:
            started.set()
            gate.wait(3600.0)
        except BaseException:  # that is what stubborn means
            continue


def hold_once(started: Latch, gate: Latch) -> str:
    """Get stuck the first time only."""
    if not started.is_set():
        hold(started, gate)
    return "second time"


def fail_after(latch: Latch) -> NoReturn:
    """Fail once the other one has started."""
    latch.wait()
    fail_deeply(1)


def meet(latches: list[Latch], mine: int) -> int:
    """Return when all have come here."""
    latches[mine].set()
    for latch in latches:
        latch.wait()
    return mine


def flaky(log: Log, failures: int) -> int:
    """Fail so many times, then return the number of the call."""
    call = len(log.lines()) + 1
    log.write("call")
    if call <= failures:
        raise OSError(f"call {call} failed")
    return call


class BusyError(Exception):
    """What a client library raises where a service says when it has time again."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


def busy(log: Log, times: int, error: Exception) -> int:
    """Raise `error` so many times, then return the number of the call."""
    call = len(log.lines()) + 1
    log.write("call")
    if call <= times:
        raise error
    return call


def exit_with(status: object) -> NoReturn:
    """Leave as programs do."""
    sys.exit(status)  # type: ignore[arg-type]


def interrupt() -> NoReturn:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def die(status: int = 3) -> NoReturn:
    """End this process on the spot."""
    os._exit(status)


def kill_self(number: int = signal.SIGKILL) -> None:
    """End this process by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(FOREVER)


def describe_current() -> dict[str, Any]:
    """Return what the current task knows of itself."""
    task = current_task()
    return {
        "id": task.id,
        "attempt": task.attempt,
        "has_deadline": task.deadline is not None,
        "remaining": task.remaining(),
        "cancelled": task.cancelled,
    }


def check_until_stopped(started: Latch) -> NoReturn:
    """Ask again and again whether to stop."""
    started.set()
    while True:
        current_task().check()
        time.sleep(POLL)


def span(log: Log, seconds: float = 0.0) -> None:
    """Log when it began and when it ended; the clock is the machine's, not the process's."""
    start = time.monotonic()
    time.sleep(seconds)
    log.write(f"{start!r} {time.monotonic()!r}")


def most_at_once(log: Log) -> int:
    """Return how many of the logged spans overlapped at the busiest moment."""
    changes = []
    for line in log.lines():
        start, end = map(float, line.split())
        changes += [(start, 1), (end, -1)]
    level = most = 0
    for _, change in sorted(changes):
        level += change
        most = max(most, level)
    return most


def note_pid(log: Log, seconds: float = 0.0) -> int:
    """Write the process id to a file, take a moment, and return the id."""
    log.write(os.getpid())
    time.sleep(seconds)
    return os.getpid()


def square(number: int) -> int:
    """Return the square of a number."""
    return number * number


def call(function: Any) -> object:
    """Call it."""
    return function()


def say_after(seconds: float, words: str) -> None:
    """Print, at once and whole, a while later."""
    time.sleep(seconds)
    os.write(1, f"{words}\n".encode())


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
    import ctypes

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


def meet_by_pid(latches: list[Latch], mine: int) -> int:
    """Return the process id when all have come here."""
    latches[mine].set()
    for latch in latches:
        latch.wait()
    return os.getpid()


def segfault() -> None:
    """Read what is not there."""
    import ctypes

    ctypes.string_at(0)


def die_once(log: Log, number: int = signal.SIGKILL) -> int:
    """End this process by a signal the first time, and return the number of the call the second time."""
    log.write("call")
    calls = len(log.lines())
    if calls == 1:
        kill_self(number)
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
_state = {"value": "uninitialized"}


def initialize(value: str) -> None:
    """Be an initializer."""
    _state["value"] = value


def initialized() -> str:
    """Return what the initializer left."""
    return _state["value"]


def worker_name() -> tuple[int, str]:
    """Return which process and thread runs this."""
    return os.getpid(), threading.current_thread().name


def until(condition: Any, timeout: float = PATIENCE) -> None:
    """Wait until a condition holds; for what nobody can be told to signal."""
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(f"{condition} did not come true within {timeout} s")
        time.sleep(POLL)


def survey() -> tuple[Any, ...]:
    """Return what this process has from the one that started it: environment, umask, niceness, processors, limits, signals."""
    import resource

    umask = os.umask(0)
    os.umask(umask)
    return (
        os.environ.get("NEW"),
        os.environ.get("OLD"),
        umask,
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        resource.getrlimit(resource.RLIMIT_CORE),
        signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
        os.getcwd(),
    )


def optimization() -> int:
    """Return what the interpreter was told by `PYTHONOPTIMIZE`."""
    return sys.flags.optimize


def group() -> tuple[int, list[int]]:
    """Return the groups of this process."""
    return os.getgid(), os.getgroups()


def wait_then_group(latch: str) -> tuple[int, list[int]]:
    """Set a latch, wait until it is taken away, and return the groups of this process."""
    Path(latch).touch()
    while os.path.exists(latch):
        time.sleep(POLL)
    return group()


def refuse_memory() -> None:
    """Have no shared memory from here on: an initializer."""
    import errno

    from parallel_exec.backends.process import segments

    def refuse(size: int, fds: list[int]) -> NoReturn:
        raise OSError(errno.ENOSPC, "no space left, for this test")

    segments.create = refuse


def remember(value: object) -> None:
    """Keep something in this module."""
    _kept.append(value)


def remembered() -> Any:
    """Return what was kept last."""
    return _kept[-1]


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
        pipe.send(executor.submit(pid).result(SOON))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()


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


def granted() -> dict[str, Any]:
    """Return what the current task was granted."""
    return current_task().granted


def granted_then_fail(log: Log, failures: int) -> dict[str, Any]:
    """Fail so many times, then return what this attempt was granted."""
    flaky(log, failures)
    return current_task().granted


def use_device(folder: str, name: str, seconds: float = 0.0, ending: str = "returns") -> str:
    """Use the one device that was granted, and end somehow; returns its name.

    Whoever uses it has a file in the folder, with the process id. One that is there says that somebody else uses it, unless
    that process is gone.

    Raises:
        AssertionError: two have used it.
    """
    (device,) = current_task().granted[name]
    path = os.path.join(folder, device)
    mine = f"{path}-{os.getpid()}-{current_task().id}"
    Path(mine).write_text(str(os.getpid()))
    try:
        os.link(mine, path)  # in one step: we may be killed at any point
    except FileExistsError:
        user = Path(path).read_text()
        if os.path.exists(f"/proc/{user}"):
            raise AssertionError(f"{device} is used by {user}") from None
        os.replace(mine, path)
    else:
        os.unlink(mine)
    time.sleep(seconds)
    if ending == "dies":
        os._exit(3)
    if ending == "is killed":
        kill_self()
    if ending == "hangs":
        time.sleep(FOREVER)
    os.unlink(path)
    if ending == "fails":
        raise OSError("failed")
    return str(device)
