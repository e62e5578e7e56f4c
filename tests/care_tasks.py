"""What the tests of workers that look after themselves run as tasks."""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

import work

from parallel_exec import current_task, current_worker


def seed(*_: Any) -> int:
    """Return the current task's seed."""
    return current_task().seed


def seed_of_a_retry(log: Any, failures: int) -> int:
    """Fail so many times, each time noting the seed; then return it."""
    log.write(str(current_task().seed))
    if len(log.lines()) <= failures:
        raise ValueError("not yet")
    return current_task().seed


def who(*_: Any) -> tuple[int, str, int]:
    """Return the index, the name and the process of the current worker."""
    worker = current_worker()
    return worker.index, worker.name, worker.pid


def who_waits(here: Any, gate: Any) -> tuple[int, str, int]:
    """Say that the task has begun, and wait; returns as `who`."""
    here.set()
    gate.wait()
    return who()


def who_comes_after(begun: Any) -> tuple[int, str, int]:
    """Return as `who`, once something has begun."""
    begun.wait()
    return who()


def hang_as(log: Any, gate: Any, index: int) -> int:
    """Return the worker's index; the first time, in the worker of that index, not before the gate is open."""
    worker = current_worker()
    if worker.index == index and not log.lines():
        log.write(index)
        gate.wait(work.FOREVER)
    return worker.index


def count(*_: Any) -> int:
    """Return how often this was called in the worker."""
    state = current_worker().state
    state["calls"] = state.get("calls", 0) + 1
    return int(state["calls"])


def open_log(log: Any) -> None:
    """Be an initializer that opens something."""
    current_worker().state["log"] = log
    log.write(f"opened {current_worker().index}")


def open_late(log: Any, begun: Any, gate: Any, index: int) -> None:
    """Be an initializer that opens something, and in the worker of that index then waits until the gate is open."""
    open_log(log)
    if current_worker().index == index:
        begun.set()
        gate.wait()


def use_log(what: object) -> int:
    """Be a task that uses what the initializer has opened."""
    worker = current_worker()
    worker.state["log"].write(f"used {what}")
    return worker.index


def close_log() -> None:
    """Be a finalizer that closes it."""
    worker = current_worker()
    worker.state["log"].write(f"closed {worker.index}")


def fail_to_close() -> None:
    """Be a finalizer that raises."""
    raise ValueError("cannot be closed")


def never_close() -> None:
    """Be a finalizer that never returns."""
    time.sleep(work.FOREVER)


def variables(*names: str) -> tuple[str | None, ...]:
    """Return environment variables of the worker."""
    return tuple(os.environ.get(name) for name in names)


def threads_of_numpy() -> int:
    """Return how many threads the process has once NumPy has multiplied matrices."""
    import numpy as np

    matrix = np.random.rand(500, 500)
    matrix @ matrix
    return len(os.listdir("/proc/self/task"))


def grow(size: int) -> int:
    """Leave so many bytes of memory behind; returns the process."""
    current_worker().state.setdefault("kept", []).append(b"x" * size)
    return os.getpid()


def hour_of(seconds: float) -> int:
    """Return the local hour so many seconds after the epoch."""
    return time.localtime(seconds).tm_hour


def loaded(name: str) -> tuple[bool, int]:
    """Return whether a module is loaded that this one does not import, and who forked the worker."""
    return name in sys.modules, os.getppid()


def random_numbers(here: Any, gate: Any) -> tuple[float, float]:
    """Return a number of Python's and one of NumPy's global random state; in a worker that has nothing else to do."""
    import numpy as np

    here.set()
    gate.wait()
    return random.random(), float(np.random.rand())
