"""What the tests run as tasks: functions that pickle, and files through which tasks in any process talk to a test."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from parallel_exec import current_task

PATIENCE = 30.0  # seconds after which whoever waits in vain gives up
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
    time.sleep(PATIENCE)


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


def note_pid(log: Log, seconds: float) -> str:
    """Say which process runs this, and take a moment."""
    log.write(os.getpid())
    time.sleep(seconds)
    return "done"


def call(function: Any) -> object:
    """Call it."""
    return function()


def say_after(seconds: float, words: str) -> None:
    """Print, at once and whole, a while later."""
    time.sleep(seconds)
    os.write(1, f"{words}\n".encode())


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
