"""How tests look at processes from outside, and start some. Linux only: /proc."""

from __future__ import annotations

import contextlib
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
from typing import Any, Callable, Iterator

import inside
import psutil

from parallel_exec.backends.process.worker_handle import WorkerState


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
    with inside.monitor(executor).lock:
        return list(inside.runner(executor).assignments.handles)


def workers(executor: Any, ready: bool = True) -> list[int]:
    """Return the process ids of the pool's workers; with `ready`, of those only that take tasks."""
    return [
        handle.process.pid
        for handle in handles(executor)
        if handle.process.pid and (handle.state != WorkerState.STARTING or not ready)
    ]


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
def python(*command: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
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
